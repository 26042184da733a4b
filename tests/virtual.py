"""An event loop whose time is a number: it jumps to the next timer instead of waiting for it.

Thirty minutes of a stream pass in milliseconds, and time-outs fall at exact seconds (reliability.md section 4: paused
time, as in Linkerd's tests). A loop that waits for something that no timer will bring is a test that hangs: it raises.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class _Selector(selectors.SelectSelector):
    loop: VirtualLoop

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and (timeout is None or timeout > 0):
            self.loop.jump(timeout)
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at 0 and moves only when nothing is left to run."""

    def __init__(self) -> None:
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self) -> float:
        return self.now

    def jump(self, timeout: float | None) -> None:
        if timeout is None:
            raise AssertionError("everything waits, and no timer is set: the test would hang")
        self.now = self.timers()[0].when()

    def timers(self) -> list[asyncio.TimerHandle]:
        """Timers that are set and not cancelled, soonest first."""
        scheduled: list[asyncio.TimerHandle] = self._scheduled  # type: ignore[attr-defined]
        return sorted((h for h in scheduled if not h.cancelled()), key=asyncio.TimerHandle.when)


async def only_a_stale_timer() -> None:
    """At most one timer stays behind, that of the deadlines; when its time comes nothing happens, and none follows."""
    loop = loop_now()
    left, tasks = loop.timers(), asyncio.all_tasks()
    assert len(left) <= 1
    if left:
        await asyncio.sleep(left[0].when() - loop.time() + 1)
    assert loop.timers() == []
    assert asyncio.all_tasks() == tasks


def run_virtual(main: Coroutine[Any, Any, T]) -> T:
    """Run to the end in a new virtual loop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)


def loop_now() -> VirtualLoop:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    return loop
