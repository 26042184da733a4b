# Contents of response.pyx: what is asked of the reader for each reply.
from slipstream._fast.http1response cimport Reader


cdef class ResponseReader:
    cdef Reader r
    cdef bytearray held
    cdef bytes head, body
    cdef readonly int status
    cdef readonly bint keep_alive, started
    cdef readonly str error_reason

    cpdef expect(self)
    cpdef int feed(self, bytes data) except -1
    cdef Py_ssize_t _read_head(self, bytes data) except -1
    cdef _keep_head(self, bytes data, Py_ssize_t at)
    cdef _read_body(self, bytes data, Py_ssize_t* at)
    cdef int _refuse(self, int error)
    cdef int _spoil(self)
    cpdef bytes take_body(self)
    cpdef int end(self) except -1
    cpdef bytes header(self, bytes name)
