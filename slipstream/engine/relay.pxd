# What of relay.py is C when it is compiled: the way of one piece of a stream.
cimport cython

from slipstream.engine.context cimport RequestContext as CRequestContext
from slipstream.engine.pulse cimport Pulse as CPulse
from slipstream.resilience.watchdog cimport Watchdog as CWatchdog


cdef class Relay:
    cdef public CWatchdog _dog
    cdef public CRequestContext _ctx
    cdef public CPulse _pulse
    cdef public object _clock, _exchange, _reply, _tap, _waiting
    cdef public Py_ssize_t _bytes
    cdef public double _idle_s, _own_s

    @cython.locals(before=double, out=bytes)
    cpdef bint _pass_on(self, bytes chunk)
