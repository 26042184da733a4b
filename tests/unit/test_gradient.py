"""Gradient2: golden traces of the limit, its bounds under anything, and what it does for a server at twice its load
(Q15). The traces come from a transliteration of Netflix's Java, window by window.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.resilience.gradient import Gradient, GradientSettings, LongMean, gradient, next_limit

RAW = GradientSettings(long_windows=600, window_s=0.0)
"""Each sample is a window, as for ``Gradient2Limit`` alone."""
Sample = tuple[float, int | None]
"""Time, and how many were in flight (``None``: the limit)."""


def path(series: Iterable[Sample], g: Gradient | None = None) -> list[int]:
    g = g or Gradient(RAW)
    limits = []
    for n, (rtt_s, in_flight) in enumerate(series):
        g.sample(rtt_s, g.limit if in_flight is None else in_flight, False, float(n))
        limits.append(g.limit)
    return limits


def times(*parts: tuple[float, int]) -> list[Sample]:
    return [(rtt_s, None) for rtt_s, count in parts for _ in range(count)]


# ---- golden traces: every tenth limit, and the long average at the end -----------------------------------------------

# fmt: off
TRACES: dict[str, tuple[list[Sample], list[int], float]] = {
    "steady: 0.8 more each window": (times((0.1, 40)), [20, 28, 36, 44], 0.1),
    "up to the maximum": (
        times((0.1, 260)),
        [20, 28, 36, 44, 52, 60, 68, 76, 84, 92, 100, 108, 116, 124, 132, 140, 148, 156, 164, 172, 180, 188, 196, 200,
         200, 200], 0.1),
    "twice the time": (
        times((0.1, 100), (0.2, 60)), [20, 28, 36, 44, 52, 60, 68, 76, 84, 92, 95, 65, 49, 40, 36, 34], 0.118127),
    "five times the time": (
        times((0.1, 100), (0.5, 60)), [20, 28, 36, 44, 52, 60, 68, 76, 84, 92, 90, 36, 20, 20, 20, 20], 0.172508),
    "a bad time that ends": (
        times((0.1, 20), (0.5, 100), (0.1, 60)),
        [20, 28, 33, 20, 20, 20, 20, 20, 20, 20, 20, 20, 20, 28, 36, 44, 52, 60], 0.17576),
    "little in flight": (
        [*times((0.1, 30)), *[(0.1, 5)] * 30, *times((0.1, 10))], [20, 28, 36, 44, 44, 44, 44], 0.1),
}
# fmt: on


@pytest.mark.parametrize("name", TRACES)
def test_golden_trace(name: str) -> None:
    series, limits, long_s = TRACES[name]
    g = Gradient(RAW)
    assert path(series, g)[::10] == limits
    assert g.long_s == pytest.approx(long_s, abs=1e-6)


def test_a_long_average_that_is_far_too_high_is_forgotten_fast() -> None:
    g = Gradient(RAW)
    path(times((1.0, 20)), g)
    path(times((0.1, 14)), g)
    assert g.long_s < 0.5, "by 5 % a window: averaging alone would still be at 0.96"


@pytest.mark.parametrize(
    ("long_s", "short_s", "expected"),
    [(0.1, 0.1, 1.0), (0.1, 0.15, 1.0), (0.1, 0.2, 0.75), (0.1, 0.3, 0.5), (0.1, 9.0, 0.5), (9.0, 0.1, 1.0)],
)
def test_the_gradient_is_clamped_and_half_as_much_again_is_tolerated(
    long_s: float, short_s: float, expected: float
) -> None:
    assert gradient(long_s, short_s, 1.5) == pytest.approx(expected)


def test_one_step() -> None:
    settings = GradientSettings()
    assert next_limit(100.0, 1.0, settings) == pytest.approx(100.8)
    assert next_limit(100.0, 0.5, settings) == pytest.approx(90.8), "AIMD's 0.9 and the queue"
    assert next_limit(200.0, 1.0, settings) == 200.0
    assert next_limit(20.0, 0.5, settings) == 20.0


def test_the_long_mean_begins_as_a_plain_mean() -> None:
    mean = LongMean(600, 10)
    assert [mean.add(x) for x in (1.0, 2.0, 3.0)] == [1.0, 1.5, 2.0]
    for _ in range(7):
        mean.add(2.0)
    assert mean.add(2.0 + 601.0) == pytest.approx(4.0), "then each counts 2 / 601"


# ---- what is dropped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_flight", [100, 0])
def test_a_drop_shrinks_the_limit_and_its_time_does_not_count(in_flight: int) -> None:
    g = Gradient(RAW)
    path(times((0.1, 101)), g)
    before, long_s = g.limit, g.long_s
    assert g.sample(0.0001, in_flight, True, 200.0)
    assert g.limit == pytest.approx(before * 0.9 + 0.8, abs=1)
    assert g.long_s == long_s


def test_nothing_but_drops_goes_to_the_minimum_and_comes_back() -> None:
    g = Gradient(GradientSettings(initial=200, long_windows=600, window_s=0.0))
    for _ in range(100):
        g.sample(0.001, 200, True, 0.0)
    assert g.limit == 20
    assert path(times((0.1, 100)), g)[-1] == 100


@pytest.mark.parametrize("rtt_s", [0.0, -1.0, float("nan"), float("inf"), 1e300])
def test_a_time_that_is_none_changes_nothing(rtt_s: float) -> None:
    g = Gradient(RAW)
    path(times((0.1, 50)), g)
    before = g.limit, g.long_s
    assert not g.sample(rtt_s, 200, False, 99.0)
    assert (g.limit, g.long_s) == before


# ---- windows ---------------------------------------------------------------------------------------------------------


def test_a_window_needs_its_time_and_its_samples() -> None:
    g = Gradient(GradientSettings(initial=100, window_s=1.0))
    changed = [n for n in range(100) if g.sample(0.1, 100, False, n * 0.01)]
    assert changed == [], "99 samples, but no second"
    assert not g.sample(0.1, 100, False, 1.0), "100.8"
    assert g.sample(0.1, 100, True, 1.5) is False
    for n in range(8):
        assert not g.sample(0.1, 100, False, 5.0 + n), "the time is over, but there were 9 samples"
    assert g.sample(0.1, 100, False, 13.0)
    assert g.limit == int(100.8 * 0.9 + 0.8), "one drop in a window tells on all of it"


def test_a_window_has_the_mean_time_and_the_most_in_flight() -> None:
    g = Gradient(GradientSettings(initial=100, window_s=1.0))
    for n in range(10):
        g.sample(0.1 if n % 2 else 0.3, 60 if n == 4 else 1, False, float(n))
    assert g.long_s == pytest.approx(0.2)
    assert next_limit(100.0, 1.0, GradientSettings()) == pytest.approx(100.8), "60 is more than half of it"
    g.sample(0.2, 1, True, 20.0)
    for _ in range(9):
        g.sample(0.2, 1, False, 20.0)
    assert g.limit == int(100.8 * 0.9 + 0.8)


# ---- bounds ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bounds", [(0, 0, 10), (20, 10, 30), (5, 40, 30), (30, 20, 10)])
def test_bounds_that_make_no_sense(bounds: tuple[int, int, int]) -> None:
    minimum, initial, maximum = bounds
    with pytest.raises(ValueError, match="minimum <= initial <= maximum"):
        GradientSettings(initial=initial, minimum=minimum, maximum=maximum)


ANY_SAMPLE = st.tuples(st.floats(), st.integers(-5, 10**6), st.booleans(), st.floats(0, 10))


@given(
    st.integers(1, 50),
    st.integers(0, 50),
    st.integers(0, 500),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.lists(ANY_SAMPLE, max_size=200),
)
def test_the_limit_stays_within_its_bounds(
    low: int, more: int, most: int, window_s: float, samples: list[tuple[float, int, bool, float]]
) -> None:
    settings = GradientSettings(low + more, low, low + more + most, window_s=window_s, window_samples=3)
    g, now = Gradient(settings), 0.0
    for rtt_s, in_flight, dropped, dt in samples:
        now += dt
        before = g.limit
        assert g.sample(rtt_s, in_flight, dropped, now) == (g.limit != before)
        assert settings.minimum <= g.limit <= settings.maximum
        assert 0.0 <= g.long_s < float("inf")


# ---- a server at twice its load --------------------------------------------------------------------------------------

PARALLEL, WORK_S, CAPACITY = 50, 0.05, 1000.0
PATIENCE_S = 0.5


def serve(rate_at: Callable[[float], float], end: float, limiter: Gradient | None) -> list[tuple[float, float]]:
    """A server that does 50 at a time, 50 ms each (25 to 75), and shares itself among all when there are more, with a
    little loss for each. Poisson arrivals; what does not fit the limit is turned away. When each was done, and how
    long it took.
    """
    rnd = random.Random(15)
    now = worked = 0.0
    jobs: list[tuple[float, float, int]] = []
    done: list[tuple[float, float]] = []
    following = rnd.expovariate(rate_at(0.0))
    while now < end:
        running = len(jobs)
        speed = min(1.0, PARALLEL / running) / (1 + 0.001 * max(0, running - PARALLEL)) if running else 1.0
        first = now + (jobs[0][0] - worked) / speed if jobs else float("inf")
        at = min(following, first)
        worked += (at - now) * speed
        now = at
        if first <= following:
            _, since, in_flight = heapq.heappop(jobs)
            done.append((now, now - since))
            if limiter is not None:
                limiter.sample(now - since, in_flight, False, now)
        else:
            following = now + rnd.expovariate(rate_at(now))
            if limiter is None or running < limiter.limit:
                heapq.heappush(jobs, (worked + WORK_S * rnd.uniform(0.5, 1.5), now, running + 1))
    return done


def goodput(done: list[tuple[float, float]], since: float, until: float) -> tuple[float, float]:
    """Answers in time per second, and the p99 of all."""
    took = sorted(s for at, s in done if since <= at < until)
    return sum(s <= PATIENCE_S for s in took) / (until - since), took[int(len(took) * 0.99)] if took else float("inf")


@pytest.mark.parametrize(("load", "least"), [(2.0, 0.9), (10.0, 0.7)])
def test_goodput_under_overload(load: float, least: float) -> None:  # Q15
    """Ninety seconds at 85 % of what it can do, thirty of overload, and back again."""
    limiter = Gradient()
    done = serve(lambda now: CAPACITY * (load if 45 <= now < 75 else 0.85), 85.0, limiter)
    calm, calm_p99 = goodput(done, 25.0, 45.0)
    assert calm >= 0.99 * 0.85 * CAPACITY, "nobody is turned away at the rated load"
    good, p99 = goodput(done, 50.0, 75.0)
    assert good >= least * CAPACITY
    assert good >= 0.9 * CAPACITY, "10x is no worse here: turning away costs nothing in this world"
    assert p99 <= 2 * calm_p99
    assert goodput(done, 45.0, 50.0)[0] >= least * CAPACITY, "also while the limit finds itself"
    after, after_p99 = goodput(done, 80.0, 85.0)
    assert after >= 0.95 * 0.85 * CAPACITY, "within 5 s"
    assert after_p99 <= 2 * calm_p99
    assert limiter.limit < 200


def test_without_a_limit_all_are_late() -> None:
    """The naive rival: this is what the limit is for."""
    done = serve(lambda now: CAPACITY * (2.0 if now >= 5 else 0.85), 20.0, None)
    assert goodput(done, 10.0, 20.0)[0] < 0.1 * CAPACITY
