"""When to say no to a request before any work is done for it: too little memory, a loop that lags, too much in flight.

An upstream that is slow is no sign of overload (Q16): what counts is what this process itself runs out of.

- Memory (Q17): from 92 % of the ceiling on connections are not kept alive, from 95 % on nobody new is taken in, until
  it is below 92 % again (Envoy's overload manager: the same two steps, read each 0.25 s). With nothing in flight one
  request is taken in all the same: freed memory does not always go back to the system, and a process that refuses all
  would never find out.
- Lag of the event loop (Q16: shed from 100 ms). A share of the requests is refused. It grows with each tick (every
  100 ms) that comes 100 ms late or more, by a tenth for each 100 ms; it shrinks by a twentieth when the loop is back
  below 50 ms, by a hundredth in between. A tick that is late already counts before it comes: a burst of ten times what
  we can do would else be served for seconds before the next one. A share and not all or nothing, because all or
  nothing swings: a second of refusals, then the same burst again. At most 98 %: ten times the capacity can be refused
  (Q15), and a machine that is starved by others (S-103) and lags whatever we refuse still serves a little.
- In flight: from the cap on, until it is below 90 % of it.

Priority classes: what is refused of normal requests comes first from the low ones, twice the share (and from 80 % of
the cap), and last from the high ones: nothing until half of the normal ones are refused.

``throttle_probability`` and ``Throttle`` are the SRE book's client-side throttle, for a target that refuses us:
``max(0, (requests - K * accepts) / (requests + 1))`` over two minutes, K = 2 (reliability.md 1.8).

All of it is pure: times (seconds of one monotonic clock), readers and randomness are arguments. The rule that must not
be broken: health and metrics are never shed, so nobody asks for them here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from .bulkhead import HIGH, LOW, NORMAL

TICK_S = 0.1
"""How often the lag is measured."""
LAG_WINDOW_S = 1.0
SHED_LAG_S = 0.1
CALM_LAG_S = 0.05
MORE = 0.1
"""The share refused grows by this per tick and per ``SHED_LAG_S`` of lag..."""
MORE_AT_ONCE = 0.5
"""...but by no more than this at once: one long stop is not a reason to refuse all."""
LESS = 0.05
LESS_HALF_CALM = 0.01
SHARE_MAX = 0.98
KEEPALIVE_PART = 0.92
SHED_PART = 0.95
READ_EVERY_S = 0.25
RESUME_PART = 0.9
LOW_PART = 0.8
MEMORY, LAG, OVERLOAD = "memory", "lag", "overload"
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
"""``TIGHT``: connections are not kept alive; ``FULL``: nobody new is taken in."""


class MemoryCeiling:
    """How near this process is to ``limit_bytes`` (0: there is no limit). ``read_rss`` returns bytes, 0: not known."""

    __slots__ = ("_level", "_read_at", "_read_rss", "limit_bytes", "rss")

    def __init__(self, limit_bytes: int, read_rss: Callable[[], int]) -> None:
        self.limit_bytes = limit_bytes
        self._read_rss = read_rss
        self._read_at = 0.0
        self._level = OK
        self.rss = 0
        """As last read."""

    def level(self, now_s: float) -> int:
        """Reads at most four times a second."""
        if self.limit_bytes > 0 and now_s >= self._read_at:
            self._read_at = now_s + READ_EVERY_S
            self.rss = self._read_rss()
            self._level = self._level_of(self.rss / self.limit_bytes)
        return self._level

    def _level_of(self, part: float) -> int:
        if part >= SHED_PART:
            return FULL
        if part >= KEEPALIVE_PART:
            return FULL if self._level == FULL else TIGHT
        return OK


class Shedder:
    """Why a request should be refused now. One per process; ``tick`` it as ``Lag`` asks for.

    ``in_flight``: how many requests are in the process, those that wait included, the one that is asked about not;
    ``max_in_flight`` caps it (0: no cap). ``random``: uniform in [0, 1).
    """

    __slots__ = ("_in_flight", "_over", "_random", "lag", "max_in_flight", "memory", "share")

    def __init__(
        self,
        lag: Lag,
        memory: MemoryCeiling,
        in_flight: Callable[[], int],
        max_in_flight: int,
        random: Callable[[], float],
    ) -> None:
        self.lag = lag
        self.memory = memory
        self.max_in_flight = max_in_flight
        self.share = 0.0
        """Of normal requests that are refused for the lag, 0 to ``SHARE_MAX``."""
        self._in_flight = in_flight
        self._random = random
        self._over = [False, False, False]

    def tick(self, now_s: float) -> float:
        """The timer fired. When it should fire next."""
        following = self.lag.tick(now_s)
        self.share = next_share(self.share, self.lag.last_s)
        return following

    def why(self, now_s: float, priority: int = NORMAL) -> str | None:
        """``memory``, ``lag`` or ``overload``; ``None``: take it in."""
        level = self.memory.level(now_s)
        if level and (level == FULL or priority == LOW) and self._in_flight():
            return MEMORY
        late_s = self.lag.late_by_s(now_s)
        share = self.share if late_s < SHED_LAG_S else next_share(self.share, late_s)
        if share and self._random() < share_of(share, priority):
            return LAG
        if self.max_in_flight and self._is_over(priority):
            return OVERLOAD
        return None

    def _is_over(self, priority: int) -> bool:
        cap = self.max_in_flight * (LOW_PART if priority == LOW else 1.0)
        over = self._over[priority] = self._in_flight() >= (cap * RESUME_PART if self._over[priority] else cap)
        return over


def next_share(share: float, lag_s: float) -> float:
    """The share of requests to refuse after a tick that came ``lag_s`` late."""
    if lag_s >= SHED_LAG_S:
        return min(SHARE_MAX, share + min(MORE_AT_ONCE, MORE * lag_s / SHED_LAG_S))
    return max(0.0, share - (LESS if lag_s < CALM_LAG_S else LESS_HALF_CALM))


def share_of(share: float, priority: int) -> float:
    """What a class bears of ``share``, which is that of the normal ones."""
    if priority == LOW:
        return min(SHARE_MAX, 2 * share)
    return max(0.0, 2 * share - 1) if priority == HIGH else share


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
