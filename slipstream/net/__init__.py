"""Connections to providers: the ``Upstream`` face and the transports behind it."""
