"""What is served when twice as much is asked for as can be served.

    python bench/overload.py [--seconds 20] [--seed 1] [--places 64] [--queue 16] [--factor 2] [--cpu] [--json FILE]

One target that takes 50 ms and ``limits.max_in_flight`` places at it (the provider's own capacity: places / 50 ms).
First a closed loop with as many clients as places: the capacity, and the latency of an unloaded answer at capacity.
Then an open loop at --factor times that rate, Poisson arrivals, latencies from the moment each request was due. Bars
(Q15): goodput >= 90 % of the capacity, p99 of what was admitted < 2 times the p99 at capacity, everything else 503 with
Retry-After, and /health, asked ten times a second meanwhile,
p99 < 50 ms. The load's own lateness is printed: where it is large, the load generator is what is measured.

--cpu: the gateway itself is what is short. The target answers at once; wrk finds the capacity on 256 connections, and
then asks on so many, each pausing for a while before it asks again, that they would ask --factor times as much of a
gateway that answers at once: a gateway that is slow to say no is asked less. Twenty requests a second beside it are the
sample of what the admitted wait and of how the others are told. The same bars. --events 100 --gap-ms 1: streams; else
the shortest answers there are, of which a refusal costs half, and then 90 % of the capacity cannot be had, whatever
is done. Goodput is per second that the gateway's core worked, so that other work on it is not taken for a loss; what
the admitted wait has no such remedy. Exit code 1: a bar was missed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parents[1]))

import uvloop

from bench import rig
from bench.e2e import payloads
from bench.e2e.peers import nginx_command
from bench.e2e.proc import Cores, Running, Stage, cpu_us, deferred
from bench.rig import LOST, OK, REFUSED, Accounts, Client, Result

LATENCY_MS = 50.0
GOODPUT = 0.90
SLOWER = 2.0
HEALTH_S = 0.05
QUEUE_WAIT_S = 0.05
"""One service time: who would wait longer is better told at once."""
CLIENTS = 256
"""At capacity, where our own core is the limit."""
THINK_MS = 400
CONNECTIONS = 5000
"""No more than so many; rather they wait for less than THINK_MS."""
SETTLE_S = 1.0
"""Thousands of connections are made in this time; what the admitted wait is looked at behind it."""
WRK = """wrk.method, wrk.path = "POST", "%s"
wrk.body = io.open("%s", "rb"):read("*a")
wrk.headers["Content-Type"] = "application/json"
%s
function done(summary)
  local e = summary.errors
  io.write("@ ", summary.duration, " ", summary.requests, " ", e.status, " ", e.connect + e.read + e.write + e.timeout,
           "\\n")
end
"""


@dataclass(slots=True)
class Run:
    """One load. ``good`` per second of its time."""

    seconds: float
    results: list[Result] = field(default_factory=list)
    health_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """How much after its time the load sent a request: its own lateness, which is in the latencies."""

    def served(self) -> list[float]:
        return [r.total_s for r in self.results if r.kind == OK]

    def goodput(self) -> float:
        return len(self.served()) / self.seconds


HEALTH = """import json, socket, sys, threading, time
port, every_s, found, end = int(sys.argv[1]), float(sys.argv[2]), [], threading.Event()
def ask():
    while not end.wait(every_s):
        began = time.perf_counter()
        with socket.create_connection(("127.0.0.1", port), 30) as sock:
            sock.sendall(b"GET /health HTTP/1.1\\r\\nHost: x\\r\\nConnection: close\\r\\n\\r\\n")
            good = sock.recv(4096).startswith(b"HTTP/1.1 200 ")
        found.append(time.perf_counter() - began if good else 30.0)
thread = threading.Thread(target=ask)
thread.start()
sys.stdin.read()
end.set()
thread.join()
print(json.dumps(found))
"""


@contextlib.contextmanager
def health(stage: Stage, port: int, found: list[float], every_s: float = 0.1) -> Iterator[None]:
    """Ask /health on new connections, from a process that does nothing else."""
    command = ["taskset", "-c", str(stage.cores.load), sys.executable, "-c", HEALTH, str(port), str(every_s)]
    with deferred():
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield
        told, _ = process.communicate("", timeout=rig.LIMIT_S)
        found += json.loads(told)
    finally:
        process.kill()
        process.wait()


async def closed(port: int, clients: int, seconds: float) -> Run:
    """``clients`` ask one after the other."""
    run = Run(seconds)
    body = rig.request(False, 1)
    until = time.perf_counter() + seconds

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < until:
            run.results.append(await client.ask(body, False))
        client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(clients):
            group.create_task(one())
    return run


async def opened(port: int, rate: float, seconds: float, seed: int, stream: bool = False) -> Run:
    """``rate`` requests a second, whatever becomes of them."""
    run = Run(seconds)
    body = rig.request(stream, 1)
    dice = rig.dice(seed, "arrivals")
    client = Client(port)
    due = began = time.perf_counter()

    async def one(due: float) -> None:
        run.results.append(await client.ask(body, stream, due=due))

    async with asyncio.TaskGroup() as group:
        while due < began + seconds:
            pause = due - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            else:
                run.late_s.append(-pause)
                await asyncio.sleep(0)
            group.create_task(one(due))
            due += dice.expovariate(rate)
    client.close()
    return run


def provider(args: argparse.Namespace, port: int) -> dict[str, Any]:
    entry: dict[str, Any] = {"name": "up", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "unused"}
    if not args.cpu:  # else it is our own core that is short, and nothing beside it
        entry["limits"] = {"max_in_flight": args.places, "queue": args.queue}
    return entry


def config(args: argparse.Namespace, port: int) -> dict[str, Any]:
    admission = {"queue_wait_s": QUEUE_WAIT_S}
    return {"providers": [provider(args, port)], "resilience": {"admission": admission}}


def upstream(stage: Stage, args: argparse.Namespace, delay_ms: float) -> Running:
    """It answers one request after the other per connection, cheaply."""
    port = rig.free_port()
    command = [sys.executable, "-m", "bench.e2e.upstream", str(port), "--delay-ms", str(delay_ms)]
    running = stage.spawn("upstream", port, command, stage.cores.load, {"PYTHONPATH": str(rig.ROOT)})
    running.first_200(payloads.http(payloads.request()))
    return running


def instant(stage: Stage, events: int) -> Running:
    """It answers at once, with a stream of so many events, and costs the core that it shares with the load little."""
    port, folder = rig.free_port(), stage.folder / "upstream"
    folder.mkdir()
    kind, answer = "application/json", payloads.reply()
    if events:
        kind, answer = "text/event-stream", payloads.stream(events, usage=True)
    (folder / "reply").write_bytes(answer)
    command = nginx_command(
        folder,
        4096,
        f"""
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder};
    location / {{ default_type {kind}; error_page 405 =200 /reply; try_files /reply =404; }} }}
""",
    )
    running = stage.spawn("upstream", port, command, stage.cores.load)
    running.first_200(payloads.http(payloads.request()))
    return running


def paced(stage: Stage, args: argparse.Namespace) -> Running:
    """Its events come one by one."""
    port = rig.free_port()
    command = [sys.executable, "-m", "bench.e2e.upstream", str(port), "--events", str(args.events)]
    command += ["--gap-ms", str(args.gap_ms)]
    running = stage.spawn("upstream", port, command, stage.cores.load, {"PYTHONPATH": str(rig.ROOT)})
    running.first_200(payloads.http(payloads.request()))
    return running


def measure(args: argparse.Namespace) -> list[tuple[str, str, bool]]:
    with Stage(Cores()) as stage:
        stage.cores.take_load()
        up = upstream(stage, args, LATENCY_MS)
        gateway = rig.start_gateway(stage, config(args, up.port))
        uvloop.run(closed(gateway.port, args.places, 2.0))
        calm: list[float] = []
        with health(stage, gateway.port, calm):
            base = uvloop.run(closed(gateway.port, args.places, max(5.0, args.seconds / 2)))
        if len(base.served()) < len(base.results):
            raise rig.Failed(f"at capacity: {Counter(r.kind for r in base.results)}")
        capacity = base.goodput()
        print(f"capacity, closed loop of {args.places}: {capacity:,.0f}/s, " + _latencies(base.served()))
        rate = capacity * args.factor
        pressed: list[float] = []
        with health(stage, gateway.port, pressed):
            run = uvloop.run(opened(gateway.port, rate, args.seconds, args.seed))
        after = uvloop.run(closed(gateway.port, args.places, 5.0))
        turned = [r for r in run.results if r.kind == REFUSED]
        odd = [
            r for r in run.results if r.kind == LOST or (r.kind == REFUSED and not (r.status == 503 and r.retry_after))
        ]
        print(
            f"asked {len(run.results) / args.seconds:,.0f}/s, open loop: served {run.goodput():,.0f}/s, "
            + _latencies(run.served())
        )
        print(
            f"turned away {len(turned) / args.seconds:,.0f}/s, "
            + _latencies([r.total_s for r in turned])
            + f"; the load's own lateness p99 {rig.ms(run.late_s, 0.99)} ms"
        )
        print(f"afterwards, closed loop: {after.goodput():,.0f}/s; /health at capacity p99 {rig.ms(calm, 0.99)} ms")
        for text, count in Counter(f"{r.kind} {r.status} {r.text[:120]}" for r in odd).most_common(3):
            print(f"  {count} {text}")
        print("attempts:", Accounts(gateway).by("slipstream_upstream_attempts_total", "outcome"))
        share, p99, before = run.goodput() / capacity, rig.ms(run.served(), 0.99), rig.ms(base.served(), 0.99)
        return [
            (f"goodput at {args.factor:g} x capacity", f"{share:.1%}, bar {GOODPUT:.0%}", share >= GOODPUT),
            ("p99 of the admitted", f"{p99} ms, {before} at capacity, bar {SLOWER:g} x", p99 < SLOWER * before),
            (
                "not served, and not 503 with Retry-After",
                f"{len(odd)} of {len(run.results) - len(run.served())}",
                not odd,
            ),
            (
                "/health meanwhile, p99",
                f"{rig.ms(pressed, 0.99)} ms of {len(pressed)}, slowest {rig.ms(pressed, 1)}",
                quick(pressed),
            ),
            ("capacity afterwards", f"{after.goodput() / capacity:.1%}, bar 95%", after.goodput() >= 0.95 * capacity),
        ]


def quick(times: list[float]) -> bool:
    return rig.quantile(times, 0.99) < HEALTH_S


def _latencies(values: list[float]) -> str:
    return "p50 {} p99 {} ms".format(*(rig.ms(values, q) for q in (0.5, 0.99)))


def wrk(
    stage: Stage, port: int, connections: int, seconds: int, think_ms: int = 0, stream: bool = False
) -> dict[str, float]:
    """Served and turned away per second. ``think_ms``: each connection waits so long, on average, before it asks."""
    body, script = stage.folder / "body.json", stage.folder / "load.lua"
    body.write_bytes(payloads.request(stream=stream))
    delay = f"function delay() return math.random({think_ms // 2}, {think_ms * 3 // 2}) end" if think_ms else ""
    script.write_text(WRK % (payloads.PATH, body, delay))
    command = [
        "taskset",
        "-c",
        str(stage.cores.load),
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{seconds}s",
        "--timeout",
        "20s",
    ]
    command += ["-s", str(script), f"http://127.0.0.1:{port}"]
    out = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False).stdout
    found = re.search(r"^@ (\d+) (\d+) (\d+) (\d+)$", out, re.MULTILINE)
    if found is None:
        raise rig.Failed(f"wrk: {out}")
    micros, requests, refused, lost = map(int, found.groups())
    return {"good": (requests - refused) / micros * 1e6, "refused": refused / micros * 1e6, "lost": lost}


def measure_cpu(args: argparse.Namespace) -> list[tuple[str, str, bool]]:
    seconds = max(3, int(args.seconds / 2))
    with Stage(Cores()) as stage:
        stage.cores.take_load()
        up = paced(stage, args) if args.gap_ms else instant(stage, args.events)
        gateway = rig.start_gateway(stage, config(args, up.port))
        wrk(stage, gateway.port, CLIENTS, 1, stream=bool(args.events))
        found = []
        connections, think_ms = CLIENTS, 0
        for _ in range(2):
            told, run = beside(stage, gateway, args, connections, seconds, think_ms)
            found.append((told, run))
            print(
                f"wrk on {connections} connections, pausing {think_ms} ms: served {told['good']:,.0f}/s, turned away "
                f"{told['refused']:,.0f}/s, with {told['core']:.0%} of its core; beside it, admitted "
                f"{len(run.served())}: {_latencies(run.served())}, /health p99 {rig.ms(run.health_s, 0.99)} ms",
                flush=True,
            )
            think_ms = int(min(THINK_MS, 1000 * CONNECTIONS / (told["good"] * args.factor)))
            connections = int(told["good"] * args.factor * think_ms / 1000)
        (base, calm), (told, run) = found
        odd = [r for r in run.results if not (r.kind == OK or (r.status == 503 and r.retry_after))]
        share = (told["good"] / told["core"]) / (base["good"] / base["core"])
        p99, before = rig.ms(run.served(), 0.99), rig.ms(calm.served(), 0.99)
        pressed = run.health_s
        return [
            ("goodput per second of the gateway's core", f"{share:.1%}, bar {GOODPUT:.0%}", share >= GOODPUT),
            ("p99 of the admitted", f"{p99} ms, {before} at capacity, bar {SLOWER:g} x", p99 < SLOWER * before),
            ("of the sample not served, and not 503 with Retry-After", f"{len(odd)}", not odd and not told["lost"]),
            (
                "/health meanwhile, p99",
                f"{rig.ms(pressed, 0.99)} ms of {len(pressed)}, slowest {rig.ms(pressed, 1)}",
                quick(pressed),
            ),
        ]


def beside(
    stage: Stage, gateway: Running, args: argparse.Namespace, connections: int, seconds: int, think_ms: int
) -> tuple[dict[str, float], Run]:
    """wrk's load, and beside it the sample and /health."""

    async def both() -> tuple[dict[str, float], Run]:
        loop = asyncio.get_running_loop()
        before = cpu_us(gateway.pids())
        stream = bool(args.events)
        load = loop.run_in_executor(None, wrk, stage, gateway.port, connections, seconds, think_ms, stream)
        await asyncio.sleep(SETTLE_S)
        run = await opened(gateway.port, 20.0, seconds - SETTLE_S - 0.5, 1, stream)
        told = await load
        told["core"] = (cpu_us(gateway.pids()) - before) / seconds / 1e6
        return told, run

    times: list[float] = []
    with health(stage, gateway.port, times):
        told, run = uvloop.run(both())
    run.health_s = times
    return told, run


def bars(args: argparse.Namespace) -> int:
    rows = measure_cpu(args) if args.cpu else measure(args)
    if args.json:
        args.json.write_text(json.dumps({"bars": rows}, indent=2) + "\n")
    return rig.verdict(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=20, help="of overload [20]")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--places", type=int, default=32, help="limits.max_in_flight of the target [32]")
    parser.add_argument("--queue", type=int, default=8, help="limits.queue of the target [8]")
    parser.add_argument("--factor", type=float, default=2.0, help="times the capacity [2]")
    parser.add_argument("--cpu", action="store_true", help="the gateway's own core is what is short")
    parser.add_argument("--events", type=int, default=0, help="with --cpu: answers are streams of so many [0]")
    parser.add_argument("--gap-ms", type=float, default=0, help="with --events: between two of them [0]")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    return rig.run(bars, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
