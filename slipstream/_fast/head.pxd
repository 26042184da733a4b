# Contents of head.pyx: what is asked of a head for each request.

cdef enum:
    N_FIELDS = 8
    MAX_ROUTES = 16
    LENGTH_MAX_DIGITS = 15

cdef struct Span:
    Py_ssize_t start, end

cdef struct Head:
    Span fields[N_FIELDS]
    Py_ssize_t end, length
    int route
    bint chunked, keep, close, expect, old

cdef struct Route:
    const char* path
    Py_ssize_t n


cdef class RequestHead:
    cdef Head h
    cdef Route routes[MAX_ROUTES]
    cdef int n_routes
    cdef tuple paths
    cdef bytes data
    cdef Py_ssize_t at
    cdef readonly int route
    cdef readonly Py_ssize_t content_length
    cdef readonly bint chunked, expect_continue, http10, keep_alive

    cpdef Py_ssize_t read(self, bytes data, Py_ssize_t at=*) except -2
    cdef _publish(self)
    cdef object copied(self, int field)
    cpdef tuple values(self)
