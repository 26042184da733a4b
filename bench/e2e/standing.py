"""What connections cost that are only there: ``idle`` keep-alive connections, ``streams`` in flight. And ``own``:
the gateway's own time per request as it says itself, and what a decision and an update of the statistics cost.

One peer at a time, because memory is the figure. PSS of the whole process tree; the kernel's share (socket buffers) is
in nobody's PSS and the same for all.
"""

from __future__ import annotations

import json
import re
import statistics
import time
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

from . import check, load, payloads
from .modes import Effort, Result, fast_house, say, thinking_house
from .peers import CONNECTIONS, Peer
from .proc import Cores, Failed, Memory, Running, Stage, free_port, open_files

IDLE = 10_000
STREAMS = 1_000
SPARE_FILES = 200
"""Of a peer and a client, beside their connections. HAProxy insists on two per connection that it is told to expect."""
HOLD_TIMEOUT_S = 120.0
SETTLE_S = 1.0
WARM_UP = 64
ENOUGH = 0.9
TRICKLE_MS = 1000.0
TRICKLE_EVENTS = 30
OWN_CONNECTIONS = 100
OWN_DELAY_MS = 50.0
SAMPLE = re.compile(r'^slipstream_overhead_seconds_(bucket\{le="([^"]+)"\}|sum|count) (\S+)$', re.MULTILINE)


def idle(peers: Sequence[Peer], cores: Cores, wanted: int = IDLE) -> Result:
    """Bytes of PSS per connection that has had one answer and waits."""
    files = open_files(2 * (wanted + 2 * SPARE_FILES))

    def measure(peer: Peer, stage: Stage) -> Result:
        count = min(wanted, files // (2 if peer.name == "haproxy" else 1) - 2 * SPARE_FILES)
        if count < wanted:
            say(f"  idle: {count} connections instead of {wanted}, more files may not be open here (ulimit -Hn)")
        running, headers, before = alone(peer, stage, count + SPARE_FILES)
        command = load.client_command(stage, "idle", running.port, count, HOLD_TIMEOUT_S, json.dumps(headers))
        with load.holding(command) as holder:
            told = holder.read()
            after = settled(running)
            still = holder.go_on()["open"]
        running.check()
        enough(peer, "idle connections", min(told["ready"], still), count)
        return {
            "connections": still,
            "bad": count - min(told["ready"], still),
            "bytes_per_connection": round((after.pss - before.pss) / max(still, 1)),
            "pss_before_mb": round(before.pss / 1e6, 1),
            "pss_after_mb": round(after.pss / 1e6, 1),
        }

    return one_by_one("idle", measure, peers, cores)


def streams(peers: Sequence[Peer], cores: Cores, count: int = STREAMS) -> Result:
    """PSS while that many streams are in flight, each with an event a second."""
    open_files(2 * count + SPARE_FILES)

    def measure(peer: Peer, stage: Stage) -> Result:
        running, headers, before = alone(peer, stage, CONNECTIONS, "--gap-ms", TRICKLE_MS, "--events", TRICKLE_EVENTS)
        command = load.client_command(stage, "streams", running.port, count, HOLD_TIMEOUT_S, json.dumps(headers))
        with load.holding(command) as holder:
            told = holder.read()
            during = settled(running)
            end = holder.go_on()
        running.check()
        good = min(told["ready"], end["open"], end["complete"], end["events"] // TRICKLE_EVENTS)
        enough(peer, "streams", good, count)
        return {
            "streams": end["open"],
            "bad": count - good,
            "pss_before_mb": round(before.pss / 1e6, 1),
            "pss_mb": round(during.pss / 1e6, 1),
            "rss_mb": round(during.rss / 1e6, 1),
            "bytes_per_stream": round((during.pss - before.pss) / max(end["open"], 1)),
        }

    return one_by_one("streams", measure, peers, cores)


def one_by_one(mode: str, measure: Callable[[Peer, Stage], Result], peers: Sequence[Peer], cores: Cores) -> Result:
    """As ``Entrant.do``: a rival that fails is out, with one of the others the run has failed."""
    found: Result = {}
    for peer in peers:
        try:
            with Stage(cores) as stage:
                found[peer.name] = measure(peer, stage)
        except Failed as error:
            if peer.exact:
                raise
            found[peer.name] = {"failed": str(error).split("\n", 1)[0]}
        say(f"  {mode:9} {peer.name:12} {found[peer.name]}")
    return found


def enough(peer: Peer, what: str, kept: int, count: int) -> None:
    """Memory per connection means nothing when most are gone (uvicorn and Node close idle ones after five seconds)."""
    if kept < count * ENOUGH:
        raise Failed(f"{peer.name}: only {kept} of {count} {what} were held to the end")


def alone(
    peer: Peer, stage: Stage, connections: int, *upstream_arguments: object
) -> tuple[Running, dict[str, str], Memory]:
    """The peer before its upstream, warm, with its headers and its memory."""
    upstream = free_port()
    load.thinking_upstream(stage, upstream, *upstream_arguments)
    running, _ = peer.start(stage, upstream, connections)
    headers = peer.headers(upstream)
    check.check(peer.name, running.port, headers, check.thinking(900, WARM_UP), exact=peer.exact)
    return running, headers, settled(running)


def settled(running: Running) -> Memory:
    time.sleep(SETTLE_S)
    return Memory(running.pids())


def own(peers: Sequence[Peer], cores: Cores, effort: Effort) -> Result:
    """``slipstream_overhead_seconds`` (R38) over rounds at 100 concurrent requests: before an upstream that thinks
    for 50 ms, and before one that answers at once, where the gateway's core is saturated."""
    ours = [peer for peer in peers if peer.name in ("slipstream", "reference")]
    found: Result = {peer.name: {} for peer in ours}
    with thinking_house(ours, cores, "--delay-ms", OWN_DELAY_MS) as (stage, _, running):
        for e in running:
            found[e.peer.name]["busy"] = overhead(stage, e.running.port, effort)
    with fast_house(ours, cores) as (stage, _, running):
        for e in running:
            found[e.peer.name]["saturated"] = overhead(stage, e.running.port, effort)
    for name, values in found.items():
        values["bad"] = sum(values[kind]["bad"] for kind in ("busy", "saturated"))
        say(f"  own       {name:12} {values}")
    return found | {"micro": micro()}


def overhead(stage: Stage, port: int, effort: Effort) -> Result:
    load.wrk(stage, port, payloads.SIZES["unary"], OWN_CONNECTIONS, 1)
    before = scrape(port)
    seen = load.wrk(stage, port, payloads.SIZES["unary"], OWN_CONNECTIONS, effort.seconds * 2)
    after = scrape(port)
    counts = {key: after[key] - before.get(key, 0.0) for key in after}
    total = counts.pop("count")
    seconds = counts.pop("sum")
    if not total:
        raise Failed("slipstream_overhead_seconds did not move: nothing observes it")
    buckets = sorted((float(bound), count) for bound, count in counts.items())
    return {
        "n": int(total),
        "bad": seen.bad,
        "requests_per_s": round(seen.done / seen.seconds),
        "mean_us": round(seconds / total * 1e6, 1),
        "p50_us_at_most": bound_us(buckets, 0.5),
        "p99_us_at_most": bound_us(buckets, 0.99),
        "buckets": [[bound if bound != float("inf") else "inf", count] for bound, count in buckets],
    }


def bound_us(buckets: list[tuple[float, float]], q: float) -> float | None:
    """The upper bound of the bucket that holds the quantile; None if that is the last, which has none."""
    total = buckets[-1][1]
    for bound, count in buckets:
        if count >= q * total:
            return None if bound == float("inf") else round(bound * 1e6, 3)
    return None


def scrape(port: int) -> dict[str, float]:
    asked = urllib.request.Request(
        f"http://127.0.0.1:{port}/metrics", headers={"Authorization": f"Bearer {payloads.KEY}"}
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(asked, timeout=10) as page:
        text = page.read().decode()
    return {bound or kind: float(value) for kind, bound, value in SAMPLE.findall(text)} or {"count": 0.0, "sum": 0.0}


def micro() -> Result:
    """ns of a decision over 2 and 1,000 targets, and of an update of the statistics, by bench/micro."""
    from bench.micro import select, table

    if select.Pool is None or table.Table is None:
        return {"missing": "the compiled modules are not built"}
    decision: dict[str, float] = {}
    for targets in (2, 1000):
        names: dict[str, Any] = select.setting(targets, select.Table, select.Pool)
        names.update(pick=names["pool"].pick, available=names["table"].available)
        statement = "for s in seeds: available(rows[pick(s, now)], now)"
        decision[str(targets)] = round(select.ns(statement, names, 20, select.SEEDS), 1)
    names = table.setting(table.Table, table.Series)
    update = [table.ns("record(row, 0, 812_000, 240_000, now)", names) for _ in range(3)]
    return {"decision_ns": decision, "stats_update_ns": round(statistics.median(update), 1)}
