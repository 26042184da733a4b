# Contents of jsonreply.pyx: what sse.pyx asks it while it walks over events.
from libc.stdint cimport uint8_t

cdef class ReplyScan:
    cdef readonly Py_ssize_t n_choices, n_finish, pos
    cdef readonly Py_ssize_t error_start, error_end, usage_start, usage_end, finish_start, finish_end
    cdef readonly Py_ssize_t model_start, model_end, id_start, id_end
    cpdef int scan(self, bytes data, Py_ssize_t start=*, Py_ssize_t end=*) except -1
    cdef int look(self, const uint8_t* s, Py_ssize_t n) noexcept nogil
