"""What a run shows: a line while it runs, the summary for people and for programs, a CSV row per request.

People read stderr, programs stdout: the JSON can be piped while the line is still seen.

The rule that must not be broken: nothing here raises into the run. A full disk ends the CSV, not the measurement.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ..wire.codec import dumps
from .run import Run
from .schedule import NS_PER_S
from .stats import NS_PER_MS

CSV_COLUMNS = ("ts", "latency_ms", "success", "provider", "cost_usd", "policy", "code")
"""Contracts E."""
CSV_BUFFER_BYTES = 1 << 16
BAR_CELLS = 20
CLEAR = "\r\x1b[K"

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class CsvSink:
    """One row per measured request. ``ts`` is the intended moment, ISO 8601 in UTC. Opening raises ``OSError``."""

    def __init__(self, path: Path, policy: str) -> None:
        self.error: OSError | None = None
        self._policy = policy
        self._file = path.open("w", newline="", encoding="utf-8", buffering=CSV_BUFFER_BYTES)
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._writer.writerow(CSV_COLUMNS)

    def row(self, at_ns: int, latency_ns: int, code: str, ok: bool, provider: str, cost_usd: float) -> None:
        if self.error is not None:
            return
        ts = datetime.fromtimestamp(at_ns / NS_PER_S, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        latency = f"{latency_ns / NS_PER_MS:.3f}"
        name = "'" + provider if provider.startswith(_FORMULA) else provider  # it came from a header of the server's
        try:
            self._writer.writerow((ts, latency, "true" if ok else "false", name, f"{cost_usd:.9g}", self._policy, code))
        except OSError as error:
            self.error = error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            self.error = self.error or error


class Live:
    """The line of a running run: drawn over itself on a terminal, one after the other elsewhere."""

    def __init__(self, run: Run, out: TextIO = sys.stderr) -> None:
        self._run = run
        self._out = out
        self._terminal = out.isatty()
        self._done = 0
        self._at_ns = 0

    def tick(self, now_ns: int) -> None:
        run = self._run
        seconds = (now_ns - (self._at_ns or run.start_ns)) / NS_PER_S
        qps = (run.done - self._done) / seconds if seconds > 0 else 0.0
        self._done, self._at_ns = run.done, now_ns
        elapsed_s = (now_ns - run.start_ns) / NS_PER_S
        total_s = run.plan.warmup_s + run.plan.duration_s
        share = elapsed_s / total_s
        if run.plan.max_requests:
            share = max(share, run.done / run.plan.max_requests)
        self._show(progress_line(share, elapsed_s, qps, run) + ("  warming up" if now_ns < run.measure_ns else ""))

    def _show(self, line: str) -> None:
        try:
            self._out.write(CLEAR + line if self._terminal else line + "\n")
            self._out.flush()
        except OSError:  # the terminal is gone; the run is not
            pass

    def end(self) -> None:
        """Take the line off the terminal."""
        if self._terminal:
            try:
                self._out.write(CLEAR)
                self._out.flush()
            except OSError:
                pass


def progress_line(share: float, elapsed_s: float, qps: float, run: Run) -> str:
    full = min(BAR_CELLS, int(share * BAR_CELLS))
    bar = "#" * full + "-" * (BAR_CELLS - full)
    p95_ms = run.recorder.latency.percentile(0.95) / NS_PER_MS
    return (
        f"[{bar}] {min(share, 1):4.0%}  {elapsed_s:.0f} s  {qps:.0f} QPS  {run.busy} in flight  "
        f"{run.failed} errors  p95 {p95_ms:.1f} ms"
    )


def json_text(figures: Mapping[str, Any]) -> str:
    """JSON with a line per figure."""
    lines = (f"  {dumps(name).decode()}: {dumps(value).decode()}" for name, value in figures.items())
    return "{\n" + ",\n".join(lines) + "\n}\n"


def text(figures: Mapping[str, Any]) -> str:
    """The summary for people."""
    target = f"target {figures['target_qps']:g}" if figures["target_qps"] else "closed loop"
    lines = [
        f"{figures['requests']} requests in {figures['duration_s']:.1f} s: {figures['achieved_qps']:.1f} QPS "
        f"({target}), {figures['error_rate']:.2%} errors",
        _times("latency", figures, "", "from the intended moment" if figures["target_qps"] else ""),
        _times("service", figures, "service_", "from the real sending"),
    ]
    if "ttft_p50_ms" in figures:
        lines.append(_times("TTFT", figures, "ttft_", "first content, from the intended moment"))
    lines.append("codes    " + (", ".join(f"{c} x {code}" for code, c in figures["statuses"].items()) or "none"))
    if figures["providers"]:
        total = sum(figures["providers"].values())
        shares = (f"{name} {count / total:.1%}" for name, count in figures["providers"].items())
        lines.append("provider " + ", ".join(shares))
    if figures["total_cost_usd"]:
        lines.append(f"cost     ${figures['total_cost_usd']:.6f}")
    return "\n".join([*lines, *_remarks(figures)])


def _times(name: str, figures: Mapping[str, Any], prefix: str, remark: str) -> str:
    labels = ("p50", "p90", "p95", "p99", "p999", "max")
    values = "  ".join(f"{label} {figures[f'{prefix}{label}_ms']:.2f}" for label in labels)
    return f"{name:<8} {values} ms" + (f"  ({remark})" if remark else "")


BUSY_SHARE = 0.9


def _remarks(figures: Mapping[str, Any]) -> Sequence[str]:
    remarks = []
    if figures["dropped"]:
        remarks.append(
            f"{figures['dropped']} arrivals never got a connection (their waiting is in the latency): the server is "
            "slower than the rate, or --concurrency is too small"
        )
    if figures["generator_cpu_share"] > BUSY_SHARE:
        remarks.append("The load generator used its whole core: it, not the server, may be what was measured")
    return remarks
