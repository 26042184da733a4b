"""A whole gateway that recovers: a probe finds a provider that is back, a worker in trouble says no in time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slipstream.mock.app import MockServer
from slipstream.obs.families import PROBES
from slipstream.server import load as load_module
from slipstream.server.load import Load
from tests.aio import RawClient, run, until
from tests.harness import (
    CHAT,
    KEY,
    Answer,
    Gateway,
    Http,
    ask,
    chat_body,
    compiled,
    config,
    gateway,
    mocks,
    request_bytes,
    scrape,
    to,
)
from tests.hotpath import both

KEYED = {"Authorization": f"Bearer {KEY}"}
MB = 1 << 20


async def detailed(running: Gateway) -> dict[str, dict[str, Any]]:
    page = (await ask(running.port, "GET", "/health/detailed", headers=KEYED)).json()
    return {provider["name"]: provider for provider in page["providers"]}


async def chat(running: Gateway, body: bytes | None = None) -> Answer:
    return await ask(running.port, "POST", CHAT, chat_body() if body is None else body, KEYED)


def recovering(*mock: MockServer, **resilience: Any) -> dict[str, Any]:
    """``alpha`` and ``beta`` in one pool."""
    entries = [to(m, name, models=["m"]) for m, name in zip(mock, ("alpha", "beta"), strict=False)]
    return config(*entries, master_api_key=KEY, log_level="error") | {"resilience": resilience}


# ---- probes


def test_a_provider_that_died_is_shut_and_comes_back_by_a_probe_alone() -> None:
    async def main() -> None:
        async with mocks(2) as (alpha, beta):
            port = int(alpha.base_url.rsplit(":", 1)[1].split("/")[0])
            breaker = {"consecutive": 2, "cooldown_s": 0.3, "ramp_s": 0}
            conf = recovering(alpha, beta, probe_s=0.15, breaker=breaker)
            async with gateway(conf) as running:
                await until(lambda: alpha.ledger.requests > 0)
                assert (await detailed(running))["alpha"]["probe"]["ok"] is True
                await alpha.stop()
                row = next(t.row for t in running.runtime.active.routes.targets if t.provider.name == "alpha")
                while not running.runtime.table.breaker(row):
                    running.runtime.table.clear_cooldown(row)  # else it rests for a second after each failure
                    assert (await chat(running)).status == 200
                asked = running.runtime.requests
                # it fails its probes for as long as it is away
                metrics = running.runtime.metrics

                def failed() -> int:
                    return metrics.series.get(metrics.slot(PROBES, ("alpha", "connect")), 0)

                await until(lambda: failed() >= 2)
                assert (await detailed(running))["alpha"]["probe"]["error"] == "connect"
                await alpha.start(port=port)
                await until(lambda: breaker_of(running, row) == "closed", 10)
                assert running.runtime.requests == asked, "no client had to find out"
                assert (await detailed(running))["alpha"]["probe"]["ok"] is True
                seen = await scrape(running.port)
                assert seen.total("slipstream_probes_total", provider="alpha", outcome="none") >= 2
                assert seen.total("slipstream_probes_total", provider="alpha", outcome="connect") >= 2
                assert seen.total("llm_proxy_requests_total") == asked

    run(main())


def breaker_of(running: Gateway, row: int) -> str:
    return running.runtime.active.breakers.state(row, running.runtime.clock())


def test_a_reload_turns_probes_on_and_off() -> None:
    async def main() -> None:
        async with mocks(1) as (alpha,):
            wanted = [recovering(alpha, probe_s=0.05), recovering(alpha)]
            reload = lambda: compiled(wanted.pop(0))  # noqa: E731
            async with gateway(recovering(alpha), reload) as running:
                assert not probing()
                await running.process.reload()
                await until(lambda: alpha.ledger.requests >= 2)
                await running.process.reload()
                await asyncio.sleep(0)
                assert not probing()
                assert (await detailed(running))["alpha"]["probe"] is None

    run(main())


def probing() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "probe"]


# ---- a worker in trouble


@asynccontextmanager
async def in_trouble(kind: str, **admission: Any) -> AsyncIterator[tuple[Gateway, MockServer]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPSTREAM_LISTENER", kind)
        async with mocks(1) as (alpha,), gateway(recovering(alpha, admission=admission)) as running:
            yield running, alpha


def load_of(running: Gateway) -> Load:
    return running.process._app.load


@both
def test_at_its_memory_ceiling_a_worker_refuses_before_the_body(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """R32, Q17: 503 with Retry-After and in the client's dialect; pages are answered; below the ceiling all is well."""
    held = [10 * MB]
    monkeypatch.setattr(load_module, "resident_bytes", lambda: held[0])

    async def main() -> None:
        async with in_trouble(kind, max_rss_mb=100) as (running, alpha):
            assert (await chat(running)).status == 200
            load = load_of(running)
            held[0] = 99 * MB
            load.admission.try_enter()  # something is in flight
            await until(lambda: load.pressed)
            before = alpha.ledger.requests
            for path, shape in ((CHAT, "error"), ("/v1/messages", "type")):
                answer = await ask(running.port, "POST", path, chat_body(max_tokens=1), KEYED)
                assert (answer.status, answer.headers["retry-after"]) == (503, "5")
                assert shape in answer.json()
            # the head is enough: a body of 50 MB is never sent
            client = await RawClient.connect(running.port)
            head = request_bytes("POST", CHAT, b"", KEYED).replace(b"Content-Length: 0", b"Content-Length: 50000000")
            client.writer.write(head)
            assert b"HTTP/1.1 503" in await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), 5)
            client.writer.close()
            assert alpha.ledger.requests == before
            assert (await ask(running.port, "POST", CHAT, chat_body())).status == 401, (
                "who may not call is told only that"
            )
            assert (await ask(running.port, "GET", "/health")).status == 200
            assert (await scrape(running.port)).total("slipstream_shed_total", reason="memory") == 3
            held[0] = 50 * MB
            await until(lambda: not load.pressed)
            assert (await chat(running)).status == 200
            load.admission.leave()

    run(main())


@both
def test_a_refused_request_leaves_its_connection_usable(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held = [99 * MB]
    monkeypatch.setattr(load_module, "resident_bytes", lambda: held[0])

    async def main() -> None:
        async with in_trouble(kind, max_rss_mb=100) as (running, _):
            load = load_of(running)
            load.admission.try_enter()
            await until(lambda: load.pressed)
            async with await Http.connect(running.port) as http:
                assert (await http.ask("POST", CHAT, chat_body(), KEYED)).status == 503
                held[0] = 0
                await until(lambda: not load.pressed)
                assert (await http.ask("POST", CHAT, chat_body(), KEYED)).status == 200
            load.admission.leave()

    run(main())


def test_a_blocked_loop_is_seen_while_it_is_blocked(caplog: pytest.LogCaptureFixture) -> None:
    """S-91: the stack in the log, the lag on the page of metrics; nobody is turned away for one stop."""

    async def main() -> None:
        async with in_trouble("native") as (running, _):
            await until(lambda: load_of(running).lag_s() < 0.3)
            a_handler_that_sleeps(1.3)
            assert load_of(running).lag_s() > 1.0
            answers = await asyncio.gather(*(chat(running) for _ in range(10)))
            assert {answer.status for answer in answers} == {200}
            assert (await scrape(running.port)).total("slipstream_loop_lag_seconds") > 1.0
            assert (await ask(running.port, "GET", "/v1/readyz")).status == 200

    with caplog.at_level(logging.WARNING, "slipstream.server"):
        logging.getLogger("slipstream").setLevel(logging.WARNING)
        run(main())
    lines = [r.__dict__["fields"] for r in caplog.records if r.message == "the event loop is blocked"]
    assert lines
    stacks = [line["stack"] for line in lines]
    assert any("a_handler_that_sleeps" in entry for stack in stacks for entry in stack[:3])
    assert 0.4 < lines[0]["lag_s"] < 1.3


def a_handler_that_sleeps(seconds: float) -> None:
    time.sleep(seconds)
