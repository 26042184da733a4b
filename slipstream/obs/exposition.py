"""The Prometheus page, made from the shared table when somebody asks: it speaks for all workers.

``prometheus_client`` is imported at the first scrape, not at the start.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Any

from .._fast import Series
from ..types import NANOS
from . import families as f
from .metrics import SEPARATOR

Gauge = tuple[str, str, tuple[str, ...], list[tuple[tuple[str, ...], float]]]
"""Name, help text, label names, and label values with the value of each."""


def render(series: Series, gauges: Iterable[Gauge], live_workers: Collection[int], accept: str) -> tuple[bytes, str]:
    """The page and its content type; OpenMetrics if ``accept`` asks for it."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(series, gauges, live_workers))
    encoder, content_type = choose_encoder(accept)
    return encoder(registry), content_type


def read(series: Series) -> dict[str, dict[tuple[str, ...], list[int]]]:
    """All series by family name and label values. A table lives longer than a version of ours: what is not of the form
    that its family has today is passed over.
    """
    rows: dict[str, dict[tuple[str, ...], list[int]]] = {name: {} for name in f.FAMILIES}
    for key, values in series.items():
        name, *labels = key.decode(errors="replace").split(SEPARATOR)
        family = f.FAMILIES.get(name)
        if family is not None and (len(labels), len(values)) == (family.key_labels, family.values):
            rows[name][tuple(labels)] = values
    return rows


class _Collector:
    def __init__(self, series: Series, gauges: Iterable[Gauge], live_workers: Collection[int]) -> None:
        self._series = series
        self._gauges = gauges
        self._live = {str(worker) for worker in live_workers}

    def collect(self) -> Iterator[Any]:
        from prometheus_client.core import GaugeMetricFamily

        for name, rows in read(self._series).items():
            yield self._family(f.FAMILIES[name], rows)
        for name, text, labels, values in self._gauges:
            made = GaugeMetricFamily(name, text, labels=labels)
            for at, value in values:
                made.add_metric(at, value)
            yield made

    def _family(self, family: f.Family, rows: dict[tuple[str, ...], list[int]]) -> Any:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kind, labels = family.kind, family.labels
        if kind is f.Kind.HISTOGRAM:
            made: Any = HistogramMetricFamily(family.name, family.text, labels=labels)
            for at, values in rows.items():
                made.add_metric(at, cumulative(family.bounds, values), values[len(family.bounds) + 1] / NANOS)
            return made
        if kind in (f.Kind.GAUGE, f.Kind.ACTIVE):
            made = GaugeMetricFamily(family.name, family.text, labels=labels)
            for at, value in (self._active(rows) if kind is f.Kind.ACTIVE else thousandths(rows)).items():
                made.add_metric(at, value)
            return made
        made = CounterMetricFamily(family.name, family.text, labels=labels)
        for at, values in rows.items():
            if kind is f.Kind.TOKENS:
                model, provider, key_name = at
                for token_type, count in zip(
                    ("prompt", "completion", "total"), (*values[:2], sum(values[:2])), strict=True
                ):
                    made.add_metric((model, provider, token_type, key_name), count)
            else:
                made.add_metric(at, values[0] / 1e6 if kind is f.Kind.MICRO else values[0])
        return made

    def _active(self, rows: dict[tuple[str, ...], list[int]]) -> dict[tuple[str, ...], float]:
        """Requests in flight by endpoint; what a dead worker left behind does not count."""
        total: dict[tuple[str, ...], float] = {}
        for (worker, endpoint), values in rows.items():
            if worker in self._live or not self._live:
                total[(endpoint,)] = total.get((endpoint,), 0.0) + values[0]
        return total


def thousandths(rows: dict[tuple[str, ...], list[int]]) -> dict[tuple[str, ...], float]:
    return {at: values[0] / 1000 for at, values in rows.items()}


def cumulative(bounds: tuple[float, ...], values: list[int]) -> list[tuple[str, float]]:
    """``(le, count)`` pairs as Prometheus wants them, ``+Inf`` last."""
    total = 0
    pairs = []
    for bound, count in zip((*map(str, bounds), "+Inf"), values, strict=False):
        total += count
        pairs.append((bound, float(total)))
    return pairs
