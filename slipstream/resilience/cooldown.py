"""Targets that just failed rest for a moment, so that the next requests do not find out again.

A failure that says something about the target (not about the request) makes it rest: as long as the provider asked
(``Retry-After``), else 1 s doubling to 30 s with each failure in a row. One success ends it. A pool whose targets all
rest is used all the same: a guess about health never turns a request away. Time is an argument.
"""

from __future__ import annotations

from ..types import FailureClass

BASE_S = 1.0
"""First rest (reliability.md Q11: 1 s doubling)."""
MAX_S = 30.0
_TELLING = frozenset(
    {
        FailureClass.CONNECT,
        FailureClass.TIMEOUT,
        FailureClass.TRANSPORT,
        FailureClass.RATE_LIMITED,
        FailureClass.OVERLOADED,
        FailureClass.SERVER,
        FailureClass.MALFORMED,
    }
)
RETRYABLE = _TELLING
"""Failures after which another target may be tried, as long as nothing reached the client (R16, R54)."""


class Cooldowns:
    """Rest of the targets of one snapshot, by row."""

    __slots__ = ("_failures", "_until")

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._failures: dict[int, int] = {}

    def resting(self, row: int, now: float) -> bool:
        until = self._until.get(row)
        return until is not None and now < until

    def remaining_s(self, row: int, now: float) -> float:
        """Seconds until ``row`` may be used again, 0 if it may now."""
        return max(0.0, self._until.get(row, now) - now)

    def succeeded(self, row: int) -> None:
        if self._until:
            self._until.pop(row, None)
            self._failures.pop(row, None)

    def failed(self, row: int, failure: FailureClass, now: float, retry_after_s: float | None) -> None:
        if failure not in _TELLING:
            return
        count = self._failures.get(row, 0)
        self._failures[row] = count + 1
        if retry_after_s is not None:  # the latest word of the provider counts (R53)
            self._until[row] = now + retry_after_s
            return
        # of a request that was under way already: it does not shorten what the provider asked for (S-25)
        until = now + min(MAX_S, BASE_S * 2 ** min(count, 10))
        self._until[row] = max(until, self._until.get(row, until))

    def failures_in_a_row(self, row: int) -> int:
        return self._failures.get(row, 0)
