"""The tap on a passing Messages stream: what leaves is whole events of the provider and nothing else, whatever the
cuts; ``message_stop`` alone ends a stream well; an error event never gets through (R9, R15, R63, R64, R66, R67)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import MalformedReply, TransportError, UpstreamError
from slipstream.types import FailureClass
from slipstream.wire.anthropic.tap import MessagesTap, check_count, check_message
from slipstream.wire.usage import Usage
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
DEV = SHARED / "wire" / "dev"


def event(kind: str, _name: str | None = None, **fields: Any) -> bytes:
    return f"event: {_name or kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


def start(**usage: int) -> bytes:
    usage = {"input_tokens": 9, "output_tokens": 1} | usage
    return event("message_start", message={"id": "msg_1", "type": "message", "content": [], "usage": usage})


def delta(text: str) -> bytes:
    return event("content_block_delta", index=0, delta={"type": "text_delta", "text": text})


def ending(reason: str | None = "end_turn", **usage: int) -> bytes:
    return event("message_delta", delta={"stop_reason": reason, "stop_sequence": None}, usage=usage)


PING = b'event: ping\ndata: {"type": "ping"}\n\n'
OPEN = event("content_block_start", index=0, content_block={"type": "text", "text": ""})
CLOSE = event("content_block_stop", index=0)
STOP = event("message_stop")
ERROR = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
GOOD = start() + PING + OPEN + delta("Hello") + delta(" you") + CLOSE + ending(output_tokens=7) + STOP


class Seen(NamedTuple):
    relayed: bytes
    done: bool
    finished: bool
    committed: bool
    content_events: int
    usage: Usage | None
    failure: tuple[str | None, int, FailureClass, str] | None


def watch(chunks: Iterable[bytes], *, end: bool = True, max_event: int = 1 << 20) -> Seen:
    tap = MessagesTap("p", max_event=max_event)
    out = []
    for chunk in chunks:
        if tap.over():
            break
        out.append(tap.feed(chunk))
    if end:
        out.append(tap.end())
    f = tap.failure
    failure = (f.code, f.status, f.failure, f.message) if f is not None else None
    assert tap.usage == tap.read_usage()
    return Seen(b"".join(out), tap.done, tap.finished, tap.committed, tap.content_events, tap.usage, failure)


def every_cut(stream: bytes) -> Seen:
    """What is seen, the same whole, byte by byte and cut in two anywhere."""
    whole = watch([stream])
    assert watch(stream[i : i + 1] for i in range(len(stream))) == whole
    for at in range(0, len(stream), max(1, len(stream) // 40)):
        assert watch([stream[:at], stream[at:]]) == whole
    return whole


# ---- what is relayed -------------------------------------------------------------------------------------------------


def test_a_good_stream_is_relayed_byte_for_byte() -> None:  # R64
    assert every_cut(GOOD) == Seen(GOOD, True, True, True, 2, Usage(9, 0, 0, 7, 0, "provider"), None)


@pytest.mark.parametrize("more", [GOOD, ERROR, b"data: [DONE]\n\n", b"garbage\n\n", b"\xff\xff\n\n", b"data: half"])
def test_nothing_follows_message_stop(more: bytes) -> None:
    assert every_cut(GOOD + more) == watch([GOOD])


def test_comments_unknown_events_and_unknown_deltas_pass() -> None:
    odd = (
        b": keep-alive\n\n" + event("something_new", x=1) + event("content_block_delta", index=0, delta={"type": "new"})
    )
    stream = start() + OPEN + odd + CLOSE + ending() + STOP
    assert every_cut(stream).relayed == stream


def test_blanks_before_the_last_brace() -> None:  # PROTOCOLS.md 2.3
    stream = b"".join(
        b"event: " + kind + b'\ndata: {"type":"' + kind + b'"' + rest + b"   }\n\n"
        for kind, rest in [
            (b"message_start", b',"message":{"usage":{"input_tokens":9,"output_tokens":1}}'),
            (b"content_block_delta", b',"index":0,"delta":{"type":"text_delta","text":"a"}'),
            (b"message_delta", b',"delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":4}'),
            (b"message_stop", b""),
        ]
    )
    seen = every_cut(stream)
    assert (seen.relayed, seen.usage, seen.failure) == (stream, Usage(9, 0, 0, 4, 0, "provider"), None)


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_lines_may_end_in_any_way(newline: bytes) -> None:  # PROTOCOLS.md 5
    stream = GOOD.replace(b"\n", newline)
    assert watch([stream]) == Seen(stream, *every_cut(GOOD)[1:])
    by_byte = watch(stream[i : i + 1] for i in range(len(stream)))
    assert by_byte[1:] == watch([GOOD])[1:]
    assert by_byte.relayed.replace(b"\r\n", b"\n").replace(b"\r", b"\n") == GOOD


def test_a_byte_order_mark_before_the_json() -> None:
    stream = GOOD.replace(b"data: {", b"data: \xef\xbb\xbf{")
    assert every_cut(stream) == Seen(stream, *every_cut(GOOD)[1:])


def test_nothing_is_read_after_the_end() -> None:
    tap = MessagesTap("p")
    assert (tap.feed(GOOD), tap.feed(GOOD), tap.end()) == (GOOD, b"", b"")


def test_events_without_a_name_are_read_from_their_json() -> None:
    """Some proxies lose the ``event:`` line; others name every event ``message``."""
    for line in (b"", b"event: message\n"):
        stream = b"".join(line + part[part.index(b"data:") :] + b"\n\n" for part in GOOD.split(b"\n\n") if part)
        assert every_cut(stream) == Seen(stream, *every_cut(GOOD)[1:])


def test_the_type_may_stand_anywhere() -> None:
    stream = b'data: {"index": 0, "delta": {"type": "text_delta", "text": "a"}, "type" : "content_block_delta"}\n\n'
    assert watch([stream], end=False)[3:5] == (True, 1)
    text = b'data: {"type":"ping","x":"content_block_delta"}\n\n'
    assert watch([text], end=False)[3:5] == (False, 0)


def test_a_last_event_without_its_blank_line_is_complete() -> None:  # PROTOCOLS.md 5
    assert every_cut(GOOD.removesuffix(b"\n")).relayed == GOOD
    assert every_cut(GOOD.removesuffix(b"\n\n")).relayed == GOOD


# ---- what commits (R9) -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "committed"),
    [
        (b"", False),
        (start(), False),
        (start() + PING + b": wait\n\n" + PING, False),
        (start() + ERROR, False),
        (start() + OPEN, True),
        (start() + PING + OPEN + delta("a"), True),
        (start() + ending("refusal"), True),  # a refusal has no content (#efd5e83f)
        (start() + ending(None), False),
        (start() + STOP, True),
    ],
)
def test_only_what_a_client_must_see_commits(stream: bytes, committed: bool) -> None:
    assert watch([stream], end=False).committed is committed


# ---- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [GOOD.removesuffix(STOP), start() + PING, start() + OPEN + delta("a"), b"", b"\n\n"])
def test_an_end_without_message_stop_is_a_failure(cut: bytes) -> None:  # R63, #d-cut
    seen = every_cut(cut)
    assert seen.relayed == cut
    assert not seen.done
    assert seen.failure is not None
    assert seen.failure[0] == "upstream_incomplete"
    tap = MessagesTap("p")
    tap.feed(cut)
    tap.end()
    assert isinstance(tap.failure, TransportError)


@pytest.mark.parametrize(
    ("kind", "failure", "status"),
    [
        ("overloaded_error", FailureClass.OVERLOADED, 529),
        ("rate_limit_error", FailureClass.RATE_LIMITED, 429),
        ("api_error", FailureClass.SERVER, 500),
        ("invalid_request_error", FailureClass.CLIENT_ERROR, 400),
        ("authentication_error", FailureClass.AUTH, 502),
        ("timeout_error", FailureClass.TIMEOUT, 504),
        ("what_is_this", FailureClass.SERVER, 502),
        (None, FailureClass.SERVER, 502),
    ],
)
@pytest.mark.parametrize("before", [b"", start(), start() + OPEN + delta("a")])
def test_an_error_event_is_a_failure_and_not_relayed(
    before: bytes, kind: str | None, failure: FailureClass, status: int
) -> None:  # R15, PROTOCOLS.md 1.6
    for named in ("error", "message"):
        broken = event("error", named, error={"type": kind, "message": "no such luck"})
        seen = every_cut(before + broken + delta("never"))
        assert seen.relayed == before
        assert seen.failure is not None
        assert seen.failure[1:3] == (status, failure)


@pytest.mark.parametrize(
    "garbage",
    [
        b"event: error\ndata: {}\n\n",
        b'event: error\ndata: {"error": "text"}\n\n',
        b'event: error\ndata: {"type":"error","error":{"type":7,"message":null}}\n\n',
        b"event: content_block_delta\ndata: {broken\n\n",
        b"event: content_block_delta\ndata: [1]\n\n",
        b"event: ping\ndata: \xff\n\n",
        b"<html><body>502</body></html>\n\n",
        b'error: {"message": "llama"}\n\n',
        b'data: {"error": {"message": "OpenAI\'s form"}}\n\n',
        b"data: [DONE]\n\n",
        b'data: {"type": "error"}\n\n',
        b"data: " + b'{"a":' * 600 + b"1" + b"}" * 600 + b"\n\n",
    ],
)
def test_garbage_is_a_failure(garbage: bytes) -> None:
    seen = every_cut(start() + OPEN + garbage + delta("never"))
    assert seen.relayed == start() + OPEN
    assert seen.failure is not None
    assert seen.failure[1] >= 500


def test_the_size_of_an_event_is_bounded() -> None:  # R33
    big = delta("x" * 4096)
    seen = watch([start() + OPEN, big[:2000], big[2000:]], max_event=1000)
    assert (seen.relayed, seen.done) == (start() + OPEN, False)
    assert seen.failure is not None
    assert seen.failure[2] is FailureClass.MALFORMED


# ---- usage (R67) -----------------------------------------------------------------------------------------------------


def test_counts_are_cumulative_and_the_last_one_counts() -> None:
    stream = start(input_tokens=10, cache_read_input_tokens=5, cache_creation_input_tokens=3) + OPEN
    stream += ending(input_tokens=20, output_tokens=30) + ending(output_tokens=40) + STOP
    assert watch([stream]).usage == Usage(20, 5, 3, 40, 0, "provider")


@pytest.mark.parametrize(
    "usage", [None, [], "x", {}, {"input_tokens": "9"}, {"input_tokens": -1}, {"output_tokens": True}]
)
def test_strange_usage_is_none(usage: Any) -> None:
    stream = event("message_start", message={"usage": usage}) + event("message_delta", delta=None, usage=usage) + STOP
    stream += event("message_start", message=None)
    assert watch([stream]).usage is None


# ---- whole messages (R66) --------------------------------------------------------------------------------------------


def test_a_whole_message() -> None:
    body = {
        "type": "message",
        "content": [{"type": "text", "text": "hi"}],
        "usage": {"input_tokens": 3, "output_tokens": 4},
    }
    assert check_message(json.dumps(body).encode(), "p") == Usage(3, 0, 0, 4, 0, "provider")
    assert check_message(b"\xef\xbb\xbf \n" + json.dumps(body, indent=1).encode(), "p") is not None
    for usage in (None, [], 7):
        assert check_message(json.dumps(body | {"usage": usage}).encode(), "p") is None
    del body["usage"]
    assert check_message(json.dumps(body).encode(), "p") is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"null",
        b"[]",
        b"<html>",
        b'{"type":"message"}',
        b'{"type":"message","content":null}',
        b'{"type":"message","content":"text"}',
        b'{"type":"completion","content":[]}',
        b'{"type":null,"content":[]}',
        b'{"type":"message","content":[]',
        b"\xff\xfe",
        b'{"choices":[]}',
        b"[" * 100_000,
    ],
)
def test_what_is_no_message_is_malformed(body: bytes) -> None:
    with pytest.raises(MalformedReply):
        check_message(body, "p")


@pytest.mark.parametrize(
    ("body", "failure"),
    [
        ({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, FailureClass.OVERLOADED),
        ({"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}}, FailureClass.RATE_LIMITED),
        ({"error": {"message": "boom"}}, FailureClass.SERVER),
        ({"error": "text"}, FailureClass.SERVER),
    ],
)
def test_an_error_in_disguise(body: Any, failure: FailureClass) -> None:
    with pytest.raises(UpstreamError) as caught:
        check_message(json.dumps(body).encode(), "p")
    assert caught.value.failure is failure
    assert caught.value.upstream_status == 200


def test_a_whole_count() -> None:  # #59a11748
    check_count(b' {"input_tokens":14}', "p")
    for body in (b"", b"[]", b"{}", b'{"input_tokens":null}', b'{"input_tokens":"14"}', b"<html>"):
        with pytest.raises(MalformedReply):
            check_count(body, "p")
    with pytest.raises(UpstreamError) as caught:
        check_count(b'{"type":"error","error":{"type":"rate_limit_error","message":"slow"}}', "p")
    assert caught.value.failure is FailureClass.RATE_LIMITED


# ---- recorded exchanges ----------------------------------------------------------------------------------------------


def recorded(endpoint: str) -> list[Any]:
    found = []
    for path in sorted(DEV.glob("*.messages.*.json")) if DEV.is_dir() else []:
        exchange = json.loads(path.read_text())
        if exchange["api"] == "messages" and exchange["endpoint"] == endpoint:
            found.append(pytest.param(exchange, id=Path(path).stem))
    return found or [pytest.param(None, marks=pytest.mark.skip(reason="the shared folder with recordings is not here"))]


def same_usage(usage: Usage | None, expected: Any) -> None:
    if expected is None:
        assert usage is None
        return
    assert usage is not None
    got = {
        "prompt": usage.prompt,
        "completion": usage.completion,
        "cached": usage.cache_read,
        "cache_write": usage.cache_write,
    }
    assert {name: count for name, count in got.items() if expected[name] is not None} == {
        name: expected[name] for name in got if expected[name] is not None
    }


@pytest.mark.parametrize("exchange", recorded("stream"))
def test_recorded_streams_pass_unchanged_in_any_pieces(exchange: Any) -> None:
    body, expected = exchange["response"]["body"].encode(), exchange["expected"]
    seen = every_cut(body)
    same_usage(seen.usage, expected["usage"])
    if expected["outcome"] == "ok":
        assert (seen.relayed, seen.done, seen.failure) == (body, True, None)
    else:
        assert seen.failure is not None
        assert body.startswith(seen.relayed)
        assert b"event: error" not in seen.relayed


@pytest.mark.parametrize("exchange", recorded("chat"))
def test_recorded_messages_are_good(exchange: Any) -> None:
    same_usage(check_message(exchange["response"]["body"].encode(), "p"), exchange["expected"]["usage"])


# ---- any stream ------------------------------------------------------------------------------------------------------

EVENTS = [
    start(),
    PING,
    OPEN,
    CLOSE,
    delta("a"),
    delta("\u2028ü"),
    ending(output_tokens=3),
    STOP,
    ERROR,
    b"data: x\n\n",
]


@fuzz
@given(st.lists(st.sampled_from(EVENTS), max_size=8), st.data())
def test_any_stream_in_any_pieces_is_relayed_up_to_its_end(parts: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    seen = watch(pieces)
    assert seen == watch([stream])
    over = next((i for i, part in enumerate(parts) if part in (STOP, ERROR, EVENTS[-1])), None)
    kept = parts if over is None else parts[: over + (parts[over] == STOP)]
    assert seen.relayed == b"".join(kept)
    assert seen.done == (seen.failure is None) == (over is not None and parts[over] == STOP)


@fuzz
@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_are_survived(pieces: list[bytes]) -> None:
    seen = watch(pieces)
    assert seen.done or seen.failure is not None
