"""Hedging in the engine (Q14): who has content first answers, the loser is cancelled at once and is in the accounts."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from slipstream.config.snapshot import BreakerSpec, HedgeSpec, Price, ResilienceSpec
from slipstream.engine.exchange import ClientGone
from slipstream.obs.families import COST, HEDGES, TOKENS
from slipstream.types import Endpoint
from slipstream.wire.request import peek
from tests.fakes import GOOD_STREAM, HANG, Plan, World, error_event, ok, refuse, request_body, spec, stream
from tests.virtual import loop_now, run_virtual

ON = ResilienceSpec(breaker=BreakerSpec(enabled=False), hedge=HedgeSpec(enabled=True, delay_s=0.1, budget_share=1.0))


def world(plans: dict[str, list[Plan]], resilience: ResilienceSpec = ON, **more: Any) -> World:
    return World(plans, resilience=resilience, make=lambda n, **kw: spec(n, price=Price(1, 1), **kw), **more)


def slow(plan: Plan, seconds: float = 5.0) -> Plan:
    return Plan(plan.steps, plan.status, plan.headers, seconds)


def test_a_quick_answer_has_no_hedge() -> None:
    async def main() -> None:
        w = world({"a": [stream()], "b": [stream()]})
        exchange = await w.ask(stream=True)
        assert exchange.ended
        assert sum(w.asked.values()) == 1
        assert w.counted(HEDGES) == {}
        w.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_second_answers_when_the_first_is_slow(streamed: bool) -> None:
    good = stream() if streamed else ok()

    async def main() -> None:
        w = world({"a": [slow(good)], "b": [good]})
        exchange = await w.ask(stream=streamed)
        assert exchange.status == 200
        assert exchange.headers["x-slipstream-provider"] in ("a", "b")
        assert 0.1 <= loop_now().time() < 0.2
        assert w.asked == {"a": 1, "b": 1}
        assert w.counted(HEDGES) == {("sent",): 1, ("won",): 1}
        assert w.finished == {"200": 1}
        w.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("streamed", [False, True])
def test_the_first_may_still_win(streamed: bool) -> None:
    good = stream() if streamed else ok()

    async def main() -> None:
        w = world({"a": [slow(good, 0.2)], "b": [slow(good)]})
        exchange = await w.ask(stream=streamed)
        assert exchange.status == 200
        assert loop_now().time() < 0.3
        assert w.counted(HEDGES) == {("sent",): 1}
        w.settled_once()

    run_virtual(main())


def test_lifecycle_events_do_not_win() -> None:  # R9: first *content*
    async def main() -> None:
        w = world({"a": [stream(GOOD_STREAM[0], 9.0, *GOOD_STREAM[1:])], "b": [stream()]})
        exchange = await w.ask(stream=True)
        assert exchange.ended
        assert loop_now().time() < 0.2
        assert exchange.events[-1] == "[DONE]"
        w.settled_once()

    run_virtual(main())


def test_a_failure_beside_another_attempt_ends_nothing() -> None:
    async def main() -> None:
        w = world({"a": [slow(refuse(500), 0.15)], "b": [slow(ok(), 1.0)]})
        exchange = await w.ask()
        assert exchange.status == 200
        assert w.runtime.active.cooldowns.failures_in_a_row(w.row("a")) == 1
        w.settled_once()

    run_virtual(main())


def test_when_both_fail_the_search_goes_on() -> None:
    async def main() -> None:
        w = world({"a": [slow(refuse(500), 0.2)], "b": [slow(refuse(500), 0.3)], "c": [ok()]})
        exchange = await w.ask()
        assert exchange.status == 200
        assert w.asked == {"a": 1, "b": 1, "c": 1}
        w.settled_once()

    run_virtual(main())


def test_a_failure_after_content_is_told_in_the_stream() -> None:  # R12
    async def main() -> None:
        broken = stream(*GOOD_STREAM[:3], error_event(500))
        w = world({"a": [slow(stream())], "b": [broken]})
        exchange = await w.ask(stream=True)
        assert exchange.status == 200
        assert exchange.events[-1]["error"]["message"] == "it broke"
        w.settled_once()

    run_virtual(main())


def test_the_loser_is_in_the_accounts() -> None:
    async def main() -> None:
        w = world({"a": [slow(ok())], "b": [ok()]})
        await w.ask()
        tokens = w.series(TOKENS)
        assert tokens[("m", "b", "default")] == [11, 7]
        assert tokens[("m", "a", "default")][0] > 0, "its prompt was very likely paid for"
        assert set(w.counted(COST)) == {("a",), ("b",)}
        w.settled_once()

    run_virtual(main())


def test_a_client_that_leaves_ends_both() -> None:  # R1
    async def main() -> None:
        w = world({"a": [Plan(wait_s=HANG)], "b": [Plan(wait_s=HANG)]})
        task = asyncio.ensure_future(w.ask())
        await asyncio.sleep(0.2)
        assert w.asked == {"a": 1, "b": 1}
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert all(u.all_closed for u in w.upstreams.values())
        assert w.finished == {"499": 1}
        w.settled_once()

    run_virtual(main())


def test_the_budget_bounds_the_hedges() -> None:
    tight = ResilienceSpec(
        breaker=BreakerSpec(enabled=False), hedge=HedgeSpec(enabled=True, delay_s=0.1, budget_share=0.05)
    )

    async def main() -> None:
        w = world({"a": [slow(ok(), 0.5)], "b": [slow(ok(), 0.5)]}, tight)
        for _ in range(100):
            assert (await w.ask()).status == 200
        assert sum(w.asked.values()) <= 106
        assert w.counted(HEDGES)[("sent",)] <= 6

    run_virtual(main())


def test_alone_there_is_nobody_to_ask() -> None:
    async def main() -> None:
        w = world({"a": [slow(ok(), 0.5)]})
        assert (await w.ask()).status == 200
        assert w.asked == {"a": 1}
        w.settled_once()

    run_virtual(main())


@pytest.mark.parametrize(
    "more", [{"store": True}, {"web_search_options": {}}, {"tools": [{"type": "code_interpreter"}]}]
)
def test_what_acts_is_never_asked_twice(more: dict[str, Any]) -> None:
    async def main() -> None:
        w = world({"a": [slow(ok(), 0.5)], "b": [ok()]})
        assert (await w.ask(**more)).status == 200
        assert sum(w.asked.values()) == 1

    run_virtual(main())


def test_p95_of_the_target_is_the_delay() -> None:
    measured = ResilienceSpec(breaker=BreakerSpec(enabled=False), hedge=HedgeSpec(enabled=True, budget_share=1.0))

    async def main() -> None:
        quick = stream(0.02, *GOOD_STREAM)
        w = world(
            {"a": [quick] * 150 + [stream(9.0, *GOOD_STREAM)], "b": [quick] * 150 + [stream(9.0, *GOOD_STREAM), quick]},
            measured,
        )
        for _ in range(290):
            await w.ask(stream=True)
        before = loop_now().time()
        for _ in range(14):
            await w.ask(stream=True)
        assert loop_now().time() - before < 40
        assert w.counted(HEDGES)[("sent",)] >= 1

    run_virtual(main())


def test_repeatable_is_decided_from_the_request() -> None:
    from slipstream.engine.race import repeatable

    assert repeatable(peek(Endpoint.CHAT, request_body()))
    assert not repeatable(peek(Endpoint.RESPONSES, json.dumps({"model": "m", "input": "x"}).encode()))


@pytest.mark.parametrize("call", ["begin", "write2", "end"])
def test_a_client_that_a_write_finds_gone_is_in_the_accounts(call: str) -> None:  # R8: of the one that answered
    async def main() -> None:
        w = world({"a": [slow(stream())], "b": [stream()]})
        with pytest.raises(ClientGone):
            await w.ask(stream=True, gone_at=call)
        assert w.finished == {"499": 1}
        assert set(w.counted(COST)) == {("a",), ("b",)}
        w.settled_once()

    run_virtual(main())
