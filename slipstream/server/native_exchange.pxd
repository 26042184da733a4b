# What of native_exchange.py is C when it is compiled: attributes, and the calls of one answer.

cdef class NativeExchange:
    cdef public bytes data, head
    cdef public str request_id
    cdef public object _conn, _encoding, _origin, _transport, parts
    cdef public bint _chunked, _plain, _timed, started

    cpdef write(self, bytes data)
    cpdef reply(self, int status, bytes headers, bytes body)
    cpdef bytes _head(self, int status, bytes headers)
