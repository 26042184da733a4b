"""One request of the native listener and its answer, and what both are written and read with."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping
from typing import TYPE_CHECKING

from ..engine.exchange import ClientGone
from ..resilience.deadlines import TIMEOUT_FIELD, parse_timeout_header
from ..types import Endpoint
from ..wire.headers import Block, block
from .app import cors_headers
from .inflate import inflate

if TYPE_CHECKING:
    from .gate import Refusal
    from .native_connection import NativeConnection

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
JOIN_MAX = 32 * 1024
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


class Turns:
    """Lets one through in each turn of the event loop, in the order in which they came."""

    __slots__ = ("_loop", "_taken", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        if not self._taken:
            self._taken = True
            self._loop.call_soon(self._next)
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _next(self) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._loop.call_soon(self._next)
                return
        self._taken = False


class NativeExchange:
    """One request and its answer (``engine.Exchange``)."""

    __slots__ = (
        "_chunked", "_conn", "_encoding", "_origin", "_plain", "_timed", "_transport", "data", "head", "parts",
        "request_id", "started",
    )  # fmt: skip

    def __init__(
        self, conn: NativeConnection, request_id: str, encoding: bytes | None, origin: bytes | None, timed: bool
    ) -> None:
        self._conn = conn
        self._transport = conn.transport
        self._encoding = encoding
        self._chunked = not conn.http10
        self._plain = self._chunked and origin is None
        """Its heads differ from others' in nothing but the request id."""
        self._origin = origin
        self._timed = timed
        """It says how long the client waits."""
        self.head = b""
        """The request's head as it came, for who asks for a field that is seldom wanted."""
        self.data = b""
        self.parts: list[bytes] | None = None
        """In place of ``data``: a large body, still in pieces."""
        self.request_id = request_id
        self.started = False

    @property
    def asked_s(self) -> float | None:
        if not self._timed:
            return None
        value = self.header(TIMEOUT_FIELD)
        return None if value is None else parse_timeout_header(value)

    def header(self, name: str) -> str | None:
        wanted = name.encode()
        if wanted not in self.head.lower():
            return None
        lines = (line.partition(b":") for line in self.head.split(b"\r\n"))
        found = [value.strip() for key, _, value in lines if key.lower() == wanted]
        return b",".join(found).decode("latin-1") if found else None

    async def body(self) -> bytes:
        if self.parts is not None:
            # joining, checking and sending a large body takes milliseconds: one of them in each turn of the loop (R23)
            await self._conn.listener.heavy.turn()
            self.data, self.parts = b"".join(self.parts), None
        if self._encoding is None:
            return self.data
        return inflate(self.data, self._encoding.decode("latin-1"), self._conn.listener.limits.max_body_bytes)

    def reply(self, status: int, headers: Block, body: bytes) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        head = self._head(status, headers)
        request_id = self.request_id.encode("ascii")
        size = len(body)
        if size > JOIN_MAX:
            transport.writelines((b"%b%b\r\nContent-Length: %d\r\n\r\n" % (head, request_id, size), body))
        else:  # one small copy is cheaper than a second buffer in the system call
            transport.write(b"%b%b\r\nContent-Length: %d\r\n\r\n%b" % (head, request_id, size, body))

    def refuse(self, endpoint: Endpoint, refusal: Refusal) -> bool:
        """Answer with bytes that are ready, if the head of this answer is like others' and the client is there."""
        conn = self._conn
        listener, transport = conn.listener, self._transport
        if not (self._plain and conn.keep_alive) or transport is None or transport.is_closing():
            return False
        if listener.runtime.draining or listener.closing:
            return False
        transport.write(refusal.whole(endpoint, self.request_id.encode("ascii"), listener.date()))
        return True

    async def begin(self, headers: Block) -> None:
        conn, transport = self._conn, self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if not self._chunked:
            conn.keep_alive = False  # HTTP/1.0 has no chunks: the end of the stream is the end of the connection
        head = self._head(200, headers)
        self.started = True
        framing = b"Transfer-Encoding: chunked\r\n" if self._chunked else b""
        transport.write(b"%b%b\r\n%b\r\n" % (head, self.request_id.encode("ascii"), framing))

    def write(self, data: bytes) -> Awaitable[None] | None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)
        conn = self._conn
        return conn.writable() if conn.blocked else None

    async def end(self) -> None:
        transport = self._transport
        if transport is None or transport.is_closing():
            raise ClientGone
        if self._chunked:
            transport.write(b"0\r\n\r\n")

    def _head(self, status: int, headers: Block) -> bytes:
        """Status line and fields up to the value of ``X-Request-ID``; ``keep_alive`` is what the client was told."""
        conn = self._conn
        listener = conn.listener
        plain = self._plain and status == 200 and conn.keep_alive
        if plain:
            known = listener.heads.get(headers)
            if known is not None:
                return known
        fields = headers
        if listener.runtime.draining or listener.closing:
            conn.keep_alive = plain = False
        if self._origin is not None:
            cors = listener.runtime.active.snapshot.server.cors
            fields += block(cors_headers(cors, self._origin.decode("latin-1")))
        if not conn.keep_alive:
            fields += b"Connection: close\r\n"
        elif conn.http10:
            fields += b"Connection: keep-alive\r\n"
        first = REASONS.get(status) or b"HTTP/1.1 %d Error\r\n" % status
        head = b"%b%bDate: %b\r\nX-Request-ID: " % (first, fields, listener.date())
        if plain:
            listener.remember(headers, head)
        return head


def peer_of(transport: asyncio.BaseTransport | None) -> str:
    name = transport.get_extra_info("peername") if transport is not None else None
    return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"


class Dechunker:
    """Takes the framing off a chunked body (RFC 9112 7.1) that the guard has found good, as it arrives."""

    __slots__ = ("_in_trailers", "_left", "_rest")

    def __init__(self) -> None:
        self._left = 0
        """Of the current chunk, with the CRLF behind it."""
        self._rest = b""
        self._in_trailers = False

    def feed(self, data: bytes, parts: list[bytes]) -> bytes | None:
        """Put what is in the chunks into ``parts``. At the end of the body: the bytes behind it."""
        if self._rest:
            data = self._rest + data
            self._rest = b""
        at = 0
        while True:
            if self._left:
                here = min(self._left, len(data) - at)
                if self._left > 2 and here:
                    parts.append(data[at : at + min(self._left - 2, here)])
                at += here
                self._left -= here
                if self._left:
                    return None
            end = data.find(b"\r\n", at)
            if end < 0:
                self._rest = data[at:]
                return None
            line = data[at:end]
            at = end + 2
            if self._in_trailers:
                if not line:
                    return data[at:]
            elif size := int(line.partition(b";")[0], 16):
                self._left = size + 2
            else:
                self._in_trailers = True
