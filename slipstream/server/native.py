"""The native listener: the hot routes on uvloop transports, without a stream layer between.

Owns the listening socket and the set of open connections, their deadlines and how they end; what happens on one of them
is in ``native_connection.py``. The reference listener stands behind it for everything that is not hot. Both answer the
same to the same bytes: one test suite runs over both.
"""

from __future__ import annotations

import asyncio
import select
import time
from collections.abc import Callable
from email.utils import formatdate
from typing import cast

from .._fast import RequestHead
from ..net.soon import Soon
from ..types import Endpoint
from ..wire.headers import Block
from .acceptor import Accept, Listening
from .app import App
from .limits import CANCEL_S, ListenerLimits
from .listener import Listener
from .native_body import AT_ONCE
from .native_connection import NativeConnection
from .native_exchange import Turns
from .surplus import Surplus

__all__ = ["NativeConnection", "NativeListener"]

PATHS = tuple(endpoint.path.encode() for endpoint in Endpoint)
BACKLOG = 4096
SWEEP_S = 1.0
"""How often deadlines of connections are looked at."""
PAUSED_S = 0.05
"""How often connections are looked at that are not read, so that we cannot see them end (R1: 100 ms)."""
HEADS_MAX = 64
GONE = getattr(select, "POLLRDHUP", 0)


class NativeListener:
    """One listening socket, with the reference listener behind it for everything that is not hot."""

    def __init__(self, app: App, limits: ListenerLimits, reference: Listener) -> None:
        self.app = app
        self.gate = app.gate
        self.admission = app.gate.admission
        self.runtime = app.runtime
        self.limits = limits
        self.reference = reference
        self.loop = asyncio.get_running_loop()
        self.head = RequestHead(PATHS)
        """Used by all connections, one at a time: it holds nothing between two calls of ``_begin``."""
        self.heads: dict[Block, bytes] = {}
        """Heads of ordinary answers up to the request id, made this second."""
        self.heavy = Turns(self.loop)
        self.intake = Soon(self.loop, AT_ONCE)
        """Who reads on in a body that arrives."""
        self.surplus = Surplus(limits.max_connections, self._count, app.refuse_connection, reference)
        self.closing = False
        self.paused: set[NativeConnection] = set()
        """Connections that are not read for the time being."""
        self.stalled: set[NativeConnection] = set()
        """Connections with answers that the client has not taken."""
        self._open: set[NativeConnection] = set()
        self._listening: Listening | None = None
        self._drained = asyncio.Event()
        self._sweeper: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._date = b""
        self._date_until = 0.0
        self._every_s = min(SWEEP_S, limits.header_timeout_s / 4, limits.body_idle_s / 4, limits.keepalive_s / 4)
        self.idle_until = self._idle_until()
        """The deadline of a connection that becomes idle now, not sooner than promised and hardly later."""

    @property
    def port(self) -> int:
        assert self._listening is not None
        return int(self._listening.sockets[0].getsockname()[1])

    @property
    def connections(self) -> int:
        return len(self._open) + self.reference.connections

    async def start(self, host: str | None, port: int, *, accept: Accept | None = None) -> None:
        """Listen on host and port, or where ``accept`` does."""
        protocols = cast("Callable[[], asyncio.Protocol]", self._connection)
        if accept is not None:
            self._listening = accept(protocols)
        else:
            self._listening = await self.loop.create_server(protocols, host, port, backlog=BACKLOG, reuse_address=True)
        self._sweep()

    async def close(self, drain_s: float) -> None:
        """Stop accepting, close idle connections, let requests in flight end within ``drain_s``, cancel the rest."""
        end = self.loop.time() + drain_s
        self.closing = True
        self.heads.clear()
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._open):
            connection.drain()
        self.reference.drain()
        self.surplus.close()
        try:
            await self._until_drained(end)
            tasks = [task for connection in list(self._open) if (task := connection.abort()) is not None]
            if tasks:
                await asyncio.wait(tasks, timeout=CANCEL_S)  # type: ignore[type-var]
            await self._until_drained(self.loop.time() + CANCEL_S)
            await self.reference.close(max(0.0, end - self.loop.time()))
        finally:
            for timer in (self._sweeper, self._watcher):
                if timer is not None:
                    timer.cancel()

    async def _until_drained(self, end: float) -> None:
        if self._open:
            self._drained.clear()
            try:
                async with asyncio.timeout_at(end):
                    await self._drained.wait()
            except TimeoutError:
                pass

    def date(self) -> bytes:
        """The ``Date`` field (RFC 9110 6.6.1), made once a second."""
        now = self.loop.time()
        if now >= self._date_until:
            wall = time.time()
            self._date = formatdate(wall, usegmt=True).encode()
            self._date_until = now + 1 - wall % 1
        return self._date

    def remember(self, headers: Block, head: bytes) -> None:
        """Keep the head of an ordinary answer, until the date in it is no longer true."""
        if len(self.heads) < HEADS_MAX:
            self.heads[headers] = head

    # ------------------------------------------------------------------ called by connections
    def opened(self, connection: NativeConnection) -> None:
        self._open.add(connection)
        if self.closing:
            connection.deadline = self.loop.time() + SWEEP_S

    def closed(self, connection: NativeConnection) -> None:
        """It is lost, or handed over."""
        self._open.discard(connection)
        self.stalled.discard(connection)
        self.paused.discard(connection)
        if self.closing and not self._open:
            self._drained.set()

    def watch(self, connection: NativeConnection) -> None:
        """``connection`` is not read from now on."""
        self.paused.add(connection)
        if self._watcher is None:
            self._watcher = self.loop.call_later(PAUSED_S, self._watch)

    def _watch(self) -> None:
        """Drop paused connections that the client has closed."""
        self._watcher = None
        poller, found = select.poll(), {}
        for connection in self.paused:
            transport = connection.transport
            if transport is not None and not transport.is_closing():
                number = transport.get_extra_info("socket").fileno()
                found[number] = connection
                poller.register(number, GONE)
        for number, _ in poller.poll(0):
            found[number].abort()
        if self.paused:
            self._watcher = self.loop.call_later(PAUSED_S, self._watch)

    def _connection(self) -> NativeConnection:
        return NativeConnection(self)

    def _count(self) -> int:
        return self.connections

    def _idle_until(self) -> float:
        return self.loop.time() + self.limits.keepalive_s + self._every_s

    def _sweep(self) -> None:
        now = self.loop.time()
        self.idle_until = self._idle_until()
        self.heads.clear()
        for connection in [c for c in self._open if c.deadline <= now]:
            connection.expire()
        for connection in list(self.stalled):
            connection.check_progress(now)
        self._sweeper = self.loop.call_later(self._every_s, self._sweep)
