"""What Gemini says, read into canonical terms: recorded exchanges in every cut, and what may be missing or wrong in an
answer (PROTOCOLS.md 1.3 to 1.6, 2.4; R15, R60, R61, R63, R64, R66, R67)."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.errors import ClientError, MalformedReply, TransportError, UpstreamError
from slipstream.providers.gemini import TYPE, resource
from slipstream.types import FailureClass, Secret
from slipstream.wire.canonical import Chunk, Json
from slipstream.wire.gemini import reader as reader_module
from slipstream.wire.gemini.framing import JsonSplitter
from slipstream.wire.gemini.reader import GeminiReader
from slipstream.wire.gemini.reply import read_reply, read_usage
from slipstream.wire.usage import Usage
from tests.fakes import spec
from tests.harness import SHARED

fuzz = settings(deadline=None, derandomize=True, max_examples=60)
GOOGLE = spec("g", type="gemini", api_base="https://g.test/v1beta")
VERTEX = spec("v", type="gemini", api_base="https://v.test/v1/projects/p/locations/l/publishers/google")
FOLDER = SHARED / "wire" / "dev"


def recorded(*endpoints: str) -> list[Any]:
    """The recorded exchanges of these kinds as parameters; one that says why, if the folder is not here."""
    files = sorted(FOLDER.glob("gemini.*.json"))
    if not files:
        return [pytest.param({}, marks=pytest.mark.skip(reason=f"no recorded exchanges in {FOLDER}"))]
    exchanges = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return [pytest.param(one, id=one["id"]) for one in exchanges if one["endpoint"] in endpoints]


# ---- reading a stream, whatever the cuts ---------------------------------------------------------------------------


class Heard:
    """All that a reader made of a stream."""

    def __init__(self, pieces: Iterable[bytes], *, end: bool = True) -> None:
        self.reader = GeminiReader(provider="g")
        self.chunks: list[Chunk] = []
        for piece in pieces:
            self.chunks += self.reader.feed(piece)
        if end:
            self.chunks += self.reader.end()

    def joined(self, key: str, index: int = 0) -> str:
        return "".join(chunk.delta.get(key, "") for chunk in self.chunks if chunk.index == index)

    @property
    def calls(self) -> list[Json]:
        return [call for chunk in self.chunks for call in chunk.delta.get("tool_calls", ())]

    @property
    def finish(self) -> list[tuple[int, str, str | None]]:
        return [(c.index, c.finish_reason, c.native_finish) for c in self.chunks if c.finish_reason is not None]

    @property
    def failure(self) -> UpstreamError | None:
        return self.reader.failure

    def seen(self) -> Any:
        """Everything but the ids that we made ourselves, in a form that can be compared."""
        reader, failure = self.reader, self.reader.failure
        for call in self.calls:
            if call["id"].startswith("call_"):
                call["id"] = "made"
        told = None if failure is None else (failure.code, failure.status, failure.failure, failure.message)
        chunks = [(c.index, c.delta, c.finish_reason, c.native_finish, c.logprobs) for c in self.chunks]
        return chunks, reader.usage, reader.id, reader.model, reader.created, reader.done, told


def by_byte(stream: bytes) -> list[bytes]:
    return [stream[i : i + 1] for i in range(len(stream))]


def at_random(stream: bytes, seed: int) -> list[bytes]:
    rnd, out, at = random.Random(seed), [], 0
    while at < len(stream):
        size = rnd.choice((1, 2, 3, 17, 250))
        out.append(stream[at : at + size])
        at += size
    return out


def every_cut(stream: bytes) -> Heard:
    """What is heard, the same whole, byte by byte and in random pieces (R64)."""
    whole = Heard([stream])
    seen = whole.seen()
    assert Heard(by_byte(stream)).seen() == seen
    for seed in range(3):
        assert Heard(at_random(stream, seed)).seen() == seen
    return whole


def sse(*events: Any, end: str = "\r\n") -> bytes:
    return b"".join(f"data: {json.dumps(one, ensure_ascii=False)}{end}{end}".encode() for one in events)


def array(*elements: Any) -> bytes:
    return ("[" + "\n,\r\n".join(json.dumps(one, indent=2, ensure_ascii=False) for one in elements) + "\n]").encode()


def answer(*parts: Any, finish: Any = None, **more: Any) -> Json:
    """One event or answer with one candidate."""
    candidate: Json = {"content": {"role": "model", "parts": list(parts)}, "index": 0}
    if finish is not None:
        candidate["finishReason"] = finish
    return {"candidates": [candidate], **more}


def text(words: str, **more: Any) -> Json:
    return answer({"text": words}, **more)


def call(name: str, **args: Any) -> Json:
    return {"functionCall": {"name": name, "args": args}}


# ---- recorded exchanges --------------------------------------------------------------------------------------------


def body_of(exchange: Json) -> bytes:
    return str(exchange["response"]["body"]).encode("utf-8", "surrogatepass")


def accepted(expected: Json, field: str, value: Any) -> list[Any]:
    return [value, *expected.get("accept", {}).get(field, ())]


def check_usage(expected: Json, usage: Usage | None) -> None:
    wanted = expected["usage"]
    if wanted is None:
        return
    assert usage is not None
    assert usage.prompt in accepted(expected, "usage.prompt", wanted["prompt"])
    assert usage.completion == wanted["completion"]
    assert usage.prompt + usage.completion in accepted(expected, "usage.total", wanted["total"])
    assert usage.cache_read == (wanted["cached"] or 0)
    assert usage.reasoning == (wanted["reasoning"] or 0)
    assert usage.source == "provider"


def check_calls(expected: Json, calls: list[Json]) -> None:
    assert len({one["id"] for one in calls}) == len(calls)
    for wanted, got in zip(expected["tool_calls"], calls, strict=True):
        assert got["type"] == "function"
        assert got["function"]["name"] == wanted["name"]
        assert json.loads(got["function"]["arguments"]) == wanted["arguments"]
        assert got["id"] == wanted.get("id", got["id"])


@pytest.mark.parametrize("exchange", recorded("stream"))
def test_recorded_streams(exchange: Json) -> None:  # R60, R64, R67
    expected = exchange["expected"]
    heard = every_cut(body_of(exchange))
    if expected["outcome"] == "ok":
        assert heard.failure is None
        assert heard.reader.done
        assert [(f, n) for _, f, n in heard.finish] == [(expected["finish_reason"], expected["native_finish_reason"])]
    else:
        assert heard.failure is not None
        assert not heard.reader.done
        assert heard.finish == []
    assert heard.joined("content") == expected["text"]
    assert heard.joined("reasoning_content") == (expected["reasoning"] or "")
    check_calls(expected, heard.calls)
    check_usage(expected, heard.reader.usage)
    if expected.get("error", {}).get("class") == "overloaded":  # R15
        assert heard.failure is not None
        assert (heard.failure.failure, heard.failure.status) == (FailureClass.OVERLOADED, 503)


@pytest.mark.parametrize("exchange", recorded("stream"))
def test_an_array_and_an_event_stream_say_the_same(exchange: Json) -> None:
    body = body_of(exchange)
    if not body.lstrip().startswith(b"["):
        pytest.skip("not recorded as an array")
    assert Heard([body]).seen() == Heard([sse(*json.loads(body))]).seen()


@pytest.mark.parametrize("exchange", recorded("chat"))
def test_recorded_replies(exchange: Json) -> None:  # R60, R67
    expected = exchange["expected"]
    reply = TYPE.reply(body_of(exchange), {}, GOOGLE)
    [choice] = reply.choices
    message = choice["message"]
    assert (message["content"] or "") == expected["text"]
    assert message.get("reasoning_content") == expected["reasoning"]
    assert choice["finish_reason"] == expected["finish_reason"]
    assert choice["native_finish_reason"] == expected["native_finish_reason"]
    check_calls(expected, message.get("tool_calls", []))
    check_usage(expected, reply.usage)
    assert reply.id
    assert reply.model


@pytest.mark.parametrize("exchange", recorded("chat"))
def test_a_reply_and_its_stream_say_the_same(exchange: Json) -> None:  # R60
    body = body_of(exchange)
    [choice] = TYPE.reply(body, {}, GOOGLE).choices
    heard = Heard([sse(json.loads(body))])
    message = choice["message"]
    assert heard.finish == [(0, choice["finish_reason"], choice["native_finish_reason"])]
    assert heard.joined("content") == (message["content"] or "")
    strip = [{k: v for k, v in one.items() if k not in ("index", "id")} for one in heard.calls]
    assert strip == [{k: v for k, v in one.items() if k != "id"} for one in message.get("tool_calls", [])]
    logprobs = [chunk.logprobs for chunk in heard.chunks if chunk.logprobs is not None]
    assert logprobs == ([choice["logprobs"]] if "logprobs" in choice else [])


CLASSES = {
    "bad_request": FailureClass.CLIENT_ERROR,
    "permission": FailureClass.PERMISSION,
    "not_found": FailureClass.NOT_FOUND,
    "rate_limited": FailureClass.RATE_LIMITED,
    "overloaded": FailureClass.OVERLOADED,
    "server_error": FailureClass.SERVER,
    "auth": FailureClass.AUTH,
    "quota_exhausted": FailureClass.QUOTA,
    "context_too_long": FailureClass.CONTEXT,
    "timeout": FailureClass.TIMEOUT,
}


@pytest.mark.parametrize("exchange", recorded("error"))
def test_recorded_errors(exchange: Json) -> None:
    wanted = exchange["expected"]["error"]
    error = TYPE.error(exchange["response"]["status"], {}, body_of(exchange), GOOGLE, None)
    assert error.failure in [CLASSES[name] for name in wanted.get("class_accept", [wanted["class"]])]
    assert error.status == wanted["status"]
    assert error.retry_after_s == wanted.get("retry_after_s")
    assert error.upstream_status == exchange["response"]["status"]


@pytest.mark.parametrize("exchange", recorded("embeddings"))
def test_recorded_embeddings(exchange: Json) -> None:
    wanted = exchange["expected"]["embedding"]
    vectors, _ = TYPE.embeddings(body_of(exchange), {}, GOOGLE)
    assert (len(vectors), len(vectors[0])) == (wanted["n"], wanted["dims"])
    assert vectors[0][:3] == wanted["first"]


@pytest.mark.parametrize("exchange", recorded("count-tokens"))
def test_recorded_counts(exchange: Json) -> None:
    assert TYPE.count(body_of(exchange), GOOGLE) == exchange["expected"]["tokens"]


@pytest.mark.parametrize("exchange", recorded("models"))
def test_recorded_models(exchange: Json) -> None:
    models = TYPE.read_models(body_of(exchange))
    assert [model["id"] for model in models] == [
        name.removeprefix("models/") for name in exchange["expected"]["models"]
    ]


# ---- streams -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_line_ends_and_text_of_several_bytes(end: str) -> None:  # R64, PROTOCOLS 5
    heard = every_cut(sse(text("秋 \u2028"), text("🙂", finish="STOP"), end=end))
    assert heard.joined("content") == "秋 \u2028🙂"
    assert heard.finish == [(0, "stop", "STOP")]


def test_the_last_blank_line_may_be_forgotten() -> None:
    assert every_cut(sse(text("Hi", finish="STOP")).rstrip()).finish == [(0, "stop", "STOP")]


def test_comments_boms_blanks_and_a_done_of_a_proxy_are_nothing() -> None:
    stream = b"\xef\xbb\xbf: hello\n\n\n" + sse(text("Hi", finish="STOP")) + b"data: [DONE]\n\n"
    assert every_cut(stream).joined("content") == "Hi"
    assert every_cut(b"\n \n" + array(text("Hi", finish="STOP"))).joined("content") == "Hi"


@pytest.mark.parametrize("frame", [sse, array])
def test_the_finish_reason_is_told_once_and_the_last_counts(frame: Any) -> None:  # recorded: #e9a60513
    stream = frame(text("a", finish="STOP"), text("b", finish="STOP"), {"candidates": [{"finishReason": "RECITATION"}]})
    heard = every_cut(stream)
    assert heard.joined("content") == "ab"
    assert heard.finish == [(0, "content_filter", "RECITATION")]


@pytest.mark.parametrize("frame", [sse, array])
def test_usage_is_the_last_that_was_said_wherever_it_comes(frame: Any) -> None:  # R63, R67, PROTOCOLS 2.4
    heard = every_cut(
        frame(
            text("a", usageMetadata={"promptTokenCount": 59, "totalTokenCount": 59}),
            text("b", finish="STOP", usageMetadata={"promptTokenCount": 128, "candidatesTokenCount": 2}),
            {"usageMetadata": {"promptTokenCount": 129, "candidatesTokenCount": 3, "totalTokenCount": 132}},
            {"usageMetadata": {"trafficType": "ON_DEMAND"}},
        )
    )
    assert heard.reader.usage == Usage(129, 0, 0, 3, 0, "provider")
    assert heard.reader.done


def test_candidates_have_their_own_text_calls_and_finish() -> None:
    def one(index: int | None, words: str, finish: str | None = None) -> Json:
        more = {} if index is None else {"index": index}
        return {"content": {"parts": [{"text": words}]}, **more, **({"finishReason": finish} if finish else {})}

    heard = every_cut(
        sse(
            {"candidates": [one(None, "a"), one(1, "x")]},
            {"candidates": [one(1, "y", "MAX_TOKENS")]},
            {"candidates": [one(0, "b", "STOP")]},
        )
    )
    assert (heard.joined("content", 0), heard.joined("content", 1)) == ("ab", "xy")
    assert heard.finish == [(0, "stop", "STOP"), (1, "length", "MAX_TOKENS")]


def test_calls_in_one_event_and_in_several() -> None:  # R60, PROTOCOLS 2.4
    heard = every_cut(
        sse(answer(call("f", a=1), call("g")), answer({"functionCall": {"name": "f", "id": "x1"}}), text("", finish=1))
    )
    assert [one["index"] for one in heard.calls] == [0, 1, 2]
    assert [one["function"] for one in heard.calls] == [
        {"name": "f", "arguments": '{"a":1}'},
        {"name": "g", "arguments": "{}"},
        {"name": "f", "arguments": "{}"},
    ]
    assert heard.calls[2]["id"] == "x1"
    assert heard.finish == [(0, "tool_calls", "STOP")]


def test_made_ids_are_unique() -> None:
    calls = Heard([sse(answer(*[call("f")] * 20))]).calls
    assert len({one["id"] for one in calls}) == 20


def test_thoughts_and_signatures() -> None:
    part = {"functionCall": {"name": "f"}, "thoughtSignature": "c2ln"}
    heard = every_cut(sse(answer({"text": "hm", "thought": True}, part), text("", finish="STOP")))
    assert heard.joined("reasoning_content") == "hm"
    assert heard.joined("content") == ""
    assert heard.calls[0]["extra_content"] == {"google": {"thought_signature": "c2ln"}}


def test_code_that_google_ran_is_not_text_and_does_not_commit() -> None:  # recorded: #8bd6e85d; R9
    heard = Heard([sse(answer({"executableCode": {"code": "1"}}, {"codeExecutionResult": {"output": "1"}}))], end=False)
    assert heard.chunks == []


def test_pictures_are_given_as_others_give_them() -> None:
    part = {"inlineData": {"mimeType": "image/png", "data": "QUJD"}}
    [chunk, _] = every_cut(sse(answer(part, finish="STOP"))).chunks
    assert chunk.delta == {"images": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}]}
    [choice] = read_reply(json.dumps(answer(part, finish="STOP")).encode(), provider="g").choices
    assert choice["message"]["images"] == chunk.delta["images"]


def grounding(start: int, end: int) -> Json:
    return {
        "groundingChunks": [{"web": {"uri": "https://a.test", "title": "A"}}, {"web": None}],
        "groundingSupports": [{"segment": {"startIndex": start, "endIndex": end}, "groundingChunkIndices": [0, 1, 9]}],
    }


@pytest.mark.parametrize(("words", "whole", "streamed"), [("see there", (4, 9), (4, 9)), ("séé there", (4, 9), (0, 9))])
def test_citations_count_characters(words: str, whole: tuple[int, int], streamed: tuple[int, int]) -> None:
    """Google counts bytes; a stream does not keep the text, so where that matters it cites the whole answer."""
    first = len(words[:4].encode())
    value = text(words, finish="STOP")
    value["candidates"][0]["groundingMetadata"] = grounding(first, len(words.encode()))
    [choice] = read_reply(json.dumps(value).encode(), provider="g").choices
    [cited] = choice["message"]["annotations"]
    assert cited["url_citation"] == {
        "start_index": whole[0],
        "end_index": whole[1],
        "url": "https://a.test",
        "title": "A",
    }
    annotations, finish = Heard([sse(value)]).chunks[1:]
    [cited] = annotations.delta["annotations"]
    assert (cited["url_citation"]["start_index"], cited["url_citation"]["end_index"]) == streamed
    assert finish.finish_reason == "stop"


def test_sources_without_places_cite_the_whole_answer() -> None:
    value = text("abc", finish="STOP")
    value["candidates"][0]["groundingMetadata"] = {"groundingChunks": [{"web": {"uri": "https://a.test"}}]}
    value["candidates"][0]["citationMetadata"] = {
        "citations": [{"startIndex": 1, "uri": "https://b.test"}, {"uri": ""}]
    }
    [choice] = read_reply(json.dumps(value).encode(), provider="g").choices
    cited = [one["url_citation"] for one in choice["message"]["annotations"]]
    assert cited == [
        {"start_index": 0, "end_index": 3, "url": url, "title": ""} for url in ("https://a.test", "https://b.test")
    ]


# ---- streams that end badly ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("frame", [sse, array])
def test_every_stream_that_is_cut_before_the_finish_is_incomplete(frame: Any) -> None:  # R63
    stream = frame(text('Hello {"[ world'), text(" and"), text(" all", finish="STOP"))
    last = stream.rindex(b"}")
    whole = Heard([stream]).joined("content")
    for at in range(last + 1):
        heard = Heard([stream[:at]])
        if heard.reader.done:
            assert frame is sse  # all but the newline of the last event
            assert at > stream.rindex(b"STOP")
            continue
        assert isinstance(heard.failure, TransportError)
        assert heard.failure.code == "upstream_incomplete"
        assert heard.finish == []
        assert whole.startswith(heard.joined("content"))


def test_an_empty_stream_is_incomplete() -> None:
    for body in (b"", b"\r\n \n", b": ping\n\n", b"[", b"[]"):
        heard = every_cut(body)
        assert heard.failure is not None
        assert heard.chunks == []


def test_a_candidate_that_did_not_finish_is_a_cut_stream() -> None:
    two = {"candidates": [{"index": 0, "finishReason": "STOP"}, {"index": 1, "content": {"parts": [{"text": "x"}]}}]}
    assert Heard([sse(two)]).failure is not None


def test_a_blocked_prompt_is_an_empty_filtered_answer() -> None:  # recorded: #f9bb798b
    value = {
        "promptFeedback": {"blockReason": "SAFETY"},
        "usageMetadata": {"promptTokenCount": 4, "totalTokenCount": 4},
    }
    heard = every_cut(sse(value))
    assert heard.finish == [(0, "content_filter", "PROMPT_SAFETY")]
    assert heard.reader.usage == Usage(4, source="provider")
    assert every_cut(sse({"promptFeedback": {"blockReason": 4}})).finish[0][2] == "PROMPT_PROHIBITED_CONTENT"
    assert every_cut(sse({"promptFeedback": {"safetyRatings": []}})).failure is not None


ERROR = {"error": {"code": 503, "message": "overloaded", "status": "UNAVAILABLE"}}


@pytest.mark.parametrize(
    "tail",
    [
        json.dumps(ERROR, indent=2).replace("\n", "\r\n").encode() + b"\r\n\r\n",  # 1.6: bare, without data:
        json.dumps(ERROR).encode(),
        sse(ERROR),
        sse([ERROR]),
        b"event: error\n" + sse(ERROR),
        b"error: " + json.dumps(ERROR["error"]).encode() + b"\n\n",
    ],
)
def test_an_error_in_a_stream_is_the_providers_error(tail: bytes) -> None:  # R15
    heard = every_cut(sse(text("Hi")) + tail)
    assert heard.joined("content") == "Hi"
    assert heard.failure is not None
    assert (heard.failure.status, heard.failure.message) == (503, "overloaded")
    assert heard.reader.feed(sse(text("more"))) == []
    assert heard.reader.end() == []


@pytest.mark.parametrize("body", [json.dumps(ERROR).encode(), json.dumps([ERROR], indent=1).encode()])
def test_an_error_instead_of_a_stream(body: bytes) -> None:  # R11, PROTOCOLS 1.5
    heard = every_cut(body)
    assert heard.chunks == []
    assert heard.failure is not None
    assert heard.failure.failure is FailureClass.OVERLOADED


@pytest.mark.parametrize(
    "body",
    [
        b"data: {\n\n",
        b"data: 7\n\n",
        b"data: [1,2]\n\n",
        b"<html>\n<body>no</body>\n\n",
        b"[{}x{}]",
        b'["text"]',
        b"[}",
        b"[1]",
        b"[{'a':1}]",
        sse({"this": [{"is": "not"}]}),
    ],
)
def test_what_is_no_stream_of_answers_is_malformed(body: bytes) -> None:  # R66
    assert isinstance(every_cut(body).failure, MalformedReply)


def test_events_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:  # R33
    monkeypatch.setattr(reader_module, "MAX_EVENT_BYTES", 1000)
    long = text("x" * 2000)
    for body in (sse(long), array(long), b'[{"a":"' + b"x" * 3000, b"data: " + b"x" * 3000):
        assert isinstance(Heard(at_random(body, 1), end=False).failure, MalformedReply)


# ---- the array's splitter ------------------------------------------------------------------------------------------

values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=3)


@fuzz
@given(st.lists(objects, min_size=1, max_size=4), st.booleans(), st.integers(0, 9))
def test_an_array_comes_apart_into_its_objects_wherever_it_is_cut(
    elements: list[Json], plain: bool, seed: int
) -> None:  # R64
    body = json.dumps(elements, ensure_ascii=plain, indent=seed % 2).encode("utf-8", "surrogatepass")
    splitter, found = JsonSplitter(1 << 20), []
    for piece in at_random(body, seed):
        some, good = splitter.feed(piece)
        assert good
        found += some
    assert [json.loads(one.decode("utf-8", "surrogatepass")) for one in found] == elements
    assert not splitter.pending


# ---- rubbish -------------------------------------------------------------------------------------------------------

_MEMBERS = [
    "candidates", "content", "parts", "text", "thought", "functionCall", "name", "args", "id", "thoughtSignature",
    "inlineData", "mimeType", "data", "index", "finishReason", "usageMetadata", "promptTokenCount", "totalTokenCount",
    "candidatesTokenCount", "promptFeedback", "blockReason", "error", "message", "code", "status", "details",
    "groundingMetadata", "groundingChunks", "groundingSupports", "segment", "web", "uri", "logprobsResult",
    "chosenCandidates", "topCandidates", "token", "responseId", "modelVersion", "createTime", "citationMetadata",
    "citations", "embeddings", "values",
]  # fmt: skip
_leaf = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
)
_rubbish = st.recursive(
    _leaf,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_MEMBERS), inner, max_size=4),
    max_leaves=20,
)


def _in_shape(value: Any) -> Json:
    return {"candidates": [{"content": {"parts": [value]}, "groundingMetadata": value, "logprobsResult": value}, value]}


@fuzz
@given(_rubbish)
def test_no_value_anywhere_raises_anything_of_ours(value: Any) -> None:  # R61, R66
    for whole in (value, {"candidates": value, "usageMetadata": value, "promptFeedback": value}, _in_shape(value)):
        body = json.dumps(whole).encode()
        for read in (TYPE.reply, TYPE.embeddings):
            with suppress(UpstreamError):
                read(body, {}, GOOGLE)
        for stream in (b"data: " + body + b"\n\n", b"[" + body + b"]", body):
            reader = Heard([stream]).reader
            assert reader.done != (reader.failure is not None)
        assert TYPE.error(400, {}, body, GOOGLE, None).status in (400, 401, 403, 429, 502)


@fuzz
@given(st.binary(max_size=60))
def test_no_bytes_raise_anything_of_ours(body: bytes) -> None:  # R66
    with pytest.raises(UpstreamError):
        TYPE.reply(body, {}, GOOGLE)
    assert Heard([body]).failure is not None
    assert TYPE.error(500, {}, body, GOOGLE, None).failure is FailureClass.SERVER


def _with_nulls(value: Any) -> Any:
    """The same value with null, empty and unknown members everywhere."""
    if isinstance(value, dict):
        rest = {"null": None, "unknownField": {}, "citationMetadata": None, "thought": None, "functionCall": None}
        return {**rest, **{key: _with_nulls(inner) for key, inner in value.items()}}
    return [_with_nulls(inner) for inner in value] if isinstance(value, list) else value


def test_null_empty_and_unknown_fields_change_nothing() -> None:  # R61
    events = [text("a"), answer(), {"candidates": [None, {}]}, {"candidates": None}, text("b", finish="STOP")]
    events[2] = {"candidates": [{"content": None}]}
    plain, odd = every_cut(sse(*events)), every_cut(sse(*map(_with_nulls, events)))
    assert plain.joined("content") == odd.joined("content") == "ab"
    assert plain.finish == odd.finish


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"[]", b"null", b'{"candidates":[]}', b'{"candidates":{}}', b'{"promptFeedback":{}}', b"<html>"],
)
def test_a_reply_without_candidates_is_malformed(body: bytes) -> None:  # R66
    with pytest.raises(MalformedReply):
        read_reply(body, provider="g")


def test_an_error_instead_of_a_reply() -> None:
    for body in (ERROR, [ERROR]):
        with pytest.raises(UpstreamError) as caught:
            read_reply(json.dumps(body).encode(), provider="g")
        assert caught.value.failure is FailureClass.OVERLOADED
        assert caught.value.upstream_status == 200


# ---- tables --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("native", "finish", "name"),
    [
        ("STOP", "stop", "STOP"),
        (1, "stop", "STOP"),
        ("MAX_TOKENS", "length", "MAX_TOKENS"),
        (2, "length", "MAX_TOKENS"),
        (3, "content_filter", "SAFETY"),
        (4, "content_filter", "RECITATION"),
        *[
            (word, "content_filter", word)
            for word in (
                "SAFETY",
                "RECITATION",
                "BLOCKLIST",
                "PROHIBITED_CONTENT",
                "SPII",
                "MODEL_ARMOR",
                "IMAGE_SAFETY",
            )
        ],
        *[(word, "stop", word) for word in ("OTHER", "MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "NEW_ONE")],
        (99, "stop", "UNKNOWN_99"),
    ],
)
def test_finish_reasons(native: Any, finish: str, name: str) -> None:  # PROTOCOLS 1.3
    [choice] = read_reply(json.dumps(text("a", finish=native)).encode(), provider="g").choices
    assert (choice["finish_reason"], choice["native_finish_reason"]) == (finish, name)
    assert Heard([sse(text("a", finish=native))]).finish == [(0, finish, name)]


def test_a_reply_that_does_not_say_why_it_ended_just_stopped() -> None:
    [choice] = read_reply(json.dumps(text("a")).encode(), provider="g").choices
    assert choice["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("meta", "usage"),
    [
        ({"promptTokenCount": 5, "totalTokenCount": 9, "thoughtsTokenCount": 4}, Usage(5, 0, 0, 0, 4, "provider")),
        ({"promptTokenCount": 10, "cachedContentTokenCount": 8}, Usage(2, 8, 0, 0, 0, "provider")),
        ({"promptTokenCount": 10, "cachedContentTokenCount": 80}, Usage(0, 10, 0, 0, 0, "provider")),
        (
            {
                "promptTokenCount": 15,
                "toolUsePromptTokenCount": 770,
                "candidatesTokenCount": 37,
                "thoughtsTokenCount": 742,
            },
            Usage(785, 0, 0, 37, 742, "provider"),
        ),
        ({"totalTokenCount": 30, "candidatesTokenCount": 10}, Usage(20, 0, 0, 10, 0, "provider")),
        ({"promptTokenCount": 3, "candidatesTokenCount": "7", "thoughtsTokenCount": -1}, Usage(3, source="provider")),
        ({"candidatesTokenCount": 23, "thoughtsTokenCount": 67}, None),
        ({"promptTokenCount": True}, None),
        ({"promptTokenCount": 1 << 50}, None),
        ({}, None),
        (None, None),
    ],
)
def test_usage(meta: Any, usage: Usage | None) -> None:  # R67, PROTOCOLS 1.4
    assert read_usage(meta) == usage


def google_error(code: int, message: str, status: str, *details: Json) -> bytes:
    return json.dumps({"error": {"code": code, "message": message, "status": status, "details": details}}).encode()


@pytest.mark.parametrize(
    ("status", "body", "failure", "shown"),
    [
        (400, google_error(400, "The input token count (9) exceeds the maximum number of tokens allowed (8).",
                           "INVALID_ARGUMENT"), FailureClass.CONTEXT, "context_length_exceeded"),
        (400, google_error(400, "User location is not supported for the API use.", "FAILED_PRECONDITION"),
         FailureClass.PERMISSION, "permission_denied"),
        (400, google_error(400, "Please enable billing", "FAILED_PRECONDITION"),
         FailureClass.QUOTA, "insufficient_quota"),
        (400, google_error(400, "no", "INVALID_ARGUMENT"), FailureClass.CLIENT_ERROR, "invalid_argument"),
        (429, google_error(429, "no", "RESOURCE_EXHAUSTED", {"violations": [{"quotaId": "RequestsPerDayPerProject"}]}),
         FailureClass.QUOTA, "insufficient_quota"),
        (429, google_error(429, "no", "RESOURCE_EXHAUSTED"), FailureClass.RATE_LIMITED, "rate_limit_exceeded"),
        (504, google_error(504, "late", "DEADLINE_EXCEEDED"), FailureClass.TIMEOUT, "timeout"),
        (500, b"<html>", FailureClass.SERVER, "bad_upstream"),
        (502, b"", FailureClass.SERVER, "bad_upstream"),
    ],
)  # fmt: skip
def test_errors(status: int, body: bytes, failure: FailureClass, shown: str) -> None:  # PROTOCOLS 1.5
    error = TYPE.error(status, {}, body, GOOGLE, None)
    assert (error.failure, error.code or "bad_upstream") == (failure, shown)
    assert error.status == status


BAD_KEY = google_error(400, "API key not valid. Please pass a valid API key.", "INVALID_ARGUMENT",
                       {"@type": "ErrorInfo", "reason": "API_KEY_INVALID"})  # fmt: skip


def test_a_bad_key_is_the_gateways_and_its_text_stays_here() -> None:  # R56, PROTOCOLS 1.5: it comes as a 400
    leaked = google_error(403, "Your API key was reported as leaked.", "PERMISSION_DENIED")
    for status, body in ((400, BAD_KEY), (401, google_error(401, "x", "UNAUTHENTICATED")), (403, leaked)):
        error = TYPE.error(status, {}, body, GOOGLE, None)
        assert (error.failure, error.status, error.code) == (FailureClass.AUTH, 502, "upstream_auth_error")
        assert "API key" not in error.message
    assert Heard([sse(json.loads(BAD_KEY))]).reader.failure.failure is FailureClass.AUTH  # type: ignore[union-attr]


def test_a_key_that_an_error_quotes_is_not_passed_on() -> None:  # R84
    error = TYPE.error(403, {}, google_error(403, "Consumer 'api_key:canary-AIza' is suspended", "x"), GOOGLE, None)
    assert "canary" not in error.message
    assert b"canary" not in (error.body or b"")


@pytest.mark.parametrize(
    ("message", "delay", "header", "seconds"),
    [
        ("Please retry in 48.939935699s.", None, None, 48.939935699),
        ("Please retry in 1m2.5s.", None, None, 62.5),
        ("Please retry in 850.5ms.", None, None, 0.8505),
        ("Please retry in 12h0m1s.", None, None, 300.0),
        ("Please retry in 48.9s.", "7s", None, 7.0),
        ("Please retry in 48.9s.", "7s", 3.0, 3.0),
        ("no", "nonsense", None, None),
        ("Please retry in a while", None, None, None),
    ],
)
def test_when_to_come_back(message: str, delay: str | None, header: float | None, seconds: float | None) -> None:  # R53
    body = google_error(429, message, "RESOURCE_EXHAUSTED", {"retryDelay": delay})
    wait = TYPE.error(429, {}, body, GOOGLE, header).retry_after_s
    assert wait == (seconds if seconds is None else pytest.approx(seconds))


# ---- the provider --------------------------------------------------------------------------------------------------


def test_the_key_is_in_a_header_and_nowhere_else() -> None:
    request = {"messages": [{"role": "user", "content": "Hi"}]}
    headers = TYPE.headers(GOOGLE)
    assert headers["x-goog-api-key"] == "canary-key-g"
    assert "Authorization" not in headers
    key = "canary-key-g"
    for stream in (False, True):
        built = TYPE.build({**request, "stream": stream}, GOOGLE, "gemini-2.5-flash")
        assert key not in built.url + built.body.decode() + repr(built.headers)
    assert key not in TYPE.models_url(GOOGLE)


def test_an_oauth_token_goes_as_a_bearer() -> None:
    headers = TYPE.headers(spec("v", type="gemini", api_key=Secret("ya29.abc")), json_body=False)
    assert headers["Authorization"] == "Bearer ya29.abc"
    assert "x-goog-api-key" not in headers


def test_urls() -> None:
    request = {"messages": [{"role": "user", "content": "Hi"}]}
    base = "https://g.test/v1beta/models/gemini-2.5-flash"
    assert TYPE.build(request, GOOGLE, "gemini-2.5-flash").url == base + ":generateContent"
    streamed = TYPE.build({**request, "stream": True}, GOOGLE, "models/gemini-2.5-flash")
    assert streamed.url == base + ":streamGenerateContent?alt=sse"
    assert TYPE.build_count(request, GOOGLE, "gemini-2.5-flash").url == base + ":countTokens"  # type: ignore[union-attr]
    assert TYPE.build_embeddings({"input": "x"}, GOOGLE, "e").url == "https://g.test/v1beta/models/e:batchEmbedContents"
    assert TYPE.build_embeddings({"input": "x"}, VERTEX, "e").url.endswith("/publishers/google/models/e:predict")
    assert TYPE.build(request, VERTEX, "gemini-x@1").url.endswith("/google/models/gemini-x%401:generateContent")
    assert TYPE.models_url(GOOGLE) == "https://g.test/v1beta/models?pageSize=1000"
    assert TYPE.models_url(VERTEX) == ""


@pytest.mark.parametrize("model", ["../../x", "a/b", "x:deleteIt", "x?key=1", "x#y", "x y", "é", "%2e%2e"])
def test_a_models_name_cannot_change_the_path(model: str) -> None:  # Q40
    made = resource(model)
    assert made.startswith("models/")
    assert not set(made[len("models/") :]) & set("/:?# é")
    assert resource("tunedModels/" + model).startswith("tunedModels/")


def test_models() -> None:
    body = json.dumps(
        {
            "models": [
                {"name": "models/a", "inputTokenLimit": 9, "outputTokenLimit": 3,
                 "supportedGenerationMethods": ["generateContent"]},
                {"name": "models/draw", "supportedGenerationMethods": ["predict"]},
                {"name": "tunedModels/b"},
                {"name": None}, 7,
            ],
            "nextPageToken": "x",
        }
    ).encode()  # fmt: skip
    assert TYPE.read_models(body) == [
        {"id": "a", "owned_by": "google", "context_window": 9, "max_output_tokens": 3},
        {"id": "tunedModels/b", "owned_by": "google"},
    ]
    for rubbish in (b"{}", b"[]", b'{"models":{}}', b"x"):
        with pytest.raises(ValueError, match=r".+"):
            TYPE.read_models(rubbish)


# ---- embeddings and counts -----------------------------------------------------------------------------------------


def test_embeddings_requests() -> None:
    built = TYPE.build_embeddings(
        {"model": "m", "input": ["a", "b"], "dimensions": 64, "encoding_format": "base64", "user": "me"}, GOOGLE, "e"
    )
    assert json.loads(built.body) == {
        "requests": [
            {"model": "models/e", "content": {"parts": [{"text": word}]}, "outputDimensionality": 64} for word in "ab"
        ]
    }
    assert built.dropped == ["user"]
    vertex = TYPE.build_embeddings({"input": "a", "dimensions": 64, "task_type": "CLUSTERING"}, VERTEX, "e")
    assert json.loads(vertex.body) == {
        "instances": [{"content": "a", "task_type": "CLUSTERING"}],
        "parameters": {"outputDimensionality": 64},
    }


@pytest.mark.parametrize(
    ("field", "value"),
    [("input", v) for v in (None, [], "", ["a", ""], [1, 2], [[1, 2]], 7)]
    + [("dimensions", v) for v in (0, "8", True)]
    + [("task_type", 5)],
)
def test_embeddings_mistakes_name_the_field(field: str, value: Any) -> None:
    with pytest.raises(ClientError) as caught:
        TYPE.build_embeddings({"input": "x", field: value}, GOOGLE, "e")
    assert caught.value.param == field


def test_embeddings_answers() -> None:
    def read(value: Any) -> Any:
        return TYPE.embeddings(json.dumps(value).encode(), {}, GOOGLE)

    assert read({"embedding": {"values": [0.5, 1]}}) == ([[0.5, 1]], None)
    counted = {"embeddings": [{"values": [1.0]}], "usageMetadata": {"promptTokenCount": 4}}
    assert read(counted) == ([[1.0]], Usage(4, source="provider"))
    vertex = [{"embeddings": {"values": [1.0], "statistics": {"token_count": n}}} for n in (2, 3)]
    assert read({"predictions": vertex}) == ([[1.0], [1.0]], Usage(5, source="provider"))
    for bad in (
        {},
        {"embeddings": []},
        {"embeddings": [{}]},
        {"embeddings": [{"values": ["1"]}]},
        {"predictions": [1]},
    ):
        with pytest.raises(MalformedReply):
            read(bad)


def test_counts() -> None:
    assert TYPE.count(b'{"totalTokens": 7}', GOOGLE) == 7
    with pytest.raises(MalformedReply):
        TYPE.count(b'{"totalTokens": "7"}', GOOGLE)
    with pytest.raises(UpstreamError):
        TYPE.count(json.dumps(ERROR).encode(), GOOGLE)
