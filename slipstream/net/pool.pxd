# What of pool.py is C when it is compiled: taking a connection and giving it back.
from slipstream.net.connection cimport Connection


cdef class Pool:
    cdef public object _connecting, _reaper, _waiters, connector, limit, loop, send_s, slices
    cdef public list _idle
    cdef public set _open
    cdef public dict stats
    cdef public bint closing

    cpdef Connection take(self)
    cpdef give_back(self, Connection conn)
