"""After ``[DONE]`` nobody reads on, and the connection is kept if the body ends soon (``UpstreamReply.linger``)."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.net.aiohttp_transport import _lingering
from tests.aio import run, until
from tests.upstreams import BOTH, CHUNKED, Peer, client, upstream

DONE = b"c\r\ndata: [DONE]\r\n"
END = b"0\r\n\r\n"


@pytest.mark.parametrize("kind", BOTH)
def test_a_body_that_ends_soon_keeps_its_connection(kind: str) -> None:
    async def main() -> None:
        ended = asyncio.Event()

        async def script(peer: Peer) -> None:
            while await peer.request():
                await peer.send(CHUNKED, DONE)
                await peer.send(END)
                ended.set()

        async with upstream(script) as up, client(up.url, kind) as c:
            for _ in range(3):
                reply = await c.send()
                assert (await reply.chunk()).startswith(b"data: [DONE]")
                reply.linger(5.0)
                await ended.wait()
                ended.clear()
                await until(lambda: len(c.pool._idle) == 1 if kind == "native" else not _lingering)
            assert len(up.peers) == 1

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_a_body_that_does_not_end_loses_it(kind: str) -> None:
    async def main() -> None:
        left = asyncio.Event()

        async def script(peer: Peer) -> None:
            await peer.request()
            await peer.send(CHUNKED, DONE)
            await peer.reader.read()
            left.set()

        async with upstream(script) as up, client(up.url, kind) as c:
            reply = await c.send()
            assert await reply.chunk() == b"data: [DONE]"
            reply.linger(0.01)
            await left.wait()
            assert len(up.peers) == 1

    run(main())
