# What of native.py is C when it is compiled.
from slipstream.net.connection cimport Connection
from slipstream.net.pool cimport Pool


cdef class NativeTransport:
    cdef public object _verify, _ca_file, _limit, _send_s
    cdef public dict _pools, _stats
