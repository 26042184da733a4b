# What of watchdog.py is C when it is compiled.

cdef class Deadlines:
    cdef public object _handle, loop, time
    cdef public set _dogs
    cdef public double _at, _expected
    cdef public bint _over, _waited

    cpdef add(self, Watchdog dog)
    cpdef sooner(self, double due)
    cpdef discard(self, Watchdog dog)


cdef class Watchdog:
    cdef public Deadlines _deadlines
    cdef public object _task
    cdef public str _fired, _phase
    cdef public int _cancelling
    cdef public double _limit_s, _total_at, _total_s, due

    cpdef arm(self, str phase, double seconds)
    cpdef beat(self)
    cpdef disarm(self)
