"""When requests are meant to be sent, as nanoseconds from the start; decided before anything is known of the server.

That independence is the point of an open loop (G. Tene, "How NOT to measure latency"): a user does not wait with the
request because somebody else's is slow. A request that is sent late keeps its intended moment, and its latency counts
from there.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from itertools import count, takewhile

NS_PER_S = 1_000_000_000
ARRIVALS = ("constant", "poisson")

_UNITS_S = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)", re.ASCII)
_PLAIN = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


def parse_duration(text: str) -> float:
    """Seconds from ``10s``, ``1m``, ``1m30s``, ``500ms``, ``2h`` (as Go writes them) or plain seconds.

    Raises ``ValueError`` for anything else.

    >>> parse_duration("1m30s")
    90.0
    """
    text = text.strip().lower()
    if _PLAIN.fullmatch(text):
        return float(text)
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration; write 10s, 1m, 1m30s, 500ms or seconds")
    return sum(float(number) * _UNITS_S[unit] for number, unit in parts)


def arrivals(qps: float, kind: str, seed: int | None, until_ns: int) -> Iterator[int]:
    """The intended moments before ``until_ns``, in order, ``qps`` of them a second.

    ``constant`` spaces them evenly from 0 on (from the index, so that no error adds up); ``poisson`` draws exponential
    gaps, which is how many independent users arrive. The same seed gives the same moments.
    """
    if qps <= 0:
        raise ValueError("an open loop needs a rate above 0")
    moments = _poisson(qps, random.Random(seed)) if kind == "poisson" else _constant(qps)
    return takewhile(lambda at: at < until_ns, moments)


def _constant(qps: float) -> Iterator[int]:
    return (round(i * NS_PER_S / qps) for i in count())


def _poisson(qps: float, rng: random.Random) -> Iterator[int]:
    at_s = 0.0
    while True:
        at_s += rng.expovariate(qps)
        yield round(at_s * NS_PER_S)
