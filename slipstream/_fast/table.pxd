# Contents of table.pyx: the layout of the shared table. What it owns and why it is so stands there.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from slipstream._fast.atomics cimport load, load32

cdef enum:                  # sizes in words of 8 bytes; the same numbers in _pure/layout.py (tests compare them)
    VERSION = 2
    WORKERS = 64            # slots; a row has one in-flight cell for each
    CLASSES = 16
    H_MAGIC = 0             # header; H_MAGIC is written last
    H_VERSION = 1
    H_LAYOUT = 2            # hash of all these numbers and of the capacities
    H_SIZE = 3
    H_CREATED = 4
    H_BOOT = 5              # which boot of the machine the times in the table belong to
    H_WORKERS = 6           # slots of workers ever used: 0 .. H_WORKERS - 1
    WORKERS_AT = 512        # word of the first worker slot
    WORKER_WORDS = 8
    W_PID = 0
    W_GENERATION = 1
    W_BEAT = 2
    W_STARTED = 3
    ROWS_AT = 1024
    ROW_WORDS = 96
    R_BREAKER = 2           # words 0 and 1 of every slot: see slots.pxd
    R_COOLDOWN = 3
    R_CONSECUTIVE = 4
    R_LAST = 5              # last failure: time in ms << 8 | CURRENT if nothing succeeded since | class
    R_LATENCY = 6           # and the next word: a moving average
    R_TTFT = 8
    R_TOKENS_IN = 10
    R_TOKENS_OUT = 11
    R_MICRO_USD = 12
    R_RATES = 13            # one word per kind: requests, tokens; see "rates" in table.pyx
    R_CLASSES = 16
    R_CELLS = 32            # uint32_t[WORKERS]
    R_KEY = 64
    COUNTER_WORDS = 32      # series: values from S_VALUES on
    COUNTER_VALUES = 2
    COUNTER_KEY = 4
    HISTOGRAM_WORDS = 48
    HISTOGRAM_VALUES = 20
    HISTOGRAM_KEY = 22
    S_VALUES = 2
    POOL_WORDS = 40
    P_TURN = 2
    P_FASTEST = 3           # choice word: fingerprint of the pool << 32 | index + 1
    P_CHEAPEST = 4
    P_KEY = 8
    CURRENT = 128           # a bit of R_LAST
    OPEN_BITS = 3           # of the breaker word: not 0 while it is not closed
    UNTIL_SHIFT = 8         # of the breaker word: shut until so many ms
    RATE_KINDS = 2
    RATE_SHIFT = 4          # of the rate words: they are times in 1/16 ns

cdef class Table:
    cdef Py_buffer view
    cdef uint64_t* p                    # NULL when closed
    cdef uint64_t* rows
    cdef uint64_t* windows              # ERROR_AT, LATENCY_AT, TTFT_AT of each row
    cdef uint64_t* counter_slots
    cdef uint64_t* histogram_slots
    cdef uint64_t* pool_slots
    cdef Py_ssize_t n_rows, n_counters, n_histograms, n_pools   # 0 when closed
    cdef readonly object sizes
    cdef uint32_t errors_mask, neutral  # one bit per failure class
    cdef double tau                     # ns
    cdef bint peak
    cdef uint64_t* row(self, Py_ssize_t row) except NULL
    cdef uint64_t* worker(self, Py_ssize_t worker) except NULL
    cdef uint32_t* cell(self, Py_ssize_t worker, Py_ssize_t row) except NULL
    cpdef record(self, Py_ssize_t row, int failure_class, int64_t latency_us, int64_t ttft_us, uint64_t now_ns)
    cpdef uint64_t breaker(self, Py_ssize_t row) except? 0xFFFFFFFFFFFFFFFF
    cpdef uint64_t cooldown(self, Py_ssize_t row) except? 0xFFFFFFFFFFFFFFFF
    cpdef bint available(self, Py_ssize_t row, uint64_t now_ns) except -1
    cpdef add_usage(self, Py_ssize_t row, uint64_t tokens_in, uint64_t tokens_out, uint64_t micro_usd)
    cpdef enter(self, Py_ssize_t worker, Py_ssize_t row)
    cpdef leave(self, Py_ssize_t worker, Py_ssize_t row)

cdef extern from *:
    """
    #define SLIP_REST_MAX_NS 3600000000000ULL
    #define SLIP_MINUTE_NS 60000000000ULL
    /* a * b, at most top */
    static inline uint64_t slip_times(uint64_t a, uint64_t b, uint64_t top) {
        uint64_t v;
        return __builtin_mul_overflow(a, b, &v) || v > top ? top : v;
    }
    """
    const uint64_t MINUTE_NS "SLIP_MINUTE_NS"
    uint64_t times "slip_times"(uint64_t a, uint64_t b, uint64_t top) noexcept nogil
    const uint64_t REST_MAX_NS "SLIP_REST_MAX_NS"   # who would rest longer was not told so by us

cdef inline bint shut(const uint64_t* row, uint64_t now) noexcept nogil:
    """It cools down, or its breaker is not closed and the time in the word has not come."""
    cdef uint64_t until = load(row + R_COOLDOWN), word = load(row + R_BREAKER)
    if until > now and until - now <= REST_MAX_NS:
        return True
    until = word >> UNTIL_SHIFT
    now = now // 1000000
    return word & OPEN_BITS and until > now and until - now <= REST_MAX_NS // 1000000

cdef inline uint64_t pending(const uint64_t* header, const uint64_t* row) noexcept nogil:
    """Requests in flight on all workers."""
    cdef uint64_t used = min(load(header + H_WORKERS), <uint64_t>WORKERS), i, total = 0
    for i in range(used):
        total += load32(<const uint32_t*>(row + R_CELLS) + i)
    return total
