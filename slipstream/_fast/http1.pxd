# Contents of http1.pyx: what is asked of the guard for each request.
from slipstream._fast.http1head cimport Guard


cdef class RequestGuard:
    cdef Guard g
    cdef bytearray held
    cdef readonly int error_status
    cdef readonly str error_reason
    cdef readonly bint error_in_body

    cpdef bytes feed(self, bytes data)
    cdef _settle(self)
