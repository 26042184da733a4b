"""What the outside sees of the inside: metrics, logs, redaction. Never slows or fails a request."""
