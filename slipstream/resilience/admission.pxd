# What of admission.py is C when it is compiled.
from slipstream.resilience.bulkhead cimport Bulkhead


cdef class Admission(Bulkhead):
    cdef public object _gradient, _read_rss, memory, turns
    cdef public long free

    cpdef give_back(self, place)
