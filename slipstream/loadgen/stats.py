"""What was measured: a log-linear histogram and the books of one run. Pure; all times are integers of nanoseconds.

Two durations are kept of each request. *Latency* runs from the moment it was meant to be sent: waiting for a free
connection behind a stalled server is in it, so a stall shows with all the requests that it delayed and not only with
the few that were in flight (coordinated omission). *Service time* runs from the moment it was really sent, and is what
a closed-loop tool would have reported.

Which requests are in the percentiles: those that were answered well, and those that were given up waiting for
(time-outs, requests that never got a connection). One that failed at once must not make a server look fast; one that
never came must not vanish.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable
from itertools import accumulate
from math import ceil
from typing import Any

SUB_BITS = 9
"""Each doubling is cut into 2^8 buckets: a percentile is at most 1/256 (0.4 %) above the true one, never below."""
MAX_BITS = 43
"""Up to 2^43 ns, 2.4 hours, are told apart; longer ones share the last bucket (the maximum stays exact)."""
_HALF = 1 << (SUB_BITS - 1)
_LAST = ((MAX_BITS - SUB_BITS) << (SUB_BITS - 1)) + (1 << SUB_BITS) - 1
_RANK_EPS = 1e-9
NS_PER_MS = 1e6

TIMEOUT = "timeout"
"""The code of a request that was given up."""

PERCENTILES = (("p50_ms", 0.5), ("p90_ms", 0.9), ("p95_ms", 0.95), ("p99_ms", 0.99), ("p999_ms", 0.999))


class Histogram:
    """Counts of integers by magnitude, as HdrHistogram keeps them: small ones exactly, large ones to 0.4 %."""

    __slots__ = ("_counts", "count", "max", "total")

    def __init__(self) -> None:
        self._counts = [0] * (_LAST + 1)
        self.count = 0
        self.max = 0
        self.total = 0

    def record(self, value: int) -> None:
        """Count one value; a negative one (a clock that was set) is 0."""
        if value < 0:
            value = 0
        shift = value.bit_length() - SUB_BITS
        index = value if shift <= 0 else (shift << (SUB_BITS - 1)) + (value >> shift)
        self._counts[index if index < _LAST else _LAST] += 1  # noqa: FURB136  # min() costs as much as all the rest
        self.count += 1
        self.total += value
        if value > self.max:
            self.max = value

    def percentile(self, q: float) -> int:
        """The smallest recorded value that a share ``q`` does not exceed, rounded up to its bucket; 0 when empty."""
        if not self.count:
            return 0
        rank = max(1, ceil(q * self.count - _RANK_EPS))
        index = bisect_left(list(accumulate(self._counts)), rank)
        return self.max if index == _LAST else min(self.max, _highest(index))

    def percentiles_ms(self, prefix: str = "") -> dict[str, float]:
        """The usual percentiles, the maximum and the mean, in milliseconds."""
        found = {prefix + name: _ms(self.percentile(q)) for name, q in PERCENTILES}
        found[prefix + "max_ms"] = _ms(self.max)
        found[prefix + "mean_ms"] = _ms(self.total / self.count if self.count else 0)
        return found


def _highest(index: int) -> int:
    """The largest value that falls into a bucket."""
    if index < 2 * _HALF:
        return index
    shift = (index >> (SUB_BITS - 1)) - 1
    return ((index - (shift << (SUB_BITS - 1)) + 1) << shift) - 1


def _ms(value_ns: float) -> float:
    return round(value_ns / NS_PER_MS, 4)


class Recorder:
    """The books of one run. ``add`` is called once for each request of the measured window."""

    def __init__(self) -> None:
        self.latency = Histogram()
        self.service = Histogram()
        self.ttft = Histogram()
        self.requests = 0
        self.failures = 0
        self.codes: dict[str, int] = {}
        self.providers: dict[str, int] = {}
        self.cost_usd = 0.0
        self.dropped = 0
        self.unfinished = 0

    def add(
        self,
        intended_ns: int,
        sent_ns: int,
        first_ns: int,
        done_ns: int,
        code: str,
        ok: bool,
        provider: str,
        cost_usd: float,
    ) -> None:
        """``sent_ns`` is 0 for one that was never sent, ``first_ns`` 0 for one without content in a stream."""
        self.requests += 1
        self.codes[code] = self.codes.get(code, 0) + 1
        if provider:
            self.providers[provider] = self.providers.get(provider, 0) + 1
        self.cost_usd += cost_usd
        if not ok:
            self.failures += 1
            if code != TIMEOUT:
                return
        self.latency.record(done_ns - intended_ns)
        if sent_ns:
            self.service.record(done_ns - sent_ns)
        if first_ns:
            self.ttft.record(first_ns - intended_ns)

    def drop(self, moments_ns: Iterable[int], now_ns: int) -> None:
        """Arrivals that never got a connection before the end: their waiting so far is the least it can have been."""
        for intended_ns in moments_ns:
            self.dropped += 1
            self.latency.record(now_ns - intended_ns)

    def abandon(self, intended_ns: int, now_ns: int) -> None:
        """In flight when the user ended the run: counted by how long it had been waited for."""
        self.unfinished += 1
        self.latency.record(now_ns - intended_ns)

    def summary(self, seconds: float, completed: int) -> dict[str, Any]:
        """The figures of contracts E, and more. ``completed`` replies came within the ``seconds`` of the window."""
        requests, failures = self.requests, self.failures
        figures: dict[str, Any] = {
            "achieved_qps": round(completed / seconds, 3) if seconds > 0 else 0.0,
            "requests": requests,
            "failures": failures,
            "success_rate": (requests - failures) / requests if requests else 0.0,
            "error_rate": failures / requests if requests else 0.0,
            **self.latency.percentiles_ms(),
            "total_cost_usd": round(self.cost_usd, 9),
            **self.service.percentiles_ms("service_"),
        }
        if self.ttft.count:
            figures |= self.ttft.percentiles_ms("ttft_")
        figures["statuses"] = dict(sorted(self.codes.items()))
        figures["providers"] = dict(sorted(self.providers.items()))
        figures["dropped"] = self.dropped
        figures["unfinished"] = self.unfinished
        return figures
