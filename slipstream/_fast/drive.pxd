# Contents of drive.pyx. What it owns stands there.
cdef class Waiter:
    cdef public bint _asyncio_future_blocking
    cdef readonly object _loop
    cdef object _result
    cdef list _callbacks
    cdef RequestTask _task
    cdef int _state

    cpdef bint done(self)
    cpdef set_result(self, result)
    cpdef set_exception(self, exception)
    cpdef deliver(self, result)
    cdef _end(self, int state, result)


cdef class RequestTask:
    cdef readonly object _loop
    cdef public bint _asyncio_future_blocking
    cdef object _coro, _waits_for, _exception, _woken
    cdef list _callbacks
    cdef int _cancels
    cdef bint _begun, _must_cancel, _runs, _done, _cancelled

    cpdef begin(self, bint at_once)
    cdef _step(self, exc)
    cdef _wait(self, result)
    cdef _end(self, error)
