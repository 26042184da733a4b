"""Counting, for all workers at once: every series is a few words in the shared table.

The request path pays a dictionary look-up and an atomic addition for each. What a worker counted outlives it, and any
worker can show what all have counted (``exposition``).

The rule that must not be broken: every label value is from a closed set (R31). Models that the configuration does not
name are ``other``; providers, endpoints and classes are ours.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b

from .._fast import KEY_MAX, Series, Tally
from ..types import NANOS, Endpoint, FailureClass
from ..wire.usage import Usage
from . import families as f

OTHER = "other"
SEPARATOR = "\0"
LABEL_BYTES = (64, 32)
"""Longer label values keep their beginning and a digest: the first of these lengths with which the key fits."""

CLIENT_GONE_STATUS = 499
"""What is counted when the client left before the answer was complete (nginx's convention)."""

Labels = tuple[str, ...]
Finished = tuple[str, str, str, str, int, str, bool]
"""Labels of a finished request: endpoint, model, provider, key name, status, where the usage came from (``""``: no
provider was asked), and whether the provider's price is known."""


class Metrics:
    """The counters of one worker. ``worker`` is its slot in the table, for what must not outlive it."""

    def __init__(self, series: Series, worker: int = 0) -> None:
        self.series = series
        self.worker = worker
        self.dropped = 0
        """Additions lost because the table has no room for another series."""
        self._slots: dict[str, dict[Labels, int]] = {name: {} for name in f.FAMILIES}
        self._tallies: dict[Finished, tuple[Tally, int]] = {}
        self._active: dict[str, int] = {}
        self._attempts: dict[tuple[str, FailureClass], int] = {}
        self._in_flight = 0
        for family in f.FAMILIES.values():
            if not family.labels:
                self.slot(family)  # shown as 0 from the start
        for result in ("ok", "failed"):
            self.slot(f.RELOADS, (result,))
        for endpoint in Endpoint:
            self._clear_active(endpoint.label)

    # ------------------------------------------------------------------ any family
    def slot(self, family: f.Family, labels: Labels = ()) -> int:
        """Where a series is; -1 if there is no room for it."""
        known = self._slots[family.name]
        found = known.get(labels)
        if found is None:
            found = known[labels] = self.series.series(series_key(family, labels), family.values)
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

    def finished(
        self,
        labels: Finished,
        duration_s: float,
        overhead_s: float = -1.0,
        ttft_s: float = -1.0,
        prompt: int = 0,
        completion: int = 0,
        micro_usd: int = 0,
    ) -> None:
        """One finished request of the data plane. Negative seconds are not observed."""
        found = self._tallies.get(labels)
        if found is None:
            found = self._tallies[labels] = self._tally(*labels)
        tally, missing = found
        tally.add(prompt, completion, micro_usd, duration_s, overhead_s)
        if ttft_s >= 0:
            self.observe(f.TTFT, ttft_s, ("provider", labels[1], labels[2]))
        if missing:
            self.dropped += missing

    def attempt(self, provider: str, failure: FailureClass) -> None:
        """One attempt at ``provider``, and how it ended."""
        slot = self._attempts.get((provider, failure))
        if slot is None:
            slot = self._attempts[provider, failure] = self.slot(f.ATTEMPTS, (provider, failure.label))
        if slot < 0:
            self.dropped += 1
        else:
            self.series.add(slot, 0, 1)

    def extra_usage(self, model: str, provider: str, key_name: str, usage: Usage, micro_usd: int) -> None:
        """Tokens and money that were used beside what an answer used."""
        for place, tokens in enumerate((usage.prompt, usage.completion)):
            self._add(f.TOKENS, (model, provider, key_name), place, tokens)
        self.count(f.USAGE_SOURCE, (usage.source,))
        if micro_usd:
            self._add(f.COST, (provider,), 0, micro_usd)

    def _add(self, family: f.Family, labels: Labels, place: int, by: int) -> None:
        slot = self.slot(family, labels)
        if slot < 0:
            self.dropped += 1
        else:
            self.series.add(slot, place, by)

    def speed(self, model: str, provider: str, tokens: int, seconds: float) -> None:
        """The pace of one stream behind its first token."""
        if tokens <= 1 or seconds <= 0:
            return
        slot = self.slot(f.SPEED, ("provider", model, provider))
        if slot < 0:
            self.dropped += 1
        else:
            self.series.set(slot, 0, int(tokens / seconds * 1000))

    # ------------------------------------------------------------------ inside
    def _tally(
        self, endpoint: str, model: str, provider: str, key_name: str, status: int, source: str, priced: bool
    ) -> tuple[Tally, int]:
        """All that a request with these labels adds to, and how many of the series have no room."""
        ones = [self.slot(f.REQUESTS, ("POST", endpoint, model, provider, str(status), key_name))]
        if status == CLIENT_GONE_STATUS:
            ones.append(self.slot(f.DISCONNECTS))
        times = [
            (self.slot(f.DURATION, ("POST", endpoint, model, provider, key_name)), f.DURATION.bounds),
            (self.slot(f.OVERHEAD), f.OVERHEAD.bounds),
        ]
        sums = []
        if source:
            ones.append(self.slot(f.USAGE_SOURCE, (source,)))
            tokens = self.slot(f.TOKENS, (model, provider, key_name))
            sums = [(tokens, 0), (tokens, 1)]
            if priced:
                sums.append((self.slot(f.COST, (provider,)), 0))
            elif source != "none":
                ones.append(self.slot(f.COST_UNKNOWN))
        missing = sum(slot < 0 for slot in (*ones, *(slot for slot, _ in sums), *(slot for slot, _ in times)))
        return Tally(self.series, ones, sums, times), missing

    def _add_active(self, endpoint: str, by: int) -> None:
        slot = self._active.get(endpoint)
        if slot is None:
            slot = self._clear_active(endpoint)
        if slot < 0:
            self.dropped += 1
        else:
            self.series.add(slot, 0, by)

    def _clear_active(self, endpoint: str) -> int:
        """Begins at 0: a worker that was killed may have left something in our slot."""
        slot = self._active[endpoint] = self.slot(f.ACTIVE, (str(self.worker), endpoint))
        if slot >= 0:
            self.series.set(slot, 0, 0)
        return slot


def series_key(family: f.Family, labels: Labels) -> bytes:
    """The key of a series in the table: the family's name and the label values, apart by NUL."""
    key = b""
    for most in LABEL_BYTES:
        key = SEPARATOR.join((family.name, *(_fit(label, most) for label in labels))).encode()
        if len(key) <= KEY_MAX:
            break
    return key


def _fit(label: str, most: int) -> str:
    encoded = label.encode()
    if len(encoded) <= most:
        return label
    start = encoded[: most - 17].decode(errors="ignore")
    return f"{start}~{blake2b(encoded, digest_size=8).hexdigest()}"
