"""The layout of the shared table: where each word is. The twin of ``table.pxd``, ``slots.pxd`` and ``windows.pxd``.

Owns the numbers (in words of 8 bytes), the hash of keys and of the layout, the claiming of slots and the arithmetic of
windows and averages, in plain Python. The reasons and invariants stand in the ``.pxd`` files. A table made by either
twin is byte for byte that of the other.

The rule that must not be broken: who changes the meaning or the place of any word raises ``VERSION``. And this twin is
for one process: it reads and writes where the compiled one compares and swaps.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple, TypeAlias

VERSION: Final = 2
MAGIC: Final = int.from_bytes(b"SLIPSTBL", "little")

LAYOUT: Final[dict[str, int]] = {
    "VERSION": VERSION,
    "WORKERS": 64,
    "CLASSES": 16,
    "H_MAGIC": 0,
    "H_VERSION": 1,
    "H_LAYOUT": 2,
    "H_SIZE": 3,
    "H_CREATED": 4,
    "H_BOOT": 5,
    "H_WORKERS": 6,
    "WORKERS_AT": 512,
    "WORKER_WORDS": 8,
    "W_PID": 0,
    "W_GENERATION": 1,
    "W_BEAT": 2,
    "W_STARTED": 3,
    "ROWS_AT": 1024,
    "ROW_WORDS": 96,
    "R_BREAKER": 2,
    "R_COOLDOWN": 3,
    "R_CONSECUTIVE": 4,
    "R_LAST": 5,
    "R_LATENCY": 6,
    "R_TTFT": 8,
    "R_TOKENS_IN": 10,
    "R_TOKENS_OUT": 11,
    "R_MICRO_USD": 12,
    "R_RATES": 13,
    "RATE_KINDS": 2,
    "RATE_SHIFT": 4,
    "R_CLASSES": 16,
    "R_CELLS": 32,
    "R_KEY": 64,
    "COUNTER_WORDS": 32,
    "COUNTER_VALUES": 2,
    "COUNTER_KEY": 4,
    "HISTOGRAM_WORDS": 48,
    "HISTOGRAM_VALUES": 20,
    "HISTOGRAM_KEY": 22,
    "S_VALUES": 2,
    "POOL_WORDS": 40,
    "P_TURN": 2,
    "P_FASTEST": 3,
    "P_CHEAPEST": 4,
    "P_KEY": 8,
    "CURRENT": 128,
    "OPEN_BITS": 3,
    "UNTIL_SHIFT": 8,
    "CLAIMING": 1,
    "READY": 2,
    "KEY_WORDS": 26,
    "KEY_MAX": 208,
    "META_KIND": 16,
    "ERROR_SLICES": 720,
    "ERROR_SLICE_NS": 5_000_000_000,
    "BUCKETS": 184,
    "BUCKET_SHIFT": 8,
    "HIST_SLICES": 6,
    "HIST_SLICE_NS": 10_000_000_000,
    "ERROR_AT": 0,
    "LATENCY_AT": 720,
    "TTFT_AT": 1824,
    "WINDOW_WORDS": 2928,
}

WORKERS: Final = LAYOUT["WORKERS"]
KEY_MAX: Final = LAYOUT["KEY_MAX"]
CLAIMING: Final = LAYOUT["CLAIMING"]
READY: Final = LAYOUT["READY"]
META_KIND: Final = LAYOUT["META_KIND"]
ERROR_SLICES: Final = LAYOUT["ERROR_SLICES"]
ERROR_SLICE_NS: Final = LAYOUT["ERROR_SLICE_NS"]
BUCKETS: Final = LAYOUT["BUCKETS"]
BUCKET_SHIFT: Final = LAYOUT["BUCKET_SHIFT"]
HIST_SLICES: Final = LAYOUT["HIST_SLICES"]
HIST_SLICE_NS: Final = LAYOUT["HIST_SLICE_NS"]
AVERAGE_MAX: Final = 1e13
AHEAD_MAX_NS: Final = 60_000_000_000
REST_MAX_NS: Final = 3_600_000_000_000
"""A rest or a shut breaker that would last longer than this was not written by us (Q02, Q11: at most 300 s)."""
MINUTE_NS: Final = 60_000_000_000
CLOCK_MAX_NS: Final = 0x7FFFFFFFFFFFFFF
"""As far as rate words count: 18 years of uptime."""
M64: Final = (1 << 64) - 1
CAPACITY_MAX: Final = 1 << 16

Words: TypeAlias = "memoryview[int]"  # of format "Q"
Reals: TypeAlias = "memoryview[float]"  # the same memory as "d"


class TableError(ValueError):
    """The bytes are not a table of this layout; the text says what is different."""


class Sizes(NamedTuple):
    """Capacities of a table. ``total`` bytes, most of which nobody ever touches (23 KB of windows per target)."""

    targets: int = 1024
    counters: int = 4096
    histograms: int = 1024
    pools: int = 1024

    def words(self) -> tuple[int, int, int, int, int]:
        """Where counters, histograms, pools and windows begin, and the end; rows begin at ``ROWS_AT``."""
        counters = LAYOUT["ROWS_AT"] + self.targets * LAYOUT["ROW_WORDS"]
        histograms = counters + self.counters * LAYOUT["COUNTER_WORDS"]
        pools = histograms + self.histograms * LAYOUT["HISTOGRAM_WORDS"]
        windows = pools + self.pools * LAYOUT["POOL_WORDS"]
        return counters, histograms, pools, windows, windows + self.targets * LAYOUT["WINDOW_WORDS"]

    @property
    def total(self) -> int:
        return 8 * self.words()[4]

    def check(self) -> None:
        if not all(0 < n <= CAPACITY_MAX for n in self):
            raise ValueError(f"capacities go from 1 to {CAPACITY_MAX}: {tuple(self)}")


DEFAULT_SIZES: Final = Sizes()


def layout_hash(sizes: Sizes, layout: dict[str, int] = LAYOUT) -> int:
    """One word that differs when any number of the layout or any capacity does."""
    text = " ".join(f"{name}={value}" for name, value in sorted(layout.items())) + f" {tuple(sizes)}"
    h = 0
    for at in range(0, len(text), KEY_MAX):
        h = key_hash(text[at : at + KEY_MAX].encode(), h & 0xFFFF_FFFF)
    return h


# ---- slots (slots.pxd) ---------------------------------------------------------------------------------------------


def _word(key: bytes, i: int) -> int:
    return int.from_bytes(key[8 * i : 8 * i + 8], "little")


def key_hash(key: bytes, kind: int) -> int:
    h = (kind << META_KIND | len(key)) * 0x9E3779B97F4A7C15 & M64
    for i in range((len(key) + 7) // 8):
        h = (h ^ _word(key, i)) * 0xD6E8FEB86659FD93 & M64
        h ^= h >> 32
    h = h * 0x9E3779B97F4A7C15 & M64
    return h ^ h >> 32


def find_or_claim(w: Words, base: int, stride: int, cap: int, key_at: int, key: bytes, kind: int) -> int:
    h = key_hash(key, kind)
    mark = h & ~3
    i = h % cap
    for _ in range(cap):
        slot = base + i * stride
        if w[slot] in (0, mark | CLAIMING):
            w[slot] = mark | CLAIMING
            w[slot + 1] = kind << META_KIND | len(key)
            for k in range((len(key) + 7) // 8):
                w[slot + key_at + k] = _word(key, k)
            w[slot] = mark | READY
        if w[slot] == mark | READY and key_of(w, slot, key_at) == (key, kind):
            return i
        i = (i + 1) % cap
    return -1


def key_of(w: Words, slot: int, key_at: int) -> tuple[bytes, int] | None:
    """Key and kind of a complete slot."""
    state, meta = w[slot], w[slot + 1]
    n, kind = meta & 0xFFFF, meta >> META_KIND
    if state & 3 != READY or n > KEY_MAX:
        return None
    key = w[slot + key_at : slot + key_at + (n + 7) // 8].tobytes()[:n]
    return (key, kind) if state & ~3 == key_hash(key, kind) & ~3 else None


# ---- windows and averages (windows.pxd) ----------------------------------------------------------------------------


def error_add(w: Words, ring: int, now: int, error: bool) -> None:
    epoch = now // ERROR_SLICE_NS
    tag = (epoch // ERROR_SLICES + 1) & 0xFFFF
    at = ring + epoch % ERROR_SLICES
    word = w[at] if w[at] >> 48 == tag else tag << 48
    if word >> 24 & 0xFFFFFF != 0xFFFFFF:
        w[at] = (word + (1 << 24) + error) & M64


def error_sum(w: Words, ring: int, now: int, slices: int) -> tuple[int, int]:
    epoch = now // ERROR_SLICE_NS
    calls = errors = 0
    for e in range(max(epoch + 1 - slices, 0), epoch + 1):
        word = w[ring + e % ERROR_SLICES]
        if word >> 48 == (e // ERROR_SLICES + 1) & 0xFFFF:
            calls += word >> 24 & 0xFFFFFF
            errors += word & 0xFFFFFF
    return calls, errors


def bucket_of(us: int) -> int:
    if us < 1 << BUCKET_SHIFT:
        return 0
    e = us.bit_length() - 1
    return BUCKETS - 1 if e > 30 else (e - BUCKET_SHIFT) * 8 + (us >> (e - 3) & 7)


def bucket_middle(i: int) -> int:
    shift = BUCKET_SHIFT - 3 + (i >> 3)
    return (8 + (i & 7) << shift) + ((1 << shift) >> 1)


def hist_add(w: Words, hist: int, now: int, us: int) -> None:
    epoch = now // HIST_SLICE_NS
    tag = (epoch // HIST_SLICES + 1) & 0xFFFFFFFF
    at = hist + bucket_of(us) * HIST_SLICES + epoch % HIST_SLICES
    word = w[at] if w[at] >> 32 == tag else tag << 32
    if word & 0xFFFFFFFF != 0xFFFFFFFF:
        w[at] = word + 1


def hist_counts(w: Words, hist: int, now: int) -> list[int]:
    epoch = now // HIST_SLICE_NS
    tags = {e % HIST_SLICES: (e // HIST_SLICES + 1) & 0xFFFFFFFF for e in range(max(epoch - 5, 0), epoch + 1)}
    return [
        sum(
            w[hist + b * HIST_SLICES + s] & 0xFFFFFFFF
            for s, tag in tags.items()
            if w[hist + b * HIST_SLICES + s] >> 32 == tag
        )
        for b in range(BUCKETS)
    ]


def scaled(ns: int) -> int:
    return min(ns, CLOCK_MAX_NS) << LAYOUT["RATE_SHIFT"]


def span_of(cost: int, per_min: int) -> int:
    """What ``cost`` units take of a rate word's time, rounded up per unit; at most an hour."""
    unit = ((MINUTE_NS << LAYOUT["RATE_SHIFT"]) + per_min - 1) // per_min
    return min(cost * unit, scaled(REST_MAX_NS))


def debt_of(word: int, now: int) -> int:
    debt = word - now
    return debt if 0 < debt <= 2 * scaled(REST_MAX_NS) else 0


def fresh_weight(dt: int, tau: float) -> float:
    z = float(dt) / tau
    return z * (1.0 - z / 2.0 * (1.0 - z / 3.0)) if z < 0.0009765625 else 1.0 - math.exp(-z)


def average(reals: Reals, pair: int) -> float:
    v = reals[pair]
    return v if 0.0 < v <= AVERAGE_MAX else 0.0


def average_add(w: Words, reals: Reals, pair: int, now: int, us: int, tau: float, peak: bool) -> None:
    then, dt = w[pair + 1], 0
    if then < now or then - now > AHEAD_MAX_NS:
        w[pair + 1] = now
        dt = max(0, now - then)
    x, v = float(max(us, 1)), reals[pair]
    if not 0.0 < v <= AVERAGE_MAX or (peak and x > v):
        reals[pair] = x
    else:
        reals[pair] = v + (x - v) * fresh_weight(dt, tau)


def average_now(w: Words, reals: Reals, pair: int, now: int, tau: float) -> float:
    v, then = average(reals, pair), w[pair + 1]
    return v * math.exp(-(float(now - then) / tau)) if v > 0.0 and then < now else v
