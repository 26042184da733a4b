"""How long until the gateway answers, and how much memory a worker takes.

    python bench/start.py [--runs 9] [--requests 10000] [--json FILE] [--smoke]

Two gateways are measured: `slipstream serve --demo` (its two mocks live in the same process) and one with a
configuration file of one provider, a `slipstream mock` without latency in a process of its own. For each:
milliseconds from spawning the command to the first 200 of /health and of a chat completion (tried every 2 ms on new
connections), median of --runs after one uncounted run, which compiles the modules of a fresh tree. Then resident memory
(VmRSS) of the second gateway at its start and after at least --requests chat completions of 1 KB over 32 connections.

The bars are those of the project: 400 ms, 60 MB. Missing one is printed, not an error. --smoke is for CI on a busy
machine: few runs, bars at 1,500 ms and 90 MB, exit code 1 when one is missed. Needs /proc (Linux).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

START_MS, MEMORY_MB = 400, 60
SMOKE_START_MS, SMOKE_MEMORY_MB = 1500, 90
POLL_S = 0.002
DEADLINE_S = 30.0
LOAD_DEADLINE_S = 120
CONNECTIONS = 32
PACKAGES = ("slipstream-gateway", "aiohttp", "uvloop", "httptools", "orjson")

WRK_SCRIPT = """wrk.method, wrk.path, wrk.body = "POST", "/v1/chat/completions", io.open("%s"):read("*a")
wrk.headers["Content-Type"] = "application/json"
"""


class Failed(Exception):
    """A process did not do what it should; the text says which and shows its last lines."""


class Running:
    """A `slipstream` command with its output in a file."""

    def __init__(self, args: list[str], folder: Path) -> None:
        script = Path(sys.executable).with_name("slipstream")
        self.args = [str(script)] if script.exists() else [sys.executable, "-m", "slipstream"]
        self.args += args
        self.log = folder / f"{args[0]}.log"
        # PYTHONDONTWRITEBYTECODE would have every start compile the package again, which no installed one does.
        env = {k: v for k, v in os.environ.items() if k not in ("PYTHONDONTWRITEBYTECODE", "CONFIG_PATH")}
        with self.log.open("wb") as out:
            self.started = time.perf_counter()
            self.process = subprocess.Popen(
                self.args, stdin=subprocess.DEVNULL, stdout=out, stderr=out, cwd=folder, env=env, start_new_session=True
            )

    def first_200(self, port: int, request: bytes) -> float:
        """Milliseconds from the spawn to the first answer with status 200."""
        head = b"no connection"
        while time.perf_counter() < self.started + DEADLINE_S:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), DEADLINE_S) as sock:
                sock.sendall(request)
                head = sock.recv(4096)
                if head.startswith(b"HTTP/1.1 200 "):
                    return (time.perf_counter() - self.started) * 1000
            if self.process.poll() is not None:
                raise Failed(f"{self} ended with {self.process.returncode}:\n{self._tail()}")
            time.sleep(POLL_S)
        raise Failed(f"{self} gave no 200 within {DEADLINE_S:.0f} s, last {head[:200]!r}:\n{self._tail()}")

    def memory_mb(self) -> float:
        """VmRSS in MB of 10^6 bytes."""
        found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{self.process.pid}/status").read_text(), re.MULTILINE)
        if found is None:
            raise Failed(f"{self} has ended:\n{self._tail()}")
        return int(found[1]) * 1024 / 1e6

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-2000:]

    def __str__(self) -> str:
        return " ".join(["slipstream", *self.args[self.args.index("serve" if "serve" in self.args else "mock") :]])


@contextlib.contextmanager
def running(args: list[str], folder: Path) -> Iterator[Running]:
    command = Running(args, folder)
    try:
        yield command
    finally:
        command.stop()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def chat_body(model: str, size: int) -> bytes:
    """A chat request of exactly this many bytes."""
    body = {"model": model, "messages": [{"role": "user", "content": ""}]}
    body["messages"] = [{"role": "user", "content": "x" * (size - len(json.dumps(body)))}]
    return json.dumps(body).encode()


def http(method: str, path: str, body: bytes = b"", connection: str = "close") -> bytes:
    return (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: {connection}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode() + body


def starts(args: list[str], model: str, runs: int, folder: Path) -> dict[str, Any]:
    """Start the gateway `runs` times and once more before that."""
    health, chat, memory = [], [], []
    for _ in range(runs + 1):
        port = free_port()
        with running(["serve", *args, "--port", str(port)], folder) as gateway:
            health.append(gateway.first_200(port, http("GET", "/health")))
            memory.append(gateway.memory_mb())
            chat.append(gateway.first_200(port, http("POST", "/v1/chat/completions", chat_body(model, 200))))
    return {
        "command": "slipstream serve " + " ".join(a.replace(str(folder), "DIR") for a in args),
        "health_ms": summary(health[1:]),
        "chat_ms": summary(chat[1:]),
        "uncounted_first_health_ms": round(health[0], 1),
        "memory_mb": round(statistics.median(memory[1:]), 1),
    }


def summary(values: list[float]) -> dict[str, Any]:
    return {
        "median": round(statistics.median(values), 1),
        "min": round(min(values), 1),
        "max": round(max(values), 1),
        "all": [round(v, 1) for v in values],
    }


def memory(config: Path, requests: int, folder: Path) -> dict[str, Any]:
    """Resident memory of a gateway before and after its load."""
    port = free_port()
    body = chat_body("gpt-4o", 1024)
    with running(["serve", "--config", str(config), "--port", str(port)], folder) as gateway:
        gateway.first_200(port, http("GET", "/health"))
        before = gateway.memory_mb()
        driver = drive_with_wrk if shutil.which("wrk") else drive_with_python
        began = time.perf_counter()
        done = driver(port, body, requests, folder)
        took = time.perf_counter() - began
        return {
            "start_mb": round(before, 1),
            "after_mb": round(gateway.memory_mb(), 1),
            "requests": done,
            "driver": driver.__name__.removeprefix("drive_with_"),
            "connections": CONNECTIONS,
            "body_bytes": len(body),
            "load_s": round(took, 1),
        }


def drive_with_wrk(port: int, body: bytes, requests: int, folder: Path) -> int:
    """wrk counts seconds, not requests: rounds of one second until there were enough."""
    (folder / "body.json").write_bytes(body)
    (folder / "load.lua").write_text(WRK_SCRIPT % (folder / "body.json"))
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", "-d1s", "-s", str(folder / "load.lua"), f"http://127.0.0.1:{port}"]
    done = 0
    for _ in range(LOAD_DEADLINE_S):
        out = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False).stdout
        found = re.search(r"([1-9]\d*) requests in", out)
        if found is None or "Non-2xx" in out or "Socket errors" in out:
            raise Failed(f"wrk: {out}")
        done += int(found[1])
        if done >= requests:
            return done
    raise Failed(f"only {done} requests in {LOAD_DEADLINE_S} s")


def drive_with_python(port: int, body: bytes, requests: int, folder: Path) -> int:
    request = http("POST", "/v1/chat/completions", body, "keep-alive")

    async def connection(count: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(count):
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
            if length is None or not head.startswith(b"HTTP/1.1 200 "):
                raise Failed(f"answered {head!r}")
            await reader.readexactly(int(length[1]))
        writer.close()

    async def load() -> None:
        async with asyncio.timeout(LOAD_DEADLINE_S), asyncio.TaskGroup() as group:
            for i in range(CONNECTIONS):
                group.create_task(connection(requests // CONNECTIONS + (i < requests % CONNECTIONS)))

    asyncio.run(load())
    return requests


def machine() -> dict[str, Any]:
    cpu = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    from slipstream._fast import COMPILED

    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": cpu[1] if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "compiled": COMPILED,
        "command": "python " + " ".join(sys.argv),
    }


def measure(runs: int, requests: int) -> dict[str, Any]:
    result: dict[str, Any] = {"machine": machine(), "runs": runs}
    with tempfile.TemporaryDirectory(prefix="slipstream-bench-") as name:
        folder = Path(name)
        port = free_port()
        config = folder / "one.yaml"
        config.write_text(f"providers: [{{name: up, api_base: 'http://127.0.0.1:{port}/v1', api_key: unused}}]\n")
        mock = ["mock", "--port", str(port), "--mean-latency-ms", "0", "--p95-latency-ms", "0"]
        with running(mock, folder) as upstream:
            upstream.first_200(port, http("GET", "/v1/models"))
            result["demo"] = starts(["--demo"], "demo", runs, folder)
            result["config"] = starts(["--config", str(config)], "gpt-4o", runs, folder)
            result["memory"] = memory(config, requests, folder)
    return result


def bars(result: dict[str, Any], start_ms: float, memory_mb: float) -> list[tuple[str, float, str, float, bool]]:
    """What was measured against what was asked for: name, value, unit, bar, whether it is met."""
    rows = [
        ("serve --demo: first 200 of /health", result["demo"]["health_ms"]["median"], "ms", start_ms),
        ("serve --config: first 200 of /health", result["config"]["health_ms"]["median"], "ms", start_ms),
        (f"memory after {result['memory']['requests']:,} requests", result["memory"]["after_mb"], "MB", memory_mb),
    ]
    return [(name, value, unit, bar, value <= bar) for name, value, unit, bar in rows]


def show(result: dict[str, Any]) -> None:
    this = result["machine"]
    print(f"{this['date']}  {this['cpu']}, {this['cores']} cores, {this['kernel']}, Python {this['python']}")
    print(", ".join(f"{k} {v}" for k, v in this["versions"].items()) + f", compiled: {this['compiled']}")
    print(f"$ {this['command']}\n")
    title = f"ms from spawn, median of {result['runs']} (min-max)"
    print(f"{title:44}{'/health':>20}{'chat completion':>20}")
    for name in ("demo", "config"):
        row = result[name]
        cells = [f"{s['median']:.0f} ({s['min']:.0f}-{s['max']:.0f})" for s in (row["health_ms"], row["chat_ms"])]
        print(f"{row['command']:44}{cells[0]:>20}{cells[1]:>20}")
    load = result["memory"]
    print(f"\nresident memory at start: {load['start_mb']} MB (demo, mocks included: {result['demo']['memory_mb']} MB)")
    print(
        f"after {load['requests']:,} requests of {load['body_bytes']} bytes: {load['after_mb']} MB "
        f"({load['driver']}, {load['connections']} connections, {load['load_s']} s)\n"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--runs", type=int, help="starts of each gateway [9, smoke 3]")
    parser.add_argument("--requests", type=int, help="requests before memory is read again [10000, smoke 2000]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    parser.add_argument("--smoke", action="store_true", help="short, with loose bars; exit code 1 when one is missed")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the processes are stopped on the way out
    try:
        result = measure(args.runs or (3 if args.smoke else 9), args.requests or (2_000 if args.smoke else 10_000))
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    show(result)
    limits = (SMOKE_START_MS, SMOKE_MEMORY_MB) if args.smoke else (START_MS, MEMORY_MB)
    rows = bars(result, *limits)
    for name, value, unit, bar, met in rows:
        print(f"{'pass' if met else 'MISSED':8}{name}: {value:.0f} {unit}, bar {bar} {unit}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    return 1 if args.smoke and not all(row[-1] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
