"""HTTP on the hot routes: the native listener and the reference answer the same to the same bytes, in any cuts."""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream._fast import COMPILED
from slipstream.net.soon import Soon
from slipstream.server import native, native_body, native_connection
from slipstream.server.load import resident_bytes
from slipstream.server.native import NativeConnection
from slipstream.server.native_exchange import Dechunker
from tests.aio import run, until
from tests.harness import CHAT, chat_body
from tests.hotpath import (
    BAD,
    BODY,
    COLD,
    both,
    chunk,
    chunked,
    event,
    flood,
    hot,
    numbered,
    serving,
    statuses,
    talk,
    until_answers,
    users,
)
from tests.pace import soon
from tests.upstreams import CHUNKED, Peer


# ------------------------------------------------------------------ order
@both
def test_pipelined_requests_are_answered_in_order(kind: str) -> None:
    async def main() -> None:
        async with serving(kind) as (running, up):
            client = await talk(running.port, b"".join(hot(numbered(i)) for i in range(100)))
            assert await until_answers(client, 100) == [200] * 100
            assert users(client.received) == [f"n{i}" for i in range(100)]
            assert len(up.peers) == 1  # one at a time
            await client.close()

    run(main())


@both
@pytest.mark.parametrize("cut", [1, 7, 64, 1000, 10**6])
def test_any_cut_gives_the_same(kind: str, cut: int) -> None:
    """Bodies of both framings, errors, refusals before the body, empty lines between, and at last bytes that are none:
    the connection stays in step."""
    data = b"".join(
        [
            hot(numbered(0)),
            chunked(numbered(1)[:9], numbered(1)[9:], last=b"0;x=y\r\nX-Trailer: t\r\n\r\n"),
            b"\r\n",
            hot(numbered(2), key="wrong"),
            chunked(numbered(3), key="wrong"),
            hot(b"{}", "X-Request-ID: mine"),
            hot(b""),
            chunked(*(b"%c" % c for c in numbered(4))),
            hot(numbered(5), "Content-Encoding: compress"),
            hot(numbered(6)),
            BAD,
            hot(numbered(7)),
        ]
    )

    async def main() -> None:
        async with serving(kind) as (running, _):
            client = await talk(running.port)
            for at in range(0, len(data), cut):
                client.writer.write(data[at : at + cut])
                if at % 64 == 0:
                    await asyncio.sleep(0)
            assert await client.read_to_end() == "fin"
            assert statuses(client.received) == [200, 200, 401, 401, 400, 400, 200, 415, 200, 400]
            assert users(client.received) == ["n0", "n1", "n4", "n6"]
            assert client.received.count(b"X-Request-ID: mine\r\n") == 1
            await client.close()

    run(main())


def test_hot_and_cold_requests_mix() -> None:
    """The connection is handed over with whatever is in it: whole requests, a part of one, malformed bytes."""

    async def main() -> None:
        async with serving("native") as (running, _):
            client = await talk(running.port, hot(numbered(0)) + COLD + hot(numbered(1)) + COLD)
            assert await until_answers(client, 4) == [200] * 4
            assert users(client.received) == ["n0", "n1"]
            client.writer.write(hot(numbered(2)))
            assert await until_answers(client, 5) == [200] * 5
            await client.close()
            part = hot(numbered(1))
            for cut in (3, len(part) - len(BODY) - 30, len(part) - 5):
                client = await talk(running.port, hot(numbered(0)) + COLD + part[:cut], part[cut:], pause=True)
                assert await until_answers(client, 3) == [200] * 3
                await client.close()
            for data, expected in (
                (COLD + BAD, [200, 400]),
                (hot(numbered(0)) + COLD + BAD, [200, 200, 400]),
                (COLD + hot(numbered(0)) + BAD + hot(b""), [200, 200, 400]),
                (COLD + chunked(b"{")[:-5] + b"zz\r\n", [200, 400]),
                (COLD[:-4] + b"\r\nContent-Length: 2\r\n\r\n{}" + BAD, [200, 400]),
            ):
                client = await talk(running.port, data)
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == expected
                await client.close()

    run(main())


def test_pipelined_bytes_are_bounded_and_the_end_of_a_paused_client_is_seen(
    connections: list[NativeConnection],
) -> None:
    async def main() -> None:
        for how in ("fin", "rst"):
            async with serving("native") as (running, up):
                client = await talk(running.port, hot(chat_body(user="hang")))
                await until(lambda: len(up.seen) == 1)
                # a FIN arrives when all before it fits the kernel's buffer, a reset always
                client.writer.write(hot(numbered(1)) * (1000 if how == "fin" else 20_000))
                conn = connections[-1]
                await until(lambda conn=conn: conn._paused)  # type: ignore[misc]
                await asyncio.sleep(0.05)
                assert len(conn._buffer) <= native_connection.QUEUED_MAX + 256_000
                if how == "rst":
                    linger = struct.pack("ii", 1, 0)
                    client.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                client.writer.transport.abort()
                assert soon(await until(lambda: up.open == 0), 0.2)
                await until(lambda: running.runtime.in_flight == 0)
                assert not conn.listener.paused
                assert len(up.seen) == 1

    run(main())


def test_a_paused_client_is_read_again(connections: list[NativeConnection]) -> None:
    count = 2000

    async def main() -> None:
        async with serving("native") as (running, up):
            client = await talk(running.port)
            reader = asyncio.create_task(until_answers(client, count))
            client.writer.write(b"".join(hot(numbered(i)) for i in range(count)))
            await reader
            assert users(client.received) == [f"n{i}" for i in range(count)]
            assert len(up.peers) == 1
            assert not connections[0].listener.paused
            await client.close()

    run(main())


# ------------------------------------------------------------------ 100-continue, HTTP/1.0, persistence
@both
def test_continue(kind: str) -> None:
    """S-69: only after authentication and the checks of size; never for HTTP/1.0."""
    expect = "Expect: 100-continue"

    async def main() -> None:
        async with serving(kind, max_body_bytes=1024) as (running, _):
            request = hot(BODY, expect)
            head, body = request[: -len(BODY)], request[-len(BODY) :]
            client = await talk(running.port, head)
            await client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
            client.writer.write(body + request)  # the second does not wait for it
            assert [s for s in await until_answers(client, 3) if s != 100] == [200, 200]
            await client.close()
            for bad in (
                hot(BODY, expect, key="wrong")[: -len(BODY)],
                hot(BODY, expect)[: -len(BODY)].replace(b"application/json", b"text/plain"),
                hot(b"x" * 2000, expect)[:-2000],
                hot(BODY, "Expect: something"),
            ):
                client = await talk(running.port, bad)
                await client.read_to_end()
                assert statuses(client.received)[0] in (401, 413, 415, 417)
                assert client.received.count(b"Connection: close\r\n") == 1
                await client.close()
            client = await talk(running.port, hot(BODY, expect, version="1.0")[: -len(BODY)])
            assert await client.is_silent()
            client.writer.write(BODY)
            await client.read_to_end()
            assert b"100 Continue" not in client.received
            assert b" 200 OK" in client.received
            await client.close()

    run(main())


@both
def test_persistence(kind: str) -> None:
    async def main() -> None:
        async with serving(kind) as (running, _):
            for request, kept in (
                (hot(), True),
                (hot(BODY, "Connection: close"), False),
                (hot(version="1.0"), False),
                (hot(BODY, "Connection: keep-alive", version="1.0"), True),
                (hot(b"{}"), True),
                (hot(key="wrong"), True),
            ):
                client = await talk(running.port, request, pause=True)
                await client.read_until(b"\r\n\r\n")
                if kept:
                    client.writer.write(request)
                    await until(lambda client=client: client.reader._buffer or True)  # type: ignore[misc]
                    while client.received.count(b"X-Request-ID") < 2:
                        client.received += await asyncio.wait_for(client.reader.read(65_536), 5)
                    assert b"Connection: close" not in client.received
                else:
                    assert await client.read_to_end() == "fin"
                    assert client.received.count(b"Connection: close\r\n") == 1 or b"HTTP/1.0" in client.received
                await client.close()

    run(main())


@both
def test_streams(kind: str) -> None:
    """Chunked for HTTP/1.1, ended by the connection for HTTP/1.0."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(CHUNKED, chunk(event("a")), chunk(event("b") + b"data: [DONE]\n\n") + b"0\r\n\r\n")

    async def main() -> None:
        async with serving(kind, script) as (running, up):
            client = await talk(running.port, hot(chat_body(stream=True)) * 2)
            while client.received.count(b"\r\n0\r\n\r\n") < 2:
                client.received += await asyncio.wait_for(client.reader.read(65_536), 5)
            assert statuses(client.received) == [200, 200]
            assert client.received.count(b"Transfer-Encoding: chunked\r\n") == 2
            await client.close()
            client = await talk(running.port, hot(chat_body(stream=True), "Connection: keep-alive", version="1.0"))
            assert await client.read_to_end() == "fin"
            assert b"chunked" not in client.received
            assert client.received.endswith(event("b") + b"data: [DONE]\n\n")
            await client.close()
            assert len(up.peers) == 1

    run(main())


# ------------------------------------------------------------------ limits
@both
def test_sizes(kind: str) -> None:
    async def main() -> None:
        async with serving(kind, max_body_bytes=100_000) as (running, up):
            for request, status in (
                (hot(b"x" * 100_001)[:500], 413),
                (chunked(*[b"x" * 50_001] * 2), 413),
                (hot(BODY, "X: " + "a" * 20_000), 431),
                (hot(BODY, *["X: a"] * 200), 431),
                (hot().replace(CHAT.encode(), CHAT.encode() + b"?" + b"a" * 20_000), 414),
                (chunked(BODY, last=b"zz\r\n"), 400),
                (chunked(BODY, last=b"0\r\nHost: x\r\n\r\n"), 400),
                (hot(BODY, "Transfer-Encoding: chunked"), 400),
            ):
                client = await talk(running.port, request)
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [status]
                assert b"Connection: close\r\n" in client.received
                await client.close()
            assert up.seen == []

    run(main())


@both
def test_nobody_uploads_much_to_be_told_401(kind: str) -> None:
    async def main() -> None:
        async with serving(kind) as (running, up):
            for request in (hot(b"x" * 4_000_000, key="wrong"), chunked(*[b"x" * 1000] * 4000, key="wrong")):
                client = await talk(running.port)
                sent = asyncio.create_task(flood(client, request))
                await client.read_until(b"invalid_api_key")
                if kind == "native":  # the reference may read and drop it all
                    assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [401]
                sent.cancel()
                await asyncio.gather(sent, return_exceptions=True)
                await client.close()
            assert up.seen == []

    run(main())


@both
def test_slow_requests(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """S-51, S-52, S-54: 408 for what has begun, silence for what has not; a drip does not help."""

    async def main() -> None:
        async with serving(kind, header_timeout_s=0.2, body_idle_s=0.2, keepalive_s=0.5) as (running, _):
            loop = asyncio.get_running_loop()
            begin = loop.time()

            async def ask(*pieces: bytes, drip: bytes = b"") -> tuple[list[int], float]:
                client = await talk(running.port, *pieces)
                while drip and await client.is_silent(0.02):
                    client.writer.write(drip)
                assert await client.read_to_end() == "fin"
                await client.close()
                return statuses(client.received), loop.time() - begin

            results = await asyncio.gather(
                ask(),
                ask(hot()[:20]),
                ask(hot()[:60], drip=b"a"),
                ask(hot()[:-3]),
                ask(chunked(BODY)[:-10]),
                ask(hot() + hot()[:40]),
                ask(hot()),
            )
            assert [status for status, _ in results] == [[], [408], [408], [408], [408], [200, 408], [200]]
            assert all(0.15 < taken < 2.0 for _, taken in results), results
            assert results[-1][1] > 0.45, results

    with caplog.at_level(logging.WARNING):
        run(main())
    assert caplog.records == []


@both
def test_a_trickled_body(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.server.limits.BODY_RATE_AFTER_S", 0.2)

    async def main() -> None:
        async with serving(kind, header_timeout_s=0.4) as (running, _):
            client = await talk(running.port, hot(b"x" * 1000)[:-1000])
            while await client.is_silent(0.02):
                client.writer.write(b"a")
            assert await client.read_to_end() == "fin"
            assert statuses(client.received) == [408]
            await client.close()

    run(main())


@both
def test_a_large_body(kind: str) -> None:
    big = chat_body(user="big", filler="x" * 3_000_000)

    async def main() -> None:
        async with serving(kind) as (running, up):
            client = await talk(
                running.port, hot(big) + chunked(*(big[i : i + 50_000] for i in range(0, len(big), 50_000)))
            )
            assert await until_answers(client, 2) == [200, 200]
            assert [len(body) for _, body in up.seen] == [len(big)] * 2
            await client.close()

    run(main())


@both
@pytest.mark.parametrize("size", [native_body.INLET_BYTES, native_body.TURN_BYTES, 9_000_001])
def test_a_large_body_and_what_is_behind_it(kind: str, size: int) -> None:
    """The rest of it is read into its place: the requests behind it must not be, however the bytes are cut."""
    big = chat_body(user="big", filler="x" * size)

    async def main() -> None:
        async with serving(kind) as (running, up):
            data = hot(big) + hot() + hot(big) + hot(BODY, "Connection: close")
            for cut in (len(hot(big)) - len(big), len(hot(big)) - 10, len(hot(big)), len(hot(big)) + 10):
                client = await talk(running.port, data[:cut])
                await client.is_silent(0.01)  # until this much was read
                client.writer.write(data[cut:])
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [200] * 4
                assert [body for _, body in up.seen[-4:]] == [big, BODY, big, BODY]
                await client.close()

    run(main())


@both
@pytest.mark.parametrize("end", ["silence", "fin", "reset"])
def test_a_large_body_that_does_not_come_to_its_end(kind: str, end: str) -> None:
    """R2, S-51: it is answered or dropped, counted, and nothing of it reaches a provider."""
    big = chat_body(user="big", filler="x" * 3_000_000)

    async def main() -> None:
        async with serving(kind, body_idle_s=0.2) as (running, up):
            client = await talk(running.port, hot(big)[:-100_000])
            if end == "silence":
                await client.read_until(b"408")
                client.writer.write(b"x" * 1000 + hot())  # too late: read and dropped
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [408]
            elif end == "fin":
                client.writer.write_eof()
                assert await client.read_to_end() in ("fin", "reset")
                assert statuses(client.received) == []
            else:
                client.writer.transport.abort()
            await client.close()
            assert up.seen == []
            again = await talk(running.port, hot())
            assert await until_answers(again, 1) == [200]
            await again.close()

    run(main())


@pytest.mark.parametrize("framing", [hot, chunked])
def test_many_large_bodies_at_once(framing: Callable[[bytes], bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """R23: more than are read in one turn take turns. All arrive whole, also when some clients leave meanwhile."""
    monkeypatch.setattr(native, "AT_ONCE", 2)
    waited = list[int]()
    call = Soon.call

    def counting(soon: Soon, callback: Callable[[], None]) -> None:
        call(soon, callback)
        waited.append(len(soon._waiting))

    monkeypatch.setattr(Soon, "call", counting)

    async def upload(port: int, number: int) -> bytes:
        body = numbered(number, filler=f"{number:02}" * 1_000_000)
        client = await talk(port)
        if number % 4:
            await asyncio.gather(flood(client, framing(body)), until_answers(client, 1))
            assert users(client.received) == [f"n{number}"]
        else:
            await flood(client, framing(body)[:-300_000])
            client.writer.transport.abort()
            body = b""
        await client.close()
        return body

    async def main() -> None:
        async with serving("native") as (running, up):
            bodies = await asyncio.gather(*(upload(running.port, number) for number in range(16)))
            assert sorted(body for _, body in up.seen) == sorted(filter(None, bodies))

    run(main())
    assert max(waited) > 4


@pytest.mark.skipif(not COMPILED or not Path("/proc/self/statm").exists(), reason="looks at the memory of a process")
def test_what_is_announced_takes_no_memory() -> None:
    """The memory of a body is taken as it comes, not when it is announced."""

    async def main() -> None:
        async with serving("native", max_body_bytes=64_000_000) as (running, _):
            before = resident_bytes()
            clients = [await talk(running.port, hot(b"x" * 60_000_000)[:100_000]) for _ in range(20)]
            await clients[-1].is_silent(0.05)
            assert resident_bytes() - before < 200_000_000, "1.2 GB were announced"
            for client in clients:
                client.writer.transport.abort()
                await client.close()

    run(main())


def test_dechunker() -> None:
    data = b"3\r\nabc\r\n1;x=y\r\nd\r\n00\r\nA: b\r\nC: d\r\n\r\nREST\r\n"
    for cut in range(1, len(data) + 1):
        one, parts, rest = Dechunker(), list[bytes](), None
        for at in range(0, len(data), cut):
            piece = data[at : at + cut]
            if rest is None:
                rest = one.feed(piece, parts)
            else:
                rest += piece
        assert (b"".join(parts), rest) == (b"abcd", b"REST\r\n"), cut
