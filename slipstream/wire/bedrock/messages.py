"""The conversation of a canonical request in Converse's form (PROTOCOLS.md 1.2, 2.5).

Converse wants turns that alternate and begin with the user, results of parallel calls in one user turn before any
text, no blank text, and system prompts apart. A canonical conversation has none of these rules, so turns are merged,
and where a turn must be and nothing is, ``FILLER`` stands.

The rule that must not be broken: a call and its result keep one id. Ids that Converse refuses are rewritten by a
function of the id alone, the same way in both places and in every attempt (R59).
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

from ...errors import ClientError
from ..canonical import Json
from ..codec import DecodeError, loads
from .dropped import Dropped
from .models import Model
from .parts import Parts, text_block

FILLER = "."
"""Text where Converse demands some and the client sent none."""
NO_OUTPUT = "(no output)"
"""The result of a tool that said nothing: a blank text is refused."""
_GOOD_ID = re.compile(r"[A-Za-z0-9_.:-]{1,64}")
_BAD_ID_CHARS = re.compile(r"[^A-Za-z0-9_.:-]+")


def cache_point(holder: Json, model: Model, dropped: Dropped) -> list[Json]:
    """What ``cache_control`` of a part, a message or a tool means here: a block behind it."""
    control = holder.get("cache_control")
    if not control:
        return []
    if not model.rich:
        dropped.add("cache_control")
        return []
    point: Json = {"type": "default"}
    if isinstance(control, dict) and control.get("ttl") == "1h":  # 5m is what it is without
        point["ttl"] = "1h"
    return [{"cachePoint": point}]


class _Turn:
    """A message in the making. ``results`` go before ``blocks`` (#00156d67: results before any text)."""

    __slots__ = ("blocks", "results", "role")

    def __init__(self, role: str) -> None:
        self.role = role
        self.results: list[Json] = []
        self.blocks: list[Json] = []

    def message(self) -> Json:
        content = self.results + self.blocks
        if any("document" in block for block in content) and not any("text" in block for block in content):
            content.append({"text": FILLER})  # a document needs a text beside it (service model, Message.content)
        return {"role": self.role, "content": content}


class Conversation:
    """Takes canonical messages. ``system``: its blocks; ``tools``: names of the tools that were called;
    ``uses_tools``: there are calls or results; ``bare_loop``: the last assistant turn called tools and does not begin
    with reasoning (Claude then refuses to be told to think)."""

    __slots__ = ("_dropped", "_legacy_ids", "_model", "_parts", "_turns", "bare_loop", "system", "tools", "uses_tools")

    def __init__(self, messages: object, model: Model, dropped: Dropped) -> None:
        if not isinstance(messages, list) or not messages:
            raise ClientError("'messages' must be a list of at least one message.", param="messages")
        self._model = model
        self._dropped = dropped
        self._parts = Parts(dropped)
        self._turns: list[_Turn] = []
        self._legacy_ids: dict[str, str] = {}
        self.system: list[Json] = []
        self.tools: dict[str, None] = {}
        self.uses_tools = False
        self.bare_loop = False
        for i, message in enumerate(messages):
            self._take(message, f"messages[{i}]", i)

    def messages(self) -> list[Json]:
        """The turns as they are sent."""
        turns = [turn for turn in self._turns if turn.results or turn.blocks]
        if not self._model.takes_system and self.system:
            turns = self._with_system(turns)
        merged = _merge(turns)
        if not merged or merged[0].role != "user":
            first = _Turn("user")
            first.blocks.append({"text": FILLER})
            merged.insert(0, first)
        _strip_prefill(merged[-1])
        self.bare_loop = len(merged) > 1 and bool(merged[-1].results) and "reasoningContent" not in merged[-2].blocks[0]
        return [turn.message() for turn in merged]

    def _with_system(self, turns: list[_Turn]) -> list[_Turn]:
        """For models without system prompts: at the head of the first turn."""
        first = _Turn("user")
        first.blocks = [block for block in self.system if "text" in block]
        self.system = []
        return [first, *turns]

    # ------------------------------------------------------------------ the roles

    def _take(self, message: object, where: str, index: int) -> None:
        if not isinstance(message, dict):
            raise ClientError("A message must be an object with a 'role'.", param=where, code="invalid_type")
        if message.get("name") and message.get("role") != "function":
            self._dropped.add("messages[].name")
        role = message.get("role")
        if role in ("system", "developer"):
            self.system += self._content(message, where, "text")
        elif role == "user":
            self._turn("user").blocks += self._content(message, where)
        elif role == "assistant":
            self._assistant(message, where, index)
        elif role in ("tool", "function"):
            self._tool_result(message, where, role)
        else:
            raise ClientError(
                "'role' must be system, developer, user, assistant or tool.",
                param=f"{where}.role",
                code="invalid_value",
            )

    def _turn(self, role: str) -> _Turn:
        turn = _Turn(role)
        self._turns.append(turn)
        return turn

    def _content(self, message: Json, where: str, *only: str) -> list[Json]:
        """The blocks of a message's content, with its cache points. ``only`` limits their kinds."""
        content = message.get("content")
        where = f"{where}.content"
        blocks: list[Json] = []
        if isinstance(content, list):
            for i, part in enumerate(content):
                at = f"{where}[{i}]"
                block = self._parts.block(part, at)
                if block is not None:
                    if only and not any(kind in block for kind in only):
                        raise ClientError(
                            f"A {message['role']} message holds {' and '.join(only)} only.",
                            param=f"{at}.type",
                            code="invalid_value",
                        )
                    blocks.append(block)
                    if isinstance(part, dict):
                        blocks += cache_point(part, self._model, self._dropped)
        elif isinstance(content, str):
            block = text_block(content)
            blocks = [] if block is None else [block]
        elif content is not None:
            raise ClientError("'content' must be a string or a list of parts.", param=where, code="invalid_type")
        if blocks:
            blocks += cache_point(message, self._model, self._dropped)
        return blocks

    def _assistant(self, message: Json, where: str, index: int) -> None:
        turn = self._turn("assistant")
        if message.get("audio"):  # the id of what was said, which only OpenAI knows
            self._dropped.add("messages[].audio")
        turn.blocks += self._thoughts(message)
        turn.blocks += self._content({**message, "cache_control": None}, where, "text")
        refusal = message.get("refusal")
        if isinstance(refusal, str) and (block := text_block(refusal)) is not None:
            turn.blocks.append(block)
        turn.blocks += self._calls(message, where, index)
        if turn.blocks and "reasoningContent" not in turn.blocks[-1]:
            turn.blocks += cache_point(message, self._model, self._dropped)

    def _thoughts(self, message: Json) -> list[Json]:
        """Signed reasoning goes back unchanged; unsigned text is refused, and what others signed is not understood."""
        blocks: list[Json] = []
        thoughts = message.get("thinking_blocks")
        for thought in thoughts if isinstance(thoughts, list) else ():
            if not isinstance(thought, dict) or not self._model.rich:
                continue
            signature, data = thought.get("signature"), thought.get("data")
            if thought.get("type") == "redacted_thinking" and isinstance(data, str) and data:
                blocks.append({"reasoningContent": {"redactedContent": data}})
            elif isinstance(signature, str) and signature:
                text = thought.get("thinking")
                spoken = {"text": text if isinstance(text, str) else "", "signature": signature}
                blocks.append({"reasoningContent": {"reasoningText": spoken}})
        if not blocks:
            if thoughts:
                self._dropped.add("messages[].thinking_blocks")
            elif message.get("reasoning_content"):
                self._dropped.add("messages[].reasoning_content")
        return blocks

    def _calls(self, message: Json, where: str, index: int) -> list[Json]:
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise ClientError("'tool_calls' must be a list.", param=f"{where}.tool_calls", code="invalid_type")
        blocks = [self._call(call, f"{where}.tool_calls[{i}]") for i, call in enumerate(calls or ())]
        legacy = message.get("function_call")
        if isinstance(legacy, dict) and not blocks:
            call_id = f"call_{index}"
            if isinstance(legacy.get("name"), str):
                self._legacy_ids[legacy["name"]] = call_id
            blocks.append(self._call({"id": call_id, "function": legacy}, f"{where}.function_call"))
        return blocks

    def _call(self, call: Any, where: str) -> Json:
        custom = call.get("custom") if isinstance(call, dict) else None
        function = call.get("function") if isinstance(call, dict) else None
        if isinstance(custom, dict) and function is None:  # a custom tool's input is free text
            function = {"name": custom.get("name"), "arguments": custom.get("input")}
        if not isinstance(function, dict):
            raise ClientError("A tool call must hold a 'function'.", param=where, code="invalid_type")
        name, call_id = function.get("name"), call.get("id")
        if not isinstance(name, str) or not name:
            raise ClientError("The function of a tool call has no name.", param=f"{where}.function.name")
        if not isinstance(call_id, str) or not call_id:
            raise ClientError("A tool call must have an 'id'.", param=f"{where}.id")
        self.tools[name] = None
        self.uses_tools = True
        arguments = read_arguments(function.get("arguments"))
        return {"toolUse": {"toolUseId": good_id(call_id), "name": name, "input": arguments}}

    def _tool_result(self, message: Json, where: str, role: str) -> None:
        if role == "function":
            call_id = self._legacy_ids.get(str(message.get("name")))
            place = f"{where}.name"
        else:
            call_id, place = message.get("tool_call_id"), f"{where}.tool_call_id"
        if not isinstance(call_id, str) or not call_id:
            raise ClientError("The result of a tool must name the call that it answers.", param=place)
        blocks = self._content({**message, "cache_control": None}, where)
        points = [block for block in blocks if "cachePoint" in block]
        result: Json = {"toolUseId": good_id(call_id), "content": [b for b in blocks if "cachePoint" not in b]}
        if not result["content"]:
            result["content"] = [{"text": NO_OUTPUT}]
        if self._model.json_results:
            result["content"] = [_as_json(block) for block in result["content"]]
        if message.get("is_error") is True:
            if self._model.rich:
                result["status"] = "error"
            else:
                self._dropped.add("messages[].is_error")
        self.uses_tools = True
        turn = self._turn("user")
        turn.results.append({"toolResult": result})
        turn.results += points[-1:] or cache_point(message, self._model, self._dropped)


def read_arguments(arguments: object) -> Json:
    """A call's arguments as the object that Converse wants. What is none, a model's slip in an earlier turn, is
    wrapped: the model sees again what it wrote."""
    if isinstance(arguments, dict):
        return arguments
    if not isinstance(arguments, str) or not arguments.strip():
        return {}
    try:
        value = loads(arguments.encode())
    except (DecodeError, UnicodeEncodeError):
        value = arguments
    return value if isinstance(value, dict) else {"_raw": arguments}


def good_id(call_id: str) -> str:
    """``call_id`` if Converse takes it, else an id that is made of it (service model, ToolUseId)."""
    if _GOOD_ID.fullmatch(call_id):
        return call_id
    mark = blake2b(call_id.encode("utf-8", "replace"), digest_size=8).hexdigest()
    return _BAD_ID_CHARS.sub("_", call_id)[:47] + "_" + mark


def _merge(turns: list[_Turn]) -> list[_Turn]:
    merged: list[_Turn] = []
    for turn in turns:
        if merged and merged[-1].role == turn.role:
            merged[-1].results += turn.results
            merged[-1].blocks += turn.blocks
        else:
            merged.append(turn)
    return merged


def _strip_prefill(last: _Turn) -> None:
    """An answer that the model is to go on with must not end with blanks (Claude refuses it)."""
    if last.role == "assistant":
        for i in range(len(last.blocks) - 1, -1, -1):
            if "text" in last.blocks[i]:
                last.blocks[i] = {"text": last.blocks[i]["text"].rstrip()}
            if "cachePoint" not in last.blocks[i]:
                break


def _as_json(block: Json) -> Json:
    if "text" not in block:
        return block
    try:
        value = loads(block["text"].encode())
    except (DecodeError, UnicodeEncodeError):
        value = block["text"]
    return {"json": value if isinstance(value, dict) else {"result": value}}
