"""The other framing of a Gemini stream: one JSON array whose elements come piece by piece (PROTOCOLS.md 2.4).

``JsonSplitter`` finds whole objects in a body that is cut anywhere. It knows strings, escapes and braces, nothing
more: what is inside an object is judged by who decodes it. What is between objects is only checked to be brackets,
commas and blanks, so an array, a single object and objects one after the other are all read.

The rule that must not be broken: every byte is looked at once, and no more is kept than one object of the size limit.
"""

from __future__ import annotations

import re

_OUTSIDE = re.compile(rb'["{}]')
_INSIDE = re.compile(rb'["\\]')
_BETWEEN = b" \t\r\n,[]"


class SplitError(Exception):
    """The body is not made of JSON objects, or one is larger than the limit."""


class JsonSplitter:
    """The objects of one body. ``pending``: an object has begun and not ended."""

    __slots__ = ("_at", "_buffer", "_depth", "_max", "_start", "_string")

    def __init__(self, max_object: int) -> None:
        self._buffer = bytearray()
        self._at = 0
        self._start = 0
        self._depth = 0
        self._string = False
        self._max = max_object

    @property
    def pending(self) -> bool:
        return self._depth > 0

    def feed(self, data: bytes) -> tuple[list[bytes], bool]:
        """The objects that are complete now, and whether the body is still good. After ``False`` feed no more."""
        self._buffer += data
        found: list[bytes] = []
        try:
            while self._step(found):
                pass
        except SplitError:
            return found, False
        if not self._depth:
            self._start = len(self._buffer)
        if self._start:
            del self._buffer[: self._start]
            self._at -= self._start
            self._start = 0
        return found, len(self._buffer) <= self._max

    def _step(self, found: list[bytes]) -> bool:
        """Go to the next byte that matters. ``False``: more bytes are needed."""
        buffer = self._buffer
        mark = (_INSIDE if self._string else _OUTSIDE).search(buffer, self._at)
        if mark is None:
            if not self._depth:
                self._check_gap(len(buffer))
            self._at = len(buffer)
            return False
        at, byte = mark.start(), buffer[mark.start()]
        if byte == 0x5C:  # a backslash and what it escapes
            if at + 1 == len(buffer):
                self._at = at
                return False
            self._at = at + 2
            return True
        self._at = at + 1
        if byte == 0x22:
            if not self._depth:
                raise SplitError
            self._string = not self._string
        elif byte == 0x7B:
            if not self._depth:
                self._check_gap(at)
                self._start = at
            self._depth += 1
        else:
            self._close(found)
        return True

    def _close(self, found: list[bytes]) -> None:
        if not self._depth:
            raise SplitError
        self._depth -= 1
        if not self._depth:
            if self._at - self._start > self._max:
                raise SplitError
            found.append(bytes(self._buffer[self._start : self._at]))
            self._start = self._at

    def _check_gap(self, end: int) -> None:
        """Between objects there is nothing but blanks, commas and the array's brackets."""
        if self._buffer[self._start : end].strip(_BETWEEN):
            raise SplitError
