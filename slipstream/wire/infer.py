"""``POST /v1/infer``: one prompt in, one text out (contract E, llm-router-openapi.yaml).

A request is a chat of one user message; an answer is ``{provider, text, cost_usd, latency_ms, request_id}``. The
published description knows ``stream`` as "not yet implemented" and no form for it: here it is server-sent events,
``{"text": piece}`` as the pieces come and at the end one whole answer with ``"done": true`` beside the published
members, so a client that keeps the last event has what it would have got without streaming.

The rule that must not be broken: limits and names are the published ones, so whoever sent a valid request to the
original sends a valid one here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from ..errors import ClientError, GatewayError, MalformedReply
from .canonical import Answer, Chunk, Json, Reply, StreamReader, text_of
from .codec import dumps
from .problem import problem
from .usage import Usage

POLICIES = ("cheapest", "fastest_p95", "slo_burn_aware", "canary")
MAX_TOKENS = 4096
MAX_KEY_CHARS = 255
MAX_NAME_CHARS = 64
"""A longer name of a field is nobody's parameter."""
MAX_TEXT_CHARS = 32 * 1024 * 1024
"""Text of one stream, which is kept because it is repeated at the end; only a broken provider sends more (R33)."""
_FIELDS = frozenset({"model", "prompt", "max_tokens", "stream", "policy", "idempotency_key"})

T = TypeVar("T")
Settle = Callable[[Usage | None], tuple[float, float]]
"""US dollars of that usage, and the milliseconds that the request has taken so far."""


class InferRequest(msgspec.Struct):
    """What a client asked for. ``model`` is empty and ``policy`` and ``idempotency_key`` are ``None`` if not said."""

    prompt: str
    model: str = ""
    max_tokens: int | None = None
    stream: bool = False
    policy: str | None = None
    idempotency_key: str | None = None


def read_request(body: Json) -> InferRequest:
    """The request in ``body``. Raises ``ClientError`` naming the field."""
    prompt = _field(body, "prompt", str, "a string")
    if not prompt:
        raise ClientError("'prompt' is required.", param="prompt", code="missing_required_parameter")
    limit = _field(body, "max_tokens", int, "a whole number")
    if limit is not None and not 1 <= limit <= MAX_TOKENS:
        raise _invalid("max_tokens", f"a whole number from 1 to {MAX_TOKENS}")
    policy = _field(body, "policy", str, "a string")
    if policy is not None and policy not in POLICIES:
        raise _invalid("policy", f"one of {', '.join(POLICIES)}")
    key = _field(body, "idempotency_key", str, "a string")
    if key is not None and len(key) > MAX_KEY_CHARS:
        raise _invalid("idempotency_key", f"a string of at most {MAX_KEY_CHARS} characters")
    return InferRequest(
        prompt=prompt,
        model=_field(body, "model", str, "a string") or "",
        max_tokens=limit,
        stream=_field(body, "stream", bool, "true or false") or False,
        policy=policy,
        idempotency_key=key,
    )


def decode_request(body: Json) -> tuple[Json, list[str]]:
    """The canonical request, and the names of what it has no place for. Its ``model`` is empty if the client named
    none."""
    asked = read_request(body)
    request: Json = {"model": asked.model, "messages": [{"role": "user", "content": asked.prompt}]}
    if asked.max_tokens is not None:
        request["max_tokens"] = asked.max_tokens
    if asked.stream:
        request["stream"] = True
    return request, [_shown(name) for name, value in body.items() if name not in _FIELDS and value is not None]


def _field(body: Json, name: str, kind: type[T], wanted: str) -> T | None:
    """The value of ``name``; ``null`` is as good as nothing."""
    value = body.get(name)
    if value is None:
        return None
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _invalid(name, wanted, "invalid_type")
    return value


def _invalid(name: str, wanted: str, code: str = "invalid_value") -> ClientError:
    return ClientError(f"'{name}' must be {wanted}.", param=name, code=code)


def _shown(name: str) -> str:
    """It will stand in a header and in a log."""
    return name if name.isascii() and name.isprintable() and len(name) <= MAX_NAME_CHARS else "?"


def encode_reply(reply: Reply, answer: Answer, *, provider: str, cost_usd: float, latency_ms: float) -> bytes:
    """A whole answer (``InferResponse``)."""
    message = reply.choices[0].get("message") if reply.choices else None
    text = ""
    if isinstance(message, dict):
        refusal = message.get("refusal")
        text = text_of(message.get("content")) or (refusal if isinstance(refusal, str) else "")
    return dumps(_response(provider, text, cost_usd, latency_ms, answer))


def _response(provider: str, text: str, cost_usd: float, latency_ms: float, answer: Answer) -> Json:
    return {
        "provider": provider,
        "text": text,
        "cost_usd": max(0.0, cost_usd),
        "latency_ms": max(0, round(latency_ms)),
        "request_id": answer.id,
    }


class InferWriter:
    """A streamed answer. Reasoning and tool calls have no place in it. ``settle`` is asked once, at the end."""

    __slots__ = ("_answer", "_chars", "_pieces", "_provider", "_settle")

    def __init__(self, answer: Answer, provider: str, settle: Settle | None = None) -> None:
        self._answer = answer
        self._provider = provider
        self._settle = settle
        self._pieces: list[str] = []
        self._chars = 0

    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        """The pieces of the first choice's text. Raises ``MalformedReply`` beyond what is kept."""
        out = []
        for chunk in chunks:
            piece = chunk.delta.get("content") or chunk.delta.get("refusal")
            if piece and isinstance(piece, str) and chunk.index == 0:
                self._keep(piece)
                out.append(b'data: {"text":' + dumps(piece) + b"}\n\n")
        return b"".join(out)

    def _keep(self, piece: str) -> None:
        self._chars += len(piece)
        if self._chars > MAX_TEXT_CHARS:
            raise MalformedReply(f"the provider's answer is longer than {MAX_TEXT_CHARS} characters")
        self._pieces.append(piece)

    def end(self, reader: StreamReader) -> bytes:
        """The whole answer once more, with what is known only now."""
        cost_usd, latency_ms = self._settle(reader.usage) if self._settle is not None else (0.0, 0.0)
        shown = _response(self._provider, "".join(self._pieces), cost_usd, latency_ms, self._answer)
        return b"data: " + dumps({**shown, "done": True}) + b"\n\n"

    def error(self, error: GatewayError) -> bytes:
        """The problem as an ``error`` event; nothing follows it (R12)."""
        return b"event: error\ndata: " + dumps(problem(error, self._answer.id)) + b"\n\n"
