"""The shared table in plain Python: the specification of ``_fast/table.pyx``, for one process only.

Owns: what each call does to the words. Layout, slots and windows are in ``layout.py``, the documentation of the face is
in ``table.pyi``.

The rule that must not be broken: the same calls leave the same bytes as with the compiled twin.
"""

from __future__ import annotations

import math
from typing import Any, Final, final

from . import layout as at
from .layout import (
    DEFAULT_SIZES,
    LAYOUT,
    M64,
    MAGIC,
    REST_MAX_NS,
    VERSION,
    WORKERS,
    Reals,
    Sizes,
    TableError,
    Words,
    layout_hash,
)

__all__ = ["LAYOUT", "Sizes", "Table", "TableError"]

H = {name: LAYOUT[name] for name in LAYOUT if name.startswith("H_")}
ROW_WORDS: Final = LAYOUT["ROW_WORDS"]
WINDOW_WORDS: Final = LAYOUT["WINDOW_WORDS"]
R_LAST: Final = LAYOUT["R_LAST"]
R_CONSECUTIVE: Final = LAYOUT["R_CONSECUTIVE"]
R_BREAKER: Final = LAYOUT["R_BREAKER"]
R_COOLDOWN: Final = LAYOUT["R_COOLDOWN"]
R_LATENCY: Final = LAYOUT["R_LATENCY"]
R_TTFT: Final = LAYOUT["R_TTFT"]
R_RATES: Final = LAYOUT["R_RATES"]
R_TOKENS_IN: Final = LAYOUT["R_TOKENS_IN"]
R_CLASSES: Final = LAYOUT["R_CLASSES"]
R_KEY: Final = LAYOUT["R_KEY"]
RATE_KINDS: Final = LAYOUT["RATE_KINDS"]
RATE_SHIFT: Final = LAYOUT["RATE_SHIFT"]
CELLS: Final = 2 * LAYOUT["R_CELLS"]  # in words of 4 bytes
CLASSES: Final = LAYOUT["CLASSES"]
CURRENT: Final = LAYOUT["CURRENT"]
ERROR_AT: Final = LAYOUT["ERROR_AT"]
LATENCY_AT: Final = LAYOUT["LATENCY_AT"]
TTFT_AT: Final = LAYOUT["TTFT_AT"]
W_PID, W_GENERATION, W_BEAT, W_STARTED = (LAYOUT[n] for n in ("W_PID", "W_GENERATION", "W_BEAT", "W_STARTED"))


def _u64(value: int) -> int:
    if not 0 <= value <= M64:
        raise OverflowError("the value does not fit an unsigned word")
    return value


def _ns(span: int) -> int:
    """The time of rate words in ns, rounded up."""
    return (span + (1 << RATE_SHIFT) - 1) >> RATE_SHIFT


def _bytes(key: object) -> bytes:
    if type(key) is not bytes:
        raise TypeError(f"bytes wanted, not {type(key).__name__}")
    if len(key) > at.KEY_MAX:
        raise ValueError(f"a key has at most {at.KEY_MAX} bytes")
    return key


@final
class Table:
    __slots__ = ("_cells", "_errors", "_neutral", "_peak", "_tau", "_w", "_windows", "reals", "sizes")

    def __init__(
        self,
        buffer: Any,
        sizes: Sizes = DEFAULT_SIZES,
        *,
        errors: int = 0xFFFE,
        neutral: int = 0,
        tau_s: float = 10.0,
        peak: bool = False,
    ) -> None:
        sizes.check()
        if not 1e-3 <= tau_s <= 1e6:
            raise ValueError("tau_s is out of range")
        self.sizes = sizes
        self._errors, self._neutral, self._tau, self._peak = errors, neutral, tau_s * 1e9, peak
        with memoryview(buffer) as view:
            if view.readonly:
                raise BufferError("the buffer is read-only")
            if view.nbytes != sizes.total:
                raise TableError(f"{view.nbytes} bytes where a table of {sizes.total} aligned bytes was expected")
            raw = view.cast("B")
        self._w: Words | None = raw.cast("Q")
        self.reals: Reals = raw.cast("d")
        self._cells = raw.cast("I")
        try:
            if self.words[H["H_MAGIC"]] != MAGIC:
                raise TableError("not a table (the first word is wrong)")
            for name, word, want in (
                ("version", "H_VERSION", VERSION),
                ("layout", "H_LAYOUT", layout_hash(sizes)),
                ("size", "H_SIZE", sizes.total),
            ):
                if self.words[H[word]] != want:
                    raise TableError(f"a table of another {name}: {self.words[H[word]]:#x}, not {want:#x}")
        except TableError:
            self.close()
            raise
        self._windows = sizes.words()[3]

    def close(self) -> None:
        if self._w is not None:
            self._w.release()
            self.reals.release()
            self._cells.release()
            self._w = None

    @staticmethod
    def format(buffer: Any, sizes: Sizes = DEFAULT_SIZES, *, created_ns: int = 0, boot: int = 0) -> None:
        sizes.check()
        with memoryview(buffer) as view:
            if view.nbytes != sizes.total:
                raise TableError(f"{view.nbytes} bytes where {sizes.total} aligned bytes were expected")
            with view.cast("B") as raw, raw.cast("Q") as w:
                w[H["H_VERSION"]] = VERSION
                w[H["H_LAYOUT"]] = layout_hash(sizes)
                w[H["H_SIZE"]] = sizes.total
                w[H["H_CREATED"]] = created_ns
                w[H["H_BOOT"]] = boot
                w[H["H_MAGIC"]] = MAGIC

    @property
    def words(self) -> Words:
        if self._w is None:
            raise ValueError("the table is closed")
        return self._w

    def row(self, row: int) -> int:
        """Where a row begins; it must exist."""
        if self._w is None:
            raise ValueError("the table is closed")
        if not 0 <= row < self.sizes.targets:
            raise IndexError("no such row")
        return LAYOUT["ROWS_AT"] + row * ROW_WORDS

    def _window(self, row: int, what: int) -> int:
        self.row(row)
        return self._windows + row * WINDOW_WORDS + what

    def _worker(self, worker: int) -> int:
        if self._w is None:
            raise ValueError("the table is closed")
        if not 0 <= worker < WORKERS:
            raise IndexError("no such worker")
        return LAYOUT["WORKERS_AT"] + worker * LAYOUT["WORKER_WORDS"]

    def _cell(self, worker: int, row: int) -> int:
        cell = 2 * self.row(row) + CELLS + worker
        if not 0 <= worker < min(self.words[H["H_WORKERS"]], WORKERS):
            raise IndexError("no such worker")
        return cell

    def _bump(self, word: int, by: int) -> None:
        w = self.words
        w[word] = (w[word] + _u64(by)) & M64

    # ---- header

    @property
    def created_ns(self) -> int:
        return int(self.words[H["H_CREATED"]])

    @property
    def boot(self) -> int:
        return int(self.words[H["H_BOOT"]])

    def forget_times(self, boot: int) -> None:
        w = self.words
        for i in range(self.sizes.targets):
            row, windows = self.row(i), self._window(i, 0)
            if w[row]:
                rates = range(row + R_RATES, row + R_RATES + RATE_KINDS)
                states = range(row + R_BREAKER, row + R_TTFT + 2)
                for word in (*states, *rates, *range(windows, windows + WINDOW_WORDS)):
                    if w[word]:
                        w[word] = 0
        w[H["H_BOOT"]] = boot

    # ---- targets

    def target(self, key: bytes) -> int:
        base = self.row(0)
        return at.find_or_claim(self.words, base, ROW_WORDS, self.sizes.targets, R_KEY, _bytes(key), 0)

    def targets(self) -> list[tuple[int, bytes]]:
        found = ((i, at.key_of(self.words, self.row(i), R_KEY)) for i in range(self.sizes.targets))
        return [(i, slot[0]) for i, slot in found if slot is not None and slot[1] == 0]

    def record(self, row: int, failure_class: int, latency_us: int, ttft_us: int, now_ns: int) -> None:
        r = self.row(row)
        if not 0 <= failure_class < CLASSES:
            raise IndexError("no such failure class")
        self._bump(r + R_CLASSES + failure_class, 1)
        if not self._neutral >> failure_class & 1:
            self._outcome(row, failure_class, bool(self._errors >> failure_class & 1), now_ns)
        for us, pair, hist in ((latency_us, R_LATENCY, LATENCY_AT), (ttft_us, R_TTFT, TTFT_AT)):
            if us >= 0:
                at.average_add(self.words, self.reals, r + pair, now_ns, us, self._tau, self._peak)
                at.hist_add(self.words, self._window(row, hist), now_ns, us)

    def _outcome(self, row: int, failure: int, error: bool, now: int) -> None:
        w, r = self.words, self.row(row)
        at.error_add(w, self._window(row, ERROR_AT), now, error)
        if error:
            self._bump(r + R_CONSECUTIVE, 1)
        if failure:
            w[r + R_LAST] = (now // 1_000_000 << 8 | CURRENT | failure) & M64
            return
        w[r + R_CONSECUTIVE] = 0
        w[r + R_LAST] &= ~CURRENT

    def ewma(self, row: int) -> tuple[float, float]:
        r = self.row(row)
        return at.average(self.reals, r + R_LATENCY), at.average(self.reals, r + R_TTFT)

    def quantile(self, row: int, q: float, now_ns: int, ttft: bool = False) -> int:
        hist = self._window(row, TTFT_AT if ttft else LATENCY_AT)
        if not 0.0 <= q <= 1.0:
            raise ValueError("a quantile goes from 0 to 1")
        counts = at.hist_counts(self.words, hist, now_ns)
        want, below = q * float(sum(counts)), 0
        for i, count in enumerate(counts):
            below += count
            if below and below >= want:
                return at.bucket_middle(i)
        return -1

    def samples(self, row: int, now_ns: int, ttft: bool = False) -> int:
        return sum(at.hist_counts(self.words, self._window(row, TTFT_AT if ttft else LATENCY_AT), now_ns))

    def errors(self, row: int, window_s: int, now_ns: int) -> tuple[int, int]:
        slices = max(1, min(at.ERROR_SLICES, window_s // 5))
        return at.error_sum(self.words, self._window(row, ERROR_AT), now_ns, slices)

    def counters(self, row: int) -> tuple[int, ...]:
        r = self.row(row) + R_CLASSES
        return tuple(self.words[r : r + CLASSES])

    def consecutive(self, row: int) -> int:
        return self._get(row, R_CONSECUTIVE)

    def last_failure(self, row: int) -> tuple[int, int, bool]:
        w = self._get(row, R_LAST)
        return w & 127, w >> 8, bool(w & CURRENT)

    def breaker(self, row: int) -> int:
        return self._get(row, R_BREAKER)

    def cas_breaker(self, row: int, old: int, new: int) -> bool:
        if self._get(row, R_BREAKER) != _u64(old):
            return False
        self.words[self.row(row) + R_BREAKER] = _u64(new)
        return True

    def cooldown(self, row: int) -> int:
        return self._get(row, R_COOLDOWN)

    def extend_cooldown(self, row: int, until_ns: int) -> None:
        self.words[self.row(row) + R_COOLDOWN] = max(self.cooldown(row), _u64(until_ns))

    def clear_cooldown(self, row: int) -> None:
        self.words[self.row(row) + R_COOLDOWN] = 0

    def available(self, row: int, now_ns: int) -> bool:
        if 0 < self.cooldown(row) - now_ns <= REST_MAX_NS:
            return False
        word, ms = self.breaker(row), now_ns // 1_000_000
        until = word >> LAYOUT["UNTIL_SHIFT"]
        return not (word & LAYOUT["OPEN_BITS"] and 0 < until - ms <= REST_MAX_NS // 1_000_000)

    def add_usage(self, row: int, tokens_in: int, tokens_out: int, micro_usd: int) -> None:
        r = self.row(row) + R_TOKENS_IN
        for i, by in enumerate((tokens_in, tokens_out, micro_usd)):
            self._bump(r + i, by)

    def usage(self, row: int) -> tuple[int, int, int]:
        return (
            self._get(row, R_TOKENS_IN),
            self._get(row, LAYOUT["R_TOKENS_OUT"]),
            self._get(row, LAYOUT["R_MICRO_USD"]),
        )

    # ---- rates

    def _rate(self, row: int, kind: int) -> int:
        r = self.row(row)
        if not 0 <= kind < RATE_KINDS:
            raise IndexError("no such kind of rate")
        return r + R_RATES + kind

    def take(self, row: int, kind: int, cost: int, per_min: int, burst: int, now_ns: int) -> int:
        word, now = self._rate(row, kind), at.scaled(_u64(now_ns))
        if not _u64(per_min) or not _u64(burst):
            raise ValueError("a limit lets something through")
        span = at.span_of(_u64(cost), per_min)
        debt, most = at.debt_of(self.words[word], now), max(0, at.span_of(burst, per_min) - span)
        if debt > most:
            return _ns(debt - most)
        self.words[word] = now + debt + span
        return 0

    def charge(self, row: int, kind: int, cost: int, per_min: int, now_ns: int) -> None:
        word, now = self._rate(row, kind), at.scaled(_u64(now_ns))
        if not _u64(per_min):
            raise ValueError("a limit lets something through")
        debt = at.debt_of(self.words[word], now)
        longer = min(debt + at.span_of(_u64(cost), per_min), at.scaled(at.REST_MAX_NS))
        self.words[word] = now + max(debt, longer)

    def refund(self, row: int, kind: int, cost: int, per_min: int, taken_ns: int, now_ns: int) -> None:
        word, now = self._rate(row, kind), at.scaled(_u64(now_ns))
        if not _u64(per_min):
            raise ValueError("a limit lets something through")
        credit = at.span_of(_u64(cost), per_min) - at.scaled(max(0, now_ns - _u64(taken_ns)))
        debt = at.debt_of(self.words[word], now)
        if credit > 0 and debt:
            self.words[word] = now + max(0, debt - credit)

    def hold(self, row: int, kind: int, debt_ns: int, now_ns: int) -> None:
        word, now = self._rate(row, kind), at.scaled(_u64(now_ns))
        least = at.scaled(min(_u64(debt_ns), REST_MAX_NS))
        if at.debt_of(self.words[word], now) < least:
            self.words[word] = now + least

    def debt(self, row: int, kind: int, now_ns: int) -> int:
        return _ns(at.debt_of(self.words[self._rate(row, kind)], at.scaled(_u64(now_ns))))

    def _get(self, row: int, word: int) -> int:
        return int(self.words[self.row(row) + word])

    # ---- workers

    def claim_worker(self, pid: int, now_ns: int) -> int:
        w = self.words
        if not pid:
            raise ValueError("a worker has a pid")
        for i in range(WORKERS):
            slot = self._worker(i)
            if w[slot + W_PID] == 0:
                w[slot + W_PID] = _u64(pid)
                w[H["H_WORKERS"]] = max(w[H["H_WORKERS"]], i + 1)
                self._bump(slot + W_GENERATION, 1)
                w[slot + W_STARTED] = w[slot + W_BEAT] = now_ns
                return i
        return -1

    def beat(self, worker: int, now_ns: int) -> None:
        self.words[self._worker(worker) + W_BEAT] = now_ns

    def workers(self) -> list[tuple[int, int, int, int, int]]:
        w, found = self.words, []
        for i in range(WORKERS):
            slot = self._worker(i)
            if w[slot + W_PID]:
                found.append((i, w[slot + W_PID], w[slot + W_GENERATION], w[slot + W_BEAT], w[slot + W_STARTED]))
        return found

    def reap(self, worker: int) -> int:
        slot, dropped = self._worker(worker), 0
        for row in range(self.sizes.targets):
            cell = 2 * self.row(row) + CELLS + worker
            if self._cells[cell]:
                dropped += self._cells[cell]
                self._cells[cell] = 0
        self.words[slot + W_PID] = 0
        return dropped

    def enter(self, worker: int, row: int) -> None:
        cell = self._cell(worker, row)
        self._cells[cell] = (self._cells[cell] + 1) & 0xFFFFFFFF

    def leave(self, worker: int, row: int) -> None:
        cell = self._cell(worker, row)
        self._cells[cell] = max(0, self._cells[cell] - 1)

    def in_flight(self, row: int) -> int:
        first = 2 * self.row(row) + CELLS
        return sum(self._cells[first : first + min(self.words[H["H_WORKERS"]], WORKERS)])

    # ---- for the other twins

    def load(self, row: int, now: int, penalty: float, unknown: float) -> float:
        """See ``load_of`` in select.pyx."""
        return max(self._cost(row, now, unknown, decayed=True), 1.0) + self._penalty(row, now, penalty)

    def speed(self, row: int, now: int, penalty: float, unknown: float) -> float:
        """See ``speed_of`` in select.pyx."""
        return self._cost(row, now, unknown, decayed=False) + self._penalty(row, now, penalty)

    def _cost(self, row: int, now: int, unknown: float, decayed: bool) -> float:
        for pair in (R_TTFT, R_LATENCY):
            word = self.row(row) + pair
            if decayed:
                cost = at.average_now(self.words, self.reals, word, now, self._tau)
            else:
                cost = at.average(self.reals, word)
            if cost != 0.0:
                return cost
        return unknown

    def _penalty(self, row: int, now: int, penalty: float) -> float:
        _, then, current = self.last_failure(row)
        ms = now // 1_000_000
        if not current:
            return 0.0
        return penalty * math.exp(-(float(ms - then) * 1e6 / self._tau)) if then < ms else penalty
