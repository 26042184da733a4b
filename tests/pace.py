"""Bounds on time that hold on any machine: how much slower this one is, now, than the one they were written on.

A bound says "at once", or "at the limit and not at the next one", in seconds of a machine with nothing else to do. The
reference is a piece of our own Python, so that it is slowed down by what slows the gateway down: other processes, a
slow processor, the tracing of coverage. It is only measured when a bound is missed.
"""

from __future__ import annotations

import time

from slipstream._fast._pure.http1 import RequestGuard

HEAD = b"GET /v1/models HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer x\r\n\r\n"
TURN_S = 0.0015
"""What a turn of the reference takes where the bounds were written."""
MEASURED_S = 0.2
"""For how long it is measured at least: longer than the slices that a busy machine gives us."""
worst = 1.0
"""The slowest that this process has been seen: who was busy a moment ago may just now not be."""


def slowness() -> float:
    """How many times as long as usual things take; at least 1."""
    global worst
    turns, start = 0, time.monotonic()
    while (taken := time.monotonic() - start) < MEASURED_S:
        _turn()
        turns += 1
    worst = max(worst, taken / turns / TURN_S)
    return worst


def soon(seconds: float, most: float) -> bool:
    """Whether ``seconds`` are at most ``most``, or as many times more as this machine is slower."""
    return seconds <= most or seconds <= most * slowness()


def _turn() -> None:
    for _ in range(100):
        guard = RequestGuard(
            max_target=1000, max_field=1000, max_fields=1000, max_count=10, max_body=1000, max_chunk_ext=100
        )
        guard.feed(HEAD)
