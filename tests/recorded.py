"""Recorded exchanges by dialect, and what tests do to them: cut them into events, change their JSON, put them together.

Owns: which recordings are read by which provider type, and the few hand-written streams and replies that take their
place where the shared folder is absent (so a test that needs *some* traffic always has it; a test that needs the
recordings skips by itself).
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from struct import pack
from typing import Any, NamedTuple
from zlib import crc32

from slipstream.config.snapshot import ProviderSpec
from slipstream.providers.base import ProviderType
from slipstream.providers.registry import PROVIDER_TYPES
from tests.fakes import spec
from tests.harness import SHARED

FOLDER = SHARED / "wire" / "dev"
FAMILY = ("openai", "azure", "vllm", "together", "deepseek", "mistral", "groq", "openrouter", "compat")
_SSE_END = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2,}")


class Exchange(NamedTuple):
    """One recorded answer. ``good``: it must be passed on whole; no gateway may call it an error."""

    id: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    good: bool


@dataclass(frozen=True)
class Dialect:
    """What providers of one dialect send. ``types`` are the provider types that read it."""

    name: str
    framing: str
    types: tuple[str, ...]
    sources: tuple[tuple[str, str], ...]
    seeds: Mapping[str, tuple[bytes, ...]] = field(default_factory=dict)

    def exchanges(self, *endpoints: str) -> list[Exchange]:
        """The recordings of these endpoints (``stream``, ``chat``, ``error``, ``models``, ...), else the seeds."""
        found = [e for source in self.sources for e in _recorded(*source, endpoints)]
        return found or [Exchange(f"{self.name}.seed", 429 if kind == "error" else 200, {}, body, True)
                         for kind in endpoints for body in self.seeds.get(kind, ())]  # fmt: skip

    def split(self, body: bytes) -> list[bytes]:
        """The events of a stream, each with what ends it; joined they are the stream."""
        if self.framing == "sse" and body.lstrip()[:1] == b"[":  # Gemini without alt=sse: one array
            return re.split(rb"(?<=\n)(?=,)", body)
        return _SPLIT[self.framing](body)


def provider(type_name: str) -> tuple[ProviderType, ProviderSpec]:
    """A provider type and a configuration of it."""
    return PROVIDER_TYPES[type_name], spec("p", type=type_name, api_version="2024-10-21", region="us-east-1")


@cache
def _recorded(name: str, api: str, endpoints: tuple[str, ...]) -> tuple[Exchange, ...]:
    out = []
    for file in sorted(FOLDER.glob(f"{name}.{api}.*.json")):
        one = json.loads(file.read_text(encoding="utf-8"))
        if one["endpoint"] in endpoints:
            said = one["response"]
            body = base64.b64decode(said["body_base64"]) if "body_base64" in said else said["body"].encode()
            expected = one.get("expected", {})
            good = expected.get("outcome") == "ok" and "outcome" not in expected.get("accept", {})
            out.append(Exchange(one["id"], said["status"], said["headers"], body, good))
    return tuple(out)


# ------------------------------------------------------------------ events


def _sse(body: bytes) -> list[bytes]:
    ends = [0, *(found.end() for found in _SSE_END.finditer(body)), len(body)]
    return [body[a:b] for a, b in pairwise(ends) if b > a]


def _lines(body: bytes) -> list[bytes]:
    return [line + b"\n" for line in body.split(b"\n") if line]


def _frames(body: bytes) -> list[bytes]:
    out = []
    while len(body) >= 16:
        total = int.from_bytes(body[:4], "big")
        if not 16 <= total <= len(body):
            break
        out.append(body[:total])
        body = body[total:]
    return [*out, body] if body else out


_SPLIT: dict[str, Callable[[bytes], list[bytes]]] = {"sse": _sse, "lines": _lines, "frames": _frames}


def frame(payload: bytes, **headers: str) -> bytes:
    """One frame of an AWS event stream (PROTOCOLS.md section 4); ``event_type`` stands for ``:event-type``."""
    block = b"".join(
        pack(">B", len(name) + 1) + b":" + name.replace("_", "-").encode() + pack(">BH", 7, len(value)) + value.encode()
        for name, value in headers.items()
    )
    prelude = pack(">II", len(block) + len(payload) + 16, len(block))
    frame = prelude + pack(">I", crc32(prelude)) + block + payload
    return frame + pack(">I", crc32(frame))


def event_frame(name: str, payload: Any) -> bytes:
    return frame(json.dumps(payload).encode(), event_type=name, content_type="application/json", message_type="event")


def sse(*values: Any, names: bool = False, eol: str = "\n", done: bool = False) -> bytes:
    """Events with these values; ``names``: each has its ``type`` as its name."""
    out = ""
    for value in values:
        name = f"event: {value['type']}{eol}" if names else ""
        out += f"{name}data: {json.dumps(value)}{eol}{eol}"
    return (out + (f"data: [DONE]{eol}{eol}" if done else "")).encode()


def payload_of(framing: str, event: bytes) -> tuple[bytes, bytes, bytes] | None:
    """What is before the JSON of an event, the JSON, and what is behind it; ``None`` if it holds none."""
    if framing == "frames":
        if len(event) < 16:
            return None
        start = 12 + int.from_bytes(event[4:8], "big")
        return event[:start], event[start:-4], event[-4:]
    start = min((at for at in (event.find(b"{"), event.find(b"[{")) if at >= 0), default=-1)
    end = max(event.rfind(b"}"), event.rfind(b"}]") + 1) + 1
    return None if start < 0 or end <= start else (event[:start], event[start:end], event[end:])


def with_payload(framing: str, event: bytes, payload: bytes) -> bytes:
    """The event with another JSON text in it; a frame gets the sums that belong to it."""
    parts = payload_of(framing, event)
    if parts is None:
        return event
    if framing != "frames":
        return parts[0] + payload + parts[2]
    block = parts[0][12:]
    prelude = pack(">II", len(block) + len(payload) + 16, len(block))
    whole = prelude + pack(">I", crc32(prelude)) + block + payload
    return whole + pack(">I", crc32(whole))


# ------------------------------------------------------------------ the dialects

_CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
_OPENAI_USAGE = {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14}


def _chunk(delta: Any, finish: str | None = None, **more: Any) -> Any:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}


OPENAI_STREAM = sse(
    _chunk({"role": "assistant", "content": ""}),
    _chunk({"reasoning_content": "Hm."}),
    _chunk({"content": "Höl"}),
    _chunk({"content": "lo"}),
    _chunk({"tool_calls": [{"index": 0, **_CALL}]}),
    _chunk({}, "tool_calls"),
    {**_chunk({}), "choices": [], "usage": _OPENAI_USAGE},
    done=True,
)
_OPENAI_REPLY = {
    "id": "c1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "tool_calls": [_CALL]},
            "finish_reason": "tool_calls",
        }
    ],
    "usage": _OPENAI_USAGE,
}
_MESSAGE = {
    "id": "msg_1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
    "stop_sequence": None, "usage": {"input_tokens": 9, "output_tokens": 1},
}  # fmt: skip


def _block(index: int, start: Any, *deltas: Any) -> list[Any]:
    return [
        {"type": "content_block_start", "index": index, "content_block": start},
        *({"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": index},
    ]


_USE = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {}}
MESSAGES_STREAM = sse(
    {"type": "message_start", "message": _MESSAGE},
    *_block(
        0,
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "Hm."},
        {"type": "signature_delta", "signature": "c2ln"},
    ),
    {"type": "ping"},
    *_block(
        1, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Höl"}, {"type": "text_delta", "text": "lo"}
    ),
    *_block(2, _USE, *({"type": "input_json_delta", "partial_json": piece} for piece in ("", '{"city":', '"Oslo"}'))),
    {
        "type": "message_delta",
        "delta": {"stop_reason": "tool_use", "stop_sequence": None},
        "usage": {"output_tokens": 7},
    },
    {"type": "message_stop"},
    names=True,
)
_MESSAGES_REPLY = _MESSAGE | {
    "content": [
        {"type": "thinking", "thinking": "Hm.", "signature": "c2ln"},
        {"type": "text", "text": "Hello"},
        _USE | {"input": {"city": "Oslo"}},
    ],
    "stop_reason": "tool_use",
}


def _gemini(*parts: Any, finish: str | None = None) -> Any:
    candidate: Any = {"content": {"parts": list(parts), "role": "model"}, "index": 0}
    if finish:
        candidate["finishReason"] = finish
    usage = {"promptTokenCount": 9, "candidatesTokenCount": 5, "thoughtsTokenCount": 2, "totalTokenCount": 16}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": "m", "responseId": "r1"}


_GEMINI_CALL = {"functionCall": {"name": "get_weather", "args": {"city": "Oslo"}}, "thoughtSignature": "c2ln"}
_CONVERSE_USAGE = {"inputTokens": 9, "outputTokens": 5, "totalTokens": 14}
_CONVERSE_EVENTS: tuple[tuple[str, Any], ...] = (
    ("messageStart", {"role": "assistant", "p": "abc"}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"text": "Hm."}}}),
    ("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"reasoningContent": {"signature": "c2ln"}}}),
    ("contentBlockStop", {"contentBlockIndex": 0}),
    ("contentBlockDelta", {"contentBlockIndex": 1, "delta": {"text": "Höllo"}}),
    ("contentBlockStop", {"contentBlockIndex": 1}),
    (
        "contentBlockStart",
        {"contentBlockIndex": 2, "start": {"toolUse": {"toolUseId": "t1", "name": "get_weather"}}},
    ),
    ("contentBlockDelta", {"contentBlockIndex": 2, "delta": {"toolUse": {"input": '{"city":"Oslo"}'}}}),
    ("contentBlockStop", {"contentBlockIndex": 2}),
    ("messageStop", {"stopReason": "tool_use"}),
    ("metadata", {"usage": _CONVERSE_USAGE, "metrics": {"latencyMs": 1}}),
)
CONVERSE_STREAM = b"".join(event_frame(name, payload) for name, payload in _CONVERSE_EVENTS)
_CONVERSE_CALL = {"toolUseId": "t1", "name": "get_weather", "input": {"city": "Oslo"}}
_CONVERSE_REPLY = {
    "output": {"message": {"role": "assistant", "content": [{"text": "Hello"}, {"toolUse": _CONVERSE_CALL}]}},
    "stopReason": "tool_use",
    "usage": _CONVERSE_USAGE,
}
_OLLAMA_CALL = {"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}


def _ollama(message: Any, **more: Any) -> Any:
    message = {"role": "assistant", "content": "", **message}
    return {"model": "m", "created_at": "2026-01-01T00:00:00.5Z", "message": message, "done": False, **more}


_OLLAMA_END = _ollama({}, done=True, done_reason="stop", prompt_eval_count=9, eval_count=5)
_RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m", "output": []}
_ITEM = {"id": "msg_1", "type": "message", "status": "completed", "role": "assistant",
         "content": [{"type": "output_text", "text": "Hello", "annotations": []}]}  # fmt: skip
_RESPONSES_REPLY = _RESPONSE | {
    "status": "completed",
    "output": [_ITEM],
    "usage": {"input_tokens": 9, "output_tokens": 5, "total_tokens": 14},
}
RESPONSES_STREAM = sse(
    {"type": "response.created", "sequence_number": 0, "response": _RESPONSE},
    {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": _ITEM | {"content": []}},
    {"type": "response.output_text.delta", "sequence_number": 2, "item_id": "msg_1", "output_index": 0,
     "content_index": 0, "delta": "Hello"},
    {"type": "response.output_item.done", "sequence_number": 3, "output_index": 0, "item": _ITEM},
    {"type": "response.completed", "sequence_number": 4, "response": _RESPONSES_REPLY},
    names=True,
)  # fmt: skip


def _bodies(*values: Any) -> tuple[bytes, ...]:
    return tuple(json.dumps(value).encode() for value in values)


def _joined(values: Iterable[Any]) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


_VECTORS = {"object": "list", "data": [{"index": 0, "embedding": [0.5, -1.0]}], "usage": {"prompt_tokens": 2}}
OPENAI = Dialect(
    "openai",
    "sse",
    tuple(name for name in PROVIDER_TYPES if name not in ("anthropic", "gemini", "bedrock", "ollama", "cohere")),
    tuple((name, "chat-completions") for name in FAMILY) + tuple((name, "models") for name in FAMILY),
    {
        "stream": (OPENAI_STREAM,),
        "chat": _bodies(_OPENAI_REPLY),
        "error": _bodies({"error": {"message": "No.", "type": "server_error", "param": None, "code": None}}),
        "models": _bodies({"object": "list", "data": [{"id": "m", "object": "model", "created": 1, "owned_by": "o"}]}),
        "embeddings": _bodies(_VECTORS),
    },
)
ANTHROPIC = Dialect(
    "anthropic",
    "sse",
    ("anthropic",),
    (("anthropic", "messages"), ("anthropic", "models"), ("anthropic", "count-tokens")),
    {
        "stream": (MESSAGES_STREAM,),
        "chat": _bodies(_MESSAGES_REPLY),
        "error": _bodies({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}),
        "models": _bodies({"data": [{"id": "m", "type": "model", "created_at": "2025-01-01T00:00:00Z"}]}),
        "count-tokens": _bodies({"input_tokens": 14}),
    },
)
GEMINI = Dialect(
    "gemini",
    "sse",
    ("gemini",),
    tuple(("gemini", api) for api in ("generate-content", "models", "embeddings", "count-tokens")),
    {
        "stream": (
            sse(_gemini({"text": "Hm.", "thought": True}), _gemini({"text": "Höllo"}), _gemini(_GEMINI_CALL),
                _gemini({"text": ""}, finish="STOP"), eol="\r\n"),
        ),
        "chat": _bodies(_gemini({"text": "Hello"}, _GEMINI_CALL, finish="STOP")),
        "error": _bodies({"error": {"code": 429, "message": "Quota.", "status": "RESOURCE_EXHAUSTED", "details": []}}),
        "models": _bodies({"models": [{"name": "models/m", "supportedGenerationMethods": ["generateContent"]}]}),
        "embeddings": _bodies({"embeddings": [{"values": [0.5, -1.0]}]}),
        "count-tokens": _bodies({"totalTokens": 14}),
    },
)  # fmt: skip
BEDROCK = Dialect(
    "bedrock",
    "frames",
    ("bedrock",),
    tuple(("bedrock", api) for api in ("converse", "models", "count-tokens")),
    {
        "stream": (CONVERSE_STREAM,),
        "chat": _bodies(_CONVERSE_REPLY),
        "error": _bodies({"message": "Too many requests"}),
        "models": _bodies({"modelSummaries": [{"modelId": "m", "providerName": "P"}]}),
        "embeddings": _bodies({"embedding": [0.5, -1.0], "inputTextTokenCount": 2}, {"embeddings": {"float": [[0.5]]}}),
        "count-tokens": _bodies({"inputTokens": 14}),
    },
)
OLLAMA = Dialect(
    "ollama",
    "lines",
    ("ollama",),
    (("ollama", "ollama-chat"), ("ollama", "models")),
    {
        "stream": (
            _joined((_ollama({"thinking": "Hm."}), _ollama({"content": "Höllo"}),
                     _ollama({"tool_calls": [_OLLAMA_CALL]}), _OLLAMA_END)),
        ),
        "chat": _bodies(_OLLAMA_END | {"message": {"content": "Hello", "tool_calls": [_OLLAMA_CALL]}}),
        "error": _bodies({"error": "model not found"}),
        "models": _bodies({"models": [{"name": "m:latest", "modified_at": "2026-01-01T00:00:00Z"}]}),
        "embeddings": _bodies({"model": "m", "embeddings": [[0.5, -1.0]], "prompt_eval_count": 2}),
    },
)  # fmt: skip
_COHERE_USAGE = {"tokens": {"input_tokens": 9.0, "output_tokens": 5.0}}


def _cohere(kind: str, index: int = 0, **message: Any) -> Any:
    return {"type": kind, "index": index, "delta": {"message": message}}


_COHERE_CALL = {"id": "get_weather_1", "type": "function", "function": {"name": "get_weather", "arguments": ""}}
COHERE = Dialect(
    "cohere",
    "sse",
    ("cohere",),
    (),
    {
        "stream": (
            sse(
                {"type": "message-start", "id": "r1", "delta": {"message": {"role": "assistant"}}},
                _cohere("content-start", content={"type": "thinking", "thinking": ""}),
                _cohere("content-delta", content={"thinking": "Hm."}),
                {"type": "content-end", "index": 0},
                _cohere("content-start", 1, content={"type": "text", "text": ""}),
                _cohere("content-delta", 1, content={"text": "Höl"}),
                _cohere("content-delta", 1, content={"text": "lo"}),
                {"type": "content-end", "index": 1},
                _cohere("citation-start", citations={"start": 0, "end": 2, "text": "Hö", "sources": []}),
                _cohere("tool-call-start", tool_calls=_COHERE_CALL),
                _cohere("tool-call-delta", tool_calls={"function": {"arguments": '{"city":'}}),
                _cohere("tool-call-delta", tool_calls={"function": {"arguments": '"Oslo"}'}}),
                {"type": "tool-call-end", "index": 0},
                {"type": "message-end", "delta": {"finish_reason": "TOOL_CALL", "usage": _COHERE_USAGE}},
                names=True,
            ),
        ),
        "chat": _bodies(
            {
                "id": "r1",
                "message": {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Hello"}],
                    "tool_calls": [_CALL],
                    "citations": [{"start": 0, "end": 2, "text": "He", "sources": []}],
                },
                "finish_reason": "TOOL_CALL",
                "usage": _COHERE_USAGE,
                "logprobs": [{"token_ids": [1], "text": "Hello", "logprobs": [-0.5]}],
            }
        ),
        "error": _bodies({"id": "e1", "message": "You are past the per minute request limit"}),
        "models": _bodies({"models": [{"name": "m", "endpoints": ["chat"], "context_length": 128000.0}]}),
        "embeddings": _bodies({"embeddings": {"float": [[0.5, -1.0]]}, "meta": {"billed_units": {"input_tokens": 2}}}),
    },
)
RESPONSES = Dialect(
    "responses",
    "sse",
    (),
    tuple((name, "responses") for name in ("openai", "azure", "deepseek", "openrouter", "compat")),
    {"stream": (RESPONSES_STREAM,), "chat": _bodies(_RESPONSES_REPLY)},
)
DIALECTS = (OPENAI, ANTHROPIC, GEMINI, BEDROCK, OLLAMA, COHERE)
"""What provider types read. ``RESPONSES`` is only ever passed on."""
