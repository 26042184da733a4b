"""A request whose client and provider speak different dialects: out through the canonical shape and back.

One ``Conversion`` per attempt (every attempt starts from the client's original, R59; the decoded original is kept on
the call). It is pure: it builds what is sent and reads what comes; ``attempt`` and ``relay`` do the sending.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec

from ..config.snapshot import Price, ProviderSpec
from ..errors import ClientError, GatewayError, UpstreamError
from ..providers.base import ProviderType
from ..wire.canonical import Answer, Built, Chunk, Json, StreamReader, StreamWriter, has_content
from ..wire.codec import DecodeError, loads
from ..wire.faces import COUNT_TOKENS, EMBEDDINGS, FACES, Face, Told
from ..wire.request import Call
from ..wire.usage import Usage

MICROS = 1_000_000


class Tap(Protocol):
    """What the relay needs of a stream's reader, translated or passed on (see ``wire.openai_stream.StreamTap``)."""

    content_events: int
    done: bool
    failure: UpstreamError | None
    reads_json: bool
    """Its stream may begin with a brace or a bracket; else that is an error in disguise."""

    @property
    def committed(self) -> bool: ...

    def feed(self, chunk: bytes) -> bytes: ...

    def end(self) -> bytes: ...

    def read_usage(self) -> Usage | None: ...

    def error(self, error: GatewayError) -> bytes:
        """The in-band error and what must follow it, where this stream stands (R12)."""


class TranslatingTap:
    """One stream, read in the provider's dialect and written in the client's."""

    __slots__ = ("_reader", "_writer", "committed", "content_events", "done", "failure", "reads_json")

    def __init__(self, reader: StreamReader, writer: StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.reads_json = reader.reads_json
        self.content_events = 0
        self.committed = False
        self.done = False
        self.failure: UpstreamError | None = None

    def feed(self, chunk: bytes) -> bytes:
        return self._pass_on(self._reader.feed(chunk))

    def end(self) -> bytes:
        return self._pass_on(self._reader.end())

    def _pass_on(self, chunks: list[Chunk]) -> bytes:
        reader, writer = self._reader, self._writer
        out = b""
        try:
            if chunks:
                for chunk in chunks:
                    if chunk.delta:
                        self.content_events += 1
                self.committed = self.committed or any(map(has_content, chunks))
                out = writer.write(chunks, reader)
            if reader.failure is not None:
                self.failure = reader.failure
            elif reader.done:
                self.committed = self.done = True
                out += writer.end(reader)
        except UpstreamError as error:  # more than the dialect can hold together
            self.failure = error
        return out

    def read_usage(self) -> Usage | None:
        return self._reader.usage

    def error(self, error: GatewayError) -> bytes:
        return self._writer.error(error)


class Conversion(msgspec.Struct, gc=False):
    """A chat-like request in another dialect than the provider's. ``dropped`` is what it could not express."""

    face: Face
    kind: ProviderType
    spec: ProviderSpec
    answer: Answer
    built: Built
    dropped: list[str]

    def tap(self, latency_ms: Callable[[], float]) -> TranslatingTap:
        """The way back of a stream; ``latency_ms`` tells the time that it has taken so far."""
        price = self.spec.price

        def settle(usage: Usage | None) -> tuple[float, float]:
            return micro_usd(price, usage) / MICROS, latency_ms()

        return TranslatingTap(self.kind.reader(self.spec), self.face.writer(self.answer, self.spec.name, settle))

    def whole(self, body: bytes, headers: Mapping[str, str], latency_ms: float) -> tuple[bytes, Usage | None]:
        """The client's answer from the provider's. Raises ``UpstreamError``."""
        reply = self.kind.reply(body, headers, self.spec)
        told = Told(self.spec.name, micro_usd(self.spec.price, reply.usage) / MICROS, latency_ms)
        return self.face.encode(reply, self.answer, told), reply.usage


class EmbeddingsConversion(Conversion, gc=False):
    """Embeddings of a provider that is not of the OpenAI family."""

    def whole(self, body: bytes, headers: Mapping[str, str], latency_ms: float) -> tuple[bytes, Usage | None]:
        vectors, usage = self.kind.embeddings(body, headers, self.spec)
        return EMBEDDINGS.encode_vectors(vectors, usage, self.answer), usage


class CountConversion(Conversion, gc=False):
    """Token counts of a provider that is not Anthropic."""

    def whole(self, body: bytes, headers: Mapping[str, str], latency_ms: float) -> tuple[bytes, Usage | None]:
        return COUNT_TOKENS.encode_count(self.kind.count(body, self.spec)), None


def canonical(call: Call) -> tuple[Json, list[str]]:
    """The client's request in the canonical shape, decoded once. Raises ``ClientError``."""
    if call.canonical is None:
        try:
            body = loads(call.body)
        except DecodeError:  # valid JSON, but for a number: RFC 8259 section 6 lets a reader set limits
            raise ClientError(
                "A number in the body is too large to be translated for this provider.", code="invalid_json"
            ) from None
        call.canonical = *FACES[call.endpoint].decode(body), body
    return call.canonical[0], call.canonical[1]


def convert(
    call: Call, kind: ProviderType, spec: ProviderSpec, model: str, answer_id: str, now: int
) -> Conversion | None:
    """What one attempt at ``spec`` sends and how its answer is read; ``None``: there is nobody to count tokens.

    ``now`` is Unix seconds. Raises ``ClientError`` for what this provider cannot be asked.
    """
    request, lost = canonical(call)
    assert call.canonical is not None
    answer = Answer(answer_id, call.model, now, call.canonical[2], call.wants_usage)
    face = FACES[call.endpoint]
    if face is EMBEDDINGS:
        built = kind.build_embeddings(request, spec, model)
        return EmbeddingsConversion(face, kind, spec, answer, built, [*lost, *built.dropped])
    if face is COUNT_TOKENS:
        count = kind.build_count(request, spec, model)
        return None if count is None else CountConversion(face, kind, spec, answer, count, [*lost, *count.dropped])
    built = kind.build(request, spec, model)
    return Conversion(face, kind, spec, answer, built, [*lost, *built.dropped])


def refuse_dropped(dropped: list[str], provider: str) -> None:
    """Strict mode: what cannot be expressed is an error, not a report (R65)."""
    if dropped:
        raise ClientError(
            f"The provider {provider!r} has nothing like {', '.join(map(repr, dropped))}; leave it out, or turn "
            "routing.strict_params off.",
            param=dropped[0],
            code="unsupported_parameter",
        )


def micro_usd(price: Price | None, usage: Usage | None) -> int:
    """The cost of ``usage`` in millionths of a dollar, 0 without a price."""
    if price is None or usage is None:
        return 0
    return round(usage.prompt * price.input + usage.completion * price.output)
