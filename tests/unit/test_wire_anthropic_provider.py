"""Anthropic as a provider: whole answers, usage, URLs, credentials, lists, counts. Rules: R61, R66, R67."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import settings

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import ClientError, MalformedReply, UpstreamError
from slipstream.providers.anthropic import TYPE
from slipstream.types import Endpoint, FailureClass, Secret
from slipstream.wire.anthropic.reader import AnthropicReader
from slipstream.wire.anthropic.reply import read_reply
from slipstream.wire.anthropic.stop import finish_reason, stop_reason
from slipstream.wire.anthropic.usage import merge, read_usage
from slipstream.wire.canonical import Json, Reply
from slipstream.wire.usage import Usage
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=120)
OLD, NEW = "claude-sonnet-4-5", "claude-opus-4-8"
USER = {"role": "user", "content": "Hi"}
PIXEL = "iVBORw0KGgo="
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells it.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def spec(base: str = "https://api.anthropic.com", key: str = "sk-ant-api-1", **headers: str) -> ProviderSpec:
    fields = {name.replace("_", "-"): Secret(value) for name, value in headers.items()}
    return ProviderSpec("claude", "anthropic", base, Secret(key), headers=fields)


def call(identity: str, name: str, arguments: Any) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(identity: str, content: Any, **more: Any) -> Json:
    return {"role": "tool", "tool_call_id": identity, "content": content, **more}


# ====================================================================== answers


def message(*content: Any, stop: Any = "end_turn", **more: Any) -> bytes:
    body = {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-x",
        "content": list(content),
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": 3, "output_tokens": 5},
    }
    return json.dumps(body | more).encode()


def reply(*content: Any, stop: Any = "end_turn", **more: Any) -> Json:
    """The one choice of an answer."""
    found = read_reply(message(*content, stop=stop, **more), "p")
    assert len(found.choices) == 1
    return found.choices[0]


def test_a_reply() -> None:
    found = read_reply(
        message(
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
            {"type": "text", "text": "Hel"},
            {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {"query": "q"}},
            {"type": "web_search_tool_result", "tool_use_id": "srv", "content": []},
            {
                "type": "text",
                "text": "lo",
                "citations": [{"type": "web_search_result_location", "url": "https://x/y", "title": "T"}, {}, 1],
            },
            {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": 1}},
            {"type": "tool_use", "id": "toolu_2", "name": "g", "input": {}},
            stop="tool_use",
            usage={"input_tokens": 3, "output_tokens": 5, "service_tier": "standard"},
        ),
        "p",
    )
    assert (found.id, found.model, found.extra) == ("msg_1", "claude-x", {"service_tier": "default"})
    assert found.usage == Usage(3, 0, 0, 5, 0, "provider")
    choice = found.choices[0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["native_finish_reason"] == "tool_use"
    assert choice["message"] == {
        "role": "assistant",
        "content": "Hello",
        "reasoning_content": "Hm",
        "thinking_blocks": [
            {"type": "thinking", "thinking": "Hm", "signature": "s"},
            {"type": "redacted_thinking", "data": "d"},
        ],
        "tool_calls": [call("toolu_1", "f", '{"a":1}'), call("toolu_2", "g", "{}")],
        "annotations": [
            {
                "type": "url_citation",
                "url_citation": {"url": "https://x/y", "title": "T", "start_index": 3, "end_index": 5},
            }
        ],
    }


def test_a_refusal_has_no_content() -> None:
    """#efd5e83f."""
    details = {"type": "refusal", "category": "cyber", "explanation": "No."}
    found = read_reply(message(stop="refusal", stop_details=details), "p")
    assert found.choices[0]["message"] == {"role": "assistant", "content": ""}
    assert found.choices[0]["finish_reason"] == "content_filter"
    assert found.extra == {"stop_details": details}


@pytest.mark.parametrize(
    ("native", "plain", "with_calls"),
    [
        ("end_turn", "stop", "tool_calls"),
        ("stop_sequence", "stop", "tool_calls"),
        ("pause_turn", "stop", "tool_calls"),
        ("tool_use", "stop", "tool_calls"),
        ("max_tokens", "length", "length"),
        ("model_context_window_exceeded", "length", "length"),
        ("refusal", "content_filter", "content_filter"),
        ("something_new", "stop", "tool_calls"),
        (None, "stop", "tool_calls"),
    ],
)
def test_finish_reasons_are_decided_from_the_content(native: str | None, plain: str, with_calls: str) -> None:
    """PROTOCOLS.md 1.3."""
    assert finish_reason(native, calls=False) == plain
    assert finish_reason(native, calls=True) == with_calls
    use = {"type": "tool_use", "id": "a", "name": "f", "input": {}}
    assert reply(use, stop=native)["finish_reason"] == with_calls
    assert reply(stop=native)["finish_reason"] == plain


def test_stop_reasons_for_our_own_face() -> None:
    """PROTOCOLS.md 3.3: a tool_use block demands tool_use."""
    assert stop_reason("stop", calls=False) == "end_turn"
    assert stop_reason("stop", calls=False, stop_sequence="x") == "stop_sequence"
    assert stop_reason("stop", calls=True, stop_sequence="x") == "tool_use"
    assert stop_reason("tool_calls", calls=True) == "tool_use"
    assert stop_reason("tool_calls", calls=False) == "end_turn"
    assert stop_reason("length", calls=True) == "max_tokens"
    assert stop_reason("content_filter", calls=False) == "refusal"
    assert stop_reason(None, calls=False) == "end_turn"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b'"text"',
        b"<html>",
        b'{"content":"text"}',
        b'{"type":"completion","completion":"x"}',
        b'{"type":"message","content":{"a":1}}',
        b'{"type":"message"',
        b"\xff\xfe",
    ],
)
def test_what_is_no_message_is_malformed(body: bytes) -> None:
    """R66."""
    with pytest.raises(MalformedReply) as caught:
        read_reply(body, "p")
    assert "'p'" in caught.value.message


@pytest.mark.parametrize(
    ("body", "failure", "status"),
    [
        (b'{"type":"error","error":{"type":"overloaded_error","message":"Busy"}}', FailureClass.OVERLOADED, 529),
        (b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow"}}', FailureClass.RATE_LIMITED, 429),
        (b'{"type":"error","error":{"type":"api_error","message":"Oops"}}', FailureClass.SERVER, 500),
        (b'{"type":"error","error":{"type":"authentication_error","message":"k"}}', FailureClass.AUTH, 502),
        (b'{"error":{"message":"odd","code":503}}', FailureClass.OVERLOADED, 503),
        (b'{"error":"text"}', FailureClass.SERVER, 502),
        (b'{"type":"error"}', FailureClass.SERVER, 502),
        (b'{"type":"error","error":null}', FailureClass.SERVER, 502),
        (b'{"type":"error","error":{"type":["x"],"message":5}}', FailureClass.SERVER, 502),
    ],
)
def test_an_error_under_200_is_an_error(body: bytes, failure: FailureClass, status: int) -> None:
    with pytest.raises(UpstreamError) as caught:
        read_reply(body, "p")
    error = caught.value
    assert (error.failure, error.status) == (failure, status)
    stream = AnthropicReader("p")
    stream.feed(b"event: error\ndata: " + body + b"\n\n")
    assert stream.failure is not None
    assert (stream.failure.failure, stream.failure.status) == (failure, status)
    assert (stream.failure.message, stream.failure.upstream_status) == (error.message, error.upstream_status)


def test_odd_fields_of_a_message_are_survived() -> None:
    """R61: null, missing, of another type."""
    choice = reply(
        None,
        7,
        {"type": "text"},
        {"type": "text", "text": None},
        {"type": None},
        {"type": "thinking"},
        {"type": "redacted_thinking"},
        {"type": "tool_use", "input": None},
        {"type": "tool_use", "id": 5, "name": None, "input": [1]},
        {"type": "text", "text": "ok", "citations": "x"},
        stop=5,
        usage=[],
        id=None,
        model=3,
    )
    assert choice["message"]["content"] == "ok"
    assert [c["function"]["arguments"] for c in choice["message"]["tool_calls"]] == ["{}", "{}"]
    assert len({c["id"] for c in choice["message"]["tool_calls"]}) == 2
    assert "native_finish_reason" not in choice
    assert read_reply(b'{"type":"message","content":null}', "p").choices[0]["message"]["content"] == ""


# ---------------------------------------------------------------------- usage


@pytest.mark.parametrize(
    ("given_", "expected"),
    [
        (None, None),
        ([], None),
        ({}, None),
        ({"input_tokens": None, "output_tokens": "5"}, None),
        ({"input_tokens": -1, "output_tokens": True}, None),
        ({"output_tokens": 5}, Usage(0, 0, 0, 5, 0, "provider")),
        (
            {
                "input_tokens": 1,
                "cache_creation_input_tokens": 126,
                "cache_read_input_tokens": 1143,
                "output_tokens": 22,
            },
            Usage(1, 1143, 126, 22, 0, "provider"),
        ),
        (
            {
                "input_tokens": 1,
                "output_tokens": 9,
                "cache_creation": {"ephemeral_5m_input_tokens": 2, "ephemeral_1h_input_tokens": 3},
                "output_tokens_details": {"thinking_tokens": 4},
            },
            Usage(1, 0, 5, 5, 4, "provider"),
        ),
        (
            {"input_tokens": 1, "output_tokens": 2, "output_tokens_details": {"thinking_tokens": 99}},
            Usage(1, 0, 0, 0, 2, "provider"),
        ),
    ],
)
def test_usage_in_buckets(given_: Any, expected: Usage | None) -> None:
    """R67; PROTOCOLS.md 1.4: input_tokens excludes the cache, thinking is inside output_tokens."""
    assert read_usage(given_) == expected


def test_usage_of_a_stream_is_merged_field_by_field_and_never_added() -> None:
    start = merge({}, {"input_tokens": 43, "cache_read_input_tokens": 7, "output_tokens": 1})
    only_output = merge(start, {"output_tokens": 67, "cache_read_input_tokens": None})
    assert read_usage(only_output) == Usage(43, 7, 0, 67, 0, "provider")
    assert read_usage(merge(only_output, {"input_tokens": 61, "output_tokens": 68})) == Usage(
        61, 7, 0, 68, 0, "provider"
    )
    assert merge(start, "x") == start
    assert start["output_tokens"] == 1


# ====================================================================== the provider type


@pytest.mark.parametrize(
    ("base", "root"),
    [
        ("https://api.anthropic.com", "https://api.anthropic.com/v1"),
        ("https://api.anthropic.com/v1", "https://api.anthropic.com/v1"),
        ("http://host:8/anthropic", "http://host:8/anthropic/v1"),
    ],
)
def test_urls(base: str, root: str) -> None:
    where = spec(base)
    assert TYPE.url(where, Endpoint.MESSAGES, OLD, False) == f"{root}/messages"
    assert TYPE.url(where, Endpoint.COUNT_TOKENS, OLD, False) == f"{root}/messages/count_tokens"
    assert TYPE.models_url(where) == f"{root}/models?limit=1000"
    assert TYPE.build({"messages": [USER]}, where, OLD).url == f"{root}/messages"
    counting = TYPE.build_count({"messages": [USER]}, where, OLD)
    assert counting is not None
    assert counting.url == f"{root}/messages/count_tokens"


def test_headers() -> None:
    headers = TYPE.headers(spec())
    assert headers["x-api-key"] == "sk-ant-api-1"
    assert headers["anthropic-version"] == "2023-06-01"
    assert "Authorization" not in headers
    own = TYPE.headers(spec(Anthropic_Version="2026-10-21"))
    assert [own[name] for name in own if name.lower() == "anthropic-version"] == ["2026-10-21"]


def test_oauth_tokens_are_bearers() -> None:
    headers = TYPE.headers(spec(key="sk-ant-oat01-abc", Anthropic_Beta="a-1, b-2"))
    lower = {name.lower(): value for name, value in headers.items()}
    assert len(lower) == len(headers)
    assert lower["authorization"] == "Bearer sk-ant-oat01-abc"
    assert "x-api-key" not in lower
    assert lower["anthropic-beta"] == "a-1,b-2,oauth-2025-04-20"


def test_built() -> None:
    built = TYPE.build({"messages": [USER], "stream": True, "seed": 1}, spec(), OLD)
    assert json.loads(built.body)["stream"] is True
    assert (built.headers, built.dropped) == (None, ["seed"])


def test_uploaded_files_need_a_beta() -> None:
    part = {"type": "file", "file": {"file_id": "file_1"}}
    for messages in (
        [{"role": "user", "content": [part]}],
        [USER, {"role": "assistant", "tool_calls": [call("a", "f", "{}")]}, result("a", [part])],
    ):
        built = TYPE.build({"messages": messages}, spec(anthropic_beta="x"), OLD)
        assert built.headers == {"anthropic-beta": "x,files-api-2025-04-14"}


def test_counting_tokens() -> None:
    """#59a11748."""
    request = {
        "messages": [{"role": "system", "content": "S"}, USER],
        "tools": [WEATHER],
        "temperature": 0.3,
        "stop": "x",
    }
    built = TYPE.build_count(request, spec(), OLD)
    assert built is not None
    assert set(json.loads(built.body)) == {"model", "messages", "system", "tools"}
    assert TYPE.count(b'{"input_tokens":14}', spec()) == 14
    for bad in (b"{}", b"", b"[]", b'{"input_tokens":"14"}', b'{"input_tokens":-1}', b'{"input_tokens":true}'):
        with pytest.raises(MalformedReply):
            TYPE.count(bad, spec())
    with pytest.raises(UpstreamError) as caught:
        TYPE.count(b'{"type":"error","error":{"type":"not_found_error","message":"model: x"}}', spec())
    assert caught.value.status == 404


def test_too_deep_a_request_is_the_clients_mistake() -> None:
    deep: Any = {}
    for _ in range(1500):
        deep = {"properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    with pytest.raises(ClientError):
        TYPE.build({"messages": [USER], "tools": [tool]}, spec(), OLD)
    for schema in (deep, {"type": "object", "patternProperties": deep}):
        wish = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        with pytest.raises(ClientError):
            TYPE.build({"messages": [USER], "response_format": wish}, spec(), OLD)
    used = {"role": "assistant", "tool_calls": [call("a", "f", [deep])]}
    with pytest.raises(ClientError):
        TYPE.build({"messages": [USER, used, result("a", "1")]}, spec(), OLD)


def test_models() -> None:
    listed = {
        "data": [
            {
                "type": "model",
                "id": "claude-opus-4-5",
                "display_name": "Claude Opus 4.5",
                "created_at": "1970-01-02T00:00:00Z",
                "max_input_tokens": 200000,
                "max_tokens": 64000,
            },
            {"id": "odd", "created_at": "yesterday", "max_tokens": None},
            {"id": "ollama", "object": "model", "created": 5},
            {"id": None},
            7,
        ],
        "has_more": False,
    }
    assert TYPE.read_models(json.dumps(listed).encode()) == [
        {
            "id": "claude-opus-4-5",
            "owned_by": "anthropic",
            "created": 86400,
            "context_window": 200000,
            "max_output_tokens": 64000,
        },
        {"id": "odd", "owned_by": "anthropic"},
        {"id": "ollama", "owned_by": "anthropic", "created": 5},
    ]
    for bad in (b"", b"{}", b"[]", b'{"data":{}}'):
        with pytest.raises(ValueError, match=r".*"):
            TYPE.read_models(bad)


# ====================================================================== recorded exchanges

DEV = SHARED / "wire" / "dev"


def recorded(*apis: str) -> list[Any]:
    if not DEV.is_dir():
        return [
            pytest.param(None, marks=pytest.mark.skip(reason="the shared folder with recorded exchanges is absent"))
        ]
    names = [name for api in apis for name in sorted(DEV.glob(f"{api}.*.json"))]
    return [pytest.param(json.loads(name.read_text()), id=name.stem) for name in names]


@pytest.mark.parametrize("exchange", recorded("anthropic.models", "anthropic.count-tokens"))
def test_recorded_lists_and_counts(exchange: Json) -> None:
    expected, body = exchange["expected"], exchange["response"]["body"].encode()
    if "tokens" in expected:
        assert TYPE.count(body, spec()) == expected["tokens"]
    else:
        assert [model["id"] for model in TYPE.read_models(body)] == expected["models"]


def test_a_reply_is_a_canonical_one() -> None:
    found = TYPE.reply(message({"type": "text", "text": "x"}), {}, spec())
    assert isinstance(found, Reply)
    assert TYPE.reader(spec()).reads_json is False
