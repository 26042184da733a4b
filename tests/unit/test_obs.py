"""What the outside may see: secrets masked in every text, one JSON line per event, metrics with closed label sets
(R31, R84, Q32, Q36, Q40; names of contracts C)."""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from slipstream.obs import log as obs_log
from slipstream.obs.log import MAX_VALUE_CHARS, JsonFormatter, Throttle
from slipstream.obs.metrics import DURATION_BUCKETS_S, EPS, Histogram, Metrics, render
from slipstream.obs.redact import MASK, Redactor
from slipstream.types import FailureClass, Secret

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


def test_bucket_bounds_are_inclusive() -> None:
    h = Histogram((1.0, 2.0))
    for value in (0.0, 1.0, 1.0001, 2.0, 2.5):
        h.add(value)
    assert h.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert (h.count, h.sum) == (5, 6.5001)


@fuzz
@given(st.lists(st.floats(0, 12), max_size=30), st.floats(0, 1))
def test_a_quantile_is_the_bound_above_it(values: list[float], q: float) -> None:
    h = Histogram((1.0, 2.0, 5.0, 10.0))
    for value in values:
        h.add(value)
    result = h.quantile(q)
    if not values:
        assert result == 0.0
        return
    assert result in h.bounds
    below = sum(v <= result for v in values)
    assert below >= q * len(values) - 2 * EPS or result == h.bounds[-1]
    smaller = [b for b in h.bounds if b < result]
    assert not smaller or sum(v <= smaller[-1] for v in values) < q * len(values)


def busy() -> Metrics:
    m = Metrics()
    m.enter("/v1/chat/completions")
    m.request("/v1/chat/completions", "m", "p", 200, "default", 0.7)
    m.request("/v1/chat/completions", "m", "p", 499, "default", 200.0)
    m.attempt("p", FailureClass.NONE, 0.25)
    m.attempt("q", FailureClass.SERVER, 0.0)
    m.add_tokens("m", "p", "default", 11, 7, "provider")
    m.stream_speed("m", "p", 0.03, 40, 2.0)
    m.overhead.add(60e-6)
    m.cost_micro_usd["p"] = 1_500_000
    m.bad_requests["400"] = 3
    return m


def families(page: bytes) -> dict[str, Any]:
    return {f.name: f for f in text_string_to_metric_families(page.decode())}


def sample(page: bytes, name: str, **labels: str) -> float | None:
    for family in families(page).values():
        for s in family.samples:
            if s.name == name and {k: v for k, v in s.labels.items() if k != "le" or "le" in labels} == labels:
                return float(s.value)
    return None


CONTRACT_C = {
    "llm_proxy_requests_total": {"method", "endpoint", "model", "provider", "status_code", "api_key_name"},
    "llm_proxy_request_duration_seconds_bucket": {"method", "endpoint", "model", "provider", "api_key_name", "le"},
    "llm_proxy_active_requests": {"endpoint"},
    "llm_proxy_tokens_total": {"model", "provider", "token_type", "api_key_name"},
    "llm_proxy_provider_health": {"provider"},
    "llm_proxy_provider_latency_seconds": {"provider"},
    "llm_proxy_ttft_seconds_bucket": {"source", "model", "provider", "le"},
    "llm_proxy_tokens_per_second": {"source", "model", "provider"},
}


@pytest.mark.parametrize("accept", ["", "text/plain", "application/openmetrics-text; version=1.0.0"])
def test_the_promised_names_are_there_with_their_labels(accept: str) -> None:  # contracts C
    page, content_type = render(busy(), [], accept)
    assert ("openmetrics" in content_type) == ("openmetrics" in accept)
    seen: dict[str, set[str]] = {}
    for family in families(page).values():
        for s in family.samples:
            seen.setdefault(s.name, set()).update(s.labels)
    for name, labels in CONTRACT_C.items():
        assert seen.get(name) == labels, name


def test_the_values_are_right() -> None:
    page, _ = render(busy(), [("slipstream_test", "A gauge.", 4.0)], "")
    chat = {
        "method": "POST",
        "endpoint": "/v1/chat/completions",
        "model": "m",
        "provider": "p",
        "api_key_name": "default",
    }
    assert sample(page, "llm_proxy_requests_total", **chat, status_code="200") == 1
    assert sample(page, "llm_proxy_requests_total", **chat, status_code="499") == 1
    assert sample(page, "llm_proxy_request_duration_seconds_bucket", **chat, le="1.0") == 1
    assert sample(page, "llm_proxy_request_duration_seconds_bucket", **chat, le="+Inf") == 2
    assert sample(page, "llm_proxy_request_duration_seconds_sum", **chat) == pytest.approx(200.7)
    for kind, count in (("prompt", 11), ("completion", 7), ("total", 18)):
        labels = {"model": "m", "provider": "p", "token_type": kind, "api_key_name": "default"}
        assert sample(page, "llm_proxy_tokens_total", **labels) == count
    assert sample(page, "llm_proxy_active_requests", endpoint="/v1/chat/completions") == 1
    assert sample(page, "llm_proxy_provider_health", provider="p") == 1
    assert sample(page, "llm_proxy_provider_health", provider="q") == 0
    assert sample(page, "llm_proxy_provider_latency_seconds", provider="p") == 0.25
    assert sample(page, "llm_proxy_tokens_per_second", source="provider", model="m", provider="p") == 20
    assert sample(page, "slipstream_upstream_attempts_total", provider="q", outcome="server") == 1
    assert sample(page, "slipstream_cost_usd_total", provider="p") == 1.5
    assert sample(page, "slipstream_bad_requests_total", status="400") == 3
    assert sample(page, "slipstream_usage_source_total", usage_source="provider") == 1
    assert sample(page, "slipstream_overhead_seconds_count") == 1
    assert sample(page, "slipstream_config_reloads_total", result="failed") == 0
    assert sample(page, "slipstream_test") == 4


def test_system_cs_duration_buckets() -> None:  # contracts C
    assert DURATION_BUCKETS_S == (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120)


def test_an_empty_page_renders() -> None:
    page, _ = render(Metrics(), [], "")
    assert sample(page, "slipstream_failovers_total") == 0


def test_the_gauge_of_requests_in_flight_goes_back() -> None:
    m = Metrics()
    for _ in range(3):
        m.enter("e")
    m.leave("e")
    assert m.active == {"e": 2}


@pytest.mark.parametrize("failure", [FailureClass.CLIENT_ERROR, FailureClass.CLIENT_GONE])
def test_the_clients_faults_say_nothing_of_health(failure: FailureClass) -> None:  # Q03
    m = Metrics()
    m.attempt("p", failure, 1.0)
    stats = m.providers["p"]
    assert (stats.healthy, stats.failures, stats.attempts, stats.latency_s) == (True, 0, 1, 0.0)


def test_health_follows_the_last_telling_attempt() -> None:
    m = Metrics()
    m.attempt("p", FailureClass.TIMEOUT, 0.0)
    stats = m.providers["p"]
    assert (stats.healthy, stats.last_failure) == (False, "timeout")
    m.attempt("p", FailureClass.NONE, 0.8)
    assert (stats.healthy, stats.latency_s) == (True, 0.8)
    m.attempt("p", FailureClass.NONE, 0.0)
    assert stats.latency_s == pytest.approx(0.7)


def test_one_token_or_no_time_is_no_speed() -> None:
    m = Metrics()
    m.stream_speed("m", "p", 0.1, 1, 2.0)
    m.stream_speed("m", "p", 0.1, 9, 0.0)
    assert m.rate == {}
    assert m.ttft[("provider", "m", "p")].count == 2
