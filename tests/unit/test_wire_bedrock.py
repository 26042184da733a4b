"""Bedrock, the provider's side: answers, streams, errors, embeddings and the provider type.

Requests have a file of their own. Answers are checked against the recorded exchanges (PROTOCOLS.md 1.3-1.6, 2.5, 4;
ACCEPT.md), streams in every cut.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ClientError, MalformedReply, UpstreamError
from slipstream.providers.aws_credentials import AwsCredentials
from slipstream.providers.bedrock import TYPE
from slipstream.types import Endpoint, FailureClass, Secret
from slipstream.wire.bedrock import embeddings, errors, reader
from slipstream.wire.bedrock.reader import ConverseReader
from slipstream.wire.bedrock.reply import read_reply
from slipstream.wire.canonical import Chunk
from slipstream.wire.usage import Usage
from tests.harness import SHARED
from tests.unit.test_eventstream import event, frame, parts
from tests.unit.test_wire_bedrock_request import CLAUDE, PROFILE, USER, call, function, spec

Json = dict[str, Any]
DEV = SHARED / "wire" / "dev"
RECORDED = pytest.mark.skipif(not DEV.is_dir(), reason=f"no recorded exchanges in {DEV}")


# ---------------------------------------------------------------------------------------------------- answers


def whole(content: Any, **more: Any) -> bytes:
    output = {"message": {"role": "assistant", "content": content}}
    return json.dumps({"output": output, "stopReason": "end_turn", **more}).encode()


def read(body: bytes) -> Json:
    reply = read_reply(body, provider="aws")
    assert len(reply.choices) == 1
    return {**reply.choices[0], "usage": reply.usage, "extra": reply.extra}


def test_an_answer_of_every_kind_of_block() -> None:
    content = [
        {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}},
        {"reasoningContent": {"redactedContent": "QUJD"}},
        {"reasoningContent": {"reasoningText": {"text": " unsigned"}}},
        {"text": "See "},
        {
            "citationsContent": {
                "content": [{"text": "this"}],
                "citations": [
                    {"title": "T", "location": {"web": {"url": "https://e.com"}}},
                    {"title": "D", "location": {"documentChar": {"documentIndex": 0, "start": 0, "end": 3}}},
                ],
            }
        },
        {"toolUse": {"toolUseId": "s", "name": "nova_code_interpreter", "input": {}, "type": "server_tool_use"}},
        {"toolResult": {"toolUseId": "s", "content": [{"text": "hidden"}]}},
        {"toolUse": {"toolUseId": "a", "name": "f", "input": {"x": "é"}}},
        {"toolUse": {"toolUseId": "b", "name": "g", "input": {}}},
        {"hologram": {}},
    ]
    usage = {
        "inputTokens": 5,
        "outputTokens": 7,
        "totalTokens": 25,
        "cacheReadInputTokenCount": 9,
        "cacheWriteInputTokens": 4,
    }
    tier = {"type": "priority"}
    choice = read(whole(content, stopReason="tool_use", usage=usage, serviceTier=tier, trace={"guardrail": {}}))
    page = {"url": "https://e.com", "title": "T", "start_index": 4, "end_index": 8}
    assert choice["message"] == {
        "role": "assistant",
        "content": "See this",
        "reasoning_content": "hm unsigned",
        "thinking_blocks": [
            {"type": "thinking", "thinking": "hm", "signature": "sig"},
            {"type": "redacted_thinking", "data": "QUJD"},
        ],
        "tool_calls": [call("a", "f", '{"x":"é"}'), call("b", "g", "{}")],
        "annotations": [{"type": "url_citation", "url_citation": page}],
    }
    assert (choice["finish_reason"], choice["native_finish_reason"]) == ("tool_calls", "tool_use")
    assert choice["usage"] == Usage(5, 9, 4, 7, 0, "provider")
    assert choice["extra"] == {"service_tier": "priority", "trace": {"guardrail": {}}}


@pytest.mark.parametrize(
    ("native", "calls", "finish"),
    [
        ("end_turn", False, "stop"),
        ("stop_sequence", False, "stop"),
        ("max_tokens", False, "length"),
        ("max_tokens", True, "length"),
        ("model_context_window_exceeded", False, "length"),
        ("tool_use", True, "tool_calls"),
        ("tool_use", False, "stop"),
        ("end_turn", True, "tool_calls"),
        ("guardrail_intervened", False, "content_filter"),
        ("content_filtered", False, "content_filter"),
        ("malformed_tool_use", False, "stop"),
        ("new_reason", False, "stop"),
    ],
)
def test_finish_reasons(native: str, calls: bool, finish: str) -> None:  # PROTOCOLS.md 1.3
    content = [{"toolUse": {"toolUseId": "a", "name": "f", "input": {}}}] if calls else [{"text": "x"}]
    choice = read(whole(content, stopReason=native))
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, native)
    made, _ = chunks_of(stream(content, native), [])
    last = [chunk for chunk in made if chunk.finish_reason]
    assert [(chunk.finish_reason, chunk.native_finish) for chunk in last] == [(finish, native)]


def test_which_stop_sequence_it_was() -> None:
    fields = {"additionalModelResponseFields": {"stop_sequence": "END"}}
    assert read(whole([{"text": "x"}], stopReason="stop_sequence", **fields))["stop_sequence"] == "END"
    assert "stop_sequence" not in read(whole([{"text": "x"}], stopReason="end_turn", **fields))
    made, _ = chunks_of(stream([{"text": "x"}], "stop_sequence", **fields), [])
    assert made[-1].stop_sequence == "END"


@pytest.mark.parametrize(
    "content", [None, [], {}, "text", [None], [{}], [{"text": None}], [{"toolUse": None}],
                [{"toolUse": {"name": None}}],
                [{"reasoningContent": {}}], [{"reasoningContent": {"reasoningText": {"text": None}}}],
                [{"citationsContent": {"content": None, "citations": [None, {"location": None}]}}]]
)  # fmt: skip
def test_odd_content_is_survived(content: Any) -> None:  # R61
    message = read(whole(content, usage={"inputTokens": "5", "outputTokens": None}))
    assert message["message"]["content"] is None
    assert (message["usage"], message["finish_reason"]) == (None, "stop")


@pytest.mark.parametrize("body", [b"", b"x", b"[]", b"null", b"{}", b"7", b'{"output":null}', b"<html>", b'{"outp'])
def test_no_answer_is_malformed(body: bytes) -> None:  # R66
    with pytest.raises(MalformedReply):
        read_reply(body, provider="aws")


def test_errors_in_disguise() -> None:
    body = b'{"Output":{"__type":"com.amazon.coral.service#UnknownOperationException"},"Version":"1.0"}'
    with pytest.raises(UpstreamError) as caught:
        read_reply(body, provider="aws")
    assert caught.value.failure is FailureClass.NOT_FOUND
    with pytest.raises(UpstreamError, match="slow down") as caught:
        read_reply(b'{"__type":"ThrottlingException","message":"slow down"}', provider="aws")
    assert caught.value.failure is FailureClass.RATE_LIMITED
    deep = b'{"a":' * 600 + b"1" + b"}" * 600
    with pytest.raises(MalformedReply, match="deeply"):
        read_reply(
            whole([{"toolUse": {"toolUseId": "a", "name": "f", "input": "@"}}]).replace(b'"@"', deep), provider="aws"
        )


# ---------------------------------------------------------------------------------------------------- streams


def stream(content: list[Json], native: str, usage: Json | None = None, **stop: Any) -> bytes:
    """What ConverseStream sends for blocks of text and calls."""
    frames = [event("messageStart", b'{"role":"assistant","p":"abc"}')]

    def add(kind: str, **payload: Any) -> None:
        frames.append(event(kind, json.dumps({**payload, "p": "abcdef"}).encode()))

    for i, block in enumerate(content):
        if "toolUse" in block:
            use = block["toolUse"]
            add("contentBlockStart", contentBlockIndex=i, start={"toolUse": {k: use[k] for k in ("toolUseId", "name")}})
            text = json.dumps(use["input"]) if use["input"] else ""
            for piece in ("", text[:3], text[3:]):
                add("contentBlockDelta", contentBlockIndex=i, delta={"toolUse": {"input": piece}})
        else:
            add("contentBlockDelta", contentBlockIndex=i, delta=block)
        add("contentBlockStop", contentBlockIndex=i)
    add("messageStop", stopReason=native, **stop)
    add("metadata", usage=usage or {"inputTokens": 1, "outputTokens": 2, "totalTokens": 3}, metrics={"latencyMs": 9})
    return b"".join(frames)


def chunks_of(body: bytes, cuts: list[int]) -> tuple[list[Chunk], ConverseReader]:
    made: list[Chunk] = []
    r = ConverseReader(provider="aws")
    for piece in parts(body, cuts):
        made += r.feed(piece)
    made += r.end()
    assert r.feed(b"more") == r.end() == []
    assert r.done == (r.failure is None)
    return made, r


def joined(chunks: list[Chunk]) -> Json:
    """A message from the deltas, as a client makes it."""
    message: Json = {
        "content": "",
        "reasoning": "",
        "tool_calls": [],
        "thinking_blocks": [],
        "annotations": [],
        "finish": None,
    }
    for chunk in chunks:
        assert "role" not in chunk.delta
        message["content"] += chunk.delta.get("content", "")
        message["reasoning"] += chunk.delta.get("reasoning_content", "")
        for name in ("thinking_blocks", "annotations"):
            message[name] += chunk.delta.get(name, [])
        for piece in chunk.delta.get("tool_calls", ()):
            if "id" in piece:
                assert (piece["index"], piece["type"]) == (len(message["tool_calls"]), "function")
                message["tool_calls"].append(call(piece["id"], piece["function"]["name"], ""))
            message["tool_calls"][piece["index"]]["function"]["arguments"] += piece["function"]["arguments"]
        if chunk.finish_reason:
            assert message["finish"] is None
            message["finish"] = chunk.finish_reason
    return message


MIXED: list[Json] = [
    {"reasoningContent": {"text": "h"}},
    {"text": "Hé☃"},
    {"toolUse": {"toolUseId": "a", "name": "f", "input": {"x": [1, "é"]}}},
    {"toolUse": {"toolUseId": "b", "name": "g", "input": {}}},
]


@given(st.lists(st.integers(0, 3000), max_size=20))
def test_a_stream_cut_anywhere(cuts: list[int]) -> None:  # R60, R64
    body = stream(MIXED, "tool_use")
    made, r = chunks_of(body, cuts)
    assert r.done
    assert r.usage == Usage(1, 0, 0, 2, 0, "provider")
    message = joined(made)
    assert (message["content"], message["reasoning"], message["finish"]) == ("Hé☃", "h", "tool_calls")
    calls = [(c["id"], c["function"]["name"], json.loads(c["function"]["arguments"])) for c in message["tool_calls"]]
    assert calls == [("a", "f", {"x": [1, "é"]}), ("b", "g", {})]


def test_a_stream_cut_short_is_never_good() -> None:  # R63
    body = stream(MIXED, "tool_use")
    full = joined(chunks_of(body, [])[0])
    stop = body.index(b"messageStop")
    good = []
    for k in range(len(body)):
        made, r = chunks_of(body[:k], [])
        assert full["content"].startswith(joined(made)["content"])
        if r.done:
            good.append(k)
        else:
            assert r.failure is not None
            assert r.failure.failure in (FailureClass.TRANSPORT, FailureClass.MALFORMED)
            assert r.failure.code in ("upstream_incomplete", "upstream_malformed_response")
    assert len(good) == 1, "only between messageStop and metadata, which may be missing (pool 10/83)"
    assert good[0] > stop


def test_bytes_behind_the_last_frame_are_a_cut_frame() -> None:
    _, r = chunks_of(stream(MIXED, "tool_use") + b"\0\0", [])
    assert r.failure is not None


def test_thinking_blocks_come_whole_at_the_end_of_their_block() -> None:
    pieces = [
        event("contentBlockDelta", json.dumps({"contentBlockIndex": 0, "delta": {"reasoningContent": piece}}).encode())
        for piece in ({"text": "a"}, {"text": "b"}, {"signature": "si"}, {"signature": "g"})
    ]
    redacted = event(
        "contentBlockDelta", b'{"contentBlockIndex":1,"delta":{"reasoningContent":{"redactedContent":"QUJD"}}}'
    )
    stops = [event("contentBlockStop", b'{"contentBlockIndex":%d}' % i) for i in (0, 1)]
    body = b"".join([*pieces, stops[0], redacted, stops[1]]) + stream([{"text": "x"}], "end_turn")
    made, r = chunks_of(body, [])
    assert r.done
    message = joined(made)
    assert message["reasoning"] == "ab"
    assert message["thinking_blocks"] == [
        {"type": "thinking", "thinking": "ab", "signature": "sig"},
        {"type": "redacted_thinking", "data": "QUJD"},
    ]
    assert made[2].delta == {"thinking_blocks": message["thinking_blocks"][:1]}
    unstopped, _ = chunks_of(b"".join(pieces) + event("messageStop", b'{"stopReason":"end_turn"}'), [])
    assert joined(unstopped)["thinking_blocks"] == message["thinking_blocks"][:1]


def test_lifecycle_frames_make_no_chunks() -> None:  # R9
    r = ConverseReader(provider="aws")
    assert r.feed(event("messageStart", b'{"role":"assistant"}')) == []
    assert r.feed(event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":""}}')) == []
    assert r.failure is None


@pytest.mark.parametrize(
    "payload",
    [b"", b"null", b"[]", b"7", b"{}", b'{"delta":null}', b'{"delta":{}}', b'{"delta":{"text":null}}',
     b'{"start":null}',
     b'{"start":{"toolUse":null}}', b'{"delta":{"reasoningContent":{"text":null}}}', b'{"contentBlockIndex":null}',
     b'{"delta":{"citation":null,"hologram":1}}', b'{"usage":null,"trace":7}', b'{"delta":{"reasoningContent":[]}}'],
)  # fmt: skip
@pytest.mark.parametrize(
    "kind", ["messageStart", "contentBlockStart", "contentBlockDelta", "contentBlockStop", "metadata", "x"]
)
def test_odd_events_are_survived(kind: str, payload: bytes) -> None:  # R61
    made, r = chunks_of(event(kind, payload) + stream([{"text": "Hi"}], "end_turn"), [])
    assert r.done
    assert joined(made)["content"] == "Hi"
    assert r.usage is not None


def test_pages_that_are_cited() -> None:
    citation = {"title": "T", "location": {"web": {"url": "https://e.com"}}}
    delta = json.dumps({"contentBlockIndex": 0, "delta": {"citation": citation}}).encode()
    body = event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"Hi"}}') + event(
        "contentBlockDelta", delta
    )
    made, _ = chunks_of(body + stream([], "end_turn", additionalModelResponseFields={"x": 1}), [])
    page = {"url": "https://e.com", "title": "T", "start_index": 2, "end_index": 2}
    assert joined(made)["annotations"] == [{"type": "url_citation", "url_citation": page}]


def test_a_call_that_begins_twice_is_one() -> None:  # R61
    start = event("contentBlockStart", b'{"contentBlockIndex":0,"start":{"toolUse":{"toolUseId":"a","name":"f"}}}')
    body = start * 2 + event("contentBlockStop", b'{"contentBlockIndex":0}')
    made, r = chunks_of(body + stream([], "tool_use", additionalModelResponseFields={"x": 1}), [])
    assert joined(made)["tool_calls"] == [call("a", "f", "{}")]
    assert r.extra == {"additionalModelResponseFields": {"x": 1}}


def test_tools_of_the_server_are_not_the_clients() -> None:  # #0d3c19cf
    start = b'{"contentBlockIndex":9,"start":{"toolUse":{"toolUseId":"s","name":"n","type":"server_tool_use"}}}'
    delta = b'{"contentBlockIndex":9,"delta":{"toolUse":{"input":"{}"}}}'
    body = event("contentBlockStart", start) + event("contentBlockDelta", delta) + stream([{"text": "Hi"}], "tool_use")
    made, r = chunks_of(body, [])
    assert r.done
    assert (joined(made)["tool_calls"], joined(made)["finish"]) == ([], "stop")


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        (event("contentBlockDelta", b'{"delta":'), FailureClass.MALFORMED),
        (event("contentBlockDelta", b'{"delta":{"toolUse":{"input":"x"}}}'), FailureClass.MALFORMED),
        (event("contentBlockStart", b'{"start":{"toolUse":{"toolUseId":"a"}}}'), FailureClass.MALFORMED),
        (event("messageStop", b'{"stopReason":null}'), FailureClass.TRANSPORT),
        (b"", FailureClass.TRANSPORT),
        (b"\0" * 40, FailureClass.MALFORMED),
        (b"<html>busy</html>", FailureClass.MALFORMED),
        (b'{"message":"busy"}', FailureClass.SERVER),
        (b' \n{"__type":"ThrottlingException","Message":"x"}', FailureClass.RATE_LIMITED),
        (b"{" * 100_000, FailureClass.MALFORMED),
        (frame(b'{"message":"no"}', message_type="exception", exception_type="validationException"),
         FailureClass.CLIENT_ERROR),
        (frame(b'{"message":"Input is too long for requested model."}', message_type="exception",
               exception_type="validationException"), FailureClass.CONTEXT),
        (frame(b"", message_type="exception", exception_type="serviceUnavailableException"), FailureClass.OVERLOADED),
        (frame(b"null", message_type="exception", exception_type="modelTimeoutException"), FailureClass.TIMEOUT),
        (frame(b"{", message_type="exception", exception_type="internalServerException"), FailureClass.SERVER),
        (frame(b"{}", message_type="exception", exception_type="somethingNewException"), FailureClass.SERVER),
        (frame(b"{}", message_type="exception"), FailureClass.SERVER),
        (frame(b"", message_type="error", error_code="ThrottlingException", error_message="m"),
         FailureClass.RATE_LIMITED),
        (frame(b"", message_type="error"), FailureClass.SERVER),
        (event("throttlingException", b'{"message":"m"}'), FailureClass.RATE_LIMITED),
    ],
)  # fmt: skip
def test_failures_of_a_stream(body: bytes, failure: FailureClass) -> None:  # R15, PROTOCOLS.md 1.6
    for cuts in ([], list(range(min(len(body), 300)))):
        made, r = chunks_of(body, cuts)
        assert made == []
        assert r.failure is not None
        assert r.failure.failure is failure
        assert r.failure.status >= 400


def test_text_before_a_failure_is_kept_and_nothing_after_it() -> None:
    good = stream([{"text": "Hi"}], "end_turn")
    exception = frame(b'{"message":"stop"}', message_type="exception", exception_type="modelStreamErrorException")
    before = event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"text":"Hi"}}')
    made, r = chunks_of(before + exception + good, [])
    assert (joined(made)["content"], joined(made)["finish"]) == ("Hi", None)
    assert (r.failure.message if r.failure else "") == "stop"
    after = stream([{"text": "Hi"}], "end_turn") + before
    assert joined(chunks_of(after, [])[0])["content"] == "Hi"


def test_buffers_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "MAX_THOUGHT_CHARS", 10)
    piece = event("contentBlockDelta", b'{"contentBlockIndex":0,"delta":{"reasoningContent":{"text":"abcd"}}}')
    _, r = chunks_of(piece * 4, [])
    assert r.failure is not None
    prelude = b"\x00\x90\x00\x00\x00\x00\x00\x00"
    r = ConverseReader(provider="aws")
    r.feed(prelude + binascii.crc32(prelude).to_bytes(4, "big"))
    assert r.failure is not None, "9 MiB were announced"


@given(st.binary(max_size=200))
def test_garbage_never_raises(body: bytes) -> None:  # R66
    _, r = chunks_of(body, [5, 50])
    assert r.failure is not None
    for read_it in (
        lambda: read_reply(body, provider="aws"),
        lambda: embeddings.read_vectors(body, {}, provider="aws"),
    ):
        with pytest.raises(UpstreamError):
            read_it()
    assert errors.read_error(500, {}, body, provider="aws").failure is FailureClass.SERVER


NAMES = st.sampled_from(
    ["output", "message", "content", "text", "toolUse", "input", "name", "toolUseId", "reasoningContent",
     "reasoningText", "usage", "inputTokens", "stopReason", "delta", "start", "contentBlockIndex", "citation",
     "location", "web", "url"]
)  # fmt: skip
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.sampled_from(["", "x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=200)
@given(
    json_values,
    st.sampled_from(["contentBlockStart", "contentBlockDelta", "contentBlockStop", "messageStop", "metadata"]),
)
def test_any_json_is_survived(value: Any, kind: str) -> None:  # R61, R66
    body = json.dumps(value).encode()
    chunks_of(event(kind, body), [])
    try:
        read_reply(json.dumps({"output": value, "stopReason": value}).encode(), provider="aws")
        read_reply(body, provider="aws")
    except UpstreamError:
        pass


# ---------------------------------------------------------------------------------------------------- errors


def error(status: int, kind: str = "", message: str | None = "m", **headers: str) -> UpstreamError:
    body = b"" if message is None else json.dumps({"message": message}).encode()
    if kind:
        headers["x-amzn-errortype"] = kind + ":http://internal.amazon.com/coral/com.amazon.bedrock/"
    return errors.read_error(status, headers, body, provider="aws", retry_after_s=2.0)


@pytest.mark.parametrize(
    ("status", "kind", "message", "failure", "shown"),
    [
        (429, "ThrottlingException", "Too many requests", FailureClass.RATE_LIMITED, 429),
        (429, "ThrottlingException", "Too many tokens per day", FailureClass.QUOTA, 429),
        (429, "ModelNotReadyException", "m", FailureClass.OVERLOADED, 503),
        (400, "ServiceQuotaExceededException", "m", FailureClass.QUOTA, 429),
        (400, "ValidationException", "m", FailureClass.CLIENT_ERROR, 400),
        (400, "ValidationException", "Input is too long for requested model.", FailureClass.CONTEXT, 400),
        (400, "ValidationException", "The provided model identifier is invalid.", FailureClass.NOT_FOUND, 404),
        (400, "ValidationException", "Operation not allowed", FailureClass.PERMISSION, 403),
        (400, "ValidationException", "Output blocked by content filtering policy", FailureClass.CONTENT_FILTER, 400),
        (413, "", "m", FailureClass.CLIENT_ERROR, 413),
        (403, "AccessDeniedException", "You don't have access to the model", FailureClass.PERMISSION, 403),
        (403, "UnrecognizedClientException", "m", FailureClass.AUTH, 502),
        (403, "ExpiredTokenException", "m", FailureClass.AUTH, 502),
        (403, "InvalidSignatureException", "m", FailureClass.AUTH, 502),
        (403, "AccessDeniedException", "Authentication failed: check your API Key.", FailureClass.AUTH, 502),
        (403, "", "m", FailureClass.PERMISSION, 403),
        (404, "ResourceNotFoundException", "m", FailureClass.NOT_FOUND, 404),
        (408, "ModelTimeoutException", "m", FailureClass.TIMEOUT, 504),
        (424, "ModelErrorException", "m", FailureClass.SERVER, 502),
        (424, "", "m", FailureClass.SERVER, 502),
        (500, "InternalServerException", "m", FailureClass.SERVER, 502),
        (503, "ServiceUnavailableException", "m", FailureClass.OVERLOADED, 503),
        (503, "", None, FailureClass.OVERLOADED, 503),
        (429, "", None, FailureClass.RATE_LIMITED, 429),
        (302, "", None, FailureClass.MALFORMED, 502),
        (101, "", None, FailureClass.MALFORMED, 502),
    ],
)  # fmt: skip
def test_errors(status: int, kind: str, message: str | None, failure: FailureClass, shown: int) -> None:
    found = error(status, kind, message)
    assert (found.failure, found.status, found.upstream_status) == (failure, shown, status)
    assert found.message
    if failure not in (FailureClass.AUTH, FailureClass.MALFORMED) and message not in (None, "m"):
        assert found.message == message
    if failure is FailureClass.RATE_LIMITED:
        assert found.retry_after_s == 2.0


@pytest.mark.parametrize(
    "body",
    [
        b'{"__type":"com.amazon.coral.service#ThrottlingException","Message":"slow"}',
        b'{"error":{"code":"ThrottlingException","message":"slow"}}',
        b'{"code":"ThrottlingException","message":"slow","error":"x"}',
        b'{"code":"ThrottlingException","message":"{\\"error\\":{\\"message\\":\\"slow\\"}}"}',
    ],
)
def test_forms_of_error_bodies(body: bytes) -> None:
    found = errors.read_error(400, {}, body, provider="aws")
    assert (found.failure, found.message) == (FailureClass.RATE_LIMITED, "slow")


@pytest.mark.parametrize("message", ['{"a": ', '{"a": 1}', '{"message": 7}'])
def test_a_message_that_only_looks_like_json(message: str) -> None:
    assert error(400, "ValidationException", message).message == message


def test_nothing_of_the_account_is_told() -> None:
    arn = "User: arn:aws:sts::123456789012:assumed-role/Secret is not authorized to perform: bedrock:InvokeModel"
    for status, kind in ((403, "AccessDeniedException"), (400, "ValidationException"), (403, "ExpiredTokenException")):
        found = error(status, kind, arn)
        assert "123456789012" not in found.message + (found.body or b"").decode()
    long = error(400, "ValidationException", "x " * 5000)
    assert len(long.message) <= 2000


# ---------------------------------------------------------------------------------------------------- embeddings


def test_embeddings_of_titan() -> None:
    model = "amazon.titan-embed-text-v2:0"
    request = {
        "model": "m",
        "input": "Hi",
        "dimensions": 256,
        "encoding_format": "base64",
        "user": "u",
        "normalize": False,
    }
    assert embeddings.build_body(request, model) == (
        {"inputText": "Hi", "dimensions": 256, "normalize": False},
        ["user"],
    )
    assert embeddings.build_body({"input": ["Hi"], "dimensions": 8}, "amazon.titan-embed-text-v1") == (
        {"inputText": "Hi"},
        ["dimensions"],
    )
    image = embeddings.build_body({"input": "Hi", "dimensions": 384}, "amazon.titan-embed-image-v1")[0]
    assert image == {"inputText": "Hi", "embeddingConfig": {"outputEmbeddingLength": 384}}
    vectors, usage = embeddings.read_vectors(b'{"embedding":[1,0.5],"inputTextTokenCount":3}', {}, provider="aws")
    assert (vectors, usage) == ([[1, 0.5]], Usage(input_uncached=3, source="provider"))


def test_embeddings_of_cohere_and_nova() -> None:
    body, dropped = embeddings.build_body({"input": ["a", "b"], "dimensions": 256}, "cohere.embed-english-v3")
    assert body == {"texts": ["a", "b"], "input_type": "search_document", "embedding_types": ["float"]}
    assert dropped == ["dimensions"]
    request = {"input": "a", "dimensions": 256, "input_type": "search_query", "truncate": "END"}
    body, dropped = embeddings.build_body(request, "us.cohere.embed-v4:0")
    assert (body["output_dimension"], body["input_type"], body["truncate"], dropped) == (256, "search_query", "END", [])
    body, _ = embeddings.build_body({"input": "a", "dimensions": 384}, "amazon.nova-2-multimodal-embeddings-v1:0")
    assert body["singleEmbeddingParams"]["embeddingDimension"] == 384
    headers = {"x-amzn-bedrock-input-token-count": "7"}
    for answer in (b'{"embeddings":[[1],[2]]}', b'{"embeddings":{"float":[[1],[2]]},"texts":["a","b"]}',
                   b'{"embeddings":[{"embedding":[1]},{"embedding":[2]}]}'):  # fmt: skip
        vectors, usage = embeddings.read_vectors(answer, headers, provider="aws")
        assert (vectors, usage) == ([[1], [2]], Usage(input_uncached=7, source="provider"))
    for count in ("", "x", "-1", "9" * 30):
        found = embeddings.read_vectors(
            b'{"embeddings":[[1]]}', {"x-amzn-bedrock-input-token-count": count}, provider="aws"
        )
        assert found[1] is None


def test_embeddings_that_are_refused() -> None:
    titan = "amazon.titan-embed-text-v2:0"
    for request, model, param in (
        ({"input": ["a", "b"]}, titan, "input"),
        ({"input": []}, titan, "input"),
        ({"input": [1, 2]}, titan, "input"),
        ({}, titan, "input"),
        ({"input": "a", "dimensions": "8"}, titan, "dimensions"),
        ({"input": "a"}, CLAUDE, "model"),
    ):
        with pytest.raises(ClientError) as caught:
            embeddings.build_body(request, model)
        assert caught.value.param == param
    for body in (
        b"{}",
        b'{"embedding":[]}',
        b'{"embedding":["x"]}',
        b'{"embeddings":{"int8":[[1]]}}',
        b'{"embeddings":[[true]]}',
    ):
        with pytest.raises(UpstreamError):
            embeddings.read_vectors(body, {}, provider="aws")


# ---------------------------------------------------------------------------------------------------- the type


def test_urls() -> None:
    model = "arn:aws:bedrock:us-east-1:1:inference-profile/us.x-v1:0"
    built = TYPE.build({"messages": USER, "stream": True}, spec(), model)
    quoted = "arn%3Aaws%3Abedrock%3Aus-east-1%3A1%3Ainference-profile%2Fus.x-v1%3A0"
    assert built.url == f"https://bedrock-runtime.us-west-2.amazonaws.com/model/{quoted}/converse-stream"
    where = spec(region="eu-west-1")
    assert (
        TYPE.build({"messages": USER}, where, "m").url
        == "https://bedrock-runtime.eu-west-1.amazonaws.com/model/m/converse"
    )
    assert TYPE.models_url(where) == "https://bedrock.eu-west-1.amazonaws.com/foundation-models"
    assert TYPE.url(spec(region="cn-north-1"), Endpoint.CHAT, "m", False).startswith(
        "https://bedrock-runtime.cn-north-1.amazonaws.com.cn/"
    )
    local = spec(api_base="http://127.0.0.1:1/bedrock")
    assert TYPE.url(local, Endpoint.CHAT, "m", True) == "http://127.0.0.1:1/bedrock/model/m/converse-stream"
    assert TYPE.models_url(local) == "http://127.0.0.1:1/bedrock/foundation-models"
    fips = spec(api_base="https://bedrock-runtime-fips.us-east-1.amazonaws.com")
    assert TYPE.models_url(fips) == "https://bedrock-fips.us-east-1.amazonaws.com/foundation-models"
    assert TYPE.models_url(spec(api_base="https://vpce-1.bedrock-runtime.us-east-1.vpce.amazonaws.com")) == ""
    for base, host in (
        ("https://h:443/x", "https://h/x"),
        ("http://h:80", "http://h"),
        ("https://h:80", "https://h:80"),
    ):
        assert TYPE.models_url(spec(api_base=base)) == host + "/foundation-models"
    embed = TYPE.build_embeddings({"input": "a"}, local, "amazon.titan-embed-text-v2:0")
    assert embed.url == "http://127.0.0.1:1/bedrock/model/amazon.titan-embed-text-v2%3A0/invoke"


def test_a_key_is_a_bearer_and_without_one_requests_are_signed() -> None:
    keyed = spec(api_key=Secret("bedrock-key"))
    assert TYPE.signer(keyed) is None
    headers = TYPE.headers(keyed)
    assert headers["Authorization"] == "Bearer bedrock-key"
    assert "eventstream" in headers["Accept"]
    assert "Authorization" not in TYPE.headers(spec())
    signer = TYPE.signer(spec(api_base="https://bedrock-runtime.eu-north-1.amazonaws.com"))
    assert isinstance(signer, AwsCredentials)
    assert signer._region == "eu-north-1"


def test_counting_tokens() -> None:
    request = {"messages": [{"role": "system", "content": "s"}, *USER], "tools": [function("f")], "temperature": 0.5}
    counted = TYPE.build_count(request, spec(), CLAUDE)
    assert counted is not None
    assert counted.url.endswith("/model/anthropic.claude-sonnet-4-5-20250929-v1%3A0/count-tokens")
    assert set(json.loads(counted.body)["input"]["converse"]) == {"messages", "system", "toolConfig"}
    lossy = TYPE.build_count({"messages": [{**USER[0], "name": "n"}], "seed": 1}, spec(), CLAUDE)
    assert lossy is not None
    assert lossy.dropped == ["messages[].name"], "what is not counted is not missed"
    assert TYPE.build_count(request, spec(), PROFILE) is None
    assert TYPE.count(b'{"inputTokens": 18}', spec()) == 18
    for body in (b"", b"{}", b'{"inputTokens":"18"}', b'{"inputTokens":-1}', b'{"inputTokens":true}', b"[]"):
        with pytest.raises(MalformedReply):
            TYPE.count(body, spec())


def test_models() -> None:
    body = b'{"modelSummaries":[{"modelId":"a.b","providerName":"A"},{"modelId":"c"},{"modelId":null},null]}'
    assert TYPE.read_models(body) == [{"id": "a.b", "owned_by": "A"}, {"id": "c", "owned_by": "aws"}]
    for wrong in (b"x", b'{"modelSummaries":7}'):
        with pytest.raises(ValueError, match=r"modelSummaries|unexpected"):
            TYPE.read_models(wrong)


def test_the_type_does_what_its_parts_do() -> None:
    assert TYPE.reply(whole([{"text": "Hi"}]), {}, spec()).choices[0]["message"]["content"] == "Hi"
    assert isinstance(TYPE.reader(spec()), ConverseReader)
    assert TYPE.embeddings(b'{"embedding":[1]}', {}, spec())[0] == [[1]]
    assert TYPE.error(429, {}, b"", spec(), 3.0).retry_after_s == 3.0


# ---------------------------------------------------------------------------------------------------- recorded


def recorded(*apis: str) -> list[Any]:
    found = []
    for path in sorted(DEV.glob("bedrock.*.json")) if DEV.is_dir() else []:
        exchange = json.loads(path.read_text(encoding="utf-8"))
        if exchange["api"] in apis and "expected" in exchange:
            found.append(pytest.param(exchange, id=exchange["id"]))
    return found


def body_of(exchange: Json) -> bytes:
    response = exchange["response"]
    return base64.b64decode(response["body_base64"]) if "body_base64" in response else response["body"].encode()


CLASSES = {
    "rate_limited": FailureClass.RATE_LIMITED,
    "overloaded": FailureClass.OVERLOADED,
    "quota_exhausted": FailureClass.QUOTA,
    "auth": FailureClass.AUTH,
    "permission": FailureClass.PERMISSION,
    "not_found": FailureClass.NOT_FOUND,
    "bad_request": FailureClass.CLIENT_ERROR,
    "context_too_long": FailureClass.CONTEXT,
    "content_filter": FailureClass.CONTENT_FILTER,
    "timeout": FailureClass.TIMEOUT,
    "server_error": FailureClass.SERVER,
}


def same(expected: Json, name: str, found: Any) -> bool:
    """Equal, or one of those that are accepted; null and empty are the same (accept.py)."""
    return any(
        (found or None) == (value or None) for value in [expected.get(name), *expected.get("accept", {}).get(name, [])]
    )


def compare(expected: Json, message: Json, usage: Usage | None) -> None:
    assert same(expected, "text", message["content"])
    assert same(expected, "finish_reason", message["finish"])
    if expected.get("lenient"):
        return
    assert same(expected, "reasoning", message["reasoning"])
    calls = [
        {"name": c["function"]["name"], "arguments": json.loads(c["function"]["arguments"]), "id": c["id"]}
        for c in message["tool_calls"]
    ]
    assert calls == expected["tool_calls"]
    counts = expected["usage"]
    if counts is not None:
        assert usage is not None
        assert (usage.prompt, usage.completion) == (counts["prompt"], counts["completion"])
        assert (usage.cache_read, usage.cache_write) == (counts["cached"] or 0, counts["cache_write"] or 0)


@RECORDED
@pytest.mark.parametrize("exchange", recorded("converse"))
def test_recorded_converse(exchange: Json) -> None:
    expected, body, headers = exchange["expected"], body_of(exchange), exchange["response"]["headers"]
    status = exchange["response"]["status"]
    if status != 200:
        found = errors.read_error(status, headers, body, provider="aws")
        assert found.failure is CLASSES[expected["error"]["class"]]
        return
    if exchange["request"]["url"].endswith("/converse"):
        reply = read_reply(body, provider="aws")
        choice = reply.choices[0]
        message = choice["message"]
        made = {
            "content": message["content"],
            "reasoning": message.get("reasoning_content"),
            "tool_calls": message.get("tool_calls", []),
            "finish": choice["finish_reason"],
        }
        compare(expected, made, reply.usage)
        return
    rng = random.Random(7)
    for cuts in ([], list(range(len(body))), [rng.randrange(len(body)) for _ in range(30)]):
        chunks, r = chunks_of(body, cuts)
        if expected["outcome"] == "ok":
            assert r.done
            compare(expected, joined(chunks), r.usage)
            continue
        assert r.failure is not None
        if "error" in expected:
            assert joined(chunks)["content"] == expected["text"]
            assert r.failure.failure is CLASSES[expected["error"]["class"]]
        else:
            assert r.failure.failure in (FailureClass.MALFORMED, FailureClass.TRANSPORT)


@RECORDED
@pytest.mark.parametrize("exchange", recorded("count-tokens"))
def test_recorded_counts(exchange: Json) -> None:
    assert TYPE.count(body_of(exchange), spec()) == exchange["expected"]["tokens"]


@RECORDED
@pytest.mark.parametrize("exchange", recorded("models"))
def test_recorded_models(exchange: Json) -> None:
    assert [model["id"] for model in TYPE.read_models(body_of(exchange))] == exchange["expected"]["models"]
