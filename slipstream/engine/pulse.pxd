# What of pulse.py is C when it is compiled.

cdef class Pulse:
    cdef public object _exchange, _ping, _pulses, _starting, head
    cdef public bint moved
