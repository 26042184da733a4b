"""What a response is made of: the response object, its output items, and how they are told apart from chat's.

Shared by the whole reply and the stream, so that both show the same. The shapes are those of the API reference ("The
response object") and of the recorded exchanges (PROTOCOLS.md 3.2).

Two things are ours. Thinking that must go back unchanged is packed into ``encrypted_content``, which is opaque for
clients anyway. And a custom tool (free text in) is asked for as a function with one string, because no provider but
OpenAI has such tools; its calls are turned back here.

The rule that must not be broken: ids are made from the answer's id and the place in the output, never anew, so what was
streamed and what is repeated at the end agree.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ..canonical import Answer, Json
from ..codec import DecodeError, dumps, loads
from ..usage import Usage

PACKED = "slipstream.1."
"""Begins an ``encrypted_content`` that we made; the digit is the format's version."""
ENCRYPTED = "reasoning.encrypted_content"
LOGPROBS = "message.output_text.logprobs"
_TIERS = frozenset({"auto", "default", "flex", "scale", "priority", "fast", "ultrafast"})
_TOOL_ITEMS = ("additional_tools", "tool_search_output")
"""Input items that bring further tools (recorded: openai.responses.tools.3daba201, .tools-stream.fe5e03bc)."""
_INCOMPLETE = {"length": "max_output_tokens", "content_filter": "content_filter"}


# ------------------------------------------------------------------ thinking that travels with the client


def wants_encrypted(request: Json) -> bool:
    """Whether the client asked to carry the reasoning itself."""
    include = request.get("include")
    return isinstance(include, list) and ENCRYPTED in include


def pack_thinking(blocks: Sequence[Json]) -> str:
    return PACKED + base64.b64encode(dumps(blocks)).decode("ascii")


def unpack_thinking(packed: object) -> list[Json] | None:
    """The blocks in an ``encrypted_content``; ``None`` for one that somebody else made, or that was changed."""
    if not isinstance(packed, str) or not packed.startswith(PACKED):
        return None
    try:
        blocks = loads(base64.b64decode(packed[len(PACKED) :], validate=True))
    except (DecodeError, binascii.Error):
        return None
    if not isinstance(blocks, list) or not all(_is_thinking(block) for block in blocks):
        return None
    return blocks


def _is_thinking(block: object) -> bool:
    if not isinstance(block, dict):
        return False
    if block.get("type") == "thinking":
        return isinstance(block.get("thinking"), str) and isinstance(block.get("signature", ""), str)
    return block.get("type") == "redacted_thinking" and isinstance(block.get("data"), str)


# ------------------------------------------------------------------ tools


def offered_tools(request: Json) -> Iterator[tuple[str, Json]]:
    """Every tool that the request brings, with the place where it stands."""
    for at, tool in enumerate(_list(request.get("tools"))):
        if isinstance(tool, dict):
            yield f"tools[{at}]", tool
    for at, item in enumerate(_list(request.get("input"))):
        if isinstance(item, dict) and item.get("type") in _TOOL_ITEMS:
            for inner, tool in enumerate(_list(item.get("tools"))):
                if isinstance(tool, dict):
                    yield f"input[{at}].tools[{inner}]", tool


def custom_names(request: Json) -> frozenset[str]:
    """The tools whose calls are ``custom_tool_call`` items."""
    return frozenset(
        tool["name"]
        for _, tool in offered_tools(request)
        if tool.get("type") == "custom" and isinstance(tool.get("name"), str)
    )


def custom_input(arguments: str) -> str:
    """The free text in the arguments of a custom tool that was asked for as a function."""
    try:
        value = loads(arguments.encode())
    except DecodeError:
        return arguments
    text = value.get("input") if isinstance(value, dict) else None
    return text if isinstance(text, str) else arguments


def is_whole(arguments: str) -> bool:
    """Whether nothing can follow: behind a JSON object nothing but blanks would be JSON."""
    if not arguments.endswith("}"):
        return False
    try:
        return isinstance(loads(arguments.encode()), dict)
    except DecodeError:
        return False


# ------------------------------------------------------------------ items


def item_id(answer: Answer, prefix: str, index: int) -> str:
    return f"{prefix}{answer.id}{index:04x}"


def reasoning_item(ident: str, text: str, blocks: Sequence[Json], encrypted: bool) -> Json:
    item: Json = {"id": ident, "type": "reasoning", "summary": [summary_part(text)] if text else []}
    if encrypted and blocks:
        item["encrypted_content"] = pack_thinking(blocks)
    return item


def summary_part(text: str) -> Json:
    return {"type": "summary_text", "text": text}


def message_item(ident: str, content: list[Json], status: str) -> Json:
    return {"id": ident, "type": "message", "status": status, "role": "assistant", "content": content}


def text_part(text: str, annotations: list[Json], logprobs: list[Json]) -> Json:
    return {"type": "output_text", "text": text, "annotations": annotations, "logprobs": logprobs}


def refusal_part(text: str) -> Json:
    return {"type": "refusal", "refusal": text}


def call_item(ident: str, call_id: str, name: str, arguments: str, status: str, extra: object = None) -> Json:
    """``extra`` is the ``extra_content`` of the canonical call (a signature): clients that send items back as they got
    them carry it for us."""
    item: Json = {
        "id": ident,
        "type": "function_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "arguments": arguments,
    }
    if extra:
        item["extra_content"] = extra
    return item


def custom_item(ident: str, call_id: str, name: str, text: str, status: str, extra: object = None) -> Json:
    item: Json = {
        "id": ident,
        "type": "custom_tool_call",
        "status": status,
        "call_id": call_id,
        "name": name,
        "input": text,
    }
    if extra:
        item["extra_content"] = extra
    return item


def flat_annotations(annotations: object) -> list[Json]:
    """Chat's ``{"type": "url_citation", "url_citation": {...}}`` in the flat form of this API; others are left out."""
    flat = (_citation(annotation) for annotation in _list(annotations))
    return [citation for citation in flat if citation is not None]


def _citation(annotation: object) -> Json | None:
    if not isinstance(annotation, dict) or annotation.get("type") != "url_citation":
        return None
    inner = annotation.get("url_citation", annotation)
    if not isinstance(inner, dict) or not isinstance(inner.get("url"), str):
        return None
    title = inner.get("title")
    return {
        "type": "url_citation",
        "url": inner["url"],
        "title": title if isinstance(title, str) else "",
        "start_index": _whole(inner.get("start_index")),
        "end_index": _whole(inner.get("end_index")),
    }


def flat_logprobs(logprobs: object) -> list[Json]:
    """The tokens of chat's ``logprobs`` object. ``bytes`` may be null in chat (PROTOCOLS.md 2.1), here it may not."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    return [_token(token) for token in _list(tokens) if isinstance(token, dict)]


def _token(token: Json) -> Json:
    out = _one_token(token)
    out["top_logprobs"] = [_one_token(top) for top in _list(token.get("top_logprobs")) if isinstance(top, dict)]
    return out


def _one_token(token: Json) -> Json:
    text, number, raw = token.get("token"), token.get("logprob"), token.get("bytes")
    text = text if isinstance(text, str) else ""
    return {
        "token": text,
        "logprob": number if isinstance(number, int | float) else 0.0,
        "bytes": raw if isinstance(raw, list) else list(text.encode("utf-8", "replace")),
    }


# ------------------------------------------------------------------ the whole response


def finish_status(finish_reason: str | None) -> tuple[str, str | None]:
    """``(status, reason why it is incomplete)`` for OpenAI's chat finish reason (PROTOCOLS.md 1.3)."""
    reason = _INCOMPLETE.get(finish_reason or "")
    return ("completed", None) if reason is None else ("incomplete", reason)


def usage_object(usage: Usage | None) -> Json | None:
    """Our usage as this API counts: cached and reasoning tokens are parts of the totals (PROTOCOLS.md 1.4)."""
    if usage is None or usage.source == "none":
        return None
    return {
        "input_tokens": usage.prompt,
        "input_tokens_details": {"cached_tokens": usage.cache_read, "cache_write_tokens": usage.cache_write},
        "output_tokens": usage.completion,
        "output_tokens_details": {"reasoning_tokens": usage.reasoning},
        "total_tokens": usage.prompt + usage.completion,
    }


def response_object(
    answer: Answer,
    *,
    model: str,
    status: str,
    output: list[Json],
    usage: Usage | None = None,
    reason: str | None = None,
    error: Json | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Json:
    """The response object with the settings that the client asked for, or the API's defaults for them.

    ``store`` is always false: nothing is kept, and a client must not believe that it could refer to this answer.
    """
    asked = answer.request
    reasoning, text = _dict(asked.get("reasoning")), _dict(asked.get("text"))
    return {
        "id": "resp_" + answer.id,
        "object": "response",
        "created_at": answer.created,
        "status": status,
        "background": False,
        "error": error,
        "incomplete_details": {"reason": reason} if reason is not None else None,
        "instructions": asked.get("instructions"),
        "max_output_tokens": asked.get("max_output_tokens"),
        "max_tool_calls": asked.get("max_tool_calls"),
        "model": model,
        "output": output,
        "parallel_tool_calls": _default(asked, "parallel_tool_calls", True),
        "previous_response_id": None,
        "prompt_cache_key": asked.get("prompt_cache_key"),
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "safety_identifier": asked.get("safety_identifier"),
        "service_tier": _tier(asked, extra),
        "store": False,
        "temperature": _default(asked, "temperature", 1.0),
        "text": {"verbosity": "medium", **text, "format": text.get("format") or {"type": "text"}},
        "tool_choice": _default(asked, "tool_choice", "auto"),
        "tools": _list(asked.get("tools")),
        "top_logprobs": _default(asked, "top_logprobs", 0),
        "top_p": _default(asked, "top_p", 1.0),
        "truncation": _default(asked, "truncation", "disabled"),
        "usage": usage_object(usage),
        "user": asked.get("user"),
        "metadata": _dict(asked.get("metadata")),
    }


def _tier(asked: Json, extra: Mapping[str, Any] | None) -> str:
    """The tier that served the request if it is one that this API knows, else the one asked for."""
    for source in (extra, asked):
        tier = source.get("service_tier") if source is not None else None
        if isinstance(tier, str) and tier in _TIERS:
            return tier
    return "auto"


def _default(asked: Json, name: str, default: Any) -> Any:
    value = asked.get(name)
    return default if value is None else value


def _dict(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
