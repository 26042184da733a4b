"""A whole answer of Anthropic's as a canonical ``Reply`` (PROTOCOLS.md 1.3, 1.4, 2.3).

Server tools (``server_tool_use`` and their results) are the provider's own business: not calls for the client; the text
around them is kept. A refusal has no content, and its explanation is no answer of the model: it goes into ``extra``.

Most answers are text and nothing else. Those are decoded straight into the shape of ``_Plain``, at a quarter of the
price; whatever does not fit it is decoded as a whole and looked through.

The rule that must not be broken: a 2xx body that is not a message is an error (R66); fields of a message that are
missing or of another type are survived (R61).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from ...errors import MalformedReply
from ..canonical import Json, Reply, make_id
from ..codec import DecodeError, decoder, dumps, loads
from ..usage import MAX_TOKENS, Usage
from .failures import is_error, read_failure
from .stop import finish_reason
from .usage import read_usage

_Count = Annotated[int, msgspec.Meta(ge=0, le=MAX_TOKENS)]
_TIERS = {"standard": "default", "priority": "priority"}


class _Text(msgspec.Struct, gc=False):
    type: Literal["text"]
    text: str
    citations: None = None


class _Thought(msgspec.Struct, gc=False):
    thinking_tokens: _Count = 0


class _PlainUsage(msgspec.Struct, gc=False):
    input_tokens: _Count
    output_tokens: _Count
    cache_read_input_tokens: _Count
    cache_creation_input_tokens: _Count
    output_tokens_details: _Thought | None = None
    service_tier: str | None = None


class _Plain(msgspec.Struct, gc=False):
    """An answer with all its counts and nothing but text: what has another form does not fit."""

    type: Literal["message"]
    content: list[_Text]
    usage: _PlainUsage
    id: str | None = None
    model: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: None = None


_decode_plain = decoder(_Plain)


def read_reply(body: bytes, provider: str) -> Reply:
    """Raises ``UpstreamError`` for an error in disguise and ``MalformedReply`` for anything that is no message."""
    try:
        if not body.isascii():
            body.decode()  # the decoder does not look into what it skips
        plain = _decode_plain(body)
    except (DecodeError, RecursionError):
        return _read_any(body, provider)
    blocks, counts = plain.content, plain.usage
    text = blocks[0].text if len(blocks) == 1 else "".join([block.text for block in blocks])
    output, thought = counts.output_tokens, counts.output_tokens_details
    reasoning = min(thought.thinking_tokens, output) if thought is not None else 0
    read, written = counts.cache_read_input_tokens, counts.cache_creation_input_tokens
    tier = _TIERS.get(counts.service_tier or "")
    return Reply(
        [_choice({"role": "assistant", "content": text}, False, plain.stop_reason, plain.stop_sequence)],
        id=plain.id or "",
        model=plain.model or "",
        usage=Usage(counts.input_tokens, read, written, output - reasoning, reasoning, "provider"),
        extra={} if tier is None else {"service_tier": tier},
    )


def _choice(message: Json, calls: bool, stop: str | None, stop_sequence: str | None) -> Json:
    choice: Json = {"index": 0, "message": message, "finish_reason": finish_reason(stop, calls=calls)}
    if stop:
        choice["native_finish_reason"] = stop
    if stop_sequence is not None:
        choice["stop_sequence"] = stop_sequence
    return choice


def _read_any(body: bytes, provider: str) -> Reply:
    try:
        message = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    if not isinstance(message, dict):
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not an object")
    if is_error(message):
        raise read_failure(message, body, provider=provider)
    content = message.get("content")
    if not isinstance(content, list):
        if content is not None or message.get("type") != "message":
            raise MalformedReply(f"the provider {provider!r} sent a reply without 'content'")
        content = []
    try:
        answer, calls = _message(content)
    except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
        raise MalformedReply(f"the provider {provider!r} sent a reply that is nested too deep") from None
    sequence = message.get("stop_sequence")
    choice = _choice(
        answer, calls, text_of(message.get("stop_reason")) or None, sequence if isinstance(sequence, str) else None
    )
    return Reply(
        choices=[choice],
        id=text_of(message.get("id")),
        model=text_of(message.get("model")),
        usage=read_usage(message.get("usage")),
        extra=extra_of(message.get("usage"), message.get("stop_details")),
    )


def _message(content: list[Any]) -> tuple[Json, bool]:
    """The assistant's message, and whether it calls tools."""
    text, reasoning = "", ""
    thinking: list[Json] = []
    calls: list[Json] = []
    notes: list[Json] = []
    for block in content:
        match block:
            case {"type": "text", "text": str(piece)}:
                if block.get("citations"):
                    notes += web_citations(block["citations"], len(text), len(text) + len(piece))
                text += piece
            case {"type": "thinking"}:
                piece = text_of(block.get("thinking"))
                reasoning += piece
                thinking += thinking_block(piece, block.get("signature"))
            case {"type": "redacted_thinking", "data": str(data)}:
                thinking.append({"type": "redacted_thinking", "data": data})
            case {"type": "tool_use"}:
                calls.append(tool_call(block))
    message: Json = {"role": "assistant", "content": text if text or not calls else None}
    for name, value in (
        ("reasoning_content", reasoning),
        ("thinking_blocks", thinking),
        ("tool_calls", calls),
        ("annotations", notes),
    ):
        if value:
            message[name] = value
    return message, bool(calls)


# ------------------------------------------------------------------ shared with the reader
def text_of(value: object) -> str:
    return value if isinstance(value, str) else ""


def thinking_block(text: str, signature: object) -> list[Json]:
    """The block as it must come back in the next turn; none without a signature, for it would be refused."""
    if not isinstance(signature, str) or not signature:
        return []
    return [{"type": "thinking", "thinking": text, "signature": signature}]


def tool_call(block: Json) -> Json:
    """A ``tool_use`` block as OpenAI's call."""
    given = block.get("input")
    arguments = given if isinstance(given, str) and given else dumps(given if isinstance(given, dict) else {}).decode()
    return {
        "id": text_of(block.get("id")) or make_id("toolu_"),
        "type": "function",
        "function": {"name": text_of(block.get("name")), "arguments": arguments},
    }


def web_citations(citations: object, start: int, end: int) -> list[Json]:
    """Citations of web pages as OpenAI's ``url_citation`` of the text from ``start`` to ``end``. Chat has no form for
    places in a document of the request."""
    notes = []
    for citation in citations if isinstance(citations, list) else ():
        if not isinstance(citation, dict):
            continue
        url = citation.get("url", citation.get("source"))
        if isinstance(url, str) and url.startswith(("http://", "https://")):
            title = text_of(citation.get("title"))
            inner = {"url": url, "title": title, "start_index": start, "end_index": end}
            notes.append({"type": "url_citation", "url_citation": inner})
    return notes


def extra_of(usage: object, stop_details: object) -> Json:
    """Further members of the answer: OpenAI's ``service_tier``, and why a refusal was one."""
    extra: Json = {}
    tier = usage.get("service_tier") if isinstance(usage, dict) else None
    if isinstance(tier, str) and tier in _TIERS:
        extra["service_tier"] = _TIERS[tier]
    if isinstance(stop_details, dict) and stop_details and _is_sound(stop_details):
        extra["stop_details"] = stop_details
    return extra


def _is_sound(value: object) -> bool:
    """Whether it can be written again, a few levels deeper: what can be read may be nested too deeply."""
    try:
        dumps([[[[value]]]])
    except TypeError:
        return False
    return True
