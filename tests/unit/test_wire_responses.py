"""The client's side of the Responses dialect: requests in, whole replies and streams out (R15, R59-R62, R65, R67;
PROTOCOLS.md 2.2, 3.2). Everything written is validated with the official SDK's own types and read by its own client."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from slipstream.errors import ClientError, GatewayError, MalformedReply, TransportError, UpstreamError
from slipstream.types import FailureClass
from slipstream.wire.canonical import Answer, Chunk, Reply
from slipstream.wire.responses import face_writer
from slipstream.wire.responses.errors import error_event
from slipstream.wire.responses.face_reply import encode_reply
from slipstream.wire.responses.face_request import decode_request
from slipstream.wire.responses.face_writer import ResponsesWriter
from slipstream.wire.responses.items import ENCRYPTED, LOGPROBS, PACKED, pack_thinking, unpack_thinking
from slipstream.wire.responses.tap import ResponsesTap, check_response, read_usage
from slipstream.wire.usage import Usage
from tests.harness import SHARED

Json = dict[str, Any]
fuzz = settings(deadline=None, derandomize=True, max_examples=150)
EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
ASK: Json = {"model": "m", "input": "Hello"}
USER: Json = {"role": "user", "content": "Hello"}
THINKING: Json = {"type": "thinking", "thinking": "Hm. ", "signature": "c2ln"}
REDACTED: Json = {"type": "redacted_thinking", "data": "opaque"}
CARRY: Json = {**ASK, "include": [ENCRYPTED]}
TOOL: Json = {"type": "function", "name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CUSTOM: Json = {"type": "custom", "name": "patch", "description": "Apply it.", "format": {"type": "text"}}
USAGE = Usage(7, 4, 1, 5, 2, "provider")


def asked(**fields: Any) -> tuple[Json, list[str]]:
    """The canonical request; the body must come out as it went in (R59)."""
    body = {**ASK, **fields}
    before = copy.deepcopy(body)
    result = decode_request(body)
    assert body == before
    assert decode_request(body) == result
    return result


def messages(*items: Json, **fields: Any) -> list[Json]:
    request, dropped = asked(input=list(items), **fields)
    assert dropped == []
    return list(request["messages"])


def refused(**fields: Any) -> ClientError:
    with pytest.raises(ClientError) as caught:
        asked(**fields)
    assert caught.value.status == 400
    return caught.value


# ---- requests: settings ----------------------------------------------------------------------------------------------


def test_a_plain_request() -> None:
    assert asked() == ({"model": "m", "messages": [USER]}, [])


def test_settings_go_on_under_their_chat_names() -> None:
    request, dropped = asked(
        instructions="Be brief.",
        max_output_tokens=100,
        temperature=0.5,
        top_p=0.9,
        top_logprobs=3,
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low", "format": {"type": "text"}},
        metadata={"a": "b"},
        user="u",
        safety_identifier="s",
        prompt_cache_key="k",
        service_tier="flex",
        store=False,
        truncation="disabled",
        stream=True,
        seed=7,
        top_k=5,
    )
    assert dropped == []
    assert request == {
        "model": "m",
        "messages": [{"role": "system", "content": "Be brief."}, USER],
        "max_completion_tokens": 100,
        "temperature": 0.5,
        "top_p": 0.9,
        "logprobs": True,
        "top_logprobs": 3,
        "reasoning_effort": "low",
        "verbosity": "low",
        "metadata": {"a": "b"},
        "user": "u",
        "safety_identifier": "s",
        "prompt_cache_key": "k",
        "service_tier": "flex",
        "stream": True,
        "stream_options": {"include_usage": True},
        "seed": 7,
        "top_k": 5,
    }


def test_null_is_not_set() -> None:
    names = ["instructions", "max_output_tokens", "temperature", "tools", "tool_choice", "text", "reasoning", "stream"]
    names += ["previous_response_id", "conversation", "prompt", "background", "include", "store", "truncation", "user"]
    names += ["stream_options", "messages", "n", "metadata", "parallel_tool_calls", "max_tool_calls"]
    assert asked(**dict.fromkeys(names)) == asked()
    assert asked(text={"format": {"type": "text"}, "verbosity": None}, metadata={}, reasoning={}) == asked()


def test_formats() -> None:
    schema = {"type": "object"}
    request, _ = asked(text={"format": {"type": "json_schema", "name": "a", "schema": schema, "strict": True}})
    assert request["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "a", "schema": schema, "strict": True},
    }
    request, _ = asked(text={"format": {"type": "json_object"}})
    assert request["response_format"] == {"type": "json_object"}


def test_logprobs_are_asked_for_by_include() -> None:
    request, dropped = asked(include=[LOGPROBS, ENCRYPTED])
    assert request["logprobs"] is True
    assert dropped == []


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"store": True}, ["store"]),
        ({"truncation": "auto"}, ["truncation"]),
        ({"max_tool_calls": 3}, ["max_tool_calls"]),
        ({"context_management": [{"type": "compaction"}]}, ["context_management"]),
        ({"include": ["file_search_call.results"]}, ["include"]),
        ({"text": {"format": {"type": "grammar"}}}, ["text.format"]),
        ({"text": {"tone": "warm", "tint": None}}, ["text.tone"]),
        ({"reasoning": {"mode": "pro", "x\ny": 1}}, ["reasoning.mode", "reasoning.(other)"]),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"tools": [TOOL, {"type": "web_search"}, {"type": "mcp"}]}, ["tools[1].type", "tools[2].type"]),
        ({"tools": [{"type": "web_search"}], "tool_choice": "required"}, ["tools[0].type", "tool_choice"]),
        ({"tools": [TOOL], "tool_choice": {"type": "file_search"}}, ["tool_choice"]),
        ({"tools": [{**TOOL, "defer_loading": True}]}, ["tools[].defer_loading"]),
        ({"tools": [{**CUSTOM, "format": {"type": "grammar", "syntax": "lark"}}]}, ["tools[].format"]),
        ({"input": [USER, {"type": "web_search_call", "id": "ws_1"}]}, ["input[].web_search_call"]),
        ({"input": [USER, {"type": "reasoning", "summary": []}]}, ["input[].reasoning"]),
    ],
)
def test_what_chat_cannot_say_is_named(fields: Json, names: list[str]) -> None:  # R65
    assert asked(**fields)[1] == names


def test_the_list_of_dropped_names_is_bounded() -> None:
    assert len(asked(tools=[{"type": "x"}] * 1000)[1]) == 32


@pytest.mark.parametrize(
    ("fields", "param", "hint"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "whole input"),
        ({"conversation": {"id": "c"}}, "conversation", "whole input"),
        ({"prompt": {"id": "p"}}, "prompt", "whole input"),
        ({"background": True}, "background", "stream"),
        ({"messages": []}, "messages", "'input'"),
        ({"max_tokens": 5}, "max_tokens", "max_output_tokens"),
        ({"response_format": {}}, "response_format", "text.format"),
        ({"n": 2}, "n", "one answer"),
        ({"input": None}, "input", "Missing"),
        ({"input": 5}, "input", "string or a list"),
        ({"input": []}, "input", "at least one"),
        ({"input": ["x"]}, "input[0]", "object"),
        ({"input": [{"type": "item_reference", "id": "rs_1"}]}, "input[0]", "whole input"),
        ({"input": [{"id": "rs_1"}]}, "input[0]", "whole input"),
        ({"input": [{"type": "compaction", "encrypted_content": "x"}]}, "input[0]", "whole input"),
        ({"input": [{"type": 5}]}, "input[0].type", "name"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "user"),
        ({"input": [{"role": "user", "content": 5}]}, "input[0].content", "parts"),
        ({"input": [{"role": "user", "content": ["x"]}]}, "input[0].content[0]", "object"),
        ({"input": [{"role": "user", "content": [{"type": "video"}]}]}, "input[0].content[0].type", "input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text", "text": 5}]}]}, "input[0].content[0].text", ""),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "file_id": "f"}]}]},
            "input[0].content[0].image_url",
            "URL",
        ),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]", "file_data"),
        (
            {"input": [{"role": "assistant", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            "input[0].content",
            "text",
        ),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].call_id", "required"),
        ({"input": [{"type": "function_call", "call_id": "c"}]}, "input[0].name", "required"),
        (
            {"input": [{"type": "function_call", "call_id": "c", "name": "f", "arguments": 5}]},
            "input[0].arguments",
            "JSON",
        ),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id", "required"),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": {"a": 1}}]},
            "input[0].output",
            "string",
        ),
        ({"instructions": ["x"]}, "instructions", "string"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"max_output_tokens": 1.5}, "max_output_tokens", "whole"),
        ({"max_output_tokens": True}, "max_output_tokens", "whole"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"text": "x"}, "text", "object"),
        ({"text": {"format": "json"}}, "text.format", "type"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.schema", "schema"),
        ({"reasoning": {"effort": 5}}, "reasoning.effort", "string"),
        ({"include": "all"}, "include", "list"),
        ({"tools": {}}, "tools", "list"),
        ({"tools": ["f"]}, "tools[0]", "object"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name", "tools[0].name"),
        ({"tools": [{**TOOL, "parameters": "x"}]}, "tools[0].parameters", "schema"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice", "auto"),
        ({"tools": [TOOL], "tool_choice": {"type": "function"}}, "tool_choice.name", "tool_choice.name"),
    ],
)
def test_what_cannot_be_served_is_refused_by_name(fields: Json, param: str, hint: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert hint in error.message


# ---- requests: tools -------------------------------------------------------------------------------------------------


def test_tools_are_nested() -> None:
    request, dropped = asked(tools=[TOOL, {"type": "function", "name": "g"}], parallel_tool_calls=False)
    assert dropped == []
    nested = {name: TOOL[name] for name in ("name", "description", "parameters", "strict")}
    assert request["tools"] == [
        {"type": "function", "function": nested},
        {"type": "function", "function": {"name": "g"}},
    ]
    assert request["parallel_tool_calls"] is False


@pytest.mark.parametrize(
    ("choice", "canonical"),
    [
        ("auto", "auto"),
        ("none", "none"),
        ("required", "required"),
        ({"type": "function", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
        ({"type": "custom", "name": "patch"}, {"type": "function", "function": {"name": "patch"}}),
    ],
)
def test_tool_choice(choice: Any, canonical: Any) -> None:
    assert asked(tools=[TOOL, CUSTOM], tool_choice=choice)[0]["tool_choice"] == canonical


def test_allowed_tools_are_the_only_ones() -> None:
    choice = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "g"}]}
    request, dropped = asked(tools=[TOOL, {**TOOL, "name": "g"}], tool_choice=choice)
    assert [tool["function"]["name"] for tool in request["tools"]] == ["g"]
    assert request["tool_choice"] == "required"
    assert dropped == []


def test_what_goes_with_tools_goes_without_them() -> None:  # chat refuses both without tools
    assert asked(tools=[], tool_choice="auto", parallel_tool_calls=True) == asked()


def test_a_custom_tool_is_a_function_of_one_string() -> None:
    request, _ = asked(tools=[{**CUSTOM, "format": {"type": "grammar", "syntax": "lark", "definition": "start: x"}}])
    function = request["tools"][0]["function"]
    assert function["name"] == "patch"
    assert function["parameters"]["required"] == ["input"]
    assert "start: x" in function["description"]


def test_tools_may_come_within_the_input() -> None:  # recorded: openai.responses.tools.3daba201
    more = {"type": "additional_tools", "role": "developer", "tools": [{**TOOL, "name": "g"}, TOOL]}
    request, dropped = asked(tools=[TOOL], input=[USER, more])
    assert [tool["function"]["name"] for tool in request["tools"]] == ["f", "g"]
    assert request["messages"] == [USER]
    assert dropped == []


# ---- requests: input -------------------------------------------------------------------------------------------------


def call(call_id: str = "call_1", name: str = "f", arguments: Any = '{"a":1}', **more: Any) -> Json:
    return {
        "type": "function_call",
        "id": "fc_9",
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
        "status": "completed",
        **more,
    }


def output(call_id: str = "call_1", value: Any = "42") -> Json:
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def said(text: str = "Yes.", **more: Any) -> Json:
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part], **more}


def thought(text: str = "Hm.", **more: Any) -> Json:
    return {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": text}], **more}


def chat_call(call_id: str = "call_1", name: str = "f", arguments: str = '{"a":1}', **more: Any) -> Json:
    return {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


def test_messages_of_every_role() -> None:
    items = [{"role": role, "content": "x"} for role in ("system", "developer", "user", "assistant")]
    assert messages(*items) == items
    assert messages(*[{**item, "type": "message"} for item in items]) == items


def test_parts() -> None:
    parts = [
        {"type": "input_text", "text": "Look:"},
        {"type": "input_image", "image_url": "data:image/png;base64,AA==", "detail": "low"},
        {"type": "input_image", "image_url": "https://h/x.png"},
        {"type": "input_file", "file_data": "data:text/plain;base64,AA==", "filename": "a.txt"},
        {"type": "input_file", "file_data": "AA=="},
        {"type": "input_file", "file_url": "https://h/a.pdf"},
        {"type": "input_file", "file_id": "file-1"},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "input_text", "text": "Well?", "prompt_cache_breakpoint": {"mode": "explicit"}},
    ]
    assert messages({"role": "user", "content": parts})[0]["content"] == [
        {"type": "text", "text": "Look:"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
        {"type": "image_url", "image_url": {"url": "https://h/x.png"}},
        {"type": "file", "file": {"filename": "a.txt", "file_data": "data:text/plain;base64,AA=="}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}},
        {"type": "file", "file": {"file_data": "https://h/a.pdf"}},
        {"type": "file", "file": {"file_id": "file-1"}},
        {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}},
        {"type": "text", "text": "Well?", "cache_control": {"type": "ephemeral"}},
    ]


def test_what_parts_carry_beside_their_content() -> None:
    mark = {"type": "ephemeral", "ttl": "1h"}
    parts = [{"type": "refusal", "refusal": "No."}, {"type": "input_text", "text": "x", "cache_control": mark}]
    parts.append({"type": "input_file", "file_id": "f", "detail": "high"})
    request, dropped = asked(input=[{"role": "user", "content": parts}])
    assert request["messages"][0]["content"] == [
        {"type": "text", "text": "No."},
        {"type": "text", "text": "x", "cache_control": mark},
        {"type": "file", "file": {"file_id": "f"}},
    ]
    assert dropped == ["input[].content[].detail"]
    tools = asked(tools=[{**TOOL, "cache_control": mark}])[0]["tools"]
    assert tools[0]["cache_control"] == mark


def test_one_plain_text_part_is_a_string() -> None:
    assert messages({"role": "user", "content": [{"type": "input_text", "text": "Hello"}]}) == [USER]
    assert messages({"role": "user", "content": []}) == [{"role": "user", "content": ""}]


def test_an_earlier_answer_is_one_text() -> None:
    item = said("a")
    item["content"] = [*item["content"], {"type": "output_text", "text": "b"}]
    assert messages(USER, item) == [USER, {"role": "assistant", "content": "ab"}]
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages(USER, refusal) == [USER, {"role": "assistant", "content": None, "refusal": "No."}]


def test_a_turn_of_several_items_is_one_message() -> None:  # PROTOCOLS 2.2
    turn = [thought(), said("Let me see."), call(), call("call_2", "g", {})]
    assert messages(USER, *turn, output("call_2", "b"), output(), said()) == [
        USER,
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [chat_call(), chat_call("call_2", "g", "{}")],
        },
        {"role": "tool", "tool_call_id": "call_2", "content": "b"},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
        {"role": "assistant", "content": "Yes."},
    ]


def test_calls_one_after_the_other_are_turns_of_their_own() -> None:
    roles = [m["role"] for m in messages(USER, call("a"), output("a"), thought(), call("b"), output("b"), USER)]
    assert roles == ["user", "assistant", "tool", "assistant", "tool", "user"]


def test_calls_of_one_turn_stay_together_whatever_stands_between() -> None:  # chat wants the outputs behind all of them
    out = messages(USER, said("a"), call("a"), thought("1"), call("b"), said("b"), output("a"), output("b"))
    assert [m["role"] for m in out] == ["user", "assistant", "tool", "tool"]
    assert out[1]["content"] == "a\nb"
    assert [c["id"] for c in out[1]["tool_calls"]] == ["a", "b"]


def test_a_refusal_within_a_turn_that_calls() -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert messages(USER, call(), refusal, refusal, output())[1:] == [
        {"role": "assistant", "content": None, "refusal": "No.No.", "tool_calls": [chat_call()]},
        {"role": "tool", "tool_call_id": "call_1", "content": "42"},
    ]


def test_two_answers_in_a_row_stay_two() -> None:
    assert messages(USER, said("a"), thought(), said("b"))[1:] == [
        {"role": "assistant", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "Hm."},
    ]


def test_outputs_may_have_parts() -> None:
    parts = [{"type": "input_text", "text": "See"}, {"type": "input_image", "image_url": "https://h/x.png"}]
    assert messages(call(), output(value=parts))[1]["content"] == [
        {"type": "text", "text": "See"},
        {"type": "image_url", "image_url": {"url": "https://h/x.png"}},
    ]
    assert messages(call(), output(value=None))[1]["content"] == ""


def test_reasoning_text_wins_over_its_summary() -> None:
    item = thought("short", content=[{"type": "reasoning_text", "text": "long"}])
    assert messages(item, said())[0]["reasoning_content"] == "long"


def test_thinking_that_we_packed_comes_back() -> None:  # PROTOCOLS 2.3
    packed = pack_thinking([THINKING, REDACTED])
    assert messages(thought(encrypted_content=packed), call())[0]["thinking_blocks"] == [THINKING, REDACTED]


@pytest.mark.parametrize(
    "packed",
    [
        "gAAAAABo",
        5,
        PACKED,
        PACKED + "!",
        PACKED + "bm9wZQ==",
        pack_thinking([{"type": "text", "text": "x"}]),
        pack_thinking([{"type": "thinking"}]),
        pack_thinking([5]),  # type: ignore[list-item]
        pack_thinking({"a": 1}),  # type: ignore[arg-type]
    ],
)
def test_what_others_packed_is_left_out_and_named(packed: Any) -> None:
    request, dropped = asked(input=[USER, thought(encrypted_content=packed), said()])
    assert request["messages"][1] == {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm."}
    assert dropped == ["input[].encrypted_content"]


def test_custom_calls_are_calls_of_the_function() -> None:
    item = {"type": "custom_tool_call", "call_id": "c", "name": "patch", "input": '*** "x"\n'}
    back = {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"}
    first, second = messages(item, back)
    assert json.loads(first["tool_calls"][0]["function"]["arguments"]) == {"input": '*** "x"\n'}
    assert second == {"role": "tool", "tool_call_id": "c", "content": "ok"}


def test_a_signature_of_a_call_comes_back() -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    assert messages(call(extra_content=extra))[0]["tool_calls"] == [chat_call(extra_content=extra)]


# ---- whole replies ---------------------------------------------------------------------------------------------------


def answer(request: Json | None = None) -> Answer:
    return Answer(id="0a1b2c", model="public", created=1_700_000_000, request=request or ASK)


def reply(
    message: Json, finish: str = "stop", request: Json | None = None, *, logprobs: Json | None = None, **more: Any
) -> Json:
    choice: Json = {"index": 0, "message": {"role": "assistant", **message}, "finish_reason": finish}
    if logprobs is not None:
        choice["logprobs"] = logprobs
    data = encode_reply(Reply([choice], **{"usage": USAGE, "model": "real", **more}), answer(request))
    check_response(data, "p")
    value: Json = json.loads(data)
    Response.model_validate(value)  # R62
    return value


def test_a_whole_reply() -> None:
    value = reply({"content": "Hi"}, request={**ASK, "temperature": 0.5, "tools": [TOOL], "metadata": {"a": "b"}})
    assert value["output"] == [
        {
            "id": "msg_0a1b2c0000",
            "type": "message",
            "status": "completed",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "Hi", "annotations": [], "logprobs": []}],
        }
    ]
    assert value["usage"] == {
        "input_tokens": 12,
        "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 1},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 19,
    }
    rest = {"id": "resp_0a1b2c", "object": "response", "created_at": 1_700_000_000, "model": "real"}
    rest |= {"status": "completed", "error": None, "incomplete_details": None, "previous_response_id": None}
    rest |= {"temperature": 0.5, "top_p": 1.0, "tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True}
    rest |= {"metadata": {"a": "b"}, "store": False, "truncation": "disabled", "service_tier": "auto"}
    rest |= {
        "reasoning": {"effort": None, "summary": None},
        "text": {"verbosity": "medium", "format": {"type": "text"}},
    }
    assert {name: value[name] for name in rest} == rest


def test_items_in_order() -> None:
    calls = [chat_call(), chat_call("call_2", "g", "")]
    value = reply({"reasoning_content": "Hm.", "content": "Wait.", "tool_calls": calls}, "tool_calls")
    assert [item["type"] for item in value["output"]] == ["reasoning", "message", "function_call", "function_call"]
    assert value["output"][0]["summary"] == [{"type": "summary_text", "text": "Hm."}]
    assert "encrypted_content" not in value["output"][0]
    assert [(i["call_id"], i["name"], i["arguments"]) for i in value["output"][2:]] == [
        ("call_1", "f", '{"a":1}'),
        ("call_2", "g", "{}"),
    ]
    assert len({item["id"] for item in value["output"]}) == 4
    assert value["status"] == "completed"


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_an_answer_that_was_cut_says_so(finish: str, why: str) -> None:  # PROTOCOLS 1.3
    value = reply({"content": "Hi"}, finish)
    assert (value["status"], value["incomplete_details"]) == ("incomplete", {"reason": why})
    assert value["output"][0]["status"] == "incomplete"
    cut = reply({"tool_calls": [chat_call(arguments='{"a":')]}, finish)
    assert cut["output"][0]["status"] == "incomplete"
    assert reply({"tool_calls": [chat_call()]}, finish)["output"][0]["status"] == "completed"
    assert reply({"content": None}, finish)["output"] == []


@pytest.mark.parametrize("message", [{}, {"content": ""}, {"content": None, "tool_calls": None}])
def test_an_answer_that_says_nothing_is_an_empty_message(message: Json) -> None:
    assert [item["type"] for item in reply(message)["output"]] == ["message"]


def test_a_reply_without_choices_or_message_is_no_crash() -> None:  # R61
    for choices in ([], [{}], [{"message": None, "finish_reason": "stop"}]):
        Response.model_validate_json(encode_reply(Reply(choices), answer()))


def test_refusals_and_annotations_and_logprobs() -> None:
    assert reply({"refusal": "No."})["output"][0]["content"] == [{"type": "refusal", "refusal": "No."}]
    citation = {"url": "https://h", "title": "T", "start_index": 0, "end_index": 2}
    annotations = [{"type": "url_citation", "url_citation": citation}, {"type": "file"}, None]
    token = {"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": [{"token": "Hi", "logprob": -0.1}]}
    part = reply({"content": "Hi", "annotations": annotations}, logprobs={"content": [token]})["output"][0]["content"][
        0
    ]
    assert part["annotations"] == [{"type": "url_citation", **citation}]
    assert part["logprobs"][0]["bytes"] == [72, 105]


def test_thinking_is_packed_when_it_is_asked_for() -> None:
    message = {"reasoning_content": "Hm. ", "thinking_blocks": [THINKING, REDACTED], "tool_calls": [chat_call()]}
    item = reply(message, "tool_calls", CARRY)["output"][0]
    assert unpack_thinking(item["encrypted_content"]) == [THINKING, REDACTED]
    assert [i["type"] for i in reply({"content": "x", "thinking_blocks": [REDACTED]})["output"]] == ["message"]
    assert [i["type"] for i in reply({"content": "x", "thinking_blocks": [REDACTED]}, request=CARRY)["output"]] == [
        "reasoning",
        "message",
    ]


def test_calls_of_custom_tools_are_custom_calls() -> None:
    request = {**ASK, "tools": [CUSTOM]}
    for arguments, text in (('{"input":"a\\nb"}', "a\nb"), ("raw", "raw"), ('{"x":1}', '{"x":1}'), ("", "{}")):
        item = reply({"tool_calls": [chat_call(name="patch", arguments=arguments)]}, request=request)["output"][0]
        assert (item["type"], item["name"], item["input"]) == ("custom_tool_call", "patch", text)
    own = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "raw"}}
    assert reply({"tool_calls": [own]})["output"][0]["input"] == "raw"


def test_usage_that_nobody_counted_is_null() -> None:
    assert reply({"content": "x"}, usage=None)["usage"] is None


def test_the_tier_is_one_that_the_api_knows() -> None:
    assert reply({"content": "x"}, extra={"service_tier": "default"})["service_tier"] == "default"
    assert reply({"content": "x"}, extra={"service_tier": "standard"})["service_tier"] == "auto"
    assert reply({"content": "x"}, request={**ASK, "service_tier": "flex"})["service_tier"] == "flex"


# ---- streams ---------------------------------------------------------------------------------------------------------


class Reader:
    """What a writer needs to see of a reader."""

    def __init__(self, usage: Usage | None = USAGE) -> None:
        self.id, self.model, self.created = "up", "real", 5
        self.usage = usage
        self.extra: Json = {}
        self.done, self.failure = True, None

    def feed(self, data: bytes) -> list[Chunk]:
        return []

    def end(self) -> list[Chunk]:
        return []


READER = Reader()


def events(data: bytes) -> list[Json]:
    """The events of a stream; each validated with the SDK's types (R62)."""
    out = []
    for block in data.split(b"\n\n")[:-1]:
        name, payload = block.split(b"\n")
        value = json.loads(payload.removeprefix(b"data: "))
        assert name.removeprefix(b"event: ").decode() == value["type"]
        EVENT.validate_python(value)
        out.append(value)
    return out


def written(deltas: list[Json], finish: str | None = "stop", request: Json | None = None) -> bytes:
    writer = ResponsesWriter(answer(request))
    out = [writer.write([Chunk(delta)], READER) for delta in deltas]
    if finish is not None:
        out.append(writer.write([Chunk({}, finish_reason=finish)], READER))
    out.append(writer.end(READER))
    assert writer.end(READER) == b""
    assert writer.error(TransportError()) == b""
    return b"".join(out)


DELTAS = {
    "response.output_text.delta": ("response.output_text.done", "text"),
    "response.refusal.delta": ("response.refusal.done", "refusal"),
    "response.reasoning_summary_text.delta": ("response.reasoning_summary_text.done", "text"),
    "response.function_call_arguments.delta": ("response.function_call_arguments.done", "arguments"),
    "response.custom_tool_call_input.delta": ("response.custom_tool_call_input.done", "input"),
}
DONES = {done: (delta, member) for delta, (done, member) in DELTAS.items()}


class Lifecycle:
    """The order that PROTOCOLS.md 3.2 has, checked event by event, as the acceptance harness does and stricter."""

    def __init__(self) -> None:
        self.open: dict[int, str] = {}
        self.items: list[Json] = []
        self.parts: set[tuple[int, int]] = set()
        self.texts: dict[tuple[str, int, int], str] = {}
        self.said: dict[tuple[str, int, int], str] = {}

    def check(self, stream: list[Json]) -> Json:
        assert [e["sequence_number"] for e in stream] == list(range(len(stream)))
        assert [e["type"] for e in stream[:2]] == ["response.created", "response.in_progress"]
        assert len({e["response"]["id"] for e in stream if "response" in e}) == 1
        for e in stream[2:-1]:
            getattr(self, e["type"].removeprefix("response.").split(".")[-1])(e)
        last = stream[-1]
        assert last["type"] == f"response.{last['response']['status']}"
        assert not self.open
        assert not self.parts
        assert self.texts == self.said
        assert last["response"]["output"] == self.items
        response: Json = last["response"]
        return response

    def added(self, e: Json) -> None:
        at = e["output_index"]
        if "item" in e:
            assert at == len(self.items)
            self.items.append({})
            self.open[at] = e["item"]["id"]
        elif "annotation" in e:
            assert (at, e["content_index"]) in self.parts
        else:
            assert self.open[at] == e["item_id"]
            part = (at, e.get("content_index", e.get("summary_index")))
            assert part not in self.parts
            self.parts.add(part)

    def delta(self, e: Json) -> None:
        at, inner = e["output_index"], e.get("content_index", e.get("summary_index", -1))
        assert self.open[at] == e["item_id"]
        assert inner == -1 or (at, inner) in self.parts
        key = (e["type"], at, inner)
        self.texts[key] = self.texts.get(key, "") + e["delta"]

    def done(self, e: Json) -> None:
        at, inner = e["output_index"], e.get("content_index", e.get("summary_index", -1))
        if "item" in e:
            assert self.open.pop(at) == e["item"]["id"]
            assert not any(part[0] == at for part in self.parts)
            self.items[at] = e["item"]
        elif "part" in e:
            self.parts.remove((at, inner))
        else:
            delta, member = DONES[e["type"]]
            assert self.open[at] == e["item_id"]
            if e[member]:
                self.said[(delta, at, inner)] = e[member]


def streamed(deltas: list[Json], finish: str | None = "stop", request: Json | None = None) -> Json:
    """The final response of a stream whose whole life was checked."""
    return Lifecycle().check(events(written(deltas, finish, request)))


def piece(index: int = 0, arguments: str = "", name: str | None = None, **more: Any) -> Json:
    function: Json = {"arguments": arguments}
    if name is not None:
        function["name"] = name
        more = {"id": f"call_{index}", "type": "function", **more}
    return {"tool_calls": [{"index": index, **more, "function": function}]}


def test_a_stream_of_text() -> None:
    deltas: list[Json] = [{"content": "Hel"}, {"content": "lo ☃"}, {"content": ""}]
    names = [e["type"].removeprefix("response.") for e in events(written(deltas))]
    assert names == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    response = streamed(deltas)
    assert response == reply({"content": "Hello ☃"})  # the same as the whole reply, to the id


def test_everything_that_a_model_can_say() -> None:
    response = streamed(
        [
            {"reasoning_content": "Hm"},
            {"reasoning_content": ". ", "thinking_blocks": [THINKING]},
            {"thinking_blocks": [REDACTED], "content": "See"},
            {"content": ":"},
            {"refusal": "No."},
            piece(0, "", "f"),
            piece(0, '{"a"'),
            piece(0, ":1}"),
            piece(1, "", "g"),
            {"reasoning_content": "Then"},
            {"content": "Done."},
        ],
        "tool_calls",
        CARRY,
    )
    kinds = ["reasoning", "message", "function_call", "reasoning", "message"]
    assert [item["type"] for item in response["output"]] == [*kinds[:3], "function_call", *kinds[3:]]
    assert unpack_thinking(response["output"][0]["encrypted_content"]) == [THINKING, REDACTED]
    assert response["output"][1]["content"] == [
        {"type": "output_text", "text": "See:", "annotations": [], "logprobs": []},
        {"type": "refusal", "refusal": "No."},
    ]
    assert [i["arguments"] for i in response["output"][2:4]] == ['{"a":1}', "{}"]


def test_one_item_is_closed_before_the_next_opens() -> None:
    stream = events(written([{"content": "a"}, piece(0, '{"a":1}', "f"), piece(1, '{"b":1}', "g"), {"content": "b"}]))
    opened = 0
    for e in stream:
        opened += (e["type"] == "response.output_item.added") - (e["type"] == "response.output_item.done")
        assert opened <= 1


def test_parallel_calls_may_interleave() -> None:  # PROTOCOLS 2.1
    response = streamed(
        [piece(0, '{"a"', "f"), piece(1, '{"b"', "g"), piece(0, ":1}"), piece(1, ":2}"), piece(0, " ")], "tool_calls"
    )
    assert [json.loads(item["arguments"]) for item in response["output"]] == [{"a": 1}, {"b": 2}]
    late = streamed([piece(0, "{}", "f"), piece(1, "{}", "g"), piece(0, "\n")], "tool_calls")
    assert [item["arguments"] for item in late["output"]] == ["{}", "{}"]


def test_a_call_without_an_id_gets_one() -> None:
    response = streamed([{"tool_calls": [{"index": 0, "function": {"name": "f"}}]}])
    assert response["output"][0]["call_id"].startswith("call_")


def test_only_the_first_choice_is_shown() -> None:
    writer = ResponsesWriter(answer())
    data = writer.write([Chunk({"content": "b"}, index=1), Chunk({"content": "a"})], READER) + writer.end(READER)
    assert Lifecycle().check(events(data))["output"][0]["content"][0]["text"] == "a"


@pytest.mark.parametrize(("finish", "why"), [("length", "max_output_tokens"), ("content_filter", "content_filter")])
def test_a_cut_stream_of_the_model_is_incomplete(finish: str, why: str) -> None:
    response = streamed([{"content": "Hi"}], finish)
    assert (response["status"], response["incomplete_details"]) == ("incomplete", {"reason": why})
    assert response == reply({"content": "Hi"}, finish)
    calls = [piece(0, '{"a":1}', "f"), piece(1, '{"b"', "g")]
    assert [item["status"] for item in streamed(calls, finish)["output"]] == ["completed", "incomplete"]
    assert streamed([], finish)["output"] == []


def test_a_stream_that_says_nothing() -> None:
    assert streamed([]) == reply({"content": None})
    assert [item["type"] for item in streamed([{"reasoning_content": "Hm."}])["output"]] == ["reasoning", "message"]


def test_custom_calls_are_streamed_as_their_text() -> None:
    request = {**ASK, "tools": [CUSTOM]}
    response = streamed([piece(0, '{"inp', "patch"), piece(0, 'ut":"a\\nb"}'), piece(1, "", "patch")], request=request)
    assert [item["input"] for item in response["output"]] == ["a\nb", ""]
    own = {"tool_calls": [{"index": 0, "id": "c", "type": "custom", "custom": {"name": "p", "input": "x"}}]}
    more = {"tool_calls": [{"index": 0, "custom": {"input": "y"}}]}
    assert streamed([own, more])["output"][0]["input"] == "xy"


def test_annotations_and_logprobs_in_a_stream() -> None:
    citation = {"url": "https://h", "title": "T", "start_index": 0, "end_index": 2}
    writer = ResponsesWriter(answer())
    token = {"token": "Hi", "logprob": -0.1, "bytes": None, "top_logprobs": []}
    data = writer.write([Chunk({"content": "Hi"}, logprobs={"content": [token]})], READER)
    data += writer.write([Chunk({"annotations": [{"type": "url_citation", "url_citation": citation}]})], READER)
    response = Lifecycle().check(events(data + writer.end(READER)))
    part = response["output"][0]["content"][0]
    assert part["annotations"] == [{"type": "url_citation", **citation}]
    assert part["logprobs"][0]["token"] == "Hi"


def test_a_signature_of_a_call_is_kept() -> None:
    extra = {"google": {"thought_signature": "c2ln"}}
    request = {**ASK, "tools": [CUSTOM]}
    for name in ("f", "patch"):
        flow = streamed([piece(0, "{}", name, extra_content=extra)], request=request)
        whole = reply({"tool_calls": [chat_call("call_0", name, "{}", extra_content=extra)]}, request=request)
        assert flow["output"][0]["extra_content"] == extra
        assert flow == whole


def test_an_error_after_content() -> None:  # R12, PROTOCOLS 3.2
    writer = ResponsesWriter(answer())
    data = writer.write([Chunk({"content": "Hi"}), Chunk(piece(0, '{"a"', "f"))], READER)
    data += writer.error(TransportError("the line went dead"))
    stream = events(data)
    assert [e["sequence_number"] for e in stream] == list(range(len(stream)))
    error, failed = stream[-2:]
    assert (error["type"], error["code"], error["message"]) == (
        "error",
        "upstream_connection_closed",
        "the line went dead",
    )
    assert failed["type"] == "response.failed"
    assert failed["response"]["error"] == {"code": "server_error", "message": "the line went dead"}
    assert [item["status"] for item in failed["response"]["output"]] == ["completed", "incomplete"]
    assert writer.end(READER) == b""


def test_an_error_before_anything_is_a_stream_all_the_same() -> None:
    names = [e["type"] for e in events(ResponsesWriter(answer()).error(GatewayError("x")))]
    assert names == ["response.created", "response.in_progress", "error", "response.failed"]


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (FailureClass.RATE_LIMITED, "rate_limit_exceeded"),
        (FailureClass.QUOTA, "insufficient_quota"),
        (FailureClass.CONTEXT, "context_length_exceeded"),
        (FailureClass.CLIENT_ERROR, "invalid_prompt"),
        (FailureClass.TIMEOUT, "server_error"),
    ],
)
def test_our_own_errors_are_understood_by_our_own_tap(failure: FailureClass, code: str) -> None:
    error = UpstreamError("x", failure=failure, code=code, body=b'{"secret": 1}')
    data = ResponsesWriter(answer()).error(error)
    assert b"secret" not in data
    assert json.loads(data.split(b"data: ")[-1])["response"]["error"]["code"] == code
    tap = ResponsesTap("p")
    tap.feed(data)
    assert tap.failure is not None
    assert tap.failure.failure is (failure if code != "server_error" else FailureClass.SERVER)


def test_the_error_event_alone() -> None:
    assert [e["type"] for e in events(error_event(GatewayError("x"), 3))] == ["error"]


def test_what_a_writer_keeps_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(face_writer, "MAX_OUTPUT_CHARS", 10)
    monkeypatch.setattr(face_writer, "MAX_ITEMS", 3)
    for deltas in (
        [{"content": "x" * 11}],
        [{"thinking_blocks": [{**THINKING, "signature": "x" * 9}]}],
        [piece(at, "{}", "f") for at in range(4)],
    ):
        writer = ResponsesWriter(answer(CARRY))
        chunks = [Chunk(delta) for delta in deltas]
        with pytest.raises(MalformedReply):
            writer.write(chunks, READER)
        assert b"response.failed" in writer.error(MalformedReply("x"))


# ---- the official client ---------------------------------------------------------------------------------------------


@pytest.fixture
def client() -> Iterator[Callable[[bytes, str], openai.OpenAI]]:
    clients: list[openai.OpenAI] = []

    def make(data: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
        transport = httpx2.MockTransport(lambda _: httpx2.Response(200, content=data, headers={"content-type": kind}))
        made = openai.OpenAI(api_key="k", base_url="http://h/v1", http_client=httpx2.Client(transport=transport))
        clients.append(made)
        return made

    yield make
    for made in clients:
        made.close()


def test_the_official_client_reads_a_stream(client: Callable[..., openai.OpenAI]) -> None:
    data = written([{"reasoning_content": "Hm"}, {"content": "He"}, {"content": "y"}, piece(0, '{"a":1}', "f")])
    with client(data).responses.stream(model="m", input="x") as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        response = stream.get_final_response()
    assert text == response.output_text == "Hey"
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call"]
    assert response.usage is not None
    assert response.usage.total_tokens == 19


def test_the_official_client_raises_on_an_error(client: Callable[..., openai.OpenAI]) -> None:
    writer = ResponsesWriter(answer())
    data = writer.write([Chunk({"content": "Hi"})], READER) + writer.error(TransportError("the line went dead"))
    with pytest.raises(openai.APIError, match="the line went dead"):
        list(client(data).responses.create(model="m", input="x", stream=True))


def test_the_official_client_reads_a_reply(client: Callable[..., openai.OpenAI]) -> None:
    data = encode_reply(Reply([{"message": {"content": "Hey"}, "finish_reason": "stop"}]), answer())
    assert client(data, "application/json").responses.create(model="m", input="x").output_text == "Hey"


# ---- there and back --------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
arguments = st.dictionaries(texts, st.integers() | texts, max_size=2).map(json.dumps)
calls = st.lists(st.tuples(st.sampled_from(["f", "g"]), arguments), max_size=3)
thinking = st.none() | st.tuples(texts, st.booleans())


def said_by(text: str, thought: tuple[str, bool] | None, called: list[tuple[str, str]]) -> Json:
    """A canonical message."""
    message: Json = {"role": "assistant", "content": text or None}
    if thought is not None:
        message["reasoning_content"] = thought[0]
        message["thinking_blocks"] = [{"type": "thinking", "thinking": thought[0], "signature": "c2ln"}]
        message["thinking_blocks"] += [REDACTED] * thought[1]
    if called:
        message["tool_calls"] = [chat_call(f"call_{at}", name, args) for at, (name, args) in enumerate(called)]
    return message


def in_pieces(message: Json, cut: int) -> Iterator[Json]:
    """The deltas of a message: every text in pieces, the pieces of its calls mixed."""

    def pieces(text: str) -> list[str]:
        return [text[at : at + cut] for at in range(0, len(text), cut)]

    for text in pieces(message.get("reasoning_content", "")):
        yield {"reasoning_content": text}
    for block in message.get("thinking_blocks", ()):
        yield {"thinking_blocks": [block]}
    for text in pieces(message["content"] or ""):
        yield {"content": text}
    made = message.get("tool_calls", [])
    for at, one in enumerate(made):
        yield piece(at, "", one["function"]["name"])
    left = [pieces(one["function"]["arguments"]) for one in made]
    while any(left):
        for at, rest in enumerate(left):
            if rest:
                yield piece(at, rest.pop(0))


@fuzz
@given(st.just("") | texts, thinking, calls, st.integers(1, 5))
def test_a_reply_comes_back_as_it_was(
    text: str, thought: tuple[str, bool] | None, called: list[tuple[str, str]], cut: int
) -> None:  # R60
    message = said_by(text, thought, called)
    request = {**CARRY, "tools": [TOOL, {**CUSTOM, "name": "g"}]}
    finish = "tool_calls" if called else "stop"
    whole = reply(message, finish, request)
    flow = streamed(list(in_pieces(message, cut)), finish, request)
    expected = copy.deepcopy(message)
    if not text:
        expected["content"] = None if called else ""
    for one in expected.get("tool_calls", ()):
        if one["function"]["name"] == "g":  # what a custom tool gets is a text, whatever the model made of it
            function = one["function"]
            given = json.loads(function["arguments"]).get("input")
            free = given if isinstance(given, str) else function["arguments"]
            function["arguments"] = json.dumps({"input": free}, ensure_ascii=False, separators=(",", ":"))
    for response in (whole, flow):
        back = messages(USER, *response["output"], tools=request["tools"])
        assert back == [USER, expected]
        assert read_usage(response["usage"]) == USAGE
    assert flow == whole


names = st.text(max_size=3) | st.sampled_from(["type", "name", "text", "role", "format", "tools", "effort", "id"])
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
KINDS = ["message", "reasoning", "function_call", "function_call_output", "custom_tool_call", "item_reference", "x"]
MEMBERS = [
    "role",
    "content",
    "summary",
    "call_id",
    "name",
    "arguments",
    "output",
    "encrypted_content",
    "tools",
    "input",
]
items = st.dictionaries(st.sampled_from(MEMBERS), junk, max_size=4).flatmap(
    lambda item: st.sampled_from(KINDS).map(lambda kind: {**item, "type": kind})
)
FIELDS = ["input", "instructions", "tools", "tool_choice", "text", "reasoning", "include", "stream", "stream_options"]
FIELDS += ["temperature", "max_output_tokens", "top_logprobs", "metadata", "n", "store", "truncation"]


@fuzz
@given(st.dictionaries(st.sampled_from(FIELDS), junk, max_size=4), st.none() | st.lists(items, max_size=4))
def test_any_body_is_decoded_or_refused(fields: Json, given_items: list[Json] | None) -> None:  # R61
    body = {**ASK, **fields}
    if given_items is not None:
        body["input"] = given_items
    before = copy.deepcopy(body)
    try:
        request, dropped = decode_request(body)
    except ClientError as error:
        named = error.param
    else:
        named = "nothing"
        assert request["messages"]
        assert all(isinstance(name, str) for name in dropped)
    assert named
    assert body == before


# ---- recorded requests and answers -----------------------------------------------------------------------------------

FOLDER = SHARED / "wire" / "dev"
RECORDED = [json.loads(path.read_bytes()) for path in sorted(FOLDER.glob("*.responses.*.json"))]
needs_corpus = pytest.mark.skipif(not RECORDED, reason=f"no recorded exchanges at {FOLDER} (set SLIPSTREAM_SHARED)")


@needs_corpus
@pytest.mark.parametrize("exchange", [pytest.param(e, id=e["id"]) for e in RECORDED])
def test_recorded_requests(exchange: Json) -> None:
    body = exchange["request"]["body"]
    if body.get("prompt") or body.get("previous_response_id"):
        with pytest.raises(ClientError):
            decode_request(body)
        return
    request, dropped = decode_request(body)
    offered = [t.get("name") for t in body.get("tools") or () if t.get("type") == "function"]
    assert [t["function"]["name"] for t in request.get("tools", ())][: len(offered)] == offered
    other = [t for t in body.get("tools") or () if t.get("type") not in ("function", "custom")]
    assert len([name for name in dropped if name.startswith("tools[")]) >= min(1, len(other))
    given_items = body["input"] if isinstance(body["input"], list) else []
    called = [i["call_id"] for i in given_items if i.get("type") == "function_call"]
    results = [i["call_id"] for i in given_items if i.get("type") == "function_call_output"]
    assert [c["id"] for m in request["messages"] for c in m.get("tool_calls", ())] == called
    assert [m["tool_call_id"] for m in request["messages"] if m["role"] == "tool"] == results


@needs_corpus
@pytest.mark.parametrize("exchange", [pytest.param(e, id=e["id"]) for e in RECORDED if e["endpoint"] == "chat"])
def test_recorded_answers_are_good_input(exchange: Json) -> None:
    """What a client got is what it sends back in the next turn."""
    expected = exchange["expected"]
    response = json.loads(exchange["response"]["body"])
    request, _ = asked(input=[USER, *response["output"]])
    said_back = [m for m in request["messages"] if m["role"] == "assistant"]
    assert "".join(m["content"] or "" for m in said_back).replace("\n", "") == expected["text"].replace("\n", "")
    assert [c["id"] for m in said_back for c in m.get("tool_calls", ())] == [c["id"] for c in expected["tool_calls"]]
    if expected["reasoning"] and not expected.get("lenient"):
        assert "".join(m.get("reasoning_content", "") for m in said_back) == expected["reasoning"]
