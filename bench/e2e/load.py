"""The load: wrk for requests, ``clients.py`` for streams and idle connections, both on the load core.

wrk's own histogram is kept, not only the percentiles that it prints: its ``done`` hook writes every value with its
count. It has been corrected by wrk for requests that a stall kept from being sent (see stats_correct in its source).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import payloads
from .proc import Failed, Running, Stage, deferred

ROOT = Path(__file__).parents[2]
GRACE_S = 90
WRK_TIMEOUT_S = 30
SIZE_TOLERANCE = 0.02
SUB_BUCKETS = 64
"""Values are kept exactly up to this many microseconds and above it to 1/64 (1.6 %)."""

SCRIPT = """wrk.method, wrk.path = "POST", "%(path)s"
wrk.body = io.open("%(body)s", "rb"):read("*a")
%(headers)s
%(delay)s
function done(summary, latency, requests)
  local e = summary.errors
  io.write("@ ", summary.requests, " ", summary.duration, " ", summary.bytes, " ", e.status, " ",
           e.connect + e.read + e.write + e.timeout, "\\n")
  for i = 1, #latency do
    local value, count = latency(i)
    io.write(value, " ", count, "\\n")
  end
end
"""


@dataclass(slots=True)
class Histogram:
    """Microseconds -> how often."""

    counts: dict[int, int] = field(default_factory=dict)

    def add(self, value: int, count: int = 1) -> None:
        self.counts[value] = self.counts.get(value, 0) + count

    def merge(self, other: Histogram) -> None:
        for value, count in other.counts.items():
            self.add(value, count)

    def quantile(self, q: float) -> float:
        """The smallest value that at least ``q`` of all do not exceed."""
        wanted = q * sum(self.counts.values())
        seen = 0
        for value in sorted(self.counts):
            seen += self.counts[value]
            if seen >= wanted:
                return float(value)
        return float("nan")

    def rows(self) -> list[list[int]]:
        """``[microseconds, count]``, coarse enough for a file."""
        coarse: dict[int, int] = {}
        for value, count in self.counts.items():
            shift = max(0, value.bit_length() - SUB_BUCKETS.bit_length())
            coarse[value >> shift << shift] = coarse.get(value >> shift << shift, 0) + count
        return [[value, coarse[value]] for value in sorted(coarse)]


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of the load saw. ``bad``: other statuses than 2xx and 3xx, and broken connections."""

    done: int
    bad: int
    seconds: float
    latency: Histogram
    bytes_each: float = 0.0


def wrk(
    stage: Stage,
    port: int,
    chars: int,
    connections: int,
    seconds: int,
    headers: Mapping[str, str] | None = None,
    think_ms: int = 0,
) -> Round:
    """``connections`` send one request after the other, ``think_ms`` (on average) after each answer."""
    folder = stage.folder
    body = folder / f"body-{chars}.json"
    if not body.exists():
        body.write_bytes(payloads.request(chars))
    lines = (f"wrk.headers[{json.dumps(k)}] = {json.dumps(v)}" for k, v in payloads.all_headers(headers).items())
    delay = f"function delay() return math.random({think_ms // 2}, {think_ms * 3 // 2}) end" if think_ms else ""
    script = folder / "load.lua"
    script.write_text(SCRIPT % {"path": payloads.PATH, "body": body, "headers": "\n".join(lines), "delay": delay})
    command = ["taskset", "-c", str(stage.cores.load), "wrk", "-t1", f"-c{connections}", f"-d{seconds}s"]
    command += ["--timeout", f"{WRK_TIMEOUT_S}s", "-s", str(script), f"http://127.0.0.1:{port}"]
    out = _run(command, seconds + GRACE_S)
    found = re.search(r"^@ (\d+) (\d+) (\d+) (\d+) (\d+)$", out, re.MULTILINE)
    if found is None:
        raise Failed(f"wrk: {out}")
    requests, duration, size, statuses, errors = map(int, found.groups())
    latency = Histogram()
    for line in out[found.end() :].splitlines():
        value, _, count = line.partition(" ")
        if count.isdigit():
            latency.add(int(value), int(count))
    return Round(requests, statuses + errors, duration / 1e6, latency, size / max(requests, 1))


def same_size(name: str, rounds: Iterable[Round]) -> None:
    """Bodies were compared before; in the timed rounds at least their size must not change."""
    sizes = [r.bytes_each for r in rounds if r.done > 100]
    if sizes and max(sizes) > min(sizes) * (1 + SIZE_TOLERANCE):
        raise Failed(f"{name}: answers of {min(sizes):.0f} to {max(sizes):.0f} bytes; all should be alike")


def client_command(stage: Stage, kind: str, port: int, *arguments: object) -> list[str]:
    python = ["taskset", "-c", str(stage.cores.load), sys.executable, "-m", "bench.e2e.clients"]
    return [*python, kind, str(port), *map(str, arguments)]


def streams(
    stage: Stage,
    port: int,
    connections: int,
    rounds: int,
    timeout_s: float,
    headers: Mapping[str, str],
    mark: str = payloads.END_MARK.decode(),
) -> tuple[Round, int]:
    """``connections`` read ``rounds`` streams each, which end with ``mark``. ``done`` counts events; the second value
    complete streams."""
    command = client_command(stage, "sse", port, connections, rounds, timeout_s, json.dumps(dict(headers)), mark)
    told = json.loads(_run(command, timeout_s + GRACE_S))
    first = Histogram()
    for value in told["first_us"]:
        first.add(value)
    return Round(told["events"], told["bad"], told["seconds"], first), told["complete"]


class Holder:
    """A client that opens connections, says so, waits for a word, and then says how it ended."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise Failed("the client has ended: it tells why above")
        told: dict[str, Any] = json.loads(line)
        return told

    def go_on(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.read()


@contextlib.contextmanager
def holding(command: list[str]) -> Iterator[Holder]:
    """The client has deadlines of its own, so a read from it ends."""
    process: subprocess.Popen[str] | None = None
    try:
        with deferred():
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=python_env(),
                start_new_session=True,
            )
        yield Holder(process)
    finally:
        if process is not None:
            process.kill()
            process.communicate()


def thinking_upstream(stage: Stage, port: int, *arguments: object) -> Running:
    """``upstream.py`` on the load core."""
    command = [sys.executable, "-m", "bench.e2e.upstream", str(port), *map(str, arguments)]
    running = stage.spawn("upstream", port, command, stage.cores.load, {"PYTHONPATH": str(ROOT)})
    running.first_200(payloads.http(payloads.request()))
    return running


def python_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def _run(command: list[str], timeout_s: float) -> str:
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=timeout_s, check=False, env=python_env()
    )
    if done.returncode:
        raise Failed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout[-500:]}{done.stderr[-1500:]}")
    return done.stdout
