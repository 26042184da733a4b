"""ns per SSE event: the compiled framer, its plain twin and a naive Python split side by side.

Owns: the figures for ``slipstream/_fast/sse`` (one core, no I/O). The rival is what a relay in plain Python does: join
the rest, split at blank lines, cut the ``data: `` off. It is wrong about CR, CRLF, comments, several data lines and
BOMs, and still slower; it stays here so that the difference is measured and not remembered.

Run: ``python -m bench.micro.sse`` (or the file itself with the repository in PYTHONPATH).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

from slipstream._fast._pure import sse as pure

try:
    from slipstream._fast import sse as compiled
except ImportError:  # not built
    compiled = None  # type: ignore[assignment]

EVENT_BYTES = 300


def event(size: int = EVENT_BYTES, eol: bytes = b"\n") -> bytes:
    return (
        b"data: "
        + b'{"id":"c","choices":[{"index":0,"delta":{"content":"'.ljust(size - 6 - 2 * len(eol), b"x")
        + 2 * eol
    )


def naive(chunks: list[bytes]) -> int:
    rest, n = b"", 0
    for chunk in chunks:
        *blocks, rest = (rest + chunk).split(b"\n\n")
        for block in blocks:
            for line in block.split(b"\n"):
                if line.startswith(b"data:"):
                    line[5:].lstrip(b" ")
                    n += 1
    return n


def frame(module: Any, *, data: bool = False, cut: bool = False) -> Callable[[list[bytes]], int]:
    def run(chunks: list[bytes]) -> int:
        framer = module.SseFramer()
        feed, nxt, get, cut_out = framer.feed, framer.next, framer.data, framer.slice
        for chunk in chunks:
            feed(chunk)
            while nxt():
                if data:
                    get()
                if cut:
                    cut_out(framer.start, framer.end)
        return int(framer.events)

    return run


def next_only(module: Any, chunk: bytes, per_chunk: int) -> float:
    """ns of one call of next(), the loop around it taken off (best of 7)."""
    best = 1e9
    for _ in range(7):
        framer = module.SseFramer()
        nxt, total, empty = framer.next, 0, 0
        for _ in range(5_000):
            framer.feed(chunk)
            t0 = time.perf_counter_ns()
            for _ in range(per_chunk):
                nxt()
            t1 = time.perf_counter_ns()
            for _ in range(per_chunk):
                pass
            t2 = time.perf_counter_ns()
            total, empty = total + t1 - t0, empty + t2 - t1
            nxt()
        best = min(best, (total - empty) / (5_000 * per_chunk))
    return best


def ns_per_event(run: Callable[[list[bytes]], int], chunks: list[bytes], events: int) -> float:
    best = 1e18
    for _ in range(7):
        t0 = time.perf_counter_ns()
        got = run(chunks)
        best = min(best, time.perf_counter_ns() - t0)
        assert got == events, (got, events)
    return best / events


def main() -> None:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}; "
        f"{EVENT_BYTES}-byte events; ns per event, best of 7"
    )
    one, crlf = event(), event(eol=b"\r\n")
    stream = one * 4_000
    cases = {
        "1 event per chunk": [one] * 4_000,
        "4 events per chunk": [one * 4] * 1_000,
        "4 per chunk, CRLF": [crlf * 4] * 1_000,
        "64 KiB chunks": [stream[i : i + 65_536] for i in range(0, len(stream), 65_536)],
        "cut at 137 bytes": [stream[i : i + 137] for i in range(0, len(stream), 137)],
        "byte by byte (200)": [one[i : i + 1] for _ in range(200) for i in range(len(one))],
    }
    modules = [("compiled", compiled)] * (compiled is not None) + [("pure", pure)]
    names = [f"{name} {what}" for name, _ in modules for what in ("next", "+data", "+data+slice")]
    print(f"{'':20}" + "".join(f"{n:>21}" for n in [*names, "naive split"]))
    for label, chunks in cases.items():
        events = 200 if label.startswith("byte") else 4_000
        row = [
            ns_per_event(frame(m, data=d, cut=c), chunks, events)
            for _, m in modules
            for d, c in ((False, False), (True, False), (True, True))
        ]
        split = "-" if "CRLF" in label else f"{ns_per_event(naive, chunks, events):.0f}"
        print(f"{label:20}" + "".join(f"{ns:21.0f}" for ns in row) + f"{split:>21}")
    for name, module in modules:
        print(f"{name}: next() alone, 4 events per chunk: {next_only(module, one * 4, 4):.0f} ns (timer included)")
        for what, body in (
            ("20,000 data lines in one event", b"data: x\n" * 20_000 + b"\n"),
            ("1 MiB line", b"data: " + b"x" * (1 << 20) + b"\n\n"),
        ):
            t0 = time.perf_counter_ns()
            frame(module, data=True)([body])
            print(f"{name}: {what}, with data(): {(time.perf_counter_ns() - t0) / 1e6:.2f} ms")


if __name__ == "__main__":
    main()
