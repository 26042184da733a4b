# What of table.py is C when it is compiled: the choice within a pool.

cdef class Pool:
    cdef public object _next_turn, _order
    cdef public tuple rows, targets

    cpdef choose(self, tried, available, double now)
