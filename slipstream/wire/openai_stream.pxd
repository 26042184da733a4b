# What of openai_stream.py is C when it is compiled: the way of one piece of a stream.
from slipstream._fast.sse cimport SseFramer as CSseFramer


cdef class StreamTap:
    cdef public CSseFramer _framer
    cdef public object _provider, _scan, failure
    cdef public bytes usage
    cdef public bint _keep_usage, done, finished
    cdef public Py_ssize_t content_events

    cpdef bytes feed(self, bytes chunk)
