"""What a worker owes the shared table while it lives: a beat a second, and what it counts by itself.

Connections to providers are counted by their transports, which live and die with a worker and with a reload. Once a
second (and before a page is shown) what they have counted since is added to the table, so that the pages speak for all
workers; a worker that is killed takes at most its last second with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from .._fast import Series
from ..engine.runtime import Runtime
from ..net.upstream import Upstream
from ..obs.families import ACTIVE
from ..types import Endpoint

BEAT_S = 1.0
COUNTED = ("connections_made", "connections_reused", "replays", "waits", "wait_us")
"""Of ``Upstream.stats()``."""


class Heartbeat:
    """One per worker. Begins where its predecessor in the slot may have been killed: with nothing in flight."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._seen: dict[Upstream, Mapping[str, int]] = {}
        self._slots = {name: slot_of(runtime.shared.series, name) for name in COUNTED}
        self._timer: asyncio.TimerHandle | None = None
        for endpoint in Endpoint:
            slot = runtime.metrics.slot(ACTIVE, (str(runtime.worker), endpoint.label))
            if slot >= 0:
                runtime.shared.series.set(slot, 0, 0)

    def start(self) -> None:
        self._runtime.table.beat(self._runtime.worker, time.monotonic_ns())
        self._runtime.count_requests(self._runtime.clock())
        self.publish()
        self._timer = asyncio.get_running_loop().call_later(BEAT_S, self.start)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self.publish()

    def publish(self) -> None:
        """Adds to the table what the transports have counted since the last time. Call it before they change."""
        series = self._runtime.shared.series
        seen, self._seen = self._seen, {}
        for outbound in self._runtime.active.outbound.values():
            transport = outbound.transport
            before = seen.get(transport, {})
            now = self._seen[transport] = dict(transport.stats())
            for name, slot in self._slots.items():
                more = now[name] - before.get(name, 0)
                if more and slot >= 0:
                    series.add(slot, 0, more)


def connections(series: Series) -> dict[str, int]:
    """What all workers have counted so far, by the names in ``COUNTED``."""
    slots = {name: slot_of(series, name) for name in COUNTED}
    return {name: series.get(slot, 0) if slot >= 0 else 0 for name, slot in slots.items()}


def slot_of(series: Series, name: str) -> int:
    return series.series(b"upstream\0" + name.encode(), 2)
