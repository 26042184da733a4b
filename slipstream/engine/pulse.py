"""Heartbeats: a stream that has nothing to say for a while says that it is alive (R19).

One timer for all streams of the process. At each turn it looks which of them wrote nothing since the last one and
writes a heartbeat in the client's dialect: a comment, or Anthropic's ``ping``. So a stream is silent for one to two
intervals at most, and a stream that flows costs one assignment per write.

A heartbeat before the first content begins the answer: from then on the status is 200 and a failure is told in the
stream, but nothing is committed and another target may still answer. It is always whole and between whole events,
because only whole events are ever written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from ..wire.headers import Block
from .exchange import ClientGone, Exchange


class Pulse:
    """The heartbeat of one stream. ``moved``: something was written since the last turn."""

    __slots__ = ("_exchange", "_ping", "_pulses", "_starting", "head", "moved")

    def __init__(self, pulses: Pulses, exchange: Exchange, ping: bytes) -> None:
        self._pulses = pulses
        self._exchange = exchange
        self._ping = ping
        self._starting: asyncio.Future[None] | None = None
        self.head: Block | None = None
        """The header block of the answer, once it is known what it would be."""
        self.moved = True

    def __enter__(self) -> Pulse:
        self._pulses.add(self)
        return self

    def __exit__(self, *exc: object) -> None:
        self._pulses.discard(self)

    async def begin(self) -> None:
        """Begin the answer, if no heartbeat has."""
        self.moved = True
        if self._starting is not None:
            await self._starting
        elif not self._exchange.started:
            assert self.head is not None
            await self._exchange.begin(self.head)

    def beat(self) -> None:
        """One turn of the timer."""
        if self.moved or self.head is None:
            self.moved = False
            return
        if self._exchange.started:
            _write(self._exchange, self._ping)
        elif self._starting is None:
            self._starting = asyncio.ensure_future(self._begin(self.head))

    async def _begin(self, head: Block) -> None:
        try:
            await self._exchange.begin(head)
            _write(self._exchange, self._ping)
        except ClientGone:
            pass  # its own task learns it at once


def _write(exchange: Exchange, data: bytes) -> None:
    """Write without waiting: a client that does not read gets no more heartbeats than fit."""
    try:
        waiting: Awaitable[None] | None = exchange.write(data)
    except ClientGone:
        return
    if asyncio.iscoroutine(waiting):
        task = asyncio.ensure_future(waiting)
        task.add_done_callback(lambda done: done.cancelled() or done.exception())


class Pulses:
    """The heartbeats of one event loop. ``every_s`` 0 turns them off."""

    __slots__ = ("_live", "_loop", "_timer", "every_s")

    def __init__(self, loop: asyncio.AbstractEventLoop, every_s: float) -> None:
        self._loop = loop
        self._live: set[Pulse] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.every_s = every_s

    def add(self, pulse: Pulse) -> None:
        self._live.add(pulse)
        if self._timer is None and self.every_s > 0:
            self._timer = self._loop.call_later(self.every_s, self._turn)

    def discard(self, pulse: Pulse) -> None:
        self._live.discard(pulse)

    def _turn(self) -> None:
        self._timer = None
        for pulse in list(self._live):
            pulse.beat()
        if self._live and self.every_s > 0:
            self._timer = self._loop.call_later(self.every_s, self._turn)
