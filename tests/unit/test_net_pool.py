"""Who gets which connection, who waits, what is sent again and what never is (R39 to R43)."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import socket
from collections import Counter

import pytest

from slipstream.errors import TransportError, UpstreamTimeout
from slipstream.net import pool as pool_module
from tests.aio import run, until
from tests.pace import soon
from tests.upstreams import BOTH, CHUNKED, Peer, answers, client, ok, read, upstream


async def echo(peer: Peer) -> None:
    while (request := await peer.request()) is not None:
        await peer.send(ok(request[1]))


async def held(peer: Peer) -> None:
    """Answer when the test puts the body of the request into ``released``."""
    while (request := await peer.request()) is not None:
        await until(lambda: request[1] in peer.server.__dict__.setdefault("released", set()))
        await peer.send(ok(request[1]))


# ------------------------------------------------------------------ reuse
def test_most_recently_used_first() -> None:
    async def main() -> None:
        async with upstream(held) as up, client(up.url) as c:
            up.__dict__["released"] = set()
            tasks = [asyncio.create_task(c.whole(b"%d" % i)) for i in range(3)]
            await until(lambda: len(up.seen) == 3)
            for i in (1, 0, 2):
                up.__dict__["released"].add(b"%d" % i)
                assert await tasks[i] == (200, b"%d" % i)
            order = [peer.number for peer in up.peers]
            assert len(order) == 3
            assert len(c.pool._idle) == 3
            last = c.pool._idle[-1]
            up.__dict__["released"].update((b"a", b"b"))
            await c.whole(b"a")
            await c.whole(b"b")
            assert c.pool._idle[-1] is last
            assert Counter(peer.requests for peer in up.peers) == {1: 2, 3: 1}

    run(main())


def test_idle_connections_are_reaped(monkeypatch: pytest.MonkeyPatch) -> None:
    """R39, Q20: the ones that are not needed, while one that is used stays."""
    monkeypatch.setattr(pool_module, "IDLE_S", 0.2)

    async def main() -> None:
        async with upstream(echo) as up, client(up.url) as c:
            await asyncio.gather(*(c.whole(b"%d" % i) for i in range(5)))
            assert len(c.pool._idle) == 5
            while up.open > 1:
                await c.whole()
                await asyncio.sleep(0.01)
            await c.whole()
            assert len(up.peers) == 5
            assert max(peer.requests for peer in up.peers) > 5
            loop = asyncio.get_running_loop()
            start = loop.time()
            await until(lambda: up.open == 0)
            assert soon(loop.time() - start, 1)
            assert c.pool._reaper is None

    run(main())


def test_connections_grow_old(monkeypatch: pytest.MonkeyPatch) -> None:  # Q21
    async def main() -> None:
        async with upstream(echo) as up, client(up.url) as c:
            await c.whole()
            monkeypatch.setattr(pool_module, "MAX_AGE_S", -1.0)
            await c.whole()
            await until(lambda: up.open == 0)
            await c.whole()
            assert len(up.peers) == 2

    run(main())


def test_keepalive_probes_are_on() -> None:
    async def main() -> None:
        async with upstream(echo) as up, client(up.url) as c:
            await c.whole()
            (conn,) = c.pool._idle
            assert conn.transport is not None
            sock = conn.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1

    run(main())


# ------------------------------------------------------------------ replay (R40)
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_ten_thousand_requests_to_an_upstream_that_closes_idle_connections(how: str) -> None:
    """R40, Q20: every fifth connection is closed a random moment after its answer: nobody sees it."""
    rng = random.Random(40)

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            peer.writer.write(ok(request[1]))
            if rng.random() < 0.2:
                for _ in range(rng.randrange(3)):
                    await asyncio.sleep(0)
                if how == "rst":
                    peer.reset()
                return

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:

            async def worker(first: int) -> None:
                for i in range(first, 10_000, 16):
                    assert await c.whole(b"%d" % i) == (200, b"%d" % i)

            await asyncio.gather(*(worker(i) for i in range(16)))
            assert c.stats["requests"] == 10_000
            assert c.stats["replays"] <= c.stats["connections_made"]
            twice = [body for body, count in Counter(body for _, body in up.seen).items() if count > 1]
            assert len(twice) == 0

    run(main(), 60)


@pytest.mark.parametrize("kind", BOTH)
def test_replayed_once_and_on_a_fresh_connection(kind: str) -> None:  # R40, Q20
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())
        if peer.number == 1:
            await peer.request()  # dies with the second request unanswered, so does the fresh connection
            return
        await peer.request()

    async def dead(peer: Peer) -> None:
        await peer.request()

    async def main() -> None:
        async with upstream(script) as up, client(up.url, kind) as c:
            assert await c.whole(b"1") == (200, b"{}")
            assert await c.whole(b"2") == (200, b"{}")
            assert [body for _, body in up.seen] == [b"1", b"2", b"2"]
            assert c.stats["replays"] == 1
            up.script = dead
            with pytest.raises(TransportError):
                await c.whole(b"3")
            assert [body for _, body in up.seen][3:] == [b"3", b"3"]

    run(main())


@pytest.mark.parametrize("begin", [b"H", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 100 C\r\n\r\n"])
def test_never_sent_again_once_a_byte_has_come(begin: bytes) -> None:  # R40, Q20
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())
        await peer.request()
        await peer.send(begin)

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            await c.whole(b"1")
            with pytest.raises(TransportError):
                await c.whole(b"2")
            assert [body for _, body in up.seen] == [b"1", b"2"]
            assert c.stats["replays"] == 0

    run(main())


# ------------------------------------------------------------------ waiting (R41), limits
def test_waiting_is_counted_and_fair() -> None:
    async def main() -> None:
        async with upstream(held) as up, client(up.url, limit=2) as c:
            released = up.__dict__.setdefault("released", set())
            done: list[int] = []

            async def one(i: int) -> None:
                assert await c.whole(b"%d" % i, connect_s=0.05) == (200, b"%d" % i)
                done.append(i)

            tasks = []
            for i in range(8):
                tasks.append(asyncio.create_task(one(i)))
                await asyncio.sleep(0)
            await until(lambda: len(up.seen) == 2)
            await asyncio.sleep(0.1)  # longer than the limit for connecting, which waiting is not
            assert c.stats["waits"] == 6
            late = 100
            for i in range(8):
                released.add(b"%d" % i)
                await until(lambda i=i: len(done) == i + 1)  # type: ignore[misc]
                if i < 3:
                    late += 1
                    tasks.append(asyncio.create_task(one(late)))  # nobody overtakes
            for i in (101, 102, 103):
                released.add(b"%d" % i)
                await until(lambda i=i: done[-1] == i)  # type: ignore[misc]
            await asyncio.gather(*tasks)
            assert done == [*range(8), 101, 102, 103]
            assert len(up.peers) == 2
            assert c.stats["wait_us"] > 6 * 50_000

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_both_transports_count_who_waits(kind: str) -> None:
    async def main() -> None:
        async with upstream(echo) as up, client(up.url, kind, limit=1) as c:
            assert await asyncio.gather(*(c.whole(b"%d" % i) for i in range(3))) == [(200, b"%d" % i) for i in range(3)]
            assert (len(up.peers), c.stats["waits"]) == (1, 2)
            assert c.stats["wait_us"] >= 0

    run(main())


def test_waiters_get_the_places_of_connections_that_broke() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await asyncio.sleep(0)

    async def main() -> None:
        async with upstream(script) as up, client(up.url, limit=3) as c:
            results = await asyncio.gather(*(c.whole(b"%d" % i) for i in range(20)), return_exceptions=True)
            assert all(isinstance(result, TransportError) for result in results)
            assert len(up.peers) == 20

    run(main())


@pytest.mark.parametrize("seed", range(6))
def test_cancelled_requests_leak_nothing(seed: int) -> None:
    """At any moment: waiting, connecting, answered in the same turn of the loop. Places, sockets and tasks return, and
    nobody's answer is anybody else's."""
    rng = random.Random(seed)

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            kind = rng.randrange(12)
            if kind == 0:
                return
            if kind == 1:
                peer.reset()
                return
            if kind == 2:
                await peer.send(CHUNKED, b"%x\r\n%b\r\n" % (len(request[1]), request[1]), b"0\r\n\r\n")
            else:
                await peer.send(ok(request[1]))

    async def main() -> None:
        async with upstream(script) as up, client(up.url, limit=4) as c:
            seen = Counter[str]()

            async def one(i: int) -> None:
                body = b"%d" % i * 3
                try:
                    assert await c.whole(body, rng.choice((0.0, 5.0, 5.0))) == (200, body)
                except (TransportError, UpstreamTimeout) as error:
                    seen[type(error).__name__] += 1
                else:
                    seen["ok"] += 1

            tasks: list[asyncio.Task[None]] = []
            for i in range(600):
                tasks.append(asyncio.create_task(one(i)))
                for _ in range(rng.randrange(5)):
                    await asyncio.sleep(0)
                if rng.random() < 0.5:
                    rng.choice(tasks[-8:]).cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(r) for r in results} <= {type(None), asyncio.CancelledError}, results
            assert seen["ok"] > 100
            assert len(c.pool._open) <= 4
            assert c.pool._connecting == 0
            assert not c.pool._waiters
            await until(lambda: set(c.pool._idle) == c.pool._open)
            gc.collect()

    run(main())


def test_a_cancelled_request_closes_its_connection_at_once() -> None:
    async def main() -> None:
        async with upstream(held) as up, client(up.url) as c:
            task = asyncio.create_task(c.whole(b"x"))
            await until(lambda: len(up.seen) == 1)
            task.cancel()
            peer = up.peers[0]
            assert soon(await until(lambda: peer.reader.at_eof()), 0.1)
            assert c.stats["connections_open"] == 0
            up.__dict__["released"].add(b"x")

    run(main())


def test_a_reply_that_is_not_read_to_its_end_closes_its_connection() -> None:
    async def main() -> None:
        async with upstream(answers(CHUNKED, b"3\r\nabc\r\n")) as up, client(up.url) as c:
            reply = await c.send()
            assert await reply.chunk() == b"abc"
            reply.close()
            assert soon(await until(lambda: up.open == 0), 0.1)
            waiting = await c.send()
            assert await waiting.chunk() == b"abc"
            task = asyncio.create_task(waiting.chunk())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            waiting.close()
            await until(lambda: up.open == 0)

    run(main())


# ------------------------------------------------------------------ closing (R42), many streams (R43)
def test_closing_leaves_connections_in_use_alone() -> None:
    async def main() -> None:
        async with upstream(held) as up, client(up.url) as c:
            released = up.__dict__.setdefault("released", {b"0"})
            await c.whole(b"0")
            tasks = [asyncio.create_task(c.whole(b"%d" % i)) for i in (1, 2)]
            await until(lambda: len(up.seen) == 3)
            await c.transport.close()
            await asyncio.sleep(0.01)
            assert c.stats["connections_open"] == 2
            released.update((b"1", b"2"))
            assert await asyncio.gather(*tasks) == [(200, b"1"), (200, b"2")]
            await until(lambda: up.open == 0)
            assert c.stats["connections_open"] == 0

    run(main())


def test_a_thousand_streams_at_once() -> None:
    """R43: all are under way at the same time, and all end."""
    go = 0

    async def script(peer: Peer) -> None:
        nonlocal go
        await peer.request()
        peer.writer.write(CHUNKED + b"5\r\nfirst\r\n")
        await until(lambda: go == 1, 20)
        peer.writer.write(b"4\r\nlast\r\n0\r\n\r\n")
        await peer.request()

    async def main() -> None:
        nonlocal go
        async with upstream(script) as up, client(up.url) as c:
            replies = await asyncio.gather(*(c.send(b"x", 20.0) for _ in range(1000)))
            assert [await reply.chunk() for reply in replies] == [b"first"] * 1000
            assert (len(up.peers), up.open, c.stats["waits"]) == (1000, 1000, 0)
            go = 1
            assert await asyncio.gather(*(read(reply) for reply in replies)) == [b"last"] * 1000
            for reply in replies:
                reply.close()
            assert len(c.pool._idle) == 1000

    run(main(), 60)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("kind", BOTH)
def test_no_socket_is_left(kind: str) -> None:
    async def main() -> None:
        async with upstream(echo) as up:
            files = len(os.listdir("/proc/self/fd"))
            async with client(up.url, kind) as c:
                await asyncio.gather(*(c.whole(b"%d" % i) for i in range(20)))
                assert len(os.listdir("/proc/self/fd")) >= files + 40
            await until(lambda: len(os.listdir("/proc/self/fd")) <= files)

    run(main())
