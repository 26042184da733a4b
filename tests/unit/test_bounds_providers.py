"""What a provider gone mad may cost us: an event without an end, thousands of whatever a stream can hold several of
(R33). Either it is refused, or it costs little each, in the readers and in the writers of every client dialect.
"""

from __future__ import annotations

import gc
import json
import sys
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest

from slipstream.types import Endpoint
from tests.clients import WRITERS, tap_for
from tests.recorded import ANTHROPIC, BEDROCK, GEMINI, OLLAMA, OPENAI, Dialect, event_frame, provider, sse

FLOOD_BYTES = 40 << 20
KEPT_BYTES = 70 << 20
"""More than any reader or writer may keep, the Responses dialect included, which repeats its text at the end."""


def kept(*roots: Any) -> int:
    """Bytes of all that can be reached from ``roots``, code aside."""
    seen: set[int] = set()
    todo, size = list(roots), 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        size += sys.getsizeof(one)
        todo += gc.get_referents(one)
    return size


ENDLESS: dict[str, tuple[Dialect, bytes, bytes]] = {
    "sse line": (OPENAI, b'data: {"choices":[{"delta":{"content":"', b"x" * 65536),
    "sse data lines": (OPENAI, b"", b"data: x\n" * 8192),
    "anthropic line": (ANTHROPIC, b'event: x\ndata: {"type":"', b"x" * 65536),
    "gemini line": (GEMINI, b"data: {", b"x" * 65536),
    "gemini array": (GEMINI, b'[{"candidates":[{"content":{"parts":[{"text":"', b"x" * 65536),
    "gemini bare": (GEMINI, b'{"error": {"message": "', b"x" * 65536),
    "gemini blanks": (GEMINI, b"", b" " * 65536),
    "bedrock frame": (BEDROCK, event_frame("contentBlockDelta", {"p": "x" * (9 << 20)})[:20], b"x" * 65536),
    "bedrock json": (BEDROCK, b'{"message":"', b"x" * 65536),
    "ollama line": (OLLAMA, b'{"message":{"content":"', b"x" * 65536),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_an_event_without_an_end_is_given_up(case: str) -> None:
    dialect, head, more = ENDLESS[case]
    kind, spec = provider(dialect.types[0])
    reader = kind.reader(spec)
    reader.feed(head)
    for _ in range(FLOOD_BYTES // len(more)):
        if reader.failure is not None:
            break
        reader.feed(more)
    assert kept(reader) < 20 << 20
    reader.end()
    assert reader.failure is not None
    assert kept(reader) < 20 << 20


def _openai(delta: Any, n: int = 0) -> bytes:
    return sse({"id": "c", "model": "m", "choices": [{"index": n, "delta": delta, "finish_reason": None}]})


def _start(n: int, block: Any) -> bytes:
    return sse({"type": "content_block_start", "index": n, "content_block": block}, names=True)


def _part(part: Any, n: int = 0) -> bytes:
    return sse({"candidates": [{"index": n, "content": {"parts": [part]}}]})


def _line(message: Any) -> bytes:
    return json.dumps({"model": "m", "message": {"role": "assistant", **message}, "done": False}).encode() + b"\n"


FLOODS: dict[str, tuple[Dialect, Callable[[int], bytes]]] = {
    "choices": (OPENAI, lambda n: _openai({"content": "x"}, n)),
    "calls by index": (OPENAI, lambda n: _openai({"tool_calls": [{"index": n, "function": {"name": "f"}}]})),
    "calls by id": (OPENAI, lambda n: _openai({"tool_calls": [{"id": f"i{n}", "function": {"name": "f"}}]})),
    "calls without a name": (OPENAI, lambda n: _openai({"tool_calls": [{"index": n, "id": f"i{n}"}]})),
    "ids of one call": (OPENAI, lambda n: _openai({"tool_calls": [{"index": 0, "id": f"i{n}"}]})),
    "extra": (OPENAI, lambda n: sse({"choices": [], f"x{n}": "y" * 99, "citations": ["z" * 99] * (n % 9)})),
    "anthropic blocks": (ANTHROPIC, lambda n: _start(n, {"type": "text", "text": "x"})),
    "anthropic calls": (ANTHROPIC, lambda n: _start(n, {"type": "tool_use", "id": f"i{n}", "name": "f", "input": {}})),
    "anthropic restarts": (ANTHROPIC, lambda n: sse({"type": "message_start", "message": {"id": f"m{n}"}}, names=True)),
    "gemini candidates": (GEMINI, lambda n: _part({"text": "x"}, n)),
    "gemini calls": (GEMINI, lambda n: _part({"functionCall": {"name": "f", "args": {"n": n}}})),
    "gemini thoughts": (GEMINI, lambda n: _part({"text": "x", "thought": True, "thoughtSignature": "c2ln"})),
    "bedrock calls": (BEDROCK, lambda n: event_frame("contentBlockStart", {
        "contentBlockIndex": n, "start": {"toolUse": {"toolUseId": f"t{n}", "name": "f"}}})),
    "bedrock blocks": (BEDROCK, lambda n: event_frame("contentBlockDelta", {
        "contentBlockIndex": n, "delta": {"reasoningContent": {"text": "x" * 500}}})),
    "ollama calls": (OLLAMA, lambda n: _line({"tool_calls": [{"function": {"name": "f", "arguments": {"n": n}}}]})),
    "text": (OLLAMA, lambda n: _line({"content": "x" * 20_000})),
    "thought": (OLLAMA, lambda n: _line({"thinking": "x" * 20_000})),
}  # fmt: skip
FLOOD_EVENTS = 3000


@pytest.mark.parametrize("endpoint", WRITERS, ids=lambda e: e.name.lower())
@pytest.mark.parametrize("flood", FLOODS)
def test_a_flood_is_bounded(flood: str, endpoint: Endpoint) -> None:
    """R33: thousands of whatever a stream can hold several of: either it is refused, or it costs little each."""
    dialect, make = FLOODS[flood]
    kind, spec = provider(dialect.types[0])
    tap = tap_for(kind.reader(spec), endpoint)
    sent = 0
    for n in range(FLOOD_EVENTS):
        event = make(n)
        sent += len(event)
        tap.feed(event)
        if tap.failure is not None:
            break
    assert tap.failure is not None or kept(tap) < max(4 << 20, sent // 4), kept(tap)
