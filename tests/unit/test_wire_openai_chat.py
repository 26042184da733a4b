"""OpenAI chat as a spoke: recorded answers of the whole family read into the canonical shape, whatever the cuts (R60,
R61, R63, R64, R66, R67), against the expectations that came with them (ACCEPT.md); and as a face: every chunk is valid
under the official SDK's types (R62, PROTOCOLS.md 3.1)."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from slipstream.errors import MalformedReply, UpstreamError
from slipstream.types import FailureClass
from slipstream.wire.canonical import Answer, Chunk, Reply, has_content
from slipstream.wire.openai_chat.reader import MAX_CALLS, MAX_CHOICES, ChatReader
from slipstream.wire.openai_chat.reply import read_reply
from slipstream.wire.openai_chat.writer import ChatWriter, encode_reply
from slipstream.wire.usage import Usage
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
FOLDER = SHARED / "wire" / "dev"
APIS = ("chat-completions", "completions")
ANSWER = Answer("0123", "asked-for", 1_700_000_000, {}, include_usage=True)


def recorded(endpoint: str) -> list[Any]:
    found = []
    for path in sorted(FOLDER.glob("*.json")) if FOLDER.is_dir() else []:
        if any(f".{api}." in path.name for api in APIS):
            exchange = json.loads(path.read_text(encoding="utf-8"))
            if exchange["endpoint"] == endpoint:
                found.append(pytest.param(exchange, id=exchange["id"]))
    return found or [pytest.param(None, marks=pytest.mark.skip(reason=f"no recorded exchanges in {FOLDER}"))]


# ---- reading, and what was seen --------------------------------------------------------------------------------------


class Seen:
    """What a user would see of an answer, streamed or whole."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.finish: dict[int, str] = {}
        self.reasoning = self.refusal = ""
        self.calls: list[dict[str, str]] = []
        self.usage: Usage | None = None
        self.outcome = "ok"

    def chunk(self, chunk: Chunk) -> None:
        delta = chunk.delta
        assert "role" not in delta
        self.texts[chunk.index] = self.texts.get(chunk.index, "") + delta.get("content", "")
        if chunk.finish_reason is not None:
            assert chunk.index not in self.finish, "a finish reason leaves once"
            self.finish[chunk.index] = chunk.finish_reason
        if chunk.index:
            return
        self.reasoning += delta.get("reasoning_content", "")
        self.refusal += delta.get("refusal", "")
        for call in delta.get("tool_calls", ()):
            if "id" in call:
                assert call["index"] == len(self.calls)
                assert call["type"] == "function"
                self.calls.append({"id": call["id"], "name": call["function"]["name"], "arguments": ""})
            self.calls[call["index"]]["arguments"] += call["function"]["arguments"]

    def whole(self, reply: Reply) -> Seen:
        self.usage = reply.usage
        for choice in reply.choices:
            message = dict(choice["message"])
            calls = [{**call, "index": n} for n, call in enumerate(message.pop("tool_calls", ()))]
            message["content"] = message["content"] or ""
            delta = {key: value for key, value in message.items() if key != "role"} | {"tool_calls": calls}
            self.chunk(Chunk(delta, choice["index"], choice["finish_reason"]))
        return self

    def key(self) -> Any:
        calls = [(call["name"], call["arguments"]) for call in self.calls]
        return self.texts, self.finish, self.reasoning, self.refusal, calls, self.usage, self.outcome


def pieces(body: bytes, mode: str) -> Iterable[bytes]:
    if mode == "whole":
        return [body]
    if mode == "bytes":
        return [body[n : n + 1] for n in range(len(body))]
    chance, out, at = random.Random(mode), [], 0
    while at < len(body):
        size = chance.randint(1, 90)
        out.append(body[at : at + size])
        at += size
    return out


def read(parts: Iterable[bytes]) -> tuple[Seen, ChatReader]:
    reader, seen = ChatReader("p"), Seen()
    for part in parts:
        for chunk in reader.feed(part):
            seen.chunk(chunk)
    for chunk in reader.end():
        seen.chunk(chunk)
    assert reader.done is (reader.failure is None)
    assert reader.feed(b"data: {}\n\n") == reader.end() == []
    seen.usage = reader.usage
    if reader.failure is not None:
        begun = any(seen.texts.values()) or seen.reasoning or seen.calls
        seen.outcome = "error_midstream" if begun else "error"
        if reader.failure.failure in (FailureClass.MALFORMED, FailureClass.TRANSPORT):
            seen.outcome = "malformed"
    return seen, reader


def accepted(expected: Any, field: str, value: Any) -> list[Any]:
    return [value, *(expected.get("accept") or {}).get(field, [])]


def compare(seen: Seen, expected: Any) -> None:
    assert seen.outcome in accepted(expected, "outcome", expected["outcome"])
    if expected["outcome"] != "ok":
        return
    text, finish = expected["text"], expected["finish_reason"]
    many = isinstance(text, list)
    assert ([seen.texts.get(n, "") for n in range(len(text))] if many else seen.texts.get(0, "")) in accepted(
        expected, "text", text
    )
    assert ([seen.finish[n] for n in range(len(text))] if many else seen.finish[0]) in accepted(
        expected, "finish_reason", finish
    )
    assert (seen.reasoning or None) in accepted(expected, "reasoning", expected["reasoning"])
    assert (seen.refusal or None) == expected["refusal"]
    wanted = [(call["name"], call["arguments"]) for call in expected["tool_calls"]]
    assert [(call["name"], json.loads(call["arguments"] or "{}")) for call in seen.calls] == wanted
    assert len({call["id"] for call in seen.calls}) == len(seen.calls)
    for field, value in (expected["usage"] or {}).items():
        if value is not None and field != "total":
            assert buckets(seen.usage)[field] in accepted(expected, "usage." + field, value), field


def buckets(usage: Usage | None) -> dict[str, int]:
    assert usage is not None
    return {
        "prompt": usage.prompt,
        "completion": usage.completion,
        "cached": usage.cache_read,
        "cache_write": usage.cache_write,
        "reasoning": usage.reasoning,
    }


@pytest.mark.parametrize("exchange", recorded("stream"))
def test_recorded_streams_in_every_cut(exchange: Any) -> None:  # R60, R64
    body = exchange["response"]["body"].encode()
    seen, _ = read(pieces(body, "whole"))
    compare(seen, exchange["expected"])
    modes = ["random:1"] if len(body) > 100_000 else ["bytes", "random:1"]
    for mode in modes:
        again, _ = read(pieces(body, mode))
        assert again.key() == seen.key()


@pytest.mark.parametrize("exchange", recorded("stream"))
def test_a_cut_stream_is_never_a_clean_end(exchange: Any) -> None:  # R63
    body = exchange["response"]["body"].encode()
    first_finish = min((n for n in (body.find(b'_reason":"'), body.find(b'_reason": "')) if n > 0), default=len(body))
    for cut in range(0, first_finish, max(1, first_finish // 12)):
        reader = ChatReader("p")
        reader.feed(body[:cut])
        reader.end()
        assert reader.failure is not None
        assert not reader.done


@pytest.mark.parametrize("exchange", recorded("chat"))
def test_recorded_whole_replies(exchange: Any) -> None:
    body = exchange["response"]["body"].encode()
    try:
        seen = Seen().whole(read_reply(body, "p"))
    except UpstreamError:
        seen = Seen()
        seen.outcome = "error"
    compare(seen, exchange["expected"])


@pytest.mark.parametrize("exchange", recorded("stream") + recorded("chat"))
def test_recorded_answers_through_the_face(exchange: Any) -> None:  # R62
    """Read, written for a client, and read again: the same to see; every chunk is what the SDK expects."""
    body = exchange["response"]["body"].encode()
    if exchange["expected"]["outcome"] != "ok":
        return
    if exchange["endpoint"] == "chat":
        reply = read_reply(body, "p")
        again = encode_reply(reply, ANSWER)
        value = json.loads(again)
        for choice in value["choices"]:
            choice["message"].pop("annotations", None)  # OpenRouter's of files: the SDK knows those of the web only
        ChatCompletion.model_validate(value, strict=True)
        assert Seen().whole(read_reply(again, "p")).key() == Seen().whole(reply).key()
        return
    seen, _ = read([body])
    written = rewrite([body], ANSWER)
    check_chunks(written)
    assert read([written])[0].key() == seen.key()


# ---- the face --------------------------------------------------------------------------------------------------------


def rewrite(parts: Iterable[bytes], answer: Answer) -> bytes:
    reader, writer = ChatReader("p"), ChatWriter(answer)
    out = b"".join(writer.write(reader.feed(part), reader) for part in parts)
    out += writer.write(reader.end(), reader)
    assert reader.failure is None
    return out + writer.end(reader)


def events(stream: bytes) -> list[Any]:
    blocks = stream.decode().split("\n\n")
    assert blocks[-1] == ""
    return [json.loads(block.removeprefix("data: ")) for block in blocks[:-1] if block != "data: [DONE]"]


def check_chunks(stream: bytes) -> list[Any]:
    """The rules of ACCEPT.md for the structure of a chat stream."""
    assert stream.endswith(b"data: [DONE]\n\n")
    assert stream.count(b"data: [DONE]") == 1
    chunks = events(stream)
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk, strict=True)
        assert chunk["object"] == "chat.completion.chunk"
    assert len({(chunk["id"], chunk["created"], chunk["model"]) for chunk in chunks}) == 1
    begun: set[int] = set()
    finished: set[int] = set()
    for choice in (choice for chunk in chunks for choice in chunk["choices"]):
        assert (choice["delta"].get("role") == "assistant") is (choice["index"] not in begun)
        begun.add(choice["index"])
        if choice["finish_reason"] is not None:
            assert choice["delta"] == {}
            assert choice["index"] not in finished
            finished.add(choice["index"])
    assert begun == finished != set()
    return chunks


def chunk_event(*choices: Any, **more: Any) -> bytes:
    value = {"id": "c-1", "object": "chat.completion.chunk", "created": 7, "model": "m", "choices": choices, **more}
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish: str | None = None, index: int = 0, **inner: Any) -> bytes:
    return chunk_event({"index": index, "delta": inner, "finish_reason": finish})


DONE = b"data: [DONE]\n\n"
STOP = delta("stop")


def test_the_frame_of_a_stream() -> None:
    body = delta(role="assistant", content="") + delta(content="Hé") + STOP
    body += chunk_event(usage={"prompt_tokens": 5, "completion_tokens": 2}, service_tier="flex") + DONE
    chunks = check_chunks(rewrite(pieces(body, "bytes"), ANSWER))
    assert [(c["id"], c["created"], c["model"]) for c in chunks[:1]] == [("chatcmpl-0123", 7, "m")]
    assert [[choice["delta"] for choice in chunk["choices"]] for chunk in chunks] == [
        [{"role": "assistant", "content": "Hé"}],
        [{}],
        [],
    ]
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None, None]
    assert chunks[-1]["usage"]["total_tokens"] == 7


def test_usage_is_only_for_those_who_asked() -> None:  # R68
    body = delta(content="x") + STOP + chunk_event(usage={"prompt_tokens": 5, "completion_tokens": 2}) + DONE
    chunks = check_chunks(rewrite([body], Answer("1", "m", 3, {})))
    assert len(chunks) == 2
    assert not any("usage" in chunk for chunk in chunks)


def test_choices_interleave_and_extensions_pass() -> None:
    writer, reader = ChatWriter(ANSWER), ChatReader("p")
    reader.extra["service_tier"] = "flex"
    blocks = [{"type": "thinking", "thinking": "t", "signature": "s"}]
    out = writer.write([Chunk({"reasoning_content": "t"}, 1), Chunk({"content": "a"})], reader)
    out += writer.write(
        [Chunk({"thinking_blocks": blocks}, 1), Chunk({}, 1, "stop", "end_turn", "###"), Chunk({}, 0, "length")], reader
    )
    chunks = check_chunks(out + writer.end(reader))
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": "", "reasoning_content": "t"}
    assert chunks[2]["choices"][0]["delta"] == {"thinking_blocks": blocks}
    finish = chunks[3]["choices"][0]
    assert (finish["native_finish_reason"], finish["stop_reason"]) == ("end_turn", "###")
    assert chunks[3]["service_tier"] == "flex"
    assert chunks[0]["model"] == "asked-for"


def test_a_stream_without_any_content_is_one_all_the_same() -> None:
    reader = ChatReader("p")
    chunks = check_chunks(ChatWriter(ANSWER).end(reader))
    assert [choice["finish_reason"] for chunk in chunks for choice in chunk["choices"]] == [None, "stop"]


def test_an_error_ends_a_stream_without_done() -> None:  # R12
    out = ChatWriter(ANSWER).error(MalformedReply("it broke"))
    assert json.loads(out.removeprefix(b"data: "))["error"]["message"] == "it broke"
    assert b"DONE" not in out


def test_a_whole_answer_keeps_what_belongs_to_it() -> None:
    reply = Reply(
        [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "x", "reasoning_content": "r"},
                "finish_reason": "stop",
                "native_finish_reason": "end_turn",
                "stop_sequence": "###",
            }
        ],
        extra={"citations": ["u"], "id": "not this"},
        usage=Usage(1, 2, 3, 4, 5, "provider"),
    )
    body = json.loads(encode_reply(reply, ANSWER))
    assert (body["id"], body["created"], body["model"]) == ("chatcmpl-0123", ANSWER.created, "asked-for")
    assert body["citations"] == ["u"]
    assert body["choices"][0]["native_finish_reason"] == "end_turn"
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": 5}


# ---- tool calls ------------------------------------------------------------------------------------------------------


def tool(id: Any, name: Any, arguments: Any, **more: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}, **more}


TWO = [("f", '{"a":1}'), ("g", '{"b":2}')]


@pytest.mark.parametrize(
    "deltas",
    [
        pytest.param([[tool("1", "f", '{"a":1}', index=0), tool("2", "g", '{"b":2}', index=1)]], id="whole"),
        pytest.param([[tool("1", "f", '{"a":1}')], [tool("2", "g", '{"b":2}')]], id="no index (Mistral)"),
        pytest.param([[tool("1", "f", '{"a":1}', index=0)], [tool("2", "g", '{"b":2}', index=0)]], id="one index"),
        pytest.param([[tool(None, "f", '{"a":1}'), tool(None, "g", '{"b":2}')]], id="no index, no id"),
        pytest.param([[tool("1", "f", {"a": 1}, index=0), tool("2", "g", {"b": 2}, index=1)]], id="objects"),
        pytest.param([[tool("1", "f", '{"a":1}', index=5)], [tool("2", "g", '{"b":2}', index=9)]], id="gaps"),
        pytest.param(
            [
                [tool("1", "f", "", index=0)],
                [tool("2", "g", '{"b"', index=1)],
                [{"index": 0, "function": {"arguments": '{"a":1}'}}],
                [{"index": 1, "function": {"arguments": ":2}"}}],
            ],
            id="interleaved",
        ),
        pytest.param(
            [
                [tool("1", "f", '{"a"', index=0)],
                [tool("1", "f", ":1}", index=0)],
                [tool("2", "g", '{"b":2}', index=1)],
            ],
            id="id and name repeated",
        ),
        pytest.param(
            [
                [{"index": 0, "id": "1", "function": {"arguments": '{"a"'}}],
                [{"index": 0, "function": {"name": "f", "arguments": ":1}"}}],
                [None, 7, tool("2", "g", '{"b":2}', index=1)],
            ],
            id="the name comes late",
        ),
    ],
)
def test_tool_calls_in_every_form(deltas: list[Any]) -> None:  # R60
    body = b"".join(delta(tool_calls=calls) for calls in deltas) + delta("tool_calls") + DONE
    for mode in ("whole", "bytes"):
        seen, _ = read(pieces(body, mode))
        assert [(call["name"], call["arguments"]) for call in seen.calls] == TWO
        assert seen.finish == {0: "tool_calls"}


def test_a_legacy_function_call_is_a_tool_call() -> None:
    body = delta(function_call={"name": "f", "arguments": '{"a"'}) + delta(function_call={"arguments": ":1}"})
    seen, _ = read([body + delta("function_call") + DONE])
    assert [(call["name"], call["arguments"]) for call in seen.calls] == TWO[:1]
    assert seen.finish == {0: "tool_calls"}
    message = {"content": None, "function_call": {"name": "f", "arguments": {"a": 1}}}
    reply = read_reply(json.dumps({"choices": [{"message": message, "finish_reason": "function_call"}]}).encode(), "p")
    assert reply.choices[0]["finish_reason"] == "tool_calls"
    assert reply.choices[0]["message"]["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"a":1}'}


def test_a_forced_tool_call_ends_with_tool_calls() -> None:  # PROTOCOLS.md 1.3
    seen, _ = read([delta(tool_calls=[tool("1", "f", "{}", index=0)]) + STOP + DONE])
    assert seen.finish == {0: "tool_calls"}
    seen, _ = read([delta(tool_calls=[tool("1", "f", "{", index=0)]) + delta("length") + DONE])
    assert seen.finish == {0: "length"}


def test_a_mad_provider_does_not_fill_the_memory() -> None:
    calls = [tool(str(n), "f", "{}", index=n) for n in range(MAX_CALLS + 1)]
    assert isinstance(read([delta(tool_calls=calls)])[1].failure, MalformedReply)
    assert isinstance(read([delta(content="x", index=MAX_CHOICES)])[1].failure, MalformedReply)
    reader = ChatReader("p", max_event=100)
    reader.feed(b"data: " + b"x" * 200)
    assert isinstance(reader.failure, MalformedReply)


# ---- other quirks ----------------------------------------------------------------------------------------------------


def test_reasoning_under_any_name_and_once() -> None:
    signed = [{"type": "reasoning.text", "text": "b", "format": "anthropic-claude-v1"}]
    seal = [{"type": "reasoning.text", "signature": "S", "format": "anthropic-claude-v1"}]
    secret = [{"type": "reasoning.encrypted", "data": "D", "format": "anthropic-claude-v1"}]
    thinking = [{"type": "thinking", "thinking": [{"type": "text", "text": "d"}]}, {"type": "text", "text": "x"}]
    body = delta(reasoning="a", reasoning_content="a") + delta(reasoning="b", reasoning_details=signed)
    body += delta(reasoning_details=seal) + delta(reasoning_details=secret) + delta(content=thinking) + STOP + DONE
    seen, _ = read(pieces(body, "random:2"))
    assert (seen.reasoning, seen.texts[0]) == ("abd", "x")
    found = [block for chunk in ChatReader("p").feed(body) for block in chunk.delta.get("thinking_blocks", ())]
    assert found == [
        {"type": "thinking", "thinking": "b", "signature": "S"},
        {"type": "redacted_thinking", "data": "D"},
    ]


def test_lifecycle_chunks_are_no_content() -> None:  # R9
    reader = ChatReader("p")
    azure = b'data: {"choices":[],"created":0,"id":"","model":"","object":"","prompt_filter_results":[{}]}\n\n'
    chunks = reader.feed(azure + delta(role="assistant", content="", refusal=None) + delta(role="assistant"))
    assert not any(has_content(chunk) for chunk in chunks)
    assert (reader.id, reader.model, reader.created) == ("c-1", "m", 7)


def test_the_last_usage_counts_wherever_it_stands() -> None:  # R67
    one, two = ({"prompt_tokens": 9, "completion_tokens": n} for n in (1, 2))
    body = chunk_event({"index": 0, "delta": {"content": "x"}}, usage=one) + STOP
    _, reader = read([body + chunk_event(x_groq={"id": "r", "usage": two}) + chunk_event(usage=None) + DONE])
    assert reader.usage == Usage(9, 0, 0, 2, 0, "provider")


ERROR = {"message": "it broke", "code": 503}


@pytest.mark.parametrize(
    "event",
    [
        b"data: " + json.dumps({"error": ERROR}).encode() + b"\n\n",
        b"event: error\ndata: " + json.dumps(ERROR).encode() + b"\n\n",
        b"error: " + json.dumps({"error": ERROR}).encode() + b"\n\n",
        chunk_event(error=ERROR),
        chunk_event({"index": 0, "delta": {"content": ""}, "finish_reason": "error", "error": ERROR}),
        json.dumps({"error": ERROR}, indent=2).encode() + b"\n\n",
        b"data: " + json.dumps({"object": "error", **ERROR}).encode() + b"\n\n",
        b"data: " + json.dumps([{"error": ERROR}]).encode() + b"\n\n",
    ],
)
def test_errors_in_every_form(event: bytes) -> None:  # R15, PROTOCOLS.md 1.6
    for body in (event, delta(content="x") + event + DONE):
        for mode in ("whole", "bytes"):
            seen, reader = read(pieces(body, mode))
            assert reader.failure is not None
            assert reader.failure.message == "it broke"
            assert reader.failure.failure is FailureClass.OVERLOADED
            assert seen.finish == {}


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "upstream_incomplete"),
        (DONE, "upstream_incomplete"),
        (delta(content="x"), "upstream_incomplete"),
        (STOP + delta(content="x", index=1), "upstream_incomplete"),
        (b"data: {oops}\n\n", "upstream_malformed_response"),
        (b"data: 7\n\n", "upstream_malformed_response"),
        (b"<html>\n\n", "upstream_malformed_response"),
    ],
)
def test_what_is_no_whole_stream_fails(body: bytes, code: str) -> None:  # R63, R66
    assert read([body])[1].failure.code == code  # type: ignore[union-attr]


@pytest.mark.parametrize("end", [STOP, STOP[:-2], STOP + DONE, STOP + b"data: [DONE]", DONE])
def test_good_ends(end: bytes) -> None:
    seen, reader = read([delta(content="x") + b"data:\n\n: ping\n\n" + end])
    assert (reader.done, seen.texts, seen.finish) == (True, {0: "x"}, {0: "stop"})


def test_a_whole_reply_where_a_stream_was_asked_for() -> None:
    body = {"id": "r", "model": "m", "choices": [{"index": 0, "message": {"content": "x"}, "finish_reason": "stop"}]}
    for text in (json.dumps(body), json.dumps(body, indent=1)):
        seen, reader = read(pieces(text.encode(), "bytes"))
        assert (reader.done, seen.texts, reader.model) == (True, {0: "x"}, "m")


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"7", b"[]", b'{"choices":[]}', b'{"choices":null}', b'{"choices":[7]}', b'{"data":[]}'],
)
def test_what_is_no_reply_is_malformed(body: bytes) -> None:  # R66
    with pytest.raises(MalformedReply):
        read_reply(body, "p")


def test_an_error_under_200() -> None:
    for body in ({"error": ERROR, "choices": []}, [{"error": ERROR}], {"choices": [{"error": ERROR}]}):
        with pytest.raises(UpstreamError, match="it broke"):
            read_reply(json.dumps(body).encode(), "p")


def test_what_is_nested_too_deep_to_be_written() -> None:  # R66: the decoder takes more levels than the encoder
    deep: Any = 1
    for _ in range(400):
        deep = [deep]
    call = tool("1", "f", deep)
    assert read([delta(tool_calls=[call])])[1].failure.code == "upstream_malformed_response"  # type: ignore[union-attr]
    with pytest.raises(MalformedReply):
        read_reply(json.dumps({"choices": [{"message": {"tool_calls": [call]}}]}).encode(), "p")
    choice = {"index": 0, "delta": {"content": "x", "annotations": deep}, "logprobs": {"a": deep}}
    check_chunks(rewrite([chunk_event(choice, citations=deep) + STOP + DONE], ANSWER))
    message = {"content": "x", "annotations": deep}
    reply = read_reply(
        json.dumps({"choices": [{"message": message, "logprobs": {"a": deep}}], "z": deep}).encode(), "p"
    )
    assert b"[[" not in encode_reply(reply, ANSWER)


# ---- anything at all -------------------------------------------------------------------------------------------------

KEYS = """index id delta message content text type function name arguments tool_calls finish_reason usage error
reasoning reasoning_details thinking refusal logprobs choices model created stop_reason format"""
junk = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 3000) | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted(set(KEYS.split()))), inner, max_size=5)
    ),
    max_leaves=12,
)


@fuzz
@given(st.lists(junk, max_size=4), st.dictionaries(st.sampled_from(["delta", "message", "index"]), junk))
def test_nothing_a_provider_sends_raises(values: list[Any], choice: dict[str, Any]) -> None:  # R61, R66
    stream = b"".join(b"data: " + json.dumps(value).encode() + b"\n\n" for value in values)
    for body in (stream, stream + chunk_event(choice, *values), delta(content="x", tool_calls=values)):
        rewrite_or_fail(body)
    for value in (*values, {"choices": [choice, *values], "usage": values}):
        with contextlib.suppress(UpstreamError):
            encode_reply(read_reply(json.dumps(value).encode(), "p"), ANSWER)


def rewrite_or_fail(body: bytes) -> None:
    reader, writer = ChatReader("p"), ChatWriter(ANSWER)
    out = writer.write(reader.feed(body), reader) + writer.write(reader.end(), reader)
    assert reader.done is (reader.failure is None)
    if reader.done:
        check_shape(out + writer.end(reader))


def check_shape(stream: bytes) -> None:
    assert len({chunk["id"] for chunk in events(stream)}) == 1
    assert stream.endswith(DONE)


@fuzz
@given(
    st.lists(st.tuples(st.sampled_from(["content", "reasoning_content", "refusal"]), st.text(min_size=1)), min_size=1),
    st.lists(st.tuples(st.text(min_size=1), st.text()), max_size=3),
    st.sampled_from(["stop", "length", "content_filter"]),
    st.randoms(use_true_random=False),
)
def test_what_is_written_is_read(
    texts: list[tuple[str, str]], calls: list[tuple[str, str]], finish: str, chance: random.Random
) -> None:  # round trip, R64
    chunks = [Chunk({kind: text}) for kind, text in texts]
    for n, (name, arguments) in enumerate(calls):
        half = len(arguments) // 2
        chunks.append(Chunk({"tool_calls": [tool(f"id{n}", name, arguments[:half], index=n)]}))
        chunks.append(Chunk({"tool_calls": [{"index": n, "function": {"arguments": arguments[half:]}}]}))
    chunks.append(Chunk({}, 0, finish))
    source, writer, wanted = ChatReader("p"), ChatWriter(ANSWER), Seen()
    source.usage = wanted.usage = Usage(3, 1, 0, 2, 1, "provider")
    for chunk in chunks:
        wanted.chunk(chunk)
    if calls and finish == "stop":
        wanted.finish[0] = "tool_calls"
    stream = writer.write(chunks, source) + writer.end(source)
    cut = chance.randint(0, len(stream))
    assert read([stream[:cut], stream[cut:]])[0].key() == wanted.key()
