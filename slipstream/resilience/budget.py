"""How much extra load we may put on providers: retries and hedges, as a share of the requests.

Without it every request of an outage would be sent three times, to providers that cannot even serve one. Finagle's and
tower's retry budget (reliability.md 1.4): a request deposits ``ratio``, an extra attempt costs 1, and ``min_per_s`` is
free, so that little traffic may be retried too.

The rule that must not be broken: in any ``ttl_s`` seconds, wherever they begin,

    spends <= ratio * requests + min_per_s * ttl_s

and so in any whole number of them (Q05: 30 s are three). tower counts both in ten slots, in which a spend is forgotten
up to a slot early, and a fourth burst fits into the 30 s. Here a spend is counted for at least ``ttl_s``, a request for
at most that: one slot more for spends. The price is that a budget that is always used up gives 9/10 to 10/10 of its
share.

One budget is one process's (Q05). Time is seconds of a clock that does not go back; one that does stands still.
"""

from __future__ import annotations

SLOTS = 10
"""Slots of ``ttl_s`` (tower's number)."""
_RING = SLOTS + 1
_COST = 1_000_000
"""What a spend costs. The ratio is kept in millionths, so that all arithmetic is of integers and exact."""

RETRY_RATIO = 0.2
RETRY_MIN_PER_S = 10.0
RETRY_TTL_S = 10.0
"""Retries: 20 % of the requests over 10 s and 10 per second (Q05; Linkerd's defaults)."""
HEDGE_RATIO = 0.08
HEDGE_TTL_S = 60.0
"""Hedges: 8 % over 60 s and nothing free, so that little traffic cannot exceed it (Finagle).

Q14 names 5 %, because one request in twenty is behind the 95th percentile. As a ceiling that is too low: a budget that
is used up gives 9/10 of its share, and cancelled losers are not in the percentile (``hedge``), so that up to 7 % are
behind it. Those who go without a hedge are some of the slowest, and they are the p99: where one call in twenty is ten
times slower it falls by a quarter with 5 %, and by three quarters with 8 % (bench/hedge.py)."""


class Budget:
    """A sliding window of requests and of what was spent on top of them. Every call is O(1): a few additions, and at
    most ``SLOTS + 1`` steps when time has moved on."""

    __slots__ = ("_at", "_balance", "_deposit", "_per_s", "_requests", "_reserve", "_spent", "_turn")

    def __init__(
        self, ratio: float = RETRY_RATIO, min_per_s: float = RETRY_MIN_PER_S, ttl_s: float = RETRY_TTL_S
    ) -> None:
        if ratio < 0 or min_per_s < 0 or ttl_s <= 0:
            raise ValueError("a budget has a ratio and a minimum of 0 or more, and a window longer than 0")
        self._deposit = round(ratio * _COST)
        self._reserve = round(min_per_s * ttl_s * _COST)
        self._per_s = SLOTS / ttl_s
        self._turn = 0
        """Number of the slot that runs, counted from the clock's 0."""
        self._at = 0
        """Its place in the rings."""
        self._requests = [0] * _RING
        self._spent = [0] * _RING
        self._balance = self._reserve
        """Reserve and deposits less spends of the slots that count. Below 0 when deposits were forgotten first."""

    def request(self, now_s: float, number: int = 1) -> None:
        """Requests came: the first attempt is everybody's right, and pays for a part of another."""
        turn = int(now_s * self._per_s)
        if turn > self._turn:
            self._move(turn)
        self._requests[self._at] += number
        self._balance += number * self._deposit

    def try_spend(self, now_s: float) -> bool:
        """Whether an extra attempt may be made. It is paid for then: ask when nothing else stands in its way."""
        turn = int(now_s * self._per_s)
        if turn > self._turn:
            self._move(turn)
        if self._balance < _COST:
            return False
        self._spent[self._at] += 1
        self._balance -= _COST
        return True

    def left(self, now_s: float) -> int:
        """How many could be spent now (for people and metrics)."""
        turn = int(now_s * self._per_s)
        if turn > self._turn:
            self._move(turn)
        return max(0, self._balance // _COST)

    def _move(self, turn: int) -> None:
        """Slot ``turn`` runs now. What was before the window is forgotten."""
        if turn - self._turn > SLOTS:
            self._requests = [0] * _RING
            self._spent = [0] * _RING
            self._balance = self._reserve
        else:
            for n in range(self._turn + 1, turn + 1):
                self._forget(n)
        self._turn = turn
        self._at = turn % _RING

    def _forget(self, turn: int) -> None:
        """Slot ``turn`` begins: spends of ``SLOTS + 1`` slots ago end (theirs is its place), requests of ``SLOTS``."""
        own, oldest = turn % _RING, (turn + 1) % _RING
        self._balance += self._spent[own] * _COST - self._requests[oldest] * self._deposit
        self._spent[own] = 0
        self._requests[oldest] = 0


def retry_budget() -> Budget:
    """The default for retries (Q05)."""
    return Budget(RETRY_RATIO, RETRY_MIN_PER_S, RETRY_TTL_S)


def hedge_budget(ratio: float = HEDGE_RATIO, ttl_s: float = HEDGE_TTL_S) -> Budget:
    """The default for hedges (Q14)."""
    return Budget(ratio, 0.0, ttl_s)
