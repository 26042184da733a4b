"""A gateway before a scripted provider, either listener in front, and the bytes to talk to it."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slipstream.server import native, process
from slipstream.server.limits import ListenerLimits
from slipstream.server.native import NativeConnection
from tests.aio import RawClient, until
from tests.harness import CHAT, KEY, Gateway, chat_body, config, gateway, to
from tests.upstreams import Peer, Up, ok, upstream

LISTENERS = ("native", "aiohttp")
both = pytest.mark.parametrize("kind", LISTENERS)
BODY = chat_body()
COLD = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
BAD = b"GET / HTTP/1.1\r\nHost: a\r\nBad name: x\r\n\r\n"


def reply(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return ok(json.dumps({"id": "r", "choices": [choice]}).encode())


def event(text: str) -> bytes:
    data = json.dumps({"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}).encode()
    return b"data: %b\n\n" % data


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def hot(body: bytes = BODY, *fields: str, version: str = "1.1", key: str = KEY) -> bytes:
    lines = [f"POST {CHAT} HTTP/{version}", "Host: a", "Content-Type: application/json", f"Content-Length: {len(body)}"]
    lines += [f"Authorization: Bearer {key}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def chunked(*pieces: bytes, key: str = KEY, last: bytes = b"0\r\n\r\n") -> bytes:
    head = hot(b"", key=key).replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    return head + b"".join(map(chunk, pieces)) + last


async def echo_model(peer: Peer) -> None:
    """Answer with the ``user`` field of the request; ``hang`` never answers."""
    while (request := await peer.request()) is not None:
        user = json.loads(request[1]).get("user", "")
        if user == "hang":
            assert await peer.request() is None
            return
        await peer.send(reply(user))


def numbered(i: int, **more: Any) -> bytes:
    return chat_body(user=f"n{i}", **more)


def users(received: bytes) -> list[str]:
    return [part.split(b'"')[0].decode() for part in received.split(b'"content": "')[1:]]


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


@asynccontextmanager
async def serving(
    kind: str, script: Callable[[Peer], Awaitable[None]] = echo_model, **limits: Any
) -> AsyncIterator[tuple[Gateway, Up]]:
    """A gateway with this listener before a scripted provider; ``limits`` are the listener's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPSTREAM_LISTENER", kind)
        patch.setattr(process, "ListenerLimits", functools.partial(ListenerLimits, **limits))
        async with upstream(script) as up:
            server = {
                "master_api_key": KEY,
                "log_level": "error",
                "max_body_bytes": limits.get("max_body_bytes", 1 << 26),
            }
            conf = config(to(f"http://127.0.0.1:{up.port}/v1", models=["m"]), **server)
            async with gateway(conf) as running:
                yield running, up
                await until(lambda: running.runtime.in_flight == 0)


async def talk(port: int, *pieces: bytes, pause: bool = False) -> RawClient:
    client = await RawClient.connect(port)
    for piece in pieces:
        client.writer.write(piece)
        await client.writer.drain()
        await asyncio.sleep(0.002 if pause else 0)
    return client


async def until_answers(client: RawClient, count: int) -> list[int]:
    while client.received.count(b"HTTP/1.1 ") < count or not client.received.endswith((b"}", b"ok")):
        data = await asyncio.wait_for(client.reader.read(65_536), 5)
        assert data, client.received
        client.received += data
    return statuses(client.received)


async def flood(client: RawClient, data: bytes) -> None:
    for at in range(0, len(data), 100_000):
        client.writer.write(data[at : at + 100_000])
        await client.writer.drain()
        await asyncio.sleep(0)


def native_connections(monkeypatch: pytest.MonkeyPatch) -> list[NativeConnection]:
    """Every native connection that is made."""
    made: list[NativeConnection] = []

    def make(listener: native.NativeListener) -> NativeConnection:
        made.append(NativeConnection(listener))
        return made[-1]

    monkeypatch.setattr(native, "NativeConnection", make)  # of the compiled listener nothing can be replaced
    return made
