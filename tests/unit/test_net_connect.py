"""Making connections: refusals, limits, names, the race of addresses."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from slipstream.errors import ConnectFailed, UpstreamTimeout
from slipstream.net import connect as connect_module
from slipstream.net.connect import interleave
from tests.aio import run, until
from tests.pace import soon
from tests.upstreams import BOTH, Peer, answers, client, free_port, ok, upstream

V4, V6 = socket.AF_INET, socket.AF_INET6


pytestmark = pytest.mark.usefixtures("no_proxy")


@contextmanager
def full_backlog() -> Iterator[tuple[str, int]]:
    """An address whose connections hang: nobody accepts, and the queue is full."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.9", 0))
        sock.listen(0)
        fill = [socket.socket() for _ in range(3)]
        for one in fill:
            one.setblocking(False)
            one.connect_ex(sock.getsockname())
        try:
            yield sock.getsockname()
        finally:
            for one in fill:
                one.close()


class Names:
    """A resolver for the running loop: what it answers, or raises, and how often it was asked."""

    def __init__(self, *answer: tuple[int, str]) -> None:
        self.answer = list(answer)
        self.error: Exception | None = None
        self.hang = False
        self.asked = 0
        loop: Any = asyncio.get_running_loop()
        loop.getaddrinfo = self.getaddrinfo

    async def getaddrinfo(self, host: str, port: int, **more: Any) -> list[Any]:
        self.asked += 1
        answer = list(self.answer)
        await asyncio.sleep(0)
        if self.hang:
            await asyncio.get_running_loop().create_future()
        if self.error is not None:
            raise self.error
        return [(family, socket.SOCK_STREAM, 6, "", (address, port)) for family, address in answer]


# ------------------------------------------------------------------ limits and refusals (R18)
@pytest.mark.parametrize("kind", BOTH)
def test_nobody_listens(kind: str) -> None:
    async def main() -> None:
        async with client(f"http://127.0.0.1:{free_port()}/v1", kind) as c:
            for _ in range(3):
                with pytest.raises(ConnectFailed):
                    await c.whole()

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_a_connect_that_hangs_has_its_own_limit(kind: str) -> None:  # R18
    async def main() -> None:
        with full_backlog() as (host, port):
            async with client(f"http://{host}:{port}/v1", kind) as c:
                loop = asyncio.get_running_loop()
                start = loop.time()
                with pytest.raises(UpstreamTimeout) as caught:
                    await c.whole(connect_s=0.1)
                took = loop.time() - start
                assert took > 0.09
                assert soon(took, 0.5)
                assert caught.value.phase == "connect"

    run(main())


def test_nobody_waits_for_another_ones_connect() -> None:  # R18
    async def main() -> None:
        with full_backlog() as (host, port):
            async with upstream(answers(ok())) as up, client(f"http://name.test:{up.port}/v1") as c:
                names = Names((V4, host))
                c.pool.connector._host = "name.test"
                stuck = asyncio.create_task(c.whole(connect_s=10.0))
                await until(lambda: names.asked == 1)
                await asyncio.sleep(0.01)
                connector = c.pool.connector
                connector._known = [(V4, "127.0.0.1")]
                assert await asyncio.wait_for(c.whole(), 5.0) == (200, b"{}")
                stuck.cancel()
                await asyncio.gather(stuck, return_exceptions=True)
                assert port

    run(main())


# ------------------------------------------------------------------ names (Q21, S-43)
def test_a_name_that_is_not_known() -> None:
    async def main() -> None:
        for error in (socket.gaierror(-2, "unknown"), UnicodeError("label too long")):
            async with client("http://name.test:1/v1") as c:
                Names().error = error
                with pytest.raises(ConnectFailed):
                    await c.whole()
        async with client("http://name.test:1/v1") as c:
            Names()  # answers nothing
            with pytest.raises(ConnectFailed):
                await c.whole()

    run(main())


def test_one_lookup_serves_all_that_wait_and_the_last_good_answer_lives_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Q21"""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())

    async def main() -> None:
        async with upstream(script) as up, client(f"http://name.test:{up.port}/v1") as c:
            names = Names((V4, "127.0.0.1"))
            assert await asyncio.gather(*(c.whole() for _ in range(50))) == [(200, b"{}")] * 50
            await until(lambda: up.open == 0)
            assert names.asked == 1
            connector = c.pool.connector
            connector._known_at -= connect_module.DNS_FRESH_S + 1
            names.error = OSError("resolver down")
            assert await c.whole() == (200, b"{}")
            await until(lambda: up.open == 0)
            assert names.asked == 2
            names.error, names.hang = None, True
            monkeypatch.setattr(connect_module, "DNS_WAIT_S", 0.05)
            assert await c.whole() == (200, b"{}")
            await until(lambda: up.open == 0)
            assert names.asked == 3
            connector._known_at -= connect_module.DNS_STALE_S
            with pytest.raises(UpstreamTimeout):
                await c.whole(connect_s=0.05)
            assert connector._resolving is not None
        assert connector._resolving is None

    run(main())


def test_addresses_alternate() -> None:
    a, b, c, d = (V6, "::1"), (V6, "::2"), (V4, "1.1.1.1"), (V4, "2.2.2.2")
    assert interleave([a, b, c, d, a]) == [a, c, b, d]
    assert interleave([c]) == [c]


def test_happy_eyeballs(monkeypatch: pytest.MonkeyPatch) -> None:
    """RFC 8305: a dead address costs its refusal, one that hangs 250 ms; the losers are gone."""

    async def main() -> None:
        with full_backlog() as (hangs, _):
            async with upstream(answers(ok())) as up:
                for dead, most in (("::1", 0.1), (hangs, 0.35)):
                    # the hanging address must hang on this port too
                    with socket.socket() as sock:
                        fill = []
                        if dead == hangs:
                            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                            sock.bind((hangs, up.port))
                            sock.listen(0)
                            for _ in range(3):
                                one = socket.socket()
                                one.setblocking(False)
                                one.connect_ex((hangs, up.port))
                                fill.append(one)
                        async with client(f"http://name.test:{up.port}/v1") as c:
                            Names((V6 if ":" in dead else V4, dead), (V4, "127.0.0.1"))
                            loop = asyncio.get_running_loop()
                            start = loop.time()
                            assert await c.whole() == (200, b"{}")
                            assert soon(loop.time() - start, most)
                            assert c.stats["connections_made"] == c.stats["connections_open"] == 1
                        for one in fill:
                            one.close()

    run(main())


def test_both_addresses_win_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second connection is dropped; it holds no place in the pool."""
    monkeypatch.setattr(connect_module, "RACE_DELAY_S", 0.0)

    async def main() -> None:
        async with upstream(answers(ok())) as up, client(f"http://name.test:{up.port}/v1", limit=1) as c:
            Names((V4, "127.0.0.1"), (V4, "127.0.0.2"))
            for _ in range(20):
                assert await c.whole() == (200, b"{}")
                (conn,) = c.pool._idle
                conn.abort()
                await until(lambda: not c.pool._open)
            await until(lambda: up.open == 0)

    run(main())


def test_all_addresses_fail() -> None:
    async def main() -> None:
        async with client(f"http://name.test:{free_port()}/v1") as c:
            Names((V4, "127.0.0.1"), (V4, "127.0.0.2"), (V4, "127.0.0.3"))
            with pytest.raises(ConnectFailed):
                await c.whole()

    run(main())


def test_urls() -> None:
    async def main() -> None:
        async with client("http://[::1]:81/a b/ü?q=1&r=a b") as c:
            post = c.headers[0]
            assert post.startswith(b"POST /a%20b/%C3%BC?q=1&r=a%20b HTTP/1.1\r\nHost: [::1]:81\r\n")
        async with client("https://user:pw@Ex%41mple.test/v1") as c:
            assert b"pw" not in c.headers[0]
        async with client("https://bücher.test/") as c:
            assert b"Host: xn--bcher-kva.test\r\n" in c.headers[0]

    run(main())
