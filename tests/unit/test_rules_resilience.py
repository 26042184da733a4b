"""Rules of requirements.md and reliability.md that belong to no single module: each test says which (R6, R16, R17, R20,
R52, R55, R56, R58, Q07, Q18-Q20)."""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from typing import Any, get_args

import pytest

from slipstream.config.schema import Trigger
from slipstream.config.snapshot import BreakerSpec, LimitsSpec, ResilienceSpec, Timeouts
from slipstream.engine.runtime import Runtime
from slipstream.errors import ConnectFailed, TransportError, UpstreamTimeout
from slipstream.net.native import NativeTransport
from slipstream.obs.families import DISCONNECTS, EJECTED, TIMEOUTS, TOKENS, USAGE_SOURCE
from slipstream.resilience.failures import RETRY
from slipstream.types import FailureClass, Secret
from tests.fakes import (
    DONE,
    FINISH,
    GOOD_STREAM,
    HANG,
    ROLE,
    Plan,
    World,
    answer,
    delta,
    ok,
    refuse,
    snapshot,
    spec,
    stream,
)
from tests.unit.test_engine_resilience import fire
from tests.virtual import loop_now, only_a_stale_timer, run_virtual

LIMITS = Timeouts(connect_s=5, first_byte_s=30, idle_s=60, total_s=100)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("slipstream.request").setLevel(logging.CRITICAL)


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "silent",
    [
        Plan(wait_s=HANG),
        stream(HANG),
        stream(ROLE, HANG),
        stream(*[step for _ in range(9) for step in (9.0, ROLE)]),
        stream(*[step for _ in range(9) for step in (9.0, b": PROCESSING\n\n")]),
    ],
    ids=["no answer", "no event", "no content", "lifecycle events", "comments"],
)
def test_no_token_in_time_goes_to_another_target(silent: Plan) -> None:
    """R20: the limit of the first token leads to another target, not to an error; the client sees one clean stream."""

    async def main() -> None:
        world = World({"a": [silent], "b": [stream()]}, timeouts=LIMITS)
        exchange = await world.ask(stream=True)
        assert exchange.headers["x-slipstream-provider"] == "b"
        assert exchange.received.count(b'"role"') == 1
        assert b"error" not in exchange.received
        assert exchange.events[-1] == "[DONE]"
        assert 30 <= loop_now().time() < 30.1
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize(
    ("plan", "limit"),
    [
        (Plan(fail=UpstreamTimeout("connect", 5)), "connect"),
        (Plan(fail=UpstreamTimeout("send", 30)), "send"),
        (Plan(wait_s=HANG), "first_byte"),
        (stream(delta("a"), HANG), "idle"),
        (stream(delta("a"), *[step for _ in range(9) for step in (30.0, delta("b"))]), "total"),
    ],
)
def test_each_limit_has_its_metric_label(plan: Plan, limit: str) -> None:  # R17
    async def main() -> None:
        world = World({"a": [plan]}, timeouts=LIMITS)
        exchange = await world.ask(stream=True)
        error = exchange.events[-1]["error"] if exchange.started else exchange.json["error"]
        assert error["code"] == f"upstream_{limit}_timeout"
        assert world.counted(TIMEOUTS) == {("a", limit): 1}

    run_virtual(main())


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
@pytest.mark.parametrize("asked_s", [None, 45.0])
def test_three_targets_that_hang_end_at_the_total(streamed: bool, asked_s: float | None) -> None:
    """Q18: 504 at the total, +-50 ms, for all attempts and waits together; the client's own limit shortens it."""

    async def main() -> None:
        limits = Timeouts(connect_s=5, first_byte_s=40, idle_s=60, total_s=100)
        world = World({name: [Plan(wait_s=HANG)] for name in "abc"}, timeouts=limits)
        exchange = await fire(world, asked_s=asked_s, streamed=streamed)
        assert (exchange.status, exchange.json["error"]["code"]) == (504, "upstream_total_timeout")
        assert loop_now().time() == pytest.approx(asked_s or 100, abs=0.05)
        assert sum(world.asked.values()) == (2 if asked_s else 3)
        await only_a_stale_timer()
        world.settled_once()

    run_virtual(main())


# ---- the client ------------------------------------------------------------------------------------------------------


def test_a_thousand_clients_that_leave() -> None:
    """Q19, R6: before and after the first byte, streams and whole replies, in a wait for another try and in one for a
    place: every connection to a provider is closed at once, nothing is in flight, and what was used is in the accounts.
    """
    dice = random.Random(19)
    plans = [
        Plan(wait_s=HANG),
        stream(ROLE, HANG),
        stream(ROLE, delta("x"), HANG),
        stream(*GOOD_STREAM[:3], HANG),
        Plan((b'{"choices":', HANG)),
        refuse(503, retry_after="2"),
    ]
    wide = ResilienceSpec(breaker=BreakerSpec(enabled=False))

    async def main() -> None:
        world = World(
            {"a": [dice.choice(plans) for _ in range(3000)]},
            resilience=wide,
            make=lambda n, **kw: spec(n, limits=LimitsSpec(max_in_flight=900, queue=200), **kw),
        )
        tasks = [asyncio.ensure_future(world.ask(stream=bool(i % 2))) for i in range(1000)]
        await asyncio.sleep(0.5)
        left = [task for task in tasks if not task.done()]
        assert len(left) == 1000
        before = loop_now().time()
        for task in left:
            task.cancel()
        await asyncio.wait(tasks)
        assert loop_now().time() == before, "at once"
        outbound = world.runtime.active.outbound["a"]
        assert (outbound.bulkhead().in_flight, outbound.bulkhead().queued) == (0, 0)
        assert world.counted(DISCONNECTS) == {(): len(left)}
        assert world.counted(USAGE_SOURCE)[("estimated",)] > 400
        assert world.series(TOKENS)[("m", "a", "default")][1] > 100, "what came of the streams was paid for"
        assert len(asyncio.all_tasks()) == 1
        await asyncio.sleep(100)  # what timers were set find nothing to do
        assert loop_now().timers() == []
        world.settled_once(1000)

    run_virtual(main())


TEXT = [f"w{i} " for i in range(30)]
WHOLE = b"".join((ROLE, *(delta(piece) for piece in TEXT), FINISH, DONE))


@pytest.mark.parametrize("seed", range(4))
def test_streams_cut_anywhere_are_a_prefix_of_one_attempt(seed: int) -> None:
    """Q07: cut at any byte, in pieces of any size. What the client has is the beginning of one attempt, never twice;
    an error event ends it and no [DONE]."""
    dice = random.Random(seed)

    def cut(name: str) -> Plan:
        whole = WHOLE.replace(b'"w', f'"{name}'.encode())
        data = whole[: dice.randrange(len(whole) - len(DONE) - len(FINISH))]
        at = sorted({0, len(data), *(dice.randrange(len(data) + 1) for _ in range(dice.randrange(6)))})
        return stream(*(data[start:end] for start, end in itertools.pairwise(at)), TransportError())

    async def main() -> None:
        for number in range(250):
            world = World({"a": [cut("a")], "b": [cut("b")]})
            exchange = await world.ask(stream=True)
            if not exchange.started:
                assert exchange.status == 502
                continue
            events = exchange.events
            pieces = [e["choices"][0]["delta"].get("content") or "" for e in events if "choices" in e]
            text = "".join(pieces)
            assert text, "a stream begins with content"
            assert any("".join(TEXT).replace("w", name).startswith(text) for name in "ab"), number
            assert "[DONE]" not in events
            assert ["error" in e for e in events] == [False] * (len(events) - 1) + [True]
            assert sum(world.asked.values()) <= 2
            world.settled_once()

    run_virtual(main())


# ---- what the client is told -----------------------------------------------------------------------------------------

STALE = {"content-encoding": "gzip", "transfer-encoding": "chunked", "content-length": "7", "set-cookie": "c=1"}


@pytest.mark.parametrize("status", [200, 400, 500, 503])
def test_headers_fit_the_body_that_is_sent(status: int) -> None:
    """R55: what the provider said of its own bytes is not said of ours."""

    async def main() -> None:
        body = answer() if status == 200 else refuse(status).steps[0]
        world = World({"a": [Plan((body,), status, STALE)]}, retries=0)
        exchange = await world.ask()
        assert exchange.status == status
        assert not {name.lower() for name in exchange.headers} & set(STALE)
        assert exchange.headers["Content-Type"] == "application/json"
        assert exchange.json

    run_virtual(main())


def test_who_was_asked_is_told_on_request() -> None:
    """R56: all credentials are dead: 502, and the attempts by provider and failure if the client wants to know."""

    async def main() -> None:
        for fields, wanted in (({}, None), ({"x_slipstream_trail": "1"}, {"a:auth", "b:auth"})):
            dead = refuse(401, "Incorrect API key provided: sk-canary")
            world = World({"a": [dead], "b": [dead]})
            exchange = await fire(world, **fields)
            assert exchange.status == 502
            told = exchange.headers.get("x-slipstream-trail")
            assert (told if told is None else set(told.split(", "))) == wanted
            assert b"canary" not in exchange.received

    run_virtual(main())


def test_nobody_to_ask_says_when_to_come_back() -> None:  # R52: every 503 of ours
    async def main() -> None:
        world = World({"a": [ok()]}, make=lambda n, **kw: spec(n, weight=0, **kw))
        exchange = await world.ask()
        assert exchange.status == 503
        assert int(exchange.headers["Retry-After"]) >= 1

    run_virtual(main())


def test_the_soonest_of_all_targets_is_told() -> None:
    """R52: of one that rests, one that is shut and one that rests for longer, whoever comes back first."""

    async def main() -> None:
        world = World(
            {
                "a": [refuse(429, retry_after="50")],
                "b": [refuse(503, retry_after="20")],
                "c": [refuse(429, retry_after="90")],
            },
        )
        for _ in range(3):
            exchange = await world.ask()
        assert world.asked == {"a": 1, "b": 1, "c": 1}
        assert exchange.headers["Retry-After"] == "20"
        world.runtime.active.breakers.open_by_hand(world.row("b"), loop_now().time(), 200.0)
        again = await world.ask()
        assert (again.status, again.headers["Retry-After"]) == (429, "50")

    run_virtual(main())


# ---- further attempts ------------------------------------------------------------------------------------------------

TRIGGERS = {
    "connect": Plan(fail=ConnectFailed("no connection")),
    "timeout": refuse(504),
    "transport": Plan(fail=TransportError()),
    "rate_limited": refuse(429),
    "overloaded": refuse(503),
    "server": refuse(500),
    "malformed": Plan((b"<html>",)),
    "auth": refuse(401),
    "quota": refuse(402),
}


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_what_leads_to_a_further_attempt_is_configurable(trigger: str, streamed: bool) -> None:
    """R16: each failure by itself leads on or is the answer, with another target, a fallback model or nobody else."""
    failure = FailureClass[trigger.upper()]
    good = stream() if streamed else ok()

    async def main() -> None:
        for wanted in (frozenset({failure}), frozenset(FailureClass) - {failure}):
            leads = failure in wanted
            two = World({"a": [TRIGGERS[trigger]], "b": [good]}, retry_on=wanted)
            chain = World(
                {"a": [TRIGGERS[trigger]], "b": [good]},
                make=lambda n, **kw: spec(n, models=("m",) if n == "a" else ("n",), **kw),
                fallbacks={"m": ("n",)},
                retry_on=wanted,
            )
            for world in (two, chain):
                exchange = await world.ask(stream=streamed)
                assert (exchange.status == 200) == leads
                assert world.asked == {"a": 1, "b": int(leads)}
                world.settled_once()
            alone = World({"a": [TRIGGERS[trigger], good]}, retry_on=wanted)
            await alone.ask(stream=streamed)
            assert alone.asked == {"a": 1 + (leads and RETRY[failure].same)}

    run_virtual(main())


def test_the_triggers_of_the_file_are_those_of_the_table() -> None:  # R16
    assert set(get_args(Trigger)) == {failure.label for failure in FailureClass if RETRY[failure].other}


# ---- targets and connections -----------------------------------------------------------------------------------------


def test_a_target_that_is_shut_by_a_request_is_not_asked_again_in_it() -> None:
    """R58: ejection holds for the rest of the same request, also for the fallback model that it serves too."""
    once = ResilienceSpec(breaker=BreakerSpec(consecutive=1))

    async def main() -> None:
        world = World(
            {"a": [refuse(500)], "b": [refuse(500)]},
            resilience=once,
            retries=1,
            make=lambda name, **kw: spec(name, models=(), **kw),
            fallbacks={"m": ("n",)},
        )
        assert (await world.ask()).status == 500
        assert len(world.counted(EJECTED)) == 1, "never both"
        (shut,) = (key[0] for key in world.counted(EJECTED))
        assert world.asked == {"a": 2, "b": 2} | {shut: 1}

    run_virtual(main())


def test_connections_are_not_shared_between_credentials() -> None:
    """Q20: the same host under two names, two keys, or two places: each has a pool of its own."""

    async def main() -> None:
        base = "http://127.0.0.1:9/v1"
        made: list[Any] = []

        def make(*_: object) -> NativeTransport:
            made.append(NativeTransport())
            return made[-1]

        providers = [spec(name, api_base=base, api_key=Secret(f"key-{name}")) for name in "ab"]
        runtime = Runtime(snapshot(*providers), make, clock=loop_now().time)
        a, b = (runtime.active.outbound[name] for name in "ab")
        assert a.transport is not b.transport
        other = [spec("a", api_base=base, api_key=Secret("rotated")), providers[1]]
        runtime.swap(snapshot(*other))
        assert runtime.active.outbound["b"].transport is b.transport, "nothing of it has changed"
        assert runtime.active.outbound["a"].transport is not a.transport, "its key has"
        pools = {made[0].prepare(url, {})[0] for url in (f"{base}/x", f"{base}/y", "http://127.0.0.1:10/v1/x")}
        assert len(pools) == 2
        for transport in made:
            await transport.close()

    run_virtual(main())
