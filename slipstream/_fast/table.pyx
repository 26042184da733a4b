"""The shared table: target rows and worker slots in memory that all workers map.

Owns the header, the rows of targets (counters, moving averages, windows, breaker word) and the slots of workers with
their requests in flight. Series are series.pyx, pools are select.pyx; both work on the memory of a ``Table``.

Why so: every process of the gateway sees the same statistics, breakers and turns, at the price of some atomic
instructions; and because the file outlives all of them, counters survive ``kill -9``.

The rule that must not be broken: no locks. Each word is complete in itself (see windows.pxd and slots.pxd for what is
packed how), and whatever lies in the file, nothing read from it is used as an index or a length before it was bounded.

Layout: table.pxd. Documentation of the face: table.pyi. The same in plain words: _pure/layout.py, _pure/table.py.
"""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

from slipstream._fast.atomics cimport cas, cas32, fetch_add, fetch_add32, load, load32, load_acquire, store, store32, \
    store_release
from slipstream._fast.slots cimport CLAIMING, KEY_MAX, KEY_WORDS, META_KIND, READY, find_or_claim, key_of
from slipstream._fast.windows cimport (
    AVERAGE_MAX, BUCKET_SHIFT, BUCKETS, ERROR_AT, ERROR_SLICE_NS, ERROR_SLICES, HIST_SLICE_NS, HIST_SLICES, LATENCY_AT,
    TTFT_AT, WINDOW_WORDS, average, average_add, bucket_middle, error_add, error_sum, hist_add, hist_counts,
)

from ._pure.layout import DEFAULT_SIZES, MAGIC, Sizes, TableError, layout_hash

LAYOUT = {
    "VERSION": VERSION, "WORKERS": WORKERS, "CLASSES": CLASSES, "H_MAGIC": H_MAGIC, "H_VERSION": H_VERSION,
    "H_LAYOUT": H_LAYOUT, "H_SIZE": H_SIZE, "H_CREATED": H_CREATED, "H_BOOT": H_BOOT, "H_WORKERS": H_WORKERS,
    "WORKERS_AT": WORKERS_AT, "WORKER_WORDS": WORKER_WORDS, "W_PID": W_PID, "W_GENERATION": W_GENERATION,
    "W_BEAT": W_BEAT, "W_STARTED": W_STARTED, "ROWS_AT": ROWS_AT, "ROW_WORDS": ROW_WORDS, "R_BREAKER": R_BREAKER,
    "R_COOLDOWN": R_COOLDOWN, "R_CONSECUTIVE": R_CONSECUTIVE, "R_LAST": R_LAST, "R_LATENCY": R_LATENCY,
    "R_TTFT": R_TTFT, "R_TOKENS_IN": R_TOKENS_IN, "R_TOKENS_OUT": R_TOKENS_OUT, "R_MICRO_USD": R_MICRO_USD,
    "R_RATES": R_RATES, "RATE_KINDS": RATE_KINDS, "RATE_SHIFT": RATE_SHIFT,
    "R_CLASSES": R_CLASSES, "R_CELLS": R_CELLS, "R_KEY": R_KEY, "COUNTER_WORDS": COUNTER_WORDS,
    "COUNTER_VALUES": COUNTER_VALUES, "COUNTER_KEY": COUNTER_KEY, "HISTOGRAM_WORDS": HISTOGRAM_WORDS,
    "HISTOGRAM_VALUES": HISTOGRAM_VALUES, "HISTOGRAM_KEY": HISTOGRAM_KEY, "S_VALUES": S_VALUES,
    "POOL_WORDS": POOL_WORDS, "P_TURN": P_TURN, "P_FASTEST": P_FASTEST, "P_CHEAPEST": P_CHEAPEST, "P_KEY": P_KEY,
    "CURRENT": CURRENT, "OPEN_BITS": OPEN_BITS, "UNTIL_SHIFT": UNTIL_SHIFT, "CLAIMING": CLAIMING, "READY": READY,
    "KEY_WORDS": KEY_WORDS, "KEY_MAX": KEY_MAX, "META_KIND": META_KIND, "ERROR_SLICES": ERROR_SLICES,
    "ERROR_SLICE_NS": ERROR_SLICE_NS, "BUCKETS": BUCKETS, "BUCKET_SHIFT": BUCKET_SHIFT, "HIST_SLICES": HIST_SLICES,
    "HIST_SLICE_NS": HIST_SLICE_NS, "ERROR_AT": ERROR_AT, "LATENCY_AT": LATENCY_AT, "TTFT_AT": TTFT_AT,
    "WINDOW_WORDS": WINDOW_WORDS,
}


# ---- core ----------------------------------------------------------------------------------------------------------

cdef inline void outcome(uint64_t* r, uint64_t* windows, int failure, bint error, uint64_t now) noexcept nogil:
    """What one finished attempt says about the health of its target."""
    cdef uint64_t last
    error_add(windows + ERROR_AT, now, error)
    if error:
        fetch_add(r + R_CONSECUTIVE, 1)
    if failure:
        store(r + R_LAST, (now // 1000000) << 8 | CURRENT | <uint64_t>failure)
        return
    if load(r + R_CONSECUTIVE):
        store(r + R_CONSECUTIVE, 0)
    last = load(r + R_LAST)
    if last & CURRENT:
        cas(r + R_LAST, &last, last & ~<uint64_t>CURRENT)  # not if another failure came in between


cdef void raise_to(uint64_t* word, uint64_t value) noexcept nogil:
    cdef uint64_t seen = load(word)
    while seen < value and not cas(word, &seen, value):
        pass


cdef uint64_t drop_cells(uint64_t* rows, Py_ssize_t n, Py_ssize_t worker) noexcept nogil:
    cdef uint64_t dropped = 0
    cdef uint32_t* cell
    cdef Py_ssize_t i
    for i in range(n):
        cell = <uint32_t*>(rows + i * ROW_WORDS + R_CELLS) + worker
        if load32(cell):
            dropped += load32(cell)
            store32(cell, 0)
    return dropped


cdef void forget_row(uint64_t* r, uint64_t* windows) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(R_BREAKER, R_TTFT + 2):
        store(r + i, 0)
    for i in range(RATE_KINDS):
        store(r + R_RATES + i, 0)
    for i in range(WINDOW_WORDS):
        if load(windows + i):
            store(windows + i, 0)


# ---- rates
#
# A rate word is the theoretical arrival time of GCRA (ITU-T I.371 annex A, "virtual scheduling"), in 1/16 ns of the
# clock: the moment at which the bucket will be full again. A unit costs ``unit_of`` of that time, rounded up, so what is
# let through is never more than the limit (and less by at most 1 part in 960e9 / per_min). 0: full. Nothing refills a
# bucket but the clock, so there is nothing to lose when a worker is killed.
#
# Nobody writes a time more than an hour ahead; one more than two hours ahead was not written by us and is no debt (the
# second hour is for clocks read a little earlier by another worker).

cdef inline uint64_t scaled(uint64_t ns) noexcept nogil:
    """Nanoseconds as rate words count them; the end of time comes after 18 years of uptime."""
    return min(ns, <uint64_t>0x7FFFFFFFFFFFFFF) << RATE_SHIFT


cdef inline uint64_t unit_of(uint64_t per_min) noexcept nogil:
    return ((MINUTE_NS << RATE_SHIFT) - 1) // per_min + 1


cdef inline uint64_t debt_of(uint64_t word, uint64_t now) noexcept nogil:
    """How long the bucket needs to be full."""
    cdef uint64_t debt = word - now
    return debt if word > now and debt <= (REST_MAX_NS << RATE_SHIFT) * 2 else 0


cdef uint64_t* rate_word(Table table, Py_ssize_t row, Py_ssize_t kind) except NULL:
    cdef uint64_t* r = table.row(row)
    if <size_t>kind >= RATE_KINDS:
        raise IndexError("no such kind of rate")
    return r + R_RATES + kind


cdef uint64_t take_of(uint64_t* word, uint64_t span, uint64_t tolerance, uint64_t now) noexcept nogil:
    """0: taken. Else how long until it would fit."""
    cdef uint64_t seen = load(word), debt
    cdef uint64_t most = tolerance - span if tolerance > span else 0  # more than a burst: fits a full bucket
    while True:
        debt = debt_of(seen, now)
        if debt > most:
            return debt - most
        if cas(word, &seen, now + debt + span):
            return 0


cdef void charge_of(uint64_t* word, uint64_t span, uint64_t now) noexcept nogil:
    cdef uint64_t seen = load(word), debt
    while True:
        debt = debt_of(seen, now)
        if cas(word, &seen, now + max(debt, min(debt + span, REST_MAX_NS << RATE_SHIFT))):
            return


cdef void hold_of(uint64_t* word, uint64_t least, uint64_t now) noexcept nogil:
    cdef uint64_t seen = load(word)
    while debt_of(seen, now) < least and not cas(word, &seen, now + least):
        pass


cdef void refund_of(uint64_t* word, uint64_t credit, uint64_t now) noexcept nogil:
    cdef uint64_t seen = load(word), debt
    while True:
        debt = debt_of(seen, now)
        if not debt or cas(word, &seen, now + debt - min(debt, credit)):
            return


cdef int64_t quantile_of(const uint64_t* hist, double q, uint64_t now) noexcept nogil:
    cdef uint64_t counts[BUCKETS]
    cdef uint64_t total = hist_counts(hist, now, counts), below = 0
    cdef double want = q * <double>total
    cdef Py_ssize_t i
    for i in range(BUCKETS):
        below += counts[i]
        if below and <double>below >= want:
            return <int64_t>bucket_middle(i)
    return -1


# ---- face ----------------------------------------------------------------------------------------------------------

@cython.final
cdef class Table:
    def __cinit__(self, buffer, sizes=DEFAULT_SIZES, *, uint32_t errors=0xFFFE, uint32_t neutral=0, double tau_s=10.0,
                  bint peak=False):
        sizes.check()
        if not 1e-3 <= tau_s <= 1e6:
            raise ValueError("tau_s is out of range")
        PyObject_GetBuffer(buffer, &self.view, PyBUF_WRITABLE)
        self.p = <uint64_t*>self.view.buf
        self.sizes = sizes
        self.errors_mask, self.neutral = errors, neutral
        self.tau, self.peak = tau_s * 1e9, peak
        if self.view.len != sizes.total or <size_t>self.p % 8:
            raise TableError(f"{self.view.len} bytes where a table of {sizes.total} aligned bytes was expected")
        if load_acquire(self.p + H_MAGIC) != <uint64_t>MAGIC:
            raise TableError("not a table (the first word is wrong)")
        for name, at, want in (("version", H_VERSION, VERSION), ("layout", H_LAYOUT, layout_hash(sizes, LAYOUT)),
                               ("size", H_SIZE, sizes.total)):
            if load(self.p + <Py_ssize_t>at) != <uint64_t>want:
                raise TableError(f"a table of another {name}: {load(self.p + <Py_ssize_t>at):#x}, not {want:#x}")
        counters, histograms, pools, windows, _ = sizes.words()
        self.rows, self.windows = self.p + ROWS_AT, self.p + <Py_ssize_t>windows
        self.counter_slots, self.histogram_slots = self.p + <Py_ssize_t>counters, self.p + <Py_ssize_t>histograms
        self.pool_slots = self.p + <Py_ssize_t>pools
        self.n_rows, self.n_counters, self.n_histograms, self.n_pools = sizes

    def __dealloc__(self):
        PyBuffer_Release(&self.view)

    def close(self):
        self.p = NULL
        self.n_rows = self.n_counters = self.n_histograms = self.n_pools = 0
        PyBuffer_Release(&self.view)

    @staticmethod
    def format(buffer, sizes=DEFAULT_SIZES, *, uint64_t created_ns=0, uint64_t boot=0):
        cdef Py_buffer view
        cdef uint64_t* p
        sizes.check()
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            p = <uint64_t*>view.buf
            if view.len != sizes.total or <size_t>p % 8:
                raise TableError(f"{view.len} bytes where {sizes.total} aligned bytes were expected")
            store(p + H_VERSION, VERSION)
            store(p + H_LAYOUT, <uint64_t>layout_hash(sizes, LAYOUT))
            store(p + H_SIZE, <uint64_t>view.len)
            store(p + H_CREATED, created_ns)
            store(p + H_BOOT, boot)
            store_release(p + H_MAGIC, <uint64_t>MAGIC)
        finally:
            PyBuffer_Release(&view)

    cdef uint64_t* row(self, Py_ssize_t row) except NULL:
        if <size_t>row >= <size_t>self.n_rows:
            raise ValueError("the table is closed") if self.p == NULL else IndexError("no such row")
        return self.rows + row * ROW_WORDS

    cdef uint64_t* worker(self, Py_ssize_t worker) except NULL:
        if self.p == NULL:
            raise ValueError("the table is closed")
        if <size_t>worker >= WORKERS:
            raise IndexError("no such worker")
        return self.p + WORKERS_AT + worker * WORKER_WORDS

    cdef uint32_t* cell(self, Py_ssize_t worker, Py_ssize_t row) except NULL:
        cdef uint64_t* r = self.row(row)
        if <size_t>worker >= min(load(self.p + H_WORKERS), <uint64_t>WORKERS):
            raise IndexError("no such worker")
        return <uint32_t*>(r + R_CELLS) + worker

    # ---- header

    @property
    def created_ns(self):
        self.worker(0)
        return load(self.p + H_CREATED)

    @property
    def boot(self):
        self.worker(0)
        return load(self.p + H_BOOT)

    def forget_times(self, uint64_t boot):
        cdef Py_ssize_t i
        self.worker(0)
        for i in range(self.n_rows):
            if load(self.rows + i * ROW_WORDS):
                forget_row(self.rows + i * ROW_WORDS, self.windows + i * WINDOW_WORDS)
        store(self.p + H_BOOT, boot)

    # ---- targets

    def target(self, bytes key not None):
        cdef Py_ssize_t n = PyBytes_GET_SIZE(key)
        self.row(0)
        if n > KEY_MAX:
            raise ValueError(f"a key has at most {KEY_MAX} bytes")
        return find_or_claim(self.rows, ROW_WORDS, self.n_rows, R_KEY, PyBytes_AS_STRING(key), n, 0)

    def targets(self):
        cdef char key[KEY_MAX]
        cdef uint64_t kind = 0
        cdef Py_ssize_t i, n
        self.row(0)
        found = []
        for i in range(self.n_rows):
            n = key_of(self.rows + i * ROW_WORDS, R_KEY, key, &kind)
            if n >= 0 and kind == 0:
                found.append((i, PyBytes_FromStringAndSize(key, n)))
        return found

    cpdef record(self, Py_ssize_t row, int failure_class, int64_t latency_us, int64_t ttft_us, uint64_t now_ns):
        cdef uint64_t* r = self.row(row)
        cdef uint64_t* windows = self.windows + row * WINDOW_WORDS
        if <unsigned int>failure_class >= CLASSES:
            raise IndexError("no such failure class")
        fetch_add(r + R_CLASSES + failure_class, 1)
        if not self.neutral >> failure_class & 1:
            outcome(r, windows, failure_class, self.errors_mask >> failure_class & 1, now_ns)
        if latency_us >= 0:
            average_add(r + R_LATENCY, now_ns, latency_us, self.tau, self.peak)
            hist_add(windows + LATENCY_AT, now_ns, latency_us)
        if ttft_us >= 0:
            average_add(r + R_TTFT, now_ns, ttft_us, self.tau, self.peak)
            hist_add(windows + TTFT_AT, now_ns, ttft_us)

    def ewma(self, Py_ssize_t row):
        cdef uint64_t* r = self.row(row)
        return average(r + R_LATENCY), average(r + R_TTFT)

    def quantile(self, Py_ssize_t row, double q, uint64_t now_ns, bint ttft=False):
        self.row(row)
        if not 0.0 <= q <= 1.0:
            raise ValueError("a quantile goes from 0 to 1")
        return quantile_of(self.windows + row * WINDOW_WORDS + (TTFT_AT if ttft else LATENCY_AT), q, now_ns)

    def samples(self, Py_ssize_t row, uint64_t now_ns, bint ttft=False):
        cdef uint64_t counts[BUCKETS]
        self.row(row)
        return hist_counts(self.windows + row * WINDOW_WORDS + (TTFT_AT if ttft else LATENCY_AT), now_ns, counts)

    def errors(self, Py_ssize_t row, Py_ssize_t window_s, uint64_t now_ns):
        cdef Py_ssize_t slices = max(1, min(<Py_ssize_t>ERROR_SLICES, window_s // <Py_ssize_t>5))
        cdef uint64_t errors = 0, calls
        self.row(row)
        calls = error_sum(self.windows + row * WINDOW_WORDS + ERROR_AT, now_ns, slices, &errors)
        return calls, errors

    def counters(self, Py_ssize_t row):
        cdef uint64_t* r = self.row(row)
        return tuple([load(r + R_CLASSES + i) for i in range(CLASSES)])

    def consecutive(self, Py_ssize_t row):
        return load(self.row(row) + R_CONSECUTIVE)

    def last_failure(self, Py_ssize_t row):
        cdef uint64_t w = load(self.row(row) + R_LAST)
        return w & 127, w >> 8, bool(w & CURRENT)

    cpdef uint64_t breaker(self, Py_ssize_t row) except? 0xFFFFFFFFFFFFFFFF:
        return load_acquire(self.row(row) + R_BREAKER)

    def cas_breaker(self, Py_ssize_t row, uint64_t old, uint64_t new):
        return <bint>cas(self.row(row) + R_BREAKER, &old, new)

    cpdef uint64_t cooldown(self, Py_ssize_t row) except? 0xFFFFFFFFFFFFFFFF:
        return load(self.row(row) + R_COOLDOWN)

    def extend_cooldown(self, Py_ssize_t row, uint64_t until_ns):
        raise_to(self.row(row) + R_COOLDOWN, until_ns)

    def clear_cooldown(self, Py_ssize_t row):
        store(self.row(row) + R_COOLDOWN, 0)

    cpdef bint available(self, Py_ssize_t row, uint64_t now_ns) except -1:
        return not shut(self.row(row), now_ns)

    cpdef add_usage(self, Py_ssize_t row, uint64_t tokens_in, uint64_t tokens_out, uint64_t micro_usd):
        cdef uint64_t* r = self.row(row)
        fetch_add(r + R_TOKENS_IN, tokens_in)
        fetch_add(r + R_TOKENS_OUT, tokens_out)
        fetch_add(r + R_MICRO_USD, micro_usd)

    def usage(self, Py_ssize_t row):
        cdef uint64_t* r = self.row(row)
        return load(r + R_TOKENS_IN), load(r + R_TOKENS_OUT), load(r + R_MICRO_USD)

    # ---- rates

    def take(self, Py_ssize_t row, Py_ssize_t kind, uint64_t cost, uint64_t per_min, uint64_t burst, uint64_t now_ns):
        cdef uint64_t* word = rate_word(self, row, kind)
        cdef uint64_t unit, top = REST_MAX_NS << RATE_SHIFT, wait
        if not per_min or not burst:
            raise ValueError("a limit lets something through")
        unit = unit_of(per_min)
        wait = take_of(word, times(cost, unit, top), times(burst, unit, top), scaled(now_ns))
        return (wait + (1 << RATE_SHIFT) - 1) >> RATE_SHIFT

    def charge(self, Py_ssize_t row, Py_ssize_t kind, uint64_t cost, uint64_t per_min, uint64_t now_ns):
        cdef uint64_t* word = rate_word(self, row, kind)
        if not per_min:
            raise ValueError("a limit lets something through")
        charge_of(word, times(cost, unit_of(per_min), REST_MAX_NS << RATE_SHIFT), scaled(now_ns))

    def refund(self, Py_ssize_t row, Py_ssize_t kind, uint64_t cost, uint64_t per_min, uint64_t taken_ns,
               uint64_t now_ns):
        cdef uint64_t* word = rate_word(self, row, kind)
        cdef uint64_t span, passed = scaled(now_ns - taken_ns) if now_ns > taken_ns else 0
        if not per_min:
            raise ValueError("a limit lets something through")
        span = times(cost, unit_of(per_min), REST_MAX_NS << RATE_SHIFT)
        if span > passed:
            refund_of(word, span - passed, scaled(now_ns))

    def hold(self, Py_ssize_t row, Py_ssize_t kind, uint64_t debt_ns, uint64_t now_ns):
        hold_of(rate_word(self, row, kind), scaled(min(debt_ns, REST_MAX_NS)), scaled(now_ns))

    def debt(self, Py_ssize_t row, Py_ssize_t kind, uint64_t now_ns):
        return (debt_of(load(rate_word(self, row, kind)), scaled(now_ns)) + (1 << RATE_SHIFT) - 1) >> RATE_SHIFT

    # ---- workers

    def claim_worker(self, uint64_t pid, uint64_t now_ns):
        cdef uint64_t* w
        cdef uint64_t free
        cdef Py_ssize_t i
        if not pid:
            raise ValueError("a worker has a pid")
        for i in range(WORKERS):
            w = self.worker(i)
            free = 0
            if cas(w + W_PID, &free, pid):
                raise_to(self.p + H_WORKERS, i + 1)
                fetch_add(w + W_GENERATION, 1)
                store(w + W_STARTED, now_ns)
                store(w + W_BEAT, now_ns)
                return i
        return -1

    def beat(self, Py_ssize_t worker, uint64_t now_ns):
        store(self.worker(worker) + W_BEAT, now_ns)

    def workers(self):
        cdef uint64_t* w
        cdef Py_ssize_t i
        found = []
        for i in range(WORKERS):
            w = self.worker(i)
            if load(w + W_PID):
                found.append((i, load(w + W_PID), load(w + W_GENERATION), load(w + W_BEAT), load(w + W_STARTED)))
        return found

    def reap(self, Py_ssize_t worker):
        cdef uint64_t* w = self.worker(worker)
        cdef uint64_t dropped = drop_cells(self.rows, self.n_rows, worker)
        store_release(w + W_PID, 0)  # last: nobody claims the slot while it has counts of the dead
        return dropped

    cpdef enter(self, Py_ssize_t worker, Py_ssize_t row):
        fetch_add32(self.cell(worker, row), 1)

    cpdef leave(self, Py_ssize_t worker, Py_ssize_t row):
        cdef uint32_t* cell = self.cell(worker, row)
        cdef uint32_t seen = load32(cell)
        while seen and not cas32(cell, &seen, seen - 1):
            pass

    def in_flight(self, Py_ssize_t row):
        cdef uint64_t* r = self.row(row)
        return pending(self.p, r)
