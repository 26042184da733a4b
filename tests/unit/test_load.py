"""When a worker turns requests away, and how a blocked loop is noticed (server/load.py; Q16, Q17, S-91, S-103)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from slipstream.config.snapshot import AdmissionSpec, ResilienceSpec
from slipstream.errors import GatewayError
from slipstream.obs.families import SHED
from slipstream.resilience.shed import Lag
from slipstream.server import load as load_module
from slipstream.server import pages
from slipstream.server.load import Load, Watch, stack_of
from tests.fakes import World, ok
from tests.virtual import run_virtual

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


def in_world(test: Any, random: float = 0.0, **admission: Any) -> None:
    async def main() -> None:
        resilience = ResilienceSpec(admission=AdmissionSpec(**admission))
        world, clock = World({"a": [ok()]}, resilience=resilience), Clock()
        test(world, Load(world.runtime, clock, lambda: random), clock)

    run_virtual(main())


def ticks(load: Load, clock: Clock, *late_s: float) -> None:
    """Measures that came so late each."""
    for late in late_s:
        clock.now += 0.1 + late
        load.measure(clock.now)


def refused(load: Load) -> GatewayError | None:
    if not load.pressed:
        return None
    try:
        load.check()
    except GatewayError as error:
        return error
    return None


def test_a_calm_process_asks_nobody() -> None:
    def test(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, *([0.0] * 20))
        assert not load.pressed
        assert load.lag_s() == pytest.approx(0.0, abs=1e-6)

    in_world(test)


@pytest.mark.parametrize("late", [0.1, 0.5, 0.99])
def test_by_default_less_than_a_second_is_no_overload(late: float) -> None:
    def test(world: World, load: Load, clock: Clock) -> None:
        for _ in range(50):
            ticks(load, clock, late)
            assert refused(load) is None

    in_world(test)


def test_one_long_stop_sheds_nobody() -> None:
    def test(world: World, load: Load, clock: Clock) -> None:
        for _ in range(10):
            ticks(load, clock, 6.0)
            assert refused(load) is None
            ticks(load, clock, 0.0)
            assert refused(load) is None

    in_world(test)


def test_a_loop_that_stays_behind_sheds_a_share() -> None:  # Q16, S-103
    def test(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, 0.0, 1.2, 1.2)
        error = refused(load)
        assert error is not None
        assert (error.status, error.type, error.code) == (503, "overloaded_error", "overloaded")
        assert error.headers == {"Retry-After": "1"}
        assert world.counted(SHED) == {("lag",): 1}
        ticks(load, clock, 0.0)
        assert refused(load) is None, "it is back"

    def lucky(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, 0.0, 1.2, 1.2)
        assert load.pressed
        assert refused(load) is None, "a share, not all"

    in_world(test)
    in_world(lucky, random=0.999)


def test_the_limit_of_the_lag_is_what_is_configured() -> None:
    def test(world: World, load: Load, clock: Clock) -> None:
        ticks(load, clock, 0.0, 0.25, 0.25)
        assert refused(load) is not None
        load.configure(AdmissionSpec(max_lag_s=0.3))
        ticks(load, clock, 0.25, 0.25)
        assert refused(load) is None

    in_world(test, max_lag_s=0.2)


def test_memory_near_its_ceiling(rss: list[int]) -> None:  # Q17
    def test(world: World, load: Load, clock: Clock) -> None:
        def at(mb: int) -> GatewayError | None:
            rss[0] = mb * MB
            ticks(load, clock, 0.0, 0.0, 0.0, 0.0)
            return refused(load)

        assert at(94) is None
        assert at(99) is None, "with nothing in flight one is taken in: freed memory may never go back"
        world.runtime.metrics.enter("/v1/chat/completions")
        assert at(94) is not None, "until it is below 92 %"
        assert at(91) is None
        error = at(95)
        assert error is not None
        assert (error.status, error.headers) == (503, {"Retry-After": "5"})
        assert world.counted(SHED) == {("memory",): 2}
        load.configure(AdmissionSpec())
        assert at(10_000) is None, "a reload took the ceiling away"
        world.runtime.metrics.leave("/v1/chat/completions")

    in_world(test, max_rss_bytes=100 * MB)


def test_the_log_has_one_line_of_it(rss: list[int], caplog: pytest.LogCaptureFixture) -> None:
    def test(world: World, load: Load, clock: Clock) -> None:
        world.runtime.metrics.enter("/v1/chat/completions")
        rss[0] = 2 * MB
        ticks(load, clock, *([0.0] * 10))
        assert all(refused(load) is not None for _ in range(20))
        world.runtime.metrics.leave("/v1/chat/completions")

    in_world(test, max_rss_bytes=MB)
    (line,) = [r for r in caplog.records if r.message == "requests are turned away"]
    assert line.__dict__["fields"] == {"reason": "memory", "lag_s": 0.0, "rss_bytes": 2 * MB}


def test_not_ready_above_five_seconds_of_lag() -> None:  # S-91
    def test(world: World, load: Load, clock: Clock) -> None:
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
