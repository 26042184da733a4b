"""The coroutine of one request, driven from the callbacks of its sockets, and what it waits for there.

Owns when the coroutine goes on; what it does is its own business. To everything else (``asyncio.current_task``,
``asyncio.timeout``, futures, cancellation) a ``RequestTask`` behaves like a task. What it saves: a task's place in the set
of all tasks, a handle and a context per step. With few requests in flight it also goes on within the callback that
brought the news, and not in the loop's next turn: two turns for a request in place of four.

Documentation of the face: drive.pyi. The same in plain words: _pure/drive.py.
"""

from asyncio import CancelledError, InvalidStateError

from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

try:
    from asyncio.tasks import _swap_current_task as swap_task  # CPython 3.12
    running = None
except ImportError:
    from asyncio.tasks import _current_tasks as running  # the running task of each loop
    swap_task = None

cdef extern from "Python.h":
    int PyIter_Send(object coroutine, object value, PyObject** result) except? -1  # PYGEN_RETURN 0, ERROR -1, NEXT 1

cdef enum:
    PENDING, DONE, FAILED, CANCELLED


cdef dict _running = running
cdef object _swap_task = swap_task
cdef Py_ssize_t _live = 0  # requests that have begun and are not over
cdef Py_ssize_t FEW = 4    # as in _pure/drive.py


cdef list _ready = []        # tasks that go on in the next turn
cdef object _ready_of = None  # of this loop


cdef _soon(RequestTask task):
    """``task`` goes on in its loop's next turn: with all others, in one callback of the loop for all of them."""
    global _ready_of
    if _ready:
        if _ready_of is task._loop:
            _ready.append(task)
            return
        if not _ready_of.is_closed():
            task._loop.call_soon(task._go_on)
            return
        _ready.clear()
    _ready_of = task._loop
    _ready.append(task)
    _ready_of.call_soon(_go_on_all)


def _go_on_all():
    global _ready
    cdef list tasks = _ready
    cdef Py_ssize_t i = 0
    _ready = []
    try:
        while i < len(tasks):
            i += 1
            (<RequestTask>tasks[i - 1])._step(None)
    finally:
        while i < len(tasks):  # the process is being interrupted
            i += 1
            _soon(<RequestTask>tasks[i - 1])


def requests_begun():
    return _live


cdef swap_current(loop, task):
    """Make ``task`` (``None``: nobody) the running one of ``loop``; who was."""
    if _swap_task is not None:
        return _swap_task(loop, task)
    before = _running.get(loop)
    if task is not None:
        _running[loop] = task
    elif before is not None:
        del _running[loop]
    return before


cdef class Callbacks:
    """Whom to tell of the end."""

    def __init__(self, loop):
        self._loop = loop

    def get_loop(self):
        return self._loop

    cpdef bint done(self):
        return self._state != PENDING

    def cancelled(self):
        return self._state == CANCELLED

    def add_done_callback(self, callback, *, context=None):
        if self.done():
            self._loop.call_soon(callback, self, context=context)
            return
        if self._callbacks is None:
            self._callbacks = []
        self._callbacks.append((callback, context))

    def remove_done_callback(self, callback):
        if self._callbacks is None:
            return 0
        kept = [one for one in self._callbacks if one[0] != callback]
        removed = len(self._callbacks) - len(kept)
        self._callbacks = kept
        return removed

    cdef bint _tell(self) except -1:
        """Whether there was anybody."""
        callbacks, self._callbacks = self._callbacks, None
        if not callbacks:
            return False
        for callback, context in callbacks:
            self._loop.call_soon(callback, self, context=context)
        return True


cdef class Waiter(Callbacks):
    def result(self):
        if self._state == DONE:
            return self._result
        if self._state == FAILED:
            raise self._result
        if self._state == CANCELLED:
            raise CancelledError
        raise InvalidStateError("the result is not here yet")

    def exception(self):
        if self._state == FAILED:
            return self._result
        self.result()
        return None

    cpdef set_result(self, result):
        self._end(DONE, result)

    cpdef set_exception(self, exception):
        self._end(FAILED, exception)

    def cancel(self, msg=None):
        if self._state != PENDING:
            return False
        self._end(CANCELLED, None)
        return True

    cpdef deliver(self, result):
        cdef RequestTask task = self._task
        if task is None or _live > FEW or task._runs or task._waits_for is not self:
            self._end(DONE, result)
            return
        if self._state != PENDING:
            raise InvalidStateError("the result is here already")
        self._state = DONE
        self._result = result
        self._task = None
        task._step(None)

    cdef _end(self, int state, result):
        if self._state != PENDING:
            raise InvalidStateError("the result is here already")
        self._state = state
        self._result = result
        if self._task is not None:
            _soon(self._task)
            self._task = None
        self._tell()

    def __await__(self):
        if self._state == PENDING:
            self._asyncio_future_blocking = True
            yield self
        return self.result()


cdef class RequestTask(Callbacks):
    def __init__(self, coro, loop):
        self._loop = loop
        self._coro = coro

    def __dealloc__(self):
        global _live
        if self._begun and self._state == PENDING:
            _live -= 1

    cpdef begin(self, bint at_once):
        global _live
        if self._begun:
            raise RuntimeError("a request begins once")
        self._begun = True
        _live += 1
        if at_once and _live <= FEW:
            self._step(None)
        else:
            _soon(self)

    # ------------------------------------------------------------------ what asyncio wants of a task
    def get_coro(self):
        return self._coro

    def get_name(self):
        return "request"

    def exception(self):
        if self._state == CANCELLED:
            raise CancelledError
        if self._state == PENDING:
            raise InvalidStateError("the request is not over")
        return self._exception

    def cancelling(self):
        return self._cancels

    def uncancel(self):
        if self._cancels > 0:
            self._cancels -= 1
        if self._cancels == 0:
            self._must_cancel = False
        return self._cancels

    def cancel(self, msg=None):
        if self._state != PENDING:
            return False
        self._cancels += 1
        if self._waits_for is not None and self._waits_for.cancel():
            return True
        self._must_cancel = True
        return True

    # ------------------------------------------------------------------ going on
    def _go_on(self):
        """After a ``Waiter`` that was not delivered, or after nothing (``asyncio.sleep(0)``)."""
        self._step(None)

    def _wake(self, future):
        """After a future of asyncio's."""
        try:
            future.result()
        except BaseException as exc:
            self._step(exc)
        else:
            self._step(None)

    cdef _step(self, exc):
        """Run the coroutine until it waits again, or to its end."""
        cdef PyObject* out = NULL
        cdef object result
        cdef int state = 1
        if self._state != PENDING:
            return
        if self._must_cancel:
            self._must_cancel = False
            if not isinstance(exc, CancelledError):
                exc = CancelledError()
        self._waits_for = None
        self._runs = True
        before = swap_current(self._loop, self)
        try:
            if exc is None:
                state = PyIter_Send(self._coro, None, &out)
                result = <object>out
                Py_DECREF(result)
            else:
                result = self._coro.throw(exc)
        except StopIteration as stop:  # of ``throw``
            self._end(None)
            return
        except (KeyboardInterrupt, SystemExit) as error:
            self._end(error)
            raise
        except BaseException as error:
            self._end(error)
            return
        finally:
            self._runs = False
            swap_current(self._loop, before)
        if state == 0:
            self._end(None)
        else:
            self._wait(result)

    cdef _wait(self, result):
        """The coroutine waits for ``result``."""
        cdef Waiter waiter
        if type(result) is Waiter:
            waiter = <Waiter>result
            waiter._asyncio_future_blocking = False
            self._waits_for = waiter
            if waiter._state == PENDING:
                waiter._task = self
            else:
                _soon(self)
        elif result is None:
            _soon(self)
        elif getattr(result, "_asyncio_future_blocking", None):
            result._asyncio_future_blocking = False
            self._waits_for = result
            if self._woken is None:
                self._woken = self._wake
            result.add_done_callback(self._woken)
        else:
            error = RuntimeError(f"a request cannot wait for a {type(result).__name__}")
            self._loop.call_soon(self._fail, error)
            return
        if self._must_cancel and self._waits_for is not None and self._waits_for.cancel():
            self._must_cancel = False

    def _fail(self, error):
        self._step(error)

    cdef _end(self, error):
        global _live
        _live -= 1
        self._coro = self._woken = None
        if isinstance(error, CancelledError):
            self._state = CANCELLED
        else:
            self._state = DONE if error is None else FAILED
            self._exception = error
        if not self._tell() and self._exception is not None:
            self._loop.call_exception_handler({"message": "a request failed", "exception": error, "task": self})
