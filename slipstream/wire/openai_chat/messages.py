"""The messages of a canonical request as a provider of the OpenAI family takes them.

Owns what differs inside ``messages``: roles, the form of ``content``, tool call ids, results with images, and what
goes back of earlier reasoning (PROTOCOLS.md 1.2, 2.9). Reports by name what has no place there (R65).

The rule that must not be broken: the client's messages are never changed, every message is a new object (R59).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from typing import Any

from ...errors import ClientError
from ..canonical import Json, text_of
from ..codec import dumps
from .quirks import ChatQuirks

_HUB_ONLY = frozenset({"reasoning_content", "thinking_blocks", "cache_control", "is_error", "annotations", "content"})
"""Members of canonical messages that are ours, or are read only, or are written below."""
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PLAIN_ID = re.compile(r"[A-Za-z0-9]+")
BRIDGE = "OK."
"""What the assistant says between a tool's result and a user message where the two must not meet. Mistral refuses an
empty message too."""


class Messages:
    """One translation of ``messages``. ``drop`` is told what got lost."""

    __slots__ = ("_drop", "_lifted", "_out", "_quirks", "_send_reasoning")

    def __init__(self, quirks: ChatQuirks, drop: Callable[[str], None], *, with_tools: bool) -> None:
        self._quirks = quirks
        self._drop = drop
        self._send_reasoning = quirks.reasoning_back and with_tools
        self._out: list[Json] = []
        self._lifted: list[Json] = []

    def translate(self, messages: object) -> list[Json]:
        if not isinstance(messages, list):
            raise ClientError("'messages' must be an array of messages.", param="messages", code="invalid_type")
        for message in messages:
            if not isinstance(message, dict):
                raise ClientError("Each of 'messages' must be an object.", param="messages", code="invalid_type")
            self._add(message)
        self._flush()
        return self._out

    def _add(self, message: Json) -> None:
        role = message.get("role")
        if role == "developer" and not self._quirks.developer:
            role = "system"
        if role != "tool":
            self._flush()
        out: Json = {"role": role}
        for key, value in message.items():
            if key not in _HUB_ONLY and key != "role" and value is not None:
                out[key] = value
        if role == "assistant":
            self._assistant(message, out)
        elif role == "tool":
            self._tool(message, out)
        else:
            out["content"] = self._content(message.get("content"))
        if self._quirks.fields is not None and role != "tool" and out.pop("name", None):
            self._drop("messages[].name")
        self._mark(message, out)
        self._push(out)

    def _push(self, out: Json) -> None:
        if self._quirks.bridge_tool_user and out["role"] == "user" and self._out and self._out[-1]["role"] == "tool":
            self._out.append({"role": "assistant", "content": BRIDGE})
        self._out.append(out)

    def _flush(self) -> None:
        """Behind the last of a row of results: what they hold and cannot carry here."""
        if self._lifted:
            parts, self._lifted = self._lifted, []
            self._push({"role": "user", "content": parts})

    def _mark(self, message: Json, out: Json) -> None:
        """A cache mark on the whole message."""
        mark = message.get("cache_control")
        if mark is None:
            return
        if self._quirks.cache_control:
            out["cache_control"] = mark
        else:
            self._drop("cache_control")

    # ------------------------------------------------------------------ roles
    def _assistant(self, message: Json, out: Json) -> None:
        content = self._content(message.get("content"))
        if not self._quirks.developer and isinstance(refusal := out.pop("refusal", None), str):
            content = content or refusal
        calls = out.get("tool_calls")
        if isinstance(calls, list) and calls:
            out["tool_calls"] = [self._call(call) for call in calls if isinstance(call, dict)]
            out["content"] = content or None
        else:
            out.pop("tool_calls", None)
            if content or not ("audio" in out or "refusal" in out or "function_call" in out):
                out["content"] = content
        self._reasoning(message, out)

    def _call(self, call: Json) -> Json:
        if call.get("extra_content"):
            self._drop("messages[].tool_calls[].extra_content")
        if call.get("type") == "custom":
            return {"id": self._tool_id(call.get("id")), "type": "custom", "custom": call.get("custom")}
        function = call.get("function")
        function = function if isinstance(function, dict) else {}
        arguments = function.get("arguments")
        if not isinstance(arguments, str):
            arguments = "{}" if arguments is None else dumps(arguments).decode()
        return {
            "id": self._tool_id(call.get("id")),
            "type": "function",
            "function": {"name": function.get("name"), "arguments": arguments or "{}"},
        }

    def _tool(self, message: Json, out: Json) -> None:
        out["tool_call_id"] = self._tool_id(message.get("tool_call_id"))
        if message.get("is_error") is True:
            self._drop("messages[].is_error")
        content = self._content(message.get("content"))
        if isinstance(content, list) and not self._quirks.tool_parts:
            others = [part for part in content if part.get("type") != "text"]
            if others:
                told = {"type": "text", "text": f"Result of the tool call {out['tool_call_id']}:"}
                self._lifted += [told, *others]
                content = text_of(content) or "The result follows in the next message."
        out["content"] = content

    def _reasoning(self, message: Json, out: Json) -> None:
        blocks = message.get("thinking_blocks")
        text = message.get("reasoning_content")
        if not text and isinstance(blocks, list):
            thoughts = (block.get("thinking") for block in blocks if isinstance(block, dict))
            text = "".join(thought for thought in thoughts if isinstance(thought, str))
        if self._quirks.reasoning_details:
            details = reasoning_details(blocks)
            if details:
                out["reasoning_details"] = details
            elif text:
                out["reasoning"] = text
        elif text and self._send_reasoning:
            out["reasoning_content"] = text
        elif blocks:
            self._drop("messages[].thinking_blocks")
        elif text:
            self._drop("messages[].reasoning_content")

    # ------------------------------------------------------------------ content
    def _content(self, content: Any) -> Any:
        """A string where text is all there is (not every server of the family takes lists for every role)."""
        if content is None:
            return ""
        if not isinstance(content, list):
            return content
        parts = [self._part(part) for part in content]
        if all(part.get("type") == "text" and "cache_control" not in part for part in parts):
            return text_of(parts)
        return parts

    def _part(self, given: Any) -> Json:
        if isinstance(given, str):
            return {"type": "text", "text": given}
        part: Json = given
        if not isinstance(part, dict):
            raise ClientError("A part of a message's 'content' must be an object.", param="messages")
        if part.get("cache_control") is not None and not self._quirks.cache_control:
            self._drop("cache_control")
            part = {key: value for key, value in part.items() if key != "cache_control"}
        return _document(part) if self._quirks.document_url and part.get("type") == "file" else part

    def _tool_id(self, given: Any) -> Any:
        """The same id for the same call wherever it occurs; ids in the provider's own form stay as they are."""
        if not isinstance(given, str):
            return given
        exact, longest = self._quirks.tool_id_exact, self._quirks.tool_id_max
        if exact and (len(given) != exact or _PLAIN_ID.fullmatch(given) is None):
            digest = int.from_bytes(hashlib.sha256(given.encode("utf-8", "surrogatepass")).digest(), "big")
            digits = []
            for _ in range(exact):
                digest, digit = divmod(digest, len(_ALPHABET))
                digits.append(_ALPHABET[digit])
            return "".join(digits)
        if longest and len(given) > longest:
            return "call_" + hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()[:24]
        return given


def _document(part: Json) -> Json:
    file = part.get("file")
    file = file if isinstance(file, dict) else {}
    if not isinstance(file.get("file_data"), str):
        return part
    out: Json = {"type": "document_url", "document_url": file["file_data"]}
    if file.get("filename"):
        out["document_name"] = file["filename"]
    return out


def reasoning_details(blocks: object) -> list[Json]:
    """Thinking blocks in OpenRouter's form (its reference, "Preserving reasoning"): signatures must come back as they
    were."""
    out: list[Json] = []
    for block in blocks if isinstance(blocks, list) else ():
        if not isinstance(block, dict):
            continue
        if block.get("type") == "redacted_thinking":
            out.append({"type": "reasoning.encrypted", "data": block.get("data")})
        elif block.get("signature"):
            out.append({"type": "reasoning.text", "text": block.get("thinking"), "signature": block["signature"]})
        else:
            continue
        out[-1] |= {"format": "anthropic-claude-v1", "index": len(out) - 1}
    return out
