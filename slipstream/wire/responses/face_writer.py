"""A stream in the Responses dialect, written from canonical chunks: the lifecycle of PROTOCOLS.md 3.2.

The writer is a small tree: the response has output items (``_Reasoning``, ``_Message``, ``_Call``), each of which knows
how to open, to take a delta and to close. One item is written at a time; before the next opens, what is complete is
closed. Calls are the exception: a provider may mix the pieces of parallel calls, so a call stays open until its
arguments are a whole JSON value or the stream ends.

Everything is repeated at the end of its part, its item and the response, so the text is kept; ``MAX_OUTPUT_CHARS``
bounds it.

The rule that must not be broken: the final response holds exactly what was streamed, and every number, index and id
fits: clients build the answer from either.
"""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO

from ...errors import GatewayError, MalformedReply
from ..canonical import Answer, Chunk, Json, StreamReader, make_id
from ..codec import dumps
from .errors import event, failed_events
from .items import (
    call_item,
    custom_input,
    custom_item,
    custom_names,
    finish_status,
    flat_annotations,
    flat_logprobs,
    is_whole,
    item_id,
    message_item,
    reasoning_item,
    refusal_part,
    response_object,
    summary_part,
    text_part,
    wants_encrypted,
)

MAX_OUTPUT_CHARS = 32 * 1024 * 1024
"""Two orders of magnitude above the longest answer that a model can give; only a broken provider sends more."""
MAX_ITEMS = 4096
"""As far above what a model calls at once."""
_ENTRY_CHARS = 256
"""What an annotation or a token's log probability counts against the limit."""


class _Out:
    """The events that one call of the writer makes, numbered."""

    __slots__ = ("chars", "parts", "sequence")

    def __init__(self) -> None:
        self.sequence = 0
        self.parts: list[bytes] = []
        self.chars = 0

    def event(self, name: str, fields: Json) -> None:
        self.parts.append(event(name, fields, self.sequence))
        self.sequence += 1

    def delta(self, prefix: bytes, text: str) -> None:
        """A delta whose constant part was made when its item opened: one small ``dumps`` is all there is to do."""
        self.count(len(text))
        self.parts.append(b'%s%s,"sequence_number":%d}\n\n' % (prefix, dumps(text), self.sequence))
        self.sequence += 1

    def count(self, chars: int) -> None:
        self.chars += chars
        if self.chars > MAX_OUTPUT_CHARS:
            raise MalformedReply(f"the provider's answer is longer than {MAX_OUTPUT_CHARS} characters")

    def take(self) -> bytes:
        data = b"".join(self.parts)
        self.parts.clear()
        return data


def _prefix(name: str, fields: Json) -> bytes:
    """The beginning of a delta event, up to the value of ``delta``, which follows as its last field but one."""
    head = b"event: %s\ndata: " % name.encode()
    return head + dumps({"type": name, **fields})[:-1] + b',"delta":'


class _Reasoning:
    """The model's thinking: summary text, and the blocks that must come back."""

    __slots__ = ("_blocks", "_encrypted", "_ident", "_index", "_prefix", "_text")

    def __init__(self, answer: Answer, index: int, encrypted: bool, out: _Out) -> None:
        self._ident = item_id(answer, "rs_", index)
        self._index = index
        self._encrypted = encrypted
        self._blocks: list[Json] = []
        self._text = StringIO()
        self._prefix = b""
        out.event("response.output_item.added", {"output_index": index, "item": self.item("in_progress")})

    def item(self, status: str) -> Json:
        return reasoning_item(self._ident, self._text.getvalue(), self._blocks, self._encrypted)

    def _place(self) -> Json:
        return {"item_id": self._ident, "output_index": self._index, "summary_index": 0}

    def text(self, text: str, out: _Out) -> None:
        if not self._prefix:
            self._prefix = _prefix("response.reasoning_summary_text.delta", self._place())
            out.event("response.reasoning_summary_part.added", {**self._place(), "part": summary_part("")})
        self._text.write(text)
        out.delta(self._prefix, text)

    def add_blocks(self, blocks: list[Json], out: _Out) -> None:
        self._blocks += blocks
        out.count(sum(len(value) for block in blocks for value in block.values() if isinstance(value, str)))

    def close(self, status: str, out: _Out) -> None:
        text = self._text.getvalue()
        if self._prefix:
            out.event("response.reasoning_summary_text.done", {**self._place(), "text": text})
            out.event("response.reasoning_summary_part.done", {**self._place(), "part": summary_part(text)})
        out.event("response.output_item.done", {"output_index": self._index, "item": self.item(status)})


class _Message:
    """Text and refusal: one content part at a time, in the order of their coming."""

    __slots__ = ("_annotations", "_closed", "_ident", "_index", "_kind", "_logprobs", "_prefix", "_text")

    def __init__(self, answer: Answer, index: int, out: _Out) -> None:
        self._ident = item_id(answer, "msg_", index)
        self._index = index
        self._closed: list[Json] = []
        self._kind = ""
        self._prefix = b""
        self._text = StringIO()
        self._annotations: list[Json] = []
        self._logprobs: list[Json] = []
        out.event("response.output_item.added", {"output_index": index, "item": self.item("in_progress")})

    def item(self, status: str) -> Json:
        open_part = [self._part(self._text.getvalue())] if self._kind else []
        return message_item(self._ident, self._closed + open_part, status)

    def _place(self) -> Json:
        return {"item_id": self._ident, "output_index": self._index, "content_index": len(self._closed)}

    def _part(self, text: str) -> Json:
        return text_part(text, self._annotations, self._logprobs) if self._kind == "output_text" else refusal_part(text)

    def open_part(self, kind: str, out: _Out) -> None:
        if kind == self._kind:
            return
        self._close_part(out)
        self._kind = kind
        logprobs: Json = {"logprobs": []} if kind == "output_text" else {}
        self._prefix = _prefix(f"response.{kind}.delta", {**self._place(), **logprobs})
        out.event("response.content_part.added", {**self._place(), "part": self._part("")})

    def write(self, kind: str, text: str, out: _Out) -> None:
        self.open_part(kind, out)
        self._text.write(text)
        out.delta(self._prefix, text)

    def write_with_logprobs(self, text: str, logprobs: list[Json], out: _Out) -> None:
        self.open_part("output_text", out)
        self._text.write(text)
        self._logprobs += logprobs
        out.count(_ENTRY_CHARS * len(logprobs))
        prefix = _prefix("response.output_text.delta", {**self._place(), "logprobs": logprobs})
        out.delta(prefix, text)

    def annotate(self, annotations: list[Json], out: _Out) -> None:
        self.open_part("output_text", out)
        out.count(_ENTRY_CHARS * len(annotations))
        for annotation in annotations:
            at = len(self._annotations)
            self._annotations.append(annotation)
            fields = {**self._place(), "annotation_index": at, "annotation": annotation}
            out.event("response.output_text.annotation.added", fields)

    def _close_part(self, out: _Out) -> None:
        if not self._kind:
            return
        text = self._text.getvalue()
        part = self._part(text)
        said = {"text": text, "logprobs": self._logprobs} if self._kind == "output_text" else {"refusal": text}
        out.event(f"response.{self._kind}.done", {**self._place(), **said})
        out.event("response.content_part.done", {**self._place(), "part": part})
        self._closed.append(part)
        self._kind = ""
        self._text = StringIO()
        self._annotations, self._logprobs = [], []

    def close(self, status: str, out: _Out) -> None:
        self._close_part(out)
        out.event("response.output_item.done", {"output_index": self._index, "item": self.item(status)})


class _Call:
    """One call. The arguments of a custom tool are held back: what the client wants is the string inside of them."""

    __slots__ = ("_arguments", "_call_id", "_custom", "_extra", "_ident", "_index", "_name", "_prefix", "_wrapped")

    def __init__(self, answer: Answer, index: int, delta: Json, custom: frozenset[str], out: _Out) -> None:
        own = delta.get("type") == "custom"
        inner = delta.get("custom" if own else "function") or {}
        self._name = inner.get("name") or ""
        self._wrapped = not own and self._name in custom
        self._custom = own or self._wrapped
        self._ident = item_id(answer, "ctc_" if self._custom else "fc_", index)
        self._index = index
        self._call_id = delta.get("id") or make_id("call_")
        self._extra: object = delta.get("extra_content")
        self._arguments = StringIO()
        kind = "custom_tool_call_input" if self._custom else "function_call_arguments"
        self._prefix = _prefix(f"response.{kind}.delta", self._place())
        out.event("response.output_item.added", {"output_index": index, "item": self.item("in_progress")})

    def _place(self) -> Json:
        return {"item_id": self._ident, "output_index": self._index}

    def _said(self) -> str:
        arguments = self._arguments.getvalue()
        return custom_input(arguments) if self._wrapped and arguments else arguments

    def item(self, status: str) -> Json:
        make = custom_item if self._custom else call_item
        return make(self._ident, self._call_id, self._name, self._said(), status, self._extra)

    def add(self, delta: Json, out: _Out) -> None:
        inner = delta.get("function") or delta.get("custom") or {}
        piece = inner.get("arguments") or inner.get("input")
        self._extra = delta.get("extra_content") or self._extra
        if not piece:
            return
        self._arguments.write(piece)
        if not self._wrapped:
            out.delta(self._prefix, piece)

    def whole(self) -> bool:
        return is_whole(self._arguments.getvalue())

    def close(self, status: str, out: _Out) -> None:
        if not self._custom and not self._arguments.getvalue():
            self._arguments.write("{}")  # no arguments are an empty object (PROTOCOLS.md 2.3)
            out.delta(self._prefix, "{}")
        said = self._said()
        if self._wrapped and said:
            out.delta(self._prefix, said)
        if self._custom:
            out.event("response.custom_tool_call_input.done", {**self._place(), "input": said})
        else:
            out.event("response.function_call_arguments.done", {**self._place(), "arguments": said})
        out.event("response.output_item.done", {"output_index": self._index, "item": self.item(status)})


class ResponsesWriter:
    """Writes one stream. Only the first choice is shown."""

    __slots__ = (
        "_answer",
        "_begun",
        "_calls",
        "_closed",
        "_current",
        "_custom",
        "_encrypted",
        "_ended",
        "_finish",
        "_items",
        "_model",
        "_out",
    )

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._model = answer.model
        self._encrypted = wants_encrypted(answer.request)
        self._custom = custom_names(answer.request)
        self._out = _Out()
        self._begun = self._ended = False
        self._finish: str | None = None
        self._items: list[_Reasoning | _Message | _Call] = []
        self._closed: list[Json | None] = []  # by output_index; None while the item is open
        self._current: _Reasoning | _Message | _Call | None = None  # the item that was opened last
        self._calls: dict[int, int] = {}  # the provider's index of a call: its output_index

    # ------------------------------------------------------------------ the contract
    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        self._begin(reader.model)
        for chunk in chunks:
            if chunk.index:
                continue
            if chunk.delta:
                self._delta(chunk)
            if chunk.finish_reason is not None:
                self._finish = chunk.finish_reason
        return self._out.take()

    def end(self, reader: StreamReader) -> bytes:
        if self._ended:
            return b""
        self._begin(reader.model)
        self._ended = True
        status, reason = finish_status(self._finish)
        self._close_all(status)
        if status == "completed" and not any(isinstance(item, _Message | _Call) for item in self._items):
            self._message().open_part("output_text", self._out)  # a reply that says nothing, as in ``face_reply``
            self._close_all(status)
        response = response_object(
            self._answer,
            model=self._model,
            status=status,
            output=self._output(),
            usage=reader.usage,
            reason=reason,
            extra=reader.extra,
        )
        self._out.event(f"response.{status}", {"response": response})
        return self._out.take()

    def error(self, error: GatewayError) -> bytes:
        if self._ended:
            return b""
        self._begin("")
        self._ended = True
        response = response_object(self._answer, model=self._model, status="failed", output=self._output())
        return self._out.take() + failed_events(error, response, self._out.sequence)

    # ------------------------------------------------------------------ lifecycle
    def _begin(self, model: str) -> None:
        """The two opening events, with whole response objects."""
        if self._begun:
            return
        self._begun = True
        self._model = model or self._answer.model
        response = response_object(self._answer, model=self._model, status="in_progress", output=[])
        self._out.event("response.created", {"response": response})
        self._out.event("response.in_progress", {"response": response})

    def _output(self) -> list[Json]:
        pairs = zip(self._items, self._closed, strict=True)
        return [item.item("incomplete") if closed is None else closed for item, closed in pairs]

    def _close(self, index: int, status: str) -> None:
        item = self._items[index]
        item.close(status, self._out)
        self._closed[index] = item.item(status)

    def _close_all(self, status: str) -> None:
        """At the end. What is still open when an answer was cut is what was cut, but for calls that are whole."""
        for index, closed in enumerate(self._closed):
            if closed is None:
                item = self._items[index]
                whole = isinstance(item, _Call) and item.whole()
                self._close(index, "completed" if whole else status)
        self._current = None

    def _make_room(self) -> None:
        """Close the item before another opens, unless it is a call whose arguments are not whole: its other pieces may
        come among those of the next."""
        current = self._current
        if current is not None and not (isinstance(current, _Call) and not current.whole()):
            self._close(len(self._items) - 1, "completed")
        self._current = None

    def _add(self, item: _Reasoning | _Message | _Call) -> None:
        if len(self._items) >= MAX_ITEMS:
            raise MalformedReply(f"the provider's answer has more than {MAX_ITEMS} parts")
        self._items.append(item)
        self._closed.append(None)
        self._current = item

    # ------------------------------------------------------------------ deltas
    def _delta(self, chunk: Chunk) -> None:
        """What a model says in one delta, in the order in which it would say it."""
        delta = chunk.delta
        if text := delta.get("reasoning_content"):
            self._reasoning().text(text, self._out)
        if (blocks := delta.get("thinking_blocks")) and self._encrypted:
            # They end the thinking that was streamed before them. A redacted one had no text and needs its own item.
            self._reasoning().add_blocks(blocks, self._out)
        if text := delta.get("content"):
            self._text(text, chunk)
        if text := delta.get("refusal"):
            self._message().write("refusal", text, self._out)
        if flat := flat_annotations(delta.get("annotations")):
            self._message().annotate(flat, self._out)
        for call in delta.get("tool_calls") or ():
            self._call(call)

    def _text(self, text: str, chunk: Chunk) -> None:
        logprobs = flat_logprobs(chunk.logprobs) if chunk.logprobs else []
        if logprobs:
            self._message().write_with_logprobs(text, logprobs, self._out)
        else:
            self._message().write("output_text", text, self._out)

    def _reasoning(self) -> _Reasoning:
        current = self._current
        if isinstance(current, _Reasoning):
            return current
        self._make_room()
        made = _Reasoning(self._answer, len(self._items), self._encrypted, self._out)
        self._add(made)
        return made

    def _message(self) -> _Message:
        current = self._current
        if isinstance(current, _Message):
            return current
        self._make_room()
        made = _Message(self._answer, len(self._items), self._out)
        self._add(made)
        return made

    def _call(self, delta: Json) -> None:
        at = delta.get("index") or 0
        index = self._calls.get(at)
        if index is None:
            self._make_room()
            index = self._calls[at] = len(self._items)
            self._add(_Call(self._answer, index, delta, self._custom, self._out))
        elif self._closed[index] is not None:
            return  # its arguments were whole: only blanks could follow
        call = self._items[index]
        if isinstance(call, _Call):
            call.add(delta, self._out)
