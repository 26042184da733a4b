"""The answers in OpenAI's form: whole bodies and stream events, as bytes.

Chunks are put together from encoded parts (the head of a stream is encoded once, a delta once per process), because
the mock is the upstream of load tests and must cost less than what it measures. Form: protocol notes 2.1 and 3.1.
"""

from __future__ import annotations

import base64
import hashlib
import math
import sys
from array import array
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from ..wire.codec import dumps
from .requests import CHAT, EMBEDDINGS, Call
from .settings import MockSettings

DONE = b"data: [DONE]\n\n"
CREATED = 1_700_000_000
"""Creation time of every model in the list; an answer has the real time."""

DEFAULT_MODELS = ("mock/ok",)


def usage_of(call: Call, completion_tokens: int) -> dict[str, Any]:
    total = call.prompt_tokens + completion_tokens
    if call.endpoint == EMBEDDINGS:
        return {"prompt_tokens": call.prompt_tokens, "total_tokens": total}
    return {
        "prompt_tokens": call.prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": total,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def body_of(call: Call, ident: str, created: int, settings: MockSettings) -> bytes:
    """The whole answer of a request that is not streamed."""
    if call.endpoint == EMBEDDINGS:
        return _embeddings_body(call)
    object_ = "chat.completion" if call.endpoint == CHAT else "text_completion"
    choice = _chat_choice if call.endpoint == CHAT else _text_choice
    body = {
        "id": ident,
        "object": object_,
        "created": created,
        "model": call.model,
        "choices": [choice(call, i, ident) for i in range(call.n)],
    }
    if call.want_usage:
        body["usage"] = usage_of(call, call.n * len(call.pieces))
    body["system_fingerprint"] = f"fp_{settings.name}"
    return dumps(body)


def _chat_choice(call: Call, index: int, ident: str) -> dict[str, Any]:
    text = "".join(call.pieces)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if call.tool is not None:
        function = {"name": call.tool, "arguments": text}
        message["content"] = None
        message["tool_calls"] = [{"id": call_id(ident, index), "type": "function", "function": function}]
    return {"index": index, "message": message, "logprobs": None, "finish_reason": call.finish}


def _text_choice(call: Call, index: int, ident: str) -> dict[str, Any]:
    return {"text": "".join(call.pieces), "index": index, "logprobs": None, "finish_reason": call.finish}


def call_id(ident: str, index: int) -> str:
    """The id of a tool call: unique in and between answers."""
    return f"call_{ident.rpartition('-')[2]}{index:02d}"


class Stream:
    """The events of one streamed answer in three parts: before, while and after content flows."""

    __slots__ = ("_call", "_head", "_ident", "_tail")

    def __init__(self, call: Call, ident: str, created: int, settings: MockSettings) -> None:
        object_ = "chat.completion.chunk" if call.endpoint == CHAT else "text_completion"
        head = {"id": ident, "object": object_, "created": created, "model": call.model}
        head["system_fingerprint"] = f"fp_{settings.name}"
        self._call = call
        self._ident = ident
        self._head = b"data: " + dumps(head)[:-1] + b',"choices":'
        self._tail = b',"usage":null}\n\n' if call.include_usage else b"}\n\n"

    def _event(self, choices: bytes) -> bytes:
        return self._head + choices + self._tail

    def role(self) -> bytes:
        """The role-only chunks, one per choice; legacy completions have none."""
        if self._call.endpoint != CHAT:
            return b""
        empty = None if self._call.tool is not None else ""
        delta = {"role": "assistant", "content": empty, "refusal": None}
        return b"".join(self._event(_choice(i, delta)) for i in range(self._call.n))

    def tool(self) -> bytes:
        """The chunks that open a tool call: id, type and name, once per choice."""
        if self._call.tool is None:
            return b""
        return b"".join(self._event(_choice(i, self._tool_delta(i))) for i in range(self._call.n))

    def _tool_delta(self, index: int) -> dict[str, Any]:
        function = {"name": self._call.tool, "arguments": ""}
        call = {"index": 0, "id": call_id(self._ident, index), "type": "function", "function": function}
        return {"tool_calls": [call]}

    def content(self) -> Iterator[bytes]:
        """One event per token; the choices take turns."""
        call, head, tail = self._call, self._head, self._tail
        encode = _text_piece if call.endpoint != CHAT else _content_piece if call.tool is None else _argument_piece
        for piece in call.pieces:
            for index in range(call.n):
                yield head + encode(index, piece) + tail

    def finish(self) -> bytes:
        """One chunk with the finish_reason per choice, then the usage when it was asked for."""
        call = self._call
        encode = _choice if call.endpoint == CHAT else _text_choice_chunk
        last: Any = {} if call.endpoint == CHAT else ""
        events = b"".join(self._event(encode(i, last, call.finish)) for i in range(call.n))
        if call.include_usage and call.want_usage:
            usage = dumps(usage_of(call, call.n * len(call.pieces)))
            events += self._head + b'[],"usage":' + usage + b"}\n\n"
        return events


def _choice(index: int, delta: dict[str, Any], finish: str | None = None) -> bytes:
    return dumps([{"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}])


def _text_choice_chunk(index: int, text: str, finish: str | None = None) -> bytes:
    return dumps([{"text": text, "index": index, "logprobs": None, "finish_reason": finish}])


@lru_cache(maxsize=1024)
def _content_piece(index: int, piece: str) -> bytes:
    return _choice(index, {"content": piece})


@lru_cache(maxsize=1024)
def _argument_piece(index: int, piece: str) -> bytes:
    return _choice(index, {"tool_calls": [{"index": 0, "function": {"arguments": piece}}]})


@lru_cache(maxsize=1024)
def _text_piece(index: int, piece: str) -> bytes:
    return _text_choice_chunk(index, piece)


def _embeddings_body(call: Call) -> bytes:
    data = []
    for index, text in enumerate(call.inputs):
        packed = embed(text, call.dimensions)
        vector: Any = base64.b64encode(packed).decode() if call.base64 else _floats(packed).tolist()
        data.append({"object": "embedding", "index": index, "embedding": vector})
    body = {"object": "list", "data": data, "model": call.model}
    return dumps(body | {"usage": usage_of(call, 0)} if call.want_usage else body)


@lru_cache(maxsize=256)
def embed(text: str, dimensions: int) -> bytes:
    """A unit vector that depends on nothing but the text, as little-endian float32 (what ``base64`` promises)."""
    noise = array("h", hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(2 * dimensions))
    if sys.byteorder == "big":
        noise.byteswap()
    norm = math.sqrt(sum(x * x for x in noise)) or 1.0
    vector = array("f", (x / norm for x in noise))
    if sys.byteorder == "big":
        vector.byteswap()
    return vector.tobytes()


def _floats(packed: bytes) -> array[float]:
    vector = array("f", packed)
    if sys.byteorder == "big":
        vector.byteswap()
    return vector


def model_object(model: str, settings: MockSettings) -> dict[str, Any]:
    return {"id": model, "object": "model", "created": CREATED, "owned_by": settings.name}


def models_body(settings: MockSettings) -> bytes:
    """The list of models; prefixes (``name*``) are no ids and are left out."""
    ids = [model for model in settings.models or DEFAULT_MODELS if not model.endswith("*")]
    return dumps({"object": "list", "data": [model_object(model, settings) for model in ids]})
