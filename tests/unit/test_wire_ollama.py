"""Ollama's native dialect, both ways (PROTOCOLS.md 1.2-1.7 and 2.7): what a chat becomes, what comes back, and what a
broken answer does."""

from __future__ import annotations

import contextlib
import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import ClientError, MalformedReply, TransportError, UpstreamError
from slipstream.providers.ollama import TYPE, root
from slipstream.types import Secret
from slipstream.wire.canonical import Chunk
from slipstream.wire.ollama.reader import ChatReader
from slipstream.wire.ollama.reply import read_embeddings, read_models, read_reply, unix_seconds
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=100)
CORPUS = SHARED / "wire" / "dev"
Json = dict[str, Any]


def spec(api_base: str = "http://127.0.0.1:11434", key: str = "") -> ProviderSpec:
    return ProviderSpec(name="o", type="ollama", api_base=api_base, api_key=Secret(key))


def build(model: str = "qwen3", **request: Any) -> tuple[Json, list[str]]:
    """What is sent for a request, and what could not be."""
    request = {"model": "public", "messages": [{"role": "user", "content": "Hi"}]} | request
    before = copy.deepcopy(request)
    built = TYPE.build(request, spec(), model)
    assert request == before  # never changed
    assert TYPE.build(request, spec(), model) == built  # R59: idempotent
    assert built.url == "http://127.0.0.1:11434/api/chat"
    return json.loads(built.body), list(built.dropped)


def refused(field: str, **request: Any) -> str:
    with pytest.raises(ClientError) as caught:
        build(**request)
    assert caught.value.param == field
    assert caught.value.status == 400
    return caught.value.message


# ---- the provider ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tail", ["", "/", "/v1", "/v1/", "/api", "/api/"])
def test_api_base_may_be_written_as_for_other_gateways(tail: str) -> None:
    assert root(spec("http://box:11434" + tail)) == "http://box:11434"
    assert TYPE.models_url(spec("http://box:11434" + tail)) == "http://box:11434/api/tags"


def test_a_path_before_the_api_stays() -> None:
    assert root(spec("http://box/ollama")) == "http://box/ollama"
    assert root(spec("http://box/myapi")) == "http://box/myapi"


def test_a_key_is_not_needed_and_goes_out_as_bearer() -> None:
    assert not TYPE.needs_key
    assert TYPE.default_base == "http://127.0.0.1:11434"
    assert not TYPE.natives
    assert "Authorization" not in TYPE.headers(spec())
    assert TYPE.headers(spec(key="k1"))["Authorization"] == "Bearer k1"


# ---- requests --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("said", "sent"), [({}, False), ({"stream": True}, True), ({"stream": None}, False)])
def test_stream_is_always_said(said: Json, sent: bool) -> None:
    body, dropped = build(**said)
    assert body == {"model": "qwen3", "messages": [{"role": "user", "content": "Hi"}], "stream": sent}
    assert dropped == []


def test_sampling_parameters_become_options() -> None:
    body, dropped = build(
        temperature=0.5, top_p=0.9, top_k=40, min_p=0.05, seed=7, stop="END", max_tokens=100, frequency_penalty=0.1,
        presence_penalty=0.2, repetition_penalty=1.1, num_ctx=8192,
    )  # fmt: skip
    assert body["options"] == {
        "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0.05, "seed": 7, "stop": ["END"], "num_predict": 100,
        "frequency_penalty": 0.1, "presence_penalty": 0.2, "repeat_penalty": 1.1, "num_ctx": 8192,
    }  # fmt: skip
    assert dropped == []


def test_what_only_ollama_has_is_taken_as_it_is() -> None:
    body, dropped = build(
        options={"num_ctx": 4096, "num_gpu": 1, "temperature": 0.1}, temperature=0.9, keep_alive="10m", think="low",
        truncate=False, shift=False,
    )  # fmt: skip
    assert body["options"] == {"num_ctx": 4096, "num_gpu": 1, "temperature": 0.1}
    assert (body["keep_alive"], body["think"], body["truncate"], body["shift"]) == ("10m", "low", False, False)
    assert dropped == []


def test_null_is_nothing() -> None:
    names = ("temperature", "top_p", "seed", "stop", "max_tokens", "tools", "tool_choice", "response_format", "n",
             "reasoning_effort", "thinking", "logprobs", "top_logprobs", "options", "keep_alive", "user", "logit_bias",
             "parallel_tool_calls")  # fmt: skip
    body, dropped = build(**dict.fromkeys(names))
    assert set(body) == {"model", "messages", "stream"}
    assert dropped == []


def test_the_newer_limit_wins() -> None:
    assert build(max_tokens=5, max_completion_tokens=9)[0]["options"] == {"num_predict": 9}


def test_what_cannot_be_said_is_listed() -> None:
    """R65: set and meaning something, so listed; set to what it is anyway, so not."""
    _, dropped = build(logit_bias={"5": 1}, user="u1", parallel_tool_calls=False, service_tier="flex", made_up=0.5)
    assert dropped == ["logit_bias", "user", "parallel_tool_calls", "service_tier", "made_up"]
    _, dropped = build(logit_bias={}, parallel_tool_calls=True, store=False, service_tier="auto", stream_options={})
    assert dropped == []


def test_a_listed_name_can_stand_in_a_header() -> None:
    assert build(**{"x\r\nevil: 1": 1, "y" * 100: 1})[1] == ["?"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({"temperature": "hot"}, "temperature"), ({"top_k": 1.5}, "top_k"), ({"seed": True}, "seed"),
        ({"stop": [1]}, "stop"), ({"stop": 5}, "stop"), ({"n": 2}, "n"), ({"options": [1]}, "options"),
        ({"tools": "all"}, "tools"), ({"tools": [{"type": "function"}]}, "tools[0].function.name"),
        ({"response_format": {"type": "xml"}}, "response_format"), ({"response_format": "json"}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"reasoning_effort": "huge"}, "reasoning_effort"), ({"think": 1}, "think"), ({"logprobs": 5}, "logprobs"),

        ({"thinking": {"type": "deep"}}, "thinking.type"), ({"thinking": True}, "thinking.type"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": ["Hi"]}, "messages[0]"), ({"messages": [{"role": "king"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_field(request_: Json, field: str) -> None:
    assert refused(field, **request_)


def test_a_request_that_is_nested_too_deeply_is_the_clients_mistake() -> None:
    schema: Json = {}
    for _ in range(400):
        schema = {"items": schema}
    with pytest.raises(ClientError):
        build(response_format={"type": "json_schema", "json_schema": {"schema": schema}})


@pytest.mark.parametrize(
    ("wanted", "sent"),
    [
        ({"type": "text"}, None), ({"type": "json_object"}, "json"),
        ({"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}, {"type": "object"}),
    ],
)  # fmt: skip
def test_response_format_becomes_format(wanted: Json, sent: Any) -> None:
    body, dropped = build(response_format=wanted)
    assert body.get("format") == sent
    assert dropped == []


@pytest.mark.parametrize(
    ("model", "request_", "think", "dropped"),
    [
        ("qwen3", {"reasoning_effort": "none"}, False, []),
        ("qwen3", {"reasoning_effort": "high"}, True, ["reasoning_effort"]),
        ("gpt-oss:20b", {"reasoning_effort": "minimal"}, "low", []),
        ("gpt-oss:20b", {"reasoning_effort": "xhigh"}, "high", []),
        ("gpt-oss:20b", {"thinking": {"type": "adaptive"}}, "medium", []),
        ("qwen3", {"thinking": {"type": "disabled"}}, False, []),
        ("qwen3", {"thinking": {"type": "adaptive"}}, True, []),
        ("qwen3", {"thinking": {"type": "enabled", "budget_tokens": 2000}}, True, ["thinking.budget_tokens"]),
        ("qwen3", {"think": True, "reasoning_effort": "none"}, True, []),
        ("qwen3", {}, None, []),
    ],
)
def test_reasoning_becomes_think(model: str, request_: Json, think: Any, dropped: list[str]) -> None:
    body, lost = build(model, **request_)
    assert body.get("think") == think
    assert lost == dropped


def test_logprobs() -> None:
    body, _ = build(logprobs=True, top_logprobs=3)
    assert (body["logprobs"], body["top_logprobs"]) == (True, 3)
    assert "top_logprobs" not in build(logprobs=False, top_logprobs=3)[0]


# ---- tools


def tool(name: str, **more: Any) -> Json:
    function = {"name": name, "description": "D", "parameters": {"type": "object", "properties": {}}}
    return {"type": "function", "function": function | more}


@pytest.mark.parametrize(
    ("choice", "names", "dropped"),
    [
        (None, ["a", "b"], []), ("auto", ["a", "b"], []), ("none", [], []), ("required", ["a", "b"], ["tool_choice"]),
        ({"type": "function", "function": {"name": "b"}}, ["b"], ["tool_choice"]),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [tool("a")]}}, ["a"], []),
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [tool("a")]}},
        ["a"], ["tool_choice"]),
    ],
)  # fmt: skip
def test_tool_choice_is_kept_as_far_as_it_goes(choice: Any, names: list[str], dropped: list[str]) -> None:
    body, lost = build(tools=[tool("a"), tool("b")], tool_choice=choice)
    assert [sent["function"]["name"] for sent in body.get("tools", [])] == names
    assert lost == dropped


def test_a_tool_keeps_openais_form() -> None:
    body, dropped = build(tools=[tool("a", strict=True), {"type": "function", "function": {"name": "b"}}])
    assert body["tools"][0] == tool("a")
    assert body["tools"][1]["function"]["parameters"] == {"type": "object", "properties": {}}
    assert dropped == ["tools[].strict"]
    body, dropped = build(tools=[{"type": "custom", "custom": {"name": "c"}}])
    assert "tools" not in body
    assert dropped == ["tools[].type"]


def call(identity: str, name: str, arguments: str) -> Json:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": arguments}}


def test_a_tool_loop() -> None:
    """Arguments become an object, results get the name of their call."""
    body, dropped = build(
        messages=[
            {"role": "developer", "content": "Be brief"},
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": None, "reasoning_content": "Two calls",
             "tool_calls": [call("c1", "get", '{"city": "東京"}'), call("c2", "now", "")]},
            {"role": "tool", "tool_call_id": "c2",
             "content": [{"type": "text", "text": "12"}, {"type": "text", "text": "h"}]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
    )  # fmt: skip
    assert body["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "thinking": "Two calls", "tool_calls": [
            {"id": "c1", "function": {"name": "get", "arguments": {"city": "東京"}}},
            {"id": "c2", "function": {"name": "now", "arguments": {}}},
        ]},
        {"role": "tool", "content": "12\nh", "tool_name": "now", "tool_call_id": "c2"},
        {"role": "tool", "content": "sunny", "tool_name": "get", "tool_call_id": "c1"},
    ]  # fmt: skip
    assert dropped == []


def test_legacy_calls_and_results() -> None:
    messages = [
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "1"},
    ]
    sent = build(messages=messages)[0]["messages"]
    assert sent[0]["tool_calls"] == [{"function": {"name": "f", "arguments": {}}}]
    assert sent[1] == {"role": "tool", "content": "1", "tool_name": "f"}


@pytest.mark.parametrize("arguments", ["[1]", "{", '"text"', 5])
def test_arguments_must_be_an_object(arguments: Any) -> None:
    message = {"role": "assistant", "tool_calls": [call("c", "f", arguments)]}
    assert refused("messages[0].tool_calls[0].function.arguments", messages=[message])


def test_what_a_message_cannot_carry_is_listed() -> None:
    messages = [
        {"role": "user", "name": "ann",
         "content": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}]},
        {"role": "assistant", "content": "y", "thinking_blocks": [
            {"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]},
        {"role": "tool", "tool_call_id": "nobody", "content": "z", "is_error": True},
    ]  # fmt: skip
    body, dropped = build(messages=messages)
    assert body["messages"][1] == {"role": "assistant", "content": "y", "thinking": "hm"}
    assert dropped == ["cache_control", "messages[].name", "messages[].thinking_blocks", "messages[].is_error"]


def test_a_refusal_goes_back_as_text() -> None:
    assert (
        build(messages=[{"role": "assistant", "content": None, "refusal": "No."}])[0]["messages"][0]["content"] == "No."
    )


# ---- images


def test_images_go_as_base64_alone() -> None:
    parts = [
        {"type": "text", "text": "What is"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk=", "detail": "low"}},
        {"type": "text", "text": "this?"},
    ]
    body, dropped = build(messages=[{"role": "user", "content": parts}])
    assert dropped == ["image_url.detail"]
    assert body["messages"] == [{"role": "user", "content": "What is\nthis?", "images": ["aGk="]}]


@pytest.mark.parametrize("image", [{"url": "https://x.example/a.png"}, {"url": 5}, None, {"url": "data:image/png,raw"}])
def test_an_image_that_would_have_to_be_fetched_is_refused(image: Any) -> None:
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]
    assert "data: URL" in refused("messages[0].content[0].image_url.url", messages=messages)


@pytest.mark.parametrize("kind", ["input_audio", "file", "video_url"])
def test_other_media_are_refused(kind: str) -> None:
    assert refused("messages[0].content[0]", messages=[{"role": "user", "content": [{"type": kind, kind: {}}]}])


# ---- embeddings and models -------------------------------------------------------------------------------------------


def test_embeddings_there_and_back() -> None:
    request = {"input": "Hello", "dimensions": 3, "encoding_format": "base64", "user": "u", "options": {"num_ctx": 99}}
    built = TYPE.build_embeddings(request, spec(), "minilm")
    assert built.url.endswith("/api/embed")
    assert json.loads(built.body) == {
        "model": "minilm",
        "input": ["Hello"],
        "dimensions": 3,
        "options": {"num_ctx": 99},
    }
    assert list(built.dropped) == ["user"]
    body = b'{"model":"minilm","embeddings":[[0.5,-1],[2,3.5]],"total_duration":1,"prompt_eval_count":4}'
    vectors, usage = TYPE.embeddings(body, {}, spec())
    assert vectors == [[0.5, -1], [2, 3.5]]
    assert usage is not None
    assert (usage.prompt, usage.completion) == (4, 0)


@pytest.mark.parametrize("value", [None, [], [1, 2], [[1]], {}, 5])
def test_token_ids_cannot_be_embedded(value: Any) -> None:
    with pytest.raises(ClientError) as caught:
        TYPE.build_embeddings({"input": value}, spec(), "m")
    assert caught.value.param == "input"


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{}", b'{"embeddings":null}', b'{"embeddings":[]}', b'{"embeddings":[1]}', b'{"embeddings":[["a"]]}']
)  # fmt: skip
def test_broken_embeddings_are_malformed(body: bytes) -> None:
    with pytest.raises(MalformedReply):
        read_embeddings(body, provider="o")


def test_models_of_the_tag_list() -> None:
    body = {
        "models": [
            {"name": "llama3.2:3b", "model": "llama3.2:3b", "modified_at": "2025-10-08T16:14:05.423042123-07:00"},
            {"name": "only-name", "modified_at": None}, {"size": 5}, "junk", {"name": ""},
        ]
    }  # fmt: skip
    assert read_models(json.dumps(body).encode()) == [
        {"id": "llama3.2:3b", "created": 1759965245}, {"id": "only-name", "created": 0},
    ]  # fmt: skip


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"models":{}}'])
def test_what_is_no_list_of_models(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        TYPE.read_models(body)


# ---- whole answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2025-08-20T13:47:53Z", 1755697673), ("2025-08-20T13:47:53.3Z", 1755697673),
        ("2025-08-20T13:47:53.398465431Z", 1755697673), ("2025-08-20T15:47:53.39846+02:00", 1755697673),
        ("2025-08-20T13:47:53", 1755697673), ("0001-01-01T00:00:00Z", 0), ("9999-12-31T23:59:59-23:59", 253402387139),
        ("soon", 0), ("", 0), (None, 0), (5, 0),
    ],
)  # fmt: skip
def test_times_as_go_writes_them(text: object, seconds: int) -> None:
    assert unix_seconds(text) == seconds


def line(**fields: Any) -> Json:
    message = {"role": "assistant", "content": "Hi"} | fields.pop("message", {})
    return {"model": "m", "created_at": "2025-08-20T13:47:53Z", "message": message, "done": True} | fields


def whole(**fields: Any) -> Json:
    """The only choice of an answer."""
    reply = read_reply(json.dumps(line(**fields)).encode(), provider="o")
    assert len(reply.choices) == 1
    return reply.choices[0]


@pytest.mark.parametrize(
    ("reason", "called", "finish"),
    [
        ("stop", False, "stop"), ("stop", True, "tool_calls"), ("length", False, "length"), ("length", True, "length"),
        ("load", False, "stop"), ("unload", False, "stop"), ("new", False, "stop"), (None, False, "stop"),
        (7, True, "tool_calls"),
    ],
)  # fmt: skip
def test_finish_reasons(reason: Any, called: bool, finish: str) -> None:
    """PROTOCOLS.md 1.3: a tool call is seen in the message only."""
    calls = [{"function": {"name": "f", "arguments": {}}}] if called else None
    choice = whole(done_reason=reason, message={"tool_calls": calls})
    assert choice["finish_reason"] == finish
    assert choice.get("native_finish_reason") == (reason if isinstance(reason, str) else None)


def test_tool_calls_get_ids_of_their_own() -> None:
    calls = [
        {"id": "x", "function": {"index": 0, "name": "f", "arguments": {"a": [1, "é"]}}},
        {"id": "x", "function": {"index": 0, "name": "f", "arguments": None}},
        {"function": {"name": "g", "arguments": '{"already": "text"}'}},
        {"function": {"name": ""}}, {"function": None}, "junk", {"id": 5, "function": {"name": "h", "arguments": [1]}},
    ]  # fmt: skip
    message = whole(message={"content": "", "tool_calls": calls})["message"]
    assert message["content"] is None
    shown = message["tool_calls"]
    assert [c["function"]["name"] for c in shown] == ["f", "f", "g", "h"]
    assert [c["function"]["arguments"] for c in shown] == ['{"a":[1,"é"]}', "{}", '{"already": "text"}', "[1]"]
    assert shown[0]["id"] == "x"
    assert len({c["id"] for c in shown}) == 4
    assert all(c["type"] == "function" and "index" not in c for c in shown)


def test_reasoning_logprobs_and_times() -> None:
    entries = [
        {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": [{"token": "Hi", "logprob": -0.1}]},
        None,
    ]
    body = json.dumps(line(message={"thinking": "Hm"}, logprobs=entries)).encode()
    reply = read_reply(body, provider="o")
    assert (reply.id, reply.model, reply.created) == ("", "m", 1755697673)
    assert reply.choices[0]["message"] == {"role": "assistant", "content": "Hi", "reasoning_content": "Hm"}
    top = {"token": "Hi", "logprob": -0.1, "bytes": None}
    shown = {"token": "Hi", "logprob": -0.1, "bytes": [72, 105], "top_logprobs": [top]}
    assert reply.choices[0]["logprobs"] == {"content": [shown], "refusal": None}


@pytest.mark.parametrize(
    ("counts", "usage"),
    [
        ({"prompt_eval_count": 3, "eval_count": 4}, (3, 4)), ({"eval_count": 4}, (0, 4)),
        ({"prompt_eval_count": 3}, (3, 0)),
        ({}, None), ({"eval_count": "4"}, None), ({"eval_count": -1}, None), ({"eval_count": True}, None),
        ({"eval_count": 1 << 50}, None), ({"prompt_eval_count": None, "eval_count": None}, None),
    ],
)  # fmt: skip
def test_usage(counts: Json, usage: tuple[int, int] | None) -> None:
    """PROTOCOLS.md 1.4: the prompt's count may be absent."""
    found = read_reply(json.dumps(line(**counts)).encode(), provider="o").usage
    assert (None if found is None else (found.prompt, found.completion)) == usage


@pytest.mark.parametrize(
    "body",
    [b"", b"   ", b"<html>busy</html>", b"[]", b"null", b"5", b"{}",
    b'{"message":null}', b'{"message":"x"}', b'{"message":{}',
     b'{"message":{"content":"x"},"done":false}', b"\xff\xfe"],
)  # fmt: skip
def test_what_is_no_answer_is_malformed(body: bytes) -> None:
    """R66"""
    with pytest.raises(MalformedReply) as caught:
        TYPE.reply(body, {}, spec())
    assert "busy" not in caught.value.message


@pytest.mark.parametrize("field", ["role", "content", "thinking", "tool_calls"])
@pytest.mark.parametrize("junk", [None, 5, [], {}, "", [None], [{}], [{"function": {"name": 5}}]])
def test_odd_fields_are_survived(field: str, junk: Any) -> None:
    """R61"""
    choice = whole(message={field: junk}, logprobs=junk, model=junk, created_at=junk, done_reason=junk)
    assert choice["message"]["content"] in ("Hi", "")
    assert choice["finish_reason"] == "stop"


def test_an_error_in_a_success() -> None:
    with pytest.raises(UpstreamError) as caught:
        read_reply(b'{"error":"model runner has crashed"}', provider="o")
    assert not isinstance(caught.value, MalformedReply)
    assert caught.value.message == "model runner has crashed"


@pytest.mark.parametrize("junk", [None, "", {}, []])
def test_no_error_is_none(junk: Any) -> None:
    assert whole(error=junk)["message"]["content"] == "Hi"


def test_errors_before_the_first_byte() -> None:
    error = TYPE.error(404, {}, b'{"error":"model \'x\' not found"}', spec(), None)
    assert (error.status, error.message) == (404, "model 'x' not found")


# ---- streams ---------------------------------------------------------------------------------------------------------


class Seen:
    """What a client gets of a stream."""

    def __init__(self) -> None:
        self.text = self.thinking = ""
        self.finish: list[str] = []
        self.calls: list[Json] = []

    def take(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            assert chunk.index == 0
            assert not self.finish
            assert "role" not in chunk.delta
            self.text += chunk.delta.get("content", "")
            self.thinking += chunk.delta.get("reasoning_content", "")
            self.calls += chunk.delta.get("tool_calls", [])
            if chunk.finish_reason:
                self.finish.append(chunk.finish_reason)


def read(body: bytes, cuts: list[int] | None = None, max_line: int = 1 << 20) -> tuple[ChatReader, Seen]:
    """Read a stream in pieces that end at ``cuts``."""
    reader, seen = ChatReader(provider="o", max_line=max_line), Seen()
    at = 0
    for cut in [*(cuts or []), len(body)]:
        seen.take(reader.feed(body[at:cut]))
        at = cut
    seen.take(reader.end())
    assert reader.done != (reader.failure is not None)
    return reader, seen


def ndjson(*lines: Json | str) -> bytes:
    return b"".join(
        (text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)).encode() + b"\n" for text in lines
    )


STREAM = ndjson(
    line(done=False, message={"content": "", "thinking": "Hm, \u2028"}),
    line(done=False, message={"content": "Gr\u00fc\u00df "}),
    line(done=False, message={"content": "Gott \U0001f600"}),
    line(
        done=False,
        message={"content": "", "tool_calls": [{"function": {"index": 0, "name": "f", "arguments": {"a": 1}}}]},
    ),
    line(done=False, message={"content": "", "tool_calls": [{"function": {"index": 0, "name": "g", "arguments": {}}}]}),
    line(message={"content": ""}, done_reason="stop", prompt_eval_count=9, eval_count=8),
)


def check_stream(reader: ChatReader, seen: Seen) -> None:
    assert reader.failure is None
    assert (seen.text, seen.thinking) == ("Gr\u00fc\u00df Gott \U0001f600", "Hm, \u2028")
    assert [(c["index"], c["function"]) for c in seen.calls] == [
        (0, {"name": "f", "arguments": '{"a":1}'}), (1, {"name": "g", "arguments": "{}"}),
    ]  # fmt: skip
    assert len({c["id"] for c in seen.calls}) == 2
    assert seen.finish == ["tool_calls"]
    assert reader.usage is not None
    assert (reader.usage.prompt, reader.usage.completion) == (9, 8)
    assert (reader.model, reader.created) == ("m", 1755697673)


def test_a_stream_whole_by_bytes_and_by_lines() -> None:
    """R64"""
    check_stream(*read(STREAM))
    check_stream(*read(STREAM, list(range(len(STREAM)))))
    check_stream(*read(STREAM.replace(b"\n", b"\r\n\n")))
    check_stream(*read(STREAM.rstrip(b"\n")))


@fuzz
@given(st.lists(st.integers(0, len(STREAM)), max_size=30))
def test_a_stream_in_random_pieces(cuts: list[int]) -> None:
    check_stream(*read(STREAM, sorted(cuts)))


@fuzz
@given(st.integers(0, len(STREAM) - 2))
def test_a_cut_stream_never_ends_well(cut: int) -> None:
    """R63: only the line that says so ends a stream."""
    reader, seen = read(STREAM[:cut])
    assert isinstance(reader.failure, TransportError)
    assert reader.failure.code == "upstream_incomplete"
    assert not seen.finish
    assert "Gr\u00fc\u00df Gott \U0001f600".startswith(seen.text)


def test_the_provider_gives_a_reader_for_each_stream() -> None:
    one, other = TYPE.reader(spec()), TYPE.reader(spec())
    assert one is not other
    assert one.reads_json
    assert "".join(chunk.delta.get("content", "") for chunk in one.feed(STREAM)) == "Gr\u00fc\u00df Gott \U0001f600"
    assert (one.done, other.done) == (True, False)


def test_nothing_after_the_end_is_looked_at() -> None:
    reader, seen = read(STREAM + b'{"error":"late"}\n<html>' + STREAM)
    check_stream(reader, seen)
    assert reader.feed(b"x\n") == reader.end() == []


def test_content_on_the_last_line_comes_before_the_finish() -> None:
    _, seen = read(ndjson(line(message={"thinking": "a", "content": "b"}, done_reason="length")))
    assert (seen.thinking, seen.text, seen.finish) == ("a", "b", ["length"])


def test_ids_stay_unique_over_the_stream() -> None:
    calls = [{"id": "same", "function": {"name": "f", "arguments": {}}}]
    _, seen = read(ndjson(*[line(done=False, message={"tool_calls": calls})] * 3, line()))
    assert len({c["id"] for c in seen.calls}) == 3
    assert [c["index"] for c in seen.calls] == [0, 1, 2]


def test_logprobs_ride_on_the_content() -> None:
    entry = {"token": "Hi", "logprob": -0.5}
    reader = ChatReader(provider="o")
    chunks = reader.feed(ndjson(line(done=False, logprobs=[entry])))
    assert chunks[0].logprobs == {"content": [{**entry, "bytes": None, "top_logprobs": []}], "refusal": None}


@pytest.mark.parametrize("bad", ["<html>", "[]", "5", "null", '{"message":', "data: {}", "event: error"])
def test_a_line_that_is_none_ends_the_stream(bad: str) -> None:
    reader, seen = read(ndjson(line(done=False), bad, line(done=False), line()))
    assert isinstance(reader.failure, MalformedReply)
    assert seen.text == "Hi"
    assert not seen.finish


@pytest.mark.parametrize("error", ["an error was encountered while running the model", {"message": "crashed"}])
@pytest.mark.parametrize("first", [True, False])
def test_an_error_line(error: Any, first: bool) -> None:
    """PROTOCOLS.md 1.6, R15"""
    lines = [{"error": error}] if first else [line(done=False), {"error": error}]
    reader, seen = read(ndjson(*lines, line()))
    assert reader.failure is not None
    assert reader.failure.message == (error["message"] if isinstance(error, dict) else error)
    assert reader.failure.upstream_status == 200
    assert seen.text == ("" if first else "Hi")


def test_an_error_as_the_whole_body_without_a_line_feed() -> None:
    reader, _ = read(b'{"error":"busy"}')
    assert reader.failure is not None
    assert reader.failure.message == "busy"


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_a_line_without_end_is_refused_early(size: int) -> None:
    reader = ChatReader(provider="o", max_line=100)
    fed = 0
    while reader.failure is None and fed < 10_000:
        reader.feed(b"x" * size)
        fed += size
    assert isinstance(reader.failure, MalformedReply)
    assert fed <= 100 + size


def test_a_long_line_that_comes_whole_is_refused_too() -> None:
    reader, _ = read(ndjson(line(message={"content": "x" * 500})), max_line=100)
    assert isinstance(reader.failure, MalformedReply)


@pytest.mark.parametrize("depth", [300, 2000])
def test_arguments_nested_too_deeply(depth: int) -> None:
    arguments = '{"a":' * depth + "1" + "}" * depth
    text = '{"message":{"tool_calls":[{"function":{"name":"f","arguments":' + arguments + '}}]},"done":true}'
    reader, _ = read(text.encode() + b"\n")
    assert isinstance(reader.failure, MalformedReply)


_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=5)
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
_NAMES = ("role", "content", "thinking", "tool_calls", "function", "name", "arguments", "id")
_parts = st.fixed_dictionaries({}, optional=dict.fromkeys(_NAMES, _values))
_lines = st.fixed_dictionaries(
    {},
    optional={
        "message": _parts | _values,
        **dict.fromkeys(("model", "created_at", "done", "done_reason", "logprobs", "error", "eval_count"), _values),
    },
)


@fuzz
@given(st.lists(_lines, max_size=4))
def test_garbage_never_raises(lines: list[Json]) -> None:
    """R61, R66"""
    body = ndjson(*lines)
    reader, seen = read(body)
    again, same = read(body, list(range(len(body))))
    assert (seen.text, seen.thinking, seen.finish) == (same.text, same.thinking, same.finish)
    assert reader.done == again.done
    for one in lines:
        with contextlib.suppress(UpstreamError):
            read_reply(json.dumps(one).encode(), provider="o")


@fuzz
@given(st.binary(max_size=200))
def test_noise_never_raises(noise: bytes) -> None:
    read(noise)
    read(STREAM[:200] + noise)


@fuzz
@given(
    st.text(max_size=20), st.text(max_size=20), st.lists(st.tuples(st.from_regex(r"[a-z]{1,8}", fullmatch=True),
    st.dictionaries(st.text(max_size=4), st.integers(-9, 9) | st.text(max_size=4), max_size=3)), max_size=3),
)  # fmt: skip
def test_what_an_answer_says_goes_back_the_same(text: str, thinking: str, calls: list[tuple[str, Json]]) -> None:
    """R60: a turn of the model, sent back in the next request, is the turn it was."""
    sent = [{"function": {"name": name, "arguments": arguments}} for name, arguments in calls]
    message = whole(message={"content": text, "thinking": thinking, "tool_calls": sent})["message"]
    back = build(messages=[message])[0]["messages"][0]
    assert back["content"] == text
    assert back.get("thinking", "") == thinking
    assert [c["function"] for c in back.get("tool_calls", [])] == [c["function"] for c in sent]


# ---- recorded exchanges ----------------------------------------------------------------------------------------------


def recorded(api: str) -> list[Path]:
    return sorted(CORPUS.glob(f"ollama.{api}.*.json"))


needs_corpus = pytest.mark.skipif(not CORPUS.is_dir(), reason="the wire corpus is not beside this tree")


@needs_corpus
@pytest.mark.parametrize("path", recorded("ollama-chat"), ids=lambda path: path.stem)
def test_recorded_exchanges(path: Path) -> None:
    exchange = json.loads(path.read_text())
    expected, body = exchange["expected"], exchange["response"]["body"].encode()
    outcome = expected["outcome"]
    if exchange["endpoint"] == "stream":
        for cuts in ([], list(range(len(body))), list(range(0, len(body), 13))):
            reader, seen = read(body, cuts)
            assert reader.done == (outcome == "ok")
            check(expected, seen.text, seen.thinking, seen.calls, seen.finish, reader.usage)
    elif outcome == "ok":
        reply = read_reply(body, provider="o")
        message = reply.choices[0]["message"]
        calls = message.get("tool_calls", [])
        finish = [reply.choices[0]["finish_reason"]]
        check(expected, message["content"] or "", message.get("reasoning_content", ""), calls, finish, reply.usage)
        assert reply.created > 0
    else:
        error = TYPE.error(exchange["response"]["status"], {}, body, spec(), None)
        assert error.upstream_status == expected["error"]["status"]


def check(expected: Json, text: str, thinking: str, calls: list[Json], finish: list[str], usage: Any) -> None:
    assert text == expected["text"]
    assert thinking == (expected["reasoning"] or "")
    shown = [
        {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"]), "id": c["id"]}
        for c in calls
    ]
    assert shown == expected["tool_calls"]
    assert finish == ([expected["finish_reason"]] if expected["finish_reason"] else [])
    if expected["usage"] is None:
        assert usage is None
    else:
        accepted = expected.get("accept", {}).get("usage.prompt", [expected["usage"]["prompt"]])
        assert usage.prompt in accepted
        assert usage.completion == expected["usage"]["completion"]


@needs_corpus
@pytest.mark.parametrize("path", recorded("models"), ids=lambda path: path.stem)
def test_recorded_models(path: Path) -> None:
    exchange = json.loads(path.read_text())
    found = read_models(exchange["response"]["body"].encode())
    assert [model["id"] for model in found] == exchange["expected"]["models"]
