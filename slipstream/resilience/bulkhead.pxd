# What of bulkhead.py is C when it is compiled.

cdef class Bulkhead:
    cdef public object _handle, _loop
    cdef public tuple _mark, _queues, _recent
    cdef public double _at, _fired_at, queue_wait_s
    cdef public long _limit, in_flight, left, queue_limit, queued

    cpdef bint try_enter(self)
    cpdef leave(self)
