# What of pool.py is C when it is compiled: taking a connection and giving it back.
from slipstream.net.connection cimport Connection as CConnection


cdef class Pool:
    cdef public object _open, _reaper, _waiters, connector, loop
    cdef public list _idle
    cdef public dict stats
    cdef public int _connecting, limit
    cdef public double send_s
    cdef public bint closing

    cpdef take(self)
    cpdef give_back(self, CConnection conn)
