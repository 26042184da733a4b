"""What a process runs out of: lag, memory; and a target that refuses us (Q16, Q17)."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.resilience.bulkhead import HIGH, LOW, NORMAL
from slipstream.resilience.shed import (
    FULL,
    OK,
    TICK_S,
    TIGHT,
    Lag,
    MemoryCeiling,
    Throttle,
    throttle_probability,
)

CLASSES = (HIGH, NORMAL, LOW)


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
        assert ceiling.read(now) == OK
    assert len(reads) == 40
    assert all(b - a >= 0.25 - 1e-9 for a, b in pairwise(reads))
    assert ceiling.rss == 500


def test_without_a_limit_memory_is_not_read() -> None:
    def read() -> int:
        raise AssertionError("read")

    assert MemoryCeiling(0, read).read(5.0) == OK


def test_the_steps_and_the_way_back() -> None:  # Q17
    levels = []
    rss = [0]
    ceiling = MemoryCeiling(1000, lambda: rss[0])
    for n, held in enumerate((0, 919, 920, 949, 950, 2000, 949, 920, 919, 949, 950, 100)):
        rss[0] = held
        levels.append(ceiling.read(float(n)))
        assert ceiling.level == levels[-1]
    assert levels == [OK, OK, TIGHT, TIGHT, FULL, FULL, FULL, FULL, OK, TIGHT, FULL, OK]


def test_low_requests_are_refused_first() -> None:
    rss = [0]
    ceiling = MemoryCeiling(1000, lambda: rss[0])

    def refused(held: int, now_s: float) -> list[bool]:
        rss[0] = held
        ceiling.read(now_s)
        return [ceiling.refuses(priority, 1) for priority in CLASSES]

    assert refused(930, 0.0) == [False, False, True]
    assert refused(960, 1.0) == [True] * 3
    assert refused(930, 2.0) == [True] * 3
    assert refused(900, 3.0) == [False] * 3


def test_with_nothing_in_flight_one_is_taken_in() -> None:
    """Memory that was freed may never go back to the system: to refuse all would be for ever."""
    ceiling = MemoryCeiling(1000, lambda: 2000)
    ceiling.read(0.0)
    assert not any(ceiling.refuses(priority, 0) for priority in CLASSES)
    assert all(ceiling.refuses(priority, 1) for priority in CLASSES)


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
