"""When our own core is what is short: how many requests each turn of the event loop takes in.

A loop that has more to do than it can does not drop anything: its turns get longer, and who comes waits for one to be
read, for another to be sent on, for a third to be answered. So the length of a turn is what a request waits, and it is
what CoDel (RFC 8289) calls the sojourn time. As there, only a standing queue counts: every turn that was measured has
been too long, for an interval. One long stop, a burst that is worked off, a collection are none.

Where RFC 8289 drops at a growing rate, a loop can do better, for it knows what it has done: so much time for so many
requests. While it is behind, a turn takes in as many as fit into the target, ``target / cost``, and the rest is told
503 within that same turn. What refusing costs is in the time, so the turns settle at the target whatever the load is,
within a few of them. At least one is taken in, so that a loop which something else keeps busy still serves.

It begins at ``ENTER`` times the target and not at the target itself: a thousand clients that each wait for an answer
before they ask again make turns of three times the target, and nobody is better off if some of them are told to come
back.

There is no end to refusing clients that ask again at once, and a refusal costs a third of a short answer, most of it
in the system's calls. So it takes half of the time at most (``REFUSING``), and turns are rather longer than that; only
from ``HARD`` times the target on nothing holds. Answers that cost a hundred refusals, streams, know no such bound.

Priority classes: a low one gets in only while half of the room is left, a high one until twice as many are in.

All of it is pure: seconds of one clock and counts are arguments. The length of a turn is meant as the CPU time of the
loop's thread, so that a machine which is busy with other things, or one call that blocks, is not taken for demand.
"""

from __future__ import annotations

from .bulkhead import HIGH, LOW, NORMAL

TARGET_S = 0.005
"""A whole answer takes three turns, a health check four; a loop at its rated load has turns of 1 to 3 ms."""
ENTER = 5.0
STANDING_S = 0.2
"""How long each turn must have been above ``ENTER`` times the target. RFC 8289 has 100 ms; a start and a burst of a few
thousand requests are longer."""
CALM_S = 1.0
"""Nobody has been refused for so long: it is over."""
MEMORY_S = 0.2
"""What was measured so long ago counts a third (e-folding time)."""
REFUSAL_S = 15e-6
"""What a refusal costs (docs/architecture.md)."""
REFUSING = 0.5
HARD = 20.0
SHARES = {HIGH: 2.0, NORMAL: 1.0, LOW: 0.5}


class TurnBudget:
    """Tell it how long turns are (``seen`` while it is not ``active``, ``turned`` for each one while it is), and ask
    ``take`` for each request while it is. ``target_s`` 0: never active."""

    __slots__ = (
        "_above_from", "_busy_s", "_calm_from", "_done", "_started", "active", "refused", "refused_most", "room",
        "taken", "target_s", "turn_s",
    )  # fmt: skip

    def __init__(self, target_s: float = TARGET_S) -> None:
        self.target_s = target_s
        self.active = False
        self.room = 1.0
        """Requests of the normal class that a turn takes in."""
        self.refused_most = 1.0
        """For each that is taken in."""
        self.taken = self.refused = 0
        """In this turn."""
        self.turn_s = 0.0
        """The last one."""
        self._above_from: float | None = None
        self._started = 0
        self._busy_s = self._done = 0.0
        self._calm_from = 0.0

    @property
    def suspects(self) -> bool:
        """The last turn was too long: look more often."""
        return self._above_from is not None

    def seen(self, turn_s: float, requests: int, now_s: float) -> bool:
        """A turn took so long; ``requests`` is how many have begun so far. Whether it is an overload from now on."""
        self.turn_s = turn_s
        if not self.target_s or turn_s <= ENTER * self.target_s:
            self._above_from = None
        elif self._above_from is None:
            self._above_from, self._started = now_s, requests
        elif now_s - self._above_from >= STANDING_S:
            self.active = True
            self._busy_s, self._done = now_s - self._above_from, float(requests - self._started)
            self._above_from, self._calm_from = None, now_s
            self._next()
        return self.active

    def turned(self, turn_s: float, now_s: float) -> bool:
        """One more turn is over, which took so long. Whether it is still an overload."""
        self.turn_s = turn_s
        if turn_s > self.target_s / 2 or self.refused:  # of a loop with time to spare the cost cannot be told
            kept = max(0.0, 1.0 - turn_s / MEMORY_S)
            self._busy_s = self._busy_s * kept + turn_s
            self._done = self._done * kept + self.taken
        self._next()
        if not self.target_s or now_s - self._calm_from >= CALM_S:
            self.active = False
        return self.active

    def take(self, priority: int, now_s: float) -> bool:
        """Whether there is time for one more in this turn."""
        if self.taken >= max(1.0, self.room * SHARES[priority]):
            self._calm_from = now_s
            held = priority != LOW and self.turn_s < HARD * self.target_s
            if not held or self.refused < self.refused_most * self.taken:
                self.refused += 1
                return False
        self.taken += 1
        return True

    def _next(self) -> None:
        """A turn begins."""
        self.taken = self.refused = 0
        cost_s = self._busy_s / max(1.0, self._done)
        self.room = max(1.0, self.target_s / cost_s)
        self.refused_most = max(1.0, REFUSING * cost_s / REFUSAL_S)
