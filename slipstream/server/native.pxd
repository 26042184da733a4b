# What of native.py is C when it is compiled: what connections ask of the listener.
from slipstream._fast.head cimport RequestHead as CRequestHead
from slipstream.engine.runtime cimport Runtime
from slipstream.resilience.admission cimport Admission


cdef class NativeListener:
    cdef public CRequestHead head
    cdef public Runtime runtime
    cdef public Admission admission
    cdef public object app, gate, heavy, intake, limits, loop, paused, reference, stalled, surplus
    cdef public object _listening, _drained, _sweeper, _watcher
    cdef public dict heads
    cdef public set _open
    cdef public bytes _date
    cdef public bint closing
    cdef public double _date_until, _every_s, idle_until

    cpdef bytes date(self)
