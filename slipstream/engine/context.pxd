# What of context.py is C when it is compiled: the fields.
from slipstream.wire.request cimport Call as CCall
from slipstream.wire.usage cimport Usage as CUsage


cdef class RequestContext:
    cdef public str key_name, label, model_label, request_id
    cdef public CCall call
    cdef public CUsage usage
    cdef public object asked_s, endpoint, error, pulse, race, tap, target
    cdef public list dropped, trail
    cdef public bint committed, probe, waits
    cdef public int attempts, status
    cdef public Py_ssize_t completion_events
    cdef public double first_content_at, header_s, t_attempt, t_end, t_read, t_start, upstream_s
