"""What requests share: the active configuration in its compiled form, the transports, the counters, the clocks.

A request pins the ``Active`` it started with, so a reload never changes it under way. Reloading builds a whole new
``Active`` and swaps it by one assignment; transports of providers that did not change are taken over with their open
connections, those of the others are closed when their last request is done (R42).
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from .._fast import KEY_MAX
from ..config.snapshot import ProviderSpec, Snapshot
from ..errors import ConfigError
from ..net.upstream import Upstream
from ..obs.metrics import Metrics
from ..obs.redact import Redactor
from ..providers.base import ProviderType, endpoint_url, models_url, outbound_headers
from ..providers.registry import PROVIDER_TYPES
from ..resilience.cooldown import Cooldowns
from ..resilience.watchdog import Deadlines
from ..routing.table import RouteTable
from ..state.table import SharedTable, open_table
from ..types import Clock, Endpoint, Secret
from ..wire.headers import block

SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
MakeTransport = Callable[[ProviderSpec, Snapshot], Upstream]


class Outbound:
    """One provider, ready to be called: its type row, its transport, and URL and header block per endpoint."""

    __slots__ = ("get_models", "key", "kind", "post", "spec", "stream_headers", "transport", "whole_headers")

    def __init__(self, spec: ProviderSpec, snapshot: Snapshot, transport: Upstream) -> None:
        self.spec = spec
        self.key = transport_key(spec, snapshot)
        self.kind: ProviderType = PROVIDER_TYPES[spec.type]
        self.transport = transport
        headers = outbound_headers(self.kind, spec)
        self.post: list[tuple[Any, Any]] = [transport.prepare(endpoint_url(spec, e), headers) for e in Endpoint]
        self.whole_headers = block({"Content-Type": "application/json", "x-slipstream-provider": spec.name})
        """What every whole reply of this provider says to the client."""
        self.stream_headers = block({**SSE_HEADERS, "x-slipstream-provider": spec.name})
        self.get_models = transport.prepare(models_url(spec), outbound_headers(self.kind, spec, json_body=False))


def transport_key(spec: ProviderSpec, snapshot: Snapshot) -> tuple[object, ...]:
    """Two providers (of two generations) with the same key may share a transport and its connections (Q20)."""
    return spec.name, spec.api_base, spec.api_key, spec.max_connections, snapshot.verify_ssl, snapshot.ca_file


class Active:
    """One generation of the configuration, compiled. ``in_flight`` counts the requests that pinned it, and one more
    while requests of an earlier generation run: transports that it took over may still serve them."""

    __slots__ = ("cooldowns", "heir", "in_flight", "on_idle", "outbound", "redact", "routes", "snapshot")

    def __init__(self, snapshot: Snapshot, outbound: Mapping[str, Outbound], shared: SharedTable) -> None:
        self.snapshot = snapshot
        self.routes = RouteTable(snapshot, lambda name: row_of(shared, name), shared.table)
        self.cooldowns = Cooldowns(shared.table)
        self.outbound = outbound
        self.redact = Redactor(_secrets(snapshot))
        self.in_flight = 0
        self.heir: Active | None = None
        """The generation that is held by this one until its requests are done."""
        self.on_idle: Callable[[], None] | None = None
        """Called when the last request of a generation that was replaced is done."""


class Runtime:
    """The process's shared state. ``clock`` is monotonic seconds, ``wall`` Unix time."""

    def __init__(
        self,
        snapshot: Snapshot,
        make_transport: MakeTransport,
        *,
        shared: SharedTable | None = None,
        worker: int | None = None,
        clock: Clock = time.monotonic,
        wall: Clock = time.time,
    ) -> None:
        self.clock = clock
        self.wall = wall
        self.shared = shared or open_table(None)
        self.table = self.shared.table
        self.worker = self.table.claim_worker(os.getpid(), time.monotonic_ns()) if worker is None else worker
        """Our slot in the table; -1 if there was none left, then what is in flight per target is not counted."""
        self.metrics = Metrics(self.shared.series, self.worker)
        self.enter: Callable[[int, int], None] = self.table.enter if self.worker >= 0 else _uncounted
        self.leave: Callable[[int, int], None] = self.table.leave if self.worker >= 0 else _uncounted
        self.started_at = clock()
        self.draining = False
        self._make_transport = make_transport
        self._deadlines: Deadlines | None = None
        self.active = Active(snapshot, self._connect(snapshot, {}), self.shared)

    @property
    def deadlines(self) -> Deadlines:
        """The limits of all attempts in the running loop."""
        found = self._deadlines
        if found is None:
            found = self._deadlines = Deadlines(asyncio.get_running_loop())
        return found

    def pin(self) -> Active:
        """The configuration for one request; ``release`` must follow."""
        active = self.active
        active.in_flight += 1
        return active

    def release(self, active: Active) -> None:
        active.in_flight -= 1
        if active.in_flight:
            return
        if active.on_idle is not None:
            active.on_idle()
        heir, active.heir = active.heir, None
        if heir is not None:
            self.release(heir)

    @property
    def in_flight(self) -> int:
        """Requests in flight in this process."""
        return self.metrics.in_flight

    def swap(self, snapshot: Snapshot) -> list[Upstream]:
        """Make ``snapshot`` the active one. Returns the transports that are no longer used by new requests; close them
        when the old generation's requests are done."""
        old = self.active
        outbound = self._connect(snapshot, old.outbound)
        kept = {id(o.transport) for o in outbound.values()}
        self.active = Active(snapshot, outbound, self.shared)
        if old.in_flight:
            self.active.in_flight += 1
            old.heir = self.active
        return [o.transport for o in old.outbound.values() if id(o.transport) not in kept]

    async def close(self) -> None:
        for outbound in self.active.outbound.values():
            await outbound.transport.close()

    def _connect(self, snapshot: Snapshot, old: Mapping[str, Outbound]) -> dict[str, Outbound]:
        made: dict[str, Outbound] = {}
        for spec in snapshot.providers:
            before = old.get(spec.name)
            keep = before is not None and before.key == transport_key(spec, snapshot)
            transport = before.transport if keep and before is not None else self._make_transport(spec, snapshot)
            made[spec.name] = Outbound(spec, snapshot, transport)
        return made


def _uncounted(_worker: int, _row: int) -> None:
    """In place of ``Table.enter`` and ``leave`` for a worker without a slot."""


def row_of(shared: SharedTable, name: str) -> int:
    """The row of a target's statistics, for the life of the table."""
    key = name.encode()
    if len(key) > KEY_MAX:
        key = key[: KEY_MAX - 33] + b"~" + blake2b(key, digest_size=16).hexdigest().encode()
    row = shared.table.target(key)
    if row < 0:
        raise ConfigError(["the shared table has no room for another target; start with an empty state_dir"])
    return row


def _secrets(snapshot: Snapshot) -> list[Secret]:
    found = [spec.api_key for spec in snapshot.providers]
    found += [value for spec in snapshot.providers for value in spec.headers.values()]
    if snapshot.server.master_api_key is not None:
        found.append(snapshot.server.master_api_key)
    return found
