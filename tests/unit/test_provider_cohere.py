"""Cohere's API v2, both ways: what a chat becomes, what comes back, what a broken answer does; and that a provider is
one file (the registry's list names it, nothing else of the package does)."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import ClientError, MalformedReply, TransportError, UpstreamError
from slipstream.providers.cohere import TYPE, CohereReader, finish_reason, read_usage, root
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.resilience.failures import refine
from slipstream.types import FailureClass, Secret
from slipstream.wire.canonical import Answer, Chunk, Reply
from slipstream.wire.openai_chat.reader import MAX_CALLS
from slipstream.wire.openai_chat.writer import encode_reply

fuzz = settings(deadline=None, derandomize=True, max_examples=150)
Json = dict[str, Any]


def spec(api_base: str = "https://api.cohere.com", key: str = "k1") -> ProviderSpec:
    return ProviderSpec(name="co", type="cohere", api_base=api_base, api_key=Secret(key))


def build(**request: Any) -> tuple[Json, list[str]]:
    """What is sent for a request, and what could not be."""
    request = {"model": "public", "messages": [{"role": "user", "content": "Hi"}]} | request
    before = copy.deepcopy(request)
    built = TYPE.build(request, spec(), "command-a")
    assert request == before  # never changed
    assert TYPE.build(request, spec(), "command-a") == built  # R59: idempotent
    assert built.url == "https://api.cohere.com/v2/chat"
    return json.loads(built.body), list(built.dropped)


def messages(*given: Json, **more: Any) -> tuple[list[Json], list[str]]:
    body, dropped = build(messages=list(given), **more)
    return body["messages"], dropped


def refused(param: str, **request: Any) -> None:
    with pytest.raises(ClientError) as caught:
        build(**request)
    assert (caught.value.status, caught.value.param) == (400, param)


TOOL = {"type": "function", "function": {"name": "f", "description": "F.", "parameters": {"type": "object"}}}
OTHER = {"type": "function", "function": {"name": "g", "description": None}}
STRICT = {"type": "function", "function": {"name": "s", "strict": True, "parameters": {"type": "object"}}}
NO_PARAMETERS = {"type": "object", "properties": {}}


# ---- the provider ----------------------------------------------------------------------------------------------------


def test_the_registry_has_it() -> None:
    assert PROVIDER_TYPES["cohere"] is TYPE
    assert (TYPE.name, TYPE.owner, TYPE.default_base) == ("cohere", "cohere", "https://api.cohere.com")
    assert TYPE.needs_key
    assert not TYPE.natives
    assert TYPE.headers(spec())["Authorization"] == "Bearer k1"


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v2", "/v2/"])
def test_api_base_may_name_a_version(tail: str) -> None:
    assert root(spec("https://co.test" + tail)) == "https://co.test"
    assert TYPE.models_url(spec("https://co.test" + tail)) == "https://co.test/v1/models?page_size=1000"
    assert root(spec("https://co.test/cohere" + tail)) == "https://co.test/cohere"


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "sent"), [({}, False), ({"stream": True}, True), ({"stream": None}, False)])
def test_stream_is_always_said(said: Json, sent: bool) -> None:
    """API reference: ``stream`` is required."""
    body, dropped = build(**said)
    assert body == {"model": "command-a", "messages": [{"role": "user", "content": "Hi"}], "stream": sent}
    assert dropped == []


@pytest.mark.parametrize(
    ("said", "sent", "lost"),
    [
        ({"temperature": 1.5, "seed": 7}, {"temperature": 1.5, "seed": 7}, []),
        ({"top_p": 0.5, "top_k": 40}, {"p": 0.5, "k": 40}, []),
        ({"top_p": 1}, {"p": 0.99}, []),
        ({"top_p": 0, "top_k": 900}, {"p": 0.01, "k": 500}, ["top_p", "top_k"]),
        ({"frequency_penalty": 0.5, "presence_penalty": 1}, {"frequency_penalty": 0.5, "presence_penalty": 1}, []),
        ({"frequency_penalty": -1, "presence_penalty": 2}, {"frequency_penalty": 0, "presence_penalty": 1},
         ["frequency_penalty", "presence_penalty"]),
        ({"max_tokens": 9}, {"max_tokens": 9}, []),
        ({"max_completion_tokens": 8, "max_tokens": 9}, {"max_tokens": 8}, []),
        ({"stop": "END"}, {"stop_sequences": ["END"]}, []),
        ({"stop": ["a", "b"]}, {"stop_sequences": ["a", "b"]}, []),
        ({"logprobs": True}, {"logprobs": True}, []),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": True}, ["top_logprobs"]),
        ({"n": 1, "stream_options": {"include_usage": True}}, {}, []),
        ({"response_format": {"type": "text"}}, {"response_format": {"type": "text"}}, []),
        ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}}, []),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": {"a": 1}}}},
         {"response_format": {"type": "json_object", "json_schema": {"a": 1}}}, []),
        ({"thinking": {"type": "enabled", "budget_tokens": 500}},
         {"thinking": {"type": "enabled", "token_budget": 500}}, []),
        ({"thinking": {"type": "disabled"}}, {"thinking": {"type": "disabled"}}, []),
        ({"thinking": {"type": "adaptive"}}, {}, []),
        ({"reasoning_effort": "none"}, {"thinking": {"type": "disabled"}}, []),
        ({"reasoning_effort": "low"}, {}, ["reasoning_effort"]),
        ({"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 5}},
         {"thinking": {"type": "enabled", "token_budget": 5}}, []),
        ({"safety_mode": "STRICT", "documents": ["d"], "citation_options": {"mode": "OFF"}},
         {"safety_mode": "STRICT", "documents": ["d"], "citation_options": {"mode": "OFF"}}, []),
        ({"logit_bias": {"5": 1}, "user": "u", "min_p": 0.1}, {}, ["min_p", "logit_bias", "user"]),
        ({"logit_bias": {}, "store": False, "service_tier": "auto", "user": None, "top_logprobs": 0}, {}, []),
    ],
)  # fmt: skip
def test_parameters(said: Json, sent: Json, lost: list[str]) -> None:
    """API reference, "Chat". R65: nothing that means something is lost silently."""
    body, dropped = build(**said)
    assert {key: value for key, value in body.items() if key not in ("model", "messages", "stream")} == sent
    assert sorted(dropped) == sorted(lost)


def test_tools_have_openais_form() -> None:
    body, dropped = build(tools=[TOOL, OTHER])
    assert body["tools"] == [TOOL, {"type": "function", "function": {"name": "g", "parameters": NO_PARAMETERS}}]
    assert "tool_choice" not in body
    assert "strict_tools" not in body
    assert dropped == []


def test_strict_is_for_all_tools_or_none() -> None:
    body, dropped = build(tools=[STRICT])
    assert body["strict_tools"] is True
    assert "strict" not in body["tools"][0]["function"]
    assert dropped == []
    body, dropped = build(tools=[STRICT, TOOL])
    assert "strict_tools" not in body
    assert dropped == ["tools[].strict"]


@pytest.mark.parametrize(
    ("choice", "word", "names"),
    [
        (None, None, ["f", "g"]), ("auto", None, ["f", "g"]), ("none", "NONE", ["f", "g"]),
        ("required", "REQUIRED", ["f", "g"]),
        ({"type": "function", "function": {"name": "g"}}, "REQUIRED", ["g"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [{"function": {"name": "f"}}]}},
         None, ["f"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [{"function": {"name": "f"}}]}},
         "REQUIRED", ["f"]),
    ],
)  # fmt: skip
def test_tool_choice(choice: Any, word: str | None, names: list[str]) -> None:
    body, dropped = build(tools=[TOOL, OTHER], tool_choice=choice)
    assert body.get("tool_choice") == word
    assert [tool["function"]["name"] for tool in body["tools"]] == names
    assert dropped == []


def test_what_of_tools_has_no_place_is_listed() -> None:
    marked = TOOL | {"cache_control": {"type": "ephemeral"}}
    body, dropped = build(tools=[marked, {"type": "web_search"}], parallel_tool_calls=False)
    assert body["tools"] == [TOOL]
    assert set(dropped) == {"cache_control", "tools[].type=web_search", "parallel_tool_calls"}


def test_roles() -> None:
    sent, dropped = messages(
        {"role": "developer", "content": "Be brief."}, {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": "Hi", "name": "Al"}, {"role": "assistant", "content": "Yes?"},
        {"role": "assistant", "content": None, "refusal": "No."},
    )  # fmt: skip
    assert sent == [
        {"role": "system", "content": "Be brief."}, {"role": "system", "content": "a"},
        {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"},
        {"role": "assistant", "content": "No."},
    ]  # fmt: skip
    assert dropped == ["messages[].name"]


def test_images_go_as_they_are() -> None:
    parts = [
        {"type": "text", "text": "What is it?"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA==", "detail": "low"}},
    ]
    assert messages({"role": "user", "content": parts})[0] == [{"role": "user", "content": parts}]


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}
TURNS: list[Json] = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": None, "reasoning_content": "I will call f.", "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "c1", "content": "42"},
]


def test_tool_results_of_the_next_turn() -> None:
    """What was thought before the call goes back as the ``tool_plan`` that it was."""
    sent, dropped = messages(*TURNS, tools=[TOOL])
    assert sent[1:] == [
        {"role": "assistant", "tool_calls": [CALL], "tool_plan": "I will call f."},
        {"role": "tool", "tool_call_id": "c1", "content": "42"},
    ]
    assert dropped == []


def test_an_answer_with_tool_calls_can_be_sent_back() -> None:
    """Round trip: what is read of an answer becomes the same message of the next request."""
    given = {"role": "assistant", "tool_plan": "I will call f.", "tool_calls": [CALL]}
    read = reply(answer(given, finish_reason="TOOL_CALL")).choices[0]["message"]
    sent, _ = messages(TURNS[0], read, TURNS[2], tools=[TOOL])
    assert sent[1] == given


def test_a_result_with_an_image_and_an_error() -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    result = {
        "role": "tool",
        "tool_call_id": "c1",
        "is_error": True,
        "content": [{"type": "text", "text": "x"}, picture],
    }
    sent, dropped = messages(*TURNS[:2], result, tools=[TOOL])
    assert sent[2] == {"role": "tool", "tool_call_id": "c1", "content": "x"}
    assert sent[3]["role"] == "user"
    assert sent[3]["content"][-1] == picture
    assert dropped == ["messages[].is_error"]


def test_thoughts_of_a_finished_turn_are_not_sent_back() -> None:
    told = {"role": "assistant", "content": "Yes", "reasoning_content": "Hm"}
    for more in ({}, {"tools": [TOOL]}):
        sent, dropped = messages(TURNS[0], told, TURNS[0], **more)
        assert sent[1] == {"role": "assistant", "content": "Yes"}
        assert dropped == ["messages[].reasoning_content"]


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        ({"n": 2}, "n"), ({"tools": "all"}, "tools"), ({"tools": [{"type": "function"}]}, "tools[].function.name"),
        ({"tool_choice": "required"}, "tool_choice"), ({"tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": 5}, "tool_choice"), ({"thinking": {"type": "maybe"}}, "thinking.type"),
        ({"thinking": {"type": "enabled", "budget_tokens": "x"}}, "thinking.budget_tokens"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"messages": "Hi"}, "messages"), ({"messages": ["Hi"]}, "messages"),
        ({"messages": [{"role": "function", "content": "x"}]}, "messages[].role"),
        ({"messages": [{}]}, "messages[].role"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}]}, "messages[].content[].type"),
        ({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}]}]}, "messages[].content[].type"),
    ],
)  # fmt: skip
def test_client_mistakes_name_the_field(request_: Json, param: str) -> None:
    refused(param, **request_)


def deep(levels: int) -> Any:
    return json.loads("[" * levels + "]" * levels)


@pytest.mark.parametrize("field", ["thinking", "documents", "messages", "tools"])
def test_a_request_nested_too_deep_is_a_client_mistake(field: str) -> None:
    there = {"thinking": {"type": "enabled", "budget_tokens": deep(300)}, "documents": deep(300)}
    there |= {"messages": [{"role": "user", "content": deep(300)}], "tools": [{"function": {"name": deep(300)}}]}
    with pytest.raises(ClientError):
        TYPE.build({"messages": []} | {field: there[field]}, spec(), "m")


# ---- whole answers ---------------------------------------------------------------------------------------------------

USAGE = {
    "billed_units": {"input_tokens": 5, "output_tokens": 4},
    "tokens": {"input_tokens": 71.0, "output_tokens": 9.0},
}


def answer(message: Any = None, **more: Any) -> bytes:
    shown = {"role": "assistant", "content": [{"type": "text", "text": "Hi"}]} if message is None else message
    return json.dumps({"id": "r1", "finish_reason": "COMPLETE", "message": shown, "usage": USAGE} | more).encode()


def reply(body: bytes) -> Reply:
    return TYPE.reply(body, {}, spec())


def test_a_whole_answer() -> None:
    parts = [{"type": "thinking", "thinking": "Hm"}, {"type": "text", "text": "Hi "}, {"type": "text", "text": "you"}]
    found = reply(answer({"role": "assistant", "content": parts}))
    assert (found.id, found.model, found.extra) == ("r1", "", {})
    assert found.choices == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi you", "reasoning_content": "Hm"},
            "finish_reason": "stop",
            "native_finish_reason": "COMPLETE",
        }
    ]


def test_tool_calls_of_a_whole_answer() -> None:
    calls = [
        CALL, {"id": None, "function": {"name": "g", "arguments": ""}}, {"function": {"name": ""}}, None,
        {"id": "c3", "function": {"name": "h", "arguments": {"b": 2}}},
    ]  # fmt: skip
    message = {"tool_plan": "Plan.", "tool_calls": calls, "content": None}
    choice = reply(answer(message, finish_reason="TOOL_CALL")).choices[0]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("tool_calls", None)
    assert choice["message"]["reasoning_content"] == "Plan."
    shown = choice["message"]["tool_calls"]
    assert [(c["function"]["name"], c["function"]["arguments"]) for c in shown] == [
        ("f", '{"a":1}'), ("g", "{}"), ("h", '{"b":2}'),
    ]  # fmt: skip
    assert shown[0] == CALL
    assert all(c["id"] for c in shown)


@pytest.mark.parametrize(
    ("native", "called", "finish"),
    [
        ("COMPLETE", False, "stop"), ("COMPLETE", True, "tool_calls"), ("STOP_SEQUENCE", False, "stop"),
        ("MAX_TOKENS", False, "length"), ("MAX_TOKENS", True, "length"), ("TOOL_CALL", True, "tool_calls"),
        ("TOOL_CALL", False, "stop"), ("ERROR_LIMIT", False, "length"), ("ERROR_TOXIC", False, "content_filter"),
        ("max_tokens", False, "length"), ("NEW", False, "stop"), ("", True, "tool_calls"),
    ],
)  # fmt: skip
def test_finish_reasons(native: str, called: bool, finish: str) -> None:
    assert finish_reason(native, called) == finish
    calls = {"tool_calls": [CALL]} if called else {}
    choice = reply(answer({"content": [], **calls}, finish_reason=native)).choices[0]
    assert choice["finish_reason"] == finish
    assert choice.get("native_finish_reason", "") == native


@pytest.mark.parametrize(
    ("native", "failure"),
    [("ERROR", FailureClass.SERVER), ("TIMEOUT", FailureClass.TIMEOUT), ("USER_CANCEL", FailureClass.SERVER)],
)
@pytest.mark.parametrize("said", [None, "the model fell over"])
def test_an_answer_that_failed_is_a_failure(native: str, failure: FailureClass, said: str | None) -> None:
    """Also with text in it: nobody may take half an answer for a whole one."""
    with pytest.raises(UpstreamError) as caught:
        reply(answer(finish_reason=native, error=said))
    reader, seen = read(sse(START, TEXT, end(native, error=said)))
    assert reader.failure is not None
    assert seen.finish == []
    for error in (caught.value, reader.failure):
        assert (error.failure, error.upstream_status) == (failure, 200)
        assert error.message == said if said else native in error.message
        assert refine(error, "cohere", "co").failure is failure


@pytest.mark.parametrize(
    ("usage", "buckets"),
    [
        (USAGE, (71, 0, 9)), (USAGE | {"cached_tokens": 64.0}, (7, 64, 9)),
        (USAGE | {"cached_tokens": 500}, (0, 71, 9)),
        ({"billed_units": {"input_tokens": 5, "output_tokens": 4}}, (5, 0, 4)),
        ({"tokens": {"input_tokens": None}, "billed_units": {"output_tokens": 4}}, (0, 0, 4)),
        ({"tokens": {"output_tokens": 3}}, (0, 0, 3)), ({}, None), (None, None), ([], None), ("x", None),
        ({"tokens": {"input_tokens": "7", "output_tokens": -1}}, None), ({"tokens": {"input_tokens": True}}, None),
        ({"tokens": {"input_tokens": 1e300}}, None),
    ],
)  # fmt: skip
def test_usage(usage: Any, buckets: tuple[int, int, int] | None) -> None:
    """``tokens`` counts; ``billed_units`` leaves out what Cohere adds to the prompt."""
    found = read_usage(usage)
    assert (None if found is None else (found.input_uncached, found.cache_read, found.output)) == buckets
    assert reply(answer(usage=usage)).usage == found


def test_logprobs_and_citations() -> None:
    cited = [{"start": 0, "end": 2, "text": "Hi", "sources": []}]
    message = {"content": [{"type": "text", "text": "Hi"}], "citations": cited}
    odd = [None, {"text": "x"}, {"logprobs": ["a"]}]
    found = reply(answer(message, logprobs=[{"text": "Hi", "token_ids": [1, 2], "logprobs": [-0.5, -0.25]}, *odd]))
    entry = {"token": "Hi", "logprob": -0.75, "bytes": None, "top_logprobs": []}
    assert found.choices[0]["logprobs"] == {"content": [entry], "refusal": None}
    assert found.extra == {"citations": cited}


@pytest.mark.parametrize(
    "body",
    [
        b"", b"  ", b"<html>busy</html>", b"[]", b"null", b"5", b"{}", b'{"message":null}', b'{"message":[]}',
        b'{"message":{}', b'{"id":"x","finish_reason":"COMPLETE"}', b"\xff\xfe",
        b'{"message":{"tool_calls":[{"function":{"name":"f","arguments":' + b"[" * 300 + b"]" * 300 + b"}}]}}",
    ],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(body: bytes) -> None:
    """R66"""
    with pytest.raises(MalformedReply) as caught:
        reply(body)
    assert "busy" not in caught.value.message


@pytest.mark.parametrize("body", [b'{"id":"1","message":"it broke"}', b'{"error":{"message":"it broke"}}'])
def test_an_error_in_a_success(body: bytes) -> None:
    for ask in (reply, lambda body: TYPE.embeddings(body, {}, spec())):
        with pytest.raises(UpstreamError) as caught:
            ask(body)
        assert not isinstance(caught.value, MalformedReply)
        assert caught.value.message == "it broke"


@pytest.mark.parametrize("field", ["role", "content", "tool_plan", "tool_calls", "citations"])
@pytest.mark.parametrize("junk", [None, 5, [], {}, "", [None], [{}], [[5]], [{"type": "text", "text": None}]])
def test_odd_fields_are_survived(field: str, junk: Any) -> None:
    """R61"""
    found = reply(answer({field: junk}, id=junk, finish_reason=junk, usage=junk, logprobs=junk))
    assert found.choices[0]["message"]["content"] == ""
    assert found.choices[0]["finish_reason"] == "stop"
    encode_reply(found, Answer("1", "m", 0, {}))


@pytest.mark.parametrize("levels", [250, 253, 254, 300])
def test_citations_nested_too_deep_are_left_out(levels: int) -> None:
    found = reply(answer({"citations": [deep(levels)]}))
    encode_reply(found, Answer("1", "m", 0, {}))


# ---- streams ---------------------------------------------------------------------------------------------------------


class Seen:
    """What a client gets of a stream."""

    def __init__(self) -> None:
        self.text = self.thinking = ""
        self.finish: list[str] = []
        self.native: list[str | None] = []
        self.calls: dict[int, Json] = {}

    def take(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.index == 0
            assert not self.finish
            assert "role" not in chunk.delta
            self.text += chunk.delta.get("content", "")
            self.thinking += chunk.delta.get("reasoning_content", "")
            for call in chunk.delta.get("tool_calls", []):
                self._take_call(call)
            if chunk.finish_reason:
                self.finish.append(chunk.finish_reason)
                self.native.append(chunk.native_finish)

    def _take_call(self, call: Json) -> None:
        """As OpenAI's SDK puts them together: id, type and name once, with the first delta."""
        known = self.calls.setdefault(call["index"], {"arguments": ""})
        if "id" in call:
            assert "id" not in known
            assert call["type"] == "function"
            known |= {"id": call["id"], "name": call["function"]["name"]}
        assert "id" in known
        known["arguments"] += call["function"]["arguments"]


def read(body: bytes, cuts: list[int] | None = None) -> tuple[CohereReader, Seen]:
    """Read a stream in pieces that end at ``cuts``."""
    reader, seen = CohereReader("co"), Seen()
    at = 0
    for cut in [*(cuts or []), len(body)]:
        seen.take(reader.feed(body[at:cut]))
        at = cut
    seen.take(reader.end())
    assert reader.done != (reader.failure is not None)
    assert reader.feed(b"data: {}\n\n") == reader.end() == []
    return reader, seen


def event(kind: str, message: Json | None = None, **more: Any) -> Json:
    return {"type": kind} | ({} if message is None else {"delta": {"message": message}}) | more


def call_start(index: Any, id: str | None, name: str, arguments: str = "") -> Json:
    call = {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
    return event("tool-call-start", {"tool_calls": call}, index=index)


def call_delta(index: Any, arguments: Any) -> Json:
    return event("tool-call-delta", {"tool_calls": {"function": {"arguments": arguments}}}, index=index)


def end(finish: Any = "COMPLETE", **more: Any) -> Json:
    return event("message-end", delta={"finish_reason": finish, "usage": USAGE} | more)


def sse(*events: Json | str) -> bytes:
    """As Cohere writes it: the type is also the event's name."""
    out = b""
    for one in events:
        if isinstance(one, str):
            out += f"data: {one}\n\n".encode()
        else:
            out += f"event: {one.get('type')}\ndata: {json.dumps(one, ensure_ascii=False)}\n\n".encode()
    return out


EMPTY: Json = {"role": "assistant", "content": [], "tool_plan": "", "tool_calls": [], "citations": []}
START = event("message-start", EMPTY, id="r1")
TEXT = event("content-delta", {"content": {"text": "Hi"}}, index=0)
ANSWER = (
    START,
    event("content-start", {"content": {"type": "thinking", "thinking": ""}}, index=0),
    event("content-delta", {"content": {"thinking": "Hm, \u2028"}}, index=0),
    event("content-end", index=0),
    event("content-start", {"content": {"type": "text", "text": ""}}, index=1),
    event("content-delta", {"content": {"text": "Gr\u00fc\u00df "}}, index=1, logprobs=None),
    event("content-delta", {"content": {"text": "Gott \U0001f600"}}, index=1),
    event("citation-start", {"citations": {"start": 0, "end": 4, "text": "Gr\u00fc\u00df", "sources": []}}, index=0),
    event("citation-end", index=0),
    event("content-end", index=1),
    event("tool-plan-delta", {"tool_plan": "Call f."}),
    call_start(0, "f_1", "f"),
    call_delta(0, '{"a'),
    call_delta(0, '":1}'),
    event("tool-call-end", index=0),
    call_start(1, "f_2", "f"),
    event("tool-call-end", index=1),
    event("debug", prompt="x"),
    end("TOOL_CALL"),
)
STREAM = sse(*ANSWER)


def check_stream(reader: CohereReader, seen: Seen) -> None:
    assert reader.failure is None
    assert (seen.text, seen.thinking) == ("Gr\u00fc\u00df Gott \U0001f600", "Hm, \u2028Call f.")
    assert seen.calls == {
        0: {"id": "f_1", "name": "f", "arguments": '{"a":1}'}, 1: {"id": "f_2", "name": "f", "arguments": "{}"},
    }  # fmt: skip
    assert (seen.finish, seen.native) == (["tool_calls"], ["TOOL_CALL"])
    assert (reader.id, reader.model, reader.created) == ("r1", "", 0)
    assert reader.usage is not None
    assert (reader.usage.prompt, reader.usage.completion) == (71, 9)
    assert [one["end"] for one in reader.extra["citations"]] == [4]


def test_a_stream_whole_by_bytes_and_with_other_line_ends() -> None:
    """R64"""
    check_stream(*read(STREAM))
    check_stream(*read(STREAM, list(range(len(STREAM)))))
    check_stream(*read(STREAM.replace(b"\n", b"\r\n")))
    check_stream(*read(b": ping\n\n" + STREAM.rstrip(b"\n")))


@fuzz
@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_in_random_pieces(cuts: list[int]) -> None:
    check_stream(*read(STREAM, sorted(cuts)))


@pytest.mark.parametrize("kept", range(len(ANSWER)))
@pytest.mark.parametrize("tail", [b"", b"data: [DONE]\n\n"])
def test_a_stream_that_is_cut_behind_an_event_never_ends_well(kept: int, tail: bytes) -> None:
    """R63: ``message-end`` and nothing else ends a stream."""
    reader, seen = read(sse(*ANSWER[:kept]) + tail)
    assert isinstance(reader.failure, TransportError)
    assert reader.failure.code == "upstream_incomplete"
    assert seen.finish == []


@fuzz
@given(st.integers(0, len(STREAM) - 3))
def test_a_stream_that_is_cut_anywhere_never_ends_well(cut: int) -> None:
    reader, seen = read(STREAM[:cut])
    assert isinstance(reader.failure, TransportError | MalformedReply)
    assert seen.finish == []
    assert "Gr\u00fc\u00df Gott \U0001f600".startswith(seen.text)


def test_the_provider_gives_a_reader_for_each_stream() -> None:
    one, other = TYPE.reader(spec()), TYPE.reader(spec())
    one.feed(STREAM)
    assert (one.done, other.done, one.reads_json) == (True, False, False)


def test_nothing_after_the_end_is_looked_at() -> None:
    check_stream(*read(STREAM + b"data: [DONE]\n\n" + sse({"message": "late"}) + b"<html>"))


@pytest.mark.parametrize("finish", [None, "", 5, "NEW"])
def test_an_end_without_a_known_reason_is_an_end(finish: Any) -> None:
    reader, seen = read(sse(START, TEXT, end(finish)))
    assert reader.done
    assert seen.finish == ["stop"]
    reader, seen = read(sse(TEXT, event("message-end")))
    assert (reader.done, reader.usage, seen.finish) == (True, None, ["stop"])


def test_parallel_calls_under_any_index() -> None:
    """Numbers are ours: Cohere's may start anywhere, repeat, or be missing (older examples have none)."""
    first, second = call_start(3, "a", "f"), call_start(3, "a", "g", '{"x"')
    reader, seen = read(sse(START, first, call_delta(3, "{}"), second, call_delta(3, ":1}"), end("TOOL_CALL")))
    assert [(c["name"], c["arguments"]) for c in seen.calls.values()] == [("f", "{}"), ("g", '{"x":1}')]
    assert len({c["id"] for c in seen.calls.values()}) == 2  # used twice, so one is new
    bare = [call_start(None, None, "f"), call_delta(None, "{}")]
    reader, seen = read(sse(*({k: v for k, v in one.items() if k != "index"} for one in bare), end("TOOL_CALL")))
    assert reader.done
    assert seen.calls[0]["arguments"] == "{}"
    assert seen.calls[0]["id"].startswith("call_")
    both = event("tool-call-start", {"tool_calls": [CALL]}, index=0)
    assert read(sse(both, end()))[1].calls[0] == {"id": "c1", "name": "f", "arguments": '{"a":1}'}


def test_arguments_of_a_call_that_cannot_be_read_go_nowhere() -> None:
    nameless = event("tool-call-start", {"tool_calls": {"id": "b"}}, index=0)
    _, seen = read(
        sse(call_start(0, "a", "f"), call_delta(0, "{}"), nameless, call_delta(0, "x"), call_delta(9, "y"), end())
    )
    assert [c["arguments"] for c in seen.calls.values()] == ["{}"]


def test_calls_without_end_are_refused() -> None:
    reader, _ = read(sse(*[call_start(n, None, "f") for n in range(MAX_CALLS + 1)], end()))
    assert isinstance(reader.failure, MalformedReply)


def test_logprobs_ride_on_the_content() -> None:
    reader = CohereReader("co")
    item = {"text": "Hi", "token_ids": [1], "logprobs": [-0.5]}
    (chunk,) = reader.feed(sse(TEXT | {"logprobs": item}))
    entry = {"token": "Hi", "logprob": -0.5, "bytes": None, "top_logprobs": []}
    assert (chunk.delta, chunk.logprobs) == ({"content": "Hi"}, {"content": [entry], "refusal": None})


@pytest.mark.parametrize(
    "bad",
    [
        sse({"id": "1", "message": "it broke"}), b'{"message":"it broke"}\n\n', b'{"message":"it broke"}',
        b'event: error\ndata: {"message":"it broke"}\n\n', sse({"type": "error", "error": {"message": "it broke"}}),
        b'error: {"message":"it broke"}\n\n', sse(end("COMPLETE", error="it broke")),
    ],
)  # fmt: skip
@pytest.mark.parametrize("first", [True, False])
def test_errors_in_a_stream(bad: bytes, first: bool) -> None:
    """R15"""
    reader, seen = read((b"" if first else sse(START, TEXT)) + bad)
    assert reader.failure is not None
    assert (reader.failure.message, reader.failure.upstream_status) == ("it broke", 200)
    assert (seen.text, seen.finish) == ("" if first else "Hi", [])


@pytest.mark.parametrize(
    "bad", [sse("<html>"), b"<html>busy</html>\n\n", sse("[]"), sse("5"), sse("null"), sse('{"type":')]
)
def test_what_is_no_event_ends_the_stream(bad: bytes) -> None:
    reader, seen = read(sse(START, TEXT) + bad + sse(TEXT, end()))
    assert isinstance(reader.failure, MalformedReply)
    assert "busy" not in reader.failure.message
    assert (seen.text, seen.finish) == ("Hi", [])


def test_an_event_without_end_is_refused() -> None:
    reader, fed = CohereReader("co", max_event=1000), 0
    while reader.failure is None and fed < 10_000:
        fed += 100
        reader.feed(b"x" * 100)
    assert isinstance(reader.failure, MalformedReply)
    assert fed <= 1200


def test_what_is_nested_too_deep() -> None:
    reader, _ = read(sse(call_start(0, "a", "f"), call_delta(0, deep(300)), end()))
    assert isinstance(reader.failure, MalformedReply)
    reader, _ = read(sse(event("citation-start", {"citations": deep(300)}), TEXT, end()))
    assert reader.done
    assert reader.extra == {}


def test_citations_are_bounded() -> None:
    big = sse(event("citation-start", {"citations": {"text": "x" * 1_000_000}}))
    reader = CohereReader("co")
    for _ in range(30):
        reader.feed(big)
    assert len(reader.extra["citations"]) == 8


_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5) | st.sampled_from(["f", "ERROR", "COMPLETE"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_deltas = st.fixed_dictionaries(
    {},
    optional={
        "message": _values
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(("content", "tool_calls", "tool_plan", "citations"), _values)
            | {
                "tool_calls": st.fixed_dictionaries(
                    {},
                    optional={
                        "id": _values,
                        "function": st.dictionaries(st.sampled_from(["name", "arguments"]), _values),
                    },
                )
            },
        ),
        "finish_reason": _values,
        "usage": _values,
        "error": _values,
    },
)
_kinds = st.sampled_from(sorted({one["type"] for one in ANSWER})) | _values
_events = st.fixed_dictionaries(
    {"type": _kinds}, optional={"delta": _deltas | _values, "index": _values, "id": _values, "logprobs": _values}
)


@fuzz
@given(st.lists(_events, max_size=12), st.booleans())
def test_odd_events_never_raise(events: list[Json], ended: bool) -> None:
    """R61: it ends well or it failed (``read`` looks), and what came can be written again."""
    reader, seen = read(sse(*events, *([end()] if ended else [])))
    json.dumps([seen.calls, reader.extra])
    if reader.done:
        assert len(seen.finish) == 1


@fuzz
@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([b"data: ", b"\n\n", b"event: ", b"{", b"}", *STREAM.split(b"\n")[:9]])
    )
)
def test_garbage_never_raises(pieces: list[bytes]) -> None:
    reader = CohereReader("co")
    for piece in pieces:
        reader.feed(piece)
    reader.end()
    assert reader.done != (reader.failure is not None)


# ---- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "failure", "code", "client"),
    [
        (400, "invalid request: temperature must be ...", FailureClass.CLIENT_ERROR, None, 400),
        (400, "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 4292.",
         FailureClass.CONTEXT, "context_length_exceeded", 400),
        (400, "too many tokens: size limit exceeded by 11326 tokens.",
         FailureClass.CONTEXT, "context_length_exceeded", 400),
        (400, "too many tokens: max tokens must be less than or equal to 4096, the maximum output for this model",
         FailureClass.CLIENT_ERROR, None, 400),
        (402, "Please add or update your payment method", FailureClass.QUOTA, "insufficient_quota", 402),
        (404, "model 'x' not found", FailureClass.NOT_FOUND, "model_not_found", 404),
        (422, "your request resulted in an invalid tool generation", FailureClass.CLIENT_ERROR, None, 422),
        (429, "You are using a Trial key, which is limited to 40 API calls / minute.",
         FailureClass.RATE_LIMITED, None, 429),
        (429, "You are using a Trial key, which is limited to 1000 API calls / month.",
         FailureClass.QUOTA, "insufficient_quota", 429),
        (498, "blocked", FailureClass.CONTENT_FILTER, "content_filter", 400),
        (499, "request cancelled", FailureClass.TIMEOUT, "timeout", 504),
        (500, "internal server error", FailureClass.SERVER, None, 500),
        (503, "unavailable", FailureClass.OVERLOADED, None, 503),
        (504, "timed out", FailureClass.TIMEOUT, None, 504),
    ],
)  # fmt: skip
def test_errors(status: int, message: str, failure: FailureClass, code: str | None, client: int) -> None:
    """Here, and as the engine refines it with its table of all providers."""
    body = json.dumps({"id": "e1", "message": message}).encode()
    error = TYPE.error(status, {}, body, spec(), 3.0)
    assert (error.failure, error.message, error.code) == (failure, message, code)
    assert (error.upstream_status, error.retry_after_s) == (status, 3.0)
    assert error.body is not None
    assert json.loads(error.body)["error"]["message"] == message
    refined = refine(error, "cohere", "co")
    assert (refined.failure, refined.status) == (failure, client)


def test_a_refused_key_is_not_told() -> None:
    """R56, R84"""
    error = refine(TYPE.error(401, {}, b'{"message":"invalid api token k1"}', spec(), None), "cohere", "co")
    assert (error.failure, error.status, error.code) == (FailureClass.AUTH, 502, "upstream_auth_error")
    assert "k1" not in error.message
    assert error.body is None


@pytest.mark.parametrize("status", [302, 400, 401, 404, 429, 498, 499, 500])
@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"5", b'{"message":null}', b'{"message":["a"]}', b"\xff"])
def test_odd_errors_never_raise(status: int, body: bytes) -> None:
    error = TYPE.error(status, {}, body, spec(), None)
    assert error.upstream_status == status
    assert "html" not in error.message


# ---- embeddings and models -------------------------------------------------------------------------------------------


def embed(**request: Any) -> tuple[Json, list[str]]:
    built = TYPE.build_embeddings(request, spec(), "embed-v4.0")
    assert built.url == "https://api.cohere.com/v2/embed"
    return json.loads(built.body), list(built.dropped)


def test_embeddings_request() -> None:
    plain = {"model": "embed-v4.0", "texts": ["a"], "input_type": "search_document", "embedding_types": ["float"]}
    assert embed(model="p", input="a", encoding_format="base64") == (plain, [])
    body, dropped = embed(input=["a", "b"], dimensions=256, input_type="search_query", truncate="END", user="u")
    assert body == plain | {
        "texts": ["a", "b"], "input_type": "search_query", "output_dimension": 256, "truncate": "END",
    }  # fmt: skip
    assert dropped == ["user"]


@pytest.mark.parametrize("value", [None, [], [1, 2], [[1]], {}, 5, ["a", 1]])
def test_token_ids_cannot_be_embedded(value: Any) -> None:
    with pytest.raises(ClientError) as caught:
        embed(input=value)
    assert caught.value.param == "input"


def test_embeddings_answer() -> None:
    meta = {"api_version": {"version": "2"}, "billed_units": {"input_tokens": 2}}
    body = {"id": "e", "embeddings": {"float": [[0.5, -1], [2, 3.5]]}, "texts": ["a", "b"], "meta": meta}
    vectors, usage = TYPE.embeddings(json.dumps(body).encode(), {}, spec())
    assert vectors == [[0.5, -1], [2, 3.5]]
    assert usage is not None
    assert (usage.prompt, usage.completion, usage.source) == (2, 0, "provider")


@pytest.mark.parametrize(
    "found", [None, [], [[1]], {}, {"int8": [[1]]}, {"float": []}, {"float": [[]]}, {"float": [["a"]]}, {"float": [1]}]
)
def test_broken_embeddings_are_malformed(found: Any) -> None:
    with pytest.raises(MalformedReply):
        TYPE.embeddings(json.dumps({"embeddings": found}).encode(), {}, spec())


def test_models() -> None:
    body = {
        "models": [
            {"name": "command-a-03-2025", "endpoints": ["chat"], "context_length": 288000.0, "finetuned": False},
            {"name": "embed-v4.0", "endpoints": ["embed", "classify"], "context_length": 128000},
            {"name": "rerank-v3.5", "endpoints": ["rerank"]}, {"name": "new", "endpoints": None, "context_length": "x"},
            {"name": ""}, {"endpoints": ["chat"]}, "junk", None,
        ],
        "next_page_token": None,
    }  # fmt: skip
    assert TYPE.read_models(json.dumps(body).encode()) == [
        {"id": "command-a-03-2025", "owned_by": "cohere", "context_window": 288000},
        {"id": "embed-v4.0", "owned_by": "cohere", "context_window": 128000}, {"id": "new", "owned_by": "cohere"},
    ]  # fmt: skip


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"models":{}}', b'{"message":"no"}'])
def test_what_is_no_list_of_models(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        TYPE.read_models(body)
