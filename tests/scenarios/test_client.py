"""S-51 to S-83: everything a client can do to a gateway (the fault scenarios of the design, second table).

Both listeners play each row; the transport behind them changes with the listener and matters to none of these rows.
Times that the design counts in tens of seconds are shrunk through ``ListenerLimits`` (``listener_limits``). Beside
bytes of its own, a row fires the shared hostile corpus of its kind at the hottest path, without a key: what gets in is
told 401, and no provider may hear of any of it.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import gzip
import importlib.util
import json
import resource
import socket
import statistics
import struct
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from slipstream._fast import COMPILED
from slipstream.engine import runtime
from slipstream.obs.families import AUTH_FAILURES
from slipstream.resilience.backoff import Backoff, RetryPolicy
from slipstream.server import limits as limits_module
from slipstream.server import listener as listener_module
from slipstream.server import process, surplus
from slipstream.server.limits import ListenerLimits
from tests.aio import DEADLINE_S, RawClient, until
from tests.harness import CHAT, SHARED, USER, config, served
from tests.hotpath import native_connections
from tests.pace import soon
from tests.scenarios.matrix import CLIENT_CANARY, Row, Stage, patient, scenario
from tests.scenarios.talk import (
    CHUNKED,
    LAST,
    MESSAGES,
    chat,
    chunk,
    chunked,
    good,
    http,
    problem,
    reply,
    says,
    silent,
    words,
)  # fmt: skip
from tests.upstreams import Peer, Script, Up, ok, upstream

HOSTILE = SHARED / "hostile"
KEY = "master-key-0123456789"
"""What the gateway's clients must know, where a row is about that; it is in no output either."""
MB = 1 << 20
FORMS = (False, True)
TICK_S = 0.02
GONE_S = 0.1
"""R1: a provider is let go so soon after its client."""


# ------------------------------------------------------------------ the stage of these rows
@contextmanager
def listener_limits(**limits: Any) -> Iterator[None]:
    """Other limits for the listeners that are started meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(process, "ListenerLimits", functools.partial(ListenerLimits, **limits))
        yield


def server(**more: Any) -> dict[str, Any]:
    """The ``server`` part of a configuration, for ``Row.stage``."""
    return {"host": "127.0.0.1", "port": 0, "access_log": True, **more}


def hot(body: bytes = b"", *fields: str, version: str = "1.1", key: str = CLIENT_CANARY, path: str = CHAT) -> bytes:
    """A request for a hot route, ``Content-Length`` included."""
    lines = [f"POST {path} HTTP/{version}", "Host: a", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", f"Authorization: Bearer {key}", *fields]
    return "\r\n".join([*lines, "", ""]).encode() + body


def head_of(*fields: str, key: str = CLIENT_CANARY) -> bytes:
    """The head of a hot request whose framing is in ``fields``."""
    lines = [f"POST {CHAT} HTTP/1.1", "Host: a", "Content-Type: application/json", f"Authorization: Bearer {key}"]
    return "\r\n".join([*lines, *fields, "", ""]).encode()


def statuses(received: bytes) -> list[int]:
    """The status of each answer."""
    return [int(part[2:5]) for part in received.split(b"HTTP/1.")[1:]]


class Seen:
    """What came over a connection until its end, and when that was."""

    def __init__(self, received: bytes, took_s: float, ended: bool) -> None:
        self.received = received
        self.took_s = took_s
        self.ended = ended

    @property
    def statuses(self) -> list[int]:
        return statuses(self.received)


async def say(s: Stage, *pieces: bytes, pause_s: float = 0.0, quiet_s: float = 0.0) -> Seen:
    """Send the pieces, read until the gateway closes (or, with ``quiet_s``, has been quiet for so long after an
    answer)."""
    client = await RawClient.connect(s.running.port)
    start = time.monotonic()
    try:
        for piece in pieces:
            client.writer.write(piece)
            with suppress(ConnectionError):
                await client.writer.drain()
            await asyncio.sleep(pause_s)
        ended = await _read(client, quiet_s)
        took = time.monotonic() - start
    finally:
        client.writer.transport.abort()
    s.outputs.append(client.received)
    return Seen(client.received, took - (0 if ended else quiet_s), ended)


async def _read(client: RawClient, quiet_s: float) -> bool:
    if not quiet_s:
        await client.read_to_end()
        return True
    while True:
        try:
            wait_s = quiet_s if client.received else DEADLINE_S
            data = await asyncio.wait_for(client.reader.read(65_536), wait_s)
        except TimeoutError:
            return False
        except ConnectionResetError:
            return True
        if not data:
            return True
        client.received += data


async def refused(s: Stage, row: Row, data: bytes, status: int | tuple[int, ...], most: float = 0.02) -> Seen:
    """One answer, soon, then the end of the connection; nothing of it at the provider."""
    before = s.called("a")
    seen = await say(s, data)
    wanted = (status,) if isinstance(status, int) else status
    assert len(seen.statuses) == 1, (data[:200], seen.received[:300])
    assert seen.statuses[0] in wanted, (data[:200], seen.received[:300])
    assert s.called("a") == before
    row.took(seen.took_s, most)
    return seen


async def bad_requests(s: Stage, row: Row) -> dict[str, float]:
    """Malformed requests by status."""
    found = {labels["status"]: n for labels, n in (await s.scrape()).rows("slipstream_bad_requests_total") if n}
    row.note(*(f"bad_requests{{{status}}}" for status in found))
    return found


async def told(s: Stage) -> None:
    """Take the number of counted requests as it is: how many of a corpus are requests is not known before."""
    s.asked = int((await s.scrape()).total("llm_proxy_requests_total"))


async def fine(s: Stage) -> None:
    """The gateway serves as ever."""
    (await s.ask()).good()


# ------------------------------------------------------------------ the corpus
def _fire() -> Any:
    spec = importlib.util.spec_from_file_location("fire", HOSTILE / "fire.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def corpus(kind: str, *starts: str) -> list[dict[str, Any]]:
    """The cases whose names begin so; none where the corpus is not to be had."""
    if not (HOSTILE / "fire.py").is_file():
        return []
    cases = [case for case in _fire().load(kind, "dev") if case["name"].startswith(starts)]
    assert cases, starts
    return cases


NEVER = {"smuggled", "desync", "garbage", "switched", "crash", "hung"}


async def fire(s: Stage, row: Row, *starts: str, most: float = 0.02) -> None:
    """Raw HTTP of the corpus at the hot path, without a key (``s`` must ask for one)."""
    cases = corpus("http", *starts)
    if not cases:
        return
    tool = _fire()

    def one(case: dict[str, Any]) -> tuple[dict[str, Any], str, bool, dict[str, Any]]:
        data = Path(case["_dir"], case["file"]).read_bytes()
        case["_closing"] = b"connection: close" in data.lower() or b"HTTP/1.0" in data
        got = tool.exchange("127.0.0.1", s.running.port, data.replace(b"/hostile ", CHAT.encode() + b" "), 0.5, case)
        return case, *tool.judge(case, got)[:2], got

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(4) as pool:
        results = await asyncio.gather(*(loop.run_in_executor(pool, one, case) for case in cases))
    for case, outcome, _, got in results:
        assert outcome not in NEVER or (outcome == "hung" and case["incomplete"]), (case["name"], outcome, got)
        s.outputs.append(got["snippet"].encode())
        if got["statuses"] and not case["incomplete"] and case["name"] not in SLOW:
            row.took(got["ms"] / 1000, most)
    total, lost = Counter[str](), Counter[str]()
    for case, _, passed, _ in results:
        total[case["level"]] += 1
        lost[case["level"]] += not passed
    failed = [(case["name"], outcome, got["statuses"]) for case, outcome, passed, got in results if not passed]
    assert lost["MUST"] == 0, failed
    assert sum(lost.values()) <= 0.02 * sum(total.values()), failed
    assert s.called("a") == 0, "no provider hears of any of it"
    await told(s)


SLOW = {"own-hdr-block-1m", "own-ch-tiny-20000", "own-ch-trailer-20000", "own-pc-header-no-end-1m"}
"""Large ones, which take the time that it takes to send them beside others; each has a row or a bound of its own."""


async def post_corpus(s: Stage, *starts: str) -> list[tuple[dict[str, Any], Any, bytes | None]]:
    """Chat bodies of the corpus: each is judged as the corpus says; case, answer and what the provider got."""
    found = []
    for case in corpus("json", *starts):
        body = Path(case["_dir"], case["file"]).read_bytes()
        if not body:
            continue  # Stage.ask would send one; S-60 has it
        before = s.called("a")
        got = await s.ask(body=body)
        status = got.status
        expected = {"accept": status == 200, "reject": 400 <= status < 500, "either": status < 500}[case["expect"]]
        assert expected, (case["name"], case["expect"], status, got.body[:300])
        if status != 200:
            got.failed(status)
            assert s.called("a") == before
        found.append((case, got, s.ups["a"].seen[-1][1] if s.called("a") > before else None))
    return found


# ------------------------------------------------------------------ slow clients
@scenario("S-51", "slow headers")
async def test_s51(row: Row) -> None:
    limit = 0.5
    with listener_limits(header_timeout_s=limit):
        async with row.stage(good, server=server()) as s:
            waits = []

            async def drip(start: bytes) -> None:
                client = await RawClient.connect(s.running.port)
                begin = time.monotonic()
                client.writer.write(start)
                while await client.is_silent(TICK_S):
                    client.writer.write(b"a")
                assert await client.read_to_end() == "fin"
                row.took(time.monotonic() - begin, limit, limit)
                assert statuses(client.received) == [408]
                client.writer.transport.abort()

            async def others() -> None:
                end = time.monotonic() + limit
                while time.monotonic() < end:
                    got = await s.ask()
                    got.good()
                    waits.append(got.took_s)

            starts = [b"", hot(chat())[:60], b"GET /health HTTP/1.1\r\nHost: a\r\nX-A: "]
            await asyncio.gather(others(), *(drip(starts[i % 3]) for i in range(60)))
            assert soon(statistics.median(waits), 0.1), "others are served meanwhile"
            assert await bad_requests(s, row) == {"408": 60}


@scenario("S-52", "slow body")
async def test_s52(row: Row) -> None:
    limit = 0.4
    with pytest.MonkeyPatch.context() as patch, listener_limits(body_idle_s=limit):
        patch.setattr(limits_module, "BODY_RATE_AFTER_S", 2 * limit)
        async with row.stage(good, server=server()) as s:
            size, te = head_of("Content-Length: 10000"), head_of("Transfer-Encoding: chunked")

            async def stops(start: bytes) -> None:
                seen = await say(s, start)
                assert seen.statuses == [408], seen.received
                row.took(seen.took_s, limit, limit)

            async def trickles() -> None:
                client = await RawClient.connect(s.running.port)
                begin = time.monotonic()
                client.writer.write(size)
                while await client.is_silent(TICK_S):
                    client.writer.write(b" ")
                assert await client.read_to_end() == "fin"
                assert statuses(client.received) == [408]
                row.took(time.monotonic() - begin, 2 * limit, 2 * limit)
                client.writer.transport.abort()

            await asyncio.gather(stops(size + b"{"), stops(te + b"5\r\n{"), trickles(), trickles())
            assert await bad_requests(s, row) == {"408": 4}
            assert s.called("a") == 0
            s.asked = 4


async def torrent(peer: Peer) -> None:
    """Events for ever, as fast as they are taken."""
    await peer.request()
    peer.writer.transport.set_write_buffer_limits(high=0)
    data = b"".join(map(chunk, words(200)))
    await peer.send(CHUNKED)
    while True:
        await peer.send(data)
        peer.server.__dict__["sent"] = sent(peer.server) + len(data)


def sent(up: Up) -> int:
    return int(up.__dict__.get("sent", 0))


async def standstill(up: Up) -> int:
    """Wait until the stream no longer moves; the bytes that went."""
    before = -1
    while before != sent(up) or not before:
        before = sent(up)
        await asyncio.sleep(0.1)
    return before


@contextmanager
def connections() -> Iterator[list[Any]]:
    """The connections of the listener in use, as they open."""
    with pytest.MonkeyPatch.context() as patch:
        made: list[Any] = native_connections(patch)
        opened = listener_module.Listener.opened

        def note(self: Any, connection: Any) -> None:
            made.append(connection)
            opened(self, connection)

        patch.setattr(listener_module.Listener, "opened", note)
        yield made


async def slow_reader(row: Row, limit: float | None) -> None:
    with connections() as made:
        async with row.stage({"script": torrent, "timeout": {"idle_s": 30.0, "total_s": 60.0}}) as s:
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(sock, ("127.0.0.1", s.running.port))
            await loop.sock_sendall(sock, hot(chat(True)))
            s.asked = 1
            begin = time.monotonic()
            await until(lambda: bool(made) and made[0].transport.get_write_buffer_size() > 0)
            await standstill(s.ups["a"])
            assert made[0].transport.get_write_buffer_size() <= 384 * 1024, "the provider waits, not the memory"
            try:
                if limit is not None:
                    await until(lambda: s.ups["a"].open == 0)
                    row.took(time.monotonic() - begin, limit + 1.0, limit)
                    await s.counts(0, a="client_gone")
                    row.note("client_disconnects")
            finally:
                sock.close()


@scenario("S-53", "slow reader: the upstream waits")
async def test_s53(row: Row) -> None:
    await slow_reader(row, None)


@scenario("S-53", "slow reader: dropped at the limit")
async def test_s53_dropped(row: Row) -> None:
    with listener_limits(header_timeout_s=0.8, slow_reader_s=0.5):
        await slow_reader(row, 0.5)


@scenario("S-53", "slow reader of pages: dropped at the limit")
async def test_s53_pages(row: Row) -> None:
    limit = 0.3
    with listener_limits(slow_reader_s=limit), connections() as made:
        async with row.stage(good) as s:
            client = await RawClient.connect(s.running.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            client.writer.write(b"GET /openapi.json HTTP/1.1\r\nHost: a\r\n\r\n" * 2000)
            begin = time.monotonic()
            try:
                await until(lambda: made[-1].transport is not None and made[-1].transport.get_write_buffer_size() > 0)
                await until(lambda: made[-1].transport is None)
                row.took(time.monotonic() - begin, limit + 1.0, limit)
            finally:
                client.writer.transport.abort()


@scenario("S-53", "slow reader of a last answer: dropped at the limit")
async def test_s53_last(row: Row) -> None:
    """With the answer waited for, and with all of it left to the socket, which is closed behind it."""

    async def large(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(ok(reply("x" * (16 * MB))))

    limit = 0.3
    for high in (64 * 1024, 1 << 30):
        with listener_limits(slow_reader_s=limit, header_timeout_s=0.8), connections() as made:
            async with row.stage(patient(large)) as s:
                client = await RawClient.connect(s.running.port)
                client.writer.transport.pause_reading()  # type: ignore[attr-defined]
                await until(lambda: bool(made))
                transport = made[0].transport
                transport.set_write_buffer_limits(high=high)
                client.writer.write(hot(chat(), "Connection: close"))
                s.asked = 1
                await until(lambda: transport.get_write_buffer_size() > 0)  # noqa: B023
                begin = time.monotonic()
                await until(lambda: made[0].transport is None)
                row.took(time.monotonic() - begin, limit, 0.0)
                client.writer.transport.resume_reading()  # type: ignore[attr-defined]
                await client.read_to_end()
                assert len(client.received) < 16 * MB
                client.writer.transport.abort()


@scenario("S-54", "silent connection")
async def test_s54(row: Row) -> None:
    limit, many = 0.4, 400
    with listener_limits(header_timeout_s=limit):
        async with row.stage(good) as s:
            begin = time.monotonic()
            clients = await asyncio.gather(*(RawClient.connect(s.running.port) for _ in range(many)))
            ends = await asyncio.gather(*(client.read_to_end() for client in clients))
            row.took(time.monotonic() - begin, limit, limit)
            assert set(ends) <= {"fin", "rst"}
            assert not any(client.received for client in clients), "closed without a word"
            for client in clients:
                client.writer.transport.abort()
            assert row.lines == [], "and without a log line"
            assert await bad_requests(s, row) == {}
            await fine(s)


# ------------------------------------------------------------------ clients that leave
def leave(client: RawClient, how: str) -> None:
    if how == "rst":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
    elif how == "half":
        client.writer.write_eof()
    else:
        client.writer.close()


async def leaves(row: Row, script: Script, stream: bool, how: str, mark: bytes = b"", path: str = CHAT) -> None:
    """One client leaves; its provider hears of it at once, and it is counted as what it is."""
    async with row.stage(patient(script)) as s:
        client = await RawClient.connect(s.running.port)
        client.writer.write(hot(chat(stream, path), path=path))
        s.asked = 1
        await until(lambda: s.called("a") == 1)
        if mark:
            await client.read_until(mark)
        leave(client, how)
        row.took(await until(lambda: s.ups["a"].open == 0), GONE_S)
        if how == "half":
            before = client.received
            await client.read_to_end()
            assert client.received == before
        client.writer.transport.abort()
        await until(lambda: s.running.runtime.in_flight == 0)
        await s.counts(0, a="client_gone")
        seen = await s.scrape()
        ((labels, _),) = seen.rows("llm_proxy_requests_total")
        assert labels["status_code"] == "499"
        assert seen.total("slipstream_client_disconnects_total") == 1
        sources = {labels["usage_source"]: n for labels, n in seen.rows("slipstream_usage_source_total")}
        assert sources == {"estimated": 1}, "what was used so far"
        assert (seen.total("llm_proxy_tokens_total", token_type="completion") > 0) == bool(mark)
        assert s.rest_s("a") == 0, "it is not the provider's fault"
        assert all('"level":"error"' not in line for line in s.lines), s.lines
    row.note("client_disconnects", "usage_source{estimated}")


FLOWS = says(*chunked(*words(3)), then="hang")
CASES = [(silent, stream, how, b"", path) for stream in FORMS for how in ("fin", "rst") for path in (CHAT, MESSAGES)]


@scenario("S-55", "gone before the first byte")
async def test_s55(row: Row) -> None:
    await asyncio.gather(*(leaves(row.part(), *case) for case in CASES))
    row.note("attempts{client_gone}")


@scenario("S-56", "gone in the stream")
async def test_s56(row: Row) -> None:
    for how in ("rst", "fin"):
        for path in (CHAT, MESSAGES):
            await leaves(row, FLOWS, True, how, b"w2", path)
    await leaves(row, torrent, True, "rst", b"w2")


@scenario("S-57", "half-close")
async def test_s57(row: Row) -> None:
    async def both() -> None:
        await leaves(row, silent, False, "half")
        await leaves(row, silent, True, "half")
        await leaves(row, FLOWS, True, "half", b"w2")

    await both()
    await asyncio.to_thread(lambda: asyncio.run(both()))  # the same without uvloop


# ------------------------------------------------------------------ too many, too large
@scenario("S-58", "pipelining")
async def test_s58(row: Row) -> None:
    busy = [0, 0]

    async def slow_echo(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            busy[0] += 1
            busy[1] = max(busy)
            await asyncio.sleep(0.001)
            busy[0] -= 1
            await peer.send(ok(reply(json.loads(request[1])["messages"][0]["content"])))

    async with row.stage(slow_echo) as s:
        count = 100
        data = b"".join(hot(chat(content=f"n{i}")) for i in range(count))
        client = await RawClient.connect(s.running.port)
        client.writer.write(data + hot(chat(content="last"), "Connection: close") + hot(chat(content="never")))
        await client.read_to_end()
        client.writer.transport.abort()
        assert statuses(client.received) == [200] * (count + 1), "none behind Connection: close"
        order = [part.split(b'"')[0] for part in client.received.replace(b": ", b":").split(b'"content":"')[1:]]
        assert order == [*(b"n%d" % i for i in range(count)), b"last"]
        assert busy[1] == 1, "one at a time"
        s.asked = count + 1
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        await fire(s, row, "own-pipe", most=0.5)


@scenario("S-59", "huge body")
async def test_s59(row: Row) -> None:
    async with row.stage(good, server=server(max_body_bytes=32 * MB)) as s:
        for length in (33 * MB, 1 << 40, (1 << 63) - 1):
            await refused(s, row, head_of(f"Content-Length: {length}"), 413, 0.05)
        await refused(s, row, head_of(f"Content-Length: {1 << 63}"), (400, 413), 0.05)
        await refused(s, row, head_of("Transfer-Encoding: chunked") + b"%x\r\n" % (33 * MB), 413, 0.05)
        counted = sum((await bad_requests(s, row)).values())
        assert counted == 5
        client = await RawClient.connect(s.running.port)
        client.writer.write(head_of("Transfer-Encoding: chunked"))
        piece, given = chunk(b" " * (256 * 1024)), 0
        while given < 33 * MB and not client.received:
            client.writer.write(piece)
            given += 256 * 1024
            with suppress(ConnectionError):
                await client.writer.drain()
            await asyncio.sleep(0)
        assert given > 31 * MB
        await client.read_to_end()
        assert statuses(client.received) == [413]
        s.outputs.append(client.received)
        client.writer.transport.abort()
        assert s.called("a") == 0
        await told(s)
        await fine(s)


# ------------------------------------------------------------------ bad JSON
BAD_JSON = (
    b" ",
    b"{",
    b"nul",
    b"[]",
    b"\xff\xfe{\0}\0",
    b'{"model": "m", "messages": [],}',
    b"{'model': 'm'}",
    b"{}{}",
)


@scenario("S-60", "bad JSON")
async def test_s60(row: Row) -> None:
    async with row.stage(good) as s:
        for body in BAD_JSON:
            got = await s.ask(body=body)
            got.failed(400)
            row.took(got.took_s, 0.02)
        assert (await say(s, hot(b"", "Connection: close"))).statuses == [400]
        s.asked += 1
        long = b'{"model": "m", "messages": [{"role": "user", "content": "' + b"Zq" * (MB // 2)
        for body in (long, long + b'"}', b"[" + long):
            got = await s.ask(body=body)
            error = got.failed(400)
            row.took(got.took_s, 0.1)
            assert "Zq" * 51 not in error["message"], "at most 100 bytes of it are told"
            assert len(got.body) < 1000
        for path in (MESSAGES, "/v1/responses", "/v1/embeddings"):
            assert (await s.ask(path=path, body=b"{,}")).status == 400
        await post_corpus(s, "chat-bad-", "chat-enc-")
        row.note("requests_total{400}")
        assert not [line for line in s.lines if "Zq" in line]


@scenario("S-60", "a bad request in the place of a breaker's probe")
async def test_s60_probe(row: Row) -> None:
    """What a client did wrong says nothing about the provider, and must not keep others from it."""
    for fields in ({"messages": [{"role": "user", "content": 7}]}, {"max_tokens": None}):
        async with row.stage(good) as s:
            runtime, target = s.running.runtime, s.target("a")
            breakers = runtime.active.breakers
            breakers.open_by_hand(target, runtime.clock(), 0.02)
            await until(lambda: breakers.remaining_s(target, runtime.clock()) == 0)  # noqa: B023
            body = json.dumps(json.loads(chat(path=MESSAGES)) | fields).encode()
            (await s.ask(path=MESSAGES, body=body)).failed(400)
            got = await s.ask(path=MESSAGES)
            got.good()
            row.took(got.took_s, 0.05)


@scenario("S-61", "deep JSON, long digits")
async def test_s61(row: Row) -> None:
    start = b'{"model": "m", "messages": [{"role": "user", "content": "a"}], "metadata": '
    async with row.stage(good) as s:
        for inner in (b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 50_000 + b"1" + b"}" * 50_000, b"[" * 100_000):
            got = await s.ask(body=start + inner + b"}")
            got.failed(400)
            row.took(got.took_s, 0.1)
        for digits in (b"1" * 5000, b"-" + b"9" * 100_000, b"1e" + b"9" * 5000, b"0." + b"1" * 5000):
            for name in (b"metadata", b"seed", b"max_tokens", b"temperature"):
                got = await s.ask(body=start.replace(b"metadata", name) + digits + b"}")
                assert got.status in (200, 400), got.body[:300]
                row.took(got.took_s, 0.1)
        await post_corpus(s, "chat-deep-", "chat-int-", "chat-float-", "chat-exp-")


@scenario("S-61", "numbers beyond a double, translated")
async def test_s61_translated(row: Row) -> None:
    cases = (("anthropic", CHAT), ("gemini", CHAT), ("openai", MESSAGES))
    for kind, path in cases:
        async with row.stage({"script": good, "type": kind, "models": ["m"]}) as s:
            for number in (b"1e400", b"-1e400", b"1" * 310, b"-" + b"9" * 5000):
                got = await s.ask(path=path, body=chat(path=path)[:-1] + b', "seed": ' + number + b"}")
                got.failed(400)
                row.took(got.took_s, 0.1)
            assert s.called("a") == 0


DIALECTS = ("openai", "anthropic", "gemini", "ollama", "azure", "cohere")
ENDPOINTS = {CHAT: "messages", MESSAGES: "messages", "/v1/responses": "input", "/v1/completions": "prompt"}


@scenario("S-61", "nesting that one dialect has and another may not")
async def test_s61_nested(row: Row) -> None:
    for kind in DIALECTS:
        async with row.stage({"script": good, "type": kind, "models": []}) as s:
            for depth in (100, 252, 260, 1000, 20_000):
                inner = b'{"a":' * depth + b"1" + b"}" * depth
                for path in (CHAT, MESSAGES):
                    tool = b'{"type": "function", "function": {"name": "a", "parameters": %b}}'
                    tool = tool if path == CHAT else b'{"name": "a", "input_schema": %b}'
                    got = await s.ask(path=path, body=chat(path=path)[:-1] + b', "tools": [' + tool % inner + b"]}")
                    assert got.status in (200, 400, 502), (kind, depth, got.body[:300])
                    assert got.status != 502 or s.called("a"), "only the provider's answer, which is another dialect's"
                    row.took(got.took_s, 0.1)
            await told(s)


@scenario("S-62", "duplicate keys")
async def test_s62(row: Row) -> None:
    def models(body: bytes) -> list[str]:
        pairs: list[list[tuple[str, Any]]] = []
        json.loads(body, object_pairs_hook=lambda found: pairs.append(found) or dict(found))
        return [value for name, value in pairs[-1] if name == "model"]

    keys = (b'"model"', b'"mod\\u0065l"', b'"\\u006dodel"')
    async with row.stage({"script": good, "models": ["m", "allowed"]}) as s:
        for first in (b"m", b"forbidden"):
            second = b"m" if first == b"forbidden" else b"forbidden"
            for key in keys:
                for pad in (b"", b'"user": "' + b"x" * 100_000 + b'", '):
                    body = b'{"model": "%b", "messages": [{"role": "user", "content": "a"}], %b%b: "%b"}'
                    before = s.called("a")
                    got = await s.ask(body=body % (first, pad, key, second))
                    assert got.status in (200, 400, 404), got.body
                    if got.status == 200:
                        assert models(s.ups["a"].seen[-1][1]) == ["m"], "one key, the authorised one"
                    else:
                        assert s.called("a") == before
        for _, _, there in await post_corpus(s, "chat-dup-"):
            assert there is None or len(models(there)) == 1
        assert all(set(models(body)) <= {"m", "allowed"} for _, body in s.ups["a"].seen)


# ------------------------------------------------------------------ bad HTTP
async def malformed(row: Row, cases: list[tuple[bytes, int | tuple[int, ...]]], *starts: str) -> None:
    """Each is refused with the connection, and the corpus of this kind too; the log says so without the bytes."""
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        for data, status in cases:
            seen = await refused(s, row, data + hot(chat(), key=KEY), status)
            assert b"smuggled" not in seen.received
        found = await bad_requests(s, row)
        assert sum(found.values()) == len(cases), found
        lines = [json.loads(line) for line in s.lines]
        bad = [line for line in lines if line["msg"] == "malformed request"]
        assert 0 < len(bad) <= len(cases)
        assert all(set(line) == {"ts", "level", "logger", "msg", "status", "reason", "peer"} for line in bad)
        await told(s)
        assert s.asked <= len(cases)
        if starts:
            await fire(s, row, *starts)
        await asyncio.sleep(0)
        assert not [line for line in s.lines if "smuggled" in line or "hostile" in line or KEY in line]
        got = await s.ask(headers={"Authorization": f"Bearer {KEY}"})
        got.good()


INNER = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@scenario("S-63", "bad Content-Length")
async def test_s63(row: Row) -> None:
    values = ["-1", "+5", "5,6", "5 5", "0x5", "5.0", "", "five", "1" * 30, '"5"', "５".encode().decode("latin-1")]
    cases: list[tuple[bytes, int | tuple[int, ...]]] = [
        (
            head_of("Content-Length:" + (" " + v if v else ""), key=KEY).replace(v.encode(), v.encode("latin-1")),
            (400, 413),
        )
        for v in values
    ]
    cases.append((head_of("Content-Length: 5", "Content-Length: 6", key=KEY) + b"hello" + INNER, 400))
    cases.append((head_of("Content-Length : 5", key=KEY) + b"hello" + INNER, 400))
    await malformed(row, cases, "own-cl")


@scenario("S-64", "Content-Length and Transfer-Encoding")
async def test_s64(row: Row) -> None:
    te = [
        "chunked, identity",
        "identity",
        "xchunked",
        "chunked, chunked",
        "gzip, chunked",
        "\x0bchunked",
        "chunked;a=b",
        "",
    ]
    cases: list[tuple[bytes, int | tuple[int, ...]]] = [
        (head_of(f"Transfer-Encoding: {value}", key=KEY) + LAST + INNER, (400, 501)) for value in te
    ]
    for fields in (
        ("Content-Length: 5", "Transfer-Encoding: chunked"),
        ("Transfer-Encoding: chunked", "Content-Length: 0"),
    ):
        cases.append((head_of(*fields, key=KEY) + LAST + INNER, 400))
    cases.append((head_of("Transfer-Encoding : chunked", "Content-Length: 5", key=KEY) + LAST + INNER, 400))
    await malformed(row, cases, "own-te", "sm-", "ps-")


@scenario("S-65", "bad chunks")
async def test_s65(row: Row) -> None:
    bodies = (
        b"zz\r\n", b"-1\r\n", b"0x5\r\nhello\r\n", b"5 \r\nhello\r\n", b"5\nhello\r\n", b"5\r\nhelloXX", b"\r\n",
        b"5;a\nb\r\nhello\r\n", b"5\r\nhello\r\n0\r\nno colon\r\n\r\n", b"0\r\nContent-Length: 5\r\n\r\n",
    )  # fmt: skip
    start = head_of("Transfer-Encoding: chunked", key=KEY)
    cases: list[tuple[bytes, int | tuple[int, ...]]] = [(start + body + INNER, 400) for body in bodies]
    cases.append((start + b"fffffffffffffffff\r\n", (400, 413)))
    await malformed(row, cases, "own-ch-")


@scenario("S-65", "bad chunks: counted once, however they are cut")
async def test_s65_counted(row: Row) -> None:
    """A hot request whose body turns out bad is one request, however it was cut on its way."""
    start = head_of("Transfer-Encoding: chunked")
    bad = ((b"zz\r\n", 400), (b"5\r\nhelloXX", 400), (b"%x\r\n" % (33 * MB), 413))
    async with row.stage(good, server=server(max_body_bytes=32 * MB)) as s:
        for body, status in bad:
            assert (await say(s, start, body, pause_s=TICK_S)).statuses == [status]
            assert (await say(s, start + body)).statuses == [status]
        s.asked = 2 * len(bad)
        counted = (await s.scrape()).total("llm_proxy_requests_total")
        assert counted == s.asked, f"{counted:g} of {s.asked}"
        row.note("requests_total{400}", "requests_total{413}")


@scenario("S-66", "obs-fold, NUL, bad names")
async def test_s66(row: Row) -> None:
    fields = ("X-A: a\r\n smuggled", "X-A: a\0smuggled", "X A: smuggled", ": smuggled", "smuggled", "X-A: a\rsmuggled",
              "X-\x7f: smuggled", "X-A: \x0bsmuggled", "X-A : smuggled")  # fmt: skip
    cases: list[tuple[bytes, int | tuple[int, ...]]] = [
        (head_of("Content-Length: 0", field, key=KEY), 400) for field in fields
    ]
    await malformed(row, cases, "own-hdr-")


@scenario("S-67", "absolute-form, odd Host")
async def test_s67(row: Row) -> None:
    hosts = ("Host: a/b", "Host: a b", "Host: a@b", "Host: a:b", "Host: a\\b", "Host: a\r\nHost: b")
    start = head_of("Content-Length: 0", key=KEY)
    cases: list[tuple[bytes, int | tuple[int, ...]]] = [
        (start.replace(b"Host: a", host.encode()), 400) for host in hosts
    ]
    cases.append((start.replace(b"Host: a\r\n", b""), 400))
    await malformed(row, cases, "own-host-", "own-rl-abs-")
    async with row.stage(good, server=server(master_api_key=KEY)) as s:  # the path decides, and only the path
        hosts_ = (b"health", b"169.254.169.254", b"127.0.0.1:%d" % s.running.port)
        for host in hosts_:
            for target in (b"http://%b%b" % (host, CHAT.encode()), CHAT.encode()):
                for key, wanted in (("wrong", 401), (KEY, 200)):
                    data = hot(chat(), "Connection: close", key=key).replace(CHAT.encode(), target)
                    seen = await say(s, data.replace(b"Host: a", b"Host: " + host))
                    assert seen.statuses == [wanted], (target, seen.received)
                    s.asked += 1
        assert s.called("a") == s.asked / 2


@scenario("S-68", "many headers, trailers")
async def test_s68(row: Row) -> None:
    many = [f"X-{i}: {i}" for i in range(20_000)]
    start = head_of("Transfer-Encoding: chunked", key=KEY)
    trailers = "".join(f"{field}\r\n" for field in many).encode()
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        for data in (
            head_of("Content-Length: 0", *many, key=KEY),
            head_of("Content-Length: 0", "X-A: " + "a" * MB, key=KEY),
            head_of("Content-Length: 0", *(f"X-{i}: {'a' * 8000}" for i in range(20)), key=KEY),
            start + b"0\r\n" + trailers + b"\r\n",
            start + chunk(chat()) + b"0\r\nX-A: " + b"a" * MB + b"\r\n\r\n",
        ):
            with peak() as grown:
                await refused(s, row, data, (400, 431), 0.05)
            assert grown[0] < 16 * MB + 4 * len(data), "the rest is dropped"
        assert sum((await bad_requests(s, row)).values()) == 5
        await told(s)
        await fire(s, row, "own-hdr-count", "own-ch-trailer", "own-hdr-block", most=0.05)


# ------------------------------------------------------------------ HTTP semantics
@scenario("S-69", "Expect: 100-continue")
async def test_s69(row: Row) -> None:
    async with row.stage(good, server=server(master_api_key=KEY, max_body_bytes=32 * MB)) as s:
        expect = "Expect: 100-continue"
        body = chat()
        client = await RawClient.connect(s.running.port)
        begin = time.monotonic()
        client.writer.write(head_of(f"Content-Length: {len(body)}", expect, key=KEY))
        await client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        row.took(time.monotonic() - begin, 0.02)
        client.writer.write(body)
        await client.read_until(b"}")
        assert statuses(client.received) == [100, 200]
        client.writer.transport.abort()
        for data, status in (
            (head_of(f"Content-Length: {len(body)}", expect, key="wrong"), 401),
            (head_of(f"Content-Length: {33 * MB}", expect, key=KEY), 413),
            (head_of(f"Content-Length: {33 * MB}", expect, key="wrong"), 413),
        ):
            await refused(s, row, data, status)
        client = await RawClient.connect(s.running.port)
        data = hot(body, expect, version="1.0", key=KEY)
        client.writer.write(data[: -len(body)])
        assert await client.is_silent(0.05), "HTTP/1.0 does not know 1xx"
        client.writer.write(body)
        await client.read_to_end()
        assert b" 100 " not in client.received
        assert statuses(client.received) == [200]
        client.writer.transport.abort()
        await told(s)
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        await fire(s, row, "own-ex-")


@scenario("S-70", "HTTP/1.0")
async def test_s70(row: Row) -> None:
    async with row.stage(good) as s:
        for fields in ((), ("Connection: keep-alive",)):
            for host in (True, False):
                for stream in FORMS:
                    data = hot(chat(stream), *fields, version="1.0")
                    seen = await say(s, data if host else data.replace(b"Host: a\r\n", b""), quiet_s=0.1)
                    s.asked += 1
                    head, _, body = seen.received.partition(b"\r\n\r\n")
                    assert seen.statuses == [200], seen.received
                    assert b"chunked" not in head.lower()
                    if stream:
                        assert body.startswith(b"data: "), "no chunk sizes in it"
                        assert body.endswith(b"data: [DONE]\n\n")
                        assert seen.ended, "its end is the connection's"
                    else:
                        assert json.loads(body)["choices"]
                        assert seen.ended is not bool(fields)


@scenario("S-71", "odd methods")
async def test_s71(row: Row) -> None:
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        for method in ("post", "Post", "FOO", "TRACE", "PUT", "DELETE", "PATCH", "GET"):
            data = hot(chat(), "X-Echo: smuggled", key=KEY).replace(b"POST ", method.encode() + b" ")
            seen = await say(s, data, quiet_s=0.1)
            assert len(seen.statuses) == 1
            assert seen.statuses[0] in (405, 501), (method, seen.received[:200])
            if seen.statuses[0] == 405:
                assert b"\r\nallow: post\r\n" in seen.received.lower(), seen.received
            row.took(seen.took_s, 0.02)
            assert b"smuggled" not in seen.received
        for authority in (b"127.0.0.1:%d" % s.ups["a"].port, b"a:1"):
            seen = await say(s, b"CONNECT %b HTTP/1.1\r\nHost: %b\r\n\r\n" % (authority, authority) + INNER)
            assert seen.statuses == [501], seen.received[:200]
            row.took(seen.took_s, 0.02)
        assert s.called("a") == 0
        assert s.ups["a"].peers == [], "no tunnel"


@scenario("S-71", "OPTIONS *")
async def test_s71_options(row: Row) -> None:
    async with row.stage(good) as s:
        seen = await say(s, b"OPTIONS * HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert seen.statuses == [405], seen.received
        assert b"\r\nallow:" in seen.received.lower()


@scenario("S-72", "upgrade")
async def test_s72(row: Row) -> None:
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        for protocol in ("websocket", "h2c", "junk", "TLS/1.0"):
            for more in ((), ("HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",), ("Sec-WebSocket-Key: eA==",)):
                fields = (f"Upgrade: {protocol}", "Connection: Upgrade, HTTP2-Settings", *more)
                data = hot(chat(), *fields, key=KEY) + INNER + hot(chat(), "Connection: close", key=KEY)
                seen = await say(s, data)
                assert 101 not in seen.statuses
                assert seen.statuses in ([200, 404, 200], [400]), seen.received
                row.took(seen.took_s, 0.06)
                s.asked += seen.statuses.count(200)
        assert s.called("a") == s.asked
        assert not [head for head, _ in s.ups["a"].seen if b"upgrade" in head.lower()]


@scenario("S-73", "wrong auth")
async def test_s73(row: Row) -> None:
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        body = chat()
        start = hot(body).replace(f"Authorization: Bearer {CLIENT_CANARY}\r\n".encode(), b"%b")
        start = start.replace(b"Content-Length", b"Connection: close\r\nContent-Length")
        basic = base64.b64encode(b"user:" + KEY.encode())
        wrong = [
            b"", b"Bearer", b"Bearer ", b"Basic " + basic, KEY.encode(), b"Bearer " + KEY[:-1].encode(), b"Bearer x",
            b"Bearer " + KEY.encode() + b"x", b"Bearer " + KEY.upper().encode(), "Bearer ключ".encode(), b"Bearer \xff",
            b"Bearer ' OR '1'='1", b"Bearer " + b"a" * 8000, b"Bearer x " + KEY.encode(), b"Token " + KEY.encode(),
            b"Bearer " + KEY.encode() + b", Bearer x",
        ]  # fmt: skip
        seen = [await say(s, start % b"")]
        seen += [await say(s, start % b"Authorization: %b\r\n" % value) for value in wrong]
        seen.append(await say(s, start % (b"Authorization: Bearer x\r\nAuthorization: Bearer %b\r\n" % KEY.encode())))
        for got in seen:
            assert got.statuses in ([401], [400]), got.received
            row.took(got.took_s, 0.02)
        refusals = [got for got in seen if got.statuses == [401]]
        assert len(refusals) >= len(wrong)
        assert len({_without_id(got.received) for got in refusals}) == 1, "the same bytes for every way of being wrong"
        assert (await say(s, start % (b"Authorization: Bearer %b\r\n" % (b"a" * 60_000)))).statuses == [431]
        assert s.called("a") == 0
        for value in (b"Bearer %b ", b"Bearer  %b", b"bearer %b", b"\tBearer %b\t"):
            assert (await say(s, start % (b"Authorization: " + value % KEY.encode() + b"\r\n"))).statuses == [200]
            s.asked += 1
        assert await _even(s, body), "how much of a key is right shows in the time of its refusal"
        row.note("401")
        assert not [line for line in s.lines if KEY in line or "OR '1'" in line]
        await told(s)


@scenario("S-73", "wrong auth: counted")
async def test_s73_counted(row: Row) -> None:
    """By reason, with labels from closed sets (R31); a request of the data plane is a request, a page is none."""
    async with row.stage(good, server=server(master_api_key=KEY)) as s:

        async def failures() -> dict[str, float]:
            rows = (await s.scrape()).rows("slipstream_auth_failures_total")
            return {labels["reason"]: value for labels, value in rows}

        assert await failures() == {"missing": 0, "scheme": 0, "wrong": 0}
        start = hot(chat(), "Connection: close").replace(f"Authorization: Bearer {CLIENT_CANARY}\r\n".encode(), b"%b")
        for count, field in enumerate(
            (b"", b"Authorization: Basic eDp5\r\n", b"Authorization: Bearer wrong\r\n", b"X-API-Key: wrong\r\n"), 1
        ):
            assert (await say(s, start % field)).statuses == [401]
            s.asked = count
        assert await failures() == {"missing": 1, "scheme": 1, "wrong": 2}
        assert (await say(s, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).statuses == [401]
        (await s.ask(headers={"Authorization": f"Bearer {KEY}"})).good()
        assert await failures() == {"missing": 2, "scheme": 1, "wrong": 2}
        rows = (await s.scrape()).rows("llm_proxy_requests_total", status_code="401")
        assert [(labels["model"], labels["api_key_name"], value) for labels, value in rows] == [("none", "none", 4)]
        row.note("auth_failures{missing}", "auth_failures{scheme}", "auth_failures{wrong}", "requests_total{401}")


@scenario("S-73", "refused by the head: counted once, whatever becomes of the body")
async def test_s73_once(row: Row) -> None:
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        te = head_of("Transfer-Encoding: chunked", key="wrong")
        long = head_of(f"Content-Length: {MB}", key="wrong")
        assert (await say(s, te + b"zz\r\n")).statuses == [400]
        assert (await say(s, te, b"zz\r\n", pause_s=TICK_S)).statuses == [400]
        assert (await say(s, long, quiet_s=0.1)).statuses == [401]
        assert (await say(s, hot(b"{}", "Connection: close", key=KEY).replace(b"/json", b"/xml"))).statuses == [415]
        gone = await RawClient.connect(s.running.port)
        gone.writer.write(head_of("Content-Length: 1000", key="wrong"))
        await until(lambda: s.running.runtime.metrics.series.get(_refused(s), 0) == 4)
        gone.writer.transport.abort()
        s.asked = 5


def _refused(s: Stage) -> int:
    return s.running.runtime.metrics.slot(AUTH_FAILURES, ("wrong",))


async def _even(s: Stage, body: bytes) -> bool:
    """Whether a nearly right key takes as long to refuse as any other; one second chance on a busy machine."""
    for _ in range(2):
        near, far = list[float](), list[float]()
        for _ in range(60):
            for key, taken in ((KEY[:-1] + "x", near), ("x" * len(KEY), far)):
                taken.append((await say(s, hot(body, "Connection: close", key=key))).took_s)
        if soon(abs(statistics.median(near) - statistics.median(far)), 0.0005):
            return True
    return False


def _without_id(received: bytes) -> bytes:
    lines = received.split(b"\r\n")
    return b"\r\n".join(x for x in lines if not x.lower().startswith((b"x-request-id:", b"date:")))


# ------------------------------------------------------------------ text
TEXTS = (
    "👩‍👩‍👧‍👦🏳️‍🌈", "é", "e\u0301", "\u202eevil\u202c שלום", "a\u2028b\u2029c\u0085d", "a\0b\x01\x1f\x7f", "\ufeffbom",
    "data: [DONE]\n\ndata: x", "\ufffe\uffff\U0010ffff", "ﬁ ℌ Å Å", "\r\n\r\n", "\\u0000 \\ud800", "𝓊𝓃𝒾",
)  # fmt: skip


@scenario("S-74", "unicode")
async def test_s74(row: Row) -> None:
    async def echo(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            asked = json.loads(request[1])
            text = asked["messages"][0]["content"]
            event = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": "stop"}]}
            if asked.get("stream"):
                data = (
                    b"data: "
                    + json.dumps(event, ensure_ascii=False).encode("utf-8", "replace")
                    + b"\n\ndata: [DONE]\n\n"
                )
                await peer.send(CHUNKED, chunk(data), LAST)
            else:
                await peer.send(ok(reply(text)))

    async with row.stage(echo) as s:
        for text in TEXTS:
            for ascii in (True, False):
                for stream in FORMS:
                    value = {"model": "m", "messages": [{"role": "user", "content": text}], "stream": stream}
                    got = await s.ask(body=json.dumps(value, ensure_ascii=ascii).encode())
                    got.good(text)
                    assert json.loads(s.ups["a"].seen[-1][1])["messages"][0]["content"] == text
        for escape in ("\\ud800", "\\udc00x", "\\ud800\\ud800", "\\udfff\\ud800"):
            body = chat(content="PLACE").replace(b"PLACE", escape.encode())
            before = s.called("a")
            got = await s.ask(body=body)
            assert got.status in (200, 400), got.body
            if s.called("a") > before:
                assert escape.encode() in s.ups["a"].seen[-1][1]
        await post_corpus(s, "chat-lone-")
    for kind in DIALECTS:  # where the text is decoded and written again
        async with row.stage({"script": good, "type": kind, "models": ["m"]}) as s:
            for path, name in ENDPOINTS.items():
                for escape in (b"\\ud800", b"a\\u0000b", b"\\u2028", b"\\ud83d\\ude00", "é\U0001f600".encode()):
                    before = s.called("a")
                    whole = json.loads(chat(path=path, content="PLACE"))
                    del whole["messages"]
                    text = b'[{"role": "user", "content": "%b"}]' if name == "messages" else b'"%b"'
                    body = json.dumps(whole).encode()[:-1] + b', "%b": ' % name.encode() + text % escape
                    got = await s.ask(path=path, body=body + b', "%b": 1, "user": "%b"}' % (escape, escape))
                    assert got.status in (200, 400, 404, 502), (kind, path, escape, got.body[:300])
                    if s.called("a") > before:
                        sent_ = s.ups["a"].seen[-1][1]
                        assert json.loads(b'"%b"' % escape) in _texts(json.loads(sent_)), (kind, path, escape, sent_)


def _texts(value: Any) -> str:
    """All strings of a JSON value."""
    if isinstance(value, str):
        return value
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return "\n".join(map(_texts, parts))


@scenario("S-75", "header injection")
async def test_s75(row: Row) -> None:
    evil = "m\r\nX-Injected: 1\r\n\r\nGET /smuggled HTTP/1.1"
    for kind in ("openai", "anthropic", "gemini", "azure", "ollama"):
        async with row.stage({"script": good, "type": kind, "models": []}) as s:
            for fields in (
                {"model": evil}, {"user": evil}, {"metadata": {evil: evil}}, {evil: 1}, {"stop": [evil]},
                {"tool_choice": evil}, {"service_tier": evil}, {"model": "m%0d%0aX-Injected:1"},
                {"model": "m\u010d\u010aX-Injected: 1"},
            ):  # fmt: skip
                for stream in FORMS:
                    got = await s.ask(body=json.dumps(json.loads(chat(stream)) | fields).encode())
                    assert got.status < 500 or kind != "openai", got.body[:300]
                    assert "x-injected" not in got.headers
            for field in (
                "X-Request-ID: a%0d%0aX-Injected: 1",
                "X-Request-ID: a\tX-Injected: 1",
                "Origin: a%0d%0aX-Injected:1",
            ):
                seen = await say(s, hot(chat(), "Connection: close", field))
                s.asked += 1
                assert b"\nx-injected" not in seen.received.lower()
            heads = [head for head, _ in s.ups["a"].seen]
            assert heads or kind == "azure"
            assert not [head for head in heads if b"\nx-injected" in head.lower() or b"\nGET /smuggled" in head]
            await told(s)


@scenario("S-76", "log injection")
async def test_s76(row: Row) -> None:
    evil = '\n{"level":"error","msg":"forged"}\r\n\x1b[31mred\x9b0m\u2028' + "A" * 10_000
    async with row.stage(good) as s:
        for model in (evil, "\x1b[2J", "m\n", "\u202em", "😀" * 10_000):
            got = await s.ask(body=chat(model=model))
            assert got.status in (400, 404), got.status
        fields = {"User-Agent": "\\n\\x1b" + "A" * 10_000, "X-Request-ID": "B" * 10_000}
        (await s.ask(headers=fields)).good()
        for path in (b"/v1/%0aforged", b"/v1/chat/completions%0a", b"/\xc2\x9b31m", b"/" + b"A" * 10_000):
            seen = await say(s, b"GET " + path + b" HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            assert len(seen.statuses) == 1
            assert len(seen.received) < 2000
        assert s.lines, "there is an access log"
        for line in s.lines:
            value = json.loads(line)
            assert not any(ord(c) < 32 or 0x7F <= ord(c) < 0xA0 or c in "\u2028\u2029\u202e" for c in line), line
            assert value["msg"] != "forged"
            assert all(len(str(v).encode()) <= 512 for v in value.values()), line


ADDRESSES = (
    "127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.0.0.1", "0177.0.0.1", "017700000001", "127.1",
    "127.0.1", "[::1]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]", "[0:0:0:0:0:ffff:127.0.0.1]", "0.0.0.0", "0",
    "[::]", "127.127.127.127", "127.0.0.1.", "localhost.", "LOCALHOST", "①②⑦.⓪.⓪.①",
    "127。0。0。1", "%31%32%37.0.0.1", "user@127.0.0.1",
    "user:pass@127.0.0.1", "a@b@127.0.0.1", "127.0.0.1#@example.com", "example.com#@127.0.0.1", "[::127.0.0.1]",
    "169.254.169.254", "[fd00:ec2::254]", "metadata.google.internal", "0251.0376.0251.0376", "2852039166", "10.0.0.1",
    "192.168.0.1", "172.16.0.1", "127.0.0.1\\@example.com", "127.0.0.1%00.example.com", "localhost.localdomain",
)  # fmt: skip


@scenario("S-77", "SSRF")
async def test_s77(row: Row) -> None:
    async with upstream(good) as trap:
        for kind in ("openai", "anthropic", "gemini", "ollama"):
            async with row.stage({"script": good, "type": kind, "models": []}) as s:
                for address in ADDRESSES if kind == "openai" else ADDRESSES[::8]:
                    await _lure(s, row, f"http://{address}:{trap.port}/v1")
                for url in ("file:///etc/passwd", f"gopher://127.0.0.1:{trap.port}/", f"//127.0.0.1:{trap.port}"):
                    await _lure(s, row, url)
                assert all(b"canary-key" in head for head, _ in s.ups["a"].seen)
                await told(s)
        async with row.stage({"script": good, "models": ["m", "allowed"]}) as s:
            await post_corpus(s, "chat-ssrf-")
        assert trap.peers == [], "nobody connects to where a request points"


async def _lure(s: Stage, row: Row, url: str) -> None:
    image = [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url}}]
    keys = ("api_base", "base_url", "api_url", "endpoint", "proxy", "custom_llm_provider", "webhook", "callback_url")
    for fields in (
        dict.fromkeys(keys, url) | {"extra_body": {"api_base": url}, "litellm_params": {"api_base": url}},
        {"model": url},
        {"messages": [{"role": "user", "content": image}]},
    ):
        got = await s.ask(body=json.dumps(json.loads(chat()) | fields).encode())
        row.took(got.took_s, 0.02)
        assert got.status in (200, 400, 404, 502), got.body[:300]
    headers = {"X-Api-Base": url, "X-Forwarded-Host": url, "X-Original-URL": url, "Forwarded": f"host={url}"}
    headers = {name: value.encode().decode("latin-1") for name, value in headers.items() if value.isascii()}
    if headers:
        assert (await s.ask(headers=headers)).status in (200, 400, 502)


# ------------------------------------------------------------------ bombs, bits and bursts
@contextmanager
def peak() -> Iterator[list[int]]:
    """By how many bytes the memory of this process grew at its highest meanwhile (Linux; else 0)."""
    found = [0]

    def read(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = read("VmRSS")
    except (OSError, StopIteration):
        yield found
        return
    yield found
    found[0] = read("VmHWM") - before


@functools.cache
def bomb(layers: int) -> bytes:
    """100 MB of spaces."""
    packer = zlib.compressobj(9, wbits=31)
    data = b"".join([*(packer.compress(b" " * MB) for _ in range(100)), packer.flush()])
    return data if layers == 1 else gzip.compress(data)


@scenario("S-78", "compressed bomb")
async def test_s78(row: Row) -> None:
    async with row.stage(good, server=server(max_body_bytes=32 * MB)) as s:
        for body, coding in (
            (bomb(1), "gzip"), (bomb(2), "gzip, gzip"), (bomb(1), "deflate"), (bomb(1), "br"), (bomb(2), "gzip"),
        ):  # fmt: skip
            with peak() as grown:
                got = await s.ask(body=body, headers={"Content-Encoding": coding})
            assert got.status in (400, 413, 415), (coding, got.status)
            assert got.status == 413 or coding != "gzip, gzip"
            row.took(got.took_s, 0.2)
            assert grown[0] < 64 * MB, grown
        assert s.called("a") == 0
    async with row.stage(good, server=server(master_api_key=KEY)) as s:
        await fire(s, row, "own-enc-")


@scenario("S-79", "tiny chunks")
async def test_s79(row: Row) -> None:
    async with row.stage(good) as s:
        used = {}
        for count in (5000, 20_000):
            body = chat(content="a" * (count - len(chat(content=""))))
            assert len(body) == count
            data = head_of("Transfer-Encoding: chunked", "Connection: close")
            data += b"".join(b"1\r\n%c\r\n" % byte for byte in body) + LAST
            start = time.process_time()
            seen = await say(s, data)
            used[count] = time.process_time() - start
            assert seen.statuses == [200]
            s.asked += 1
            assert json.loads(s.ups["a"].seen[-1][1]) == json.loads(body)
        if COMPILED:
            row.took(used[20_000], 0.2)
        assert used[20_000] < 12 * max(used[5000], 0.005), ("linear", used)
        client = await RawClient.connect(s.running.port)
        client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in hot(chat(content="b" * 1000), "Connection: close"):
            client.writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await client.read_to_end()
        client.writer.transport.abort()
        assert statuses(client.received) == [200]
        s.asked += 1


@scenario("S-80", "connection burst")
async def test_s80(row: Row) -> None:
    many = 600  # client and gateway share one loop here
    async with row.stage(good) as s:
        times = []

        async def one() -> RawClient:
            start = time.monotonic()
            client = await RawClient.connect(s.running.port)
            client.writer.write(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            await client.read_until(b"}")
            times.append(time.monotonic() - start)
            return client

        clients = await asyncio.gather(*(one() for _ in range(many)))
        row.took(statistics.quantiles(times, n=100)[98], 1.0)
        for client in clients:
            client.writer.transport.abort()
        got = await s.ask()
        got.good()
        row.took(got.took_s, 0.1)


@scenario("S-80", "connection burst beyond the files a process may have")
async def test_s80_files(row: Row) -> None:
    async with upstream(good) as up:
        conf = config({"name": "a", "api_base": f"http://127.0.0.1:{up.port}/v1", "api_key": "k", "models": ["m"]})
        with served(conf) as running:
            allowed = 128
            resource.prlimit(running.child.pid, resource.RLIMIT_NOFILE, (allowed, allowed))
            clients = await asyncio.gather(*(RawClient.connect(running.port) for _ in range(3 * allowed)))
            start, spent = time.monotonic(), _cpu(running.child.pid)
            await asyncio.sleep(0.5)
            spent, elapsed = _cpu(running.child.pid) - spent, time.monotonic() - start
            for client in clients:
                client.writer.transport.abort()
            start, answered = time.monotonic(), list[int]()
            while answered != [200]:  # the first may be accepted before the files of those that went are free
                client = await RawClient.connect(running.port)
                client.writer.write(hot(chat(), "Connection: close"))
                await client.read_to_end()
                client.writer.transport.abort()
                answered = statuses(client.received)
                row.took(time.monotonic() - start, 1.0)
            assert running.child.poll() is None
            assert spent < 0.5 * elapsed, f"{spent:.2f} s of CPU in {elapsed:.2f} s while there is nothing to be had"
            assert len(running.log.splitlines()) < 50, running.log[:2000]
            assert running.stop() == 0


def _cpu(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


async def one_more(s: Stage, data: bytes) -> RawClient:
    """A client with the beginning of its answer, if there is one."""
    client = await RawClient.connect(s.running.port)
    client.writer.write(data)
    with suppress(ConnectionError):
        client.received += await asyncio.wait_for(client.reader.read(65_536), DEADLINE_S)
    return client


async def connections_refused(s: Stage) -> float:
    return (await s.scrape()).total("slipstream_connections_refused_total")


@scenario("S-80", "connection burst: a limit of connections")
async def test_s80_limit(row: Row) -> None:
    """All come at once; those beyond the limit are told 503 and when to come back, and it is over with them."""
    most, more = 100, 50
    with connections() as made:
        async with row.stage(good, server=server(max_connections=most)) as s:
            start = time.monotonic()
            models = b"GET /v1/models/m HTTP/1.1\r\nHost: a\r\n\r\n"
            clients = await asyncio.gather(*(one_more(s, models) for _ in range(most + more)))
            row.took(time.monotonic() - start, 1.0)
            count = Counter(tuple(statuses(client.received)) for client in clients)
            assert count == {(200,): most, (503,): more}
            for client in clients:
                if client.received.startswith(b"HTTP/1.1 503"):
                    assert b"\r\nRetry-After: 1\r\n" in client.received
                    assert b"\r\nConnection: close\r\n" in client.received
                    assert await client.read_to_end() == "fin"
            assert await connections_refused(s) == more
            row.note("connections_refused")
            for client in clients:
                client.writer.transport.abort()
            start = time.monotonic()
            await until(lambda: all(connection.transport is None for connection in made))
            await fine(s)
            row.took(time.monotonic() - start, 0.1)


@scenario("S-80", "connection burst: health checks beyond the limit")
async def test_s80_health(row: Row) -> None:
    """Who is full says that it lives, once for each connection; anything else is refused in its dialect."""
    with connections() as made:
        async with row.stage(good, server=server(max_connections=1)) as s:
            first = await one_more(s, hot(chat()))
            assert statuses(first.received) == [200]
            s.asked = 1
            line = b"%b HTTP/1.1\r\nHost: a\r\n\r\n"
            for target in (b"GET /health", b"HEAD /health", b"GET /v1/healthz", b"GET /v1/readyz?a", b"GET /metrics"):
                seen = await say(s, line % target + INNER)
                assert seen.statuses == [200], (target, seen.received[:300])
                assert b"\r\nconnection: close\r\n" in seen.received.lower()
            refused_ = (
                hot(chat()), hot(chat(path=MESSAGES), path=MESSAGES), line % b"GET /v1/models", b"GET /healthy",
                line % b"POST /health", line % b"GET /health/detailed", b"x" * 5000, b"",
            )  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(surplus, "LINE_S", 0.1)
                for data in refused_:
                    seen = await say(s, data)
                    assert seen.statuses == [503], (data[:50], seen.received[:300])
                    assert (b'"type":"error"' in seen.received.replace(b" ", b"")) == (MESSAGES.encode() in data[:30])
                assert await connections_refused(s) == len(refused_)
                patch.setattr(surplus, "LINE_S", 10.0)
                patch.setattr(surplus, "PLACES", 3)
                silent_ = [await RawClient.connect(s.running.port) for _ in range(3)]
                dropped = await RawClient.connect(s.running.port)
                await dropped.read_to_end()
                assert dropped.received == b""
                for client in (*silent_, dropped, first):
                    client.writer.transport.abort()
            assert await connections_refused(s) == len(refused_) + 1
            await until(lambda: all(connection.transport is None for connection in made))
            await fine(s)


def down(how: int) -> Script:
    """A provider that answers with this status, or (0) resets."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            if not how:
                peer.reset()
                return
            await peer.send(http(how, problem()))

    return script


@scenario("S-81", "SDK retry storm")
async def test_s81(row: Row) -> None:
    def at_once(*_: object) -> float:
        return 0.01  # the SDK would wait for Retry-After, or half a second and more

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openai.AsyncOpenAI, "_calculate_retry_timeout", at_once)
        patch.setattr(runtime, "RetryPolicy", functools.partial(RetryPolicy, same=Backoff(0.01, 0.01)))
        for how, count, calls in ((503, 1, 1), (500, 3, 1), (0, 3, 1), (503, 1, 50), (0, 3, 50)):
            await _storm(row, [down(how)] * count, calls)


async def _storm(row: Row, scripts: list[Script], calls: int) -> None:
    """So many clients call at once, each of which tries three times if it is let."""
    async with row.stage(*scripts) as s, httpx.AsyncClient() as web:
        one = openai.AsyncOpenAI(base_url=s.running.url, api_key=CLIENT_CANARY, http_client=web)
        clients = [one.copy() for _ in range(calls)]
        assert all(client.max_retries == 2 for client in clients), "as the SDK comes"

        async def call(client: openai.AsyncOpenAI) -> None:
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model="m", messages=USER)

        await asyncio.gather(*map(call, clients))
        reached = sum(s.called(name) for name in s.ups)
        assert 0 < reached <= 3 * calls, reached
        await told(s)
        assert calls <= s.asked <= 3 * calls
        seen = await s.scrape()
        outcomes = {labels["outcome"] for labels, _ in seen.rows("slipstream_upstream_attempts_total")}
        row.note(*(f"attempts{{{outcome}}}" for outcome in sorted(outcomes)))
        if seen.total("slipstream_retry_budget_exhausted_total"):
            row.note("retry_budget_exhausted")
        if seen.total("slipstream_targets_ejected_total"):
            row.note("targets_ejected")


# ------------------------------------------------------------------ other tenants
@pytest.mark.skip(reason="S-82 (two tenants must not see each other's cache hits) comes with the cache")
def test_s82() -> None:
    """S-82 cache probe."""


@pytest.mark.skip(reason="S-83 (a tenant beyond its limit harms no other) comes with tenants and their limits")
def test_s83() -> None:
    """S-83 noisy neighbour."""
