"""The retry and the hedge budget: never above the share in any window, never below what the slots allow (Q05, Q14)."""

from __future__ import annotations

import heapq
import random
import time
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.schema import HedgeFile
from slipstream.config.snapshot import HedgeSpec
from slipstream.resilience.budget import HEDGE_RATIO, SLOTS, Budget, hedge_budget, retry_budget
from tests.pace import soon

fuzz = settings(deadline=None, derandomize=True, max_examples=200)


def spend_all(budget: Budget, now_s: float) -> int:
    """How many can be spent at this moment."""
    left = budget.left(now_s)
    for _ in range(left):
        assert budget.try_spend(now_s)
    assert not budget.try_spend(now_s)
    assert budget.left(now_s) == 0
    return left


# ---- what the numbers mean -------------------------------------------------------------------------------------------


def test_retries_are_a_fifth_of_the_requests_and_ten_per_second() -> None:  # Q05
    budget = retry_budget()
    assert spend_all(budget, 1000.0) == 100
    for _ in range(500):
        budget.request(1000.0)
    assert spend_all(budget, 1000.0) == 100


def test_hedges_are_eight_in_a_hundred_and_nothing_is_free() -> None:  # Q14
    budget = hedge_budget()
    for _ in range(12):
        budget.request(5.0)
        assert not budget.try_spend(5.0)
    for _ in range(88):
        budget.request(5.0)
    assert spend_all(budget, 5.0) == 8


def test_the_configuration_has_the_same_share_for_hedges() -> None:  # Q14
    assert HedgeFile().budget_share == HedgeSpec().budget_share == HEDGE_RATIO


@pytest.mark.parametrize(
    ("ratio", "requests", "spends"),
    [
        (0.1, 10, 1),
        (0.3, 10, 3),
        (0.07, 100, 7),
        (0.29, 100, 29),
        (1.0, 3, 3),
        (2.5, 2, 5),
        (0.0, 1000, 0),
        (0.05, 39, 1),
    ],
)
def test_the_share_is_exact(ratio: float, requests: int, spends: int) -> None:
    budget = Budget(ratio, 0.0, 10.0)
    for _ in range(requests):
        budget.request(0.0)
    assert spend_all(budget, 0.0) == spends


@pytest.mark.parametrize(("min_per_s", "ttl_s", "spends"), [(10, 10, 100), (0.5, 10, 5), (0.05, 10, 0), (1, 60, 60)])
def test_the_minimum_is_for_the_whole_window(min_per_s: float, ttl_s: float, spends: int) -> None:
    assert spend_all(Budget(0.2, min_per_s, ttl_s), 77.7) == spends


@pytest.mark.parametrize("bad", [(-0.1, 1, 10), (0.1, -1, 10), (0.1, 1, 0), (0.1, 1, -5)])
def test_nonsense_is_refused(bad: tuple[float, float, float]) -> None:
    with pytest.raises(ValueError, match="budget"):
        Budget(*bad)


# ---- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("began", [0.0, 0.5, 0.999, 123_456.0, 123_456.75])
@pytest.mark.parametrize("ttl_s", [1.0, 10.0, 60.0])
def test_a_spend_counts_for_the_window_and_at_most_a_slot_longer(began: float, ttl_s: float) -> None:
    budget = Budget(0.0, 10 / ttl_s, ttl_s)
    began *= ttl_s
    assert spend_all(budget, began) == 10
    assert budget.left(began + ttl_s * 0.999) == 0
    assert budget.left(began + ttl_s * (1 + 1 / SLOTS) + 0.001) == 10


@pytest.mark.parametrize("began", [0.0, 0.5, 0.999, 123_456.0, 123_456.75])
@pytest.mark.parametrize("ttl_s", [1.0, 10.0, 60.0])
def test_a_request_counts_for_the_window_and_at_least_for_all_but_a_slot(began: float, ttl_s: float) -> None:
    budget = Budget(1.0, 0.0, ttl_s)
    began *= ttl_s
    for _ in range(10):
        budget.request(began)
    assert budget.left(began + ttl_s * (1 - 1 / SLOTS) - 0.001) == 10
    assert budget.left(began + ttl_s + 0.001) == 0


def test_the_window_slides_slot_by_slot() -> None:
    budget = Budget(1.0, 0.0, 10.0)
    for second in range(10):
        for _ in range(second + 1):
            budget.request(float(second))
    assert [budget.left(float(second)) for second in range(9, 21)] == [55, 54, 52, 49, 45, 40, 34, 27, 19, 10, 0, 0]


def test_a_debt_is_worked_off_not_forgiven() -> None:
    """Deposits are forgotten before the spends that they paid for: for a moment the balance is below nothing."""
    budget = Budget(1.0, 0.0, 10.0)
    for _ in range(10):
        budget.request(0.5)
    assert spend_all(budget, 9.5) == 10
    for _ in range(5):
        budget.request(12.0)
    assert budget.left(12.0) == 0
    for _ in range(6):
        budget.request(13.0)
    assert budget.left(13.0) == 1


def test_a_clock_that_stands_still_gives_nothing_back() -> None:
    budget = retry_budget()
    assert spend_all(budget, 50.0) == 100
    assert not any(budget.try_spend(50.0) for _ in range(1000))


def test_a_clock_that_goes_back_stands_still() -> None:
    budget = retry_budget()
    assert spend_all(budget, 50.0) == 100
    assert not any(budget.try_spend(now) for now in (49.0, 40.0, 0.0, 50.9))
    assert budget.left(61.0) == 100


@pytest.mark.parametrize("jump", [11.0, 12.0, 1e3, 1e9, 1e15])
def test_a_jump_forgets_everything_and_costs_nothing(jump: float) -> None:
    budget = retry_budget()
    for _ in range(1000):
        budget.request(3.0)
    assert spend_all(budget, 3.0) == 300
    before = time.perf_counter()
    assert budget.left(3.0 + jump) == 100
    assert soon(time.perf_counter() - before, 0.5), "not a step for each slot that was slept through"


# ---- properties ------------------------------------------------------------------------------------------------------

STEPS = st.lists(
    st.tuples(
        st.one_of(st.just(0), st.integers(0, 1500), st.integers(0, 30_000), st.just(10**10)),  # ms that pass
        st.sampled_from(["request", "spend"]),
        st.integers(1, 20),  # how often
    ),
    max_size=60,
)


@fuzz
@given(
    steps=STEPS,
    start_ms=st.integers(0, 10**9),
    per_mille=st.integers(0, 2000),
    minimum=st.integers(0, 20),
    ttl_s=st.sampled_from([1, 10, 60]),
)
def test_never_above_the_share_in_any_window_and_exactly_what_the_slots_allow(
    steps: list[tuple[int, str, int]], start_ms: int, per_mille: int, minimum: int, ttl_s: int
) -> None:
    budget = Budget(per_mille / 1000, minimum / 10, ttl_s)
    ratio, reserve, ttl_ms = Fraction(per_mille, 1000), Fraction(minimum * ttl_s, 10), ttl_s * 1000
    slot_ms = ttl_ms // SLOTS
    requests: list[int] = []
    spends: list[int] = []
    now = start_ms
    for wait, what, times in steps:
        now += wait
        for _ in range(times):
            # a little into the millisecond: on a border of two slots a float may fall to either side
            now_s = (now + 0.5) / 1000
            if what == "request":
                budget.request(now_s)
                requests.append(now)
                continue
            turn = now // slot_ms
            paid = sum(turn - at // slot_ms < SLOTS for at in requests) * ratio + reserve
            allowed = paid - sum(turn - at // slot_ms <= SLOTS for at in spends) >= 1
            assert budget.try_spend(now_s) is allowed
            if allowed:
                spends.append(now)
                within = sum(now - at <= ttl_ms for at in spends)
                assert within <= ratio * sum(now - at <= ttl_ms for at in requests) + reserve


@fuzz
@given(steps=STEPS, start_ms=st.integers(0, 10**9))
def test_left_is_what_can_be_spent_and_asking_changes_nothing(steps: list[tuple[int, str, int]], start_ms: int) -> None:
    asked, silent = Budget(0.2, 1.0, 10.0), Budget(0.2, 1.0, 10.0)
    now = start_ms / 1000
    for wait, what, times in steps:
        now += wait / 1000
        for _ in range(times):
            left = asked.left(now)
            assert left >= 0
            if what == "request":
                asked.request(now)
                silent.request(now)
                assert asked.left(now) in (left, left + 1)
            else:
                spent = asked.try_spend(now)
                assert spent == silent.try_spend(now) == (left > 0)
                assert asked.left(now) == left - spent


# ---- an outage -------------------------------------------------------------------------------------------------------


def outage(budget: Budget, rps: int, began: float, seconds: float = 30.0, retries: int = 2) -> int:
    """Calls that a provider sees which fails them all after 5 ms; each request would try ``1 + retries`` times."""
    calls = 0
    events = [(began + i / rps, 0) for i in range(int(rps * seconds))]
    while events:
        now, attempt = heapq.heappop(events)
        if attempt == 0:
            budget.request(now)
        elif not budget.try_spend(now):
            continue
        if now < began + seconds:
            calls += 1
        if attempt < retries:
            heapq.heappush(events, (now + 0.005, attempt + 1))
    return calls


@pytest.mark.parametrize("began", [0.0, 0.3, 1000.9, 5000.999, 123.456])
@pytest.mark.parametrize(("rps", "bound"), [(200, 7500), (20, 1020)])
def test_an_outage_is_not_multiplied(rps: int, bound: int, began: float) -> None:  # Q05, S-29
    calls = outage(retry_budget(), rps, began)
    assert calls <= bound
    requests = rps * 30
    assert calls - requests >= 0.85 * (bound - requests), "and what is allowed is used"


@pytest.mark.parametrize("seed", range(5))
def test_an_outage_that_begins_after_a_good_time(seed: int) -> None:
    """However the slots lie to it: tower's ten slots let a fourth burst of the minimum into these 30 s."""
    chance = random.Random(seed)
    budget, now = retry_budget(), chance.uniform(0, 1000)
    for _ in range(2000):
        now += chance.expovariate(200)
        budget.request(now)
        if chance.random() < 0.01:
            budget.try_spend(now)
    assert outage(budget, 200, now) <= 7500 + 40  # the first retries are paid by requests that came not quite evenly


def test_little_traffic_may_always_be_retried() -> None:
    budget = retry_budget()
    assert outage(budget, 4, 100.0) == 3 * 4 * 30
