"""What many requests do to each other and leave behind: fairness (R25), leaks (R30), both listeners and transports."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections import Counter
from typing import Any

import pytest

from slipstream._fast import COMPILED, requests_begun
from tests.aio import RawClient, run, until
from tests.harness import CHAT, KEY, chat_body, config, gateway, to
from tests.pace import soon
from tests.upstreams import CHUNKED, Peer, ok, upstream

REPLY = ok(b'{"id":"r","choices":[{"index":0,"message":{"role":"assistant","content":"x"},"finish_reason":"stop"}]}')
EVENT = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"x"}}]}\n\n'
DONE = b"data: [DONE]\n\n"
pairs = pytest.mark.parametrize(
    ("listener", "transport"), [("native", "native"), ("aiohttp", "native"), ("native", "aiohttp")]
)

pytestmark = pytest.mark.skipif(not COMPILED, reason="the pure twin is a specification: it does not bear load")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def hot(**more: Any) -> bytes:
    body = chat_body(**more)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


async def everything(peer: Peer) -> None:
    """Whole replies, streams, refusals, closed connections."""
    while (request := await peer.request()) is not None:
        if b'"s": 3' in request[1]:
            await peer.send(b"HTTP/1.1 422 No\r\nContent-Length: 2\r\n\r\n{}")
        elif b'"s": 4' in request[1]:
            return
        elif b'"stream": true' in request[1]:
            await peer.send(CHUNKED, chunk(EVENT), chunk(EVENT + DONE), b"0\r\n\r\n")
        else:
            await peer.send(REPLY)


def setting(patch: pytest.MonkeyPatch, listener: str, transport: str) -> None:
    patch.setenv("SLIPSTREAM_LISTENER", listener)
    patch.setenv("SLIPSTREAM_TRANSPORT", transport)


@pytest.mark.parametrize("transport", ["native", "aiohttp"])
def test_a_torrent_does_not_hold_up_another_stream(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R25: one upstream sends as fast as it can; the other stream's gaps stay under 20 ms, load, upstreams and gateway
    being all in one loop."""
    setting(monkeypatch, "native", transport)
    block = chunk(EVENT) * 500

    async def script(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        await peer.send(CHUNKED)
        if b"torrent" in request[1]:
            while True:
                await peer.send(block)
        while True:
            await peer.send(chunk(EVENT))
            await asyncio.sleep(0.002)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        taken = 0

        async def swallow(client: RawClient) -> None:
            nonlocal taken
            while data := await client.reader.read(65_536):
                taken += len(data)

        async with upstream(script) as up:
            conf = config(to(f"http://127.0.0.1:{up.port}/v1", models=["m"]), master_api_key=KEY, log_level="error")
            async with gateway(conf) as running:
                wild = await RawClient.connect(running.port)
                wild.writer.write(hot(stream=True, user="torrent"))
                eater = asyncio.create_task(swallow(wild))
                calm = await RawClient.connect(running.port)
                calm.writer.write(hot(stream=True))
                await calm.read_until(b"data: ")
                await until(lambda: taken > 1_000_000)
                gaps: list[float] = []
                last, before = loop.time(), taken
                start = last
                while len(gaps) < 300:
                    assert await calm.reader.read(65_536)
                    now = loop.time()
                    gaps.append(now - last)
                    last = now
                assert soon(10_000, (taken - before) / len(EVENT) / (last - start))  # it was a torrent
                assert soon(sorted(gaps)[-4], 0.02)
                wild.writer.transport.abort()
                calm.writer.transport.abort()
                await eater
                await until(lambda: running.runtime.in_flight == 0)

    run(main())


@pairs
def test_nothing_is_left_of_many_requests(listener: str, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R30: two thousand requests of every kind, on kept and on new connections, some abandoned: tasks, sockets and
    objects are as before."""
    setting(monkeypatch, listener, transport)
    monkeypatch.setattr(logging.getLogger("slipstream"), "disabled", True)
    monkeypatch.setattr(logging.getLogger("slipstream.request"), "disabled", True)

    async def main() -> None:
        async with upstream(everything) as up:
            conf = config(to(f"http://127.0.0.1:{up.port}/v1", models=["m"]), master_api_key=KEY, log_level="error")
            conf["routing"] = {"retries": 0}
            conf["resilience"] = {"breaker": {"enabled": False}}
            async with gateway(conf) as running:

                async def batch(first: int, count: int) -> None:
                    client = await RawClient.connect(running.port)
                    for i in range(first, first + count):
                        kind = i % 7
                        if kind == 5:
                            client.writer.write(hot().replace(KEY.encode(), b"wrong"))
                        elif kind == 6:
                            client.writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n" if i % 3 else hot(model="?"))
                        else:
                            client.writer.write(hot(s=kind, stream=kind in (1, 2)))
                        client.received = b""
                        await client.read_until(b"[DONE]\n\n" if kind in (1, 2) else b"}")
                        if kind == 2:
                            while not client.received.endswith(b"0\r\n\r\n"):
                                client.received += await client.reader.read(1000)
                        if kind == 1 or i % 11 == 0:
                            client.writer.transport.abort()
                            client = await RawClient.connect(running.port)
                    client.writer.transport.abort()

                async def rounds(count: int) -> None:
                    await asyncio.gather(*(batch(i, count) for i in range(20)))
                    await until(lambda: running.runtime.in_flight == 0)
                    await until(lambda: up.open == len(up.tasks))
                    for outbound in running.runtime.active.outbound.values():
                        pools = getattr(outbound.transport, "_pools", {})
                        for pool in pools.values():
                            await until(lambda pool=pool: set(pool._idle) == pool._open)  # type: ignore[misc]
                            for conn in list(pool._idle):
                                conn.abort()
                    if transport == "native":
                        await until(lambda: not up.tasks)
                    up.peers.clear()
                    up.seen.clear()
                    await asyncio.sleep(0.01)
                    gc.collect()

                await rounds(21)
                objects = Counter(type(o).__name__ for o in gc.get_objects())
                tasks, files = len(asyncio.all_tasks()), len(os.listdir("/proc/self/fd"))
                await rounds(100)
                after = Counter(type(o).__name__ for o in gc.get_objects())
                slack = 60 if transport == "aiohttp" else 10  # its idle connections stay
                assert len(asyncio.all_tasks()) <= tasks + slack
                assert requests_begun() == 0
                assert len(os.listdir("/proc/self/fd")) <= files + slack
                grown = {name: n - objects[name] for name, n in after.items() if n - objects[name] > 20 * slack}
                assert not grown

    run(main(), 60)
