"""The hub between dialects: one canonical shape, which is OpenAI chat, and what a spoke must offer.

A request, a reply and a stream event of any dialect are translated into this shape and from it, never from one dialect
straight into another. Where both ends speak the same dialect nothing comes through here: bytes are passed on.

The canonical **request** is a decoded body of ``POST /v1/chat/completions`` (API reference, "Create chat completion").
What other dialects can say and OpenAI chat cannot is carried in fields that are in common use:

- ``top_k``, ``min_p``, ``repetition_penalty``: top-level, as vLLM and Together take them.
- ``thinking``: top-level, Anthropic's ``{"type": "enabled", "budget_tokens": n}``, ``adaptive`` or ``disabled``; beside
  it ``reasoning_effort`` (``none`` ... ``max``).
- ``cache_control``: on a content part, a message, or a tool, Anthropic's ``{"type": "ephemeral", "ttl"?}``.
- assistant messages: ``reasoning_content`` (text) and ``thinking_blocks``, a list of
  ``{"type": "thinking", "thinking", "signature"}`` and ``{"type": "redacted_thinking", "data"}`` that must go back
  unchanged; a tool call's ``extra_content.google.thought_signature`` is Gemini's signature of it.
- tool messages: ``is_error``; their ``content`` may be a list of parts (text, image_url).
- content parts: ``text``, ``image_url`` (``url``: http(s) or data URL), ``input_audio`` (``data``, ``format``),
  ``file`` (``file.file_data`` as a data URL or ``file.file_id``, ``file.filename``).

The canonical **reply** is ``Reply``; its choices are OpenAI's, its usage is ours (disjoint buckets). The canonical
**stream** is a sequence of ``Chunk``: what would be one entry of ``choices`` in an OpenAI chunk. Deltas hold
``content``, ``refusal``, ``reasoning_content``, ``thinking_blocks`` (whole blocks, when a block ends: their text was
streamed as ``reasoning_content`` before), ``tool_calls`` (OpenAI's form: ``index``, and at the first delta of each
``id``, ``type``, ``function.name``), ``annotations``. Never ``role``: the client's side writes it where its dialect
wants it.

Nothing here is in the way of a client's or a provider's unknown fields: a spoke that cannot express a field names it in
``Built.dropped`` (R65).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from ..errors import GatewayError, UpstreamError
from .usage import Usage

Json = dict[str, Any]
"""A decoded JSON object."""


class Chunk(msgspec.Struct, gc=False):
    """One canonical stream event. ``finish_reason`` is one of OpenAI's: ``stop``, ``length``, ``tool_calls``,
    ``content_filter``; ``native_finish`` is the provider's own word and ``stop_sequence`` what stopped it, if known.
    """

    delta: Json
    index: int = 0
    finish_reason: str | None = None
    native_finish: str | None = None
    stop_sequence: str | None = None
    logprobs: Json | None = None


class Reply(msgspec.Struct, gc=False):
    """A whole canonical reply. ``choices``: OpenAI's, ``{"index", "message", "finish_reason"}`` and where known
    ``logprobs``, ``native_finish_reason``, ``stop_sequence``. ``created`` is Unix seconds, 0 if the provider does not
    say; ``extra`` are further top-level members of the answer (``service_tier``, ``system_fingerprint``,
    ``citations``).
    """

    choices: list[Json]
    id: str = ""
    model: str = ""
    created: int = 0
    usage: Usage | None = None
    extra: Json = {}


class Built(msgspec.Struct, gc=False):
    """A request for a provider. ``url`` is absolute. ``headers`` are fields of this request beyond the provider's own
    (``anthropic-beta``). ``dropped`` names the client's fields that the provider cannot express."""

    url: str
    body: bytes
    headers: Mapping[str, str] | None = None
    dropped: Sequence[str] = ()


class Answer(msgspec.Struct, gc=False):
    """What a client's dialect needs to know of the request that it answers. ``id`` has no prefix and is unique;
    ``model`` is the name that the client asked for, ``created`` Unix seconds, ``request`` the client's decoded body in
    its own dialect; ``include_usage``: a chat client wants the usage chunk."""

    id: str
    model: str
    created: int
    request: Json
    include_usage: bool = False


class StreamReader(Protocol):
    """A provider's stream, read into canonical chunks. Sans-IO; fed with whatever pieces the transport has.

    ``done``: the stream ended well (its terminal event came, or the end of the body where that is the end, with a
    finish reason before it). ``failure``: it did not; nothing is read after it. An error event of the provider sets
    ``failure`` (R15). ``reads_json``: the stream itself is JSON (NDJSON, an array) or binary, so a body that begins
    with a brace is nothing odd. ``usage`` is the last that was said (cumulative, never summed).
    """

    reads_json: bool
    id: str
    model: str
    created: int
    extra: Json
    done: bool
    failure: UpstreamError | None

    @property
    def usage(self) -> Usage | None: ...

    def feed(self, data: bytes) -> list[Chunk]:
        """Take a piece of the body. Never raises."""

    def end(self) -> list[Chunk]:
        """The body ended cleanly: sets ``done`` or ``failure``."""


class StreamWriter(Protocol):
    """A stream in the client's dialect. It begins with the first call of ``write``; only then is anything committed."""

    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        """The events for ``chunks``; with the opening events before the first."""

    def end(self, reader: StreamReader) -> bytes:
        """The closing events: finish reason, usage, terminal frame."""

    def error(self, error: GatewayError) -> bytes:
        """The in-band error and what must follow it in this dialect (R12)."""


def make_id(prefix: str) -> str:
    """A new unique id in the form that providers use: ``prefix`` and 24 hex digits."""
    return prefix + secrets.token_hex(12)


def has_content(chunk: Chunk) -> bool:
    """Whether the client must see ``chunk``: it commits the answer (R9). Reasoning and tool calls are content."""
    return bool(chunk.delta) or chunk.finish_reason is not None


def split_data_url(url: str) -> tuple[str, str] | None:
    """``(media type, base64 text)`` of a ``data:`` URL (RFC 2397) in base64; ``None`` for any other URL."""
    if url[:5].lower() != "data:":
        return None
    meta, comma, data = url[5:].partition(",")
    kind, _, encoding = meta.rpartition(";")
    if not comma or encoding.strip().lower() != "base64":
        return None
    return kind.partition(";")[0].strip().lower() or "text/plain", data


def text_of(content: object) -> str:
    """The text of a message's ``content``: a string, ``None``, or parts whose texts are joined by line feeds."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return ""
    texts = (part.get("text") for part in content if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str))
