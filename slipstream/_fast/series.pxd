# Contents of series.pyx. The layout is in table.pxd, the claiming of slots in slots.pxd.
from libc.stdint cimport int64_t, uint64_t

from slipstream._fast.table cimport Table

cdef class Series:
    cdef Table table
    cpdef add(self, Py_ssize_t slot, Py_ssize_t index, int64_t delta)
    cdef uint64_t* slot(self, Py_ssize_t slot, Py_ssize_t index) except NULL
    cdef items_of(self, list found, uint64_t* base, Py_ssize_t n, Py_ssize_t stride, int key_at, uint64_t values)
