"""Bulkheads: a cap on what is in flight, a short queue before it, and a quick no behind that (R32, Q01).

One stands before the whole process, one before each target. Envoy's breakers are plain caps of 1024 requests and 1024
waiting ones per upstream (reliability.md 1.1); the wait of at most a second is ours. Enter the process's first, then
the target's, and leave in the opposite order: who waits for a target holds a place of the process, never the other way.

``try_enter`` is the ordinary case: a comparison and a counter. It overtakes nobody, because a place that becomes free
while somebody waits is handed over in the same call and never seen free: *who waits implies no place is free*. That is
the rule that must not be broken; ``leave`` and the setter of ``limit`` keep it.

A request is refused at once when the queue is full, and when it can be known that it would wait in vain: a queue that
moves at ``rate`` places a second lets the next one in after ``(ahead + 1) / rate`` seconds. The rate is only measured
while somebody waits, so it is what the bulkhead can do and not what was asked of it; while too little is known (a
target that is stuck frees no place at all) nothing is refused on a guess.

One timer for all who wait, as in ``watchdog``. A cancelled waiter frees its place in the queue, and passes on the place
in flight if it was given one already.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict

from ..errors import GatewayError

HIGH, NORMAL, LOW = range(3)
"""Priority classes. Within one: first come, first served."""
LIMIT = 1024
QUEUE_LIMIT = 1024
QUEUE_WAIT_S = 1.0
"""Defaults of Q01: Envoy's circuit_breaker.proto; the wait is ours."""
TICK_S = 0.01
"""The timer fires at most this often: a thousand waiters with a thousand limits cost a hundred looks a second."""
RATE_S = 0.5
"""The rate at which places become free is that of the last one to two of these."""
RATE_MIN_S = 0.1
RATE_MIN_LEFT = 10
"""Fewer departures, or a shorter time, say nothing about the next second."""
RETRY_MIN_S = 1.0
RETRY_MAX_S = 30.0
NEVER = math.inf

QUEUE_FULL = "queue_full"
QUEUE_WAIT = "queue_wait"
DEADLINE = "deadline"
ENDING = "ending"
"""Why a bulkhead refuses: ``Overloaded.reason``."""


class Overloaded(GatewayError):
    """The gateway's own 503 (R21): it took on nothing for this request, so anybody may send it again, later (R52).

    It says nothing about a target: its failure class is none. ``reason`` is a metric label, from a closed set.
    """

    def __init__(self, retry_after_s: float = RETRY_MIN_S, reason: str = "overload", waited_s: float = 0.0) -> None:
        seconds = whole_seconds(retry_after_s)
        super().__init__(
            f"The gateway has more to do than it can take on. Try again in {seconds} s.",
            status=503,
            code="overloaded",
            headers={"Retry-After": str(seconds)},
        )
        self.retry_after_s = float(seconds)
        self.reason = reason
        self.waited_s = waited_s
        """How long it waited in vain."""


def whole_seconds(retry_after_s: float) -> int:
    """What ``Retry-After`` says (RFC 9110 10.2.3): whole seconds, within bounds."""
    return math.ceil(min(RETRY_MAX_S, max(RETRY_MIN_S, retry_after_s)))


class Waiter:
    """Somebody in the queue. ``future`` brings ``True`` with a place, ``False`` when the time is over."""

    __slots__ = ("due", "future", "gone", "queue", "reason", "since")

    def __init__(
        self, future: asyncio.Future[bool], queue: OrderedDict[Waiter, None], since: float, due: float, reason: str
    ) -> None:
        self.future = future
        self.queue = queue
        self.since = since
        self.due = due
        self.reason = reason
        self.gone = False


class Bulkhead:
    """At most ``limit`` in flight and ``queue_limit`` waiting, each for at most ``queue_wait_s``. All of one loop.

    The three may change at any time (reload, adaptive limit). A limit below what is in flight ends nothing: nobody new
    comes in until enough have left.
    """

    __slots__ = (
        "_at", "_fired_at", "_handle", "_limit", "_loop", "_mark", "_queues", "_recent", "in_flight", "left",
        "queue_limit", "queue_wait_s", "queued",
    )  # fmt: skip

    def __init__(
        self,
        limit: int = LIMIT,
        queue_limit: int = QUEUE_LIMIT,
        queue_wait_s: float = QUEUE_WAIT_S,
        *,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._limit = _at_least_one(limit)
        self.queue_limit = queue_limit
        self.queue_wait_s = queue_wait_s
        self.in_flight = 0
        self.queued = 0
        """How many wait."""
        self.left = 0
        """How many have left since the start."""
        self._loop = loop
        self._queues: tuple[OrderedDict[Waiter, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._at = NEVER
        self._fired_at = -NEVER
        self._handle: asyncio.TimerHandle | None = None
        self._mark = self._recent = (0.0, 0)
        """Times at which somebody waited, and how many had left by then; ``_mark`` is the older one."""

    @property
    def limit(self) -> int:
        return self._limit

    @limit.setter
    def limit(self, limit: int) -> None:
        self._limit = _at_least_one(limit)
        while self.in_flight < limit and self._hand_over():
            self.in_flight += 1

    def try_enter(self) -> bool:
        """Take a place if one is free; ``leave`` must follow then."""
        taken = self.in_flight
        if taken < self._limit:
            self.in_flight = taken + 1
            return True
        return False

    async def enter(self, deadline_s: float = NEVER, priority: int = NORMAL) -> float:
        """Take a place, and wait for it if need be; ``leave`` must follow. The seconds it took.

        ``deadline_s``: seconds left until the request's own deadline. Raises ``Overloaded``.
        """
        if self.try_enter():
            return 0.0
        refused = self.verdict(deadline_s, priority)
        if refused is not None:
            raise Overloaded(self.retry_after_s(), refused)
        return await self.wait(self.line_up(deadline_s, priority))

    def line_up(self, deadline_s: float = NEVER, priority: int = NORMAL) -> Waiter:
        """No place is free, and the ``verdict`` is to wait: join the queue. ``wait`` or ``abandon`` must follow."""
        now = self._loop.time()
        limit_s, reason = self._patience(deadline_s)
        queue = self._queues[priority]
        waiter = Waiter(self._loop.create_future(), queue, now, now + limit_s, reason)
        queue[waiter] = None
        self.queued += 1
        self._sooner(waiter.due)
        return waiter

    async def wait(self, waiter: Waiter) -> float:
        """Until the place is there; ``leave`` must follow. The seconds since it joined the queue. Raises
        ``Overloaded``."""
        try:
            entered = await waiter.future
        except BaseException:
            self.abandon(waiter)
            raise
        waited_s = self._loop.time() - waiter.since
        if not entered:
            raise Overloaded(self.retry_after_s(), waiter.reason, waited_s)
        return waited_s

    def leave(self) -> None:
        """Free the place, or hand it over to who is next."""
        self.left += 1
        if self.queued and self.in_flight <= self._limit and self._hand_over():
            return
        self.in_flight -= 1

    def _hand_over(self) -> bool:
        """Tell who is next that a place is theirs. Somebody cancelled who has not woken yet is passed over."""
        for queue in self._queues:
            while queue:
                waiter, _ = queue.popitem(last=False)
                self.queued -= 1
                if not waiter.future.done():
                    waiter.future.set_result(True)
                    return True
        return False

    def abandon(self, waiter: Waiter) -> None:
        """It waits no longer, perhaps after a place was given to it and before it woke. Twice does no harm."""
        if waiter.gone:
            return
        waiter.gone = True
        if waiter in waiter.queue:
            del waiter.queue[waiter]
            self.queued -= 1
            waiter.future.cancel()
        elif not waiter.future.cancelled() and waiter.future.result():
            self.leave()
            self.left -= 1  # nothing was served

    def end(self) -> None:
        """Nobody waits any longer, from now on (R79)."""
        self.queue_limit = 0
        for queue in self._queues:
            while queue:
                waiter, _ = queue.popitem(last=False)
                self.queued -= 1
                if not waiter.future.done():
                    waiter.reason = ENDING
                    waiter.future.set_result(False)

    # ---- who need not wait to be refused

    def verdict(self, deadline_s: float = NEVER, priority: int = NORMAL) -> str | None:
        """Why somebody who comes now and has so long would be refused at once; ``None``: there is a place, or it is
        worth waiting."""
        if self.in_flight < self._limit:
            return None
        limit_s, reason = self._patience(deadline_s)
        rate = self._rate(self._loop.time())
        if self.queued >= self.queue_limit:
            return QUEUE_FULL
        if limit_s <= 0:
            return reason
        if rate:
            ahead = sum(len(queue) for queue in self._queues[: priority + 1])
            if (ahead + 1) / rate > limit_s:
                return reason
        return None

    def _patience(self, deadline_s: float) -> tuple[float, str]:
        """How long is waited, and what it is that is over then."""
        if deadline_s < self.queue_wait_s:
            return deadline_s, DEADLINE
        return self.queue_wait_s, QUEUE_WAIT

    def _rate(self, now: float) -> float:
        """Places that become free per second since somebody waits; 0: not known. Call it when somebody comes."""
        if not self.queued:
            self._mark = self._recent = now, self.left
        elif now - self._recent[0] >= RATE_S:
            self._mark, self._recent = self._recent, (now, self.left)
        return self._known_rate(now)

    def _known_rate(self, now: float) -> float:
        since, left = self._mark
        if now - since < RATE_MIN_S or self.left - left < RATE_MIN_LEFT:
            return 0.0
        return (self.left - left) / (now - since)

    def retry_after_s(self) -> float:
        """How long it takes to serve all who wait, if that can be said, else one wait (R52)."""
        rate = self._known_rate(self._loop.time()) if self.queued else 0.0
        return (self.queued + 1) / rate if rate else self.queue_wait_s

    # ---- the timer

    def _sooner(self, due: float) -> None:
        at = max(due, self._fired_at + TICK_S)
        if at < self._at:
            if self._handle is not None:
                self._handle.cancel()
            self._at = at
            self._handle = self._loop.call_at(at, self._fire)

    def _fire(self) -> None:
        now = self._fired_at = self._loop.time()
        self._handle = None
        self._at = NEVER
        soonest = NEVER
        for queue in self._queues:
            for waiter in [w for w in queue if w.due <= now]:
                del queue[waiter]
                self.queued -= 1
                if not waiter.future.done():
                    waiter.future.set_result(False)
            soonest = min(soonest, min((w.due for w in queue), default=NEVER))
        if soonest < NEVER:
            self._sooner(soonest)


def _at_least_one(limit: int) -> int:
    if limit < 1:
        raise ValueError("a bulkhead lets at least one in")
    return limit
