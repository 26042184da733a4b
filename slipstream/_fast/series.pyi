"""Metric series of all workers in the shared table (compiled: ``series.pyx``; plain: ``_pure/series.py``).

    requests = series.series(b"llm_proxy_requests\\0chat\\0gpt-4o", 1)
    series.add(requests, 0, 1)
    for key, values in series.items(): ...

Two arenas: series of 1 or 2 values (4,096 of them by default) and of up to 20 (1,024). Values are signed 64-bit words.
Safety: as in ``table.pyi``. ``IndexError`` for slots and values outside of the arenas, ``ValueError`` when closed.
"""

from typing import final

from .table import Table

@final
class Series:
    def __init__(self, table: Table) -> None: ...
    def series(self, key: bytes, n_values: int) -> int:
        """The slot of a series, for the life of the file; -1 when its arena is full. The same key (at most 208 bytes)
        with another number of values is another series."""
    def add(self, slot: int, index: int, delta: int) -> None: ...
    def set(self, slot: int, index: int, value: int) -> None: ...
    def get(self, slot: int, index: int) -> int: ...
    def observe(self, slot: int, bucket: int, amount: int) -> None:
        """A histogram: one more in ``bucket``, ``amount`` more in the last value, which is the sum."""
    def items(self) -> list[tuple[bytes, list[int]]]:
        """All complete series with their values."""
