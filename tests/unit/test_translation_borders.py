"""Recorded streams of every provider dialect into every client dialect, cut everywhere.

Owns two promises. A stream that is cut, between two events or inside one, is a defined error and never a clean end:
none of the official clients notices a stream that just ends (PROTOCOLS.md 1.6), so we must (R12, R63). And how the
transport cuts the bytes changes nothing: fed byte by byte, in random pieces or whole, the client gets the same bytes
(R64).
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from slipstream.errors import UpstreamError
from slipstream.types import Endpoint, FailureClass
from slipstream.wire.anthropic.tap import MessagesTap
from slipstream.wire.openai_stream import StreamTap
from slipstream.wire.responses.tap import ResponsesTap
from tests.clients import LIFECYCLES, WRITERS, Events, read_events, tap_for
from tests.damage import Random, pieces
from tests.recorded import ANTHROPIC, DIALECTS, OPENAI, RESPONSES, Dialect, Exchange, provider

PER_DIALECT = 14
MAX_BYTES = 12_000
"""Longer recordings have more of the same."""
SAID_THE_END: dict[str, re.Pattern[bytes]] = {
    "openai": re.compile(rb'"finish_reason": ?"'),
    "anthropic": re.compile(rb'"type": ?"message_stop"'),
    "gemini": re.compile(rb'"finishReason"'),
    "bedrock": re.compile(rb"messageStop"),
    "ollama": re.compile(rb'"done": ?true'),
    "cohere": re.compile(rb'"type": ?"message-end"'),
    "responses": re.compile(rb'"type": ?"response\.(?:completed|incomplete)"'),
}
"""What must have come before a stream may end well (R63; PROTOCOLS.md 1.1, last column)."""


def chosen(dialect: Dialect) -> list[Exchange]:
    """Good streams of several kinds, the hand-written one among them."""
    seeds = [Exchange("seed", 200, {}, body, True) for body in dialect.seeds["stream"]]
    short = [one for one in dialect.exchanges("stream") if one.good and len(one.body) < MAX_BYTES]
    step = max(1, len(short) // PER_DIALECT)
    return seeds + [one for one in short[::step] if "seed" not in one.id][:PER_DIALECT]


CASES = [
    pytest.param(dialect, endpoint, id=f"{dialect.name}-{endpoint.name.lower()}")
    for dialect in DIALECTS
    for endpoint in WRITERS
]


def run(dialect: Dialect, endpoint: Endpoint, parts: list[bytes], *, end: bool = True) -> tuple[Any, bytes]:
    """The tap and what the client got, the error included."""
    kind, spec = provider(dialect.types[0])
    tap = tap_for(kind.reader(spec), endpoint)
    out = []
    for part in parts:
        out.append(tap.feed(part))
        if tap.done or tap.failure is not None:
            break
    else:
        if end:
            out.append(tap.end())
    if tap.failure is not None:
        out.append(tap.error(tap.failure))
    return tap, b"".join(out)


def text_of(endpoint: Endpoint, events: Events) -> str:
    """The text that a client of this dialect has put together."""
    values = [value for _, value in events if isinstance(value, dict)]
    if endpoint is Endpoint.CHAT:
        return "".join(c["delta"].get("content") or "" for v in values for c in v.get("choices", ()))
    if endpoint is Endpoint.COMPLETIONS:
        return "".join(c["text"] for v in values for c in v.get("choices", ()))
    if endpoint is Endpoint.RESPONSES:
        return "".join(v["delta"] for v in values if v["type"] == "response.output_text.delta")
    if endpoint is Endpoint.MESSAGES:
        deltas = [v["delta"] for v in values if v["type"] == "content_block_delta"]
        return "".join(d["text"] for d in deltas if d["type"] == "text_delta")
    return "".join(v["text"] for v in values if "text" in v and "done" not in v)


def cuts(dialect: Dialect, body: bytes) -> list[int]:
    """Every border of two events, and one byte before and after it."""
    borders, at = {0}, 0
    for event in dialect.split(body):
        at += len(event)
        borders |= {at - 1, at, at + 1}
    return sorted(cut for cut in borders if 0 <= cut < len(body))


@pytest.mark.parametrize(("dialect", "endpoint"), CASES)
def test_a_cut_stream_is_an_error(dialect: Dialect, endpoint: Endpoint) -> None:
    """At each border: the error is "incomplete", the text is a beginning of the whole, and the client's stream is
    well-formed up to the error of its dialect."""
    failed = 0
    for one in chosen(dialect):
        whole_tap, whole = run(dialect, endpoint, [one.body])
        assert whole_tap.done, one.id
        text = text_of(endpoint, read_events(whole))
        for cut in cuts(dialect, one.body):
            tap, out = run(dialect, endpoint, [one.body[:cut]])
            events = read_events(out)
            LIFECYCLES[endpoint](events, tap.done)
            assert text.startswith(text_of(endpoint, events)), (one.id, cut)
            if tap.done:
                assert SAID_THE_END[dialect.name].search(one.body[:cut]), (one.id, cut)
            else:
                failed += 1
                check_incomplete(tap.failure, f"{one.id} cut at {cut}")
    assert failed > len(chosen(dialect))


def check_incomplete(failure: UpstreamError | None, where: str) -> None:
    """The provider's fault, worth another attempt, and nothing of the body in the message."""
    assert failure is not None, where
    assert failure.status == 502, where
    assert (failure.failure, failure.code) in (
        (FailureClass.TRANSPORT, "upstream_incomplete"),
        (FailureClass.TRANSPORT, "upstream_connection_closed"),
        (FailureClass.MALFORMED, "upstream_malformed_response"),  # half an event that is taken for a whole one
    ), (where, failure.code)
    assert len(failure.message) < 120, where


@pytest.fixture
def counted_ids(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ids that we make are numbers, which begin again when this is called."""

    def restart() -> None:
        numbers = count()
        monkeypatch.setattr(secrets, "token_hex", lambda n=32: f"{next(numbers):0{2 * n}x}")

    return restart


@pytest.mark.parametrize(("dialect", "endpoint"), CASES)
def test_how_it_is_cut_changes_nothing(dialect: Dialect, endpoint: Endpoint, counted_ids: Callable[[], None]) -> None:
    """R64: whole, byte by byte, in random pieces, event by event."""
    for number, one in enumerate(chosen(dialect)):
        ways = {
            "bytes": [one.body[at : at + 1] for at in range(len(one.body))],
            "events": dialect.split(one.body),
            **{f"random {seed}": pieces(Random(seed), one.body) for seed in range(number, number + 3)},
        }
        counted_ids()
        _, whole = run(dialect, endpoint, [one.body])
        for name, parts in ways.items():
            counted_ids()
            tap, out = run(dialect, endpoint, parts)
            assert tap.done, (one.id, name)
            assert comparable(endpoint, out) == comparable(endpoint, whole), (one.id, name)


def comparable(endpoint: Endpoint, data: bytes) -> Any:
    """What must not depend on the pieces. What is known when an event is written may: Messages open with the counts
    that came so far (which they correct at their end), a chat's finish with what the provider said about the answer as
    a whole, which Bedrock says last (its guardrail's trace)."""
    events = read_events(data)
    if endpoint is Endpoint.MESSAGES:
        del events[0][1]["message"]["usage"]
    elif endpoint is Endpoint.CHAT:
        for _, value in events[:-1]:
            value.pop("trace", None)
    return events


def test_a_reader_that_is_done_needs_no_end() -> None:
    """Where the dialect has a terminal event, nobody waits for the connection to close (R63)."""
    for dialect in (OPENAI, ANTHROPIC):
        for one in chosen(dialect):
            tap, _ = run(dialect, Endpoint.CHAT, [one.body], end=False)
            assert tap.done or not one.body.endswith(b"[DONE]\n\n"), one.id


# ---- bytes that are passed on ---------------------------------------------------------------------------------------

TAPS: list[Any] = [
    pytest.param(OPENAI, lambda: StreamTap(provider="p", keep_usage=True), id="chat"),
    pytest.param(ANTHROPIC, lambda: MessagesTap("p"), id="messages"),
    pytest.param(RESPONSES, lambda: ResponsesTap("p"), id="responses"),
]


def passed_on(tap: Any, parts: list[bytes]) -> bytes:
    out = []
    for part in parts:
        out.append(tap.feed(part))
        if tap.done or tap.failure is not None:
            return b"".join(out)
    return b"".join(out) + tap.end()


def lines(data: bytes) -> bytes:
    """With one kind of line end: where the transport cuts a CR LF in two, the CR has ended the event (WHATWG HTML,
    "Event streams": it is an end of line by itself)."""
    return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip()


@pytest.mark.parametrize(("dialect", "make"), TAPS)
def test_native_streams(dialect: Dialect, make: Callable[[], Any]) -> None:
    """The same for the taps: cut is an error, what was complete before it went on as it came, pieces do not matter."""
    for one in chosen(dialect):
        ways = [[one.body], [one.body[at : at + 1] for at in range(len(one.body))]]
        ways += [pieces(Random(seed), one.body) for seed in range(3)]
        assert len({lines(passed_on(make(), parts)) for parts in ways}) == 1, one.id
        for cut in cuts(dialect, one.body):
            tap = make()
            out = passed_on(tap, [one.body[:cut]])
            assert tap.done != (tap.failure is not None), (one.id, cut)
            if tap.done:
                assert SAID_THE_END[dialect.name].search(one.body[:cut]), (one.id, cut)
            else:
                check_incomplete(tap.failure, f"{one.id} cut at {cut}")
                assert one.body.startswith(out), (one.id, cut)
