"""``input`` and ``instructions`` of a Responses request, read into canonical messages.

The two dialects cut a conversation differently. Here each thing is an item of its own: what the model thought, said and
called are three or more items in a row. In chat they are one assistant message, and every call in it must be answered
by the messages behind it. So the items of one turn are gathered until something follows that the model did not say.

Calls of built-in tools in earlier turns belong to tools that only OpenAI runs: they are left out and reported; the text
that the model wrote from them stays.

The rule that must not be broken: a call and its output keep their ``call_id``, and thinking that we packed comes back
byte for byte, because a provider that made it checks it (PROTOCOLS.md 2.3).
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import ClientError
from ..canonical import Json
from ..codec import dumps
from .items import unpack_thinking

MAX_DROPPED = 32
"""Names of dropped fields that are kept: the list becomes a header."""
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")
_ROLES = ("user", "assistant", "system", "developer")
_STORED = ("item_reference", "compaction", "compaction_summary")
_IGNORED = ("additional_tools", "tool_search_call", "tool_search_output")
"""Items without words: the tools that two of them bring are read by ``items.offered_tools``. (Tuples, not sets: what a
client sent need not be hashable.)"""
_PDF = "data:application/pdf;base64,"
STATELESS = "Nothing is stored here: send the whole input, with all earlier items, in 'input'."


class Dropped:
    """The names of what cannot be expressed: each once, in the order found."""

    __slots__ = ("names",)

    def __init__(self) -> None:
        self.names: list[str] = []

    def add(self, name: str) -> None:
        if name not in self.names and len(self.names) < MAX_DROPPED:
            self.names.append(name)

    def add_field(self, within: str, name: str) -> None:
        """``name`` is the client's own: shown if it looks like a name, because the list becomes a header."""
        self.add(within + (name if _PLAIN.fullmatch(name) else "(other)"))


def wrong(param: str, message: str, code: str = "invalid_type") -> ClientError:
    return ClientError(f"{param}: {message}", param=param, code=code)


def read_input(body: Json, dropped: Dropped) -> list[Json]:
    """The canonical messages of ``instructions`` and ``input``."""
    turns = _Turns(dropped)
    instructions = body.get("instructions")
    if instructions is not None:
        if not isinstance(instructions, str):
            raise wrong("instructions", "must be a string.")
        if instructions:
            turns.messages.append({"role": "system", "content": instructions})
    items = body.get("input")
    if items is None:
        raise ClientError("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if isinstance(items, str):
        turns.messages.append({"role": "user", "content": items})
    elif isinstance(items, list):
        for at, item in enumerate(items):
            if not isinstance(item, dict):
                raise wrong(f"input[{at}]", "must be an object.")
            turns.item(item, f"input[{at}]")
        turns.close()
    else:
        raise wrong("input", "must be a string or a list of items.")
    if not turns.messages:
        raise ClientError("'input' is empty; send at least one item.", param="input", code="invalid_value")
    return turns.messages


class _Turns:
    """The messages so far, and the assistant's turn that is being gathered."""

    __slots__ = ("_blocks", "_calls", "_content", "_dropped", "_open", "_refusal", "_thought", "messages")

    def __init__(self, dropped: Dropped) -> None:
        self._dropped = dropped
        self.messages: list[Json] = []
        self._reset()

    def _reset(self) -> None:
        self._open = False
        self._thought: list[str] = []
        self._blocks: list[Json] = []
        self._content: str | None = None
        self._refusal = ""
        self._calls: list[Json] = []

    def close(self) -> None:
        """The assistant's turn is over. Thinking that nothing followed is no message: the API refuses it too
        (PROTOCOLS.md 2.2), so it is left out."""
        if not self._open:
            return
        content = self._content or (None if self._calls else self._content)
        message: Json = {"role": "assistant", "content": content}
        if self._refusal:
            message["refusal"] = self._refusal
        if self._thought:
            message["reasoning_content"] = "".join(self._thought)
        if self._blocks:
            message["thinking_blocks"] = self._blocks
        if self._calls:
            message["tool_calls"] = self._calls
        if self._content is not None or self._refusal or self._calls:
            self.messages.append(message)
        else:
            self._dropped.add("input[].reasoning")
        self._reset()

    # ------------------------------------------------------------------ items
    def item(self, item: Json, where: str) -> None:
        kind = item.get("type")
        if kind == "message" or (kind is None and "role" in item):
            self._message(item, where)
        elif kind == "reasoning":
            self._reasoning(item, where)
        elif kind == "function_call":
            self._call(item, where, _arguments(item.get("arguments"), f"{where}.arguments"))
        elif kind == "custom_tool_call":
            text = _string(item, "input", where, required=False)
            self._call(item, where, dumps({"input": text}).decode())
        elif kind in ("function_call_output", "custom_tool_call_output"):
            self._output(item, where)
        elif kind in _STORED or (kind is None and "id" in item):
            message = f"refers to something that only its maker can read. {STATELESS}"
            raise wrong(where, message, "unsupported_value")
        elif not isinstance(kind, str):
            raise wrong(f"{where}.type", "must be the name of an item's type.")
        elif kind not in _IGNORED:
            self._dropped.add_field("input[].", kind)

    def _message(self, item: Json, where: str) -> None:
        role = item.get("role")
        if role not in _ROLES:
            raise wrong(f"{where}.role", "must be user, assistant, system or developer.", "invalid_value")
        if role == "assistant":
            self._said(item, where)
            return
        self.close()
        content = read_content(item.get("content"), f"{where}.content", self._dropped)
        self.messages.append({"role": role, "content": content})

    def _said(self, item: Json, where: str) -> None:
        text, refusal = _assistant_text(item.get("content"), f"{where}.content", self._dropped)
        if self._content is not None or self._refusal:
            if self._calls:  # a turn that calls must stay whole: its outputs follow all of it
                self._content = "\n".join(said for said in (self._content, text) if said)
                self._refusal += refusal
                return
            self.close()
        self._open = True
        self._content = None if refusal and not text else text
        self._refusal = refusal

    def _reasoning(self, item: Json, where: str) -> None:
        if self._content is not None and not self._calls:
            self.close()  # it begins another turn; between calls it belongs to theirs
        self._open = True
        text = _texts(item.get("content")) or _texts(item.get("summary"))
        if text:
            self._thought.append(text)
        packed = item.get("encrypted_content")
        if packed is None or packed == "":
            return
        blocks = unpack_thinking(packed)
        if blocks is None:
            self._dropped.add("input[].encrypted_content")
        else:
            self._blocks += blocks

    def _call(self, item: Json, where: str, arguments: str) -> None:
        self._open = True
        call: Json = {
            "id": _string(item, "call_id", where),
            "type": "function",
            "function": {"name": _string(item, "name", where), "arguments": arguments},
        }
        if isinstance(item.get("extra_content"), dict):
            call["extra_content"] = item["extra_content"]
        self._calls.append(call)

    def _output(self, item: Json, where: str) -> None:
        self.close()
        call_id = _string(item, "call_id", where)
        output = item.get("output")
        if output is not None and not isinstance(output, str | list):
            raise wrong(f"{where}.output", "must be a string or a list of parts.")
        content = read_content(output, f"{where}.output", self._dropped)
        self.messages.append({"role": "tool", "tool_call_id": call_id, "content": content})


# ------------------------------------------------------------------ content


def read_content(content: object, where: str, dropped: Dropped) -> str | list[Json]:
    """What is not the model's: a string, or parts. One plain text part is a string, which everybody takes."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise wrong(where, "must be a string or a list of parts.")
    parts = [_part(part, f"{where}[{at}]", dropped) for at, part in enumerate(content)]
    if not parts:
        return ""
    if len(parts) == 1 and parts[0].keys() == {"type", "text"}:
        text: str = parts[0]["text"]
        return text
    return parts


def _part(part: object, where: str, dropped: Dropped) -> Json:
    if not isinstance(part, dict):
        raise wrong(where, "must be an object.")
    kind = part.get("type")
    if kind in ("input_text", "output_text", "text"):
        made: Json = {"type": "text", "text": _string(part, "text", where, required=False)}
    elif kind == "input_image":
        made = _image(part, where)
    elif kind == "input_file":
        made = _file(part, where, dropped)
    elif kind == "input_audio" and isinstance(part.get("input_audio"), dict):
        made = {"type": "input_audio", "input_audio": part["input_audio"]}
    elif kind == "refusal":
        made = {"type": "text", "text": _string(part, "refusal", where, required=False)}
    else:
        raise wrong(
            f"{where}.type", "must be one of input_text, input_image, input_file, input_audio.", "invalid_value"
        )
    if part.get("cache_control") is not None:
        made["cache_control"] = part["cache_control"]
    elif part.get("prompt_cache_breakpoint") is not None:
        made["cache_control"] = {"type": "ephemeral"}
    return made


def _image(part: Json, where: str) -> Json:
    url = part.get("image_url")
    if not isinstance(url, str) or not url:
        raise wrong(f"{where}.image_url", "must be a URL or a data URL: uploaded files cannot be shown as images.")
    image: Json = {"url": url}
    if isinstance(part.get("detail"), str):
        image["detail"] = part["detail"]
    return {"type": "image_url", "image_url": image}


def _file(part: Json, where: str, dropped: Dropped) -> Json:
    """A URL stays one: whoever fetches none refuses it."""
    file: Json = {}
    if part.get("filename"):
        file["filename"] = _string(part, "filename", where)
    if part.get("file_data"):
        data = _string(part, "file_data", where)
        file["file_data"] = data if data[:5].lower() == "data:" else _PDF + data
    elif part.get("file_url"):
        file["file_data"] = _string(part, "file_url", where)
    elif part.get("file_id"):
        file["file_id"] = _string(part, "file_id", where)
    else:
        raise wrong(where, "needs one of 'file_data', 'file_url' or 'file_id'.", "missing_required_parameter")
    if part.get("detail") not in (None, "auto"):
        dropped.add("input[].content[].detail")
    return {"type": "file", "file": file}


def _assistant_text(content: object, where: str, dropped: Dropped) -> tuple[str, str]:
    """``(text, refusal)`` of an earlier answer. Its parts are one text, as they were written."""
    if isinstance(content, list):
        refusals = [part for part in content if isinstance(part, dict) and part.get("type") == "refusal"]
        refusal = "".join(_string(part, "refusal", where, required=False) for part in refusals)
        said = [part for part in content if not (isinstance(part, dict) and part.get("type") == "refusal")]
    else:
        refusal, said = "", content  # type: ignore[assignment]
    text = read_content(said, where, dropped)
    if isinstance(text, str):
        return text, refusal
    if any(part["type"] != "text" for part in text):
        raise wrong(where, "what the assistant said can only be text.", "invalid_value")
    return "".join(part["text"] for part in text), refusal


def _texts(parts: object) -> str:
    """The text of a reasoning item's ``summary`` or ``content``."""
    if not isinstance(parts, list):
        return ""
    texts = (part.get("text") for part in parts if isinstance(part, dict))
    return "\n".join(text for text in texts if isinstance(text, str) and text)


def _arguments(value: Any, where: str) -> str:
    """The arguments as the client has them; recorded clients send objects too."""
    if isinstance(value, str):
        return value
    if value is None:
        return "{}"
    if isinstance(value, dict):
        return dumps(value).decode()
    raise wrong(where, "must be a string of JSON.")


def _string(item: Json, name: str, where: str, *, required: bool = True) -> str:
    value = item.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or (required and not value):
        code = "missing_required_parameter" if value is None else "invalid_type"
        raise wrong(f"{where}.{name}", "must be a string." if value is not None else "is required.", code)
    return value
