# What of table.py is C when it is compiled: finding a pool, and the choice within it.

cdef class Pool:
    cdef public object _next_turn, _order
    cdef public tuple rows, targets

    cpdef choose(self, tried, available, double now)


cdef class RouteTable:
    cdef public dict _by_name, _remembered, _rows, _static
    cdef public object _row_of, _snapshot, _table
    cdef public list targets

    cpdef bint knows(self, str model)
    cpdef bint remembers(self, str model)
    cpdef Pool find(self, str model)
