"""``/v1/infer`` and its errors: what the published description says (contract E, llm-router-openapi.yaml), checked with
the schemas of that description themselves."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import (
    ClientError,
    ConnectFailed,
    GatewayError,
    MalformedReply,
    ShuttingDown,
    UpstreamError,
    UpstreamTimeout,
)
from slipstream.types import FailureClass
from slipstream.wire.canonical import Answer, Chunk, Reply
from slipstream.wire.infer import POLICIES, InferWriter, decode_request, encode_reply, read_request
from slipstream.wire.ollama.reader import ChatReader
from slipstream.wire.problem import CONTENT_TYPE, TYPE_PREFIX, problem_body
from slipstream.wire.usage import Usage
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=100)
Json = dict[str, Any]
CONTRACT = SHARED / "contracts" / "llm-router-openapi.yaml"
ANSWER = Answer(id="req_1", model="m", created=0, request={})
needs_contract = pytest.mark.skipif(not CONTRACT.is_file(), reason="the published contracts are not beside this tree")


@pytest.fixture(scope="module")
def published() -> Json:
    value: Json = yaml.safe_load(CONTRACT.read_text())
    return value


def schema(published: Json, name: str) -> Json:
    found: Json = published["components"]["schemas"][name]
    return found


_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,), "string": (str,), "integer": (int,), "number": (int, float),
    "boolean": (bool,), "array": (list,),
}  # fmt: skip


def faults(value: Any, wanted: Json, at: str = "$") -> list[str]:
    """What of JSON Schema the description uses; ``additionalProperties`` it never sets, so none may be there."""
    kind = wanted["type"]
    if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{at}: not of type {kind}"]
    found = []
    if "minimum" in wanted and value < wanted["minimum"]:
        found.append(f"{at}: below minimum")
    if "maximum" in wanted and value > wanted["maximum"]:
        found.append(f"{at}: above maximum")
    if "maxLength" in wanted and len(value) > wanted["maxLength"]:
        found.append(f"{at}: too long")
    if "enum" in wanted and value not in wanted["enum"]:
        found.append(f"{at}: not one of the enum")
    if wanted.get("format") == "uri" and not re.fullmatch(r"[a-z][a-z0-9+.-]*:[!-~]+", value):
        found.append(f"{at}: no URI")
    if kind == "object":
        found += [f"{at}.{name}: missing" for name in wanted.get("required", []) if name not in value]
        for name, inner in value.items():
            known = wanted["properties"].get(name)
            found += [f"{at}.{name}: unknown"] if known is None else faults(inner, known, f"{at}.{name}")
    return found


# ---- requests --------------------------------------------------------------------------------------------------------


def test_a_prompt_becomes_a_chat() -> None:
    body = {
        "prompt": "Hi",
        "model": "gpt-4o",
        "max_tokens": 5,
        "stream": True,
        "policy": "canary",
        "idempotency_key": "k",
    }
    request, dropped = decode_request(body)
    assert request == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 5,
        "stream": True,
    }
    assert dropped == []
    asked = read_request(body)
    assert (asked.policy, asked.idempotency_key) == ("canary", "k")


def test_only_the_prompt_is_needed() -> None:
    """Without a model the engine chooses one."""
    request, _ = decode_request({"prompt": "Hi", "model": None, "stream": None, "policy": None})
    assert request == {"model": "", "messages": [{"role": "user", "content": "Hi"}]}
    asked = read_request({"prompt": "Hi"})
    assert (asked.model, asked.max_tokens, asked.stream, asked.policy, asked.idempotency_key) == (
        "",
        None,
        False,
        None,
        None,
    )


def test_what_has_no_place_is_listed() -> None:
    """R65; a name can stand in a header."""
    assert decode_request({"prompt": "x", "temperature": 1, "top_p": None, "a\r\nb: c": 1})[1] == ["temperature", "?"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"), ({"prompt": ""}, "prompt"), ({"prompt": None}, "prompt"), ({"prompt": 5}, "prompt"),
        ({"prompt": ["x"]}, "prompt"), ({"prompt": "x", "model": 5}, "model"),
        ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 4097}, "max_tokens"), ({"prompt": "x", "max_tokens": "5"}, "max_tokens"),
        ({"prompt": "x", "max_tokens": True}, "max_tokens"), ({"prompt": "x", "max_tokens": 1.5}, "max_tokens"),
        ({"prompt": "x", "stream": "yes"}, "stream"), ({"prompt": "x", "stream": 1}, "stream"),
        ({"prompt": "x", "policy": "best"}, "policy"), ({"prompt": "x", "policy": 1}, "policy"),
        ({"prompt": "x", "idempotency_key": "k" * 256}, "idempotency_key"),
        ({"prompt": "x", "idempotency_key": 1}, "idempotency_key"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field(body: Json, field: str) -> None:
    with pytest.raises(ClientError) as caught:
        decode_request(body)
    assert caught.value.param == field
    assert caught.value.status == 400
    assert field in caught.value.message


@needs_contract
def test_the_limits_are_the_published_ones(published: Json) -> None:
    properties = schema(published, "InferRequest")["properties"]
    assert list(POLICIES) == properties["policy"]["enum"]
    read_request({"prompt": "x", "max_tokens": properties["max_tokens"]["maximum"]})
    read_request({"prompt": "x", "idempotency_key": "k" * properties["idempotency_key"]["maxLength"]})


_plain = st.none() | st.booleans() | st.integers(-1, 5000) | st.text(max_size=8) | st.sampled_from(POLICIES)
_names = ("model", "prompt", "max_tokens", "stream", "policy", "idempotency_key")


@needs_contract
@fuzz
@given(body=st.fixed_dictionaries({}, optional={name: _plain for name in _names}))  # noqa: C420
def test_what_is_valid_is_what_the_schema_allows(published: Json, body: Json) -> None:
    """But for ``null``, which is as good as nothing here, and an empty prompt, which is none."""
    said = {name: value for name, value in body.items() if value is not None}
    valid = not faults(said, schema(published, "InferRequest")) and said["prompt"] != ""
    try:
        decode_request(body)
    except ClientError:
        assert not valid
    else:
        assert valid


# ---- whole answers ---------------------------------------------------------------------------------------------------


def reply(**message: Any) -> Reply:
    return Reply([{"index": 0, "message": {"role": "assistant", **message}, "finish_reason": "stop"}])


@needs_contract
def test_an_answer_has_the_published_shape(published: Json) -> None:
    body = encode_reply(reply(content="Paris"), ANSWER, provider="alpha", cost_usd=0.0025, latency_ms=1249.6)
    shown = json.loads(body)
    assert shown == {
        "provider": "alpha",
        "text": "Paris",
        "cost_usd": 0.0025,
        "latency_ms": 1250,
        "request_id": "req_1",
    }
    assert faults(shown, schema(published, "InferResponse")) == []


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None}, ""), ({"content": None, "refusal": "No."}, "No."), ({}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": "", "reasoning_content": "hm"}, ""),
    ],
)  # fmt: skip
def test_the_text_of_an_answer(message: Json, text: str) -> None:
    assert json.loads(encode_reply(reply(**message), ANSWER, provider="p", cost_usd=0, latency_ms=0))["text"] == text


def test_an_answer_without_choices_and_odd_figures() -> None:
    shown = json.loads(encode_reply(Reply([]), ANSWER, provider="p", cost_usd=-1, latency_ms=-5))
    assert (shown["text"], shown["cost_usd"], shown["latency_ms"]) == ("", 0, 0)


# ---- streams ---------------------------------------------------------------------------------------------------------


def events(data: bytes) -> list[Json]:
    return [json.loads(part.removeprefix(b"data: ")) for part in data.split(b"\n\n") if part]


@needs_contract
def test_a_stream_ends_with_the_whole_answer(published: Json) -> None:
    asked: list[Usage | None] = []

    def settle(usage: Usage | None) -> tuple[float, float]:
        asked.append(usage)
        return 0.5, 12.4

    reader = ChatReader(provider="p")
    reader.usage = Usage(1, output=2)
    writer = InferWriter(ANSWER, "alpha", settle)
    first = writer.write(
        [Chunk({"reasoning_content": "hm"}), Chunk({"content": "Par"}), Chunk({"content": "x"}, index=1)], reader
    )
    second = writer.write([Chunk({"content": "is \n\u2028"}), Chunk({}, finish_reason="stop")], reader)
    assert events(first) == [{"text": "Par"}]
    assert events(second) == [{"text": "is \n\u2028"}]
    (last,) = events(writer.end(reader))
    assert last.pop("done") is True
    assert last == {
        "provider": "alpha",
        "text": "Paris \n\u2028",
        "cost_usd": 0.5,
        "latency_ms": 12,
        "request_id": "req_1",
    }
    assert faults(last, schema(published, "InferResponse")) == []
    assert asked == [reader.usage]


@fuzz
@given(st.lists(st.text(max_size=10), max_size=6))
def test_the_pieces_are_the_text(pieces: list[str]) -> None:
    reader, writer = ChatReader(provider="p"), InferWriter(ANSWER, "p")
    said = events(writer.write([Chunk({"content": piece}) for piece in pieces], reader))
    (last,) = events(writer.end(reader))
    assert "".join(event["text"] for event in said) == "".join(pieces) == last["text"]


def test_a_refusal_is_text() -> None:
    reader, writer = ChatReader(provider="p"), InferWriter(ANSWER, "p")
    assert events(writer.write([Chunk({"refusal": "No."})], reader)) == [{"text": "No."}]


def test_an_error_in_a_stream_is_an_error_event() -> None:
    """R12: well-formed, and nothing that looks like an end."""
    out = InferWriter(ANSWER, "p").error(MalformedReply("the provider 'p' sent nonsense"))
    event, data, rest = out.split(b"\n", 2)
    assert event == b"event: error"
    assert rest == b"\n"
    shown = json.loads(data.removeprefix(b"data: "))
    assert (shown["status"], shown["request_id"]) == (502, "req_1")
    assert "done" not in shown


# ---- problems --------------------------------------------------------------------------------------------------------

ERRORS: list[tuple[GatewayError, str]] = [
    (ClientError("Prompt is required", param="prompt"), "invalid_request"),
    (ClientError("The key is not valid", status=401, code="invalid_api_key"), "invalid_api_key"),
    (ClientError("No such model", status=404), "not_found"),
    (ClientError("Too fast", status=429), "rate_limit_exceeded"),
    (ClientError("odd", status=418), "client_error"),
    (GatewayError("No providers are currently available", status=503), "service_unavailable"),
    (GatewayError("bug"), "internal_error"),
    (ConnectFailed("no connection"), "bad_gateway"),
    (UpstreamTimeout("idle", 5), "gateway_timeout"),
    (ShuttingDown(), "service_unavailable"),
    (UpstreamError("spent", failure=FailureClass.QUOTA, status=429, code="insufficient_quota"), "quota_exhausted"),
    (UpstreamError("busy", failure=FailureClass.OVERLOADED, status=529), "server_error"),
    (UpstreamError("odd", failure=FailureClass.SERVER, status=200), "internal_error"),
    (UpstreamError("", failure=FailureClass.SERVER, status=502), "bad_gateway"),
]


@needs_contract
@pytest.mark.parametrize(("error", "word"), ERRORS, ids=lambda value: value if isinstance(value, str) else "")
def test_problems_have_the_published_shape(published: Json, error: GatewayError, word: str) -> None:
    """RFC 9457 and the schema ``Problem``."""
    shown = json.loads(problem_body(error, "req_1"))
    assert faults(shown, schema(published, "Problem")) == []
    assert shown["type"] == TYPE_PREFIX + word
    assert shown["detail"] == (error.message or shown["title"])
    assert "trace_id" not in shown
    assert json.loads(problem_body(error, "req_1", "t1"))["trace_id"] == "t1"


@needs_contract
def test_types_end_like_the_published_examples(published: Json) -> None:
    responses = published["paths"]["/v1/infer"]["post"]["responses"]
    for status in ("400", "401", "429", "503"):
        (content_type, content), = responses[status]["content"].items()  # fmt: skip
        assert content_type == CONTENT_TYPE
        shown = json.loads(problem_body(GatewayError("x", status=int(status), code=None), "r"))
        assert shown["type"].rpartition(":")[2] == content["example"]["type"].rpartition("/")[2]
        assert shown["title"] == content["example"]["title"]


def test_a_providers_body_is_never_told() -> None:
    error = UpstreamError("short", failure=FailureClass.SERVER, status=500, body=b'{"error":{"message":"secret"}}')
    assert b"secret" not in problem_body(error, "r")
