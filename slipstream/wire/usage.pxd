# What of usage.py is C when it is compiled: the fields, and the reading of OpenAI's usage.

cdef class Usage:
    cdef readonly object cache_read, cache_write, completion, input_uncached, output, prompt, reasoning
    cdef readonly str source


cpdef read_openai_usage(bytes data, Py_ssize_t start=*, Py_ssize_t end=*)
