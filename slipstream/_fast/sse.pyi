"""Incremental framing of ``text/event-stream`` by offsets (compiled: ``sse.pyx``; in plain words: ``_pure/sse.py``).

For a relay that passes the bytes of complete events on untouched and looks at each event's data on the side::

    framer.feed(chunk)
    while flags := framer.next():
        if flags & F_DATA:
            look_at(framer.data())
        first = min(first, framer.start); last = framer.end
    client.write(framer.slice(first, last))

A *block* is everything up to and including its blank line, also one with comments only, or with nothing but the blank
line. Lines end with LF, CRLF or CR and nothing else. A leading BOM belongs to no block.
"""

from typing import Final, final

from .jsonreply import ReplyScan

F_DATA: Final = 1
"""At least one data field: what WHATWG dispatches as an event, even when the data is empty."""
F_MULTI: Final = 2
"""More than one data field."""
F_EVENT: Final = 4
"""An event type field (it may be empty)."""
F_STRAY: Final = 8
"""A line whose name is not made of ASCII letters, digits, ``-`` and ``_`` only: bare JSON, an HTML page."""
F_ERROR_FIELD: Final = 16
"""A field named ``error`` (llama-box sends its errors so)."""
F_ID: Final = 32
"""An id field that counts: one without NUL."""
F_RETRY: Final = 64
"""A retry field that counts: one of ASCII digits only."""
F_COMMENT: Final = 128
"""At least one comment line."""
F_LIMIT: Final = 0x200
"""From ``ordinary`` only: the rest is larger than the limit."""

@final
class SseFramer:
    """The framer of one stream. Not for use by two threads at once."""

    @property
    def start(self) -> int:
        """First byte of the current block in the current buffer. The current block is the last one that ``next()`` or
        ``flush()`` reported; ``feed()`` forgets it (then 0, 0)."""
    @property
    def end(self) -> int:
        """Behind the blank line of the current block. The next block starts here, except that an LF may lie between
        when a CRLF was split over two chunks (and a BOM before the first block)."""
    @property
    def retry(self) -> int:
        """The last valid retry value in ms, or -1. Saturates at 2**53 - 1."""
    @property
    def events(self) -> int:
        """Blocks with data so far."""
    @property
    def pending(self) -> int:
        """``len(rest())`` without making it."""
    def __init__(self, max_event: int = 8 * 1024 * 1024) -> None:
        """``max_event``: largest block in bytes, line ends included, comment lines not.

        Comment lines never count against it. Of an unfinished comment line only the first 64 KiB are kept; more than
        8 MiB of comment lines in a block that does not end is over the limit too (a bound for memory).
        """
    def feed(self, chunk: bytes) -> None:
        """The next chunk of the transport; spans made before are no longer valid. Call ``next()`` until it returns 0
        before feeding again (feeding early works, but the backlog is then copied).

        An LF that completes the CRLF of a line whose CR ended the last chunk stays in the raw span when the block goes
        on, and belongs to no block when the CR ended it.

        Raises SseLimitError after the limit was hit once.
        """
    def next(self) -> int:
        """Goes to the next complete block: its flags | 0x100; 0 when more bytes are needed.

        Raises SseLimitError when the block, finished or not, is larger than ``max_event``, and from then on always;
        the complete blocks before it are reported first.
        """
    def ordinary(self, look: ReplyScan) -> int:
        """``next`` for a relay, as far as nothing needs a second look: walks over ordinary blocks in one call and
        returns the flags of the first that is not, now the current block; 0 when there is no more; ``F_LIMIT`` when
        the rest is too large (``next`` would raise).

        Ordinary: only comments, or one data field of a JSON object without ``error`` and ``usage`` (``ReplyScan``), and
        no id or retry. ``run_start`` and ``run_end`` are the raw span of those blocks (-1: there was none),
        ``run_content`` and ``run_finish`` how many of them had content and a finish reason."""
    @property
    def run_start(self) -> int: ...
    @property
    def run_end(self) -> int: ...
    @property
    def run_content(self) -> int: ...
    @property
    def run_finish(self) -> int: ...
    def flush(self) -> int:
        """At the end of the stream: like ``next()``, and when that finds nothing, what is left is taken as a block as
        if a blank line followed (its raw span then ends without one). 0 when nothing or only white space is left.

        WHATWG discards such a block; some servers forget the last blank line.
        """
    def data(self) -> bytes:
        """Data of the current block: the values of its data fields (less one leading space) joined by LF, or b""."""
    def event(self) -> str:
        """Event type of the current block, "" when none; UTF-8 with replacement. The last event field counts."""
    def id(self) -> str:
        """The last event id as WHATWG has it: kept over blocks, set by the end of a block, also without data."""
    def error_field(self) -> bytes:
        """Value of the first ``error`` field of the current block, or b""."""
    def stray(self) -> bytes:
        """First stray line of the current block, at most 4096 bytes of it, or b""."""
    def slice(self, start: int, end: int) -> bytes:
        """Raw bytes of a span of the current buffer. The whole chunk just fed is returned as the same object.

        Raises ValueError when the span is not inside the buffer.
        """
    def rest(self) -> bytes:
        """Bytes behind the last complete block, less dropped comment bytes."""
