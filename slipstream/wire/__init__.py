"""Dialects, both ways, sans-IO: bytes in, bytes out. Knows no socket, no clock and no configuration."""
