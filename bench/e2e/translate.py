"""The mode ``translate``: clients of OpenAI's chat before upstreams of another dialect, beside nginx, which relays the
same upstream's bytes. What a gateway pays for translating is what it costs more than that.

Streams: the texts, the number and the pace of the events are those of the mode sse. Whole answers: Anthropic's, of the
size of the mode unary, from an nginx with one file.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from . import check, load, payloads
from .dialects import DIALECTS, NAMES
from .modes import (
    CHECKED,
    CONNECTIONS,
    STREAM_TIMEOUT_S,
    Effort,
    Entrant,
    Measured,
    Result,
    fast_house,
    finished,
    keep,
    requests,
    summary,
    thinking_house,
)
from .peers import PROVIDERS, Config, Peer, serve
from .proc import Cores, Failed, cpu_us

RELAYS = ("nginx", "haproxy")
OURS = ("slipstream", "reference")
UNARY = "anthropic"
MODES = (*(f"translate {name}" for name in NAMES), "translate unary")
BARS = {**{f"translate {name}": 2.5 for name in NAMES}, "translate unary": 3.0}
"""Times nginx's relay of the same event, of the same request."""


def translating(kind: str) -> Config:
    """Our gateway with three providers of another type."""

    def config(folder: Path, port: int, upstream: int, connections: int) -> list[str]:
        base = f"http://127.0.0.1:{upstream}"
        return serve(folder, port, [f'type: {kind}, api_base: "{base}", api_key: sk-up-{name}' for name in PROVIDERS])

    return config


def peers_of(peers: Sequence[Peer], kind: str) -> list[Peer]:
    """The relays as they are, ours translating. The other gateways speak to one dialect each and have no part."""
    chosen = [peer for peer in peers if peer.name in (*RELAYS, *OURS)]
    return [
        Peer(peer.name, peer.title, translating(kind), env=peer.env) if peer.name in OURS else peer for peer in chosen
    ]


def measure(peers: Sequence[Peer], cores: Cores, effort: Effort) -> dict[str, Result]:
    found = {f"translate {name}": streams(peers, cores, effort, name) for name in NAMES}
    found["translate unary"] = unary(peers, cores, effort)
    return found


def streams(peers: Sequence[Peer], cores: Cores, effort: Effort, name: str) -> Result:
    """CPU per event of content, the few others of a stream included."""
    dialect, chosen = DIALECTS[name], peers_of(peers, name)
    rounds: dict[str, list[Measured]] = {peer.name: [] for peer in chosen}
    bodies = [payloads.request(seed=seed, stream=True) for seed in range(CHECKED["sse"])]
    raw = [(body, dialect.stream()) for body in bodies]
    translated = [(body, payloads.stream()) for body in bodies]
    asked = check.thinking(payloads.SIZES["unary"], CHECKED["unary"])
    with thinking_house(chosen, cores, "--dialect", name) as (stage, _, running):

        def measured(e: Entrant, timed: bool) -> None:
            count, times = (CONNECTIONS["sse"], effort.streams) if timed else (10, 1)
            mark = dialect.mark if e.peer.name in RELAYS else payloads.END_MARK
            before = cpu_us(e.running.pids())
            port, headers = e.running.port, e.headers
            seen, complete = load.streams(stage, port, count, times, STREAM_TIMEOUT_S, headers, mark.decode())
            spent = cpu_us(e.running.pids()) - before
            if not seen.bad and seen.done != complete * payloads.EVENTS:
                raise Failed(f"{e.peer.name}: {seen.done} events in {complete} complete streams")
            if timed:
                keep(rounds[e.peer.name], e, seen, spent, name)

        for e in running:
            e.do(partial(compare, raw=raw, translated=[*translated, *asked]))
        for number in range(effort.rounds + 1):
            for e in running:
                e.do(measured, number > 0)
        rows = {e.peer.name: summary(e.peer.name, rounds[e.peer.name], "event") for e in running if not e.failed}
        return finished(running, rows)


def unary(peers: Sequence[Peer], cores: Cores, effort: Effort) -> Result:
    """CPU per request whose answer is translated."""
    chosen, chars = peers_of(peers, UNARY), payloads.SIZES["unary"]
    reply = DIALECTS[UNARY].reply()
    bodies = [payloads.request(chars, seed) for seed in range(CHECKED["unary"])]
    raw = [(body, reply) for body in bodies]
    translated = [(body, payloads.reply()) for body in bodies]
    with fast_house(chosen, cores, reply) as (stage, _, running):
        for e in running:
            e.do(partial(compare, raw=raw, translated=translated))
        rows = requests(stage, running, chars, CONNECTIONS["unary"], effort)
        return finished(running, rows)


def compare(e: Entrant, raw: list[check.Question], translated: list[check.Question]) -> None:
    """A relay gives the upstream's bytes; ours the same answer in OpenAI's words: its text, which depends on the
    question that the upstream has got, its finish reason, its token counts."""
    exact = e.peer.name in RELAYS
    e.compared += check.check(e.peer.name, e.running.port, e.headers, raw if exact else translated, exact=exact)
