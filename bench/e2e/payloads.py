"""What goes through the proxies: chat requests of a given size, and the upstream's answers to them.

An answer is a function of the question: its text begins with the SHA-256 of the question's last message. So a client
can compute what the upstream must have said, byte by byte, and a mixed-up, cut or altered body in either direction is
seen. Sizes are those of the project's other measurements: 900 characters of text are a body of 1.1 KB.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping
from typing import Any

PATH = "/v1/chat/completions"
KEY = "sk-test"
MODEL = "gpt-4o"
SIZES = {"unary": 900, "100k": 100_000, "1m": 1_000_000}
REPLY_CHARS = 700
EVENTS = 200
EVENT_GAP_MS = 5.0
EVENT_TEXTS = (" hello", " cello")
"""By turns: LiteLLM ends a stream whose text is the same a hundred times."""
EVENT_MARK = b'ello"'
"""The end of each event's text: what is counted, whatever a gateway makes of the JSON around it."""
END_MARK = b"[DONE]"
"""In the last bytes of a stream that came to its end, in OpenAI's dialect."""

_WORDS = ("gateway", "requests", "tokens", "stream", "provider", "latency", "routes", "answers", "a", "the", "of", "to")
_HEAD = {"id": "chatcmpl-bench", "created": 1700000000, "model": MODEL + "-2024-08-06", "system_fingerprint": "fp_x"}


def text(chars: int, seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choices(_WORDS, k=chars // 2 + 1))[:chars]


def request(chars: int = 900, seed: int = 1, *, stream: bool = False, usage: bool = False) -> bytes:
    messages = [
        {"role": "system", "content": "You are a helpful assistant."},
        {"role": "user", "content": text(chars, seed)},
    ]
    body: dict[str, Any] = {"model": MODEL, "messages": messages, "temperature": 0.7, "max_tokens": 256}
    if stream:
        body["stream"] = True
    if usage:
        body["stream_options"] = {"include_usage": True}
    return _json(body)


def reply_to(body: Mapping[str, Any]) -> bytes:
    """What the upstream answers to this (decoded) request."""
    return reply(hashlib.sha256(body["messages"][-1]["content"].encode()).hexdigest())


def reply(digest: str = "") -> bytes:
    message = {"role": "assistant", "content": f"{digest} {text(REPLY_CHARS - 65, 2)}", "refusal": None}
    usage = {
        "prompt_tokens": 180,
        "completion_tokens": 130,
        "total_tokens": 310,
        "prompt_tokens_details": {"cached_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}
    return _json(_HEAD | {"object": "chat.completion", "choices": [choice], "usage": usage})


def event(number: int) -> bytes:
    return _event({"content": EVENT_TEXTS[number % 2]}, None)


def last_events(events: int, *, usage: bool) -> bytes:
    counts = {"prompt_tokens": 10, "completion_tokens": events, "total_tokens": 10 + events}
    chunk = _HEAD | {"object": "chat.completion.chunk", "choices": [], "usage": counts}
    asked = b"data: " + _json(chunk) + b"\n\n" if usage else b""
    return _event({}, "stop") + asked + b"data: [DONE]\n\n"


def stream(events: int = EVENTS, *, usage: bool = False) -> bytes:
    """All bytes of a streamed answer."""
    return b"".join(map(event, range(events))) + last_events(events, usage=usage)


def http(body: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """The whole request as it is written to a connection."""
    lines = "".join(f"{name}: {value}\r\n" for name, value in all_headers(headers).items())
    return f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode() + body


def all_headers(headers: Mapping[str, str] | None = None) -> dict[str, str]:
    return {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}", **(headers or {})}


def _event(delta: dict[str, Any], finish: str | None) -> bytes:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    return b"data: " + _json(_HEAD | {"object": "chat.completion.chunk", "choices": [choice]}) + b"\n\n"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
