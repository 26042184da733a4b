"""The timed modes: what a request, or an event of a stream, costs each peer, and by how much it delays them.

All peers of a mode run at the same time on the proxy's core and take turns under load, round by round, so that drift
of the machine hits them alike; the median round is the figure. CPU time is that of the peer's whole process tree.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import check, load, payloads
from .load import Histogram, Round
from .peers import Peer, nginx_command
from .proc import Cores, Failed, Memory, Running, Stage, cpu_us, free_port

CONNECTIONS = {"unary": 64, "100k": 16, "1m": 16, "sse": 100}
STREAM_TIMEOUT_S = 120.0
WARM_UP_S = 1
LATENCY = {"1": (1, 0), "64": (64, 0), "64 paced": (64, 64)}
"""Connections and milliseconds of thinking between an answer and the next request. 64 connections without a pause
saturate the machine, and what is seen is its throughput; 64 with 64 ms are 1,000 requests a second."""
CHECKED = {"unary": 32, "100k": 8, "1m": 4, "sse": 8}

Result = dict[str, Any]
Measured = tuple[Round, float, Memory]
"""What the load saw, CPU microseconds of the peer, its memory afterwards."""


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 5
    seconds: int = 4
    streams: int = 2
    """Streams that each connection reads in a round of the mode sse; each takes a second."""


@dataclass(slots=True)
class Entrant:
    """A peer that runs, with what was measured of it."""

    peer: Peer
    running: Running
    start_ms: float
    headers: dict[str, str]
    compared: int = 0
    failed: str = ""

    def check(self, questions: list[check.Question]) -> None:
        name, port = self.peer.name, self.running.port
        self.compared += check.check(name, port, self.headers, questions, exact=self.peer.exact)

    def do(self, work: Callable[..., None], *args: object) -> None:
        """A rival that fails is out, and the report says why; with one of the others the run has failed."""
        if self.failed:
            return
        try:
            try:
                work(self, *args)
            finally:
                self.running.check()  # if it has ended, that is the reason, whatever the load saw of it
        except Failed as error:
            if self.peer.exact:
                raise
            self.failed = str(error).split("\n", 1)[0]
            say(f"  {self.peer.name} is out: {self.failed}")


@contextmanager
def fast_house(
    peers: Sequence[Peer], cores: Cores, reply: bytes | None = None
) -> Iterator[tuple[Stage, int, list[Entrant]]]:
    """The peers before an nginx that serves one reply from a file."""
    with Stage(cores) as stage:
        port = free_port()
        folder = stage.folder / "upstream"
        folder.mkdir()
        (folder / "reply.json").write_bytes(payloads.reply() if reply is None else reply)
        command = nginx_command(
            folder,
            4096,
            f"""
  server {{ listen 127.0.0.1:{port} backlog=4096; root {folder};
    location / {{ default_type application/json; error_page 405 =200 /reply.json; try_files /reply.json =404; }} }}
""",
        )
        upstream = stage.spawn("upstream", port, command, cores.load)
        upstream.first_200(payloads.http(payloads.request()))
        yield stage, port, entrants(stage, peers, port)


@contextmanager
def thinking_house(
    peers: Sequence[Peer], cores: Cores, *arguments: object
) -> Iterator[tuple[Stage, int, list[Entrant]]]:
    """The peers before ``upstream.py``, which answers as asked."""
    with Stage(cores) as stage:
        port = free_port()
        load.thinking_upstream(stage, port, *arguments)
        yield stage, port, entrants(stage, peers, port)


def entrants(stage: Stage, peers: Sequence[Peer], upstream: int) -> list[Entrant]:
    made = []
    for peer in peers:
        running, start_ms = peer.start(stage, upstream)
        made.append(Entrant(peer, running, start_ms, peer.headers(upstream)))
    return made


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def progress(what: str, name: str, spent_us: float, seen: Round) -> None:
    say(f"  {what:>9} {name:12}{spent_us / max(seen.done, 1):10.1f} us  n {seen.done}  bad {seen.bad}")


def unary(peers: Sequence[Peer], cores: Cores, modes: Sequence[str], effort: Effort) -> dict[str, Result]:
    """``unary``, ``100k``, ``1m`` and ``latency``, on one start of the peers."""
    results: dict[str, Result] = {}
    with fast_house(peers, cores) as (stage, upstream, running):
        for mode in modes:
            chars = payloads.SIZES.get(mode, payloads.SIZES["unary"])
            questions = check.static(chars, CHECKED.get(mode, CHECKED["unary"]))
            for e in running:
                e.compared = 0
                e.do(Entrant.check, questions)
            if mode == "latency":
                rows = latency(stage, upstream, running, effort)
            else:
                rows = requests(stage, running, chars, CONNECTIONS[mode], effort)
            for e in running:
                e.do(Entrant.check, questions)
            results[mode] = finished(running, rows)
    return results


def finished(running: list[Entrant], rows: Result) -> Result:
    """The rows of those that came through, with what belongs to every row, and the reasons of the others."""
    for e in running:
        name = e.peer.name
        if e.failed:
            rows[name] = {"failed": e.failed}
        else:
            rows[name] |= {"bodies_compared": e.compared, "start_ms": round(e.start_ms, 1)}
    return rows


def requests(stage: Stage, running: list[Entrant], chars: int, connections: int, effort: Effort) -> Result:
    rounds: dict[str, list[Measured]] = {e.peer.name: [] for e in running}

    def measure(e: Entrant, timed: bool) -> None:
        seconds = effort.seconds * e.peer.patience if timed else WARM_UP_S
        before = cpu_us(e.running.pids())
        seen = load.wrk(stage, e.running.port, chars, connections, seconds, e.headers)
        spent = cpu_us(e.running.pids()) - before
        if timed:
            keep(rounds[e.peer.name], e, seen, spent, f"{chars}")

    for number in range(effort.rounds + 1):
        for e in running:
            e.do(measure, number > 0)
    return {e.peer.name: summary(e.peer.name, rounds[e.peer.name], "request") for e in running if not e.failed}


def keep(rounds: list[Measured], e: Entrant, seen: Round, spent_us: float, what: str) -> None:
    if not seen.done:
        raise Failed(f"{e.peer.name}: a round in which nothing was done, {seen.bad} bad")
    rounds.append((seen, spent_us, Memory(e.running.pids())))
    say(f"  {what:>9} {e.peer.name:12}{spent_us / seen.done:10.1f} us  n {seen.done}  bad {seen.bad}")


def latency(stage: Stage, upstream: int, running: list[Entrant], effort: Effort) -> Result:
    """Through the peer minus direct, in turns; quantiles are subtracted, not single requests."""
    found: Result = {"direct": {}} | {e.peer.name: {} for e in running}
    chars = payloads.SIZES["unary"]

    def measure(e: Entrant, kept: list[Round], connections: int, think_ms: int, seconds: int) -> None:
        kept.append(load.wrk(stage, e.running.port, chars, connections, seconds, e.headers, think_ms))

    for label, (connections, think_ms) in LATENCY.items():
        rounds: dict[str, list[Round]] = {name: [] for name in found}
        for number in range(effort.rounds + 1):
            seconds = effort.seconds if number else WARM_UP_S
            rounds["direct"].append(load.wrk(stage, upstream, chars, connections, seconds, {}, think_ms))
            for e in running:
                e.do(measure, rounds[e.peer.name], connections, think_ms, seconds)
        direct = rounds["direct"][1:]
        for name, seen in rounds.items():
            if len(seen) > effort.rounds:
                found[name][label] = added(seen[1:], direct)
                say(f"  {label:>9} {name:12} p50 {found[name][label]['p50_us']:8.0f} us")
    for row in found.values():
        row["bad"] = sum(cell["bad"] for cell in row.values())
    return found


def added(through: list[Round], direct: list[Round]) -> Result:
    p50, p99 = quantiles(through)
    direct_p50, direct_p99 = quantiles(direct)
    return {
        "p50_us": p50,
        "p99_us": p99,
        "added_p50_us": p50 - direct_p50,
        "added_p99_us": p99 - direct_p99,
        "n": sum(r.done for r in through),
        "bad": sum(r.bad for r in through),
        "histogram": merged(through).rows(),
    }


def sse(peers: Sequence[Peer], cores: Cores, effort: Effort, bodies: Sequence[str]) -> Result:
    """CPU per relayed event; before that, the checking pass with answers that depend on their questions."""
    rounds: dict[str, list[Measured]] = {p.name: [] for p in peers}
    questions = check.streamed(CHECKED["sse"])
    for size in bodies:
        questions += check.thinking(payloads.SIZES[size], CHECKED[size])
    with thinking_house(peers, cores) as (stage, _, running):

        def measure(e: Entrant, timed: bool) -> None:
            count, times = (CONNECTIONS["sse"], effort.streams) if timed else (10, 1)
            before = cpu_us(e.running.pids())
            seen, complete = load.streams(stage, e.running.port, count, times, STREAM_TIMEOUT_S, e.headers)
            spent = cpu_us(e.running.pids()) - before
            if not seen.bad and seen.done != complete * payloads.EVENTS:
                raise Failed(f"{e.peer.name}: {seen.done} events in {complete} complete streams")
            if timed:
                keep(rounds[e.peer.name], e, seen, spent, "sse")

        for e in running:
            e.do(Entrant.check, questions)
        for number in range(effort.rounds + 1):
            for e in running:
                e.do(measure, number > 0)
        rows = {e.peer.name: summary(e.peer.name, rounds[e.peer.name], "event") for e in running if not e.failed}
        return finished(running, rows)


def summary(name: str, rounds: list[Measured], unit: str) -> Result:
    """The median round of one peer. For streams the histogram is that of the time to the first event."""
    if unit == "request":
        load.same_size(name, [seen for seen, _, _ in rounds])
    cpu = [spent / seen.done for seen, spent, _ in rounds]
    p50, p99 = quantiles([seen for seen, _, _ in rounds])
    return {
        f"cpu_us_per_{unit}": round(statistics.median(cpu), 2),
        "all": [round(value, 2) for value in cpu],
        "per_cpu_second": round(1e6 / statistics.median(cpu)),
        "n": sum(seen.done for seen, _, _ in rounds),
        "bad": sum(seen.bad for seen, _, _ in rounds),
        "p50_us": p50,
        "p99_us": p99,
        "rss_mb": round(max(memory.rss for _, _, memory in rounds) / 1e6, 1),
        "pss_mb": round(max(memory.pss for _, _, memory in rounds) / 1e6, 1),
        "histogram": merged([seen for seen, _, _ in rounds]).rows(),
    }


def quantiles(rounds: list[Round]) -> tuple[float, float]:
    """p50 and p99, each the median of the rounds'."""
    return tuple(statistics.median(r.latency.quantile(q) for r in rounds) for q in (0.5, 0.99))  # type: ignore[return-value]


def merged(rounds: list[Round]) -> Histogram:
    whole = Histogram()
    for seen in rounds:
        whole.merge(seen.latency)
    return whole
