"""When a provider wants to be asked again: every spelling of it, and no header value that raises (R53, S-25, S-26)."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.wire.headers import MAX_RETRY_AFTER_S, block, duration_s, fields, retry_after_s

NOW = 784_111_777.0  # Sun, 06 Nov 1994 08:49:37 GMT, the RFC's own example
fuzz = settings(deadline=None, derandomize=True, max_examples=200)


def after(value: str, now: float = NOW) -> float | None:
    return retry_after_s({"retry-after": value}, now)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0.0), ("1", 1.0), ("2.5", 2.5), (" 7 ", 7.0), ("299", 299.0), ("300", 300.0), ("301", 300.0),
        ("86400", 300.0), ("1700000000", 300.0), ("1700000000000", 300.0), ("9" * 60, 300.0),
    ],
)  # fmt: skip
def test_seconds(value: str, seconds: float) -> None:  # Q11: at most 300 s
    assert after(value) == seconds
    assert MAX_RETRY_AFTER_S == 300.0


@pytest.mark.parametrize(
    "value",
    ["", " ", "-1", "-0.5", "+1", "1e9", "1e3", "inf", "nan", "0x10", "soon", "1,2", "1.", ".5", "٣", "1 s"],
)
def test_garbage_and_negative_numbers_say_nothing(value: str) -> None:
    assert after(value) is None


@pytest.mark.parametrize(
    "value",
    ["Sun, 06 Nov 1994 08:49:47 GMT", "Sunday, 06-Nov-94 08:49:47 GMT", "Sun Nov  6 08:49:47 1994",
     "Sun, 06 Nov 1994 08:49:47 -0000", "Sun, 06 Nov 1994 09:49:47 +0100"],
)  # fmt: skip
@pytest.mark.parametrize("zone", ["UTC", "America/New_York", "Asia/Kolkata"])
def test_each_form_of_a_date_is_gmt(value: str, zone: str, timezone: Iterator[str]) -> None:  # RFC 9110 5.6.7
    set_zone(zone)
    assert after(value) == 10.0


def set_zone(zone: str) -> None:
    os.environ["TZ"] = zone
    time.tzset()


@pytest.fixture
def timezone() -> Iterator[None]:
    """The process's own time zone, put back."""
    before = os.environ.get("TZ")
    yield
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


def test_a_date_in_the_past_is_now() -> None:
    assert after("Sun, 06 Nov 1994 08:49:36 GMT") == 0.0
    assert after("Thu, 01 Jan 1970 00:00:00 GMT") == 0.0


def test_a_far_date_is_capped() -> None:
    assert after("Fri, 31 Dec 9999 23:59:59 GMT") == 300.0
    assert after(formatdate(NOW + 301, usegmt=True)) == 300.0


@pytest.mark.parametrize(
    "value",
    ["Sun, 99 Nov 1994 08:49:47 GMT", "Sun, 06 Foo 1994 08:49:47 GMT", "Sun, 06 Nov 1994", "GMT", ",", "Mon,",
     "0 0 0 0", "Mon, 01 Jan 0001 00:00:00 -0000", "Sun, 06 Nov 1994 08:49:47 +9999",
     "Sun, 06 Nov 99999999999 08:49:47 GMT"],
)  # fmt: skip
def test_broken_dates_never_raise(value: str) -> None:
    result = after(value)
    assert result is None or 0 <= result <= 300


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "1500", "retry-after": "2"}, 1.5),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "9999999"}, 300.0),
        ({"retry-after-ms": "0", "retry-after": "1"}, 1.0),  # Azure, PROTOCOLS.md 1.5
        ({"retry-after-ms": "0"}, None),
        ({"retry-after-ms": "-5", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "soon", "retry-after": "3"}, 3.0),
        ({"retry-after-ms": "soon"}, None),
        ({}, None),
    ],
)
def test_milliseconds_win_unless_they_say_nothing(headers: dict[str, str], seconds: float | None) -> None:  # R53
    assert retry_after_s(headers, NOW) == seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("6ms", 0.006), ("1s", 1.0), ("1m2.3s", 62.3), ("2m59.56s", 179.56), ("1h", 3600.0), ("1d2h3m4s", 93784.0),
        ("1m500ms", 60.5), ("0s", 0.0), (" 3s ", 3.0), ("48.9s", 48.9), ("17.5ms", 0.0175),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:  # PROTOCOLS.md 1.5: OpenAI, Groq
    assert duration_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", " ", "5", "-1s", "1x", "s", "ms", "1s1m", "1.5m", "1,5s", "abc", "1s junk", "\n"])
def test_what_is_no_duration(text: str) -> None:
    assert duration_s(text) is None


@fuzz
@given(st.text(max_size=30), st.text(max_size=30), st.floats(0, 4e9))
def test_no_header_value_raises(one: str, two: str, now: float) -> None:
    result = retry_after_s({"retry-after": one, "retry-after-ms": two}, now)
    assert result is None or 0 <= result <= MAX_RETRY_AFTER_S
    length = duration_s(one)
    assert length is None or length >= 0


@fuzz
@given(
    st.text("0123456789:-+, ", max_size=12),
    st.sampled_from(["", "Mon, ", "Monday, "]),
    st.sampled_from(["Jan", "feb", "Smarch"]),
    st.sampled_from(["GMT", "-0000", "+2500", "EST", "(c", ""]),
)
def test_nothing_that_looks_like_a_date_raises(numbers: str, day: str, month: str, zone: str) -> None:
    for value in (f"{day}{numbers} {month} {numbers} {zone}", f"{day}{month} {numbers} {zone}", f"{numbers}{zone}"):
        result = after(value)
        assert result is None or 0 <= result <= MAX_RETRY_AFTER_S


@fuzz
@given(st.integers(0, 250_000_000), st.integers(-1000, 1000))
def test_dates_are_what_they_say(base: int, offset: int) -> None:
    value = format_datetime(datetime.fromtimestamp(base + 1000 + offset, UTC), usegmt=True)
    assert after(value, base + 1000.0) == min(max(offset, 0), MAX_RETRY_AFTER_S)


names = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=9)
values = st.text("abc012 =;,/:\u00e9", max_size=9).map(str.strip)


@fuzz
@given(st.dictionaries(names, values, max_size=4))
def test_a_block_holds_its_fields(headers: dict[str, str]) -> None:
    text = block(headers)
    assert dict(fields(text)) == headers
    assert text.count(b"\r\n") == len(headers)
    assert text.endswith(b"\r\n") or not headers
