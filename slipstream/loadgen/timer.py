"""One moment in time, kept to some ten microseconds. Event loops keep milliseconds: too coarse to send 5,000 a second.

On Linux a timerfd in the loop's own poll; elsewhere the loop's timers. Moments are those of ``time.monotonic_ns``.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable

from .schedule import NS_PER_S

_CLOCK_MONOTONIC = 1
_TFD_FLAGS = os.O_NONBLOCK | os.O_CLOEXEC if sys.platform == "linux" else 0
_TFD_TIMER_ABSTIME = 1


class LoopTimer:
    """The loop's own timer: to the millisecond, sometimes early. The caller looks at the clock and arms it again."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, at_ns: int) -> None:
        """Call back at this moment instead of the one set before; at once if it has passed."""
        self.close()
        self._handle = self._loop.call_later(max(0, at_ns - time.monotonic_ns()) / NS_PER_S, self._callback)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None


class _Spec(ctypes.Structure):
    """``struct itimerspec``: the interval (unused), then the first expiration."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class FdTimer:
    """A timerfd (timerfd_create(2)); ``os.timerfd_create`` came only with Python 3.13. Raises ``OSError``."""

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._spec = _Spec()
        self._spec_at = ctypes.byref(self._spec)
        self._armed = False
        self._fd = self._libc.timerfd_create(_CLOCK_MONOTONIC, _TFD_FLAGS)
        if self._fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._fd, self._fired)

    def arm(self, at_ns: int) -> None:
        """As ``LoopTimer.arm``, but to the microsecond."""
        self._armed = True
        self._set(*divmod(max(at_ns, 1), NS_PER_S))

    def _fired(self) -> None:
        self._armed = False
        self._callback()
        if not self._armed and self._fd >= 0:
            self._set(0, 0)  # setting it anew is what makes it unreadable again

    def _set(self, seconds: int, nanoseconds: int) -> None:
        self._spec.at_s, self._spec.at_ns = seconds, nanoseconds
        self._libc.timerfd_settime(self._fd, _TFD_TIMER_ABSTIME, self._spec_at, None)

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def timer(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> FdTimer | LoopTimer:
    """The best there is here."""
    if sys.platform == "linux":
        try:
            return FdTimer(loop, callback)
        except (OSError, AttributeError):  # a libc without it, a sandbox that forbids it
            pass
    return LoopTimer(loop, callback)
