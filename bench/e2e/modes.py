"""The timed modes: what a request, or an event of a stream, costs each peer, and by how much it delays them.

All peers of a mode run at the same time on the proxy's core and take turns under load, round by round, so that drift
of the machine hits them alike; the median round is the figure. CPU time is that of the peer's whole process tree.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from . import check, load, payloads
from .load import Histogram, Round
from .peers import Peer, nginx_command
from .proc import Cores, Failed, Memory, Running, Stage, cpu_us, free_port

CONNECTIONS = {"unary": 64, "100k": 16, "1m": 16, "sse": 100}
STREAM_ROUNDS = 2
STREAM_TIMEOUT_S = 120.0
WARM_UP_S = 1
LATENCY = {"1": (1, 0), "64": (64, 0), "64 paced": (64, 64)}
"""Connections and milliseconds of thinking between an answer and the next request. 64 connections without a pause
saturate the machine, and what is seen is its throughput; 64 with 64 ms are 1,000 requests a second."""
CHECKED = {"unary": 32, "100k": 8, "1m": 4, "sse": 8}

Result = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Effort:
    rounds: int = 5
    seconds: int = 4


@dataclass(slots=True)
class Entrant:
    """A peer that runs, with what was measured of it."""

    peer: Peer
    running: Running
    start_ms: float
    headers: dict[str, str]

    def check(self, questions: list[check.Question]) -> int:
        return check.check(self.peer.name, self.running.port, self.headers, questions, exact=self.peer.exact)


@contextmanager
def fast_house(peers: Sequence[Peer], cores: Cores) -> Iterator[tuple[Stage, int, list[Entrant]]]:
    """The peers before an nginx that serves one reply from a file."""
    with Stage(cores) as stage:
        port = free_port()
        folder = stage.folder / "upstream"
        folder.mkdir()
        (folder / "reply.json").write_bytes(payloads.reply())
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


def unary(peers: Sequence[Peer], cores: Cores, modes: Sequence[str], effort: Effort) -> dict[str, Result]:
    """``unary``, ``100k``, ``1m`` and ``latency``, on one start of the peers."""
    results: dict[str, Result] = {}
    with fast_house(peers, cores) as (stage, upstream, running):
        for mode in modes:
            chars = payloads.SIZES.get(mode, payloads.SIZES["unary"])
            questions = check.static(chars, CHECKED.get(mode, CHECKED["unary"]))
            compared = {e.peer.name: e.check(questions) for e in running}
            if mode == "latency":
                results[mode] = latency(stage, upstream, running, effort)
            else:
                results[mode] = requests(stage, running, chars, CONNECTIONS[mode], effort)
            for e in running:
                results[mode][e.peer.name]["bodies_compared"] = compared[e.peer.name] + e.check(questions)
                results[mode][e.peer.name]["start_ms"] = round(e.start_ms, 1)
    return results


def requests(stage: Stage, running: list[Entrant], chars: int, connections: int, effort: Effort) -> Result:
    rounds: dict[str, list[tuple[Round, float, Memory]]] = {e.peer.name: [] for e in running}
    for number in range(effort.rounds + 1):
        for e in running:
            seconds = effort.seconds * e.peer.patience if number else WARM_UP_S
            before = cpu_us(e.running.pids())
            seen = load.wrk(stage, e.running.port, chars, connections, seconds, e.headers)
            spent = cpu_us(e.running.pids()) - before
            e.running.check()
            if number:
                rounds[e.peer.name].append((seen, spent, Memory(e.running.pids())))
                say(f"  {chars:>9} {e.peer.name:12}{spent / max(seen.done, 1):10.1f} us  n {seen.done} bad {seen.bad}")
    return {name: summary(name, made, "request") for name, made in rounds.items()}


def latency(stage: Stage, upstream: int, running: list[Entrant], effort: Effort) -> Result:
    """Through the peer minus direct, in turns; quantiles are subtracted, not single requests."""
    found: Result = {e.peer.name: {} for e in running} | {"direct": {}}
    for label, (connections, think_ms) in LATENCY.items():
        ways = [("direct", upstream, {}), *((e.peer.name, e.running.port, e.headers) for e in running)]
        rounds: dict[str, list[Round]] = {name: [] for name, _, _ in ways}
        for number in range(effort.rounds + 1):
            for name, port, headers in ways:
                seconds = effort.seconds if number else WARM_UP_S
                seen = load.wrk(stage, port, payloads.SIZES["unary"], connections, seconds, headers, think_ms)
                if number:
                    rounds[name].append(seen)
        direct = quantiles(rounds["direct"])
        for name, _, _ in ways:
            through = quantiles(rounds[name])
            all_rounds = merged(rounds[name])
            found[name][label] = {
                "p50_us": through[0],
                "p99_us": through[1],
                "added_p50_us": through[0] - direct[0],
                "added_p99_us": through[1] - direct[1],
                "n": sum(r.done for r in rounds[name]),
                "bad": sum(r.bad for r in rounds[name]),
                "histogram": all_rounds.rows(),
            }
            say(f"  {label:>9} {name:12} p50 {through[0]:8.0f} us  p99 {through[1]:8.0f} us")
    for name in found:
        found[name]["bad"] = sum(found[name][label]["bad"] for label in LATENCY)
    return found


def sse(peers: Sequence[Peer], cores: Cores, effort: Effort, bodies: Sequence[str]) -> Result:
    """CPU per relayed event; before that, the checking pass with answers that depend on their questions."""
    rounds: dict[str, list[tuple[Round, float, Memory]]] = {p.name: [] for p in peers}
    compared: dict[str, int] = {}
    connections = CONNECTIONS["sse"]
    with thinking_house(peers, cores) as (stage, _, running):
        for e in running:
            questions = check.streamed(CHECKED["sse"])
            for size in bodies:
                questions += check.thinking(payloads.SIZES[size], CHECKED[size])
            compared[e.peer.name] = e.check(questions)
        for number in range(effort.rounds + 1):
            for e in running:
                count, times = (connections, STREAM_ROUNDS) if number else (10, 1)
                before = cpu_us(e.running.pids())
                seen, complete = load.streams(stage, e.running.port, count, times, STREAM_TIMEOUT_S, e.headers)
                spent = cpu_us(e.running.pids()) - before
                e.running.check()
                if not seen.bad and seen.done != complete * payloads.EVENTS:
                    raise Failed(f"{e.peer.name}: {seen.done} events in {complete} complete streams")
                if number:
                    rounds[e.peer.name].append((seen, spent, Memory(e.running.pids())))
                    say(
                        f"        sse {e.peer.name:12}{spent / max(seen.done, 1):10.1f} us  n {seen.done} bad {seen.bad}"
                    )
    found = {name: summary(name, made, "event") for name, made in rounds.items()}
    for name, count in compared.items():
        found[name]["bodies_compared"] = count
    return found


def summary(name: str, rounds: list[tuple[Round, float, Memory]], unit: str) -> Result:
    """The median round of one peer. For streams the histogram is that of the time to the first event."""
    if any(not seen.done for seen, _, _ in rounds):
        raise Failed(f"{name}: a round without one {unit}")
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
