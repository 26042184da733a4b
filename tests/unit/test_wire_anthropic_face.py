"""Anthropic Messages as a face: requests read into the canonical shape and answers written from it, whole and as events
(R12, R60-R62, R65, R67; PROTOCOLS.md 1.2, 1.3, 2.3, 3.3)."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from anthropic import types as sdk
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from slipstream.errors import ClientError, GatewayError, MalformedReply, UpstreamError
from slipstream.types import FailureClass
from slipstream.wire.anthropic import face_writer
from slipstream.wire.anthropic.errors import error_body, error_event
from slipstream.wire.anthropic.face_content import MAX_DROPPED
from slipstream.wire.anthropic.face_ids import packed_id, unpacked_id
from slipstream.wire.anthropic.face_reply import encode_reply
from slipstream.wire.anthropic.face_request import decode_count, decode_request
from slipstream.wire.anthropic.face_writer import PING, MessagesWriter
from slipstream.wire.anthropic.reader import AnthropicReader
from slipstream.wire.anthropic.reply import read_reply
from slipstream.wire.anthropic.request import build_body, options_for
from slipstream.wire.canonical import Answer, Chunk, Reply
from slipstream.wire.usage import Usage
from tests.harness import SHARED

Json = dict[str, Any]
fuzz = settings(deadline=None, derandomize=True, max_examples=80)
DEV = SHARED / "wire" / "dev"
USER: Json = {"role": "user", "content": "Hello"}
WEATHER: Json = {"name": "weather", "description": "d", "input_schema": {"type": "object", "properties": {}}}


def request(*messages: Json, **fields: Any) -> Json:
    return {"model": "m", "max_tokens": 10, "messages": list(messages) or [USER], **fields}


def decoded(*messages: Json, **fields: Any) -> Json:
    """The canonical request; nothing must have been dropped."""
    canonical, dropped = decode(request(*messages, **fields))
    assert dropped == []
    return canonical


def decode(body: Json) -> tuple[Json, list[str]]:
    before = copy.deepcopy(body)
    once = decode_request(body)
    assert once == decode_request(body)
    assert body == before
    return once


def messages_of(*messages: Json, **fields: Any) -> list[Json]:
    found: list[Json] = decoded(*messages, **fields)["messages"]
    return found


def user(*blocks: Json) -> Json:
    return {"role": "user", "content": list(blocks)}


def assistant(*blocks: Json) -> Json:
    return {"role": "assistant", "content": list(blocks)}


def text(value: str, **more: Any) -> Json:
    return {"type": "text", "text": value, **more}


def tool_use(**more: Any) -> Json:
    return {"type": "tool_use", "id": "toolu_1", "name": "weather", "input": {"city": "Bern"}, **more}


def refused(body: Json) -> ClientError:
    with pytest.raises(ClientError) as caught:
        decode_request(body)
    assert caught.value.status == 400
    return caught.value


# ---- requests: settings ----------------------------------------------------------------------------------------------


def test_the_smallest_request() -> None:
    assert decoded() == {"model": "m", "messages": [USER], "max_tokens": 10}


def test_settings_have_other_names() -> None:  # PROTOCOLS.md 1.2
    body = request(
        temperature=0.5,
        top_p=0.9,
        top_k=4,
        stop_sequences=["END"],
        stream=True,
        metadata={"user_id": "u1"},
        service_tier="standard_only",
        thinking={"type": "enabled", "budget_tokens": 2048},
        output_config={"effort": "max"},
        min_p=0.1,
    )
    canonical, dropped = decode(body)
    assert dropped == []
    assert canonical == {
        "model": "m",
        "messages": [USER],
        "max_tokens": 10,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 4,
        "stop": ["END"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "user": "u1",
        "service_tier": "default",
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "reasoning_effort": "max",
        "min_p": 0.1,
    }


def test_what_says_nothing_is_not_carried_on() -> None:
    canonical = decoded(
        stream=False,
        stop_sequences=[],
        system=None,
        tools=[],
        metadata={},
        service_tier="auto",
        speed="standard",
        container=None,
        mcp_servers=[],
        tool_choice={"type": "auto"},
        anthropic_version="bedrock-2023-05-31",
    )
    assert canonical == decoded()


def test_what_nobody_else_has_is_reported() -> None:  # R65
    body = request(
        container="c",
        mcp_servers=[{"type": "url"}],
        context_management={"edits": [1]},
        speed="fast",
        metadata={"user_id": "u", "team": "t"},
        output_config={"task_budget": {"type": "tokens"}},
    )
    canonical, dropped = decode(body)
    assert sorted(dropped) == [
        "container",
        "context_management",
        "mcp_servers",
        "metadata",
        "output_config.task_budget",
        "speed",
    ]
    assert canonical.keys() == {"model", "messages", "max_tokens", "user"}


def test_a_client_cannot_write_into_the_list_of_what_was_dropped() -> None:
    """It becomes a header."""
    _, dropped = decode(request(**{"a\r\nset-cookie: x": 1, "x" * 200: 1, "ü": 2, "plain_1": 3}))
    assert dropped == ["(other)", "plain_1"]
    _, dropped = decode(request(**{f"name{i}": 1 for i in range(200)}))
    assert len(dropped) == MAX_DROPPED
    _, dropped = decode(request(tools=[{"type": "evil\r\n", "name": "x"}]))
    assert dropped == ["tools[].type"]


def test_a_long_user_id_becomes_a_digest() -> None:
    """OpenAI takes 64 characters, Claude Code's is a JSON text of 200."""
    first, second = (decoded(metadata={"user_id": c * 200})["user"] for c in "ab")
    assert len(first) == len(second) == 64
    assert first != second
    assert decoded(metadata={"user_id": "a" * 200})["user"] == first
    assert decoded(metadata={"user_id": "a" * 64})["user"] == "a" * 64


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 7}, "model"),
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"messages": None}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": ["Invalid content"]}, "messages.0"),  # #a212d9fe
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [USER, {"role": "user", "content": 7}]}, "messages.1.content"),
        ({"messages": [user({"text": "x"})]}, "messages.0.content.0"),
        ({"messages": [user({"type": "text"})]}, "messages.0.content.0.text"),
        ({"messages": [user({"type": "image"})]}, "messages.0.content.0.source"),
        ({"messages": [user({"type": "image", "source": {"type": "x"}})]}, "messages.0.content.0.source.type"),
        (
            {"messages": [user({"type": "image", "source": {"type": "base64", "media_type": "a/b", "data": "x"}})]},
            "messages.0.content.0.source.media_type",
        ),
        ({"messages": [user({"type": "image", "source": {"type": "url"}})]}, "messages.0.content.0.source.url"),
        ({"messages": [user({"type": "document", "source": {"type": "x"}})]}, "messages.0.content.0.source.type"),
        ({"messages": [{"role": "user", "content": ["text"]}]}, "messages.0.content.0"),
        (
            {"messages": [user({"type": "document", "source": {"type": "content", "content": [tool_use()]}})]},
            "messages.0.content.0.source.content.0.type",
        ),
        ({"messages": [user(tool_use())]}, "messages.0.content.0.type"),
        ({"messages": [user({"type": "\r\nx"})]}, "messages.0.content.0.type"),
        ({"messages": [user({"type": "tool_result"})]}, "messages.0.content.0.tool_use_id"),
        ({"messages": [USER, assistant({"type": "image"})]}, "messages.1.content.0.type"),
        ({"messages": [USER, assistant(tool_use(id=None))]}, "messages.1.content.0.id"),
        ({"messages": [USER, assistant(tool_use(input=[]))]}, "messages.1.content.0.input"),
        ({"messages": [USER, assistant({"type": "thinking"})]}, "messages.1.content.0.thinking"),
        ({"messages": [USER, assistant({"type": "redacted_thinking"})]}, "messages.1.content.0.data"),
        ({"system": 7}, "system"),
        ({"system": [{"type": "image"}]}, "system.0.type"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_k": 1.5}, "top_k"),
        ({"stop_sequences": "END"}, "stop_sequences"),
        ({"stop_sequences": [1]}, "stop_sequences"),
        ({"stream": "yes"}, "stream"),
        ({"thinking": True}, "thinking"),
        ({"thinking": {"type": "much"}}, "thinking.type"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"metadata": "x"}, "metadata"),
        ({"metadata": {"user_id": 7}}, "metadata.user_id"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"output_config": {"effort": "heroic"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "xml"}}}, "output_config.format.type"),
        ({"output_format": {"type": "json_schema"}}, "output_format.schema"),
        ({"tools": {}}, "tools"),
        ({"tools": [7]}, "tools.0"),
        ({"tools": [{"name": "x"}]}, "tools.0.input_schema"),
        ({"tools": [{"input_schema": {}}]}, "tools.0.name"),
        ({"tools": [WEATHER], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [WEATHER], "tool_choice": {"type": "must"}}, "tool_choice.type"),
        ({"tools": [WEATHER], "tool_choice": {"type": "tool", "name": "x"}}, "tool_choice.name"),
        ({"seed": "x"}, "seed"),
    ],
)
def test_a_mistake_is_named(fields: Json, param: str) -> None:
    error = refused(request() | fields)
    assert error.param == param
    assert "\n" not in error.message
    assert json.loads(error_body(error))["error"]["message"].startswith(param)


def test_what_nests_too_deeply_is_the_clients_mistake() -> None:
    deep: Any = {}
    for _ in range(260):
        deep = {"a": deep}
    schema = {"type": "object", "properties": deep}
    assert refused(request(tools=[WEATHER | {"input_schema": schema}])).param == "tools.0.input_schema"
    form = {"type": "json_schema", "schema": schema}
    assert refused(request(output_config={"format": form})).param == "output_config.format.schema"
    assert refused(request(USER, assistant(tool_use(input=deep)))).param == "messages.1.content.0.input"
    result = {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "new", "x": deep}]}
    assert refused(request(user(result))).param == "messages.0.content.0.content.0"


def test_counting_needs_no_max_tokens() -> None:
    body = {"model": "m", "messages": [USER], "system": "s", "tools": [WEATHER]}
    canonical, dropped = decode_count(body)
    assert dropped == []
    assert canonical["messages"][0] == {"role": "system", "content": "s"}
    assert "max_tokens" not in canonical
    assert len(canonical["tools"]) == 1


# ---- requests: messages ----------------------------------------------------------------------------------------------


def test_system_as_text_and_as_blocks() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    assert messages_of(system="Be brief.")[0] == {"role": "system", "content": "Be brief."}
    assert messages_of(system=[text("Be brief.")])[0] == {"role": "system", "content": "Be brief."}
    blocks = [text("a", cache_control=None), text(""), text("b", cache_control=mark)]
    assert messages_of(system=blocks)[0] == {"role": "system", "content": [text("a"), text("b", cache_control=mark)]}
    assert messages_of(system="") == messages_of(system=[]) == [USER]


def test_instructions_in_the_middle() -> None:
    assert messages_of(USER, {"role": "system", "content": [text("Now in French.")]})[1] == {
        "role": "system",
        "content": "Now in French.",
    }


def test_images_and_documents() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aW1n"}},
        {"type": "image", "source": {"type": "url", "url": "https://x/y.png"}, "cache_control": {"type": "ephemeral"}},
        {
            "type": "document",
            "source": {"type": "base64", "media_type": "application/pdf", "data": "cGRm"},
            "title": "t",
        },
        {"type": "document", "source": {"type": "url", "url": "https://x/y.pdf"}},
        {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "hé"}, "context": "c"},
        {"type": "document", "source": {"type": "file", "file_id": "file_1"}},
        {"type": "document", "source": {"type": "content", "content": [text("in"), text("side")]}},
        {"type": "document", "source": {"type": "content", "content": "plain"}},
        {"type": "search_result", "source": "https://s", "title": "T", "content": [text("found")]},
        text("What is it?"),
    ]
    assert messages_of(user(*blocks))[0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aW1n"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png"}, "cache_control": {"type": "ephemeral"}},
        {"type": "file", "file": {"filename": "t", "file_data": "data:application/pdf;base64,cGRm"}},
        {"type": "file", "file": {"file_data": "https://x/y.pdf"}},
        text("c"),
        {"type": "file", "file": {"filename": "document.txt", "file_data": "data:text/plain;base64,aMOp"}},
        {"type": "file", "file": {"file_id": "file_1"}},
        text("in"),
        text("side"),
        text("plain"),
        text("T\nhttps://s\nfound"),
        text("What is it?"),
    ]


def test_transformations_of_images_are_reported() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x"}, "transformations": {"oversize": "error"}}
    assert decode(request(user(image)))[1] == ["messages[].content[].transformations"]


def test_citations_are_reported() -> None:
    block = {"type": "document", "source": {"type": "content", "content": "x"}, "citations": {"enabled": True}}
    assert decode(request(user(block)))[1] == ["messages[].content[].citations"]
    block["citations"] = {"enabled": False}
    assert decode(request(user(block)))[1] == []


def test_a_tool_loop() -> None:  # #00156d67: the results first, then the text
    thinking = {"type": "thinking", "thinking": "Hm.", "signature": "sig=="}
    redacted = {"type": "redacted_thinking", "data": "xyz"}
    results = user(
        text("And now?"),
        {"type": "tool_result", "tool_use_id": "toolu_1", "content": "sunny"},
        {"type": "tool_result", "tool_use_id": "toolu_2", "is_error": True, "content": [text("no"), text("luck")]},
        {"type": "tool_result", "tool_use_id": "toolu_3", "cache_control": {"type": "ephemeral"}},
    )
    second = tool_use(id="toolu_2", input={})
    found = messages_of(USER, assistant(thinking, redacted, text("Let me see."), tool_use(), second), results)
    assert found[1] == {
        "role": "assistant",
        "content": "Let me see.",
        "reasoning_content": "Hm.",
        "thinking_blocks": [thinking, redacted],
        "tool_calls": [
            {"id": "toolu_1", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Bern"}'}},
            {"id": "toolu_2", "type": "function", "function": {"name": "weather", "arguments": "{}"}},
        ],
    }
    assert found[2:] == [
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": [text("no"), text("luck")], "is_error": True},
        {"role": "tool", "tool_call_id": "toolu_3", "content": "", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": "And now?"},
    ]


def test_a_tool_result_may_hold_anything() -> None:
    blocks = [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "aW1n"}},
        {"type": "tool_reference", "tool_name": "w"},
        {"type": "search_result", "source": "s", "title": "t", "content": []},
    ]
    found = messages_of(user({"type": "tool_result", "tool_use_id": "t", "content": blocks}))
    assert found[0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aW1n"}},
        text('{"type":"tool_reference","tool_name":"w"}'),
        text("t\ns"),
    ]


def test_an_assistant_without_text_and_a_prefill() -> None:
    assert messages_of(USER, assistant(tool_use()))[1]["content"] is None
    assert messages_of(USER, assistant(text("The answer is")))[1] == {"role": "assistant", "content": "The answer is"}
    assert messages_of(USER, {"role": "assistant", "content": ""}) == [USER]
    assert messages_of(USER, assistant(text("a"), text("b")))[1]["content"] == [text("a"), text("b")]


def test_marks_for_the_cache_stay() -> None:
    mark = {"type": "ephemeral"}
    canonical = decoded(USER, assistant(tool_use(cache_control=mark)), tools=[WEATHER | {"cache_control": mark}])
    assert canonical["messages"][1]["cache_control"] == mark
    assert canonical["tools"][0]["cache_control"] == mark
    assert decoded(cache_control=mark)["messages"][-1] == USER | {"cache_control": mark}
    assert "cache_control" not in decoded(cache_control={"type": 7})["messages"][-1]


def test_blocks_of_server_tools_are_left_out_and_reported() -> None:
    turn = assistant(
        {"type": "server_tool_use", "id": "srv", "name": "web_search", "input": {}},
        {"type": "web_search_tool_result", "tool_use_id": "srv", "content": []},
        text("Found it.", citations=[{"type": "web_search_result_location"}]),
        {"type": "compaction", "content": "Before: much."},
    )
    only = assistant({"type": "mcp_tool_use", "id": "m"})
    canonical, dropped = decode(request(USER, turn, user({"type": "container_upload"}, text("x")), only))
    assert canonical["messages"][1:] == [
        {"role": "assistant", "content": [text("Found it."), text("Before: much.")]},
        {"role": "user", "content": "x"},
    ]
    assert dropped == [
        "messages[].content[]." + name
        for name in ("server_tool_use", "web_search_tool_result", "citations", "container_upload", "mcp_tool_use")
    ]


# ---- requests: tools and output --------------------------------------------------------------------------------------


def test_tools() -> None:
    schema = WEATHER["input_schema"]
    closed = {"type": "object", "properties": {"a": {}}, "required": ["a"], "additionalProperties": False}
    tools = [
        WEATHER | {"type": "custom"},
        {"name": "b", "input_schema": closed, "strict": True},
        WEATHER | {"name": "c", "strict": True, "defer_loading": True, "allowed_callers": ["direct"]},
        {"type": "web_search_20250305", "name": "web_search"},
        {"type": "bash_20250124", "name": "bash"},
        {"type": "what_is_this", "name": "x"},
    ]
    canonical, dropped = decode(request(tools=tools))
    assert [tool["function"] for tool in canonical["tools"]] == [
        {"name": "weather", "description": "d", "parameters": schema},
        {"name": "b", "parameters": closed, "strict": True},
        {"name": "c", "description": "d", "parameters": schema},
    ]
    assert dropped == ["tools[].strict", "tools[].defer_loading", "tools[].web_search", "tools[].bash", "tools[].type"]


@pytest.mark.parametrize(
    ("choice", "wanted"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "any"}, "required"),
        ({"type": "none"}, "none"),
        ({"type": "tool", "name": "weather"}, {"type": "function", "function": {"name": "weather"}}),
    ],
)
def test_tool_choice(choice: Json, wanted: Any) -> None:
    canonical = decoded(tools=[WEATHER], tool_choice=choice)
    assert canonical["tool_choice"] == wanted
    assert "parallel_tool_calls" not in canonical
    canonical = decoded(tools=[WEATHER], tool_choice=choice | {"disable_parallel_tool_use": True})
    assert canonical["parallel_tool_calls"] is False


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "web_search"}])
def test_a_choice_of_a_tool_that_nobody_has_is_reported(choice: Json) -> None:
    canonical, dropped = decode(
        request(tools=[{"type": "web_search_20250305", "name": "web_search"}], tool_choice=choice)
    )
    assert dropped == ["tools[].web_search", "tool_choice"]
    assert "tools" not in canonical
    assert "tool_choice" not in canonical


@pytest.mark.parametrize("field", ["output_format", "output_config"])
def test_structured_output(field: str) -> None:  # #66ce35f1 #1a02054f
    schema: Json = {
        "type": "object",
        "properties": {"a": {"type": "array", "items": {"$ref": "#/$defs/A"}}},
        "required": ["a"],
        "additionalProperties": False,
        "$defs": {"A": {"type": "object", "properties": {}, "additionalProperties": False}},
    }
    form = {"type": "json_schema", "schema": schema}
    wanted = {"type": "json_schema", "json_schema": {"name": "output", "schema": schema, "strict": True}}
    value = form if field == "output_format" else {"format": form}
    assert decoded(**{field: value})["response_format"] == wanted
    for loose in ({"additionalProperties": True}, {"required": []}, {"oneOf": []}):
        form["schema"] = schema | loose
        assert "strict" not in decoded(**{field: value})["response_format"]["json_schema"]


# ---- ids that carry a signature --------------------------------------------------------------------------------------


@fuzz
@given(st.from_regex(r"[a-zA-Z0-9_-]{1,40}", fullmatch=True), st.text(max_size=60))
def test_a_signature_comes_back_with_the_id(identity: str, signature: str) -> None:
    call = {"id": identity, "extra_content": {"google": {"thought_signature": signature}}}
    packed = packed_id(call)
    assert set(packed) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
    assert unpacked_id(packed) == (identity, signature or None) or "__sig_" in identity


@fuzz
@given(st.text(max_size=40) | st.from_regex(r"a__sig_[a-zA-Z0-9_=-]{0,9}", fullmatch=True))
def test_any_id_that_comes_back_is_an_id(identity: str) -> None:
    short, signature = unpacked_id(identity)
    assert short == identity or (signature and identity.startswith(short + "__sig_"))


def test_geminis_signature_makes_the_round_trip() -> None:
    signed = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    signed["extra_content"] = {"google": {"thought_signature": "Cg+/==" * 9}}
    content = json.loads(encode_reply(reply({"tool_calls": [signed]}), ANSWER))["content"]
    result = user({"type": "tool_result", "tool_use_id": content[0]["id"], "content": "r"})
    found = messages_of(USER, {"role": "assistant", "content": content}, result)
    assert found[1]["tool_calls"] == [signed]
    assert found[2]["tool_call_id"] == "c1"
    for odd in (None, {}, {"id": 7, "extra_content": 7}, {"id": "x", "extra_content": {"google": []}}):
        assert "__sig_" not in packed_id(odd or {})
    assert packed_id({"id": "x", "extra_content": {"google": {"thought_signature": "s" * 99_999}}}) == "x"


# ---- whole replies ---------------------------------------------------------------------------------------------------

ANSWER = Answer(id="abc", model="asked", created=1, request={"stop_sequences": ["END"]})
USAGE = Usage(10, 5, 3, 20, 4, "provider")


def reply(message: Json | None = None, finish: str | None = "stop", **choice: Any) -> Reply:
    message = {"role": "assistant", "content": None} | (message or {})
    return Reply(choices=[{"index": 0, "message": message, "finish_reason": finish, **choice}], usage=USAGE)


def encoded(value: Reply) -> Json:
    body: Json = json.loads(encode_reply(value, ANSWER))
    sdk.Message.model_validate(body)
    return body


def call(identity: str, name: str, arguments: Any) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_whole_reply() -> None:  # PROTOCOLS.md 3.3
    thoughts = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]
    message = {
        "reasoning_content": "Hm.",
        "thinking_blocks": thoughts,
        "content": "Sunny.",
        "tool_calls": [call("c1", "weather", '{"city":"Bern"}')],
    }
    assert encoded(reply(message, "tool_calls")) == {
        "id": "msg_abc",
        "type": "message",
        "role": "assistant",
        "model": "asked",
        "content": [
            *thoughts,
            text("Sunny."),
            {"type": "tool_use", "id": "c1", "name": "weather", "input": {"city": "Bern"}},
        ],
        "stop_reason": "tool_use",
        "stop_sequence": None,
        "usage": {  # R67: input without the cache, output with reasoning
            "input_tokens": 10,
            "cache_creation_input_tokens": 3,
            "cache_read_input_tokens": 5,
            "output_tokens": 24,
            "output_tokens_details": {"thinking_tokens": 4},
        },
    }


def test_reasoning_without_blocks_has_an_empty_signature() -> None:
    content = encoded(reply({"reasoning_content": "Hm.", "content": "x"}))["content"]
    assert content == [{"type": "thinking", "thinking": "Hm.", "signature": ""}, text("x")]


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ("", {}),
        ("  ", {}),
        (None, {}),
        ("{}", {}),
        ('{"a": 1}', {"a": 1}),
        ({"a": 1}, {"a": 1}),
        ('{"a": ', {"_raw": '{"a": '}),
        ("[1]", {"_raw": "[1]"}),
        ('"x"', {"_raw": '"x"'}),
        ('{"a":' * 300 + "1" + "}" * 300, {"_raw": '{"a":' * 300 + "1" + "}" * 300}),
    ],
)
def test_arguments(arguments: Any, wanted: Json) -> None:
    body = encoded(reply({"tool_calls": [call("c", "f", arguments)]}))
    assert body["content"][0]["input"] == wanted
    assert body["stop_reason"] == "tool_use"


@pytest.mark.parametrize(
    ("finish", "more", "wanted"),
    [
        ("stop", {}, ("end_turn", None)),
        (None, {}, ("end_turn", None)),
        ("new", {}, ("end_turn", None)),
        ("length", {}, ("max_tokens", None)),
        ("length", {"native_finish_reason": "model_context_window_exceeded"}, ("model_context_window_exceeded", None)),
        ("content_filter", {}, ("refusal", None)),
        ("stop", {"stop_sequence": "###"}, ("stop_sequence", "###")),
        ("stop", {"native_finish_reason": "stop_sequence"}, ("stop_sequence", "END")),
        ("tool_calls", {}, ("end_turn", None)),  # there are none: nobody must wait for them
        ("length", {"stop_sequence": "###"}, ("max_tokens", None)),
    ],
)
def test_stop_reasons(finish: str | None, more: Json, wanted: tuple[str, str | None]) -> None:  # PROTOCOLS.md 1.3
    body = encoded(reply({"content": "x"}, finish, **more))
    assert (body["stop_reason"], body["stop_sequence"]) == wanted
    if finish not in ("length", "content_filter"):
        body = encoded(reply({"tool_calls": [call("c", "f", "{}")]}, finish, **more))
        assert (body["stop_reason"], body["stop_sequence"]) == ("tool_use", None)


def test_one_of_several_stop_sequences_stays_unknown() -> None:
    answer = Answer(id="a", model="m", created=0, request={"stop_sequences": ["a", "b"]})
    body = json.loads(encode_reply(reply({"content": "x"}, native_finish_reason="stop_sequence"), answer))
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", None)


def test_a_refusal_is_text() -> None:
    body = encoded(reply({"refusal": "I will not."}))
    assert (body["content"], body["stop_reason"]) == ([text("I will not.")], "refusal")
    whole = reply(finish="content_filter")
    whole.extra = {"stop_details": {"type": "refusal", "category": "cyber", "explanation": None, "deep": {}}}
    body = encoded(whole)
    assert (body["content"], body["stop_details"]) == ([], {"type": "refusal", "category": "cyber"})


@pytest.mark.parametrize(
    "strange",
    [
        Reply(choices=[]),
        Reply(choices=[{}]),
        Reply(choices=[{"message": None, "finish_reason": 7}]),
        Reply(choices=[{"message": {"content": 7, "tool_calls": [None, {}, {"function": 7}], "thinking_blocks": [1]}}]),
        Reply(
            choices=[{"message": {"reasoning_content": {}, "annotations": {}, "refusal": 1, "thinking_blocks": "x"}}]
        ),
    ],
)
def test_nothing_is_survived(strange: Reply) -> None:  # R61
    body = encoded(strange)
    assert body["content"] == []
    assert body["usage"]["output_tokens"] == 0


def test_citations() -> None:
    note = {"type": "url_citation", "url_citation": {"url": "https://x", "title": "X", "start_index": 0}}
    block = encoded(reply({"content": "x", "annotations": [note, {"url": "https://y"}, {}, None, 7]}))["content"][0]
    assert [citation["url"] for citation in block["citations"]] == ["https://x", "https://y"]


# ---- streams ---------------------------------------------------------------------------------------------------------

EVENTS: TypeAdapter[Any] = TypeAdapter(sdk.RawMessageStreamEvent)
FIT = {
    "text": {"text_delta", "citations_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
    "redacted_thinking": set[str](),
}


class FakeReader:
    def __init__(self, usage: Usage | None = None, **extra: Any) -> None:
        self.id, self.model, self.created = "up", "real", 0
        self.usage = usage
        self.extra: Json = extra
        self.reads_json = False
        self.done = True
        self.failure: UpstreamError | None = None


def events_of(raw: bytes) -> Iterator[Json]:
    for block in raw.decode().split("\n\n"):
        if block:
            name, data = block.split("\n")
            event: Json = json.loads(data.removeprefix("data: "))
            assert name == f"event: {event['type']}"
            if event["type"] not in ("ping", "error"):
                EVENTS.validate_python(event)
            yield event


def collect(raw: bytes) -> Json:
    """The message that a client makes of a good stream; asserts its structure (PROTOCOLS.md 3.3)."""
    events = [event for event in events_of(raw) if event["type"] != "ping"]
    assert events[0]["type"] == "message_start"
    assert events[-1]["type"] == "message_stop"
    assert events[-2]["type"] == "message_delta"
    message: Json = events[0]["message"]
    current: Json | None = None
    for event in events[1:-2]:
        if event["type"] == "content_block_start":
            assert current is None
            assert event["index"] == len(message["content"])
            current = event["content_block"]
            if current["type"] != "redacted_thinking":
                assert not any(current.get(name) for name in ("text", "thinking", "signature", "input"))
            message["content"].append(current)
            current["json"] = ""
        elif event["type"] == "content_block_delta":
            assert current is not None
            assert event["index"] == len(message["content"]) - 1
            delta = event["delta"]
            assert delta["type"] in FIT[current["type"]]
            for source, target in (("text", "text"), ("thinking", "thinking"), ("partial_json", "json")):
                current[target] = (
                    current.get(target, "") + delta.get(source, "") if source in delta else current.get(target)
                )
            current["signature"] = delta.get("signature") or current.get("signature")
            if "citation" in delta:
                current.setdefault("citations", []).append(delta["citation"])
        else:
            assert event["type"] == "content_block_stop"
            assert current is not None
            current = None
    assert current is None
    for block in message["content"]:
        whole = block.pop("json", "") or ""
        if block["type"] == "tool_use":
            block["input"] = json.loads(whole or "{}")
        for name in [name for name, value in block.items() if value is None]:
            del block[name]
        if block["type"] != "thinking":
            block.pop("signature", None)
            block.pop("thinking", None)
        if block["type"] != "text":
            block.pop("text", None)
    return message | events[-2]["delta"] | {"usage": events[-2]["usage"]}


def write(*chunks: Chunk, reader: Any = None, size: int = 1) -> bytes:
    reader = reader or FakeReader(USAGE)
    writer = MessagesWriter(ANSWER)
    out = [writer.write(chunks[i : i + size], reader) for i in range(0, len(chunks), size)]
    return b"".join([*out, writer.end(reader)])


def said(value: str) -> Chunk:
    return Chunk({"content": value})


def called(index: int, arguments: str, name: str | None = None, identity: str | None = None) -> Chunk:
    entry: Json = {"index": index, "function": {"arguments": arguments}}
    if name is not None:
        entry |= {"id": identity or f"c{index}", "type": "function"}
        entry["function"]["name"] = name
    return Chunk({"tool_calls": [entry]})


def test_a_streamed_text() -> None:
    raw = write(said("Hel"), said("lo"), Chunk({}, finish_reason="stop"))
    names = [event["type"] for event in events_of(raw)]
    assert names == [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]
    assert PING in raw
    message = collect(raw)
    assert (message["id"], message["model"], message["stop_reason"]) == ("msg_abc", "real", "end_turn")
    assert message["content"] == [text("Hello")]
    assert message["usage"] == encoded(reply())["usage"]


def test_everything_in_one_stream() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm. Ok.", "signature": "sig"},
        {"type": "redacted_thinking", "data": "d"},
    ]
    raw = write(
        Chunk({"reasoning_content": "Hm."}),
        Chunk({"reasoning_content": " Ok."}),
        Chunk({"thinking_blocks": [blocks[0]]}),
        Chunk({"thinking_blocks": [blocks[1]]}),
        said("I look."),
        Chunk({"annotations": [{"type": "url_citation", "url_citation": {"url": "https://x", "title": None}}]}),
        called(0, "", "weather"),
        called(0, '{"ci'),
        called(0, 'ty":1}'),
        called(1, "", "time"),
        called(1, "{}"),
        Chunk({}, finish_reason="tool_calls"),
    )
    message = collect(raw)
    assert [block.pop("citations", None) is not None for block in message["content"]] == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert message["content"] == [
        *blocks,
        text("I look."),
        {"type": "tool_use", "id": "c0", "name": "weather", "input": {"city": 1}},
        {"type": "tool_use", "id": "c1", "name": "time", "input": {}},
    ]
    assert message["stop_reason"] == "tool_use"


def test_sequential_calls_are_not_held_back() -> None:
    """The second block opens as soon as the first is a whole JSON value."""
    writer, reader = MessagesWriter(ANSWER), FakeReader()
    writer.write([called(0, "", "a"), called(0, '{"x": {"y": 1}'), called(0, "}")], reader)
    out = writer.write([called(1, '{"z"', "b")], reader)
    assert [event["type"] for event in events_of(out)] == [
        "content_block_stop",
        "content_block_start",
        "content_block_delta",
    ]


def test_interleaved_calls_are_put_in_order() -> None:  # PROTOCOLS.md 2.1: accept interleaving
    raw = write(
        called(0, "", "a"),
        called(1, "", "b"),
        called(0, '{"x"'),
        said("in between"),
        called(1, '{"y"'),
        called(0, ":1}"),
        called(1, ":2}"),
        called(2, "", "c"),
    )
    message = collect(raw)
    assert [block.get("input", block.get("text")) for block in message["content"]] == [
        {"x": 1},
        {"y": 2},
        "in between",
        {},
    ]
    assert message["stop_reason"] == "tool_use"


def test_a_call_whose_name_comes_late() -> None:
    raw = write(said("a"), called(0, '{"x":'), said("b"), called(0, "1}", "late"))
    assert collect(raw)["content"][0] == text("ab")
    assert collect(raw)["content"][1]["input"] == {"x": 1}
    nameless = list(events_of(write(called(0, '{"x":1}'))))
    assert [event["type"] for event in nameless][2:4] == ["content_block_start", "content_block_delta"]


def test_two_calls_under_one_index() -> None:
    """Ollama's (PROTOCOLS.md 2.7): another id is another call."""
    content = collect(write(called(0, '{"a":1}', "f", "x"), called(0, '{"b":2}', "f", "y")))["content"]
    assert [(block["id"], block["input"]) for block in content] == [("x", {"a": 1}), ("y", {"b": 2})]


def test_thinking_that_was_not_streamed_comes_whole() -> None:
    block = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    assert collect(write(Chunk({"thinking_blocks": [block]}), said("x")))["content"] == [block, text("x")]
    silent = {"type": "thinking", "thinking": "", "signature": "s"}
    assert collect(write(Chunk({"thinking_blocks": [silent]})))["content"] == [silent]


def test_thinking_is_never_doubled() -> None:
    block = {"type": "thinking", "thinking": "Hm.", "signature": "s"}
    late = collect(write(Chunk({"reasoning_content": "Hm."}), said("x"), Chunk({"thinking_blocks": [block]})))
    assert [part.get("thinking") for part in late["content"]] == ["Hm.", None, ""]
    waiting = collect(
        write(
            called(0, "", "f"),
            Chunk({"reasoning_content": "Hm."}),
            Chunk({"thinking_blocks": [block]}),
            called(0, "{}"),
        )
    )
    assert waiting["content"][1] == block


def test_reasoning_beside_text_in_one_delta() -> None:
    raw = write(Chunk({"content": "x", "tool_calls": [], "reasoning_content": "Hm.", "role": None}), size=9)
    assert [part["type"] for part in collect(raw)["content"]] == ["thinking", "text"]


def test_a_stream_of_nothing() -> None:
    for raw in (write(), write(Chunk({}, finish_reason="content_filter"))):
        assert collect(raw)["content"] == []
    details = {"type": "refusal", "explanation": "no"}
    message = collect(write(Chunk({}, finish_reason="content_filter"), reader=FakeReader(stop_details=details)))
    assert (message["stop_reason"], message["stop_details"]) == ("refusal", details)
    assert message["usage"]["input_tokens"] == 0


def test_a_streamed_refusal() -> None:
    message = collect(write(Chunk({"refusal": "I will"}), Chunk({"refusal": " not."}), Chunk({}, finish_reason="stop")))
    assert (message["content"], message["stop_reason"]) == ([text("I will not.")], "refusal")


def test_only_the_first_choice_is_written() -> None:
    assert collect(write(said("a"), Chunk({"content": "b"}, index=1), said("c")))["content"] == [text("ac")]


@pytest.mark.parametrize(
    "delta",
    [
        {"content": None},
        {"content": 7},
        {"content": ["x"]},
        {"tool_calls": 7},
        {"tool_calls": [None, {}, {"function": None}, {"function": "x"}]},
        {"thinking_blocks": [None, {}, {"type": "x"}, 7]},
        {"reasoning_content": {}},
        {"refusal": []},
        {"annotations": [{"url_citation": {}}]},
        {"new": "x"},
    ],
)
def test_strange_deltas_are_survived(delta: Json) -> None:  # R61
    assert collect(write(Chunk(delta), said("x")))["content"] == [text("x")]


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_writer, "MAX_WAITING_CHARS", 10_000)
    writer, reader = MessagesWriter(ANSWER), FakeReader()
    writer.write([called(0, '{"x":"', "a"), called(1, "", "b")], reader)
    with pytest.raises(MalformedReply):
        writer.write([called(1, "y" * 500)] * 100, reader)
    writer = MessagesWriter(ANSWER)
    writer.write([called(0, '{"x":"', "a")], reader)
    with pytest.raises(MalformedReply):
        writer.write([said("a"), Chunk({"reasoning_content": "b"})] * 100, reader)
    writer = MessagesWriter(ANSWER)
    for _ in range(100):  # one long call is not waiting for anything
        writer.write([called(0, "x" * 5000, "a")], reader)
    monkeypatch.setattr(face_writer, "MAX_TOOLS", 3)
    with pytest.raises(MalformedReply):
        writer.write([called(n, "{}", "a") for n in range(9)], reader)


def test_a_long_call_keeps_others_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_writer, "MAX_SAID_CHARS", 20)
    raw = write(called(0, '{"x":"' + "y" * 50, "a"), called(0, '"}'), called(1, '{"z":1}', "b"), said("t"))
    assert [block["type"] for block in collect(raw)["content"]] == ["tool_use", "tool_use", "text"]


# ---- errors ----------------------------------------------------------------------------------------------------------


def test_an_error_ends_the_stream() -> None:  # R12
    writer, reader = MessagesWriter(ANSWER), FakeReader()
    error = UpstreamError("Overloaded", failure=FailureClass.OVERLOADED, status=529)
    only = list(events_of(writer.error(error)))
    assert only == [{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}]
    raw = writer.write([said("a")], reader) + writer.error(error)
    names = [event["type"] for event in events_of(raw)]
    assert names[0] == "message_start"
    assert names[-1] == "error"
    assert "message_stop" not in names


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
        (405, "invalid_request_error"),
        (413, "request_too_large"),
        (422, "invalid_request_error"),
        (429, "rate_limit_error"),
        (500, "api_error"),
        (502, "api_error"),
        (503, "overloaded_error"),
        (504, "timeout_error"),
        (529, "overloaded_error"),
    ],
)
def test_error_types(status: int, kind: str) -> None:  # PROTOCOLS.md 1.5
    body = json.loads(error_body(GatewayError("m", status=status), "req_1"))
    assert body == {"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"}


def test_another_dialects_error_body_is_not_shown() -> None:
    error = UpstreamError("no", failure=FailureClass.SERVER, body=b'{"error":{"message":"secret"}}', param="top_k")
    assert json.loads(error_body(error)) == {"type": "error", "error": {"type": "api_error", "message": "top_k: no"}}
    assert error_event(error) == b"event: error\ndata: " + error_body(error) + b"\n\n"
    assert len(error_body(GatewayError("x" * 99_999))) < 3000
    assert json.loads(error_body(GatewayError("  ")))["error"]["message"].strip()


# ---- recorded exchanges ----------------------------------------------------------------------------------------------


def recorded(*endpoints: str, requests: bool = False) -> list[Any]:
    found = []
    for path in sorted(DEV.glob("*.messages.*.json")) if DEV.is_dir() else []:
        exchange = json.loads(path.read_text())
        if exchange["api"] != "messages" or exchange["endpoint"] not in endpoints:
            continue
        if requests and (not isinstance(exchange["request"]["body"], dict) or "error-400" in path.name):
            continue
        if requests or exchange["expected"]["outcome"] == "ok":
            found.append(pytest.param(exchange, id=Path(path).stem))
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="the shared folder with recordings is not here"))]


def texts(value: Any) -> list[str]:
    """Every text that a model would read in a request's messages."""
    if isinstance(value, list):
        return [piece for item in value for piece in texts(item)]
    if not isinstance(value, dict):
        return [value] if isinstance(value, str) else []
    if value.get("type") in ("text", "compaction"):
        return texts(value.get("text"))
    return texts(value.get("content"))


@pytest.mark.parametrize("exchange", recorded("chat", "stream", "error", requests=True))
def test_recorded_requests_lose_nothing(exchange: Any) -> None:
    body = {"model": "m", "max_tokens": 9} | exchange["request"]["body"]
    canonical, dropped = decode(body)
    spoken = [message for message in body["messages"] if message["role"] != "system"]
    assert sorted(texts(spoken)) == sorted(
        piece
        for message in canonical["messages"]
        if message["role"] != "system"
        for piece in texts(message)
        if "tool_reference" not in piece
    )
    blocks = [block for message in spoken if isinstance(message["content"], list) for block in message["content"]]
    calls = [call for message in canonical["messages"] for call in message.get("tool_calls", ())]
    assert [json.loads(made["function"]["arguments"]) for made in calls] == [
        block["input"] for block in blocks if block["type"] == "tool_use"
    ]
    assert [message["tool_call_id"] for message in canonical["messages"] if message["role"] == "tool"] == [
        block["tool_use_id"] for block in blocks if block["type"] == "tool_result"
    ]
    custom = [tool for tool in body.get("tools", ()) if "input_schema" in tool]
    assert [tool["function"]["parameters"] for tool in canonical.get("tools", ())] == [
        tool["input_schema"] for tool in custom
    ]
    if len(custom) < len(body.get("tools", ())):
        assert "tools[].tool_search_tool" in dropped


def compare(message: Json, expected: Json) -> None:
    content = message["content"]
    assert "".join(block["text"] for block in content if block["type"] == "text") == expected["text"]
    calls = [(block["name"], block["input"]) for block in content if block["type"] == "tool_use"]
    assert calls == [(made["name"], made["arguments"]) for made in expected["tool_calls"]]
    reasoning = "".join(block["thinking"] for block in content if block["type"] == "thinking")
    accepted = expected.get("accept", {}).get("reasoning", [expected["reasoning"]])
    assert reasoning in [value or "" for value in accepted]
    native = expected["native_finish_reason"]
    assert message["stop_reason"] == ("end_turn" if native == "pause_turn" else native)
    counts = message["usage"]
    prompt = counts["input_tokens"] + counts["cache_creation_input_tokens"] + counts["cache_read_input_tokens"]
    assert (prompt, counts["output_tokens"]) == (expected["usage"]["prompt"], expected["usage"]["completion"])
    assert counts["cache_read_input_tokens"] == (expected["usage"]["cached"] or 0)


@pytest.mark.parametrize("exchange", recorded("stream"))
@pytest.mark.parametrize("size", [1, 100_000])
def test_recorded_streams_through_the_canonical_shape(exchange: Any, size: int) -> None:  # R60
    data = exchange["response"]["body"].encode()
    reader, writer = AnthropicReader("p"), MessagesWriter(ANSWER)
    out = []
    for at in range(0, len(data), size):
        chunks = reader.feed(data[at : at + size])
        if chunks:
            out.append(writer.write(chunks, reader))
    chunks = reader.end()
    if chunks:
        out.append(writer.write(chunks, reader))
    if reader.failure is not None:
        assert "ok" not in exchange["expected"].get("accept", {}).get("outcome", []) or "1fed7804" in exchange["id"]
        return
    compare(collect(b"".join([*out, writer.end(reader)])), exchange["expected"])


@pytest.mark.parametrize("exchange", recorded("chat"))
def test_recorded_messages_through_the_canonical_shape(exchange: Any) -> None:  # R60
    whole = read_reply(exchange["response"]["body"].encode(), "p")
    message = encoded(whole)
    compare(message, exchange["expected"])
    wanted = [block for block in json.loads(exchange["response"]["body"])["content"] if block["type"] != "thinking"]
    assert [block for block in message["content"] if block["type"] != "thinking"] == wanted


# ---- any conversation ------------------------------------------------------------------------------------------------

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)
NAMES = st.from_regex(r"[a-z]{1,8}", fullmatch=True)
INPUTS = st.dictionaries(WORDS, st.integers(-9, 9) | WORDS | st.lists(st.booleans(), max_size=2), max_size=3)
THINKING = st.builds(lambda a, b: {"type": "thinking", "thinking": a, "signature": b}, WORDS, WORDS)
REDACTED = st.builds(lambda a: {"type": "redacted_thinking", "data": a}, WORDS)


@st.composite
def conversations(draw: st.DrawFn) -> list[Json]:
    """Turns as Anthropic's own API writes them, ending with the user."""
    turns: list[Json] = [user(*draw(st.lists(st.builds(text, WORDS), min_size=1, max_size=2)))]
    for n in range(draw(st.integers(0, 2))):
        blocks = draw(st.lists(THINKING | REDACTED, max_size=2))
        blocks += draw(st.lists(st.builds(text, WORDS), max_size=2))
        names = draw(st.lists(NAMES, min_size=0 if blocks and blocks[-1]["type"] == "text" else 1, max_size=3))
        blocks += [
            {"type": "tool_use", "id": f"toolu_{n}_{k}", "name": name, "input": draw(INPUTS)}
            for k, name in enumerate(names)
        ]
        results: list[Json] = [
            {"type": "tool_result", "tool_use_id": f"toolu_{n}_{k}", "content": draw(WORDS)} for k in range(len(names))
        ]
        more = draw(st.lists(st.builds(text, WORDS), min_size=0 if results else 1, max_size=2))
        turns += [assistant(*blocks), user(*results, *more)]
    return turns


@fuzz
@given(conversations(), st.none() | WORDS)
def test_a_conversation_survives_the_canonical_shape(turns: list[Json], system: str | None) -> None:
    """Read by the face and written by the provider's side it is the conversation that it was (R60)."""
    body = request(*turns)
    if system is not None:
        body["system"] = system
    canonical, dropped = decode(body)
    made, lost = build_body(canonical, "claude-sonnet-4-5", options_for("claude-sonnet-4-5"))
    assert dropped == lost == []
    assert made["messages"] == turns
    assert made.get("system") == system


@fuzz
@given(
    st.none() | WORDS,
    st.lists(THINKING | REDACTED, max_size=3),
    st.lists(st.tuples(NAMES, INPUTS), max_size=3),
)
def test_a_reply_survives_the_dialect(content: str | None, thoughts: list[Json], calls: list[tuple[str, Json]]) -> None:
    """Written by the face and read by the provider's side it is the reply that it was (R60)."""
    message: Json = {"role": "assistant", "content": content if content or calls else ""}
    reasoning = "".join(block.get("thinking", "") for block in thoughts)
    if reasoning:
        message["reasoning_content"] = reasoning
    if thoughts:
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = [
            call(f"c{n}", name, json.dumps(value, separators=(",", ":"), ensure_ascii=False))
            for n, (name, value) in enumerate(calls)
        ]
    sent = reply(message, "tool_calls" if calls else "stop")
    found = read_reply(encode_reply(sent, ANSWER), "p")
    assert found.choices[0]["message"] == message
    assert found.choices[0]["finish_reason"] == sent.choices[0]["finish_reason"]
    assert found.usage == USAGE


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Chunk], str, str, list[Json]]:
    """Chunks of one answer, its parts interleaved at will, and what it says: text, reasoning, the tools' inputs."""
    inputs = draw(st.lists(INPUTS, max_size=3))
    tracks: list[list[Chunk]] = [
        [said(piece) for piece in draw(st.lists(WORDS, max_size=3))],
        [Chunk({"reasoning_content": piece}) for piece in draw(st.lists(WORDS, max_size=3))],
    ]
    for index, value in enumerate(inputs):
        whole = json.dumps(value)
        cut = draw(st.integers(0, len(whole)))
        pieces = [whole[:cut], whole[cut:]] if value or draw(st.booleans()) else []
        tracks.append([called(index, "", f"tool{index}"), *(called(index, piece) for piece in pieces)])
    content = "".join(chunk.delta["content"] for chunk in tracks[0])
    reasoning = "".join(chunk.delta["reasoning_content"] for chunk in tracks[1])
    chunks: list[Chunk] = []
    while any(tracks):
        track = draw(st.sampled_from([track for track in tracks if track]))
        chunks.append(track.pop(0))
    return chunks, content, reasoning, inputs


@fuzz
@given(streams(), st.integers(1, 5))
def test_any_interleaving_becomes_blocks_one_after_the_other(
    stream: tuple[Sequence[Chunk], str, str, list[Json]], size: int
) -> None:
    chunks, content, reasoning, inputs = stream
    message = collect(write(*chunks, Chunk({}, finish_reason="stop"), size=size))
    blocks = message["content"]
    assert "".join(block["text"] for block in blocks if block["type"] == "text") == content
    assert "".join(block["thinking"] for block in blocks if block["type"] == "thinking") == reasoning
    tools = {block["name"]: block["input"] for block in blocks if block["type"] == "tool_use"}
    assert tools == {f"tool{index}": value for index, value in enumerate(inputs)}
    assert message["stop_reason"] == ("tool_use" if inputs else "end_turn")


# ---- any garbage -----------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "id", "x"]), inner),
    max_leaves=4,
)
RICH = request(
    user(text("a"), {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "x"}}),
    assistant({"type": "thinking", "thinking": "t", "signature": "s"}, text("b"), tool_use()),
    user({"type": "tool_result", "tool_use_id": "toolu_1", "content": [text("r")], "is_error": True}),
    user({"type": "document", "source": {"type": "content", "content": [text("d")]}, "citations": {"enabled": True}}),
    user({"type": "search_result", "source": "s", "title": "t", "content": [text("c")]}),
    {"role": "system", "content": [text("sys")]},
    system=[text("s", cache_control={"type": "ephemeral", "ttl": "5m"})],
    tools=[WEATHER, {"type": "bash_20250124", "name": "bash"}],
    tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
    thinking={"type": "enabled", "budget_tokens": 1024, "display": "omitted"},
    output_config={"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}},
    metadata={"user_id": "u"},
    stop_sequences=["x"],
    stream=True,
    temperature=1,
    cache_control={"type": "ephemeral"},
)


def paths(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of everything inside of ``value``."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield (*at, key)
        yield from paths(item, (*at, key))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    found = copy.deepcopy(value)
    holder = found
    for key in path[:-1]:
        holder = holder[key]
    holder[path[-1]] = new
    return found


@settings(fuzz, max_examples=300)
@given(st.sampled_from(list(paths(RICH))), VALUES)
def test_a_request_with_something_wrong_is_read_or_refused(path: tuple[Any, ...], new: Any) -> None:
    body = put(RICH, path, new)
    wrong: ClientError | None = None
    try:
        canonical, dropped = decode(body)
        json.dumps(canonical)
        assert all(isinstance(name, str) for name in dropped)
    except ClientError as error:
        wrong = error
    assert wrong is None or (wrong.param and wrong.status == 400)


def test_a_call_that_goes_on_behind_its_end_is_an_error() -> None:
    """Its block is closed: what comes now can neither be written nor be left out unseen."""
    with pytest.raises(MalformedReply):
        write(called(0, "{}", "f"), said("x"), called(0, '{"a":1}'))
    assert collect(write(called(0, "{}", "f"), said("x"), called(0, " "), called(0, "")))["content"][1] == text("x")


RICH_MESSAGE: Json = {
    "content": "c",
    "refusal": "r",
    "reasoning_content": "t",
    "thinking_blocks": [
        {"type": "thinking", "thinking": "t", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
    ],
    "annotations": [{"type": "url_citation", "url_citation": {"url": "https://x", "title": "t"}}],
    "tool_calls": [
        {
            "index": 0,
            "id": "i",
            "type": "function",
            "function": {"name": "f", "arguments": "{}"},
            "extra_content": {"google": {"thought_signature": "g"}},
        }
    ],
}


@settings(fuzz, max_examples=200)
@given(st.sampled_from(list(paths(RICH_MESSAGE))), VALUES)
def test_a_reply_with_something_wrong_is_written(path: tuple[Any, ...], new: Any) -> None:  # R61, R66
    message = put(RICH_MESSAGE, path, new)
    body = json.loads(encode_reply(reply(message), ANSWER))
    assert {block["type"] for block in body["content"]} <= set(FIT)
    raw = write(Chunk(message), said("x"), called(7, "{}", "g"), Chunk({}, finish_reason="stop"))
    assert list(events_of(raw))[-1] == {"type": "message_stop"}
