"""The client's side of every endpoint: how its requests are read into the canonical shape, and how answers and errors
are written in its dialect.

One small object per endpoint, found by ``FACES[endpoint]``. What a dialect needs is imported when it is first spoken,
so that a gateway that only passes bytes on never loads the others; and it is kept then, because an import statement
costs a microsecond each time.

The rule that must not be broken: an error is always in the dialect of the endpoint that was called, whoever made it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import NamedTuple

import msgspec

from ..errors import ClientError, GatewayError
from ..types import Endpoint
from . import openai_errors
from .canonical import Answer, Json, Reply, StreamWriter
from .codec import dumps
from .openai_chat.writer import ChatWriter, encode_reply
from .usage import Usage


class Told(msgspec.Struct, gc=False):
    """What an answer may say about how it came about: the provider's name, US dollars, milliseconds so far."""

    provider: str
    cost_usd: float
    latency_ms: float


Settle = Callable[[Usage | None], tuple[float, float]]
"""US dollars and milliseconds at the end of a stream, from its usage."""


class Face:
    """OpenAI chat: the canonical shape itself."""

    __slots__ = ()
    error_type = "application/json"
    """Content type of an error."""
    ping = b": keep-alive\n\n"
    """A heartbeat: a comment (WHATWG HTML, "Event streams"), which clients skip (R19)."""

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        """The canonical request, and the names of what it has no place for. Raises ``ClientError`` naming a field."""
        messages = body.get("messages")
        if not isinstance(messages, list):
            raise ClientError("'messages' must be an array of messages.", param="messages", code="invalid_type")
        for n, message in enumerate(messages):
            if not isinstance(message, dict) or not isinstance(message.get("role"), str):
                raise ClientError(
                    "A message must be an object with a 'role'.", param=f"messages[{n}]", code="invalid_type"
                )
        return body, []

    def encode(self, reply: Reply, answer: Answer, told: Told) -> bytes:
        """A whole answer."""
        return encode_reply(reply, answer)

    def writer(self, answer: Answer, provider: str, settle: Settle) -> StreamWriter:
        """A streamed answer of ``provider``; ``settle`` prices the usage at its end."""
        return ChatWriter(answer)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        """The body of an HTTP error."""
        return openai_errors.error_body(error)

    def error_event(self, error: GatewayError) -> bytes:
        """The in-band error of a stream of bytes passed on (R12)."""
        return openai_errors.error_event(error)


class _Dialect(NamedTuple):
    decode: Callable[[Json], tuple[Json, list[str]]]
    encode: Callable[[Reply, Answer], bytes]
    writer: Callable[[Answer], StreamWriter]


@cache
def _completions() -> _Dialect:
    from .openai_completions import CompletionsWriter, decode_request, encode_reply

    return _Dialect(decode_request, encode_reply, CompletionsWriter)


@cache
def _responses() -> _Dialect:
    from .responses.face_reply import encode_reply
    from .responses.face_request import decode_request
    from .responses.face_writer import ResponsesWriter

    return _Dialect(decode_request, encode_reply, ResponsesWriter)


@cache
def _messages() -> _Dialect:
    from .anthropic.face_reply import encode_reply
    from .anthropic.face_request import decode_request
    from .anthropic.face_writer import MessagesWriter

    return _Dialect(decode_request, encode_reply, MessagesWriter)


class _Other(Face):
    """A face in another dialect, which ``load`` brings."""

    __slots__ = ("_load",)

    def __init__(self, load: Callable[[], _Dialect]) -> None:
        self._load = load

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        return self._load().decode(body)

    def encode(self, reply: Reply, answer: Answer, told: Told) -> bytes:
        return self._load().encode(reply, answer)

    def writer(self, answer: Answer, provider: str, settle: Settle) -> StreamWriter:
        return self._load().writer(answer)


class _Embeddings(Face):
    __slots__ = ()

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        from .openai_embeddings import decode_request

        return decode_request(body), []

    def encode_vectors(self, vectors: list[list[float]], usage: Usage | None, answer: Answer) -> bytes:
        """A list of embeddings."""
        from .openai_embeddings import encode_reply

        return encode_reply(vectors, usage, answer)


class _Responses(_Other):
    __slots__ = ()

    def error_event(self, error: GatewayError) -> bytes:
        from .responses.errors import error_event

        return error_event(error)


class _Messages(_Other):
    __slots__ = ()
    ping = b'event: ping\ndata: {"type": "ping"}\n\n'

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        from .anthropic.errors import error_body

        return error_body(error, request_id)

    def error_event(self, error: GatewayError) -> bytes:
        from .anthropic.errors import error_event

        return error_event(error)


class _CountTokens(_Messages):
    __slots__ = ()

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        from .anthropic.face_request import decode_count

        return decode_count(body)

    def encode_count(self, tokens: int) -> bytes:
        """Anthropic's answer to ``POST /v1/messages/count_tokens``."""
        return dumps({"input_tokens": tokens})


class _Infer(Face):
    __slots__ = ()
    error_type = "application/problem+json"

    def decode(self, body: Json) -> tuple[Json, list[str]]:
        from .infer import decode_request

        return decode_request(body)

    def encode(self, reply: Reply, answer: Answer, told: Told) -> bytes:
        from .infer import encode_reply

        return encode_reply(reply, answer, provider=told.provider, cost_usd=told.cost_usd, latency_ms=told.latency_ms)

    def writer(self, answer: Answer, provider: str, settle: Settle) -> StreamWriter:
        from .infer import InferWriter

        return InferWriter(answer, provider, settle)

    def error_body(self, error: GatewayError, request_id: str) -> bytes:
        from .problem import problem_body

        return problem_body(error, request_id)


CHAT = Face()
EMBEDDINGS = _Embeddings()
COUNT_TOKENS = _CountTokens(_messages)
FACES: Mapping[Endpoint, Face] = {
    Endpoint.CHAT: CHAT,
    Endpoint.COMPLETIONS: _Other(_completions),
    Endpoint.EMBEDDINGS: EMBEDDINGS,
    Endpoint.RESPONSES: _Responses(_responses),
    Endpoint.MESSAGES: _Messages(_messages),
    Endpoint.COUNT_TOKENS: COUNT_TOKENS,
    Endpoint.INFER: _Infer(),
}


def face_of_request(data: bytes) -> Face:
    """The face for an answer to bytes that were refused before their route was read; OpenAI's if they do not say."""
    target = data[5:64].partition(b" ")[0].partition(b"?")[0] if data[:5] == b"POST " else b""
    return next((FACES[e] for e in Endpoint if e.path.encode() == target), CHAT)
