# What of relay.py is C when it is compiled: the way of one piece of a stream.
from slipstream.resilience.watchdog cimport Watchdog as CWatchdog


cdef class Relay:
    cdef public CWatchdog _dog
    cdef public object _clock, _ctx, _exchange, _pulse, _reply, _tap, _waiting
    cdef public Py_ssize_t _bytes
    cdef public double _idle_s, _own_s

    cpdef bint _pass_on(self, bytes chunk)
