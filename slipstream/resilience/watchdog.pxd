# What of watchdog.py is C when it is compiled.

cdef class Watchdog:
    cdef public object _deadlines, _task
    cdef public str _fired, _phase
    cdef public int _cancelling
    cdef public double _limit_s, _total_at, _total_s, due

    cpdef arm(self, str phase, double seconds)
    cpdef beat(self)
    cpdef disarm(self)
