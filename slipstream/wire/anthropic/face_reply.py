"""A canonical reply, written as an Anthropic message (PROTOCOLS.md 3.3).

Blocks come in the order thinking, text, tool_use. Only the first choice is written: a Messages client cannot ask for
more. Also here is what the stream's writer shares: the stop reason and the usage object.

Decisions:

- A tool call whose arguments are not a JSON object becomes ``{"_raw": "<the text>"}``. Nothing is lost, the client's
  own check of its tool's input fails on it, and the model reads in the next turn what it wrote.
- A refusal is text, and the stop reason is ``refusal`` unless the model also answered.
- Usage has cache reads and writes outside of ``input_tokens`` (PROTOCOLS.md 1.4). Unknown counts are 0, because the
  official clients require whole numbers.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Answer, Json, Reply, text_of
from ..codec import DecodeError, dumps, loads
from ..usage import NO_USAGE, Usage
from .face_ids import packed_id
from .stop import stop_reason

_DETAILS = ("type", "category", "explanation")


def encode_reply(reply: Reply, answer: Answer) -> bytes:
    """The body for a client of ``POST /v1/messages``."""
    choice = reply.choices[0] if reply.choices else {}
    message = choice.get("message")
    if not isinstance(message, dict):
        message = {}
    content = _content(message)
    kinds = {block["type"] for block in content}
    refused = bool(message.get("refusal")) and not text_of(message.get("content"))
    reason, sequence = ending(
        answer.request,
        _string(choice.get("finish_reason")),
        _string(choice.get("native_finish_reason")),
        _string(choice.get("stop_sequence")),
        calls="tool_use" in kinds,
        refused=refused,
    )
    body: Json = {
        "id": f"msg_{answer.id}",
        "type": "message",
        "role": "assistant",
        "model": reply.model or answer.model,
        "content": content,
        "stop_reason": reason,
        "stop_sequence": sequence,
        "usage": usage_object(reply.usage),
    }
    details = stop_details(reply.extra)
    if details is not None:
        body["stop_details"] = details
    return dumps(body)


def ending(
    request: Json, finish: str | None, native: str | None, sequence: str | None, *, calls: bool, refused: bool
) -> tuple[str, str | None]:
    """``stop_reason`` and ``stop_sequence``; ``calls``: there are tool calls, ``refused``: a refusal and no text."""
    if sequence is None and native == "stop_sequence":  # Converse does not say which; of one it is plain
        asked = request.get("stop_sequences")
        sequence = asked[0] if isinstance(asked, list) and len(asked) == 1 and isinstance(asked[0], str) else None
    reason = stop_reason(finish, calls=calls, stop_sequence=sequence)
    if reason == "end_turn" and native == "stop_sequence":
        reason = native
    elif reason == "end_turn" and refused:
        reason = "refusal"
    elif reason == "max_tokens" and native == "model_context_window_exceeded":
        reason = native
    return reason, sequence if reason == "stop_sequence" else None


def stop_details(extra: Json) -> Json | None:
    """What the provider said of a refusal (#efd5e83f)."""
    details = extra.get("stop_details")
    if not isinstance(details, dict) or not isinstance(details.get("type"), str):
        return None
    return {name: details[name] for name in _DETAILS if isinstance(details.get(name), str)}


def usage_object(usage: Usage | None) -> Json:
    """``usage`` of a message."""
    usage = usage or NO_USAGE
    counts: Json = {
        "input_tokens": usage.input_uncached,
        "cache_creation_input_tokens": usage.cache_write,
        "cache_read_input_tokens": usage.cache_read,
        "output_tokens": usage.completion,
    }
    if usage.reasoning:
        counts["output_tokens_details"] = {"thinking_tokens": usage.reasoning}
    return counts


def citation_of(annotation: Any) -> Json | None:
    """OpenAI's ``url_citation`` as Anthropic writes what a web search found; ``None`` for anything else. The index is
    the provider's own key to its search, which nobody else has."""
    inner = annotation.get("url_citation", annotation) if isinstance(annotation, dict) else None
    url = inner.get("url") if isinstance(inner, dict) else None
    if not isinstance(inner, dict) or not isinstance(url, str):
        return None
    return {
        "type": "web_search_result_location",
        "cited_text": _string(inner.get("cited_text")) or _string(inner.get("content")) or "",
        "encrypted_index": "",
        "title": _string(inner.get("title")),
        "url": url,
    }


def thinking_block(value: Any) -> Json | None:
    """A block of ``thinking_blocks`` as it must look; ``None`` if it is none."""
    if not isinstance(value, dict):
        return None
    if value.get("type") == "redacted_thinking":
        return {"type": "redacted_thinking", "data": _string(value.get("data")) or ""}
    if value.get("type") != "thinking":
        return None
    text, signature = _string(value.get("thinking")), _string(value.get("signature"))
    return {"type": "thinking", "thinking": text or "", "signature": signature or ""}


# ---------------------------------------------------------------------- content


def _content(message: Json) -> list[Json]:
    content = _thoughts(message)
    text, refusal = text_of(message.get("content")), _string(message.get("refusal"))
    citations = list(filter(None, map(citation_of, _list(message.get("annotations")))))
    if text:
        block: Json = {"type": "text", "text": text}
        if citations:
            block["citations"] = citations
        content.append(block)
    if refusal:
        content.append({"type": "text", "text": refusal})
    content += filter(None, map(_tool_use, _list(message.get("tool_calls"))))
    return content


def _thoughts(message: Json) -> list[Json]:
    """The provider's own blocks; or the plain text of what was thought, with the empty signature of nobody."""
    blocks = list(filter(None, map(thinking_block, _list(message.get("thinking_blocks")))))
    text = _string(message.get("reasoning_content"))
    if text and not any(block["type"] == "thinking" for block in blocks):
        blocks.insert(0, {"type": "thinking", "thinking": text, "signature": ""})
    return blocks


def _tool_use(call: Any) -> Json | None:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return None
    name = _string(function.get("name")) or ""
    return {
        "type": "tool_use",
        "id": packed_id(call),
        "name": name,
        "input": _input(function.get("arguments")),
    }


def _input(arguments: Any) -> Json:
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str) or not arguments.strip():
        return {}  # a call without arguments (PROTOCOLS.md 2.3)
    try:
        value = loads(arguments.encode())
        dumps([[[[value]]]])  # what can be read may be nested too deeply to be written
    except (DecodeError, TypeError):
        return {"_raw": arguments}
    return value if isinstance(value, dict) else {"_raw": arguments}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None
