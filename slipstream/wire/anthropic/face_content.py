"""A client's messages and their content blocks, read into canonical messages.

The two dialects cut a conversation differently. Anthropic's user turn holds tool results beside text and images; in
chat each result is a message of its own that must follow the call, so they are taken out and put first. Anthropic's
assistant turn is a list of blocks in order; chat has one text, its calls, and beside them what was thought.

Blocks of server tools in earlier turns (a web search and what it found) belong to tools that other providers do not
have: they are left out and reported; the text that the model wrote from them stays.

The rule that must not be broken: thinking blocks keep their signature and their order, byte for byte, because a
provider that made them checks them (PROTOCOLS.md 2.3).
"""

from __future__ import annotations

import re
from base64 import b64encode
from typing import Any

from ...errors import ClientError
from ..canonical import Json
from ..codec import dumps
from .face_ids import signed, unpacked_id

MAX_DROPPED = 32
"""Names of dropped fields that are kept: the list becomes a header."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
_SERVER_BLOCKS = frozenset(
    [
        "server_tool_use",
        "mcp_tool_use",
        "mcp_tool_result",
        "mcp_tool_listing",
        "web_search_tool_result",
        "web_fetch_tool_result",
        "code_execution_tool_result",
        "bash_code_execution_tool_result",
        "text_editor_code_execution_tool_result",
        "tool_search_tool_result",
        "advisor_tool_result",
        "container_upload",
        "tool_addition",
        "tool_removal",
        "fallback",
    ]
)
_BLOCK = "messages[].content[]."


class Dropped:
    """The names of what cannot be expressed: each once, in the order found."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, name: str) -> None:
        """``name`` is a text of ours."""
        if name not in self.names and len(self.names) < MAX_DROPPED:
            self.names.append(name)

    def add_field(self, name: str, within: str = "") -> None:
        """``name`` is the client's: shown if it looks like a name, because the list becomes a header."""
        self.add(within + (name if _PLAIN.fullmatch(name) else "(other)"))


def decode_messages(body: Json, dropped: Dropped) -> list[Json]:
    """``system`` and ``messages`` as canonical messages; at least one."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        raise ClientError("Field required: a list of messages.", param="messages", code="missing_required_parameter")
    out: list[Json] = []
    if body.get("system") is not None:
        out += _system(body["system"], "system", dropped)
    for i, message in enumerate(messages):
        where = f"messages.{i}"
        if not isinstance(message, dict):
            raise ClientError("Must be an object with 'role' and 'content'.", param=where, code="invalid_type")
        role, content = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system"):
            raise ClientError("Must be 'user' or 'assistant'.", param=f"{where}.role", code="invalid_value")
        if not isinstance(content, str | list):
            raise ClientError(
                "Must be a string or a list of content blocks.", param=f"{where}.content", code="invalid_type"
            )
        if role == "user":
            out += _user(content, f"{where}.content", dropped)
        elif role == "assistant":
            out += _assistant(content, f"{where}.content", dropped)
        else:  # instructions in the middle, of Opus 4.8 and later
            out += _system(content, f"{where}.content", dropped)
    if not any(message["role"] != "system" for message in out):
        raise ClientError("At least one message is required.", param="messages", code="invalid_value")
    return out


def cache_control(block: Json) -> Json | None:
    """The mark of ``block`` that its prefix is to be cached, in what is known of it."""
    mark = block.get("cache_control")
    if not isinstance(mark, dict) or not isinstance(mark.get("type"), str):
        return None
    clean: Json = {"type": mark["type"]}
    if isinstance(mark.get("ttl"), str):
        clean["ttl"] = mark["ttl"]
    return clean


# ---------------------------------------------------------------------- the roles


def _system(content: Any, where: str, dropped: Dropped) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "system", "content": content}] if content else []
    parts: list[Json] = []
    for at, kind, block in _blocks(content, where):
        if kind == "text":
            parts += _text(block, at, dropped)
        elif kind in _SERVER_BLOCKS:
            dropped.add(_BLOCK + kind)
        else:
            raise _misplaced(at, kind, "system")
    return [{"role": "system", "content": _plain(parts)}] if parts else []


def _user(content: Any, where: str, dropped: Dropped) -> list[Json]:
    """The tool results first, each a message, then the rest (PROTOCOLS.md 1.2, role tool)."""
    if isinstance(content, str):
        return [{"role": "user", "content": content}]
    results: list[Json] = []
    parts: list[Json] = []
    for at, kind, block in _blocks(content, where):
        if kind == "tool_result":
            results.append(_tool_result(block, at, dropped))
        elif kind in _SERVER_BLOCKS:
            dropped.add(_BLOCK + kind)
        else:
            parts += _part(kind, block, at, dropped)
    if parts or not results:
        results.append({"role": "user", "content": _plain(parts)})
    return results


def _assistant(content: Any, where: str, dropped: Dropped) -> list[Json]:
    if isinstance(content, str):
        return [{"role": "assistant", "content": content}] if content else []
    parts: list[Json] = []
    thoughts: list[Json] = []
    calls: list[Json] = []
    mark: Json | None = None
    for at, kind, block in _blocks(content, where):
        if kind == "text":
            parts += _text(block, at, dropped)
        elif kind == "compaction":  # the summary that stands for all before it
            if isinstance(block.get("content"), str) and block["content"]:
                parts.append({"type": "text", "text": block["content"]})
        elif kind == "tool_use":
            calls.append(_tool_use(block, at))
            mark = cache_control(block) or mark
        elif kind in ("thinking", "redacted_thinking"):
            thoughts.append(_thought(kind, block, at))
        elif kind in _SERVER_BLOCKS:
            dropped.add(_BLOCK + kind)
        else:
            raise _misplaced(at, kind, "assistant")
    if not (parts or thoughts or calls):
        return []
    message: Json = {"role": "assistant", "content": _plain(parts) or None}
    reasoning = "".join(thought.get("thinking", "") for thought in thoughts)
    if reasoning:
        message["reasoning_content"] = reasoning
    if thoughts:
        message["thinking_blocks"] = thoughts
    if calls:
        message["tool_calls"] = calls
    if mark is not None:
        message["cache_control"] = mark
    return [message]


# ---------------------------------------------------------------------- blocks


def _blocks(content: Any, where: str) -> list[tuple[str, str, Json]]:
    """Each block with its place and its type."""
    if not isinstance(content, list):
        raise ClientError("Must be a string or a list of content blocks.", param=where, code="invalid_type")
    found: list[tuple[str, str, Json]] = []
    for i, block in enumerate(content):
        at = f"{where}.{i}"
        if not isinstance(block, dict) or not isinstance(block.get("type"), str):
            raise ClientError("Must be a content block with a 'type'.", param=at, code="invalid_type")
        found.append((at, block["type"], block))
    return found


def _misplaced(at: str, kind: str, role: str) -> ClientError:
    known = kind in ("text", "image", "document", "tool_use", "tool_result", "thinking", "redacted_thinking")
    shown = f"a {kind!r} block" if known else "a block of this type"
    return ClientError(
        f"{shown[0].upper()}{shown[1:]} cannot be in {role} content.", param=f"{at}.type", code="invalid_value"
    )


def _plain(parts: list[Json]) -> str | list[Json]:
    """One text without any mark as a string: not every server takes parts everywhere."""
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return parts


def _part(kind: str, block: Json, at: str, dropped: Dropped) -> list[Json]:
    """A block of a user turn or of a tool's result."""
    if kind == "text":
        return _text(block, at, dropped)
    if kind == "image":
        return [_image(block, at, dropped)]
    if kind == "document":
        return _document(block, at, dropped)
    if kind == "search_result":
        return [_marked({"type": "text", "text": _search_result(block)}, block, dropped)]
    raise _misplaced(at, kind, "user")


def _text(block: Json, at: str, dropped: Dropped) -> list[Json]:
    text = block.get("text")
    if not isinstance(text, str):
        raise ClientError("Field required: a string.", param=f"{at}.text", code="invalid_type")
    return [_marked({"type": "text", "text": text}, block, dropped)] if text else []


def _marked(part: Json, block: Json, dropped: Dropped) -> Json:
    """``part`` with the cache mark of ``block``; citations, asked for or repeated, have no place in a chat request."""
    citations = block.get("citations")
    asked = citations.get("enabled") if isinstance(citations, dict) else citations
    if asked:
        dropped.add(_BLOCK + "citations")
    mark = cache_control(block)
    if mark is not None:
        part["cache_control"] = mark
    return part


def _image(block: Json, at: str, dropped: Dropped) -> Json:
    source, kind = _source(block, at)
    if kind == "base64":
        url = _data_url(source, at, "image/")
    elif kind == "url":
        url = _string(source, "url", f"{at}.source")
    else:
        raise ClientError(
            "Only 'base64' and 'url' images can be sent on: uploaded files are known to Anthropic alone.",
            param=f"{at}.source.type",
            code="invalid_value",
        )
    if block.get("transformations"):
        dropped.add(_BLOCK + "transformations")
    return _marked({"type": "image_url", "image_url": {"url": url}}, block, dropped)


def _document(block: Json, at: str, dropped: Dropped) -> list[Json]:
    """A ``file`` part; plain text too, as base64. A URL stays one: whoever fetches none refuses it."""
    source, kind = _source(block, at)
    title = block.get("title")
    file: Json = {}
    if isinstance(title, str) and title:
        file["filename"] = title
    parts: list[Json] = []
    if isinstance(block.get("context"), str) and block["context"]:
        parts.append({"type": "text", "text": block["context"]})
    if kind == "base64":
        file.setdefault("filename", "document.pdf")
        file["file_data"] = _data_url(source, at, "")
    elif kind == "url":
        file["file_data"] = _string(source, "url", f"{at}.source")
    elif kind == "text":
        file.setdefault("filename", "document.txt")
        text = _string(source, "data", f"{at}.source")
        file["file_data"] = "data:text/plain;base64," + b64encode(text.encode()).decode()
    elif kind == "file":
        file = {"file_id": _string(source, "file_id", f"{at}.source")}
    elif kind == "content":
        return parts + _inline(source, block, at, dropped)
    else:
        raise ClientError(
            "Must be one of base64, url, text, content, file.", param=f"{at}.source.type", code="invalid_value"
        )
    return [*parts, _marked({"type": "file", "file": file}, block, dropped)]


def _inline(source: Json, block: Json, at: str, dropped: Dropped) -> list[Json]:
    """A document that is made of blocks itself."""
    content = source.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    parts: list[Json] = []
    for inner, kind, part in _blocks(content, f"{at}.source.content"):
        if kind not in ("text", "image"):
            raise _misplaced(inner, kind, "document")
        parts += _part(kind, part, inner, dropped)
    if parts:
        _marked(parts[-1], block, dropped)
    return parts


def _search_result(block: Json) -> str:
    content = block.get("content")
    texts = [part.get("text") for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    lines = [block.get("title"), block.get("source"), *texts]
    return "\n".join(line for line in lines if isinstance(line, str) and line) or "(empty search result)"


def _source(block: Json, at: str) -> tuple[Json, str]:
    source = block.get("source")
    kind = source.get("type") if isinstance(source, dict) else None
    if not isinstance(source, dict) or not isinstance(kind, str):
        raise ClientError("Field required: an object with a 'type'.", param=f"{at}.source", code="invalid_type")
    return source, kind


def _string(holder: Json, name: str, where: str) -> str:
    value = holder.get(name)
    if not isinstance(value, str) or not value:
        raise ClientError("Field required: a string.", param=f"{where}.{name}", code="invalid_type")
    return value


def _data_url(source: Json, at: str, family: str) -> str:
    media = _string(source, "media_type", f"{at}.source")
    if not media.startswith(family) or "," in media or ";" in media:
        raise ClientError(
            f"Must be a media type{f' that begins with {family}' if family else ''}.",
            param=f"{at}.source.media_type",
            code="invalid_value",
        )
    return f"data:{media};base64,{_string(source, 'data', f'{at}.source')}"


def _thought(kind: str, block: Json, at: str) -> Json:
    if kind == "redacted_thinking":
        return {"type": kind, "data": _string(block, "data", at)}
    text, signature = block.get("thinking"), block.get("signature")
    if not isinstance(text, str):  # it may be empty: `display: omitted` (#fa07f92b)
        raise ClientError("Field required: a string.", param=f"{at}.thinking", code="invalid_type")
    return {"type": kind, "thinking": text, "signature": signature if isinstance(signature, str) else ""}


def _tool_use(block: Json, at: str) -> Json:
    value = block.get("input")
    if value is not None and not isinstance(value, dict):
        raise ClientError("Must be an object.", param=f"{at}.input", code="invalid_type")
    try:
        arguments = dumps(value or {}).decode()
    except TypeError:  # the encoder's limit of 254 levels
        raise ClientError("Is nested too deeply.", param=f"{at}.input", code="invalid_value") from None
    identity, signature = unpacked_id(_string(block, "id", at))
    function = {"name": _string(block, "name", at), "arguments": arguments}
    return signed({"id": identity, "type": "function", "function": function}, signature)


def _tool_result(block: Json, at: str, dropped: Dropped) -> Json:
    message: Json = {"role": "tool", "tool_call_id": unpacked_id(_string(block, "tool_use_id", at))[0]}
    content = block.get("content")
    if content is None or isinstance(content, str):
        message["content"] = content or ""
    else:
        parts: list[Json] = []
        for inner, kind, part in _blocks(content, f"{at}.content"):
            if kind in ("text", "image", "document", "search_result"):
                parts += _part(kind, part, inner, dropped)
            else:  # tool_reference, browser_state and what is yet to come: its JSON is what there is to know
                parts.append({"type": "text", "text": _as_json(part, inner)})
        message["content"] = _plain(parts)
    if block.get("is_error") is True:
        message["is_error"] = True
    mark = cache_control(block)
    if mark is not None:
        message["cache_control"] = mark
    return message


def _as_json(block: Json, at: str) -> str:
    try:
        return dumps(block).decode()
    except TypeError:
        raise ClientError("Is nested too deeply.", param=at, code="invalid_value") from None
