"""The circuit breaker with a fake clock: the machine walked state by state, two workers on one table, and what must
hold whatever happens (R57, R58; reliability.md Q02-Q04; fault-scenarios.md S-48)."""

from __future__ import annotations

import importlib
import mmap
import os
from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from slipstream._fast import COMPILED, Sizes
from slipstream.config.snapshot import ProviderSpec, Target
from slipstream.resilience.breaker import (
    BY_HAND,
    CLOSED,
    HALF_OPEN,
    HOUR_MS,
    LONGEST_S,
    N_MAX,
    NO,
    OPEN,
    PROBE,
    YES,
    Breakers,
    BreakerSettings,
    is_shut,
    pack,
    unpack,
)
from slipstream.resilience.failures import RETRY
from slipstream.routing.table import NOTHING, Pool
from slipstream.state.table import ERRORS, NEUTRAL, TAU_S
from slipstream.types import NANOS, FailureClass, Secret

SMALL = Sizes(targets=8, counters=16, histograms=8, pools=4)
MODULES = ["slipstream._fast.table", "slipstream._fast._pure.table"] if COMPILED else ["slipstream._fast._pure.table"]
NOW = 10_000.0
POOL = (0, 1, 2, 3, 4)
PAIR = (0, 1)
BASE = BreakerSettings()
SERVER, RATE, BAD_REQUEST = FailureClass.SERVER, FailureClass.RATE_LIMITED, FailureClass.CLIENT_ERROR
COUNTING = sorted(f for f, r in RETRY.items() if r.counts)
SILENT = sorted(f for f, r in RETRY.items() if not r.counts and f)


def new_table(module: str = MODULES[0]) -> Any:
    kind = importlib.import_module(module).Table
    buffer = mmap.mmap(-1, SMALL.total)
    kind.format(buffer, SMALL)
    return kind(buffer, SMALL, errors=ERRORS, neutral=NEUTRAL, tau_s=TAU_S, peak=True)


@pytest.fixture(params=MODULES, ids=lambda name: "pure" if "_pure" in name else "compiled")
def table(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = new_table(request.param)
    yield made
    made.close()


def zero() -> float:
    return 0.0


class Rig:
    """One worker: what the engine does around an attempt, without the attempt."""

    def __init__(self, table: Any, options: BreakerSettings = BASE, random: Callable[[], float] = zero) -> None:
        self.table = table
        self.breakers = Breakers(table, options, random)

    def fail(
        self,
        row: int = 0,
        now: float = NOW,
        failure: FailureClass = SERVER,
        peers: tuple[int, ...] = POOL,
        probe: bool = True,
    ) -> bool:
        self.table.record(row, failure, -1, -1, int(now * NANOS))
        return self.breakers.failed(row, failure, now, peers, probe=probe)

    def succeed(self, row: int = 0, now: float = NOW, probe: bool = True) -> bool:
        self.table.record(row, 0, 1000, -1, int(now * NANOS))
        return self.breakers.succeeded(row, now, probe=probe)

    def admit(self, row: int = 0, now: float = NOW) -> int:
        return self.breakers.admit(row, now) if self.table.breaker(row) else YES

    def trip(self, row: int = 0, now: float = NOW, peers: tuple[int, ...] = POOL) -> None:
        opened = [self.fail(row, now, peers=peers) for _ in range(BASE.consecutive)]
        assert opened == [False] * 4 + [True]

    def put(self, word: int, row: int = 0) -> None:
        assert self.table.cas_breaker(row, self.table.breaker(row), word)

    def at(self, row: int = 0, now: float = NOW) -> tuple[int, int, float]:
        """State, n and the time of the word, in seconds from ``now``."""
        state, n, ms = unpack(self.table.breaker(row))
        return state, n, round(ms / 1000 - now, 3)


@pytest.fixture
def rig(table: Any) -> Rig:
    return Rig(table)


# ---- what trips it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", COUNTING, ids=lambda f: f.label)
def test_five_in_a_row_eject_and_the_request_sees_it_at_once(rig: Rig, failure: FailureClass) -> None:  # Q02, R58
    other = Rig(rig.table)
    for _ in range(4):
        assert not rig.fail(failure=failure)
        assert rig.table.breaker(0) == 0
    assert rig.fail(failure=failure)
    assert not rig.table.available(0, int(NOW * NANOS)), "its own retries pass it over"
    assert (rig.admit(), other.admit()) == (NO, NO)
    assert rig.breakers.state(0, NOW) == other.breakers.state(0, NOW) == "open"
    assert other.breakers.remaining_s(0, NOW + 10) == 20.0
    assert other.breakers.ejections(0, NOW) == 1


@pytest.mark.parametrize("failure", SILENT, ids=lambda f: f.label)
def test_what_says_nothing_of_its_health_never_trips(rig: Rig, failure: FailureClass) -> None:  # Q03: 1,000 x 400
    for i in range(1000):
        assert not rig.fail(failure=failure, now=NOW + i / 100)
    assert rig.table.breaker(0) == 0
    assert rig.breakers.state(0, NOW) == "closed"
    assert rig.admit() == YES


def test_which_failures_count() -> None:  # Q03; the same that the table calls errors
    assert {f for f in FailureClass if ERRORS >> f & 1} == set(COUNTING)
    assert {FailureClass.RATE_LIMITED, FailureClass.OVERLOADED, FailureClass.QUOTA} <= set(SILENT)


def test_a_success_between_begins_the_row_anew(rig: Rig) -> None:
    for _ in range(9):
        for _ in range(4):
            assert not rig.fail()
        for _ in range(9):
            rig.succeed()
    for failure in (RATE, BAD_REQUEST) * 4:
        rig.fail(failure=failure)
        rig.fail(failure=failure)
    assert rig.table.breaker(0) == 0


@pytest.mark.parametrize(("good", "errors"), [(10, 10), (11, 11), (2, 18), (30, 30), (0, 20)])
@pytest.mark.parametrize("limited", [0, 3])
def test_half_of_twenty_calls(table: Any, good: int, errors: int, limited: int) -> None:  # contracts E; resilience4j
    """The one that makes both true ejects; a 429 is a call and no error."""
    rig = Rig(table, BreakerSettings(consecutive=0))
    for _ in range(good):
        rig.succeed()
    for _ in range(limited):
        rig.fail(failure=RATE)
    for failed in range(1, errors + limited + 1):
        calls = good + limited + failed
        due = calls >= 20 and failed >= calls / 2
        assert rig.fail() is due
        if due:
            return
    raise AssertionError("it must have been due")


def test_errors_of_more_than_a_minute_ago_are_forgotten(table: Any) -> None:
    rig = Rig(table, BreakerSettings(consecutive=0))
    for _ in range(19):
        assert not rig.fail()
    assert not any(rig.fail(now=NOW + 65) for _ in range(19))
    assert rig.fail(now=NOW + 65)


@pytest.mark.parametrize("off", ["consecutive", "error_share"])
def test_a_rule_is_turned_off_with_zero(table: Any, off: str) -> None:
    rig = Rig(table, BreakerSettings(**{off: 0}))
    opened = [rig.fail() for _ in range(30)].index(True) + 1
    assert opened == (20 if off == "consecutive" else 5)


def test_both_rules_off_never_trip(table: Any) -> None:
    rig = Rig(table, BreakerSettings(consecutive=0, error_share=0))
    assert not any(rig.fail() for _ in range(200))


def test_the_share_forgets_what_was_before_it_closed(table: Any) -> None:
    """The minute of the error window outlasts an ejection of 30 s: one failure after recovery must not count it all
    again."""
    rig = Rig(table, BreakerSettings(consecutive=0))
    assert [rig.fail() for _ in range(20)][-1]
    for _ in range(40):
        table.record(0, SERVER, -1, -1, int(NOW * NANOS))
    back = NOW + 31
    assert rig.admit(now=back) == PROBE
    assert rig.succeed(now=back)
    for i in range(1, 26):
        assert table.errors(0, 60, int((back + i) * NANOS)) >= (60, 60)
        assert not rig.fail(now=back + i), i
        rig.succeed(now=back + i)
        rig.succeed(now=back + i)
    assert any(rig.fail(now=back + 26) for _ in range(40)), "a new half of the calls counts"


def test_the_share_counts_in_the_ramp_too(table: Any) -> None:
    rig = Rig(table, BreakerSettings(consecutive=0))
    rig.put(pack(HALF_OPEN, 1, T))
    assert rig.succeed()
    assert not any(rig.fail(now=NOW + 4.9) for _ in range(40)), "less than the table can look at"
    assert [rig.fail(now=NOW + 9) for _ in range(20)] == [False] * 19 + [True]


def test_the_share_still_forgets_when_the_ejections_are_short(table: Any) -> None:
    """n has decayed long before the minute is over; the word stays so that the breaker knows when it closed."""
    rig = Rig(table, BreakerSettings(consecutive=0, cooldown_s=1, ramp_s=0))
    for _ in range(60):
        table.record(0, SERVER, -1, -1, int(NOW * NANOS))
    assert rig.fail()
    assert rig.admit(now=NOW + 1) == PROBE
    assert rig.succeed(now=NOW + 1)
    for i in range(2, 60):
        assert rig.admit(now=NOW + i) == YES
        rig.succeed(now=NOW + i)
        assert not rig.fail(now=NOW + i), i
        rig.succeed(now=NOW + i)
    assert rig.admit(now=NOW + 61) == YES
    assert table.breaker(0) == 0


# ---- the cap ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "most"), [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (6, 3), (8, 4)])
def test_never_more_than_half_nor_the_last(rig: Rig, size: int, most: int) -> None:  # Q02
    peers = tuple(range(size))
    for _ in range(20):
        for row in peers:
            rig.fail(row, peers=peers)
    out = [row for row in peers if rig.table.breaker(row)]
    assert len(out) == most
    if most:
        rig.breakers.close_by_hand(out[0])
        refused = next(row for row in peers if row not in out)
        assert rig.fail(refused, peers=peers), "whoever was spared goes as soon as there is room"


def test_a_bigger_share_still_spares_the_last(table: Any) -> None:
    rig = Rig(table, BreakerSettings(max_ejected=1.0))
    for row in POOL * 6:
        rig.fail(row)
    assert sum(table.breaker(row) != 0 for row in POOL) == 4


def test_one_that_rests_does_not_remain(rig: Rig) -> None:
    """With all others at rest (429) the failing one is the last: it is not ejected until somebody is back."""
    rig.table.extend_cooldown(1, int((NOW + 5) * NANOS))
    assert not any(rig.fail(peers=PAIR) for _ in range(50))
    assert rig.fail(peers=PAIR, now=NOW + 5)


def test_half_open_and_overdue_ones_are_still_out(rig: Rig) -> None:
    rig.trip(0, peers=PAIR)
    later = NOW + 40
    assert not any(rig.fail(1, later, peers=PAIR) for _ in range(9))
    assert rig.admit(0, later) == PROBE
    assert not rig.fail(1, later, peers=PAIR)
    assert rig.succeed(0, later)
    assert rig.fail(1, later, peers=PAIR)


def test_the_rows_of_a_pool_may_come_twice_or_without_the_row_itself(rig: Rig) -> None:
    assert not any(rig.fail(0, peers=(0, 0, 0)) for _ in range(9))
    assert rig.fail(0, peers=(1,))
    assert not any(rig.fail(1, peers=(0, 0, 1, 1)) for _ in range(9))


class Meanwhile:
    """A table on which another worker acts right before the next compare-and-swap of ours."""

    def __init__(self, table: Any, act: Callable[[], None]) -> None:
        self._table, self._act = table, act

    def __getattr__(self, name: str) -> Any:
        return getattr(self._table, name)

    def cas_breaker(self, row: int, old: int, new: int) -> Any:
        act, self._act = self._act, lambda: None
        act()
        return self._table.cas_breaker(row, old, new)


def test_two_workers_that_eject_at_one_instant_do_not_empty_the_pool(table: Any) -> None:
    other = Rig(table)
    for row in PAIR:
        for _ in range(4):
            other.fail(row, peers=PAIR)
    racing = Rig(Meanwhile(table, lambda: other.fail(1, peers=PAIR) and None))
    assert not racing.fail(0, peers=PAIR)
    assert table.breaker(0) == 0
    assert unpack(table.breaker(1))[0] == OPEN


@pytest.mark.parametrize("what", ["trip", "reopen", "close", "release", "probe"])
def test_who_loses_a_race_does_nothing(table: Any, what: str) -> None:
    now_ms = int(NOW * 1000)
    theirs = pack(BY_HAND, 9, now_ms + 77_000)
    before = {"trip": 0, "probe": pack(OPEN, 1, now_ms)}.get(what, pack(HALF_OPEN, 1, now_ms + 9))
    other = Rig(table)
    other.put(before)
    for _ in range(4):
        table.record(0, SERVER, -1, -1, int(NOW * NANOS))
    rig = Rig(Meanwhile(table, lambda: other.put(theirs)))
    done = {
        "trip": rig.fail,
        "reopen": rig.fail,
        "close": rig.succeed,
        "release": lambda: rig.fail(failure=RATE),
        "probe": rig.admit,
    }[what]()
    assert not done
    assert table.breaker(0) == theirs


# ---- the machine, walked ---------------------------------------------------------------------------------------------

S0 = pack(CLOSED, 0, 0)
T = int(NOW * 1000)
"""The time that every word of the walk carries."""
STATES = {
    "closed": S0,
    "ramp": pack(CLOSED, 3, T),
    "open": pack(OPEN, 3, T),
    "half-open": pack(HALF_OPEN, 3, T),
    "by hand": pack(BY_HAND, 3, T),
}
TIMES = {"before": -1.0, "at": 0.0, "after": 25.0, "long after": 3000.0}
EVENTS: dict[str, Callable[[Rig, float], Any]] = {
    "admit": lambda rig, now: rig.breakers.admit(0, now),
    "failed": lambda rig, now: rig.fail(now=now),
    "failed, no probe": lambda rig, now: rig.fail(now=now, probe=False),
    "neutral": lambda rig, now: rig.fail(now=now, failure=BAD_REQUEST),
    "neutral, no probe": lambda rig, now: rig.fail(now=now, failure=RATE, probe=False),
    "succeeded": lambda rig, now: rig.succeed(now=now),
    "succeeded, no probe": lambda rig, now: rig.succeed(now=now, probe=False),
    "released": lambda rig, now: rig.breakers.released(0, now),
    "open by hand": lambda rig, now: rig.breakers.open_by_hand(0, now, 100),
    "close by hand": lambda rig, now: rig.breakers.close_by_hand(0),
}
SAME = object()


def expected(state: str, event: str, when: str) -> tuple[Any, Any]:
    """What the event returns, and what the word becomes: (state, n, seconds from the event); ``SAME``: stays."""
    shut = state in ("open", "half-open", "by hand")
    healthy = {"long after": 0, "after": 3}.get(when, 3) if state == "ramp" else 0 if state == "closed" else 3
    if event == "admit":
        if shut:
            return (NO, SAME) if when == "before" else (PROBE, (HALF_OPEN, 3, 60.0))
        return YES, (CLOSED, 0, None) if state == "ramp" and when == "long after" else SAME
    if event == "open by hand":
        return 100.0, (BY_HAND, healthy, 100.0)
    if event == "close by hand":
        return None, (CLOSED, 0, None)
    if event == "released":
        return None, (OPEN, 3, 0.0) if state == "half-open" else SAME
    if event.startswith("failed") and not shut:
        n = healthy + 1  # the walk has put four failures in a row before it
        return True, (OPEN, n, 30.0 * n)
    if state == "half-open" and not event.endswith("no probe"):
        return {
            "failed": (True, (OPEN, 4, 120.0)),
            "neutral": (False, (OPEN, 3, 0.0)),
            "succeeded": (True, (CLOSED, 3, 10.0)),
        }[event]
    return False, SAME


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", STATES)
def test_every_step_of_the_machine(state: str, event: str, when: str) -> None:  # R58
    rig = Rig(new_table())
    now = NOW + TIMES[when]
    for _ in range(4):
        rig.table.record(0, SERVER, -1, -1, int(now * NANOS))
    before = STATES[state]
    rig.put(before)
    result, after = expected(state, event, when)
    # the ramp of the walk is nearly over before T: a draw of 0 is within any chance
    assert EVENTS[event](rig, now) == result
    if after is SAME:
        assert rig.table.breaker(0) == before
    else:
        found = rig.at(0, now)
        assert found[:2] == after[:2]
        assert (found[2] == after[2]) if after[2] is not None else unpack(rig.table.breaker(0))[2] == 0
    rig.table.close()


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("state", STATES)
def test_every_step_after_a_slow_answer(state: str, when: str) -> None:  # R58
    """The event that takes others to compare with: it opens what is closed, and nothing else moves."""
    rig = Rig(new_table(), BreakerSettings(latency_factor=5))
    now = NOW + TIMES[when]
    for row in POOL:
        for _ in range(50):
            rig.table.record(row, 0, -1, 50_000 if row else 5_000_000, int(now * NANOS))
    before = STATES[state]
    rig.put(before)
    shut = state in ("open", "half-open", "by hand")
    assert rig.breakers.slow(0, now, POOL) is not shut
    n = 1 if state == "closed" or when == "long after" else 4
    assert rig.table.breaker(0) == before if shut else rig.at(0, now) == (OPEN, n, 30.0 * n)
    rig.table.close()


@pytest.mark.parametrize("when", TIMES)
@pytest.mark.parametrize("state", STATES)
def test_what_it_says_of_itself(rig: Rig, state: str, when: str) -> None:
    rig.put(STATES[state])
    now = NOW + TIMES[when]
    shut = state in ("open", "half-open", "by hand")
    early = when == "before"
    name = "closed" if not shut else "open" if early and state != "half-open" else "half-open"
    assert rig.breakers.state(0, now) == name
    assert rig.breakers.remaining_s(0, now) == (1.0 if shut and early else 0.0)
    assert rig.table.available(0, int(now * NANOS)) is not (shut and early)


# ---- half-open -------------------------------------------------------------------------------------------------------


def test_five_hundred_at_the_moment_of_half_open_give_one_probe(table: Any) -> None:  # Q04
    one, other = Rig(table), Rig(table)
    one.trip()
    moment = NOW + 30
    assert {one.admit(now=moment - 0.002), other.admit(now=moment - 0.002)} == {NO}
    got = [(one, other)[i % 2].breakers.admit(0, moment + i * 1e-6) for i in range(500)]
    assert got.count(PROBE) == 1
    assert got.count(NO) == 499
    assert not table.available(0, int(moment * NANOS)), "whoever comes now does not even choose it"


def test_one_probe_over_processes(table: Any) -> None:  # Q04
    if "_pure" in type(table).__module__:
        pytest.skip("the pure table is for one process")
    rig = Rig(table)
    rig.trip()
    go_read, go_write = os.pipe()
    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            code = 99
            try:
                os.close(go_write)
                os.read(go_read, 1)  # until the parent closes its end
                code = sum(rig.breakers.admit(0, NOW + 30) is PROBE for _ in range(125))
            finally:
                os._exit(code)
        children.append(pid)
    os.close(go_read)
    os.close(go_write)
    assert sum(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children) == 1


def test_a_probe_that_is_never_heard_of_lapses(rig: Rig) -> None:
    rig.trip()
    assert rig.admit(now=NOW + 30) == PROBE
    assert rig.admit(now=NOW + 89.9) == NO
    assert [rig.admit(now=NOW + 90) for _ in range(3)] == [PROBE, NO, NO]
    assert rig.at()[1] == 1, "n is of ejections, not of probes"


def test_a_call_from_before_the_ejection_does_not_decide_for_the_probe(rig: Rig) -> None:
    rig.trip()
    assert not rig.succeed(now=NOW + 1, probe=False)
    assert not rig.fail(now=NOW + 1, probe=False)
    assert rig.admit(now=NOW + 30) == PROBE
    word = rig.table.breaker(0)
    assert not rig.succeed(now=NOW + 31, probe=False)
    assert not rig.fail(now=NOW + 31, probe=False)
    assert not rig.fail(now=NOW + 31, probe=False, failure=RATE)
    assert rig.table.breaker(0) == word
    assert rig.succeed(now=NOW + 32)


@pytest.mark.parametrize("failure", SILENT, ids=lambda f: f.label)
def test_a_probe_that_says_nothing_is_given_back(rig: Rig, failure: FailureClass) -> None:  # Q03
    rig.trip()
    assert rig.admit(now=NOW + 30) == PROBE
    assert not rig.fail(now=NOW + 31, failure=failure)
    assert rig.at()[1] == 1
    assert [rig.admit(now=NOW + 31) for _ in range(2)] == [PROBE, NO]
    rig.breakers.released(0, NOW + 32)  # nothing was sent
    assert rig.admit(now=NOW + 32) == PROBE


# ---- how long --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999999999])
def test_it_grows_to_the_cap_with_jitter(table: Any, draw: float) -> None:  # Q02, S-48
    rig = Rig(table, random=lambda: draw)
    rig.trip()
    now, lengths = NOW, []
    for _ in range(70):
        lengths.append(rig.breakers.remaining_s(0, now))
        now = round(now + lengths[-1], 3) + 1e-6  # past the millisecond, whatever floats make of it
        assert rig.admit(now=now) == PROBE
        assert rig.fail(now=now)
    for n, length in enumerate(lengths, 1):
        assert length == pytest.approx(min(30 * n, 300 / 1.1) * (1 + 0.1 * draw), abs=0.002)
        assert length <= 300.0
    assert rig.at()[1] == N_MAX


def test_longer_than_the_table_believes_is_cut(table: Any) -> None:
    rig = Rig(table, BreakerSettings(cooldown_s=1e9, cooldown_max_s=1e9, probe_s=1e9, ramp_s=1e9), lambda: 0.999999)
    rig.trip()
    assert 3000 < rig.breakers.remaining_s(0, NOW) <= LONGEST_S
    assert not table.available(0, int(NOW * NANOS))
    later = NOW + LONGEST_S
    assert rig.admit(now=later) == PROBE
    assert rig.admit(now=later) == NO
    assert rig.succeed(now=later)
    assert rig.at(now=later) == (CLOSED, 1, LONGEST_S)


@pytest.mark.parametrize(
    ("healthy_s", "n"), [(0, 3), (9, 3), (39.9, 3), (40, 2), (69.9, 2), (70, 1), (99.9, 1), (100, 0), (9999, 0)]
)
def test_n_falls_by_one_for_each_healthy_period(rig: Rig, healthy_s: float, n: int) -> None:  # S-48
    rig.put(pack(HALF_OPEN, 3, T))
    assert rig.succeed()
    now = NOW + healthy_s
    assert rig.breakers.ejections(0, now) == n
    rig.admit(now=now)
    assert rig.breakers.ejections(0, now) == n, "asking changes nothing"
    rig.trip(now=now)
    assert rig.breakers.remaining_s(0, now) == 30.0 * (n + 1)


def test_the_word_is_zero_again_when_nothing_is_left_to_remember(rig: Rig) -> None:
    rig.put(pack(HALF_OPEN, 3, T))
    rig.succeed()
    for after in (10, 40, 99.9):
        assert rig.admit(now=NOW + after) == YES
        assert rig.table.breaker(0)
    assert rig.admit(now=NOW + 100) == YES
    assert rig.table.breaker(0) == 0


# ---- the ramp --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "share"), [(0, 0.1), (2.5, 0.325), (5, 0.55), (7.5, 0.775), (9.99, 0.999), (10, 1.0)]
)
def test_it_comes_back_from_ten_percent_to_all(table: Any, after: float, share: float) -> None:  # R57
    draws = deque[float]()
    rig = Rig(table, random=lambda: draws.popleft())
    rig.put(pack(HALF_OPEN, 1, T))
    rig.succeed()
    grid = [(i + 0.5) / 1000 for i in range(1000)]
    draws.extend(grid)
    got = [rig.admit(now=NOW + after) for _ in grid]
    assert got.count(YES) / 1000 == pytest.approx(share, abs=0.001)
    assert PROBE not in got
    assert rig.breakers.state(0, NOW) == "closed"
    assert table.available(0, int(NOW * NANOS)), "the table calls it closed: the ramp is for admit to keep"


@pytest.mark.parametrize("behind_s", [0.001, 1.0, 60.0])
def test_a_caller_whose_time_is_a_little_old_keeps_the_ramp(table: Any, behind_s: float) -> None:
    draws = deque([0.099, 0.101])
    rig = Rig(table, random=lambda: draws.popleft())
    rig.put(pack(HALF_OPEN, 1, T))
    rig.succeed()
    assert [rig.admit(now=NOW - behind_s) for _ in range(2)] == [YES, NO]
    assert rig.at()[:2] == (CLOSED, 1)


def test_no_ramp_if_it_is_turned_off(table: Any) -> None:
    rig = Rig(table, BreakerSettings(ramp_s=0), lambda: 0.999)
    rig.put(pack(HALF_OPEN, 1, T))
    rig.succeed()
    assert rig.admit() == YES
    rig.put(pack(CLOSED, 1, T + 5000))  # of a worker that still has another configuration
    assert rig.admit() == YES


def test_five_failures_in_the_ramp_eject_again_and_longer(rig: Rig) -> None:
    rig.trip()
    assert rig.admit(now=NOW + 30) == PROBE
    assert rig.succeed(now=NOW + 30)
    rig.trip(now=NOW + 33)
    assert rig.at(now=NOW + 33) == (OPEN, 2, 60.0)


# ---- slow ones -------------------------------------------------------------------------------------------------------

SLOW = BreakerSettings(latency_factor=5)


def answers(rig: Rig, row: int, ttft_s: float, times: int = 20, now: float = NOW) -> None:
    for i in range(times):
        rig.table.record(row, 0, -1, int(ttft_s * 1e6), int((now - 20 + i) * NANOS))


@pytest.mark.parametrize(
    ("mine", "theirs", "ejected"),
    [
        (5.0, [0.05, 0.05, 0.05], True),
        (1.3, [0.2, 0.2, 0.2, 9.0], True),
        (0.9, [0.05, 0.05, 0.05], False),  # not a second
        (4.0, [1.0, 1.0, 1.0], False),  # not five times
        (6.0, [1.0, 1.0, 1.0], True),
        (5.0, [0.05, 0.05], False),  # too few to compare with
        (5.0, [], False),
        (5.0, [0.05, 0.05, 2.0, 2.0, 2.0], False),  # the median counts, not the fastest
    ],
    ids=str,
)
def test_far_slower_than_its_peers(table: Any, mine: float, theirs: list[float], ejected: bool) -> None:
    rig = Rig(table, SLOW)
    answers(rig, 0, mine)
    for row, ttft in enumerate(theirs, 1):
        answers(rig, row, ttft)
    assert not Rig(table).breakers.slow(0, NOW, POOL), "off by default"
    assert rig.breakers.slow(0, NOW, POOL) is ejected
    assert rig.breakers.state(0, NOW) == ("open" if ejected else "closed")
    assert not rig.breakers.slow(0, NOW, POOL), "it is out already"
    assert not any(rig.breakers.slow(row, NOW, POOL) for row in POOL[1:4]) or mine < 5


def test_one_slow_answer_is_no_reason(table: Any) -> None:
    """The average follows peaks (state.table opens it so)."""
    rig = Rig(table, SLOW)
    for row in POOL:
        answers(rig, row, 0.05)
    answers(rig, 0, 30.0, times=1, now=NOW + 20)
    assert table.ewma(0)[1] == 30e6
    assert not rig.breakers.slow(0, NOW, POOL)
    fresh = Rig(new_table(), SLOW)
    for row in POOL[1:]:
        answers(fresh, row, 0.05)
    answers(fresh, 0, 30.0, times=9)
    assert not fresh.breakers.slow(0, NOW, POOL)
    answers(fresh, 0, 30.0, times=1, now=NOW + 20)
    assert fresh.breakers.slow(0, NOW, POOL)


@pytest.mark.parametrize(("theirs", "after_s"), [(0.05, 30), (0.5, 14)])
def test_one_that_was_slow_until_just_now_is_no_longer(table: Any, theirs: float, after_s: float) -> None:
    """The median of the last minute still remembers what led to the ejection; the average does not."""
    rig = Rig(table, SLOW)
    for row in POOL[1:]:
        answers(rig, row, theirs)
    answers(rig, 0, 6.0)
    later = NOW + after_s
    rig.table.record(0, 0, -1, 50_000, int(later * NANOS))
    assert table.quantile(0, 0.5, int(later * NANOS), True) > 5e6
    assert not rig.breakers.slow(0, later, POOL)


def test_slow_ones_are_ejected_within_the_cap(table: Any) -> None:
    rig = Rig(table, BreakerSettings(latency_factor=5, max_ejected=0.1))
    for row in POOL:
        answers(rig, row, 6.0 if row < 2 else 0.05)
    assert [rig.breakers.slow(row, NOW, POOL) for row in POOL] == [True, False, False, False, False]
    assert rig.at(0) == (OPEN, 1, 30.0)


# ---- by hand ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked", "given_s"), [(60, 60.0), (-1, 0.0), (1e9, LONGEST_S), (float("inf"), LONGEST_S)])
def test_opened_by_hand(rig: Rig, asked: float, given_s: float) -> None:
    assert rig.breakers.open_by_hand(0, NOW, asked) == given_s
    assert rig.breakers.remaining_s(0, NOW) == given_s
    if given_s:
        assert rig.breakers.state(0, NOW) == "open"
        for event in (rig.fail, rig.succeed, rig.admit):
            assert not event(now=NOW + given_s - 0.01)
    assert [rig.admit(now=NOW + given_s) for _ in range(2)] == [PROBE, NO]
    assert rig.succeed(now=NOW + given_s)
    assert rig.at(now=NOW + given_s) == (CLOSED, 0, 10.0)


def test_by_hand_knows_no_cap_can_be_renewed_and_leaves_room_to_none(rig: Rig) -> None:
    for row in POOL:
        rig.breakers.open_by_hand(row, NOW, 3000)
    assert [rig.admit(row) for row in POOL] == [NO] * 5
    rig.breakers.open_by_hand(0, NOW + 2000, 3000)
    assert rig.breakers.remaining_s(0, NOW + 2000) == 3000
    rig.breakers.close_by_hand(1)
    assert not any(rig.fail(1) for _ in range(20)), "it is the last one"


def test_by_hand_wins_over_a_race(table: Any) -> None:
    other = Rig(table)
    rig = Rig(Meanwhile(table, other.trip))
    assert rig.breakers.open_by_hand(0, NOW, 100) == 100
    assert other.at() == (BY_HAND, 1, 100.0)
    closing = Rig(Meanwhile(table, lambda: other.put(pack(OPEN, 7, T + 9))))
    closing.breakers.close_by_hand(0)
    assert table.breaker(0) == 0


def test_closed_by_hand_the_row_of_failures_goes_on(rig: Rig) -> None:
    rig.trip()
    rig.breakers.close_by_hand(0)
    assert rig.table.breaker(0) == 0
    assert rig.fail()
    assert rig.at()[1] == 1


# ---- words that were not written by us -------------------------------------------------------------------------------


@given(
    word=st.integers(0, 2**64 - 1)
    | st.builds(pack, st.integers(0, 3), st.integers(0, 63), st.integers(T - 2 * HOUR_MS, T + 2 * HOUR_MS)),
    now=st.floats(0, 1e9) | st.just(NOW),
    draw=st.floats(0, 1, exclude_max=True),
)
@settings(max_examples=300, deadline=None)
def test_any_word_is_survived_and_read_as_the_table_reads_it(word: int, now: float, draw: float) -> None:
    for event in EVENTS.values():
        rig = Rig(TABLE, random=lambda: draw)
        rig.put(word)
        available = TABLE.available(0, int(now * NANOS))
        assert is_shut(word, int(now * NANOS) // 1_000_000) is not available
        assert (rig.breakers.remaining_s(0, now) > 0) is not available
        assert rig.breakers.state(0, now) in ("closed", "open", "half-open")
        event(rig, now)
        after = TABLE.breaker(0)
        if after != word:
            assert valid(after, now)
    rig.put(word)
    admitted = rig.breakers.admit(0, now)
    if word & 3:
        assert admitted is (PROBE if available else NO), "no target is lost for good"
    rig.put(0)


TABLE = new_table()


def valid(word: int, now: float) -> bool:
    state, n, ms = unpack(word)
    return (
        0 <= n <= N_MAX and 0 <= ms <= now * 1000 + LONGEST_S * 1000 + 1 and (state == CLOSED or ms >= now * 1000 - 1)
    )


def test_a_time_that_nobody_wrote_is_forgotten_and_takes_no_room(rig: Rig) -> None:
    rig.put(pack(CLOSED, 5, T + HOUR_MS + 1))
    assert rig.admit() == YES
    assert rig.table.breaker(0) == 0
    for row in (1, 2, 3):
        rig.put(pack(OPEN, 5, T + HOUR_MS + 1), row)
    rig.trip(0)


@pytest.mark.parametrize("state", [OPEN, HALF_OPEN, BY_HAND])
def test_a_millisecond_is_over_when_the_table_says_so(rig: Rig, state: int) -> None:
    rig.put(pack(state, 1, T + 1))
    now = NOW + 0.0009
    assert not rig.table.available(0, int(now * NANOS))
    assert rig.admit(now=now) == NO
    assert rig.breakers.remaining_s(0, now) == 0.001


# ---- whatever happens ------------------------------------------------------------------------------------------------

ROWS = st.integers(0, 3)


class Machine(RuleBasedStateMachine):
    """Two workers, a pool of four, any order of events and times."""

    @initialize(cap=st.sampled_from([0.0, 0.25, 0.5, 1.0]), seed=st.integers(0, 9))
    def start(self, cap: float, seed: int) -> None:
        self.table = new_table(MODULES[seed % len(MODULES)])
        options = BreakerSettings(max_ejected=cap, latency_factor=3)
        self.workers = [Rig(self.table, options, Random(seed + i).random) for i in range(2)]
        self.cap = min(3, max(1, int(4 * cap)))
        self.now = 1000.0
        self.probing: dict[int, float] = {}
        """Rows with a probe out, and when it lapses."""
        self.by_hand: set[int] = set()

    def teardown(self) -> None:
        if hasattr(self, "table"):
            self.table.close()

    def words(self) -> list[int]:
        return [self.table.breaker(row) for row in range(4)]

    def opened(self, row: int, before: list[int], did: bool) -> None:
        """What every ejection must keep."""
        after = self.words()
        assert [a for i, a in enumerate(after) if i != row] == [b for i, b in enumerate(before) if i != row]
        was, n, _ = unpack(before[row])
        if not did:
            assert unpack(after[row])[0] != OPEN or was in (OPEN, HALF_OPEN)
            return
        state, n_after, until = unpack(after[row])
        assert (state, was in (CLOSED, HALF_OPEN)) == (OPEN, True)
        assert n_after <= n + 1
        length = until / 1000 - self.now
        assert 29.99 <= length <= 300.01
        if was == CLOSED:
            assert sum(w & 3 != 0 for w in after) <= self.cap
            assert any(self.table.available(other, int(self.now * NANOS)) for other in range(4))

    @rule(seconds=st.sampled_from([0.0, 0.001, 1.0, 9.9, 30.0, 33.0, 61.0, 299.0, 4000.0]))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(row=ROWS, worker=st.integers(0, 1))
    def admit(self, row: int, worker: int) -> None:
        rig, before = self.workers[worker], self.words()
        available = self.table.available(row, int(self.now * NANOS))
        got = rig.breakers.admit(row, self.now)
        if before[row] == 0:
            assert got == YES
        if before[row] & 3:
            assert got == (PROBE if available else NO)
        else:
            assert got != PROBE
        if got == PROBE:
            assert self.probing.get(row, 0.0) <= self.now, "one at a time"
            self.probing[row] = self.now + 59.99

    @rule(row=ROWS, worker=st.integers(0, 1), failure=st.sampled_from(FailureClass), times=st.integers(1, 6))
    def fails(self, row: int, worker: int, failure: FailureClass, times: int) -> None:
        for _ in range(times):
            before = self.words()
            probe = self.probing.pop(row, None) is not None
            did = self.workers[worker].fail(row, self.now, failure, (0, 1, 2, 3), probe)
            assert not did or RETRY[failure].counts
            self.opened(row, before, did)

    @rule(row=ROWS, worker=st.integers(0, 1), ttft_s=st.sampled_from([0.01, 0.1, 5.0]), times=st.integers(1, 12))
    def succeeds(self, row: int, worker: int, ttft_s: float, times: int) -> None:
        for _ in range(times):
            before = self.words()
            rig, now_ns = self.workers[worker], int(self.now * NANOS)
            probe = self.probing.pop(row, None) is not None
            rig.table.record(row, 0, 10, int(ttft_s * 1e6), now_ns)
            closed = rig.breakers.succeeded(row, self.now, probe=probe)
            assert closed is (probe and before[row] & 3 == HALF_OPEN)
            if closed:
                assert self.words()[row] & 3 == CLOSED
            before = self.words()
            self.opened(row, before, rig.breakers.slow(row, self.now, (0, 1, 2, 3)))

    @rule(row=ROWS, seconds=st.floats(0, 5000), shut=st.booleans())
    def admin(self, row: int, seconds: float, shut: bool) -> None:
        if shut:
            self.workers[0].breakers.open_by_hand(row, self.now, seconds)
        else:
            self.workers[1].breakers.close_by_hand(row)
        self.probing.pop(row, None)

    @invariant()
    def words_are_sound(self) -> None:
        if not hasattr(self, "table"):
            return
        for row, word in enumerate(self.words()):
            state, n, ms = unpack(word)
            assert n <= N_MAX
            assert ms <= self.now * 1000 + LONGEST_S * 1000 + 1
            one, other = (w.breakers for w in self.workers)
            assert one.state(row, self.now) == other.state(row, self.now)
            left = one.remaining_s(row, self.now)
            assert (left > 0) is not self.table.available(row, int(self.now * NANOS))
            assert one.remaining_s(row, self.now + 1) == pytest.approx(max(0.0, left - 1), abs=0.0021)
            assert 0 <= one.ejections(row, self.now + 100) <= one.ejections(row, self.now) <= n
            assert state or one.state(row, self.now) == "closed"


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)


# ---- whole stories ---------------------------------------------------------------------------------------------------

SPEC = ProviderSpec("p", "openai", "http://x", Secret("k"))


class Story:
    """A pool in front of stubs: choose, admit, fail over; answers take no time. No rests, so the breaker is alone."""

    def __init__(self, table: Any, size: int, ill: Callable[[int, float], bool]) -> None:
        self.workers = [Rig(table, random=Random(i).random) for i in range(2)]
        self.table = table
        self.pool = Pool(tuple(Target(row, SPEC, None, 1) for row in range(size)))
        self.peers = tuple(range(size))
        self.ill = ill
        self.calls: dict[int, list[float]] = {row: [] for row in self.peers}
        self.opened: list[tuple[float, float]] = []

    def request(self, now: float, worker: int = 0) -> bool:
        rig, tried = self.workers[worker], set(NOTHING)
        for _ in range(3):
            passed = set(tried)
            while True:
                target = self.pool.choose(passed, self.table.available, now)
                if target is None:
                    return False
                admitted = rig.admit(target.row, now)
                if admitted or len(passed) + 1 == len(self.peers):
                    break
                passed.add(target.row)
            row = target.row
            tried.add(row)
            self.calls[row].append(now)
            if not self.ill(row, now):
                rig.succeed(row, now, probe=admitted is PROBE)
                return True
            if rig.fail(row, now, peers=self.peers, probe=admitted is PROBE):
                self.opened.append((now, rig.breakers.remaining_s(row, now)))
        return False


def test_one_of_five_answers_500_always(table: Any) -> None:  # Q02, R57
    repaired = 60.0
    story = Story(table, 5, lambda row, now: row == 2 and now < NOW + repaired)
    lost = 0
    for i in range(140 * 200):
        now = NOW + i / 200
        ok = story.request(now, i % 2)
        lost += not ok
    assert lost == 0, "the others took over"
    sick = [t - NOW for t in story.calls[2] if t < NOW + repaired]
    assert len([t for t in sick if t < 1]) == 5
    for period in range(2):
        probes = [t for t in sick if t >= 1 and period * 30 <= t < period * 30 + 30]
        assert len(probes) <= 1
    back = [t - NOW for t in story.calls[2] if t >= NOW + repaired]
    assert back[0] - repaired <= 40
    assert len(back) > 200
    ramp = [t - back[0] for t in back]
    first, last = sum(t < 2 for t in ramp), sum(8 <= t < 10 for t in ramp)
    assert 0.1 * 80 * 0.4 < first < 0.5 * 80
    assert last > 0.7 * 80
    assert sum(20 <= t < 30 for t in ramp) == pytest.approx(400, abs=5)


def test_a_flapping_one_is_out_longer_each_time(table: Any) -> None:  # S-48
    def ill(row: int, now: float) -> bool:
        return row == 0 and now - NOW < 3000 and (now - NOW) % 20 >= 10

    story = Story(table, 3, ill)
    for i in range(3400 * 20):
        story.request(NOW + i / 20)
    at = [t for t, _ in story.opened]
    lengths = [length for _, length in story.opened]
    assert len(lengths) >= 10
    for n, length in enumerate(lengths, 1):
        floor = min(30.0 * n, 300 / 1.1)
        assert floor - 0.001 <= length <= min(floor * 1.1, 300.0)
    assert all(b - a >= 30 for a, b in pairwise(at)), "never faster than the base"
    healed = unpack(table.breaker(0))[1]
    assert healed >= 1
    end = NOW + 3400
    later = end + healed * 30 + 1
    assert story.workers[0].breakers.ejections(0, later) == 0
    assert story.workers[0].admit(0, later) == YES
    assert table.breaker(0) == 0
    story.workers[0].trip(0, later, (0, 1, 2))
    assert 30 <= story.workers[0].breakers.remaining_s(0, later) <= 33, "and begins anew after health"


def test_a_pool_that_fails_as_a_whole_is_used_all_the_same(table: Any) -> None:  # Q02: below half, use all
    story = Story(table, 4, lambda row, now: now < NOW + 20)
    for i in range(20 * 50):
        assert not story.request(NOW + i / 50)
    assert sum(table.breaker(row) & 3 != 0 for row in range(4)) == 2
    assert all(story.request(NOW + 20 + i / 50) for i in range(100)), "and nobody waits when it is back"
