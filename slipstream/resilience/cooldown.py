"""Targets that just failed rest for a moment, so that the next requests do not find out again.

A failure that says something about the target (not about the request) makes it rest: as long as the provider asked
(``Retry-After``), else 1 s doubling to 60 s with each failure in a row, less up to a tenth by chance, so that targets
that failed together do not come back together (Q11). One success ends it. A pool whose targets all
rest is used all the same: a guess about health never turns a request away.

When a rest ends stands in the shared table, so all workers keep it. Times are seconds of the machine's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Callable

from .._fast import Table
from ..types import NANOS, FailureClass
from .failures import RETRY

BASE_S = 1.0
"""First rest (reliability.md Q11: 1 s doubling)."""
MAX_S = 60.0
JITTER = 0.1
"""Share of a rest that is random, downwards: it is never longer than it is said to be."""
ILL_S = 3.0
ILL_RESTS = 2
KEY_S = 300.0
"""Rest of a target whose key was refused or is spent: nothing but an operator changes that (S-49)."""
_HARD = frozenset({FailureClass.RATE_LIMITED, FailureClass.OVERLOADED})
"""Told by the lowest bit of the time: an odd one (1 ns early) is hard."""
_OF_THE_KEY = frozenset({FailureClass.AUTH, FailureClass.QUOTA})


class Cooldowns:
    """Rests by row of the shared table. How often a target failed in a row is known to this process only."""

    __slots__ = ("_failures", "_random", "_since", "_table")

    def __init__(self, table: Table, random: Callable[[], float] = float) -> None:
        self._table = table
        self._random = random
        """Numbers from 0 to 1, 1 excluded."""
        self._failures: dict[int, int] = {}
        self._since: dict[int, float] = {}

    def resting(self, row: int, now: float) -> bool:
        return not self._table.available(row, int(now * NANOS))

    def remaining_s(self, row: int, now: float) -> float:
        """Seconds until ``row`` may be used again, 0 if it may now."""
        until = self._table.cooldown(row)
        return max(0.0, (until + (until & 1)) / NANOS - now)

    def hard(self, row: int, now: float) -> bool:
        """Whether ``row`` rests because it told us to: it gets no traffic, whoever else is left (Q11)."""
        until = self._table.cooldown(row)
        return bool(until & 1) and until > int(now * NANOS)

    def succeeded(self, row: int) -> None:
        if self._table.cooldown(row):
            self._table.clear_cooldown(row)
        if self._failures:
            self._failures.pop(row, None)
            self._since.pop(row, None)

    def failed(self, row: int, failure: FailureClass, now: float, retry_after_s: float | None) -> None:
        if not RETRY[failure].rests:
            return
        if row not in self._since or self._table.consecutive(row) == 1:  # another worker had an answer meanwhile
            self._since[row] = now
        count = self._failures.get(row, 0)
        if self.resting(row, now):
            count = max(0, count - 1)  # what was in flight already says nothing new
        else:
            self._failures[row] = count + 1
        if retry_after_s is None and failure in _OF_THE_KEY:
            rest = KEY_S
        elif retry_after_s is None:
            rest = min(MAX_S, BASE_S * 2 ** min(count, 10)) * (1.0 - JITTER * self._random())
        else:
            rest = retry_after_s
            self._table.clear_cooldown(row)  # the provider's latest word counts, also when it is a shorter one
        until = int((now + rest) * NANOS) & ~1
        self._table.extend_cooldown(row, max(0, until - 1) if failure in _HARD else until)

    def ill(self, row: int, now: float) -> bool:
        """Whether ``row`` does not only stumble: it has failed for ``ILL_S`` without a success, or after each rest."""
        return now - self._since.get(row, now) >= ILL_S or self._failures.get(row, 0) > ILL_RESTS

    def failures_in_a_row(self, row: int) -> int:
        return self._failures.get(row, 0)
