"""The straight line of a request: decide, attempt, relay, settle. Knows no socket; both ends are passed in."""
