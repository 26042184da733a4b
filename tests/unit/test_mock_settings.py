"""What can be set on a mock, and the distribution of its latency."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.mock.settings import MAX_P95_TO_MEAN, LogNormal, MockSettings


@pytest.mark.parametrize(("mean", "p95"), [(40, 120), (40, 60), (200, 700), (1, 1.2)])
def test_latency_has_the_wanted_mean_and_p95(mean: float, p95: float) -> None:
    rng = random.Random(7)
    model = LogNormal.fit(mean, p95)
    samples = sorted(model.sample(rng) for _ in range(20_000))
    assert sum(samples) / len(samples) == pytest.approx(mean, rel=0.03)
    assert samples[19_000] == pytest.approx(p95, rel=0.04)


def test_latency_that_no_log_normal_has_is_clamped() -> None:
    rng = random.Random(7)
    assert LogNormal.fit(40, 40).sample(rng) == 40
    assert LogNormal.fit(40, 10).sample(rng) == 40
    assert LogNormal.fit(0, 120).sample(rng) == 0
    heavy = LogNormal.fit(40, 4000)
    assert heavy == LogNormal.fit(40, 40 * MAX_P95_TO_MEAN * 1.01)
    assert heavy.scale * math.exp(heavy.sigma**2 / 2) == pytest.approx(40)


@given(mean=st.floats(0.001, 1e6), p95=st.floats(0, 1e7))
def test_latency_fit_always_keeps_the_mean(mean: float, p95: float) -> None:
    model = LogNormal.fit(mean, p95)
    assert model.scale * math.exp(model.sigma**2 / 2) == pytest.approx(mean)


@pytest.mark.parametrize(
    "bad",
    [{"mean_latency_ms": -1}, {"error_rate": 1.1}, {"error_status": 200}, {"completion_tokens": 0}, {"name": "a\r\nb"}],
)
def test_settings_are_checked(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"."):
        MockSettings(**bad)
