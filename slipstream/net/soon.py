"""``call_soon`` for what takes long: a few calls in each turn of the event loop, not all at once (R23)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable


class Soon:
    """Makes at most ``most`` of the calls that it is asked for in each turn of the loop, first come, first served. One
    alone is made when ``call_soon`` would have made it.
    """

    __slots__ = ("_due", "_loop", "_most", "_waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop = loop
        self._most = most
        self._waiting: deque[Callable[[], None]] = deque()
        self._due = False

    def call(self, callback: Callable[[], None]) -> None:
        self._waiting.append(callback)
        if not self._due:
            self._due = True
            self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(min(self._most, len(waiting))):
                waiting.popleft()()
        finally:  # who raises must not hold up the others
            if waiting:
                self._loop.call_soon(self._turn)
            else:
                self._due = False
