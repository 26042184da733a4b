"""Framing of ``application/vnd.amazon.eventstream`` in plain Python: the specification of ``_fast/eventstream.pyx``.

Owns: what the compiled framer does, said so that it can be read (PROTOCOLS.md section 4). The documentation of the face
is in ``eventstream.pyi``.

Why so: both run under one test suite and are compared over random frames, random cuts and random damage.

The rule that must not be broken: no cleverness here, save that the bytes of an unfinished frame are joined once each.
"""

from __future__ import annotations

from struct import unpack_from
from typing import Final, final
from zlib import crc32

M_EVENT: Final = 1
M_EXCEPTION: Final = 2
M_ERROR: Final = 3
M_OTHER: Final = 4
M_BROKEN: Final = 5

MAX_HEADERS: Final = 128 * 1024
MAX_FRAME: Final = 24 * 1024 * 1024 + MAX_HEADERS + 16
REASONS: Final = (
    "",
    "the checksum of a frame's prelude is wrong",
    "the size of a frame is beyond the limits",
    "the checksum of a frame is wrong",
    "the headers of a frame cannot be read",
)
_PRELUDE_SUM, _SIZE, _FRAME_SUM, _HEADERS = 1, 2, 3, 4

_STRING = 7
_WIDTHS = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}
_FIELDS = (b":message-type", b":event-type", b":exception-type", b":error-code", b":error-message")
_KINDS = {b"event": M_EVENT, b"exception": M_EXCEPTION, b"error": M_ERROR}


class _BadHeaders(Exception):
    pass


@final
class EventStream:
    __slots__ = ("_at", "_broken", "_buf", "_checked", "_fields", "_max", "_payload")

    def __init__(self, max_frame: int = MAX_FRAME) -> None:
        if max_frame < 16:
            raise ValueError("max_frame is too small for a frame")
        self._max = max_frame
        self._buf = bytearray()
        self._at = 0  # first byte of the next frame
        self._checked: tuple[int, int] | None = None  # length of that frame and of its headers
        self._broken = 0
        self._fields: dict[bytes, bytes] = {}
        self._payload = b""

    def feed(self, chunk: bytes) -> None:
        if type(chunk) is not bytes:
            raise TypeError(f"bytes wanted, not {type(chunk).__name__}")
        self._forget()
        if self._broken:
            return
        del self._buf[: self._at]
        self._at = 0
        self._buf += chunk

    def next(self) -> int:
        if self._broken:
            return M_BROKEN
        if self._checked is None:
            if self.pending < 12:
                return 0
            total, headers, checksum = unpack_from(">III", self._buf, self._at)
            if crc32(self._buf[self._at : self._at + 8]) != checksum:
                return self._fail(_PRELUDE_SUM)
            if not 16 <= total <= self._max or headers > min(MAX_HEADERS, total - 16):
                return self._fail(_SIZE)
            self._checked = total, headers
        total, headers = self._checked
        if self.pending < total:
            return 0
        frame = bytes(self._buf[self._at : self._at + total])
        self._forget()
        if crc32(frame[:-4]) != unpack_from(">I", frame, total - 4)[0]:
            return self._fail(_FRAME_SUM)
        try:
            self._fields = _read_headers(frame[12 : 12 + headers])
        except _BadHeaders:
            return self._fail(_HEADERS)
        self._payload = frame[12 + headers : -4]
        self._at += total
        self._checked = None
        return _KINDS.get(self._fields.get(b":message-type", b""), M_OTHER)

    def _forget(self) -> None:
        self._fields = {}
        self._payload = b""

    def _fail(self, reason: int) -> int:
        self._forget()
        self._broken = reason
        return M_BROKEN

    def _text(self, name: bytes) -> str:
        return self._fields.get(name, b"").decode("utf-8", "replace")

    @property
    def event_type(self) -> str:
        return self._text(b":event-type")

    @property
    def message_type(self) -> str:
        return self._text(b":message-type")

    @property
    def exception_type(self) -> str:
        return self._text(b":exception-type")

    @property
    def error_code(self) -> str:
        return self._text(b":error-code")

    @property
    def error_message(self) -> str:
        return self._text(b":error-message")

    def payload(self) -> bytes:
        return self._payload

    @property
    def pending(self) -> int:
        return len(self._buf) - self._at

    @property
    def reason(self) -> str:
        return REASONS[self._broken]


def _read_headers(block: bytes) -> dict[bytes, bytes]:
    """The headers that are kept: those of ours, where they are strings."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(block):
        name, at = _take(block, at + 1, block[at])
        kind, at = _take(block, at, 1)
        if not name:
            raise _BadHeaders
        if kind[0] in (6, _STRING):
            size, at = _take(block, at, 2)
            value, at = _take(block, at, int.from_bytes(size, "big"))
        elif kind[0] in _WIDTHS:
            value, at = _take(block, at, _WIDTHS[kind[0]])
        else:
            raise _BadHeaders
        if kind[0] == _STRING and name in _FIELDS:
            if name in found:
                raise _BadHeaders
            found[name] = value
    return found


def _take(block: bytes, at: int, n: int) -> tuple[bytes, int]:
    if at + n > len(block):
        raise _BadHeaders
    return block[at : at + n], at + n
