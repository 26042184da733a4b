"""Exceptions of the compiled core. They live in plain Python so that the compiled and the pure twin raise the same
classes.
"""

from __future__ import annotations


class JsonError(ValueError):
    """A body is not the JSON that RFC 8259 allows (or is beyond a limit of ours).

    ``pos`` is the byte offset of the first offending byte, ``reason`` a short fixed text (never bytes of the body:
    a body may hold secrets).
    """

    __slots__ = ("pos", "reason")

    def __init__(self, reason: str, pos: int) -> None:
        super().__init__(f"{reason} at byte {pos}")
        self.reason = reason
        self.pos = pos


class SseLimitError(ValueError):
    """An event of a ``text/event-stream`` is larger than the configured limit (bytes)."""
