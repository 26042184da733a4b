"""The contents of our own pages: health, readiness, metrics. Pure functions of the runtime."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from ..engine.runtime import Runtime
from ..obs.metrics import render

PROBLEM_BASE = "https://slipstream.dev/problems/"


def health_detailed(runtime: Runtime) -> dict[str, Any]:
    """Per provider: whether it is healthy, what it did, how long it still rests (seconds)."""
    active = runtime.active
    now = runtime.clock()
    providers = []
    for spec in active.snapshot.providers:
        stats = runtime.metrics.providers.get(spec.name)
        rows = [t.row for t in active.routes.targets if t.provider is spec]
        resting = max((active.cooldowns.remaining_s(row, now) for row in rows), default=0.0)
        providers.append(
            {
                "name": spec.name,
                "type": spec.type,
                "healthy": stats.healthy if stats is not None else True,
                "attempts": stats.attempts if stats is not None else 0,
                "failures": stats.failures if stats is not None else 0,
                "last_failure": stats.last_failure if stats is not None else None,
                "latency_ms": round(stats.latency_s * 1000, 1) if stats is not None else None,
                "resting_s": round(resting, 1),
                "connections": dict(active.outbound[spec.name].transport.stats()),
            }
        )
    healthy = sum(1 for p in providers if p["healthy"])
    return {
        "status": "ok" if healthy == len(providers) else ("degraded" if healthy else "down"),
        "ready": not_ready(runtime) is None,
        "uptime_s": round(now - runtime.started_at, 1),
        "in_flight": runtime.in_flight,
        "config": {"source": active.snapshot.source, "generation": active.snapshot.generation},
        "providers": providers,
    }


def not_ready(runtime: Runtime) -> dict[str, Any] | None:
    """The RFC 9457 problem that keeps us from serving, or ``None``: draining, or every target rests."""
    if runtime.draining:
        return _problem("draining", "Draining", "The server is shutting down.")
    active = runtime.active
    now = runtime.clock()
    targets = active.routes.targets
    if targets and all(active.cooldowns.resting(t.row, now) for t in targets):
        return _problem("no-provider", "No provider is available", "Every provider failed a moment ago.")
    return None


def _problem(name: str, title: str, detail: str) -> dict[str, Any]:
    return {"type": PROBLEM_BASE + name, "title": title, "status": 503, "detail": detail}


def metrics(runtime: Runtime, accept: str) -> tuple[bytes, str]:
    return render(runtime.metrics, list(_gauges(runtime)), accept)


def _gauges(runtime: Runtime) -> Iterator[tuple[str, str, float]]:
    active = runtime.active
    made = reused = replays = 0
    for outbound in active.outbound.values():
        stats = outbound.transport.stats()
        made += stats["connections_made"]
        reused += stats["connections_reused"]
        replays += stats["replays"]
    yield "slipstream_uptime_seconds", "Since this process started.", runtime.clock() - runtime.started_at
    yield "slipstream_config_generation", "Grows with every reload.", float(active.snapshot.generation)
    yield "slipstream_upstream_connections_made", "Connections opened to providers.", float(made)
    yield "slipstream_upstream_connections_reused", "Requests sent on a connection that was open.", float(reused)
    yield (
        "slipstream_upstream_replays",
        "Requests sent again because an idle connection was closed (R40).",
        float(replays),
    )
    yield "slipstream_resident_memory_bytes", "Resident set of this process.", float(resident_bytes())


def resident_bytes() -> int:
    """Resident set size of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
