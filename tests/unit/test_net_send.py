"""Large requests go out in slices (R23); a provider that does not read them: the limit for sending (R17, S-46)."""

from __future__ import annotations

import asyncio
import logging
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from slipstream.errors import TransportError, UpstreamTimeout
from slipstream.net.connection import SLICE_BYTES, Connection
from slipstream.net.pool import Pool
from slipstream.net.soon import Soon
from slipstream.types import FailureClass
from tests.aio import run, until
from tests.upstreams import BOTH, CHUNKED, Peer, client, ok, read, upstream

LARGE = b"x" * 20_000_000
"""More than the sockets of a machine hold."""
LIMIT_S = 0.2

both = pytest.mark.parametrize("kind", BOTH)


async def deaf(peer: Peer) -> None:
    """Reads no more than its buffers hold, for as long as we are there."""
    peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
    await asyncio.sleep(4 * LIMIT_S)


@both
def test_who_reads_nothing_is_left_after_the_limit(kind: str) -> None:
    async def main() -> None:
        async with upstream(deaf) as up, client(up.url, kind, send_s=LIMIT_S) as c:
            began = time.monotonic()
            with pytest.raises(UpstreamTimeout, match="did not read the request in time") as failed:
                await c.send(LARGE)
            assert LIMIT_S - 0.05 <= time.monotonic() - began <= LIMIT_S + 0.2
            error = failed.value
            assert (error.phase, error.code, error.status) == ("send", "upstream_send_timeout", 504)
            assert (error.failure, error.lasts) == (FailureClass.TIMEOUT, True)
            assert c.stats["replays"] == 0, "it may have read most of it"

    run(main())


@both
def test_a_slow_reader_has_the_time_it_needs(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is the standstill that has a limit, not the sending. The transport's calls for a pause are heard."""

    async def slow(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        left = len(LARGE)
        while left:
            left -= len(await peer.reader.read(min(left, 65536)))
            await asyncio.sleep(0.002)
        await peer.send(ok())

    async def main() -> None:
        async with upstream(slow) as up, client(up.url, kind, send_s=LIMIT_S) as c:
            began = time.monotonic()
            assert await c.whole(LARGE) == (200, b"{}")
            assert time.monotonic() - began > 2 * LIMIT_S

    with caplog.at_level(logging.WARNING):
        run(main())
    assert caplog.records == []


@both
@pytest.mark.parametrize("size", [2, 30_000])
def test_a_request_that_was_written_at_once_has_nothing_to_wait_for(kind: str, size: int) -> None:
    """Whether it was read, only the answer shows: that is the first byte's limit."""

    async def main() -> None:
        async with upstream(deaf) as up, client(up.url, kind, send_s=LIMIT_S) as c:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(c.send(b"x" * size), 2 * LIMIT_S)
            await until(lambda: up.open == 0)

    run(main())


def test_an_answer_before_the_end_of_the_request_ends_the_watch() -> None:
    """S-45: what is unsent then is nobody's trouble any more, and the answer has limits of its own."""

    async def early(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(CHUNKED)
        await asyncio.sleep(2 * LIMIT_S)
        await peer.send(b"2\r\nok\r\n0\r\n\r\n")

    async def main() -> None:
        async with upstream(early) as up, client(up.url, send_s=LIMIT_S) as c:
            reply = await c.send(LARGE)
            assert await read(reply) == b"ok"
            reply.close()
            await until(lambda: up.open == 0)

    run(main())


def test_nobody_is_blamed_for_our_own_pause() -> None:
    """S-90: when the loop stands still for longer than the limit, the provider is heard first."""

    async def late(peer: Peer) -> None:
        peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.sleep(LIMIT_S / 4)
        time.sleep(2 * LIMIT_S)
        peer.reader._transport.resume_reading()  # type: ignore[attr-defined]
        await peer.request()
        await peer.send(ok())

    async def main() -> None:
        async with upstream(late) as up, client(up.url, send_s=LIMIT_S) as c:
            assert await c.whole(LARGE) == (200, b"{}")

    run(main())


class Taking:
    """A transport that takes what it is given, and asks for a pause while it is ``full``."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []
        self.closing = False
        self.full = False
        loop = asyncio.get_running_loop()
        pool = SimpleNamespace(loop=loop, slices=Soon(loop, 1), send_s=5.0, closed=lambda connection: None)
        self.connection = Connection(cast(Pool, pool))
        self.connection.connection_made(cast(asyncio.Transport, self))

    def get_extra_info(self, name: str) -> Any:
        return None

    def get_write_buffer_size(self) -> int:
        return int(self.full)

    def is_closing(self) -> bool:
        return self.closing

    def writelines(self, pieces: tuple[bytes, bytes]) -> None:
        self.write(b"".join(pieces))

    def write(self, data: bytes) -> None:
        self.taken.append(bytes(data))
        if self.full:
            self.connection.pause_writing()


HEAD = b"head"


@pytest.mark.parametrize("size", [SLICE_BYTES, SLICE_BYTES + 1, 5 * SLICE_BYTES, 5 * SLICE_BYTES + 9])
def test_a_slice_in_each_turn(size: int) -> None:
    """R23: no turn of the loop gives a transport more of one request, and all of it goes out."""
    body = bytes(range(251)) * (size // 251 + 1)
    body = body[:size]

    async def main() -> None:
        transport = Taking()
        answer = transport.connection.send(HEAD, body)
        for turns in range(8):
            assert len(b"".join(transport.taken)) == len(HEAD) + min(size, (turns + 1) * SLICE_BYTES)
            await asyncio.sleep(0)
        assert b"".join(transport.taken) == HEAD + body
        answer.cancel()

    run(main())


def test_no_slice_while_the_last_one_waits() -> None:
    async def main() -> None:
        transport = Taking()
        transport.full = True
        answer = transport.connection.send(HEAD, bytes(4 * SLICE_BYTES))
        for given in (1, 2, 3):
            for _ in range(3):
                await asyncio.sleep(0)
                assert len(transport.taken) == given
            transport.connection.resume_writing()
            await asyncio.sleep(0)
        assert len(transport.taken) == 4
        answer.cancel()

    run(main())


@pytest.mark.parametrize("end", ["closing", "lost"])
def test_nothing_is_written_to_a_connection_that_has_ended(end: str) -> None:
    async def main() -> None:
        transport = Taking()
        answer = transport.connection.send(HEAD, bytes(3 * SLICE_BYTES))
        if end == "closing":
            transport.closing = True
            answer.cancel()
        else:
            transport.connection.connection_lost(None)
            with pytest.raises(TransportError):
                await answer
        for _ in range(3):
            await asyncio.sleep(0)
        assert len(transport.taken) == 1

    run(main())
