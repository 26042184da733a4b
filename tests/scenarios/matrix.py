"""The machinery of the fault matrix: a whole gateway between a client of raw bytes and upstreams that misbehave.

A row is one scenario. It is played over both listeners and both transports, and says what the client must see, how
soon, what is counted, and how many calls each upstream may get. What holds for every scenario is checked for every
stage without being asked for: each request is counted once, nothing stays in flight, no attempt beyond three per
request, no secret in any output, no task and no file descriptor left.

Limits are shrunk (``LIMITS``) so that the whole matrix takes seconds. A bound on time has ``SLACK_S`` on top, and is as
many times longer as the machine is slower (``tests.pace``): the rows measure that the gateway reacts to the fault and
not to the next limit.

With ``SLIPSTREAM_MATRIX`` naming a file, every row appends its outcome to it as a line of JSON, and
``tests.scenarios.report`` makes the document of these lines.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from slipstream._fast import requests_begun
from slipstream.obs.log import JsonFormatter
from slipstream.types import NANOS
from tests.aio import DEADLINE_S, run, until
from tests.harness import CHAT, Config, Gateway, Scrape, config, gateway, request_bytes, scrape
from tests.pace import soon
from tests.scenarios.talk import Got, Timed, chat
from tests.upstreams import Script, Up, upstream

LIMITS = {"connect_s": 0.3, "first_byte_s": 0.5, "idle_s": 0.5, "total_s": 3.0}
"""The four limits of every provider, in seconds; the defaults are 5, 60, 300 and 600."""
PATIENCE = {"connect_s": 30.0, "first_byte_s": 30.0, "idle_s": 30.0, "total_s": 60.0}
"""Those of a provider where they have no part in the row."""
SLACK_S = 1.0
ATTEMPTS_MAX = 3
NATIVE, AIOHTTP = ("native", "native"), ("aiohttp", "aiohttp")
EACH = (NATIVE, AIOHTTP)
ALL = (NATIVE, ("native", "aiohttp"), ("aiohttp", "native"), AIOHTTP)
CANARY = "canary-"
HEADER_CANARY = "canary-header-5566778899"
CLIENT_CANARY = "canary-client-1f6e4b2a9d"
OUR_FIELDS = {
    "access-control-allow-origin", "access-control-expose-headers", "cache-control", "connection", "content-length",
    "content-type", "date", "keep-alive", "retry-after", "server", "transfer-encoding", "vary", "x-accel-buffering",
    "x-content-type-options", "x-request-id", "x-should-retry", "x-slipstream-attempts",
    "x-slipstream-dropped-params", "x-slipstream-provider",
}  # fmt: skip
"""The header fields that a client may see, whatever the provider sent."""


def patient(script: Script) -> Config:
    """The entry of a provider whose limits of time have no part in the row."""
    return {"script": script, "timeout": PATIENCE}


def key_of(name: str) -> str:
    return f"{CANARY}key-{name}-77ab34cd01"


# ------------------------------------------------------------------ the stage
class Stage:
    """A gateway and its upstreams, ``a``, ``b``, ... in the order of their first turns."""

    def __init__(self, row: Row, running: Gateway, ups: dict[str, Up], lines: list[str]) -> None:
        self.row = row
        self.running = running
        self.ups = ups
        self.lines = lines
        self.asked = 0
        self.outputs: list[bytes] = []

    async def ask(
        self, stream: bool = False, path: str = CHAT, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Got:
        """One request on a connection of its own."""
        self.asked += 1
        self.row.events = 0
        fields = {"Authorization": f"Bearer {CLIENT_CANARY}", **(headers or {})}
        async with await Timed.connect(self.running.port) as client:
            assert isinstance(client, Timed)
            client.watch(self.row.count_events)
            start = time.monotonic()
            client.writer.write(request_bytes("POST", path, body or chat(stream, path), fields))
            answer = await client.answer()
            now = time.monotonic()
            got = Got(answer, path, now - start, now, client.times)
        self.outputs += [repr(got.headers).encode(), got.body]
        assert set(got.headers) <= OUR_FIELDS, set(got.headers) - OUR_FIELDS
        return got

    def called(self, name: str) -> int:
        """Requests that an upstream has read."""
        return len(self.ups[name].seen)

    async def closed(self, *names: str) -> None:
        """These upstreams have no connection left."""
        for name in names:
            await until(lambda up=self.ups[name]: up.open == 0)  # type: ignore[misc]

    async def scrape(self) -> Scrape:
        return await scrape(self.running.port)

    async def counts(self, failovers: int | None = None, **attempts: dict[str, int] | str) -> None:
        """The attempts by outcome, exactly; a word means one attempt."""
        seen = await self.scrape()
        for name, outcomes in attempts.items():
            wanted = {outcomes: 1} if isinstance(outcomes, str) else outcomes
            rows = seen.rows("slipstream_upstream_attempts_total", provider=name)
            found = {row["outcome"]: value for row, value in rows}
            assert found == wanted, (name, found)
            self.row.note(*(f"attempts{{{o}}}" for o in wanted if o != "none"))
        if failovers is not None:
            assert seen.total("slipstream_failovers_total") == failovers
            if failovers:
                self.row.note("failovers")

    def target(self, name: str) -> int:
        """The row of a provider's statistics."""
        routes = self.running.runtime.active.routes
        return next(t.row for t in routes.targets if t.provider.name == name and t.upstream_model == "m")

    def rest_s(self, name: str) -> float:
        """Seconds for which a provider is left alone."""
        runtime = self.running.runtime
        return max(0.0, runtime.table.cooldown(self.target(name)) / NANOS - runtime.clock())

    async def settled(self) -> None:
        """What holds after every scenario."""
        runtime = self.running.runtime
        await until(lambda: runtime.in_flight == 0)
        rows = {target.row for target in runtime.active.routes.targets}
        assert [runtime.table.in_flight(row) for row in rows] == [0] * len(rows)
        seen = await self.scrape()
        assert seen.total("llm_proxy_active_requests") == 0
        assert seen.total("llm_proxy_requests_total") == self.asked, "a request is counted once"
        assert seen.total("slipstream_upstream_attempts_total") <= ATTEMPTS_MAX * self.asked
        self.outputs += [seen.page.encode(), *(line.encode() for line in self.lines)]
        found = [out for out in self.outputs if CANARY.encode() in out]
        assert not found, found[0][:2000]
        assert all("Traceback" not in line for line in self.lines), self.lines


class Row:
    """One scenario over one pair of listener and transport: its stages, and what the report says of it."""

    def __init__(self, listener: str, transport: str) -> None:
        self.listener = listener
        self.transport = transport
        self.events = 0
        """Events with content that the client of the request in flight has."""
        self.fault_at = 0.0
        self.lines: list[str] = []
        """The log."""
        self.noted: dict[str, None] = {}
        self.worst = [0.0, 1.0]
        """The measured time that came nearest to its bound, and that bound."""

    @property
    def native(self) -> bool:
        """Whether the transport is ours."""
        return self.transport == "native"

    def part(self) -> Row:
        """For a client of its own beside others."""
        return copy.copy(self)

    def count_events(self, more: int) -> None:
        self.events += more

    def note(self, *names: str) -> None:
        self.noted |= dict.fromkeys(names)

    def saw(self, events: int) -> Callable[[], Awaitable[None]]:
        """A piece of a script: wait until the client has so many events; what follows is the fault."""

        async def wait() -> None:
            await until(lambda: self.events >= events)
            self.fault_at = time.monotonic()

        return wait

    def took(self, seconds: float, most: float, least: float = 0.0) -> None:
        """The time bound of the scenario."""
        assert seconds >= least - 0.01, f"{seconds:.3f} s, not {least:g} to {most:g} s"
        assert soon(seconds, most + SLACK_S), f"{seconds:.3f} s, not {least:g} to {most:g} s"
        if seconds / most >= self.worst[0] / self.worst[1]:
            self.worst[:] = seconds, most

    def reacted(self, got: Got, most: float, least: float = 0.0) -> None:
        """From the fault to the end of the answer."""
        self.took(got.ended_at - self.fault_at, most, least)

    @asynccontextmanager
    async def stage(self, *upstreams: Script | Config, **top: Any) -> AsyncIterator[Stage]:
        """A gateway with a provider for each script; a mapping is the entry of a provider, with its ``script`` or its
        ``api_base``. ``top``: further top-level keys of the configuration."""
        async with AsyncExitStack() as stack:
            ups: dict[str, Up] = {}
            entries = []
            for name, given in zip("abcdefgh", upstreams, strict=False):
                entry: Config = dict(given) if isinstance(given, dict) else {"script": given}
                script = entry.pop("script", None)
                if script is not None:
                    ups[name] = await stack.enter_async_context(upstream(script))
                    entry.setdefault("api_base", f"http://127.0.0.1:{ups[name].port}/v1")
                entry.setdefault("api_key", key_of(name))
                entry["timeout"] = LIMITS | entry.get("timeout", {})
                headers = {"X-Extra": HEADER_CANARY}
                entries.append({"name": name, "models": ["m"], "headers": headers, **entry})
            conf = config(*entries, access_log=True, routing=top.pop("routing", {})) | top
            running = await stack.enter_async_context(gateway(conf))
            stage = Stage(self, running, ups, self.lines)
            yield stage
            await stage.settled()


@contextmanager
def _log(lines: list[str]) -> Iterator[None]:
    """The lines that the gateway logs, unredacted: what must not be there must not get as far."""
    formatter = JsonFormatter()

    class Lines(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(formatter.format(record))

    handler, logger = Lines(), logging.getLogger("slipstream")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


# ------------------------------------------------------------------ rows as tests
Play = Callable[[Row], Awaitable[None]]


def scenario(
    id: str, title: str, over: tuple[tuple[str, str], ...] = EACH, missing: str | None = None, timeout_s: float = 90.0
) -> Callable[[Play], Callable[..., None]]:
    """Make a row of the matrix a test. ``missing``: what the gateway lacks for it (the test may fail)."""

    def decorate(play: Play) -> Callable[..., None]:
        @pytest.mark.parametrize(("listener", "transport"), over, ids=["-".join(pair) for pair in over])
        def test(listener: str, transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
            for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
                monkeypatch.delenv(name, raising=False)
                monkeypatch.delenv(name.upper(), raising=False)
            monkeypatch.setenv("SLIPSTREAM_LISTENER", listener)
            monkeypatch.setenv("SLIPSTREAM_TRANSPORT", transport)
            row = Row(listener, transport)
            start, outcome = time.monotonic(), "fail" if missing is None else "xfail"
            try:
                _play(play, row, timeout_s)
                outcome = "pass" if missing is None else "xpass"
            finally:
                _record(id, title, row, outcome, missing, time.monotonic() - start)

        test.__name__ = play.__name__
        test.__doc__ = f"{id} {title}."
        test.__module__ = play.__module__
        return pytest.mark.xfail(strict=False, reason=missing)(test) if missing is not None else test

    return decorate


def _play(play: Play, row: Row, timeout_s: float) -> None:
    run(asyncio.sleep(0))  # the first loop of a process opens what stays open
    before = _descriptors()

    async def main() -> None:
        tasks = asyncio.all_tasks()
        await play(row)
        await until(lambda: asyncio.all_tasks() <= tasks and requests_begun() == 0)

    with _log(row.lines):
        run(main(), timeout_s)
    end = time.monotonic() + DEADLINE_S
    while (left := _descriptors() - before) and time.monotonic() < end:
        time.sleep(0.001)
    assert not left, f"left open: {left}"


def _descriptors() -> Counter[str]:
    """What this process has open, by kind."""
    folder, found = Path("/proc/self/fd"), Counter[str]()
    for name in folder.iterdir() if folder.is_dir() else ():
        with suppress(OSError):  # the one that lists the others
            found[re.sub(r"\d+", "", os.readlink(name))] += 1
    return found


def _record(id: str, title: str, row: Row, outcome: str, missing: str | None, elapsed_s: float) -> None:
    name = os.environ.get("SLIPSTREAM_MATRIX")
    if not name:
        return
    line = {
        "id": id,
        "title": title,
        "listener": row.listener,
        "transport": row.transport,
        "status": outcome,
        "missing": missing,
        "time_s": round(row.worst[0], 4),
        "bound_s": row.worst[1],
        "elapsed_s": round(elapsed_s, 3),
        "counted": list(row.noted),
    }
    with open(name, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
