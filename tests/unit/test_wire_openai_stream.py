"""The side tap on a passing stream: what leaves is whole events of the provider and nothing else, whatever the cuts;
only a finish reason or ``[DONE]`` makes a stream complete (R9, R63, R64, R68)."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import MalformedReply, TransportError, UpstreamError
from slipstream.providers.base import OPENAI_ENDPOINTS
from slipstream.types import Endpoint, FailureClass
from slipstream.wire.openai_stream import DONE_EVENT, StreamTap, check_reply, reply_usage
from tests.fakes import DONE, FINISH, ROLE, USAGE, USAGE_EVENT, answer, delta, event

CHAT, COMPLETIONS, EMBEDDINGS = Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS
fuzz = settings(deadline=None, derandomize=True, max_examples=80)
HELLO = delta("Hello")
COMMENT = b": OPENROUTER PROCESSING\n\n"


class Seen(NamedTuple):
    relayed: bytes
    done: bool
    finished: bool
    committed: bool
    content_events: int
    usage: bytes | None
    failure: tuple[str | None, int, FailureClass, str] | None


def tap(*, keep_usage: bool = False, max_event: int = 1 << 20) -> StreamTap:
    return StreamTap(provider="p", keep_usage=keep_usage, max_event=max_event)


def watch(chunks: Iterable[bytes], *, end: bool = True, **options: Any) -> Seen:
    """Feed as the relay does: until the tap has had enough, then the clean end."""
    t = tap(**options)
    out = []
    for chunk in chunks:
        if t.over():
            break
        out.append(t.feed(chunk))
    if end:
        out.append(t.end())
    f = t.failure
    failure = (f.code, f.status, f.failure, f.message) if f is not None else None
    return Seen(b"".join(out), t.done, t.finished, t.committed, t.content_events, t.usage, failure)


def by_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def every_cut(stream: bytes, **options: Any) -> Seen:
    """What is seen, the same whole, byte by byte and cut in two anywhere."""
    whole = watch([stream], **options)
    assert watch(by_byte(stream), **options) == whole
    for at in range(0, len(stream), max(1, len(stream) // 40)):
        assert watch([stream[:at], stream[at:]], **options) == whole
    return whole


# ---- what is relayed -------------------------------------------------------------------------------------------------


def test_a_good_stream_is_relayed_byte_for_byte() -> None:  # R64
    stream = COMMENT + ROLE + HELLO + delta(" you") + FINISH + DONE
    assert every_cut(stream) == Seen(stream, True, True, True, 2, None, None)


@pytest.mark.parametrize("keep", [True, False])
def test_the_usage_chunk_is_read_and_dropped_unless_asked_for(keep: bool) -> None:  # R68
    seen = every_cut(HELLO + FINISH + USAGE_EVENT + DONE, keep_usage=keep)
    assert seen.relayed == HELLO + FINISH + (USAGE_EVENT if keep else b"") + DONE
    assert seen.usage is not None
    assert b'"prompt_tokens": 11' in seen.usage
    assert seen.failure is None


def test_usage_on_a_chunk_with_choices_stays() -> None:
    stream = HELLO + delta("!", finish="stop", usage=USAGE) + DONE
    seen = every_cut(stream)
    assert seen.relayed == stream
    assert seen.usage is not None


def test_null_usage_is_no_usage() -> None:
    stream = delta("a", usage=None) + event({"choices": [], "usage": None}) + FINISH + DONE
    assert every_cut(stream)[::5] == (stream, None)


def test_an_empty_choices_chunk_without_usage_stays() -> None:
    """Azure's prompt filter results come so."""
    stream = event({"choices": [], "prompt_filter_results": [{}]}) + HELLO + FINISH + DONE
    assert every_cut(stream).relayed == stream


def test_usage_twice_counts_the_last() -> None:  # Groq, PROTOCOLS.md 1.4
    groq = event({"choices": [{"delta": {}, "finish_reason": "stop"}], "x_groq": {"usage": {"prompt_tokens": 1}}})
    seen = every_cut(HELLO + groq + USAGE_EVENT + DONE)
    assert seen.relayed == HELLO + groq + DONE
    assert seen.usage is not None
    assert b"18" in seen.usage


@pytest.mark.parametrize("more", [HELLO, DONE, b"garbage\n\n", b'{"error":{}}', b"\xff\xff\n\n", b"data: half"])
def test_nothing_follows_done(more: bytes) -> None:
    stream = HELLO + FINISH + DONE
    assert every_cut(stream + more) == watch([stream])
    assert every_cut(stream + more).failure is None


@pytest.mark.parametrize(
    "done",
    [
        b"data:[DONE]\n\n",
        b"data: [DONE] \n\n",
        b"data:  [DONE]\n\n",
        b"data: [DONE]\r\n\r\n",
        b"id: 1\ndata: [DONE]\n\n",
    ],
)
def test_done_in_other_spellings(done: bytes) -> None:
    seen = watch(by_byte(HELLO + FINISH + done))
    assert seen.done
    assert seen.relayed.startswith(HELLO + FINISH)


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_line_ends_and_odd_spellings(end: bytes) -> None:  # R64
    lines = [b"event: x", HELLO.strip(), b"", b":c", b"data:{", b'data: "choices":[]}', b"", b"id: 1", b"retry: 5", b""]
    stream = end.join([*lines, FINISH.strip(), b"", b"data: [DONE]", b"", b""])
    for chunks in ([stream], by_byte(stream)):
        seen = watch(chunks)
        # An LF that completes a CRLF which was cut in two belongs to no event and is not sent on.
        assert seen.relayed.replace(b"\r\n", b"\r").replace(b"\n", b"\r") == stream.replace(b"\r\n", b"\r").replace(
            b"\n", b"\r"
        )
        assert (seen.done, seen.content_events, seen.failure) == (True, 1, None)


def test_a_byte_order_mark_is_not_an_event() -> None:
    stream = HELLO + FINISH + DONE
    assert every_cut(b"\xef\xbb\xbf" + stream).relayed == stream


@pytest.mark.parametrize("last", [b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r"])
def test_a_server_that_forgets_the_last_blank_line(last: bytes) -> None:
    seen = every_cut(HELLO + FINISH + last)
    assert seen == (HELLO + FINISH + DONE, True, True, True, 1, None, None)


def test_a_last_content_event_without_its_blank_line_is_complete_too() -> None:
    seen = every_cut(HELLO + b'data: {"choices":[{"delta":{},\ndata: "finish_reason":"stop"}]}')
    assert seen.relayed == HELLO + b'data: {"choices":[{"delta":{},\ndata: "finish_reason":"stop"}]}\n\n' + DONE_EVENT
    assert seen.failure is None


# ---- complete or cut -------------------------------------------------------------------------------------------------


def test_finish_without_done_is_complete_and_done_is_added() -> None:  # R63, S-35
    assert every_cut(HELLO + FINISH) == (HELLO + FINISH + DONE, True, True, True, 1, None, None)
    assert every_cut(HELLO + FINISH + USAGE_EVENT).relayed == HELLO + FINISH + DONE


@pytest.mark.parametrize("stream", [b"", b"\n\n", COMMENT, ROLE, HELLO, ROLE + HELLO + USAGE_EVENT])
def test_a_stream_that_just_ends_is_cut(stream: bytes) -> None:  # R63: usage does not end a stream
    seen = every_cut(stream)
    assert not seen.done
    assert seen.failure is not None
    assert seen.failure[:3] == ("upstream_incomplete", 502, FailureClass.TRANSPORT)
    assert b"[DONE]" not in seen.relayed


def test_half_an_event_is_never_relayed() -> None:  # S-12
    stream = HELLO + delta("x") + FINISH + DONE
    borders = [0, len(HELLO), len(HELLO + delta("x")), len(HELLO + delta("x") + FINISH), len(stream)]
    for size in range(len(stream)):
        relayed = watch([stream[:size]], end=False).relayed
        assert relayed == stream[: max(b for b in borders if b <= size)]
        cut = watch([stream[:size]])
        assert cut.relayed.endswith(b"\n\n") or not cut.relayed
        assert cut.done or cut.failure is not None


def test_end_after_the_end_adds_nothing() -> None:
    t = tap()
    assert t.feed(HELLO + FINISH + DONE)
    assert (t.end(), t.end(), t.feed(HELLO)) == (b"", b"", b"")
    assert t.failure is None


# ---- commit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "chunk",
    [ROLE, COMMENT, USAGE_EVENT, event({}), event({"choices": []}), delta(""), b"event: ping\n\n",
     event({"choices": [{"delta": {"role": "assistant", "content": None, "refusal": None}, "finish_reason": None}]})],
)  # fmt: skip
def test_lifecycle_frames_do_not_commit(chunk: bytes) -> None:  # R9
    t = tap()
    t.feed(chunk)
    assert not t.committed
    assert t.content_events == 0


@pytest.mark.parametrize(
    "inner",
    [
        {"delta": {"content": "x"}},
        {"delta": {"role": "assistant", "content": "x"}},
        {"delta": {"refusal": "no"}},
        {"delta": {"reasoning_content": "x"}},
        {"delta": {"reasoning": "x"}},
        {"delta": {"tool_calls": [{"index": 0}]}},
        {"delta": {"function_call": {"name": "f"}}},
        {"text": "x"},
    ],
)
def test_content_commits_and_is_counted(inner: dict[str, Any]) -> None:  # R9, R8
    t = tap()
    t.feed(event({"choices": [inner]}))
    assert t.committed
    assert t.content_events == 1
    assert not t.over()


@pytest.mark.parametrize("chunk", [FINISH, DONE])
def test_finish_and_done_commit(chunk: bytes) -> None:
    t = tap()
    t.feed(chunk)
    assert t.committed


# ---- failures in a 200 -----------------------------------------------------------------------------------------------

ERRORS = [
    pytest.param(event({"error": {"message": "busy", "code": 429}}), 429, FailureClass.RATE_LIMITED, id="openai"),
    pytest.param(
        event({"error": {"message": "busy", "type": "server_error", "code": None}}), 502, FailureClass.SERVER, id="type"
    ),
    pytest.param(
        b"event: error\n" + event({"error": {"message": "busy", "status_code": 400}}), 400, FailureClass.CLIENT_ERROR,
        id="groq",
    ),
    pytest.param(
        event({"id": "g", "error": {"code": 502, "message": "busy"}, "choices": []}), 502, FailureClass.SERVER,
        id="openrouter-empty",
    ),
    pytest.param(
        event({"error": {"code": "503", "message": "busy"}, "choices": [{"delta": {"content": ""}}]}), 503,
        FailureClass.OVERLOADED, id="openrouter-delta",
    ),
    pytest.param(event({"error": "busy"}), 502, FailureClass.SERVER, id="string"),
    pytest.param(
        b'error: {"message":"busy","code":500}\n\n', 500, FailureClass.SERVER, id="llama-box",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "status", "failure"), ERRORS)
@pytest.mark.parametrize("before", [b"", ROLE, ROLE + HELLO], ids=["first", "role", "mid"])
def test_an_error_in_the_stream(frame: bytes, status: int, failure: FailureClass, before: bytes) -> None:
    """PROTOCOLS.md 1.6; R15, S-36, S-37: it is never relayed raw, and nothing behind it is."""
    seen = every_cut(before + frame + HELLO + DONE)
    assert seen.relayed == before
    assert not seen.done
    assert seen.failure is not None
    assert seen.failure[1:] == (status, failure, "busy")
    assert seen.committed == (HELLO in before)


def test_null_error_is_no_error() -> None:
    stream = delta("a", error=None) + FINISH + DONE
    assert every_cut(stream).relayed == stream


def test_an_auth_error_in_the_stream_hides_its_text() -> None:  # R56
    seen = watch([event({"error": {"message": "bad key sk-canary", "code": "invalid_api_key"}})])
    assert seen.failure is not None
    assert seen.failure[:3] == ("upstream_auth_error", 502, FailureClass.AUTH)
    assert "canary" not in seen.failure[3]


@pytest.mark.parametrize(
    "garbage",
    [
        b'{\n  "error": {"code": 429}\n}\n\n',  # Gemini's bare JSON
        b"<html><body>Bad gateway</body></html>\n\n",
        b"data: {not json}\n\n",
        b'data: {"choices":[{"delta":{"content":"x"}}]\n\n',
        b"data: \xff\xfe\n\n",
        b"data: null\n\n",
        b"data: [1]\n\n",
        b'data: "x"\n\n',
    ],
)
@pytest.mark.parametrize("before", [b"", HELLO], ids=["first", "mid"])
def test_what_is_not_a_chunk_ends_the_stream(garbage: bytes, before: bytes) -> None:  # R66, S-33, S-34
    seen = every_cut(before + garbage + HELLO + DONE)
    assert seen.relayed == before
    assert not seen.done
    assert seen.failure is not None
    assert seen.failure[:3] == ("upstream_malformed_response", 502, FailureClass.MALFORMED)


def test_an_event_beyond_the_limit_fails_and_keeps_what_came_before() -> None:  # S-38, R27
    huge = delta("x" * 500)
    seen = every_cut(HELLO + HELLO + huge + DONE, max_event=200)
    assert seen.relayed == HELLO + HELLO
    assert seen.content_events == 2
    assert seen.failure is not None
    assert seen.failure[:3] == ("upstream_malformed_response", 502, FailureClass.MALFORMED)


def test_comments_do_not_count_against_the_limit() -> None:
    stream = COMMENT.strip() * 50 + b"\n" + HELLO + FINISH + DONE
    assert watch([stream], max_event=200).failure is None


# ---- any stream, any cuts --------------------------------------------------------------------------------------------

texts = st.text(alphabet=st.characters(codec="utf-8"), min_size=1, max_size=6)
frames = st.one_of(
    texts.map(delta),
    st.sampled_from([ROLE, COMMENT, USAGE_EVENT, event({"choices": []}), b"\n", b"id: 7\n\n"]),
    texts.map(lambda t: delta(t, usage=USAGE)),
    texts.map(lambda t: event({"choices": [{"delta": {"content": t}}, {"delta": {"content": t}}]})),
)


@fuzz
@given(st.lists(frames, max_size=8), st.booleans(), st.booleans(), st.lists(st.integers(0, 2000), max_size=6))
def test_relayed_is_the_stream_less_what_is_dropped(
    events: list[bytes], keep: bool, with_done: bool, cuts: list[int]
) -> None:  # R64, R68
    events = [*events, FINISH, *([DONE] if with_done else [])]
    stream = b"".join(events)
    borders = [0, *sorted(min(c, len(stream)) for c in cuts), len(stream)]
    chunks = [stream[a:b] for a, b in pairwise(borders)]
    seen = watch([c for c in chunks if c], keep_usage=keep)
    kept = [e for e in events if keep or e != USAGE_EVENT]
    assert seen.relayed == b"".join(kept) + (b"" if with_done else DONE)
    assert (seen.done, seen.failure) == (True, None)
    assert seen.content_events == sum(b'"content": "' in e and e != ROLE for e in events)
    assert seen == watch(by_byte(stream), keep_usage=keep)


@fuzz
@given(st.lists(st.one_of(frames, st.binary(max_size=12)), max_size=6), st.integers(1, 7))
def test_no_bytes_make_it_raise_or_relay_half(parts: list[bytes], size: int) -> None:  # R66
    stream = b"".join(parts)
    seen = watch([stream[i : i + size] for i in range(0, len(stream), size)])
    assert seen.done != (seen.failure is not None)
    assert seen.relayed == b"" or seen.relayed[-1:] in (b"\n", b"\r")
    assert seen.relayed.replace(DONE, b"") in stream.replace(USAGE_EVENT, b"") or b"\r" in stream or seen.done


# ---- whole replies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
def test_a_good_reply_gives_its_usage(endpoint: Endpoint) -> None:
    body = answer(endpoint)
    usage = reply_usage(check_reply(endpoint, body, "p"), body)
    assert usage is not None
    assert usage.prompt == 11
    body = answer(endpoint, usage=None)
    assert reply_usage(check_reply(endpoint, body, "p"), body) is None


@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"choices":[', b'{"choices":null,"data":null}', b'{"choices":{},"data":"x"}',
     b"<html></html>", b'{"choices":[],"data":[],"x":"\xff"}', b"data: {}\n\n"],
)  # fmt: skip
def test_a_malformed_200_is_told(endpoint: Endpoint, body: bytes) -> None:  # R66, S-31..S-34
    with pytest.raises(MalformedReply) as caught:
        check_reply(endpoint, body, provider="p")
    assert caught.value.status == 502


def test_each_endpoint_wants_its_own_shape() -> None:
    for endpoint, other in ((CHAT, EMBEDDINGS), (COMPLETIONS, EMBEDDINGS), (EMBEDDINGS, CHAT)):
        with pytest.raises(MalformedReply):
            check_reply(endpoint, answer(other), provider="p")


@pytest.mark.parametrize("endpoint", sorted(OPENAI_ENDPOINTS))
@pytest.mark.parametrize("more", ["", ',"choices":[]', ',"choices":[{"message":{"content":""}}]'])
def test_an_error_in_a_200_body(endpoint: Endpoint, more: str) -> None:  # OpenRouter, PROTOCOLS.md 1.5
    body = b' \n {"error":{"message":"slow down","code":429}' + more.encode() + b"}"
    with pytest.raises(UpstreamError) as caught:
        check_reply(endpoint, body, provider="p")
    assert (caught.value.status, caught.value.failure) == (429, FailureClass.RATE_LIMITED)


def test_an_answer_with_a_null_error_or_a_warning_is_an_answer() -> None:
    for body in (
        b'{"error":null,"choices":[]}',
        b'{"error":{"message":"w"},"choices":[{"message":{"content":"text"}}]}',
    ):
        assert reply_usage(check_reply(CHAT, body, "p"), body) is None


def test_the_cut_failure_is_a_transport_error() -> None:
    t = tap()
    t.end()
    assert isinstance(t.failure, TransportError)
