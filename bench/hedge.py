"""What hedging does to the slowest streams, and what it costs.

    python bench/hedge.py [--seconds 60] [--seed 1] [--clients 40] [--share 0.05] [--budget SHARE] [--json FILE]

Two targets of which --share of the calls take ten times longer to begin. The same load twice: hedging off, then on with
the learned delay (the 95th percentile of the time to the first token; it needs 100 answers, so there is a warm-up that
is not measured). Bars: p99 of the time to the first content falls by 60 %, at most 8 % more calls reach the targets,
and what the losers cost is in the accounts: the tokens of each target within 1 % of its ledger. The budget is the
gateway's default unless ``--budget`` sets another. Exit code 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import uvloop

from bench import rig
from bench.e2e.proc import Cores, Running, Stage
from bench.rig import OK, Accounts, Client, Result

NAMES = ("a", "b")
FALL = 0.60
EXTRA = 0.08
SLOWER = 10.0
MEAN_MS, P95_MS = 40.0, 60.0
WARM = 400
"""Requests before the measurement: 100 samples for each target's percentile, and some more."""


@dataclass(slots=True)
class Side:
    """One of the two runs, its warm-up in the totals of calls and tokens (the budget counts it too)."""

    name: str
    requests: int
    calls: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    hedges: dict[str, float]
    prompt: tuple[float, float]
    completion: tuple[float, float]
    """The gateway's, the ledgers'."""

    @property
    def extra(self) -> float:
        return self.calls / max(1, self.requests) - 1


async def client(number: int, args: argparse.Namespace, port: int, until: float, results: list[Result]) -> None:
    dice = rig.dice(args.seed, number)
    connection = Client(port)
    await asyncio.sleep(dice.random() * 0.1)
    while time.perf_counter() < until:
        results.append(await connection.ask(rig.request(True, dice.getrandbits(16)), True))
        await asyncio.sleep(dice.uniform(0, 0.1))
    connection.close()


async def load(args: argparse.Namespace, port: int, seconds: float) -> list[Result]:
    results: list[Result] = []
    until = time.perf_counter() + seconds
    async with asyncio.TaskGroup() as group:
        for number in range(args.clients):
            group.create_task(client(number, args, port, until, results))
    return results


def tokens(accounts: Accounts, books: list[dict[str, Any]], token: str) -> tuple[float, float]:
    mine = accounts.sum("llm_proxy_tokens_total", token_type=token)
    return mine, float(sum(book[f"{token}_tokens"] for book in books))


def side(args: argparse.Namespace, stage: Stage, name: str, hedge: dict[str, Any]) -> tuple[Side, bool]:
    plan = {"mean_ms": MEAN_MS, "p95_ms": P95_MS, "slow_share": args.share, "slow_factor": SLOWER}
    upstreams: list[Running] = [rig.start_upstream(stage, f"{n}-{name}", plan, args.seed) for n in NAMES]
    providers = [{"name": u.name, "api_base": f"http://127.0.0.1:{u.port}/v1", "api_key": "unused"} for u in upstreams]
    config = {"providers": providers, "resilience": {"hedge": hedge}}
    gateway = rig.start_gateway(stage, config, name=f"gateway-{name}")
    warm: list[Result] = []
    until = time.monotonic() + 30
    while len(warm) < WARM and time.monotonic() < until:
        warm += uvloop.run(load(args, gateway.port, 1.0))
    results = uvloop.run(load(args, gateway.port, args.seconds))
    for running in (*upstreams, gateway):
        running.check()
    bad = Counter(r.kind for r in warm + results if r.kind != OK)
    if bad:
        raise rig.Failed(f"{name}: {bad}")
    time.sleep(1.0)  # the losers' ends
    books = [rig.ledger(u) for u in upstreams]
    accounts = Accounts(gateway)
    first = [r.first_s for r in results]
    good = True
    for book in books:
        for token in ("prompt", "completion"):
            mine = accounts.sum("llm_proxy_tokens_total", provider=book["name"], token_type=token)
            good = good and rig.close_to(mine, book[f"{token}_tokens"])
    found = Side(
        name,
        len(warm) + len(results),
        sum(book["requests"] for book in books),
        rig.ms(first, 0.5),
        rig.ms(first, 0.95),
        rig.ms(first, 0.99),
        accounts.by("slipstream_hedges_total", "outcome"),
        tokens(accounts, books, "prompt"),
        tokens(accounts, books, "completion"),
    )
    return found, good


def measure(args: argparse.Namespace) -> int:
    sides = []
    on: dict[str, Any] = {"enabled": True} | ({} if args.budget is None else {"budget_share": args.budget})
    for name, hedge in (("off", {"enabled": False}), ("on", on)):
        with Stage(Cores()) as stage:
            stage.cores.take_load()
            found, booked = side(args, stage, name, hedge)
        sides.append(found)
        print(
            f"hedging {name:4}{found.requests:8,} requests, {found.calls:,} calls ({found.extra:+.1%}), first content "
            f"p50 {found.p50_ms} p95 {found.p95_ms} p99 {found.p99_ms} ms, hedges {found.hedges}",
            flush=True,
        )
        for token, (mine, theirs) in (("prompt", found.prompt), ("completion", found.completion)):
            print(f"    {token} tokens: accounts {mine:,.0f}, ledgers {theirs:,.0f}")
    plain, hedged = sides
    fall = 1 - hedged.p99_ms / plain.p99_ms
    rows = [
        ("p99 of the first content falls", f"{fall:.1%}, bar {FALL:.0%}", fall >= FALL),
        ("calls beyond the requests", f"{hedged.extra:.1%}, bar {EXTRA:.0%}", hedged.extra <= EXTRA),
        ("losers' tokens are in the accounts", "{:,.0f} of {:,.0f} prompt tokens".format(*hedged.prompt), booked),
    ]
    if args.json:
        args.json.write_text(json.dumps({"sides": [asdict(s) for s in sides], "bars": rows}, indent=2) + "\n")
    return rig.verdict(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two runs [60]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--share", type=float, default=0.05, help="of the calls that are slow [0.05]")
    parser.add_argument("--budget", type=float, help="hedges per request [the gateway's default]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    return rig.run(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
