# What of openai_stream.py is C when it is compiled: the way of one piece of a stream, and of a whole reply.
cimport cython

from slipstream._fast.jsonreply cimport ReplyScan as CReplyScan
from slipstream._fast.sse cimport SseFramer as CSseFramer


cdef class StreamTap:
    cdef public CSseFramer _framer
    cdef public CReplyScan _scan
    cdef public object _provider, failure
    cdef public bytes usage
    cdef public bint _keep_usage, done, finished
    cdef public Py_ssize_t content_events

    cpdef bytes feed(self, bytes chunk)


@cython.locals(scan=CReplyScan, found=int)
cpdef CReplyScan check_reply(endpoint, bytes body, str provider)
cpdef reply_usage(CReplyScan scan, bytes body)
