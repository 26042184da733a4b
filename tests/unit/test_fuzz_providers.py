"""What providers must never do to us: recorded answers, damaged in every way that can be thought of, through every
provider type, every client dialect and the native taps (R61, R66; PROTOCOLS.md section 5).

Owns the promises that hold for any bytes at all: nothing but ``UpstreamError`` leaves a parser; a reader never raises
and is either done or failed, never both and, at the end, never neither; what the client gets is always whole events
that parse, with the lifecycle of its dialect. (That what is kept is bounded is in ``test_bounds_providers``.)

Everything is drawn from seeded generators: a failure names its case and comes back. The recordings are those of the
shared folder; where that is absent, hand-written ones of each dialect take their place.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from slipstream.errors import ClientError, UpstreamError
from slipstream.resilience.failures import refine
from slipstream.types import Endpoint
from slipstream.wire.anthropic.tap import MessagesTap, check_count, check_message
from slipstream.wire.canonical import Answer, Chunk
from slipstream.wire.faces import FACES, Told
from slipstream.wire.openai_errors import MAX_MESSAGE_CHARS
from slipstream.wire.openai_stream import StreamTap, check_reply, reply_usage
from slipstream.wire.responses.tap import ResponsesTap, check_response
from tests.clients import FINISHES, LIFECYCLES, WRITERS, answer, read_events, tap_for
from tests.damage import DEEP, EDGES, OUTSIDE, Random, dumps, mutate_bytes, mutate_events, mutate_json, pieces
from tests.recorded import (
    ANTHROPIC,
    BEDROCK,
    DIALECTS,
    GEMINI,
    OLLAMA,
    OPENAI,
    RESPONSES,
    Dialect,
    Exchange,
    payload_of,
    provider,
    with_payload,
)

STREAM_CASES = 500
"""Per dialect; each through its reader and all client dialects."""
BODY_CASES = 300
"""Per dialect and kind of body."""
MAX_EVENTS = 24
"""Longer recordings are shortened: their first events and their last."""

# ---- cases ----------------------------------------------------------------------------------------------------------


def shortened(dialect: Dialect, body: bytes) -> list[bytes]:
    events = dialect.split(body)
    return events if len(events) <= MAX_EVENTS else events[: MAX_EVENTS - 6] + events[-6:]


def damaged_streams(dialect: Dialect, cases: int = STREAM_CASES) -> Iterator[tuple[str, bytes]]:
    """Named streams, every recording in its turn."""
    sources = [(one.id, shortened(dialect, one.body)) for one in dialect.exchanges("stream")]
    sources += [("seed", dialect.split(body)) for body in dialect.seeds["stream"]]
    for case in range(cases):
        name, events = sources[case % len(sources)]
        rng = Random(f"{dialect.name} {case}")
        yield f"{name} #{case}", b"".join(mutate_events(rng, dialect.framing, events))


def damaged_bodies(dialect: Dialect, *endpoints: str, cases: int = BODY_CASES) -> Iterator[tuple[str, bytes, Any]]:
    sources = [one for one in dialect.exchanges(*endpoints) if len(one.body) < 30_000]
    seeds = [body for kind in endpoints for body in dialect.seeds.get(kind, ())]
    sources += [Exchange("seed", 200, {}, body, True) for body in seeds]
    for case in range(cases):
        one = sources[case % len(sources)]
        rng = Random(f"{dialect.name} {endpoints} {case}")
        body = mutate_bytes(rng, one.body) if rng.random() < 0.3 else mutate_json(rng, one.body)
        yield f"{one.id} #{case}", body, one


def types_of(dialect: Dialect, case: int) -> Any:
    return provider(dialect.types[case % len(dialect.types)])


# ---- readers --------------------------------------------------------------------------------------------------------


def check_chunk(chunk: Chunk) -> None:
    """What a reader may say (``wire.canonical``)."""
    assert isinstance(chunk.delta, dict)
    assert isinstance(chunk.index, int)
    assert chunk.index >= 0
    assert chunk.finish_reason is None or chunk.finish_reason in FINISHES
    assert "role" not in chunk.delta
    for name in ("content", "refusal", "reasoning_content"):
        assert isinstance(chunk.delta.get(name, ""), str), name
    for call in chunk.delta.get("tool_calls", ()):
        assert isinstance(call["index"], int)
        assert isinstance(call.get("function", {}).get("arguments", ""), str)
        assert isinstance(call.get("id", "x"), str)
        assert isinstance(call["function"].get("name", "x"), str)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_readers_survive_everything(dialect: Dialect) -> None:
    """R61, R66: a reader never raises, ends in exactly one of its two ends, and says nothing after it."""
    ends = {True: 0, False: 0}
    for case, (name, body) in enumerate(damaged_streams(dialect)):
        kind, spec = types_of(dialect, case)
        reader = kind.reader(spec)
        for piece in pieces(Random(case), body):
            for chunk in reader.feed(piece):
                check_chunk(chunk)
            assert not (reader.done and reader.failure), name
        for chunk in reader.end():
            check_chunk(chunk)
        assert reader.done != (reader.failure is not None), name
        assert isinstance(reader.failure, UpstreamError | None), name
        assert reader.failure is None or len(reader.failure.message) <= MAX_MESSAGE_CHARS + 200, name
        assert reader.feed(body) == [], name
        assert reader.end() == [], name
        ends[reader.done] += 1
    assert min(ends.values()) > STREAM_CASES // 20, ends


@pytest.mark.parametrize("endpoint", WRITERS, ids=lambda e: e.name.lower())
@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_clients_get_whole_events(dialect: Dialect, endpoint: Endpoint) -> None:
    """Whatever the provider sends, each piece that goes to the client is whole events, in the order of the dialect; a
    stream that is not done ends in the dialect's error (R12, R15, R62)."""
    for case, (name, body) in enumerate(damaged_streams(dialect, STREAM_CASES // 2)):
        kind, spec = types_of(dialect, case)
        tap = tap_for(kind.reader(spec), endpoint)
        out = []
        for piece in pieces(Random(case), body):
            out.append(tap.feed(piece))
            if tap.done or tap.failure is not None:
                break
        else:
            out.append(tap.end())
        assert tap.done != (tap.failure is not None), name
        assert all(piece == b"" or piece.endswith(b"\n\n") for piece in out), name
        if tap.failure is not None:
            out.append(tap.error(tap.failure))
        try:
            LIFECYCLES[endpoint](read_events(b"".join(out)), tap.done)
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise AssertionError(f"{name}: {b''.join(out)[-1500:]!r}\nfrom {body[-1500:]!r}") from error


# ---- the native taps ------------------------------------------------------------------------------------------------

TAPS: list[tuple[Dialect, Callable[[], Any]]] = [
    (OPENAI, lambda: StreamTap(provider="p", keep_usage=False)),
    (ANTHROPIC, lambda: MessagesTap("p")),
    (RESPONSES, lambda: ResponsesTap("p")),
]


@pytest.mark.parametrize(("dialect", "make"), TAPS, ids=["chat", "messages", "responses"])
def test_native_taps_survive_everything(dialect: Dialect, make: Callable[[], Any]) -> None:
    """Bytes that are passed on: only whole events, only what came (``[DONE]`` aside), and one of two ends."""
    for case, (name, body) in enumerate(damaged_streams(dialect)):
        tap, out = make(), []
        for piece in pieces(Random(case), body):
            out.append(tap.feed(piece))
            assert not (tap.done and tap.failure), name
        out.append(tap.end())
        assert tap.done != (tap.failure is not None), name
        assert isinstance(tap.failure, UpstreamError | None), name
        assert all(piece == b"" or piece.endswith((b"\n", b"\r")) for piece in out), name
        assert sum(map(len, out)) <= len(body) + 64, name
        tap.read_usage()
        if tap.failure is not None and hasattr(tap, "error"):
            assert tap.error(tap.failure).endswith(b"\n\n"), name
        assert tap.feed(body) == b"", name


# ---- whole bodies ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_replies_are_answers_or_upstream_errors(dialect: Dialect) -> None:
    """R66: and what can be read can be written in every client dialect."""
    good = 0
    for case, (name, body, one) in enumerate(damaged_bodies(dialect, "chat", cases=2 * BODY_CASES)):
        kind, spec = types_of(dialect, case)
        try:
            reply = kind.reply(body, one.headers, spec)
        except UpstreamError:
            continue
        good += 1
        for endpoint in WRITERS:
            try:
                with contextlib.suppress(UpstreamError):
                    json.loads(FACES[endpoint].encode(reply, answer(endpoint), Told("p", 0.1, 5.0)))
            except Exception as error:
                raise AssertionError(f"{name} for {endpoint.name}: {body!r}") from error
    assert good > BODY_CASES // 8


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_errors_are_always_read(dialect: Dialect) -> None:
    """``error`` never raises, whatever the status and the body; each client dialect can write it; the message is
    bounded."""
    statuses = (400, 401, 403, 404, 408, 413, 422, 424, 429, 500, 503, 529, 302, 101, 999)
    for case, (name, body, one) in enumerate(damaged_bodies(dialect, "error")):
        kind, spec = types_of(dialect, case)
        status = one.status if case % 2 else statuses[case % len(statuses)]
        error = refine(kind.error(status, one.headers, body, spec, None), kind.name, spec.name)
        assert isinstance(error, UpstreamError), name
        assert len(error.message) <= MAX_MESSAGE_CHARS + 200, name
        assert 400 <= error.status <= 599, name
        for face in FACES.values():
            json.loads(face.error_body(error, "req"))


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_lists_and_counts(dialect: Dialect) -> None:
    """Lists of models raise ``ValueError`` and nothing else; embeddings and counts ``UpstreamError``."""
    for case, (name, body, _) in enumerate(damaged_bodies(dialect, "models")):
        kind, spec = types_of(dialect, case)
        try:
            models = kind.read_models(body)
        except ValueError:
            continue
        assert all(isinstance(model["id"], str) and model["id"] for model in models), name
    if dialect is not OPENAI and "embeddings" in dialect.seeds:  # OpenAI's are passed on
        for case, (name, body, _) in enumerate(damaged_bodies(dialect, "embeddings")):
            kind, spec = types_of(dialect, case)
            try:
                vectors, usage = kind.embeddings(body, {}, spec)
                request = {"model": "m", "input": ["x"] * len(vectors)}
                json.loads(FACES[Endpoint.EMBEDDINGS].encode_vectors(vectors, usage, Answer("i", "m", 1, request)))
            except UpstreamError:
                continue
            except Exception as error:
                raise AssertionError(f"{name}: {body[:3000]!r}") from error
    if "count-tokens" in dialect.seeds:
        for case, (name, body, _) in enumerate(damaged_bodies(dialect, "count-tokens")):
            kind, spec = types_of(dialect, case)
            try:
                tokens = kind.count(body, spec)
            except UpstreamError:
                continue
            assert isinstance(tokens, int), name
            assert tokens >= 0, name


CHECKS: list[tuple[Dialect, str, Callable[[bytes], Any]]] = [
    (OPENAI, "chat", lambda body: reply_usage(check_reply(Endpoint.CHAT, body, "p"), body)),
    (OPENAI, "embeddings", lambda body: reply_usage(check_reply(Endpoint.EMBEDDINGS, body, "p"), body)),
    (ANTHROPIC, "chat", lambda body: check_message(body, "p")),
    (ANTHROPIC, "count-tokens", lambda body: check_count(body, "p")),
    (RESPONSES, "chat", lambda body: check_response(body, "p")),
]


@pytest.mark.parametrize(("dialect", "kind", "check"), CHECKS, ids=lambda v: v if isinstance(v, str) else None)
def test_checks_of_what_is_passed_on(dialect: Dialect, kind: str, check: Callable[[bytes], Any]) -> None:
    for _, body, _ in damaged_bodies(dialect, kind):
        with contextlib.suppress(UpstreamError):
            check(body)


# ---- fields that mean nothing (R61) ---------------------------------------------------------------------------------

NOTHING: dict[str, tuple[str, ...]] = {
    "openai": ("refusal", "tool_calls", "annotations", "audio", "function_call", "logprobs", "reasoning_content"),
    "anthropic": ("citations", "stop_details", "container", "context_management"),
    "gemini": ("citationMetadata", "groundingMetadata", "promptFeedback", "safetyRatings", "thoughtSignature"),
    "bedrock": ("p", "citation", "trace", "performanceConfig", "additionalModelResponseFields"),
    "ollama": ("thinking", "tool_calls", "logprobs", "images", "total_duration"),
    "cohere": ("logprobs", "tool_plan", "citations", "error"),
}


def padded(rng: Random, dialect: Dialect, value: Any) -> Any:
    """The document with members that mean nothing: unknown ones of any value, known ones that are ``null``, and the
    same member twice."""
    if isinstance(value, list):
        return [padded(rng, dialect, one) for one in value]
    if not isinstance(value, dict):
        return value
    out = {key: one if key in OUTSIDE else padded(rng, dialect, one) for key, one in value.items()}
    for name in NOTHING[dialect.name]:
        if rng.random() < 0.3 and name not in out:
            out[name] = None
    if rng.random() < 0.5:
        out["x_unheard_of"] = rng.choice((None, "", [], {}, {"text": "no"}, 7, "x"))
    if out and rng.random() < 0.3:
        key = rng.choice(list(out))
        out[("twice", key)] = out[key]
    return out


def heard(dialect: Dialect, events: Sequence[bytes], case: int) -> tuple[Any, ...]:
    """All that a reader understood, ids that we made aside."""
    kind, spec = provider(dialect.types[0])
    reader = kind.reader(spec)
    chunks = [chunk for event in events for chunk in reader.feed(event)] + reader.end()
    texts: dict[tuple[int, str], str] = {}
    calls: dict[tuple[int, int], str] = {}
    for chunk in chunks:
        for name in ("content", "refusal", "reasoning_content"):
            texts[chunk.index, name] = texts.get((chunk.index, name), "") + chunk.delta.get(name, "")
        for call in chunk.delta.get("tool_calls", ()):
            at = (chunk.index, call["index"])
            said = call["function"]
            calls[at] = calls.get(at, "") + said.get("name", "") + said.get("arguments", "")
    ends = [(chunk.index, chunk.finish_reason) for chunk in chunks if chunk.finish_reason]
    return texts, calls, ends, reader.usage, reader.done, type(reader.failure)


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda d: d.name)
def test_empty_null_and_double_fields_change_nothing(dialect: Dialect) -> None:
    """R61: concatenated text, calls, finish reason and usage are the same."""
    for case, one in enumerate(one for one in dialect.exchanges("stream") if one.good):
        events = shortened(dialect, one.body)
        rng = Random(case)
        padding = []
        for event in events:
            parts = payload_of(dialect.framing, event)
            try:
                value = json.loads(parts[1]) if parts else None
            except ValueError:
                value = None
            if isinstance(value, dict):
                event = with_payload(dialect.framing, event, dumps(padded(rng, dialect, value)))
            padding.append(event)
            if dialect.framing == "sse" and rng.random() < 0.2 and not one.body.startswith(b"["):
                padding.append(rng.choice((b": ping\n\n", b"\n", b"retry: 5\n\n", b"event: unheard\ndata: {}\n\n")))
        assert heard(dialect, padding, case) == heard(dialect, events, case), one.id


def test_hand_written_streams_are_good_ones() -> None:
    """The seeds are what each reader takes for a good answer, so that damage to them is damage."""
    for dialect in DIALECTS:
        for body in dialect.seeds["stream"]:
            texts, calls, ends, usage, done, _ = heard(dialect, dialect.split(body), 0)
            assert done, dialect.name
            assert texts[0, "content"] == "Höllo"
            assert texts[0, "reasoning_content"] == "Hm."
            assert [json.loads(call[len("get_weather") :]) for call in calls.values()] == [{"city": "Oslo"}]
            assert ends == [(0, "tool_calls")]
            assert usage is not None
        for body in dialect.seeds["chat"]:
            kind, spec = provider(dialect.types[0])
            assert kind.reply(body, {}, spec).choices[0]["finish_reason"] == "tool_calls"


FOUND: dict[str, tuple[Dialect, str]] = {
    "anthropic arguments": (
        ANTHROPIC,
        '{"type":"message","content":[{"type":"tool_use","id":"t","name":"f","input":{"a":@}}]}',
    ),
    "gemini arguments": (
        GEMINI,
        '{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f","args":{"a":@}}}]}}]}',
    ),
    "gemini half a pair": (
        GEMINI,
        '{"candidates":[{"content":{"parts":[{"text":"x\\ud83d"}]},"finishReason":"STOP"}]}',
    ),
    "gemini signature": (
        GEMINI,
        '{"candidates":[{"content":{"parts":[{"functionCall":{"name":"f"},"thoughtSignature":"\\ud83d"}]}}]}',
    ),
    "stop details": (ANTHROPIC, '{"type":"message","content":[],"stop_details":{"a":@}}'),
    "logprobs at the edge": (
        OPENAI,
        '{"choices":[{"message":{"content":"x"},"logprobs":{"content":[{"token":"x","bytes":~}]}}]}',
    ),
    "trace at the edge": (
        BEDROCK,
        '{"output":{"message":{"content":[{"text":"x"}]}},"stopReason":"end_turn","trace":{"a":~}}',
    ),
    "error at the edge": (OPENAI, '{"error":{"message":"x","metadata":{"a":~}}}'),
    "half a pair beside infinity": (
        OPENAI,
        '{"choices":[{"message":{"content":"x\\ud83d"},"logprobs":{"content":[1e999]},"finish_reason":"stop"}]}',
    ),
    "infinite usage": (OPENAI, '{"choices":[{"message":{"content":"x"}}],"usage":{"prompt_tokens":1e999}}'),
    "infinite usage of Anthropic": (ANTHROPIC, '{"type":"message","content":[],"usage":{"input_tokens":1e999}}'),
    "half a message": (OPENAI, '{"error":{"message":"\\ud83d","code":"x\\ud83d","type":"y\\udfff"}}'),
    "half a message of Google": (GEMINI, '{"error":{"message":"\\ud83d","status":"\\ud83d","code":429}}'),
    "half a message of AWS": (BEDROCK, '{"message":"\\ud83d"}'),
    "half a message of Ollama": (OLLAMA, '{"error":"\\ud83d"}'),
    "deep error": (RESPONSES, '{"error":{"message":"x","code":@}}'),
    "deep error with a code": (RESPONSES, '{"error":{"message":"x","code":"insufficient_quota","y":@}}'),
}


@pytest.mark.parametrize("case", FOUND)
def test_what_was_found_by_this_test(case: str) -> None:
    """The smallest forms of bodies that once broke a reader or a writer; ``@`` is 300 levels of arrays, ``~`` 250."""
    dialect, text = FOUND[case]
    body = text.replace("@", DEEP).replace("~", EDGES[6]).encode()
    for _, _, check in (entry for entry in CHECKS if entry[0] is dialect):
        with contextlib.suppress(UpstreamError):
            check(body)
    for name in dialect.types[:1]:
        kind, spec = provider(name)
        error = kind.error(429, {}, body, spec, None)
        for face in FACES.values():
            json.loads(face.error_body(error, "req"))
        with contextlib.suppress(UpstreamError):
            reply = kind.reply(body, {}, spec)
            for endpoint in WRITERS:
                with contextlib.suppress(UpstreamError):
                    json.loads(FACES[endpoint].encode(reply, answer(endpoint), Told("p", 0.1, 5.0)))


def test_requests_are_never_ours_to_break() -> None:
    """What cannot be asked for is the client's error and names a field."""
    kind, spec = provider("anthropic")
    with pytest.raises(ClientError):
        kind.build_embeddings({"model": "m", "input": "x"}, spec, "m")
