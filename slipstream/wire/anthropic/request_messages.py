"""The conversation of a canonical request as Anthropic's ``system`` and ``messages`` (PROTOCOLS.md 1.2, 2.3).

Anthropic knows two roles that take turns, beginning with the user: system messages go to the top, wherever they were;
messages of one role become one turn; the results of parallel tool calls stand in one user turn, before any text
(#00156d67). Thinking blocks come first in an assistant turn and go back byte for byte: they are signed.

The rule that must not be broken: the same request gives the same blocks every time (R59); ids that have to be invented
are made from positions, not from chance.
"""

from __future__ import annotations

import re

from ...errors import ClientError
from ..canonical import Json
from ..codec import DecodeError, loads
from .request_parts import cached, content_blocks, note, text_block, text_blocks, written

FILLER = "."
"""Text of the user turn that is put first where OpenAI needs none: a conversation that is only a system message, is
blank, or begins with the assistant. The API refuses those (400: first message must be the user's, not blank)."""
_NOT_IN_ID = re.compile(r"[^a-zA-Z0-9_-]")
"""Ids of calls are ``^[a-zA-Z0-9_-]+$`` (400 otherwise); other providers' are not ("functions.f:0")."""


_PLAIN_ROLES = ("user", "assistant", "system")


class Conversation:
    """``system``: text blocks. ``turns``: the messages. ``tools``: names of called tools, in order.
    ``bare_loop``: the last assistant turn called tools and has no thinking block (matters to budgets of thinking)."""

    __slots__ = ("_dropped", "_waiting", "system", "tools", "turns")

    def __init__(self, messages: object, dropped: list[str]) -> None:
        if not isinstance(messages, list) or not messages:
            raise ClientError("'messages' must be a list of messages.", param="messages", code="invalid_type")
        self.system: list[Json] = []
        self.turns: list[Json] = []
        self.tools: dict[str, None] = {}
        self._dropped = dropped
        self._waiting: dict[str, str] = {}  # legacy: function name -> id of its last call
        for n, message in enumerate(messages):
            if not self._plain(message):
                self._add(message, f"messages[{n}]", n)
        if not self.turns or self.turns[0]["role"] != "user":
            self.turns.insert(0, {"role": "user", "content": [text_block(FILLER)]})

    @property
    def prefill(self) -> bool:
        """Whether the last turn is the assistant's."""
        return bool(self.turns[-1]["role"] == "assistant")

    @property
    def bare_loop(self) -> bool:
        if self.prefill or len(self.turns) < 2:
            return False
        results, called = self.turns[-1]["content"], self.turns[-2]["content"]
        return results[0]["type"] == "tool_result" and called[0]["type"] not in ("thinking", "redacted_thinking")

    def _plain(self, message: object) -> bool:
        """Take a message of a role and a text and nothing else, as most are. False: it has to be looked at."""
        if not isinstance(message, dict) or len(message) != 2:
            return False
        role, text = message.get("role"), message.get("content")
        if role not in _PLAIN_ROLES or not isinstance(text, str):
            return False
        if text.strip():
            blocks = self.system if role == "system" else self._turn(role)
            blocks.append({"type": "text", "text": text})
        return True

    def _add(self, message: object, where: str, n: int) -> None:
        if not isinstance(message, dict):
            raise ClientError("A message must be an object with a 'role'.", param=where, code="invalid_type")
        if message.get("name") and message.get("role") not in ("tool", "function"):
            note(self._dropped, "messages[].name")
        match message.get("role"):
            case "system" | "developer":
                self.system += _mark(text_blocks(message.get("content"), f"{where}.content"), message)
            case "user":
                blocks = content_blocks(message.get("content"), f"{where}.content", self._dropped)
                self._turn("user").extend(_mark(blocks, message))
            case "assistant":
                self._assistant(message, where, n)
            case "tool" | "function":
                self._result(message, where)
            case _:
                raise ClientError(
                    "'role' must be system, developer, user, assistant or tool.",
                    param=f"{where}.role",
                    code="invalid_value",
                )
        if self.turns and not self.turns[-1]["content"]:
            self.turns.pop()

    def _turn(self, role: str) -> list[Json]:
        """The blocks of the turn that goes on, or of a new one."""
        if self.turns and self.turns[-1]["role"] == role:
            blocks: list[Json] = self.turns[-1]["content"]
        else:
            blocks = []
            self.turns.append({"role": role, "content": blocks})
        return blocks

    # ------------------------------------------------------------------ tool results
    def _result(self, message: Json, where: str) -> None:
        if message["role"] == "function":
            name = message.get("name")
            identity = self._waiting.get(name) if isinstance(name, str) else None
            field = "name"
        else:
            identity = message.get("tool_call_id")
            field = "tool_call_id"
        if not isinstance(identity, str) or not identity:
            raise ClientError(
                f"'{field}' must name the call that this is the result of.",
                param=f"{where}.{field}",
                code="invalid_value",
            )
        block: Json = {"type": "tool_result", "tool_use_id": _NOT_IN_ID.sub("_", identity)}
        content = message.get("content")
        if isinstance(content, str):
            block["content"] = content
        elif blocks := content_blocks(content, f"{where}.content", self._dropped):
            block["content"] = blocks
        if message.get("is_error") is True:
            block["is_error"] = True
        turn = self._turn("user")
        results = sum(1 for before in turn if before["type"] == "tool_result")
        turn.insert(results, cached(block, message))

    # ------------------------------------------------------------------ the assistant
    def _assistant(self, message: Json, where: str, n: int) -> None:
        thinking = [block for block in _list(message.get("thinking_blocks")) if _is_signed(block)]
        if not thinking and message.get("reasoning_content"):
            note(self._dropped, "messages[].reasoning_content")
        if message.get("audio"):
            note(self._dropped, "messages[].audio")
        blocks = [*thinking, *self._said(message)]
        blocks += self._calls(message, where, n)
        turn = self._turn("assistant")
        turn += _mark(blocks, message) if len(blocks) > len(thinking) else blocks

    def _said(self, message: Json) -> list[Json]:
        """The text of an assistant message. What it said in other forms cannot go back."""
        content = message.get("content")
        blocks: list[Json] = []
        if isinstance(content, str):
            blocks.append(text_block(content))
        for part in _list(content):
            kind = part.get("type")
            text = part.get("refusal") if kind == "refusal" else part.get("text")
            if isinstance(text, str):
                blocks.append(cached(text_block(text), part))
            else:
                note(self._dropped, f"messages[].content[].{kind}")
        if isinstance(message.get("refusal"), str):
            blocks.append(text_block(message["refusal"]))
        return [block for block in blocks if block["text"].strip()]

    def _calls(self, message: Json, where: str, n: int) -> list[Json]:
        blocks = []
        for k, call in enumerate(_list(message.get("tool_calls"))):
            custom = call.get("custom")
            function = call.get("function")
            identity = call.get("id")
            if isinstance(custom, dict):
                function = {"name": custom.get("name"), "arguments": {"input": custom.get("input")}}
            if not isinstance(identity, str) or not identity:
                identity = f"call_{n}_{k}"
            block = self._call(function, identity, f"{where}.tool_calls[{k}].function")
            blocks.append(cached(block, call))
        legacy = message.get("function_call")
        if isinstance(legacy, dict):
            block = self._call(legacy, f"call_{n}", f"{where}.function_call")
            self._waiting[block["name"]] = block["id"]
            blocks.append(block)
        return blocks

    def _call(self, function: object, identity: str, where: str) -> Json:
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise ClientError("A tool call needs the 'name' of its tool.", param=f"{where}.name", code="invalid_value")
        self.tools[name] = None
        arguments = _arguments(function.get("arguments"))
        return {"type": "tool_use", "id": _NOT_IN_ID.sub("_", identity), "name": name, "input": arguments}


def system_field(blocks: list[Json]) -> str | list[Json] | None:
    """``system``: a string, which all that speak this API take, or blocks where one is marked for the cache."""
    texts = []
    for block in blocks:
        if "cache_control" in block:
            return blocks
        texts.append(block["text"])
    return "\n\n".join(texts) or None


def _arguments(arguments: object) -> Json:
    """``input`` must be an object (400 otherwise). What is none, a model's slip in an earlier turn, is wrapped: the
    model sees again what it wrote, and the conversation can go on."""
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:
            arguments = loads(arguments.encode())
        except (DecodeError, UnicodeError):
            return {"_raw": arguments}
    if arguments is None:
        return {}
    return arguments if isinstance(arguments, dict) else {"_raw": written(arguments).decode()}


def _mark(blocks: list[Json], message: Json) -> list[Json]:
    """A mark on a message is one on its last block."""
    if blocks and isinstance(message.get("cache_control"), dict):
        cached(blocks[-1], message)
    return blocks


def _is_signed(block: Json) -> bool:
    """Whether the API will take a thinking block back: one without a signature is refused."""
    if block.get("type") == "thinking":
        return isinstance(block.get("thinking"), str) and bool(block.get("signature"))
    return block.get("type") == "redacted_thinking" and isinstance(block.get("data"), str)


def _list(value: object) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
