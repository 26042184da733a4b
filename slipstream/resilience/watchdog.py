"""One timer for all limits of all attempts.

Arming a limit is an assignment. The loop's timer stands at the earliest limit of all watchdogs and is moved only when
it fires, or when an earlier limit comes: that is what makes a limit per chunk affordable (``asyncio.timeout`` would
make a context and a timer for each).

When a limit passes, the task that entered the watchdog is cancelled and the ``CancelledError`` becomes
``UpstreamTimeout`` at the ``with`` statement. A cancellation from outside (the client went away) passes through, also
when both happen at once (the rule of ``asyncio.Timeout``: count ``Task.cancelling``).

The end of the process is one more limit, the same for all (``Deadlines.cut``): it becomes ``ShuttingDown``.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from ..errors import ShuttingDown, UpstreamTimeout

NEVER = float("inf")
LATE_S = 0.1
TURN_S = 0.01
SHUTDOWN = "shutdown"
"""The phase of a watchdog whose attempt was cut because the process ends."""


class Deadlines:
    """The watchdogs of one event loop."""

    __slots__ = ("_at", "_dogs", "_expected", "_handle", "_over", "_waited", "loop", "time")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.time = loop.time
        self._dogs: set[Watchdog] = set()
        self._at = self._expected = NEVER
        """What the timer stands at, and when it is to fire: at once, if that is over already."""
        self._handle: asyncio.TimerHandle | None = None
        self._over = False
        self._waited = False
        """The timer was late and the sockets have had a turn since."""

    def cut(self) -> int:
        """The process ends: no attempt may go on, none may begin any more. How many were cut."""
        self._over = True
        dogs, self._dogs = self._dogs, set()
        for dog in dogs:
            dog.bite(SHUTDOWN)
        return len(dogs)

    def add(self, dog: Watchdog) -> None:
        if self._over:
            dog.bite(SHUTDOWN)
            return
        self._dogs.add(dog)
        if dog.due < self._at:
            self._set(dog.due)

    def sooner(self, due: float) -> None:
        """A limit was armed that may be the earliest now."""
        if due < self._at:
            self._set(due)

    def discard(self, dog: Watchdog) -> None:
        """The timer stays where it is: the next watchdog will want one anyway."""
        self._dogs.discard(dog)

    def _set(self, due: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._at = due
        self._expected = max(due, self.time())
        self._handle = self.loop.call_at(due, self._fire)

    def _fire(self) -> None:
        now = self.time()
        if now - self._expected > LATE_S and not self._waited:
            # we were stopped (S-90), and what came meanwhile has not been read yet: nobody else is to blame
            self._waited = True
            self._handle = self.loop.call_later(TURN_S, self._fire)
            return
        self._waited = False
        self._handle = None
        self._at = NEVER
        for dog in [dog for dog in self._dogs if dog.due <= now]:
            self._dogs.discard(dog)
            dog.bite(dog.passed(now))
        if self._dogs:
            self.sooner(min(dog.due for dog in self._dogs))


class Watchdog:
    """``total_at``: the loop time at which the whole attempt must be over; ``total_s`` is that limit for the
    message.
    """

    __slots__ = ("_cancelling", "_deadlines", "_fired", "_limit_s", "_phase", "_task", "_total_at", "_total_s", "due")

    def __init__(self, deadlines: Deadlines, total_at: float, total_s: float) -> None:
        self._deadlines = deadlines
        self._total_at = self.due = total_at
        self._total_s = total_s
        self._phase = ""
        self._limit_s = 0.0
        self._fired = ""
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def arm(self, phase: str, seconds: float) -> None:
        """From now on ``phase`` may last ``seconds``; replaces the limit armed before."""
        self._phase = phase
        self._limit_s = seconds
        at = self._deadlines.time() + seconds
        self.due = due = min(self._total_at, at)
        if self._task is not None:
            self._deadlines.sooner(due)

    def beat(self) -> None:
        """The phase that is armed begins anew: less work than ``arm``, since its end can only move away."""
        due = self._deadlines.time() + self._limit_s
        self.due = min(self._total_at, due)  # min() costs half as much again

    def disarm(self) -> None:
        """No limit but the total (while waiting for the client, not for the provider)."""
        self.due = self._total_at

    def __enter__(self) -> Watchdog:
        task = asyncio.current_task(self._deadlines.loop)
        if task is None:
            raise RuntimeError("a watchdog needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._deadlines.add(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self._deadlines.discard(self)
        task, self._task = self._task, None
        if not self._fired or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            if self._fired == SHUTDOWN:
                raise ShuttingDown from None
            limit = self._total_s if self._fired == "total" else self._limit_s
            raise UpstreamTimeout(self._fired, limit) from None

    def passed(self, now: float) -> str:
        """Which limit it is that has passed."""
        return "total" if now >= self._total_at else self._phase

    def bite(self, limit: str) -> None:
        """``limit`` has passed."""
        self._fired = limit
        if self._task is not None:
            self._task.cancel()
