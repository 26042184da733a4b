"""What may come over a connection, well-formed and not, in any cuts: both transports agree, and nothing that is odd is
used again."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest

from slipstream.errors import ConnectFailed, MalformedReply, TransportError
from slipstream.net.connection import BUFFERED_MAX, NativeReply
from slipstream.net.decode import FREE_BYTES, PIECE_BYTES, decoder_for
from tests.aio import run, until
from tests.upstreams import BOTH, CHUNKED, Peer, answers, client, ok, read, upstream

GZIP = b"HTTP/1.1 200 OK\r\nContent-Encoding: %b\r\nContent-Length: %d\r\n\r\n%b"


def encoded(data: bytes, name: bytes = b"gzip") -> bytes:
    return GZIP % (name, len(data), data)


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    ("pieces", "status", "body", "kept"),
    [
        ([ok(b'{"a":1}')], 200, b'{"a":1}', True),
        ([ok(b"")], 200, b"", True),
        ([ok(b"x" * 300_000)], 200, b"x" * 300_000, True),
        ([bytes([c]) for c in ok(b"hello")], 200, b"hello", True),
        ([CHUNKED, b"5\r\nhe", b"llo\r\n", b"0\r\n\r\n"], 200, b"hello", True),
        ([CHUNKED + b"1;a=b\r\nx\r\n0\r\nX-T: 1\r\n\r\n"], 200, b"x", True),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" + b"HTTP/1.1 103 E\r\nLink: x\r\n\r\n" * 5, ok(b"y")], 200, b"y", True),
        ([b"HTTP/1.1 429 No\r\nRetry-After: 2\r\nContent-Length: 2\r\n\r\nno"], 429, b"no", True),
        ([b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno"], 200, b"no", False),
        ([b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nno"], 200, b"no", False),
        ([encoded(gzip.compress(b"packed"))], 200, b"packed", True),
        ([encoded(zlib.compress(b"packed"), b"deflate")], 200, b"packed", True),
        ([encoded(b"", b"gzip")], 200, b"", True),
    ],
)
def test_good_replies(kind: str, pieces: list[bytes], status: int, body: bytes, kept: bool) -> None:
    async def main() -> None:
        async with upstream(answers(*pieces)) as up, client(up.url, kind) as c:
            for _ in range(3):
                assert await c.whole() == (status, body)
            assert len(up.peers) == (1 if kept else 3)
            assert c.stats["connections_made"] == len(up.peers)
            assert c.stats["connections_reused"] == 3 - len(up.peers)

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_header_fields(kind: str) -> None:
    reply = b"HTTP/1.1 503 No\r\nRETRY-After: 7\r\nContent-Length: 0\r\n\r\n"

    async def main() -> None:
        async with upstream(answers(reply)) as up, client(up.url, kind, headers={"X-Own": "1"}) as c:
            got = await c.send(b"body")
            assert (got.status, got.headers.get("retry-after")) == (503, "7")
            assert await read(got) == b""
            got.close()
            got.close()
            assert (await c.get()).status == 503
            (post, body), (get, nothing) = up.seen
            assert post.startswith(b"POST /v1/x HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % up.port)
            assert (b"X-Own: 1\r\n" in post, b"Content-Length: 4\r\n" in post, body) == (True, True, b"body")
            assert get.startswith(b"GET /v1/x HTTP/1.1\r\n")
            assert (b"Content-Length" in get, nothing) == (False, b"")

    run(main())


MALFORMED = [
    b"HELLO\r\n\r\n",
    b"HTTP/1.1 abc\r\n\r\n",
    b"HTTP/1.1 99999\r\n\r\n",
    b'{"a":1}',
    b"\x16\x03\x01\x02\x00",
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX: " + b"a" * 1_000_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 10_000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\nxxx",
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n" * 50,
]


@pytest.mark.parametrize("data", MALFORMED, ids=range(len(MALFORMED)))
def test_garbage_is_refused_and_never_sent_again(data: bytes) -> None:
    """S-16 to S-19, S-22, S-41: also on a connection that served well before."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok())
        await peer.request()
        await peer.send(data)
        await peer.request()

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            assert await c.whole() == (200, b"{}")
            with pytest.raises(MalformedReply):
                await c.whole()
            await until(lambda: up.open == 0)
            assert len(up.seen) == 2
            assert c.stats["replays"] == 0
            assert (await c.whole())[0] == 200
            assert len(up.peers) == 2

    run(main())


@pytest.mark.parametrize("kind", BOTH)
@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500,
        CHUNKED + b"64\r\n" + b"x" * 40,
        CHUNKED + b"5\r\nhello\r\n",
    ],
)
@pytest.mark.parametrize("how", ["fin", "rst"])
def test_a_body_that_is_cut(kind: str, data: bytes, how: str) -> None:
    """S-10 to S-13: what came is delivered, the rest is an error and never a clean end."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(data)
        if how == "rst":
            await until(lambda: peer.server.seen[-1][1] == b"read")
            peer.reset()

    async def main() -> None:
        async with upstream(script) as up, client(up.url, kind) as c:
            reply = await c.send()
            assert reply.status == 200
            first = await reply.chunk()
            assert first[:5] in (b"xxxxx", b"hello")
            up.seen.append((b"", b"read"))
            with pytest.raises(TransportError):
                await read(reply)
            with pytest.raises(TransportError):
                await reply.chunk()
            assert not reply.complete
            reply.close()

    run(main())


@pytest.mark.parametrize("kind", BOTH)
def test_a_body_that_ends_with_the_connection(kind: str) -> None:
    """S-15."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\n", b"some", b"thing")

    async def main() -> None:
        async with upstream(script) as up, client(up.url, kind) as c:
            assert await c.whole() == (200, b"something")
            assert await c.whole() == (200, b"something")
            assert len(up.peers) == 2

    run(main())


def test_a_reset_does_not_end_such_a_body() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await until(lambda: len(peer.server.seen) == 2)
        peer.reset()

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            reply = await c.send()
            assert await reply.chunk() == b"some"
            up.seen.append((b"", b""))
            with pytest.raises(TransportError):
                await reply.chunk()
            reply.close()

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + b"x" * 500,
        b"HTTP/1.1 204 No\r\n\r\nbody",
        ok() + b"HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n",
    ],
)
@pytest.mark.parametrize("later", [False, True])
def test_bytes_nobody_asked_for_poison_the_connection(data: bytes, later: bool) -> None:
    """S-14, S-21."""

    async def script(peer: Peer) -> None:
        await peer.request()
        head = data.index(b"\r\n\r\n") + 4
        cut = head + (0 if b" 204 " in data else 10 if b": 10" in data else 2)
        await peer.send(data[:cut], *([] if later else [data[cut:]]))
        if later:
            await until(lambda: peer.server.seen[-1] == (b"", b""))
            await peer.send(data[cut:])
        assert await peer.request() is None

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            status, body = await c.whole()
            assert (status, body) in ((200, b"x" * 10), (204, b""), (200, b"{}"))
            up.seen.append((b"", b""))
            await until(lambda: up.open == 0)
            await until(lambda: c.stats["connections_open"] == 0)
            await c.whole()
            assert len(up.peers) == 2
            up.seen.append((b"", b""))

    run(main())


# ------------------------------------------------------------------ content codings
BOMB = gzip.compress(bytes(30_000_000))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        *((kind, encoded(b"this is no gzip data at all")) for kind in BOTH),
        ("native", encoded(gzip.compress(b"hello" * 100)[:-12])),  # aiohttp takes it for whole
    ],
)
def test_a_broken_coding(kind: str, data: bytes) -> None:
    """S-24."""

    async def main() -> None:
        async with upstream(answers(data)) as up, client(up.url, kind) as c:
            reply = await c.send()
            assert reply.status == 200
            with pytest.raises((MalformedReply, TransportError)):
                await read(reply)
            reply.close()

    run(main())


@pytest.mark.parametrize(
    "data",
    [
        encoded(b"\x28\xb5\x2f\xfd", b"zstd"),
        encoded(b"hello", b"br"),
        encoded(gzip.compress(gzip.compress(b"x")), b"gzip, gzip"),
        encoded(gzip.compress(b"x") + b"more"),
        encoded(gzip.compress(b"x") + gzip.compress(b"y")),
    ],
)
def test_codings_we_did_not_ask_for(data: bytes) -> None:
    async def main() -> None:
        async with upstream(answers(data)) as up, client(up.url) as c:
            with pytest.raises(MalformedReply):
                await c.whole()
            assert (await c.send()).status == 200

    run(main())


def test_a_bomb_is_refused_early_and_others_go_on() -> None:
    """S-23: at most a hundred times of what came, in pieces, with turns for the others between them."""
    inner = b"".join(b"data: %d %s\n\n" % (i % 10, b"a" * 40) for i in range(100_000))
    inner += bytes(random.Random(1).randbytes(60_000))
    good = gzip.compress(inner)
    assert FREE_BYTES < len(inner) < 100 * len(good)

    async def main() -> None:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async with upstream(answers(encoded(BOMB))) as up, client(up.url) as c:
            reply = await c.send()
            made = 0

            async def measure() -> None:
                nonlocal made
                while part := await reply.chunk():
                    assert len(part) <= PIECE_BYTES
                    made += len(part)

            with pytest.raises(MalformedReply, match="too large"):
                await measure()
            reply.close()
            assert made <= max(FREE_BYTES, 100 * len(BOMB)) + PIECE_BYTES
        async with upstream(answers(encoded(good))) as up, client(up.url) as c:
            reply = await c.send()
            await until(lambda: reply._done)  # type: ignore[attr-defined]
            other = asyncio.create_task(others())
            assert await read(reply) == inner
            assert turns >= len(inner) // PIECE_BYTES
            other.cancel()
            reply.close()

    run(main())


def test_decoders() -> None:
    assert decoder_for(b" identity ") is None
    one = decoder_for(b"X-GZIP")
    assert one is not None
    data = gzip.compress(b"abc" * 1000)
    assert b"".join(one.decode(data[i : i + 1]) for i in range(len(data))) == b"abc" * 1000
    assert not one.pending
    one.finish()


# ------------------------------------------------------------------ back-pressure, early answers
def test_an_upstream_is_paused_while_nobody_reads() -> None:
    """R33."""
    sent = 0

    async def script(peer: Peer) -> None:
        nonlocal sent
        await peer.request()
        peer.writer.transport.set_write_buffer_limits(high=0)
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (64 << 20))
        for _ in range(1024):
            await peer.send(bytes(65_536))
            sent += 65_536

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            reply = await c.send()
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.05)
            assert sent < 32 << 20
            assert reply._size <= BUFFERED_MAX + 256_000  # type: ignore[attr-defined]
            assert len(await read(reply)) == 64 << 20
            reply.close()
            await until(lambda: sent == 64 << 20)
            assert len(c.pool._idle) == 1

    run(main())


class Sink:
    """Takes pieces until ``full`` bytes are there."""

    def __init__(self, full: int = 1 << 30, error: Exception | None = None) -> None:
        self.data = b""
        self.full = full
        self.error = error

    def __call__(self, data: bytes) -> bool:
        self.data += data
        if len(self.data) >= self.full and self.error is not None:
            raise self.error
        return len(self.data) >= self.full


@pytest.mark.parametrize(
    ("last", "error"),
    [(b"0\r\n\r\n", None), (b"1\r\ng\r\n0\r\n\r\n", None), (b"nonsense\r\n", MalformedReply), (b"", TransportError)],
)
def test_a_body_that_is_poured(last: bytes, error: type[Exception] | None) -> None:
    """Pieces go to the sink as they come; how it ended is what ``chunk`` says."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(CHUNKED + b"1\r\na\r\n", *(b"1\r\n%c\r\n" % c for c in b"bcdef"), last)
            if not last:
                return

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            for _ in range(2):
                reply, sink = await c.send(), Sink()
                assert isinstance(reply, NativeReply)
                first = await reply.chunk()
                await reply.pour(sink)
                if error is None:
                    assert await reply.chunk() == b""
                else:
                    with pytest.raises(error):
                        await reply.chunk()
                assert first + sink.data == b"abcdefg"[: 7 if b"g" in last else 6]
                await reply.pour(sink)  # nothing comes any more
                reply.close()
            assert len(up.peers) == (1 if error is None else 2)

    run(main())


@pytest.mark.parametrize("error", [None, KeyError("of the sink")])
def test_a_sink_that_has_had_enough(error: Exception | None) -> None:
    go = asyncio.Event()

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await go.wait()
        await peer.send(b"2\r\nbc\r\n", b"2\r\nde\r\n", b"0\r\n\r\n")
        await peer.request()

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            reply, sink = await c.send(), Sink(2, error)
            assert isinstance(reply, NativeReply)
            assert await reply.chunk() == b"a"
            asyncio.get_running_loop().call_soon(go.set)
            if error is None:
                await reply.pour(sink)
            else:
                with pytest.raises(KeyError):
                    await reply.pour(sink)
            assert sink.data + await read(reply) == b"bcde"  # what the sink did not take is kept
            reply.close()
            assert len(c.pool._idle) == 1

    run(main())


def test_a_task_that_is_cancelled_while_it_pours() -> None:
    """Its sink is called no more, and the connection is closed (R1)."""
    seen: list[bytes] = []

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED + b"1\r\na\r\n")
        await peer.request()

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            reply, sink = await c.send(), Sink()
            assert isinstance(reply, NativeReply)
            conn = reply._conn
            assert conn is not None
            seen.append(await reply.chunk())
            task = asyncio.create_task(reply.pour(sink))
            await until(lambda: conn.pouring is not None)
            task.cancel()
            conn.data_received(b"1\r\nb\r\n")
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (sink.data, conn.pouring) == (b"", None)
            assert await reply.chunk() == b"b"
            reply.close()
            await until(lambda: not up.open)

    run(main())


def test_a_coded_body_is_not_poured() -> None:
    async def main() -> None:
        async with upstream(answers(encoded(gzip.compress(b"packed")))) as up, client(up.url) as c:
            reply, sink = await c.send(), Sink()
            assert isinstance(reply, NativeReply)
            await reply.pour(sink)
            assert (sink.data, await read(reply)) == (b"", b"packed")
            reply.close()

    run(main())


@pytest.mark.parametrize("keep", [False, True])
def test_an_answer_before_the_end_of_the_request(keep: bool) -> None:
    """S-45: it is the answer; the connection, with the rest of the request on it, is dropped."""

    async def script(peer: Peer) -> None:
        await peer.reader.readuntil(b"\r\n\r\n")
        tail = b"" if keep else b"Connection: close\r\n"
        await peer.send(b"HTTP/1.1 413 Too Large\r\n" + tail + b"Content-Length: 2\r\n\r\nno")
        if keep:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(60)

    async def main() -> None:
        async with upstream(script) as up, client(up.url) as c:
            assert await c.whole(bytes(20_000_000)) == (413, b"no")
            await until(lambda: c.stats["connections_open"] == 0)
            assert (len(up.peers), c.stats["replays"]) == (1, 0)

    run(main())


def test_accepted_then_closed() -> None:
    """S-03, S-09: on a fresh connection that is told, not replayed."""

    async def fin(peer: Peer) -> None:
        await peer.reader.read(1)

    async def rst(peer: Peer) -> None:
        await peer.request()
        peer.reset()

    async def at_once(peer: Peer) -> None:
        pass

    async def main() -> None:
        for script in (fin, rst, at_once):
            async with upstream(script) as up, client(up.url) as c:
                with pytest.raises((TransportError, ConnectFailed)):
                    await c.whole()
                assert (len(up.peers), c.stats["replays"]) == (1, 0)

    run(main())
