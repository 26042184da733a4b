"""The connections to one origin: who gets which, who waits, when one is closed.

Most recently used first, so that a small load keeps few connections warm and the rest can be reaped; idle connections
are closed before any provider would close them (R39); a connection lives at most ``MAX_AGE_S``, so that DNS changes are
followed (Q21). Who waits is served in the order of arrival, and nobody overtakes; that wait is no connecting (R41). A
connection in use is never closed from here (R42).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque

from ..errors import ConnectFailed, UpstreamTimeout
from .connect import Connector
from .connection import AT_ONCE, Connection
from .soon import Soon

IDLE_S = 15.0
"""Idle connections are closed after this: below any provider's own limit (R39, Q20)."""
MAX_AGE_S = 300.0
"""A connection takes no new request after this (Q21)."""


class Pool:
    """``limit`` connections at most, idle ones and those that are being made among them."""

    __slots__ = (
        "_connecting", "_idle", "_open", "_reaper", "_waiters", "closing", "connector", "limit", "loop", "send_s",
        "slices", "stats",
    )  # fmt: skip

    def __init__(self, connector: Connector, limit: int, stats: dict[str, int], send_s: float) -> None:
        self.loop = asyncio.get_running_loop()
        self.connector = connector
        self.limit = limit
        self.send_s = send_s
        """So long the provider may read nothing of a request."""
        self.slices = Soon(self.loop, AT_ONCE)
        """Who goes on with a large request."""
        self.stats = stats
        self._idle: list[Connection] = []
        self._open: set[Connection] = set()
        self._connecting = 0
        """Connections being made, and turns given to waiters that have not begun to."""
        self._waiters: deque[asyncio.Future[Connection | None]] = deque()
        self._reaper: asyncio.TimerHandle | None = None
        self.closing = False

    def take(self) -> Connection | None:
        """An idle connection, the one used last, or ``None``."""
        idle = self._idle
        while idle:
            conn = idle.pop()
            transport = conn.transport
            if transport is not None and not transport.is_closing():
                conn.reused = True
                self.stats["connections_reused"] += 1
                return conn
        return None

    async def connect(self, connect_s: float) -> Connection:
        """A fresh connection, or one that was given back while we waited for our turn."""
        if self._waiters or len(self._open) + self._connecting >= self.limit:
            conn = await self._turn()
            if conn is not None:
                return conn
        else:
            self._connecting += 1
        try:
            async with asyncio.timeout(connect_s):
                conn = await self.connector.connect(lambda: Connection(self))  # type: ignore[type-var]
            if conn.transport is None:
                raise ConnectFailed("the provider closed the connection at once")
            self._open.add(conn)
            self.stats["connections_made"] += 1
            return conn
        except TimeoutError:
            raise UpstreamTimeout("connect", connect_s) from None
        except ssl.SSLError:
            raise ConnectFailed("the TLS connection to the provider could not be made", lasts=True) from None
        except (OSError, UnicodeError):
            raise ConnectFailed("no connection to the provider could be made") from None
        finally:
            self._connecting -= 1
            if self._waiters:
                self._wake()

    async def _turn(self) -> Connection | None:
        """Wait for a connection, or (``None``) for the right to make one."""
        began = self.loop.time()
        self.stats["waits"] += 1
        waiter: asyncio.Future[Connection | None] = self.loop.create_future()
        self._waiters.append(waiter)
        try:
            while True:
                conn = await waiter
                if conn is None or conn.usable:
                    return conn
                waiter = self.loop.create_future()  # it broke on its way to us
                self._waiters.appendleft(waiter)
                self._wake()
        except asyncio.CancelledError:
            if waiter.cancelled():
                with contextlib.suppress(ValueError):  # passed over already
                    self._waiters.remove(waiter)
            elif (given := waiter.result()) is None:
                self._connecting -= 1
                self._wake()
            elif given.usable:
                self.give_back(given)
            raise
        finally:
            self.stats["wait_us"] += int((self.loop.time() - began) * 1e6)

    def give_back(self, conn: Connection) -> None:
        now = self.loop.time()
        if self.closing or now - conn.born > MAX_AGE_S:
            conn.abort()
            return
        conn.resume()
        if not conn.reused and conn.transport is not None:
            self.connector.remember(conn.transport)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                conn.reused = True
                self.stats["connections_reused"] += 1
                waiter.set_result(conn)
                return
        conn.idle_since = now
        self._idle.append(conn)
        if self._reaper is None:
            self._reaper = self.loop.call_at(now + IDLE_S, self._reap)

    def closed(self, conn: Connection) -> None:
        self._open.discard(conn)
        if conn in self._idle:
            self._idle.remove(conn)
        if self._waiters:
            self._wake()

    def close(self) -> None:
        """Idle connections now, the others when they are given back."""
        self.closing = True
        idle, self._idle = self._idle, []
        for conn in idle:
            conn.abort()
        self.connector.close()
        if self._reaper is not None:
            self._reaper.cancel()
            self._reaper = None

    @property
    def open(self) -> int:
        return len(self._open)

    def _wake(self) -> None:
        """Give the free places to those who wait."""
        while self._waiters and len(self._open) + self._connecting < self.limit:
            waiter = self._waiters.popleft()
            if not waiter.done():
                self._connecting += 1
                waiter.set_result(None)

    def _reap(self) -> None:
        """Close what has been idle too long. The list is ordered by use, so the old ones are in front."""
        self._reaper = None
        oldest = self.loop.time() - IDLE_S
        keep = 0
        while keep < len(self._idle) and self._idle[keep].idle_since <= oldest:
            keep += 1
        old, self._idle = self._idle[:keep], self._idle[keep:]
        for conn in old:
            conn.abort()
        if self._idle:
            self._reaper = self.loop.call_at(self._idle[0].idle_since + IDLE_S, self._reap)
