"""Counting, for all workers at once: every series is a few words in the shared table.

The request path pays a dictionary look-up and an atomic addition for each. What a worker counted outlives it, and any
worker can show what all have counted (``exposition``).

The rule that must not be broken: every label value is from a closed set (R31). Models that the configuration does not
name are ``other``; providers, endpoints and classes are ours.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from typing import TYPE_CHECKING

from ..types import FailureClass
from . import families as f

if TYPE_CHECKING:
    from .._fast.series import Series

OTHER = "other"
SEPARATOR = "\0"
MAX_LABEL_CHARS = 64
"""A series' key holds 208 bytes; longer label values keep their beginning and a digest."""
NANOS = 1_000_000_000

Labels = tuple[str, ...]


class _Flow:
    """The slots of all requests of one endpoint, model, provider and key."""

    __slots__ = ("duration", "requests", "tokens")

    def __init__(self, duration: int, tokens: int) -> None:
        self.duration = duration
        self.tokens = tokens
        self.requests: dict[int, int] = {}


class Metrics:
    """The counters of one worker. ``worker`` is its slot in the table, for what must not outlive it."""

    def __init__(self, series: Series, worker: int = 0) -> None:
        self.series = series
        self.worker = worker
        self.dropped = 0
        """Additions lost because the table has no room for another series."""
        self._slots: dict[tuple[f.Family, Labels], int] = {}
        self._flows: dict[Labels, _Flow] = {}
        self._active: dict[str, int] = {}
        self._in_flight = 0

    # ------------------------------------------------------------------ any family
    def slot(self, family: f.Family, labels: Labels = ()) -> int:
        """Where a series is; -1 if there is no room for it."""
        key = family, labels
        found = self._slots.get(key)
        if found is None:
            values = len(family.bounds) + 2 if family.kind is f.Kind.HISTOGRAM else 2
            found = self._slots[key] = self.series.series(series_key(family, labels), values)
        return found

    def count(self, family: f.Family, labels: Labels = (), by: int = 1) -> None:
        slot = self.slot(family, labels)
        if slot < 0:
            self.dropped += 1
        else:
            self.series.add(slot, 0, by)

    def observe(self, family: f.Family, seconds: float, labels: Labels = ()) -> None:
        slot = self.slot(family, labels)
        if slot < 0:
            self.dropped += 1
        else:
            self.series.observe(slot, bisect_left(family.bounds, seconds), int(seconds * NANOS))

    # ------------------------------------------------------------------ requests
    def enter(self, endpoint: str) -> None:
        self._in_flight += 1
        self._add_active(endpoint, 1)

    def leave(self, endpoint: str) -> None:
        self._in_flight -= 1
        self._add_active(endpoint, -1)

    @property
    def in_flight(self) -> int:
        """Requests in flight in this worker."""
        return self._in_flight

    def request(self, endpoint: str, model: str, provider: str, status: int, key_name: str, duration_s: float) -> None:
        """One finished request of the data plane; ``status`` 499 means that the client went away."""
        labels = endpoint, model, provider, key_name
        flow = self._flows.get(labels)
        if flow is None:
            flow = self._new_flow(labels)
        slot = flow.requests.get(status)
        if slot is None:
            slot = self.slot(f.REQUESTS, ("POST", endpoint, model, provider, str(status), key_name))
            flow.requests[status] = slot
        if slot < 0 or flow.duration < 0:
            self.dropped += 1
            return
        self.series.add(slot, 0, 1)
        self.series.observe(flow.duration, bisect_left(f.DURATION_BUCKETS_S, duration_s), int(duration_s * NANOS))

    def tokens(
        self, endpoint: str, model: str, provider: str, key_name: str, prompt: int, completion: int, source: str
    ) -> None:
        """What one answer used."""
        labels = endpoint, model, provider, key_name
        flow = self._flows.get(labels)
        if flow is None:
            flow = self._new_flow(labels)
        if flow.tokens >= 0:
            self.series.add(flow.tokens, 0, prompt)
            self.series.add(flow.tokens, 1, completion)
        self.count(f.USAGE_SOURCE, (source,))

    def attempt(self, provider: str, failure: FailureClass) -> None:
        self.count(f.ATTEMPTS, (provider, failure.label))

    def stream(self, model: str, provider: str, ttft_s: float, tokens: int, seconds: float) -> None:
        """The pace of one stream: time to first token, then tokens over seconds."""
        labels = "provider", model, provider
        self.observe(f.TTFT, ttft_s, labels)
        slot = self.slot(f.SPEED, labels)
        if slot >= 0 and tokens > 1 and seconds > 0:
            self.series.set(slot, 0, int(tokens / seconds * 1000))

    def cost(self, provider: str, micro_usd: int) -> None:
        self.count(f.COST, (provider,), micro_usd)

    # ------------------------------------------------------------------ inside
    def _new_flow(self, labels: Labels) -> _Flow:
        endpoint, model, provider, key_name = labels
        flow = self._flows[labels] = _Flow(
            self.slot(f.DURATION, ("POST", endpoint, model, provider, key_name)),
            self.slot(f.TOKENS, (model, provider, key_name)),
        )
        return flow

    def _add_active(self, endpoint: str, by: int) -> None:
        slot = self._active.get(endpoint)
        if slot is None:
            slot = self._active[endpoint] = self.slot(f.ACTIVE, (str(self.worker), endpoint))
        if slot >= 0:
            self.series.add(slot, 0, by)


def series_key(family: f.Family, labels: Labels) -> bytes:
    """The key of a series in the table: the family's name and the label values, apart by NUL."""
    return SEPARATOR.join((family.name, *map(_fit, labels))).encode()


def _fit(label: str) -> str:
    if len(label) <= MAX_LABEL_CHARS and label.isascii():
        return label
    return label[:24] + "~" + blake2b(label.encode(), digest_size=8).hexdigest()
