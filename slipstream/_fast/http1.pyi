class RequestGuard:
    """A strict, incremental validator of what a client sends on one HTTP/1.1 connection.

    It stands in front of any HTTP server::

        guard = RequestGuard()
        ...
        passed = guard.feed(data)     # bytes that every parser reads alike
        server.data_received(passed)
        if guard.error_status:        # answer what came before, then this error, then close

    ``feed`` gives the bytes that may be passed on: the very same object when all of ``data`` may (the usual case, no
    copy), fewer while a head or the line of a chunk is incomplete (they are held back and come out with a later call),
    and those before the fault when there is one. After an error, or when ``done``, everything is dropped: ``b""``.

    The result depends on the bytes alone, never on how they were cut. One change is made to them: the first letter of
    a field name ``Upgrade`` becomes ``X``, so that no server behind the guard can be talked into another protocol
    (RFC 9110 7.8 lets a server ignore it).

    Stricter than RFC 9110 and 9112 ask, by policy: only CRLF ends a line, no folded lines, one space between the parts
    of the request line, no CONNECT and no unknown methods (501), no repeated Content-Length, Content-Type, credential
    and so on, no bad white space in chunk lines, no trailers that frame, route or authenticate.

    ``error_status``: 0, or 400, 413, 414, 417, 431, 501, 505. ``error_reason``: a short text of ours, never bytes of
    the request. ``error_in_body``: the fault is in the framing or the trailers of a body whose head was passed on.

    ``heads``, ``messages``: complete ones seen. ``idle``: between messages, nothing of a new one has come (an empty
    line is nothing). ``done``: the last message said that it is the last (``Connection: close``, HTTP/1.0).

    Of the last complete head: ``content_length`` (-1: none), ``chunked``, ``keep_alive``, ``expect_continue`` (it asks
    for ``100 Continue`` and announces a body; never for HTTP/1.0).

    The limits are in bytes, ``max_count`` in fields; trailers count together with the fields of their head.
    """

    error_status: int
    error_reason: str
    error_in_body: bool

    def __init__(
        self,
        max_target: int = 16384,
        max_field: int = 16384,
        max_fields: int = 65536,
        max_count: int = 128,
        max_body: int = 67108864,
        max_chunk_ext: int = 4096,
    ) -> None: ...
    def feed(self, data: bytes) -> bytes: ...
    def body_passed(self, n: int) -> None:
        """``n`` bytes of the current body, one of known length, went past without ``feed``: there is nothing in them to
        be judged. ValueError when not that many are due, or the body is chunked."""
    def unpassed(self) -> bytes:
        """What is held back: the beginning of a head, or of a line of chunked framing."""
    @property
    def heads(self) -> int: ...
    @property
    def messages(self) -> int: ...
    @property
    def idle(self) -> bool: ...
    @property
    def in_head(self) -> bool: ...
    @property
    def in_body(self) -> bool: ...
    @property
    def done(self) -> bool: ...
    @property
    def content_length(self) -> int: ...
    @property
    def chunked(self) -> bool: ...
    @property
    def expect_continue(self) -> bool: ...
    @property
    def keep_alive(self) -> bool: ...

class BodyBuffer:
    """The memory of a body of known size, read into straight from the socket: no piece of it is copied or joined. What
    has not come yet takes address space only: the system gives pages when they are written.

    ``first[start:]`` are its first bytes::

        body = BodyBuffer(size, data, end_of_head)
        ...
        n = sock.recv_into(body.room(65536))
        if body.took(n) == 0:
            serve(body.take())
    """

    def __init__(self, size: int, first: bytes = b"", start: int = 0) -> None: ...
    def room(self, most: int) -> bytearray:
        """Where the next bytes go, at most ``most``: a writable buffer (of whatever type), good until the next
        call."""
    def took(self, n: int) -> int:
        """``n`` bytes were written there. How many are still missing."""
    def take(self) -> bytes:
        """The whole body; BufferError while bytes are missing. Whoever still has a buffer from ``room`` must not write
        into it any more."""
