"""The choice of a target out of a pool: both twins, against models, and as statistics over many choices."""

from __future__ import annotations

import mmap
import random
import struct
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure.layout import LAYOUT, Sizes
from slipstream.routing.weighted import cycle

from .test_table import COMPILED, NOT_BUILT, NOW, PURE, TWINS, S

SIZES = Sizes(targets=64, counters=1, histograms=1, pools=4)


@pytest.fixture(params=TWINS)
def fast(request: pytest.FixtureRequest) -> Any:
    return request.param


def new(fast: Any, rows: int = 64, **options: Any) -> Any:
    buffer = mmap.mmap(-1, SIZES.total)
    fast.Table.format(buffer, SIZES)
    table = fast.Table(buffer, SIZES, **options)
    for row in range(rows):
        table.record(row, 0, 50_000, 50_000, NOW)
    return table


def picks(pool: Any, n: int = 3000, now: int = NOW, avoid: tuple[int, ...] | None = None) -> Counter[int]:
    return Counter(pool.pick(seed, now, avoid) for seed in range(n))


# -------------------------------------------------------------------------------------------------------------- p2c


def test_equals_get_equal_shares(fast: Any) -> None:
    shares = picks(fast.Pool(new(fast), b"p", range(10)), 10_000)
    assert sorted(shares) == list(range(10))
    assert all(850 < n < 1150 for n in shares.values()), shares


def test_each_pair_is_of_two_different_members(fast: Any) -> None:
    """With two members the worse one never wins."""
    table = new(fast)
    table.record(1, 0, -1, 90_000_000, NOW + 1000 * S)
    pool = fast.Pool(table, b"p", [0, 1])
    assert picks(pool, now=NOW + 1000 * S) == {0: 3000}


def test_one_member(fast: Any) -> None:
    pool = fast.Pool(new(fast), b"p", [5])
    assert len(pool) == 1
    assert picks(pool, 50) == {0: 50}
    assert picks(pool, 50, avoid=(0,)) == {-1: 50}


def test_the_less_loaded_wins(fast: Any) -> None:
    table = new(fast)
    worker = table.claim_worker(1, 1)
    pool = fast.Pool(table, b"p", [3, 4])
    table.enter(worker, 3)
    assert picks(pool, 100) == {1: 100}
    for _ in range(2):
        table.enter(worker, 4)
    assert picks(pool, 100) == {0: 100}


def test_ten_times_slower_gets_next_to_nothing(fast: Any) -> None:
    """Q12: choices with what is in flight: the slow one keeps each request ten times longer."""
    table = new(fast)
    worker = table.claim_worker(1, 1)
    table.record(9, 0, -1, 500_000, NOW + 60 * S)
    pool = fast.Pool(table, b"p", range(10))
    now, ends, shares = NOW + 60 * S, [], Counter[int]()
    rng = random.Random(1)
    for _ in range(3000):
        now += S // 500
        for end, row, ms in [e for e in ends if e[0] <= now]:
            table.leave(worker, row)
            table.record(row, 0, -1, ms * 1000, end)
        ends = [e for e in ends if e[0] > now]
        row = pool.pick(rng.getrandbits(64), now)
        shares[row] += 1
        table.enter(worker, row)
        ms = 500 if row == 9 else 50
        ends.append((now + ms * 1_000_000, row, ms))
    assert shares[9] <= 60, shares


def test_failures_cost_and_fade(fast: Any) -> None:
    """Q13: a fast 429 is no fast target; the penalty goes with the next success, or with time."""
    table = new(fast)
    pool = fast.Pool(table, b"p", [0, 1])
    table.record(0, 4, -1, -1, NOW)
    assert picks(pool, 100) == {1: 100}
    for row in (0, 1):
        table.record(row, 0, -1, 50_000, NOW)
    assert sorted(picks(pool, 100)) == [0, 1], "forgiven"
    worker = table.claim_worker(1, 1)
    table.enter(worker, 1)
    assert picks(pool, 100) == {0: 100}
    table.record(0, 4, -1, -1, NOW)
    assert picks(pool, 100) == {1: 100}
    assert picks(pool, 100, NOW + 200 * S) == {0: 100}


def test_a_target_without_samples_is_tried_but_not_flooded(fast: Any) -> None:
    table = new(fast, rows=1)
    worker = table.claim_worker(1, 1)
    pool = fast.Pool(table, b"p", [0, 1], unknown_us=30e3)
    assert picks(pool, 100) == {1: 100}
    table.enter(worker, 1)
    assert picks(pool, 100) == {0: 100}


@pytest.mark.parametrize("how", ["rest", "breaker"])
def test_resting_members_are_passed_over(fast: Any, how: str) -> None:
    table = new(fast)
    for row in range(15):
        if how == "rest":
            table.extend_cooldown(row, NOW + S)
        else:
            table.cas_breaker(row, 0, (NOW // 1_000_000 + 1000) << 8 | 1)
    assert picks(fast.Pool(table, b"p", range(16)), 500) == {15: 500}
    assert -1 not in picks(fast.Pool(table, b"q", range(15)), 100), "a guess about health turns nobody away"
    assert len(picks(fast.Pool(table, b"p", range(16)), 500, NOW + S)) == 16, "the time has come"


def test_avoid(fast: Any) -> None:
    table = new(fast)
    pool = fast.Pool(table, b"p", range(4))
    assert sorted(picks(pool, 300, avoid=(1, 3))) == [0, 2]
    table.extend_cooldown(0, NOW + S)
    table.extend_cooldown(2, NOW + S)
    assert sorted(picks(pool, 300, avoid=(1, 3))) == [0, 2], "rather one that rests than one that was tried"
    assert picks(pool, 300, avoid=(0, 1, 2, 3)) == {-1: 300}


@NOT_BUILT
@settings(max_examples=150, deadline=None)
@given(
    rows=st.lists(st.integers(0, 63), min_size=1, max_size=40),
    states=st.lists(st.tuples(st.integers(0, 63), st.integers(0, 15), *[st.integers(-1, 1 << 24)] * 2,
                              st.integers(0, 90 * S), st.booleans()), max_size=30),
    seeds=st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=10),
    avoid=st.none() | st.tuples(st.integers(0, 40), st.integers(0, 40)),
)  # fmt: skip
def test_twins_choose_alike(rows: Any, states: Any, seeds: Any, avoid: Any) -> None:
    answers = []
    for fast in (COMPILED, PURE):
        table = new(fast, rows=0, tau_s=7.0)
        worker = table.claim_worker(1, 1)
        for row, failure, latency, ttft, dt, rest in states:
            table.record(row, failure, latency, ttft, NOW + dt)
            table.enter(worker, row)
            if rest:
                table.extend_cooldown(row, NOW + 2 * dt)
        pool = fast.Pool(table, b"p", rows, costs=[row % 3 for row in rows])
        pool.refresh(NOW + 50 * S)
        answers.append([pool.pick(s, NOW + 60 * S, avoid) for s in seeds] + [pool.fastest(), pool.cheapest()])
    assert answers[0] == answers[1]


# --------------------------------------------------------------------------------------------------- turns, choices


@given(weights=st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any))
@settings(max_examples=50, deadline=None)
def test_turns_are_exact(weights: list[int]) -> None:
    order = cycle(weights)
    for fast in filter(None, (COMPILED, PURE)):
        table = new(fast, rows=0)
        pools = [fast.Pool(table, b"w", range(len(weights)), order) for _ in range(3)]  # three workers
        turns = [pools[i % 3].turn() for i in range(3 * len(order))]
        assert turns == list(order) * 3


def test_turns_without_weights(fast: Any) -> None:
    table = new(fast)
    pool, other = fast.Pool(table, b"p", [7, 8, 9]), fast.Pool(table, b"q", [7, 8])
    assert pool.slot != other.slot
    assert [pool.turn() for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert [other.turn() for _ in range(3)] == [0, 1, 0]


def test_choices(fast: Any) -> None:
    table = new(fast)
    pool = fast.Pool(table, b"p", [10, 11, 12], costs=[2.0, 1.0, 1.0])
    assert (pool.fastest(), pool.cheapest()) == (-1, -1), "nobody refreshed yet"
    table.record(10, 0, -1, 1000, NOW + 100 * S)
    table.record(12, 0, -1, 20_000, NOW + 100 * S)
    pool.refresh(NOW + 100 * S)
    assert (pool.fastest(), pool.cheapest()) == (0, 2)
    for row in (10, 12):
        table.extend_cooldown(row, NOW + 101 * S)
    pool.refresh(NOW + 100 * S)
    assert (pool.fastest(), pool.cheapest()) == (1, 1)
    table.extend_cooldown(11, NOW + 101 * S)
    pool.refresh(NOW + 100 * S)
    assert (pool.fastest(), pool.cheapest()) == (0, 2), "all rest: as if none did"
    same = fast.Pool(table, b"p", [10, 11, 12])
    assert (same.slot, same.fastest(), same.cheapest()) == (pool.slot, 0, 2), "other workers see it"
    other = fast.Pool(table, b"p", [10, 11])
    assert (other.slot, other.fastest()) == (pool.slot, -1), "a choice among other members is none of ours"


def test_bad_pools(fast: Any) -> None:
    table = new(fast)
    for rows, order, costs in (([], None, None), ([1], [], None), ([1], None, [1.0, 2.0])):
        with pytest.raises(ValueError, match="members"):
            fast.Pool(table, b"p", rows, order, costs)
    with pytest.raises(ValueError, match="208"):
        fast.Pool(table, b"x" * 209, [1])
    for rows, order in (([64], None), ([-1], None), ([1], [1]), ([1], [-1])):
        with pytest.raises(IndexError):
            fast.Pool(table, b"p", rows, order)


def test_a_pool_without_room_goes_on_alone(fast: Any) -> None:
    table = new(fast)
    slots = {fast.Pool(table, b"%d" % i, [1]).slot for i in range(4)}
    alone = fast.Pool(table, b"p", [1, 2, 3], costs=[3, 2, 1])
    assert (slots, alone.slot) == ({0, 1, 2, 3}, -1)
    assert [alone.turn() for _ in range(4)] == [0, 1, 2, 0]
    alone.refresh(NOW)
    assert (alone.fastest(), alone.cheapest()) == (0, 2)
    assert fast.Pool(table, b"p", [1, 2, 3]).turn() == 0


def test_a_choice_outside_of_the_pool_is_not_believed(fast: Any) -> None:
    buffer = bytearray(SIZES.total)
    fast.Table.format(buffer, SIZES)
    pool = fast.Pool(fast.Table(buffer, SIZES), b"p", [0, 1, 2])
    pool.refresh(NOW)
    assert pool.fastest() == 0
    at = 8 * (SIZES.words()[2] + pool.slot * LAYOUT["POOL_WORDS"] + LAYOUT["P_FASTEST"])
    for low, want in ((3, 2), (4, -1), (0, -1), (0xFFFF_FFFF, -1)):
        struct.pack_into("<I", buffer, at, low)
        assert pool.fastest() == want
