"""Shedding: lag, memory, what is in flight, and a simulated loop at up to ten times its load (Q15, Q16, Q17, S-103)."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.resilience.bulkhead import HIGH, LOW, NORMAL
from slipstream.resilience.shed import (
    CALM_LAG_S,
    FULL,
    LAG,
    MEMORY,
    OK,
    OVERLOAD,
    SHARE_MAX,
    SHED_LAG_S,
    TICK_S,
    TIGHT,
    Lag,
    MemoryCeiling,
    Shedder,
    Throttle,
    next_share,
    share_of,
    throttle_probability,
)

CLASSES = (HIGH, NORMAL, LOW)


def no_memory_limit() -> MemoryCeiling:
    return MemoryCeiling(0, lambda: 0)


class World:
    """A shedder and what it looks at."""

    def __init__(self, *, limit_bytes: int = 1000, max_in_flight: int = 0) -> None:
        self.rss = 0
        self.in_flight = 1
        self.die = 0.5
        self.shedder = Shedder(
            Lag(), MemoryCeiling(limit_bytes, lambda: self.rss), lambda: self.in_flight, max_in_flight, lambda: self.die
        )

    def why(self, now_s: float) -> list[str | None]:
        return [self.shedder.why(now_s, priority) for priority in CLASSES]


# ---- lag -------------------------------------------------------------------------------------------------------------


def test_a_loop_in_time_has_no_lag() -> None:
    lag = Lag()
    assert (lag.worst_s(5.0), lag.late_by_s(5.0)) == (0.0, 0.0), "before the first tick nothing is known"
    due = lag.tick(100.0)
    assert due == pytest.approx(100.0 + TICK_S)
    for _ in range(50):
        due = lag.tick(due)
    assert lag.last_s == lag.worst_s(due) == 0.0


def test_a_tick_that_is_late() -> None:
    lag = Lag()
    due = lag.tick(0.0)
    following = lag.tick(due + 0.25)
    assert lag.last_s == pytest.approx(0.25)
    assert following == pytest.approx(due + 0.25 + TICK_S), "the next one is measured from now"
    lag.tick(following)
    assert lag.last_s == 0.0
    assert lag.worst_s(following) == pytest.approx(0.25), "the worst of the last second"
    assert lag.worst_s(due + 0.25 + 0.999) == pytest.approx(max(0.25, due + 0.25 + 0.999 - following - TICK_S))


def test_the_worst_is_forgotten_after_a_second() -> None:
    lag = Lag()
    due = lag.tick(0.0)
    due = lag.tick(due + 5.0)
    late = due - TICK_S
    while due < late + 1.0:
        assert lag.worst_s(due) == pytest.approx(5.0)
        due = lag.tick(due)
    assert lag.worst_s(due) == 0.0


def test_a_stop_counts_before_it_is_over() -> None:
    lag = Lag()
    due = lag.tick(0.0)
    assert lag.worst_s(due + 3.0) == lag.late_by_s(due + 3.0) == pytest.approx(3.0)


@given(st.lists(st.floats(0, 3), max_size=100))
def test_the_worst_is_that_of_the_last_second(steps: list[float]) -> None:
    lag, now, due, seen = Lag(), 0.0, 0.0, []
    for step in steps:
        now = max(now, due) + step if step > 1 else now + step
        if now >= due:
            due = lag.tick(now)
            seen.append((now, lag.last_s))
        recent = [late for at, late in seen if at > now - 1.0]
        assert lag.worst_s(now) == max([*recent, lag.late_by_s(now)], default=0.0)
        assert len(lag._seen) <= 11


# ---- memory ----------------------------------------------------------------------------------------------------------


def test_memory_is_read_four_times_a_second() -> None:  # Envoy: each 0.25 s
    reads: list[float] = []
    now = 0.0

    def read() -> int:
        reads.append(now)
        return 500

    ceiling = MemoryCeiling(1000, read)
    for n in range(10_000):
        now = n * 0.001
        assert ceiling.level(now) == OK
    assert len(reads) == 40
    assert all(b - a >= 0.25 - 1e-9 for a, b in pairwise(reads))
    assert ceiling.rss == 500


def test_without_a_limit_memory_is_not_read() -> None:
    def read() -> int:
        raise AssertionError("read")

    assert MemoryCeiling(0, read).level(5.0) == OK


def test_the_steps_and_the_way_back() -> None:  # Q17
    world = World()
    ceiling = world.shedder.memory
    levels = []
    for n, rss in enumerate((0, 919, 920, 949, 950, 2000, 949, 920, 919, 949, 950, 100)):
        world.rss = rss
        levels.append(ceiling.level(float(n)))
    assert levels == [OK, OK, TIGHT, TIGHT, FULL, FULL, FULL, FULL, OK, TIGHT, FULL, OK]


def test_memory_sheds_low_first() -> None:
    world = World()
    world.rss = 930
    assert world.why(0.0) == [None, None, MEMORY]
    world.rss = 960
    assert world.why(1.0) == [MEMORY] * 3
    world.rss = 930
    assert world.why(2.0) == [MEMORY] * 3
    world.rss = 900
    assert world.why(3.0) == [None] * 3


def test_with_nothing_in_flight_one_is_taken_in() -> None:
    """Memory that was freed may never go back to the system: to refuse all would be for ever."""
    world = World()
    world.rss = 2000
    world.in_flight = 0
    assert world.why(0.0) == [None] * 3
    world.in_flight = 1
    assert world.why(0.0) == [MEMORY] * 3


# ---- lag sheds a share -----------------------------------------------------------------------------------------------


def test_the_share_grows_with_the_lag_and_shrinks_in_calm() -> None:  # Q16: from 100 ms
    assert next_share(0.0, SHED_LAG_S - 1e-9) == 0.0
    assert next_share(0.0, SHED_LAG_S) == pytest.approx(0.1)
    assert next_share(0.0, 0.3) == pytest.approx(0.3)
    assert next_share(0.0, 60.0) == 0.5, "one stop is no reason to refuse all"
    assert next_share(0.5, 60.0) == SHARE_MAX
    assert next_share(0.5, CALM_LAG_S) == pytest.approx(0.49)
    assert next_share(0.5, 0.0) == pytest.approx(0.45)
    assert next_share(0.01, 0.0) == 0.0


def test_in_calm_all_is_forgotten_in_two_seconds_and_near_it_in_ten() -> None:  # Q15: within 5 s after the load
    for lag_s, ticks in ((0.0, 20), (0.07, 98)):
        share = SHARE_MAX
        for _ in range(ticks):
            share = next_share(share, lag_s)
        assert share == pytest.approx(0.0, abs=1e-9)


@given(st.floats(0, SHARE_MAX), st.floats(0, 1e6))
def test_the_share_stays_within_its_bounds_and_no_class_is_worse_off_than_a_lower_one(share: float, lag: float) -> None:
    after = next_share(share, lag)
    assert 0.0 <= after <= SHARE_MAX
    high, normal, low = (share_of(after, priority) for priority in CLASSES)
    assert 0.0 <= high <= normal <= low <= SHARE_MAX
    assert normal == after


def test_a_lagging_loop_refuses_its_share_of_each_class() -> None:
    world = World()
    due = world.shedder.tick(0.0)
    due = world.shedder.tick(due + 0.4)
    assert world.shedder.share == pytest.approx(0.4)
    dice = [(n + 0.5) / 1000 for n in range(1000)]
    refused = [0, 0, 0]
    for world.die in dice:
        for priority, why in enumerate(world.why(due)):
            assert why in (None, LAG)
            refused[priority] += why is not None
    assert refused == [0, 400, 800]


def test_a_tick_that_is_overdue_counts_for_those_who_come_before_it() -> None:
    world = World()
    due = world.shedder.tick(0.0)
    world.die = 0.05
    assert world.why(due + 0.099) == [None] * 3
    assert world.why(due + 0.1) == [None, LAG, LAG]
    assert world.shedder.share == 0.0, "but only the tick is remembered"


# ---- in flight -------------------------------------------------------------------------------------------------------


def test_the_cap_with_its_way_back() -> None:
    world = World(max_in_flight=100)
    seen = []
    for world.in_flight in (79, 80, 99, 100, 99, 90, 89, 72, 71, 99, 200):
        seen.append(world.why(0.0))
    no, low, all_ = [None] * 3, [None, None, OVERLOAD], [OVERLOAD] * 3
    assert seen == [no, low, low, all_, all_, all_, low, low, no, low, all_]


def test_without_a_cap_any_number_is_fine() -> None:
    world = World()
    world.in_flight = 10**6
    assert world.why(0.0) == [None] * 3


def test_memory_comes_before_lag_and_lag_before_the_cap() -> None:
    world = World(max_in_flight=1)
    due = world.shedder.tick(0.0)
    due = world.shedder.tick(due + 10)
    world.shedder.tick(due + 10)
    world.die, world.rss = 0.0, 2000
    assert world.why(due + 10) == [MEMORY] * 3
    world.rss = 0
    assert world.why(due + 11) == [LAG] * 3
    world.die = 0.999
    assert world.why(due + 10) == [OVERLOAD] * 3


# ---- a simulated loop ------------------------------------------------------------------------------------------------

SERVE_S = 0.001
CAPACITY = 1 / SERVE_S
PATIENCE_S = 1.0
Served = list[tuple[float, float]]


def event_loop(
    rate_at: Callable[[float], float], end: float, refuse_s: float, shed: bool
) -> tuple[Served, list[float]]:
    """An event loop as it is: all that has come is worked off in one turn, then the timers. One CPU; serving costs 1 ms
    of it, refusing ``refuse_s``. When each was served and how late, and the lags.
    """
    rnd = random.Random(16)
    shedder = Shedder(Lag(), no_memory_limit(), lambda: 1, 0, rnd.random)
    now = coming = 0.0
    due = shedder.tick(now)
    served: Served = []
    lags: list[float] = []
    while now < end:
        turn: deque[float] = deque()
        while coming <= now:
            turn.append(coming)
            coming += rnd.expovariate(rate_at(coming))
        if due <= now:
            due = shedder.tick(now)
            lags.append(shedder.lag.last_s)
        elif not turn:
            now = min(coming, due)
        for since in turn:
            if shed and shedder.why(now) is not None:
                now += refuse_s
            else:
                now += SERVE_S
                served.append((now, now - since))
    return served, lags


def goodput(served: Served, since: float, until: float) -> float:
    return sum(since <= at < until and took <= PATIENCE_S for at, took in served) / (until - since)


@pytest.mark.parametrize(("load", "refuse_s", "least"), [(1.2, 0.00005, 0.95), (2, 0.00005, 0.9), (10, 0.00002, 0.7)])
def test_goodput_under_overload(load: float, refuse_s: float, least: float) -> None:  # Q15
    """At 10x a refusal must cost 2 % of an answer: at 10 % there would be no time left for any."""
    served, _ = event_loop(lambda now: CAPACITY * (load if 5 <= now < 20 else 0.6), 30.0, refuse_s, True)
    assert goodput(served, 0.0, 5.0) >= 0.95 * 600
    assert goodput(served, 10.0, 20.0) >= least * CAPACITY
    assert goodput(served, 5.0, 10.0) >= 0.7 * CAPACITY
    took = sorted(took for at, took in served if 10 <= at < 20)
    assert took[int(len(took) * 0.99)] <= 0.4, "a few times the lag from which on is shed"
    assert goodput(served, 25.0, 30.0) >= 0.95 * 600, "within 5 s after it"


def test_without_shedding_all_are_late() -> None:
    """The naive rival: all are served, and nobody is there any more."""
    served, _ = event_loop(lambda now: CAPACITY * 2, 10.0, 0.0, False)
    assert goodput(served, 5.0, 10.0) == 0.0


def test_the_rated_load_is_not_touched() -> None:  # Q16
    served, lags = event_loop(lambda now: CAPACITY * 0.8, 20.0, 0.00005, True)
    assert sorted(lags)[int(len(lags) * 0.99)] <= 0.02
    assert goodput(served, 0.0, 20.0) >= 0.98 * 0.8 * CAPACITY


# ---- a target that refuses us ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("requests", "accepts", "expected"),
    [(0, 0, 0.0), (100, 100, 0.0), (100, 50, 0.0), (100, 25, 50 / 101), (100, 0, 100 / 101), (1, 0, 0.5)],
)
def test_the_formula(requests: int, accepts: int, expected: float) -> None:
    assert throttle_probability(requests, accepts) == pytest.approx(expected)


def test_a_lower_k_is_less_patient() -> None:
    assert throttle_probability(100, 60, 1.1) == pytest.approx(34 / 101)
    assert Throttle(1.1).probability(0.0) == 0.0


def test_two_minutes_count() -> None:
    throttle = Throttle()
    for n in range(100):
        throttle.requested(n * 0.1)
    assert throttle.probability(10.0) == pytest.approx(100 / 101)
    assert throttle.probability(119.0) == pytest.approx(100 / 101)
    assert throttle.probability(120.0) == 0.0
    throttle.requested(1e9)
    assert throttle.probability(1e9) == 0.5, "after a long pause nothing is left"


def test_it_settles_where_the_target_sees_twice_what_it_accepts() -> None:
    """A target that takes 10 of 100 a second: with K = 2 it is sent about 20, not 100 and not 10."""
    rnd, throttle, sent = random.Random(7), Throttle(), [0] * 300
    for second in range(300):
        accepted = 0
        for n in range(100):
            now = second + n / 100
            refused = rnd.random() < throttle.probability(now)
            throttle.requested(now)
            if refused:
                continue
            sent[second] += 1
            if accepted < 10:
                accepted += 1
                throttle.accepted(now)
    assert 17 <= sum(sent[150:]) / 150 <= 23


@given(st.lists(st.tuples(st.floats(0, 50), st.booleans()), max_size=150))
def test_the_slots_agree_with_counting(events: list[tuple[float, bool]]) -> None:
    throttle, now, log = Throttle(), 0.0, []
    for dt, served in events:
        now += dt
        throttle.requested(now)
        if served:
            throttle.accepted(now)
        log.append((int(now / 10.0), served))
        recent = [served for slot, served in log if slot > int(now / 10.0) - 12]
        assert throttle.probability(now) == throttle_probability(len(recent), sum(recent))
