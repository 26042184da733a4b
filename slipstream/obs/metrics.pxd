# What of metrics.py is C when it is compiled: attributes, and the counting of one request.
cimport cython

from slipstream._fast.series cimport Series as CSeries
from slipstream._fast.tally cimport Tally as CTally


cdef class Metrics:
    cdef public CSeries series
    cdef public object worker
    cdef public Py_ssize_t _in_flight, dropped
    cdef public dict _active, _attempts, _slots, _tallies

    cpdef enter(self, str endpoint)
    cpdef leave(self, str endpoint)
    @cython.locals(tally=CTally)
    cpdef finished(
        self, tuple labels, double duration_s, double overhead_s=*, double ttft_s=*, prompt=*, completion=*, micro_usd=*
    )
    cpdef attempt(self, str provider, failure)
    cpdef _add_active(self, str endpoint, by)
