"""The engine in trouble: breakers, budgets, places, fallbacks by failure, and what the client is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from slipstream.config.snapshot import BreakerSpec, LimitsSpec, ResilienceSpec, RetrySpec, Timeouts
from slipstream.engine import relay
from slipstream.engine.pipeline import serve
from slipstream.errors import ConnectFailed
from slipstream.obs.families import EJECTED, OVERHEAD, QUEUE_WAIT, RETRY_BUDGET_EXHAUSTED
from slipstream.types import Endpoint
from tests.fakes import (
    GOOD_STREAM,
    HANG,
    FakeExchange,
    Plan,
    World,
    delta,
    ok,
    refuse,
    request_body,
    spec,
    stream,
)
from tests.virtual import loop_now, run_virtual


def models(*names: str) -> Any:
    return lambda name, **kw: spec(name, models=names, **kw)


# ---- everybody rests (S-27, R52, Q11) --------------------------------------------------------------------------------


def test_when_all_are_at_their_limit_the_client_is_told_when_to_come_back() -> None:  # R52, Q11
    async def main() -> None:
        world = World({"a": [refuse(429, retry_after="20")], "b": [refuse(429, retry_after="7")]})
        first = await world.ask()
        assert (first.status, first.headers["Retry-After"]) == (429, "7")
        second = await world.ask()
        assert (second.status, second.headers["Retry-After"]) == (429, "7")
        assert second.json["error"]["code"] == "rate_limit_exceeded"
        assert world.asked == {"a": 1, "b": 1}, "nobody is called while it rests"
        loop_now().now += 7
        await world.ask()
        assert world.asked == {"a": 1, "b": 2}

    run_virtual(main())


def test_who_only_just_failed_is_better_than_nobody() -> None:  # S-109
    async def main() -> None:
        world = World({"a": [refuse(500), ok()], "b": [refuse(500), ok()]})
        assert (await world.ask()).status == 500
        assert (await world.ask()).status == 200

    run_virtual(main())


def refused() -> Plan:
    return Plan(fail=ConnectFailed("no connection to the provider could be made"))


@pytest.mark.parametrize("names", ["a", "ab"])
def test_an_outage_of_all_is_told_as_one_until_the_first_success(names: str) -> None:
    """S-110, R52: not as the last attempt's failure, and with a time to come back; but each request asks."""

    async def main() -> None:
        world = World({name: [refused() for _ in range(60)] + [ok()] for name in names}, retries=1)
        statuses = []
        for _ in range(12):
            loop_now().now += 1.0
            exchange = await world.ask()
            statuses.append(exchange.status)
        assert statuses[0] == 502
        assert statuses == sorted(statuses)
        assert statuses[-1] == 503
        assert exchange.json["error"]["code"] == "no_provider"
        assert exchange.json["error"]["type"] == "overloaded_error"
        assert 1 <= int(exchange.headers["Retry-After"]) <= 60
        before = sum(world.asked.values())
        assert (await world.ask()).status == 503
        assert sum(world.asked.values()) > before, "a guess about health turns nobody away"
        for upstream in world.upstreams.values():
            upstream.plans[:] = [ok()]
        assert (await world.ask()).status == 200
        for upstream in world.upstreams.values():
            upstream.plans[:] = [refused() for _ in range(9)]
        assert (await world.ask()).status == 502
        world.settled_once(15)

    run_virtual(main())


@pytest.mark.parametrize("plan", [refuse(500), refuse(429)], ids=str)
def test_who_answers_is_no_outage(plan: Plan) -> None:
    """S-110 is of those who cannot be reached; what a provider says itself is passed on."""

    async def main() -> None:
        world = World({"a": [plan]}, retries=0)
        for _ in range(12):
            loop_now().now += 70.0
            assert (await world.ask()).status == plan.status

    run_virtual(main())


def test_who_is_left_of_the_pool_is_no_outage() -> None:
    """S-110: one of them was well a moment ago, so its failure is the answer."""

    async def main() -> None:
        world = World({"a": [refused() for _ in range(60)], "b": [ok() for _ in range(12)]}, retries=1)
        for _ in range(12):
            loop_now().now += 1.0
            assert (await world.ask()).status == 200
        world.upstreams["b"].plans[:] = [refused() for _ in range(9)]
        assert (await world.ask()).status == 502

    run_virtual(main())


# ---- breakers (Q02, Q04, R57, R58) -----------------------------------------------------------------------------------

QUICK = ResilienceSpec(breaker=BreakerSpec(consecutive=3, cooldown_s=30.0, ramp_s=0.0))


def test_a_target_that_keeps_failing_is_shut_and_one_request_tries_it_again() -> None:  # Q02, Q04
    async def main() -> None:
        world = World({"a": [refuse(500)] * 4 + [ok()], "b": [ok()]}, resilience=QUICK)
        for _ in range(3):
            while world.asked["a"] < _ + 1:
                assert (await world.ask()).status == 200
            loop_now().now += 31  # its rest after the failure is over
        assert world.counted(EJECTED) == {("a",): 1}
        breakers = world.runtime.active.breakers
        row = world.row("a")
        assert breakers.state(row, loop_now().now) in ("open", "half-open")
        loop_now().now += 40
        before = world.asked["a"]
        for _ in range(6):
            assert (await world.ask()).status == 200
        assert world.asked["a"] == before + 1, "one probe, and it failed"
        loop_now().now += 100
        for _ in range(8):
            assert (await world.ask()).status == 200
        assert breakers.state(row, loop_now().now) == "closed"
        assert world.asked["a"] > before + 2
        world.settled_once(sum(world.finished.values()))

    run_virtual(main())


def test_the_only_target_is_never_shut() -> None:  # Q02
    async def main() -> None:
        world = World({"a": [refuse(500)] * 30 + [ok()]}, resilience=QUICK, retries=0)
        for _ in range(30):
            assert (await world.ask()).status == 500
        assert (await world.ask()).status == 200
        assert world.counted(EJECTED) == {}

    run_virtual(main())


def test_a_probe_whose_client_leaves_is_given_back() -> None:
    async def main() -> None:
        world = World({"a": [refuse(500)] * 3 + [Plan(wait_s=HANG), ok()], "b": [ok()]}, resilience=QUICK)
        row, breakers = world.row("a"), world.runtime.active.breakers
        while world.asked["a"] < 3:
            await world.ask()
            loop_now().now += 2
        loop_now().now += 40
        tasks = [asyncio.ensure_future(world.ask()) for _ in range(4)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert world.asked["a"] == 4
        assert breakers.admit(row, loop_now().now) == 0, "somebody probes"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert breakers.state(row, loop_now().now) == "half-open"
        while world.asked["a"] < 5:
            assert (await world.ask()).status == 200

    run_virtual(main())


def test_turned_off_it_never_opens() -> None:
    async def main() -> None:
        off = ResilienceSpec(breaker=BreakerSpec(enabled=False))
        world = World({"a": [refuse(500)], "b": [ok()]}, resilience=off)
        for _ in range(40):
            await world.ask()
            loop_now().now += 40
        assert world.counted(EJECTED) == {}

    run_virtual(main())


# ---- budget and back-off (Q05, Q09) ----------------------------------------------------------------------------------


def test_retries_stay_within_their_share() -> None:  # Q05
    async def main() -> None:
        spare = ResilienceSpec(breaker=BreakerSpec(enabled=False), retry=RetrySpec(budget_share=0.2, budget_per_s=0.0))
        world = World({"a": [refuse(500)], "b": [refuse(500)]}, resilience=spare)
        for _ in range(100):
            assert (await world.ask()).status == 500
        extra = sum(world.asked.values()) - 100
        assert 15 <= extra <= 20
        assert world.counted(RETRY_BUDGET_EXHAUSTED)[()] >= 60

    run_virtual(main())


def test_the_next_target_is_asked_after_a_moment_and_not_at_once() -> None:  # Q09
    async def main() -> None:
        world = World({"a": [refuse(500)], "b": [ok()]})
        for _ in range(10):
            before = loop_now().time()
            await world.ask()
            assert loop_now().time() - before <= 0.025

    run_virtual(main())


# ---- fallbacks by failure (contracts A; R16) -------------------------------------------------------------------------

TOO_LONG = "This model's maximum context length is 8192 tokens"
FILTERED = "The response was filtered due to the prompt triggering content management policy"


@pytest.mark.parametrize(
    ("status", "message", "chain", "answers"),
    [
        (429, "slow down", "fallbacks", True),
        (500, "it broke", "fallbacks", True),
        (400, TOO_LONG, "context_fallbacks", True),
        (400, TOO_LONG, "fallbacks", False),
        (500, "it broke", "context_fallbacks", False),
        (400, "bad tool", "context_fallbacks", False),
    ],
)
def test_each_failure_has_its_own_chain(status: int, message: str, chain: str, answers: bool) -> None:  # R16
    async def main() -> None:
        world = World(
            {"a": [refuse(status, message)], "b": [ok()]},
            retries=0,
            make=lambda name, **kw: spec(name, models=("m",) if name == "a" else ("n",), **kw),
            **{chain: {"m": ("n",)}},
        )
        exchange = await world.ask()
        assert exchange.status == (200 if answers else status)
        assert world.asked == {"a": 1, "b": int(answers)}
        world.settled_once()

    run_virtual(main())


def test_a_filtered_prompt_has_its_own_chain() -> None:
    refused = Plan(
        (b'{"error":{"message":"filtered","type":"invalid_request_error","code":"content_filter"}}',), status=400
    )

    async def main() -> None:
        world = World(
            {"a": [refused], "b": [ok()]},
            make=lambda name, **kw: spec(name, type="azure", models=("m",) if name == "a" else ("n",), **kw),
            content_filter_fallbacks={"m": ("n",)},
        )
        assert (await world.ask()).status == 200
        assert world.asked == {"a": 1, "b": 1}

    run_virtual(main())


# ---- places (Q01, R32) -----------------------------------------------------------------------------------------------


def test_a_full_provider_is_stepped_over_and_then_refused() -> None:  # R32, Q01
    limits = LimitsSpec(max_in_flight=1, queue=0)

    async def main() -> None:
        world = World(
            {"a": [Plan(wait_s=5.0, steps=ok().steps)], "b": [Plan(wait_s=5.0, steps=ok().steps)]},
            make=lambda name, **kw: spec(name, limits=limits, **kw),
        )
        tasks = [asyncio.ensure_future(world.ask()) for _ in range(3)]
        done = [(await task) for task in tasks]
        assert sorted(exchange.status for exchange in done) == [200, 200, 503]
        refused = next(exchange for exchange in done if exchange.status == 503)
        assert refused.json["error"]["code"] == "overloaded"
        assert int(refused.headers["Retry-After"]) >= 1
        assert world.asked == {"a": 1, "b": 1}
        assert all(outbound.bulkhead().in_flight == 0 for outbound in world.runtime.active.outbound.values())
        world.settled_once(3)

    run_virtual(main())


def test_a_short_wait_for_a_place_is_no_failure() -> None:
    async def main() -> None:
        world = World(
            {"a": [Plan(wait_s=0.5, steps=ok().steps)]},
            make=lambda name, **kw: spec(name, limits=LimitsSpec(max_in_flight=1), **kw),
        )
        tasks = [asyncio.ensure_future(world.ask()) for _ in range(2)]
        assert [(await task).status for task in tasks] == [200, 200]
        world.settled_once(2)
        *buckets, total_ns = world.series(QUEUE_WAIT)[("a",)]
        assert (sum(buckets), total_ns) == (1, 500_000_000), "the one that waited"
        assert world.series(OVERHEAD)[()][-1] == 0, "a wait is none of our own time (R38)"

    run_virtual(main())


def test_a_wait_in_vain_is_measured_and_is_not_our_own_time_where_another_target_answers() -> None:  # R38
    async def main() -> None:
        world = World(
            {"a": [Plan(wait_s=5.0, steps=ok().steps)], "b": [ok(), ok(), ok(), ok()]},
            make=lambda name, **kw: spec(name, limits=LimitsSpec(max_in_flight=1, queue=1), **kw),
        )
        tasks = [asyncio.ensure_future(world.ask()) for _ in range(4)]
        assert {(await task).status for task in tasks} == {200}
        *buckets, total_ns = world.series(QUEUE_WAIT)[("a",)]
        assert sum(buckets) == 1
        assert total_ns == pytest.approx(1e9, rel=0.02)
        assert world.series(OVERHEAD)[()][-1] == 0

    run_virtual(main())


def test_a_client_that_leaves_while_it_waits_frees_its_place() -> None:
    async def main() -> None:
        world = World(
            {"a": [stream(HANG)]}, make=lambda name, **kw: spec(name, limits=LimitsSpec(max_in_flight=1), **kw)
        )
        tasks = [asyncio.ensure_future(world.ask(stream=True)) for _ in range(3)]
        for _ in range(10):
            await asyncio.sleep(0)
        bulkhead = world.runtime.active.outbound["a"].bulkhead()
        assert (bulkhead.in_flight, bulkhead.queued) == (1, 2)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (bulkhead.in_flight, bulkhead.queued) == (0, 0)

    run_virtual(main())


# ---- what the client may ask for -------------------------------------------------------------------------------------


async def fire(world: World, *, asked_s: float | None = None, streamed: bool = False, **fields: str) -> FakeExchange:
    exchange = FakeExchange(request_body(stream=streamed))
    exchange.asked_s = asked_s
    exchange.fields = {name.replace("_", "-"): value for name, value in fields.items()}
    await serve(world.runtime, exchange, Endpoint.CHAT, "default")
    return exchange


def test_the_clients_deadline_is_the_total_and_nobodys_fault() -> None:  # Q18
    async def main() -> None:
        world = World({"a": [Plan(wait_s=HANG)], "b": [ok()]}, resilience=QUICK)
        while world.asked["a"] < 5:
            before = loop_now().time()
            exchange = await fire(world, asked_s=2.0)
            if exchange.status != 200:
                assert (exchange.status, exchange.json["error"]["code"]) == (504, "upstream_total_timeout")
                assert loop_now().time() - before == pytest.approx(2.0, abs=0.01)
        assert world.counted(EJECTED) == {}
        assert world.runtime.table.available(world.row("a"), int(loop_now().time() * 1e9))

    run_virtual(main())


def test_a_longer_deadline_than_ours_changes_nothing() -> None:  # Q18
    async def main() -> None:
        world = World({"a": [Plan(wait_s=HANG)]}, timeouts=Timeouts(total_s=3.0))
        exchange = await fire(world, asked_s=60.0)
        assert (exchange.status, loop_now().time()) == (504, pytest.approx(3.0, abs=0.01))

    run_virtual(main())


@pytest.mark.parametrize(
    ("fields", "asked"),
    [
        ({}, {"a": 1, "b": 1, "c": 1}),
        ({"x_slipstream_no_retry": "1"}, {"a": 1, "b": 0, "c": 0}),
        ({"x_slipstream_no_fallback": "1"}, {"a": 1, "b": 1, "c": 0}),
    ],
)
def test_switches_of_one_request(fields: dict[str, str], asked: dict[str, int]) -> None:  # R13
    async def main() -> None:
        world = World(
            {"a": [refuse(500)], "b": [refuse(500)], "c": [ok()]},
            make=lambda name, **kw: spec(name, models=("n",) if name == "c" else ("m",), **kw),
            fallbacks={"m": ("n",)},
        )
        await fire(world, **fields)
        assert {name: count for name, count in world.asked.items() if name == "c"} == {"c": asked["c"]}
        assert world.asked["a"] + world.asked["b"] == asked["a"] + asked["b"]

    run_virtual(main())


def test_a_place_goes_to_the_higher_class_first() -> None:
    async def main() -> None:
        world = World(
            {"a": [Plan(wait_s=0.3, steps=ok().steps)]},
            make=lambda name, **kw: spec(name, limits=LimitsSpec(max_in_flight=1), **kw),
        )
        order: list[str] = []

        async def one(name: str, **fields: str) -> None:
            await fire(world, **fields)
            order.append(name)

        tasks = [asyncio.ensure_future(one("first"))]
        await asyncio.sleep(0.01)
        for name, fields in (("low", "low"), ("normal", ""), ("high", "HIGH")):
            tasks.append(asyncio.ensure_future(one(name, x_slipstream_priority=fields)))
            await asyncio.sleep(0.01)
        await asyncio.gather(*tasks)
        assert order == ["first", "high", "normal", "low"]

    run_virtual(main())


def test_a_stream_is_not_endless(monkeypatch: pytest.MonkeyPatch) -> None:  # R21, S-39
    monkeypatch.setattr(relay, "MAX_STREAM_BYTES", 2000)

    async def main() -> None:
        world = World({"a": [stream(*[delta("x" * 100)] * 50, *GOOD_STREAM[-3:])]})
        exchange = await fire(world, streamed=True)
        assert len(exchange.received) < 4000
        assert "larger than" in exchange.events[-1]["error"]["message"]
        world.settled_once()

    run_virtual(main())


def test_a_client_that_cannot_wait_so_long_is_told_not_to_try() -> None:  # S-27
    async def main() -> None:
        world = World({"a": [refuse(429, retry_after="200")]}, timeouts=Timeouts(total_s=60.0))
        await world.ask()
        again = await world.ask()
        assert (again.status, again.headers["x-should-retry"]) == (429, "false")

    run_virtual(main())


def test_a_target_far_slower_than_its_peers_is_shut() -> None:
    tuned = ResilienceSpec(breaker=BreakerSpec(latency_factor=5.0))

    async def main() -> None:
        plans: dict[str, list[Plan]] = {name: [stream(0.05, *GOOD_STREAM)] for name in "abcd"}
        plans["e"] = [stream(3.0, *GOOD_STREAM)]
        world = World(plans, resilience=tuned)
        for _ in range(70):
            await fire(world, streamed=True)
        assert world.counted(EJECTED) == {("e",): 1}
        before = world.asked["e"]
        for _ in range(20):
            await fire(world, streamed=True)
        assert world.asked["e"] == before

    run_virtual(main())
