"""When a worker turns requests away, and how a blocked loop is noticed (server/load.py; Q16, Q17, S-91, S-103)."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream.config.snapshot import AdmissionSpec, ResilienceSpec
from slipstream.resilience.bulkhead import NEVER, NORMAL
from slipstream.resilience.shed import MEMORY, Lag
from slipstream.server import load as load_module
from slipstream.server import pages
from slipstream.server.load import Load, Watch, stack_of
from tests.fakes import World, ok
from tests.virtual import loop_now, run_virtual

MB = 1 << 20


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def rss(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process holds, in a list of one."""
    held = [0]
    monkeypatch.setattr(load_module, "resident_bytes", lambda: held[0])
    return held


def in_world(test: Any, cpu: Clock | None = None, **admission: Any) -> None:
    async def main() -> None:
        resilience = ResilienceSpec(admission=AdmissionSpec(**{"max_lag_s": 0.005, **admission}))
        world, clock = World({"a": [ok()]}, resilience=resilience), Clock()
        await test(world, Load(world.runtime, clock, cpu or Clock()), clock)

    run_virtual(main())


def ticks(load: Load, clock: Clock, *late_s: float) -> None:
    """Measures that came so late each."""
    for late in late_s:
        clock.now += 0.1 + late
        load.measure(clock.now)


class Busy:
    """A loop each of whose turns takes ``turn_s`` of the CPU and of the time."""

    def __init__(self, clock: Clock, cpu: Clock) -> None:
        self.clock, self.cpu, self.turn_s = clock, cpu, 0.0

    async def turns(self, number: int) -> None:
        for _ in range(number):
            await asyncio.sleep(0)
            self.clock.now += self.turn_s
            self.cpu.now += self.turn_s
            loop_now().now += self.turn_s


def test_a_calm_process_asks_nobody() -> None:
    async def test(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, *([0.0] * 20))
        assert not load.pressed
        assert load.lag_s() == pytest.approx(0.0, abs=1e-6)

    in_world(test)


@pytest.mark.parametrize("late", [0.1, 0.99, 6.0])
def test_a_loop_that_is_late_without_having_worked_is_no_overload(late: float) -> None:
    """S-103: others have the machine, or a handler sleeps."""

    async def test(world: World, load: Load, clock: Clock) -> None:
        load.start()
        for _ in range(50):
            ticks(load, clock, late)
            await asyncio.sleep(0.05)
            assert not load.pressed
        load.stop()

    in_world(test)


def test_turns_that_stay_too_long_are_an_overload_until_they_are_short() -> None:  # Q16
    cpu = Clock()

    async def test(world: World, load: Load, clock: Clock) -> None:
        busy = Busy(clock, cpu)
        load.start()
        busy.turn_s = 0.02
        await busy.turns(100)
        assert not load.pressed, "four times the target is none"
        busy.turn_s = 0.05
        await busy.turns(4)
        assert not load.pressed, "a stop is none"
        await busy.turns(12)
        assert load.pressed
        admission = load.admission
        assert admission.turns.active
        assert admission.ask(NORMAL, NEVER, clock.now) is True
        while admission.ask(NORMAL, NEVER, clock.now) is True:
            pass
        busy.turn_s = 0.001
        await busy.turns(500)
        assert load.pressed
        await busy.turns(600)
        assert not load.pressed, "nobody was refused for a second"
        assert admission.free == admission.limit
        load.stop()

    in_world(test, cpu)


def test_a_loop_with_nothing_to_do_sleeps_though_it_was_overloaded() -> None:
    cpu = Clock()

    async def test(world: World, load: Load, clock: Clock) -> None:
        busy = Busy(clock, cpu)
        load.start()
        busy.turn_s = 0.05
        await busy.turns(20)
        assert load.pressed
        busy.turn_s = 0.0
        await asyncio.sleep(0.05)  # virtual time moves when nothing is left to run: a loop that spins hangs here
        assert load.pressed
        clock.now += 1.1
        await asyncio.sleep(0.05)
        assert not load.pressed
        load.stop()

    in_world(test, cpu)


def test_while_turns_are_counted_none_is_missed_and_they_end_with_the_load() -> None:
    cpu = Clock()

    async def test(world: World, load: Load, clock: Clock) -> None:
        busy = Busy(clock, cpu)
        load.start()
        load.admission.turns.seen(1.0, 9, clock.now)
        load.admission.turns.seen(1.0, 9, clock.now + 1)
        load.admission.refresh()
        load.stop()
        await busy.turns(10)
        assert not [h for h in loop_now().timers() if not h.cancelled()]

    in_world(test, cpu)


def test_new_limits_of_a_reload() -> None:
    async def test(world: World, load: Load, clock: Clock) -> None:
        admission = load.admission
        assert (admission.limit, admission.queue_limit, admission.queue_wait_s) == (7, 5, 0.5)
        assert (admission.free, admission.turns.target_s) == (7, 0.02)
        load.configure(AdmissionSpec(max_in_flight=3, max_lag_s=0.0))
        assert (admission.limit, admission.free, admission.turns.target_s) == (3, 3, 0.0)

    in_world(test, max_in_flight=7, queue=5, queue_wait_s=0.5, max_lag_s=0.02)


def test_memory_near_its_ceiling(rss: list[int]) -> None:  # Q17
    async def test(world: World, load: Load, clock: Clock) -> None:
        def at(mb: int) -> object:
            rss[0] = mb * MB
            ticks(load, clock, 0.0, 0.0, 0.0, 0.0)
            if not load.pressed:
                return None
            found = load.admission.ask(NORMAL, NEVER, clock.now)
            if found is True:
                load.admission.leave()
            return found

        assert at(91) is None
        assert at(99) is True, "with nothing in flight one is taken in: freed memory may never go back"
        load.admission.try_enter()
        assert at(94) == MEMORY, "until it is below 92 %"
        assert at(91) is None
        assert at(95) == MEMORY
        load.configure(AdmissionSpec())
        assert at(10_000) is None, "a reload took the ceiling away"

    in_world(test, max_rss_bytes=100 * MB)


def test_not_ready_above_five_seconds_of_lag() -> None:  # S-91
    async def test(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, 0.0, 4.5)
        assert pages.not_ready(world.runtime, load) is None
        ticks(load, clock, 5.5)
        problem = pages.not_ready(world.runtime, load)
        assert problem is not None
        assert (problem["status"], problem["type"].rsplit("/", 1)[1]) == (503, "loop-lag")
        assert pages.health_detailed(world.runtime, load)["ready"] is False
        page, _ = pages.metrics(world.runtime, "", load)
        assert b"\nslipstream_loop_lag_seconds 5.5" in page
        ticks(load, clock, *([0.0] * 11))
        assert pages.not_ready(world.runtime, load) is None
        assert load.lag_s() == pytest.approx(0.0, abs=1e-6)

    in_world(test)


# ---- the thread beside the loop


@pytest.fixture
def blocked() -> Iterator[int]:
    """The ident of a thread that stands in ``held_here``."""
    end, begun = threading.Event(), threading.Event()

    def held_here() -> None:
        begun.set()
        end.wait()

    thread = threading.Thread(target=held_here, daemon=True)
    thread.start()
    begun.wait()
    assert thread.ident is not None
    yield thread.ident
    end.set()
    thread.join()


def test_a_blocked_loop_is_logged_with_its_stack_once_in_thirty_seconds(
    blocked: int, caplog: pytest.LogCaptureFixture
) -> None:
    lag = Lag()
    watch = Watch(lag, time.monotonic, blocked)
    due = lag.tick(1000.0)
    assert watch.look(1000.0) == pytest.approx(0.5)
    assert watch.look(due + 0.3) == pytest.approx(0.2), "just when it would be half a second"
    assert not caplog.records
    for late in (0.5, 1.0, 29.0):
        watch.look(due + late)
    (line,) = caplog.records
    fields = line.__dict__["fields"]
    assert (line.levelname, line.message, fields["lag_s"]) == ("WARNING", "the event loop is blocked", 0.5)
    assert any(entry.endswith(" held_here") and "test_load.py:" in entry for entry in fields["stack"])
    watch.look(due + 31.0)
    assert len(caplog.records) == 2
    due = lag.tick(due + 32.0)
    assert watch.look(due) == pytest.approx(0.5)


def test_a_stack_shows_places_and_no_values() -> None:
    import sys

    secret = "canary-value"
    stack = stack_of(sys._getframe())
    assert stack[0].startswith("unit/test_load.py:")
    assert stack[0].endswith(" test_a_stack_shows_places_and_no_values")
    assert secret not in str(stack)
    assert len(stack) <= load_module.FRAMES
    assert stack_of(None) == []


def test_the_thread_ends(caplog: pytest.LogCaptureFixture) -> None:
    watch = Watch(Lag(), time.monotonic, threading.get_ident())
    watch.start()
    watch.stop()
    watch.join(5)
    assert not watch.is_alive()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
