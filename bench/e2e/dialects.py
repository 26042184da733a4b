"""What an upstream of another dialect than OpenAI's sends: the texts of ``payloads``, in the wrapping that recorded
traffic has (shared/wire/PROTOCOLS.md 2.3 to 2.5, section 4), so that what a gateway translates is what it will get.

Frames and events are made once; the upstream only writes them.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from . import payloads

NAMES = ("anthropic", "gemini", "bedrock")
TITLES = {"anthropic": "Anthropic", "gemini": "Gemini", "bedrock": "Bedrock"}
PROMPT_TOKENS, REPLY_TOKENS = 180, 130
PADDING = "abcdefghijklmnopqrstuv"
"""Bedrock pads each payload with a piece of the alphabet, against guessing by length."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """``begin`` and ``end`` are what is before the first text and behind the last, ``texts`` the two events that take
    turns; ``mark`` is in the last 128 bytes of a whole stream and nowhere before."""

    name: str
    content_type: str
    begin: bytes
    texts: tuple[bytes, bytes]
    end: bytes
    mark: bytes

    def stream(self, events: int = payloads.EVENTS) -> bytes:
        """All bytes of a streamed answer."""
        return self.begin + b"".join(self.texts[n % 2] for n in range(events)) + self.end

    def reply(self, digest: str = "") -> bytes:
        """A whole answer with the text of ``payloads.reply``."""
        text = json.loads(payloads.reply(digest))["choices"][0]["message"]["content"]
        return _json(_REPLIES[self.name](text))


def digest(body: Mapping[str, Any]) -> str:
    """The SHA-256 of the question's last text, in whatever dialect it is asked."""
    last = (body.get("messages") or body["contents"])[-1]
    content = last.get("content", last.get("parts"))
    text = content if isinstance(content, str) else "".join(part["text"] for part in content)
    return hashlib.sha256(text.encode()).hexdigest()


def frame(name: str, payload: Any) -> bytes:
    """One event of an AWS event stream, with its two sums."""
    headers = ((":event-type", name), (":content-type", "application/json"), (":message-type", "event"))
    block = b"".join(
        struct.pack(">B", len(key)) + key.encode() + struct.pack(">BH", 7, len(value)) + value.encode()
        for key, value in headers
    )
    body = _json(payload)
    prelude = struct.pack(">II", len(block) + len(body) + 16, len(block))
    whole = prelude + struct.pack(">I", crc32(prelude)) + block + body
    return whole + struct.pack(">I", crc32(whole))


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


# ------------------------------------------------------------------ Anthropic


def _event(value: Any) -> bytes:
    return b"event: " + value["type"].encode() + b"\ndata: " + _json(value) + b"\n\n"


def _message(content: list[Any], **more: Any) -> Any:
    usage = {
        "input_tokens": PROMPT_TOKENS,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 1 if not content else REPLY_TOKENS,
        "service_tier": "standard",
    }
    head = {"id": "msg_01BenchBenchBenchBench", "type": "message", "role": "assistant", "model": payloads.MODEL}
    return head | {"content": content, "stop_reason": None, "stop_sequence": None, "usage": usage} | more


def _anthropic() -> Dialect:
    def text(piece: str) -> bytes:
        return _event({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": piece}})

    start = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
    stop = {
        "type": "message_delta",
        "delta": {"stop_reason": "end_turn", "stop_sequence": None},
        "usage": {"output_tokens": payloads.EVENTS},
    }
    return Dialect(
        "anthropic",
        "text/event-stream; charset=utf-8",
        _event({"type": "message_start", "message": _message([])}) + _event(start) + _event({"type": "ping"}),
        (text(payloads.EVENT_TEXTS[0]), text(payloads.EVENT_TEXTS[1])),
        _event({"type": "content_block_stop", "index": 0}) + _event(stop) + _event({"type": "message_stop"}),
        b'"message_stop"',
    )


# ------------------------------------------------------------------ Gemini


def _candidate(text: str, output: int, finish: str | None = None) -> Any:
    candidate: Any = {"content": {"parts": [{"text": text}], "role": "model"}}
    if finish is not None:
        candidate["finishReason"] = finish
    usage = {
        "promptTokenCount": PROMPT_TOKENS,
        "candidatesTokenCount": output,
        "totalTokenCount": PROMPT_TOKENS + output,
        "promptTokensDetails": [{"modality": "TEXT", "tokenCount": PROMPT_TOKENS}],
    }
    candidate["index"] = 0
    last = "the-end" if finish is not None else "bench"
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": payloads.MODEL, "responseId": last}


def _gemini() -> Dialect:
    def event(value: Any) -> bytes:
        return b"data: " + _json(value) + b"\r\n\r\n"

    first, second = (event(_candidate(text, 5)) for text in payloads.EVENT_TEXTS)
    end = event(_candidate("", payloads.EVENTS, "STOP"))
    return Dialect("gemini", "text/event-stream", b"", (first, second), end, b'"the-end"')


# ------------------------------------------------------------------ Bedrock


def _bedrock() -> Dialect:
    def text(piece: str) -> bytes:
        return frame("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": piece}, "p": PADDING})

    end = frame("contentBlockStop", {"contentBlockIndex": 0, "p": PADDING})
    end += frame("messageStop", {"p": PADDING, "stopReason": "end_turn"})
    end += frame("metadata", {"usage": _aws_usage(payloads.EVENTS), "metrics": {"latencyMs": 1000}})
    return Dialect(
        "bedrock",
        "application/vnd.amazon.eventstream",
        frame("messageStart", {"p": PADDING, "role": "assistant"}),
        (text(payloads.EVENT_TEXTS[0]), text(payloads.EVENT_TEXTS[1])),
        end,
        b'"latencyMs"',
    )


def _aws_usage(output: int) -> Any:
    return {"inputTokens": PROMPT_TOKENS, "outputTokens": output, "totalTokens": PROMPT_TOKENS + output}


_REPLIES = {
    "anthropic": lambda text: _message([{"type": "text", "text": text}], stop_reason="end_turn"),
    "gemini": lambda text: _candidate(text, REPLY_TOKENS, "STOP"),
    "bedrock": lambda text: {
        "metrics": {"latencyMs": 1000},
        "output": {"message": {"content": [{"text": text}], "role": "assistant"}},
        "stopReason": "end_turn",
        "usage": _aws_usage(REPLY_TOKENS),
    },
}
DIALECTS = {made.name: made for made in (_anthropic(), _gemini(), _bedrock())}
