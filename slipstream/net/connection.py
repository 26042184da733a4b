"""One connection to a provider and the reply that comes over it, on a uvloop transport without a stream layer between.

A connection that did anything unexpected is closed, never used again (S-14, S-21). Whether a body that ends with the
connection is whole is decided only at the peer's orderly end (``eof_received``; for TLS that is ``close_notify``),
never at the loss of the connection.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from .._fast import E_BODY, E_DONE, E_ERROR, E_EXTRA, E_HEAD, ResponseReader, Waiter
from ..errors import MalformedReply, TransportError, UpstreamTimeout
from .decode import Decoder, decoder_for
from .sending import waiting

if TYPE_CHECKING:
    from .pool import Pool

JOIN_MAX = 32 * 1024
BUFFERED_MAX = 128 * 1024
"""Body bytes that wait for the client before the upstream is no longer read (R33)."""


SLICE_BYTES = 1024 * 1024
"""Of one request per turn of the loop: a socket nearby would take all of a large one at once (R23)."""
AT_ONCE = 2
"""So many requests of one pool go on in one turn, when more are going out."""
SEND_CHECK_S = 0.1
"""How often we look at whether a request goes out that could not be written at once."""


class NativeReply:
    """A reply whose header block has arrived (``UpstreamReply``)."""

    __slots__ = ("_conn", "_decoder", "_done", "_error", "_loop", "_parts", "_size", "_waiter", "fields", "status")

    def __init__(self, conn: Connection) -> None:
        self._conn: Connection | None = conn
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._error: Exception | None = None
        self._loop = conn.pool.loop
        self._waiter: Waiter[None] | None = None
        self._decoder: Decoder | None = None
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] | None = None
        """Header fields, kept only where somebody will look: not for a plain 200."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {k.decode("latin-1"): v.decode("latin-1") for k, v in reversed(self.fields or ())}

    @property
    def complete(self) -> bool:
        return self._done and self._decoder is None

    def take(self) -> bytes:
        parts = self._parts
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def chunk(self) -> bytes:
        """The next piece of the body, ``b""`` at its clean end."""
        parts = self._parts
        while True:
            if parts:
                data = parts[0] if len(parts) == 1 else b"".join(parts)
                parts.clear()
                if self._size > BUFFERED_MAX and self._conn is not None:
                    self._conn.resume()
                self._size = 0
                if self._decoder is None:
                    return data
                data = self._decoder.decode(data)
                if data:
                    return data
                continue
            if self._decoder is not None and self._decoder.pending:
                await asyncio.sleep(0)  # a bomb must not hold up the others
                data = self._decoder.decode(b"")
                if data:
                    return data
                continue
            if self._done:
                if self._decoder is not None:
                    self._decoder.finish()
                return b""
            if self._error is not None:
                raise self._error
            self._waiter = Waiter(self._loop)
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give the pieces of the body to ``sink`` as they come (see ``Pouring``)."""
        conn = self._conn
        if conn is None or self._parts or self._error is not None or self._decoder is not None:
            return
        waiter = self._waiter = conn.pouring = Waiter(self._loop)
        conn.sink = sink
        try:
            await waiter
        finally:
            self._waiter = None
            if conn.pouring is waiter:  # else the connection is another reply's already
                conn.pouring = None
                conn.sink = None

    def close(self) -> None:
        """Done with this reply: the connection went back if the body came whole, else it is closed at once."""
        if self._conn is not None:
            self._conn.abort()
            self._conn = None

    def linger(self, seconds: float) -> None:
        if self._conn is not None:
            self._loop.call_later(seconds, self.close)

    # ------------------------------------------------------------------ the connection's side
    def begin(self, reader: ResponseReader) -> None:
        """The header block is here."""
        self.status = reader.status
        if self.status != 200:
            self.fields = reader.headers()
        encoding = reader.header(b"content-encoding")
        if encoding is not None:
            self._decoder = decoder_for(encoding)

    def feed(self, data: bytes) -> bool:
        """More body; True if the upstream should pause. ``wake`` must follow."""
        self._parts.append(data)
        self._size += len(data)
        return self._size > BUFFERED_MAX

    def wake(self) -> None:
        """Who waits goes on before this returns: the last thing that is done in a callback of the socket."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.deliver(None)

    def finish(self, last: bytes = b"") -> None:
        """The body is whole with these: the connection is no business of ours any more. ``wake`` must follow."""
        if last:
            self._parts.append(last)
        self._done = True
        self._conn = None

    def fail(self, error: Exception) -> None:
        if not self._done and self._error is None:
            self._error = error
            waiter = self._waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


class Connection:
    """A protocol of asyncio and ``Abortable``. At most one request at a time."""

    __slots__ = (
        "_blocked", "_head", "_held", "_large", "_paused", "_rest", "born", "idle_since", "pool", "pouring", "reader",
        "reply", "reused", "sink", "transport",
    )  # fmt: skip

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.reader = ResponseReader()
        self.transport: asyncio.Transport | None = None
        self.reply: NativeReply | None = None
        self.pouring: Waiter[None] | None = None
        """Until this is done, what comes of the body goes to ``sink``."""
        self.sink: Callable[[bytes], bool] | None = None
        self._head: Waiter[NativeReply] | None = None
        self._large = self._paused = self._blocked = self._held = False
        self._rest: memoryview | None = None
        """What was not yet given to the transport of a large request."""
        self.born = self.idle_since = 0.0
        self.reused = False

    # ------------------------------------------------------------------ the socket's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.born = self.pool.loop.time()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        events = reader.feed(data)
        pouring = self.pouring
        if pouring is not None and events & E_BODY and not pouring.done():
            try:
                ended = self.sink is not None and self.sink(reader.take_body())
            except Exception as exc:
                pouring.set_exception(exc)
                ended = False
            events &= ~E_BODY
            if not events:
                if ended:
                    pouring.deliver(None)
                return
            if ended:
                pouring.set_result(None)
        reply = self.reply
        if reply is None:
            self.abort()  # nobody asked (S-14)
            return
        head = None
        reusable = False
        if events & E_HEAD:
            reply.begin(reader)
            head, self._head = self._head, None
        if events & E_DONE:
            self.reply = None
            reply.finish(reader.take_body() if events & E_BODY else b"")
            reusable = not events & E_EXTRA and reader.keep_alive and not (self._large and self._behind())
            if not reusable:
                self.abort()
        else:
            if events & E_BODY and reply.feed(reader.take_body()) and not self._paused:
                self._paused = True
                if self.transport is not None:
                    self.transport.pause_reading()
            if events & E_ERROR:
                self._lost(MalformedReply("the provider's answer is not valid HTTP"))
                self.abort()
        if head is None:
            reply.wake()
        elif not head.done():
            head.deliver(reply)
        if reusable:  # last: the answer does not wait for it
            self.pool.give_back(self)

    def eof_received(self) -> bool:
        reply = self.reply
        if reply is not None and self.reader.end() & E_DONE:
            self.reply = None
            reply.finish()
        else:
            self._lost(TransportError())
        self.abort()  # close() would wait until what is unsent has been taken
        if reply is not None:
            reply.wake()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = self._rest = None
        self.pool.closed(self)
        self._lost(TransportError())

    def pause_writing(self) -> None:
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False
        if self._held:
            self._held = False
            self.pool.slices.call(self._send_on)

    def _lost(self, error: Exception) -> None:
        reply, self.reply = self.reply, None
        head, self._head = self._head, None
        if head is not None and not head.done():
            head.set_exception(error)
        elif reply is not None:
            reply.fail(error)

    # ------------------------------------------------------------------ the pool's side
    @property
    def usable(self) -> bool:
        return self.transport is not None and not self.transport.is_closing()

    def _behind(self) -> bool:
        """An answer before the end of the request (S-45): another request must not wait behind the rest of it."""
        self._large = False
        return self._rest is not None or (self.transport is not None and waiting(self.transport) > 0)

    def send(self, head: bytes, body: bytes) -> Waiter[NativeReply]:
        """Write a request; what is returned brings the reply when its header block is here."""
        transport = self.transport
        assert transport is not None
        self.reader.expect()
        self.reply = NativeReply(self)
        answer: Waiter[NativeReply] = Waiter(self.pool.loop)
        self._head = answer
        if len(body) > JOIN_MAX:
            self._large = True
            if len(body) > SLICE_BYTES:
                self._rest = memoryview(body)[SLICE_BYTES:]
                self.pool.slices.call(self._send_on)
                transport.writelines((head, memoryview(body)[:SLICE_BYTES]))
            else:
                transport.writelines((head, body))
            left = self._unsent()
            if left:
                limit_s = self.pool.send_s
                every_s = min(SEND_CHECK_S, limit_s / 10)
                self.pool.loop.call_later(every_s, self._sending, answer, left, every_s, limit_s, limit_s)
        else:  # one small copy is cheaper than a second buffer in the system call
            transport.write(head + body)
        return answer

    def _send_on(self) -> None:
        """The next slice of a large request, when the last one is on its way."""
        rest, transport = self._rest, self.transport
        if rest is None or transport is None or transport.is_closing():
            return
        if self._blocked:
            self._held = True
            return
        transport.write(rest[:SLICE_BYTES])
        if len(rest) > SLICE_BYTES:
            self._rest = rest[SLICE_BYTES:]
            self.pool.slices.call(self._send_on)
        else:
            self._rest = None

    def _unsent(self) -> tuple[int, int] | None:
        """``None`` if the peer has taken all, else what changes as soon as it takes more."""
        rest = 0 if self._rest is None else len(self._rest)
        left = 0 if self.transport is None else waiting(self.transport)
        return (rest, left) if rest or left else None

    def _sending(
        self, answer: Waiter[NativeReply], left: tuple[int, int], every_s: float, rest_s: float, limit_s: float
    ) -> None:
        """Does the provider read the request that ``answer`` is of (R17, S-46)? ``left`` was ``_unsent`` at the last
        look; of ``limit_s`` without any progress ``rest_s`` are left. Looks are counted, not time: when it was we who
        stood still, nobody else is to blame (S-90)."""
        if answer.done() or self.transport is None:
            return
        now = self._unsent()
        if not now:
            return
        rest_s = limit_s if now != left else rest_s - every_s
        if rest_s < every_s / 2:
            self._lost(UpstreamTimeout("send", limit_s))
            self.abort()
            return
        self.pool.loop.call_later(every_s, self._sending, answer, now, every_s, rest_s, limit_s)

    def forsake(self, answer: Waiter[NativeReply]) -> None:
        """Nobody waits for this answer any more. The connection may be another request's already."""
        if answer is self._head:
            self.abort()
        elif answer.done() and not answer.cancelled() and answer.exception() is None:
            answer.result().close()

    def resume(self) -> None:
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
