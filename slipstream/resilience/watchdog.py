"""One timer for all limits of an attempt.

Arming a limit is two assignments; the event loop's timer is set once and set again only when it fires too early. That
is what makes a time-out per chunk affordable: ``asyncio.timeout`` would make a context and a timer handle for each.

When a limit passes, the task that entered the watchdog is cancelled and the ``CancelledError`` becomes
``UpstreamTimeout`` at the ``with`` statement. A cancellation from outside (the client went away) passes through, also
when both happen at once (the rule of ``asyncio.Timeout``: count ``Task.cancelling``).
"""

from __future__ import annotations

import asyncio
from types import TracebackType

from ..errors import UpstreamTimeout

NEVER = float("inf")


class Watchdog:
    """``total_at``: the loop time at which the whole attempt must be over; ``total_s`` is that limit for the
    message.
    """

    __slots__ = (
        "_at",
        "_cancelling",
        "_fired",
        "_handle",
        "_limit_s",
        "_loop",
        "_phase",
        "_task",
        "_total_at",
        "_total_s",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop, total_at: float, total_s: float) -> None:
        self._loop = loop
        self._total_at = total_at
        self._total_s = total_s
        self._at = NEVER
        self._phase = ""
        self._limit_s = 0.0
        self._fired = ""
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[object] | None = None
        self._cancelling = 0

    def arm(self, phase: str, seconds: float) -> None:
        """From now on ``phase`` may last ``seconds``; replaces the limit armed before."""
        self._phase = phase
        self._limit_s = seconds
        self._at = self._loop.time() + seconds
        handle = self._handle
        if handle is None:  # there is no total, or this is not entered, or a limit has passed already
            if self._task is not None and not self._fired:
                self._set(self._at)
        elif handle.when() > self._at:
            handle.cancel()
            self._set(self._at)

    def disarm(self) -> None:
        """No limit but the total (while waiting for the client, not for the provider)."""
        self._at = NEVER

    def __enter__(self) -> Watchdog:
        task = asyncio.current_task(self._loop)
        if task is None:
            raise RuntimeError("a watchdog needs a task")
        self._task = task
        self._cancelling = task.cancelling()
        self._set(min(self._at, self._total_at))
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        task, self._task = self._task, None
        if not self._fired or task is None:
            return
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            limit = self._total_s if self._fired == "total" else self._limit_s
            raise UpstreamTimeout(self._fired, limit) from None

    def _set(self, when: float) -> None:
        self._handle = self._loop.call_at(when, self._check) if when != NEVER else None

    def _check(self) -> None:
        now = self._loop.time()
        self._handle = None
        if now >= self._total_at:
            self._fired = "total"
        elif now >= self._at:
            self._fired = self._phase
        else:
            self._set(min(self._at, self._total_at))
            return
        if self._task is not None:
            self._task.cancel()
