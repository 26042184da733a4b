# cython: language_level=3
"""Many additions to the shared table in one call: what one finished request adds to its series.

Owns lists of places, made once for each combination of labels; the values of a series and what they mean are the
caller's business. One crossing in place of a dozen, which is why it exists.

The rule that must not be broken: a place is a pointer into the table's memory, so nothing is written once the table was
closed.

Documentation of the face: tally.pyi. The same in plain words: _pure/tally.py.
"""

cimport cython
from libc.stdint cimport int64_t, uint64_t

from slipstream._fast.atomics cimport fetch_add
from slipstream._fast.series cimport Series
from slipstream._fast.table cimport Table

cdef void add_time(Times* t, double seconds) noexcept nogil:
    """One more in the first bucket whose bound is not below ``seconds``, and the nanoseconds to the sum."""
    cdef int i = 0
    while i < t.n and t.bounds[i] < seconds:
        i += 1
    fetch_add(t.values[i], 1)
    fetch_add(t.values[t.n + 1], <uint64_t><int64_t>(seconds * 1e9))


@cython.final
cdef class Tally:
    def __init__(self, Series series not None, ones, sums, times):
        if len(ones) > ONES_MAX or len(sums) > SUMS_MAX or len(times) > TIMES_MAX:
            raise ValueError("a tally has at most 8 ones, 3 sums and 3 times")
        self.table = series.table
        self.n_ones = self.n_sums = self.n_times = 0
        for slot in ones:
            if slot >= 0:
                self.ones[self.n_ones] = series.slot(slot, 0)
                self.n_ones += 1
        for slot, index in sums:
            self.sums[self.n_sums] = NULL if slot < 0 else series.slot(slot, index)
            self.n_sums += 1
        for slot, bounds in times:
            self._add_times(series, slot, bounds)

    cdef _add_times(self, Series series, Py_ssize_t slot, tuple bounds):
        cdef Times* t = &self.times[self.n_times]
        cdef int i
        if len(bounds) > BOUNDS_MAX:
            raise ValueError("a histogram has at most 18 bounds")
        t.n = -1
        self.n_times += 1
        if slot < 0:
            return
        for i in range(len(bounds)):
            t.bounds[i] = bounds[i]
        for i in range(len(bounds) + 2):
            t.values[i] = series.slot(slot, i)
        t.n = <int>len(bounds)

    cpdef add(self, int64_t a=0, int64_t b=0, int64_t c=0, double x=-1.0, double y=-1.0, double z=-1.0):
        cdef int i
        cdef int64_t[3] amounts
        cdef double[3] seconds
        if self.table.p == NULL:
            raise ValueError("the table is closed")
        amounts[0], amounts[1], amounts[2] = a, b, c
        seconds[0], seconds[1], seconds[2] = x, y, z
        for i in range(self.n_ones):
            fetch_add(self.ones[i], 1)
        for i in range(self.n_sums):
            if amounts[i] and self.sums[i] != NULL:
                fetch_add(self.sums[i], <uint64_t>amounts[i])
        for i in range(self.n_times):
            if seconds[i] >= 0.0 and self.times[i].n >= 0:
                add_time(&self.times[i], seconds[i])
