"""Canonical requests for providers of the OpenAI family: what each row makes of them (PROTOCOLS.md 1.2, 2.8, 2.9).
Nothing is lost in silence (R65), nothing of the client's request is changed (R59)."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ClientError
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.wire.canonical import Built
from slipstream.wire.openai_chat.messages import BRIDGE
from slipstream.wire.openai_chat.quirks import EFFORTS
from tests.fakes import spec

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
ROWS = (
    "openai",
    "vllm",
    "together",
    "deepseek",
    "mistral",
    "groq",
    "openrouter",
    "fireworks",
    "xai",
    "perplexity",
    "cerebras",
    "mock",
)
HELLO = [{"role": "user", "content": "Hello"}]
CALL = {"id": "toolu_01", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
MARK = {"type": "ephemeral"}


def budget(tokens: int) -> Any:
    return {"thinking": {"type": "enabled", "budget_tokens": tokens}}


def build(row: str, model: str = "m", messages: Any = HELLO, **more: Any) -> tuple[Any, tuple[str, ...]]:
    built = made(row, model, messages, **more)
    return json.loads(built.body), tuple(built.dropped)


def made(row: str, model: str = "m", messages: Any = HELLO, **more: Any) -> Built:
    request = {"model": "public", "messages": messages, **more}
    before = copy.deepcopy(request)
    kind = PROVIDER_TYPES[row]
    built = kind.build(request, spec("a"), model)
    assert request == before  # R59
    assert kind.build(request, spec("a"), model) == built
    return built


@pytest.mark.parametrize("row", ROWS)
def test_a_plain_request_is_the_same_everywhere(row: str) -> None:
    built = made(row, temperature=0.5, max_tokens=9)
    assert built.url == "https://a.test/v1/chat/completions"
    assert json.loads(built.body) == {"model": "m", "messages": HELLO, "temperature": 0.5, "max_tokens": 9}
    assert (built.headers, built.dropped) == (None, ())


@pytest.mark.parametrize("row", ROWS)
def test_streams_ask_for_usage_where_they_must(row: str) -> None:  # R68
    body, _ = build(row, stream=True, stream_options={"include_usage": False})
    assert body["stream"] is True
    assert body.get("stream_options") == ({"include_usage": True} if PROVIDER_TYPES[row].ask_usage else None)
    assert not {"stream", "stream_options"} & set(build(row, stream=False)[0])


# ---- top-level fields ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "model", "given", "sent"),
    [
        ("openai", "gpt-4o", {"max_tokens": 5}, {"max_tokens": 5}),
        ("openai", "gpt-4o", {"max_completion_tokens": 5}, {"max_completion_tokens": 5}),
        ("openai", "o3-mini", {"max_tokens": 5}, {"max_completion_tokens": 5}),
        ("openai", "gpt-5.1", {"max_tokens": 5, "max_completion_tokens": 6}, {"max_completion_tokens": 6}),
        ("mistral", "m", {"max_completion_tokens": 5}, {"max_tokens": 5}),
        ("together", "openai/gpt-oss-20b", {"max_completion_tokens": 5, "max_tokens": 4}, {"max_tokens": 5}),
    ],
)
def test_the_limit_has_one_name(row: str, model: str, given: Any, sent: Any) -> None:
    body, dropped = build(row, model, **given)
    assert {key: value for key, value in body.items() if key.startswith("max_")} == sent
    assert dropped == ()


def test_sampling_extras_go_where_they_are_known() -> None:
    extras = {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1}
    for row in ROWS:
        body, dropped = build(row, **extras)
        known = PROVIDER_TYPES[row].chat.extras
        assert {key for key in extras if key in body} == known
        assert set(dropped) == set(extras) - known


def test_mistral_gets_no_unknown_field_and_its_own_names() -> None:
    body, dropped = build("mistral", seed=3, user="u", logit_bias={"1": 2}, n=1, store=False, logprobs=None, user2="")
    assert body["random_seed"] == 3
    assert not {"seed", "user", "logit_bias", "store", "user2"} & set(body)
    assert dropped == ("user", "logit_bias")


def test_groq_refuses_logprobs_and_names() -> None:
    named = [{"role": "user", "name": "Ann", "content": "Hi"}]
    body, dropped = build("groq", messages=named, logprobs=True, service_tier="flex")
    assert body["messages"] == [{"role": "user", "content": "Hi"}]
    assert body["service_tier"] == "flex"
    assert set(dropped) == {"logprobs", "messages[].name"}


@pytest.mark.parametrize(
    ("row", "model", "given", "sent", "dropped"),
    [
        ("openai", "gpt-5", budget(1024), {"reasoning_effort": "low"}, ()),
        ("openai", "o4-mini", budget(9000), {"reasoning_effort": "medium"}, ()),
        ("openai", "gpt-5", {"thinking": {"type": "adaptive"}}, {}, ()),
        ("openai", "gpt-5", {"thinking": {"type": "disabled"}}, {}, ()),
        ("openai", "gpt-4o", budget(9000), {}, ("thinking",)),
        ("openai", "gpt-4o", {"reasoning_effort": "low"}, {"reasoning_effort": "low"}, ()),
        ("openai", "gpt-5.1", {"reasoning_effort": "max"}, {"reasoning_effort": "high"}, ()),
        ("openai", "gpt-5.2", {"reasoning_effort": "max"}, {"reasoning_effort": "xhigh"}, ()),
        ("groq", "openai/gpt-oss-120b", budget(99999), {"reasoning_effort": "high"}, ()),
        ("groq", "llama", {"thinking": {"type": "enabled"}}, {}, ("thinking",)),
        ("groq", "llama", {"reasoning_effort": "minimal"}, {"reasoning_effort": "low"}, ()),
        ("cerebras", "gpt-oss-120b", {"reasoning_effort": "none"}, {}, ("reasoning_effort",)),
        ("mistral", "mistral-small-latest", {"reasoning_effort": "medium"}, {"reasoning_effort": "high"}, ()),
        ("deepseek", "m", budget(99), {"thinking": {"type": "enabled"}, "reasoning_effort": "low"}, ()),
        ("deepseek", "m", {"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}, ()),
        ("deepseek", "m", {"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}, ()),
        ("deepseek", "m", {"reasoning_effort": "max"}, {"reasoning_effort": "max"}, ()),
        ("openrouter", "m", budget(2000), {"reasoning": {"max_tokens": 2000}}, ()),
        ("openrouter", "m", {"reasoning_effort": "max"}, {"reasoning": {"effort": "xhigh"}}, ()),
        ("openrouter", "m", {"thinking": {"type": "adaptive"}}, {"reasoning": {"enabled": True}}, ()),
    ],
)  # fmt: skip
def test_thinking(row: str, model: str, given: Any, sent: Any, dropped: Any) -> None:
    body, lost = build(row, model, **given)
    assert {key: body[key] for key in ("thinking", "reasoning", "reasoning_effort") if key in body} == sent
    assert lost == dropped


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("effort", EFFORTS)
def test_no_effort_that_a_provider_does_not_know(row: str, effort: str) -> None:
    quirks = PROVIDER_TYPES[row].chat
    found = quirks.effort(effort, "gpt-5.2")
    assert found in quirks.efforts or (found is None and effort == "none")


def test_a_schema_for_those_who_know_only_json() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    body, dropped = build("deepseek", response_format=wanted)
    assert body["response_format"] == {"type": "json_object"}
    assert json.dumps(schema, separators=(",", ":")) in body["messages"][0]["content"]
    assert body["messages"][1:] == HELLO
    assert dropped == ("response_format.json_schema",)
    assert build("openai", response_format=wanted)[0]["response_format"] == wanted


def test_tools() -> None:
    given = [{**TOOL, "cache_control": MARK}, {"type": "function", "function": {"name": "g"}}]
    body, dropped = build("mistral", tools=given, tool_choice="required")
    assert body["tools"][0] == TOOL
    assert body["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert body["tool_choice"] == "any"
    assert dropped == ("cache_control",)
    assert build("openrouter", tools=given)[0]["tools"][0]["cache_control"] == MARK
    assert build("openai", tools=given, tool_choice="required")[0]["tool_choice"] == "required"


def test_tools_that_are_no_functions() -> None:
    given = [{"type": "web_search"}, {"type": "custom", "custom": {"name": "c"}}]
    body, dropped = build("openai", tools=given)
    assert body["tools"] == [{"type": "custom", "custom": {"name": "c"}}]
    assert dropped == ("tools[].type=web_search",)
    body, dropped = build("vllm", tools=given, tool_choice="auto", parallel_tool_calls=False)
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(body)
    assert dropped == ("tools[].type=web_search", "tools[].type=custom")


@pytest.mark.parametrize(
    "bad",
    [
        {"messages": "x"},
        {"messages": [1]},
        {"messages": [{"role": "user", "content": [1]}]},
        {"tools": {}},
        {"tools": [1]},
    ],
)
def test_nonsense_is_the_clients_mistake(bad: Any) -> None:
    with pytest.raises(ClientError) as raised:
        build("openai", **bad)
    assert raised.value.param in ("messages", "tools")


def test_a_request_that_cannot_be_written() -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"a": deep}
    with pytest.raises(ClientError, match="too deep"):
        PROVIDER_TYPES["openai"].build({"messages": HELLO, "metadata": deep}, spec("a"), "m")


# ---- messages --------------------------------------------------------------------------------------------------------


def test_roles_and_text() -> None:
    parts = [{"type": "text", "text": "a"}, "b"]
    messages = [{"role": "developer", "content": parts}, {"role": "user", "content": [parts[0], IMAGE]}]
    body, _ = build("groq", messages=messages)
    assert body["messages"][0] == {"role": "system", "content": "a\nb"}
    assert body["messages"][1]["content"] == [parts[0], IMAGE]
    assert build("openai", messages=messages)[0]["messages"][0]["role"] == "developer"


def test_cache_marks() -> None:
    part = {"type": "text", "text": "a", "cache_control": MARK}
    messages = [{"role": "user", "content": [part], "cache_control": MARK}]
    assert build("openrouter", messages=messages)[0]["messages"] == messages
    body, dropped = build("openai", messages=messages)
    assert body["messages"] == [{"role": "user", "content": "a"}]
    assert dropped == ("cache_control",)


def turn(**more: Any) -> list[Any]:
    """A whole tool loop as Messages clients send it."""
    blocks = [{"type": "thinking", "thinking": "hm", "signature": "S"}, {"type": "redacted_thinking", "data": "D"}]
    return [
        {"role": "user", "content": "Go"},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "thinking_blocks": blocks,
            "tool_calls": [CALL],
        },
        {"role": "tool", "tool_call_id": "toolu_01", **more},
        {"role": "user", "content": "And?"},
    ]


def test_a_tool_loop_for_openai() -> None:
    body, dropped = build("openai", messages=turn(content="4", is_error=True), tools=[TOOL])
    assert body["messages"][1] == {"role": "assistant", "content": None, "tool_calls": [CALL]}
    assert body["messages"][2] == {"role": "tool", "tool_call_id": "toolu_01", "content": "4"}
    assert set(dropped) == {"messages[].thinking_blocks", "messages[].is_error"}


def test_reasoning_goes_back_where_it_is_wanted() -> None:
    body, dropped = build("deepseek", messages=turn(content="4"), tools=[TOOL])
    assert body["messages"][1]["reasoning_content"] == "hm"
    assert dropped == ()
    body, dropped = build("deepseek", messages=turn(content="4"))
    assert "reasoning_content" not in body["messages"][1]
    assert dropped == ("messages[].thinking_blocks",)
    body, dropped = build("openrouter", messages=turn(content="4"))
    details = body["messages"][1]["reasoning_details"]
    assert [(d["type"], d.get("signature"), d.get("data")) for d in details] == [
        ("reasoning.text", "S", None),
        ("reasoning.encrypted", None, "D"),
    ]
    only_text = [{"role": "assistant", "content": "x", "reasoning_content": "hm"}]
    assert build("openrouter", messages=only_text)[0]["messages"][0]["reasoning"] == "hm"
    assert build("xai", messages=only_text)[1] == ("messages[].reasoning_content",)
    unsigned = [{"role": "assistant", "content": "x", "thinking_blocks": [{"type": "thinking", "thinking": "hm"}]}]
    assert build("vllm", messages=unsigned, tools=[TOOL])[0]["messages"][0]["reasoning_content"] == "hm"


def test_results_with_images_follow_as_a_user_message() -> None:
    content = [{"type": "text", "text": "a screen"}, IMAGE]
    messages = turn(content=content)
    messages.insert(3, {"role": "tool", "tool_call_id": "toolu_02", "content": [IMAGE]})
    body, dropped = build("openai", messages=messages)
    assert [m["role"] for m in body["messages"]] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert body["messages"][2]["content"] == "a screen"
    assert isinstance(body["messages"][3]["content"], str)
    assert body["messages"][4]["content"][1] == body["messages"][4]["content"][3] == IMAGE
    assert dropped == ("messages[].thinking_blocks",)
    assert build("openai", messages=messages[:4])[0]["messages"][-1]["role"] == "user"
    assert build("mistral", messages=messages)[0]["messages"][2]["content"] == content


def test_mistrals_order_and_ids() -> None:
    body, _ = build("mistral", messages=turn(content="4"))
    sent = body["messages"]
    assert [m["role"] for m in sent] == ["user", "assistant", "tool", "assistant", "user"]
    assert sent[3]["content"] == BRIDGE
    assert re.fullmatch("[A-Za-z0-9]{9}", sent[2]["tool_call_id"])
    assert sent[1]["tool_calls"][0]["id"] == sent[2]["tool_call_id"]


@fuzz
@given(st.lists(st.text(max_size=60), unique=True, min_size=2, max_size=5))
def test_ids_join_and_stay_apart(ids: list[str]) -> None:
    for row in ("mistral", "openai"):
        calls = [{**CALL, "id": id} for id in ids]
        results = [{"role": "tool", "tool_call_id": id, "content": ""} for id in ids]
        body, _ = build(row, messages=[{"role": "assistant", "tool_calls": calls}, *results])
        sent = [call["id"] for call in body["messages"][0]["tool_calls"]]
        assert sent == [message["tool_call_id"] for message in body["messages"][1:]]
        assert len(set(sent)) == len(ids)
        assert all(len(id) == 9 if row == "mistral" else len(id) <= 40 for id in sent)
    assert made("mistral", messages=[{"role": "tool", "tool_call_id": "abcDEF123", "content": ""}]).body.count(
        b"abcDEF123"
    )


def test_odd_assistant_messages() -> None:
    odd = {"id": "1", "function": {"name": "f", "arguments": {"a": 1}}, "extra_content": {"google": {"x": 1}}}
    messages = [
        {"role": "assistant", "content": None, "refusal": "No."},
        {"role": "assistant", "tool_calls": [odd, {"id": "2"}], "content": ""},
        {"role": "assistant", "tool_calls": []},
    ]
    body, dropped = build("vllm", messages=messages)
    first, second, third = body["messages"]
    assert first == {"role": "assistant", "content": "No."}
    assert [call["function"]["arguments"] for call in second["tool_calls"]] == ['{"a":1}', "{}"]
    assert third == {"role": "assistant", "content": ""}
    assert dropped == ("messages[].tool_calls[].extra_content",)
    assert build("openai", messages=messages[:1])[0]["messages"] == [{"role": "assistant", "refusal": "No."}]


def test_files() -> None:
    part = {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA", "filename": "a.pdf"}}
    messages = [{"role": "user", "content": [part]}]
    assert build("openai", messages=messages)[0]["messages"] == messages
    assert build("mistral", messages=messages)[0]["messages"][0]["content"] == [
        {"type": "document_url", "document_url": "data:application/pdf;base64,AA", "document_name": "a.pdf"}
    ]
