"""Clients that do not read what they asked for (R33, S-53): for the reference listener, which is told of none."""

from __future__ import annotations

import asyncio


class Unread:
    """Watches what waits to be sent over ``transport``, and drops the connection when none of it was taken for
    ``limit_s`` seconds. It ends by itself when all is taken. Nothing may be written meanwhile.
    """

    __slots__ = ("_left", "_limit_s", "_loop", "_since", "_timer", "_transport")

    def __init__(self, transport: asyncio.Transport, limit_s: float, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._limit_s = limit_s
        self._loop = loop
        self._left = transport.get_write_buffer_size()
        self._since = loop.time()
        self._timer: asyncio.TimerHandle | None = loop.call_later(limit_s / 4, self._look)

    def stop(self) -> None:
        """The client reads, or the connection is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now, left = self._loop.time(), self._transport.get_write_buffer_size()
        if left < self._left:
            self._left, self._since = left, now
        elif now - self._since >= self._limit_s:
            self._transport.abort()
            return
        if left:
            self._timer = self._loop.call_later(self._limit_s / 4, self._look)
