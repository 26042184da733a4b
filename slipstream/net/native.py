"""The native transport: pooled upstream connections on uvloop transports, without a stream layer between.

Owns connections and nothing else. One pool per origin and provider (Q20): most recently used first, so that a small
load keeps few connections warm and the rest can be reaped; idle connections are closed before any provider would close
them (R39); a connection lives at most ``MAX_AGE_S``, so that DNS changes are followed (Q21).

A request that dies on a reused connection before any byte of an answer is sent once more on a fresh one (R40): the
provider closed the connection while it was idle. Waiting for a free connection is counted apart from connecting (R41).
A connection that did anything unexpected is closed, never reused (S-14, S-21).
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from .._fast import E_BODY, E_DONE, E_ERROR, E_EXTRA, E_HEAD, ResponseReader
from ..errors import ConnectFailed, MalformedReply, TransportError, UpstreamTimeout
from .connect import Connector
from .decode import Decode, decoder_for
from .upstream import UpstreamReply, UpstreamRequest

IDLE_S = 15.0
"""Idle connections are closed after this: below any provider's own limit (R39, Q20)."""
MAX_AGE_S = 300.0
"""A connection takes no new request after this (Q21)."""
REAP_EVERY_S = 5.0
JOIN_MAX = 32 * 1024
BUFFERED_MAX = 256 * 1024
"""Body bytes that wait for the client before the upstream is no longer read (R33)."""


class NativeReply:
    """A reply whose header block has arrived (``UpstreamReply``)."""

    __slots__ = ("_conn", "_decode", "_done", "_error", "_parts", "_size", "_waiter", "fields", "status")

    def __init__(self, conn: Connection) -> None:
        self._conn: Connection | None = conn
        self._parts: list[bytes] = []
        self._size = 0
        self._done = False
        self._error: Exception | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._decode: Decode | None = None
        self.status = 0
        self.fields: list[tuple[bytes, bytes]] = []
        """Header fields, kept only where somebody will look: not for a plain 200."""

    @property
    def headers(self) -> Mapping[str, str]:
        return {k.decode("latin-1"): v.decode("latin-1") for k, v in reversed(self.fields)}

    @property
    def complete(self) -> bool:
        return self._done and self._decode is None and self._size <= BUFFERED_MAX

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
                if self._decode is None:
                    return data
                data = self._decode(data, False)
                if data:
                    return data
                continue
            if self._done:
                decode, self._decode = self._decode, None
                return decode(b"", True) if decode is not None else b""
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    def close(self) -> None:
        """Done with this reply: the connection goes back if the body came whole, else it is closed at once."""
        conn, self._conn = self._conn, None
        if conn is not None and not self._done:
            conn.abort()

    # ------------------------------------------------------------------ the connection's side
    def begin(self, reader: ResponseReader) -> None:
        """The header block is here."""
        self.status = reader.status
        if reader.status != 200:
            self.fields = reader.headers()
        encoding = reader.header(b"content-encoding")
        if encoding is not None:
            self._decode = decoder_for(encoding)

    def feed(self, data: bytes) -> bool:
        """More body; True if the upstream should pause."""
        self._parts.append(data)
        self._size += len(data)
        self._wake()
        return self._size > BUFFERED_MAX

    def finish(self) -> None:
        self._done = True
        self._wake()

    def fail(self, error: Exception) -> None:
        if not self._done and self._error is None:
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection; at most one request at a time."""

    __slots__ = ("_head", "_paused", "born", "idle_since", "pool", "reader", "reply", "reused", "transport")

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self.reader = ResponseReader()
        self.transport: asyncio.Transport | None = None
        self.reply: NativeReply | None = None
        self._head: asyncio.Future[NativeReply] | None = None
        self._paused = False
        self.born = self.idle_since = 0.0
        self.reused = False

    # ------------------------------------------------------------------ the socket's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]
        self.born = self.pool.loop.time()
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.pool.opened(self)

    def data_received(self, data: bytes) -> None:
        reader = self.reader
        events = reader.feed(data)
        reply = self.reply
        if reply is None:
            self.abort()  # nobody asked (S-14)
            return
        if events & E_HEAD:
            reply.begin(reader)
            head, self._head = self._head, None
            if head is not None and not head.done():
                head.set_result(reply)
        if events & E_BODY and reply.feed(reader.take_body()) and not self._paused and not events & E_DONE:
            self._paused = True
            if self.transport is not None:
                self.transport.pause_reading()
        if events & E_ERROR:
            self._lost(MalformedReply("the provider's answer is not valid HTTP"))
            self.abort()
        elif events & E_DONE:
            self.reply = None
            reply.finish()
            if events & E_EXTRA or not reader.keep_alive:
                self.abort()
            else:
                self.pool.give_back(self)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.pool.closed(self)
        reply = self.reply
        if reply is None:
            return
        if exc is None and self.reader.end() & E_DONE:
            self.reply = None
            reply.finish()
        else:
            self._lost(TransportError())

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

    def send(self, head: bytes, body: bytes) -> asyncio.Future[NativeReply]:
        """Write a request; the future is the reply when its header block is here."""
        assert self.transport is not None
        self.reader.expect()
        self.reply = NativeReply(self)
        self._head = self.pool.loop.create_future()
        if len(body) > JOIN_MAX:
            self.transport.writelines((head, body))
        else:  # one small copy is cheaper than a second buffer in the system call
            self.transport.write(head + body)
        return self._head

    def resume(self) -> None:
        if self._paused and self.transport is not None:
            self._paused = False
            self.transport.resume_reading()

    def abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()


class Pool:
    """The connections to one origin."""

    __slots__ = (
        "_connecting",
        "_idle",
        "_open",
        "_reaper",
        "_waiters",
        "closing",
        "connector",
        "limit",
        "loop",
        "stats",
    )

    def __init__(self, connector: Connector, limit: int, stats: dict[str, int]) -> None:
        self.loop = asyncio.get_running_loop()
        self.connector = connector
        self.limit = limit
        self.stats = stats
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self.closing = False

    def take(self) -> Connection | None:
        """An idle connection, the one used last, or ``None``."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            if conn.usable:
                conn.reused = True
                return conn
        return None

    async def connect(self, connect_s: float) -> Connection:
        """A fresh connection; waits for its turn when the limit is reached (R41: that wait is not connecting)."""
        while len(self._open) + self._connecting >= self.limit:
            waiter = self.loop.create_future()
            self._waiters.append(waiter)
            self.stats["waits"] += 1
            try:
                await waiter
            except asyncio.CancelledError:
                if waiter.done() and not waiter.cancelled():
                    self._wake()  # the turn was ours: pass it on
                raise
            conn = self.take()
            if conn is not None:
                return conn
        self._connecting += 1
        try:
            async with asyncio.timeout(connect_s):
                conn = await self.connector.connect(lambda: Connection(self))
        except TimeoutError:
            raise UpstreamTimeout("connect", connect_s) from None
        except ssl.SSLError:
            raise ConnectFailed("the TLS connection to the provider could not be made") from None
        except OSError:
            raise ConnectFailed("no connection to the provider could be made") from None
        finally:
            self._connecting -= 1
            self._wake()
        conn.reused = False
        return conn

    def give_back(self, conn: Connection) -> None:
        now = self.loop.time()
        if self.closing or now - conn.born > MAX_AGE_S:
            conn.abort()
            return
        conn.resume()
        if not conn.reused and conn.transport is not None:
            self.connector.remember(conn.transport)
        conn.idle_since = now
        self._idle.append(conn)
        if self._waiters:
            self._wake()
        if self._reaper is None:
            self._reaper = self.loop.call_later(REAP_EVERY_S, self._reap)

    def opened(self, conn: Connection) -> None:
        self._open.add(conn)
        self.stats["connections_made"] += 1

    def closed(self, conn: Connection) -> None:
        self._open.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)
        self._wake()

    def close(self) -> None:
        """Idle connections now, the others when they are given back."""
        self.closing = True
        for conn in self._idle:
            conn.abort()
        self._idle.clear()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    @property
    def open(self) -> int:
        return len(self._open)

    def _wake(self) -> None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    def _reap(self) -> None:
        """Close what has been idle too long. The list is ordered by use, so the old ones are in front."""
        self._reaper = None
        oldest = self.loop.time() - IDLE_S
        keep = 0
        while keep < len(self._idle) and self._idle[keep].idle_since <= oldest:
            keep += 1
        old, self._idle = self._idle[:keep], self._idle[keep:]
        for conn in old:
            conn.abort()
        if self._idle:
            self._reaper = self.loop.call_later(REAP_EVERY_S, self._reap)


class NativeTransport:
    """The transport of one provider."""

    def __init__(self, *, verify_ssl: bool = True, ca_file: str | None = None, max_connections: int = 1024) -> None:
        self._verify = verify_ssl
        self._ca_file = ca_file
        self._limit = max_connections
        self._pools: dict[tuple[str, int, bool], Pool] = {}
        self._stats = {"requests": 0, "connections_made": 0, "connections_reused": 0, "replays": 0, "waits": 0}

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[Any, Any]:
        """``(pool, (head of a POST up to the length of its body, whole head of a GET))``."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        host = parts.hostname or ""
        port = parts.port or (443 if tls else 80)
        pool = self._pool(host, port, tls)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        target = pool.connector.target(target)
        lines = [f" {target} HTTP/1.1", f"Host: {parts.netloc.rpartition('@')[2]}"]
        lines += [f"{name}: {value}" for name, value in {**headers, **pool.connector.headers()}.items()]
        text = "\r\n".join(lines).encode("latin-1")
        return pool, (b"POST" + text + b"\r\nContent-Length: ", b"GET" + text + b"\r\n\r\n")

    async def send(self, request: UpstreamRequest) -> UpstreamReply:
        """POST ``request``."""
        pool: Pool = request.url
        stats = self._stats
        stats["requests"] += 1
        body = request.body
        head = b"%b%d\r\n\r\n" % (request.headers[0], len(body))
        conn = pool.take()
        if conn is None:
            return await self._exchange(await pool.connect(request.connect_s), head, body)
        stats["connections_reused"] += 1
        try:
            return await conn.send(head, body)
        except asyncio.CancelledError:
            conn.abort()
            raise
        except TransportError:
            if conn.reader.started:
                raise
        stats["replays"] += 1
        return await self._exchange(await pool.connect(request.connect_s), head, body)

    async def get(self, url: Any, headers: Any, *, connect_s: float) -> UpstreamReply:
        pool: Pool = url
        conn = pool.take() or await pool.connect(connect_s)
        return await self._exchange(conn, headers[1], b"")

    async def close(self) -> None:
        for pool in self._pools.values():
            pool.close()

    def stats(self) -> Mapping[str, int]:
        return {**self._stats, "connections_open": sum(p.open for p in self._pools.values())}

    async def _exchange(self, conn: Connection, head: bytes, body: bytes) -> NativeReply:
        try:
            return await conn.send(head, body)
        except asyncio.CancelledError:
            conn.abort()  # the client is gone or a limit passed: the provider must know at once (R1)
            raise

    def _pool(self, host: str, port: int, tls: bool) -> Pool:
        key = host, port, tls
        if key not in self._pools:
            connector = Connector(host, port, tls, verify=self._verify, ca_file=self._ca_file)
            self._pools[key] = Pool(connector, self._limit, self._stats)
        return self._pools[key]
