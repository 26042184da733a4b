"""What this process itself runs out of: the time of its event loop, memory. An upstream that is slow is no sign of
overload (Q16).

- Memory (Q17): from 92 % of the ceiling on low requests are not taken in, from 95 % on nobody new, until it is below
  92 % again (Envoy's overload manager: the same two steps, read each 0.25 s). With nothing in flight one request is
  taken in all the same: freed memory does not always go back to the system, and a process that refuses all would never
  find out.
- Lag: how late the loop runs its timers. What is done about a loop that has too much to do is in ``turns``.

``throttle_probability`` and ``Throttle`` are the SRE book's client-side throttle, for a target that refuses us:
``max(0, (requests - K * accepts) / (requests + 1))`` over two minutes, K = 2 (reliability.md 1.8).

All of it is pure: times (seconds of one monotonic clock) and readers are arguments. The rule that must not be broken:
health and metrics are never shed, so nobody asks for them here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .bulkhead import LOW

TICK_S = 0.1
"""How often the lag is measured."""
LAG_WINDOW_S = 1.0
KEEPALIVE_PART = 0.92
SHED_PART = 0.95
READ_EVERY_S = 0.25
MEMORY, LAG = "memory", "lag"
"""Why a request is shed: a metric label."""


class Lag:
    """How late the event loop runs its timers: whatever it is told to do at a time happens that much later.

    Its owner calls ``tick`` at the time that the last ``tick`` returned (``loop.call_at``).
    """

    __slots__ = ("_due", "_seen", "every_s", "last_s")

    def __init__(self, every_s: float = TICK_S) -> None:
        self.every_s = every_s
        self.last_s = 0.0
        """At the last tick."""
        self._due: float | None = None
        self._seen: deque[tuple[float, float]] = deque()

    def tick(self, now_s: float) -> float:
        """The timer fired. When it should fire next."""
        self.last_s = self.late_by_s(now_s)
        self._seen.append((now_s, self.last_s))
        self._forget(now_s)
        self._due = now_s + self.every_s
        return self._due

    def worst_s(self, now_s: float) -> float:
        """The greatest lag of the last second; one that has not ended yet counts as far as it has come."""
        self._forget(now_s)
        return max(self.late_by_s(now_s), max((lag for _, lag in self._seen), default=0.0))

    def late_by_s(self, now_s: float) -> float:
        """How late the next tick is already."""
        return 0.0 if self._due is None else max(0.0, now_s - self._due)

    def _forget(self, now_s: float) -> None:
        seen = self._seen
        while seen and seen[0][0] <= now_s - LAG_WINDOW_S:
            seen.popleft()


OK, TIGHT, FULL = range(3)
"""``TIGHT``: nobody of low priority is taken in; ``FULL``: nobody at all."""


class MemoryCeiling:
    """How near this process is to ``limit_bytes`` (0: there is no limit). ``read_rss`` returns bytes, 0: not known."""

    __slots__ = ("_read_at", "_read_rss", "level", "limit_bytes", "rss")

    def __init__(self, limit_bytes: int, read_rss: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._read_rss = read_rss
        self._read_at = 0.0
        self.level = OK
        self.rss = 0
        """Both as last read."""

    def read(self, now_s: float) -> int:
        """The level now; reads at most four times a second."""
        if self.limit_bytes > 0 and now_s >= self._read_at:
            self._read_at = now_s + READ_EVERY_S
            self.rss = self._read_rss()
            self.level = self._level_of(self.rss / self.limit_bytes)
        return self.level

    def refuses(self, priority: int, in_flight: int) -> bool:
        """Whether there is too little for one more, by what was last read; ``in_flight`` without it."""
        return bool(in_flight) and (self.level == FULL or (self.level == TIGHT and priority == LOW))

    def _level_of(self, part: float) -> int:
        if part >= SHED_PART:
            return FULL
        if part >= KEEPALIVE_PART:
            return FULL if self.level == FULL else TIGHT
        return OK


# ---- a target that refuses us

THROTTLE_K = 2.0
THROTTLE_WINDOW_S = 120.0
THROTTLE_SLOTS = 12


def throttle_probability(requests: int, accepts: int, k: float = THROTTLE_K) -> float:
    """How likely the next request should not even be sent. 0 as long as one in ``k`` is accepted."""
    return max(0.0, (requests - k * accepts) / (requests + 1))


class Throttle:
    """Requests and accepts of the last two minutes, in slots of 10 s. A request counts when it is tried (also if it is
    refused here, so that the probability follows the demand), an accept when it was served."""

    __slots__ = ("_accepts", "_k", "_requests", "_slot", "_slot_s", "_totals")

    def __init__(self, k: float = THROTTLE_K, window_s: float = THROTTLE_WINDOW_S) -> None:
        self._k = k
        self._slot_s = window_s / THROTTLE_SLOTS
        self._requests = [0] * THROTTLE_SLOTS
        self._accepts = [0] * THROTTLE_SLOTS
        self._slot: int | None = None
        self._totals = [0, 0]

    def requested(self, now_s: float) -> None:
        self._requests[self._advance(now_s)] += 1
        self._totals[0] += 1

    def accepted(self, now_s: float) -> None:
        self._accepts[self._advance(now_s)] += 1
        self._totals[1] += 1

    def probability(self, now_s: float) -> float:
        """That the next request should be refused here."""
        self._advance(now_s)
        return throttle_probability(self._totals[0], self._totals[1], self._k)

    def _advance(self, now_s: float) -> int:
        """The running slot; those that have ended since are emptied."""
        slot = int(now_s / self._slot_s)
        if self._slot is None:
            self._slot = slot
        for ended in range(self._slot + 1, min(slot, self._slot + THROTTLE_SLOTS) + 1):
            self._empty(ended % THROTTLE_SLOTS)
        self._slot = max(slot, self._slot)
        return self._slot % THROTTLE_SLOTS

    def _empty(self, at: int) -> None:
        self._totals[0] -= self._requests[at]
        self._totals[1] -= self._accepts[at]
        self._requests[at] = self._accepts[at] = 0
