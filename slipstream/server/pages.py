"""The contents of our own pages: health, readiness, metrics. Pure functions of the runtime."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..config.snapshot import ProviderSpec
from ..engine.probe import last_probe
from ..engine.runtime import Runtime
from ..engine.search import ready_in_s
from ..obs.exposition import Gauge, render
from ..obs.families import ACTIVE
from ..state.table import NEUTRAL
from ..types import Endpoint, FailureClass
from .heartbeat import connections
from .load import READY_LAG_S, Load, resident_bytes

CB_STATE = {"open": 0.0, "half-open": 1.0, "closed": 2.0}
"""Contracts E, ``router_cb_state``; the worst first."""
PROBLEM_BASE = "https://slipstream.dev/problems/"


def health_detailed(runtime: Runtime, load: Load | None = None) -> dict[str, Any]:
    """Per provider: whether it is healthy, what it did, how long it still rests. Of all workers, but for
    connections.
    """
    active = runtime.active
    now = runtime.clock()
    providers = [_provider(runtime, spec, now) for spec in active.snapshot.providers]
    healthy = sum(1 for p in providers if p["healthy"])
    return {
        "status": "ok" if healthy == len(providers) else ("degraded" if healthy else "down"),
        "ready": not_ready(runtime, load) is None,
        "uptime_s": round(now - runtime.started_at, 1),
        "in_flight": in_flight(runtime),
        "config": {"source": active.snapshot.source, "generation": active.snapshot.generation},
        "providers": providers,
    }


def _provider(runtime: Runtime, spec: ProviderSpec, now: float) -> dict[str, Any]:
    active, table = runtime.active, runtime.table
    rows = [t.row for t in active.routes.targets if t.provider is spec]
    counts = [sum(column) for column in zip(*(table.counters(row) for row in rows), strict=True)] or [0] * 16
    failures = [(at, kind, since) for kind, at, since in map(table.last_failure, rows) if kind]
    latencies = [latency for row in rows if (latency := table.ewma(row)[0])]
    return {
        "name": spec.name,
        "type": spec.type,
        "healthy": not any(since for _, _, since in failures),
        "attempts": sum(counts),
        "failures": sum(counts[failure] for failure in FailureClass if failure and not NEUTRAL >> failure & 1),
        "last_failure": FailureClass(max(failures)[1]).label if failures else None,
        "latency_ms": round(sum(latencies) / len(latencies) / 1000, 1) if latencies else None,
        "resting_s": round(max((active.cooldowns.remaining_s(row, now) for row in rows), default=0.0), 1),
        "breaker": breaker_state(runtime, rows, now),
        "probe": last_probe(runtime.shared.series, spec.name) if active.snapshot.resilience.probe_s > 0 else None,
        "queued": active.outbound[spec.name].bulkhead().queued,
        "connections": dict(active.outbound[spec.name].transport.stats()),
    }


def breaker_state(runtime: Runtime, rows: list[int], now: float) -> str:
    """The state of a provider that has several targets: that of the worst."""
    states = {runtime.active.breakers.state(row, now) for row in rows}
    return next((state for state in CB_STATE if state in states), "closed")


def in_flight(runtime: Runtime) -> int:
    """Requests in flight in all workers."""
    series, live = runtime.shared.series, [str(worker) for worker, *_ in runtime.table.workers()]
    slots = [runtime.metrics.slot(ACTIVE, (worker, endpoint.label)) for worker in live for endpoint in Endpoint]
    return sum(series.get(slot, 0) for slot in slots if slot >= 0)


def not_ready(runtime: Runtime, load: Load | None = None) -> dict[str, Any] | None:
    """The RFC 9457 problem that keeps us from serving, or ``None``: draining, a loop that was blocked, or every target
    rests."""
    if runtime.draining:
        return _problem("draining", "Draining", "The server is shutting down.")
    if load is not None and load.lag_s() > READY_LAG_S:
        return _problem("loop-lag", "The worker is stuck", "Its event loop was blocked for seconds.")
    active = runtime.active
    now = runtime.clock()
    targets = active.routes.targets
    if targets and all(ready_in_s(active, target, now) > 0 for target in targets):
        return _problem("no-provider", "No provider is available", "Every provider failed a moment ago.")
    return None


def _problem(name: str, title: str, detail: str) -> dict[str, Any]:
    return {"type": PROBLEM_BASE + name, "title": title, "status": 503, "detail": detail}


def metrics(runtime: Runtime, accept: str, load: Load | None = None) -> tuple[bytes, str]:
    """The Prometheus page: series of all workers, gauges of this one where they are its own."""
    live = [worker for worker, *_ in runtime.table.workers()]
    return render(runtime.shared.series, list(_gauges(runtime, load)), live, accept)


def _gauges(runtime: Runtime, load: Load | None) -> Iterator[Gauge]:
    active, table = runtime.active, runtime.table
    by_provider = ("provider",)
    health: list[tuple[tuple[str, ...], float]] = []
    latency: list[tuple[tuple[str, ...], float]] = []
    states: dict[str, str] = {}
    for spec in active.snapshot.providers:
        state = _provider(runtime, spec, runtime.clock())
        states[spec.name] = state["breaker"]
        if state["attempts"]:
            health.append(((spec.name,), float(state["healthy"])))
            latency.append(((spec.name,), (state["latency_ms"] or 0.0) / 1000))
    breakers: list[tuple[tuple[str, ...], float]] = [((name,), CB_STATE[state]) for name, state in states.items()]
    yield "router_cb_state", "Breaker: 0 open, 1 half-open, 2 closed.", by_provider, breakers
    yield "llm_proxy_provider_health", "1 if the last telling attempt succeeded.", by_provider, health
    yield "llm_proxy_provider_latency_seconds", "Moving average of the time to the header block.", by_provider, latency
    counted = connections(runtime.shared.series)
    for name, text, value in (
        ("uptime_seconds", "Since this process started.", runtime.clock() - runtime.started_at),
        ("config_generation", "Grows with every reload.", active.snapshot.generation),
        ("upstream_connections_made", "Connections opened to providers.", counted["connections_made"]),
        ("upstream_connections_reused", "Requests sent on an open connection.", counted["connections_reused"]),
        ("upstream_replays", "Requests sent again as an idle connection was closed (R40).", counted["replays"]),
        ("upstream_waits", "Requests that waited for a connection to become free (R41).", counted["waits"]),
        ("upstream_wait_seconds", "How long they waited, together.", counted["wait_us"] / 1e6),
        ("resident_memory_bytes", "Resident set of this process.", resident_bytes()),
        ("loop_lag_seconds", "Worst delay of this process in the last second.", load.lag_s() if load else 0.0),
        ("workers", "Worker slots in use.", len(table.workers())),
        ("series_dropped", "Additions lost because the table is full.", runtime.metrics.dropped),
    ):
        yield f"slipstream_{name}", text, (), [((), float(value))]
