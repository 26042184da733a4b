"""When requests are meant to be sent: the schedule is a function of the rate, the kind and the seed alone."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.loadgen.schedule import ARRIVALS, NS_PER_S, arrivals, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10s", 10.0),
        ("1m", 60.0),
        ("90", 90.0),
        ("0.5", 0.5),
        ("1m30s", 90.0),
        ("500ms", 0.5),
        ("1.5h", 5400.0),
        (" 2S ", 2.0),
        ("0", 0.0),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "10 s", "-1s", "1s2", "ten", "1d", "1e3", "nan", "inf", "1.s", "٣s"])
def test_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


def test_constant() -> None:
    assert list(arrivals(4, "constant", None, NS_PER_S)) == [0, 250_000_000, 500_000_000, 750_000_000]


def test_constant_does_not_drift() -> None:
    moments = list(arrivals(3, "constant", None, 1000 * NS_PER_S))
    assert len(moments) == 3000
    assert moments[2997] == 999 * NS_PER_S


def test_poisson() -> None:
    moments = list(arrivals(1000, "poisson", 7, 10 * NS_PER_S))
    assert moments == list(arrivals(1000, "poisson", 7, 10 * NS_PER_S))
    assert moments != list(arrivals(1000, "poisson", 8, 10 * NS_PER_S))
    assert len(moments) == pytest.approx(10_000, rel=0.05)
    gaps = [b - a for a, b in pairwise(moments)]
    mean = sum(gaps) / len(gaps)
    deviation = (sum((g - mean) ** 2 for g in gaps) / len(gaps)) ** 0.5
    assert deviation == pytest.approx(mean, rel=0.1), "exponential gaps: as wide as their mean"


@given(
    st.floats(0.1, 5000),
    st.sampled_from(ARRIVALS),
    st.integers(),
    st.integers(0, NS_PER_S // 2),
)
def test_in_order_and_within(qps: float, kind: str, seed: int, until_ns: int) -> None:
    moments = list(arrivals(qps, kind, seed, until_ns))
    assert moments == sorted(moments)
    assert all(0 <= at < until_ns for at in moments)


def test_no_rate_is_no_open_loop() -> None:
    with pytest.raises(ValueError, match="above 0"):
        arrivals(0, "constant", None, NS_PER_S)
