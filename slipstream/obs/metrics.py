"""Counters of one process, cheap to bump, turned into Prometheus families only when somebody scrapes.

The request path pays one dictionary look-up and a few additions. ``prometheus_client`` is imported at the first scrape.
Names of system C (``llm_proxy_*``) are kept as they were promised (contracts C), ours are ``slipstream_*``.

The rule that must not be broken: every label value is from a closed set (R31). Models that the configuration does not
name are ``other``; providers, endpoints, classes are ours.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Any

from ..types import FailureClass

DURATION_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""System C's buckets for request durations."""
TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
OVERHEAD_BUCKETS_S = (25e-6, 50e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3)
OTHER = "other"
EPS = 1e-9

Key = tuple[str, ...]


class Histogram:
    """Fixed buckets (upper bounds, inclusive), a sum and a count."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> list[tuple[str, float]]:
        """``(le, count)`` pairs as Prometheus wants them, ``+Inf`` last."""
        total = 0
        pairs = []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs

    def quantile(self, q: float) -> float:
        """The upper bound of the bucket that holds quantile ``q``; 0 when empty, the last bound beyond it."""
        want, total = q * self.count, 0
        if not self.count:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            total += count
            if total >= want - EPS:
                return bound
        return self.bounds[-1]


class TargetStats:
    """What one provider did lately, for ``/health/detailed`` and the health gauges."""

    __slots__ = ("attempts", "failures", "healthy", "last_failure", "latency_s")

    def __init__(self) -> None:
        self.attempts = 0
        self.failures = 0
        self.healthy = True
        self.last_failure: str | None = None
        self.latency_s = 0.0
        """Exponential average of the time to the header block, weight 1/8 (as TCP's smoothed round-trip time)."""


class Metrics:
    """All counters. Keys are tuples of label values in the order of the family's label names."""

    def __init__(self) -> None:
        self.requests: dict[Key, list[int]] = {}
        self.durations: dict[Key, Histogram] = {}
        self.active: dict[str, int] = {}
        self.tokens: dict[Key, list[int]] = {}
        self.ttft: dict[Key, Histogram] = {}
        self.rate: dict[Key, list[float]] = {}
        self.attempts: dict[Key, list[int]] = {}
        self.usage_source: dict[str, int] = {}
        self.providers: dict[str, TargetStats] = {}
        self.overhead = Histogram(OVERHEAD_BUCKETS_S)
        self.disconnects = 0
        self.failovers = 0
        self.bad_requests: dict[str, int] = {}
        self.log_suppressed = 0
        self.reloads = {"ok": 0, "failed": 0}
        self.cost_micro_usd: dict[str, int] = {}
        self.cost_unknown = 0

    def enter(self, endpoint: str) -> None:
        self.active[endpoint] = self.active.get(endpoint, 0) + 1

    def leave(self, endpoint: str) -> None:
        self.active[endpoint] -= 1

    def request(self, endpoint: str, model: str, provider: str, status: int, key_name: str, duration_s: float) -> None:
        """One finished request of the data plane; ``status`` 499 means that the client went away."""
        bump(self.requests, ("POST", endpoint, model, provider, str(status), key_name))
        observe(self.durations, ("POST", endpoint, model, provider, key_name), duration_s, DURATION_BUCKETS_S)

    def attempt(self, provider: str, failure: FailureClass, latency_s: float) -> None:
        bump(self.attempts, (provider, failure.label))
        stats = self.providers.get(provider)
        if stats is None:
            stats = self.providers[provider] = TargetStats()
        stats.attempts += 1
        if failure is FailureClass.NONE:
            stats.healthy = True
            stats.latency_s += (latency_s - stats.latency_s) / 8 if stats.latency_s else latency_s
        elif failure not in (FailureClass.CLIENT_ERROR, FailureClass.CLIENT_GONE):
            stats.failures += 1
            stats.healthy = False
            stats.last_failure = failure.label

    def add_tokens(self, model: str, provider: str, key_name: str, prompt: int, completion: int, source: str) -> None:
        bump(self.tokens, (model, provider, "prompt", key_name), prompt)
        bump(self.tokens, (model, provider, "completion", key_name), completion)
        bump(self.tokens, (model, provider, "total", key_name), prompt + completion)
        self.usage_source[source] = self.usage_source.get(source, 0) + 1

    def stream_speed(self, model: str, provider: str, ttft_s: float, tokens: int, seconds: float) -> None:
        observe(self.ttft, ("provider", model, provider), ttft_s, TTFT_BUCKETS_S)
        if tokens > 1 and seconds > 0:
            self.rate[("provider", model, provider)] = [tokens / seconds]

    def family_count(self) -> int:
        """Rows held, to prove that labels are bounded (R31)."""
        return sum(len(d) for d in (self.requests, self.durations, self.tokens, self.ttft, self.rate, self.attempts))


def bump(table: dict[Key, list[int]], key: Key, by: int = 1) -> None:
    row = table.get(key)
    if row is None:
        table[key] = [by]
    else:
        row[0] += by


def observe(table: dict[Key, Histogram], key: Key, value: float, bounds: tuple[float, ...]) -> None:
    row = table.get(key)
    if row is None:
        row = table[key] = Histogram(bounds)
    row.add(value)


class _Collector:
    def __init__(self, metrics: Metrics, gauges: Iterable[tuple[str, str, float]]) -> None:
        self._metrics = metrics
        self._gauges = gauges

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        m = self._metrics

        def counter(name: str, text: str, labels: tuple[str, ...], rows: dict[Key, Any]) -> Any:
            family = CounterMetricFamily(name, text, labels=labels)
            for key, value in rows.items():
                family.add_metric(key, value[0] if isinstance(value, list) else value)
            return family

        def histogram(name: str, text: str, labels: tuple[str, ...], rows: dict[Key, Histogram]) -> Any:
            family = HistogramMetricFamily(name, text, labels=labels)
            for key, row in rows.items():
                family.add_metric(key, row.cumulative(), row.sum)
            return family

        def gauge(name: str, text: str, labels: tuple[str, ...], rows: dict[Key, float]) -> Any:
            family = GaugeMetricFamily(name, text, labels=labels)
            for key, value in rows.items():
                family.add_metric(key, value)
            return family

        who = ("model", "provider", "api_key_name")
        yield counter(
            "llm_proxy_requests",
            "Finished requests.",
            ("method", "endpoint", *who[:2], "status_code", who[2]),
            m.requests,
        )
        yield histogram(
            "llm_proxy_request_duration_seconds",
            "From the request read to the last byte written.",
            ("method", "endpoint", *who),
            m.durations,
        )
        yield gauge(
            "llm_proxy_active_requests", "Requests in flight.", ("endpoint",), {(k,): v for k, v in m.active.items()}
        )
        yield counter("llm_proxy_tokens", "Tokens used.", (*who[:2], "token_type", who[2]), m.tokens)
        yield gauge(
            "llm_proxy_provider_health",
            "1 if the last telling attempt succeeded.",
            ("provider",),
            {(k,): float(s.healthy) for k, s in m.providers.items()},
        )
        yield gauge(
            "llm_proxy_provider_latency_seconds",
            "Moving average of the time to the header block.",
            ("provider",),
            {(k,): s.latency_s for k, s in m.providers.items()},
        )
        yield histogram("llm_proxy_ttft_seconds", "Time to first token.", ("source", *who[:2]), m.ttft)
        yield gauge(
            "llm_proxy_tokens_per_second",
            "Speed of the last stream.",
            ("source", *who[:2]),
            {k: v[0] for k, v in m.rate.items()},
        )
        yield counter("slipstream_upstream_attempts", "Attempts by outcome.", ("provider", "outcome"), m.attempts)
        yield counter("slipstream_failovers", "Attempts made on another target.", (), {(): m.failovers})
        yield counter("slipstream_client_disconnects", "Clients gone before the end.", (), {(): m.disconnects})
        yield counter(
            "slipstream_usage_source",
            "Where token counts came from (R8).",
            ("usage_source",),
            {(k,): v for k, v in m.usage_source.items()},
        )
        yield counter(
            "slipstream_cost_usd",
            "Cost by the configured prices.",
            ("provider",),
            {(k,): v / 1e6 for k, v in m.cost_micro_usd.items()},
        )
        yield counter("slipstream_cost_unknown", "Answers without a known price.", (), {(): m.cost_unknown})
        yield counter(
            "slipstream_bad_requests",
            "Malformed HTTP by status.",
            ("status",),
            {(k,): v for k, v in m.bad_requests.items()},
        )
        yield counter("slipstream_log_suppressed", "Log lines not written (Q32).", (), {(): m.log_suppressed})
        yield counter(
            "slipstream_config_reloads", "Reloads by result.", ("result",), {(k,): v for k, v in m.reloads.items()}
        )
        yield histogram(
            "slipstream_overhead_seconds", "Own time of a request without the upstream's (R38).", (), {(): m.overhead}
        )
        for name, text, value in self._gauges:
            yield gauge(name, text, (), {(): value})


def render(metrics: Metrics, gauges: Iterable[tuple[str, str, float]], accept: str) -> tuple[bytes, str]:
    """The page and its content type; OpenMetrics if ``accept`` asks for it."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(metrics, gauges))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type
