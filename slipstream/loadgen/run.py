"""One run: the schedule on one side, a bounded pool of connections on the other, the books in between.

Open loop (a rate is given): what is due is sent on an idle connection, the last used first, or on a new one while there
are fewer than ``concurrency``. When all are busy nothing is queued anywhere: the schedule is simply not advanced, and
what is sent late keeps its intended moment. Closed loop (rate 0): every connection sends again as soon as it can.

The end: arrivals stop with the window; what is in flight may finish (each at most its time-out); arrivals that never
got a connection are counted as dropped, with their waiting. ``stop`` ends at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, takewhile

from .client import CONNECT, Connection
from .reply import Reading
from .schedule import NS_PER_S, arrivals
from .stats import Recorder
from .target import Target
from .timer import timer

TICK_NS = 100_000
"""Arrivals closer together than this go out together: at most 10,000 wake-ups a second."""
SWEEPS_PER_TIMEOUT = 20
MIN_SWEEP_S, MAX_SWEEP_S = 0.005, 0.25
CONNECT_RETRY_S = 0.1
"""A closed loop waits so long after it could not connect: refusing is fast, and a million refusals say no more."""
PROBE_S = 5.0
CLOSE_TURNS = 20

Row = Callable[[int, int, str, bool, str, float], None]
"""Called per measured request: intended moment (epoch, ns), latency (ns), code, ok, provider, cost."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much load. ``qps`` 0 is a closed loop, which ``max_requests`` may end early."""

    qps: float
    concurrency: int
    duration_s: float
    warmup_s: float = 0.0
    timeout_s: float = 30.0
    arrival: str = "constant"
    seed: int | None = None
    max_requests: int | None = None


class Run:
    """``Owner`` of the connections. ``go`` runs to the end, once."""

    def __init__(
        self,
        target: Target,
        payloads: Sequence[bytes],
        plan: Plan,
        new_reading: Callable[[], Reading],
        recorder: Recorder,
        on_row: Row | None = None,
    ) -> None:
        self.plan = plan
        self.recorder = recorder
        self.busy = self.sent = self.done = self.failed = self.opened = 0
        self.completed = 0
        """Replies within the measured window."""
        self.start_ns = self.measure_ns = self.end_ns = self.last_ns = 0
        self.interrupted = False
        self._target = target
        self._payloads = cycle(payloads)
        self._new_reading = new_reading
        self._on_row = on_row
        self._tls = ssl.create_default_context() if target.scheme == "https" else None
        self._address = target.host
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._due: Iterator[int] = iter(())
        self._next_ns: int | None = None
        self._over = asyncio.Event()
        self._ended = False

    # ------------------------------------------------------------------ the run
    async def go(self, on_second: Callable[[], None] | None = None) -> None:
        """Run to the end. Raises ``OSError`` when the host has no address."""
        plan = self.plan
        loop = self._loop = asyncio.get_running_loop()
        self._address = await self._find_address()
        if self.interrupted:
            return
        self._timer = timer(loop, self._pump)
        self._epoch_ns = time.time_ns() - time.monotonic_ns()
        self.start_ns = time.monotonic_ns()
        self.measure_ns = self.start_ns + round(plan.warmup_s * NS_PER_S)
        self.end_ns = self.measure_ns + round(plan.duration_s * NS_PER_S)
        if plan.qps:
            moments = arrivals(plan.qps, plan.arrival, plan.seed, self.end_ns - self.start_ns)
            self._due = (self.start_ns + at for at in moments)
            self._next_ns = next(self._due, None)
        clock = loop.create_task(self._watch(on_second))
        clock.add_done_callback(lambda _: self._over.set())  # it never ends by itself
        try:
            if plan.qps:
                self._pump()
            else:
                for _ in range(plan.concurrency):
                    self._again(None)
            await self._over.wait()
            if clock.done():
                clock.result()
        finally:
            clock.cancel()
            self._timer.close()
            await self._close()

    def stop(self) -> None:
        """End now: what is in flight is abandoned."""
        if self._ended and not self.busy:
            return
        self.interrupted = True
        now = time.monotonic_ns()
        self._end(now)
        for connection in self._all:
            if connection.busy and connection.intended_ns >= self.measure_ns:
                self.recorder.abandon(connection.intended_ns, now)
        self._over.set()

    @property
    def measured_s(self) -> float:
        """The length of the measured window, so far."""
        return max(0, min(time.monotonic_ns(), self.end_ns) - self.measure_ns) / NS_PER_S

    async def _watch(self, on_second: Callable[[], None] | None) -> None:
        """Time-outs, the end of the window, and the second's tick."""
        pause_s = min(MAX_SWEEP_S, max(MIN_SWEEP_S, self.plan.timeout_s / SWEEPS_PER_TIMEOUT))
        limit_ns = round(self.plan.timeout_s * NS_PER_S)
        second_ns = self.start_ns + NS_PER_S
        while True:
            now = time.monotonic_ns()
            left_s = (self.end_ns - now) / NS_PER_S
            await asyncio.sleep(min(pause_s, left_s) if left_s > 0 else pause_s)
            now = time.monotonic_ns()
            if now >= self.end_ns and not self._ended:
                self._pump()  # what became due since the timer's last tick
                self._end(now)
            for connection in [c for c in self._all if c.busy and now - c.dispatched_ns >= limit_ns]:
                connection.give_up(now)
            if on_second is not None and now >= second_ns:
                second_ns += NS_PER_S * ((now - second_ns) // NS_PER_S + 1)
                on_second()

    def _end(self, now: int) -> None:
        """No more requests from here on."""
        if self._ended:
            return
        self._ended = True
        self.end_ns = min(self.end_ns, now)
        if self._next_ns is not None:
            waiting = takewhile(lambda at: at <= now, chain((self._next_ns,), self._due))
            self.recorder.drop((at for at in waiting if at >= self.measure_ns), now)
            self._next_ns = None
        if not self.busy:
            self._over.set()

    async def _close(self) -> None:
        for connection in list(self._all):
            connection.close()
        self._all.clear()
        for _ in range(CLOSE_TURNS):  # the transports tell their protocols in later turns of the loop
            await asyncio.sleep(0)

    # ------------------------------------------------------------------ sending
    def _pump(self) -> None:
        """Open loop: send what is due, as far as there are connections, and wake up for what is next."""
        now = time.monotonic_ns()
        while (at := self._next_ns) is not None:
            if at > now:
                self._timer.arm(max(at, now + TICK_NS))
                return
            connection = self._free()
            if connection is None:
                return  # whoever finishes comes here again
            self._next_ns = next(self._due, None)
            self._send(connection, at, now)

    def _again(self, connection: Connection | None) -> None:
        """Closed loop: a connection, or the place of one, is free."""
        now = time.monotonic_ns()
        limit = self.plan.max_requests
        if self._ended or now >= self.end_ns:
            return
        if limit is not None and self.sent >= limit:
            self._end(now)
            return
        if connection is None:
            connection = self._free()
        if connection is not None:
            self._send(connection, now, now)

    def _free(self) -> Connection | None:
        if self._idle:
            return self._idle.pop()
        if len(self._all) >= self.plan.concurrency:
            return None
        connection = Connection(self, self._new_reading())
        self._all.add(connection)
        return connection

    def _send(self, connection: Connection, intended_ns: int, now: int) -> None:
        self.busy += 1
        self.sent += 1
        connection.dispatch(next(self._payloads), intended_ns, now)
        if connection.connecting is None:
            connection.connecting = self._loop.create_task(self._connect(connection))

    async def _connect(self, connection: Connection) -> None:
        self.opened += 1
        host = self._target.host if self._tls else None
        try:
            await self._loop.create_connection(
                lambda: connection, self._address, self._target.port, ssl=self._tls, server_hostname=host
            )
        except (OSError, asyncio.CancelledError):
            connection.connecting = None
            connection.failed_to_connect(time.monotonic_ns())

    # ------------------------------------------------------------------ Owner
    def finished(self, connection: Connection, code: str, ok: bool, reusable: bool) -> None:
        now = self.last_ns = connection.done_ns
        self.busy -= 1
        self.done += 1
        if not ok:
            self.failed += 1
        if self.measure_ns <= now < self.end_ns:
            self.completed += 1
        if connection.intended_ns >= self.measure_ns:
            self._record(connection, code, ok)
        if not reusable:
            self._all.discard(connection)
        if self._ended:
            if not self.busy:
                self._over.set()
        elif self.plan.qps:
            if reusable:
                self._idle.append(connection)
            if self._next_ns is not None and self._next_ns <= now:
                self._pump()
        elif code == CONNECT:
            self._loop.call_later(CONNECT_RETRY_S, self._again, None)
        else:
            self._again(connection if reusable else None)

    def lost(self, connection: Connection) -> None:
        self._all.discard(connection)
        with contextlib.suppress(ValueError):
            self._idle.remove(connection)

    def _record(self, connection: Connection, code: str, ok: bool) -> None:
        reading, intended = connection.reading, connection.intended_ns
        provider, cost = connection.provider or reading.provider, reading.cost_usd
        self.recorder.add(
            intended, connection.sent_ns, connection.first_ns, connection.done_ns, code, ok, provider, cost
        )
        if self._on_row is not None:
            self._on_row(self._epoch_ns + intended, connection.done_ns - intended, code, ok, provider, cost)

    # ------------------------------------------------------------------ the address
    async def _find_address(self) -> str:
        """One address for the whole run: a look-up per connection would be measured as the server's. Of several (as
        ``localhost`` has) the first that takes a connection."""
        try:
            found = await self._loop.getaddrinfo(self._target.host, self._target.port, type=socket.SOCK_STREAM)
        except UnicodeError:  # an empty label, or one that is too long
            raise OSError("not a host name") from None
        hosts = list(dict.fromkeys(str(info[4][0]) for info in found))
        for host in hosts if len(hosts) > 1 else ():
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(PROBE_S):
                    transport, _ = await self._loop.create_connection(asyncio.Protocol, host, self._target.port)
                transport.close()
                return host
        return hosts[0]
