"""Smooth weighted round robin, precomputed: the order of one whole cycle.

Target ``i`` with weight ``w`` wants its ``k``-th turn at time ``(k + 1/2) / w``; sorting all turns gives an order in
which every target appears exactly ``w`` times a cycle and no two turns of one target are closer than they must be. A
request then costs one counter and one index.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import gcd

MAX_CYCLE = 65_536
"""Entries of one cycle; weights whose sum is larger are scaled down to fit (the error is below 1 / MAX_CYCLE)."""


def cycle(weights: Sequence[int]) -> array[int]:
    """Indexes into ``weights`` in the order of one cycle. Weights are >= 0; at least one must be > 0.

    >>> list(cycle([2, 1]))
    [0, 1, 0]
    """
    if not any(weights):
        raise ValueError("every weight is zero")
    divisor = gcd(*weights)
    reduced = [w // divisor for w in weights]
    total = sum(reduced)
    if total > MAX_CYCLE:
        reduced = [max(1, round(w * MAX_CYCLE / total)) if w else 0 for w in reduced]
    turns = sorted((((2 * k + 1) / (2 * w), i) for i, w in enumerate(reduced) for k in range(w)))
    return array("I", [i for _, i in turns])
