"""The choice of one target out of a pool in plain Python: the specification of ``_fast/select.pyx``.

The documentation of the face is in ``select.pyi``. For one process only; same choices, same bytes as the compiled twin.
"""

from __future__ import annotations

from array import array
from collections.abc import MutableSequence, Sequence
from typing import Final, final

from . import layout as at
from .layout import LAYOUT, M64, Words
from .table import Table

PAIRS: Final = 4
NEIGHBOURS: Final = 16
LOW_32: Final = 0xFFFF_FFFF


def mix(x: int) -> int:
    x = (x + 0x9E3779B97F4A7C15) & M64
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & M64
    x = (x ^ x >> 27) * 0x94D049BB133111EB & M64
    return x ^ x >> 31


@final
class Pool:
    __slots__ = ("_costs", "_mark", "_order", "_own", "_penalty", "_rows", "_table", "_unknown", "slot")

    def __init__(
        self,
        table: Table,
        key: bytes,
        rows: Sequence[int],
        order: Sequence[int] | None = None,
        costs: Sequence[float] | None = None,
        *,
        penalty_us: float = 5e6,
        unknown_us: float = 30e3,
    ) -> None:
        w, sizes = table.words, table.sizes
        if (
            not rows
            or len(key) > at.KEY_MAX
            or (order is not None and not order)
            or (costs is not None and len(costs) != len(rows))
        ):
            raise ValueError(f"a pool has members, one cost for each, and a key of at most {at.KEY_MAX} bytes")
        if not all(0 <= row < sizes.targets for row in rows):
            raise IndexError("no such row")
        if order and not all(0 <= i < len(rows) for i in order):
            raise IndexError("the order names a member that does not exist")
        self._table, self._penalty, self._unknown = table, penalty_us, unknown_us
        self._rows = list(rows)
        self._order = list(order or range(len(rows)))
        self._costs = None if costs is None else [float(cost) for cost in costs]
        self._own = [0] * 8
        members = array("I", rows).tobytes()
        self._mark = at.key_hash(members, 1) & ~LOW_32
        self.slot = at.find_or_claim(w, sizes.words()[2], LAYOUT["POOL_WORDS"], sizes.pools, LAYOUT["P_KEY"], key, 0)

    def __len__(self) -> int:
        return len(self._rows)

    def _word(self, name: str) -> tuple[MutableSequence[int] | Words, int]:
        """The memory and the index in it."""
        words = self._table.words
        if self.slot < 0:
            return self._own, LAYOUT[name]
        return words, self._table.sizes.words()[2] + self.slot * LAYOUT["POOL_WORDS"] + LAYOUT[name]

    def _rank(self, index: int, now: int, avoid: tuple[int, ...] | None) -> int:
        if avoid is not None and index in avoid:
            return 2
        return int(not self._table.available(self._rows[index], now))

    def _load(self, index: int, now: int) -> float:
        row = self._rows[index]
        return self._table.load(row, now, self._penalty, self._unknown) * float(self._table.in_flight(row) + 1)

    def pick(self, seed: int, now_ns: int, avoid: tuple[int, ...] | None = None) -> int:
        best: tuple[int, float, int] = (3, 0.0, -1)  # rank, load, index

        def look(index: int) -> bool:
            nonlocal best
            seen = (self._rank(index, now_ns, avoid), self._load(index, now_ns), index)
            if seen[:2] < best[:2]:
                best = seen
            return best[0] == 0

        h, n, a = mix(seed), len(self._rows), 0
        assert self._table.words
        for _ in range(PAIRS):
            a = (h & LOW_32) * n >> 32
            healthy = look(a)
            if n > 1:
                b = (h >> 32) * (n - 1) >> 32
                healthy = look(b + 1 if b >= a else b)
            if healthy:
                return best[2]
            h = mix(h)
        for k in range(min(n, NEIGHBOURS)):
            if look((a + k) % n):
                break
        return best[2] if best[0] < 2 else -1

    def turn(self) -> int:
        w, word = self._word("P_TURN")
        turn = w[word]
        w[word] = (turn + 1) & M64
        return self._order[turn % len(self._order)]

    def _chosen(self, name: str) -> int:
        words, i = self._word(name)
        word = words[i]
        index = (word & LOW_32) - 1
        return index if word & ~LOW_32 == self._mark and 0 <= index < len(self._rows) else -1

    def fastest(self) -> int:
        return self._chosen("P_FASTEST")

    def cheapest(self) -> int:
        return self._chosen("P_CHEAPEST")

    def refresh(self, now_ns: int) -> None:
        w, fastest = self._word("P_FASTEST")
        seen = [
            (self._rank(i, now_ns, None), self._table.speed(row, now_ns, self._penalty, self._unknown), i)
            for i, row in enumerate(self._rows)
        ]
        w[fastest] = self._mark | min(seen)[2] + 1
        if self._costs is not None:
            cheap = min((rank, self._costs[i], speed, i) for rank, speed, i in seen)
            w[self._word("P_CHEAPEST")[1]] = self._mark | cheap[3] + 1
