"""The load generator on real sockets: against the mock, and servers that answer well, badly or not at all."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from slipstream.loadgen.reply import reader
from slipstream.loadgen.run import Plan, Run
from slipstream.loadgen.stats import Recorder
from slipstream.loadgen.target import Ask, build_requests, parse_base_url
from slipstream.loadgen.timer import FdTimer, LoopTimer
from tests.aio import run, until
from tests.loadservers import head, mock, scripted, unused_port
from tests.pace import soon

GOOD = b'{"choices": []}'


async def load(url: str, model: str = "m", stream: bool = False, **plan: Any) -> Run:
    """A run to its end. Closed loop of 10 requests, one at a time, unless the plan says otherwise."""
    target = parse_base_url(url)
    payloads = build_requests(target, Ask(model=model, stream=stream), ["Hello there"])
    settings = {"qps": 0.0, "concurrency": 1, "duration_s": 5.0, "timeout_s": 5.0}
    if not plan.get("qps"):
        settings["max_requests"] = 10
    measured = Run(target, payloads, Plan(**(settings | plan)), reader("chat", stream), Recorder())
    await measured.go()
    return measured


# against the mock


def test_closed_loop_reuses_its_connections() -> None:
    async def main() -> None:
        async with mock() as server:
            done = await load(server.base_url, concurrency=5, max_requests=100)
            assert server.ledger.requests == 100
        assert (done.recorder.requests, done.recorder.failures, done.opened) == (100, 0, 5)
        assert done.recorder.codes == {"200": 100}

    run(main())


@pytest.mark.parametrize("arrival", ["constant", "poisson"])
def test_open_loop_keeps_the_rate(arrival: str) -> None:
    async def main() -> None:
        async with mock() as server:
            done = await load(
                server.base_url, qps=200, duration_s=0.4, warmup_s=0.1, concurrency=50, arrival=arrival, seed=3
            )
            assert server.ledger.requests == done.sent
        expected = 80 if arrival == "constant" else done.recorder.requests
        assert done.recorder.requests == expected
        assert 50 <= done.recorder.requests <= 110
        assert done.sent > done.recorder.requests, "the warm-up is sent and not counted"
        assert done.completed / done.measured_s == pytest.approx(200, rel=0.35)
        assert done.opened < done.sent / 2
        assert done.recorder.dropped == 0

    run(main())


def test_waiting_for_a_connection_is_latency() -> None:
    """One connection, 20 ms an answer, 200 a second wanted: most never go out, and none of that is hidden."""

    async def main() -> None:
        async with mock(mean_latency_ms=20, p95_latency_ms=20) as server:
            done = await load(server.base_url, qps=200, duration_s=0.4, concurrency=1)
        books = done.recorder
        assert books.requests + books.dropped == 80
        assert books.dropped > 40
        assert soon(books.service.percentile(0.5) / 1e9, 0.04)
        assert books.latency.percentile(0.5) > 3 * books.service.percentile(0.5)

    run(main())


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("429", "429"),
        ("500", "500"),
        ("html502", "502"),
        ("error-200", "error_body"),
        ("malformed", "malformed"),
        ("cut", "closed"),
        ("cut-first", "closed"),
        ("reset", "closed"),
        ("drip", "200"),
        ("big", "200"),
    ],
)
def test_faults(fault: str, code: str) -> None:
    async def main() -> None:
        async with mock() as server:
            done = await load(server.base_url, f"mock/{fault}", max_requests=4)
            assert server.ledger.requests == 4, "nothing is sent twice"
        assert done.recorder.codes == {code: 4}
        assert done.recorder.failures == (0 if code == "200" else 4)

    run(main())


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("ok", "200"),
        ("drip", "200"),
        ("flood", "200"),
        ("error-first", "error_body"),
        ("role-then-error", "error_body"),
        ("error-mid", "error_body"),
        ("error-200", "error_body"),
        ("no-done", "incomplete"),
        ("malformed", "malformed"),
        ("cut", "closed"),
        ("503", "503"),
    ],
)
def test_stream_faults(fault: str, code: str) -> None:
    async def main() -> None:
        async with mock() as server:
            done = await load(server.base_url, f"mock/{fault}", stream=True, max_requests=3)
        assert done.recorder.codes == {code: 3}
        assert done.recorder.ttft.count == (3 if code == "200" else 0)

    run(main())


def test_ttft() -> None:
    async def main() -> None:
        async with mock(ttft_ms=20, tokens_per_s=500, completion_tokens=20) as server:
            done = await load(server.base_url, stream=True, max_requests=5, concurrency=5)
        books = done.recorder
        assert books.ttft.count == 5
        assert books.ttft.percentile(0.1) >= 18e6, "uvloop's timers may be a millisecond early"
        assert books.latency.percentile(0.1) - books.ttft.percentile(0.9) >= 20e6, "19 tokens follow, 2 ms apart"

    run(main())


def test_error_rate_is_the_mocks() -> None:
    async def main() -> None:
        async with mock(error_rate=0.3) as server:
            done = await load(server.base_url, concurrency=10, max_requests=200)
            assert done.recorder.codes == {str(status): n for status, n in server.ledger.by_status.items()}
        assert 30 <= done.recorder.failures <= 90

    run(main())


@pytest.mark.parametrize("fault", ["stall", "stall-headers-then", "stall-mid"])
def test_time_out(fault: str) -> None:
    async def main() -> None:
        async with mock() as server:
            done = await load(server.base_url, f"mock/{fault}", timeout_s=0.05, max_requests=4, concurrency=2)
            await until(lambda: server.ledger.disconnects == 4)
        assert done.recorder.codes == {"timeout": 4}
        assert done.recorder.latency.count == 4
        least = done.recorder.latency.percentile(0.1)
        assert least >= 50e6
        assert soon(least / 1e9, 0.5)

    run(main())


def test_stop_counts_what_was_waited_for() -> None:
    async def main() -> None:
        async with mock() as server:
            target = parse_base_url(server.base_url)
            payloads = build_requests(target, Ask(model="mock/stall"), ["x"])
            stopped = Run(target, payloads, Plan(100.0, 2, 60.0), reader("chat", False), Recorder())
            going = asyncio.ensure_future(stopped.go())
            await until(lambda: stopped.busy == 2 and time.monotonic_ns() - stopped.start_ns > 50_000_000)
            stopped.stop()
            await going
            stopped.stop()  # once more does nothing
        books = stopped.recorder
        assert (books.requests, books.unfinished) == (0, 2)
        assert books.dropped >= 3
        assert books.latency.max >= 50_000_000

    run(main())


# against scripted servers


LENGTH = head(f"Content-Length: {len(GOOD)}", "X-Slipstream-Provider: p1") + GOOD
CHUNKED = head("Transfer-Encoding: chunked") + b"4\r\n" + GOOD[:4] + b"\r\nb\r\n" + GOOD[4:] + b"\r\n0\r\n\r\n"
CLOSING = head(f"Content-Length: {len(GOOD)}", "Connection: close") + GOOD
TO_THE_END = head() + GOOD
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + LENGTH
EMPTY = b"HTTP/1.1 204 No Content\r\n\r\n"


@pytest.mark.parametrize("drip", [False, True], ids=["whole", "bytewise"])
@pytest.mark.parametrize(
    ("reply", "close", "codes", "opened"),
    [
        (LENGTH, False, {"200": 6}, 1),
        (CHUNKED, False, {"200": 6}, 1),
        (INTERIM, False, {"200": 6}, 1),
        (CLOSING, True, {"200": 6}, 6),
        (TO_THE_END, True, {"200": 6}, 6),
        (EMPTY, False, {"malformed": 6}, 1),
        (LENGTH[:-3], True, {"closed": 6}, 6),
        (CHUNKED[:-5], True, {"closed": 6}, 6),
        (b"", True, {"closed": 6}, 6),
        (b"SSH-2.0-OpenSSH\r\n", True, {"protocol": 6}, 6),
    ],
    ids=["length", "chunked", "interim", "close", "eof", "empty", "short", "no-last-chunk", "silent", "not-http"],
)
def test_replies(reply: bytes, close: bool, codes: dict[str, int], opened: int, drip: bool) -> None:
    async def main() -> None:
        async with scripted(reply, close=close, drip=drip) as (url, requests):
            done = await load(url, max_requests=6)
            assert len(requests) == 6
        assert done.recorder.codes == codes
        assert done.opened == opened
        assert done.recorder.providers == ({"p1": 6} if b"p1" in reply else {})

    run(main())


def test_two_replies_to_one_request() -> None:
    """The first is the answer; a connection that says more than it was asked is not used again."""

    async def main() -> None:
        async with scripted(LENGTH + LENGTH) as (url, _):
            done = await load(url, max_requests=4)
        assert done.recorder.codes == {"200": 4}
        assert done.opened == 4

    run(main())


def test_idle_connections_that_are_closed_are_no_errors() -> None:
    """An open loop slow enough that the server's close is seen before the next request."""

    async def main() -> None:
        async with scripted(LENGTH, close=True) as (url, requests):
            done = await load(url, qps=50, duration_s=0.2, concurrency=3)
            assert len(requests) == 10
        assert done.recorder.codes == {"200": 10}
        assert done.opened == 10

    run(main())


@pytest.mark.parametrize("qps", [0.0, 100.0])
def test_refused(qps: float) -> None:
    async def main() -> None:
        done = await load(f"http://127.0.0.1:{unused_port()}", qps=qps, duration_s=0.25, concurrency=2)
        books = done.recorder
        assert set(books.codes) == {"connect"}
        assert books.failures == books.requests
        assert 2 <= books.requests <= 25, "a closed loop does not hammer"
        assert books.latency.count == 0

    run(main())


def test_localhost_is_whatever_answers() -> None:
    """The name may mean ::1 and 127.0.0.1; the server is on one of them."""

    async def main() -> None:
        async with mock() as server:
            done = await load(server.base_url.replace("127.0.0.1", "localhost"))
        assert done.recorder.codes == {"200": 10}

    run(main())


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_https(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ssl

    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    make = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*make, "-days", "2", "-keyout", key, "-out", cert, *subject], check=True, capture_output=True)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(cert, key)

    async def main() -> tuple[dict[str, int], dict[str, int]]:
        async with scripted(LENGTH, tls=tls) as (url, _):
            unknown = await load(url, max_requests=1)
            monkeypatch.setenv("SSL_CERT_FILE", str(cert))
            known = await load(url)
        assert known.opened == 1
        return unknown.recorder.codes, known.recorder.codes

    assert run(main()) == ({"connect": 1}, {"200": 10})


@pytest.mark.parametrize("kind", [LoopTimer, FdTimer] if sys.platform == "linux" else [LoopTimer])
def test_timer(kind: type[LoopTimer | FdTimer]) -> None:
    async def main() -> None:
        fired: list[int] = []
        timer = kind(asyncio.get_running_loop(), lambda: fired.append(time.monotonic_ns()))
        wanted = time.monotonic_ns() + 20_000_000
        timer.arm(wanted + 60_000_000_000)
        timer.arm(wanted)
        await until(lambda: bool(fired))
        assert fired[0] >= wanted - 1_000_000
        await asyncio.sleep(0.005)
        assert len(fired) == 1, "once"
        timer.arm(time.monotonic_ns() - 1)
        await until(lambda: len(fired) == 2)
        timer.arm(time.monotonic_ns() + 1_000_000)
        timer.close()
        timer.close()
        await asyncio.sleep(0.005)
        assert len(fired) == 2

    run(main())
