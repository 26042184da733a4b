"""A limit on what is in flight that finds itself: Netflix's Gradient2 (reliability.md 1.8).

At the end of each window of samples, with ``short`` the mean time of the window and ``long`` a slow average of those:

    long     = mean of the first 10, then long + (short - long) * 2 / (windows + 1)
    gradient = clamp(1.5 * long / short, 0.5, 1)  below 1: requests have begun to queue somewhere
    new      = limit * gradient + 4               4 may queue, so the limit always tries a little more
    limit    = clamp(limit + (new - limit) * 0.2, 20, 200)
    long     = long * 0.95                        if long / short > 2: the bad time is over, forget it sooner

While less than half of the limit is in flight the limit stays: nothing was learned about it. Source:
Netflix/concurrency-limits@78a74b9, limit/Gradient2Limit.java and limit/measurement/ExpAvgMeasurement.java; the windows
are those of limit/WindowedLimit.java: a second, the mean of its samples, the most that was in flight.

Ours: windows of 250 ms and an average over 2,400 of them. The average remembers ten minutes as Netflix's does (600
windows), the limit moves four times as fast: in a simulation it is back in 10 s instead of 40. And a request that was
dropped (refused by whoever we protect, or out of time) has no time worth knowing, since a refusal is fast: a window
with one counts as the steepest gradient instead, also when little was in flight. With the smoothing that is x 0.9, the
``backoffRatio`` of AIMDLimit.java.

Also ours, and off unless asked for: ``queue_root``, Envoy's headroom, which grows with the root of the limit (20 more
at a limit of 10,000 would take all day); and ``descend``: when requests queue while less than half of the limit is in
flight, the limit is far too high, and comes down to twice of what is in flight.

What it is for: our own time (Q16), or a target whose time is a queue, as with a model server of one's own. A hosted
model's time is the length of its answers: do not feed that. Known: under an overload that does not end ``long`` drifts
towards the overloaded time within minutes, and the limit grows with it; ``maximum`` is what holds then.

The rule that must not be broken: the limit stays within its bounds, whatever the samples are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GradientSettings:
    """Values are Netflix's but for the two of the windows (there 600 of 1 s)."""

    initial: int = 20
    minimum: int = 20
    maximum: int = 200
    smoothing: float = 0.2
    queue: float = 4.0
    tolerance: float = 1.5
    long_windows: int = 2400
    warmup_windows: int = 10
    window_s: float = 0.25
    """A window lasts at least this long, and until it has ``window_samples``. 0: each sample is a window."""
    window_samples: int = 10
    queue_root: float = 0.0
    """Times the root of the limit may queue, if that is more than ``queue``."""
    descend: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.initial <= self.maximum:
            raise ValueError("an adaptive limit needs 1 <= minimum <= initial <= maximum")


DRIFT_RATIO = 2.0
DRIFT_CUT = 0.95
STEEPEST = 0.5
MAX_S = 86_400.0


def gradient(long_s: float, short_s: float, tolerance: float) -> float:
    """1: nobody queues; 0.5: twice the usual time and more."""
    return max(STEEPEST, min(1.0, tolerance * long_s / short_s))


def next_limit(limit: float, slope: float, settings: GradientSettings) -> float:
    """The limit after one window whose gradient was ``slope``."""
    new = limit * slope + max(settings.queue, settings.queue_root * math.sqrt(limit))
    new = limit * (1 - settings.smoothing) + new * settings.smoothing
    return max(float(settings.minimum), min(float(settings.maximum), new))


class LongMean:
    """A mean of the first few values, then an exponential average over about ``windows`` of them."""

    __slots__ = ("_count", "_factor", "_warmup", "value")

    def __init__(self, windows: int, warmup: int) -> None:
        self._factor = 2.0 / (windows + 1)
        self._warmup = warmup
        self._count = 0
        self.value = 0.0

    def add(self, sample: float) -> float:
        if self._count < self._warmup:
            self._count += 1
            self.value += (sample - self.value) / self._count
        else:
            self.value += (sample - self.value) * self._factor
        return self.value


class Gradient:
    """The limit of one bulkhead. Feed it what was served, and give ``limit`` to the bulkhead when it changed."""

    __slots__ = (
        "_count", "_dropped", "_estimate", "_in_flight", "_long", "_settings", "_sum_s", "_timed", "_until", "limit",
    )  # fmt: skip

    def __init__(self, settings: GradientSettings | None = None) -> None:
        self._settings = settings = settings or GradientSettings()
        self._long = LongMean(settings.long_windows, settings.warmup_windows)
        self._estimate = float(settings.initial)
        self.limit = settings.initial
        self._until = -math.inf
        self._count = 0
        self._timed = 0
        self._in_flight = 0
        self._sum_s = 0.0
        self._dropped = False

    @property
    def long_s(self) -> float:
        """The usual time; 0: not known yet."""
        return self._long.value

    def sample(self, rtt_s: float, in_flight: int, dropped: bool, now_s: float) -> bool:
        """One request is done: how long it took, and how many were in flight, itself included, when it began. Whether
        the limit changed. A time that can be none (not above 0, more than a day) does not count.
        """
        if self._until == -math.inf:
            self._until = now_s + self._settings.window_s
        self._count += 1
        self._in_flight = max(self._in_flight, in_flight)
        if dropped:
            self._dropped = True
        elif 0.0 < rtt_s <= MAX_S:
            self._sum_s += rtt_s
            self._timed += 1
        return self._is_over(now_s) and self._close(now_s)

    def _is_over(self, now_s: float) -> bool:
        window_s = self._settings.window_s
        return not window_s or (now_s >= self._until and self._count >= self._settings.window_samples)

    def _close(self, now_s: float) -> bool:
        """The window is over."""
        slope = self._slope()
        if self._settings.descend and slope is not None and slope < 1.0:
            self._estimate = min(self._estimate, max(float(self._settings.minimum), 2.0 * self._in_flight))
        busy = self._in_flight >= self._estimate / 2
        if slope is not None and (busy or self._dropped):
            self._estimate = next_limit(self._estimate, slope, self._settings)
        self._until = now_s + self._settings.window_s
        self._clear()
        before, self.limit = self.limit, int(self._estimate)
        return self.limit != before

    def _slope(self) -> float | None:
        """The gradient of the window, and its lesson for the long average. ``None``: it had nothing to say."""
        if not self._timed:
            return STEEPEST if self._dropped else None
        short_s = self._sum_s / self._timed
        long_s = self._long.add(short_s)
        if long_s / short_s > DRIFT_RATIO:
            self._long.value *= DRIFT_CUT
        return STEEPEST if self._dropped else gradient(long_s, short_s, self._settings.tolerance)

    def _clear(self) -> None:
        self._count = self._timed = self._in_flight = 0
        self._sum_s = 0.0
        self._dropped = False
