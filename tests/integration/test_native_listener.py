"""HTTP on the hot routes: the native listener and the reference answer the same to the same bytes, in any cuts."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slipstream.server import native, native_connection, process
from slipstream.server.listener import ListenerLimits
from slipstream.server.native import NativeConnection
from slipstream.server.native_exchange import Dechunker
from tests.aio import RawClient, run, until
from tests.harness import CHAT, KEY, Gateway, chat_body, config, gateway, to
from tests.upstreams import CHUNKED, Peer, Up, ok, upstream

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
            server = {"master_api_key": KEY, "log_level": "error", "max_body_bytes": limits.get("max_body_bytes", 1 << 26)}
            conf = config(to(f"http://127.0.0.1:{up.port}/v1", models=["m"]), **server)
            async with gateway(conf) as running:
                yield running, up
                await until(lambda: running.runtime.in_flight == 0)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[NativeConnection]:
    """Every native connection that is made."""
    made: list[NativeConnection] = []

    def make(listener: native.NativeListener) -> NativeConnection:
        made.append(NativeConnection(listener))
        return made[-1]

    monkeypatch.setattr(native.NativeListener, "_connection", make)
    return made


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
            hot(numbered(5), "Content-Encoding: br"),
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
                (COLD + chunked(b"{") [:-5] + b"zz\r\n", [200, 400]),
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
                flood = hot(numbered(1)) * 100
                client.writer.write(flood * 100)
                conn = connections[-1]
                await until(lambda conn=conn: conn._paused)  # type: ignore[misc]
                await asyncio.sleep(0.05)
                assert len(conn._buffer) <= native_connection.QUEUED_MAX + 256_000
                if how == "fin":  # the kernel still has bytes of ours: shut down what can be
                    client.writer.transport.abort()
                else:
                    client.writer.transport.abort()
                assert await until(lambda: up.open == 0) < 0.2
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
        async with serving(kind, max_body_bytes=1000) as (running, _):
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
            await peer.send(CHUNKED, chunk(event("a")), chunk(event("b") + b"data: [DONE]\n\n"), b"0\r\n\r\n")

    async def main() -> None:
        async with serving(kind, script) as (running, up):
            client = await talk(running.port, hot(chat_body(stream=True)) * 2)
            while client.received.count(b"0\r\n\r\n") < 2:
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
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [401]
                sent.cancel()
                await client.close()
            assert up.seen == []

    run(main())


async def flood(client: RawClient, data: bytes) -> None:
    for at in range(0, len(data), 100_000):
        client.writer.write(data[at : at + 100_000])
        await client.writer.drain()
        await asyncio.sleep(0)


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
    monkeypatch.setattr("slipstream.server.connection.BODY_RATE_AFTER_S", 0.2)
    monkeypatch.setattr("slipstream.server.native_connection.BODY_RATE_AFTER_S", 0.2)

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
            client = await talk(running.port, hot(big) + chunked(*(big[i : i + 50_000] for i in range(0, len(big), 50_000))))
            assert await until_answers(client, 2) == [200, 200]
            assert [len(body) for _, body in up.seen] == [len(big)] * 2
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
            assert await until(lambda: up.open == 0) < 0.1
            await client.read_to_end()
            assert client.received == b""
            await client.close()

    run(main())


async def torrent(peer: Peer) -> None:
    """Events for ever, as fast as they are taken."""
    await peer.request()
    peer.writer.transport.set_write_buffer_limits(high=0)  # type: ignore[attr-defined]
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


def test_a_slow_reader_stops_its_upstream_and_is_dropped(
    connections: list[NativeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """S-53: little is held for it; it is dropped when it takes nothing, not while it takes a little."""
    monkeypatch.setattr(native_connection, "SLOW_READER_S", 0.3)

    async def main() -> None:
        async with serving("native", torrent, header_timeout_s=0.2) as (running, up):
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
            assert await until(lambda: up.open == 0) < 2
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
            assert await until(lambda: up.open == 0) < 0.1
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
        async with serving("native", big_answers, header_timeout_s=0.2, keepalive_s=0.4) as (running, up):
            client = await talk(running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(hot() * 3)
            await until(lambda: bool(connections) and connections[0].blocked)
            await asyncio.sleep(0.8)  # longer than the keep-alive time
            assert len(up.seen) == 1
            client.writer.transport.resume_reading()  # type: ignore[attr-defined]
            loop = asyncio.get_running_loop()
            while client.received.count(b"]}") < 3 or not client.received.endswith(b"}"):
                client.received += await asyncio.wait_for(client.reader.read(1 << 20), 5)
            start = loop.time()
            assert statuses(client.received) == [200] * 3
            assert len(client.received) > 3 * len(BIG)
            assert await client.read_to_end() == "fin"  # the idle time-out survived being blocked
            assert 0.3 < loop.time() - start < 2
            await client.close()

    run(main())


def test_a_last_answer_that_is_not_taken(
    connections: list[NativeConnection], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``Connection: close`` behind a full buffer: sent to the end, or dropped when nothing moves."""
    monkeypatch.setattr(native_connection, "SLOW_READER_S", 0.3)

    async def main() -> None:
        async with serving("native", big_answers, header_timeout_s=0.2) as (running, _):
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
        async with serving(kind, max_body_bytes=1000) as (running, _):
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
