"""A stream of a provider of the OpenAI family, read into canonical chunks.

Owns the quirks of its streams (PROTOCOLS.md 1.6, 2.1, 2.6-2.9, 5): Azure's first chunk without an id, usage on any
chunk or twice, lists as content, roles on every chunk, tool calls without index or id or two under one index, errors in
six forms, a whole reply where a stream was asked for.

Tool calls leave with indexes of our own, 0, 1, 2 ... per choice, each with an id, its name and the type at its first
delta. A finish reason leaves once per choice.

The rule that must not be broken: a stream is complete when ``[DONE]`` came after, or the end of the body came after, a
finish reason (R63); anything else is a failure, never a clean end. Nothing here raises.
"""

from __future__ import annotations

from typing import Any

from ..._fast import F_DATA, F_ERROR_FIELD, F_EVENT, F_STRAY, SseFramer, SseLimitError
from ...errors import MalformedReply, TransportError, UpstreamError
from ..canonical import Chunk, Json, make_id
from ..codec import DecodeError, dumps, loads
from ..openai_errors import read_error_in_200
from ..openai_stream import DONE, MAX_EVENT_BYTES
from ..usage import Usage
from .reply import (
    arguments_text,
    broken_choice,
    finish_of,
    is_claudes,
    is_error,
    is_sound,
    reasoning_of,
    split_content,
    text_or_empty,
    thinking_blocks,
    usage_in,
    whole,
)

MAX_CHOICES = 128
"""OpenAI's limit of ``n``: more is a provider that went mad, and each costs memory."""
MAX_CALLS = 1024
"""Tool calls of one choice. OpenAI allows 128 tools; nobody calls each of them eight times in one turn."""
MAX_DETAILS_CHARS = 4 * 1024 * 1024
"""Text of one signed thinking block that is kept until its signature comes."""
_EXTRA = ("service_tier", "system_fingerprint", "provider", "citations", "search_results")


class _Call:
    """One tool call. ``held`` are arguments that came before the name."""

    __slots__ = ("held", "id", "index", "name")

    def __init__(self) -> None:
        self.index = -1
        self.id = ""
        self.name = ""
        self.held = ""


class _Choice:
    """What must be known of a choice to read the rest of it."""

    __slots__ = ("calls", "finished", "known", "last", "named", "thought", "thought_chars")

    def __init__(self) -> None:
        self.calls: dict[object, _Call] = {}
        """By the provider's index and by id: two names for one call."""
        self.known = 0
        self.named = 0
        self.last: _Call | None = None
        self.finished = False
        self.thought: list[str] = []
        self.thought_chars = 0


class ChatReader:
    """``StreamReader`` for the OpenAI family."""

    reads_json = False
    __slots__ = ("_choices", "_framer", "_provider", "created", "done", "extra", "failure", "id", "model", "usage")

    def __init__(self, provider: str, *, max_event: int = MAX_EVENT_BYTES) -> None:
        self._framer = SseFramer(max_event)
        self._provider = provider
        self._choices: dict[int, _Choice] = {}
        self.id = ""
        self.model = ""
        self.created = 0
        self.usage: Usage | None = None
        self.extra: Json = {}
        self.done = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        out: list[Chunk] = []
        framer = self._framer
        try:
            if not self._over():
                framer.feed(data)
            while not self._over() and (flags := framer.next()):
                self._event(flags, out)
        except SseLimitError:
            self._malformed("sent an event beyond the size limit")
        except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
            self._malformed("sent an event that is nested too deep")
        return out

    def end(self) -> list[Chunk]:
        out: list[Chunk] = []
        try:
            if not self._over() and (flags := self._framer.flush()):
                self._event(flags, out)
        except SseLimitError:
            self._malformed("sent an event beyond the size limit")
        except TypeError:
            self._malformed("sent an event that is nested too deep")
        if not self._over():
            if self._finished():
                self.done = True
            else:
                self._incomplete()
        return out

    def _over(self) -> bool:
        return self.done or self.failure is not None

    def _finished(self) -> bool:
        return bool(self._choices) and all(choice.finished for choice in self._choices.values())

    # ------------------------------------------------------------------ events
    def _event(self, flags: int, out: list[Chunk]) -> None:
        framer = self._framer
        if flags & F_ERROR_FIELD:
            self.failure = read_error_in_200(framer.error_field(), provider=self._provider)
            return
        if flags & F_STRAY:
            self._stray(framer.slice(framer.start, framer.end), out)
            return
        if not flags & F_DATA:
            return
        data = framer.data()
        try:
            value = loads(data)
        except DecodeError:
            self._not_json(data, out)
            return
        if flags & F_EVENT and framer.event() == "error":
            self.failure = read_error_in_200(data, provider=self._provider)
        else:
            self._value(value, data, out)

    def _not_json(self, data: bytes, out: list[Chunk]) -> None:
        word = data.strip()
        if word == DONE:
            self._terminal(out)
        elif word:
            self._malformed("sent an event that is not JSON")

    def _terminal(self, out: list[Chunk]) -> None:
        """``[DONE]`` ends a stream well (R63), unless nothing came before it; who forgot the reason gets one."""
        if not self._choices:
            self._incomplete()
            return
        for index, state in self._choices.items():
            if not state.finished:
                state.finished = True
                out.append(Chunk({}, index, finish_of("stop", state.named > 0)))
        self.done = True

    def _stray(self, block: bytes, out: list[Chunk]) -> None:
        """Lines that are no fields: a bare JSON error, a whole reply, an HTML page."""
        try:
            value = loads(block)
        except DecodeError:
            self._malformed("sent something that is not an event stream")
        else:
            self._value(value, block, out)

    def _value(self, value: Any, data: bytes, out: list[Chunk]) -> None:
        if not isinstance(value, dict):
            if isinstance(value, list) and value and isinstance(value[0], dict) and is_error(value[0]):
                self.failure = read_error_in_200(data, provider=self._provider)
            else:
                self._malformed("sent an event that is not an object")
            return
        if is_error(value):
            self.failure = read_error_in_200(data, provider=self._provider)
            return
        self._head(value)
        choices = value.get("choices")
        if not isinstance(choices, list):
            return
        for at, choice in enumerate(choices):
            if isinstance(choice, dict) and self.failure is None:
                self._choice(choice, at, out)
        if (error := broken_choice(choices)) is not None:
            self.failure = read_error_in_200(dumps({"error": error}), provider=self._provider)

    def _head(self, value: Json) -> None:
        """What stands around the choices. The first word counts, but for the usage, where it is the last."""
        if not self.id:
            self.id = text_or_empty(value.get("id"))
        if not self.model:
            self.model = text_or_empty(value.get("model"))
        if not self.created:
            self.created = whole(value.get("created"))
        usage = usage_in(value)
        if usage is not None:
            self.usage = usage
        for key in _EXTRA:
            if key in value and is_sound(found := value[key]):
                self.extra[key] = found

    def _incomplete(self) -> None:
        self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
        self.failure.code = "upstream_incomplete"

    def _malformed(self, what: str) -> None:
        if self.failure is None:
            self.failure = MalformedReply(f"the provider {self._provider!r} {what}")

    # ------------------------------------------------------------------ choices
    def _choice(self, given: Json, at: int, out: list[Chunk]) -> None:
        index = whole(given.get("index"), at)
        state = self._choices.get(index)
        if state is None:
            if index >= MAX_CHOICES:
                self._malformed("sent more choices than anybody can ask for")
                return
            state = self._choices[index] = _Choice()
        message = given.get("delta")
        if not isinstance(message, dict):
            message = given.get("message")  # a whole reply
            if not isinstance(message, dict):
                message = {"content": given.get("text")}  # or a legacy completion
        delta = self._delta(message, state)
        native = given.get("finish_reason")
        logprobs = given.get("logprobs")
        chunk = Chunk(delta, index, logprobs=logprobs if isinstance(logprobs, dict) and is_sound(logprobs) else None)
        if isinstance(native, str) and native and native != "error" and not state.finished:
            self._finish(chunk, given, native, state)
        if delta or chunk.finish_reason is not None or chunk.logprobs is not None:
            out.append(chunk)

    def _finish(self, chunk: Chunk, given: Json, native: str, state: _Choice) -> None:
        state.finished = True
        chunk.finish_reason = finish_of(native, state.named > 0)
        chunk.native_finish = text_or_empty(given.get("native_finish_reason")) or native
        stopped = given.get("stop_reason")
        chunk.stop_sequence = stopped if isinstance(stopped, str) and stopped else None

    def _delta(self, message: Json, state: _Choice) -> Json:
        delta: Json = {}
        content = message.get("content")
        if content:
            text, thought = (content, "") if isinstance(content, str) else split_content(content)
            if thought:
                delta["reasoning_content"] = thought
            if text:
                delta["content"] = text
        if "reasoning_content" not in delta and (thought := reasoning_of(message)):
            delta["reasoning_content"] = thought
        details = message.get("reasoning_details")
        if details:
            self._details(details, state, delta)
        if isinstance(refusal := message.get("refusal"), str) and refusal:
            delta["refusal"] = refusal
        if (calls := message.get("tool_calls")) and isinstance(calls, list):
            self._calls(calls, state, delta)
        elif isinstance(legacy := message.get("function_call"), dict):
            self._calls([{"index": 0, "function": legacy}], state, delta)
        for key in ("annotations", "audio", "images"):
            if message.get(key) and is_sound(message[key]):
                delta[key] = message[key]
        return delta

    def _details(self, details: Any, state: _Choice, delta: Json) -> None:
        """OpenRouter's signed reasoning: the text comes in pieces, the signature with the last of them."""
        for detail in details if isinstance(details, list) else ():
            if not isinstance(detail, dict) or not is_claudes(detail):
                continue
            text = detail.get("text")
            if isinstance(text, str) and state.thought_chars < MAX_DETAILS_CHARS:
                state.thought.append(text)
                state.thought_chars += len(text)
            for block in thinking_blocks([detail]):
                if block["type"] == "thinking":
                    block["thinking"] = "".join(state.thought)
                    state.thought.clear()
                    state.thought_chars = 0
                delta["thinking_blocks"] = [*delta.get("thinking_blocks", ()), block]

    # ------------------------------------------------------------------ tool calls
    def _calls(self, given: list[Any], state: _Choice, delta: Json) -> None:
        calls: list[Json] = []
        for item in given:
            if isinstance(item, dict):
                function = item.get("function")
                self._call(item, function if isinstance(function, dict) else {}, state, calls)
        if calls:
            delta["tool_calls"] = calls

    def _call(self, item: Json, function: Json, state: _Choice, calls: list[Json]) -> None:
        id, name = text_or_empty(item.get("id")), text_or_empty(function.get("name"))
        call = _find(state, item.get("index"), id, name)
        if call is None:
            self._malformed("sent more tool calls than anybody can answer")
            return
        pieces = arguments_text(function.get("arguments"))
        if call.name:
            if pieces:
                calls.append({"index": call.index, "function": {"arguments": pieces}})
            return
        call.id = call.id or id
        if not name:
            if len(call.held) < MAX_EVENT_BYTES:
                call.held += pieces
            return
        call.name = name
        call.id = call.id or make_id("call_")
        call.index = state.named
        state.named += 1
        out: Json = {
            "index": call.index,
            "id": call.id,
            "type": "function",
            "function": {"name": name, "arguments": call.held + pieces},
        }
        if isinstance(extra := item.get("extra_content"), dict) and is_sound(extra):
            out["extra_content"] = extra
        calls.append(out)
        call.held = ""


def _find(state: _Choice, index: Any, id: str, name: str) -> _Call | None:
    """The call that a delta belongs to, perhaps a new one; ``None`` if there are too many.

    Without an index a new id or name is a new call (Mistral, Ollama send calls whole). With one it is the index that
    counts, unless another id and a name come under it (Ollama, PROTOCOLS.md 2.7).
    """
    call = state.calls.get(("id", id)) if id else None
    if call is None:
        if isinstance(index, int):
            call = state.calls.get(index)
            if call is not None and call.name and name and id and call.id != id:
                call = None
        elif not id and (not name or (state.last is not None and not state.last.name)):
            call = state.last
    if call is None:
        if state.known >= MAX_CALLS:
            return None
        state.known += 1
        call = _Call()
    if isinstance(index, int):
        state.calls[index] = call
    if id and not call.id:
        state.calls["id", id] = call
    state.last = call
    return call
