"""The native listener: the hot routes on uvloop transports, without a stream layer between.

Owns its connections from the socket to the engine and back. Every byte passes ``RequestGuard`` first; a request for a
hot route is answered here, in one task that lives as long as the request; at any other request the connection, bytes
and all, becomes one of the reference listener's. Both answer the same to the same bytes: one test suite runs over both.

The rules that must not be broken: one request of a connection at a time, answers in the order of requests, a disconnect
cancels the task at once (R1), and a client that is slow to read stops the upstream (R33).
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Awaitable, Mapping
from email.utils import formatdate

from .._fast import (
    H_API_KEY,
    H_AUTHORIZATION,
    H_CONTENT_ENCODING,
    H_CONTENT_TYPE,
    H_ORIGIN,
    H_REQUEST_ID,
    RequestGuard,
    RequestHead,
)
from ..engine import account
from ..engine.context import RequestContext
from ..engine.exchange import ClientGone
from ..engine.pipeline import serve
from ..errors import ClientError, GatewayError
from ..obs.metrics import CLIENT_GONE_STATUS
from ..types import Endpoint
from ..wire.headers import Block, block
from ..wire.openai_errors import error_body
from .app import SHORT_BODY_BYTES, App, check_media_type, choose_request_id, cors_headers, malformed
from .faults import where
from .inflate import inflate
from .listener import Listener, ListenerLimits
from .request import Fault

log = logging.getLogger("slipstream.server")

ENDPOINTS = tuple(Endpoint)
PATHS = tuple(endpoint.path.encode() for endpoint in ENDPOINTS)
BACKLOG = 4096
SWEEP_S = 1.0
"""How often deadlines of connections are looked at."""
LINGER_S = 2.0
"""How long we read and drop after an error answer, so that the client gets to read it (RFC 9112 9.6)."""
TURN_BYTES = 256 * 1024
"""Of one body per turn of the loop: libuv alone would take 8 MB from each socket that has them (R23)."""
QUEUED_MAX = 64 * 1024
"""Bytes of pipelined requests kept while one is served; more stay in the socket."""
WRITE_HIGH = 128 * 1024
"""Unsent bytes above which the upstream is no longer read (R33: at most 256 KiB a stream)."""
JOIN_MAX = 32 * 1024
SLOW_READER_S = 60.0
"""A client that takes nothing for this long is gone (Q30)."""
BODY_RATE_AFTER_S = 60.0
"""From when on a body must have arrived at ``body_min_rate`` on average (Q30)."""
CANCEL_S = 1.0
NEVER = float("inf")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
REASONS: Mapping[int, bytes] = {
    status: b"HTTP/1.1 %d %b\r\n" % (status, reason)
    for status, reason in {
        200: b"OK", 400: b"Bad Request", 401: b"Unauthorized", 402: b"Payment Required", 403: b"Forbidden",
        404: b"Not Found", 405: b"Method Not Allowed", 408: b"Request Timeout", 409: b"Conflict",
        413: b"Content Too Large", 414: b"URI Too Long", 415: b"Unsupported Media Type", 417: b"Expectation Failed",
        422: b"Unprocessable Content", 429: b"Too Many Requests", 431: b"Request Header Fields Too Large",
        500: b"Internal Server Error", 501: b"Not Implemented", 502: b"Bad Gateway", 503: b"Service Unavailable",
        504: b"Gateway Timeout", 505: b"HTTP Version Not Supported", 529: b"Overloaded",
    }.items()
}  # fmt: skip


class NativeExchange:
    """One request and its answer (``engine.Exchange``)."""

    __slots__ = ("_chunked", "_conn", "_encoding", "data", "origin", "request_id", "started")

    def __init__(self, conn: NativeConnection, request_id: str, encoding: bytes | None, origin: bytes | None) -> None:
        self._conn = conn
        self._encoding = encoding
        self.origin = origin
        self._chunked = not conn.http10
        self.data = b""
        self.request_id = request_id
        self.started = False

    async def body(self) -> bytes:
        if self._encoding is None:
            return self.data
        return inflate(self.data, self._encoding.decode("latin-1"), self._conn.listener.limits.max_body_bytes)

    def reply(self, status: int, headers: Block, body: bytes) -> None:
        conn = self._conn
        conn.send(b"%bContent-Length: %d\r\n\r\n" % (conn.head(status, headers, self), len(body)), body)

    async def begin(self, headers: Block) -> None:
        conn = self._conn
        if not self._chunked:
            conn.keep_alive = False  # HTTP/1.0 has no chunks: the end of the stream is the end of the connection
        head = conn.head(200, headers, self)
        self.started = True
        conn.send(head + (b"Transfer-Encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"), b"")

    def write(self, data: bytes) -> Awaitable[None] | None:
        conn = self._conn
        transport = conn.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        return conn.writable() if conn.blocked else None

    async def end(self) -> None:
        if self._chunked:
            self._conn.send(b"0\r\n\r\n", b"")


class NativeConnection(asyncio.Protocol):
    """One client connection."""

    __slots__ = (
        "_body_bytes", "_body_since", "_buffer", "_count", "_drain", "_error", "_exchange", "_fault", "_guard",
        "_in_head", "_key_name", "_need", "_parts", "_route", "_task", "_turn_bytes", "blocked", "deadline", "http10",
        "keep_alive", "lingering", "listener", "transport",
    )  # fmt: skip

    def __init__(self, listener: NativeListener) -> None:
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        limits = listener.limits
        self._guard = RequestGuard(
            max_target=limits.max_target_bytes,
            max_field=limits.max_field_bytes,
            max_fields=limits.max_fields_bytes,
            max_count=limits.max_fields,
            max_body=limits.max_body_bytes,
            max_chunk_ext=limits.max_chunk_ext_bytes,
        )
        # between requests
        self._buffer = b""
        """Bytes that passed the guard and were not used yet: pipelined requests."""
        self._count = 0
        """Requests begun; the guard counts those that are complete."""
        self._fault: Fault | None = None
        self._in_head = False
        self.lingering = False
        self.deadline = listener.loop.time() + listener.limits.header_timeout_s
        # the request that is arriving
        self._exchange: NativeExchange | None = None
        self._key_name = ""
        self._route = 0
        self._error: ClientError | None = None
        """Why it will be refused when its body is here."""
        self._parts: list[bytes] = []
        self._need = 0
        """Bytes of its body still to come; -1: it is chunked."""
        self._body_since = 0.0
        self._body_bytes = 0
        self._turn_bytes = 0
        # the request that is being served
        self._task: asyncio.Task[None] | None = None
        self._drain: asyncio.Future[None] | None = None
        self.blocked = False
        self.keep_alive = True
        self.http10 = False

    # ------------------------------------------------------------------ the socket's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=WRITE_HIGH)  # type: ignore[attr-defined]
        self.listener.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            return
        guard = self._guard
        passed = guard.feed(data)
        if guard.error_status:
            self._fault = Fault(guard.error_status, guard.error_reason, guard.error_in_body)
        if self._need:
            self._more_body(passed)
        elif self._task is None:
            self._buffer = self._buffer + passed if self._buffer else passed
            self._advance()
        else:
            self._buffer += passed
            if len(self._buffer) > QUEUED_MAX and self.transport is not None:
                self.transport.pause_reading()

    def eof_received(self) -> bool:
        return False  # a client that half-closes is gone (R1)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.listener.closed(self)
        if self._task is not None:
            self._task.cancel()
        elif self._need and not (self._error or self._fault or self.lingering):
            self._left_early()
        self.resume_writing()

    def _left_early(self) -> None:
        """The client left while it sent its body: no task has begun, and the request is counted all the same (R2)."""
        assert self._exchange is not None
        runtime = self.listener.app.runtime
        ctx = RequestContext(ENDPOINTS[self._route], self._exchange.request_id, self._key_name, runtime.clock())
        ctx.status = CLIENT_GONE_STATUS
        account.settle(runtime, runtime.active, ctx)

    def pause_writing(self) -> None:
        self.blocked = True
        self.deadline = self.listener.loop.time() + SLOW_READER_S

    def resume_writing(self) -> None:
        self.blocked = False
        self.deadline = NEVER
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    # ------------------------------------------------------------------ requests arrive
    def _advance(self) -> None:
        """Begin requests from the buffer until one is being served or none is whole."""
        while self._task is None and not self._need and self.transport is not None:
            if not self._buffer or not self._begin():
                break
        else:
            return
        if self.transport is None or self.lingering:
            return
        if self._fault is not None:
            self._refuse(self._fault)
        elif not self._guard.idle and not self._in_head:
            self._in_head = True
            self.deadline = self.listener.loop.time() + self.listener.limits.header_timeout_s

    def _begin(self) -> bool:
        """Read the head in front of the buffer. False: there is none, or the connection is no longer ours."""
        listener = self.listener
        head = listener.head
        data = self._buffer
        end = head.read(data)
        if end < 0:
            return False
        if head.route < 0:
            self._hand_over()
            return False
        self._count += 1
        self._in_head = False
        self._route = head.route
        self.http10 = head.http10
        self.keep_alive = head.keep_alive
        self._error = None
        request_id = choose_request_id(head.value(H_REQUEST_ID))
        self._exchange = NativeExchange(self, request_id, head.value(H_CONTENT_ENCODING), head.value(H_ORIGIN))
        try:
            self._key_name = listener.app.auth.check_bytes(head.value(H_AUTHORIZATION), head.value(H_API_KEY))
            check_media_type(head.value(H_CONTENT_TYPE))
        except ClientError as error:
            self._error = error
        size = max(0, head.content_length)
        have = len(data) - end
        if have >= size and not head.chunked:
            self._buffer = data[end + size :] if have > size else b""
            self._serve(data[end : end + size])
            return True
        self._await_body(data[end:], size, head.chunked, head.expect_continue)
        return True

    def _await_body(self, first: bytes, size: int, chunked: bool, expect: bool) -> None:
        self._buffer = b""
        if self._error is not None and (expect or size > SHORT_BODY_BYTES):
            self._refuse_now(self._error)
            return
        if expect and self.transport is not None:
            self.transport.write(CONTINUE)
        self._need = -1 if chunked else size
        self._body_since = self.listener.loop.time()
        self._body_bytes = 0
        self._more_body(first)

    def _more_body(self, data: bytes) -> None:
        need = self._need
        if need > 0:
            have = len(data)
            if have >= need:
                self._need = 0
                self._parts.append(data[:need] if have > need else data)
                self._buffer = data[need:]
                self._whole(b"".join(self._parts))
                return
            self._need = need - have
            self._parts.append(data)
        else:
            self._parts.append(data)
            if self._guard.messages >= self._count:
                self._need = 0
                body, self._buffer = dechunk(b"".join(self._parts))
                self._whole(body)
                return
        if self._fault is not None:
            self._refuse(self._fault)
            return
        self._body_bytes += len(data)
        self._turn_bytes += len(data)
        if self._turn_bytes >= TURN_BYTES and self.transport is not None:
            self.transport.pause_reading()
            self.listener.loop.call_soon(self._next_turn)
        now, limits = self.listener.loop.time(), self.listener.limits
        slowest = max(BODY_RATE_AFTER_S, self._body_bytes / limits.body_min_rate) if limits.body_min_rate else NEVER
        self.deadline = min(now + limits.body_idle_s, self._body_since + slowest)

    def _next_turn(self) -> None:
        self._turn_bytes = 0
        if self.transport is not None:
            self.transport.resume_reading()

    def _whole(self, body: bytes) -> None:
        self._parts.clear()
        self._serve(body)
        if self._task is None:
            self._advance()

    # ------------------------------------------------------------------ requests are served
    def _serve(self, body: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self.deadline = NEVER
        if self._error is not None:
            self._answer_error(self._error)
            self._finish()
            return
        exchange.data = body
        self._task = self.listener.loop.create_task(self._run(exchange))

    async def _run(self, exchange: NativeExchange) -> None:
        listener = self.listener
        try:
            await serve(listener.app.runtime, exchange, ENDPOINTS[self._route], self._key_name)
        except (ClientGone, asyncio.CancelledError):
            self.abort()
        except Exception as exc:
            log.error("the request handler failed: %s", where(exc))
            if exchange.started:
                self.abort()
            else:
                self.keep_alive = False
                self._answer_error(GatewayError("internal error"))
        self._task = None
        if self.transport is not None:
            self._finish()
            self._advance()

    def _finish(self) -> None:
        """The answer is written: go on with the next request, or end the connection."""
        self._exchange = None
        transport = self.transport
        if transport is None:
            return
        if not self.keep_alive:
            transport.close()
            self.transport = None
            return
        self.deadline = self.listener.loop.time() + self.listener.limits.keepalive_s
        if self._buffer:
            transport.resume_reading()

    def _answer_error(self, error: GatewayError) -> None:
        exchange = self._exchange
        assert exchange is not None
        headers = block({"Content-Type": "application/json", **(error.headers or {})})
        exchange.reply(error.status, headers, error_body(error))

    def _refuse_now(self, error: ClientError) -> None:
        """Answer before the body is here, and give the connection up."""
        self.keep_alive = False
        self._answer_error(error)
        self._linger()

    def _refuse(self, fault: Fault) -> None:
        """Answer malformed bytes, behind everything that was answered before them."""
        listener = self.listener
        listener.app.bad_request(fault.status, fault.reason, self.peer)
        self._fault = fault
        self._need = 0
        self.keep_alive = False
        if self._exchange is None:
            self._exchange = NativeExchange(self, choose_request_id(None), None, None)
            self.http10 = False
        self._answer_error(malformed(fault.status, fault.reason, listener.limits.max_body_bytes))
        self._linger()

    def _linger(self) -> None:
        """Half-close, then read and drop for a moment: a reset would destroy the answer (RFC 9112 9.6)."""
        self.lingering = True
        self._fault = self._fault or Fault(400, "", False)
        self.deadline = self.listener.loop.time() + LINGER_S
        if self.transport is not None:
            self.transport.write_eof()
            self.transport.resume_reading()

    def _hand_over(self) -> None:
        """Not a hot route: from here on the connection is the reference listener's."""
        transport, self.transport = self.transport, None
        assert transport is not None
        self.listener.closed(self)
        other = self.listener.reference.connection()
        transport.set_protocol(other)
        other.connection_made(transport)
        data = self._buffer + self._guard.unpassed()
        self._buffer = b""
        other.data_received(data)
        if self._fault is not None:
            other.refuse(self._fault)

    # ------------------------------------------------------------------ answers
    def head(self, status: int, headers: Block, exchange: NativeExchange) -> bytes:
        """Status line and fields of an answer, but for those that say how long it is."""
        listener = self.listener
        if listener.app.runtime.draining:
            self.keep_alive = False
        if exchange.origin is not None:
            cors = listener.app.runtime.active.snapshot.server.cors
            headers += block(cors_headers(cors, exchange.origin.decode("latin-1")))
        if not self.keep_alive:
            headers += b"Connection: close\r\n"
        elif self.http10:
            headers += b"Connection: keep-alive\r\n"
        return b"%b%bDate: %b\r\nX-Request-ID: %b\r\n" % (
            REASONS.get(status) or b"HTTP/1.1 %d Error\r\n" % status,
            headers,
            listener.date(),
            exchange.request_id.encode("ascii"),
        )

    def send(self, head: bytes, body: bytes) -> None:
        transport = self.transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if len(body) > JOIN_MAX:
            transport.writelines((head, body))
        else:  # one small copy is cheaper than a second buffer in the system call
            transport.write(head + body)

    async def writable(self) -> None:
        """Wait until the client has taken most of what was written."""
        self._drain = self.listener.loop.create_future()
        try:
            await self._drain
        finally:
            self._drain = None
        if self.transport is None:
            raise ClientGone

    # ------------------------------------------------------------------ the listener's side
    @property
    def peer(self) -> str:
        name = self.transport.get_extra_info("peername") if self.transport is not None else None
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"

    def expire(self) -> None:
        """The deadline has passed."""
        if self.lingering or self.blocked:
            self.abort()
        elif self._need:
            self._refuse(Fault(408, "the request body came too slowly", True))
        elif self._in_head:
            self._refuse(Fault(408, "the request head came too slowly", False))
        elif self._task is None:
            self.abort()

    def drain(self) -> None:
        """Close now if nothing is under way; else after the answer in progress."""
        self.keep_alive = False
        if self._task is None and not self._need and self._guard.idle and not self.lingering:
            self.abort()

    def abort(self) -> asyncio.Task[None] | None:
        """Drop the connection and cancel what is under way; the task that is still winding down."""
        if self.transport is not None:
            self.transport.abort()
        return self._task


class NativeListener:
    """One listening socket, with the reference listener behind it for everything that is not hot."""

    def __init__(self, app: App, limits: ListenerLimits, reference: Listener) -> None:
        self.app = app
        self.limits = limits
        self.reference = reference
        self.loop = asyncio.get_running_loop()
        self.head = RequestHead(PATHS)
        """Used by all connections, one at a time: it holds nothing between two calls of ``_begin``."""
        self.closing = False
        self._open: set[NativeConnection] = set()
        self._listening: asyncio.Server | None = None
        self._drained = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._date = b""
        self._date_until = 0.0

    @property
    def port(self) -> int:
        assert self._listening is not None
        return int(self._listening.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._open) + self.reference.connections

    async def start(self, host: str | None, port: int, *, sock: socket.socket | None = None) -> None:
        """Listen on host and port, or on ``sock``."""
        if sock is not None:
            self._listening = await self.loop.create_server(self._connection, sock=sock, backlog=BACKLOG)
        else:
            self._listening = await self.loop.create_server(
                self._connection, host, port, backlog=BACKLOG, reuse_address=True
            )
        self._sweep()

    async def close(self, drain_s: float) -> None:
        """Stop accepting, close idle connections, let requests in flight end within ``drain_s``, cancel the rest."""
        self.closing = True
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._open):
            connection.drain()
        handed = self.loop.create_task(self.reference.close(drain_s))
        if self._open:
            try:
                async with asyncio.timeout(drain_s):
                    await self._drained.wait()
            except TimeoutError:
                pass
        tasks = [task for connection in list(self._open) if (task := connection.abort()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_S)
        await handed
        if self._sweeper is not None:
            self._sweeper.cancel()

    def date(self) -> bytes:
        """The ``Date`` field (RFC 9110 6.6.1), made once a second."""
        now = self.loop.time()
        if now >= self._date_until:
            wall = time.time()
            self._date = formatdate(wall, usegmt=True).encode()
            self._date_until = now + 1 - wall % 1
        return self._date

    # ------------------------------------------------------------------ called by connections
    def opened(self, connection: NativeConnection) -> None:
        self._open.add(connection)

    def closed(self, connection: NativeConnection) -> None:
        self._open.discard(connection)
        if self.closing and not self._open:
            self._drained.set()

    def _connection(self) -> NativeConnection:
        return NativeConnection(self)

    def _sweep(self) -> None:
        now = self.loop.time()
        for connection in [c for c in self._open if c.deadline <= now]:
            connection.expire()
        self._sweeper = self.loop.call_later(min(SWEEP_S, self.limits.header_timeout_s / 4), self._sweep)


def dechunk(raw: bytes) -> tuple[bytes, bytes]:
    """The body in ``raw``, whose chunked framing the guard has found whole and good, and the bytes behind it."""
    parts: list[bytes] = []
    at = 0
    while True:
        line = raw.index(b"\r\n", at)
        size = int(raw[at:line].partition(b";")[0], 16)
        at = line + 2
        if size == 0:
            break
        parts.append(raw[at : at + size])
        at += size + 2
    while raw[at : at + 2] != b"\r\n":  # trailers
        at = raw.index(b"\r\n", at) + 2
    return b"".join(parts), raw[at + 2 :]
