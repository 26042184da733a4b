# Contents of drive.pyx. What it owns stands there.
cdef class Callbacks:
    cdef public bint _asyncio_future_blocking
    cdef object _loop
    cdef list _callbacks
    cdef int _state

    cpdef bint done(self)
    cdef bint _tell(self) except -1


cdef class Waiter(Callbacks):
    cdef object _result
    cdef RequestTask _task

    cpdef set_result(self, result)
    cpdef set_exception(self, exception)
    cpdef deliver(self, result)
    cdef _end(self, int state, result)


cdef class RequestTask(Callbacks):
    cdef object _coro, _waits_for, _exception, _woken
    cdef int _cancels
    cdef bint _begun, _must_cancel, _runs

    cpdef begin(self, bint at_once)
    cdef _step(self, exc)
    cdef _wait(self, result)
    cdef _end(self, error)
