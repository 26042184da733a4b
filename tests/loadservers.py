"""Servers for the load generator's tests: the mock, and one that answers with the very bytes it is given."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from slipstream.mock.app import MockServer
from slipstream.mock.settings import MockSettings


@asynccontextmanager
async def mock(**settings: Any) -> AsyncIterator[MockServer]:
    server = MockServer(MockSettings(**({"mean_latency_ms": 0, "p95_latency_ms": 0, "seed": 1} | settings)))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def scripted(
    reply: bytes, *, close: bool = False, drip: bool = False, tls: Any = None
) -> AsyncIterator[tuple[str, list[bytes]]]:
    """A server that answers every request with these bytes; its URL, and the requests it got."""
    requests: list[bytes] = []

    async def serve(incoming: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = await incoming.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
                requests.append(head + await incoming.readexactly(size))
                for part in [reply[i : i + 1] for i in range(len(reply))] if drip else [reply]:
                    out.write(part)
                    await asyncio.sleep(0)
                if close:
                    break
        out.close()
        with contextlib.suppress(ConnectionError):
            await out.wait_closed()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        port = server.sockets[0].getsockname()[1]
        yield f"{'https' if tls else 'http'}://127.0.0.1:{port}", requests
    finally:
        server.close()
        await server.wait_closed()


def head(*lines: str) -> bytes:
    return "\r\n".join(["HTTP/1.1 200 OK", *lines, "", ""]).encode()


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
