# What of request.py is C when it is compiled: the fields of a request.

cdef class Call:
    cdef public object canonical, endpoint, scan
    cdef public bytes body
    cdef public str model
    cdef public bint stream, wants_usage
