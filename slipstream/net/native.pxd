# What of native.py is C when it is compiled.

cdef class NativeTransport:
    cdef public object _verify, _ca_file, _limit, _send_s
    cdef public dict _pools, _stats
