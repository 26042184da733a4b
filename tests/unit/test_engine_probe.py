"""Active probes: who is asked, when, and what the answer does to a breaker (engine/probe.py; Q04, R57, R58)."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from slipstream.config.snapshot import BreakerSpec, ProviderSpec, ResilienceSpec
from slipstream.engine.probe import Prober, last_probe, probes_here
from slipstream.engine.runtime import Runtime
from slipstream.errors import ConnectFailed
from slipstream.obs.families import ATTEMPTS, PROBES, REQUESTS
from slipstream.resilience.breaker import OPEN, pack
from slipstream.server import pages
from slipstream.types import FailureClass
from tests.fakes import HANG, WALL, Plan, World, ok, refuse, spec
from tests.virtual import loop_now, run_virtual

EVERY_S = 10.0
LIST = Plan((json.dumps({"object": "list", "data": [{"id": "m", "object": "model"}]}).encode(),))
BREAKER = BreakerSpec(cooldown_s=30.0, ramp_s=0.0)


def probing(plans: dict[str, list[Plan]], *lists: Plan, probe_s: float = EVERY_S, **more: Any) -> World:
    """A world whose providers answer requests by ``plans`` and the list of their models by ``lists``."""
    world = World(plans, resilience=ResilienceSpec(breaker=BREAKER, probe_s=probe_s), **more)
    for upstream in world.upstreams.values():
        upstream.lists = list(lists)
    return world


def started(world: World, random: float = 0.5) -> Prober:
    prober = Prober(world.runtime, lambda: random)
    prober.start()
    return prober


def shut(world: World, name: str, seconds: float, n: int = 1) -> int:
    """Open the breaker of the one target of ``name`` for so long; its row."""
    row, now = world.row(name), loop_now().time()
    table = world.runtime.table
    assert table.cas_breaker(row, table.breaker(row), pack(OPEN, n, int((now + seconds) * 1000)))
    return row


def state(world: World, row: int) -> str:
    return world.runtime.active.breakers.state(row, loop_now().time())


def outcomes(world: World) -> dict[tuple[str, ...], int]:
    return world.counted(PROBES)


def test_probes_are_off_by_default() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST, probe_s=ResilienceSpec().probe_s)
        started(world)
        await asyncio.sleep(1000)
        assert world.upstreams["a"].listed_at == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert pages.health_detailed(world.runtime)["providers"][0]["probe"] is None

    run_virtual(main())


@pytest.mark.parametrize(("random", "interval"), [(0.0, 8.0), (0.5, 10.0), (1.0, 12.0)])
def test_an_idle_provider_is_asked_for_its_list_every_while(random: float, interval: float) -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST)
        prober = started(world, random)
        await asyncio.sleep(3.5 * interval)
        prober.stop()
        assert world.upstreams["a"].listed_at == pytest.approx([interval, 2 * interval, 3 * interval])
        assert outcomes(world) == {("a", "none"): 3}
        assert world.asked == {"a": 0}, "a list costs nothing, a chat request does"
        await asyncio.sleep(100)
        assert len(world.upstreams["a"].listed_at) == 3, "stopped is stopped"
        assert world.upstreams["a"].all_closed

    run_virtual(main())


def test_who_has_traffic_is_not_asked() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST)
        prober = started(world)
        for _ in range(10):
            await world.ask()
            await asyncio.sleep(EVERY_S / 2)
        assert world.upstreams["a"].listed_at == []
        await asyncio.sleep(2 * EVERY_S)
        assert world.upstreams["a"].listed_at, "it is idle now"
        prober.stop()

    run_virtual(main())


def test_a_success_closes_the_breaker_when_its_time_is_over_and_no_client_had_to_try() -> None:
    async def main() -> None:
        world = probing({"a": [refuse(500)], "b": [ok()]}, LIST)
        prober = started(world)
        row = shut(world, "a", 25.0)
        await asyncio.sleep(24)
        assert state(world, row) == "open", "never before its time"
        await asyncio.sleep(8)
        assert state(world, row) == "closed"
        assert world.asked == {"a": 0, "b": 0}
        prober.stop()

    run_virtual(main())


@pytest.mark.parametrize(
    ("plan", "label"),
    [
        (refuse(500), "server"),
        (Plan(fail=ConnectFailed("no")), "connect"),
        (Plan(wait_s=HANG), "timeout"),
        (Plan(LIST.steps, wait_s=11.0), "timeout"),
    ],
)
def test_a_failure_opens_it_again_for_longer(plan: Plan, label: str) -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, plan)
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 10.5)
        breakers, now = world.runtime.active.breakers, loop_now().time()
        assert state(world, row) == "open"
        assert breakers.ejections(row, now) == 2
        assert breakers.remaining_s(row, now) > 40
        assert outcomes(world)["a", label] >= 1
        assert pages.health_detailed(world.runtime)["providers"][0]["probe"]["error"] == label
        assert world.runtime.table.last_failure(row) == (0, 0, False), "a probe is no traffic"
        prober.stop()

    run_virtual(main())


def test_a_refusal_that_says_nothing_gives_the_place_back() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, refuse(429))
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert state(world, row) == "half-open"
        assert world.runtime.active.breakers.ejections(row, loop_now().time()) == 1
        assert world.runtime.active.breakers.admit(row, loop_now().time()), "the next one may probe"
        prober.stop()

    run_virtual(main())


def test_a_clients_probe_is_not_disturbed() -> None:  # Q04
    async def main() -> None:
        world = probing({"a": [ok()]}, refuse(500))
        row = shut(world, "a", 5.0)
        await asyncio.sleep(6)
        assert world.runtime.active.breakers.admit(row, loop_now().time()).name == "PROBE"
        word = world.runtime.table.breaker(row)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert world.runtime.table.breaker(row) == word
        assert world.upstreams["a"].listed_at == []
        prober.stop()

    run_virtual(main())


@pytest.mark.parametrize("answer", [refuse(404), refuse(403), refuse(401), Plan((b"<html>hello</html>",))])
@pytest.mark.parametrize(("chat", "expected"), [(ok(), "closed"), (refuse(500), "open")])
def test_without_a_list_one_token_is_asked_for(answer: Plan, chat: Plan, expected: str) -> None:
    async def main() -> None:
        world = probing({"a": [chat]}, answer)
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert state(world, row) == expected
        (body,) = world.upstreams["a"].bodies
        assert (body["model"], len(body["messages"])) == ("m", 1)
        assert 1 in (body.get("max_tokens"), body.get("max_completion_tokens"))
        prober.stop()

    run_virtual(main())


@pytest.mark.parametrize("kind", ["openai", "anthropic", "gemini", "ollama", "cohere", "mistral", "groq"])
def test_every_dialect_can_be_asked_for_one_token(kind: str) -> None:
    def make(name: str, **more: Any) -> ProviderSpec:
        return spec(name, type=kind, **more)

    async def main() -> None:
        world = probing({"a": [refuse(500)]}, refuse(404), make=make)
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert world.asked == {"a": 1}
        assert state(world, row) == "open"
        assert outcomes(world) == {("a", "server"): 1}, "that there is no list is no outcome"
        prober.stop()

    run_virtual(main())


def test_an_idle_provider_without_a_list_is_asked_for_one_token_of_one_model(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, refuse(404), make=lambda n, **kw: spec(n, models=("m", "n"), **kw))
        prober = started(world)
        await asyncio.sleep(3 * EVERY_S + 1)
        assert [body["model"] for body in world.upstreams["a"].bodies] == ["m", "m", "m"]
        assert outcomes(world) == {("a", "none"): 3}
        prober.stop()

    run_virtual(main())
    assert not [r for r in caplog.records if r.name == "slipstream.probe"]


def test_where_nothing_can_be_asked_the_breaker_is_left_to_clients() -> None:
    """No list, and no model that was written down."""

    async def main() -> None:
        world = probing({"a": [ok()]}, refuse(404), make=_serves_all)
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert world.asked == {"a": 0}
        assert (state(world, row), outcomes(world)) == ("half-open", {("a", "not_found"): 1})
        assert world.runtime.active.breakers.admit(row, loop_now().time())
        prober.stop()

    run_virtual(main())


def _serves_all(name: str, **more: Any) -> ProviderSpec:
    return spec(name, models=(), **more)


def test_who_told_us_to_wait_is_left_alone() -> None:
    async def main() -> None:
        world = probing({"a": [refuse(429, retry_after="100")]}, LIST)
        await world.ask()
        prober = started(world)
        await asyncio.sleep(90)
        assert world.upstreams["a"].listed_at == []
        await asyncio.sleep(30)
        assert world.upstreams["a"].listed_at
        prober.stop()

    run_virtual(main())


def test_one_question_at_a_time() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, Plan(LIST.steps, wait_s=9.0), probe_s=1.0)
        prober = started(world)
        await asyncio.sleep(35)
        assert world.upstreams["a"].listed_at == pytest.approx([1.0, 11.0, 21.0, 31.0])
        prober.stop()

    run_virtual(main())


def test_one_answer_decides_for_all_targets_of_a_provider() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST, make=lambda n, **kw: spec(n, models=("m", "n"), **kw))
        table = world.runtime.table
        rows = [t.row for t in world.runtime.active.routes.targets]
        assert len(rows) == 2
        for row in rows:
            assert table.cas_breaker(row, 0, pack(OPEN, 1, 5000))
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert [state(world, row) for row in rows] == ["closed", "closed"]
        assert len(world.upstreams["a"].listed_at) == 1
        prober.stop()

    run_virtual(main())


def test_when_it_is_stopped_the_place_at_the_breaker_is_given_back() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, Plan(wait_s=HANG))
        row = shut(world, "a", 5.0)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        assert not world.runtime.active.breakers.admit(row, loop_now().time()), "a probe is under way"
        prober.stop()
        await asyncio.sleep(0.1)
        assert world.runtime.active.breakers.admit(row, loop_now().time())
        assert asyncio.all_tasks() == {asyncio.current_task()}
        assert outcomes(world) == {}

    run_virtual(main())


def test_a_reload_probes_the_new_providers_only() -> None:
    async def main() -> None:
        world = probing({"a": [ok()], "b": [ok()]}, LIST)
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        fewer = [s for s in world.snapshot.providers if s.name == "b"]
        unused = world.runtime.swap(type(world.snapshot)(**{**_fields(world.snapshot), "providers": tuple(fewer)}))
        prober.start()
        for transport in unused:
            await transport.close()
        await asyncio.sleep(3 * EVERY_S)
        assert len(world.upstreams["a"].listed_at) == 1
        assert len(world.upstreams["b"].listed_at) >= 3
        world.runtime.draining = True
        prober.start()
        await asyncio.sleep(0.1)
        assert asyncio.all_tasks() == {asyncio.current_task()}, "nobody is probed while the process ends"

    run_virtual(main())


def _fields(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def test_a_probe_is_no_traffic_and_stands_on_the_health_page() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, Plan(LIST.steps, wait_s=0.25), refuse(500))
        before = pages.health_detailed(world.runtime)["providers"][0]
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        a = pages.health_detailed(world.runtime)["providers"][0]
        assert a["probe"] == {"ok": True, "at": WALL, "ms": 250.0, "error": None}
        await asyncio.sleep(EVERY_S)
        a = pages.health_detailed(world.runtime)["providers"][0]
        assert (a["probe"]["ok"], a["probe"]["error"], a["healthy"]) == (False, "server", True)
        ours = ("probe", "connections")
        assert {k: v for k, v in a.items() if k not in ours} == {k: v for k, v in before.items() if k not in ours}
        assert world.counted(ATTEMPTS) == {}
        assert world.counted(REQUESTS) == {}
        assert world.runtime.requests == 0
        page, _ = pages.metrics(world.runtime, "")
        assert b'slipstream_probes_total{outcome="server",provider="a"} 1.0' in page
        assert b"slipstream_probed" not in page
        prober.stop()

    run_virtual(main())


def test_the_log_says_when_it_changes_and_shows_no_text_of_the_provider(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST, refuse(500, "canary text"), refuse(500), LIST)
        prober = started(world)
        await asyncio.sleep(6 * EVERY_S)
        prober.stop()

    with caplog.at_level(logging.INFO):
        run_virtual(main())
    found = [(r.message, r.__dict__["fields"]) for r in caplog.records if r.name == "slipstream.probe"]
    assert [text for text, _ in found] == ["a provider failed its probe", "a provider answers its probe again"]
    assert found[0][1] == {"provider": "a", "failure": "server"}


def test_of_two_workers_one_probes_and_both_tell() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST)
        other = Runtime(
            world.snapshot,
            lambda s, _: world.upstreams[s.name],
            shared=world.runtime.shared,
            clock=loop_now().time,
            wall=lambda: WALL,
        )
        probers = [started(world), Prober(other, lambda: 0.5)]
        probers[1].start()
        await asyncio.sleep(3 * EVERY_S + 1)
        assert len(world.upstreams["a"].listed_at) == 3
        assert last_probe(other.shared.series, "a") == {"ok": True, "at": WALL, "ms": 0.0, "error": None}
        for prober in probers:
            prober.stop()
        assert (probes_here(world.runtime), probes_here(other)) == (True, False)
        table = other.table
        beat = max(worker[3] for worker in table.workers())
        table.beat(other.worker, beat + 6_000_000_000)
        assert (probes_here(world.runtime), probes_here(other)) == (False, True), "the first is stopped or dead"

    run_virtual(main())


def test_words_of_another_version_are_no_crash() -> None:
    async def main() -> None:
        world = probing({"a": [ok()]}, LIST)
        assert last_probe(world.runtime.shared.series, "a") is None
        prober = started(world)
        await asyncio.sleep(EVERY_S + 1)
        prober.stop()
        ((slot, _),) = [
            (world.runtime.shared.series.series(key, 2), v)
            for key, v in world.runtime.shared.series.items()
            if key.startswith(b"slipstream_probed\0")
        ]
        world.runtime.shared.series.set(slot, 0, 5 << 8 | 0xFF)
        found = last_probe(world.runtime.shared.series, "a")
        assert found is not None
        assert (found["ok"], found["error"]) == (False, None)
        assert len(FailureClass) <= 0xFF

    run_virtual(main())
