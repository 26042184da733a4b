"""When a request ends early: the four limits in virtual time, a client that leaves at any moment, refusals of our own.
However it ends, it is settled exactly once and the provider's connection is given back (R1, R17, R51)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from slipstream.config.snapshot import Timeouts
from slipstream.engine.exchange import ClientGone
from slipstream.errors import ClientError, TransportError, UpstreamTimeout
from slipstream.obs.families import ATTEMPTS, DISCONNECTS, TOKENS, USAGE_SOURCE
from slipstream.providers.base import OPENAI_ENDPOINTS
from slipstream.types import Endpoint
from tests.fakes import (
    DONE,
    FINISH,
    GOOD_STREAM,
    HANG,
    ROLE,
    FakeExchange,
    Plan,
    World,
    delta,
    error_event,
    ok,
    refuse,
    spec,
    stream,
)
from tests.virtual import loop_now, only_a_stale_timer, run_virtual

LIMITS = Timeouts(connect_s=5, first_byte_s=30, idle_s=60, total_s=100)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "slipstream.request")


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("plan", "code", "at"),
    [
        (Plan(fail=UpstreamTimeout("connect", 5)), "upstream_connect_timeout", 0),
        (Plan(wait_s=HANG), "upstream_first_byte_timeout", 30),
        (stream(HANG), "upstream_first_byte_timeout", 30),
        (stream(*[s for _ in range(9) for s in (9.0, ROLE)]), "upstream_first_byte_timeout", 30),  # S-08
        (stream(29.0, delta("a"), 59.0, delta("b"), HANG), "upstream_total_timeout", 100),
        (stream(delta("a"), 59.0, delta("b"), 5.0, HANG), "upstream_total_timeout", 100),
        (stream(delta("a"), HANG), "upstream_idle_timeout", 60),
        (stream(*[s for _ in range(99) for s in (delta("a"), 9.0)]), "upstream_total_timeout", 100),  # S-07
    ],
)
def test_each_limit_has_its_code_and_its_moment(plan: Plan, code: str, at: float) -> None:  # R17, Q18
    async def main() -> None:
        world = World({"a": [plan]}, timeouts=LIMITS)
        exchange = await world.ask(stream=True)
        error = exchange.events[-1]["error"] if exchange.started else exchange.json["error"]
        assert exchange.started or exchange.status == 504
        assert error["code"] == code
        assert loop_now().time() == at
        await only_a_stale_timer()
        world.settled_once()

    run_virtual(main())


def test_a_token_every_ten_seconds_for_half_an_hour_survives() -> None:  # R22
    async def main() -> None:
        steps = [s for _ in range(180) for s in (delta("t"), 10.0)]
        world = World({"a": [stream(*steps, FINISH, DONE)]}, timeouts=Timeouts(idle_s=60, total_s=7200))
        exchange = await world.ask(stream=True)
        assert exchange.received.count(b'"t"') == 180
        assert exchange.received.endswith(DONE)
        assert loop_now().time() == 1800

    run_virtual(main())


def test_a_slow_client_is_not_the_providers_time() -> None:
    async def main() -> None:
        world = World({"a": [stream()]}, timeouts=Timeouts(idle_s=60, total_s=1000))
        exchange = await world.ask(stream=True, pauses={"write": 80.0})
        assert exchange.received.endswith(DONE)

    run_virtual(main())


def test_when_the_total_is_over_nobody_else_is_blamed() -> None:  # Q18
    async def main() -> None:
        world = World({"a": [Plan(wait_s=HANG)], "b": [ok()]}, timeouts=Timeouts(total_s=50))
        exchange = await world.ask()
        assert (exchange.status, exchange.json["error"]["code"]) == (504, "upstream_total_timeout")
        assert loop_now().time() == 50
        assert world.asked == {"a": 1, "b": 0}
        assert not world.runtime.active.cooldowns.resting(world.row("b"), 50.0)
        world.settled_once()

    run_virtual(main())


# ---- refusals of our own ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        (b"{", 400, None),
        (b'{"messages":[]}', 400, "model"),
        (json.dumps({"model": "nobody", "messages": []}).encode(), 404, "model"),
        (json.dumps({"model": "../x", "messages": []}).encode(), 400, "model"),
        (ClientError("too large", status=413, code="request_too_large"), 413, None),
    ],
)
def test_a_bad_request_reaches_no_provider(body: Any, status: int, param: str | None) -> None:
    async def main() -> None:
        world = World({"a": [ok()]})
        exchange = await world.ask(body=body)
        assert (exchange.status, exchange.json["error"]["param"]) == (status, param)
        assert world.asked == {"a": 0}
        assert world.finished == {str(status): 1}
        assert world.counted(TOKENS) == world.series(USAGE_SOURCE) == {}
        world.settled_once()

    run_virtual(main())


def test_no_provider_with_a_weight_is_a_503() -> None:
    async def main() -> None:
        world = World({"a": [ok()]}, make=lambda n, **kw: spec(n, weight=0, **kw))
        exchange = await world.ask()
        assert (exchange.status, exchange.json["error"]["code"]) == (503, "no_provider")
        world.settled_once()

    run_virtual(main())


# ---- the client leaves -----------------------------------------------------------------------------------------------


async def leave(world: World, at: float, endpoint: Endpoint = Endpoint.CHAT, **more: Any) -> None:
    """Start a request and cancel it ``at`` seconds later, as a listener does when the client closes."""
    task = asyncio.create_task(world.ask(endpoint, **more))
    await asyncio.sleep(at)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


MOMENTS = {
    "in its body": ([ok()], {"pauses": {"body": 9.0}}, 0),
    "before the header block": ([Plan(wait_s=HANG)], {}, 1),
    "in a whole reply": ([Plan((b'{"choices":', HANG))], {}, 1),
    "in an error body": ([Plan((b'{"error":', HANG), 500)], {}, 1),
    "before the first token": ([stream(ROLE, HANG)], {"stream": True}, 1),
    "in the stream": ([stream(ROLE, delta("x"), HANG)], {"stream": True}, 1),
    "while it is slow to read": ([stream()], {"stream": True, "pauses": {"write": 9.0}}, 1),
    "at the start line": ([stream()], {"stream": True, "pauses": {"begin": 9.0}}, 1),
    "while the error is written": (
        [stream(delta("x"), error_event(500))],
        {"stream": True, "pauses": {"write2": 9.0}},
        1,
    ),
}


@pytest.mark.parametrize(("plans", "more", "asked"), MOMENTS.values(), ids=MOMENTS)
def test_the_client_leaves(plans: list[Plan], more: dict[str, Any], asked: int) -> None:  # R1, R2, R51, S-55, S-56
    async def main() -> None:
        world = World({"a": plans, "b": [ok()]}, timeouts=LIMITS)
        await leave(world, 1.0, **more)
        assert loop_now().time() == 1.0
        assert world.asked == {"a": asked, "b": 0}
        assert not world.runtime.active.cooldowns.resting(world.row("a"), 1.0) or "write2" in more.get("pauses", {})
        await only_a_stale_timer()
        if "write2" not in more.get("pauses", {}):
            assert world.finished == {"499": 1}
            assert world.counted(DISCONNECTS) == {(): 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_the_client_leaves_during_the_second_attempt(endpoint: Endpoint, streamed: bool) -> None:  # R1, R2
    async def main() -> None:
        world = World({"a": [refuse(500)], "b": [Plan(wait_s=HANG)]})
        await leave(world, 2.0, endpoint, stream=streamed)
        assert world.asked == {"a": 1, "b": 1}
        assert world.finished == {"499": 1}
        assert world.counted(ATTEMPTS) == {("a", "server"): 1, ("b", "client_gone"): 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("gone_at", ["begin", "write", "write2", "end"])
def test_a_write_finds_that_the_client_has_left(gone_at: str) -> None:
    async def main() -> None:
        world = World({"a": [stream()], "b": [stream()]})
        with pytest.raises(ClientGone):
            await world.ask(stream=True, gone_at=gone_at)
        assert world.finished == {"499": 1}
        assert world.asked == {"a": 1, "b": 0}
        assert not world.runtime.active.cooldowns.resting(world.row("a"), 0.0)
        world.settled_once()

    run_virtual(main())


def test_gone_while_the_in_band_error_is_written() -> None:
    async def main() -> None:
        world = World({"a": [stream(delta("x"), error_event(500))]})
        exchange = await world.ask(stream=True, gone_at="write2")
        assert not exchange.ended
        world.settled_once()

    run_virtual(main())


def test_a_client_that_leaves_after_its_whole_answer_had_its_answer() -> None:
    """Most close right behind ``[DONE]``, while we still wait for the end of the body."""

    async def main() -> None:
        world = World({"a": [stream(*GOOD_STREAM, HANG)]})
        exchange = FakeExchange(b'{"model":"m","messages":[],"stream":true}')
        task = asyncio.create_task(_serve(world, exchange))
        while not exchange.ended:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert world.finished == {"200": 1}
        assert world.counted(DISCONNECTS) == {}
        assert world.counted(ATTEMPTS) == {("a", "none"): 1}
        assert loop_now().time() == 0.0
        world.settled_once()

    run_virtual(main())


async def _serve(world: World, exchange: FakeExchange) -> None:
    from slipstream.engine.pipeline import serve

    await serve(world.runtime, exchange, Endpoint.CHAT, "default")


def test_a_cancellation_at_the_moment_of_a_limit_is_the_clients() -> None:
    async def main() -> None:
        world = World({"a": [Plan(wait_s=HANG)], "b": [ok()]}, timeouts=LIMITS)
        task = asyncio.create_task(world.ask(stream=True))
        loop_now().call_at(30.0, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert world.asked == {"a": 1, "b": 0}
        assert world.finished == {"499": 1}
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("bug", [KeyError("x"), ZeroDivisionError()])
def test_a_bug_is_settled_too(bug: Exception) -> None:  # S-106, R51
    async def main() -> None:
        world = World({"a": [stream(ROLE, bug)], "b": [ok()]})
        with pytest.raises(type(bug)):
            await world.ask(stream=True)
        assert world.finished == {"500": 1}
        assert world.asked == {"a": 1, "b": 0}
        world.settled_once()

    run_virtual(main())


def test_any_mix_leaves_nothing_behind() -> None:  # R6, R29, R51
    async def main() -> None:
        plans = [ok(), refuse(500), refuse(400), stream(delta("x"), TransportError()), Plan(wait_s=HANG), stream()]
        world = World({"a": plans * 30, "b": [ok(), refuse(503), Plan(wait_s=1.0, fail=TransportError())] * 60})
        tasks = [asyncio.create_task(world.ask(stream=bool(i % 2))) for i in range(120)]
        for i, task in enumerate(tasks):
            if i % 5 == 0:
                loop_now().call_at(0.1 * (i % 7), task.cancel)
        await asyncio.wait(tasks)
        assert len(asyncio.all_tasks()) == 1
        await only_a_stale_timer()
        world.settled_once(120)

    run_virtual(main())
