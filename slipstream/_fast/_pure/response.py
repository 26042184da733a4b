"""The specification of ``response.pyx``: the same class in plain Python, one line after the other.

Here stand the texts of the errors, for both. How strict it is and why: ``response.pyi``.
"""

from __future__ import annotations

import re

E_HEAD, E_BODY, E_DONE, E_ERROR, E_EXTRA = 1, 2, 4, 8, 16
LIMIT_MAX = 2**31 - 1
LENGTH_MAX = 2**63 - 1
CHUNK_DIGITS_MAX = 16
CHUNK_EXT_MAX = 4096  # bytes of one chunk's extension, as in RequestGuard

REASONS = (
    "",
    "invalid status line",
    "head too large",
    "too many header fields",
    "control character in the head",
    "folded header field",
    "invalid header field",
    "invalid Content-Length",
    "conflicting Content-Length",
    "unsupported Transfer-Encoding",
    "Content-Length with Transfer-Encoding",
    "Transfer-Encoding in HTTP/1.0",
    "unexpected 101",
    "too many informational responses",
    "invalid chunk size",
    "invalid chunk extension",
    "chunk extension too long",
    "chunk data without CRLF",
    "invalid trailer",
    "trailers too large",
    "closed before the head",
    "truncated body",
)
(
    _, STATUS_LINE, HEAD_LARGE, COUNT, CTL, FOLD, FIELD, LENGTH, LENGTHS, CODING, BOTH, CODING_10, SWITCH,
    INFORMATIONAL, CHUNK_SIZE, CHUNK_EXT, EXT_LONG, CHUNK_END, TRAILER, TRAILERS_LARGE, NO_HEAD, TRUNCATED,
) = REASONS  # fmt: skip

# Each position of a status line, with what must stand there; refused as soon as a byte is wrong.
_PREFIX = [*(bytes([c]) for c in b"HTTP/1."), b"01", b" ", b"12345", b"0123456789", b"0123456789", b" \r\n"]
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CTL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_HEX = b"0123456789abcdefABCDEF"
_NO_BODY = (204, 304)


class _Refused(Exception):
    """Its argument is one of ``REASONS``."""


class ResponseReader:
    """See ``response.pyi``."""

    def __init__(self, max_head: int = 65536, max_fields: int = 256, max_informational: int = 16) -> None:
        limits = (max_head, max_fields, max_informational)
        if min(limits) < 0 or max(limits) > LIMIT_MAX:
            raise ValueError("a limit is out of range")
        self._max_head, self._max_fields, self._max_informational = limits
        self._reset()
        self._state = "done"

    def _reset(self) -> None:
        self._state = "head"  # head, length, close, size, ext, size-lf, data, data-end, trailers, done, error, spoilt
        self._held = bytearray()  # an unfinished head, or of the framing of a chunk what is not yet understood
        self._line = self._scan = 0  # in held: where the current line begins, how far no LF was found
        self._head = b""
        self._body = b""
        self._informational = self._left = self._passed = 0
        self.status, self.content_length = 0, -1
        self.keep_alive = self.chunked = self.close_delimited = self.started = False
        self.error_reason = ""

    def expect(self) -> None:
        if self._state != "done":
            raise RuntimeError("the connection cannot take a request")
        self._reset()

    def feed(self, data: bytes) -> int:
        if not isinstance(data, bytes):
            raise TypeError(f"expected bytes, got {type(data).__name__}")
        self._body = b""
        if not data or self._state == "error":
            return 0
        if self._state in ("done", "spoilt"):
            return self._spoil()
        self.started = True
        flags, at, pieces = 0, 0, list[bytes]()
        try:
            while self._state == "head":
                at = self._read_head(data, at)
                if self._state != "head":
                    flags |= E_HEAD
                elif at == len(data):
                    break
            while at < len(data) and self._state != "done":
                at = self._read_body(data, at, pieces)
        except _Refused as refused:
            self._state, self.error_reason, self.keep_alive = "error", str(refused), False
            flags |= E_ERROR
        self._body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        if self._body:
            flags |= E_BODY
        if self._state == "done":
            flags |= E_DONE
            if at < len(data):
                flags |= self._spoil()
        return flags

    def _spoil(self) -> int:
        self._state, self.keep_alive = "spoilt", False
        return E_EXTRA

    # ------------------------------------------------------------------------------------------------------- the head
    def _read_head(self, data: bytes, at: int) -> int:
        """Read up to the end of one head or of the data; returns the offset behind it."""
        held, before = self._held, len(self._held)
        held += data[at:]
        while True:
            if self._line == 0:
                for c, allowed in zip(held[: min(self._max_head, 13)], _PREFIX, strict=False):
                    if c not in allowed:
                        raise _Refused(STATUS_LINE)
            lf = held.find(b"\n", self._scan)
            if lf < 0:
                self._scan = len(held)
                if len(held) > self._max_head:
                    raise _Refused(HEAD_LARGE)
                return len(data)
            if lf >= self._max_head:
                raise _Refused(HEAD_LARGE)
            line = bytes(held[self._line : lf]).removesuffix(b"\r")
            if self._line and not line:
                break
            if self._line == 0:
                self._start(line)
            else:
                self._field(line)
            self._line = self._scan = lf + 1
        end = at + lf + 1 - before
        head = bytes(held[: lf + 1])
        self._held = bytearray()
        self._line = self._scan = 0
        self._end_head(head)
        return end

    def _start(self, line: bytes) -> None:
        if _CTL.search(line):
            raise _Refused(CTL)
        self._old, self._code = line[7:8] == b"0", int(line[9:12])
        self._fields, self._length, self._te = 0, -1, False
        self._close = self._keep = False

    def _field(self, line: bytes) -> None:
        self._fields += 1
        if self._fields > self._max_fields:
            raise _Refused(COUNT)
        if line[:1] in (b" ", b"\t"):
            raise _Refused(FOLD)
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise _Refused(FIELD)
        if _CTL.search(value):
            raise _Refused(CTL)
        name, value = name.lower(), value.strip(b" \t")
        if name == b"content-length":
            digits = value.lstrip(b"0")
            if not value.isdigit() or len(digits) > 19 or int(digits or b"0") > LENGTH_MAX:
                raise _Refused(LENGTH)
            if self._length not in (-1, int(digits or b"0")):
                raise _Refused(LENGTHS)
            self._length = int(digits or b"0")
        elif name == b"transfer-encoding":
            if self._te or value.lower() != b"chunked":
                raise _Refused(CODING)
            self._te = True
        elif name == b"connection":
            options = {option.strip(b" \t").lower() for option in value.split(b",")}
            self._close |= b"close" in options
            self._keep |= b"keep-alive" in options

    def _end_head(self, head: bytes) -> None:
        if self._te and self._length >= 0:
            raise _Refused(BOTH)
        if self._te and self._old:
            raise _Refused(CODING_10)
        if self._code == 101:
            raise _Refused(SWITCH)
        if self._code < 200:
            self._informational += 1
            if self._informational > self._max_informational:
                raise _Refused(INFORMATIONAL)
            return
        self._head, self.status = head, self._code
        self.keep_alive = not self._close and (self._keep or not self._old)
        if self.status in _NO_BODY or self._length == 0:
            self.content_length, self._state = 0, "done"
        elif self._te:
            self.chunked, self._state = True, "size"
        elif self._length > 0:
            self.content_length = self._left = self._length
            self._state = "length"
        else:
            self.close_delimited, self.keep_alive, self._state = True, False, "close"

    # ------------------------------------------------------------------------------------------------------- the body
    def _read_body(self, data: bytes, at: int, pieces: list[bytes]) -> int:
        if self._state not in ("length", "close", "data"):
            self._framing(data[at])
            return at + 1
        end = len(data) if self._state == "close" else min(at + self._left, len(data))
        pieces.append(data[at:end])
        self._left -= end - at
        if self._left == 0:
            self._state = "done" if self._state == "length" else "data-end"
        return end

    def _framing(self, byte: int) -> None:
        """One byte around the chunks. ``held`` has what came since the last line, chunk or extension."""
        held = self._held
        if self._state == "size":
            if byte in _HEX:
                held.append(byte)
                if len(held) > CHUNK_DIGITS_MAX or int(held, 16) > LENGTH_MAX:
                    raise _Refused(CHUNK_SIZE)
                return
            if not held or byte not in b"\r;":
                raise _Refused(CHUNK_SIZE)
            self._left, self._passed = int(held, 16), 1
            self._next("size-lf" if byte == 13 else "ext")
        elif self._state == "ext":
            if byte == 13:
                self._next("size-lf")
                return
            if _CTL.match(bytes([byte])):
                raise _Refused(CHUNK_EXT)
            self._passed += 1
            if self._passed > CHUNK_EXT_MAX:
                raise _Refused(EXT_LONG)
        elif self._state == "size-lf":
            if byte != 10:
                raise _Refused(CHUNK_SIZE)
            self._passed = 0
            self._next("data" if self._left else "trailers")
        elif self._state == "data-end":
            if byte != b"\r\n"[len(held)]:
                raise _Refused(CHUNK_END)
            held.append(byte)
            if byte == 10:
                self._next("size")
        else:
            self._trailer(byte)

    def _trailer(self, byte: int) -> None:
        held = self._held
        self._passed += 1
        if self._passed > self._max_head:
            raise _Refused(TRAILERS_LARGE)
        if held[-1:] == b"\r":
            if byte != 10:
                raise _Refused(TRAILER)
            if held == b"\r":
                self._next("done")
            held.clear()
            return
        if not held and byte == 13:
            held.append(byte)
            return
        if b":" not in held:
            if not (_TOKEN.match(bytes([byte])) or (byte == 58 and held)):
                raise _Refused(TRAILER)
            held[:] = b":" if byte == 58 else b"x"
        elif byte == 13:
            held.append(byte)
        elif _CTL.match(bytes([byte])):
            raise _Refused(TRAILER)

    def _next(self, state: str) -> None:
        self._state = state
        self._held.clear()

    # ------------------------------------------------------------------------------------------------------- the face
    def take_body(self) -> bytes:
        body, self._body = self._body, b""
        return body

    def end(self) -> int:
        state, self.keep_alive = self._state, False
        if state in ("done", "spoilt", "error"):
            self._state = "error" if state == "error" else "spoilt"
            return 0
        if state == "close":
            self._state = "spoilt"
            return E_DONE
        self._state, self.error_reason = "error", NO_HEAD if state == "head" else TRUNCATED
        return E_ERROR

    def headers(self) -> list[tuple[bytes, bytes]]:
        lines = self._head.split(b"\n")[1:-2]
        pairs = [line.partition(b":") for line in lines]
        return [(name.lower(), value.strip(b" \t\r")) for name, _, value in pairs]

    def header(self, name: bytes) -> bytes | None:
        return dict(reversed(self.headers())).get(name)
