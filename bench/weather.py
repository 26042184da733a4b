"""An upstream whose faults change with time: a `slipstream mock` that follows a plan. One process is one target.

    python -m bench.weather --port PORT --name NAME --seed N --plan FILE

FILE is JSON: ``mean_ms``, ``p95_ms``, ``tokens_per_s``, ``slow_share`` and ``slow_factor`` (calls that take so many
times longer to begin), ``spells``: [from_s, to_s, fault, share] in seconds after SIGUSR1. A fault is one of the mock's
(`slipstream.mock.faults`), or ``dead``: nobody listens and all connections are closed. /mock/ledger has the totals by
fault and form besides (``by_fault``, "cut/stream"), to compare a gateway's accounts with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import uvloop

from slipstream.mock.app import MockServer
from slipstream.mock.behaviour import Behaviour, Plan
from slipstream.mock.faults import Fault
from slipstream.mock.ledger import Entry, Ledger
from slipstream.mock.settings import MockSettings

DEAD = "dead"
OK = "ok"


class Tally(Ledger):
    """A ledger that also counts by fault. ``done``: answered to the end, or as far as the fault goes."""

    def reset(self) -> None:
        super().reset()
        self.by_fault: dict[str, dict[str, int]] = {}

    def finish(self, entry: Entry, now: float, disconnected: bool) -> None:
        known = entry in self._counted
        super().finish(entry, now, disconnected)
        if not known:
            return
        row = self.by_fault.setdefault(
            f"{entry.fault or OK}/{'stream' if entry.stream else 'whole'}",
            dict.fromkeys(("requests", "done", "left", "left_prompt", "prompt", "completion"), 0),
        )
        row["requests"] += 1
        row["left" if disconnected else "done"] += 1
        row["left_prompt"] += disconnected * entry.prompt_tokens
        row["prompt"] += entry.prompt_tokens
        row["completion"] += entry.completion_tokens

    def snapshot(self) -> dict[str, Any]:
        return super().snapshot() | {"by_fault": self.by_fault}


class Weather(Behaviour):
    """A mock's decisions under a plan."""

    def __init__(self, settings: MockSettings, plan: dict[str, Any]) -> None:
        super().__init__(settings)
        self._dice = random.Random(f"{settings.seed}/weather")
        self._spells = plan.get("spells", [])
        self._slow_share, self._slow_factor = plan.get("slow_share", 0.0), plan.get("slow_factor", 1.0)
        self.began: float | None = None

    def plan(self, endpoint: str, raw: bytes, fault_header: str | None, created: int) -> Plan:
        return super().plan(endpoint, raw, fault_header or self._fault(), created)

    def _fault(self) -> str | None:
        if self.began is None:
            return None
        at = time.monotonic() - self.began
        for since, until, fault, share in self._spells:
            if since <= at < until:
                return fault if fault != DEAD and self._dice.random() < share else None
        return None

    def _delay_s(self, stream: bool, fault: Fault | None) -> float:
        delay = super()._delay_s(stream, fault)
        return delay * self._slow_factor if self._dice.random() < self._slow_share else delay


async def run(args: argparse.Namespace) -> None:
    plan = json.loads(args.plan.read_text())
    settings = MockSettings(
        name=args.name,
        seed=args.seed,
        mean_latency_ms=plan["mean_ms"],
        p95_latency_ms=plan["p95_ms"],
        tokens_per_s=plan.get("tokens_per_s", 0.0),
    )
    server = MockServer(settings)
    server.ledger = Tally()
    weather = server._behaviour = Weather(settings, plan)
    await server.start(port=args.port)
    loop = asyncio.get_running_loop()
    go, end = asyncio.Event(), asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, go.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)

    async def deaths() -> None:
        await go.wait()
        weather.began = time.monotonic()
        for since, until, fault, _ in plan.get("spells", []):
            if fault == DEAD:
                await asyncio.sleep(max(0.0, weather.began + since - time.monotonic()))
                for entry in server.ledger._open:
                    entry.fault = DEAD  # theirs are cut now
                await server.stop()
                await asyncio.sleep(max(0.0, weather.began + until - time.monotonic()))
                await server.start(port=args.port)

    task = loop.create_task(deaths())
    await end.wait()
    task.cancel()
    await server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plan", type=Path, required=True)
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
