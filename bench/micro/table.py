"""ns per call on the shared table, beside what one would write without it.

Owns: the figures for ``slipstream/_fast/table`` and ``series`` (one core, no contention). The rivals: dictionary
increments and a small Python object (fast, but of one process: no other worker sees them, and they die with it), and
``multiprocessing.Value`` with its lock (shared, but a process killed while it holds the lock stops all others).

Run: ``python -m bench.micro.table`` (or the file itself with the repository in PYTHONPATH).
"""

from __future__ import annotations

import math
import mmap
import multiprocessing
import platform
import time
import timeit
from typing import Any

from slipstream._fast._pure.layout import DEFAULT_SIZES
from slipstream._fast._pure.series import Series as PureSeries
from slipstream._fast._pure.table import Table as PureTable

try:
    from slipstream._fast.series import Series
    from slipstream._fast.table import Table
except ImportError:  # not built
    Table = None  # type: ignore[assignment, misc]


class PlainStats:
    """What ``record`` does, for one process and without windows of an hour or quantiles."""

    def __init__(self) -> None:
        self.classes: dict[int, int] = {}
        self.latency = self.ttft = 0.0
        self.then = 0
        self.calls = self.errors = self.consecutive = 0

    def record(self, failure: int, latency_us: int, ttft_us: int, now_ns: int) -> None:
        self.classes[failure] = self.classes.get(failure, 0) + 1
        self.calls += 1
        if failure:
            self.errors += 1
            self.consecutive += 1
        else:
            self.consecutive = 0
        w = math.exp((self.then - now_ns) / 10e9)
        self.then = now_ns
        self.latency = self.latency * w + latency_us * (1 - w)
        self.ttft = self.ttft * w + ttft_us * (1 - w)


def ns(statement: str, names: dict[str, Any], number: int = 100_000) -> float:
    """Best of 7, the loop taken off."""
    empty = min(timeit.repeat("pass", number=number, repeat=7))
    return (min(timeit.repeat(statement, globals=names, number=number, repeat=7)) - empty) / number * 1e9


def setting(table_class: Any, series_class: Any) -> dict[str, Any]:
    memory = mmap.mmap(-1, DEFAULT_SIZES.total)
    table_class.format(memory)
    table = table_class(memory)
    series = series_class(table)
    row = table.target(b"openai/gpt-4o@eu")
    now = time.monotonic_ns()
    for i in range(5000):
        table.record(row, 0, 50_000 + 37 * i, 9_000 + 11 * i, now)
    key = b"llm_proxy_requests\0POST\0/v1/chat/completions\0gpt-4o\0openai\x00200\0default"
    names = {"table": table, "row": row, "now": now, "worker": table.claim_worker(1, now), "key": key, "series": series}
    clock = iter(range(now, 1 << 63, 200_000))  # 5,000 attempts a second
    names.update(record=table.record, tick=clock.__next__, slot=series.series(key, 1), hist=series.series(key, 12))
    return names


CASES = [
    ("record (latency)", "record(row, 0, 812_000, -1, now)"),
    ("record (latency + TTFT)", "record(row, 0, 812_000, 240_000, now)"),
    ("record (both, clock moves on)", "record(row, 0, 812_000, 240_000, tick())"),
    ("  of which the clock", "tick()"),
    ("record (failure, no times)", "record(row, 6, -1, -1, now)"),
    ("enter", "table.enter(worker, row)"),
    ("leave", "table.leave(worker, row)"),
    ("in_flight", "table.in_flight(row)"),
    ("available", "table.available(row, now)"),
    ("breaker", "table.breaker(row)"),
    ("ewma", "table.ewma(row)"),
    ("add_usage", "table.add_usage(row, 100, 200, 300)"),
    ("series.add", "series.add(slot, 0, 1)"),
    ("series.observe", "series.observe(hist, 3, 812)"),
    ("series.series (80-byte key)", "series.series(key, 1)"),
    ("target", "table.target(b'openai/gpt-4o@eu')"),
    ("quantile", "table.quantile(row, 0.95, now)"),
    ("errors, 1 minute", "table.errors(row, 60, now)"),
    ("errors, 1 hour", "table.errors(row, 3600, now)"),
]


def main() -> None:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; ns per call, best of 7"
    )
    compiled = setting(Table, Series) if Table is not None else None
    pure = setting(PureTable, PureSeries)
    print(f"{'':32}{'compiled':>10}{'pure':>10}")
    for label, statement in CASES:
        left = "-" if compiled is None else f"{ns(statement, compiled):.0f}"
        print(f"{label:32}{left:>10}{ns(statement, pure, 2_000):>10.0f}")
    counts: dict[Any, int] = {}
    value = multiprocessing.Value("Q", 0)
    rivals: dict[str, Any] = {"d": counts, "k": ("POST", "chat", "gpt-4o"), "v": value, "s": PlainStats(), "now": 1}
    print("rivals")
    for label, statement in (
        ("d[key] = d.get(key, 0) + 1", "d[k] = d.get(k, 0) + 1"),
        ("a Python object's record()", "s.record(0, 812_000, 240_000, now)"),
        ("with Value.get_lock(): += 1", "with v.get_lock(): v.value += 1"),
    ):
        print(f"{label:32}{ns(statement, rivals):>10.0f}")


if __name__ == "__main__":
    main()
