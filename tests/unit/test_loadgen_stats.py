"""The histogram keeps its error bound, and a stall shows with every request that it delayed."""

from __future__ import annotations

from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.loadgen.schedule import NS_PER_S, arrivals
from slipstream.loadgen.stats import MAX_BITS, TIMEOUT, Histogram, Recorder

MS = 1_000_000
BOUND = 1 / 256


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(st.integers(0, 2**MAX_BITS - 1), min_size=1), st.floats(0.001, 1))
def test_percentile_is_within_its_bound(values: list[int], q: float) -> None:
    exact = sorted(values)[max(1, ceil(q * len(values) - 1e-9)) - 1]
    found = filled(values).percentile(q)
    assert exact <= found <= exact * (1 + BOUND)


@given(st.integers(0, 511))
def test_small_values_are_exact(value: int) -> None:
    assert filled([value, 1 << 40]).percentile(0.5) == value


def test_every_bucket_border() -> None:
    """Values around each power of two are in order and in bounds."""
    values = sorted({max(0, (1 << bits) + d) for bits in range(MAX_BITS) for d in (-1, 0, 1)})
    histogram = filled(values)
    for rank, exact in enumerate(values, 1):
        assert exact <= histogram.percentile(rank / len(values)) <= exact * (1 + BOUND)


def test_ranks() -> None:
    histogram = filled(list(range(1, 101)))
    assert [histogram.percentile(q) for q in (0.5, 0.9, 0.95, 0.99, 0.999, 1)] == [50, 90, 95, 99, 100, 100]


def test_edges() -> None:
    empty = Histogram()
    assert (empty.percentile(0.5), empty.max, empty.count) == (0, 0, 0)
    assert filled([-5]).percentile(1) == 0
    beyond = filled([1, 1 << 60])
    assert beyond.percentile(1) == beyond.max == 1 << 60
    assert beyond.percentile(0.5) == 1


def test_percentiles_ms() -> None:
    found = filled([MS, 2 * MS, 3 * MS]).percentiles_ms("x_")
    assert list(found) == ["x_p50_ms", "x_p90_ms", "x_p95_ms", "x_p99_ms", "x_p999_ms", "x_max_ms", "x_mean_ms"]
    assert found["x_max_ms"] == 3.0
    assert found["x_mean_ms"] == 2.0
    assert found["x_p50_ms"] == pytest.approx(2.0, rel=BOUND)


# the books


def add(recorder: Recorder, latency_ms: int, code: str = "200", **more: object) -> None:
    fields = {
        "intended_ns": 0,
        "sent_ns": 1,
        "first_ns": 0,
        "done_ns": latency_ms * MS,
        "provider": "",
        "cost_usd": 0.0,
    }
    recorder.add(**(fields | {"code": code, "ok": code == "200"} | more))  # type: ignore[arg-type]


def test_summary() -> None:
    recorder = Recorder()
    for _ in range(3):
        add(recorder, 10, provider="a", cost_usd=0.25)
    add(recorder, 1, code="500", provider="b")
    summary = recorder.summary(2.0, 4)
    assert summary["achieved_qps"] == 2.0
    assert (summary["requests"], summary["failures"]) == (4, 1)
    assert (summary["success_rate"], summary["error_rate"]) == (0.75, 0.25)
    assert summary["total_cost_usd"] == 0.75
    assert summary["statuses"] == {"200": 3, "500": 1}
    assert summary["providers"] == {"a": 3, "b": 1}
    assert "ttft_p50_ms" not in summary


def test_nothing_measured() -> None:
    summary = Recorder().summary(0.0, 0)
    assert (summary["requests"], summary["success_rate"], summary["error_rate"], summary["p99_ms"]) == (
        0,
        0.0,
        0.0,
        0.0,
    )


def test_failing_fast_is_not_being_fast() -> None:
    recorder = Recorder()
    add(recorder, 100)
    for _ in range(99):
        add(recorder, 1, code="503")
    assert recorder.latency.percentile(0.5) >= 100 * MS


def test_giving_up_counts_as_waiting() -> None:
    recorder = Recorder()
    for _ in range(98):
        add(recorder, 1)
    add(recorder, 30_000, code=TIMEOUT)
    recorder.drop([10_000 * MS], 30_000 * MS)
    recorder.abandon(0, 30_000 * MS)
    assert recorder.latency.percentile(0.99) >= 20_000 * MS
    assert recorder.service.count == 99
    summary = recorder.summary(30.0, 99)
    assert (summary["requests"], summary["dropped"], summary["unfinished"]) == (99, 1, 1)


def test_ttft_counts_from_the_intended_moment() -> None:
    recorder = Recorder()
    add(recorder, 50, sent_ns=10 * MS, first_ns=20 * MS)
    assert recorder.ttft.max == 20 * MS
    assert recorder.summary(1.0, 1)["ttft_max_ms"] == 20.0


def test_coordinated_omission() -> None:
    """One connection, 100 requests a second, 1 ms each, and one stall of a second (a scripted server, a fake clock).

    A tool that measures from the real sending sees one slow request of a thousand. The hundred that were due meanwhile
    waited half a second on average.
    """
    recorder = Recorder()
    free_ns = 0
    for intended in arrivals(100, "constant", None, 10 * NS_PER_S):
        sent = max(intended, free_ns)
        stalls = 5 * NS_PER_S <= sent < 5 * NS_PER_S + 5 * MS
        free_ns = sent + (NS_PER_S if stalls else MS)
        recorder.add(intended, sent, 0, free_ns, "200", True, "", 0.0)
    assert recorder.service.percentile(0.99) == pytest.approx(MS, rel=BOUND), "the stall is hidden"
    assert recorder.latency.percentile(0.5) == pytest.approx(MS, rel=BOUND)
    assert recorder.latency.percentile(0.9) == pytest.approx(100 * MS, rel=0.3), "100 of 1000 were late"
    assert recorder.latency.percentile(0.99) > 850 * MS
    assert recorder.latency.max == recorder.service.max == NS_PER_S
