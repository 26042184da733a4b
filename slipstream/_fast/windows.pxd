"""Sliding windows and moving averages in single words: what makes a row safe without locks.

A header (inline functions, no module). A *tagged word* is ``tag | counts``, where the tag says in which turn of its
ring the counts were made. A writer of a later turn replaces tag and counts with the same CAS that adds its own
sample; a reader takes a word only if it has the tag that it expects. So nothing is ever cleared, no slice is ever half
cleared, and a process may be killed anywhere.

* Error ring: ``ERROR_SLICES`` slices of ``ERROR_SLICE_NS``; word: tag 16 bits, calls 24, errors 24 (calls and errors
  are always of the same instant). Calls stop at 2^24 - 1 a slice. A tag comes again after 65,536 turns (7 years).
* Histogram: ``BUCKETS`` x ``HIST_SLICES`` words, the slices of one bucket side by side (targets use few buckets, so
  few pages are ever touched); word: tag 32 bits, count 32. Buckets are log-linear, 8 to the power of two: bucket
  ``8 k + m`` holds ``[(8 + m) 2^(k+5), (9 + m) 2^(k+5))`` us, from 256 us (less counts as 256) to 2^31 us, 36 minutes
  (more counts as the last bucket). The middle of a bucket is within 6.25 % of all in it.
* Moving average: two words, each complete in itself. Value: a double in us, 0.0 when there was no sample. Time: until
  when the value was decayed. A writer first moves the time on by CAS and so owns the interval it moved over, then
  applies ``v w + x (1 - w)``, ``w = exp(-dt / tau)`` by a CAS loop: no interval is used twice, no sample is lost. A
  writer killed between the two takes its own sample with it and nothing else. Values that no writer wrote (NaN,
  negative, beyond AVERAGE_MAX: a damaged file) count as no value and are replaced by the next sample.
* A time more than AHEAD_MAX_NS ahead of ``now`` was not written by a clock of this machine: it is set to ``now``.
"""
from libc.math cimport exp
from libc.stdint cimport int64_t, uint64_t

from slipstream._fast.atomics cimport bits_of, cas, load, log2_of, real_of

cdef enum:
    ERROR_SLICES = 720          # an hour
    BUCKETS = 184
    BUCKET_SHIFT = 8            # 2^8 us: the lower end
    HIST_SLICES = 6             # a minute
    ERROR_AT = 0                # words in the window block of a row
    LATENCY_AT = 720
    TTFT_AT = 1824
    WINDOW_WORDS = 2928

cdef extern from *:
    """
    #define SLIP_ERROR_SLICE_NS 5000000000ULL
    #define SLIP_HIST_SLICE_NS 10000000000ULL
    #define SLIP_AVERAGE_MAX 1e13
    #define SLIP_LOW_32 0xFFFFFFFFULL
    #define SLIP_AHEAD_MAX_NS 60000000000ULL
    """
    const uint64_t ERROR_SLICE_NS "SLIP_ERROR_SLICE_NS"
    const uint64_t HIST_SLICE_NS "SLIP_HIST_SLICE_NS"
    const double AVERAGE_MAX "SLIP_AVERAGE_MAX"       # us; 115 days
    const uint64_t LOW_32 "SLIP_LOW_32"
    const uint64_t AHEAD_MAX_NS "SLIP_AHEAD_MAX_NS"

cdef inline uint64_t error_tag(uint64_t epoch) noexcept nogil:
    return (epoch // ERROR_SLICES + 1) & 0xFFFF

cdef inline void error_add(uint64_t* ring, uint64_t now, bint error) noexcept nogil:
    cdef uint64_t epoch = now // ERROR_SLICE_NS, tag = error_tag(epoch), new
    cdef uint64_t* word = ring + epoch % ERROR_SLICES
    cdef uint64_t seen = load(word)
    while True:
        new = seen if seen >> 48 == tag else tag << 48
        if (new >> 24 & 0xFFFFFF) == 0xFFFFFF:
            return
        if cas(word, &seen, new + (1 << 24) + error):
            return

cdef inline uint64_t error_sum(const uint64_t* ring, uint64_t now, uint64_t slices, uint64_t* errors) noexcept nogil:
    """Calls in the last ``slices`` slices, the running one included."""
    cdef uint64_t epoch = now // ERROR_SLICE_NS, e, w, calls = 0
    errors[0] = 0
    for e in range(epoch + 1 - min(slices, epoch + 1), epoch + 1):
        w = load(ring + e % ERROR_SLICES)
        if w >> 48 == error_tag(e):
            calls += w >> 24 & 0xFFFFFF
            errors[0] += w & 0xFFFFFF
    return calls

cdef inline Py_ssize_t bucket_of(uint64_t us) noexcept nogil:
    cdef int e
    if us < (1 << BUCKET_SHIFT):
        return 0
    e = log2_of(us)
    if e > 30:
        return BUCKETS - 1
    return (e - BUCKET_SHIFT) * 8 + <Py_ssize_t>(us >> (e - 3) & 7)

cdef inline uint64_t bucket_middle(Py_ssize_t i) noexcept nogil:
    cdef int shift = BUCKET_SHIFT - 3 + <int>(i >> 3)
    return (<uint64_t>(8 + (i & 7)) << shift) + ((<uint64_t>1 << shift) >> 1)

cdef inline uint64_t hist_tag(uint64_t epoch) noexcept nogil:
    return (epoch // HIST_SLICES + 1) & LOW_32

cdef inline void hist_add(uint64_t* hist, uint64_t now, uint64_t us) noexcept nogil:
    cdef uint64_t epoch = now // HIST_SLICE_NS, tag = hist_tag(epoch), new
    cdef uint64_t* word = hist + bucket_of(us) * HIST_SLICES + epoch % HIST_SLICES
    cdef uint64_t seen = load(word)
    while True:
        new = seen if seen >> 32 == tag else tag << 32
        if (new & LOW_32) == LOW_32 or cas(word, &seen, new + 1):
            return

cdef inline uint64_t hist_counts(const uint64_t* hist, uint64_t now, uint64_t* counts) noexcept nogil:
    """Fills ``counts`` (BUCKETS words) with the last HIST_SLICES slices, the running one included; their sum."""
    cdef uint64_t epoch = now // HIST_SLICE_NS, e, w, total = 0
    cdef uint64_t tags[HIST_SLICES]
    cdef Py_ssize_t b, s
    for s in range(HIST_SLICES):
        tags[s] = LOW_32 + 1  # no word has it
    for e in range(epoch + 1 - min(<uint64_t>HIST_SLICES, epoch + 1), epoch + 1):
        tags[e % HIST_SLICES] = hist_tag(e)
    for b in range(BUCKETS):
        counts[b] = 0
        for s in range(HIST_SLICES):
            w = load(hist + b * HIST_SLICES + s)
            if w >> 32 == tags[s]:
                counts[b] += w & LOW_32
        total += counts[b]
    return total

cdef inline double average(const uint64_t* pair) noexcept nogil:
    """The value, 0.0 when there is none."""
    cdef double v = real_of(load(pair))
    return v if 0.0 < v <= AVERAGE_MAX else 0.0

cdef inline double fresh_weight(uint64_t dt, double tau) noexcept nogil:
    """``1 - exp(-dt / tau)``; the series (exact to 4e-11 there) saves most calls a call of exp."""
    cdef double z = <double>dt / tau, third
    if z < 0.0009765625:
        third = 1.0 - z / 3.0
        third = z / 2.0 * third
        return z * (1.0 - third)
    return 1.0 - exp(-z)

cdef inline void average_add(uint64_t* pair, uint64_t now, uint64_t us, double tau, bint peak) noexcept nogil:
    cdef uint64_t seen = load(pair + 1), dt = 0, old
    cdef double x = <double>us if us > 1 else 1.0, v, step, k
    while seen < now or seen - now > AHEAD_MAX_NS:
        if cas(pair + 1, &seen, now):
            dt = now - seen if seen < now else 0
            break
    k = fresh_weight(dt, tau)
    old = load(pair)
    while True:
        v = real_of(old)
        if not 0.0 < v <= AVERAGE_MAX or (peak and x > v):
            v = x
        else:
            step = (x - v) * k
            v = v + step
        if cas(pair, &old, bits_of(v)):
            return

cdef inline double average_now(const uint64_t* pair, uint64_t now, double tau) noexcept nogil:
    """The value decayed to ``now`` as if 0 us had been seen (Finagle's PeakEwma); 0.0 when there is none."""
    cdef double v = average(pair)
    cdef uint64_t then = load(pair + 1)
    return v * exp(-(<double>(now - then) / tau)) if v > 0.0 and then < now else v
