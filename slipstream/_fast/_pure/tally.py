"""The specification of ``tally.pyx``: the same class in plain Python."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from .series import Series


class Tally:
    """See ``tally.pyi``."""

    def __init__(
        self,
        series: Series,
        ones: Sequence[int],
        sums: Sequence[tuple[int, int]],
        times: Sequence[tuple[int, tuple[float, ...]]],
    ) -> None:
        if len(ones) > 8 or len(sums) > 3 or len(times) > 3:
            raise ValueError("a tally has at most 8 ones, 3 sums and 3 times")
        if any(len(bounds) > 18 for _, bounds in times):
            raise ValueError("a histogram has at most 18 bounds")
        self._series = series
        self._ones = [slot for slot in ones if slot >= 0]
        self._sums = list(sums)
        self._times = list(times)

    def add(self, a: int = 0, b: int = 0, c: int = 0, x: float = -1.0, y: float = -1.0, z: float = -1.0) -> None:
        for slot in self._ones:
            self._series.add(slot, 0, 1)
        for (slot, index), amount in zip(self._sums, (a, b, c), strict=False):
            if amount and slot >= 0:
                self._series.add(slot, index, amount)
        for (slot, bounds), seconds in zip(self._times, (x, y, z), strict=False):
            if seconds >= 0 and slot >= 0:
                self._series.observe(slot, bisect_left(bounds, seconds), int(seconds * 1e9))
