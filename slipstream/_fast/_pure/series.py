"""The registry of metric series in plain Python: the specification of ``_fast/series.pyx``, for one process only.

The documentation of the face is in ``series.pyi``. Same bytes as the compiled twin.
"""

from __future__ import annotations

from typing import Final, final

from . import layout as at
from .layout import LAYOUT, M64, META_KIND
from .table import Table

SMALL: Final = LAYOUT["COUNTER_VALUES"]
LARGE: Final = LAYOUT["HISTOGRAM_VALUES"]
SMALL_WORDS: Final = LAYOUT["COUNTER_WORDS"]
LARGE_WORDS: Final = LAYOUT["HISTOGRAM_WORDS"]
SMALL_KEY: Final = LAYOUT["COUNTER_KEY"]
LARGE_KEY: Final = LAYOUT["HISTOGRAM_KEY"]
S_VALUES: Final = LAYOUT["S_VALUES"]


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word


def _i64(value: int) -> int:
    if not -(1 << 63) <= value < 1 << 63:
        raise OverflowError("the value does not fit a signed word")
    return value & M64


@final
class Series:
    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    def series(self, key: bytes, n_values: int) -> int:
        w, sizes = self._table.words, self._table.sizes
        if type(key) is not bytes:
            raise TypeError(f"bytes wanted, not {type(key).__name__}")
        if len(key) > at.KEY_MAX or not 0 < n_values <= LARGE:
            raise ValueError(f"a series has a key of at most {at.KEY_MAX} bytes and 1 to {LARGE} values")
        counters, histograms, *_ = sizes.words()
        if n_values <= SMALL:
            return at.find_or_claim(w, counters, SMALL_WORDS, sizes.counters, SMALL_KEY, key, n_values)
        slot = at.find_or_claim(w, histograms, LARGE_WORDS, sizes.histograms, LARGE_KEY, key, n_values)
        return slot if slot < 0 else sizes.counters + slot

    def _value(self, slot: int, index: int) -> int:
        sizes = self._table.sizes
        counters, histograms, *_ = sizes.words()
        if 0 <= slot < sizes.counters and 0 <= index < SMALL:
            return counters + slot * SMALL_WORDS + S_VALUES + index
        slot -= sizes.counters
        if 0 <= slot < sizes.histograms and 0 <= index < LARGE:
            return histograms + slot * LARGE_WORDS + S_VALUES + index
        raise IndexError("no such series or value")

    def add(self, slot: int, index: int, delta: int) -> None:
        w, value = self._table.words, self._value(slot, index)
        w[value] = (w[value] + _i64(delta)) & M64

    def set(self, slot: int, index: int, value: int) -> None:
        self._table.words[self._value(slot, index)] = _i64(value)

    def get(self, slot: int, index: int) -> int:
        return _signed(self._table.words[self._value(slot, index)])

    def observe(self, slot: int, bucket: int, amount: int) -> None:
        w, value = self._table.words, self._value(slot, bucket)
        last = (w[value - bucket - S_VALUES + 1] >> META_KIND & 0xFF) - 1
        self._value(slot, last)
        if bucket >= last:
            raise IndexError("the last value is the sum of what was observed, not a bucket")
        self.add(slot, bucket, 1)
        self.add(slot, last, amount)

    def items(self) -> list[tuple[bytes, list[int]]]:
        w, sizes = self._table.words, self._table.sizes
        counters, histograms, *_ = sizes.words()
        found = []
        for base, n, stride, key_at, most in (
            (counters, sizes.counters, SMALL_WORDS, SMALL_KEY, SMALL),
            (histograms, sizes.histograms, LARGE_WORDS, LARGE_KEY, LARGE),
        ):
            for slot in range(base, base + n * stride, stride):
                key = at.key_of(w, slot, key_at)
                if key is not None and 0 < key[1] <= most:
                    values = w[slot + S_VALUES : slot + S_VALUES + key[1]]
                    found.append((key[0], [_signed(v) for v in values]))
        return found
