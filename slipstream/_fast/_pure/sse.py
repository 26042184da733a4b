"""Framing of ``text/event-stream`` in plain Python: the specification of ``_fast/sse.pyx``.

Owns: what the compiled framer does, said so that it can be read. The documentation of the face is in ``sse.pyi``.

Why so: both run under one test suite and are compared over random streams and random cuts, offsets included.

The rule that must not be broken: no cleverness here, save that the work per byte stays bounded (``_mark``): a
specification that nobody can run on a 1 MB line tests nothing.
"""

from __future__ import annotations

import re
from typing import Final, final

from slipstream._fast._errors import SseLimitError
from slipstream._fast._pure.jsonreply import R_CONTENT, R_ERROR, R_FINISH, R_INVALID, R_USAGE, ReplyScan

F_DATA: Final = 1
F_MULTI: Final = 2
F_EVENT: Final = 4
F_STRAY: Final = 8
F_ERROR_FIELD: Final = 16
F_ID: Final = 32
F_RETRY: Final = 64
F_COMMENT: Final = 128
F_LIMIT: Final = 0x200

_STRAY_MAX = 4096
_COMMENT_LINE_MAX = 1 << 16
_COMMENTS_MAX = 8 << 20
_RETRY_MAX = (1 << 53) - 1

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n?|\n")
_PLAIN_NAME = re.compile(rb"[A-Za-z0-9_-]+")
_DIGITS = re.compile(rb"[0-9]+")


class _Block:
    __slots__ = ("comment", "data", "end", "error", "event", "flags", "id", "retry", "start", "stray")

    def __init__(self) -> None:
        self.flags = 0
        self.start = self.end = 0
        self.data: list[bytes] = []
        self.event = self.id = self.error = self.stray = b""
        self.retry = -1
        self.comment = 0  # bytes of its complete comment lines


@final
class SseFramer:
    __slots__ = (
        "_block",
        "_bom",
        "_buf",
        "_cur",
        "_dead",
        "_id",
        "_mark",
        "_max",
        "_pos",
        "_skip",
        "_work",
        "events",
        "retry",
        "run_content",
        "run_end",
        "run_finish",
        "run_start",
    )

    def __init__(self, max_event: int = 8 * 1024 * 1024) -> None:
        if max_event <= 0:
            raise ValueError("max_event must be positive")
        self._max = max_event
        self.run_start = self.run_end = self.run_content = self.run_finish = 0
        self._buf: bytes | bytearray = b""  # the chunk itself while nothing was carried over, else a bytearray
        self._block = 0  # first byte of the unfinished block
        self._pos = 0  # first byte of the unfinished line
        self._mark = 0  # no line end in [pos, mark)
        self._work = _Block()
        self._cur = _Block()
        self._bom = True  # the start of the stream is not decided yet
        self._skip = False  # inside a comment line that is not kept any more
        self._dead = False
        self._id = b""
        self.retry = -1
        self.events = 0

    def feed(self, chunk: bytes) -> None:
        if type(chunk) is not bytes:
            raise TypeError(f"bytes wanted, not {type(chunk).__name__}")
        if self._dead:
            self._too_large()
        self._cur = _Block()
        if not chunk:
            return
        split_crlf = int(self._pos == len(self._buf) and self._buf[-1:] == b"\r" and chunk[:1] == b"\n")
        if self.pending == 0:
            self._buf = chunk
            self._block = self._pos = self._mark = split_crlf
        else:
            self._cut_comment()
            if self._skip:
                found = _LINE_END.search(chunk)
                if found is None:
                    return
                self._skip = False
                chunk = chunk[found.start() :]
            if isinstance(self._buf, bytes):
                self._buf = bytearray(self._buf[self._block :])
            else:
                del self._buf[: self._block]
            self._buf += chunk
            self._pos += split_crlf - self._block
            self._mark = max(self._mark - self._block, self._pos)
            self._block = 0
        if self._bom:
            self._skip_bom()

    def _cut_comment(self) -> None:
        """Of an unfinished comment line only the first 64 KiB are kept, cut between characters."""
        n = self._pos + _COMMENT_LINE_MAX
        if n >= len(self._buf) or self._mark < len(self._buf) or self._buf[self._pos] != 0x3A:
            return
        for _ in range(3):
            if self._buf[n] & 0xC0 == 0x80:
                n -= 1
        self._buf = bytearray(self._buf[:n])
        self._mark = n
        self._skip = True

    def _skip_bom(self) -> None:
        head = bytes(self._buf[:3])
        self._bom = head != _BOM and _BOM.startswith(head)
        if head == _BOM:
            self._block = self._pos = self._mark = 3

    def next(self) -> int:
        if self._dead:
            self._too_large()
        while not self._bom:
            found = _LINE_END.search(self._buf, max(self._mark, self._pos))
            if found is None:
                self._mark = len(self._buf)
                break
            line = bytes(self._buf[self._pos : found.start()])
            size = found.end() - self._pos
            self._pos = found.end()
            if not line:
                return self._finish()
            self._take_line(line, size)
        unfinished = len(self._buf) if self._buf[self._pos : self._pos + 1] != b":" else self._pos
        if unfinished - self._block - self._work.comment > self._max or self._work.comment > _COMMENTS_MAX:
            self._too_large()
        return 0

    def ordinary(self, look: ReplyScan) -> int:
        self.run_start = self.run_end = -1
        self.run_content = self.run_finish = 0
        while True:
            try:
                flags = self.next()
            except SseLimitError:
                return F_LIMIT
            if not flags:
                return 0
            if flags & F_DATA:
                if flags & (F_MULTI | F_STRAY | F_ERROR_FIELD | F_ID | F_RETRY):
                    return flags
                found = look.scan(self.data())
                if found & (R_INVALID | R_ERROR | R_USAGE):
                    return flags
                self.run_content += bool(found & R_CONTENT)
                self.run_finish += bool(found & R_FINISH)
            elif flags & 0xFF & ~F_COMMENT:
                return flags
            if self.run_start < 0:
                self.run_start = self.start
            self.run_end = self.end

    def flush(self) -> int:
        flags = self.next()
        if flags:
            return flags
        if not bytes(self._buf[self._block :]).strip():  # of bytes: ASCII white space
            return 0
        self._bom = self._skip = False
        line = bytes(self._buf[self._pos :])
        self._pos = len(self._buf)
        if line:
            self._take_line(line, len(line))
        return self._finish()

    def _take_line(self, line: bytes, size: int) -> None:
        b = self._work
        name, _, value = line.partition(b":")
        if value.startswith(b" "):
            value = value[1:]
        if not name:
            b.flags |= F_COMMENT
            b.comment += size
        elif name == b"data":
            b.flags |= F_MULTI | F_DATA if b.data else F_DATA
            b.data.append(value)
        elif name == b"event":
            b.flags |= F_EVENT
            b.event = value
        elif name == b"id":
            if b"\0" not in value:
                b.flags |= F_ID
                b.id = value
        elif name == b"retry":
            if _DIGITS.fullmatch(value):
                b.flags |= F_RETRY
                b.retry = _RETRY_MAX if len(value.lstrip(b"0")) > 16 else min(int(value[-16:]), _RETRY_MAX)
        elif name == b"error":
            if not b.flags & F_ERROR_FIELD:
                b.flags |= F_ERROR_FIELD
                b.error = value
        elif not b.flags & F_STRAY and not _PLAIN_NAME.fullmatch(name):
            b.flags |= F_STRAY
            b.stray = line[:_STRAY_MAX]

    def _finish(self) -> int:
        """The block ends at ``pos``."""
        b = self._work
        if self._pos - self._block - b.comment > self._max:
            self._too_large()
        b.start, b.end = self._block, self._pos
        self._block = self._pos
        self._cur, self._work = b, _Block()
        if b.flags & F_DATA:
            self.events += 1
        if b.flags & F_ID:
            self._id = b.id
        if b.flags & F_RETRY:
            self.retry = b.retry
        return b.flags | 0x100

    def _too_large(self) -> None:
        self._dead = True
        raise SseLimitError(f"an event of the stream is larger than {self._max} bytes")

    @property
    def start(self) -> int:
        return self._cur.start

    @property
    def end(self) -> int:
        return self._cur.end

    @property
    def pending(self) -> int:
        return len(self._buf) - self._block

    def data(self) -> bytes:
        return b"\n".join(self._cur.data)

    def event(self) -> str:
        return self._cur.event.decode("utf-8", "replace")

    def id(self) -> str:
        return self._id.decode("utf-8", "replace")

    def error_field(self) -> bytes:
        return self._cur.error

    def stray(self) -> bytes:
        return self._cur.stray

    def slice(self, start: int, end: int) -> bytes:
        if not 0 <= start <= end <= len(self._buf):
            raise ValueError("span outside of the buffer")
        return bytes(self._buf[start:end])  # the whole of a bytes object is that object

    def rest(self) -> bytes:
        return self.slice(self._block, len(self._buf))
