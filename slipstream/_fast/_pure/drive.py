"""``RequestTask`` and ``Waiter`` in plain Python: the reference for drive.pyx (documentation: drive.pyi).

When is it worth while to go on at once? A turn of the loop that does the same step of many requests one after the other
finds the code in the CPU's caches, and costs less than one that does many steps of each. A turn with one request in it
costs a call of the kernel and gives nothing. So: at once while at most ``FEW`` requests are in flight.
"""

from __future__ import annotations

import asyncio
from asyncio import CancelledError, InvalidStateError
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from typing import Any

FEW = 4

_live = 0

if hasattr(asyncio.tasks, "_swap_current_task"):  # CPython 3.12
    _swap_current = asyncio.tasks._swap_current_task
else:

    def _swap_current(loop: Any, task: Any) -> Any:
        """Make ``task`` (``None``: nobody) the running one of ``loop``; who was."""
        running: Any = asyncio.tasks._current_tasks  # type: ignore[attr-defined]
        before = running.pop(loop, None)
        if task is not None:
            running[loop] = task
        return before


def requests_begun() -> int:
    return _live


class _Callbacks:
    """Whom to tell of the end."""

    __slots__ = ("_asyncio_future_blocking", "_callbacks", "_cancelled", "_done", "_exception", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._asyncio_future_blocking = False
        self._callbacks: list[tuple[Callable[[Any], object], Context | None]] = []
        self._done = self._cancelled = False
        self._exception: BaseException | None = None

    def done(self) -> bool:
        return self._done

    def cancelled(self) -> bool:
        return self._cancelled

    def get_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def add_done_callback(self, callback: Callable[[Any], object], *, context: Context | None = None) -> None:
        if self.done():
            self._loop.call_soon(callback, self, context=context)
        else:
            self._callbacks.append((callback, context))

    def remove_done_callback(self, callback: Callable[[Any], object]) -> int:
        kept = [one for one in self._callbacks if one[0] != callback]
        removed = len(self._callbacks) - len(kept)
        self._callbacks = kept
        return removed

    def _tell(self) -> bool:
        callbacks, self._callbacks = self._callbacks, []
        for callback, context in callbacks:
            self._loop.call_soon(callback, self, context=context)
        return bool(callbacks)


class Waiter(_Callbacks):
    __slots__ = ("_result", "_task")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._result: Any = None
        self._task: RequestTask | None = None

    def result(self) -> Any:
        if not self._done:
            raise InvalidStateError("the result is not here yet")
        if self._cancelled:
            raise CancelledError
        if self._exception is not None:
            raise self._exception
        return self._result

    def exception(self) -> BaseException | None:
        if self._exception is None:
            self.result()
        return self._exception

    def set_result(self, result: Any) -> None:
        self._set()
        self._result = result
        self._told()

    def set_exception(self, exception: BaseException) -> None:
        self._set()
        self._exception = exception
        self._told()

    def cancel(self, msg: object = None) -> bool:
        if self._done:
            return False
        self._set()
        self._cancelled = True
        self._told()
        return True

    def deliver(self, result: Any) -> None:
        task = self._task
        if task is None or _live > FEW or task._runs or task._waits_for is not self:
            self.set_result(result)
            return
        self._set()
        self._result = result
        self._task = None
        task._step(None)

    def __await__(self) -> Generator[Any, None, Any]:
        if not self._done:
            self._asyncio_future_blocking = True
            yield self
        return self.result()

    def _set(self) -> None:
        if self._done:
            raise InvalidStateError("the result is here already")
        self._done = True

    def _told(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            self._loop.call_soon(task._go_on)
        self._tell()


class RequestTask(_Callbacks):
    __slots__ = ("_begun", "_cancels", "_coro", "_must_cancel", "_runs", "_waits_for")

    def __init__(self, coro: Coroutine[Any, Any, None], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._coro: Coroutine[Any, Any, None] | None = coro
        self._begun = self._must_cancel = self._runs = False
        self._cancels = 0
        self._waits_for: Any = None

    def __del__(self) -> None:
        global _live
        if self._begun and not self._done:
            _live -= 1

    def begin(self, at_once: bool) -> None:
        global _live
        if self._begun:
            raise RuntimeError("a request begins once")
        self._begun = True
        _live += 1
        if at_once and _live <= FEW:
            self._step(None)
        else:
            self._loop.call_soon(self._go_on)

    # ------------------------------------------------------------------ what asyncio wants of a task
    def get_coro(self) -> Coroutine[Any, Any, None] | None:
        return self._coro

    def get_name(self) -> str:
        return "request"

    def exception(self) -> BaseException | None:
        if self._cancelled:
            raise CancelledError
        if not self._done:
            raise InvalidStateError("the request is not over")
        return self._exception

    def cancelling(self) -> int:
        return self._cancels

    def uncancel(self) -> int:
        if self._cancels > 0:
            self._cancels -= 1
        if self._cancels == 0:
            self._must_cancel = False
        return self._cancels

    def cancel(self, msg: object = None) -> bool:
        if self._done:
            return False
        self._cancels += 1
        if self._waits_for is None or not self._waits_for.cancel():
            self._must_cancel = True
        return True

    # ------------------------------------------------------------------ going on
    def _go_on(self) -> None:
        """After a ``Waiter`` that was not delivered, or after nothing (``asyncio.sleep(0)``)."""
        self._step(None)

    def _wake(self, future: asyncio.Future[Any]) -> None:
        """After a future of asyncio's."""
        try:
            future.result()
        except BaseException as exc:
            self._step(exc)
        else:
            self._step(None)

    def _step(self, exc: BaseException | None) -> None:
        """Run the coroutine until it waits again, or to its end."""
        if self._done:
            return
        coro = self._coro
        assert coro is not None
        if self._must_cancel:
            self._must_cancel = False
            if not isinstance(exc, CancelledError):
                exc = CancelledError()
        self._waits_for = None
        self._runs = True
        before = _swap_current(self._loop, self)
        try:
            result = coro.send(None) if exc is None else coro.throw(exc)
        except StopIteration:
            self._end(None)
        except (KeyboardInterrupt, SystemExit) as error:
            self._end(error)
            raise
        except BaseException as error:
            self._end(error)
        else:
            self._wait(result)
        finally:
            self._runs = False
            _swap_current(self._loop, before)

    def _wait(self, result: Any) -> None:
        """The coroutine waits for ``result``."""
        if isinstance(result, Waiter):
            result._asyncio_future_blocking = False
            self._waits_for = result
            if result.done():
                self._loop.call_soon(self._go_on)
            else:
                result._task = self
        elif result is None:
            self._loop.call_soon(self._go_on)
        elif getattr(result, "_asyncio_future_blocking", None):
            result._asyncio_future_blocking = False
            self._waits_for = result
            result.add_done_callback(self._wake)
        else:
            error = RuntimeError(f"a request cannot wait for a {type(result).__name__}")
            self._loop.call_soon(self._step, error)
            return
        if self._must_cancel and self._waits_for is not None and self._waits_for.cancel():
            self._must_cancel = False

    def _end(self, error: BaseException | None) -> None:
        global _live
        _live -= 1
        self._done = True
        self._coro = None
        if isinstance(error, CancelledError):
            self._cancelled = True
        else:
            self._exception = error
        if not self._tell() and self._exception is not None:
            context = {"message": "a request failed", "exception": self._exception, "task": self}
            self._loop.call_exception_handler(context)
