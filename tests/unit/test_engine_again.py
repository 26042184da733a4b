"""The same target again where nobody else is there (Q05, Q06, Q09, R13, R53, S-01, S-03): after which failures, how
soon, how often, and when not."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from slipstream.config.snapshot import BreakerSpec, LimitsSpec, ResilienceSpec, RetrySpec, Timeouts
from slipstream.errors import ConnectFailed, TransportError, UpstreamTimeout
from slipstream.obs.families import FAILOVERS, RETRIES, RETRY_AMBIGUOUS, RETRY_BUDGET_EXHAUSTED
from slipstream.types import Endpoint
from tests.fakes import GOOD_STREAM, ROLE, Plan, World, error_event, ok, refuse, request_body, spec, stream
from tests.unit.test_engine_resilience import fire
from tests.virtual import loop_now, run_virtual

REFUSED = Plan(fail=ConnectFailed("no connection to the provider could be made"))
RESET = Plan(fail=TransportError())
CUT = Plan((ROLE, TransportError()))
"""A stream that broke before its first content."""


def elapsed(plan: Plan, *, streamed: bool = False, retries: int = 2) -> tuple[int, int, float]:
    """One that fails once and is well then: the status, the calls, and the seconds."""

    async def main() -> tuple[int, int, float]:
        world = World({"a": [plan, stream() if streamed else ok()]}, retries=retries)
        exchange = await fire(world, streamed=streamed)
        world.settled_once()
        assert world.counted(FAILOVERS) == {}, "nobody else was asked"
        assert world.counted(RETRIES).get((), 0) == world.asked["a"] - 1
        return exchange.status, world.asked["a"], loop_now().time()

    return run_virtual(main())


@pytest.mark.parametrize(
    ("plan", "least_s", "most_s"),
    [
        (REFUSED, 0.0, 0.025),
        (RESET, 0.0, 0.025),
        (refuse(500), 0.0, 0.5),
        (refuse(502), 0.0, 0.5),
        (refuse(503), 0.9, 1.1),  # it rests, and gets no traffic meanwhile (Q11)
        (refuse(529), 0.9, 1.1),
        (refuse(429), 0.9, 1.1),
        (refuse(429, retry_after="1"), 1.0, 1.1),  # R53
        (refuse(503, retry_after_ms="300"), 0.3, 0.33),
        (refuse(503, retry_after="0"), 0.0, 0.5),  # of 0 nothing can be learnt
        (refuse(500, retry_after="2"), 2.0, 2.2),
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [False, True])
def test_one_that_stumbled_answers_the_same_request(plan: Plan, least_s: float, most_s: float, streamed: bool) -> None:
    """Q06a-c, Q09: nobody else is there, so the client need not know."""
    status, calls, seconds = elapsed(plan, streamed=streamed)
    assert (status, calls) == (200, 2)
    assert least_s - 1e-6 <= seconds <= most_s + 1e-6


@pytest.mark.parametrize("plan", [CUT, stream(error_event(500)), stream(ROLE, error_event(503))], ids=str)
def test_a_stream_that_breaks_before_its_first_content(plan: Plan) -> None:  # R9, R11: the client sees one clean stream
    async def main() -> None:
        world = World({"a": [plan, stream()]})
        exchange = await fire(world, streamed=True)
        assert exchange.received.count(b'"role"') == 1
        assert exchange.events[-1] == "[DONE]"
        assert world.asked == {"a": 2}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize(
    "plan",
    [
        refuse(400), refuse(401), refuse(402), refuse(403), refuse(404), refuse(413), refuse(422),  # R54, Q06d
        refuse(504), Plan((b"<html>",)),
        Plan(fail=UpstreamTimeout("connect", 5.0)), Plan(fail=UpstreamTimeout("first_byte", 60.0)),  # no second wait
        Plan(fail=ConnectFailed("the TLS connection to the provider could not be made", lasts=True)),  # S-42
        refuse(429, retry_after="3"), refuse(503, retry_after="60"), refuse(500, retry_after="30"),  # no longer hold
    ],
    ids=str,
)  # fmt: skip
def test_what_would_fail_again_or_too_late_is_told_at_once(plan: Plan) -> None:
    status, calls, seconds = elapsed(plan)
    assert status >= 400
    assert (calls, seconds) == (1, 0.0)


@pytest.mark.parametrize("retries", [0, 1, 2, 5])
@pytest.mark.parametrize("plan", [REFUSED, RESET], ids=str)
def test_as_many_as_the_route_allows(plan: Plan, retries: int) -> None:  # Q05; S-01: <= 3 tries, <= 1 s; S-03: 100 ms
    async def main() -> None:
        world = World({"a": [plan]}, retries=retries)
        exchange = await world.ask()
        assert exchange.status == 502
        assert world.asked == {"a": 1 + retries}
        if retries == 2:
            assert loop_now().time() <= 0.1
            assert (exchange.headers["x-slipstream-attempts"], exchange.headers["x-should-retry"]) == ("3", "false")
        world.settled_once()

    run_virtual(main())


def test_every_attempt_is_the_same_bytes() -> None:  # R59, Q10
    async def main() -> None:
        world = World({"a": [refuse(500), RESET, ok()]})
        assert (await world.ask(metadata={"n": 1})).status == 200
        first, *others = world.upstreams["a"].requests
        assert [r.body for r in others] == [first.body] * 2

    run_virtual(main())


def test_switched_off_by_the_client() -> None:  # R13
    async def main() -> None:
        world = World({"a": [refuse(500), ok()]})
        assert (await fire(world, x_slipstream_no_retry="1")).status == 500
        assert world.asked == {"a": 1}
        world = World({"a": [refuse(500), ok()]})
        assert (await fire(world, x_slipstream_no_fallback="1")).status == 200, "it is no other model"

    run_virtual(main())


def test_another_target_or_model_comes_first_and_is_enough() -> None:  # Q06b; S-27: no wait when all have refused
    async def main() -> None:
        world = World({"a": [refuse(503)], "b": [refuse(503)]})
        assert (await world.ask()).status == 503
        assert (world.asked, loop_now().time() <= 0.05) == ({"a": 1, "b": 1}, True)
        world = World(
            {"a": [refuse(500)], "b": [ok()]},
            make=lambda n, **kw: spec(n, models=("m",) if n == "a" else ("n",), **kw),
            fallbacks={"m": ("n",)},
        )
        assert (await world.ask()).status == 200
        assert world.asked == {"a": 1, "b": 1}

    run_virtual(main())


def test_who_is_left_when_the_others_rest_is_asked_again() -> None:
    async def main() -> None:
        world = World({"a": [refuse(429, retry_after="60")], "b": [ok(), refuse(500), ok()]})
        while not world.asked["a"]:
            await world.ask()
        assert (await world.ask()).status == 200
        assert (await world.ask()).status == 200
        assert world.asked["a"] == 1

    run_virtual(main())


@pytest.mark.parametrize(
    ("endpoint", "more", "calls"),
    [
        (Endpoint.CHAT, {}, 2),
        (Endpoint.EMBEDDINGS, {}, 2),
        (Endpoint.CHAT, {"store": True}, 1),
        (Endpoint.CHAT, {"tools": [{"type": "code_interpreter"}]}, 1),
    ],
)
def test_what_acts_is_not_sent_twice_when_it_may_have_been_done(
    endpoint: Endpoint, more: dict[str, Any], calls: int
) -> None:
    """Q06c: allowed for what only asks, and counted apart: the call may have been billed."""

    async def main() -> None:
        for plan, asked in ((RESET, calls), (REFUSED, 2), (refuse(500), 2)):
            world = World({"a": [plan, ok(endpoint)]})
            await world.ask(endpoint, **more)
            assert world.asked == {"a": asked}
            ambiguous = {(): 1} if plan is RESET and calls == 2 else {}
            assert world.counted(RETRY_AMBIGUOUS) == ambiguous

    run_virtual(main())


def test_elsewhere_it_is_counted_apart_too() -> None:  # Q06c, S-09
    async def main() -> None:
        world = World({"a": [RESET], "b": [RESET], "c": [ok()]})
        while world.asked["c"] == 0 or sum(world.asked.values()) < 3:
            await world.ask()
        assert world.counted(RETRY_AMBIGUOUS)[()] == world.counted(FAILOVERS)[()]
        assert world.counted(RETRIES) == {}

    run_virtual(main())


def test_an_outage_is_not_multiplied() -> None:
    """S-29 alone, Q05: 200 a second for 30 s. After seconds of failures nobody waits for another try."""

    async def main() -> None:
        world = World({"a": [refuse(500)]})
        took: list[float] = []

        async def one() -> None:
            before = loop_now().time()
            assert (await world.ask()).status == 500
            took.append(loop_now().time() - before)

        tasks = []
        for _ in range(6000):
            tasks.append(asyncio.ensure_future(one()))
            await asyncio.sleep(0.005)
        await asyncio.gather(*tasks)
        extra = world.asked["a"] - 6000
        assert 0 < extra < 700, "in the first seconds only, and far within the budget"
        assert max(took[2000:]) == 0.0, "told at once"
        world.settled_once(6000)

    run_virtual(main())


def test_of_many_that_a_restart_has_cut_all_are_served() -> None:
    """A burst of failures of one moment is one failure, not an outage."""

    async def main() -> None:
        world = World({"a": [RESET] * 50 + [ok()]})
        found = await asyncio.gather(*(world.ask() for _ in range(50)))
        assert [exchange.status for exchange in found] == [200] * 50
        world.settled_once(50)

    run_virtual(main())


def test_within_the_budget_only() -> None:  # Q05
    async def main() -> None:
        none = ResilienceSpec(breaker=BreakerSpec(enabled=False), retry=RetrySpec(budget_share=0.0, budget_per_s=0.0))
        world = World({"a": [refuse(500), ok()]}, resilience=none)
        assert (await world.ask()).status == 500
        assert world.asked == {"a": 1}
        assert world.counted(RETRY_BUDGET_EXHAUSTED) == {(): 1}

    run_virtual(main())


@pytest.mark.parametrize(("total_s", "calls"), [(0.5, 1), (30.0, 2)])
def test_no_sleep_that_does_not_fit(total_s: float, calls: int) -> None:  # Q09, Q18
    async def main() -> None:
        world = World({"a": [refuse(503, retry_after="1"), ok()]}, timeouts=Timeouts(total_s=total_s))
        assert (await world.ask()).status == (200 if calls == 2 else 503)
        assert world.asked == {"a": calls}

    run_virtual(main())


def test_who_was_told_to_wait_longer_meanwhile_does_not_ask() -> None:  # R53: the latest word
    async def main() -> None:
        world = World({"a": [refuse(503, retry_after="1"), refuse(503, retry_after="60"), ok()]})
        first = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0.1)
        active, row = world.runtime.active, world.row("a")
        active.cooldowns.succeeded(row)  # another worker's request was answered, and the next one turned away
        second = await world.ask()
        assert (second.status, second.headers["Retry-After"]) == (503, "60")
        held = await first
        assert (held.status, held.headers["Retry-After"]) == (503, "60")
        assert world.asked == {"a": 2}
        world.settled_once(2)

    run_virtual(main())


def test_a_breaker_that_was_opened_by_hand_is_respected() -> None:
    async def main() -> None:
        world = World({"a": [Plan(fail=TransportError(), wait_s=1.0), ok()]})
        task = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0.5)
        world.runtime.active.breakers.open_by_hand(world.row("a"), loop_now().time(), 60.0)
        assert (await task).status == 502
        assert world.asked == {"a": 1}

    run_virtual(main())


def test_every_attempt_takes_its_part_of_the_rate_limit() -> None:
    async def main() -> None:
        limits = LimitsSpec(requests_per_min=60)
        world = World({"a": [refuse(500), ok()]}, make=lambda n, **kw: spec(n, limits=limits, **kw))
        statuses = [(await world.ask()).status for _ in range(3)]
        assert set(statuses) <= {200, 429, 500}
        assert world.asked["a"] <= 3

    run_virtual(main())


def test_a_client_that_leaves_during_the_wait() -> None:  # R1: during back-off
    async def main() -> None:
        world = World({"a": [refuse(503, retry_after="2"), ok()]})
        task = asyncio.ensure_future(world.ask())
        await asyncio.sleep(1.0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(5.0)
        assert world.asked == {"a": 1}
        world.settled_once()

    run_virtual(main())


def test_usage_and_heartbeats_are_those_of_the_last_attempt() -> None:
    async def main() -> None:
        world = World({"a": [CUT, stream(*GOOD_STREAM)]})
        exchange = await world.ask(body=request_body(stream=True, stream_options={"include_usage": True}))
        assert exchange.headers["x-slipstream-attempts"] == "2"
        assert exchange.received == b"".join(GOOD_STREAM)
        world.settled_once()

    run_virtual(main())
