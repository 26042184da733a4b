"""What this worker itself runs short of, and how that is seen: time of its event loop, memory.

Ten times a second the length of one turn of the loop is measured, in CPU time of its thread: what others take from the
machine (S-103), or one handler that sleeps, is no work of ours. When turns stay too long every single one is measured,
until nobody has been refused for a second. What follows from the figures is ``resilience.admission``'s business; here
are the timers, and the thread beside the loop, which sees a block while it lasts and logs where the loop stands:
afterwards nobody could tell (S-91).

- Turns (Q16): from ``admission.max_lag_ms`` on, for 200 ms, only as many requests as make turns so long (``turns``).
- Memory (Q17): near ``admission.max_rss_mb`` nobody of low priority, at it all but one at a time.
- Ready (S-91): not above 5 s of lag, which is how late timers are.

The rule that must not be broken: what the thread logs are file names, lines and functions, never values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
import traceback
from types import FrameType

from ..config.snapshot import AdmissionSpec
from ..engine.runtime import Runtime
from ..resilience.admission import Admission
from ..resilience.shed import Lag
from ..types import Clock

log = logging.getLogger("slipstream.server")

BLOCKED_S = 0.5
"""The loop's timer is so late: its stack is logged."""
EVERY_S = 30.0
"""At most one line of a kind in this time."""
READY_LAG_S = 5.0
LOOK_S = 0.02
"""How often a turn is measured after one that was too long."""
IDLE_PART = 0.2
PAUSE_S = 0.001
"""Under overload a turn that took less than this part of the target is followed by a pause."""
FRAMES = 12
"""The innermost ones of a stack."""


class Load:
    """The load of one process; make it in its running loop. ``clock`` is what all times are of, seconds that go on
    while the loop is blocked; ``cpu`` what the loop's thread has worked, in seconds."""

    __slots__ = (
        "_cpu", "_looking", "_loop", "_running", "_timer", "_turn_from", "_watch", "admission", "clock",
        "lag",
    )  # fmt: skip

    def __init__(self, runtime: Runtime, clock: Clock = time.monotonic, cpu: Clock = time.thread_time) -> None:
        self.clock = clock
        self.lag = Lag()
        self._cpu = cpu
        self._loop = asyncio.get_running_loop()
        self.admission = Admission(lambda: resident_bytes(), loop=self._loop)
        """Who is let in."""
        self._looking = self._running = False
        self._turn_from = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._watch: Watch | None = None
        self.configure(runtime.active.snapshot.resilience.admission)

    def configure(self, spec: AdmissionSpec) -> None:
        """New limits, also while it runs."""
        self.admission.configure(
            spec.max_in_flight, spec.queue, spec.queue_wait_s, spec.adaptive, spec.max_rss_bytes, spec.max_lag_s
        )

    @property
    def pressed(self) -> bool:
        """Whether requests are asked about: not all get in."""
        return self.admission.free == 0

    def start(self) -> None:
        """Measure from now on; call it in the thread of the running loop."""
        self._watch = Watch(self.lag, self.clock, threading.get_ident())
        self._watch.start()
        self._running = True
        self._tick()

    def stop(self) -> None:
        self._running = False
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.stop()

    def _tick(self) -> None:
        now = self.clock()
        following = self.measure(now)
        self._timer = self._loop.call_later(following - now, self._tick)

    def measure(self, now: float) -> float:
        """The timer fired at ``now``. When it should fire next."""
        following = self.lag.tick(now)
        self.admission.measured(now)
        if not self._looking:
            self._look()
        return following

    def lag_s(self) -> float:
        """The worst of the last second."""
        return self.lag.worst_s(self.clock())

    # ---- turns: what is called soon runs once in each

    def _look(self) -> None:
        """Measure one turn, the next."""
        self._looking = True
        self._loop.call_soon(self._turn_begins)

    def _turn_begins(self) -> None:
        self._turn_from = self._cpu()
        self._loop.call_soon(self._turn_ends)

    def _turn_ends(self) -> None:
        turns, cpu_s, now = self.admission.turns, self._cpu(), self.clock()
        if not self._running:
            return
        if turns.seen(cpu_s - self._turn_from, self.admission.in_flight, now):
            self._turn_from = cpu_s
            self.admission.refresh()
            self._loop.call_soon(self._turned)
        elif turns.suspects:
            self._loop.call_later(LOOK_S, self._turn_begins)
        else:
            self._looking = False

    def _turned(self) -> None:
        """Each turn, while there is too much to do."""
        turns, cpu_s = self.admission.turns, self._cpu()
        began, self._turn_from = self._turn_from, cpu_s
        if not turns.turned(cpu_s - began, self.admission.in_flight, self.clock()) or not self._running:
            self._looking = False
            self.admission.refresh()
        elif cpu_s - began > IDLE_PART * turns.target_s:
            self._loop.call_soon(self._turned)
        else:  # what is called soon keeps the loop from sleeping
            self._loop.call_later(PAUSE_S, self._turned)


class Watch(threading.Thread):
    """Looks from outside whether the loop of ``thread`` still ticks. It sleeps until a tick could be ``BLOCKED_S``
    late, so about twice a second."""

    def __init__(self, lag: Lag, clock: Clock, thread: int) -> None:
        super().__init__(name="loop-watch", daemon=True)
        self._lag = lag
        self._clock = clock
        self._thread = thread
        self._ended = threading.Event()
        self._silent_until = 0.0

    def run(self) -> None:
        wait_s = BLOCKED_S
        while not self._ended.wait(wait_s):
            wait_s = self.look(self._clock())

    def look(self, now: float) -> float:
        """Log the stack if the loop is blocked. In how many seconds to look again."""
        late_s = self._lag.late_by_s(now)
        if late_s < BLOCKED_S:
            return max(0.01, BLOCKED_S - late_s)
        if now >= self._silent_until:
            self._silent_until = now + EVERY_S
            stack = stack_of(sys._current_frames().get(self._thread))
            fields = {"lag_s": round(late_s, 3), "stack": stack}
            log.warning("the event loop is blocked", extra={"fields": fields})
        return BLOCKED_S

    def stop(self) -> None:
        self._ended.set()


def stack_of(frame: FrameType | None) -> list[str]:
    """``file:line function``, the innermost first."""
    if frame is None:
        return []
    walked = traceback.StackSummary.extract(traceback.walk_stack(frame), limit=FRAMES, lookup_lines=False)
    return [f"{'/'.join(entry.filename.split(os.sep)[-2:])}:{entry.lineno} {entry.name}" for entry in walked]


def resident_bytes() -> int:
    """Resident set size of this process, 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as handle:
            return int(handle.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
