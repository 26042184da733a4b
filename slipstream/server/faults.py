"""How a failure of ours is named in a log: where it happened, never what was in it."""

from __future__ import annotations

import asyncio


def is_ours(exc: BaseException) -> bool:
    """Whether it is a failure of ours: also a ``CancelledError`` that comes out of a bug, when nobody has cancelled the
    running task (S-106). Without this the client would get no answer.
    """
    if isinstance(exc, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return isinstance(exc, Exception)


def where(exc: BaseException) -> str:
    """Class and place of an exception in one line. Not its text: that may hold bytes of a request."""
    trace = exc.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(exc).__name__
    return f"{type(exc).__name__} at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
