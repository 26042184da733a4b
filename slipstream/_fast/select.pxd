# Contents of select.pyx. The layout is in table.pxd.
from libc.stdint cimport uint32_t, uint64_t

from slipstream._fast.table cimport Table

cdef struct Best:                       # the better of what was looked at: lower rank, then lower load
    Py_ssize_t index
    int rank                            # 0 may be used, 1 rests, 2 to be avoided, 3 nothing seen
    double load

cdef class Pool:
    cdef Table table
    cdef readonly Py_ssize_t slot
    cdef uint32_t* members              # rows
    cdef Py_ssize_t n
    cdef uint32_t* order                # indexes into members: one cycle of turns; NULL: each in turn
    cdef Py_ssize_t n_order
    cdef double* costs                  # NULL: unknown
    cdef uint64_t own[8]                # its words when the table has no room: for this process alone
    cdef uint64_t mark                  # fingerprint of the members << 32
    cdef double penalty, unknown        # us
    cdef uint64_t* word(self, int at) except NULL
    cdef void look(self, Best* best, Py_ssize_t index, uint64_t now, tuple avoid)
    cdef Py_ssize_t chosen(self, int at) except? -2
    cdef int publish(self, int at, Py_ssize_t index) except -1
