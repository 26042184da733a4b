"""What becomes of the provider's answer when the client leaves (R7): cancelled, or read to its end for the accounts."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any

import pytest

from slipstream.config.snapshot import HedgeSpec, LimitsSpec, ResilienceSpec, RoutingSpec, Timeouts
from slipstream.engine import stay
from slipstream.engine.pipeline import serve
from slipstream.obs.families import ATTEMPTS, DISCONNECTS, TOKENS, USAGE_SOURCE
from slipstream.types import Endpoint
from tests.fakes import (
    DONE,
    FINISH,
    GOOD_STREAM,
    HANG,
    ROLE,
    USAGE_EVENT,
    FakeExchange,
    Plan,
    World,
    delta,
    error_event,
    ok,
    refuse,
    request_body,
    spec,
    stream,
)
from tests.virtual import loop_now, run_virtual

FINISHES: Mapping[str, int | None] = {"m": 0}
SLOW_STREAM = stream(ROLE, 1.0, delta("a"), 1.0, delta("b"), 1.0, delta("c"), 5.0, FINISH, USAGE_EVENT, DONE)
"""Content at 1, 2 and 3 s, the end at 8 s."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "slipstream.request")


async def left(world: World, at: float, *, streamed: bool = False, **client: Any) -> FakeExchange:
    """A request whose client leaves at ``at`` seconds: what it has seen."""
    exchange = FakeExchange(request_body(stream=streamed), **client)
    task = asyncio.ensure_future(serve(world.runtime, exchange, Endpoint.CHAT, "default"))
    await asyncio.sleep(at)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop_now().time() == at, "the listener has its task back at once"
    return exchange


async def over(world: World, requests: int = 1) -> float:
    """Wait for the end of all; when that was."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    while world.runtime.outlasting:
        await asyncio.wait(world.runtime.outlasting)
        await asyncio.sleep(0)
    world.settled_once(requests)
    return loop_now().time()


def accounts(world: World) -> dict[str, Any]:
    (source,) = (labels[0] for labels in world.counted(USAGE_SOURCE))
    (tokens,) = world.series(TOKENS).values()
    return {"source": source, "tokens": tokens, "status": world.finished, "gone": world.counted(DISCONNECTS)[()]}


PROVIDERS_OWN = {"source": "provider", "tokens": [11, 7], "status": {"499": 1}, "gone": 1}


@pytest.mark.parametrize(
    ("plan", "streamed", "at", "end"),
    [
        (Plan(ok().steps, wait_s=9.0), False, 3.0, 9.0),
        (Plan((9.0, *ok().steps)), False, 3.0, 9.0),
        (SLOW_STREAM, True, 0.5, 8.0),
        (SLOW_STREAM, True, 2.5, 8.0),
        (SLOW_STREAM, True, 7.0, 8.0),
    ],
)
def test_an_answer_is_read_to_its_end_and_counted_as_the_provider_does(
    plan: Plan, streamed: bool, at: float, end: float
) -> None:
    """R7, R8: before the head, before the body, before the first content, in the middle, behind the content."""

    async def main() -> None:
        world = World({"a": [plan]}, on_disconnect=FINISHES)
        exchange = await left(world, at, streamed=streamed)
        seen = exchange.received
        assert await over(world) == end
        assert exchange.received == seen, "nothing is written for nobody"
        assert accounts(world) == PROVIDERS_OWN
        assert world.counted(ATTEMPTS) == {("a", "client_gone"): 1}
        assert world.runtime.active.in_flight == 0

    run_virtual(main())


@pytest.mark.parametrize("call", ["begin", "write", "write2", "end"])
def test_a_client_that_a_write_finds_gone(call: str) -> None:
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect=FINISHES)
        with pytest.raises(stay.ClientGone):
            await world.ask(stream=True, gone_at=call)
        assert await over(world) == 8.0
        assert accounts(world) == PROVIDERS_OWN

    run_virtual(main())


def test_a_client_that_leaves_during_a_slow_write() -> None:  # R33: it is not waited for any longer
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect=FINISHES)
        exchange = FakeExchange(request_body(stream=True), pauses={"write2": 3.0}, gone_at="write2")
        task = asyncio.ensure_future(serve(world.runtime, exchange, Endpoint.CHAT, "default"))
        await asyncio.sleep(2.5)
        task.cancel()
        assert await over(world) == 11.0
        assert accounts(world) == PROVIDERS_OWN

    run_virtual(main())


@pytest.mark.parametrize(
    "policies",
    [{}, {"other": 0}, {"m": None}, {"m": None, "*": 0}, {"mm*": 0}, {"m": 3}, {"m*": None, "*": 0}],
    ids=str,
)
def test_others_are_cancelled_at_once(policies: dict[str, int | None]) -> None:  # R1
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect=policies)
        await left(world, 2.5, streamed=True)
        assert await over(world) == 2.5
        found = accounts(world)
        assert (found["source"], found["status"]) == ("estimated", {"499": 1})
        assert found["tokens"][1] == 2

    run_virtual(main())


@pytest.mark.parametrize(("at", "end"), [(0.5, 0.5), (1.5, 1.5), (2.5, 8.0), (3.5, 8.0)])
def test_after_so_many_tokens(at: float, end: float) -> None:
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect={"m": 2})
        await left(world, at, streamed=True)
        assert await over(world) == end

    run_virtual(main())


def test_a_whole_reply_has_no_tokens_until_it_is_here() -> None:
    async def main() -> None:
        world = World({"a": [Plan(ok().steps, wait_s=9.0)]}, on_disconnect={"m": 1})
        await left(world, 3.0)
        assert await over(world) == 3.0

    run_virtual(main())


def test_which_entry_fits() -> None:
    of = RoutingSpec(on_disconnect={"*": 5, "gpt-4*": 0, "gpt-4o*": None, "gpt-4o": 7}).finishes_after
    assert [of(name) for name in ("gpt-4o", "gpt-4o-mini", "gpt-4.1", "claude")] == [7, None, 0, 5]
    assert RoutingSpec().finishes_after("m") is None


@pytest.mark.parametrize("streamed", [False, True])
def test_nobody_else_is_asked_for_nobody(streamed: bool) -> None:
    """The attempt that is under way fails after the client has left: that is the end."""
    broken = Plan(refuse(500).steps, 500, {}, 2.0)

    async def main() -> None:
        world = World({"a": [broken], "b": [broken]}, on_disconnect=FINISHES)
        await left(world, 1.0, streamed=streamed)
        assert await over(world) == 2.0
        assert sum(world.asked.values()) == 1
        assert sum(world.counted(ATTEMPTS).values()) == 1

    run_virtual(main())


def test_a_failure_in_a_stream_without_a_client() -> None:
    async def main() -> None:
        world = World({"a": [stream(ROLE, delta("a"), 2.0, error_event(500))]}, on_disconnect=FINISHES)
        exchange = await left(world, 1.0, streamed=True)
        assert await over(world) == 2.0
        assert b"it broke" not in exchange.received
        assert world.counted(ATTEMPTS) == {("a", "server"): 1}

    run_virtual(main())


def test_between_two_attempts_there_is_nothing_to_read() -> None:  # R1: during back-off
    async def main() -> None:
        world = World({"a": [refuse(503, retry_after="2"), ok()]}, on_disconnect=FINISHES)
        await left(world, 1.0)
        assert await over(world) == 1.0
        assert world.asked == {"a": 1}

    run_virtual(main())


def test_who_waits_for_a_place_is_not_asked_any_more() -> None:
    async def main() -> None:
        limits = LimitsSpec(max_in_flight=1, queue=5)
        world = World(
            {"a": [Plan(ok().steps, wait_s=2.0)]},
            make=lambda n, **kw: spec(n, limits=limits, **kw),
            on_disconnect=FINISHES,
        )
        first = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0.1)
        second = asyncio.ensure_future(world.ask())
        await asyncio.sleep(0.1)
        second.cancel()
        assert (await first).status == 200
        await over(world, 2)
        assert world.asked == {"a": 1}

    run_virtual(main())


def test_a_client_that_leaves_before_anything_has_begun() -> None:  # R2: it is counted all the same
    async def main() -> None:
        world = World({"a": [ok()]}, on_disconnect=FINISHES)
        task = asyncio.ensure_future(world.ask(pauses={"body": 5.0}))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert await over(world) == 0.0
        assert (world.finished, world.asked) == ({"499": 1}, {"a": 0})

    run_virtual(main())


# ---- bounds ----------------------------------------------------------------------------------------------------------


def test_the_limits_of_the_attempt_go_on() -> None:
    async def main() -> None:
        world = World({"a": [stream(ROLE, delta("a"), HANG)]}, on_disconnect=FINISHES, timeouts=Timeouts(idle_s=20.0))
        await left(world, 1.0, streamed=True)
        assert await over(world) == 20.0
        assert world.counted(ATTEMPTS) == {("a", "timeout"): 1}

    run_virtual(main())


def test_not_more_than_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stay, "MOST", 2)

    async def main() -> None:
        world = World({"a": [Plan(ok().steps, wait_s=9.0)]}, on_disconnect=FINISHES)
        tasks = [asyncio.ensure_future(world.ask()) for _ in range(5)]
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await over(world, 5) == 9.0
        assert sorted(labels[0] for labels in world.counted(USAGE_SOURCE)) == ["estimated", "provider"]
        assert world.counted(USAGE_SOURCE)[("provider",)] == 2

    run_virtual(main())


def test_the_end_of_the_process_waits_for_none_of_them() -> None:
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect=FINISHES)
        await left(world, 2.5, streamed=True)
        await asyncio.sleep(0.5)
        await world.runtime.close()
        assert await over(world) == 3.0
        assert accounts(world)["source"] == "estimated"

    run_virtual(main())


def test_when_the_process_is_about_to_end_nothing_new_is_read_on() -> None:
    async def main() -> None:
        world = World({"a": [SLOW_STREAM]}, on_disconnect=FINISHES)
        world.runtime.draining = True
        await left(world, 2.5, streamed=True)
        assert await over(world) == 2.5

    run_virtual(main())


# ---- with others -----------------------------------------------------------------------------------------------------

HEDGING = ResilienceSpec(hedge=HedgeSpec(enabled=True, delay_s=0.5, budget_share=1.0))


@pytest.mark.parametrize(("at", "end"), [(0.2, 0.2), (0.7, 0.7), (2.0, 8.0)])
def test_a_race_is_read_to_its_end_once_it_is_won(at: float, end: float) -> None:
    """R1, Q14: two attempts for nobody are two too many."""

    async def main() -> None:
        world = World({"a": [SLOW_STREAM], "b": [SLOW_STREAM]}, on_disconnect=FINISHES, resilience=HEDGING)
        await left(world, at, streamed=True)
        assert abs(await over(world) - end) < 0.6
        if end == 8.0:
            assert world.counted(USAGE_SOURCE) == {("provider",): 1, ("estimated",): 1}, "the loser's, and the answer's"
            assert sum(tokens == [11, 7] for tokens in world.series(TOKENS).values()) == 1

    run_virtual(main())


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("plan", [None, refuse(400), refuse(500), Plan(wait_s=HANG)], ids=str)
def test_who_stays_sees_no_difference(plan: Plan | None, streamed: bool) -> None:
    async def main() -> None:
        seen = []
        for policies in ({}, FINISHES):
            good = stream(*GOOD_STREAM) if streamed else ok()
            world = World({"a": [plan or good]}, on_disconnect=policies, timeouts=Timeouts(total_s=50.0), retries=0)
            exchange = await world.ask(stream=streamed)
            seen.append((exchange.status, exchange.headers, exchange.received, exchange.ended, world.finished))
            assert not world.runtime.outlasting
            world.settled_once()
        assert seen[0] == seen[1]

    run_virtual(main())


def test_a_fault_of_ours_is_told_though_nobody_waits(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "slipstream.request")

    async def main() -> None:
        world = World({"a": [Plan(fail=RuntimeError("secret"), wait_s=2.0)]}, on_disconnect=FINISHES)
        await left(world, 1.0)
        assert await over(world) == 2.0
        assert world.finished == {"500": 1}

    run_virtual(main())
    assert [record.message for record in caplog.records] == ["a request without a client failed"]
    assert "secret" not in caplog.text
