"""Delays between attempts: their distributions, what may follow which failure, and what fits (Q05, Q09, R53, R54)."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.resilience.backoff import (
    MAX_ATTEMPTS,
    OTHER_TARGET,
    RETRY_AFTER_SPREAD,
    ROUTER,
    SAME_TARGET,
    Backoff,
    RetryPolicy,
    decorrelated,
    equal_jitter,
    full_jitter,
)
from slipstream.resilience.failures import RETRY
from slipstream.types import FailureClass

F = FailureClass
fuzz = settings(deadline=None, derandomize=True, max_examples=200)
INF = math.inf
ALMOST_ONE = 1 - 2**-53
"""The largest number that ``random.random`` gives."""
POLICY = RetryPolicy()
chances = st.floats(0, 1, exclude_max=True)
failures = st.sampled_from(FailureClass)


def always(number: float) -> Callable[[], float]:
    return lambda: number


# ---- distributions ---------------------------------------------------------------------------------------------------


def kolmogorov_smirnov(samples: Sequence[float], low: float, high: float) -> float:
    """The probability of samples at least this far from uniform in [low, high]: Kolmogorov's series, good for many."""
    n = len(samples)
    places = sorted((sample - low) / (high - low) for sample in samples)
    distance = max(max((i + 1) / n - at, at - i / n) for i, at in enumerate(places))
    x = distance * (math.sqrt(n) + 0.12 + 0.11 / math.sqrt(n))  # Stephens' correction
    return 2 * sum((-1) ** (k - 1) * math.exp(-2 * k * k * x * x) for k in range(1, 101)) if x > 0.2 else 1.0


def uniform(samples: Sequence[float], low: float, high: float) -> bool:
    return kolmogorov_smirnov(samples, low, high) > 0.01


def test_the_test_can_tell() -> None:
    draw = random.Random(1).random
    assert uniform([draw() for _ in range(10_000)], 0, 1)
    assert not uniform([draw() for _ in range(10_000)], 0, 1.05)
    assert not uniform([draw() for _ in range(10_000)], -0.05, 1)
    assert not uniform([(draw() + draw()) / 2 for _ in range(10_000)], 0, 1)
    assert kolmogorov_smirnov([i / 9999 for i in range(10_000)], 0, 1) == 1.0


@pytest.mark.parametrize(("attempt", "limit"), [(1, 0.025), (2, 0.05), (3, 0.1), (4, 0.2), (5, 0.25), (6, 0.25)])
def test_full_jitter_is_uniform_below_the_doubling_limit(attempt: int, limit: float) -> None:  # Q09
    draw = random.Random(attempt).random
    assert uniform([full_jitter(attempt, 0.025, 0.25, draw) for _ in range(10_000)], 0, limit)


@pytest.mark.parametrize(("attempt", "limit"), [(1, 0.5), (2, 1.0), (4, 4.0), (5, 8.0), (9, 8.0)])
def test_equal_jitter_is_uniform_in_the_upper_half(attempt: int, limit: float) -> None:
    draw = random.Random(attempt).random
    assert uniform([equal_jitter(attempt, 0.5, 8.0, draw) for _ in range(10_000)], limit / 2, limit)


@pytest.mark.parametrize("previous", [0.0, 0.1, 0.5, 1.0, 2.0])
def test_decorrelated_jitter_is_uniform_up_to_thrice_the_last(previous: float) -> None:
    draw = random.Random(3).random
    samples = [decorrelated(previous, 0.2, 100.0, draw) for _ in range(10_000)]
    if 3 * previous <= 0.2:
        assert set(samples) == {0.2}
    else:
        assert uniform(samples, 0.2, 3 * previous)


def test_decorrelated_jitter_grows_to_the_cap_and_may_shrink() -> None:
    draw, delay, seen = random.Random(4).random, 0.0, []
    for _ in range(1000):
        delay = decorrelated(delay, 0.1, 5.0, draw)
        assert 0.1 <= delay <= 5.0
        seen.append(delay)
    assert max(seen) == 5.0
    assert any(later < sooner for sooner, later in pairwise(seen))


def test_contracts_e() -> None:
    """200 ms to 2 s, 20 % jitter; its two retries wait at most 600 ms together."""
    assert [ROUTER.delay_s(n, always(ALMOST_ONE)) for n in range(1, 7)] == pytest.approx([0.2, 0.4, 0.8, 1.6, 2.0, 2.0])
    assert [ROUTER.delay_s(n, always(0.0)) for n in range(1, 7)] == pytest.approx([0.16, 0.32, 0.64, 1.28, 1.6, 1.6])
    draw = random.Random(5).random
    assert uniform([ROUTER.delay_s(2, draw) for _ in range(10_000)], 0.32, 0.4)


def test_the_share_of_chance_covers_full_equal_and_none() -> None:
    draws = [random.Random(6).random() for _ in range(1)] + [0.0, 0.5, ALMOST_ONE]
    for number in draws:
        for attempt in range(1, 9):
            chance = always(number)
            assert Backoff(0.5, 8, 1.0).delay_s(attempt, chance) == full_jitter(attempt, 0.5, 8, chance)
            assert Backoff(0.5, 8, 0.5).delay_s(attempt, chance) == equal_jitter(attempt, 0.5, 8, chance)
            assert Backoff(0.5, 8, 0.0).delay_s(attempt, chance) == min(8, 0.5 * 2 ** (attempt - 1))


@fuzz
@given(
    attempt=st.integers(-5, 10**9),
    base=st.floats(0, 1e3),
    cap=st.floats(0, 1e4),
    jitter=st.floats(0, 1),
    previous=st.floats(0, 1e6),
    chance=chances,
)
def test_no_delay_is_negative_or_above_its_cap(
    attempt: int, base: float, cap: float, jitter: float, previous: float, chance: float
) -> None:
    for delay in (
        full_jitter(attempt, base, cap, always(chance)),
        equal_jitter(attempt, base, cap, always(chance)),
        decorrelated(previous, base, cap, always(chance)),
        Backoff(base, cap, jitter).delay_s(attempt, always(chance)),
    ):
        assert 0 <= delay <= cap * (1 + 1e-12)


# ---- the policy ------------------------------------------------------------------------------------------------------


def test_the_defaults_are_those_of_q09() -> None:
    assert (OTHER_TARGET.base_s, OTHER_TARGET.cap_s, OTHER_TARGET.jitter) == (0.025, 0.25, 1.0)
    assert (SAME_TARGET.base_s, SAME_TARGET.cap_s, SAME_TARGET.jitter) == (0.5, 8.0, 1.0)
    assert (POLICY.other, POLICY.same, POLICY.max_attempts) == (OTHER_TARGET, SAME_TARGET, 3)


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("failure", FailureClass, ids=lambda f: f.label)
def test_what_may_follow_is_what_the_table_says(failure: FailureClass, same: bool) -> None:  # R54
    rule = RETRY[failure]
    delay = POLICY.next_delay(failure, 1, same, None, INF, always(0.5))
    if rule.same if same else rule.other:
        assert delay == (0.25 if same and not rule.broken else 0.0125)
    else:
        assert delay is None


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("failure", [F.CLIENT_ERROR, F.NOT_FOUND, F.CONTEXT, F.PERMISSION, F.CONTENT_FILTER], ids=str)
def test_the_clients_mistakes_are_never_sent_again(failure: FailureClass, same: bool) -> None:  # R54: 400, 404
    assert RetryPolicy(max_attempts=99).next_delay(failure, 1, same, 0.0, INF, always(0.0)) is None


def test_a_timeout_is_not_tried_on_the_same_target() -> None:
    """A second wait as long as the first has no place in the deadline (Q18)."""
    assert POLICY.next_delay(F.TIMEOUT, 1, True, None, INF, always(0.0)) is None
    assert POLICY.next_delay(F.TIMEOUT, 1, False, None, INF, always(0.0)) == 0.0


@pytest.mark.parametrize("failure", [F.CONNECT, F.TRANSPORT], ids=str)
def test_a_new_connection_is_tried_soon(failure: FailureClass) -> None:  # S-03: an error within 100 ms, S-01: 1 s
    last = [POLICY.next_delay(failure, n, True, None, INF, always(ALMOST_ONE)) for n in (1, 2)]
    assert last == pytest.approx([0.025, 0.05])


@pytest.mark.parametrize("same", [False, True])
def test_three_attempts_at_most(same: bool) -> None:  # Q05
    delays = [POLICY.next_delay(F.SERVER, n, same, None, INF, always(0.5)) for n in range(1, 6)]
    assert [delay is not None for delay in delays] == [True, True, False, False, False]
    assert MAX_ATTEMPTS == 3
    assert RetryPolicy(max_attempts=1).next_delay(F.CONNECT, 1, same, None, INF, always(0.5)) is None
    assert RetryPolicy(max_attempts=9).next_delay(F.CONNECT, 8, same, None, INF, always(0.5)) is not None


@pytest.mark.parametrize(("same", "limits"), [(False, (0.025, 0.05)), (True, (0.5, 1.0))])
@pytest.mark.parametrize("attempt", [1, 2])
def test_ten_thousand_delays_are_uniform(same: bool, limits: tuple[float, float], attempt: int) -> None:  # Q09
    draw = random.Random(attempt).random
    delays = [POLICY.next_delay(F.SERVER, attempt, same, None, INF, draw) for _ in range(10_000)]
    found = [delay for delay in delays if delay is not None]
    assert len(found) == 10_000
    assert uniform(found, 0, limits[attempt - 1])


@pytest.mark.parametrize("asked", [0.02, 1.5, 2.0, 2.5, 300.0])
@pytest.mark.parametrize("failure", [F.RATE_LIMITED, F.OVERLOADED, F.SERVER], ids=lambda f: f.label)
def test_the_same_target_is_not_asked_before_it_said(failure: FailureClass, asked: float) -> None:  # R53, S-25, S-28
    draw = random.Random(7).random
    delays = [POLICY.next_delay(failure, 1, True, asked, INF, draw) for _ in range(10_000)]
    found = [delay for delay in delays if delay is not None]
    assert min(found) >= asked
    assert max(found) <= asked * 1.1
    assert uniform(found, asked, asked * (1 + RETRY_AFTER_SPREAD)), "not all at once"


def test_another_target_did_not_ask_for_time() -> None:  # S-25: other deployment
    assert POLICY.next_delay(F.RATE_LIMITED, 1, False, 300.0, 1.0, always(0.5)) == 0.0125


def test_zero_seconds_say_nothing() -> None:
    """Azure sends 0, and a date in the past is 0: our own delay holds."""
    assert POLICY.next_delay(F.OVERLOADED, 1, True, 0.0, INF, always(0.5)) == 0.25


@pytest.mark.parametrize(
    ("asked", "remaining", "delay"),
    [
        (None, 0.26, 0.25),
        (None, 0.25, None),  # it would end with the time
        (None, 0.1, None),
        (None, 0.0, None),
        (None, -1.0, None),
        (2.0, 2.2, 2.1),
        (2.0, 2.0, None),
        (2.0, 1.0, None),  # not: sleep for the second that is left, and be turned away again
        (300.0, 299.0, None),
    ],
)
def test_no_sleep_that_does_not_fit(asked: float | None, remaining: float, delay: float | None) -> None:  # Q09, R53
    found = POLICY.next_delay(F.OVERLOADED, 1, True, asked, remaining, always(0.5))
    assert found == (None if delay is None else pytest.approx(delay))


def test_no_time_at_all_is_not_time_enough_for_a_delay_of_nothing() -> None:
    assert POLICY.next_delay(F.SERVER, 1, False, None, 0.0, always(0.0)) is None
    assert POLICY.next_delay(F.SERVER, 1, False, None, 0.001, always(0.0)) == 0.0


@fuzz
@given(
    failure=failures,
    attempt=st.integers(1, 10),
    same=st.booleans(),
    asked=st.one_of(st.none(), st.floats(0, 1000)),
    remaining=st.floats(-10, 1000),
    chance=chances,
    most=st.integers(1, 10),
)
def test_every_delay_fits_and_keeps_what_was_asked(
    failure: FailureClass,
    attempt: int,
    same: bool,
    asked: float | None,
    remaining: float,
    chance: float,
    most: int,
) -> None:
    policy = RetryPolicy(max_attempts=most)
    delay = policy.next_delay(failure, attempt, same, asked, remaining, always(chance))
    rule = RETRY[failure]
    if delay is None:
        return
    assert 0 <= delay < remaining
    assert attempt < most
    assert rule.same if same else rule.other
    if same and asked:
        assert asked <= delay <= asked * 1.1 + 1e-9
    else:
        assert delay <= (8.0 if same and not rule.broken else 0.25)


@fuzz
@given(failure=failures, attempts=st.integers(1, 5), start=st.floats(0.001, 60), seed=st.integers(0, 1000))
def test_attempts_and_delays_stay_within_the_deadline(
    failure: FailureClass, attempts: int, start: float, seed: int
) -> None:  # Q18
    draw = random.Random(seed).random
    policy, left, made = RetryPolicy(max_attempts=attempts), start, 1
    while (delay := policy.next_delay(failure, made, bool(seed % 2), None, left, draw)) is not None:
        left -= delay
        made += 1
        assert left > 0
        left = max(0.0, left - draw())  # the attempt itself, cut by its watchdog
    assert made <= attempts
