"""Who is let in: asked once for each request, when its head is whole and before its body is read (R32, Q01, Q15).

In calm, which is nearly always, that is a comparison and an addition, and listeners write it out themselves::

    if admission.in_flight < admission.free:
        admission.in_flight += 1

``free`` is the cap on what is in flight, or 0 while there is something to be asked about, and then ``ask`` says "in",
"wait", or why not. In this order, so that nobody takes what is short only to be refused for something else:

- ``memory``: near its ceiling nobody of low priority gets in, at it nobody at all (Q17).
- ``places``: the cap, and the bounded queue before it: a queue that is full, or longer than the request has time
  (``bulkhead``; deadlines, priority classes).
- ``turns``: as many as our own core has time for, when that is what is short.

``adaptive`` moves the cap by the time of a turn (``gradient``): where answers that are under way, long streams say, are
what fills the loop, a cap on what is new would not help. Turns within the target count as good as any, because a loop
that has more to do does more in each turn and is no worse for it.

The rule that must not be broken: who was told "in" or "wait" gives it back exactly once, by ``give_back``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal

from .bulkhead import Bulkhead, Waiter
from .gradient import Gradient, GradientSettings
from .shed import LAG, MEMORY, OK, MemoryCeiling
from .turns import TARGET_S, TurnBudget

IN: Literal[True] = True
Place = Waiter | bool
"""What a request holds: ``IN``, a place in the queue, or ``False``: nothing."""
ADAPTIVE_MIN = 20


class Admission(Bulkhead):
    """Of one process. ``read_rss``: bytes that it holds, 0: not known."""

    __slots__ = ("_gradient", "_read_rss", "free", "memory", "turns")

    def __init__(self, read_rss: Callable[[], int], *, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop=loop)
        self._read_rss = read_rss
        self._gradient: Gradient | None = None
        self.memory = MemoryCeiling(0, read_rss)
        self.turns = TurnBudget(0.0)
        self.free = self.limit
        """In flight below which a request is in without being asked about."""

    def configure(
        self, limit: int, queue_limit: int, queue_wait_s: float, adaptive: bool, max_rss_bytes: int, target_s: float
    ) -> None:
        """New limits, also while it runs. ``target_s``: of a turn of the loop; 0: turns take as long as they take."""
        self.queue_limit, self.queue_wait_s = queue_limit, queue_wait_s
        self._gradient = None
        if adaptive:
            settings = GradientSettings(
                initial=limit, minimum=min(ADAPTIVE_MIN, limit), maximum=limit, queue_root=1.0, descend=True
            )
            self._gradient = Gradient(settings)
        self.limit = limit
        self.memory = MemoryCeiling(max_rss_bytes, self._read_rss)
        self.turns.target_s = target_s
        self.refresh()

    def refresh(self) -> None:
        """Whether requests must be asked about has perhaps changed."""
        self.free = 0 if self.turns.active or self.memory.level != OK else self.limit

    def measured(self, now_s: float) -> None:
        """Call it ten times a second. It reads the memory, and moves an adaptive limit by the last turn."""
        self.memory.read(now_s)
        if self._gradient is not None:
            turn_s = max(self.turns.turn_s, self.turns.target_s or TARGET_S)
            if self._gradient.sample(turn_s, self.in_flight + self.queued, False, now_s):
                self.limit = self._gradient.limit
        self.refresh()

    def ask(self, priority: int, deadline_s: float, now_s: float) -> Place | str:
        """``IN``, a place in the queue (``wait`` for it), or the reason of a refusal.

        ``priority``: its class; ``deadline_s``: seconds until the client has gone; ``now_s``: of a monotonic clock.
        """
        if self.memory.refuses(priority, self.in_flight):
            return MEMORY
        refused = self.verdict(deadline_s, priority)
        if refused is not None:
            return refused
        if self.turns.active and not self.turns.take(priority, self.in_flight, now_s):
            return LAG
        return IN if self.try_enter() else self.line_up(deadline_s, priority)

    def give_back(self, place: Place) -> None:
        """The request has ended, or will never begin."""
        if place is IN:
            if self.queued:
                self.leave()
            else:  # as nearly always
                self.left += 1
                self.in_flight -= 1
        elif place:
            self.abandon(place)
