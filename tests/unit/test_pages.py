"""What our own pages say of the providers: from the shared table, so of all workers, and of nothing but what was told
(contracts C, Q03)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from slipstream.config.snapshot import Price
from slipstream.engine.runtime import Runtime
from slipstream.obs.families import ATTEMPTS
from slipstream.server import pages
from slipstream.types import FailureClass
from tests.fakes import HANG, WALL, Plan, World, delta, ok, refuse, spec, stream
from tests.virtual import loop_now, run_virtual

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("slipstream.request").setLevel(logging.CRITICAL)


def providers(world: World, runtime: Runtime | None = None) -> dict[str, Any]:
    return {p["name"]: p for p in pages.health_detailed(runtime or world.runtime)["providers"]}


def samples(world: World, runtime: Runtime | None = None) -> dict[tuple[str, tuple[str, ...]], float]:
    """The values of the page by name and label values."""
    page, _ = pages.metrics(runtime or world.runtime, OPEN_METRICS)
    return {
        (s.name, tuple(s.labels.values())): s.value
        for family in text_string_to_metric_families(page.decode())
        for s in family.samples
    }


def test_nothing_has_happened() -> None:
    async def main() -> None:
        world = World({"a": [ok()]})
        page = pages.health_detailed(world.runtime)
        assert (page["status"], page["ready"], page["in_flight"]) == ("ok", True, 0)
        (a,) = page["providers"]
        expected = {"healthy": True, "attempts": 0, "failures": 0, "last_failure": None, "latency_ms": None}
        assert {key: a[key] for key in expected} == expected
        assert a["resting_s"] == 0.0
        assert not any(name.startswith("llm_proxy_provider_") for name, _ in samples(world)), "no guess about health"

    run_virtual(main())


def test_health_follows_the_last_telling_attempt() -> None:
    async def main() -> None:
        world = World({"a": [Plan(wait_s=0.8, fail=None, steps=ok().steps), refuse(500), ok()]}, retries=0)
        await world.ask()
        a = providers(world)["a"]
        assert (a["healthy"], a["attempts"], a["failures"], a["latency_ms"]) == (True, 1, 0, 800.0)
        await world.ask()
        a = providers(world)["a"]
        assert (a["healthy"], a["attempts"], a["failures"], a["last_failure"]) == (False, 2, 1, "server")
        assert a["latency_ms"] == 800.0, "the time to a refusal says nothing about speed"
        assert 0.9 <= a["resting_s"] <= 1.0
        assert pages.health_detailed(world.runtime)["status"] == "down"
        assert samples(world)["llm_proxy_provider_health", ("a",)] == 0.0
        assert samples(world)["llm_proxy_provider_latency_seconds", ("a",)] == 0.8
        await world.ask()
        a = providers(world)["a"]
        assert (a["healthy"], a["failures"], a["last_failure"], a["resting_s"]) == (True, 1, "server", 0.0)
        assert samples(world)["llm_proxy_provider_health", ("a",)] == 1.0

    run_virtual(main())


def test_a_failure_in_the_first_millisecond_of_the_clock_is_one() -> None:
    async def main() -> None:
        world = World({"a": [refuse(500)]}, retries=0)
        await world.ask()
        assert loop_now().time() == 0.0
        assert (providers(world)["a"]["healthy"], providers(world)["a"]["last_failure"]) == (False, "server")

    run_virtual(main())


@pytest.mark.parametrize("failure", [FailureClass.CLIENT_ERROR, FailureClass.CLIENT_GONE])
def test_the_clients_faults_say_nothing_of_health(failure: FailureClass) -> None:  # Q03
    async def main() -> None:
        world = World({"a": [refuse(400)]})
        if failure is FailureClass.CLIENT_ERROR:
            await world.ask()
        else:
            world.runtime.table.record(world.row("a"), failure, -1, -1, 5_000_000_000)
        a = providers(world)["a"]
        assert (a["healthy"], a["failures"], a["attempts"], a["latency_ms"]) == (True, 0, 1, None)
        assert a["last_failure"] is None

    run_virtual(main())


def test_one_of_two_is_degraded_and_all_resting_is_not_ready() -> None:
    async def main() -> None:
        world = World({"a": [refuse(503)], "b": [ok(), refuse(429, retry_after="40")]})
        await world.ask()
        page = pages.health_detailed(world.runtime)
        assert (page["status"], page["ready"]) == ("degraded", True)
        await world.ask()
        page = pages.health_detailed(world.runtime)
        assert (page["status"], page["ready"]) == ("down", False)
        assert providers(world)["b"]["resting_s"] == 40.0
        problem = pages.not_ready(world.runtime)
        assert problem is not None
        assert problem["status"] == 503

    run_virtual(main())


def test_a_provider_sums_over_its_models() -> None:
    async def main() -> None:
        world = World(
            {"a": [ok(), refuse(500), ok()]}, retries=0, make=lambda n, **kw: spec(n, models=("m", "n"), **kw)
        )
        for model in ("m", "n", "m"):
            await world.ask(body=json.dumps({"model": model, "messages": []}).encode())
        a = providers(world)["a"]
        assert (a["attempts"], a["failures"], a["last_failure"]) == (3, 1, "server")
        assert 0.9 <= a["resting_s"] <= 1.0, "the model that failed rests"

    run_virtual(main())


def test_requests_leave_usage_and_outcomes_in_the_table() -> None:  # R8, R69
    async def main() -> None:
        world = World(
            {"a": [ok(), stream(), refuse(400)]},
            make=lambda n, **kw: spec(n, price=Price(input=2.0, output=10.0), **kw),
        )
        await world.ask()
        await world.ask(stream=True)
        await world.ask()
        table, row = world.runtime.table, world.row("a")
        assert table.usage(row) == (22, 14, 2 * (11 * 2 + 7 * 10))
        assert table.counters(row)[FailureClass.NONE] == 2
        assert table.counters(row)[FailureClass.CLIENT_ERROR] == 1
        assert table.in_flight(row) == 0
        assert samples(world)["slipstream_cost_usd_total", ("a",)] == pytest.approx(184e-6)

    run_virtual(main())


def test_two_workers_on_one_table_see_the_same() -> None:
    async def main() -> None:
        world = World({"a": [refuse(500), ok()], "b": [ok()]})
        other = Runtime(
            world.snapshot,
            lambda s, _: world.upstreams[s.name],
            shared=world.runtime.shared,
            clock=loop_now().time,
            wall=lambda: WALL,
        )
        assert other.worker != world.runtime.worker
        await world.ask()
        assert providers(world) == providers(world, other)
        assert providers(world, other)["a"]["failures"] == 1
        assert other.active.cooldowns.resting(world.row("a"), loop_now().time())
        one, two = samples(world), samples(world, runtime=other)
        for page in (one, two):
            assert page.pop(("slipstream_resident_memory_bytes", ())) > 0
        assert one == two

    run_virtual(main())


def test_in_flight_per_target_goes_up_and_back() -> None:
    async def main() -> None:
        world = World({"a": [stream(delta("x"), HANG)]})
        task = asyncio.create_task(world.ask(stream=True))
        await asyncio.sleep(1)
        assert world.runtime.table.in_flight(world.row("a")) == 1
        assert pages.health_detailed(world.runtime)["in_flight"] == 1
        task.cancel()
        await asyncio.wait([task])
        assert world.runtime.table.in_flight(world.row("a")) == 0
        assert pages.health_detailed(world.runtime)["in_flight"] == 0
        assert world.counted(ATTEMPTS) == {("a", "client_gone"): 1}

    run_virtual(main())


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
def test_the_page_of_metrics_has_the_promised_gauges(accept: str) -> None:  # contracts C
    async def main() -> None:
        world = World({"a": [ok()]})
        await world.ask()
        page, _ = pages.metrics(world.runtime, accept)
        for name in (b"llm_proxy_provider_health", b"llm_proxy_provider_latency_seconds"):
            assert name + b'{provider="a"} ' in page
        for name in (b"slipstream_workers 1.0", b"slipstream_series_dropped 0.0", b"slipstream_uptime_seconds 0.0"):
            assert b"\n" + name + b"\n" in page

    run_virtual(main())
