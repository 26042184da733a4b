# What of runtime.py is C when it is compiled: attributes, and the calls of one request.
from slipstream._fast.table cimport Table as CTable
from slipstream.obs.metrics cimport Metrics
from slipstream.resilience.bulkhead cimport Bulkhead
from slipstream.resilience.watchdog cimport Deadlines
from slipstream.routing.table cimport RouteTable as CRouteTable


cdef class Outbound:
    cdef public Bulkhead _bulkhead
    cdef public object _starting, key, kind, queue_wait_s, rename, signer, spec, transport
    cdef public dict _headers, _prepared, post
    cdef public tuple first_byte_s
    cdef public bytes stream_headers, whole_headers
    cdef public str name
    cdef public bint ask_usage
    cdef public double connect_s, idle_s, total_s

    cpdef Bulkhead bulkhead(self)


cdef class Active:
    cdef public object breakers, cooldowns, hedging, heir, on_idle, outbound, policy, redact, snapshot
    cdef public CRouteTable routes
    cdef public bint hedges, outlasts
    cdef public Py_ssize_t in_flight


cdef class Runtime:
    cdef public CTable table
    cdef public Metrics metrics
    cdef public Active active
    cdef public Deadlines _deadlines
    cdef public object available, clock, outlasting, retry_budget, shared, started_at, wall, _make_transport, _pulses
    cdef public Py_ssize_t _counted, requests
    cdef public int worker
    cdef public bint draining

    cpdef Active pin(self)
    cpdef release(self, Active active)
    cpdef Deadlines deadlines(self)
    cpdef enter(self, Py_ssize_t row)
    cpdef leave(self, Py_ssize_t row)
