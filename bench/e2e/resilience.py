"""The mode ``resilience``: what breakers, budgets, places and limits cost a request that goes well, which most are.

Ours as a new user gets it, beside the same with all of it switched off by configuration; and with what is off by
default switched on: limits per minute, an adaptive cap, probes and breakers by latency, then hedging too (that of whole
replies, which never comes to pass: each request gets a race of one). The load, the rounds and the nginx beside them are
those of the mode unary; the peers take turns in a round, so that the ratio of a round knows no drift of the machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import check, payloads
from .modes import CHECKED, CONNECTIONS, Effort, Entrant, Result, fast_house, finished, requests, say
from .peers import PROVIDERS, Config, Peer, serve
from .proc import Cores

MODE = "resilience"
OURS, OFF, MORE, HEDGED = "slipstream", "resilience-off", "resilience-more", "resilience-hedged"
TITLES = {
    OFF: "Slipstream, resilience off",
    MORE: "Slipstream, with limits and probes",
    HEDGED: "Slipstream, with hedging too",
}
BAR = 1.10
"""Times the CPU per request without resilience."""

NO_PLACES = "limits: {max_in_flight: 1000000, queue: 0}"
EVERY_LIMIT = "limits: {requests_per_min: 100000000, tokens_per_min: 1000000000000}"
"""So high that nobody reaches them: what is measured is the counting."""
SWITCHED_OFF = """
routing: {retries: 0}
resilience:
  breaker: {enabled: false}
  retry: {budget_share: 0, budget_per_s: 0}
  hedge: {enabled: false}
  admission: {max_in_flight: 1000000, queue: 0, adaptive: false, max_rss_mb: 0, max_lag_ms: 86400000}
  probe_s: 0
"""
SWITCHED_ON = """
resilience:
  breaker: {latency_factor: 10}
  admission: {adaptive: true, max_rss_mb: 100000}
  probe_s: 1
"""
HEDGES = """  hedge: {enabled: true, delay_ms: 5000}
"""


def variant(limits: str, settings: str) -> Config:
    """Our gateway with these limits of each provider and these settings beside."""

    def config(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
        base = f"http://127.0.0.1:{upstream}/v1"
        entries = [f'api_base: "{base}", api_key: sk-up-{name}, {limits}' for name in PROVIDERS]
        return serve(folder, port, entries, settings)

    return config


def peers_of(peers: Sequence[Peer]) -> list[Peer]:
    """nginx, if it was asked for, and ours four times."""
    ours = [peer for peer in peers if peer.name in ("nginx", OURS)]
    if not any(peer.name == OURS for peer in ours):
        return []
    return [
        *ours,
        Peer(OFF, TITLES[OFF], variant(NO_PLACES, SWITCHED_OFF)),
        Peer(MORE, TITLES[MORE], variant(EVERY_LIMIT, SWITCHED_ON)),
        Peer(HEDGED, TITLES[HEDGED], variant(EVERY_LIMIT, SWITCHED_ON + HEDGES)),
    ]


def measure(peers: Sequence[Peer], cores: Cores, effort: Effort) -> dict[str, Result]:
    chosen, chars = peers_of(peers), payloads.SIZES["unary"]
    if not chosen:
        return {}
    questions = check.static(chars, CHECKED["unary"])
    with fast_house(chosen, cores) as (stage, _, running):
        for e in running:
            e.do(Entrant.check, questions)
        rows = requests(stage, running, chars, CONNECTIONS["unary"], effort)
        for e in running:
            e.do(Entrant.check, questions)
        rows = finished(running, rows)
    for name in (OURS, MORE, HEDGED):
        rows[name]["x_off"] = times_off(rows, name)
        say(f"  {MODE:9} {name}: {rows[name]['x_off']:.3f} times the CPU of {OFF}")
    return {MODE: rows}


def times_off(rows: Mapping[str, Any], name: str) -> float:
    """CPU per request of ``name`` by that without resilience: the median of the rounds' ratios."""
    pairs = zip(rows[name]["all"], rows[OFF]["all"], strict=True)
    return round(statistics.median(mine / without for mine, without in pairs), 3)


def note(rows: Mapping[str, Any]) -> str:
    default, more, hedged = (f"{rows[name]['x_off']:.2f}" for name in (OURS, MORE, HEDGED))
    return (
        f"\nCPU per request by that with resilience switched off: {default} with the defaults (bar {BAR:.2f}), {more} "
        f"with limits and probes, {hedged} with hedging too. Medians of the rounds' ratios.\n"
    )


def missed(modes: Mapping[str, Any]) -> list[str]:
    """The bar, if the mode was measured."""
    rows = modes.get(MODE)
    if rows is None or rows[OURS]["x_off"] <= BAR:
        return []
    return [f"{MODE}: {rows[OURS]['x_off']:.2f} times the CPU per request without, bar {BAR:.2f}"]
