"""Anthropic's streams as canonical chunks: fed whole, event by event, byte by byte, cut at random and cut short
(R64); the recorded exchanges of the shared corpus against what they expect. Rules: R9, R15, R61, R63, R67;
PROTOCOLS.md 1.6, 2.3, 5."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import MalformedReply, TransportError, UpstreamError
from slipstream.providers.anthropic import TYPE
from slipstream.types import FailureClass, Secret
from slipstream.wire.anthropic.reader import MAX_CITATIONS, MAX_OPEN_BLOCKS, AnthropicReader
from slipstream.wire.anthropic.reply import read_reply
from slipstream.wire.canonical import Chunk, Json
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


# ====================================================================== streams


def event(kind: str, **fields: Any) -> bytes:
    return f"event: {kind}\ndata: ".encode() + json.dumps({"type": kind, **fields}).encode() + b"\n\n"


def start(**more: Any) -> bytes:
    fields = {"id": "msg_1", "model": "claude-x", "usage": {"input_tokens": 9, "output_tokens": 1}, "content": []}
    return event("message_start", message=fields | more)


def opened(index: int, **block: Any) -> bytes:
    return event("content_block_start", index=index, content_block=block)


def delta(index: int, kind: str, **fields: Any) -> bytes:
    return event("content_block_delta", index=index, delta={"type": kind, **fields})


def closed(index: int) -> bytes:
    return event("content_block_stop", index=index)


def text(index: int, *pieces: str) -> bytes:
    deltas = (delta(index, "text_delta", text=piece) for piece in pieces)
    return b"".join([opened(index, type="text", text=""), *deltas, closed(index)])


def ended(reason: Any = "end_turn", **usage: Any) -> bytes:
    last = event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)
    return last + event("message_stop")


PING = event("ping")


class Seen:
    """What a client would have put together from the chunks."""

    def __init__(self, pieces: Iterable[bytes], *, end: bool = True) -> None:
        self.reader = AnthropicReader("p")
        self.chunks: list[Chunk] = []
        for piece in pieces:
            self.chunks += self.reader.feed(piece)
        if end:
            self.chunks += self.reader.end()
        self.text = self.reasoning = ""
        self.calls: list[Json] = []
        self.thinking: list[Json] = []
        self.notes: list[Json] = []
        self.finish: Chunk | None = None
        for chunk in self.chunks:
            self._take(chunk)
        self.failure = self.reader.failure
        self.usage = self.reader.usage

    def _take(self, chunk: Chunk) -> None:
        assert self.finish is None, "nothing comes after the finish reason"
        assert chunk.index == 0
        assert set(chunk.delta) <= {"content", "reasoning_content", "thinking_blocks", "tool_calls", "annotations"}
        self.text += chunk.delta.get("content", "")
        self.reasoning += chunk.delta.get("reasoning_content", "")
        self.thinking += chunk.delta.get("thinking_blocks", [])
        self.notes += chunk.delta.get("annotations", [])
        for piece in chunk.delta.get("tool_calls", ()):
            if piece["index"] == len(self.calls):
                assert piece["id"]
                assert piece["type"] == "function"
                self.calls.append({"id": piece["id"], "name": piece["function"]["name"], "arguments": ""})
            self.calls[piece["index"]]["arguments"] += piece["function"]["arguments"]
        if chunk.finish_reason is not None:
            self.finish = chunk

    def all(self) -> tuple[Any, ...]:
        finish = self.finish
        ending = None if finish is None else (finish.finish_reason, finish.native_finish, finish.stop_sequence)
        failure = None if self.failure is None else (type(self.failure), self.failure.code, self.failure.message)
        reader = self.reader
        said = (self.text, self.reasoning, self.calls, self.thinking, self.notes)
        return (*said, ending, failure, self.usage, reader.id, reader.model, reader.extra, reader.done)


def cuts(stream: bytes, seed: int = 7) -> list[bytes]:
    rng = random.Random(seed)
    out, at = [], 0
    while at < len(stream):
        size = rng.choice((1, 2, 3, 17, 80, 400))
        out.append(stream[at : at + size])
        at += size
    return out


def ways(stream: bytes) -> list[list[bytes]]:
    by_event = [part + b"\n\n" for part in stream.split(b"\n\n")]
    by_byte = [stream[n : n + 1] for n in range(len(stream))]
    return [[stream], by_event, by_byte, cuts(stream), cuts(stream, 8)]


def seen(*events: bytes) -> Seen:
    """A stream, read the same in every way of cutting it (R64)."""
    stream = b"".join(events)
    first, *others = (Seen(way) for way in ways(stream))
    for other in others:
        assert other.all() == first.all()
    return first


def test_a_stream() -> None:
    s = seen(
        start(usage={"input_tokens": 9, "cache_read_input_tokens": 4, "output_tokens": 1, "service_tier": "priority"}),
        PING,
        opened(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="H"),
        delta(0, "thinking_delta", thinking="m"),
        delta(0, "signature_delta", signature="s"),
        closed(0),
        opened(1, type="redacted_thinking", data="d"),
        closed(1),
        text(2, "Hel", "", "lo ü\U0001f600"),
        opened(3, type="tool_use", id="toolu_1", name="f", input={}),
        delta(3, "input_json_delta", partial_json=""),
        delta(3, "input_json_delta", partial_json='{"a"'),
        delta(3, "input_json_delta", partial_json=":1}"),
        closed(3),
        opened(4, type="tool_use", id="toolu_2", name="g", input={}),
        PING,
        closed(4),
        ended("tool_use", output_tokens=33),
    )
    assert s.text == "Hello ü\U0001f600"
    assert s.reasoning == "Hm"
    assert s.thinking == [
        {"type": "thinking", "thinking": "Hm", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
    ]
    assert s.calls == [
        {"id": "toolu_1", "name": "f", "arguments": '{"a":1}'},
        {"id": "toolu_2", "name": "g", "arguments": "{}"},
    ]
    assert s.finish is not None
    assert (s.finish.finish_reason, s.finish.native_finish) == ("tool_calls", "tool_use")
    assert s.usage == Usage(9, 4, 0, 33, 0, "provider")
    assert (s.reader.id, s.reader.model, s.reader.done) == ("msg_1", "claude-x", True)
    assert s.reader.extra == {"service_tier": "priority"}


def test_lifecycle_events_give_no_chunk() -> None:
    """R9: they must not commit the answer."""
    reader = AnthropicReader("p")
    assert reader.feed(start() + PING + opened(0, type="text", text="")) == []
    assert reader.usage == Usage(9, 0, 0, 1, 0, "provider")
    assert reader.feed(event("error", error={"type": "overloaded_error", "message": "Overloaded"})) == []
    assert reader.failure is not None
    assert reader.failure.failure is FailureClass.OVERLOADED


def test_blanks_unknown_events_and_missing_event_lines() -> None:
    """PROTOCOLS.md 2.3: random blanks before the last brace; unknown types occur; proxies leave lines out."""
    odd = b'data:{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"x"}    }\r\n\r\n'
    s = seen(
        b"\xef\xbb\xbf: hello\n\n",
        start(),
        opened(0, type="text", text="("),
        odd,
        b": keep-alive\n\n",
        event("vendor_event", payload=[1]),
        delta(0, "compaction_delta", content="?"),
        delta(0, "text_delta", text=")"),
        b"data: null\n\ndata: [1]\n\ndata:\n\nevent: ping\n\n",
        closed(0),
        b'event: message_delta\ndata: {"delta":{"stop_reason":"stop_sequence","stop_sequence":"END"}}\n\n',
        b"event: message_stop\ndata: {}\n\ndata: [DONE]\n\n",
    )
    assert s.text == "(x)"
    assert s.finish is not None
    assert (s.finish.finish_reason, s.finish.native_finish, s.finish.stop_sequence) == ("stop", "stop_sequence", "END")
    assert s.reader.done
    assert s.failure is None


def test_half_a_surrogate_pair_is_text() -> None:
    """A provider may cut a character's escape between two deltas (``codec.loads``)."""
    halves = b"".join(
        b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"%b"}}\n\n' % half
        for half in (rb"\ud83d", rb"\ude00")
    )
    s = seen(start(), opened(0, type="text", text=""), halves, closed(0), ended())
    assert s.text == "\ud83d\ude00"
    assert s.failure is None


def test_a_last_event_without_its_blank_line() -> None:
    """PROTOCOLS.md 5, #d-no-final-newline."""
    stream = start() + text(0, "x") + ended()
    assert Seen([stream.rstrip(b"\n")]).reader.done


def test_nothing_is_read_after_the_end() -> None:
    s = seen(start(), text(0, "x"), ended(), text(1, "more"), event("error", error={"type": "api_error"}))
    assert s.text == "x"
    assert s.failure is None
    assert s.reader.feed(b"data: {") == []
    assert s.reader.end() == []


def test_server_tools_are_the_providers_own_business() -> None:
    """#4f629f4f: no calls of theirs reach the client; its text and its own calls do."""
    s = seen(
        start(),
        text(0, "Let me see."),
        opened(1, type="server_tool_use", id="srv", name="web_search", input={}),
        delta(1, "input_json_delta", partial_json='{"q":1}'),
        closed(1),
        opened(2, type="web_search_tool_result", tool_use_id="srv", content=[{"type": "web_search_result"}]),
        closed(2),
        opened(3, type="tool_use", id="toolu_1", name="f", input={"whole": True}),
        closed(3),
        ended("tool_use", input_tokens=1595, output_tokens=143),
    )
    assert s.text == "Let me see."
    assert s.calls == [{"id": "toolu_1", "name": "f", "arguments": '{"whole":true}'}]
    assert s.usage == Usage(1595, 0, 0, 143, 0, "provider")


def test_citations_of_web_pages_span_their_text() -> None:
    citation = {"type": "web_search_result_location", "url": "https://x/y", "title": "T", "cited_text": "c"}
    document = {"type": "char_location", "cited_text": "c", "document_index": 0}
    s = seen(
        start(),
        text(0, "Ab"),
        opened(1, type="text", text="", citations=[]),
        delta(1, "citations_delta", citation=citation),
        delta(1, "citations_delta", citation=document),
        delta(1, "text_delta", text="cde"),
        closed(1),
        ended(),
    )
    assert s.notes == [
        {"type": "url_citation", "url_citation": {"url": "https://x/y", "title": "T", "start_index": 2, "end_index": 5}}
    ]


def test_a_refusal_in_a_stream() -> None:
    """#efd5e83f."""
    details = {"type": "refusal", "category": "cyber"}
    last = event("message_delta", delta={"stop_reason": "refusal", "stop_details": details}, usage={"output_tokens": 5})
    s = seen(start(), last, event("message_stop"))
    assert s.text == ""
    assert s.finish is not None
    assert s.finish.finish_reason == "content_filter"
    assert s.reader.extra == {"stop_details": details}


def test_thinking_without_a_signature_makes_no_block() -> None:
    """What Ollama sends: it must not go back to Anthropic, which would refuse it."""
    s = seen(start(), opened(0, type="thinking", thinking="Hm"), closed(0), text(1, "x"), ended())
    assert s.reasoning == "Hm"
    assert s.thinking == []


def test_hidden_thinking_keeps_its_signature() -> None:
    """#fa07f92b: ``display: omitted`` gives empty thinking with a signature, which the next turn needs."""
    hidden = opened(0, type="thinking", thinking="") + delta(0, "signature_delta", signature="s") + closed(0)
    s = seen(start(), hidden, text(1, "x"), ended())
    assert s.thinking == [{"type": "thinking", "thinking": "", "signature": "s"}]


def test_what_a_message_start_already_holds() -> None:
    use = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    s = seen(start(content=[{"type": "text", "text": "Hi"}, use, 5], stop_reason="tool_use"), event("message_stop"))
    assert s.text == "Hi"
    assert s.calls == [{"id": "t", "name": "f", "arguments": '{"a":1}'}]
    assert s.finish is not None
    assert s.finish.finish_reason == "tool_calls"


# ---------------------------------------------------------------------- streams that end badly


def test_every_prefix_of_a_stream_is_incomplete() -> None:
    """R63: only message_stop ends a stream well, also when the finish reason has come before it."""
    stream = start() + text(0, "Hel", "lo") + ended(output_tokens=3)
    assert Seen([stream]).reader.done
    full = Seen([stream]).text
    for size in range(len(stream) - len(b"\n\n") - 1):
        s = Seen([stream[:size]])
        assert isinstance(s.failure, TransportError)
        assert s.failure.code == "upstream_incomplete"
        assert s.finish is None
        assert full.startswith(s.text)


@pytest.mark.parametrize(
    "restart",
    [start(id="msg_2"), opened(0, type="thinking", thinking="Hm") + start(id="msg_2")],
)
def test_a_stream_may_begin_again_while_nothing_was_said(restart: bytes) -> None:
    s = seen(start(usage={"input_tokens": 1, "output_tokens": 1}), PING, restart, text(0, "x"), ended(output_tokens=4))
    assert s.text == "x"
    assert s.reader.id == "msg_2"
    assert s.usage == Usage(9, 0, 0, 4, 0, "provider")
    assert s.failure is None


@pytest.mark.parametrize("said", [text(0, "Hel"), opened(0, type="tool_use", id="t", name="f", input={})])
def test_a_stream_that_begins_again_later_is_a_failure(said: bytes) -> None:
    """What went out cannot be taken back: a doubled answer must not look whole."""
    s = seen(start(), said, start(id="msg_2"), text(0, "Hello"), ended())
    assert isinstance(s.failure, MalformedReply)
    assert s.finish is None
    assert not s.reader.done


def test_an_error_in_the_middle() -> None:
    """R15; PROTOCOLS.md 1.6."""
    error = {"details": None, "type": "overloaded_error", "message": "Overloaded"}
    s = seen(start(), text(0, "Hel"), event("error", error=error, request_id="req_1"), text(1, "lo"), ended())
    assert s.text == "Hel"
    assert s.failure is not None
    assert (s.failure.failure, s.failure.status, s.failure.message) == (FailureClass.OVERLOADED, 529, "Overloaded")
    assert s.finish is None


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (b'{"type":"error","error":{"type":"rate_limit_error","message":"Slow"}}', FailureClass.RATE_LIMITED),
        (b'{\n  "type": "error",\n  "error": {"type": "api_error", "message": "m"}\n}\n', FailureClass.SERVER),
        (b'error: {"error":{"type":"overloaded_error","message":"m"}}\n\n', FailureClass.OVERLOADED),
        (b"<html><body>Bad gateway</body></html>", FailureClass.MALFORMED),
        (b'{"type":"message","content":[]}', FailureClass.MALFORMED),
        (b"data: {nonsense\n\n", FailureClass.MALFORMED),
        (b"", FailureClass.TRANSPORT),
        (b"data: \xff\xfe\n\n", FailureClass.MALFORMED),
    ],
)
def test_bodies_that_are_no_stream(body: bytes, failure: FailureClass) -> None:
    """PROTOCOLS.md 5: a stream may answer with plain JSON under 200."""
    s = seen(body)
    assert s.failure is not None
    assert s.failure.failure is failure
    assert s.chunks == []


def test_an_event_beyond_the_limit_is_a_failure() -> None:
    reader = AnthropicReader("p", max_event=1000)
    reader.feed(start())
    for _ in range(20):
        reader.feed(b'data: {"type":"' + b"x" * 100 if _ == 0 else b"x" * 100)
    assert isinstance(reader.failure, MalformedReply)
    other = AnthropicReader("p", max_event=1000)
    other.feed(b"data: " + b"x" * 900)
    other.feed(b"x" * 50)
    assert other.end() == []
    assert other.failure is not None


def test_nothing_grows_without_bound() -> None:
    reader = AnthropicReader("p")
    for n in range(MAX_OPEN_BLOCKS + 1):
        assert reader.failure is None
        reader.feed(opened(n, type="text", text=""))
    assert isinstance(reader.failure, MalformedReply)
    citation = {"url": "https://x", "title": ""}
    many = seen(
        start(), opened(0, type="text", text="", citations=[citation] * (MAX_CITATIONS + 5)), closed(0), ended()
    )
    assert len(many.notes) == MAX_CITATIONS


odd_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 3) | st.floats(allow_nan=False) | st.sampled_from(["", "x", "text"]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["type", "text", "a"]), inner, max_size=3)
    ),
    max_leaves=4,
)
kinds = st.sampled_from(
    [
        *("message_start", "content_block_start", "content_block_delta", "content_block_stop", "message_delta"),
        *("message_stop", "ping", "error", "nothing", None, 5),
    ]
)
fields = st.dictionaries(
    st.sampled_from(["index", "delta", "content_block", "message", "usage", "error"]),
    odd_values
    | st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["text", "thinking", "tool_use", "text_delta", "thinking_delta", "input_json_delta", "signature_delta"]
            )
        },
        optional=dict.fromkeys(
            ("text", "thinking", "signature", "input", "partial_json", "id", "name", "citations", "content"), odd_values
        ),
    ),
    max_size=4,
)


@given(events=st.lists(st.tuples(kinds, fields), max_size=8))
@fuzz
def test_odd_events_never_raise(events: list[tuple[Any, Json]]) -> None:
    """R61: empty, null, missing and wrong-typed fields."""
    stream = b"".join(b"data: " + json.dumps({"type": kind, **f}).encode() + b"\n\n" for kind, f in events)
    s = Seen([stream])
    assert s.reader.done != (s.failure is not None)
    again = Seen(cuts(stream))
    assert (again.text, again.reasoning, len(again.calls)) == (s.text, s.reasoning, len(s.calls))


@given(
    pieces=st.lists(st.text(st.characters(codec="utf-8"), max_size=9), max_size=6), odd=st.lists(odd_values, max_size=3)
)
@fuzz
def test_text_is_the_same_with_odd_deltas_between(pieces: list[str], odd: list[Any]) -> None:
    """R61: concatenated text identical."""
    noise = [delta(0, "text_delta", text=value) for value in odd if not isinstance(value, str)]
    body = [delta(0, "text_delta", text=piece) for piece in pieces]
    mixed = [part for pair in zip(body, noise + [b""] * len(body), strict=False) for part in pair]
    s = Seen([start(), opened(0, type="text", text=""), *mixed, closed(0), ended()])
    assert s.text == "".join(pieces)
    assert s.reader.done


@given(data=st.binary(max_size=300))
@fuzz
def test_garbage_never_raises(data: bytes) -> None:
    for stream in (data, start() + data):
        reader = AnthropicReader("p")
        reader.feed(stream)
        reader.end()
        assert reader.failure is not None
    with pytest.raises(UpstreamError):
        read_reply(data, "p")


# ====================================================================== recorded exchanges

DEV = SHARED / "wire" / "dev"


def recorded(*apis: str) -> list[Any]:
    if not DEV.is_dir():
        return [
            pytest.param(None, marks=pytest.mark.skip(reason="the shared folder with recorded exchanges is absent"))
        ]
    names = [name for api in apis for name in sorted(DEV.glob(f"{api}.*.json"))]
    return [pytest.param(json.loads(name.read_text()), id=name.stem) for name in names]


def allowed(expected: Json, field: str) -> list[Any]:
    """What a field may be: expected.accept widens it (ACCEPT.md)."""
    return [expected.get(field), *expected.get("accept", {}).get(field, [])]


def in_openai_terms(usage: Usage | None) -> Json | None:
    if usage is None:
        return None
    return {
        "prompt": usage.prompt,
        "completion": usage.completion,
        "total": usage.prompt + usage.completion,
        "cached": usage.cache_read,
        "cache_write": usage.cache_write,
        "reasoning": usage.reasoning,
    }


def check_usage(usage: Usage | None, expected: Json) -> None:
    wanted = expected["usage"]
    found = in_openai_terms(usage)
    if wanted is None or found is None:
        assert found == wanted
        return
    for name, value in wanted.items():
        assert found[name] in (value or 0, *expected.get("accept", {}).get(f"usage.{name}", []))


def calls_of(calls: Iterable[Json]) -> list[Json]:
    return [{"name": c["name"], "arguments": json.loads(c["arguments"]), "id": c["id"]} for c in calls]


def bare(calls: list[Json]) -> list[Json]:
    return [{"name": c["name"], "arguments": c["arguments"]} for c in calls]


def squeeze(value: str | None) -> str:
    return "".join((value or "").split())


def check_answer(found: tuple[str, str, list[Json], str, str | None], expected: Json) -> None:
    said, reasoning, calls, finish, native = found
    assert said in allowed(expected, "text")
    assert squeeze(reasoning) in map(squeeze, allowed(expected, "reasoning"))
    assert finish in allowed(expected, "finish_reason")
    assert native == expected["native_finish_reason"]
    if not expected.get("lenient"):
        assert bare(calls) in map(bare, allowed(expected, "tool_calls"))
        assert len({c["id"] for c in calls}) == len(calls)


@pytest.mark.parametrize("exchange", recorded("anthropic.messages", "ollama.messages"))
def test_recorded_messages(exchange: Json) -> None:
    """Every exchange, its stream in every way of cutting it, against what the corpus expects."""
    expected, response = exchange["expected"], exchange["response"]
    body = response["body"].encode()
    if response["status"] >= 400:
        error = TYPE.error(response["status"], {}, body, spec(), expected["error"].get("retry_after_s"))
        assert error.upstream_status == response["status"]
        if response["status"] != 401:  # R56: our credentials are not the client's business
            assert error.message == json.loads(body)["error"]["message"]
            assert error.type == json.loads(body)["error"]["type"]
        return
    if exchange["endpoint"] == "chat":
        found = TYPE.reply(body, {}, spec())
        choice = found.choices[0]
        m = choice["message"]
        calls = calls_of({**c["function"], "id": c["id"]} for c in m.get("tool_calls", ()))
        said = (m["content"] or "", m.get("reasoning_content", ""))
        check_answer((*said, calls, choice["finish_reason"], choice.get("native_finish_reason")), expected)
        check_usage(found.usage, expected)
        return
    for way in ways(body):
        s = Seen(way)
        assert s.all() == Seen([body]).all()
        check_stream(s, expected)


def check_stream(s: Seen, expected: Json) -> None:
    outcome = "ok" if s.reader.done else "incomplete" if isinstance(s.failure, TransportError) else "error_midstream"
    assert outcome in allowed(expected, "outcome")
    assert s.reader.done != (s.failure is not None)
    if outcome != "ok":
        assert (expected["text"] or "").startswith(s.text)
        assert s.finish is None
        return
    assert s.finish is not None
    assert s.finish.finish_reason is not None
    found = (s.text, s.reasoning, calls_of(s.calls), s.finish.finish_reason, s.finish.native_finish)
    check_answer(found, expected)
    check_usage(s.usage, expected)
