"""The tap on a passing Responses stream and the check of a whole response: bytes leave as they came, only the terminal
event ends a stream well, lifecycle events commit nothing (R9, R15, R63, R64, R66, R67; PROTOCOLS.md 1.6, 3.2)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import MalformedReply, TransportError, UpstreamError
from slipstream.types import FailureClass
from slipstream.wire.responses.tap import ResponsesTap, check_response, read_usage
from slipstream.wire.usage import MAX_TOKENS, Usage
from tests.harness import SHARED

Json = dict[str, Any]
fuzz = settings(deadline=None, derandomize=True, max_examples=80)
USAGE: Json = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 4},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 18,
}


def ev(name: str, **fields: Any) -> bytes:
    return f"event: {name}\ndata: {json.dumps({'type': name, **fields}, separators=(',', ':'))}\n\n".encode()


RESPONSE: Json = {"id": "resp_1", "object": "response", "status": "in_progress", "output": []}
CREATED = ev("response.created", response=RESPONSE, sequence_number=0)
PROGRESS = ev("response.in_progress", response=RESPONSE, sequence_number=1)
REASONING = ev("response.output_item.added", item={"type": "reasoning", "id": "rs_1", "summary": []}, output_index=0)
REASONED = ev("response.output_item.done", item={"type": "reasoning", "id": "rs_1", "summary": []}, output_index=0)
MESSAGE = ev("response.output_item.added", item={"type": "message", "id": "msg_1", "content": []}, output_index=1)
PART = ev("response.content_part.added", item_id="msg_1", output_index=1, content_index=0, part={"type": "output_text"})
HELLO = ev("response.output_text.delta", delta="Hello", item_id="msg_1", output_index=1, content_index=0)
CALL = ev("response.output_item.added", item={"type": "function_call", "id": "fc_1", "name": "f"}, output_index=2)
COMPLETED = ev("response.completed", response={**RESPONSE, "status": "completed", "usage": USAGE})
INCOMPLETE = ev("response.incomplete", response={**RESPONSE, "status": "incomplete", "usage": USAGE})
START = CREATED + PROGRESS + REASONING + REASONED + MESSAGE + PART


class Seen(NamedTuple):
    relayed: bytes
    done: bool
    committed: bool
    content_events: int
    usage: Usage | None
    failure: tuple[str | None, int, FailureClass] | None


def watch(chunks: Iterable[bytes], *, end: bool = True, max_event: int = 1 << 20) -> Seen:
    """Feed as the relay does: until the tap has had enough, then the clean end."""
    t = ResponsesTap("p", max_event=max_event)
    out = []
    for chunk in chunks:
        if t.over():
            break
        out.append(t.feed(chunk))
    if end:
        out.append(t.end())
    f = t.failure
    assert t.finished == t.done
    failure = (f.code, f.status, f.failure) if f is not None else None
    return Seen(b"".join(out), t.done, t.committed, t.content_events, t.read_usage(), failure)


def by_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def at_random(stream: bytes, seed: int) -> list[bytes]:
    rng, out, at = random.Random(seed), [], 0
    while at < len(stream):
        size = rng.randint(1, 200)
        out.append(stream[at : at + size])
        at += size
    return out


def every_cut(stream: bytes) -> Seen:
    """What is seen: the same whole, byte by byte and cut at random."""
    whole = watch([stream])
    assert watch(by_byte(stream)) == whole
    for seed in range(5):
        assert watch(at_random(stream, seed)) == whole
    return whole


# ---- what is relayed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [COMPLETED, INCOMPLETE])
def test_a_good_stream_is_relayed_byte_for_byte(last: bytes) -> None:  # R64
    stream = b": hi\n\n" + START + HELLO + HELLO + last
    assert every_cut(stream) == Seen(stream, True, True, 2, Usage(7, 4, 0, 5, 2, "provider"), None)


def test_done_after_the_end_is_left_out() -> None:  # PROTOCOLS 3.2: this dialect has none; OpenRouter sends it
    seen = every_cut(HELLO + COMPLETED + b"data: [DONE]\n\n")
    assert seen.relayed == HELLO + COMPLETED
    assert seen.failure is None


def test_events_without_names_and_with_other_orders_are_known() -> None:  # recorded: OpenRouter, xAI
    delta = b'data: {"sequence_number":4,"type":"response.output_text.delta","delta":"x"}\n\n'
    spaced = b'data: { "type" : "response.output_text.delta", "delta": "y" }\n\n'
    end = b'data:{"response":{"output":[]},"type":"response.completed"}\n\n'
    seen = every_cut(delta + spaced + end)
    assert seen == Seen(delta + spaced + end, True, True, 2, None, None)


def test_crlf_and_unknown_events_pass() -> None:
    stream = b'event: keepalive\r\ndata: {"type":"keepalive","sequence_number":3}\r\n\r\n' + HELLO + COMPLETED
    assert watch([stream]).relayed == stream
    assert watch(by_byte(stream)).done


def test_a_last_event_without_a_blank_line_is_completed() -> None:  # PROTOCOLS 5
    for tail in (1, 2):
        seen = every_cut(HELLO + COMPLETED[:-tail])
        assert (seen.relayed, seen.done) == (HELLO + COMPLETED, True)


# ---- what commits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "quiet",
    [
        START,
        ev("response.queued", response=RESPONSE),
        ev("response.reasoning_summary_part.added", part={"type": "summary_text", "text": ""}),
        ev("response.web_search_call.in_progress", item_id="ws_1"),
        b": comment\n\n",
        b'event: x\ndata: {"type":"x"}\n\n',
    ],
)
def test_lifecycle_events_commit_nothing(quiet: bytes) -> None:  # R9
    t = ResponsesTap("p")
    assert t.feed(quiet) == quiet
    assert not t.committed


@pytest.mark.parametrize(
    "loud",
    [
        HELLO,
        CALL,
        COMPLETED,
        ev("response.reasoning_text.delta", delta="x"),
        ev("response.reasoning_summary_text.delta", delta="x"),
        ev("response.function_call_arguments.delta", delta="{"),
        ev("response.function_call_arguments.done", arguments="{}"),
        ev("response.output_text.done", text="x"),
        ev("response.refusal.done", refusal="no"),
        ev("response.output_item.done", item={"type": "message", "content": [{"type": "output_text", "text": "x"}]}),
        ev("response.output_item.done", item={"type": "reasoning", "summary": [{"text": "x"}]}),
        ev("response.image_generation_call.partial_image", partial_image_b64="AA=="),
    ],
)
def test_content_commits(loud: bytes) -> None:  # R9
    t = ResponsesTap("p")
    t.feed(START + loud)
    assert t.committed


# ---- how it ends badly -----------------------------------------------------------------------------------------------

INCOMPLETE_STREAM = ("upstream_incomplete", 502, FailureClass.TRANSPORT)


@pytest.mark.parametrize("stream", [b"", START, START + HELLO, START + HELLO + COMPLETED[:-30], b"event: x\n"])
def test_a_stream_without_its_terminal_event_is_a_failure(stream: bytes) -> None:  # R63
    seen = every_cut(stream)
    assert not seen.done
    assert seen.failure == INCOMPLETE_STREAM
    assert START.startswith(seen.relayed) or seen.relayed == START + HELLO


def test_done_is_no_terminal_event() -> None:
    assert every_cut(HELLO + b"data: [DONE]\n\n").failure == INCOMPLETE_STREAM


def test_every_truncation_is_noticed() -> None:
    stream = START + HELLO + COMPLETED
    for at in range(len(stream) - 2):
        seen = watch([stream[:at]])
        assert seen.failure == INCOMPLETE_STREAM
        assert stream.startswith(seen.relayed)


@pytest.mark.parametrize(
    ("code", "failure"),
    [
        ("rate_limit_exceeded", FailureClass.RATE_LIMITED),
        ("insufficient_quota", FailureClass.QUOTA),
        ("server_error", FailureClass.SERVER),
        ("context_length_exceeded", FailureClass.CONTEXT),
        ("invalid_prompt", FailureClass.CLIENT_ERROR),
        ("image_content_policy_violation", FailureClass.CONTENT_FILTER),
        ("something_new", FailureClass.SERVER),
        (None, FailureClass.SERVER),
        (503, FailureClass.OVERLOADED),
        ([], FailureClass.SERVER),
    ],
)
def test_an_error_in_any_form_is_a_failure_and_is_not_relayed(code: Any, failure: FailureClass) -> None:  # R15
    error = {"code": code, "message": "went wrong"}
    for event in (
        ev("error", sequence_number=2, error=error),
        ev("error", sequence_number=2, param=None, **error),
        ev("response.failed", response={**RESPONSE, "status": "failed", "error": error}),
        ev("response.completed", response={**RESPONSE, "status": "failed", "error": error}),
        b"event: error\ndata: " + json.dumps({"error": error}).encode() + b"\n\n",
        b"data: " + json.dumps({"error": error}).encode() + b"\n\n",
    ):
        t = ResponsesTap("p")
        assert t.feed(CREATED + event + HELLO) == CREATED
        assert t.failure is not None
        assert (t.failure.failure, t.failure.message) == (failure, "went wrong")
        assert not t.committed
        assert t.feed(HELLO) == b""
        assert t.end() == b""


@pytest.mark.parametrize("error", [None, {}, "overloaded", 7, {"message": None}, {"message": 5, "code": "x"}])
def test_an_error_that_says_little_is_one_all_the_same(error: Any) -> None:  # R66
    for event in (ev("error", error=error), ev("response.failed", response={"error": error}), ev("response.failed")):
        t = ResponsesTap("p")
        t.feed(event)
        assert isinstance(t.failure, UpstreamError)


def test_usage_of_a_failed_response_is_kept() -> None:
    t = ResponsesTap("p")
    t.feed(ev("response.failed", response={"error": {"code": "server_error", "message": "x"}, "usage": USAGE}))
    assert t.read_usage() == Usage(7, 4, 0, 5, 2, "provider")


@pytest.mark.parametrize(
    "bad", [b"data: {oops\n\n", b"data: [1]\n\n", b"data: 7\n\n", b"<html>\n\n", b'{"error":1}\n\n']
)
def test_what_is_no_event_of_this_dialect_is_malformed(bad: bytes) -> None:  # R66
    seen = every_cut(HELLO + bad + HELLO)
    assert seen.relayed == HELLO
    assert seen.failure == ("upstream_malformed_response", 502, FailureClass.MALFORMED)


def test_an_error_field_is_an_error() -> None:  # PROTOCOLS 1.6, llama-box
    t = ResponsesTap("p")
    t.feed(b'error: {"message":"no memory","code":503}\n\n')
    assert t.failure is not None
    assert t.failure.failure is FailureClass.OVERLOADED


def test_an_endless_event_is_cut_off() -> None:
    seen = watch([HELLO, b'data: {"type":"' + b"x" * 5000, b"y"], max_event=2048)
    assert seen.relayed == HELLO
    assert seen.failure == ("upstream_malformed_response", 502, FailureClass.MALFORMED)


def test_the_in_band_error_goes_on_from_what_was_relayed() -> None:  # R12
    t = ResponsesTap("p")
    t.feed(CREATED + PROGRESS + HELLO)
    t.end()
    assert t.failure is not None
    error, failed = (json.loads(part.split(b"data: ")[1]) for part in t.error(t.failure).split(b"\n\n")[:2])
    assert (error["type"], error["sequence_number"], error["code"]) == ("error", 3, "upstream_incomplete")
    assert (failed["type"], failed["sequence_number"]) == ("response.failed", 4)
    assert failed["response"]["id"] == "resp_1"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["message"] == error["message"]


@pytest.mark.parametrize("opening", [b"", ev("response.created"), ev("response.created", response=5)])
def test_the_in_band_error_of_a_response_that_is_not_known_stands_alone(opening: bytes) -> None:
    t = ResponsesTap("p")
    t.feed(opening + HELLO)
    data = t.error(TransportError("cut"))
    assert data.count(b"event: ") == 1
    assert json.loads(data.split(b"data: ")[1])["message"] == "cut"


names = st.text(max_size=5) | st.sampled_from(["type", "code", "message", "error", "status", "usage", "content"])
garbage = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
NAMES = [
    "response.created",
    "response.output_item.added",
    "response.output_text.delta",
    "response.completed",
    "response.failed",
    "error",
    "x",
]


@fuzz
@given(
    st.sampled_from(NAMES),
    st.dictionaries(st.sampled_from(["response", "item", "error", "delta", "type", "usage"]), garbage, max_size=4),
)
def test_garbage_raises_nothing(name: str, fields: Json) -> None:  # R61, R66
    data = json.dumps({"type": name, **fields}).encode()
    seen = every_cut(b"event: " + name.encode() + b"\ndata: " + data + b"\n\n")
    assert seen.done or seen.failure is not None


# ---- whole replies and usage -----------------------------------------------------------------------------------------


def body(**fields: Any) -> bytes:
    return b"\n " + json.dumps({"object": "response", "status": "completed", "output": [], **fields}).encode()


def test_a_whole_response_passes_and_tells_its_usage() -> None:
    assert check_response(body(usage=USAGE, error=None), "p") == Usage(7, 4, 0, 5, 2, "provider")
    assert check_response(body(), "p") is None


@pytest.mark.parametrize(
    ("reply", "failure"),
    [
        (body(error={"code": "rate_limit_exceeded", "message": "slow"}), FailureClass.RATE_LIMITED),
        (body(status="failed", error={"code": "insufficient_quota", "message": "x"}), FailureClass.QUOTA),
        (body(status="failed"), FailureClass.SERVER),
        (b'{"error":{"message":"x","code":503}}', FailureClass.OVERLOADED),
        (b'{"error":"boom"}', FailureClass.SERVER),
        (b"<html>", FailureClass.MALFORMED),
        (b"", FailureClass.MALFORMED),
        (b"[]", FailureClass.MALFORMED),
        (b"{}", FailureClass.MALFORMED),
        (b'{"object":"chat.completion","choices":[]}', FailureClass.MALFORMED),
        (body(output=None), FailureClass.MALFORMED),
    ],
)
def test_what_is_no_response_is_an_error(reply: bytes, failure: FailureClass) -> None:  # R66
    with pytest.raises(UpstreamError) as caught:
        check_response(reply, "p")
    assert caught.value.failure is failure
    assert isinstance(caught.value, MalformedReply) == (failure is FailureClass.MALFORMED)


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        (USAGE, Usage(7, 4, 0, 5, 2, "provider")),
        (
            {**USAGE, "input_tokens_details": {"cached_tokens": 4, "cache_write_tokens": 5}},
            Usage(2, 4, 5, 5, 2, "provider"),
        ),
        ({"input_tokens": 3}, Usage(3, 0, 0, 0, 0, "provider")),
        ({"input_tokens": 3, "output_tokens": 0, "input_tokens_details": None}, Usage(3, 0, 0, 0, 0, "provider")),
        ({"input_tokens": 3, "input_tokens_details": {"cached_tokens": 9}}, Usage(0, 3, 0, 0, 0, "provider")),
        ({"output_tokens": 3, "output_tokens_details": {"reasoning_tokens": 9}}, Usage(0, 0, 0, 0, 3, "provider")),
        ({"input_tokens": "3", "output_tokens": True}, None),
        ({"input_tokens": -1, "output_tokens": MAX_TOKENS + 1}, None),
        ({}, None),
        (None, None),
        ([], None),
    ],
)
def test_parts_are_inside_of_totals(usage: object, expected: Usage | None) -> None:  # R67, PROTOCOLS 1.4
    assert read_usage(usage) == expected


# ---- recorded exchanges ----------------------------------------------------------------------------------------------

FOLDER = SHARED / "wire" / "dev"
RECORDED = sorted(FOLDER.glob("*.responses.*.json"))
needs_corpus = pytest.mark.skipif(not RECORDED, reason=f"no recorded exchanges at {FOLDER} (set SLIPSTREAM_SHARED)")


def recorded(endpoint: str) -> list[Any]:
    exchanges = (json.loads(path.read_bytes()) for path in RECORDED)
    return [pytest.param(e, id=e["id"]) for e in exchanges if e["endpoint"] == endpoint]


def same_usage(usage: Usage | None, expected: Json | None) -> None:
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    seen = {
        "prompt": usage.prompt,
        "completion": usage.completion,
        "total": usage.prompt + usage.completion,
        "cached": usage.cache_read,
        "cache_write": usage.cache_write,
        "reasoning": usage.reasoning,
    }
    assert seen == {name: expected[name] or 0 for name in seen}


@needs_corpus
@pytest.mark.parametrize("exchange", recorded("stream"))
def test_recorded_streams(exchange: Json) -> None:
    stream = exchange["response"]["body"].encode()
    seen = every_cut(stream)
    expected = exchange["expected"]
    if expected["outcome"] == "ok":
        assert seen.failure is None
        assert stream.startswith(seen.relayed)
        assert stream[len(seen.relayed) :].strip() in (b"", b"data: [DONE]")
        same_usage(seen.usage, expected["usage"])
    else:
        assert seen.failure is not None
        assert not seen.done
        assert stream.startswith(seen.relayed)
        wanted = {"quota_exhausted": FailureClass.QUOTA, "rate_limited": FailureClass.RATE_LIMITED}
        if known := wanted.get(expected.get("error", {}).get("class")):
            assert seen.failure[2] is known


@needs_corpus
@pytest.mark.parametrize("exchange", recorded("chat"))
def test_recorded_responses(exchange: Json) -> None:
    same_usage(check_response(exchange["response"]["body"].encode(), "p"), exchange["expected"]["usage"])
