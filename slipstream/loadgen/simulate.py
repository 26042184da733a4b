"""The house in one command: two mock providers of different speed and price, the gateway before them, a flood.

Each runs in a process of its own, started as a user would start it, so that what is measured is what ships. The
gateway's own time comes from its histogram at ``/metrics``: what a client can measure has the mocks' latency in it.

The rule that must not be broken: whatever happens, no process that was started here outlives this one's ``with``.
"""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import SlipstreamError
from ..wire.codec import dumps
from .run import Run

MODEL = "simulated"
START_S = 30.0
STOP_S = 5.0
METRICS_S = 5.0
TAIL_BYTES = 2000

_URL = re.compile(rb"https?://[0-9.]+:\d+")
_SAMPLE = re.compile(r"^(\w+)(?:\{([^}]*)\})? (\S+)", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_AMBIENT = ("PORT", "CONFIG_PATH", "ROUTER_POLICY", "MASTER_API_KEY", "ADMIN_TOKEN", "ENABLE_MOCK_PROVIDER")
"""Variables that would make a gateway other than the one that is meant; so would a proxy."""


class SimulationError(SlipstreamError):
    """A part of the simulation did not start. The message is for the user."""


@dataclass(frozen=True, slots=True)
class Mock:
    """One mock provider; the prices are US dollars per million tokens."""

    name: str
    mean_latency_ms: float
    p95_latency_ms: float
    input_price: float
    output_price: float


MOCKS = (Mock("mock-fast", 5.0, 10.0, 2.5, 10.0), Mock("mock-cheap", 20.0, 50.0, 0.15, 0.6))


class House:
    """The running parts. ``url`` is the gateway's; ``with`` ends them all."""

    def __init__(self, mocks: Sequence[Mock] = MOCKS) -> None:
        self.url = ""
        self._mocks = mocks
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> House:
        self._folder = tempfile.TemporaryDirectory(prefix="slipstream-simulate-")
        try:
            bases = {mock: self._start_mock(mock) for mock in self._mocks}
            config = Path(self._folder.name, "config.yaml")
            config.write_bytes(dumps(gateway_config(bases)))
            self.url = self._start("gateway", "serve", "--config", str(config), "--host", "127.0.0.1", "--port", "0")
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start_mock(self, mock: Mock) -> str:
        latency = ("--mean-latency-ms", str(mock.mean_latency_ms), "--p95-latency-ms", str(mock.p95_latency_ms))
        return self._start(mock.name, "mock", "--port", "0", "--name", mock.name, *latency)

    def _start(self, name: str, *arguments: str) -> str:
        """Start a part, and return the URL that it says it listens on."""
        errors = Path(self._folder.name, f"{name}.log")
        kept = {k: v for k, v in os.environ.items() if k not in _AMBIENT and not k.upper().endswith("_PROXY")}
        with errors.open("wb") as log, _deferred():  # a child that nobody knows yet could not be ended
            # a session of its own: Ctrl-C is for us, and we end the parts in order
            child = subprocess.Popen(
                [sys.executable, "-m", "slipstream", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=kept | {"PYTHONUNBUFFERED": "1"},
                start_new_session=True,
            )
            self._children.append(child)
        url = _read_url(child, START_S)
        if url is None:
            said = errors.read_bytes()[-TAIL_BYTES:].decode(errors="replace").strip()
            raise SimulationError(f"the {name} did not start: {said or 'it said nothing'}")
        return url

    def _stop(self) -> None:
        """End them all, the gateway first; an impatient second Ctrl-C does not stop this (it ends by itself)."""
        with _signals(signal.SIG_IGN, signal.SIGINT, signal.SIGTERM):
            for child in reversed(self._children):
                child.terminate()
            until = time.monotonic() + STOP_S
            for child in reversed(self._children):
                try:
                    child.wait(max(0.0, until - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.kill()
                    child.wait()
                assert child.stdout is not None
                child.stdout.close()
            self._children.clear()
            self._folder.cleanup()

    def metrics(self) -> str:
        """The gateway's ``/metrics`` page. Raises ``OSError``."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"{self.url}/metrics", timeout=METRICS_S) as page:
            text: bytes = page.read()
        return text.decode()


def gateway_config(bases: Mapping[Mock, str]) -> dict[str, Any]:
    """The gateway's configuration file (JSON is YAML)."""
    providers = [
        {
            "name": mock.name,
            "type": "openai",
            "api_base": f"{base}/v1",
            "api_key": "simulated",
            "models": [MODEL],
            "price": {"input": mock.input_price, "output": mock.output_price},
        }
        for mock, base in bases.items()
    ]
    return {
        "providers": providers,
        "server": {"workers": 1, "log_level": "error"},
        "routing": {"policy": "weighted_round_robin"},
    }


def _read_url(child: subprocess.Popen[bytes], limit_s: float) -> str | None:
    """The first URL on the child's stdout; ``None`` if it ends or is silent for too long."""
    assert child.stdout is not None
    said, until = b"", time.monotonic() + limit_s
    while (left_s := until - time.monotonic()) > 0:
        readable, _, _ = select.select([child.stdout], [], [], left_s)
        data = os.read(child.stdout.fileno(), 65_536) if readable else b""
        if not data:
            return None
        said += data
        found = _URL.search(said)
        if found is not None and b"\n" in said[found.end() :]:
            return found[0].decode()
    return None


def terminate_as_interrupt() -> AbstractContextManager[None]:
    """SIGTERM as ``SystemExit``, so that it unwinds as Ctrl-C does."""

    def leave(*_: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    return _signals(leave, signal.SIGTERM)


@contextmanager
def _deferred() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until this is over. By handlers, not by a mask: a child would inherit that."""
    caught: list[int] = []
    with _signals(lambda number, _: caught.append(number), signal.SIGINT, signal.SIGTERM):
        yield
    for number in caught:
        signal.raise_signal(number)


@contextmanager
def _signals(handler: Any, *numbers: signal.Signals) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


# ---------------------------------------------------------------------- the figures
def figures(run: Run, metrics: str) -> dict[str, Any]:
    """The closing figures of contracts B, and what only the gateway knows. Cost is by the configured prices."""
    books = run.recorder
    seconds = max(0, run.last_ns - run.start_ns) / 1e9
    samples = list(parse_metrics(metrics))
    costs = {labels["provider"]: value for name, labels, value in samples if name == "slipstream_cost_usd_total"}
    buckets = [
        (float(labels["le"]), value) for name, labels, value in samples if name == "slipstream_overhead_seconds_bucket"
    ]
    answered = sum(books.providers.values())
    return {
        "total_requests": books.requests,
        "success": books.requests - books.failures,
        "errors": books.failures,
        "total_time_s": round(seconds, 3),
        "rps": round(books.requests / seconds, 1) if seconds else 0.0,
        "overhead_p50_us_at_most": _micros(bucket_bound(buckets, 0.5)),
        "overhead_p99_us_at_most": _micros(bucket_bound(buckets, 0.99)),
        "providers": {
            name: {
                "requests": count,
                "share": round(count / answered, 4),
                "cost_usd": round(costs.get(name, 0.0), 6),
            }
            for name, count in sorted(books.providers.items())
        },
        "cost_usd": round(sum(costs.values()), 6),
        "statuses": dict(sorted(books.codes.items())),
        "latency": books.latency.percentiles_ms(),
        **({"ttft": books.ttft.percentiles_ms()} if books.ttft.count else {}),
    }


def text(found: Mapping[str, Any]) -> str:
    """The figures for people, by the names of contracts B."""
    latency = found["latency"]
    lines = [
        f"Total Requests: {found['total_requests']}",
        f"Success:        {found['success']}",
        f"Errors:         {found['errors']}",
        f"Total Time:     {found['total_time_s']:.2f} s",
        f"RPS:            {found['rps']:.1f}",
        f"Overhead P50:   {_at_most(found['overhead_p50_us_at_most'])}",
        f"Overhead P99:   {_at_most(found['overhead_p99_us_at_most'])}",
        f"Latency:        p50 {latency['p50_ms']:.1f}  p99 {latency['p99_ms']:.1f} ms (with the mocks' own)",
    ]
    if "ttft" in found:
        lines.append(f"TTFT:           p50 {found['ttft']['p50_ms']:.1f}  p99 {found['ttft']['p99_ms']:.1f} ms")
    lines += [
        f"{name + ':':<15} {row['requests']} requests, {row['share']:.1%}, ${row['cost_usd']:.6f}"
        for name, row in found["providers"].items()
    ]
    return "\n".join([*lines, f"Cost:           ${found['cost_usd']:.6f}"])


def parse_metrics(page: str) -> Iterator[tuple[str, dict[str, str], float]]:
    """Name, labels and value of each sample of a Prometheus page (those of ours: no escaped quotes in values)."""
    for name, labels, value in _SAMPLE.findall(page):
        yield name, dict(_LABEL.findall(labels)), float(value)


def bucket_bound(buckets: Sequence[tuple[float, float]], q: float) -> float | None:
    """The upper bound (seconds) of the bucket that holds quantile ``q``; infinite beyond the last, ``None`` if empty.

    ``buckets``: cumulative counts by bound; those of several workers are added up by bound.
    """
    totals: dict[float, float] = {}
    for bound, count in buckets:
        totals[bound] = totals.get(bound, 0.0) + count
    everything = max(totals.values(), default=0.0)
    if not everything:
        return None
    return next(bound for bound in sorted(totals) if totals[bound] >= q * everything)


def _micros(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e6, 1)


def _at_most(micros: float | None) -> str:
    if micros is None:
        return "unknown"
    bound = "beyond the last bucket" if micros == float("inf") else f"<= {micros:g} us"
    return f"{bound} (upper bound of its bucket; the gateway's own time)"
