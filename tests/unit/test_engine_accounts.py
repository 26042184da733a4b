"""What a request leaves behind: usage with its source, outcomes, overhead, headers that tell a client what to do; and
what must never be left anywhere: a secret, a header of the client, a label from outside (R8, R31, R38, R84, Q35)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream.config.snapshot import Price, Timeouts
from slipstream.errors import TransportError
from slipstream.obs.families import (
    COST,
    COST_UNKNOWN,
    DURATION,
    OVERHEAD,
    REQUESTS,
    SPEED,
    TOKENS,
    TTFT,
    USAGE_SOURCE,
)
from slipstream.obs.log import JsonFormatter
from slipstream.routing.table import MAX_REMEMBERED
from slipstream.server import pages
from slipstream.types import Secret
from tests.fakes import (
    FINISH,
    GOOD_STREAM,
    HANG,
    ROLE,
    USAGE,
    USAGE_EVENT,
    FakeExchange,
    FakeUpstream,
    Plan,
    World,
    delta,
    error_event,
    event,
    ok,
    refuse,
    snapshot,
    spec,
    stream,
)
from tests.virtual import loop_now, run_virtual


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))


@pytest.fixture(autouse=True)
def log() -> Iterator[list[dict[str, Any]]]:
    """The request log, not redacted by the formatter: what the engine itself writes."""
    logger, handler = logging.getLogger("slipstream.request"), Lines()
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
    yield handler.lines
    logger.removeHandler(handler)
    logger.level, logger.propagate = before


def tokens(world: World) -> tuple[int, int]:
    """Prompt and completion tokens of all series; the rows of the targets say the same."""
    rows = list(world.series(TOKENS).values())
    prompt, completion = sum(row[0] for row in rows), sum(row[1] for row in rows)
    used = [world.runtime.table.usage(t.row) for t in world.runtime.active.routes.targets]
    assert (prompt, completion) == (sum(u[0] for u in used), sum(u[1] for u in used))
    return prompt, completion


def page(world: World, accept: str = "") -> bytes:
    return pages.metrics(world.runtime, accept)[0]


# ---- usage -----------------------------------------------------------------------------------------------------------

MESSAGES = json.dumps([{"role": "user", "content": "Hello"}])
ESTIMATED = (len(MESSAGES) + 3) // 4
THREE = (ROLE, delta("a"), delta("b"), delta("c"))
USAGES = {
    "whole": (ok(), (11, 7), "provider"),
    "whole without usage": (ok(usage=None), (0, 0), "none"),
    "whole with broken usage": (ok(usage={"prompt_tokens": "x"}), (0, 0), "none"),
    "stream": (stream(), (11, 7), "provider"),
    "stream without usage": (stream(*THREE, FINISH), (ESTIMATED, 3), "estimated"),
    "usage on a content chunk": (stream(delta("a", usage=USAGE), FINISH), (11, 7), "provider"),
    "cut after usage": (stream(*THREE, USAGE_EVENT), (11, 7), "provider"),
    "cut before usage": (stream(*THREE), (ESTIMATED, 3), "estimated"),
    "error after content": (stream(*THREE, error_event(500, "long " * 100)), (ESTIMATED, 3), "estimated"),
    "error body": (refuse(500, "long " * 100), (0, 0), "none"),
    "error first": (stream(error_event(500, "long " * 100)), (0, 0), "none"),
    "malformed": (Plan((b"<html>" * 100,)), (0, 0), "none"),
}


@pytest.mark.parametrize(("plan", "wanted", "source"), USAGES.values(), ids=USAGES)
def test_usage_is_the_providers_or_labelled(plan: Plan, wanted: tuple[int, int], source: str) -> None:  # R8
    async def main() -> None:
        world = World({"a": [plan]})
        await world.ask(stream=any(isinstance(s, bytes) and s.startswith(b"data:") for s in plan.steps))
        assert tokens(world) == wanted
        assert world.counted(USAGE_SOURCE) == {(source,): 1}
        world.settled_once()

    run_virtual(main())


def test_cumulative_usage_is_not_added_up() -> None:  # R67
    async def main() -> None:
        running = event(
            {"choices": [{"delta": {"content": "x"}}], "usage": {"prompt_tokens": 11, "completion_tokens": 3}}
        )
        world = World({"a": [stream(running, running, USAGE_EVENT, USAGE_EVENT, FINISH)]})
        await world.ask(stream=True)
        assert tokens(world) == (11, 7)

    run_virtual(main())


def test_cost_is_by_the_configured_price_and_unknown_is_counted() -> None:  # R69
    async def main() -> None:
        priced = World({"a": [ok()]}, make=lambda n, **kw: spec(n, price=Price(input=2.0, output=10.0), **kw))
        await priced.ask()
        assert priced.counted(COST) == {("a",): 11 * 2 + 7 * 10}
        assert priced.runtime.table.usage(priced.row("a")) == (11, 7, 11 * 2 + 7 * 10)
        assert priced.series(COST_UNKNOWN) == {(): [0, 0]}
        unknown = World({"a": [ok()]})
        await unknown.ask()
        assert unknown.series(COST) == {}
        assert unknown.runtime.table.usage(unknown.row("a")) == (11, 7, 0)
        assert unknown.counted(COST_UNKNOWN) == {(): 1}

    run_virtual(main())


# ---- time ------------------------------------------------------------------------------------------------------------

SLOW = {
    "whole": ([Plan((b'{"choices":', 2.0, b"[]}"), wait_s=3.0)], False),
    "stream": ([Plan((ROLE, 1.0, delta("x"), 4.0, FINISH, 0.5), wait_s=3.0)], True),
    "drained": ([stream(*GOOD_STREAM, HANG)], True),
    "after a refusal": ([Plan((b"{", 2.0, b"}"), 500, wait_s=1.0), ok()], False),
    "after a cut": ([Plan((b"{", 2.0, TransportError()), wait_s=1.0), ok()], False),
    "after a stall": ([stream(ROLE, HANG), stream()], True),
    "after a stall in json": ([stream(b"{", HANG), stream()], True),
    "after a stall in a whole reply": ([Plan((b"{", HANG)), ok()], False),
    "after silence": ([Plan(wait_s=HANG), stream()], True),
}


@pytest.mark.parametrize(("plans", "streamed"), SLOW.values(), ids=SLOW)
def test_overhead_is_what_the_upstream_did_not_take(plans: list[Plan], streamed: bool) -> None:  # R38
    """Nothing of ours takes time here, and the body's arrival is before it: so it is 0, however slow the others are."""

    async def main() -> None:
        names = "ab"[: len(plans)]
        limits = Timeouts(first_byte_s=30, idle_s=30, total_s=1000)
        world = World({n: [p] for n, p in zip(names, plans, strict=True)}, timeouts=limits)
        exchange = await world.ask(stream=streamed, pauses={"body": 5.0})
        assert exchange.status == 200
        *buckets, total_ns = world.series(OVERHEAD)[()]
        assert sum(buckets) == 1
        assert total_ns <= 1

    run_virtual(main())


def test_time_to_first_token_and_speed() -> None:
    async def main() -> None:
        world = World({"a": [Plan((ROLE, 1.0, delta("x"), 1.0, delta("y"), 1.0, FINISH), wait_s=0.5)]})
        await world.ask(stream=True)
        labels = ("provider", "m", "a")
        *buckets, total_ns = world.series(TTFT)[labels]
        assert (sum(buckets), total_ns) == (1, 1_500_000_000)
        assert world.counted(SPEED) == {labels: 1000}, "thousandths of a token a second"
        assert world.runtime.table.ewma(world.row("a")) == (500_000, 1_500_000)
        assert pages.health_detailed(world.runtime)["providers"][0]["latency_ms"] == 500.0

    run_virtual(main())


# ---- what the client is told -----------------------------------------------------------------------------------------


def test_retry_after_is_passed_on_rounded_up() -> None:  # R52, R53
    async def main() -> None:
        for value, header in (("7", "7"), ("1.2", "2"), ("0", "0"), ("9999", "300"), ("soon", "1")):
            world = World({"a": [refuse(429, retry_after=value)]}, retries=0)
            exchange = await world.ask()
            assert exchange.status == 429
            assert exchange.headers.get("Retry-After") == header
        world = World({"a": [refuse(503, retry_after_ms="1500")]}, retries=0)
        assert (await world.ask()).headers["Retry-After"] == "2"

    run_virtual(main())


def test_clients_are_told_not_to_multiply_our_attempts() -> None:  # Q08
    async def main() -> None:
        world = World({"a": [refuse(503)], "b": [refuse(503)]})
        exchange = await world.ask()
        assert (exchange.headers["x-should-retry"], exchange.headers["x-slipstream-attempts"]) == ("false", "2")
        alone = await World({"a": [refuse(503)]}, retries=0).ask()
        assert "x-should-retry" not in alone.headers
        assert alone.headers["Content-Type"] == "application/json"

    run_virtual(main())


def test_a_failed_request_is_one_line_with_its_trail(log: list[dict[str, Any]]) -> None:  # R56
    async def main() -> None:
        await World({"a": [refuse(500)], "b": [refuse(429)]}).ask()

    run_virtual(main())
    assert len(log) == 1
    line = log[0]
    assert (line["level"], line["status"], line["attempts"], line["request_id"]) == ("warning", 429, 2, "req-1")
    assert line["trail"] == ["a:server", "b:rate_limited"]


# ---- secrets ---------------------------------------------------------------------------------------------------------

LEAK = "bad key canary-key-a of https://a.test, master canary-master-key, header canary-header-value"
FIELDS = ("message", "type", "code", "param")
LEAKS = {
    "error body": Plan(
        (json.dumps({"error": dict.fromkeys(("message", "type", "code", "param"), LEAK)}).encode(),), 400
    ),
    "extras": Plan((json.dumps({"error": {"message": "m", "metadata": {"raw": LEAK}}}).encode(),), 500),
    "401": Plan((json.dumps({"error": {"message": LEAK}}).encode(),), 401),
    "html": Plan((f"<html>{LEAK}</html>".encode(),), 502),
    "200 body": Plan((json.dumps({"error": {"message": LEAK, "code": 500}}).encode(),)),
    "stream first": stream(event({"error": {"message": LEAK, "code": LEAK, "metadata": {"x": LEAK}}})),
    "stream mid": stream(delta("x"), event({"error": {"message": LEAK, "code": LEAK}})),
    "error field": stream(f'error: {{"message":"{LEAK}"}}\n\n'.encode()),
    "stray": stream(LEAK.encode() + b" ?\n\n"),
    "long": Plan((json.dumps({"error": {"message": "x " * 980 + LEAK * 20}}).encode(),), 400),
}


@pytest.mark.parametrize("plan", LEAKS.values(), ids=LEAKS)
@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_a_secret_in_a_providers_text_goes_nowhere(
    plan: Plan, streamed: bool, log: list[dict[str, Any]]
) -> None:  # R84, Q36, Q39, S-50
    async def main() -> tuple[FakeExchange, World]:
        world = World(
            {"a": [plan]}, make=lambda n, **kw: spec(n, headers={"X-Extra": Secret("canary-header-value")}, **kw)
        )
        return await world.ask(stream=streamed), world

    exchange, world = run_virtual(main())
    told = exchange.received + json.dumps(dict(exchange.headers)).encode()
    ours = page(world) + json.dumps(pages.health_detailed(world.runtime)).encode()
    table = json.dumps([str(row) for row in world.runtime.shared.series.items()]).encode()
    everywhere = told + json.dumps(log).encode() + ours + table
    assert b"canary" not in everywhere
    assert len(log) == 1
    assert b"canary" not in repr(world.snapshot).encode()


@pytest.mark.parametrize("failing", [refuse(500), refuse(429), Plan(wait_s=HANG), stream(error_event(503))])
def test_each_provider_sees_its_own_key_and_nothing_of_the_client(failing: Plan) -> None:  # Q35
    """The engine has no way to read a client's header: what leaves is the provider's block, the same for all."""

    async def main() -> None:
        world = World({"a": [failing], "b": [stream()]}, timeouts=Timeouts(first_byte_s=5))
        await world.ask(stream=True)
        for name, upstream in world.upstreams.items():
            headers = upstream.requests[0].headers
            assert headers.pop("User-Agent").startswith("slipstream/")
            assert headers == {
                "Accept": "application/json, text/event-stream",
                "Accept-Encoding": "identity",
                "Content-Type": "application/json",
                "Authorization": f"Bearer canary-key-{name}",
            }

    run_virtual(main())


# ---- labels ----------------------------------------------------------------------------------------------------------


def test_model_names_from_outside_are_never_labels() -> None:  # R31, Q40
    async def main() -> None:
        world = World({"a": [ok()]}, make=lambda n, **kw: spec(n, models=("m",), patterns=("x",), **kw))
        series = world.runtime.shared.series

        async def ask(start: int, stop: int) -> None:
            for i in range(start, stop):
                prefix = ("x", "unknown-", "../", "\u202e")[i % 4]
                await world.ask(body=b'{"model":"' + f"{prefix}{i}".encode() + b'","messages":[]}')
            world.upstreams["a"].requests.clear()
            world.upstreams["a"].replies.clear()

        await world.ask()
        await ask(0, 8)
        size, count, rows = len(page(world)), len(series.items()), len(world.runtime.table.targets())
        await ask(8, 5008)
        assert len(series.items()) == count
        assert len(world.runtime.table.targets()) == rows
        assert len(page(world)) < size + 500, "only the numbers grow"
        assert {key[2] for key in world.series(REQUESTS)} <= {"m", "other", "none"}

    run_virtual(main())


def test_a_hundred_thousand_names_leave_no_labels_and_no_rows() -> None:  # R31
    async def main() -> None:
        world = World({"a": [ok()]}, make=lambda n, **kw: spec(n, models=(), **kw))
        routes, upstream = world.runtime.active.routes, world.upstreams["a"]
        for i in range(100_000):
            name = f"n{i}"
            assert not routes.knows(name)
            pool = routes.find(name)
            assert pool is not None
            assert [(t.row, t.upstream_model) for t in pool.targets] == [(world.row("a"), None)]
            if i < 100 or i % 100 == 0:
                await world.ask(body=b'{"model":"%s","messages":[]}' % name.encode())
                assert upstream.bodies == [{"model": name, "messages": []}]
                upstream.requests.clear()
                upstream.replies.clear()
        assert {key[2] for key in world.series(REQUESTS)} == {"other"}
        assert [len(world.series(family)) for family in (REQUESTS, DURATION, TOKENS)] == [1, 1, 1]
        assert len(routes.targets) == len(world.runtime.table.targets()) == 1
        assert sum(routes.remembers(f"n{i}") for i in range(100_000)) <= MAX_REMEMBERED

    run_virtual(main())


# ---- reload ----------------------------------------------------------------------------------------------------------


def reload(world: World, **keys: str) -> Any:
    """Swap to a configuration of the same providers with other keys for some; what ``swap`` gave back."""
    providers = []
    for name in world.upstreams:
        more = {"api_key": Secret(keys[name])} if name in keys else {}
        providers.append(spec(name, **more))
        if name in keys:
            world.upstreams[name] = FakeUpstream(ok())
    return world.runtime.swap(snapshot(*providers))


def test_a_request_keeps_the_configuration_it_started_with() -> None:  # R81, R42
    async def main() -> None:
        world = World({"a": [Plan((ROLE, delta("x"), 5.0, FINISH))], "b": [ok()]})
        first = world.runtime.active
        old_a, old_b = world.upstreams["a"], world.upstreams["b"]
        running = asyncio.create_task(world.ask(stream=True))
        await asyncio.sleep(1)
        unused = reload(world, a="canary-new-key")
        assert unused == [old_a], "the unchanged provider keeps its connections"
        assert world.runtime.active is not first
        assert first.in_flight == 1
        idle: list[float] = []
        first.on_idle = lambda: idle.append(loop_now().time())
        for _ in "ba":  # the turns go on where they were: they are counted in the shared table
            await world.ask()
        assert world.upstreams["a"].requests[0].headers["Authorization"] == "Bearer canary-new-key"
        assert old_a.requests[0].headers["Authorization"] == "Bearer canary-key-a"
        assert idle == []
        exchange = await running
        assert exchange.received.endswith(b"[DONE]\n\n")
        assert idle == [5.0]
        assert world.runtime.active.in_flight == 0
        await world.ask()
        assert world.upstreams["b"] is old_b
        assert len(old_b.requests) == 2

    run_virtual(main())


def test_another_limit_for_sending_is_another_transport() -> None:  # R17: it is the transport that keeps it
    async def main() -> None:
        world = World({"a": [ok()]})
        old = world.upstreams["a"]
        assert world.runtime.swap(snapshot(spec("a", timeouts=Timeouts(idle_s=1.0)))) == []
        world.upstreams["a"] = FakeUpstream(ok())
        assert world.runtime.swap(snapshot(spec("a", timeouts=Timeouts(send_s=1.0)))) == [old]

    run_virtual(main())


def test_a_transport_in_use_outlives_two_reloads() -> None:  # R42
    """Taken over by the second generation, dropped by the third, and still in use by a request of the first."""

    async def main() -> None:
        world = World({"a": [Plan((ROLE, delta("x"), 50.0, FINISH))]})
        first = world.runtime.active
        old = world.upstreams["a"]
        running = asyncio.create_task(world.ask(stream=True))
        await asyncio.sleep(1)
        assert reload(world) == []
        second = world.runtime.active
        assert reload(world, a="canary-new-key") == [old]
        idle: list[float] = []
        second.on_idle = lambda: idle.append(loop_now().time())
        assert second.in_flight > 0, "the caller must wait for it before it closes the transport"
        assert idle == []
        await running
        assert (first.in_flight, second.in_flight, world.runtime.active.in_flight) == (0, 0, 0)
        assert idle == [50.0]

    run_virtual(main())


def test_secrets_of_the_old_configuration_are_masked_for_its_requests() -> None:  # R84
    async def main() -> None:
        world = World({"a": [Plan((json.dumps({"error": {"message": "canary-key-a!"}}).encode(),), 400, wait_s=5.0)]})
        running = asyncio.create_task(world.ask())
        await asyncio.sleep(1)
        reload(world, a="another-canary")
        assert b"canary" not in (await running).received

    run_virtual(main())


def test_closing_closes_every_transport() -> None:
    async def main() -> None:
        world = World({"a": [ok()], "b": [ok()]})
        await world.runtime.close()
        assert all(u.closed for u in world.upstreams.values())

    run_virtual(main())
