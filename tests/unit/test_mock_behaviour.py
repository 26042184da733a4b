"""The mock's decisions: latency, tokens, answers, validation, faults. No socket, no clock."""

from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.mock import faults
from slipstream.mock.behaviour import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    Behaviour,
    Ending,
    MockSettings,
    Plan,
    count_tokens,
)

USER = [{"role": "user", "content": "Hello there"}]
TOOLS = [{"type": "function", "function": {"name": name}} for name in ("first", "second")]


def plan(body: Any, endpoint: str = CHAT, fault: str | None = None, **settings: Any) -> Plan:
    settings = {"mean_latency_ms": 0, "seed": 1} | settings
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Behaviour(MockSettings(**settings)).plan(endpoint, raw, fault, 1234)


def chat(fault: str | None = None, settings: dict[str, Any] | None = None, **fields: Any) -> Plan:
    return plan({"model": "m", "messages": USER} | fields, fault=fault, **(settings or {}))


def sent(plan_: Plan) -> bytes:
    script = plan_.script
    return script.lead + b"".join(script.content) + script.tail


def whole(plan_: Plan) -> Any:
    return json.loads(sent(plan_))


def events(plan_: Plan) -> list[Any]:
    """The decoded events, the last of which must be [DONE]."""
    texts = sent(plan_).decode().split("\n\n")
    assert texts.pop() == ""
    assert texts.pop() == "data: [DONE]"
    assert all(text.startswith("data: ") for text in texts)
    return [json.loads(text[6:]) for text in texts]


def error_of(plan_: Plan) -> tuple[int, str | None, str | None]:
    error = whole(plan_)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return plan_.script.status, error["code"], error["param"]


# latency


def test_delays() -> None:
    assert chat().delay_s == 0
    fixed = {"mean_latency_ms": 50, "p95_latency_ms": 50}
    assert chat(settings=fixed).delay_s == 0.05
    assert chat("slow", settings=fixed).delay_s == 0.5
    assert chat("slow").delay_s == 0.1
    assert chat(settings=fixed | {"ttft_ms": 7}).delay_s == 0.05
    assert chat(settings=fixed | {"ttft_ms": 7}, stream=True).delay_s == 0.007


def test_same_seed_same_mock_whatever_the_error_rate() -> None:
    def series(seed: int, error_rate: float) -> list[tuple[str, float]]:
        mock = Behaviour(MockSettings(seed=seed, error_rate=error_rate))
        body = json.dumps({"model": "m", "messages": USER}).encode()
        plans = [mock.plan(CHAT, body, None, 0) for _ in range(20)]
        return [(p.ident, p.delay_s) for p in plans]

    assert series(1, 0) == series(1, 0.5)
    assert series(1, 0) != series(2, 0)


def test_error_rate_and_status() -> None:
    mock = Behaviour(MockSettings(seed=3, mean_latency_ms=0, error_rate=0.25, error_status=503))
    body = json.dumps({"model": "m", "messages": USER}).encode()
    statuses = [mock.plan(CHAT, body, None, 0).script.status for _ in range(4000)]
    assert statuses.count(503) / 4000 == pytest.approx(0.25, abs=0.03)
    assert statuses.count(200) + statuses.count(503) == 4000


# answers


def test_unary_chat() -> None:
    result = chat()
    body = whole(result)
    assert body["id"] == f"chatcmpl-{result.ident}"
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 1234, "m")
    (choice,) = body["choices"]
    assert choice["message"]["role"] == "assistant"
    assert choice["message"]["content"].startswith("This is a mock answer")
    assert (choice["index"], choice["finish_reason"], choice["logprobs"]) == (0, "stop", None)
    usage = body["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (3, 16, 19)
    assert (result.script.tokens, result.script.length) == (16, len(sent(result)))


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abcd", 1), ("abcde", 2), ("ää", 1), ("äää", 2)])
def test_token_count_is_utf8_bytes_by_four(text: str, tokens: int) -> None:
    assert count_tokens(text) == tokens
    parts = [{"type": "text", "text": text}, {"type": "image_url", "image_url": {"url": "data:,x"}}]
    assert chat(messages=[{"role": "user", "content": parts}]).prompt_tokens == tokens


def test_stream_without_usage() -> None:
    chunks = events(chat(stream=True))
    assert all("usage" not in chunk for chunk in chunks)
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    assert all(list(delta) == ["content"] for delta in deltas[1:-1])
    assert deltas[-1] == {}
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * 17 + ["stop"]
    text = "".join(delta.get("content", "") for delta in deltas)
    assert text == whole(chat())["choices"][0]["message"]["content"]


def test_stream_with_usage() -> None:
    chunks = events(chat(stream=True, stream_options={"include_usage": True}))
    assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks[:-1])
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == 16
    missing = events(chat("usage-missing", stream=True, stream_options={"include_usage": True}))
    assert len(missing) == len(chunks) - 1
    assert "usage" not in whole(chat("usage-missing"))


def test_one_content_element_per_token() -> None:
    assert len(list(chat(stream=True, n=3).script.content)) == 48
    assert chat(n=3).script.tokens == 48


def test_choices_take_turns() -> None:
    chunks = events(chat(stream=True, n=2))
    assert [chunk["choices"][0]["index"] for chunk in chunks] == [0, 1] * 18
    assert [choice["index"] for choice in whole(chat(n=2))["choices"]] == [0, 1]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_length_limit(name: str) -> None:
    five: Any = {name: 5}
    all_of_it: Any = {name: 16}
    body = whole(chat(**five))
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5
    assert whole(chat(**all_of_it))["choices"][0]["finish_reason"] == "stop"
    assert events(chat(stream=True, **five))[-1]["choices"][0]["finish_reason"] == "length"


def test_tool_call_echoes() -> None:
    choice = whole(chat(tools=TOOLS))["choices"][0]
    (call,) = choice["message"]["tool_calls"]
    assert choice["message"]["content"] is None
    assert choice["finish_reason"] == "tool_calls"
    assert call["function"] == {"name": "first", "arguments": '{"echo":"Hello there"}'}


def test_tool_call_in_a_stream() -> None:
    chunks = events(chat(tools=TOOLS, stream=True, n=2))
    ids = set()
    for index in range(2):
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert mine[0]["delta"] == {"role": "assistant", "content": None, "refusal": None}
        (opening,) = mine[1]["delta"]["tool_calls"]
        assert (opening["index"], opening["type"]) == (0, "function")
        assert opening["function"] == {"name": "first", "arguments": ""}
        ids.add(opening["id"])
        pieces = [choice["delta"]["tool_calls"][0] for choice in mine[2:-1]]
        assert all(set(piece) == {"index", "function"} for piece in pieces)
        assert "".join(piece["function"]["arguments"] for piece in pieces) == '{"echo":"Hello there"}'
        assert mine[-1]["finish_reason"] == "tool_calls"
    assert len(ids) == 2


def test_tool_choice() -> None:
    forced = {"type": "function", "function": {"name": "second"}}
    choice = whole(chat(tools=TOOLS, tool_choice=forced))["choices"][0]
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "second"
    assert choice["finish_reason"] == "stop"
    required = whole(chat(tools=TOOLS, tool_choice="required"))["choices"][0]
    assert required["finish_reason"] == "tool_calls"
    assert "tool_calls" not in whole(chat(tools=TOOLS, tool_choice="none"))["choices"][0]["message"]
    answered = [*USER, {"role": "tool", "tool_call_id": "c", "content": "42"}]
    assert "tool_calls" not in whole(chat(tools=TOOLS, messages=answered))["choices"][0]["message"]
    unknown = {"type": "function", "function": {"name": "third"}}
    assert error_of(chat(tools=TOOLS, tool_choice=unknown)) == (400, None, "tool_choice")


def test_json_modes() -> None:
    def text(response_format: Any) -> Any:
        return json.loads(whole(chat(response_format=response_format))["choices"][0]["message"]["content"])

    assert text({"type": "json_object"}) == {"answer": "mock"}
    schema = {
        "type": "object",
        "properties": {
            "s": {"type": "string"},
            "i": {"type": "integer", "minimum": 3},
            "e": {"enum": ["x", "y"]},
            "l": {"type": "array", "items": {"$ref": "#/$defs/b"}, "minItems": 2},
            "maybe": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "self": {"$ref": "#"},
        },
        "$defs": {"b": {"type": "boolean"}},
    }
    got = text({"type": "json_schema", "json_schema": {"name": "n", "schema": schema}})
    assert list(got) == ["s", "i", "e", "l", "maybe", "self"]
    assert (got["s"], got["i"], got["e"], got["l"], got["maybe"]) == ("mock", 3, "x", [True, True], None)
    assert text({"type": "json_schema", "json_schema": {"name": "n"}}) == {}


def test_legacy_completions() -> None:
    body = whole(plan({"model": "m", "prompt": ["abcd", "efgh"], "n": 2}, COMPLETIONS))
    assert body["object"] == "text_completion"
    assert body["id"].startswith("cmpl-")
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"]) == (2, 64)
    chunks = events(plan({"model": "m", "prompt": "abcd", "stream": True}, COMPLETIONS))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks).startswith("This is a mock")
    assert chunks[-1]["choices"][0] == {"text": "", "index": 0, "logprobs": None, "finish_reason": "stop"}
    assert plan({"model": "m", "prompt": [1, 2, 3]}, COMPLETIONS).prompt_tokens == 3


def test_embeddings() -> None:
    def vectors(**fields: Any) -> list[Any]:
        body = whole(plan({"model": "m", "input": ["one", "two", "one"]} | fields, EMBEDDINGS))
        assert body["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
        return [item["embedding"] for item in body["data"]]

    one, two, again = vectors(dimensions=8)
    assert one == again != two
    assert sum(x * x for x in one) == pytest.approx(1)
    packed = base64.b64decode(vectors(dimensions=8, encoding_format="base64")[0])
    assert list(struct.unpack("<8f", packed)) == one
    assert len(vectors()[0]) == 1536


def test_a_schema_nested_too_deep_to_encode() -> None:
    raw = b'{"model":"m","messages":[{"role":"user","content":"a"}],"response_format":{"type":"json_schema",'
    raw += b'"json_schema":{"schema":{"const":' + b"[" * 300 + b"]" * 300 + b"}}}}"
    assert whole(plan(raw))["choices"][0]["message"]["content"] == "{}"


# what is wrong with a request


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"messages": None}, "missing_required_parameter", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": []}, "empty_array", "messages"),
        ({"messages": ["hi"]}, "invalid_type", "messages[0]"),
        ({"messages": [{"content": "hi"}]}, "missing_required_parameter", "messages[0].role"),
        ({"messages": [{"role": "boss", "content": "hi"}]}, "invalid_value", "messages[0].role"),
        ({"messages": [{"role": "user", "content": 1}]}, "invalid_type", "messages[0].content"),
        ({"model": None}, None, None),
        ({"model": 5}, "invalid_type", "model"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"stream_options": {"include_usage": True}}, None, "stream_options"),
        ({"max_tokens": 0}, "integer_below_min_value", "max_tokens"),
        ({"max_tokens": True}, "invalid_type", "max_tokens"),
        ({"n": 129}, "integer_above_max_value", "n"),
        ({"temperature": "hot"}, "invalid_type", "temperature"),
        ({"tools": []}, "empty_array", "tools"),
        ({"tools": [{"type": "function"}]}, "missing_required_parameter", "tools[0].function"),
        ({"tools": [{"type": "function", "function": {}}]}, "missing_required_parameter", "tools[0].function.name"),
    ],
)
def test_bad_chat_requests(fields: dict[str, Any], code: str | None, param: str | None) -> None:
    assert error_of(chat(**fields)) == (400, code, param)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"null", b'"x"', b"\xff"])
def test_bodies_that_are_no_json_object(raw: bytes) -> None:
    assert error_of(plan(raw)) == (400, None, None)


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": []}, "empty_array", "input"),
        ({"input": {}}, "invalid_type", "input"),
        ({"input": ["a", {}]}, "invalid_type", "input[1]"),
        ({"input": [[1, "a"]]}, "invalid_type", "input[0]"),
        ({"input": "a", "encoding_format": "hex"}, "invalid_value", "encoding_format"),
        ({"input": "a", "dimensions": 5000}, "integer_above_max_value", "dimensions"),
    ],
)
def test_bad_embedding_requests(fields: dict[str, Any], code: str, param: str) -> None:
    assert error_of(plan({"model": "m"} | fields, EMBEDDINGS)) == (400, code, param)


TEXT = st.text("a1\u00e4 {", max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
NAMES = ["model", "messages", "stream", "stream_options", "n", "max_tokens", "tools", "tool_choice", "response_format"]


@given(
    fields=st.dictionaries(st.sampled_from([*NAMES, "prompt", "input", "dimensions"]), JSON),
    endpoint=st.sampled_from([CHAT, COMPLETIONS, EMBEDDINGS]),
)
def test_no_request_breaks_the_mock(fields: dict[str, Any], endpoint: str) -> None:
    base = {"model": "m", "messages": USER, "prompt": "p", "input": "i"}
    assert plan(base | fields, endpoint).script.status in (200, 400)


def test_unknown_models() -> None:
    models = {"models": ("gpt-x", "open-*")}
    assert error_of(chat(settings=models, model="gpt-y")) == (404, "model_not_found", None)
    for known in ("gpt-x", "open-1", "mock/ok"):
        assert chat(settings=models, model=known).script.status == 200
    mock = Behaviour(MockSettings(models=("gpt-x", "open-*")))
    assert [model["id"] for model in whole(mock.plan_models(None, None))["data"]] == ["gpt-x"]
    assert whole(mock.plan_models("open-1", None))["object"] == "model"
    assert mock.plan_models("nope", None).script.status == 404
    assert mock.plan_models(None, "500").script.status == 500


# faults


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 429, 500, 502, 503, 504, 529, 418, 599])
@pytest.mark.parametrize("stream", [False, True])
def test_status_faults(status: int, stream: bool) -> None:
    for result in (chat(str(status), stream=stream), chat(model=f"mock/{status}", stream=stream)):
        assert error_of(result)[0] == status
        assert result.prompt_tokens == 0
        assert ("retry-after" in result.script.headers) == (status == 429)


def test_retry_after_and_codes() -> None:
    assert chat("429").script.headers["retry-after"] == "1"
    assert chat("429:7").script.headers["retry-after"] == "7"
    assert chat("503:2").script.headers["retry-after"] == "2"
    assert error_of(chat("429"))[1] == "rate_limit_exceeded"
    assert error_of(chat("quota"))[:2] == (429, "insufficient_quota")
    assert error_of(chat("context"))[:2] == (400, "context_length_exceeded")
    assert error_of(chat("401"))[1] == "invalid_api_key"


def test_names_of_faults() -> None:
    assert error_of(chat("stal")) == (400, "unknown_fault", None)
    assert chat("ok", model="mock/500").script.status == 500
    assert chat(model="mock/whatever").script.status == 200
    assert chat(model="gpt/500").script.status == 200
    for kind in faults.KINDS:
        for stream in (False, True):
            assert chat(kind, stream=stream).fault == kind


ERROR = faults.ERROR_EVENT


def test_stream_faults() -> None:
    normal = chat(stream=True).script
    lead, content = normal.lead, list(normal.content)

    def parts(kind: str) -> tuple[bytes, list[bytes], bytes, Ending]:
        script = chat(kind, stream=True).script
        assert script.status == 200
        return script.lead, list(script.content), script.tail, script.ending

    assert parts("cut") == (lead, content[:3], b"", Ending.CUT)
    assert parts("reset") == (lead, content[:3], b"", Ending.RESET)
    assert parts("stall-mid") == (lead, content[:3], b"", Ending.STALL)
    assert parts("error-mid") == (lead, content[:3], ERROR, Ending.CLOSE)
    assert parts("stall-headers-then") == (b"", [], b"", Ending.STALL)
    assert parts("error-first") == (b"", [], ERROR, Ending.CLOSE)
    assert parts("role-then-error") == (lead, [], ERROR, Ending.CLOSE)
    assert parts("no-done") == (lead, content, b"", Ending.COMPLETE)
    with pytest.raises(json.JSONDecodeError):
        events(chat("malformed", stream=True))
    assert chat("drip", stream=True).script.drip
    flood = chat("flood", stream=True).script
    assert (len(list(flood.content)), flood.paced) == (10_000, False)
    big = events(chat("big", stream=True))
    assert sum(len(chunk["choices"][0]["delta"].get("content", "")) for chunk in big) == 1_048_576


def test_unary_faults() -> None:
    body = sent(chat())
    cut = chat("cut").script
    assert (cut.tail, cut.length, cut.ending, cut.tokens) == (body[: len(body) // 2], len(body), Ending.CUT, 0)
    assert chat("stall-mid").script.ending is Ending.STALL
    headers_only = chat("stall-headers-then").script
    assert (headers_only.tail, headers_only.length, headers_only.status) == (b"", len(body), 200)
    broken = chat("malformed").script
    assert (broken.ending, broken.length) == (Ending.COMPLETE, len(broken.tail))
    with pytest.raises(json.JSONDecodeError):
        json.loads(broken.tail)
    assert whole(chat("no-done"))["choices"][0]["finish_reason"] is None
    assert len(whole(chat("big"))["choices"][0]["message"]["content"]) == 1_048_576
    for kind, ending in {"stall": Ending.STALL, "cut-first": Ending.CUT, "reset": Ending.RESET}.items():
        assert (chat(kind).script.status, chat(kind).script.ending) == (0, ending)


@pytest.mark.parametrize("stream", [False, True])
def test_error_inside_a_200(stream: bool) -> None:
    result = chat("error-200", stream=stream)
    assert result.script.headers["content-type"] == "application/json"
    assert error_of(result)[0] == 200
    page = chat("html502", stream=stream).script
    assert page.status == 502
    assert page.headers["content-type"].startswith("text/html")
