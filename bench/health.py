"""How soon /health answers while large requests are in flight (R23).

    python bench/health.py [--bodies 60] [--mb 10] [--seconds 20] [--json FILE]

So many clients send bodies of that size at once, again and again, through one worker to a provider that drops them; a
process of its own asks /health 200 times a second on new connections, first in calm. Bar: p99 under 50 ms (R23: 60
requests of 10 MB). Load, provider and probe share a core, and what they wait for each other is in the figures. Exit
code 1: the bar was missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1]))

import asyncio

import uvloop

from bench import rig
from bench.e2e import payloads
from bench.e2e.proc import Cores, Stage
from bench.overload import health
from bench.rig import OK, Client, Result

BAR_S = 0.05
PERIOD_S = 0.005
CALM_S = 2.0
MB = 1_000_000
PROVIDER = """import asyncio, re, sys
import uvloop
ANSWER = b'{"choices": [{"index": 0, "message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}]}'
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n"
REPLY = HEAD % len(ANSWER) + ANSWER
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            found = re.search(rb"content-length: *(\\d+)", head.lower())
            left = int(found[1]) if found else 0
            while left:
                data = await reader.read(left)
                if not data:
                    return
                left -= len(data)
            writer.write(REPLY)
    except (asyncio.IncompleteReadError, OSError):
        pass
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), limit=1 << 20)
    await server.serve_forever()
uvloop.run(main())
"""


async def load(args: argparse.Namespace, port: int) -> list[Result]:
    """``args.bodies`` clients, each one body after the other until the time is over."""
    body = rig.request(False, 1, chars=args.mb * MB)
    results: list[Result] = []
    until = time.perf_counter() + args.seconds

    async def one() -> None:
        client = Client(port)
        while time.perf_counter() < until:
            results.append(await client.ask(body, False))
        client.close()

    async with asyncio.TaskGroup() as group:
        for _ in range(args.bodies):
            group.create_task(one())
    return results


def measure(args: argparse.Namespace) -> int:
    with Stage(Cores()) as stage:
        stage.cores.take_load()
        port = rig.free_port()
        command = [sys.executable, "-c", PROVIDER, str(port)]
        stage.spawn("provider", port, command, stage.cores.load).first_200(payloads.http(payloads.request()))
        provider = {"name": "up", "api_base": f"http://127.0.0.1:{port}/v1", "api_key": "unused"}
        gateway = rig.start_gateway(stage, {"providers": [provider]})
        calm: list[float] = []
        with health(stage, gateway.port, calm, PERIOD_S):
            time.sleep(CALM_S)
        busy: list[float] = []
        with health(stage, gateway.port, busy, PERIOD_S):
            began = time.perf_counter()
            results = uvloop.run(load(args, gateway.port))
            took = time.perf_counter() - began
        gateway.check()
        good = sum(result.kind == OK for result in results)
        if good < len(results) or not good:
            raise rig.Failed(f"{len(results) - good} of {len(results)} uploads failed: {results[-1].text}")
    figures = {name: [rig.ms(waits, q) for q in (0.5, 0.99, 1.0)] for name, waits in (("calm", calm), ("busy", busy))}
    for name, (p50, p99, most) in figures.items():
        print(f"/health, {name}: p50 {p50} p99 {p99} longest {most} ms")
    print(f"{good} bodies of {args.mb} MB, {good * args.mb / took:,.0f} MB/s, {len(busy)} probes meanwhile", flush=True)
    p99_s = rig.quantile(busy, 0.99)
    rows = [(f"p99 of /health under {args.bodies} x {args.mb} MB", f"{p99_s * 1000:.1f} ms, bar 50", p99_s < BAR_S)]
    if args.json:
        args.json.write_text(json.dumps({"ms": figures, "bodies": good, "calm": calm, "busy": busy}) + "\n")
    return rig.verdict(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--bodies", type=int, default=60, help="at once [60]")
    parser.add_argument("--mb", type=int, default=10, help="size of each [10]")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures here")
    return rig.run(measure, parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
