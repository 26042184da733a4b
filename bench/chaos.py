"""Three targets that fail in turn, a hundred clients: how many notice, do the accounts hold, does anything leak.

    python bench/chaos.py [--seconds 600] [--seed 1] [--workers 1] [--clients 100] [--json FILE]

Each target (a mock in a process of its own, `bench/weather.py`) has spells drawn by the seed: 429 storms with
Retry-After, stalls, cuts, resets, error events, slow and dripping answers, 500s, 502 pages, broken JSON, and each run
one is dead for a while. At any time one target is well, and has been for ``OVERLAP_S`` when its turn begins: a target
that said "come back in 2 s", or that a breaker shut for its failures, cannot be known to be well before. Half of the
requests are streams; one in ten clients leaves within half a second. First there is a time without faults: the added
latency is against that.

A stream that a fault breaks after its first content cannot be saved, so those are counted apart (after-content): there
may be no more of them than the mocks broke, and each must end with an error event (R12). Everything else that is not
whole counts against the 99.9 %. Accounts: tokens and attempts by outcome against the mocks' ledgers, 1 % (R8). A mock
counts the prompt of every request it takes, and the tokens of a broken JSON; where it is open whether the gateway can
know (an answer ten times slower than usual) the bar is a range. Exit code 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import uvloop

from bench import rig
from bench.e2e.proc import Cores, Running, Stage
from bench.rig import BROKEN, LEFT, LOST, OK, REFUSED, Accounts, Client, Result

NAMES = ("a", "b", "c")
FAULTS: tuple[tuple[str, tuple[float, ...]], ...] = (
    ("429:2", (0.3, 1.0)),
    ("stall", (0.2, 1.0)),
    ("stall-headers-then", (0.2, 1.0)),
    ("stall-mid", (0.1, 0.5)),
    ("cut", (0.1, 0.5)),
    ("cut-first", (0.3, 1.0)),
    ("reset", (0.1, 0.5)),
    ("error-mid", (0.1, 0.5)),
    ("error-first", (0.3, 1.0)),
    ("role-then-error", (0.3, 1.0)),
    ("500", (0.3, 1.0)),
    ("503", (0.3, 1.0)),
    ("html502", (0.3, 1.0)),
    ("error-200", (0.3, 1.0)),
    ("malformed", (0.3, 1.0)),
    ("slow", (0.3, 1.0)),
    ("drip", (0.02, 0.05)),
)
"""Faults and the shares of the requests that they may hit. Dripping costs the mock a write per byte."""
MID = {"stall-mid", "cut", "reset", "error-mid"}
"""In a stream: after content. So is ``dead`` for most that are under way when it begins."""
BILLED = {"ok", "drip"}
OPEN = {"slow", "dead"}
OVERLAP_S = 6.0
CLEAR = 0.2
LEAVING = 0.1
LEAVE_S = 0.5
DEAD_S = 10.0
SUCCESS = 0.999
MEAN_MS, P95_MS, TOKENS_PER_S = 150.0, 300.0, 100.0
CONFIG: dict[str, Any] = {
    "server": {"heartbeat_s": 5},
    "routing": {"retries": 2},
    "resilience": {"breaker": {"cooldown_s": 2, "max_cooldown_s": 4, "ramp_s": 2}},
}
TIMEOUT = {"connect_s": 1, "first_byte_s": 1, "idle_s": 1, "total_s": 15}


def spells(seconds: float, seed: int) -> dict[str, list[list[Any]]]:
    """What each target suffers from and when. One is always free, and was for ``OVERLAP_S`` before its turn."""
    dice = rig.dice(seed, "spells")
    turns, at, well = [], 0.0, dice.choice(NAMES)
    while at < seconds:
        until = at + dice.uniform(8, 14)
        turns.append((at - OVERLAP_S, until, well))
        at, well = until, dice.choice([name for name in NAMES if name != well])
    plan: dict[str, list[list[Any]]] = {name: [] for name in NAMES}
    gaps = []
    for name in NAMES:
        at = 0.0
        for since, until in [*((s, u) for s, u, w in turns if w == name), (seconds, seconds)]:
            if since - at > 1:
                gaps.append((since - at, name, at, since))
            at = max(at, until)
    _, doomed, died, back = max(gaps)
    for _, name, at, until in gaps:
        if (name, at) == (doomed, died):
            plan[name].append([at, min(back, at + DEAD_S), "dead", 1.0])
            at = min(back, at + DEAD_S)
        while at < until:
            end = min(until, at + dice.uniform(1.5, 4))
            fault, shares = dice.choice(FAULTS)
            if dice.random() >= CLEAR:
                plan[name].append([round(at, 2), round(end, 2), fault, dice.choice(shares)])
            at = end
        plan[name].sort()
    return plan


async def client(number: int, seed: int, port: int, until: float, results: list[Result]) -> None:
    """One after the other, without a pause."""
    dice = rig.dice(seed, number)
    connection = Client(port)
    await asyncio.sleep(dice.random() * 0.3)
    while time.perf_counter() < until:
        stream = dice.random() < 0.5
        leave_s = dice.uniform(0.01, LEAVE_S) if dice.random() < LEAVING else None
        body = rig.request(stream, dice.getrandbits(16))
        result = await connection.ask(body, stream, leave_s)
        results.append(result)
        if result.kind in (REFUSED, LOST):
            await asyncio.sleep(0.05)  # a client that is told no does not hammer
    connection.close()


async def load(port: int, clients: int, seconds: float, seed: int) -> list[Result]:
    results: list[Result] = []
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(client(number, seed, port, until, results))
    return results


def books(upstreams: list[Running]) -> tuple[dict[str, Any], Counter[str], Counter[str]]:
    """The ledgers when nobody is served any more: by target, and requests and those not left by fault."""
    until = time.monotonic() + 20
    while (ledgers := {u.name: rig.ledger(u) for u in upstreams}) and time.monotonic() < until:
        if not any(book["open"] for book in ledgers.values()):
            break
        time.sleep(0.2)
    requests: Counter[str] = Counter()
    done: Counter[str] = Counter()
    for book in ledgers.values():
        for fault, row in book["by_fault"].items():
            requests[fault] += row["requests"]
            done[fault] += row["done"]
    return ledgers, requests, done


def billed(book: dict[str, Any], token: str, certain: bool) -> int:
    """Tokens that the gateway has seen an answer to; not ``certain``: may have seen."""
    total = 0
    for key, row in book["by_fault"].items():
        fault, _, form = key.partition("/")
        if fault in BILLED or (fault in MID and form == "stream") or (not certain and fault in OPEN):
            total += row[token]
        elif not certain and token == "prompt":
            total += row["left_prompt"]  # by the client, or by the gateway at its limit: only that one knows
    return total


def in_range(mine: float, low: float, high: float) -> bool:
    return low <= mine <= high or rig.close_to(mine, low) or rig.close_to(mine, high)


def of(counts: Counter[str], *faults: str) -> int:
    return sum(count for key, count in counts.items() if key.partition("/")[0] in faults)


def compare(accounts: Accounts, upstreams: list[Running]) -> list[tuple[str, str, bool]]:
    """The gateway's accounts beside the ledgers."""
    ledgers, requests, done = books(upstreams)
    rows = []
    for token in ("completion", "prompt"):
        mine = theirs = more = 0.0
        each = []
        for name, book in ledgers.items():
            one = accounts.sum("llm_proxy_tokens_total", provider=name, token_type=token)
            low, high = billed(book, token, True), billed(book, token, False)
            each.append(f"{name} {max(low - one, one - high, 0) / max(1, low):.2%}")
            mine, theirs, more = mine + one, theirs + low, more + high
        value = f"{mine:,.0f}, ledgers {theirs:,.0f} to {more:,.0f}; off by {', '.join(each)}"
        rows.append((f"{token} tokens", value, in_range(mine, theirs, more)))
    tried = accounts.by("slipstream_upstream_attempts_total", "outcome")
    print("attempts by outcome:", {k: int(v) for k, v in sorted(tried.items())})
    print("ledgers by fault:   ", dict(sorted(requests.items())))
    replays = accounts.sum("slipstream_upstream_replays")  # one attempt, asked again as its idle connection had closed
    reached, seen = sum(tried.values()) - tried.get("connect", 0) + replays, requests.total()
    value = f"{reached:,.0f} ({replays:.0f} replays), ledgers {seen:,}"
    rows.append(("attempts that were sent", value, rig.close_to(reached, seen)))
    for outcome, faults in (("rate_limited", ("429",)), ("overloaded", ("503",))):
        mine, theirs = tried.get(outcome, 0), of(done, *faults)
        rows.append((f"attempts {outcome}", f"{mine:.0f}, ledgers {theirs}", rig.close_to(mine, theirs)))
    mine, low = tried.get("none", 0), of(done, *BILLED)
    high = low + of(done, *OPEN)
    rows.append(("attempts that succeeded", f"{mine:,.0f}, ledgers {low:,} to {high:,}", in_range(mine, low, high)))
    return rows


def leaks(stage: Stage, gateway: Running, before: dict[str, Any]) -> list[tuple[str, str, bool]]:
    """What is left when nobody asks any more; idle connections to the targets are closed after 15 s."""
    until = time.monotonic() + 25
    while time.monotonic() < until:
        now = state(stage, gateway)
        if now == before:
            break
        time.sleep(0.5)
    active = Accounts(gateway).sum("llm_proxy_active_requests")
    return [
        ("requests in flight", f"{active:.0f}", active == 0),
        ("places taken or waited for", f"{now['places']} in {now['bulkheads']} bulkheads", now["places"] == 0),
        ("tasks", f"{now['tasks']}, before {before['tasks']}", now["tasks"] <= before["tasks"]),
        ("sockets", f"{now['sockets']}, before {before['sockets']}", now["sockets"] <= before["sockets"]),
    ]


def state(stage: Stage, gateway: Running) -> dict[str, Any]:
    held = rig.sockets(gateway)
    found = rig.alive(stage, gateway)
    if not found:
        raise rig.Failed("the gateway's processes do not tell what they hold")
    places = [place for one in found for place in one["bulkheads"]]
    return {
        "tasks": sum(len(one["tasks"]) for one in found),
        "places": sum(map(sum, places)),
        "bulkheads": len(places),
        "sockets": held,
    }


def show(clean: list[Result], results: list[Result], accounts: Accounts) -> None:
    kinds = Counter(result.kind for result in results)
    print(f"{len(results):,} requests: {dict(kinds)}")
    for kind in (REFUSED, LOST):
        texts = Counter((r.stream, r.status, r.retry_after, r.text[:160]) for r in results if r.kind == kind)
        for (stream, status, retry_after, text), count in texts.most_common(6):
            print(f"  {count} {kind} {'stream' if stream else 'whole'} {status} retry-after={retry_after} {text}")
    for q in (0.5, 0.95, 0.99):
        line = []
        for title, stream in (("whole", False), ("stream, first content", True)):
            calm = [_seconds(r) for r in clean if r.kind == OK and r.stream == stream]
            rough = [_seconds(r) for r in results if r.kind == OK and r.stream == stream]
            added = rig.ms(rough, q) - rig.ms(calm, q)
            line.append(f"{title} {rig.ms(rough, q)} ms, without faults {rig.ms(calm, q)}: {added:+.0f}")
        print(f"p{q * 100:.0f} latency: {'; '.join(line)}")
    names = (
        "slipstream_failovers_total",
        "slipstream_retry_budget_exhausted_total",
        "slipstream_client_disconnects_total",
    )
    print(", ".join(f"{name} {accounts.sum(name):.0f}" for name in names))
    print("breakers opened:", accounts.by("slipstream_targets_ejected_total", "provider"))


def _seconds(result: Result) -> float:
    return result.first_s if result.stream else result.total_s


def bars(results: list[Result], upstreams: list[Running]) -> list[tuple[str, str, bool]]:
    counted = [r for r in results if r.kind in (OK, REFUSED, LOST)]
    good = sum(r.kind == OK for r in counted) / max(1, len(counted))
    broken = [r for r in results if r.kind == BROKEN]
    _, requests, _ = books(upstreams)
    cut = sum(n for key, n in requests.items() if key.partition("/")[0] in {*MID, "dead"} and key.endswith("/stream"))
    bare = [r for r in broken if not r.told]
    for result in bare[:3]:
        print(f"  broken without an error event: {result.text!r}")
    return [
        (f"before content: whole answers of {len(counted):,}", f"{good:.3%}, bar {SUCCESS:.1%}", good >= SUCCESS),
        ("after content: streams broken", f"{len(broken)}, the mocks broke {cut}", len(broken) <= cut),
        ("after content: without an error event", f"{len(bare)}", not bare),
    ]


def measure(args: argparse.Namespace) -> int:
    plan = spells(args.seconds, args.seed)
    for name, own in plan.items():
        print(f"{name}: " + ", ".join(f"{s:.0f}-{u:.0f} s {fault} {share:.0%}" for s, u, fault, share in own))
    common = {"mean_ms": MEAN_MS, "p95_ms": P95_MS, "tokens_per_s": TOKENS_PER_S}
    with Stage(Cores()) as stage:
        stage.cores.take_load()
        upstreams = [
            rig.start_upstream(stage, name, common | {"spells": plan[name]}, args.seed + n)
            for n, name in enumerate(NAMES)
        ]
        providers = [
            {"name": u.name, "api_base": f"http://127.0.0.1:{u.port}/v1", "api_key": "unused", "timeout": TIMEOUT}
            for u in upstreams
        ]
        gateway = rig.start_gateway(stage, {"providers": providers, **CONFIG}, args.workers)
        before = state(stage, gateway)
        clean = uvloop.run(load(gateway.port, args.clients, max(3.0, args.seconds / 10), args.seed + 1))
        if any(r.kind not in (OK, LEFT) for r in clean):
            raise rig.Failed(f"without faults: {Counter(r.kind for r in clean)}")
        for upstream in upstreams:
            assert upstream.process is not None
            os.kill(upstream.process.pid, signal.SIGUSR1)
        results = uvloop.run(load(gateway.port, args.clients, args.seconds, args.seed))
        rows = bars(results, upstreams)
        accounts = Accounts(gateway)
        show(clean, results, accounts)
        rows += compare(accounts, upstreams) + leaks(stage, gateway, before)
        if args.json:
            args.json.write_text(
                json.dumps({"seed": args.seed, "seconds": args.seconds, "bars": rows}, indent=2) + "\n"
            )
        return rig.verdict(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=600, help="with faults [600]; 30 is a smoke run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    return rig.run(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
