"""Upstream servers that speak the bytes a test gives them, and both transports to talk to them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

from slipstream._fast import requests_begun
from slipstream.net.aiohttp_transport import AiohttpTransport
from slipstream.net.native import NativeTransport
from slipstream.net.pool import Pool
from slipstream.net.upstream import SEND_S, UpstreamReply, UpstreamRequest
from tests.aio import until

OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BOTH = ("native", "aiohttp")


def ok(body: bytes = b"{}") -> bytes:
    return OK % (len(body), body)


class Peer:
    """One accepted connection."""

    def __init__(self, server: Up, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server = server
        self.reader = reader
        self.writer = writer
        self.number = len(server.peers)
        self.requests = 0

    async def request(self) -> tuple[bytes, bytes] | None:
        """Head and body of the next request; ``None`` when the client has closed."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
            size = 0
            for line in head.split(b"\r\n"):
                if line.lower().startswith(b"content-length:"):
                    size = int(line[15:])
            body = await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        self.requests += 1
        self.server.seen.append((head, body))
        return head, body

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    def close(self) -> None:
        self.writer.close()

    def reset(self) -> None:
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


Script = Callable[[Peer], Awaitable[None]]


class Up:
    """A server that plays one script per connection, then closes it."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.peers: list[Peer] = []
        self.seen: list[tuple[bytes, bytes]] = []
        self.port = 0
        self.open = 0
        self.tasks: set[asyncio.Task[Any]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        peer = Peer(self, reader, writer)
        self.peers.append(peer)
        self.open += 1
        try:
            await self.script(peer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self.tasks.discard(task)
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError, asyncio.CancelledError):
                await writer.wait_closed()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1/x"


@asynccontextmanager
async def upstream(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Up]:
    up = Up(script)
    server = await asyncio.start_server(up.serve, "127.0.0.1", 0, ssl=tls, backlog=2048)
    up.port = server.sockets[0].getsockname()[1]
    try:
        yield up
    finally:
        server.close()
        for task in list(up.tasks):
            task.cancel()
        await until(lambda: not up.tasks)


def answers(*pieces: bytes) -> Script:
    """Answer every request with these bytes, in these writes."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(*pieces)

    return script


class Client:
    """A transport and one prepared target."""

    def __init__(self, transport: NativeTransport | AiohttpTransport, url: str, headers: Mapping[str, str]) -> None:
        self.transport = transport
        self.url, self.headers = transport.prepare(url, headers)

    async def send(self, body: bytes = b"{}", connect_s: float = 5.0) -> UpstreamReply:
        return await self.transport.send(UpstreamRequest(self.url, self.headers, body, connect_s))

    async def get(self) -> UpstreamReply:
        return await self.transport.get(self.url, self.headers, connect_s=5.0)

    async def whole(self, body: bytes = b"{}", connect_s: float = 5.0) -> tuple[int, bytes]:
        """Send, read all, close."""
        reply = await self.send(body, connect_s)
        try:
            return reply.status, await read(reply)
        finally:
            reply.close()

    @property
    def stats(self) -> Mapping[str, int]:
        return self.transport.stats()

    @property
    def pool(self) -> Pool:
        assert isinstance(self.url, Pool)
        return self.url


async def read(reply: UpstreamReply) -> bytes:
    if reply.complete:
        return reply.take()
    parts = []
    while part := await reply.chunk():
        parts.append(part)
    return b"".join(parts)


@asynccontextmanager
async def client(
    url: str,
    kind: str = "native",
    *,
    verify: bool = True,
    ca_file: str | None = None,
    limit: int = 1024,
    send_s: float = SEND_S,
    headers: Mapping[str, str] | None = None,
) -> AsyncIterator[Client]:
    """A transport; at its end nothing of it is left."""
    transport: NativeTransport | AiohttpTransport
    if kind == "native":
        transport = NativeTransport(verify_ssl=verify, ca_file=ca_file, max_connections=limit, send_s=send_s)
    else:
        transport = AiohttpTransport(verify_ssl=verify, ca_file=ca_file, max_per_origin=limit, send_s=send_s)
    tasks = asyncio.all_tasks()
    try:
        yield Client(transport, url, headers or {"Authorization": "Bearer k"})
    finally:
        await transport.close()
        if isinstance(transport, NativeTransport):
            await until(lambda: transport.stats()["connections_open"] == 0)
            await until(lambda: all(pool._connecting == 0 and not pool._waiters for pool in transport._pools.values()))
        await until(lambda: not [t for t in asyncio.all_tasks() - tasks if "serve" not in repr(t.get_coro())])
        await until(lambda: requests_begun() == 0)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
