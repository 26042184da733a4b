"""The history of a conversation: canonical messages to ``contents`` and ``systemInstruction`` (PROTOCOLS.md 1.2, 2.4).

Roles are ``user`` and ``model`` only. Results of tools are joined to their calls by name (and id on Gemini 3+), so
each result's name is looked up in the history, and results of parallel calls are put into the order of the calls:
without ids that order is all that tells two calls of the same function apart. They make a turn of their own.

Gemini 3 refuses a step whose first call has no thought signature. Calls that Gemini did not make (or whose signature
the client lost) get the one that Google documents for this (Vertex AI docs, "Thought signatures").
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..canonical import Json, text_of
from ..codec import DecodeError, loads
from .parts import note, to_parts, wrong
from .traits import Traits

FOREIGN_SIGNATURE = "skip_thought_signature_validator"


class _Call(NamedTuple):
    name: str
    order: int


class _Result(NamedTuple):
    order: int
    part: Json
    media: list[Json]


class History:
    """Messages, taken one by one; ``contents`` and ``system`` are ready after ``finish``."""

    __slots__ = ("_calls", "_dropped", "_results", "_traits", "contents", "system")

    def __init__(self, traits: Traits, dropped: list[str]) -> None:
        self._traits = traits
        self._dropped = dropped
        self._calls: dict[str, _Call] = {}
        self._results: list[_Result] = []
        self.contents: list[Json] = []
        self.system: list[Json] = []

    def add(self, message: Any, n: int) -> None:
        """The ``n``-th message."""
        if self._plain(message):
            return
        where = f"messages[{n}]"
        if not isinstance(message, dict):
            raise wrong(where, "A message must be an object with a 'role'.", "invalid_type")
        if message.get("cache_control") is not None:
            note(self._dropped, "cache_control")
        role = message.get("role")
        if role in ("tool", "function"):
            self._result(message, where)
            return
        self._flush()
        if role in ("system", "developer"):
            self._system(message, where)
        elif role == "user":
            self._named(message)
            self._turn("user", to_parts(message.get("content"), where + ".content", self._dropped))
        elif role == "assistant":
            self._named(message)
            self._turn("model", self._assistant(message, where))
        else:
            raise wrong(where + ".role", "A role must be system, developer, user, assistant or tool.")

    def _plain(self, message: Any) -> bool:
        """Take a message of a role and a text and nothing else, as most are. False: it has to be looked at."""
        if not isinstance(message, dict) or len(message) != 2:
            return False
        role, text = message.get("role"), message.get("content")
        if role not in ("user", "assistant", "system") or not isinstance(text, str):
            return False
        self._flush()
        parts: list[Json] = [{"text": text}] if text else []  # Gemini refuses empty texts
        if role == "system":
            self.system += parts
        else:
            self._turn("user" if role == "user" else "model", parts)
        return True

    def finish(self) -> None:
        """Close the history. Gemini wants a turn of the user: a lone system message is one."""
        self._flush()
        if self._traits.no_system or not self.contents:
            if self.system:
                if self.contents and self.contents[0]["role"] == "user":
                    self.contents[0]["parts"][:0] = self.system
                else:
                    self.contents.insert(0, {"role": "user", "parts": self.system})
            self.system = []
        if not self.contents:
            raise wrong("messages", "There must be a message that is not empty.")

    def _named(self, message: Json) -> None:
        if message.get("name"):
            note(self._dropped, "messages[].name")

    def _turn(self, role: str, parts: list[Json]) -> None:
        """Turns of one role in a row are one turn; those with results of tools stay alone."""
        if not parts:
            return
        last = self.contents[-1] if self.contents else None
        if last is not None and last["role"] == role and "functionResponse" not in last["parts"][0]:
            last["parts"] += parts
        else:
            self.contents.append({"role": role, "parts": parts})

    def _system(self, message: Json, where: str) -> None:
        for part in to_parts(message.get("content"), where + ".content", self._dropped):
            if "text" in part:
                self.system.append(part)
            else:
                note(self._dropped, "messages[].content[]")

    # ------------------------------------------------------------------ calls
    def _assistant(self, message: Json, where: str) -> list[Json]:
        for name in ("reasoning_content", "thinking_blocks", "audio"):
            if message.get(name):
                note(self._dropped, f"messages[].{name}")
        parts = to_parts(message.get("content"), where + ".content", self._dropped)
        refusal = message.get("refusal")
        if isinstance(refusal, str) and refusal:
            parts.append({"text": refusal})
        calls = message.get("tool_calls")
        if calls is not None and not isinstance(calls, list):
            raise wrong(where + ".tool_calls", "The calls of a message must be an array.", "invalid_type")
        made = [self._call(call, f"{where}.tool_calls[{n}]") for n, call in enumerate(calls or [])]
        legacy = message.get("function_call")
        if isinstance(legacy, dict) and not made:
            made.append(self._call({"function": legacy}, where + ".function_call"))
        if made and self._traits.call_ids:
            made[0].setdefault("thoughtSignature", FOREIGN_SIGNATURE)
        return parts + made

    def _call(self, call: Any, where: str) -> Json:
        function = call.get("function") or call.get("custom") if isinstance(call, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str) or not name:
            raise wrong(where, "A tool call must have a 'function' with a 'name'.")
        out: Json = {"name": name, "args": _arguments(function)}
        ident = call.get("id")
        if isinstance(ident, str) and ident:
            self._calls[ident] = _Call(name, len(self._calls))
            if self._traits.call_ids:
                out["id"] = ident
        part: Json = {"functionCall": out}
        signature = _signature(call)
        if signature is not None:
            part["thoughtSignature"] = signature
        return part

    # ------------------------------------------------------------------ results
    def _result(self, message: Json, where: str) -> None:
        ident, name = message.get("tool_call_id"), message.get("name")
        call = self._calls.get(ident) if isinstance(ident, str) else None
        if call is not None:
            name = call.name
        elif not isinstance(name, str) or not name:
            raise wrong(
                where + ".tool_call_id",
                "A tool message must answer a call: no message before it has a call of this id.",
            )
        parts = to_parts(message.get("content"), where + ".content", self._dropped)
        media = [part for part in parts if "text" not in part]
        text = text_of([part for part in parts if "text" in part])
        out: Json = {"name": name, "response": _response(text, message.get("is_error") is True)}
        if self._traits.call_ids:
            if call is not None:
                out["id"] = ident
            if media:  # multimodal function responses (API docs, "Function calling": Gemini 3+)
                out["parts"], media = media, []
        order = call.order if call is not None else len(self._calls)
        self._results.append(_Result(order, {"functionResponse": out}, media))

    def _flush(self) -> None:
        if not self._results:
            return
        self._results.sort(key=_order)
        parts = [result.part for result in self._results]
        for result in self._results:
            parts += result.media
        self.contents.append({"role": "user", "parts": parts})
        self._results = []


def _order(result: _Result) -> int:
    return result.order


def _signature(call: Json) -> str | None:
    extra = call.get("extra_content")
    google = extra.get("google") if isinstance(extra, dict) else None
    signature = google.get("thought_signature") if isinstance(google, dict) else None
    return signature if isinstance(signature, str) and signature else None


def _arguments(function: Json) -> Json:
    """The arguments as an object. A model can have written broken JSON; the conversation goes on with its words."""
    given = function.get("arguments", function.get("input"))
    if isinstance(given, dict):
        return given
    if not isinstance(given, str) or not given.strip():
        return {}
    try:
        value = loads(given.encode())
    except (DecodeError, UnicodeEncodeError):
        value = None
    return value if isinstance(value, dict) else {"arguments": given}


def _response(text: str, is_error: bool) -> Json:
    """What a function gave, as the object that ``functionResponse`` wants (API reference: ``output`` and ``error``)."""
    value: Any = text
    if text[:1] == "{":
        try:
            value = loads(text.encode())
        except (DecodeError, UnicodeEncodeError):
            value = text
    if is_error:
        return {"error": value}
    return value if isinstance(value, dict) else {"output": value}
