"""The scenarios of docs/translation.md: small requests in each client dialect (see ``generate_matrix``)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from slipstream.types import Endpoint
from slipstream.wire.codec import dumps

Json = dict[str, Any]

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PDF = "JVBERi0xLjQKJSVFT0YK"
WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEA"
URL = "https://example.com/cat.png"
SCHEMA: Json = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where to look"}},
    "required": ["city"],
    "additionalProperties": False,
}
SIGNED: Json = {"type": "thinking", "thinking": "Let me look.", "signature": "c2lnbmF0dXJl"}


class Scenario(NamedTuple):
    """``chat``, ``responses``, ``messages``: what is added to the smallest request of that dialect; ``None`` if the
    dialect cannot say it. ``seen``: texts that the provider must get unless something is reported."""

    name: str
    chat: Json | None = None
    responses: Json | None = None
    messages: Json | None = None
    seen: tuple[str, ...] = ()
    reasoning: bool = False


# ------------------------------------------------------------------ requests in three dialects


def said(*parts: Any, name: str = "messages") -> Json:
    """A user's message of these parts after a word."""
    return {name: [{"role": "user", "content": [_WORDS[name], *parts]}]}


_WORDS: dict[str, Json] = {
    "messages": {"type": "text", "text": "Hello"},
    "input": {"type": "input_text", "text": "Hello"},
}
_CHAT_TOOL: Json = {"type": "function", "function": {"name": "look", "description": "Looks", "parameters": SCHEMA}}
_RESPONSES_TOOL: Json = {"type": "function", "name": "look", "description": "Looks", "parameters": SCHEMA}
_MESSAGES_TOOL: Json = {"name": "look", "description": "Looks", "input_schema": SCHEMA}
ASK: Json = {"role": "user", "content": "Hello"}


def tools(chat: Json | None = None, responses: Json | None = None, messages: Json | None = None) -> tuple[Json, ...]:
    """One tool, with more in the request of each dialect."""
    return (
        {"tools": [_CHAT_TOOL], **(chat or {})},
        {"tools": [_RESPONSES_TOOL], **(responses or {})},
        {"tools": [_MESSAGES_TOOL], **(messages or {})},
    )


def looped(chat: list[Json], responses: list[Json], messages: list[Json]) -> tuple[Json, ...]:
    """A conversation about one tool."""
    return tools({"messages": [ASK, *chat]}, {"input": [ASK, *responses]}, {"messages": [ASK, *messages]})


def _chat_call(number: int) -> Json:
    arguments = dumps({"city": f"city-{number}"}).decode()
    return {"id": f"call_{number}", "type": "function", "function": {"name": "look", "arguments": arguments}}


def _chat_result(number: int, content: Any = None) -> Json:
    return {"role": "tool", "tool_call_id": f"call_{number}", "content": content or f"result-{number}"}


def _item_call(number: int) -> Json:
    call = _chat_call(number)
    return {"type": "function_call", "call_id": call["id"], **call["function"]}


def _item_result(number: int, output: Any = None) -> Json:
    return {"type": "function_call_output", "call_id": f"call_{number}", "output": output or f"result-{number}"}


def _use(number: int) -> Json:
    return {"type": "tool_use", "id": f"call_{number}", "name": "look", "input": {"city": f"city-{number}"}}


def _result(number: int, content: Any = None, **more: Any) -> Json:
    return {"type": "tool_result", "tool_use_id": f"call_{number}", "content": content or f"result-{number}", **more}


def _turn(role: str, *blocks: Json) -> Json:
    return {"role": role, "content": list(blocks)}


def _image(source: Json) -> Json:
    return {"type": "image", "source": source}


def _format(strict: bool) -> tuple[Json, ...]:
    spec: Json = {"name": "place", "schema": SCHEMA, **({"strict": True} if strict else {})}
    return (
        {"response_format": {"type": "json_schema", "json_schema": spec}},
        {"text": {"format": {"type": "json_schema", **spec}}},
        {"output_config": {"format": {"type": "json_schema", "schema": SCHEMA}}},
    )


_JSON = {"type": "json_object"}
_DATA_URL = f"data:image/png;base64,{PIXEL}"
_PDF_URL = f"data:application/pdf;base64,{PDF}"
_TURNS = [ASK, {"role": "assistant", "content": "answer-one"}, {"role": "user", "content": "question-two"}]
_CACHED: Json = {"cache_control": {"type": "ephemeral"}}
_TWO_CALLS = {"role": "assistant", "content": None, "tool_calls": [_chat_call(1), _chat_call(2)]}
_ONE_CALL = {"role": "assistant", "content": None, "tool_calls": [_chat_call(1)]}
_TWO_SEEN = ("city-1", "city-2", "result-1", "result-2")
_LOOK = {"type": "function", "name": "look"}
_THOUGHT_ITEM = {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "Let me look."}]}

SCENARIOS = (
    Scenario("text", {}, {}, {}, ("Hello",)),
    Scenario(
        "system message",
        {"messages": [{"role": "system", "content": "be-brief"}, ASK]},
        {"instructions": "be-brief"},
        {"system": "be-brief"},
        ("be-brief",),
    ),
    Scenario(
        "developer message",
        {"messages": [{"role": "developer", "content": "be-brief"}, ASK]},
        {"input": [{"role": "developer", "content": "be-brief"}, ASK]},
        seen=("be-brief",),
    ),
    Scenario(
        "several turns", {"messages": _TURNS}, {"input": _TURNS}, {"messages": _TURNS}, ("answer-one", "question-two")
    ),
    Scenario(
        "image, data",
        said({"type": "image_url", "image_url": {"url": _DATA_URL}}),
        said({"type": "input_image", "image_url": _DATA_URL}, name="input"),
        said(_image({"type": "base64", "media_type": "image/png", "data": PIXEL})),
        (PIXEL,),
    ),
    Scenario(
        "image, URL",
        said({"type": "image_url", "image_url": {"url": URL}}),
        said({"type": "input_image", "image_url": URL}, name="input"),
        said(_image({"type": "url", "url": URL})),
        (URL,),
    ),
    Scenario(
        "image, `detail`",
        said({"type": "image_url", "image_url": {"url": _DATA_URL, "detail": "low"}}),
        said({"type": "input_image", "image_url": _DATA_URL, "detail": "low"}, name="input"),
        seen=(PIXEL, '"low"'),
    ),
    Scenario(
        "PDF",
        said({"type": "file", "file": {"filename": "a.pdf", "file_data": _PDF_URL}}),
        said({"type": "input_file", "filename": "a.pdf", "file_data": _PDF_URL}, name="input"),
        said({"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}),
        (PDF,),
    ),
    Scenario("audio", said({"type": "input_audio", "input_audio": {"data": WAV, "format": "wav"}}), seen=(WAV,)),
    Scenario("tools", *tools(), seen=("look", "Where to look")),
    Scenario(
        "tools, `strict`",
        {"tools": [{"type": "function", "function": {**_CHAT_TOOL["function"], "strict": True}}]},
        {"tools": [{**_RESPONSES_TOOL, "strict": True}]},
        {"tools": [{**_MESSAGES_TOOL, "strict": True}]},
        ("look", "strict"),
    ),
    Scenario(
        "tools, choice: none",
        *tools({"tool_choice": "none"}, {"tool_choice": "none"}, {"tool_choice": {"type": "none"}}),
    ),
    Scenario(
        "tools, choice: any",
        *tools({"tool_choice": "required"}, {"tool_choice": "required"}, {"tool_choice": {"type": "any"}}),
        seen=("look",),
    ),
    Scenario(
        "tools, choice: one",
        *tools(
            {"tool_choice": {"type": "function", "function": {"name": "look"}}},
            {"tool_choice": _LOOK},
            {"tool_choice": {"type": "tool", "name": "look"}},
        ),
        seen=("look",),
    ),
    Scenario(
        "tools, one call at a time",
        *tools(
            {"parallel_tool_calls": False},
            {"parallel_tool_calls": False},
            {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}},
        ),
        seen=("look",),
    ),
    Scenario(
        "tools, the provider's own (web search)",
        {"web_search_options": {"search_context_size": "low"}},
        {"tools": [{"type": "web_search"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        ("search",),
    ),
    Scenario(
        "two calls and their results",
        *looped(
            [_TWO_CALLS, _chat_result(1), _chat_result(2)],
            [_item_call(1), _item_call(2), _item_result(1), _item_result(2)],
            [_turn("assistant", _use(1), _use(2)), _turn("user", _result(1), _result(2))],
        ),
        seen=_TWO_SEEN,
    ),
    Scenario(
        "a result with an image",
        *looped(
            [_ONE_CALL, _chat_result(1, [_WORDS["messages"], {"type": "image_url", "image_url": {"url": _DATA_URL}}])],
            [_item_call(1), _item_result(1, [_WORDS["input"], {"type": "input_image", "image_url": _DATA_URL}])],
            [
                _turn("assistant", _use(1)),
                _turn("user", _result(1, [_image({"type": "base64", "media_type": "image/png", "data": PIXEL})])),
            ],
        ),
        seen=("city-1", PIXEL),
    ),
    Scenario(
        "a result that is an error",
        messages=tools({}, {}, {
            "messages": [ASK, _turn("assistant", _use(1)), _turn("user", _result(1, is_error=True))],
        })[2],
        seen=("city-1", "result-1"),
    ),
    Scenario("JSON answer", {"response_format": _JSON}, {"text": {"format": _JSON}}),
    Scenario("JSON answer after a schema", *_format(False), seen=("Where to look",)),
    Scenario("JSON answer after a schema, `strict`", *_format(True)[:2], seen=("Where to look",)),
    Scenario("max tokens", {"max_tokens": 4321}, {"max_output_tokens": 4321}, {"max_tokens": 4321}, ("4321",)),
    Scenario("temperature", {"temperature": 0.625}, {"temperature": 0.625}, {"temperature": 0.625}, ("0.625",)),
    Scenario("top_p", {"top_p": 0.875}, {"top_p": 0.875}, {"top_p": 0.875}, ("0.875",)),
    Scenario("top_k", {"top_k": 37}, None, {"top_k": 37}, ("37",)),
    Scenario("stop", {"stop": ["HALT"]}, None, {"stop_sequences": ["HALT"]}, ("HALT",)),
    Scenario("seed", {"seed": 4242}, None, None, ("4242",)),
    Scenario("n", {"n": 2}, None, None, ("2",)),
    Scenario(
        "logprobs",
        {"logprobs": True, "top_logprobs": 3},
        {"top_logprobs": 3, "include": ["message.output_text.logprobs"]},
        seen=("ogprobs", "3"),
    ),
    Scenario("penalties", {"frequency_penalty": 0.375, "presence_penalty": 0.125}, seen=("0.375", "0.125")),
    Scenario("logit_bias", {"logit_bias": {"5150": 7}}, seen=("5150",)),
    Scenario(
        "reasoning effort",
        {"reasoning_effort": "low", "max_tokens": 4000},
        {"reasoning": {"effort": "low"}, "max_output_tokens": 4000},
        {"output_config": {"effort": "low"}, "max_tokens": 4000},
        reasoning=True,
    ),
    Scenario(
        "thinking budget",
        {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4000},
        None,
        {"thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4000},
        reasoning=True,
    ),
    Scenario(
        "thinking given back, signed",
        tools({
            "messages": [ASK, {**_ONE_CALL, "reasoning_content": "Let me look.", "thinking_blocks": [SIGNED]},
                         _chat_result(1)],
            "thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4000,
        })[0],
        None,
        tools({}, {}, {
            "messages": [ASK, _turn("assistant", SIGNED, _use(1)), _turn("user", _result(1))],
            "thinking": {"type": "enabled", "budget_tokens": 2048}, "max_tokens": 4000,
        })[2],
        ("city-1", "result-1", "Let me look."),
        reasoning=True,
    ),
    Scenario(
        "thinking given back, unsigned",
        tools({"messages": [ASK, {**_ONE_CALL, "reasoning_content": "Let me look."}, _chat_result(1)]})[0],
        tools({}, {"input": [ASK, _THOUGHT_ITEM, _item_call(1), _item_result(1)]})[1],
        seen=("city-1", "result-1", "Let me look."),
        reasoning=True,
    ),
    Scenario("user", {"user": "user-77"}, {"user": "user-77"}, {"metadata": {"user_id": "user-77"}}, ("user-77",)),
    Scenario("metadata", {"metadata": {"k": "v-88"}}, {"metadata": {"k": "v-88"}}, seen=("v-88",)),
    Scenario(
        "cache mark",
        {"messages": [_turn("user", {**_WORDS["messages"], **_CACHED})]},
        None,
        {"messages": [_turn("user", {**_WORDS["messages"], **_CACHED})]},
        ("ache",),
    ),
    Scenario("prompt cache key", {"prompt_cache_key": "pck-9"}, {"prompt_cache_key": "pck-9"}, seen=("pck-9",)),
    Scenario("service tier", {"service_tier": "flex"}, {"service_tier": "flex"}, {"service_tier": "standard_only"}),
    Scenario("verbosity", {"verbosity": "low"}, {"text": {"verbosity": "low"}}, seen=("low",)),
    Scenario("store", {"store": True}, {"store": True}),
    Scenario("predicted output", {"prediction": {"type": "content", "content": "guess-5"}}, seen=("guess-5",)),
    Scenario("truncation", None, {"truncation": "auto"}),
    Scenario("earlier response by id", None, {"previous_response_id": "resp_1"}),
    Scenario("stream", {"stream": True}, {"stream": True}, {"stream": True}),
    Scenario("stream with usage", {"stream": True, "stream_options": {"include_usage": True}}),
    Scenario("a field that nobody knows", {"x_new": "x-99"}, {"x_new": "x-99"}, {"x_new": "x-99"}, ("x-99",)),
)  # fmt: skip
SMALLEST: Mapping[Endpoint, Json] = {
    Endpoint.CHAT: {"messages": [ASK]},
    Endpoint.RESPONSES: {"input": "Hello"},
    Endpoint.MESSAGES: {"messages": [ASK], "max_tokens": 1000},
    Endpoint.COMPLETIONS: {"prompt": "Hello"},
    Endpoint.INFER: {"prompt": "Hello"},
    Endpoint.EMBEDDINGS: {"input": "Hello"},
    Endpoint.COUNT_TOKENS: {"messages": [ASK]},
}
COMPLETIONS = (
    Scenario("text", {}, seen=("Hello",)),
    Scenario("several prompts", {"prompt": ["one", "two"]}),
    Scenario("token ids", {"prompt": [1, 2, 3]}),
    Scenario("max tokens", {"max_tokens": 4321}, seen=("4321",)),
    Scenario("temperature, top_p", {"temperature": 0.625, "top_p": 0.875}, seen=("0.625", "0.875")),
    Scenario("stop", {"stop": ["HALT"]}, seen=("HALT",)),
    Scenario("seed", {"seed": 4242}, seen=("4242",)),
    Scenario("n", {"n": 2}, seen=("2",)),
    Scenario("best_of", {"best_of": 3}),
    Scenario("logprobs", {"logprobs": 3}, seen=("3",)),
    Scenario("penalties", {"frequency_penalty": 0.375, "presence_penalty": 0.125}, seen=("0.375", "0.125")),
    Scenario("logit_bias", {"logit_bias": {"5150": 7}}, seen=("5150",)),
    Scenario("echo", {"echo": True}),
    Scenario("suffix", {"suffix": "the end"}),
    Scenario("stream", {"stream": True}),
)
EMBEDDINGS = (
    Scenario("one text", {}, seen=("Hello",)),
    Scenario("several texts", {"input": ["one-1", "two-2"]}, seen=("one-1", "two-2")),
    Scenario("token ids", {"input": [1, 2, 3]}),
    Scenario("`encoding_format`: base64", {"encoding_format": "base64"}),
    Scenario("dimensions", {"dimensions": 256}, seen=("256",)),
    Scenario("user", {"user": "user-77"}, seen=("user-77",)),
)
