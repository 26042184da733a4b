# What of native_connection.py is C when it is compiled: attributes, and the calls of one request.
from slipstream._fast.drive cimport RequestTask as CRequestTask
from slipstream._fast.http1 cimport RequestGuard
from slipstream.server.native cimport NativeListener as CNativeListener
from slipstream.server.native_exchange cimport NativeExchange as CNativeExchange


cdef class NativeConnection:
    cdef public CNativeExchange _exchange
    cdef public CRequestTask _task
    cdef public bytes _buffer, _refused
    cdef public str _key_name
    cdef public object _drain, _error, _fault, _incoming, _place, transport
    cdef public CNativeListener listener
    cdef public RequestGuard _guard
    cdef public bint _in_head, _paused, _starting, blocked, http10, keep_alive, lingering
    cdef public int _route
    cdef public Py_ssize_t _turn_bytes, _unsent
    cdef public double _moved_at, deadline

    cpdef data_received(self, bytes data)
    cpdef _advance(self)
    cpdef bint _begin(self)
    cpdef _serve(self, bytes body)
    cpdef _answered(self)
