"""S-84 to S-110: what happens to the process and around it (the fault scenarios of the design, third table).

Most rows need a real process (``house``): its signals, its limits, its log, its end. Rows about the pool and about
bugs in our own parts are played in the test's loop (``Row.stage``). Numbers are shrunk: 500 streams are 40 to 100, a
grace of 10 s is 1 s; each row says what it uses.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import statistics
import struct
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from slipstream._fast import COMPILED
from tests.aio import DEADLINE_S, until
from tests.harness import (
    CHAT,
    Config,
    Http,
    Served,
    ask,
    chat_body,
    command,
    config,
    launched,
    mocks,
    request_bytes,
    scrape,
    served,
    write_config,
)
from tests.integration.test_workers import Load, ended, loaded, peers_of, serves, workers_of
from tests.integration.test_workers import said as logged
from tests.pace import soon
from tests.scenarios.house import Stream, cpu_s, entry, files, house, over, rss, settled, spoken, streams
from tests.scenarios.matrix import EACH, LIMITS, NATIVE, Row, key_of, scenario
from tests.scenarios.talk import (
    DONE,
    LAST,
    MESSAGES,
    chat,
    chunk,
    chunked,
    good,
    http,
    problem,
    reply,
    said,
    says,
    silent,
    words,
)
from tests.upstreams import Peer, free_port, ok, upstream

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for workers and sockets in /proc"),
    pytest.mark.skipif(not COMPILED, reason="the plain twin of the table is for one process"),
]
BODY = chat_body("m")
NO_NOISE = {"mean_latency_ms": 5, "p95_latency_ms": 6}
DELAY_S, GRACE_S = 0.4, 1.0
READY_S = 1.0
"""The lag at which readiness fails, in place of 5 s."""
DRAIN = {"SLIPSTREAM_DRAIN_DELAY_S": str(DELAY_S), "SLIPSTREAM_DRAIN_DEADLINE_S": str(GRACE_S)}


@asynccontextmanager
async def folder() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


async def up(running: Served, workers: int) -> set[int]:
    """All workers serve; their pids."""
    await until(logged(running, '"worker serves"', workers))
    return workers_of(running)


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return True
    return False


async def timed_ask(port: int, body: bytes = BODY, path: str = CHAT, method: str = "POST") -> tuple[int, float]:
    """Status and seconds of one request on a connection of its own."""
    start = time.monotonic()
    answer = await ask(port, method, path, body if method == "POST" else None)
    return answer.status, time.monotonic() - start


# ------------------------------------------------------------------ signals and ends
@scenario("S-84", "worker killed", over=(NATIVE,))
async def test_s84(row: Row) -> None:
    """32 clients and 40 streams (of 500)."""
    async with mocks(1, **NO_NOISE) as (quick,), mocks(1, tokens_per_s=12.0, completion_tokens=26) as (slow,):
        conf = config(entry(quick), entry(slow, "b", models=["s"], timeout={"total_s": 20.0}), workers=4)
        async with house(conf) as running:
            pids = await up(running, 4)
            async with loaded(running.port) as load:
                open_streams = await streams(running.port, 40, "s")
                victim = pids.pop()
                theirs = peers_of(victim, running.port)
                start = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                await until(lambda: len(workers_of(running) - {victim}) == 4)
                (new,) = workers_of(running) - pids - {victim}
                await serves(new, running.port)
                row.took(time.monotonic() - start, 2.0)
                await load.more(300)
            assert {port for port, _ in load.failed} <= theirs, load.failed
            await over(open_streams)
            assert {s.end for s in open_streams if s.here in theirs} <= {"cut"}
            assert {s.end for s in open_streams if s.here not in theirs} == {"done"}
            assert theirs
            seen = await settled(running)
            counted = seen.total("llm_proxy_requests_total", status_code="200", model="m")
            assert load.ok - 1 <= counted <= load.ok + len(load.failed), "what was finished is counted"
            done = sum(s.end == "done" for s in open_streams)
            assert seen.total("llm_proxy_requests_total", status_code="200", model="s") == done
            assert seen.total("slipstream_worker_restarts_total") == 1
            row.note("worker_restarts")


@scenario("S-85", "SIGTERM with streams", over=EACH)
async def test_s85(row: Row) -> None:
    """100 streams (of 500); delay 0.4 s (of 5), grace 1 s (of 10): one half ends in time."""
    slow = {"tokens_per_s": 10.0, "completion_tokens": 1000}
    async with (
        folder() as state,
        mocks(1, tokens_per_s=40.0, completion_tokens=40) as (short,),
        mocks(1, **slow) as (long,),
    ):
        conf = config(entry(short, models=["m"]), entry(long, "b", models=["l"]), workers=2, state_dir=str(state))
        conf["providers"][1]["timeout"]["total_s"] = 60.0
        async with house(conf, env=DRAIN) as running:
            await up(running, 2)
            late, early = await asyncio.gather(streams(running.port, 50, "l"), streams(running.port, 50))
            start = time.monotonic()
            running.send(signal.SIGTERM)
            ready = await ask(running.port, "GET", "/v1/readyz")
            if ready.status == 200:  # the signal is on its way
                await asyncio.sleep(0.02)
                ready = await ask(running.port, "GET", "/v1/readyz")
            row.took(time.monotonic() - start, 0.1)
            assert (ready.status, ready.headers["connection"]) == (503, "close")
            assert not refused(running.port), "it takes connections until the balancer knows"
            assert set(await over(early)) == {"done"}
            assert set(await over(late)) == {"error"}
            assert all(b'"shutting_down"' in one.body for one in late)
            assert await ended(running) == 0
            row.took(time.monotonic() - start, DELAY_S + GRACE_S + 1.0, DELAY_S + GRACE_S)
        async with house(conf) as running:
            assert (await scrape(running.port)).total("slipstream_drain_cut_requests_total") == 50
            row.note("drain_cut_requests")


async def twice(row: Row, number: signal.Signals, workers: int) -> int:
    """A signal, and another while a stream does not end; the exit code."""
    async with mocks(1) as (mock_,):
        conf = config(entry(mock_, models=["mock/*"], timeout={"idle_s": 30.0, "total_s": 60.0}), workers=workers)
        with served(conf) as running:
            if workers > 1:
                await up(running, 2)
            open_streams = await streams(running.port, 3, "mock/stall-mid")
            running.send(number)
            await until(lambda: refused(running.port))
            assert running.child.poll() is None
            start = time.monotonic()
            running.send(number)
            code = await ended(running)
            row.took(time.monotonic() - start, 0.5)
            assert set(await over(open_streams)) <= {"cut", "error"}
            assert "Traceback" not in running.log
            return code


@scenario("S-86", "SIGTERM twice, SIGINT", over=(NATIVE,))
async def test_s86(row: Row) -> None:
    for number, workers in ((signal.SIGTERM, 1), (signal.SIGTERM, 2), (signal.SIGINT, 2)):
        await twice(row, number, workers)


@scenario("S-86", "SIGTERM twice, SIGINT: the exit code", over=(NATIVE,))
async def test_s86_code(row: Row) -> None:
    assert await twice(row, signal.SIGTERM, 1) == 143
    assert await twice(row, signal.SIGINT, 1) == 130
    assert await twice(row, signal.SIGTERM, 2) == 143
    assert await twice(row, signal.SIGINT, 2) == 130


@scenario("S-87", "SIGTERM at start", over=(NATIVE,))
async def test_s87(row: Row) -> None:
    """In the middle of the configuration (a pipe in its place), and at any moment of the start."""
    async with folder() as here:
        pipe = here / "gateway.yaml"
        os.mkfifo(pipe)
        with launched(pipe) as running:
            writer = await opened(pipe, running)
            start = time.monotonic()
            running.send(signal.SIGTERM)
            await ended(running)
            row.took(time.monotonic() - start, 1.0)
            os.close(writer)
            assert (running.announced, running.log) == ("", "")
    port = free_port()
    for workers in (1, 2):
        for wait_s in (0.0, 0.1, 0.2, 0.3, 0.4):
            with launched(config({"name": "a", "type": "mock"}, port=port, workers=workers)) as running:
                await asyncio.sleep(wait_s)
                start = time.monotonic()
                running.send(signal.SIGTERM)
                assert await ended(running) in (0, -signal.SIGTERM)
                row.took(time.monotonic() - start, 1.0)
                assert "Traceback" not in running.log
                assert refused(port)


async def opened(pipe: Path, running: Served) -> int:
    """Wait until the gateway reads the pipe; the writing end."""
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        assert running.child.poll() is None, running.log
        try:
            return os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            await asyncio.sleep(0.005)
    raise AssertionError("the configuration is not read")


# ------------------------------------------------------------------ reload
@scenario("S-88", "SIGHUP valid", over=(NATIVE,))
async def test_s88(row: Row) -> None:
    """100 times weights, keys and limits, with 8 clients that never stop."""
    async with upstream(good) as one, upstream(good) as two, folder() as here:

        def write(number: int) -> Path:
            a = entry(f"http://127.0.0.1:{one.port}/v1", weight=1 + number % 5, api_key=f"{key_of('a')}-{number}")
            b = entry(f"http://127.0.0.1:{two.port}/v1", "b", limits={"max_in_flight": 100 + number})
            return write_config(here, config(a, b))

        async with house(write(0)) as running:
            sizes, handles = [], []
            async with loaded(running.port, 8) as load:
                for number in range(1, 101):
                    write(number)
                    start = time.monotonic()
                    running.send(signal.SIGHUP)
                    await until(logged(running, '"configuration reloaded"', number))
                    row.took(time.monotonic() - start, 1.0)
                    if number in (40, 100):
                        await load.more(100)
                        sizes.append(rss(running.child.pid))
                        handles.append(files(running.child.pid))
                await load.more(50)
            assert load.failed == []
            assert sizes[1] <= 1.05 * sizes[0], f"{sizes}: 60 reloads"
            assert handles[1] <= handles[0] + 8, handles
            one.seen.clear()
            while not one.seen:
                assert (await ask(running.port, "POST", CHAT, BODY)).status == 200
            assert f"{key_of('a')}-100".encode() in one.seen[-1][0]
            seen = await settled(running)
            assert seen.rows("slipstream_config_reloads_total", result="ok")[0][1] == 100
            row.note("config_reloads{ok}")


@scenario("S-89", "SIGHUP invalid", over=(NATIVE,))
async def test_s89(row: Row) -> None:
    async with upstream(good) as up, folder() as here:
        fine = config(entry(f"http://127.0.0.1:{up.port}/v1"))
        a = fine["providers"][0]
        text = json.dumps(fine)
        path = write_config(here, fine)

        def with_entries(*entries: Config) -> str:
            return json.dumps({**fine, "providers": list(entries)})

        bad: dict[str, str | None] = {
            "bad YAML": text.replace('"routing"', "{ [: routing"),
            "unknown key": with_entries({**a, "api_kee": key_of("a")}),
            "missing environment": with_entries({**a, "api_key": "${SLIPSTREAM_TEST_IS_NOT_SET}"}),
            "duplicate name": with_entries(a, a),
            "wrong type": with_entries({**a, "weight": key_of("a")}),
            "half written": text[: text.index(key_of("a")) + 12],
            "empty": "",
            "binary": "\x00\x01" + text,
            "unreadable": None,
        }
        async with house(path) as running:
            for number, (what, content) in enumerate(bad.items(), 1):
                path.unlink()
                if content is None:
                    path.mkdir()  # root can read every file
                else:
                    path.write_text(content)
                start = time.monotonic()
                running.send(signal.SIGHUP)
                await reloads(running, "failed", number, what)
                row.took(time.monotonic() - start, 1.0)
                answer = await ask(running.port, "POST", CHAT, BODY)
                assert answer.status == 200, what
                assert key_of("a").encode() in up.seen[-1][0], "the old configuration, whole"
            assert running.log.count('"configuration not reloaded"') >= len(bad)
            path.rmdir()
            write_config(here, fine)
            running.send(signal.SIGHUP)
            await reloads(running, "ok", 1, "a good one")
            row.note("config_reloads{failed}")


async def reloads(running: Served, result: str, count: int, what: str) -> None:
    end = time.monotonic() + DEADLINE_S
    while (await scrape(running.port)).total("slipstream_config_reloads_total", result=result) < count:
        assert time.monotonic() < end, f"{what}: nothing happened; {running.log[-500:]}"
        await asyncio.sleep(0.005)


# ------------------------------------------------------------------ a process that stands still
async def frozen(row: Row, limits: dict[str, float]) -> None:
    """One worker of two stands still for 1.2 s (of 5) with streams of 10 events a second."""
    async with mocks(1, tokens_per_s=10.0, completion_tokens=24) as (slow,), mocks(1) as (quick,):
        a, b = entry(slow, models=["s"], timeout={"total_s": 20.0, **limits}), entry(quick, "b")
        async with house(config(a, b, workers=2)) as running:
            pids = await up(running, 2)
            open_streams = await streams(running.port, 20, "s")
            victim = pids.pop()
            theirs = peers_of(victim, running.port)
            assert theirs
            os.kill(victim, signal.SIGSTOP)
            try:
                until_s = time.monotonic() + 1.2
                while time.monotonic() < until_s:
                    status, took = await timed_ask(running.port)
                    assert status == 200
                    row.took(took, 0.1)
            finally:
                os.kill(victim, signal.SIGCONT)
            start = time.monotonic()
            await until(lambda: all(s.times[-1] > start for s in open_streams if s.here in theirs and not s.end))
            row.took(time.monotonic() - start, 1.0)
            assert set(await over(open_streams)) == {"done"}, [s.end for s in open_streams]
            seen = await settled(running)
            assert seen.total("slipstream_upstream_attempts_total", outcome="timeout") == 0
            assert seen.total("slipstream_targets_ejected_total") == 0


@scenario("S-90", "frozen worker", over=(NATIVE,))
async def test_s90(row: Row) -> None:
    await frozen(row, {"idle_s": 5.0, "first_byte_s": 5.0})


@scenario("S-90", "frozen worker: limits shorter than the pause", over=(NATIVE,))
async def test_s90_limits(row: Row) -> None:
    await frozen(row, {"idle_s": 0.5, "first_byte_s": 0.5})


HOOK = """
import signal, sys, time
def block(*_):
    sys.modules["slipstream.server.pages"].READY_LAG_S = {ready}
    time.sleep({seconds})
signal.signal(signal.SIGUSR1, block)
"""


async def blocked(here: Path, seconds: float) -> dict[str, str]:
    """The environment of a gateway whose loop stands still for so long at each SIGUSR1."""
    (here / "sitecustomize.py").write_text(HOOK.format(seconds=seconds, ready=READY_S))
    return {"PYTHONPATH": os.pathsep.join(filter(None, (str(here), os.environ.get("PYTHONPATH"))))}


@scenario("S-91", "blocked loop", over=(NATIVE,))
async def test_s91(row: Row) -> None:
    """Nothing but latency: no attempt fails, and it goes on as before."""
    conf_of = {"first_byte_s": 3.0}
    async with (
        folder() as here,
        mocks(1, mean_latency_ms=100, p95_latency_ms=101) as (mock_,),
        house(config(entry(mock_, timeout=conf_of)), env=await blocked(here, 0.7)) as running,
    ):
        assert (await timed_ask(running.port))[0] == 200
        waiting = [asyncio.create_task(timed_ask(running.port)) for _ in range(10)]
        await until(lambda: mock_.ledger.open == 10)
        running.send(signal.SIGUSR1)
        for status, took in await asyncio.gather(*waiting):
            assert status == 200
            row.took(took, 0.9)
        status, took = await timed_ask(running.port)
        assert status == 200
        row.took(took, 0.2)
        seen = await settled(running)
        assert seen.total("slipstream_upstream_attempts_total", outcome="none") == 12


@scenario("S-91", "blocked loop: a watchdog says where, readiness fails", over=(NATIVE,))
async def test_s91_stack(row: Row) -> None:
    """1.5 s long; readiness fails from 1 s of lag on (of 5)."""
    async with (
        folder() as here,
        mocks(1) as (mock_,),
        house(config(entry(mock_)), env=await blocked(here, 1.5)) as running,
    ):
        assert (await timed_ask(running.port))[0] == 200
        await asyncio.sleep(0.3)  # it has measured
        running.send(signal.SIGUSR1)
        start = time.monotonic()
        await until(lambda: "sitecustomize" in running.log, 3.0)
        row.took(time.monotonic() - start, 1.4)
        assert (await ask(running.port, "GET", "/v1/readyz")).status == 503, "it answers when the loop goes on"
        assert (await timed_ask(running.port))[0] == 200, "one long stop turns nobody away"
        assert (await scrape(running.port)).total("slipstream_loop_lag_seconds") > 1.0
        row.note("loop_lag_seconds")
        await asyncio.sleep(1.2)
        assert (await ask(running.port, "GET", "/v1/readyz")).status == 200


# ------------------------------------------------------------------ what the system does not give
@scenario("S-92", "fd exhaustion", over=EACH)
async def test_s92(row: Row) -> None:
    """The limit of a running gateway is set to a dozen above what it uses, then 60 clients come."""
    async with mocks(1) as (mock_,), house(config(entry(mock_))) as running:
        pid = running.child.pid
        async with await Http.connect(running.port) as known:
            assert (await known.ask("POST", CHAT, BODY)).status == 200
            _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (files(pid) + 12, hard))
            crowd = [await Http.connect(running.port) for _ in range(60)]
            await until(logged(running, '"cannot accept"', 1))
            lines, used, start = running.log.count("\n"), cpu_s(pid), time.monotonic()
            while time.monotonic() - start < 1.0:
                assert (await known.ask("POST", CHAT, BODY)).status == 200, "who is there is served"
                await asyncio.sleep(0.05)
            assert running.log.count("\n") - lines <= 15, "the log is limited"
            assert soon(cpu_s(pid) - used, 0.3), "it does not turn in circles"
            with contextlib.suppress(ConnectionError):  # no file for a second connection to the provider
                both = await asyncio.gather(known.ask("POST", CHAT, BODY), crowd[0].ask("POST", CHAT, BODY))
                assert {answer.status for answer in both} <= {200, 502, 503}
            for one in crowd:
                one.writer.close()
            start = time.monotonic()
            status, _ = await timed_ask(running.port)
            row.took(time.monotonic() - start, 1.0)
            assert status == 200
            assert (await timed_ask(running.port))[0] == 200
            assert (await settled(running)).total("slipstream_targets_ejected_total") == 0


async def answers_in_time(running: Served, requests: int) -> None:
    """Each of them with a line in the log that cannot be written."""
    for _ in range(requests):
        status, _ = await asyncio.wait_for(timed_ask(running.port), 1.0)
        assert status == 200


@asynccontextmanager
async def full_disk(running: Served) -> AsyncIterator[None]:
    """From here on every write to the log fails, as on a full disk."""
    size = (running.folder / "stderr.txt").stat().st_size
    _, hard = resource.prlimit(running.child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(running.child.pid, resource.RLIMIT_FSIZE, (size, hard))
    yield
    resource.prlimit(running.child.pid, resource.RLIMIT_FSIZE, (hard, hard))


@scenario("S-93", "log disk full", over=EACH)
async def test_s93(row: Row) -> None:
    """A limit on the size of files: each write fails (EFBIG here, ENOSPC on a disk)."""
    async with mocks(1) as (mock_,), house(config(entry(mock_), access_log=True)) as running:
        await answers_in_time(running, 20)
        await until(lambda: running.log.count('"msg":"request"') == 20)  # a thread writes them
        lines = running.log.count("\n")
        async with full_disk(running):
            before = rss(running.child.pid)
            start = time.monotonic()
            await answers_in_time(running, 300)
            row.took((time.monotonic() - start) / 300, 0.02)
            assert rss(running.child.pid) - before < 4 << 20
            assert running.log.count("\n") <= lines
        await answers_in_time(running, 20)
        await until(lambda: running.log.count('"msg":"request"') >= 35)  # and it goes on
        assert (await settled(running)).total("llm_proxy_requests_total") == 340


@scenario("S-93", "log disk full: drops are counted", over=(NATIVE,))
async def test_s93_counted(row: Row) -> None:
    async with mocks(1) as (mock_,), house(config(entry(mock_), access_log=True)) as running:
        async with full_disk(running):
            await answers_in_time(running, 30)
            end = time.monotonic() + DEADLINE_S
            while (await scrape(running.port)).total("slipstream_log_dropped_total") < 25:  # a thread writes them
                assert time.monotonic() < end
        row.note("log_dropped")


@scenario("S-94", "stdout blocked", over=(NATIVE,))
async def test_s94(row: Row) -> None:
    """The log is a pipe of one page that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        async with folder() as here, mocks(1) as (mock_,):
            with spoken(config(entry(mock_), access_log=True), here, writer) as running:
                start = time.monotonic()
                await answers_in_time(running, 100)
                row.took((time.monotonic() - start) / 100, 0.02)
    finally:
        os.close(reader)
        os.close(writer)


@scenario("S-94", "stdout blocked: workers", over=(NATIVE,))
async def test_s94_workers(row: Row) -> None:
    """A worker that dies is replaced meanwhile, and the end is not held up."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    try:
        async with folder() as here, mocks(1) as (mock_,):
            with spoken(config(entry(mock_), access_log=True, workers=2), here, writer) as running:
                await answers_in_time(running, 60)
                victim = workers_of(running).pop()
                start = time.monotonic()
                os.kill(victim, signal.SIGKILL)
                await until(lambda: len(workers_of(running) - {victim}) == 2)
                row.took(time.monotonic() - start, 2.0)
                await answers_in_time(running, 40)
                start = time.monotonic()
                running.send(signal.SIGTERM)
                assert await ended(running) == 0
                row.took(time.monotonic() - start, 1.5)
    finally:
        os.close(reader)
        os.close(writer)


@pytest.mark.skip(reason="S-95: there is no usage database yet")
def test_s95() -> None:
    """S-95 usage DB down, slow, locked."""


@pytest.mark.skip(reason="S-96: there is no Redis backend yet")
def test_s96() -> None:
    """S-96 Redis down."""


@pytest.mark.skip(reason="S-97: there is no Redis backend yet")
def test_s97() -> None:
    """S-97 Redis slow."""


@pytest.mark.skip(reason="S-98: there is no Redis backend yet")
def test_s98() -> None:
    """S-98 Redis emptied."""


@scenario("S-99", "clock jump", over=EACH)
async def test_s99(row: Row) -> None:
    """The wall clock of this process, an hour ahead or back in the middle of a stream."""
    real, ahead = time.time, [0.0]

    def now_there() -> float:
        return real() + ahead[0]

    limited = says(http(429, problem("slow down"), "Retry-After: 20"))
    for hour in (3600.0, -3600.0):

        async def jump(hour: float = hour) -> None:
            ahead[0] = hour
            await asyncio.sleep(0.1)

        script = says(*chunked(*words(2)), row.saw(2), jump, chunk(DONE), LAST)
        with mock.patch("time.time", now_there):
            async with row.stage(script, {"script": limited, "models": ["other"]}) as s:
                s.running.runtime.wall = time.time
                (await s.ask(body=chat(model="other"))).failed(429)
                row_of = next(t.row for t in s.running.runtime.active.routes.targets if t.provider.name == "b")
                rest, start = s.running.runtime.table.cooldown(row_of), time.monotonic()
                got = await s.ask(True)
                got.good(said(2))
                row.took(got.took_s, 0.3)
                assert s.running.runtime.table.cooldown(row_of) == rest, "rests are on the monotonic clock"
                after = (await s.ask(body=chat(model="other"))).failed(429)
                assert after["message"]
                assert s.called("b") == 1, "it still rests"
                await s.counts(0, a="none", b="rate_limited")
                seen = await s.scrape()
                sums = [
                    v for f in seen.families.values() for x in f.samples if x.name.endswith("_sum") for v in [x.value]
                ]
                assert all(0 <= value < 60 for value in sums)
                assert 0 <= seen.total("slipstream_uptime_seconds") < 60
                while (now := time.monotonic()) < start + 2.0:  # it is made once a second
                    date = (await s.ask(body=chat(model="other"))).headers["date"]
                    if abs(parsedate_to_datetime(date).timestamp() - real() - hour) < 3:
                        break
                    await asyncio.sleep(0.1)
                assert now < start + 2.0, "the date follows the clock"
        ahead[0] = 0.0


# ------------------------------------------------------------------ much of everything
@scenario("S-100", "1,000,000 requests (small form: 4,000 with the warm-up)", over=(NATIVE,))
async def test_s100(row: Row) -> None:
    """10 % streams, 1 % faults: after 1,000 nothing grows any more."""
    async with mocks(2, error_rate=0.01) as (one, two), house(config(entry(one), entry(two, "b"))) as running:
        pid, idle = running.child.pid, files(running.child.pid)
        stream = request_bytes("POST", CHAT, chat(True))
        loads = [Load(running.port, 9, request_bytes("POST", CHAT, BODY)), Load(running.port, 1, stream)]

        async def more(requests: int) -> tuple[int, int, int]:
            wanted = sum(load.ok for load in loads) + requests
            await until(lambda: sum(load.ok for load in loads) >= wanted, 30.0)
            page = (await ask(running.port, "GET", "/metrics")).body
            return rss(pid), files(pid), page.count(b"\n")

        try:
            first = await more(1000)
            last = await more(3000)
        finally:
            for load in loads:
                await load.stop()
        ok, failed = sum(load.ok for load in loads), sum(len(load.failed) for load in loads)
        assert failed <= 0.005 * ok, "two faults in a row are rare"
        assert last[0] <= 1.05 * first[0], (first, last)
        assert last[1] <= idle + 10 + 20 + 5, "10 clients, and 10 connections to each provider"
        assert last[2] <= first[2] + 40, "series"
        await settled(running)


@scenario("S-101", "10,000 idle connections", over=(NATIVE,))
async def test_s101(row: Row) -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    count = min(10_000, soft - 1000)
    request = request_bytes("POST", CHAT, BODY)
    linger = struct.pack("ii", 1, 0)
    fake = {"name": "a", "type": "mock", "mock": {"mean_latency_ms": 0, "p95_latency_ms": 0}}
    async with house(config(fake)) as running:
        pid = running.child.pid
        for _ in range(50):
            assert (await timed_ask(running.port))[0] == 200
        before = rss(pid)
        crowd: list[socket.socket] = []
        try:
            while len(crowd) < count:  # no loop of ours is needed: the provider is in the gateway
                batch = [
                    socket.create_connection(("127.0.0.1", running.port)) for _ in range(min(200, count - len(crowd)))
                ]
                crowd += batch
                for sock in batch:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)  # no TIME_WAIT afterwards
                    sock.settimeout(DEADLINE_S)
                    sock.sendall(request)
                assert all(sock.recv(65_536).startswith(b"HTTP/1.1 200") for sock in batch)
            grown = rss(pid) - before
            assert grown <= count * 20 * 1024, f"{grown / count / 1024:.1f} KiB a connection"
            await asyncio.sleep(0.5)
            used = cpu_s(pid)
            await asyncio.sleep(2.0)
            assert cpu_s(pid) - used <= 2.0 * 0.02 + 0.02, "2 % of a core, and a tick of the measure"
            status, took = await timed_ask(running.port)
            assert status == 200
            row.took(took, 0.05)
        finally:
            for sock in crowd:
                sock.close()
        await until(lambda: files(pid) < 1000)  # those to the provider live on


@scenario("S-102", "2,000 open streams (small form: 100)", over=(NATIVE,))
async def test_s102(row: Row) -> None:
    """20 events a second each; p99 of their gaps, and of new requests beside them."""
    async with mocks(1, tokens_per_s=20.0, completion_tokens=30) as (slow,), mocks(1) as (quick,):
        conf = config(entry(slow, models=["s"], timeout={"total_s": 20.0}), entry(quick, "b"))
        async with house(conf) as running:
            alone = sorted([(await timed_ask(running.port))[1] for _ in range(60)])
            made = await streams(running.port, 100, "s")
            beside = sorted([(await timed_ask(running.port))[1] for _ in range(60)])
            assert set(await over(made)) == {"done"}
            gaps = sorted(b - a for one in made for a, b in pairwise(one.times))
            row.took(gaps[int(0.99 * len(gaps))], 0.1)
            row.took(beside[57], max(2 * alone[57], 0.05))


@pytest.mark.skipif(shutil.which("stress-ng") is None, reason="S-103: stress-ng is not installed")
def test_s103() -> None:
    """S-103 CPU starved."""
    pytest.skip("S-103: is played where stress-ng is installed")


async def thousand(port: int, count: int, body: bytes) -> list[Any]:
    return await asyncio.gather(*(ask(port, "POST", CHAT, body) for _ in range(count)))


@scenario(
    "S-104",
    "memory pressure",
    over=(NATIVE,),
)
async def test_s104(row: Row) -> None:
    """A ceiling 30 MB above what it uses; 60 prompts of 1 MB that nobody answers."""
    large = chat(content="x" * 1_000_000)
    silence = entry("", "a", timeout={"first_byte_s": 1.5, "total_s": 2.0})
    async with upstream(silent) as up_:
        silence["api_base"] = f"http://127.0.0.1:{up_.port}/v1"
        with served(config(silence)) as running:
            base = rss(running.child.pid)
            assert running.stop() == 0
        ceiling = int(base / 2**20) + 30
        conf = {**config(silence), "resilience": {"admission": {"max_rss_mb": ceiling}}}
        async with house(conf) as running:
            answers = []
            for _ in range(6):
                answers.append(asyncio.create_task(thousand(running.port, 10, large)))
                await asyncio.sleep(0.3)
            assert (await ask(running.port, "GET", "/health")).status == 200
            assert (await ask(running.port, "GET", "/metrics")).status == 200
            shed = [a for batch in await asyncio.gather(*answers) for a in batch if a.status == 503]
            assert shed
            assert all(int(a.headers["retry-after"]) >= 1 for a in shed)
            assert running.child.poll() is None


@scenario("S-105", "10x overload (small form)", over=EACH)
async def test_s105(row: Row) -> None:
    """A provider that is good for 50 a second (2 places, 40 ms) gets 500 a second for 1.5 s."""
    async with mocks(1, mean_latency_ms=40, p95_latency_ms=40) as (mock_,):
        conf = {
            **config(
                entry(mock_, limits={"max_in_flight": 2, "queue": 4}, timeout={"connect_s": 3.0, "first_byte_s": 3.0})
            ),
            "resilience": {"admission": {"queue_wait_s": 0.2}},
        }
        async with house(conf) as running:
            tasks: list[asyncio.Task[tuple[int, float]]] = []
            pages: list[asyncio.Task[tuple[int, float]]] = []
            start = time.monotonic()
            while (now := time.monotonic() - start) < 1.5:
                while len(tasks) < now * 500:
                    tasks.append(asyncio.create_task(timed_ask(running.port)))
                if len(pages) < now * 5:
                    path = ("/health", "/metrics", "/v1/healthz")[len(pages) % 3]
                    pages.append(asyncio.create_task(timed_ask(running.port, path=path, method="GET")))
                await asyncio.sleep(0.001)
            answers = await asyncio.gather(*tasks)
            spent = time.monotonic() - start
            statuses = Counter(status for status, _ in answers)
            assert set(statuses) <= {200, 429, 503}, statuses
            assert soon(0.7 * 50 * 1.5, statuses[200]), (statuses, spent)
            assert statuses[200] < len(answers)
            assert {status for status, _ in await asyncio.gather(*pages)} == {200}
            start = time.monotonic()
            while True:
                if all(
                    status == 200 for status, _ in await asyncio.gather(*(timed_ask(running.port) for _ in range(4)))
                ):
                    break
                assert time.monotonic() - start < 5.0
            row.took(time.monotonic() - start, 5.0)
            assert (await settled(running)).total("slipstream_targets_ejected_total") == 0


# ------------------------------------------------------------------ our own bugs, bad starts, restarts
class Broken:
    """A transport with a bug."""

    def __init__(self, inner: Any, how: Callable[[], Any]) -> None:
        self._inner = inner
        self._how = how

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def send(self, request: Any) -> Any:
        return await self._how()


async def raises() -> None:
    raise RuntimeError(f"secret {key_of('a')}")


async def returns() -> None:
    return None


async def hangs() -> None:
    await asyncio.Event().wait()


async def cancels() -> None:
    raise asyncio.CancelledError


async def buggy(row: Row, how: Callable[[], Any], status: int, bound_s: float, times: int = 3) -> None:
    for path in (CHAT, MESSAGES):
        for stream in (False, True):
            async with row.stage({"script": good, "limits": {"max_in_flight": 2, "queue": 2}}) as s:
                outbound: Any = s.running.runtime.active.outbound["a"]
                inner = outbound.transport
                (await s.ask()).good()
                for _ in range(times):
                    outbound.transport = Broken(inner, how)
                    got = await s.ask(stream, path)
                    outbound.transport = inner
                    got.failed(status)
                    assert b"RuntimeError" not in got.body
                    assert b".py" not in got.body
                    row.took(got.took_s, bound_s)
                    s.running.runtime.table.clear_cooldown(s.target("a"))
                (await s.ask()).good()
                assert not s.running.runtime.table.in_flight(s.target("a"))


@scenario("S-106", "bug in a plug-in: raises", over=EACH)
async def test_s106(row: Row) -> None:
    await buggy(row, raises, 500, 0.02)


@scenario("S-106", "bug in a plug-in: returns None", over=EACH)
async def test_s106_none(row: Row) -> None:
    await buggy(row, returns, 500, 0.02)


@scenario("S-106", "bug in a plug-in: hangs", over=(NATIVE,))
async def test_s106_hangs(row: Row) -> None:
    await buggy(row, hangs, 504, LIMITS["first_byte_s"], times=1)


@scenario("S-106", "bug in a plug-in: raises CancelledError", over=EACH)
async def test_s106_cancels(row: Row) -> None:
    await buggy(row, cancels, 500, 0.02)


def bad_starts(here: Path, port: int) -> dict[str, tuple[list[str], dict[str, str]]]:
    """What is wrong, and how it is started."""
    fake = {"name": "a", "type": "mock"}

    def conf(name: str, value: Config | str) -> list[str]:
        return ["--config", str(write_config(here, value, name + ".yaml"))]

    return {
        "port in use": (["--demo", "--port", str(port)], {}),
        "bad configuration": (conf("bad", config({**fake, "weight": "much"})), {}),
        "not YAML": (conf("yaml", "providers: [" + key_of("a")), {}),
        "no such file": (["--config", str(here / "nothing.yaml")], {}),
        "missing key": (
            conf("key", config({**fake, "type": "openai", "api_key": "${SLIPSTREAM_TEST_IS_NOT_SET}"})),
            {},
        ),
        "bad environment": (["--demo"], {"SLIPSTREAM_DRAIN_DELAY_S": "soon"}),
    }


async def start_badly(row: Row) -> dict[str, int]:
    codes = {}
    async with folder() as here:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            for what, (args, env) in bad_starts(here, taken.getsockname()[1]).items():
                start = time.monotonic()
                done = await asyncio.to_thread(command, "serve", *args, env=env)
                row.took(time.monotonic() - start, 2.0)
                assert done.stdout == "", what
                assert len(done.stderr.splitlines()) == 1, (what, done.stderr)
                assert "Traceback" not in done.stderr
                assert key_of("a") not in done.stderr
                codes[what] = done.returncode
    return codes


@scenario("S-107", "bad start", over=(NATIVE,))
async def test_s107(row: Row) -> None:
    assert all((await start_badly(row)).values())


@scenario("S-107", "bad start: the exit code", over=(NATIVE,))
async def test_s107_code(row: Row) -> None:
    assert set((await start_badly(row)).values()) == {2}


@scenario("S-107", "bad start: without the compiled parsers", over=(NATIVE,))
async def test_s107_parser(row: Row) -> None:
    """aiohttp's, and ours (a module that cannot be imported); one process and two."""
    async with folder() as here:
        (here / "sitecustomize.py").write_text("import sys\nsys.modules['slipstream._fast.http1'] = None\n")
        ways = {"C parser": {"AIOHTTP_NO_EXTENSIONS": "1"}, "compiled modules": {"PYTHONPATH": str(here)}}
        for says, env in ways.items():
            for workers in (1, 2):
                start = time.monotonic()
                with launched(config(entry("http://127.0.0.1:1/v1"), workers=workers), env=env) as running:
                    assert await ended(running) == 2
                    row.took(time.monotonic() - start, 2.0)
                    assert says in running.log
                    assert running.log.count("\n") <= 2, "one line, and the note about the key"
                    assert "Traceback" not in running.log


@scenario("S-108", "rolling restart (3 of 10)", over=(NATIVE,))
async def test_s108(row: Row) -> None:
    async with folder() as state, mocks(1, **NO_NOISE) as (quick,), mocks(1, tokens_per_s=20.0) as (slow,):
        port = free_port()
        a, b = entry(quick), entry(slow, "b", models=["s"], timeout={"total_s": 20.0})
        conf = config(a, b, workers=2, port=port, state_dir=str(state))
        env = {"SLIPSTREAM_DRAIN_DELAY_S": "0.2"}
        with contextlib.ExitStack() as stack:
            running = stack.enter_context(served(conf, env=env))
            made: list[Stream] = []
            async with loaded(port, 16) as load:
                for _ in range(3):
                    made += await streams(port, 5, "s")
                    following = await asyncio.to_thread(stack.enter_context, served(conf, env=env))
                    start = time.monotonic()
                    running.send(signal.SIGTERM)
                    assert await ended(running) == 0
                    row.took(time.monotonic() - start, 3.0)
                    running = following
                    await load.more(100)
            assert (load.failed, load.refused) == ([], 0)
            assert set(await over(made)) == {"done"}
            seen = await settled(running)
            assert seen.total("llm_proxy_requests_total") == load.ok + len(made)
            assert running.stop() == 0


# ------------------------------------------------------------------ the pool
@scenario("S-109", "half of the pool dies", over=(NATIVE,))
async def test_s109(row: Row) -> None:
    """3 of 5 from one moment on, at 200 a second for 2 s."""
    down = False

    async def dies(peer: Peer) -> None:
        while await peer.request() is not None:
            if down:
                peer.reset()
                return
            await peer.send(ok(reply()))

    async with row.stage(dies, dies, dies, good, good) as s:
        for _ in range(10):
            (await s.ask()).good()
        asked: list[asyncio.Task[tuple[float, int]]] = []
        down, start = True, time.monotonic()

        async def one() -> tuple[float, int]:
            at = time.monotonic() - start
            return at, (await s.ask()).status

        while (now := time.monotonic() - start) < 2.0:
            if len(asked) < now * 200:
                asked.append(asyncio.create_task(one()))
            await asyncio.sleep(0.001)
        answers = await asyncio.gather(*asked)
        assert 503 not in {status for _, status in answers}, "while a stub is healthy"
        late = [at for at, status in answers if status != 200]
        row.took(max(late, default=0.0), 1.0)
        assert len(late) <= 0.05 * len(answers), late
        seen = await s.scrape()
        ejected = seen.total("slipstream_targets_ejected_total")
        assert ejected <= 2, "not more than a half of the pool is out"
        row.note("targets_ejected")


class Outage:
    """Two upstreams that refuse, and the gateway's clock in the hands of the test."""

    def __init__(self) -> None:
        self.down = True
        self.now = 0.0

    async def script(self, peer: Peer) -> None:
        if self.down:
            peer.reset()
            return
        await good(peer)

    def take(self, runtime: Any) -> None:
        self.now = runtime.clock()
        runtime.clock = lambda: self.now


@scenario("S-110", "all die, then return", over=(NATIVE,))
async def test_s110(row: Row) -> None:
    """60 s with a request each: all refused at once, none queued; the first after the return is served."""
    outage = Outage()
    async with row.stage(outage.script, outage.script, outage.script) as s:
        outage.take(s.running.runtime)
        for _ in range(60):
            outage.now += 1.0
            got = await s.ask()
            assert got.status in (502, 503)
            row.took(got.took_s, 0.01)
        outage.down = False
        back = outage.now
        while (await s.ask()).status != 200:
            outage.now += 0.1
            assert outage.now - back <= 1.0
        row.note("targets_ejected")
        for up_ in s.ups.values():
            up_.seen.clear()
        for _ in range(20):
            (await s.ask()).good()
        outage.now += 320.0
        for _ in range(40):  # through the ramps, until all have their part again
            outage.now += 1.0
            for _ in range(3):
                (await s.ask()).good()
        assert min(s.called(name) for name in "abc") >= 10


@scenario("S-110", "all die, then return: the answer", over=EACH)
async def test_s110_answer(row: Row) -> None:
    """The first hears of its own failure; when all have failed five times, it is an outage, until the first success."""
    outage = Outage()
    async with row.stage(outage.script, outage.script) as s:
        outage.take(s.running.runtime)
        (await s.ask()).failed(502)
        for _ in range(20):
            outage.now += 0.5
            got = await s.ask()
        for path in (CHAT, MESSAGES):
            for stream in (False, True):
                got = await s.ask(stream, path)
                error = got.failed(503, "no_provider")
                assert error["type"] == "overloaded_error"
                assert 1 <= int(got.headers["retry-after"]) <= 30
                row.took(got.took_s, 0.01)
        assert statistics.median([(await s.ask()).took_s for _ in range(5)]) < 0.05
        outage.down = False
        (await s.ask()).good()
        row.note("requests{503}")
