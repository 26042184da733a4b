"""What the proofs of resilience share: a client that tells how an answer ended, the processes, the gateway's accounts.

The rule that must not be broken: an answer counts as good only when all of it came. A stream needs its finish reason,
its [DONE] and the end of its body, a whole reply a JSON object with a choice.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))  # at the end: an installed slipstream goes first

from bench.e2e import payloads
from bench.e2e.proc import Failed, Running, Stage, free_port
from bench.start import http, machine

__all__ = ["Failed", "Stage", "free_port"]

ROOT = Path(__file__).parents[1]
MODEL = "gpt-4o"
LIMIT_S = 30.0
CONTENT = re.compile(rb'"delta":\{[^}]*"content":"[^"]')
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after:[ \t]*(\d+)", re.IGNORECASE)
SAMPLE = re.compile(r"^([a-z_:A-Z0-9]+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
OK, LEFT, REFUSED, LOST, BROKEN = "ok", "left", "refused", "lost", "broken"
"""How a request ended: whole; we left; an error instead of content; the connection ended without either; an error or
the end after the first content."""

PROBE = '''"""Loaded by the gateway's interpreter: SIGUSR2 writes what is still alive in this process."""
import signal, sys


def _tell(*_):
    import asyncio, gc, json, os
    loop = asyncio._get_running_loop()
    tasks = [t for t in asyncio.all_tasks(loop)] if loop is not None else []
    places = [o for o in gc.get_objects() if type(o).__name__ == "Bulkhead"]
    told = {
        "tasks": sorted(getattr(t.get_coro(), "__qualname__", repr(t)) for t in tasks),
        "bulkheads": [[b.in_flight, b.queued] for b in places],
    }
    path = os.path.join(os.environ["BENCH_PROBE"], f"{os.getpid()}.json")
    with open(path + ".part", "w") as out:
        json.dump(told, out)
    os.replace(path + ".part", path)


signal.signal(signal.SIGUSR2, _tell)
'''


@dataclass(slots=True)
class Result:
    """One request as its client saw it. Times are seconds from the moment it was meant to be sent."""

    kind: str
    stream: bool
    began: float
    status: int = 0
    first_s: float = 0.0
    """To the first content of a stream."""
    total_s: float = 0.0
    content: int = 0
    """Pieces of content of a stream."""
    retry_after: bool = False
    told: bool = False
    """A broken stream ended with an error event, as it must (R12)."""
    text: str = ""
    """The error, or what came last."""


@dataclass(slots=True)
class Client:
    """Keep-alive connections to one port; each request takes a free one or makes one."""

    port: int
    free: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    async def ask(self, body: bytes, stream: bool, leave_s: float | None = None, due: float | None = None) -> Result:
        """One request. ``leave_s``: go away after so long; ``due``: when it was meant to be sent."""
        result = Result(LOST, stream, time.perf_counter() if due is None else due)
        writer: asyncio.StreamWriter | None = None
        keep = False
        try:
            async with asyncio.timeout(LIMIT_S if leave_s is None else leave_s):
                reader, writer = await self._connection()
                writer.write(body)
                keep = await _read(reader, result)
        except TimeoutError:
            result.kind = LEFT if leave_s is not None else BROKEN if result.content else LOST
            result.text = result.text or "no end within the client's limit"
        except (OSError, asyncio.IncompleteReadError) as error:
            result.kind = BROKEN if result.content else LOST
            result.text = f"{type(error).__name__} after {result.text[-200:]!r}"
        finally:
            result.total_s = time.perf_counter() - result.began
            if writer is not None:
                if keep:
                    self.free.append((reader, writer))
                else:
                    writer.transport.abort()
        return result

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.free:
            reader, writer = self.free.pop()
            if not (reader.at_eof() or writer.is_closing()):
                return reader, writer
            writer.close()
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1 << 22)

    def close(self) -> None:
        for _, writer in self.free:
            writer.close()
        self.free.clear()


async def _read(reader: asyncio.StreamReader, result: Result) -> bool:
    """Read one answer into ``result``; whether the connection may be used again."""
    head = await reader.readuntil(b"\r\n\r\n")
    result.status = int(head[9:12])
    result.retry_after = RETRY_AFTER.search(head) is not None
    length = LENGTH.search(head)
    if length is not None:
        body = await reader.readexactly(int(length[1]))
        good = result.status == 200 and not result.stream and bool(json.loads(body).get("choices"))
        result.kind = OK if good else REFUSED
        if not good:
            result.text = body[:300].decode(errors="replace")
        return b"connection: close" not in head.lower()
    tail = rest = b""
    while True:
        size = int(await reader.readuntil(b"\r\n"), 16)
        data = rest + (await reader.readexactly(size + 2))[:-2]
        if not size:
            break
        whole_events, mark, rest = data.rpartition(b"\n\n")
        data = whole_events + mark
        found = len(CONTENT.findall(data))
        if found and not result.content:
            result.first_s = time.perf_counter() - result.began
        result.content += found
        tail = (tail + data)[-2048:]
        result.text = tail[-300:].decode(errors="replace")
    whole = b"[DONE]" in tail and b'"finish_reason":"stop"' in tail and b'"error":' not in tail
    result.told = b'"error":' in tail
    result.kind = OK if whole and result.content else BROKEN if result.content else REFUSED
    return True


def request(stream: bool, seed: int, chars: int = 400) -> bytes:
    """A chat request with some prose, as bytes for the connection."""
    messages = [{"role": "user", "content": payloads.text(chars, seed)}]
    body: dict[str, Any] = {"model": MODEL, "messages": messages}
    if stream:
        body["stream"] = True
    return payloads.http(json.dumps(body).encode())


def quantile(values: list[float], q: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else float("nan")


def ms(values: list[float], q: float) -> float:
    return round(quantile(values, q) * 1000, 1)


def start_upstream(stage: Stage, name: str, plan: dict[str, Any], seed: int) -> Running:
    port = free_port()
    path = stage.folder / f"{name}.json"
    path.write_text(json.dumps(plan))
    python = [sys.executable, "-m", "bench.weather", "--port", str(port), "--name", name]
    command = [*python, "--seed", str(seed), "--plan", str(path)]
    running = stage.spawn(name, port, command, stage.cores.load, {"PYTHONPATH": str(ROOT)})
    running.first_200(http("GET", "/health"))
    return running


def start_gateway(stage: Stage, config: dict[str, Any], workers: int = 1, name: str = "gateway") -> Running:
    """``slipstream serve`` with this configuration (JSON is YAML), and a way to look into it (``alive``)."""
    port = free_port()
    probe = stage.folder / "probe"
    probe.mkdir(exist_ok=True)
    (probe / "sitecustomize.py").write_text(PROBE)
    path = stage.folder / f"{name}.yaml"
    path.write_text(json.dumps(config))
    script = Path(sys.executable).with_name("slipstream")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "slipstream"]
    command += ["serve", "--config", str(path), "--port", str(port), "--workers", str(workers)]
    env = {"PYTHONPATH": f"{probe}{os.pathsep}{ROOT}", "BENCH_PROBE": str(probe)}
    running = stage.spawn(name, port, command, stage.cores.proxy, env)
    running.first_200(http("GET", "/health"))
    return running


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=LIMIT_S) as answer:
        body: bytes = answer.read()
    return body


def ledger(upstream: Running) -> dict[str, Any]:
    told: dict[str, Any] = json.loads(get(upstream.port, "/mock/ledger"))
    return told


class Accounts:
    """What the gateway's /metrics says at one moment."""

    def __init__(self, gateway: Running) -> None:
        text = get(gateway.port, "/metrics").decode()
        self._samples = [(m[1], dict(LABEL.findall(m[2] or "")), float(m[3])) for m in SAMPLE.finditer(text)]

    def sum(self, name: str, **labels: str) -> float:
        wanted = labels.items()
        return sum(value for n, has, value in self._samples if n == name and wanted <= has.items())

    def by(self, name: str, label: str, **labels: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for n, has, value in self._samples:
            if n == name and labels.items() <= has.items() and value:
                found[has.get(label, "")] = found.get(has.get(label, ""), 0.0) + value
        return found


def serving(gateway: Running) -> list[int]:
    """The processes that serve: those that listen to us are the leaves of the tree."""
    pids = gateway.pids()
    return pids[1:] if len(pids) > 1 else pids


def alive(stage: Stage, gateway: Running) -> list[dict[str, Any]]:
    """Tasks and places in use in each serving process."""
    found = []
    for pid in serving(gateway):
        path = stage.folder / "probe" / f"{pid}.json"
        path.unlink(missing_ok=True)
        os.kill(pid, signal.SIGUSR2)
        until = time.monotonic() + 5
        while not path.exists() and time.monotonic() < until:
            time.sleep(0.02)
        if path.exists():
            found.append(json.loads(path.read_text()))
    return found


def sockets(gateway: Running) -> int:
    """Sockets that the serving processes hold."""
    count = 0
    for pid in serving(gateway):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    count += os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:")
    return count


def head() -> None:
    """Machine, versions, command."""
    this = machine()
    print(f"{this['date']}  {this['cpu']}, {this['cores']} cores, {this['kernel']}, Python {this['python']}")
    print(", ".join(f"{k} {v}" for k, v in this["versions"].items()) + f", compiled: {this['compiled']}")
    print(f"load average before: {os.getloadavg()[0]:.1f}\n$ {this['command']}\n", flush=True)


def verdict(rows: list[tuple[str, str, bool]]) -> int:
    """Print each bar and whether it is met; the exit code."""
    print()
    for name, value, met in rows:
        print(f"{'pass' if met else 'MISSED':8}{name}: {value}")
    return 0 if all(met for _, _, met in rows) else 1


def run(measure: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """What each bench does around its measuring; the exit code."""
    stop_on_signals()
    head()
    try:
        return measure(args)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1


def stop_on_signals() -> None:
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: sys.exit(143))  # so that the processes are stopped on the way out


def close_to(mine: float, theirs: float, share: float = 0.01, least: float = 3.0) -> bool:
    """Within 1 %, or a few of small numbers."""
    return abs(mine - theirs) <= max(least, share * theirs)


def dice(seed: int, use: object) -> random.Random:
    return random.Random(f"{seed}/{use}")
