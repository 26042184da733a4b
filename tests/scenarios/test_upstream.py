"""S-01 to S-50: everything an upstream can do to a gateway (the fault scenarios of the design, first table).

``pair``: a second provider answers, so the client must not notice. ``alone``: nobody else is there, so the client gets
an error in its dialect. Bounds on time are those of the scenario, with the limits of ``matrix.LIMITS``.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
import warnings
import zlib
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from slipstream._fast import COMPILED
from slipstream.net import connect as connect_module
from slipstream.net import decode as decode_module
from tests.aio import until
from tests.harness import CHAT
from tests.scenarios.matrix import ALL, HEADER_CANARY, LIMITS, NATIVE, Row, Stage, key_of, patient, scenario
from tests.scenarios.talk import (
    DONE,
    LAST,
    MESSAGES,
    STREAM,
    Piece,
    chat,
    chunk,
    chunked,
    event,
    good,
    http,
    problem,
    reply,
    said,
    says,
    silent,
    words,
)
from tests.unit.test_net_connect import Names, full_backlog
from tests.upstreams import CHUNKED, Peer, Script, Up, free_port, ok, upstream

FIRST, IDLE, CONNECT, TOTAL = (LIMITS[name] for name in ("first_byte_s", "idle_s", "connect_s", "total_s"))
FORMS = (False, True)
Bad = Script | dict[str, Any]
CLOSED, MALFORMED = "upstream_connection_closed", "upstream_malformed_response"


async def fails_over(row: Row, bad: Bad, outcome: str, most: float, least: float = 0.0, kept: bool = False) -> None:
    """Whole and streamed: ``b`` answers in place of ``a``, which is asked once."""

    async def one(stream: bool) -> None:
        async with row.stage(bad, good) as s:
            got = await s.ask(stream)
            got.good()
            row.took(got.took_s, most, least)
            assert got.headers["x-slipstream-attempts"] == "2"
            await s.counts(1, a=outcome, b="none")
            await asked_once(s, kept)

    await asyncio.gather(*map(one, FORMS))


async def fails(
    row: Row,
    bad: Bad,
    outcome: str,
    status: int,
    code: str | None,
    most: float,
    least: float = 0.0,
    kept: bool = False,
    calls: int = 1,
) -> None:
    """Alone, whole and streamed: one error, after so many attempts."""

    async def one(stream: bool) -> None:
        async with row.stage(bad) as s:
            got = await s.ask(stream)
            got.failed(status, code)
            row.took(got.took_s, most, least)
            await s.counts(0, a={outcome: calls})
            assert (got.headers.get("x-should-retry") == "false") == (calls > 1)
            await asked_once(s, kept, calls)

    await asyncio.gather(*map(one, FORMS))


async def asked_once(s: Stage, kept: bool, calls: int = 1) -> None:
    """And the connection is closed, if what came over it is not good HTTP."""
    if "a" in s.ups:
        assert s.called("a") <= calls
        if not kept:
            await s.closed("a")


async def together(*cases: Coroutine[Any, Any, None]) -> None:
    """Cases that mostly wait for limits, at once."""
    await asyncio.gather(*cases)


# ------------------------------------------------------------------ before an answer
@scenario("S-01", "port closed", ALL)
async def test_s01(row: Row) -> None:
    dead = [{"api_base": f"http://127.0.0.1:{free_port()}/v1"} for _ in range(4)]
    await fails_over(row, dead[0], "connect", 0.05)
    await fails(row, dead[0], "connect", 502, "upstream_connect_error", 1.0, calls=3)
    async with row.stage(*dead) as s:
        got = await s.ask(path=MESSAGES)
        got.failed(502)
        row.took(got.took_s, 1.0)
        assert (got.headers["x-slipstream-attempts"], got.headers["x-should-retry"]) == ("3", "false")
        await s.counts(2, a="connect", b="connect", c="connect", d={})


@scenario("S-02", "connect hangs")
async def test_s02(row: Row) -> None:
    with full_backlog() as (host, port):
        hangs = {"api_base": f"http://{host}:{port}/v1"}
        await together(
            fails_over(row, hangs, "connect", CONNECT, CONNECT),
            fails(row, hangs, "connect", 504, "upstream_connect_timeout", CONNECT, CONNECT),
        )


@scenario("S-03", "accept, then close", ALL)
async def test_s03(row: Row) -> None:
    connections = []

    async def closes(peer: Peer) -> None:
        connections.append(peer.number)

    await fails_over(row, closes, "transport", 0.1)
    await fails(row, closes, "transport", 502, CLOSED, 0.1, calls=3)
    assert sorted(connections) == [0, 0, 0, 0, 1, 1, 2, 2], "each attempt over a fresh connection, and no more of them"


@scenario("S-04", "hang before headers", ALL)
async def test_s04(row: Row) -> None:
    async def all_of_them() -> None:
        last = {"script": silent, "timeout": {"first_byte_s": 5.0, "total_s": 0.8}}
        async with row.stage(silent, last) as s:
            got = await s.ask()  # no attempt outlasts the whole
            got.failed(504, "upstream_total_timeout")
            row.took(got.took_s, 0.8, 0.8)
            await s.closed("a", "b")

    await together(
        fails_over(row, silent, "timeout", FIRST, FIRST),
        fails(row, silent, "timeout", 504, "upstream_first_byte_timeout", FIRST, FIRST),
        all_of_them(),
    )


@scenario("S-05", "headers, then silence")
async def test_s05(row: Row) -> None:
    quiet = says(CHUNKED, then="hang")

    async def pair() -> None:
        async with row.stage(quiet, good) as s:
            got = await s.ask(True)
            got.good()
            row.took(got.took_s, FIRST, FIRST)
            await s.counts(1, a="timeout", b="none")
            await s.closed("a")

    async def alone(path: str) -> None:
        async with row.stage(quiet) as s:
            got = await s.ask(True, path)
            got.failed(504, "upstream_first_byte_timeout")
            row.took(got.took_s, FIRST, FIRST)
            await s.counts(0, a="timeout")
            await s.closed("a")

    await together(pair(), alone(CHAT), alone(MESSAGES))


@scenario("S-06", "hang in mid-stream", ALL)
async def test_s06(row: Row) -> None:
    async def one(row: Row, path: str) -> None:
        async with row.stage(says(*chunked(*words(5)), row.saw(5), then="hang"), good) as s:
            got = await s.ask(True, path)
            got.broken(said(5), "upstream_idle_timeout")
            row.reacted(got, IDLE, IDLE - 0.05)
            await s.counts(0, a="timeout", b={})
            assert s.called("b") == 0
            await s.closed("a")

    await together(one(row.part(), CHAT), one(row.part(), MESSAGES))


@scenario("S-07", "slow drip")
async def test_s07(row: Row) -> None:
    sent: list[float] = []

    async def drips(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for word in words(100):
            for at in range(0, len(word), 16):
                now = time.monotonic()
                await peer.send(chunk(word[at : at + 16]))
                await asyncio.sleep(0.01)
            sent.append(now)

    async with row.stage({"script": drips, "timeout": {"total_s": 1.0}}) as s:
        got = await s.ask(True)
        count = len(got.events) - 1
        assert count >= 4
        got.broken(said(count), "upstream_total_timeout")
        delays = sorted(there - here for here, there in zip(sent, got.times, strict=False))[:count]
        row.took(delays[len(delays) // 2], 0.005)
        row.took(got.took_s, 1.0, 1.0)
        await s.counts(0, a="timeout")
        await s.closed("a")


@scenario("S-08", "drip of headers")
async def test_s08(row: Row) -> None:
    async def drips(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX: ")
        while not peer.reader.at_eof():
            await peer.send(b"a")
            await asyncio.sleep(0.02)

    await together(
        fails(row, drips, "timeout", 504, "upstream_first_byte_timeout", FIRST, FIRST),
        fails_over(row, drips, "timeout", FIRST, FIRST),
    )


@scenario("S-09", "reset before headers")
async def test_s09(row: Row) -> None:
    resets = says(then="reset")
    await fails_over(row, resets, "transport", 0.1)
    await fails(row, resets, "transport", 502, CLOSED, 0.1, calls=3)
    async with row.stage(resets, resets, resets, good) as s:
        (await s.ask()).failed(502, CLOSED)
        await s.counts(2, a="transport", b="transport", c="transport", d={})
        assert (await s.scrape()).total("slipstream_retry_ambiguous_total") == 2
        row.note("retry_ambiguous")
    async with row.stage(resets, good, routing={"retries": 0}) as s:  # who forbids further attempts gets none
        (await s.ask()).failed(502, CLOSED)
        await s.counts(0, a="transport", b={})


# ------------------------------------------------------------------ within an answer
@scenario("S-10", "reset in mid-stream", ALL)
async def test_s10(row: Row) -> None:
    for path in (CHAT, MESSAGES):
        async with row.stage(says(*chunked(*words(3)), row.saw(3), then="reset"), good) as s:
            got = await s.ask(True, path)
            got.broken(said(3), CLOSED)
            row.reacted(got, 0.05)
            await s.counts(0, a="transport", b={})
            assert s.called("b") == 0


@scenario("S-11", "close without the last chunk", ALL)
async def test_s11(row: Row) -> None:
    async with row.stage(says(*chunked(*words(3)), row.saw(3), then="close")) as s:
        for n in (1, 2):
            got = await s.ask(True)
            got.broken(said(3), CLOSED)
            row.reacted(got, 0.05)
            assert len(s.ups["a"].peers) == n, "the connection is not used again"
        await s.counts(0, a={"transport": 2})


@scenario("S-12", "truncated chunk")
async def test_s12(row: Row) -> None:
    whole, half = event("w1 "), event("w2 ")[:40]
    cut = b"%x\r\n%b" % (1000, whole + half)
    async with row.stage(says(*chunked(event("w0 ")), cut, row.saw(2), then="close")) as s:
        got = await s.ask(True)
        got.broken("w0 w1 ", CLOSED)
        assert b"w2" not in got.body
        row.reacted(got, 0.05)
        await s.counts(0, a="transport")


@scenario("S-13", "Content-Length too large")
async def test_s13(row: Row) -> None:
    cut = says(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n" + b" " * 500,
               then="close")  # fmt: skip
    async with row.stage(cut, good) as s:
        got = await s.ask()
        got.good()
        row.took(got.took_s, 0.05)
        await s.counts(1, a="transport", b="none")
    await fails(row, cut, "transport", 502, CLOSED, 0.05, calls=3)


@scenario("S-14", "Content-Length too small")
async def test_s14(row: Row) -> None:
    long = b'{"choices"' + b"x" * 490
    poison = says(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n" + long)
    async with row.stage(poison) as s:
        for n in (1, 2, 3):
            got = await s.ask()
            got.failed(502, MALFORMED)
            row.took(got.took_s, 0.05)
            assert b"xxx" not in got.body
            await s.closed("a")
            assert len(s.ups["a"].peers) == n
        await s.counts(0, a={"malformed": 3})


@scenario("S-15", "body that ends with the connection")
async def test_s15(row: Row) -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: %b\r\n\r\n"

    async def old(peer: Peer) -> None:
        request = await peer.request()
        assert request is not None
        if b'"stream": true' in request[1]:
            await peer.send(head % b"text/event-stream", *words(2), DONE)
        else:
            await peer.send(head % b"application/json", reply("old"))

    async with row.stage(old) as s:
        (await s.ask()).good("old")
        (await s.ask(True)).good(said(2))
        assert len(s.ups["a"].peers) == 2
        await s.counts(0, a={"none": 2})
    async with row.stage(says(head % b"text/event-stream", *words(2), row.saw(2), then="close")) as s:
        (await s.ask(True)).broken(said(2), "upstream_incomplete")
        await s.counts(0, a="transport")


# ------------------------------------------------------------------ what is no HTTP, or not what was asked for
async def refused(row: Row, bad: Script, code: str, kept: bool = False) -> None:
    """A pair and alone: another one answers, or there is an error."""
    await fails_over(row, bad, "malformed", 0.1, kept=kept)
    await fails(row, bad, "malformed", 502, code, 0.1, kept=kept)


async def each_refused(row: Row, *answers: bytes, then: str = "hang") -> None:
    await together(*(refused(row, says(data, then=then), MALFORMED) for data in answers))
    assert not any("HELLO" in line or "99999" in line for line in row.lines)


@scenario("S-16", "garbage for a status line")
async def test_s16(row: Row) -> None:
    await each_refused(row, b"HELLO\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"HTTP/1.1 99999\r\n\r\n")


@scenario("S-17", "no status at all")
async def test_s17(row: Row) -> None:
    await each_refused(row, b'{"a":1}', b'{"a":1}\r\n\r\n')


@scenario("S-18", "flood of 1xx")
async def test_s18(row: Row) -> None:
    early = b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n"

    async def few(stream: bool) -> None:
        answer = b"".join([*chunked(STREAM), LAST]) if stream else ok(reply())
        async with row.stage(says(early * 15 + answer)) as s:
            (await s.ask(stream)).good()
            await s.counts(0, a="none")

    async def many() -> None:
        async with row.stage(says(early * 50 + ok(reply()), then="hang")) as s:
            got = await s.ask()
            if row.native:
                got.failed(502, MALFORMED)
                await s.closed("a")
            else:
                got.good()

    async def endless(peer: Peer) -> None:
        await peer.request()
        while not peer.reader.at_eof():
            await peer.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            await asyncio.sleep(0.002)

    async def for_ever() -> None:
        async with row.stage(endless) as s:
            got = await s.ask()
            got.failed(502 if row.native else 504)
            row.took(got.took_s, FIRST)
            await s.counts(0, a="malformed" if row.native else "timeout")
            await s.closed("a")

    await together(few(False), few(True), many(), for_ever())


@scenario("S-19", "unexpected 101")
async def test_s19(row: Row) -> None:
    await each_refused(row, b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n")


@scenario("S-20", "redirect", ALL)
async def test_s20(row: Row) -> None:
    async with upstream(silent) as trap:
        fields = f"Location: http://127.0.0.1:{trap.port}/steal", "Content-Type: text/html"
        for status in (301, 302, 307, 308):
            await refused(row, says(http(status, b"<a>moved</a>", *fields)), "upstream_redirect", kept=True)
        assert not trap.peers
    assert not any("steal" in line for line in row.lines)


@scenario("S-21", "204 and 304 with a body")
async def test_s21(row: Row) -> None:
    for status, code in ((204, MALFORMED), (304, "upstream_redirect")):
        poison = b"HTTP/1.1 %d No\r\nContent-Length: %d\r\n\r\n%b" % (status, len(ok(reply())), ok(reply()))
        async with row.stage(says(poison)) as s:
            for n in (1, 2):
                got = await s.ask()
                got.failed(502, code)
                row.took(got.took_s, 0.1)
                await s.closed("a")
                assert len(s.ups["a"].peers) == n
            await s.counts(0, a={"malformed": 2})


@scenario("S-22", "huge headers")
async def test_s22(row: Row) -> None:
    head = b"HTTP/1.1 200 OK\r\n"
    for data in (head + b"X: " + b"a" * 1_000_000, head + b"X: a\r\n" * 10_000):
        await fails_over(row, says(data, then="hang"), "malformed", 0.2)
        await fails(row, says(data, then="hang"), "malformed", 502, MALFORMED, 0.2)


# ------------------------------------------------------------------ content codings
def bomb(line: bytes, wbits: int) -> tuple[bytes, bytes]:
    """The beginning of a coded body, and a block of it that stands for 1 MB of ``line``; 10,000 blocks are 10 GB."""
    coder = zlib.compressobj(9, zlib.DEFLATED, wbits)
    start = coder.compress(b" ") + coder.flush(zlib.Z_FULL_FLUSH)
    return start, coder.compress(line * (1_000_000 // len(line))) + coder.flush(zlib.Z_FULL_FLUSH)


def coded(name: str, kind: str, start: bytes, block: bytes, first: tuple[Piece, ...] = ()) -> Script:
    """An answer of up to 10 GB in 10 MB."""

    async def script(peer: Peer) -> None:
        await peer.request()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nContent-Encoding: {name}\r\n"
        await peer.send(head.encode() + b"Transfer-Encoding: chunked\r\n\r\n")
        for piece in first:
            await (peer.send(chunk(piece)) if isinstance(piece, bytes) else piece())
        await peer.send(chunk(start))
        for _ in range(10_000):
            await peer.send(chunk(block))
            if peer.reader.at_eof():
                return

    return script


def peak_mb(reset: bool = False) -> float:
    """The most memory that this process had since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


BOMB_BYTES = 2_000_000
"""Of 10 GB, until it is seen for what it is."""


@contextmanager
def unpacked() -> Iterator[list[int]]:
    """How many bytes were made of coded ones meanwhile."""
    made = [0]
    with pytest.MonkeyPatch.context() as patch:
        decode = decode_module._Inflate.decode

        def counted(self: Any, data: bytes) -> bytes:
            out = decode(self, data)
            made[0] += len(out)
            return out

        patch.setattr(decode_module._Inflate, "decode", counted)
        yield made


GZIP, ZLIB = zlib.MAX_WBITS | 16, zlib.MAX_WBITS


@scenario("S-23", "decompression bomb")
async def test_s23(row: Row) -> None:
    before = peak_mb(reset=True)
    for name, wbits in (("gzip", GZIP), ("deflate", ZLIB)):
        async with row.stage(patient(coded(name, "application/json", *bomb(b" ", wbits)))) as s:
            with unpacked() as made:
                got = await s.ask()
            got.failed(502, MALFORMED)
            row.took(got.took_s, 1.0)
            assert made[0] <= BOMB_BYTES, made
            await s.counts(0, a="malformed")
            await s.closed("a")
    for line in (b"data: a\n", b":\n\n"):
        async with row.stage(patient(coded("gzip", "text/event-stream", *bomb(line, GZIP)))) as s:
            with unpacked() as made:
                got = await s.ask(True)
            row.took(got.took_s, 1.0)
            assert made[0] <= BOMB_BYTES, made
            if got.status == 200:
                got.broken("", MALFORMED)
            else:
                got.failed(502, MALFORMED)
            await s.closed("a")
    for name in ("br", "zstd"):  # nobody asked for these
        async with row.stage(patient(coded(name, "application/json", b"\x28\xb5\x2f\xfd", bytes(1000)))) as s:
            (await s.ask()).failed(502)
            await s.closed("a")
    assert peak_mb() - before < 64


@scenario("S-23", "decompression bomb behind content of a stream")
async def test_s23_mid(row: Row) -> None:
    coder = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    begin = coder.compress(b"".join(words(2))) + coder.flush(zlib.Z_SYNC_FLUSH)
    block = coder.compress(b"data: a\n" * 125_000) + coder.flush(zlib.Z_FULL_FLUSH)
    before = peak_mb(reset=True)
    async with row.stage(patient(coded("gzip", "text/event-stream", block, block, (begin, row.saw(2))))) as s:
        with unpacked() as made:
            got = await s.ask(True)
        got.broken(said(2), MALFORMED)
        row.reacted(got, 1.0)
        assert made[0] <= BOMB_BYTES, made
        await s.counts(0, a="malformed")
        await s.closed("a")
    assert peak_mb() - before < 64


@scenario("S-24", "broken coding")
async def test_s24(row: Row) -> None:
    packed = gzip.compress(reply())
    for data, name in ((b"this is no gzip", "gzip"), (packed[:-20], "gzip"), (reply(), "gzip"), (reply(), "br")):
        bad = says(http(200, data, f"Content-Encoding: {name}"))
        async with row.stage(bad, good) as s:
            (await s.ask()).good()
        async with row.stage(bad) as s:
            got = await s.ask()
            got.failed(502)
            row.took(got.took_s, 0.1)
    coder = zlib.compressobj(9, zlib.DEFLATED, GZIP)
    begin = coder.compress(b"".join(words(2))) + coder.flush(zlib.Z_SYNC_FLUSH)
    head = CHUNKED.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer")
    for tail in (b"", chunk(b"no gzip any more")):
        async with row.stage(says(head, chunk(begin), row.saw(2), tail + LAST)) as s:
            got = await s.ask(True)
            got.broken(said(2))
            row.reacted(got, 0.1)


# ------------------------------------------------------------------ rate limits and overload
RESTS = [
    ("Retry-After: 2", 2.0),
    ("Retry-After: 2.5", 2.5),
    ("retry-after-ms: 1500", 1.5),
    ("Retry-After: 0", 0.0),
    ("Retry-After: 1000000000", 300.0),
    ("Retry-After: 1e9", 1.0),  # no number of seconds: the first backoff
    ("Retry-After: -1", 1.0),
]


async def rests(row: Row, answer: bytes, outcome: str, seconds: float, within_s: float = 0.1) -> None:
    """``b`` answers, ``a`` is left alone for so long."""
    async with row.stage(says(answer), good) as s:
        got = await s.ask()
        got.good()
        row.took(got.took_s, 0.1)
        rest = s.rest_s("a")
        assert seconds - 0.1 * seconds - within_s <= rest <= 1.1 * seconds + within_s, (answer, rest)
        await s.counts(1, a=outcome, b="none")
        if rest:
            for _ in range(3):
                (await s.ask(True)).good()
            assert s.called("a") == 1, "called during its rest"
        s.running.runtime.wall = lambda: time.time() + 86_400  # the wall clock has no part in it
        assert rest - 1.0 <= s.rest_s("a") <= rest
        row.note("cooldown")


@scenario("S-25", "429 with seconds")
async def test_s25(row: Row) -> None:
    limited = problem("Rate limit reached", "requests", "rate_limit_exceeded")
    for field, seconds in RESTS:
        await rests(row, http(429, limited, field), "rate_limited", seconds)
    async with row.stage(says(http(429, limited, "retry-after-ms: 100")), good) as s:
        (await s.ask()).good()
        await until(lambda: not s.rest_s("a"))
        for _ in range(2):
            (await s.ask()).good()
        assert s.called("a") == 2, "it is asked again when the rest is over"


@scenario("S-26", "429 with a date")
async def test_s26(row: Row) -> None:
    now = datetime.now(UTC)
    soon = now + timedelta(seconds=60)
    dates = [
        (format_datetime(soon, usegmt=True), 60.0),
        (soon.strftime("%A, %d-%b-%y %H:%M:%S GMT"), 60.0),  # RFC 850
        (soon.strftime("%a %b %e %H:%M:%S %Y"), 60.0),  # asctime
        (format_datetime(now + timedelta(days=400), usegmt=True), 300.0),
        (format_datetime(now - timedelta(seconds=60), usegmt=True), 0.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
        ("Sunday, 06-Nov-94 08:49:37 GMT", 0.0),
        ("tomorrow", 1.0),
        ("Mon, 99 Foo 2026 99:99:99 GMT", 1.0),
    ]
    for date, seconds in dates:
        within = 1.5 if seconds == 60 else 0.1
        await rests(row, http(429, problem(), f"Retry-After: {date}"), "rate_limited", seconds, within)


def limited(seconds: float) -> Script:
    return says(http(429, problem("Rate limit reached", "requests", "rate_limit_exceeded"), f"Retry-After: {seconds}"))


@scenario("S-27", "all are rate-limited")
async def test_s27(row: Row) -> None:
    for path in (CHAT, MESSAGES):
        async with row.stage(limited(7), limited(3), limited(5)) as s:
            for n in range(3):
                got = await s.ask(path=path)
                got.failed(429)
                row.took(got.took_s, 0.1)
                assert got.headers["retry-after"] == "3", "the smallest rest"
                assert n or got.headers["x-should-retry"] == "false"
            assert [s.called(name) for name in "abc"] == [1, 1, 1], "nobody is asked during its rest"
            await s.counts(2, a="rate_limited", b="rate_limited", c="rate_limited")


@scenario("S-27", "all are rate-limited beyond the deadline")
async def test_s27_deadline(row: Row) -> None:
    async with row.stage(limited(70), limited(60)) as s:
        for _ in range(2):
            got = await s.ask()
            got.failed(429)
            assert got.headers["retry-after"] == "60"
            assert got.headers["x-should-retry"] == "false"


@scenario("S-28", "overloaded, or spent")
async def test_s28(row: Row) -> None:
    for status in (529, 503):
        await rests(row, http(status, problem("Overloaded"), "Retry-After: 2"), "overloaded", 2.0)
        await rests(row, http(status, problem("Overloaded")), "overloaded", 1.0)
        async with row.stage(says(http(status, problem("Overloaded"))), routing={"retries": 0}) as s:
            (await s.ask()).failed(status, says="Overloaded")
    spent = says(http(429, problem("You exceeded your current quota", "insufficient_quota", "insufficient_quota")))
    async with row.stage({"script": spent, "api_key": "one-key"}, {"script": good, "api_key": "one-key"}, good) as s:
        got = await s.ask()
        got.good()
        row.took(got.took_s, 0.1)
        assert (s.called("a"), s.called("b"), s.called("c")) == (1, 0, 1), "the same key is as spent there"
        await s.counts(1, a="quota", b={}, c="none")
    async with row.stage({"script": spent, "api_key": "one-key"}, {"script": good, "api_key": "one-key"}) as s:
        (await s.ask()).failed(429, "insufficient_quota")
        await s.counts(0, a="quota", b={})


# ------------------------------------------------------------------ answers that are none
failing = says(http(500, problem("The server had an error")))


@scenario("S-29", "500 always, another one is well")
async def test_s29(row: Row) -> None:
    async with row.stage(failing, good) as s:
        for _ in range(100):
            (await s.ask()).good()
        assert s.called("a") <= 5
        assert s.called("b") == 100


@scenario("S-29", "500 always, alone", over=(NATIVE,))
async def test_s29_alone(row: Row) -> None:
    async with row.stage(failing) as s:
        start = time.monotonic()
        while time.monotonic() < start + 3.1:  # another try may help (Q09: 0.5 s and more)
            (await s.ask()).failed(500, None, says="The server had an error")
        before = s.called("a")
        for _ in range(100):  # it does not
            got = await s.ask()
            got.failed(500, None, says="The server had an error")
            row.took(got.took_s, 0.1)
        assert s.called("a") == before + 100


@scenario("S-29", "500 always: ejection")
async def test_s29_ejected(row: Row) -> None:
    async with row.stage(failing, failing, good, resilience={"breaker": {"consecutive": 5}}) as s:
        runtime = s.running.runtime
        for _ in range(60):
            (await s.ask()).good()
            runtime.table.clear_cooldown(s.target("a"))
            runtime.table.clear_cooldown(s.target("b"))
        opened = [runtime.table.breaker(s.target(name)) & 3 for name in "abc"]
        assert opened[0] == 1, "after 5 failures in a row"
        assert opened[2] == 0
        assert s.called("a") <= 6


@scenario("S-29", "500 always: the retry budget", over=(NATIVE,))
async def test_s29_budget(row: Row) -> None:
    async with row.stage(failing, failing, failing) as s:
        start = time.monotonic()
        for _ in range(4):
            for got in await asyncio.gather(*(s.ask() for _ in range(50))):
                assert got.status in (500, 503)
        calls = sum(s.called(name) for name in "abc")
        assert calls <= 200 * 1.2 + 10 * (10 + time.monotonic() - start)


@scenario("S-30", "HTML error page")
async def test_s30(row: Row) -> None:
    page = b"<html><head><title>Bad</title></head>" + b"<p>nginx canary-page</p>" * 45_000
    for status, outcome in ((502, "server"), (504, "timeout")):
        for path in (CHAT, MESSAGES):
            bad = says(http(status, page, "X-Page: 1", "Via: nginx", kind="text/html"))
            async with row.stage(bad, routing={"retries": 0}) as s:
                got = await s.ask(path=path)
                got.failed(status)
                row.took(got.took_s, 0.1)
                assert b"<" not in got.body
                await s.counts(0, a=outcome)
    assert not any("<html" in line or len(line) > 2048 for line in row.lines)


@scenario("S-31", "invalid JSON under 200")
async def test_s31(row: Row) -> None:
    broken = says(http(200, b'{"choices":['))
    await refused(row, broken, MALFORMED, kept=True)
    async with row.stage(broken) as s:
        (await s.ask(path=MESSAGES)).failed(502)


@scenario("S-32", "wrong shape under 200")
async def test_s32(row: Row) -> None:
    for wrong in (b"{}", b'{"choices":null}', b"[]", b"7", b"null", b'"text"', b'{"object":"chat.completion"}'):
        for path in (CHAT, MESSAGES):
            async with row.stage(says(http(200, wrong)), good) as s:
                got = await s.ask(path=path)
                got.good()
                row.took(got.took_s, 0.1)
                await s.counts(1, a="malformed", b="none")
        async with row.stage(says(http(200, wrong))) as s:
            (await s.ask()).failed(502)
    odd: dict[str, Any] = {"usage": {"prompt_tokens": "3", "completion_tokens": None}, "extra": {"kept": [1]}}
    for path in (CHAT, MESSAGES):
        async with row.stage(says(http(200, reply(**odd)))) as s:
            got = await s.ask(path=path)
            got.good()
            if path == CHAT:
                assert got.json()["extra"] == {"kept": [1]}
            await s.counts(0, a="none")


@scenario("S-33", "invalid UTF-8")
async def test_s33(row: Row) -> None:
    bad = reply("broken @ here").replace(b"@", b"\xff")
    async with row.stage(says(http(200, bad)), good) as s:
        got = await s.ask()
        got.good()
        row.took(got.took_s, 0.1)
        await s.counts(1, a="malformed", b="none")
    async with row.stage(says(http(200, bad))) as s:
        (await s.ask()).failed(502, MALFORMED)
    for path in (CHAT, MESSAGES):
        tail = chunk(event("@").replace(b"@", b"\xff") + DONE)
        async with row.stage(says(*chunked(event("w0 ")), row.saw(1), tail, LAST)) as s:
            got = await s.ask(True, path)
            got.broken("w0 ", MALFORMED)
            row.reacted(got, 0.1)
            await s.counts(0, a="malformed")


@scenario("S-34", "wrong content type")
async def test_s34(row: Row) -> None:
    html = http(200, b"<html><body>Welcome</body></html>", kind="text/html")
    sse = b"".join([*chunked(STREAM), LAST])
    for answer, stream in ((html, False), (html, True), (http(200, reply()), True), (sse, False)):
        async with row.stage(says(answer), good) as s:
            got = await s.ask(stream)
            got.good()
            row.took(got.took_s, 0.1)
            await s.counts(1, a="malformed", b="none")
        for path in (CHAT, MESSAGES):
            async with row.stage(says(answer)) as s:
                got = await s.ask(stream, path)
                got.failed(502)
                assert b"<" not in got.body
                row.took(got.took_s, 0.1)


# ------------------------------------------------------------------ streams
@scenario("S-35", "no [DONE]")
async def test_s35(row: Row) -> None:
    for path in (CHAT, MESSAGES):
        async with row.stage(says(*chunked(*words(3)), row.saw(3), LAST)) as s:
            got = await s.ask(True, path)
            got.broken(said(3), "upstream_incomplete")
            row.reacted(got, 0.05)
            await s.counts(0, a="transport")
        async with row.stage(says(*chunked(*words(3)), row.saw(3), chunk(event(finish="stop")), LAST)) as s:
            got = await s.ask(True, path)
            got.good(said(3))
            row.reacted(got, 0.05)
            await s.counts(0, a="none")


IN_STREAM = [
    (b"data: %b\n\n" % problem("The server is overloaded", "overloaded_error"), "overloaded"),
    (b"event: error\ndata: %b\n\n" % problem("Rate limit reached", "requests", "rate_limit_exceeded"), "rate_limited"),
    (b"error: %b\n\n" % problem("The server had an error"), "server"),  # llama-box
]


@scenario("S-36", "error event in mid-stream", ALL)
async def test_s36(row: Row) -> None:
    for data, outcome in IN_STREAM:
        for path in (CHAT, MESSAGES):
            async with row.stage(says(*chunked(*words(3)), row.saw(3), chunk(data), then="hang"), good) as s:
                got = await s.ask(True, path)
                error = got.broken(said(3))
                assert error["message"].startswith(("The server", "Rate limit"))
                row.reacted(got, 0.02)
                await s.counts(0, a=outcome, b={})
                assert s.called("b") == 0
                await s.closed("a")


@scenario("S-37", "error as the first event", ALL)
async def test_s37(row: Row) -> None:
    for (data, outcome), status in zip(IN_STREAM, (503, 429, 502), strict=True):
        for role in (b"", event()):  # a delta without content commits nobody
            bad = says(*chunked(role + data) if role + data else [], then="hang")
            async with row.stage(bad, good) as s:
                got = await s.ask(True)
                got.good()
                row.took(got.took_s, 0.1)
                await s.counts(1, a=outcome, b="none")
                await s.closed("a")
            for path in (CHAT, MESSAGES):
                async with row.stage(bad, routing={"retries": 0}) as s:
                    got = await s.ask(True, path)
                    got.failed(status)
                    row.took(got.took_s, 0.1)


@scenario("S-38", "odd cuts and line ends")
async def test_s38(row: Row) -> None:
    text = "naïve 🎉 \u2028 ende"
    plain = event(text) + event(text) + DONE
    forms = [plain, b"\xef\xbb\xbf" + plain, plain.replace(b"\n", b"\r\n"), plain.replace(b"\n", b"\r")]
    forms += [b": comment\n\n" + plain.replace(b"data: ", b"data:"), plain.replace(b'"choices"', b'\ndata: "choices"')]
    for data in forms:
        async with row.stage(says(CHUNKED, *(chunk(data[at : at + 1]) for at in range(len(data))), LAST)) as s:
            for path in (CHAT, MESSAGES):
                got = await s.ask(True, path)
                got.good(text + text)
    async with row.stage(says(*chunked(b"".join(words(20_000)) + DONE), LAST)) as s:
        start = time.process_time()
        got = await s.ask(True)
        got.good(said(20_000))
        if COMPILED:
            row.took(time.process_time() - start, len(got.body) / 10_000_000)


@scenario("S-38", "an event of 10 MB")
async def test_s38_large(row: Row) -> None:
    large = event("x" * 10_000_000)
    async with row.stage(says(*chunked(*words(2)), row.saw(2), chunk(large), then="hang")) as s:
        got = await s.ask(True)
        got.broken(said(2), MALFORMED)
        assert len(got.body) < 10_000
        await s.counts(0, a="malformed")
        await s.closed("a")
    async with row.stage(says(*chunked(large), then="hang")) as s:
        (await s.ask(True)).failed(502, MALFORMED)


@scenario("S-39", "endless stream: total limit, others go on")
async def test_s39(row: Row) -> None:
    async def floods(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        while not peer.reader.at_eof():
            await peer.send(chunk(event("w ") * 100))
            await asyncio.sleep(0.01)

    async def paced(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED)
        for word in words(80):
            await peer.send(chunk(word))
            await asyncio.sleep(0.01)
        await peer.send(chunk(DONE) + LAST)

    flood = {"script": floods, "timeout": {"total_s": 1.2}, "models": ["flood"]}
    async with row.stage(flood, paced) as s:
        endless, other = await asyncio.gather(s.ask(True, body=chat(True, model="flood")), s.ask(True))
        endless.broken("w " * (len(endless.events) - 1), "upstream_total_timeout")
        assert len(endless.events) > 1000
        row.took(endless.took_s, 1.2, 1.2)
        other.good(said(80))
        gaps = sorted(b - a for a, b in pairwise(other.times))
        row.took(gaps[int(0.99 * len(gaps))], 0.05)
        await s.closed("a")


@scenario("S-39", "endless stream: byte limit", over=(NATIVE,))
async def test_s39_bytes(row: Row) -> None:
    async def floods(peer: Peer) -> None:
        await peer.request()
        piece = chunk(event("x" * 1_000_000))
        await peer.send(CHUNKED, *[piece] * 80, chunk(DONE), LAST)

    async with row.stage(floods) as s:
        got = await s.ask(True)
        assert len(got.body) <= 66 << 20
        assert len(got.failures) == 1


# ------------------------------------------------------------------ what must not get through
HOSTILE = [
    "X: a", "Set-Cookie: evil=1", "Connection: x-secret", "X-Secret: hop", "Keep-Alive: timeout=5", "Upgrade: h2c",
    "Trailer: X", "Proxy-Authenticate: Basic", "Alt-Svc: h2=\":1\"", "Server: upstream/1.0", "Via: 1.1 proxy",
    "Access-Control-Allow-Origin: https://evil.test", "Location: http://evil.test/", "X-Request-ID: theirs",
    "Strict-Transport-Security: max-age=1", "Content-Security-Policy: none", "x-slipstream-provider: theirs",
    *(f"X-Own-{i}: {i}" for i in range(64)),
]  # fmt: skip


@scenario("S-40", "hostile headers")
async def test_s40(row: Row) -> None:
    whole, failed = http(200, reply(), *HOSTILE), http(400, problem("no", "invalid_request_error"), *HOSTILE)
    head = CHUNKED.replace(b"\r\n\r\n", "\r\n".join(["", *HOSTILE, "", ""]).encode())
    for answer, stream, status in ((whole, False, 200), (head + chunk(STREAM) + LAST, True, 200), (failed, False, 400)):
        async with row.stage(says(answer)) as s:
            got = await s.ask(stream)  # which holds the names against a list
            assert got.status == status
            values = " ".join(got.headers.values())
            assert not any(word in values for word in ("evil", "theirs", "upstream/1.0", "hop", "h2"))


@scenario("S-41", "response smuggling")
async def test_s41(row: Row) -> None:
    head, body = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n", reply()
    size = b"Content-Length: %d\r\n" % len(body)
    await each_refused(
        row,
        head + size + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(body) + LAST,
        head + size + b"Content-Length: 5\r\n\r\n" + body,
        head + b"X: a\rSet-Cookie: b\r\n" + size + b"\r\n" + body,
    )


# ------------------------------------------------------------------ TLS and names
def certificates(folder: Path) -> None:
    """An authority, and certificates of it: good, of another name, expired; and one that signed itself."""
    (folder / "ext").write_text("subjectAltName=DNS:localhost\nbasicConstraints=CA:FALSE\n")
    (folder / "other").write_text("subjectAltName=DNS:other.test\nbasicConstraints=CA:FALSE\n")
    key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    ca = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"]
    for command in (
        ["req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2", "-subj", "/CN=Test CA"],
        ["req", "-x509", *key, "-keyout", "self.key", "-out", "self.pem", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        ["req", *key, "-keyout", "own.key", "-out", "own.csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", "own.csr", *ca, "-out", "own.pem", "-days", "2", "-extfile", "ext"],
        ["x509", "-req", "-in", "own.csr", *ca, "-out", "other.pem", "-days", "2", "-extfile", "other"],
        ["x509", "-req", "-in", "own.csr", *ca, "-out", "expired.pem", "-days", "-1", "-extfile", "ext"],
    ):  # fmt: skip
        subprocess.run(["openssl", *command], cwd=folder, check=True, capture_output=True)


def tls_of(folder: Path, name: str, key: str = "own", old: bool = False) -> ssl.SSLContext:
    """A server's context with this certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{key}.key")
    if old:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    return context


@asynccontextmanager
async def accepting(script: Script, tls: ssl.SSLContext | None) -> AsyncIterator[tuple[Up, list[None]]]:
    """An upstream, and an entry for each connection that was made to it, also where the handshake failed."""
    loop, up, made = asyncio.get_running_loop(), Up(script), list[None]()
    loop.set_exception_handler(lambda *_: None)  # the server's complaints

    def factory() -> asyncio.StreamReaderProtocol:
        made.append(None)
        return asyncio.StreamReaderProtocol(asyncio.StreamReader(), up.serve)

    server = await loop.create_server(factory, "127.0.0.1", 0, ssl=tls)
    up.port = server.sockets[0].getsockname()[1]
    try:
        yield up, made
    finally:
        server.close()
        await until(lambda: not up.tasks)
        loop.set_exception_handler(None)


@scenario("S-42", "TLS faults")
async def test_s42(row: Row) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("no openssl command")

    async def hangs(peer: Peer) -> None:
        await peer.reader.read()

    async def closes(peer: Peer) -> None:
        await peer.reader.read(10)

    async def one(folder: Path, what: str, script: Script, tls: ssl.SSLContext | None, code: str | None) -> None:
        top = {"ca_file": str(folder / "ca.pem")}
        async with accepting(script, tls) as (up, made):
            entry = {"api_base": f"https://localhost:{up.port}/v1"}
            async with row.stage(entry, good, **top) as s:
                got = await s.ask()
                got.good()
                row.took(got.took_s, CONNECT)
                await s.counts(0 if code is None else 1, a="none" if code is None else "connect")
            async with row.stage(entry, **top) as s:
                got = await s.ask()
                if code is None:
                    got.good()
                else:
                    got.failed(504 if "timeout" in code else 502, code)
            again = 2 if what in ("TLS 1.0", "closes") else 0  # it is closed in our face: that may be over soon
            assert len(made) == 2 + again, f"{what}: one connection for each request"
            assert bool(up.seen) == (code is None), f"{what}: no request, and no key, before TLS stands"
            await until(lambda: up.open == 0)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificates(folder)
        untrusted = "upstream_connect_error"
        await one(folder, "good", good, tls_of(folder, "own"), None)
        await one(folder, "expired", good, tls_of(folder, "expired"), untrusted)
        await one(folder, "another name", good, tls_of(folder, "other"), untrusted)
        await one(folder, "self-signed", good, tls_of(folder, "self", "self"), untrusted)
        await one(folder, "TLS 1.0", good, tls_of(folder, "own", old=True), untrusted)
        await one(folder, "closes", closes, None, untrusted)
        await one(folder, "hangs", hangs, None, "upstream_connect_timeout")


class Resolver(Names):
    """``Names`` for names; addresses are what they are (aiohttp asks for these too)."""

    def __init__(self, *answer: tuple[int, str]) -> None:
        self._usual = asyncio.get_running_loop().getaddrinfo
        super().__init__(*answer)

    async def getaddrinfo(self, host: str, port: int, **more: Any) -> list[Any]:
        if host != "name.test":
            return await self._usual(host, port, **more)
        return await super().getaddrinfo(host, port, **more)


@scenario("S-43", "DNS faults")
async def test_s43(row: Row) -> None:
    named = {"api_base": f"http://name.test:{free_port()}/v1"}

    async def unknown(error: Exception) -> None:
        async with row.stage(named, good) as s:
            Resolver().error = error
            (await s.ask()).good()
            await s.counts(1, a="connect", b="none")
        async with row.stage(named) as s:
            Resolver().error = error
            got = await s.ask()
            got.failed(502, "upstream_connect_error")
            row.took(got.took_s, 0.1)

    await unknown(socket.gaierror(socket.EAI_NONAME, "NXDOMAIN"))
    await unknown(socket.gaierror(socket.EAI_AGAIN, "SERVFAIL"))
    async with upstream(good) as up:
        live = {"api_base": f"http://name.test:{up.port}/v1"}
        async with row.stage(live) as s:
            Resolver((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1"))
            got = await s.ask()
            got.good()
            row.took(got.took_s, 0.3)
            await s.counts(0, a="none")


@scenario("S-43", "DNS faults: no answer")
async def test_s43_hang(row: Row) -> None:
    async with row.stage({"api_base": f"http://name.test:{free_port()}/v1"}) as s:
        names = Resolver()
        names.hang = True
        for got in await asyncio.gather(*(s.ask() for _ in range(20))):
            got.failed(504, "upstream_connect_timeout")
            row.took(got.took_s, CONNECT, CONNECT)
        assert names.asked == 1, "one lookup for all that wait"


@scenario("S-43", "DNS faults: the last good answer, and new ones", over=(NATIVE,))
async def test_s43_stale(row: Row) -> None:
    """Our resolver keeps answers; the reference transport has aiohttp's, which forgets them."""

    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(reply()))

    async with upstream(once) as up, row.stage({"api_base": f"http://name.test:{up.port}/v1"}) as s:
        names = Resolver((socket.AF_INET, "127.0.0.1"))
        (await s.ask()).good()
        outbound: Any = s.running.runtime.active.outbound["a"]
        connector = next(iter(outbound.transport._pools.values())).connector
        for change in ({"error": OSError("resolver down")}, {"error": None, "hang": True}):
            vars(names).update(change)
            connector._known_at -= connect_module.DNS_FRESH_S + 1
            await until(lambda: up.open == 0)
            got = await s.ask()
            got.good()
            row.took(got.took_s, connect_module.DNS_WAIT_S)
        vars(names).update({"hang": False, "answer": [(socket.AF_INET, "127.0.0.2")]})
        connector._known_at -= connect_module.DNS_STALE_S + 1
        connector.close()
        await until(lambda: up.open == 0 and connector._resolving is None)
        (await s.ask()).failed(502, "upstream_connect_error")  # a new answer is followed


# ------------------------------------------------------------------ connections
@scenario("S-44", "keep-alive race", ALL)
async def test_s44(row: Row) -> None:
    async def on_second(peer: Peer) -> None:  # the request meets the close
        await peer.request()
        await peer.send(ok(reply()))
        await peer.reader.read(1)

    async with row.stage(on_second) as s:
        for _ in range(20):
            got = await s.ask()
            got.good()
            row.took(got.took_s, 0.02)
        await s.counts(0, a={"none": 20})
        assert s.called("a") == 20

    pauses = random.Random(44)

    async def after_a_while(peer: Peer) -> None:
        await peer.request()
        await peer.send(ok(reply()))
        await asyncio.sleep(pauses.uniform(0, 0.004))

    async with row.stage(after_a_while) as s:
        for _ in range(150):
            (await s.ask()).good()
            await asyncio.sleep(pauses.uniform(0, 0.004))
        await s.counts(0, a={"none": 150})
        assert s.called("a") == 150, "never sent twice to who has read it"


@scenario("S-45", "early final answer")
async def test_s45(row: Row) -> None:
    large = chat(content="x" * 5_000_000)
    for status, answered, code, outcome in ((413, 413, None, "context"), (401, 502, "upstream_auth_error", "auth")):
        body = problem("Request too large", "invalid_request_error")

        async def early(peer: Peer, answer: bytes = http(status, body, "Connection: close")) -> None:
            await peer.reader.readuntil(b"\r\n\r\n")
            peer.server.seen.append((b"", b""))
            await peer.send(answer)

        async with row.stage(early) as s:
            got = await s.ask(body=large)
            got.failed(answered, code)
            row.took(got.took_s, 0.1)
            await s.counts(0, a=outcome)
            await s.closed("a")
            assert s.called("a") == 1
    async with row.stage(early if status == 413 else says(http(413, body)), good) as s:
        (await s.ask()).failed(413)  # R54: nobody else is asked
        assert s.called("b") == 0


async def deaf(peer: Peer) -> None:
    """Reads nothing for a while: its window closes."""
    await asyncio.sleep(FIRST + 0.2)
    while await peer.reader.read(1 << 20):
        pass


@scenario("S-46", "stub does not read")
async def test_s46(row: Row) -> None:
    large = chat(content="x" * 10_000_000)

    async def pair() -> None:
        async with row.stage(deaf, good) as s:
            (await s.ask(body=large)).good()
            await s.counts(1, a="timeout", b="none")
            assert json.loads(s.ups["b"].seen[0][1]) == json.loads(large)
            await s.closed("a")

    async def alone() -> None:
        async with row.stage(deaf) as s:
            got = await s.ask(body=large)
            got.failed(504)
            row.took(got.took_s, FIRST + 0.1, FIRST)
            await s.counts(0, a="timeout")
            await s.closed("a")

    await together(pair(), alone())


@scenario("S-46", "stub does not read: a limit for sending")
async def test_s46_send(row: Row) -> None:
    async with row.stage({"script": deaf, "timeout": {"first_byte_s": 2.0, "send_s": 0.3}}) as s:
        got = await s.ask(body=chat(content="x" * 10_000_000))
        got.failed(504, "upstream_send_timeout")
        row.took(got.took_s, 0.4, 0.3)


@scenario("S-47", "one slow of five", over=(NATIVE,))
async def test_s47(row: Row) -> None:
    def paced(seconds: float) -> Script:
        async def script(peer: Peer) -> None:
            while await peer.request() is not None:
                await asyncio.sleep(seconds)
                await peer.send(b"".join([*chunked(STREAM), LAST]))

        return script

    slow = {"script": paced(1.2), "timeout": {"first_byte_s": 2.5}}
    fast = [paced(0.01) for _ in range(4)]
    async with row.stage(slow, *fast, resilience={"breaker": {"latency_factor": 5}}) as s:
        await asyncio.gather(*(s.ask(True) for _ in range(60)))  # settles: a dozen slow ones
        before = s.called("a")
        taken = []
        for _ in range(4):
            answers = await asyncio.gather(*(s.ask(True) for _ in range(25)))
            assert s.called("a") - before <= 2, "at most 2 % (Q12)"
            taken += [got.took_s for got in answers]
        row.took(sorted(taken)[97], 0.015)


class Clock:
    """The gateway's own time in the hands of the test; its limits are on the loop's."""

    def __init__(self, runtime: Any) -> None:
        self.now = runtime.clock()
        runtime.clock = lambda: self.now


@scenario("S-48", "flapping", over=(NATIVE,))
async def test_s48(row: Row) -> None:
    bad = False

    async def flaps(peer: Peer) -> None:
        while await peer.request() is not None:
            await peer.send(http(500, problem()) if bad else ok(reply()))

    async with row.stage(flaps, good) as s:
        runtime, target = s.running.runtime, s.target("a")
        clock = Clock(runtime)
        ejections: list[float] = []
        word = 0

        async def seconds(count: int) -> None:
            """So many seconds with two requests each."""
            nonlocal word
            for _ in range(2 * count):
                clock.now += 0.5
                runtime.table.clear_cooldown(target)  # the breaker is looked at, not the rests
                (await s.ask()).good()
                now = runtime.table.breaker(target)
                if now != word and now & 3 == 1:
                    ejections.append((now >> 8) / 1000 - clock.now)
                word = now

        for turn in range(30):
            bad = turn % 2 == 1
            await seconds(10)
        assert len(ejections) >= 3
        for n, length in enumerate(ejections, 1):
            assert length <= 300.5
            assert 27 <= length / min(n, 9) <= 33.5, ejections
        bad = False
        clock.now += 301.0  # whatever was left of the last one
        await seconds(20)
        clock.now += 3600.0
        await seconds(5)
        bad, count = True, len(ejections)
        await seconds(15)
        assert len(ejections) == count + 1
        assert ejections[-1] <= 33.5, "falls again after health"


# ------------------------------------------------------------------ credentials
@scenario("S-49", "bad key at one", ALL)
async def test_s49(row: Row) -> None:
    wrong = problem("Incorrect API key provided: sk-abc***", "invalid_request_error", "invalid_api_key")
    for status in (401, 403):
        bad = says(http(status, wrong))
        one, two = {"script": bad, "api_key": "key-of-a"}, {"script": good, "api_key": "key-of-a"}
        async with row.stage(one, two, good) as s:
            got = await s.ask()
            got.good()
            row.took(got.took_s, 0.1)
            assert (s.called("a"), s.called("b"), s.called("c")) == (1, 0, 1)
            await s.counts(1, a="auth", b={}, c="none")
            assert 270 <= s.rest_s("a") <= 330
            for _ in range(6):
                (await s.ask()).good()
            assert s.called("a") == 1, "not asked while its key is bad"
        for path in (CHAT, MESSAGES):
            async with row.stage(bad) as s:
                got = await s.ask(path=path)
                got.failed(502, "upstream_auth_error")
                assert b"sk-abc" not in got.body
    async with row.stage(says(http(403, problem("Country not supported", "forbidden"))), good) as s:
        (await s.ask()).failed(403, says="Country")  # R54: the credentials are good, the answer is no
        await s.counts(0, a="permission", b={})


@scenario("S-50", "key in the error text")
async def test_s50(row: Row) -> None:
    """The stage looks for the canaries in every answer, the log and the metrics."""

    def echo(status: int, mid: bool = False) -> Script:
        async def script(peer: Peer) -> None:
            while (request := await peer.request()) is not None:
                line, _, head = request[0].decode().partition("\r\n")
                assert key_of("a") in head
                text = f"no: {head} {line} https://x.test/v1?key={key_of('a')} {HEADER_CANARY} " + "x" * 50_000
                answer = problem(text, f"type {key_of('a')}", f"code-{key_of('a')}")
                if mid:
                    await peer.send(*chunked(*words(2)))
                    await row.saw(2)()
                    await peer.send(chunk(b"data: " + answer + b"\n\n"))
                    return
                await peer.send(http(status, answer, f"X-Echo: {key_of('a')}", f"Retry-After: {key_of('a')}"))

        return script

    for status, answered in ((400, 400), (401, 502), (404, 404), (429, 429), (500, 500), (503, 503), (200, 502)):
        for path in (CHAT, MESSAGES):
            for stream in FORMS:
                async with row.stage(echo(status), routing={"retries": 0}) as s:
                    error = (await s.ask(stream, path)).failed(answered)
                    assert answered == 502 or "***" in error["message"]
                    assert answered == 502 or "***" in s.lines[-1]
    for path in (CHAT, MESSAGES):
        async with row.stage(echo(200, mid=True)) as s:
            error = (await s.ask(True, path)).broken(said(2))
            assert "***" in error["message"]
