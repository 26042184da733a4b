"""Every form of a provider's error body becomes one error of ours, and what leaves is always OpenAI's object, short,
without HTML and without a hint at the gateway's key (R55, Q39; PROTOCOLS.md 1.5)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import (
    ClientError,
    ConnectFailed,
    GatewayError,
    MalformedReply,
    TransportError,
    UpstreamError,
    UpstreamTimeout,
)
from slipstream.types import FailureClass
from slipstream.wire.openai_errors import (
    MAX_MESSAGE_CHARS,
    error_body,
    error_event,
    read_error,
    read_error_in_200,
    status_class,
)

fuzz = settings(deadline=None, derandomize=True, max_examples=100)


def read(status: int, value: Any, **more: Any) -> UpstreamError:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return read_error(status, body, provider="p", **more)


def shown(error: GatewayError) -> dict[str, Any]:
    """What the client is told; always the one form."""
    value = json.loads(error_body(error))
    assert list(value) == ["error"]
    inner: dict[str, Any] = value["error"]
    assert {"message", "type", "param", "code"} <= set(inner)
    assert isinstance(inner["message"], str)
    assert inner["message"]
    return inner


# ---- status ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "failure"),
    [
        (400, FailureClass.CLIENT_ERROR), (401, FailureClass.AUTH), (402, FailureClass.CLIENT_ERROR),
        (403, FailureClass.CLIENT_ERROR), (404, FailureClass.CLIENT_ERROR), (408, FailureClass.TIMEOUT),
        (409, FailureClass.CLIENT_ERROR), (413, FailureClass.CLIENT_ERROR), (422, FailureClass.CLIENT_ERROR),
        (429, FailureClass.RATE_LIMITED), (499, FailureClass.CLIENT_ERROR), (500, FailureClass.SERVER),
        (502, FailureClass.SERVER), (503, FailureClass.OVERLOADED), (504, FailureClass.TIMEOUT),
        (529, FailureClass.OVERLOADED), (599, FailureClass.SERVER),
    ],
)  # fmt: skip
def test_the_failure_class_of_each_status(status: int, failure: FailureClass) -> None:  # R54, row by row
    assert status_class(status) is failure
    error = read(status, {"error": {"message": "x"}})
    assert error.failure is failure
    assert error.upstream_status == status
    assert error.status == (502 if status == 401 else status)  # R55: the class is preserved


@pytest.mark.parametrize("status", [300, 301, 302, 303, 304, 307, 308, 399])
def test_redirects_are_a_bad_upstream(status: int) -> None:  # Q34, S-20
    error = read(status, b'{"error":{"message":"http://trap.test/"}}')
    assert (error.status, error.code, error.failure) == (502, "upstream_redirect", FailureClass.MALFORMED)
    assert "trap" not in error_body(error).decode()


@pytest.mark.parametrize("status", [100, 101, 103, 199, 600, 700, 999])
def test_a_status_that_is_no_answer_is_a_bad_upstream(status: int) -> None:  # S-16, S-19
    """Never handed to the client: 101 would switch its protocol, and 999 is not HTTP."""
    error = read(status, {"error": {"message": "x"}})
    assert (error.status, error.failure, error.upstream_status) == (502, FailureClass.MALFORMED, status)


# ---- bodies ----------------------------------------------------------------------------------------------------------

BAD = "invalid_request_error"
FORMS = {
    "openai": ({"error": {"message": "m", "type": "t", "param": "p", "code": "c"}}, ("m", "t", "p", "c")),
    "bare": ({"error": {"message": "m"}}, ("m", BAD, None, None)),
    "azure": ({"error": {"code": "429", "message": "m"}}, ("m", BAD, None, "429")),
    "vllm": ({"error": {"message": "m", "type": "BadRequestError", "code": 400}}, ("m", "BadRequestError", None, 400)),
    "vllm flat": ({"object": "error", "message": "m", "type": "t", "param": None, "code": 40}, ("m", "t", None, 40)),
    "mistral flat": ({"object": "error", "message": "m", "type": "t", "code": "1300"}, ("m", "t", None, "1300")),
    "mistral gateway": ({"detail": "m"}, ("m", BAD, None, None)),
    "message": ({"message": "m"}, ("m", BAD, None, None)),
    "together": ({"id": "o", "error": {"message": "m", "type": "t", "code": "c"}}, ("m", "t", None, "c")),
    "openrouter": ({"error": {"message": "m", "code": 400, "metadata": {}}, "user_id": "u"}, ("m", BAD, None, 400)),
    "string": ({"error": "m"}, ("m", BAD, None, None)),
    "xai": ({"code": "invalid-argument", "error": "m"}, ("m", BAD, None, "invalid-argument")),
    "array": ([{"error": {"message": "m", "code": 429}}], ("m", BAD, None, 429)),
    "padded": (b'\n  {"error":{"message":"m"}}\n', ("m", BAD, None, None)),
    "odd types": ({"error": {"message": "m", "type": 5, "param": ["x"], "code": {"a": 1}}}, ("m", BAD, None, None)),
}


@pytest.mark.parametrize(("body", "wanted"), FORMS.values(), ids=FORMS)
def test_each_form_of_body_is_read(body: Any, wanted: tuple[Any, ...]) -> None:  # R55
    error = read(400, body)
    assert tuple(shown(error)[key] for key in ("message", "type", "param", "code")) == wanted
    assert error.message == "m"
    assert error.code == (None if wanted[3] is None else str(wanted[3]))


def test_a_message_that_is_an_object_is_written_out() -> None:  # Mistral's 422
    detail = {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_completion_tokens"]}]}
    error = read(422, {"object": "error", "message": detail, "type": "invalid_request_error"})
    assert json.loads(shown(error)["message"]) == detail
    assert json.loads(shown(read(422, {"detail": detail["detail"]}))["message"]) == detail["detail"]


@pytest.mark.parametrize(
    "body",
    [b"", b"  \n", b"<html><h1>502 Bad Gateway</h1>nginx/1.2 10.0.0.7</html>", b"upstream connect error", b"\xff\xfe",
     b"null", b"[]", b"{}", b'"text"', b"5", b'{"error":null}', b'{"error":true}', b'{"error":{"message":""}}',
     b'{"error":{"message":5}}', b'{"error":[1]}', b'{"error":{"message":"x"', b'[{"error":"a"},{"error":"b"}]'],
)  # fmt: skip
@pytest.mark.parametrize("status", [400, 502, 503])
def test_anything_else_is_described_by_its_status_alone(body: bytes, status: int) -> None:  # Q39, S-30
    error = read(status, body)
    assert error.status == status
    assert shown(error)["message"] == f"the provider 'p' answered with status {status}"
    assert shown(error)["type"] == ("invalid_request_error" if status < 500 else "upstream_error")


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"message": "Incorrect API key provided: sk-ca***ary", "code": "invalid_api_key"}},
        b"<html>canary",
        b"",
    ],
)
def test_a_401_says_nothing_of_the_key(body: Any) -> None:  # R56, S-49, S-50
    error = read(401, body)
    assert (error.status, error.failure, error.upstream_status) == (502, FailureClass.AUTH, 401)
    text = error_body(error).decode()
    assert "sk-" not in text
    assert "canary" not in text
    assert shown(error)["code"] == "upstream_auth_error"


def test_long_messages_are_cut() -> None:  # Q39
    error = read(400, {"error": {"message": "very long " * 1000}})
    assert MAX_MESSAGE_CHARS - 255 <= len(error.message) <= MAX_MESSAGE_CHARS
    assert shown(error)["message"] == error.message
    assert len(read(400, {"error": {"message": "é" * 10_000}}).message) >= MAX_MESSAGE_CHARS - 255


@pytest.mark.parametrize("before", range(MAX_MESSAGE_CHARS - 45, MAX_MESSAGE_CHARS + 1, 5))
def test_the_cut_leaves_no_half_of_a_key(before: int) -> None:  # R84: who redacts by value could not find it
    key = "Canary" + "0123456789" * 3
    message = read(400, {"error": {"message": "a " * (before // 2) + key + " is bad" * 20}}).message
    assert "Canary" not in message or key in message


def test_known_extras_survive_and_are_bounded() -> None:  # Groq, Azure, OpenRouter
    extras = {
        "failed_generation": "<function=x>",
        "innererror": {"code": "ResponsibleAIPolicyViolation"},
        "metadata": {"raw": "x" * 10_000},
        "content_filter_result": None,
        "stack": "File /srv/app.py",
    }
    inner = shown(read(400, {"error": {"message": "m", **extras}}))
    assert inner["failed_generation"] == extras["failed_generation"]
    assert inner["innererror"] == extras["innererror"]
    assert not {"metadata", "content_filter_result", "stack"} & set(inner)


def test_retry_after_is_carried() -> None:  # R52
    assert read(429, {"error": {"message": "m"}}, retry_after_s=2.5).retry_after_s == 2.5
    assert read(429, b"").retry_after_s is None


# ---- errors under status 200 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "status", "failure"),
    [
        ({"code": 429}, 429, FailureClass.RATE_LIMITED),
        ({"code": "429"}, 429, FailureClass.RATE_LIMITED),
        ({"status_code": 503, "code": 400}, 503, FailureClass.OVERLOADED),
        ({"status": 500}, 500, FailureClass.SERVER),
        ({"code": "rate_limit_exceeded"}, 429, FailureClass.RATE_LIMITED),
        ({"type": "overloaded_error"}, 503, FailureClass.OVERLOADED),
        ({"code": "context_length_exceeded", "type": "server_error"}, 400, FailureClass.CLIENT_ERROR),
        ({"code": "insufficient_quota"}, 429, FailureClass.RATE_LIMITED),
        ({"code": "model_not_found"}, 404, FailureClass.CLIENT_ERROR),
        ({"type": "server_error"}, 502, FailureClass.SERVER),
        ({"type": "unheard_of", "code": 7}, 502, FailureClass.SERVER),
        ({"code": 200}, 502, FailureClass.SERVER),
        ({"code": 999}, 502, FailureClass.SERVER),
        ({"code": "٤٢٩"}, 502, FailureClass.SERVER),
        ({"code": True}, 502, FailureClass.SERVER),
        ({"code": 429.0}, 502, FailureClass.SERVER),
        ({"code": ["x"], "type": {}}, 502, FailureClass.SERVER),
        ({}, 502, FailureClass.SERVER),
    ],
)
def test_the_status_an_error_in_a_200_would_have_had(
    fields: dict[str, Any], status: int, failure: FailureClass
) -> None:  # R15, S-37
    error = read_error_in_200(json.dumps({"error": {"message": "m", **fields}}).encode(), provider="p")
    assert (error.status, error.failure, error.message) == (status, failure, "m")
    assert error.upstream_status == 200


@pytest.mark.parametrize("body", [b"", b"{}", b"nonsense", b'{"error":{}}'])
def test_an_undescribed_error_in_a_200(body: bytes) -> None:
    error = read_error_in_200(body, provider="p")
    assert (error.status, error.failure) == (502, FailureClass.SERVER)
    assert shown(error)["message"]


# ---- our own errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ClientError("m", param="model", code="c"), 400, "c"),
        (GatewayError("m"), 500, "internal_error"),
        (ConnectFailed("m"), 502, "upstream_connect_error"),
        (TransportError(), 502, "upstream_connection_closed"),
        (MalformedReply("m"), 502, "upstream_malformed_response"),
        (UpstreamTimeout("connect", 5), 504, "upstream_connect_timeout"),
        (UpstreamTimeout("send", 30), 504, "upstream_send_timeout"),
        (UpstreamTimeout("first_byte", 60), 504, "upstream_first_byte_timeout"),
        (UpstreamTimeout("idle", 300), 504, "upstream_idle_timeout"),
        (UpstreamTimeout("total", 600), 504, "upstream_total_timeout"),
    ],
)
def test_every_error_of_ours_has_the_form(error: GatewayError, status: int, code: str) -> None:  # R17, R21, Q39
    assert error.status == status
    assert shown(error)["code"] == code
    assert shown(error)["message"] == error.message


@pytest.mark.parametrize("error", [TransportError(), read(500, {"error": {"message": "a\n\ndata: [DONE]\n\n"}})])
def test_an_in_band_error_is_one_event_without_done(error: UpstreamError) -> None:  # R12
    frame = error_event(error)
    assert frame.startswith(b"data: {")
    assert frame.endswith(b"}\n\n")
    assert frame.count(b"\n") == 2
    assert "error" in json.loads(frame.removeprefix(b"data: "))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["error", "message", "type", "code", "param", "detail", "metadata", "status", "x"]), inner
        )
    ),
    max_leaves=10,
)


@fuzz
@given(st.integers(100, 999), st.one_of(st.binary(max_size=60), json_values.map(lambda v: json.dumps(v).encode())))
def test_no_body_makes_reading_raise(status: int, body: bytes) -> None:  # R66
    for error in (read(status, body), read_error_in_200(body, provider="p")):
        assert 400 <= error.status <= 599
        shown(error)
        assert len(error_body(error)) < 64 * 1024
        assert error_event(error).count(b"\n") == 2
