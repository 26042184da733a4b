"""Most requests and answers are text and nothing else, and have a short way through ``wire``: it must lead to the same.

The long way is taken by whatever has one field more, so that is what the short one is compared with (R59, R61, R66).
"""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slipstream.errors import MalformedReply, UpstreamError
from slipstream.wire.anthropic import reply as anthropic_reply
from slipstream.wire.anthropic.request import build_body, options_for
from slipstream.wire.codec import dumps
from slipstream.wire.gemini.reader import GeminiReader
from slipstream.wire.gemini.request import build_body as build_gemini
from slipstream.wire.usage import Usage

Json = dict[str, Any]
TEXTS = st.text(max_size=8)
ODD: tuple[Any, ...] = (None, True, -1, 1.5, 180.0, 1 << 41, "", "x", [], [None], {}, {"type": "text"})
USAGE = {
    "input_tokens": 3,
    "output_tokens": 9,
    "cache_read_input_tokens": 2,
    "cache_creation_input_tokens": 1,
    "cache_creation": {"ephemeral_5m_input_tokens": 1, "ephemeral_1h_input_tokens": 0},
    "output_tokens_details": {"thinking_tokens": 4},
    "service_tier": "standard",
}
MESSAGE: Json = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "Good "}, {"type": "text", "text": "day", "citations": None}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": USAGE,
}


def outcome(read: Any, body: bytes) -> Any:
    try:
        return read(body, "p")
    except UpstreamError as error:
        return type(error), str(error)


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", [*MESSAGE, "error", "stop_details", "container"])
def test_an_answer_with_an_odd_field_is_read_alike(name: str, value: Any) -> None:
    body = dumps(MESSAGE | {name: value})
    assert outcome(anthropic_reply.read_reply, body) == outcome(anthropic_reply._read_any, body)


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", USAGE)
def test_usage_with_an_odd_count_is_read_alike(name: str, value: Any) -> None:
    body = dumps(MESSAGE | {"usage": USAGE | {name: value}})
    assert outcome(anthropic_reply.read_reply, body) == outcome(anthropic_reply._read_any, body)


@given(texts=st.lists(TEXTS, max_size=3), stop=st.sampled_from([None, "", "end_turn", "max_tokens", "refusal", "new"]))
def test_any_text_is_read_alike(texts: list[str], stop: str | None) -> None:
    blocks = [{"type": "text", "text": text} for text in texts]
    body = dumps(MESSAGE | {"content": blocks, "stop_reason": stop})
    found = anthropic_reply.read_reply(body, "p")
    assert found == anthropic_reply._read_any(body, "p")
    assert found.choices[0]["message"]["content"] == "".join(texts)
    assert found.usage == Usage(3, 2, 1, 5, 4, "provider")


@pytest.mark.parametrize(
    "skipped", [b'"\xff"', b'"\xed\xa0\xbd"', b"[" * 5000 + b"]" * 5000], ids=["ff", "half", "deep"]
)
def test_what_is_skipped_is_json_too(skipped: bytes) -> None:
    body = dumps(MESSAGE)[:-1] + b',"new":' + skipped + b"}"
    with pytest.raises(MalformedReply):
        anthropic_reply.read_reply(body, "p")


ROLES = st.sampled_from(["user", "assistant", "system"])
TALKS = st.lists(st.tuples(ROLES, st.sampled_from(["", " ", "a", "b c", "ä\n"])), min_size=1, max_size=6)


@given(TALKS)
def test_plain_messages_are_the_same_as_messages_of_one_part(talk: list[tuple[str, str]]) -> None:
    request: Json = {"messages": [{"role": role, "content": text} for role, text in talk], "max_tokens": 9}
    parts = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in talk]
    before = dumps(request)
    for options in (options_for("claude-3-haiku"), options_for("claude-3-7-sonnet")):
        plain = build_body(request, "m", options)
        assert plain == build_body(request | {"messages": parts, "user": None}, "m", options)
    if any(text for _, text in talk):
        assert build_gemini(request, "m") == build_gemini(request | {"messages": parts, "user": None}, "m")
    assert dumps(request) == before


def test_calls_in_the_history_bring_their_tools_with_the_plainest_of_requests() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Json] = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "b"},
    ]
    body, _ = build_body({"model": "m", "messages": messages}, "m", options_for("m"))
    assert body["tool_choice"] == {"type": "none"}
    assert [tool["name"] for tool in body["tools"]] == ["f"]


@pytest.mark.parametrize("said", [None, {}, {"promptTokenCount": "4"}, {"candidatesTokenCount": 9}, []], ids=repr)
def test_counts_that_are_none_leave_the_last_ones(said: Any) -> None:
    reader = GeminiReader(provider="p")
    assert reader.usage is None
    for usage in ({"promptTokenCount": 4, "candidatesTokenCount": 2}, said):
        reader.feed(b"data: " + dumps({"candidates": [], "usageMetadata": usage}) + b"\n\n")
    assert reader.usage == Usage(4, output=2, source="provider")
