"""What translating costs, without the network: ns per event, us per request and per whole answer.

Owns: the figures for ``slipstream/wire``: each provider's reader with the writers of OpenAI chat and of Messages, over
the streams of ``bench/e2e`` (an event per chunk, as providers send them). The rival is what a gateway in plain Python
does at the least: cut the event out, ``json.loads``, a new dictionary, ``json.dumps``. It knows no errors, no tool
calls, no usage, no other content than text and no chunks that are cut elsewhere; for Bedrock it is given the payloads
without frames and sums.

Run: ``python -m bench.micro.translate``
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from typing import Any

from bench.e2e import payloads
from bench.e2e.dialects import DIALECTS, Dialect
from slipstream._fast import COMPILED
from slipstream.config.snapshot import ProviderSpec
from slipstream.engine.translate import TranslatingTap
from slipstream.providers.registry import PROVIDER_TYPES
from slipstream.types import Endpoint, Secret
from slipstream.wire.canonical import Answer
from slipstream.wire.codec import loads
from slipstream.wire.faces import FACES, Told

EVENTS = 200
BEST_OF = 40
ANSWER_ID = "0123456789abcdef01234567"
INBOUND = {"chat": Endpoint.CHAT, "messages": Endpoint.MESSAGES}


def spec(name: str) -> ProviderSpec:
    return ProviderSpec(name="p", type=name, api_base="http://127.0.0.1:1/v1", api_key=Secret("k"), region="us-east-1")


def best(work: Callable[[], object]) -> float:
    """ns of the fastest of some runs."""
    found = float("inf")
    for _ in range(BEST_OF):
        before = time.perf_counter_ns()
        work()
        found = min(found, time.perf_counter_ns() - before)
    return found


def translating(dialect: Dialect, inbound: Endpoint) -> Callable[[], object]:
    kind, where = PROVIDER_TYPES[dialect.name], spec(dialect.name)
    answer = Answer(ANSWER_ID, payloads.MODEL, 1_700_000_000, {"model": payloads.MODEL})
    chunks = [dialect.begin, *(dialect.texts[n % 2] for n in range(EVENTS)), dialect.end]

    def work() -> None:
        tap = TranslatingTap(kind.reader(where), FACES[inbound].writer(answer, "p", lambda usage: (0.0, 0.0)))
        for chunk in chunks:
            tap.feed(chunk)
        tap.end()
        assert tap.done
        assert tap.content_events == EVENTS

    return work


TEXT: dict[str, Callable[[Any], str]] = {
    "anthropic": lambda value: value["delta"]["text"],
    "gemini": lambda value: value["candidates"][0]["content"]["parts"][0]["text"],
    "bedrock": lambda value: value["delta"]["text"],
}


def naive(dialect: Dialect) -> Callable[[], object]:
    """The rival, over the events with text."""
    texts = dialect.texts
    if dialect.name == "bedrock":
        texts = tuple(b"data: " + text[text.index(b'{"') : -4] for text in texts)  # type: ignore[assignment]
    chunks = [texts[n % 2] for n in range(EVENTS)]
    text_of = TEXT[dialect.name]

    def work() -> None:
        for chunk in chunks:
            value = json.loads(chunk[chunk.index(b"data: ") + 6 :])
            made = {
                "id": "chatcmpl-" + ANSWER_ID,
                "object": "chat.completion.chunk",
                "created": 1_700_000_000,
                "model": payloads.MODEL,
                "choices": [{"index": 0, "delta": {"content": text_of(value)}, "finish_reason": None}],
            }
            assert b"data: " + json.dumps(made).encode() + b"\n\n"

    return work


def whole(dialect: Dialect, inbound: Endpoint) -> Callable[[], object]:
    """The provider's whole answer to the client's."""
    kind, where, body = PROVIDER_TYPES[dialect.name], spec(dialect.name), dialect.reply()
    answer = Answer(ANSWER_ID, payloads.MODEL, 1_700_000_000, {"model": payloads.MODEL})
    told = Told("p", 0.0, 0.0)
    return lambda: FACES[inbound].encode(kind.reply(body, {}, where), answer, told)


def asked(dialect: Dialect) -> Callable[[], object]:
    """A chat request of 1.1 KB to the provider's."""
    kind, where, body = PROVIDER_TYPES[dialect.name], spec(dialect.name), payloads.request()
    return lambda: kind.build(FACES[Endpoint.CHAT].decode(loads(body))[0], where, payloads.MODEL)


def naive_whole(body: bytes) -> Callable[[], object]:
    return lambda: json.dumps(json.loads(body)).encode()


def main() -> None:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, compiled: {COMPILED}; "
        f"best of {BEST_OF} streams of {EVENTS} events"
    )
    print(f"{'ns per event':14}{'to chat':>12}{'to messages':>14}{'naive':>10}{'naive / ours':>14}")
    for name, dialect in DIALECTS.items():
        ours = {word: best(translating(dialect, endpoint)) / EVENTS for word, endpoint in INBOUND.items()}
        rival = best(naive(dialect)) / EVENTS
        print(f"{name:14}{ours['chat']:12.0f}{ours['messages']:14.0f}{rival:10.0f}{rival / ours['chat']:14.1f}")
    print(f"\n{'us, 1.1 KB':14}{'request':>12}{'reply':>14}{'json of both':>14}")
    for name, dialect in DIALECTS.items():
        request, reply = best(asked(dialect)) / 1000, best(whole(dialect, Endpoint.CHAT)) / 1000
        rival = (best(naive_whole(payloads.request())) + best(naive_whole(dialect.reply()))) / 1000
        print(f"{name:14}{request:12.1f}{reply:14.1f}{rival:14.1f}")


if __name__ == "__main__":
    main()
