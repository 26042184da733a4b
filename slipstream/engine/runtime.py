"""What requests share: the active configuration in its compiled form, the transports, the counters, the clocks.

A request pins the ``Active`` it started with, so a reload never changes it under way. Reloading builds a whole new
``Active`` and swaps it by one assignment; transports of providers that did not change are taken over with their open
connections, those of the others are closed when their last request is done (R42).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any

from .._fast import KEY_MAX
from ..config.snapshot import BreakerSpec, ProviderSpec, Snapshot, Timeouts
from ..errors import ConfigError, UpstreamError
from ..net.upstream import Upstream
from ..obs.metrics import Metrics
from ..obs.redact import Redactor
from ..providers.base import ProviderType, Signer, with_fields
from ..providers.registry import PROVIDER_TYPES
from ..resilience.backoff import RetryPolicy
from ..resilience.breaker import Breakers, BreakerSettings
from ..resilience.budget import Budget
from ..resilience.bulkhead import Bulkhead
from ..resilience.cooldown import Cooldowns
from ..resilience.hedge import HedgePolicy, HedgeSettings
from ..resilience.watchdog import Deadlines
from ..routing.table import RouteTable
from ..state.table import SharedTable, open_table
from ..types import Clock, Endpoint, Secret
from ..wire.headers import block
from .pulse import Pulses

log = logging.getLogger("slipstream.server")
SSE_HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache",
    "X-Accel-Buffering": "no",
}
MakeTransport = Callable[[ProviderSpec, Snapshot], Upstream]


MAX_FALLBACKS = 16
PREPARED_MAX = 1024
"""URLs and header blocks kept per provider, where they depend on the model or the request."""


class Outbound:
    """One provider, ready to be called: its type row, its transport, and URL and header block per endpoint."""

    __slots__ = (
        "_bulkhead", "_headers", "_prepared", "_starting", "ask_usage", "connect_s", "first_byte_s", "idle_s", "key",
        "kind", "name", "post", "queue_wait_s", "rename", "signer", "spec", "stream_headers", "total_s", "transport",
        "whole_headers",
    )  # fmt: skip

    def __init__(
        self, spec: ProviderSpec, snapshot: Snapshot, transport: Upstream, signer: Signer | None = None
    ) -> None:
        self.spec = spec
        self.key = transport_key(spec, snapshot)
        self.kind: ProviderType = PROVIDER_TYPES[spec.type]
        self.transport = transport
        self.signer = signer or self.kind.signer(spec)
        self.queue_wait_s = snapshot.resilience.admission.queue_wait_s
        self.name = spec.name
        self.ask_usage, self.rename = self.kind.ask_usage, self.kind.rename
        timeouts = spec.timeouts
        self.connect_s, self.idle_s, self.total_s = timeouts.connect_s, timeouts.idle_s, timeouts.total_s
        self.first_byte_s = first_byte_limits(timeouts)
        """Seconds, for whole replies and for streams."""
        self._bulkhead: Bulkhead | None = None
        self._starting: asyncio.Future[None] | None = None
        self._headers = self.kind.headers(spec)
        self._prepared: dict[tuple[str, tuple[tuple[str, str], ...]], tuple[Any, Any]] = {}
        self.post: dict[Endpoint, tuple[Any, Any]] = {}
        """Where requests of a native endpoint go, if that is always the same place."""
        if not self.kind.by_model and not self.kind.passes and self.signer is None:
            self.post = {
                e: transport.prepare(self.kind.url(spec, e, "", False), self._headers) for e in self.kind.natives
            }
        self.whole_headers = block({"Content-Type": "application/json", "x-slipstream-provider": spec.name})
        """What every whole reply of this provider says to the client."""
        self.stream_headers = block({**SSE_HEADERS, "x-slipstream-provider": spec.name})

    def models_request(self, wall_now: float) -> tuple[Any, Any] | None:
        """URL and header block of the GET that lists its models; ``None`` if there is no such list."""
        url = self.kind.models_url(self.spec)
        if not url:
            return None
        headers = self.kind.headers(self.spec, json_body=False)
        if self.signer is not None:
            headers |= self.signer.headers("GET", url, b"", wall_now)
        return self.transport.prepare(url, headers)

    def bulkhead(self) -> Bulkhead:
        """The places at this provider, of this process (Q01)."""
        found = self._bulkhead
        if found is None:
            limits = self.spec.limits
            found = Bulkhead(limits.max_in_flight, limits.queue, self.queue_wait_s, loop=asyncio.get_running_loop())
            self._bulkhead = found
        return found

    def take_over(self, before: Outbound) -> None:
        """The places of an earlier generation, which are taken by its requests."""
        bulkhead = self._bulkhead = before._bulkhead
        if bulkhead is not None:
            limits = self.spec.limits
            bulkhead.limit, bulkhead.queue_limit = limits.max_in_flight, limits.queue
            bulkhead.queue_wait_s = self.queue_wait_s

    async def ready(self) -> None:
        """Wait for the first credentials, where there is a signer: one wait for all, and again after a failure. Raises
        ``UpstreamError`` if there are none."""
        if self.signer is None:
            return
        if self._starting is None:
            self._starting = asyncio.ensure_future(self.signer.start())
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except UpstreamError:
            if self._starting is starting:
                self._starting = None
            raise

    def field(self, name: str) -> str | None:
        """Our own value of a field of every request, by its name in lower case."""
        return next((value for key, value in self._headers.items() if key.lower() == name), None)

    def prepared(self, url: str, extra: Mapping[str, str] | None, body: bytes, wall_now: float) -> tuple[Any, Any]:
        """URL and header block of one request, signed if the provider wants that. ``extra`` fields are this request's.
        Raises ``UpstreamError`` if there are no credentials."""
        if self.signer is not None:
            signed = {**(extra or {}), **self.signer.headers("POST", url, body, wall_now)}
            return self.transport.prepare(url, with_fields(self._headers, signed))
        key = url, tuple(extra.items()) if extra else ()
        found = self._prepared.get(key)
        if found is None:
            if len(self._prepared) >= PREPARED_MAX:
                self._prepared.clear()
            found = self._prepared[key] = self.transport.prepare(url, with_fields(self._headers, extra or {}))
        return found


def transport_key(spec: ProviderSpec, snapshot: Snapshot) -> tuple[object, ...]:
    """Two providers (of two generations) with the same key may share a transport and its connections (Q20)."""
    return (
        spec.name, spec.type, spec.api_base, spec.api_key, spec.region, spec.max_connections, spec.timeouts.send_s,
        snapshot.verify_ssl, snapshot.ca_file,
    )  # fmt: skip


def breaker_settings(spec: BreakerSpec) -> BreakerSettings:
    """The breaker as it was configured; turned off, none of its rules ever fits."""
    if not spec.enabled:
        return BreakerSettings(consecutive=0, error_share=0.0)
    return BreakerSettings(
        consecutive=spec.consecutive,
        error_share=spec.error_share,
        window_calls=spec.window_calls,
        cooldown_s=spec.cooldown_s,
        cooldown_max_s=spec.max_cooldown_s,
        max_ejected=spec.max_ejected,
        ramp_s=spec.ramp_s,
        latency_factor=spec.latency_factor,
    )


def first_byte_limits(timeouts: Timeouts) -> tuple[float, float]:
    """Seconds to the header block of a whole reply (which comes when the model is done, so its limit is the total
    unless one was configured), and to the first content of a stream."""
    if timeouts.first_byte_s is not None:
        return timeouts.first_byte_s, timeouts.first_byte_s
    return timeouts.total_s, timeouts.stream_first_byte_s


class Active:
    """One generation of the configuration, compiled. ``in_flight`` counts the requests that pinned it, and one more
    while requests of an earlier generation run: transports that it took over may still serve them."""

    __slots__ = (
        "breakers", "cooldowns", "hedges", "hedging", "heir", "in_flight", "on_idle", "outbound", "outlasts", "policy",
        "redact", "routes", "snapshot",
    )  # fmt: skip

    def __init__(
        self,
        snapshot: Snapshot,
        outbound: Mapping[str, Outbound],
        shared: SharedTable,
        hedge_budget: Budget | None = None,
    ) -> None:
        self.snapshot = snapshot
        self.routes = RouteTable(snapshot, lambda name: row_of(shared, name), shared.table)
        self.cooldowns = Cooldowns(shared.table, random.random)
        self.breakers = Breakers(shared.table, breaker_settings(snapshot.resilience.breaker), random.random)
        hedge = snapshot.resilience.hedge
        self.hedges = hedge.enabled
        self.hedging = HedgePolicy(HedgeSettings(hedge.enabled, hedge.delay_s, ratio=hedge.budget_share), hedge_budget)
        attempts = 1 + snapshot.routing.retries
        self.policy = RetryPolicy(max_attempts=attempts * (1 + MAX_FALLBACKS))
        """How long is waited before the next attempt; how many there may be ``engine.search`` says."""
        self.outbound = outbound
        self.outlasts = any(least is not None for least in snapshot.routing.on_disconnect.values())
        """Whether some answers are read to their end for clients that have left (``engine.stay``)."""
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
        self.available: Callable[[int, int], bool] = self.shared.table.available
        """For ``Pool.choose``, bound once."""
        self.worker = self.table.claim_worker(os.getpid(), time.monotonic_ns()) if worker is None else worker
        """Our slot in the table; -1 if there was none left, then what is in flight per target is not counted."""
        self.metrics = Metrics(self.shared.series, self.worker)
        self.requests = 0
        """Requests of the data plane so far."""
        self.started_at = clock()
        self.draining = False
        self.outlasting: set[asyncio.Task[None]] = set()
        """Requests whose client has left."""
        self._make_transport = make_transport
        self._deadlines: Deadlines | None = None
        self._pulses: Pulses | None = None
        retry = snapshot.resilience.retry
        self.retry_budget = Budget(retry.budget_share, retry.budget_per_s)
        """Of this process, not of a generation: a reload hands out nothing (Q05)."""
        self._counted = 0
        self.active = Active(snapshot, self._connect(snapshot, {}), self.shared)

    def count_requests(self, now: float) -> None:
        """Tell the retry budget of the requests since the last time: once a second, and before it is asked."""
        self.retry_budget.request(now, self.requests - self._counted)
        self._counted = self.requests

    def pulses(self) -> Pulses:
        """The heartbeats of all streams in the running loop."""
        found = self._pulses
        if found is None:
            found = self._pulses = Pulses(asyncio.get_running_loop(), self.active.snapshot.server.heartbeat_s)
        return found

    def deadlines(self) -> Deadlines:
        """The limits of all attempts in the running loop."""
        found = self._deadlines
        if found is None:
            found = self._deadlines = Deadlines(asyncio.get_running_loop())
        return found

    def enter(self, row: int) -> None:
        """An attempt at the target in ``row`` begins; ``leave`` must follow."""
        if self.worker >= 0:
            self.table.enter(self.worker, row)

    def leave(self, row: int) -> None:
        if self.worker >= 0:
            self.table.leave(self.worker, row)

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

    def swap(self, snapshot: Snapshot) -> list[Upstream | Signer]:
        """Make ``snapshot`` the active one. Returns the transports and signers that are no longer used by new requests;
        close them when the old generation's requests are done."""
        old = self.active
        outbound = self._connect(snapshot, old.outbound)
        kept = {id(o.transport) for o in outbound.values()}
        same = snapshot.resilience.hedge.budget_share == old.snapshot.resilience.hedge.budget_share
        self.active = Active(snapshot, outbound, self.shared, old.hedging.budget if same else None)
        if self._pulses is not None:
            self._pulses.every_s = snapshot.server.heartbeat_s
        if old.in_flight:
            self.active.in_flight += 1
            old.heir = self.active
        unused = [o for o in old.outbound.values() if id(o.transport) not in kept]
        return [o.transport for o in unused] + [o.signer for o in unused if o.signer is not None]

    async def start(self) -> None:
        """Get the credentials that change while we run, before the first request needs them. For a provider that has
        none this is the warning; its requests ask again and fail with the reason."""
        for outbound in self.active.outbound.values():
            try:
                await outbound.ready()
            except UpstreamError as error:
                log.warning(
                    "no credentials", extra={"fields": {"provider": outbound.spec.name, "reason": error.message}}
                )

    async def close(self) -> None:
        """Nobody waits for an answer any more: requests without a client end, then connections are closed."""
        for task in self.outlasting:
            task.cancel()
        if self.outlasting:
            await asyncio.wait(self.outlasting)
        for outbound in self.active.outbound.values():
            await outbound.transport.close()
            if outbound.signer is not None:
                await outbound.signer.close()

    def _connect(self, snapshot: Snapshot, old: Mapping[str, Outbound]) -> dict[str, Outbound]:
        made: dict[str, Outbound] = {}
        for spec in snapshot.providers:
            before = old.get(spec.name)
            keep = before is not None and before.key == transport_key(spec, snapshot)
            if keep and before is not None:
                made[spec.name] = Outbound(spec, snapshot, before.transport, before.signer)
                made[spec.name].take_over(before)
            else:
                made[spec.name] = Outbound(spec, snapshot, self._make_transport(spec, snapshot))
        return made


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
