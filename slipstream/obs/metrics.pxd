# What of metrics.py is C when it is compiled: what each request counts.

cdef class Metrics:
    cdef public object series
    cdef public int worker, _in_flight
    cdef public long long dropped
    cdef public dict _slots, _tallies, _active, _attempts

    cpdef enter(self, str endpoint)
    cpdef leave(self, str endpoint)
    cpdef attempt(self, str provider, failure)
    cpdef finished(
        self, tuple labels, double duration_s, double overhead_s=*, double ttft_s=*, prompt=*, completion=*, micro_usd=*
    )
    cpdef _add_active(self, str endpoint, int by)
