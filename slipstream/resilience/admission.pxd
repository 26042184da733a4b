# What of admission.py is C when it is compiled: who comes and goes without waiting.
from slipstream.resilience.bulkhead cimport Bulkhead


cdef class Admission(Bulkhead):
    cdef public object _gradient, _read_rss, memory, turns
    cdef public Py_ssize_t free

    cpdef give_back(self, place)
