# Contents of tally.pyx.
cimport cython
from libc.stdint cimport int64_t, uint64_t

from slipstream._fast.series cimport Series
from slipstream._fast.table cimport Table

cdef enum:
    ONES_MAX = 8
    SUMS_MAX = 3
    TIMES_MAX = 3
    BOUNDS_MAX = 18

cdef struct Times:
    uint64_t* values[BOUNDS_MAX + 2]
    double bounds[BOUNDS_MAX]
    int n

@cython.final
cdef class Tally:
    cdef Table table
    cdef uint64_t* ones[ONES_MAX]
    cdef uint64_t* sums[SUMS_MAX]
    cdef Times times[TIMES_MAX]
    cdef int n_ones, n_sums, n_times

    cdef _add_times(self, Series series, Py_ssize_t slot, tuple bounds)
    cpdef add(self, int64_t a=*, int64_t b=*, int64_t c=*, double x=*, double y=*, double z=*)
