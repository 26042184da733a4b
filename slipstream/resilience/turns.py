"""When our own core is what is short: how many requests may be under way, by the turns of the event loop.

A loop that has more to do than it can does not drop anything: its turns get longer, and who comes waits for one to be
read, for another to be sent on, for a third to be answered. So the length of a turn is what a request waits, and it is
what CoDel (RFC 8289) calls the sojourn time. As there, only a standing queue counts: every turn that was measured has
been too long, for an interval. One long stop, a burst that is worked off, a collection are none.

Where RFC 8289 drops at a growing rate, a loop can do better, for what a turn has to do is what is under way: with
``in_flight`` requests and turns that work for ``work``, it is ``in_flight * target / work`` requests whose turns are as
long as they should be. While the loop is behind, that is the ``limit``, and who comes beyond it is told 503 within the
turn in which it is read. It holds for answers that take three turns and for streams that take a hundred, and for those
that wait for their provider most of the time; a limit on how many begin in each turn does not, because what begins
now is work for many turns to come. What refusing costs is not in ``work``: fewer requests would not make it less.

It begins at ``ENTER`` times the target and not at the target itself: a thousand clients that each wait for an answer
before they ask again make turns of three times the target, and nobody is better off if some of them are told to come
back.

There is no end to refusing clients that ask again at once, and a refusal costs half of a short answer, most of it in
the system's calls. So it takes half of a turn at most, and turns are rather longer than that; only from ``HARD`` times
the target on nothing holds. Beside answers that cost a hundred refusals, streams, this is never reached.

A few requests may be under way whatever turns take (``FEW``: each of them may be a long turn of its own, and fewer of
them would not make it shorter), and one more gets in each ``LEAST_S``, so that a loop which something else keeps busy
still serves. Priority classes: a low one gets in only up to half of the limit, a high one up to twice of it.

All of it is pure: seconds of one clock and counts are arguments. The length of a turn is meant as the CPU time of the
loop's thread, so that a machine which is busy with other things, or one call that blocks, is not taken for demand.
"""

from __future__ import annotations

from .bulkhead import HIGH, LOW, NORMAL

TARGET_S = 0.010
"""A whole answer takes three turns, a health check four; a loop at its rated load has turns of 1 to 3 ms."""
ENTER = 5.0
STANDING_S = 0.2
"""How long each turn must have been above ``ENTER`` times the target. RFC 8289 has 100 ms; a start and a burst of a few
thousand requests are longer."""
CALM_S = 1.0
"""Nobody has been refused for so long: it is over."""
MEMORY_S = 0.1
"""What was measured so long ago counts a third (e-folding time of the averages)."""
REFUSAL_S = 15e-6
"""What a refusal costs (docs/architecture.md)."""
WORK_MIN = 0.2
"""Of a turn is work at least, whatever refusals are reckoned at."""
HARD = 20.0
FEW = 8.0
LEAST_S = 0.1
SHARES = {HIGH: 2.0, NORMAL: 1.0, LOW: 0.5}


class TurnBudget:
    """Tell it how long turns are (``seen`` while it is not ``active``, ``turned`` for each one while it is), and ask
    ``take`` for each request while it is. ``target_s`` 0: never active. ``in_flight``: how many are under way."""

    __slots__ = (
        "_above_from", "_calm_from", "_in_flight", "_refused_most", "_took_at", "_work_s", "active", "limit",
        "refused", "target_s", "turn_s",
    )  # fmt: skip

    def __init__(self, target_s: float = TARGET_S) -> None:
        self.target_s = target_s
        self.active = False
        self.limit = FEW
        """Requests of the normal class under way."""
        self.refused = 0
        """In this turn."""
        self.turn_s = 0.0
        """The last one."""
        self._above_from: float | None = None
        self._calm_from = self._took_at = 0.0
        self._in_flight = self._work_s = 0.0
        self._refused_most = 0.0

    @property
    def suspects(self) -> bool:
        """The last turn was too long: look more often."""
        return self._above_from is not None

    def seen(self, turn_s: float, in_flight: int, now_s: float) -> bool:
        """A turn took so long. Whether it is an overload from now on."""
        self.turn_s = turn_s
        if not self.target_s or turn_s <= ENTER * self.target_s:
            self._above_from = None
        elif self._above_from is None:
            self._above_from = now_s
        elif now_s - self._above_from >= STANDING_S:
            self.active = True
            self._above_from, self._calm_from = None, now_s
            self._work_s, self._in_flight = turn_s, float(in_flight)
            self._next()
        return self.active

    def turned(self, turn_s: float, in_flight: int, now_s: float) -> bool:
        """One more turn is over, which took so long. Whether it is still an overload."""
        self.turn_s = turn_s
        work_s = max(turn_s - self.refused * REFUSAL_S, WORK_MIN * turn_s)
        weight = min(1.0, max(turn_s, WORK_MIN * self.target_s) / MEMORY_S)
        self._work_s += (work_s - self._work_s) * weight
        self._in_flight += (in_flight - self._in_flight) * weight
        self._next()
        if not self.target_s or now_s - self._calm_from >= CALM_S:
            self.active = False
        return self.active

    def take(self, priority: int, in_flight: int, now_s: float) -> bool:
        """Whether one more may be under way; ``in_flight`` is without it."""
        if in_flight < self.limit * SHARES[priority] or now_s - self._took_at >= LEAST_S:
            self._took_at = now_s
            return True
        self._calm_from = now_s
        held = priority != LOW and self.turn_s < HARD * self.target_s
        if held and self.refused >= self._refused_most:
            return True
        self.refused += 1
        return False

    def _next(self) -> None:
        """A turn begins."""
        self.refused = 0
        self.limit = max(FEW, self._in_flight * self.target_s / max(self._work_s, 1e-9))
        self._refused_most = max(self.target_s, self.turn_s / 2) / REFUSAL_S
