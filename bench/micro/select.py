"""ns per choice of a target over pools of 2 to 1,000: the proof that the cost is flat, beside the naive walk.

Owns: the figures for ``slipstream/_fast/select``. The rival is what most gateways do: look at every target, take the
best (``min`` over a list of objects). A whole decision (``pick`` and the breaker check of its row) must stay below
1 us and flat (DATA PLANE, must-show 3).

Run: ``python -m bench.micro.select`` (or the file itself with the repository in PYTHONPATH). Exits with 1 when the
compiled decision is not below 1 us, or costs over 1,000 targets more than three times that over two (caches: the rows
of 1,000 targets are 768 KB).
"""

from __future__ import annotations

import mmap
import platform
import random
import sys
import time
import timeit
from typing import Any

from slipstream._fast._pure.layout import DEFAULT_SIZES
from slipstream._fast._pure.select import Pool as PurePool
from slipstream._fast._pure.table import Table as PureTable
from slipstream.routing.weighted import cycle

try:
    from slipstream._fast.select import Pool
    from slipstream._fast.table import Table
except ImportError:  # not built
    Pool = None  # type: ignore[assignment, misc]

SIZES = (2, 10, 100, 1000)
SEEDS = 1000
LIMIT_NS = 1000


class PlainTarget:
    """One target of the rival."""

    def __init__(self, latency: float) -> None:
        self.latency = latency
        self.in_flight = 0
        self.until = 0

    def load(self, now: int) -> float:
        return self.latency * (self.in_flight + 1) if now >= self.until else float("inf")


def setting(n: int, table_class: Any, pool_class: Any) -> dict[str, Any]:
    memory = mmap.mmap(-1, DEFAULT_SIZES.total)
    table_class.format(memory)
    table = table_class(memory)
    rng = random.Random(n)
    now = time.monotonic_ns()
    rows = [table.target(b"provider-%d/model" % i) for i in range(n)]
    for worker in range(4):
        table.claim_worker(worker + 1, now)
    for row in rows:
        table.record(row, 0, rng.randrange(10_000, 900_000), rng.randrange(5_000, 300_000), now)
        table.enter(rng.randrange(4), row)
    weights = [1 + i % 5 for i in range(n)]
    pool = pool_class(table, b"pool", rows, cycle(weights), [float(w) for w in weights])
    pool.refresh(now)
    plain = [PlainTarget(table.ewma(row)[1]) for row in rows]
    seeds = [rng.getrandbits(64) for _ in range(SEEDS)]
    return {"table": table, "rows": rows, "pool": pool, "now": now + 1_000_000_000, "plain": plain, "seeds": seeds}


CASES = [
    ("pick (P2C)", "for s in seeds: pick(s, now)"),
    ("decision: pick + available", "for s in seeds: available(rows[pick(s, now)], now)"),
    ("turn (weighted round robin)", "for s in seeds: turn()"),
    ("cheapest (choice word)", "for s in seeds: cheapest()"),
]
WALKS = [
    ("refresh (walk, now and then)", "pool.refresh(now)"),
    ("rival: min over all targets", "min(plain, key=lambda t, now=now: t.load(now))"),
]


def ns(statement: str, names: dict[str, Any], number: int, calls: int) -> float:
    return min(timeit.repeat(statement, globals=names, number=number, repeat=7)) / number / calls * 1e9


def main() -> int:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; ns per call, best of 7"
    )
    print(f"{'targets':40}" + "".join(f"{n:>9}" for n in SIZES))
    twins = [("compiled", Table, Pool)] if Pool is not None else []
    decisions: list[float] = []
    for name, table_class, pool_class in [*twins, ("pure", PureTable, PurePool)]:
        made = {n: setting(n, table_class, pool_class) for n in SIZES}
        for names in made.values():
            pool = names["pool"]
            names.update(pick=pool.pick, turn=pool.turn, cheapest=pool.cheapest, available=names["table"].available)
        for label, statement in CASES:
            row = [ns(statement, made[n], 20 if name == "compiled" else 1, SEEDS) for n in SIZES]
            print(f"{name + ': ' + label:40}" + "".join(f"{v:9.0f}" for v in row))
            if name == "compiled" and label.startswith("decision"):
                decisions = row
        if name == "compiled" or not twins:
            for label, statement in WALKS:
                row = [ns(statement, made[n], 200, 1) for n in SIZES]
                print(f"{label:40}" + "".join(f"{v:9.0f}" for v in row))
    if decisions and (max(decisions) > LIMIT_NS or decisions[-1] > 3 * decisions[0]):
        print(f"FAIL: a decision costs {max(decisions):.0f} ns, or is not flat")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
