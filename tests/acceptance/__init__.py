"""Runs of the shared acceptance tools against the real server."""
