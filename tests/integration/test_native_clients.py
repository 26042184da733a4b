"""Clients that leave, read slowly or linger, and the end of the process, on the hot routes."""

from __future__ import annotations

import asyncio

import pytest

from slipstream.server.native import NativeConnection
from tests.aio import run, until
from tests.harness import chat_body
from tests.hotpath import (
    BODY,
    COLD,
    both,
    chunk,
    chunked,
    event,
    flood,
    hot,
    reply,
    serving,
    statuses,
    talk,
)
from tests.pace import soon
from tests.upstreams import CHUNKED, Peer, Up


# ------------------------------------------------------------------ the client leaves, reads slowly, lingers
@both
@pytest.mark.parametrize("stream", [False, True])
def test_a_half_closed_client_is_gone(kind: str, stream: bool) -> None:
    """S-57."""

    async def main() -> None:
        async with serving(kind) as (running, up):
            client = await talk(running.port, hot(chat_body(user="hang", stream=stream)))
            await until(lambda: len(up.seen) == 1)
            client.writer.write_eof()
            assert soon(await until(lambda: up.open == 0), 0.1)
            await client.read_to_end()
            assert client.received == b""
            await client.close()

    run(main())


async def torrent(peer: Peer) -> None:
    """Events for ever, as fast as they are taken."""
    await peer.request()
    peer.writer.transport.set_write_buffer_limits(high=0)
    data = chunk(event("x" * 1000) * 10)
    await peer.send(CHUNKED)
    while True:
        await peer.send(data)
        peer.server.__dict__["sent"] = peer.server.__dict__.get("sent", 0) + len(data)


async def standstill(up: Up) -> int:
    """Wait until nothing moves any more; the bytes that went."""
    before = -1
    while before != (sent := int(up.__dict__.get("sent", 0))) or not sent:
        before = sent
        await asyncio.sleep(0.05)
    return before


def test_a_slow_reader_stops_its_upstream_and_is_dropped(connections: list[NativeConnection]) -> None:
    """S-53: little is held for it; it is dropped when it takes nothing, not while it takes a little."""

    async def main() -> None:
        async with serving("native", torrent, header_timeout_s=0.2, slow_reader_s=0.3) as (running, up):
            client = await talk(running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(hot(chat_body(stream=True)))
            await standstill(up)
            (conn,) = connections
            assert conn.transport is not None
            assert conn.blocked
            held = conn.transport.get_write_buffer_size()
            assert held <= 384 * 1024
            loop = asyncio.get_running_loop()
            start = loop.time()
            while loop.time() - start < 0.8:  # takes something now and then
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]
                await client.reader.read(65_536)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await client.reader.read(1 << 20)
                await asyncio.sleep(0.05)
            assert up.open == 1
            assert soon(await until(lambda: up.open == 0), 2)
            assert running.runtime.in_flight == 0
            assert not conn.listener.stalled
            client.writer.transport.abort()

    run(main())


@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_blocked_client_that_leaves(how: str, connections: list[NativeConnection]) -> None:
    """R1 holds while we wait to write, also for a half-close behind which the unsent bytes stay for ever."""

    async def main() -> None:
        async with serving("native", torrent) as (running, up):
            client = await talk(running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(hot(chat_body(stream=True)))
            await standstill(up)
            assert connections[0].blocked
            if how == "fin":
                client.writer.write_eof()
            else:
                client.writer.transport.abort()
            assert soon(await until(lambda: up.open == 0), 0.1)
            client.writer.transport.abort()

    run(main())


BIG = "y" * 6_000_000


async def big_answers(peer: Peer) -> None:
    while await peer.request() is not None:
        await peer.send(reply(BIG))


def test_requests_behind_an_answer_that_is_not_taken_wait(
    connections: list[NativeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No answer is asked for as long as the one before it fills the buffer; afterwards all goes on, time-outs too."""

    async def main() -> None:
        async with serving("native", big_answers, header_timeout_s=0.2, keepalive_s=0.6) as (running, up):
            client = await talk(running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(hot() * 3)
            await until(lambda: bool(connections) and connections[0].blocked)
            await asyncio.sleep(0.8)  # longer than the keep-alive time
            assert len(up.seen) == 1
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            parts: list[bytes] = []
            while sum(map(len, parts)) < 3 * len(BIG):
                parts.append(await asyncio.wait_for(client.reader.read(1 << 20), 5))
            assert await client.is_silent(0.2)
            assert await client.read_to_end() == "fin"  # the idle time-out survived being blocked
            assert statuses(b"".join(parts)) == [200] * 3
            await client.close()

    run(main())


def test_a_last_answer_that_is_not_taken(connections: list[NativeConnection]) -> None:
    """``Connection: close`` behind a full buffer: sent to the end, or dropped when nothing moves."""

    async def main() -> None:
        async with serving("native", big_answers, header_timeout_s=0.2, slow_reader_s=0.3) as (running, _):
            client = await talk(running.port, hot(BODY, "Connection: close"))
            assert await client.read_to_end() == "fin"
            assert len(client.received) > len(BIG)
            await client.close()
            client = await talk(running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(hot(BODY, "Connection: close"))
            await until(lambda: len(connections) == 2 and connections[1].blocked)
            await until(lambda: connections[1].transport is None)
            assert not connections[1].listener.stalled
            client.writer.transport.abort()

    run(main())


@both
def test_an_upload_nobody_wants_gets_its_answer(kind: str) -> None:
    """Lingering close (RFC 9112 9.6)."""

    async def main() -> None:
        async with serving(kind, max_body_bytes=1024) as (running, _):
            for request in (hot(b"x" * 8_000_000), chunked(*[b"x" * 10_000] * 800)):
                client = await talk(running.port)
                await flood(client, request)
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [413]
                await client.close()

    run(main())


# ------------------------------------------------------------------ the end
@both
def test_drain(kind: str) -> None:
    """Idle connections close at once; what is under way is answered and told to close, on hot routes and others, even
    when it has only just begun to arrive; what is too long is cut."""
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await go.wait()
        await peer.send(reply("late"))

    async def main() -> None:
        async with serving(kind, script) as (running, up):
            idle = await talk(running.port, hot(b"{}"))
            await idle.read_until(b"}}")
            busy = await talk(running.port, hot())
            await until(lambda: len(up.seen) == 1)
            heads = [await talk(running.port, data[:30]) for data in (hot(), COLD, hot(b"{}"))]
            body = await talk(running.port, hot()[:-4])
            both_ = await talk(running.port, COLD)
            await both_.read_until(b"}")
            await asyncio.sleep(0.02)
            running.process.stop()
            assert await idle.read_to_end() == "fin"
            assert await both_.read_to_end() == "fin"
            for client, data in zip(heads, (hot(), COLD, hot(b"{}")), strict=True):
                client.writer.write(data[30:])
            body.writer.write(hot()[-4:])
            await until(lambda: len(up.seen) == 3)
            go.set()
            for client, status in ((busy, 200), (heads[0], 200), (heads[1], 200), (heads[2], 400), (body, 200)):
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [status]
                assert b"Connection: close\r\n" in client.received
                await client.close()
            await idle.close()
            await both_.close()

    run(main())
