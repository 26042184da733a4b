"""The choice of one target out of a pool, O(1) in its size (compiled: ``select.pyx``; plain: ``_pure/select.py``).

    pool = Pool(table, b"route", [t.row for t in targets], order=weighted.cycle(weights), costs=prices)
    index = pool.pick(random.getrandbits(64), now_ns)        # adaptive
    index = pool.turn()                                      # weighted round robin, exact over all workers
    index = pool.cheapest()                                  # as of the last refresh; -1: none yet

Indexes count the members of this pool. Choices of ``turn``, ``fastest`` and ``cheapest`` are hints: ask the row whether
it may be used now (``Table.available``).
"""

from collections.abc import Sequence
from typing import final

from .table import Table

@final
class Pool:
    @property
    def slot(self) -> int:
        """Of the shared words; -1: the table had no room, turns and choices are those of this process alone."""

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
        """``key`` (at most 208 bytes) names the shared words: workers with the same key take turns together. It should
        be the name of the route and not a digest, since slots are never given back; where two lists of members share a
        key (during a reload) a turn is still a turn, and choices of the other list are not believed.

        ``order``: one cycle of turns. ``costs``: what ``cheapest`` compares.

        ``penalty_us`` is added to the load of a target whose last attempt failed and fades with ``tau`` (Q13;
        Linkerd's 5 s), ``unknown_us`` is the latency of a target without samples (Linkerd's 30 ms).

        ``IndexError`` when a row does not exist.
        """
    def __len__(self) -> int: ...
    def pick(self, seed: int, now_ns: int, avoid: tuple[int, ...] | None = None) -> int:
        """Power of two choices; ``seed``: any 64 bits, the choice depends on nothing else but the table. Resting
        members only when no other was found, those in ``avoid`` never: then -1."""
    def turn(self) -> int: ...
    def fastest(self) -> int: ...
    def cheapest(self) -> int: ...
    def refresh(self, now_ns: int) -> None:
        """Walks over all members and leaves the new choices for every worker. Call it when the health of a member
        changed, and every now and then. Ties: the lower cost, then the faster, then the first."""
