# What of connection.py is C when it is compiled: attributes, and the calls between its classes and the compiled parsers.
from slipstream._fast.drive cimport Waiter as CWaiter
from slipstream._fast.response cimport ResponseReader as CResponseReader

cdef int E_BODY, E_DONE, E_ERROR, E_EXTRA, E_HEAD


cdef class NativeReply:
    cdef public CWaiter _waiter
    cdef public list _parts
    cdef public object _conn, _decoder, _error, _loop, fields
    cdef public Py_ssize_t _size
    cdef public int status
    cdef public bint _done

    cpdef bytes take(self)
    cpdef begin(self, CResponseReader reader)
    cpdef bint feed(self, bytes data)
    cpdef wake(self)
    cpdef finish(self, bytes last=*)
    cpdef fail(self, error)
    cpdef close(self)


cdef class Connection:
    cdef public CWaiter _head, pouring
    cdef public NativeReply reply
    cdef public CResponseReader reader
    cdef public object _rest, pool, sink, transport
    cdef public bint _blocked, _held, _large, _paused, reused
    cdef public double born, idle_since

    cpdef data_received(self, bytes data)
    cpdef CWaiter send(self, bytes head, bytes body)
    cpdef abort(self)
    cpdef resume(self)
    cpdef _lost(self, error)
