# What of auth.py is C when it is compiled.

cdef class Authenticator:
    cdef public object _digest, _on_failure
    cdef public dict _good

    cpdef str check_bytes(self, bytes authorization, bytes api_key)
