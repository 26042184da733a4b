"""A strict, incremental reader of HTTP/1.1 responses (RFC 9112), one object per upstream connection.

In plain words: ``_pure/response.py``. What is reported depends on the bytes alone, not on how they were cut::

    reader.expect()                       # before the request is written
    flags = reader.feed(data)             # for every read
    if flags & E_HEAD: ...                # status, header(), framing are known
    if flags & E_BODY: reader.take_body()
    if flags & (E_DONE | E_ERROR): ...    # the last flags of a response; bytes before an error are delivered
    if flags & E_EXTRA: ...               # close the connection, whatever else
    reader.end()                          # when the peer has closed

Stricter than RFC 9112 allows us to be: no empty line before a status line, no blank behind a chunk size, no
``Content-Length: 5, 5``, no coding but ``chunked``, no ``Content-Length`` beside it. More tolerant than it asks for: in
a head (not around chunks) a bare LF ends a line too, as 2.2 permits. Responses to HEAD and CONNECT cannot be read.
"""

from typing import Final, final

E_HEAD: Final = 1
"""In this feed the head of the final (not 1xx) response became complete."""
E_BODY: Final = 2
"""``take_body()`` has bytes."""
E_DONE: Final = 4
"""The message is complete."""
E_ERROR: Final = 8
"""Malformed, see ``error_reason``; reported once, nothing more is read."""
E_EXTRA: Final = 16
"""Bytes came behind the end of the message, or before any request: the connection must not be used again."""

@final
class ResponseReader:
    """The responses of one connection, one after the other. Not for use by two threads at once."""

    def __init__(self, max_head: int = 65536, max_fields: int = 256, max_informational: int = 16) -> None:
        """``max_head``: bytes of a head (each 1xx counts alone), and of the trailers; ``max_fields``: its fields;
        ``max_informational``: 1xx before the final response. More is an error. ValueError outside 0 to 2**31 - 1."""
    @property
    def status(self) -> int:
        """Of the final response; 0 until its head is complete."""
    @property
    def keep_alive(self) -> bool:
        """The connection may serve another request when this response is done. False before the head is complete, when
        the body goes on until the peer closes, and after E_ERROR, E_EXTRA and ``end()``."""
    @property
    def content_length(self) -> int:
        """Bytes of the body as announced; -1: not known. 0 for 204 and 304, whatever their fields say."""
    @property
    def chunked(self) -> bool: ...
    @property
    def close_delimited(self) -> bool:
        """Neither Content-Length nor chunks: the body ends when the peer closes."""
    @property
    def started(self) -> bool:
        """A byte of the awaited response has come, be it of a 1xx."""
    @property
    def error_reason(self) -> str:
        """A fixed text (one of ``_pure.response.REASONS``), never bytes of the peer; empty without an error."""
    def expect(self) -> None:
        """A response is awaited from now on; forgets the one before.

        Raises RuntimeError while one is unfinished, and after E_ERROR, E_EXTRA and ``end()``.
        """
    def feed(self, data: bytes) -> int:
        """The next bytes: flags of what they completed. Body bytes not taken since the last feed are dropped.

        At most ``max_head`` bytes are held (an unfinished head), never a body. 0 after an error.
        """
    def take_body(self) -> bytes:
        """The body bytes of the last feed, without the framing of chunks, once; then ``b""``. All of ``data`` as the
        same object; otherwise one copy."""
    def end(self) -> int:
        """The peer has closed: E_DONE when that ends the body, E_ERROR when something is missing ("closed before the
        head", "truncated body"), 0 when nothing was awaited."""
    def header(self, name: bytes) -> bytes | None:
        """Value of the first field of this name (lower case), trimmed; ``None`` if there is none, or before E_HEAD.
        Looked up on each call."""
    def headers(self) -> list[tuple[bytes, bytes]]:
        """All fields of the final head in their order, names in lower case. Made on each call."""
