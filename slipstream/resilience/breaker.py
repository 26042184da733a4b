"""Circuit breakers: a target that keeps failing gets no traffic for a while, then one request to prove itself.

A breaker is one word per target in the shared table, so all workers see one machine (bits as ``table.pyi`` has them):

    bits 0-1  0 closed, 1 open, 2 half-open, 3 opened by hand
    bits 2-7  n: how many times it was ejected in a row, 0 to 63
    bits 8-63 a time, ms of the monotonic clock. Open, by hand: shut until then. Half-open: the probe lapses then.
              Closed: the recovery ramp ends (ended) then, and n decays from then on; 0 if there was none.

                   5 in a row, or half of 20 calls,
                   or far slower than its peers
        closed -------------------------------------> open  <---- by hand
          ^                                           |  ^
          | probe succeeded                time over, |  | probe failed: n + 1
          | (ramp)                     one caller wins v  | probe said nothing: n, at once
          +---------------------------------------- half-open --- lapsed: the next caller probes

* Trips (reliability.md Q02; contracts E "breaker window 20 calls"; share: resilience4j's 50 %): ``consecutive`` errors
  without a success, or an error share >= ``error_share`` over the last 60 s with at least ``window_calls`` calls, none
  of them from before it last closed. What counts is ``failures.RETRY[...].counts``: no 4xx, 429 or 529 (Q03).
* Ejection (Q02, Envoy's ``base x n``, not a doubling): ``min(cooldown_s * n, cooldown_max_s / 1.1) * (1 + 0.1 * U)``,
  U uniform in [0, 1): 30 to 33 s, 60 to 66 s, ... and 273 to 300 s. Never shorter than the base, never longer than
  the cap, and spread at the cap too.
* n falls by one for each ``cooldown_s`` that the target stays closed after the ramp (Envoy: for each healthy sweep), so
  one that flaps is out longer each time (S-48). It is reckoned when it is asked for; the word is set to 0 when nothing
  is left to remember, and a word of 0 is the whole cost of a healthy target.
* Cap (Q02): at most ``max(1, 50 %)`` of a pool are out, and one that neither rests nor is out always remains: the last
  is never ejected, however ill. Two workers that eject at one instant see each other afterwards and take it back.
* Half-open (Q04, R58): the compare-and-swap has one winner over all processes. The probe is a request of a client; if
  its worker is killed, or it takes longer than ``probe_s``, the next one may probe.
* Ramp (R57): after the probe 10 % of its share, rising linearly to 100 % over ``ramp_s``.
* By hand: at most 59 minutes at a time (``LONGEST_S``), since the table does not believe a time more than an hour
  ahead. Who wants longer calls ``open_by_hand`` again before it is over. Afterwards it is half-open like any other.

The rule that must not be broken: the word changes by ``cas_breaker`` from the very word that was decided on. A lost
race means that another worker has just decided, and nothing is done; only what a person asked for is tried again.

Decisions are pure: ``now_s`` is an argument, seconds of the monotonic clock of all workers, and so is ``random``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import ceil
from typing import Final

from .._fast import Table
from ..types import NANOS, FailureClass
from .failures import RETRY

CLOSED: Final = 0
OPEN: Final = 1
HALF_OPEN: Final = 2
BY_HAND: Final = 3
_STATE: Final = 3
N_MAX: Final = 63
HOUR_MS: Final = 3_600_000
"""A shut word with a time further ahead was not written by us; ``Table.available`` ignores it, and so do we."""
LONGEST_S: Final = 3540.0
"""Of any time we write: below the hour by more than the clocks of two callers can be apart."""
SLICE_S: Final = 5
"""Of ``Table.errors``: it cannot look at less."""
RAMP_FROM: Final = 0.1
LATENCY_PEERS: Final = 3
"""Others with samples; the median of fewer is chance."""
LATENCY_SAMPLES: Final = 10
NS_PER_MS: Final = 1_000_000


class Admission(IntEnum):
    """Whether a chosen target takes this request. ``NO`` is false, the others are true."""

    NO = 0
    YES = 1
    PROBE = 2
    """Yes, and the target's fate hangs on it: whoever gets this must report how it ended."""


NO, YES, PROBE = Admission


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """``consecutive``, ``error_share`` and ``latency_factor`` turn their rule off with 0. ``latency_factor``: ejected
    when the time to first token is so many times the peers' median and above ``latency_min_s`` (5 is sensible)."""

    consecutive: int = 5
    error_share: float = 0.5
    window_calls: int = 20
    window_s: int = 60
    cooldown_s: float = 30.0
    cooldown_max_s: float = 300.0
    jitter: float = 0.1
    max_ejected: float = 0.5
    ramp_s: float = 10.0
    probe_s: float = 60.0
    """As long as a stream may take to its first byte (Q18)."""
    latency_factor: float = 0.0
    latency_min_s: float = 1.0


def pack(state: int, n: int, at_ms: int) -> int:
    return at_ms << 8 | min(n, N_MAX) << 2 | state


def unpack(word: int) -> tuple[int, int, int]:
    """(state, n, time in ms)."""
    return word & _STATE, word >> 2 & N_MAX, word >> 8


def is_shut(word: int, now_ms: int) -> bool:
    """What ``Table.available`` reads in the word: open or half-open, and its time has not come."""
    return bool(word & _STATE) and 0 < (word >> 8) - now_ms <= HOUR_MS


class Breakers:
    """The breakers of all rows as one worker sees them. Several objects over one table are one machine.

    The caller reads ``table.breaker(row)`` first: while it is 0, only ``failed`` (and ``slow``) need be called.
    ``random`` gives floats in [0, 1).
    """

    __slots__ = ("_base_ms", "_probe_ms", "_ramp_ms", "_random", "_settings", "_table", "_window_ms")

    def __init__(self, table: Table, settings: BreakerSettings, random: Callable[[], float]) -> None:
        self._table = table
        self._settings = settings
        self._random = random
        self._base_ms = max(1, _ms(settings.cooldown_s))
        self._ramp_ms = _ms(settings.ramp_s)
        self._probe_ms = max(1, _ms(settings.probe_s))
        self._window_ms = settings.window_s * 1000

    # ---- before an attempt

    def admit(self, row: int, now_s: float) -> Admission:
        """Ask after ``row`` was chosen, when its word is not 0. After ``NO`` choose another; when none is left, the
        request goes to this one all the same (a guess about health turns nobody away), as no probe.

        ``PROBE`` is answered with ``succeeded``, ``failed``, or ``released`` if nothing was sent.
        """
        word = self._table.breaker(row)
        now_ms = _now_ms(now_s)
        if not word & _STATE:
            return self._admit_closed(row, word, now_ms)
        if is_shut(word, now_ms):
            return NO
        probing = pack(HALF_OPEN, unpack(word)[1], now_ms + self._probe_ms)
        return PROBE if self._table.cas_breaker(row, word, probing) else NO

    def _admit_closed(self, row: int, word: int, now_ms: int) -> Admission:
        _, n, ramp_ends = unpack(word)
        left = ramp_ends - now_ms
        if 0 < left <= HOUR_MS:
            # the caller's time may be a little before that of who closed it: then the ramp has just begun
            done = max(0.0, 1.0 - left / self._ramp_ms) if self._ramp_ms else 1.0
            return YES if self._random() < RAMP_FROM + (1.0 - RAMP_FROM) * done else NO
        if word and (left > 0 or -left >= max(n * self._base_ms, self._window_ms)):
            self._table.cas_breaker(row, word, 0)  # nothing left to remember
        return YES

    # ---- after an attempt

    def failed(
        self, row: int, failure: FailureClass, now_s: float, peers: Sequence[int], *, probe: bool = True
    ) -> bool:
        """Call it after ``Table.record``. Whether the breaker opened now. ``peers``: all rows of the pool.

        ``probe``: the attempt was admitted as one. Give it: a call that began before the ejection must not decide for
        the probe. A probe that says nothing about the target (a 400, a 429, a client that left) is given back.
        """
        word = self._table.breaker(row)
        counts = RETRY[failure].counts
        if not word & _STATE:
            now_ns = int(now_s * NANOS)
            return counts and self._is_ill(row, word, now_ns) and self._eject(row, word, now_ns, peers)
        if word & _STATE != HALF_OPEN or not probe:
            return False
        if not counts:
            self._release(row, word, now_s)
            return False
        # it was out already: no need to ask for room
        return self._table.cas_breaker(row, word, self._ejected(unpack(word)[1] + 1, _now_ms(now_s)))

    def succeeded(self, row: int, now_s: float, *, probe: bool = True) -> bool:
        """Call it after ``Table.record`` when the word is not 0. Whether the breaker closed now; ``probe`` as above."""
        word = self._table.breaker(row)
        if word & _STATE != HALF_OPEN or not probe:
            return False
        return self._table.cas_breaker(row, word, pack(CLOSED, unpack(word)[1], _now_ms(now_s) + self._ramp_ms))

    def released(self, row: int, now_s: float) -> None:
        """The probe was not sent, or has shown nothing: the next caller may probe."""
        word = self._table.breaker(row)
        if word & _STATE == HALF_OPEN:
            self._release(row, word, now_s)

    def slow(self, row: int, now_s: float, peers: Sequence[int]) -> bool:
        """Call it after a success was recorded, if ``latency_factor`` is set. Whether the breaker opened now.

        The average must be above the limit, and so must the median of the last minute with ``LATENCY_SAMPLES``: the
        table's average may follow peaks (``peak``), and one slow answer is no reason.
        """
        settings, table = self._settings, self._table
        if settings.latency_factor <= 0:
            return False
        word = table.breaker(row)
        if word & _STATE:
            return False
        mine, limit = table.ewma(row)[1], settings.latency_min_s * 1e6
        if mine <= limit:
            return False
        theirs = sorted(us for other in set(peers) - {row} if (us := table.ewma(other)[1]) > 0)
        if len(theirs) < LATENCY_PEERS:
            return False
        limit = max(limit, settings.latency_factor * theirs[len(theirs) // 2])
        now_ns = int(now_s * NANOS)
        if mine <= limit or table.samples(row, now_ns, True) < LATENCY_SAMPLES:
            return False
        if table.quantile(row, 0.5, now_ns, True) <= limit:
            return False
        return self._eject(row, word, now_ns, peers)

    def _release(self, row: int, word: int, now_s: float) -> None:
        self._table.cas_breaker(row, word, pack(OPEN, unpack(word)[1], _now_ms(now_s)))

    def _is_ill(self, row: int, word: int, now_ns: int) -> bool:
        settings = self._settings
        if 0 < settings.consecutive <= self._table.consecutive(row):
            return True
        if settings.error_share <= 0:
            return False
        window_s = settings.window_s
        if word:  # what happened before it closed was paid for
            closed_ms = (word >> 8) - self._ramp_ms
            window_s = min(window_s, (now_ns // NS_PER_MS - closed_ms) // 1000)
        if window_s < SLICE_S:
            return False
        calls, errors = self._table.errors(row, window_s, now_ns)
        return calls >= max(1, settings.window_calls) and errors >= settings.error_share * calls

    def _eject(self, row: int, word: int, now_ns: int, peers: Sequence[int]) -> bool:
        others = set(peers) - {row}
        if not self._has_room(others, now_ns):
            return False
        now_ms = now_ns // NS_PER_MS
        out = self._ejected(self._decayed(word, now_ms) + 1, now_ms)
        if not self._table.cas_breaker(row, word, out):
            return False
        if self._has_room(others, now_ns):
            return True
        self._table.cas_breaker(row, out, word)  # another worker ejected one of the others meanwhile
        return False

    def _has_room(self, others: Collection[int], now_ns: int) -> bool:
        """Whether one more may be out beside those of ``others`` that are out already."""
        table, now_ms, out, remains = self._table, now_ns // NS_PER_MS, 0, False
        for other in others:
            word = table.breaker(other)
            if word & _STATE and (word >> 8) - now_ms <= HOUR_MS:
                out += 1  # also when its time has come: it has not proved itself yet
            elif table.available(other, now_ns):
                remains = True
        return remains and out < max(1, int((len(others) + 1) * self._settings.max_ejected + 1e-9))

    def _ejected(self, n: int, now_ms: int) -> int:
        settings = self._settings
        longest = min(settings.cooldown_max_s, LONGEST_S) / (1.0 + settings.jitter)
        seconds = min(settings.cooldown_s * n, longest) * (1.0 + settings.jitter * self._random())
        return pack(OPEN, n, now_ms + ceil(seconds * 1000))

    def _decayed(self, word: int, now_ms: int) -> int:
        state, n, since = unpack(word)
        if state != CLOSED:
            return n
        return max(0, n - max(0, now_ms - since) // self._base_ms)

    # ---- people

    def open_by_hand(self, row: int, now_s: float, seconds: float) -> float:
        """Nothing goes to ``row`` for so long, whatever the cap says; for how many seconds really (``LONGEST_S``)."""
        seconds = min(max(0.0, seconds), LONGEST_S)
        now_ms = _now_ms(now_s)
        while True:
            word = self._table.breaker(row)
            shut = pack(BY_HAND, self._decayed(word, now_ms), now_ms + ceil(seconds * 1000))
            if self._table.cas_breaker(row, word, shut):
                return seconds

    def close_by_hand(self, row: int) -> None:
        """Closed at once, without a ramp and without n. What was recorded stays: unless a success comes between, the
        next failure opens it again."""
        while word := self._table.breaker(row):
            if self._table.cas_breaker(row, word, 0):
                return

    def state(self, row: int, now_s: float) -> str:
        """``half-open`` as soon as the next request may probe, not only when one does."""
        word = self._table.breaker(row)
        if not word & _STATE:
            return "closed"
        return "open" if word & _STATE != HALF_OPEN and is_shut(word, _now_ms(now_s)) else "half-open"

    def remaining_s(self, row: int, now_s: float) -> float:
        """Seconds until a request may try ``row`` (R52), 0 if it may now."""
        word, now_ms = self._table.breaker(row), _now_ms(now_s)
        return ((word >> 8) - now_ms) / 1000 if is_shut(word, now_ms) else 0.0

    def ejections(self, row: int, now_s: float) -> int:
        """n: how often in a row it was ejected, less what has decayed."""
        return self._decayed(self._table.breaker(row), _now_ms(now_s))


def _now_ms(now_s: float) -> int:
    """As the table rounds it, so that both say the same of the same moment."""
    return int(now_s * NANOS) // NS_PER_MS


def _ms(seconds: float) -> int:
    return ceil(min(max(0.0, seconds), LONGEST_S) * 1000)
