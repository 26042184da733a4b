"""Several workers as one gateway: what is lost when one is killed, and that nothing is when it is asked to end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from slipstream._fast import COMPILED
from slipstream.mock.app import MockServer
from tests.aio import DEADLINE_S, run, until
from tests.harness import (
    CHAT,
    Config,
    Http,
    Served,
    ask,
    chat_body,
    config,
    mocks,
    request_bytes,
    scrape,
    served,
    to,
    write_config,
)
from tests.pace import soon

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="looks for workers and sockets in /proc"),
    pytest.mark.skipif(not COMPILED, reason="the plain twin of the table is for one process"),
]

WORKERS = 4
CLIENTS = 32
DELAY_S = "0.4"
REQUEST = request_bytes("POST", CHAT, chat_body())


def workers_of(running: Served) -> set[int]:
    task = Path(f"/proc/{running.child.pid}/task/{running.child.pid}/children")
    return {int(pid) for pid in task.read_text().split()}


def peers_of(pid: int, port: int) -> set[int]:
    """Ports of the clients whose connections this process has."""
    inodes = set()
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            inodes.add(os.readlink(fd))
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ours = f"0100007F:{port:04X}"
    return {int(r[2][-4:], 16) for r in rows if r[1] == ours and r[3] == "01" and f"socket:[{r[9]}]" in inodes}


class Load:
    """Clients that ask again and again, each on a connection that it keeps while the gateway does."""

    def __init__(self, port: int, clients: int = CLIENTS, request: bytes = REQUEST) -> None:
        self.port = port
        self.ok = 0
        self.refused = 0
        self.failed: list[tuple[int, str]] = []
        """The client's port, and what happened."""
        self._request = request
        self._go = True
        self._tasks = [asyncio.create_task(self._client()) for _ in range(clients)]

    async def _client(self) -> None:
        http: Http | None = None
        while self._go:
            if http is None:
                try:
                    http = await Http.connect(self.port)
                except ConnectionRefusedError:
                    self.refused += 1
                    await asyncio.sleep(0.005)
                    continue
            here = http.writer.get_extra_info("sockname")[1]
            try:
                http.writer.write(self._request)
                answer = await http.answer()
            except (ConnectionError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.failed.append((here, repr(error)))
                answer = None
            else:
                self.ok += answer.status == 200
                if answer.status != 200:
                    self.failed.append((here, f"{answer.status} {answer.body!r}"))
            if answer is None or answer.headers.get("connection") == "close":
                http.writer.close()
                http = None
        if http is not None:
            http.writer.close()

    async def more(self, requests: int) -> None:
        wanted = self.ok + requests
        await until(lambda: self.ok >= wanted, 4 * DEADLINE_S)

    async def stop(self) -> None:
        self._go = False
        await asyncio.wait_for(asyncio.gather(*self._tasks), 2 * DEADLINE_S)


@asynccontextmanager
async def loaded(port: int, clients: int = CLIENTS) -> AsyncIterator[Load]:
    load = Load(port, clients)
    try:
        await load.more(2 * clients)
        yield load
    finally:
        await load.stop()


async def ended(running: Served) -> int:
    await until(lambda: running.child.poll() is not None, 2 * DEADLINE_S)
    code: int = running.child.returncode
    return code


async def counts(running: Served, requests: float) -> None:
    """Wait until so many answers have been counted, and no more (a worker counts a moment after the answer left)."""
    end = time.monotonic() + DEADLINE_S
    while (seen := (await scrape(running.port)).total("llm_proxy_requests_total", status_code="200")) < requests:
        assert time.monotonic() < end, (seen, requests)
    assert seen == requests


async def serves(pid: int, port: int) -> None:
    """Connect until this worker, which has the fewest connections, has taken one."""
    async with contextlib.AsyncExitStack() as stack:
        end = time.monotonic() + DEADLINE_S
        while not peers_of(pid, port):
            assert time.monotonic() < end, "it takes no connections"
            await stack.enter_async_context(await Http.connect(port))
            await asyncio.sleep(0.005)


def four(*providers: Config, **server: Any) -> Config:
    return config(*providers, workers=WORKERS, **server)


async def all_up(running: Served) -> set[int]:
    await until(said(running, '"worker serves"', WORKERS))
    return workers_of(running)


def test_weights_are_exact_over_all_workers() -> None:
    async def main() -> None:
        async with mocks(2) as (first, second):
            conf = four(to(first, "a", weight=2, models=["m"]), to(second, "b", models=["m"]))
            with served(conf) as running:
                pids = await all_up(running)

                async def client() -> None:
                    async with await Http.connect(running.port) as http:
                        for _ in range(100):
                            assert (await http.ask("POST", CHAT, chat_body())).status == 200

                clients = [asyncio.create_task(client()) for _ in range(30)]
                await until(lambda: sum(len(peers_of(pid, running.port)) for pid in pids) == 30)
                shares = sorted(len(peers_of(pid, running.port)) for pid in pids)
                await asyncio.gather(*clients)
                print(f"connections by worker: {shares}")
                assert shares[0] >= 4, "every worker has its part of the connections"
                assert (first.ledger.requests, second.ledger.requests) == (2000, 1000)

    run(main())


def test_kill_9_of_one_worker() -> None:
    """Q25: only what was in flight on it fails; what was counted stays; a new one serves within half a second."""

    async def main() -> None:
        async with mocks(2, mean_latency_ms=5, p95_latency_ms=6) as (first, second):
            with served(four(to(first, "a"), to(second, "b"))) as running:
                pids = await all_up(running)
                async with loaded(running.port) as load:
                    victim = pids.pop()
                    theirs = peers_of(victim, running.port)
                    start = time.monotonic()
                    os.kill(victim, signal.SIGKILL)
                    await until(lambda: len(workers_of(running) - {victim}) == WORKERS)
                    (new,) = workers_of(running) - pids - {victim}
                    await serves(new, running.port)
                    took = time.monotonic() - start
                    await load.more(500)
                print(f"restart to the first connection: {took * 1000:.0f} ms; {len(load.failed)} requests failed")
                assert soon(took, 0.5)
                assert theirs
                assert {port for port, _ in load.failed} <= theirs, load.failed
                assert pids < workers_of(running), "the others are who they were"

                await until(lambda: first.ledger.open + second.ledger.open == 0)
                seen = await scrape(running.port)
                counted = seen.total("llm_proxy_requests_total", status_code="200")
                # a worker may die after its answer has left and before it has counted, or with one that was not read
                assert load.ok - 1 <= counted <= load.ok + len(load.failed)
                finished = sum(mock.ledger.by_status.get(200, 0) for mock in (first, second))
                assert counted <= finished <= counted + len(load.failed)
                assert seen.total("slipstream_worker_restarts_total") == 1
                assert seen.total("llm_proxy_active_requests") == 0
                before = finished, counted
                async with loaded(running.port) as load:
                    await load.more(1000)
                assert load.failed == []
                await counts(running, before[1] + load.ok)
                finished = sum(mock.ledger.by_status.get(200, 0) for mock in (first, second))
                assert finished - before[0] == load.ok
                assert running.stop() == 0

    run(main())


def test_kill_9_of_everybody(tmp_path: Path) -> None:
    """With a state_dir the counters are there after a restart, and nothing is in flight."""

    async def main() -> None:
        async with mocks(1, mean_latency_ms=5, p95_latency_ms=6) as (mock,):
            conf = four(to(mock), state_dir=str(tmp_path))
            with served(conf) as running:
                await all_up(running)
                async with loaded(running.port) as load:
                    await load.more(300)
                    for pid in (running.child.pid, *workers_of(running)):
                        os.kill(pid, signal.SIGKILL)
                    running.child.wait(DEADLINE_S)
            ok, failed = load.ok, len(load.failed)
            assert failed <= CLIENTS
            with served(conf) as running:
                seen = await scrape(running.port)
                counted = seen.total("llm_proxy_requests_total", status_code="200")
                assert ok - WORKERS <= counted <= ok + failed
                assert seen.total("llm_proxy_active_requests") == 0
                assert seen.total("slipstream_workers") == WORKERS
                assert (await ask(running.port, "POST", CHAT, chat_body())).status == 200
                await counts(running, counted + 1)
                assert running.stop() == 0

    run(main())


def test_kill_9_of_the_supervisor() -> None:
    """The workers notice: a stream is finished, then they end, and nobody listens any more."""

    async def main() -> None:
        async with mocks(1, tokens_per_s=20.0) as (mock,):
            with served(four(to(mock))) as running:
                pids = await all_up(running)
                async with await Http.connect(running.port) as http:
                    http.writer.write(request_bytes("POST", CHAT, chat_body(stream=True)))
                    await http.reader.readuntil(b"data: ")
                    running.child.kill()
                    running.child.wait()
                    rest = await asyncio.wait_for(http.reader.readuntil(b"0\r\n\r\n"), DEADLINE_S)
                    assert b"data: [DONE]" in rest
                await until(lambda: not any(alive(pid) for pid in pids))
                with pytest.raises(ConnectionRefusedError):
                    await Http.connect(running.port)

    run(main())


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_end_under_load(workers: int) -> None:
    """Q22: readiness says 503 at once, clients are told to leave, and no request fails."""

    async def main() -> None:
        async with mocks(1, mean_latency_ms=5, p95_latency_ms=6) as (mock,):
            conf = config(to(mock), workers=workers)
            with served(conf, env={"SLIPSTREAM_DRAIN_DELAY_S": DELAY_S}) as running:
                async with loaded(running.port) as load:
                    start = time.monotonic()
                    running.send(signal.SIGTERM)

                    await asyncio.sleep(0.05)
                    ready = await ask(running.port, "GET", "/v1/readyz")
                    assert (ready.status, ready.headers["connection"]) == (503, "close")
                    assert soon(time.monotonic() - start, 0.1 + float(DELAY_S) / 2)
                    assert await ended(running) == 0
                    assert soon(time.monotonic() - start, float(DELAY_S) + 1.5)
                assert load.failed == []
                assert load.refused > 0
                assert mock.ledger.requests == mock.ledger.by_status[200] == load.ok

    run(main())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def test_rolling_restarts(tmp_path: Path) -> None:
    """Q23: the next gateway starts on the same port before the last one ends: nothing is refused, cut or miscounted."""

    async def main() -> None:
        async with mocks(1, mean_latency_ms=5, p95_latency_ms=6) as (mock,):
            conf = config(to(mock), workers=2, port=free_port(), state_dir=str(tmp_path))
            env = {"SLIPSTREAM_DRAIN_DELAY_S": DELAY_S}
            with contextlib.ExitStack() as stack:
                running = stack.enter_context(served(conf, env=env))
                async with loaded(running.port) as load:
                    for _ in range(3):
                        # not in this thread: the clients and the mock go on meanwhile
                        following = await asyncio.to_thread(stack.enter_context, served(conf, env=env))
                        assert "shared with another gateway" in following.log
                        running.send(signal.SIGTERM)
                        assert await ended(running) == 0
                        running = following
                        await load.more(200)
                assert (load.failed, load.refused) == ([], 0)
                assert mock.ledger.requests == load.ok
                await counts(running, load.ok)
                seen = await scrape(running.port)
                assert seen.total("llm_proxy_active_requests") == 0
                assert seen.total("slipstream_workers") == 2
                assert running.stop() == 0

    run(main(), timeout_s=60)


def test_reload_under_load(tmp_path: Path) -> None:
    """Q24: good and bad files in turn; no request fails, and the last good one holds in all workers."""

    async def main() -> None:
        async with mocks(2, mean_latency_ms=2, p95_latency_ms=3) as (first, second):

            def conf(weight: int) -> Config:
                return four(to(first, "a", weight=weight), to(second, "b"))

            path = write_config(tmp_path, conf(1))
            with served(path) as running:
                await all_up(running)
                async with loaded(running.port) as load:
                    for number in range(1, 6):
                        write_config(tmp_path, conf(1 + number))
                        running.send(signal.SIGHUP)
                        await until(said(running, '"configuration reloaded"', WORKERS * number))
                        write_config(tmp_path, '{"providers": [')
                        running.send(signal.SIGHUP)
                        await until(said(running, '"configuration not reloaded"', number))
                    await load.more(100)
                assert load.failed == []
                seen = await scrape(running.port)
                assert seen.rows("slipstream_config_reloads_total", result="ok")[0][1] == 5
                assert seen.rows("slipstream_config_reloads_total", result="failed")[0][1] == 5
                for _ in range(2 * WORKERS):
                    assert (await scrape(running.port)).total("slipstream_config_generation") == 5
                first.ledger.reset()
                second.ledger.reset()
                for _ in range(70):
                    assert (await ask(running.port, "POST", CHAT, chat_body())).status == 200
                assert (first.ledger.requests, second.ledger.requests) == (60, 10)
                assert running.stop() == 0

    run(main())


def said(running: Served, text: str, times: int) -> Callable[[], bool]:
    return lambda: running.log.count(text) >= times


OWN = ("slipstream_uptime_seconds", "slipstream_resident_memory_bytes", "slipstream_loop_lag_seconds")


def test_any_worker_speaks_for_all() -> None:
    async def main() -> None:
        async with mocks(1) as (mock,):
            with served(four(to(mock))) as running:
                await all_up(running)
                async with loaded(running.port) as load:
                    await load.more(200)
                await asyncio.sleep(1.2)  # connections to providers are told once a second
                pages, healths, seen = Counter[str](), Counter[str](), set()
                for _ in range(30):
                    page = (await ask(running.port, "GET", "/metrics")).body.decode().splitlines()
                    pages["\n".join(line for line in page if not line.startswith(OWN))] += 1
                    seen.add(next(line for line in page if line.startswith(OWN[1] + " ")))
                    health = (await ask(running.port, "GET", "/health/detailed")).json()
                    del health["uptime_s"], health["providers"][0]["connections"]
                    healths[json.dumps(health)] += 1
                assert len(seen) > 1, "more than one worker answered"
                assert len(pages) == len(healths) == 1
                page = await scrape(running.port)
                assert page.total("llm_proxy_requests_total") == load.ok == mock.ledger.requests
                made = page.total("slipstream_upstream_connections_made")
                assert made + page.total("slipstream_upstream_connections_reused") == load.ok
                assert running.stop() == 0

    run(main())


@pytest.mark.parametrize("workers", [1, 2])
def test_the_deadline_of_the_end(workers: int, tmp_path: Path) -> None:
    """R79: what is still in flight ends with an error that says why, is accounted for, and the exit code is 0."""

    async def main() -> None:
        async with mocks(1, tokens_per_s=10.0, completion_tokens=1000) as (mock,):
            conf = config(to(mock), workers=workers, state_dir=str(tmp_path))
            with served(conf, env={"SLIPSTREAM_DRAIN_DEADLINE_S": "0.5"}) as running:
                async with await Http.connect(running.port) as stream, await Http.connect(running.port) as whole:
                    stream.writer.write(request_bytes("POST", CHAT, chat_body(stream=True)))
                    await stream.reader.readuntil(b"data: ")
                    whole.writer.write(request_bytes("POST", CHAT, chat_body("mock/stall")))
                    await until(lambda: mock.ledger.open == 2)
                    start = time.monotonic()
                    running.send(signal.SIGTERM)
                    events = await asyncio.wait_for(stream.reader.read(), DEADLINE_S)
                    answer = await whole.answer()
                    assert await ended(running) == 0
                    took = time.monotonic() - start
                    assert took > 0.4
                    assert soon(took, 2.5)
                assert events.endswith(b"\r\n0\r\n\r\n"), "the framing is whole"
                assert b"[DONE]" not in events
                last = events.rsplit(b"data: ", 1)[1].split(b"\n")[0]
                assert json.loads(last)["error"]["code"] == "shutting_down"
                assert (answer.status, answer.error["code"]) == (503, "shutting_down")
                assert answer.headers["connection"] == "close"
            await counted(conf, mock)

    async def counted(conf: Config, mock: MockServer) -> None:
        with served(conf) as running:
            seen = await scrape(running.port)
            assert seen.total("slipstream_drain_cut_requests_total") == 2
            assert seen.total("llm_proxy_requests_total") == 2  # the stream and the refused one
            assert seen.total("llm_proxy_tokens_total", token_type="completion") > 0
            assert seen.total("llm_proxy_provider_health") == 1, "it says nothing about the provider"
            assert running.stop() == 0

    run(main())
