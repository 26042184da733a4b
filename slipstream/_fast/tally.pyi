"""What one finished request adds to its series, in one call (compiled: ``tally.pyx``; plain: ``_pure/tally.py``).

    tally = Tally(series, ones=[requests], sums=[(tokens, 0), (tokens, 1)], times=[(duration, (0.1, 0.5, 1.0))])
    tally.add(prompt, completion, 0, 0.42)
"""

from collections.abc import Sequence
from typing import final

from .series import Series

@final
class Tally:
    def __init__(
        self,
        series: Series,
        ones: Sequence[int],
        sums: Sequence[tuple[int, int]],
        times: Sequence[tuple[int, tuple[float, ...]]],
    ) -> None:
        """``ones``: slots whose first value grows by one with every call (at most 8). ``sums``: slot and value index of
        the amounts ``a``, ``b``, ``c``. ``times``: slot and bucket bounds (seconds, rising, inclusive) of the
        histograms for ``x``, ``y``, ``z``; their sums are in nanoseconds. A slot of -1 (no room in the table) is left
        out.
        """
    def add(self, a: int = 0, b: int = 0, c: int = 0, x: float = -1.0, y: float = -1.0, z: float = -1.0) -> None:
        """Add it all. Negative seconds are no observation. ``ValueError`` when the table was closed."""
