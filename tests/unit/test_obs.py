"""What the outside may see: secrets masked in every text, one JSON line per event, metrics with closed label sets
(R31, R84, Q32, Q36, Q40; names of contracts C)."""

from __future__ import annotations

import io
import json
import logging
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from slipstream._fast import KEY_MAX, Series, Sizes
from slipstream.obs import families as f
from slipstream.obs import log as obs_log
from slipstream.obs.exposition import Gauge, cumulative, read, render
from slipstream.obs.log import MAX_VALUE_CHARS, JsonFormatter, Throttle
from slipstream.obs.metrics import Metrics, series_key
from slipstream.obs.redact import MASK, Redactor
from slipstream.state.table import SharedTable, open_table
from slipstream.types import NANOS, Endpoint, FailureClass, Secret

fuzz = settings(deadline=None, derandomize=True, max_examples=120)
CANARY = "Zq7-canary value/with+signs=="
REDACT = Redactor([Secret(CANARY), Secret("second-canary"), Secret("")])


# ---- redaction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [CANARY, f"x{CANARY}y", f"a {CANARY} b second-canary", f"{CANARY}{CANARY}", "second-canary"]
)
def test_configured_values_are_masked_wherever_they_are(text: str) -> None:  # R84
    masked = REDACT(text)
    assert CANARY not in masked
    assert "second-canary" not in masked
    assert MASK in masked


def test_the_longest_value_is_masked_first() -> None:
    redact = Redactor([Secret("canary"), Secret("canary-long-tail")])
    assert redact("see canary-long-tail, canary") == "see ***, ***"


@pytest.mark.parametrize(
    "secret",
    ["sk-proj-abcDEF123456", "sk-ant-api03-abc_DEF-123", "sk-ca*****ary9", "pk_live_1234567890", "gsk_abcdefgh12345678",
     "xai-abcdefgh1234", "hf_abcdefghijk", "r8_abcdefgh1234", "key-1a2b3c4d5e6f", "api_0123456789abcdef",
     "AIzaSyA1234567890abcdefghijklmnopqrstu", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE",
     "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0."],
)  # fmt: skip
@pytest.mark.parametrize(
    "frame", ["{}", "Incorrect API key provided: {}.", "https://x.test/?key={}&a=1", '{{"k":"{}"}}']
)
def test_keys_are_known_by_their_form(secret: str, frame: str) -> None:  # R84, S-50
    masked = Redactor()(frame.format(secret))
    assert secret[-8:] not in masked
    assert MASK in masked


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER  "])
def test_bearer_tokens_are_masked_with_their_word(scheme: str) -> None:
    assert Redactor()(f"Authorization: {scheme} abc.def~123+/=, x") == f"Authorization: {MASK}, x"


@pytest.mark.parametrize(
    "text",
    ["The model gpt-4o does not exist", "task-based routing", "sk-", "disk-utilisation is high", "risk_assessment_2024",
     "api_version is missing", "the api-version query parameter", "invalid_api_key", "api_connection_error",
     "key_not_found", "monkey-patching", "session-affinity", "a bearer of news", "AKIA", "eyJ", "max_tokens: 5", "",
     "claude-3-5-sonnet-20241022", "context_length_exceeded", "sess_", "key-value-store"],
)  # fmt: skip
def test_ordinary_words_are_not_touched(text: str) -> None:
    assert Redactor()(text) == text
    assert REDACT(text) == text


def test_short_configured_values_are_not_searched_for() -> None:
    assert Redactor([Secret("test")])("a test") == "a test"


def test_bodies_are_masked_and_else_the_same_object() -> None:
    assert REDACT.body(b'{"message":"' + CANARY.encode() + b'"}') == b'{"message":"***"}'
    clean = '{"message":"é fine"}'.encode()
    assert REDACT.body(clean) is clean
    assert REDACT.body(b"\xff\xfe") == b"\xff\xfe"


@pytest.mark.parametrize("secret", ['quo"ted-canary', "back\\slash-canary", "tab\tcanary-x", "ünïcödé-canary"])
def test_a_value_is_found_in_json_too(secret: str) -> None:  # R84
    redact = Redactor([Secret(secret)])
    body = json.dumps({"error": {"message": f"key {secret} is bad"}}, ensure_ascii=False).encode()
    assert json.loads(redact.body(body))["error"]["message"] == "key *** is bad"


@fuzz
@given(st.text(), st.text())
def test_no_text_around_it_hides_a_value(before: str, after: str) -> None:
    assert CANARY not in REDACT(before + CANARY + after)


# ---- log lines -------------------------------------------------------------------------------------------------------


def line(message: str, *args: object, fields: Any = None, redact: Any = REDACT, exc: Any = None) -> dict[str, Any]:
    record = logging.LogRecord("slipstream.x", logging.WARNING, __file__, 1, message, args, exc)
    record.created, record.msecs = 1_700_000_000.25, 250.0
    if fields is not None:
        record.fields = fields
    text = JsonFormatter(redact).format(record)
    assert "\n" not in text
    assert "\r" not in text
    assert text.isprintable()
    value: dict[str, Any] = json.loads(text)
    return value


def test_a_line_is_one_json_object() -> None:
    assert line("hello %s", "you", fields={"n": 1, "ok": True, "none": None, "f": 0.5, "list": ["a"]}) == {
        "ts": "2023-11-14T22:13:20.250Z", "level": "warning", "logger": "slipstream.x", "msg": "hello you",
        "n": 1, "ok": True, "none": None, "f": 0.5, "list": ["a"],
    }  # fmt: skip


@pytest.mark.parametrize("bad", ["a\nb", "a\r\nfake: line", "\x1b[2J", "\x00", "\x7f", "a\u2028b", "\u202e", "\x85"])
def test_nobody_forges_a_line(bad: str) -> None:  # Q40, S-76
    assert line("m", fields={"path": bad})["path"] == bad
    assert line(bad.replace("%", "%%"))["msg"] == bad


def test_values_are_cut() -> None:
    value = line("x" * 10_000, fields={"path": "y" * 10_000})
    assert len(value["msg"]) == 4 * MAX_VALUE_CHARS
    assert len(value["path"]) == MAX_VALUE_CHARS


@pytest.mark.parametrize("at", range(MAX_VALUE_CHARS - len(CANARY) - 2, MAX_VALUE_CHARS + 2, 5))
def test_a_secret_at_the_cut_is_masked_before(at: int) -> None:  # R84
    assert CANARY[:6] not in line("m", fields={"v": "x" * at + CANARY})["v"]


def test_every_text_is_redacted() -> None:  # R84
    fields = {"reason": f"key {CANARY}", "trail": [f"a:{CANARY}", {"x": CANARY}], "deep": {"k": (CANARY,)}}
    assert "canary" not in json.dumps(line("bad %s", CANARY, fields=fields))


def test_a_traceback_is_redacted() -> None:
    try:
        raise ValueError(f"boom {CANARY}")
    except ValueError:
        value = line("failed", exc=sys.exc_info())
    assert value["error"] == "ValueError"
    assert "boom ***" in value["traceback"]
    assert "canary value" not in json.dumps(value)


@pytest.mark.parametrize(
    "odd", ["\ud800", b"\xff", object(), {1, 2}, 2**70, float("nan"), Secret("hidden-canary"), {1: "x"}, ["\udfff"]]
)
def test_no_value_breaks_a_line(odd: object) -> None:  # R45: a failing line would be printed raw by logging
    value = line("m", fields={"odd": odd, "next": 1})
    assert value["next"] == 1
    assert "hidden" not in json.dumps(value)


def test_a_surrogate_in_the_message_does_not_break_a_line() -> None:
    assert line("path \udc80")["msg"].startswith("path ")


def test_fields_do_not_replace_what_a_line_says_of_itself() -> None:
    value = line("real", fields={"msg": "fake", "level": "debug"}, redact=None)
    assert (value["msg"], value["level"]) == ("real", "warning")


@pytest.fixture
def logging_put_back() -> Iterator[None]:
    names = ("", "slipstream", "aiohttp.server", "aiohttp.web", "aiohttp.access")
    before = [(logging.getLogger(n), logging.getLogger(n).level) for n in names]
    handlers = logging.getLogger().handlers[:]
    yield
    for logger, level in before:
        logger.setLevel(level)
    logging.getLogger().handlers[:] = handlers


def test_setup_writes_ours_and_silences_raw_header_bytes(
    logging_put_back: None, monkeypatch: pytest.MonkeyPatch
) -> None:  # reliability.md 2.1
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    obs_log.setup("info", REDACT)
    logging.getLogger("slipstream.a").info("in %s", CANARY)
    logging.getLogger("slipstream.a").debug("no")
    logging.getLogger("aiohttp.server").error("Authorization: raw")
    logging.getLogger("other").info("no")
    assert [json.loads(text)["msg"] for text in out.getvalue().splitlines()] == ["in ***"]


def test_throttle_lets_n_a_second_through_and_counts_the_rest() -> None:  # Q32
    throttle = Throttle(3)
    assert [throttle.admit(5.0 + i / 10) for i in range(5)] == [True, True, True, False, False]
    assert throttle.suppressed == 2
    assert [throttle.admit(6.0 + i / 10) for i in range(4)] == [True, True, True, False]
    assert throttle.suppressed == 3
    assert Throttle().per_second == 10


# ---- metrics ---------------------------------------------------------------------------------------------------------

CHAT = Endpoint.CHAT.label
OPEN_METRICS = "application/openmetrics-text; version=1.0.0"
Tables = Callable[..., SharedTable]


@pytest.fixture
def tables() -> Iterator[Tables]:
    """Makes tables, and closes them in the end."""
    made: list[SharedTable] = []

    def make(**capacities: int) -> SharedTable:
        made.append(open_table(None, Sizes(**capacities)))
        return made[-1]

    yield make
    for shared in made:
        shared.close()


@pytest.fixture
def series(tables: Tables) -> Series:
    return tables().series


@pytest.fixture
def m(series: Series) -> Metrics:
    return Metrics(series)


def finish(
    metrics: Metrics,
    status: int = 200,
    *,
    endpoint: str = CHAT,
    model: str = "m",
    provider: str = "p",
    key_name: str = "default",
    source: str = "provider",
    priced: bool = False,
    duration_s: float = 0.7,
    **more: Any,
) -> None:
    labels = (endpoint, model, provider, key_name, status, source, priced)
    metrics.finished(labels, duration_s=duration_s, **more)


def busy(series: Series) -> Metrics:
    """One series at least of every family."""
    m = Metrics(series)
    m.enter(CHAT)
    finish(m, prompt=11, completion=7, micro_usd=1_500_000, priced=True, overhead_s=60e-6, ttft_s=0.03)
    finish(m, 499, source="none", priced=True, duration_s=200.0)
    m.attempt("p", FailureClass.NONE)
    m.attempt("q", FailureClass.SERVER)
    m.speed("m", "p", 40, 2.0)
    m.count(f.BAD_REQUESTS, ("400",), 3)
    m.count(f.FAILOVERS)
    return m


def page_of(metrics: Metrics, accept: str = "", live: tuple[int, ...] = (), gauges: tuple[Gauge, ...] = ()) -> bytes:
    return render(metrics.series, gauges, live, accept)[0]


def families(page: bytes) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(page.decode())}


def sample(page: bytes, name: str, **labels: str) -> float | None:
    for family in families(page).values():
        for s in family.samples:
            if s.name == name and {k: v for k, v in s.labels.items() if k != "le" or "le" in labels} == labels:
                return float(s.value)
    return None


# ---- buckets


def test_bucket_bounds_are_inclusive(m: Metrics) -> None:
    """The same by both ways to a histogram."""
    bounds = f.DURATION_BUCKETS_S
    labels = ("POST", CHAT, "m", "p", "default")
    for seconds in (0.0, bounds[0], bounds[0] + 1e-9, bounds[1], bounds[-1], bounds[-1] + 1e-9, 1e6):
        finish(m, duration_s=seconds)
        m.observe(f.DURATION, seconds, ("POST", "other", "m", "p", "default"))
    rows = read(m.series)[f.DURATION.name]
    one, other = rows[labels], rows["POST", "other", "m", "p", "default"]
    assert one[:-1] == other[:-1] == [2, 2, 0, 0, 0, 0, 0, 0, 1, 2]
    assert one[-1] == pytest.approx(other[-1], abs=len(bounds))
    assert one[-1] / NANOS == pytest.approx(1e6 + 240.7)
    pairs = cumulative(bounds, one)
    assert [pairs[0], pairs[1], pairs[-1]] == [("0.1", 2.0), ("0.5", 4.0), ("+Inf", 7.0)]
    assert [float(le) for le, _ in pairs] == [*bounds, float("inf")]


@fuzz
@given(st.lists(st.floats(0, 400), max_size=30))
def test_any_times_are_counted_once_in_their_bucket(values: list[float]) -> None:
    shared = open_table(None, Sizes(8, 64, 16, 1))
    m = Metrics(shared.series)
    for value in values:
        finish(m, duration_s=value)
    rows = read(m.series)[f.DURATION.name].values()
    counts = next(iter(rows))[:-1] if rows else [0] * 10
    want = [0] * 10
    for value in values:
        want[bisect_left(f.DURATION_BUCKETS_S, value)] += 1
    assert counts == want
    if rows:
        assert cumulative(f.DURATION_BUCKETS_S, next(iter(rows)))[-1] == ("+Inf", len(values))
        assert abs(next(iter(rows))[-1] - sum(values) * NANOS) <= len(values) + 1
    shared.close()


def test_negative_seconds_are_not_observed(m: Metrics) -> None:
    finish(m)
    finish(m, overhead_s=0.0, ttft_s=0.0)
    rows = read(m.series)
    assert sum(rows[f.OVERHEAD.name][()][:-1]) == 1
    assert sum(rows[f.TTFT.name]["provider", "m", "p"][:-1]) == 1


def test_system_cs_duration_buckets() -> None:  # contracts C
    assert f.DURATION_BUCKETS_S == (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)


# ---- the page

CONTRACT_C = {
    "llm_proxy_requests_total": {"method", "endpoint", "model", "provider", "status_code", "api_key_name"},
    "llm_proxy_request_duration_seconds_bucket": {"method", "endpoint", "model", "provider", "api_key_name", "le"},
    "llm_proxy_active_requests": {"endpoint"},
    "llm_proxy_tokens_total": {"model", "provider", "token_type", "api_key_name"},
    "llm_proxy_ttft_seconds_bucket": {"source", "model", "provider", "le"},
    "llm_proxy_tokens_per_second": {"source", "model", "provider"},
}
"""But for the gauges of health, which the page of the server adds (test_pages)."""


@pytest.mark.parametrize("accept", ["", "text/plain", OPEN_METRICS])
def test_the_promised_names_are_there_with_their_labels(accept: str, series: Series) -> None:  # contracts C
    busy(series)
    page, content_type = render(series, [], (), accept)
    assert ("openmetrics" in content_type) == ("openmetrics" in accept)
    seen: dict[str, set[str]] = {}
    for family in families(page).values():
        for s in family.samples:
            seen.setdefault(s.name, set()).update(s.labels)
    for name, labels in CONTRACT_C.items():
        assert seen.get(name) == labels, name


def test_the_values_are_right(series: Series) -> None:
    page = page_of(busy(series), gauges=(("slipstream_test", "A gauge.", ("provider",), [(("p",), 4.0)]),))
    chat = {"method": "POST", "endpoint": CHAT, "model": "m", "provider": "p", "api_key_name": "default"}
    assert sample(page, "llm_proxy_requests_total", **chat, status_code="200") == 1
    assert sample(page, "llm_proxy_requests_total", **chat, status_code="499") == 1
    assert sample(page, "llm_proxy_request_duration_seconds_bucket", **chat, le="1.0") == 1
    assert sample(page, "llm_proxy_request_duration_seconds_bucket", **chat, le="+Inf") == 2
    assert sample(page, "llm_proxy_request_duration_seconds_sum", **chat) == pytest.approx(200.7)
    for kind, count in (("prompt", 11), ("completion", 7), ("total", 18)):
        labels = {"model": "m", "provider": "p", "token_type": kind, "api_key_name": "default"}
        assert sample(page, "llm_proxy_tokens_total", **labels) == count
    assert sample(page, "llm_proxy_active_requests", endpoint=CHAT) == 1
    assert sample(page, "llm_proxy_ttft_seconds_bucket", source="provider", model="m", provider="p", le="0.05") == 1
    assert sample(page, "llm_proxy_ttft_seconds_sum", source="provider", model="m", provider="p") == 0.03
    assert sample(page, "llm_proxy_tokens_per_second", source="provider", model="m", provider="p") == 20
    assert sample(page, "slipstream_upstream_attempts_total", provider="p", outcome="none") == 1
    assert sample(page, "slipstream_upstream_attempts_total", provider="q", outcome="server") == 1
    assert sample(page, "slipstream_cost_usd_total", provider="p") == 1.5
    assert sample(page, "slipstream_bad_requests_total", status="400") == 3
    assert sample(page, "slipstream_failovers_total") == 1
    assert sample(page, "slipstream_client_disconnects_total") == 1
    assert sample(page, "slipstream_usage_source_total", usage_source="provider") == 1
    assert sample(page, "slipstream_usage_source_total", usage_source="none") == 1
    assert sample(page, "slipstream_overhead_seconds_count") == 1
    assert sample(page, "slipstream_overhead_seconds_bucket", le="4e-05") == 0
    assert sample(page, "slipstream_overhead_seconds_bucket", le="8e-05") == 1
    assert sample(page, "slipstream_config_reloads_total", result="failed") == 0
    assert sample(page, "slipstream_cost_unknown_total") == 0
    assert sample(page, "slipstream_test", provider="p") == 4


def test_openmetrics_is_read_by_its_strict_parser(series: Series) -> None:
    page = page_of(busy(series), OPEN_METRICS)
    found = {family.name: family for family in openmetrics.text_string_to_metric_families(page.decode())}
    for family in f.FAMILIES.values():
        kind = {f.Kind.HISTOGRAM: "histogram", f.Kind.GAUGE: "gauge", f.Kind.ACTIVE: "gauge"}.get(family.kind)
        assert found[family.name].type == (kind or "counter")
        assert found[family.name].documentation == family.text
        assert found[family.name].samples or family.labels
    assert page.endswith(b"# EOF\n")


def test_both_formats_say_the_same(series: Series) -> None:
    busy(series)

    def values(found: Any) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {
            (s.name, frozenset(s.labels.items())): s.value
            for family in found
            for s in family.samples
            if not s.name.endswith("_created")
        }

    m = Metrics(series, 1)
    plain, strict = page_of(m).decode(), page_of(m, OPEN_METRICS).decode()
    assert values(openmetrics.text_string_to_metric_families(strict)) == values(text_string_to_metric_families(plain))


def test_a_fresh_page_shows_zeros(m: Metrics) -> None:
    """A rate needs the 0 before the 1: what has no labels, and labels known beforehand, is there from the start."""
    page = page_of(m)
    for family in f.FAMILIES.values():
        if not family.labels:
            suffix = "_count" if family.kind is f.Kind.HISTOGRAM else "_total"
            assert sample(page, family.name + suffix) == 0, family.name
    for result in ("ok", "failed"):
        assert sample(page, "slipstream_config_reloads_total", result=result) == 0
    for endpoint in Endpoint:
        assert sample(page, "llm_proxy_active_requests", endpoint=endpoint.label) == 0
    assert sample(page, "slipstream_upstream_attempts_total", provider="p", outcome="none") is None


def test_what_is_not_of_todays_form_is_passed_over(series: Series) -> None:
    """A table file outlives versions of ours, and damage."""
    m = busy(series)
    before = page_of(m), page_of(m, OPEN_METRICS)
    for key, values in (
        (b"", 1),
        (b"nobody\0x", 2),
        (b"\xff\xfe\0x", 2),
        (b"llm_proxy_requests\0POST", 2),
        (b"llm_proxy_requests\0" + b"\0".join([b"x"] * 7), 2),
        (b"llm_proxy_tokens\0m\0p\0prompt\0default", 2),
        (b"llm_proxy_active_requests\0x", 2),
        (b"slipstream_overhead_seconds", 3),
        (b"slipstream_overhead_seconds", 20),
        (b"llm_proxy_ttft_seconds\0provider\0m\0p", 12),
        (b"slipstream_failovers", 1),
    ):
        assert series.series(key, values) >= 0
    assert (page_of(m), page_of(m, OPEN_METRICS)) == before


# ---- what is counted


def test_price_and_usage_decide_what_a_request_adds_to(m: Metrics) -> None:  # R8, R69
    def row(family: f.Family, *labels: str) -> int | None:
        values = read(m.series)[family.name].get(labels)
        return values[0] if values is not None else None

    finish(m, 400, provider="none", source="")
    assert read(m.series)[f.TOKENS.name] == read(m.series)[f.USAGE_SOURCE.name] == {}
    finish(m, source="estimated", prompt=2, completion=1)
    finish(m, source="none")
    assert (row(f.COST_UNKNOWN), row(f.COST, "p")) == (1, None), "unknown is never taken for 0"
    finish(m, source="provider", prompt=2, completion=1, micro_usd=5, priced=True)
    finish(m, source="provider", prompt=2, completion=1, micro_usd=0, priced=True)
    assert (row(f.COST_UNKNOWN), row(f.COST, "p")) == (1, 5)
    assert read(m.series)[f.TOKENS.name] == {("m", "p", "default"): [6, 3]}
    assert read(m.series)[f.USAGE_SOURCE.name] == {("estimated",): [1, 0], ("none",): [1, 0], ("provider",): [2, 0]}
    assert row(f.DISCONNECTS) == 0
    finish(m, 499)
    assert row(f.DISCONNECTS) == 1
    assert m.dropped == 0


def test_the_gauge_of_requests_in_flight_goes_back(m: Metrics) -> None:
    for _ in range(3):
        m.enter(CHAT)
    m.leave(CHAT)
    assert m.in_flight == 2
    assert sample(page_of(m), "llm_proxy_active_requests", endpoint=CHAT) == 2
    m.leave(CHAT)
    m.leave(CHAT)
    assert m.in_flight == 0
    assert sample(page_of(m), "llm_proxy_active_requests", endpoint=CHAT) == 0


def test_one_token_or_no_time_is_no_speed(m: Metrics) -> None:
    m.speed("m", "p", 1, 2.0)
    m.speed("m", "p", 9, 0.0)
    assert read(m.series)[f.SPEED.name] == {}
    m.speed("m", "p", 3, 2.0)
    m.speed("m", "p", 9, 2.0)
    assert read(m.series)[f.SPEED.name] == {("provider", "m", "p"): [4500, 0]}, "that of the last stream"


# ---- labels


@pytest.mark.parametrize("size", [63, 64, 65, 256])
@pytest.mark.parametrize("letter", ["x", "/", "ü", "\U0001f600"])
def test_long_labels_fit_and_stay_apart(letter: str, size: int, series: Series) -> None:
    """The configuration allows names of 256 characters, for models and providers both (Q40)."""
    m = Metrics(series)
    names = [letter * size, letter * size + "a", letter * size + "b", letter * (size - 1) + "!"]
    for name in names:
        finish(m, model=name, provider=name, key_name=name, ttft_s=0.1, prompt=1)
        finish(m, model=name, provider=name, key_name=name, prompt=1)
        m.attempt(name, FailureClass.RATE_LIMITED)
        m.speed(name, name, 9, 1.0)
    rows = read(series)
    for family in (f.REQUESTS, f.DURATION, f.TOKENS, f.TTFT, f.SPEED, f.ATTEMPTS):
        assert len(rows[family.name]) == len(names), family.name
    assert [values[0] for values in rows[f.TOKENS.name].values()] == [2] * len(names)
    assert all(len(key) <= KEY_MAX for key, _ in series.items())
    for labels in rows[f.DURATION.name]:
        for label in labels[2:]:
            assert label.startswith(letter * 3)
            assert label.isprintable()
    for accept in ("", OPEN_METRICS):
        assert page_of(m, accept)
    assert m.dropped == 0


@pytest.mark.parametrize("label", ["x" * 64, "ü" * 32, "gpt-4o", "", "a b", 'quo"te\\'])
def test_labels_of_up_to_64_bytes_stay_as_they_are(label: str, m: Metrics) -> None:
    m.attempt(label, FailureClass.NONE)
    finish(m, model=label)
    assert sample(page_of(m), "slipstream_upstream_attempts_total", provider=label, outcome="none") == 1
    assert [labels[2] for labels in read(m.series)[f.REQUESTS.name]] == [label]


@fuzz
@given(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=256), min_size=3, max_size=3))
def test_any_key_fits_and_says_the_same_twice(names: list[str]) -> None:
    model, provider, key_name = names
    for family, labels in (
        (f.REQUESTS, ("POST", CHAT, model, provider, "200", key_name)),
        (f.DURATION, ("POST", CHAT, model, provider, key_name)),
        (f.TOKENS, (model, provider, key_name)),
        (f.TTFT, ("provider", model, provider)),
    ):
        key = series_key(family, labels)
        assert len(key) <= KEY_MAX
        assert key == series_key(family, labels)
        assert key.decode().count("\0") == len(labels)


# ---- workers


def test_two_workers_count_into_the_same_series(tables: Tables) -> None:
    shared = tables()
    one, other = Metrics(shared.series, 0), Metrics(shared.series, 1)
    for m, prompt in ((one, 3), (other, 4)):
        finish(m, prompt=prompt, completion=1, overhead_s=1e-3)
        m.attempt("p", FailureClass.NONE)
        m.count(f.FAILOVERS)
        m.speed("m", "p", 10 * prompt, 1.0)
    page = page_of(one)
    assert page == page_of(other)
    rows = read(shared.series)
    assert rows[f.TOKENS.name] == {("m", "p", "default"): [7, 2]}
    assert rows[f.FAILOVERS.name] == {(): [2, 0]}
    assert rows[f.ATTEMPTS.name] == {("p", "none"): [2, 0]}
    assert sum(rows[f.OVERHEAD.name][()][:-1]) == 2
    assert rows[f.SPEED.name] == {("provider", "m", "p"): [40_000, 0]}
    assert sample(page, "slipstream_failovers_total") == 2


def test_in_flight_is_of_the_workers_that_live(tables: Tables) -> None:
    shared = tables()
    one, other = Metrics(shared.series, 0), Metrics(shared.series, 1)
    one.enter(CHAT)
    one.enter(CHAT)
    other.enter(CHAT)
    assert (one.in_flight, other.in_flight) == (2, 1)

    def active(*live: int) -> float | None:
        return sample(page_of(one, live=live), "llm_proxy_active_requests", endpoint=CHAT)

    assert (active(0, 1), active(0), active(1), active()) == (3, 2, 1, 3)
    assert active(7) is None or active(7) == 0


def test_a_worker_does_not_inherit_what_a_killed_one_left_in_its_slot(tables: Tables) -> None:
    shared = tables()
    killed = Metrics(shared.series, 3)
    killed.enter(CHAT)
    killed.enter(Endpoint.EMBEDDINGS.label)
    finish(killed)
    heir = Metrics(shared.series, 3)
    heir.enter(CHAT)
    page = page_of(heir, live=(3,))
    assert sample(page, "llm_proxy_active_requests", endpoint=CHAT) == 1
    assert sample(page, "llm_proxy_active_requests", endpoint=Endpoint.EMBEDDINGS.label) == 0
    assert sum(values[0] for values in read(shared.series)[f.REQUESTS.name].values()) == 1, "counters stay"


def test_a_table_without_room_drops_and_counts_what_it_dropped(tables: Tables) -> None:
    shared = tables(targets=1, counters=23, histograms=3, pools=1)
    m = Metrics(shared.series)
    assert m.dropped == 0, "what every worker has fits"
    for i in range(50):
        finish(m, model=f"m{i}", prompt=1, completion=1, ttft_s=0.1, overhead_s=0.1)
        m.attempt(f"p{i}", FailureClass.NONE)
        m.speed(f"m{i}", "p", 9, 1.0)
        m.observe(f.TTFT, 0.1, ("provider", f"x{i}", "p"))
        m.enter(f"e{i}")
        m.leave(f"e{i}")
    assert m.dropped > 200
    rows = read(shared.series)
    assert sum(rows[f.OVERHEAD.name][()][:-1]) == 50, "what has room is counted, whatever else has none"
    assert m.in_flight == 0
    before = m.dropped
    finish(m, model="m0")
    m.count(f.FAILOVERS)
    assert rows[f.FAILOVERS.name][()][0] + 1 == read(shared.series)[f.FAILOVERS.name][()][0]
    assert m.dropped - before <= 1, "the series that are there go on"
    for accept in ("", OPEN_METRICS):
        assert page_of(m, accept)


def test_a_table_without_any_room_raises_nothing(tables: Tables) -> None:
    shared = tables(targets=1, counters=1, histograms=1, pools=1)
    m = busy(shared.series)
    assert m.dropped > 5
    assert m.in_flight == 1
    m.leave(CHAT)
    assert page_of(m)
