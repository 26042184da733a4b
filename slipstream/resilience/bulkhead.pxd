# What of bulkhead.py is C when it is compiled: who comes and goes without waiting.

cdef class Bulkhead:
    cdef public Py_ssize_t _limit, in_flight, left, queue_limit, queued
    cdef public object _handle, _loop, _mark, _queues, _recent, queue_wait_s
    cdef public double _at, _fired_at

    cpdef bint try_enter(self)
    cpdef leave(self)
