"""Whether this worker itself can still serve: how late its event loop runs, how much memory it holds.

A timer measures the lag every 100 ms and decides for the next 100 ms whether requests are turned away (``pressed``), so
that a request pays one attribute for it. A thread beside the loop sees a block while it lasts and logs where the loop
stands: afterwards nobody could tell (S-91).

- Lag (Q16): a share of the requests, as ``shed.Shedder`` reckons it, and only from the second measure in a row that is
  above ``admission.max_lag_ms``: one long stop is over when it is seen, and a second is no overload.
- Memory (Q17): from 95 % of ``admission.max_rss_mb`` on all that are new, but for one at a time.
- Ready (S-91): not above 5 s of lag.

The rule that must not be broken: what the thread logs are file names, lines and functions, never values.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType

from ..config.snapshot import AdmissionSpec
from ..engine.runtime import Runtime
from ..errors import GatewayError
from ..obs.families import SHED
from ..resilience.shed import FULL, LAG, MEMORY, Lag, MemoryCeiling, Shedder
from ..types import Clock

log = logging.getLogger("slipstream.server")

BLOCKED_S = 0.5
"""The loop's timer is so late: its stack is logged."""
EVERY_S = 30.0
"""At most one line of a kind in this time."""
READY_LAG_S = 5.0
TWICE = 2
FRAMES = 12
"""The innermost ones of a stack."""
RETRY_AFTER_S = {MEMORY: 5, LAG: 1}
_WHY = {MEMORY: "is short of memory", LAG: "is overloaded"}


class Load:
    """The load of one process. ``clock`` is what all times are of, seconds that go on while the loop is blocked."""

    __slots__ = (
        "_late", "_logged_at", "_max_lag_s", "_runtime", "_shedder", "_timer", "_watch", "clock", "lag", "pressed",
    )  # fmt: skip

    def __init__(
        self, runtime: Runtime, clock: Clock = time.monotonic, random: Callable[[], float] = random.random
    ) -> None:
        self.clock = clock
        self.lag = Lag()
        self.pressed = False
        """Whether requests must be asked about with ``check``."""
        self._runtime = runtime
        self._shedder = Shedder(self.lag, MemoryCeiling(0, resident_bytes), lambda: runtime.in_flight, 0, random)
        self._max_lag_s = 0.0
        self._late = 0
        """Measures in a row that were above the limit."""
        self._logged_at = -EVERY_S
        self._timer: asyncio.TimerHandle | None = None
        self._watch: Watch | None = None
        self.configure(runtime.active.snapshot.resilience.admission)

    def configure(self, admission: AdmissionSpec) -> None:
        """New limits, also while it runs."""
        self._max_lag_s = admission.max_lag_s
        self._shedder.memory = MemoryCeiling(admission.max_rss_bytes, resident_bytes)

    def start(self) -> None:
        """Measure from now on; call it in the thread of the running loop."""
        self._watch = Watch(self.lag, self.clock, threading.get_ident())
        self._watch.start()
        self._tick()

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watch is not None:
            self._watch.stop()

    def _tick(self) -> None:
        now = self.clock()
        following = self.measure(now)
        self._timer = asyncio.get_running_loop().call_later(following - now, self._tick)

    def measure(self, now: float) -> float:
        """The timer fired at ``now``. When it should fire next."""
        following = self._shedder.tick(now)
        self._late = self._late + 1 if self.lag.last_s > self._max_lag_s else 0
        self.pressed = self._late >= TWICE or self._shedder.memory.level(now) == FULL
        return following

    def lag_s(self) -> float:
        """The worst of the last second."""
        return self.lag.worst_s(self.clock())

    def check(self) -> None:
        """Ask when ``pressed``, for each request of the data plane before its body is read. Raises ``GatewayError``
        (503) for one that is turned away."""
        reason = self._shedder.why(self.clock())
        if reason is None or (reason == LAG and self._late < TWICE):
            return
        self._runtime.metrics.count(SHED, (reason,))
        self._log(reason)
        raise GatewayError(
            f"The gateway {_WHY[reason]}. Try again in a moment.",
            status=503,
            type="overloaded_error",
            code="overloaded",
            headers={"Retry-After": str(RETRY_AFTER_S[reason])},
        )

    def _log(self, reason: str) -> None:
        now = self.clock()
        if now - self._logged_at >= EVERY_S:
            self._logged_at = now
            fields = {"reason": reason, "lag_s": round(self.lag.last_s, 3), "rss_bytes": self._shedder.memory.rss}
            log.warning("requests are turned away", extra={"fields": fields})


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
