# What of fields.py is C when it is compiled.

cdef class _Ids:
    cdef public str prefix
    cdef public unsigned long long count

cdef _Ids _ids

cpdef str choose_request_id(bytes given)
cpdef check_media_type(bytes value)
