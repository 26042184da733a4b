"""How many requests may be under way in an overloaded loop: the states, and simulated loops (Q15, Q16, issue 5)."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.resilience.bulkhead import HIGH, LOW, NORMAL
from slipstream.resilience.turns import (
    CALM_S,
    ENTER,
    FEW,
    HARD,
    LEAST_S,
    REFUSAL_S,
    STANDING_S,
    TurnBudget,
)

TEN_MS = 0.010
TARGET_S = 0.005
LONG_S = ENTER * TEN_MS * 1.2


def overloaded(in_flight: int = 600, turn_s: float = LONG_S) -> TurnBudget:
    """One that is active from now, 1.0, on, and whose ``LEAST_S`` has just begun."""
    budget = TurnBudget(TEN_MS)
    assert not budget.seen(turn_s, in_flight, 1.0 - STANDING_S * 1.01)
    assert budget.seen(turn_s, in_flight, 1.0)
    budget._took_at = 1.0
    return budget


def let_in(budget: TurnBudget, priority: int = NORMAL, now_s: float = 1.0, most: int = 100_000) -> int:
    """How many may be under way, if one after the other comes and none leaves."""
    for n in range(most):
        if not budget.take(priority, n, now_s):
            return n
    return most


# ---- when it is an overload


def test_only_turns_that_stay_long_are_an_overload() -> None:
    budget = TurnBudget(TEN_MS)
    now = 0.0
    for _ in range(20):  # one long turn after the other, but never for the whole interval
        assert not budget.seen(LONG_S, 9, now)
        assert budget.suspects
        assert not budget.seen(LONG_S, 9, now + STANDING_S * 0.9)
        assert not budget.seen(ENTER * TEN_MS, 9, now + STANDING_S)
        assert not budget.suspects
        now += 1.0
    assert not budget.seen(60.0, 9, now), "one stop, however long"
    assert budget.seen(LONG_S, 9, now + STANDING_S * 1.01)


def test_a_target_of_zero_is_never() -> None:
    budget = TurnBudget(0.0)
    assert not any(budget.seen(9.0, 9, float(n)) for n in range(10))
    active = overloaded()
    active.target_s = 0.0  # a reload
    assert not active.turned(0.02, 9, 1.02)


def test_it_is_over_when_nobody_was_refused_for_a_second() -> None:
    budget = overloaded()
    assert let_in(budget, now_s=1.05) == 100
    assert budget.turned(0.001, 9, 1.05 + CALM_S - 0.01)
    assert budget.take(NORMAL, 9, 2.0)
    assert not budget.turned(0.001, 9, 1.06 + CALM_S)
    assert not budget.active


# ---- how many


def test_as_many_as_make_turns_as_long_as_they_should_be() -> None:
    assert let_in(overloaded(600, 0.060)) == 100
    assert let_in(overloaded(50_000, 0.060)) == 8334


@pytest.mark.parametrize(("turn_s", "limit"), [(0.020, 50), (0.005, 200)])
def test_it_follows_the_turns(turn_s: float, limit: int) -> None:
    budget, now = overloaded(), 1.0
    for _ in range(200):
        now += turn_s
        budget.turned(turn_s, 100, now)
    assert budget.limit == pytest.approx(limit, rel=0.02)


def test_what_refusing_costs_is_no_work() -> None:
    budget, now = overloaded(), 1.0
    for _ in range(200):
        budget.refused = int(0.010 / REFUSAL_S)
        now += 0.020
        budget.turned(0.020, 100, now)
    assert budget.limit == pytest.approx(100, rel=0.02)


def test_classes() -> None:
    budget = overloaded()
    assert [let_in(budget, priority) for priority in (LOW, NORMAL, HIGH)] == [50, 100, 200]


def test_a_few_are_always_under_way_and_now_and_then_one_more() -> None:
    """Something else keeps the loop busy: thousands of streams, say, that began before."""
    budget = overloaded(10, 5.0)
    assert let_in(budget) == FEW
    assert sum(budget.take(NORMAL, 5000, 1.0 + n * 0.001) for n in range(1000)) in (8, 9)


def test_refusing_takes_half_of_a_turn_at_most_until_turns_are_far_too_long() -> None:
    budget = overloaded()
    budget.turned(0.060, 600, 1.0)
    refused = [budget.take(NORMAL, 5000, 1.0) for _ in range(5000)].count(False)
    assert refused * REFUSAL_S == pytest.approx(0.030, rel=0.01)
    budget.turned(HARD * TEN_MS, 600, 1.0)
    assert not any(budget.take(NORMAL, 50_000, 1.0) for _ in range(50_000))


def test_low_requests_may_be_refused_for_as_long_as_it_takes() -> None:
    budget = overloaded()
    assert not any(budget.take(LOW, 5000, 1.0) for _ in range(50_000))


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("take"), st.integers(0, 3000), st.sampled_from([HIGH, NORMAL, LOW])),
            st.tuples(st.just("turn"), st.floats(0, 10), st.integers(0, 100_000)),
        ),
        max_size=60,
    ),
    st.integers(0, 10**6),
    st.floats(LONG_S, 100),
)
def test_whatever_happens_a_few_get_in_and_there_is_an_end_to_refusing(
    steps: list[tuple[str, float, int]], in_flight: int, turn_s: float
) -> None:
    budget, now = overloaded(in_flight, turn_s), 1.0
    for what, value, number in steps:
        if what == "turn":
            now += value
            still = budget.turned(value, number, now)
            assert still == budget.active
            assert budget.refused == 0
            assert FEW <= budget.limit < float("inf")
            if not still:
                return
            continue
        before = budget.refused
        taken = budget.take(number, int(value), now)
        assert budget.refused == before + (not taken)
        if value < FEW / 2:
            assert taken, "some are always let in"
        if not taken:
            assert value >= budget.limit / 2
            assert not budget.take(number, int(value) + 1, now) or number != LOW
    assert budget.take(LOW, 10**6, now + LEAST_S)


# ---- simulated loops

STAGES = (12e-6, 30e-6, 30e-6)
"""What a request costs of three turns: read it, send it on, answer it."""
CAPACITY = 1 / sum(STAGES)
REFUSE_S = 12e-6


@dataclass
class Seen:
    """Per second of the simulation; times since the request came."""

    served: list[tuple[float, float]] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)
    turns: list[tuple[float, float]] = field(default_factory=list)

    def rate(self, since: float, until: float) -> float:
        return sum(since <= at < until for at, _ in self.served) / (until - since)

    def p99(self, what: list[tuple[float, float]], since: float, until: float) -> float:
        times = sorted(took for at, took in what if since <= at < until)
        return times[int(0.99 * len(times))] if times else 0.0


Arrivals = Callable[[float], list[float]]


def event_loop(
    coming: Arrivals,
    again: Callable[[float], None],
    until: float,
    budget: TurnBudget,
    stages: tuple[float, ...] = STAGES,
) -> Seen:
    """A loop as it is: all that has come is worked off in one turn, and what it makes necessary in the next."""
    seen, now, look, in_flight = Seen(), 0.0, 0.0, 0
    pending: deque[tuple[int, float]] = deque()
    while now < until:
        began = now
        batch = [*pending, *((0, since) for since in coming(now))]
        pending.clear()
        if not batch:
            now += 0.0001
        for stage, since in batch:
            if stage == 0:
                if budget.active and not budget.take(NORMAL, in_flight, now):
                    now += REFUSE_S
                    seen.refused.append((now, now - since))
                    again(now)
                    continue
                in_flight += 1
            now += stages[stage]
            if stage + 1 < len(stages):
                pending.append((stage + 1, since))
            else:
                in_flight -= 1
                seen.served.append((now, now - since))
                again(now)
        turn_s = now - began if batch else 0.0
        seen.turns.append((now, turn_s))
        if budget.active:
            budget.turned(turn_s, in_flight, now)
        elif now >= look:
            budget.seen(turn_s, in_flight, now)
            look = now + (0.02 if budget.suspects else 0.1)
    return seen


def open_loop(
    rate_at: Callable[[float], float], until: float, target_s: float = TARGET_S, stages: tuple[float, ...] = STAGES
) -> Seen:
    """Requests that come whatever becomes of those before."""
    rnd = random.Random(15)

    def times() -> Iterator[float]:
        at = 0.0
        while True:
            at += rnd.expovariate(rate_at(at))
            yield at

    following = times()
    due = [next(following)]

    def coming(now: float) -> list[float]:
        found = []
        while due[0] <= now:
            found.append(due[0])
            due[0] = next(following)
        return found

    return event_loop(coming, lambda now: None, until, TurnBudget(target_s), stages)


def closed_loop(clients: int, pause_s: float, until: float, stages: tuple[float, ...] = STAGES) -> Seen:
    """Clients that wait for an answer, and ``pause_s``, before they ask again."""
    rnd = random.Random(15)
    due = [rnd.uniform(0, pause_s or 0.001) for _ in range(clients)]
    heapq.heapify(due)

    def coming(now: float) -> list[float]:
        found = []
        while due and due[0] <= now:
            found.append(heapq.heappop(due))
        return found

    def again(now: float) -> None:
        heapq.heappush(due, now + (rnd.uniform(0.5, 1.5) * pause_s or 1e-4))

    return event_loop(coming, again, until, TurnBudget(TARGET_S), stages)


def test_twice_what_the_loop_can_do() -> None:
    """Q15, where an answer costs six refusals: no time but that of the refusals is lost, turns stay so short that
    health, within five of them, is within 50 ms, and all of it is over within a second."""
    seen = open_loop(lambda now: CAPACITY * (2 if 1 <= now < 4 else 0.3), 6.0)
    share = REFUSE_S * CAPACITY
    assert seen.rate(2.5, 4.0) >= 0.97 * CAPACITY * (1 - 2 * share) / (1 - share)
    assert seen.p99(seen.turns, 2.5, 4.0) <= 2 * TARGET_S
    assert seen.p99(seen.served, 2.5, 4.0) <= 5 * TARGET_S
    assert seen.p99(seen.refused, 2.5, 4.0) <= 0.012
    assert seen.p99(seen.served, 5.0, 6.0) <= 0.002
    assert not [at for at, _ in seen.refused if at >= 5.0]


@pytest.mark.parametrize(("load", "least"), [(1.2, 0.97), (2, 0.97), (10, 0.9)])
def test_goodput_where_answers_are_longer(load: float, least: float) -> None:
    """Issue 5, Q15: streams of 20 events, each in a turn of its own; a refusal is next to nothing beside them."""
    stages = (100e-6,) * 20
    capacity = 1 / sum(stages)
    seen = open_loop(lambda now: capacity * (load if now >= 1 else 0.3), 7.0, stages=stages)
    assert seen.rate(4.0, 7.0) >= least * capacity
    assert seen.p99(seen.turns, 4.0, 7.0) <= 1.5 * TARGET_S
    assert seen.p99(seen.refused, 4.0, 7.0) <= 0.012
    at_capacity = closed_loop(64, 0.0, 3.0, stages)
    assert not at_capacity.refused
    assert seen.p99(seen.served, 4.0, 7.0) < 2 * at_capacity.p99(at_capacity.served, 1.0, 3.0)


def test_without_it_all_are_late() -> None:
    seen = open_loop(lambda now: CAPACITY * 2, 4.0, target_s=0.0)
    assert seen.p99(seen.served, 3.0, 4.0) > 0.5


def test_the_rated_load_is_not_touched() -> None:  # Q16
    assert not open_loop(lambda now: CAPACITY * 0.9, 4.0).refused


def test_a_burst_is_worked_off() -> None:
    """2,000 requests in a hundredth of a second."""
    assert not open_loop(lambda now: 200_000.0 if 1.0 <= now < 1.01 else 500.0, 2.0).refused


@pytest.mark.parametrize("clients", [32, 256, 800])
def test_clients_that_wait_for_their_answers_are_all_served(clients: int) -> None:
    assert not closed_loop(clients, 0.0, 2.0).refused


@pytest.mark.parametrize("clients", [4000, 8000])
def test_clients_that_ask_again_at_once_do_not_have_the_loop_refuse_them_all_day(clients: int) -> None:
    seen = closed_loop(clients, 0.0, 4.0)
    assert seen.refused
    assert seen.rate(2.0, 4.0) >= 0.5 * CAPACITY
