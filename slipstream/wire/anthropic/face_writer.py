"""A canonical stream, written as Anthropic's events (PROTOCOLS.md 2.3, 3.3).

``message_start``, ``ping``, then the blocks one after the other, each started, filled and stopped, then
``message_delta`` and ``message_stop``. Chat streams have no blocks: text, reasoning and the calls of several tools may
come in any order, tool deltas even by turns. So each piece belongs to a block (reasoning, text, or the tool of one
index), the first of them is open and written through, the others wait in order.

When does an open block give way to one that waits? Text and thinking at once. A tool's block when its arguments are a
complete JSON value: until then more of them may follow, and a block cannot be opened twice. A tool without arguments
therefore holds the others back until the stream's end; they come late, but they come right.

The rule that must not be broken: blocks never interleave, and what waits is bounded. A stream beyond the bound, or with
more arguments for a call that was complete and is closed, raises ``MalformedReply`` from ``write``; no honest provider
sends one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import GatewayError, MalformedReply
from ..canonical import Answer, Chunk, Json, StreamReader
from ..codec import DecodeError, dumps, loads
from .errors import error_event
from .face_ids import packed_id
from .face_reply import citation_of, ending, stop_details, thinking_block, usage_object

PING = b'event: ping\ndata: {"type":"ping"}\n\n'
"""Keeps clients and proxies alive; may be sent between any two events."""
MAX_WAITING_CHARS = 4 * 1024 * 1024
"""Text that waits for an open tool call to be complete; a waiting block counts as ``BLOCK_CHARS`` more."""
BLOCK_CHARS = 256
MAX_TOOLS = 4096
"""Calls in one stream."""
MAX_SAID_CHARS = 1024 * 1024
"""Arguments of an open call that are remembered; a longer call keeps the others waiting."""
MAX_PEEKS = 64
"""How often the arguments of one open call are looked at for being complete; more turns than that and it stays open."""

_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_REASONING, _TEXT = "reasoning", "text"
_THINKING_DELTA = b'{"type":"thinking_delta","thinking":'
_TEXT_DELTA = b'{"type":"text_delta","text":'
_TOOL_DELTA = b'{"type":"input_json_delta","partial_json":'
_ORDER = ("reasoning_content", "thinking_blocks", "content", "refusal", "annotations", "tool_calls")


class _Block:
    """One content block. ``key``: what its deltas belong to, ``reasoning``, ``text``, or the tool's index; ``None``: it
    is whole from the beginning. ``pieces`` wait to be written; of an open tool ``said`` is what was."""

    __slots__ = ("given", "id", "key", "name", "peeks", "pieces", "said", "size", "whole")

    def __init__(self, key: str | int | None, whole: Json | None = None) -> None:
        self.key = key
        self.whole = whole
        self.given = self.id = ""  # the provider's id, and that with what it carries for the client
        self.name = ""
        self.pieces: list[str] = []
        self.said: list[str] = []
        self.size = self.peeks = 0


class MessagesWriter:
    """Writes one stream (``wire.canonical.StreamWriter``)."""

    __slots__ = (
        "_answer",
        "_calls",
        "_finish",
        "_head",
        "_index",
        "_native",
        "_open",
        "_out",
        "_refused",
        "_sequence",
        "_started",
        "_tools",
        "_unsigned",
        "_waiting",
        "_waiting_chars",
        "_wrote_text",
    )

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self._started = False
        self._index = -1
        self._open: _Block | None = None
        self._waiting: list[_Block] = []
        self._waiting_chars = 0
        self._calls = 0
        self._tools: dict[int, _Block] = {}
        self._head = b""
        self._out: list[bytes] = []
        self._unsigned = False  # reasoning was written whose signature may still come
        self._wrote_text = self._refused = False
        self._finish: str | None = None
        self._native: str | None = None
        self._sequence: str | None = None

    # ------------------------------------------------------------------ the face
    def write(self, chunks: Sequence[Chunk], reader: StreamReader) -> bytes:
        """The events for ``chunks``. Raises ``MalformedReply`` beyond what may wait."""
        if not self._started:
            self._start(reader)
        for chunk in chunks:
            if chunk.index == 0:
                self._take(chunk)
        return self._taken()

    def end(self, reader: StreamReader) -> bytes:
        """What still waits, stop reason, usage, ``message_stop``."""
        if not self._started:
            self._start(reader)
        self._close()
        while self._waiting:
            self._next()
            self._close()
        reason, sequence = ending(
            self._answer.request,
            self._finish,
            self._native,
            self._sequence,
            calls=bool(self._tools),
            refused=self._refused and not self._wrote_text,
        )
        delta: Json = {"stop_reason": reason, "stop_sequence": sequence}
        details = stop_details(reader.extra)
        if details is not None:
            delta["stop_details"] = details
        self._event("message_delta", {"delta": delta, "usage": usage_object(reader.usage)})
        self._out.append(_STOP)
        return self._taken()

    def error(self, error: GatewayError) -> bytes:
        """The error event, which ends the stream: Anthropic closes no block and sends no ``message_stop``."""
        return error_event(error)

    # ------------------------------------------------------------------ chunks
    def _start(self, reader: StreamReader) -> None:
        self._started = True
        message: Json = {
            "id": f"msg_{self._answer.id}",
            "type": "message",
            "role": "assistant",
            "model": reader.model or self._answer.model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_object(reader.usage),
        }
        self._event("message_start", {"message": message})
        self._out.append(PING)

    def _take(self, chunk: Chunk) -> None:
        delta = chunk.delta
        for name in delta if len(delta) < 2 else _ORDER:
            value = delta.get(name)
            if not value:
                continue
            if name == "content" and isinstance(value, str):
                self._wrote_text = True
                self._piece(_TEXT, value)
            elif name == "reasoning_content" and isinstance(value, str):
                self._piece(_REASONING, value)
            elif isinstance(value, list):
                self._take_list(name, value)
            elif name == "refusal" and isinstance(value, str):
                self._refused = True
                self._piece(_TEXT, value)
        self._finish = chunk.finish_reason or self._finish
        self._native = chunk.native_finish or self._native
        self._sequence = chunk.stop_sequence or self._sequence

    def _take_list(self, name: str, values: list[Any]) -> None:
        if name == "tool_calls":
            for call in values:
                self._call(call)
        elif name == "thinking_blocks":
            for block in filter(None, map(thinking_block, values)):
                self._thought(block)
        elif name == "annotations":
            self._cite(values)

    def _piece(self, key: str, text: str) -> None:
        """Some text of the block that is open, or of one that is now begun."""
        current = self._open
        if current is not None and current.key == key:
            self._out.append(self._head + dumps(text) + b"}}\n\n")
            return
        last = self._waiting[-1] if self._waiting else None
        block = last if last is not None and last.key == key else self._queue(_Block(key))
        self._wait(block, text)
        self._advance()

    def _call(self, call: Any) -> None:
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict):
            return
        block = self._tool(call, function)
        arguments = function.get("arguments")
        if isinstance(arguments, str) and arguments:
            if block is self._open:
                self._argue(block, arguments)
            elif block in self._waiting:
                self._wait(block, arguments)
            elif arguments.strip():
                raise MalformedReply("the provider went on with a tool call that was complete")
        self._advance()

    def _tool(self, call: Json, function: Json) -> _Block:
        """The block of a call: known by its index, until another id says that the index was used again."""
        index, name, identity = call.get("index"), function.get("name"), call.get("id")
        if not isinstance(index, int):
            index = 0
        block = self._tools.get(index)
        if block is None or (identity and name and block.given and identity != block.given):
            self._calls += 1
            if self._calls > MAX_TOOLS:
                raise MalformedReply("the provider called more tools than anybody can mean")
            block = self._tools[index] = self._queue(_Block(index))
        if identity and not block.given and isinstance(identity, str):
            block.given = identity
            block.id = packed_id(call)
        if not block.name and isinstance(name, str):
            block.name = name
        return block

    def _argue(self, block: _Block, arguments: str) -> None:
        """More arguments of the tool whose block is open."""
        self._remember(block, arguments)
        self._out.append(self._head + dumps(arguments) + b"}}\n\n")

    def _thought(self, whole: Json) -> None:
        """A whole block: the signature of what was streamed before, or something that was not streamed."""
        current = self._open
        last = self._waiting[-1] if self._waiting else None
        if whole["type"] == "redacted_thinking":
            self._queue(_Block(None, whole))
        elif last is not None and last.key == _REASONING:
            last.key, last.whole = None, whole
        elif current is not None and current.key == _REASONING:
            self._sign(whole["signature"])
            self._close()
            self._unsigned = False
        else:
            block = self._queue(_Block(None, whole))
            if not self._unsigned:  # otherwise its text is in a block that something else has closed
                self._wait(block, whole["thinking"])
            self._unsigned = False
        self._advance()

    def _cite(self, annotations: list[Any]) -> None:
        """Citations belong into a text block; if none is open, there is no place for them."""
        if self._open is None or self._open.key != _TEXT:
            return
        for citation in filter(None, map(citation_of, annotations)):
            self._delta({"type": "citations_delta", "citation": citation})

    # ------------------------------------------------------------------ blocks
    def _queue(self, block: _Block) -> _Block:
        self._waiting.append(block)
        self._count(BLOCK_CHARS)
        return block

    def _wait(self, block: _Block, text: str) -> None:
        if text:
            block.pieces.append(text)
            self._count(len(text))

    def _count(self, chars: int) -> None:
        self._waiting_chars += chars
        if self._waiting_chars > MAX_WAITING_CHARS:
            raise MalformedReply("the provider's tool calls interleave beyond what can be put in order")

    def _remember(self, block: _Block, arguments: str) -> None:
        """What an open call said is kept for ``_complete``, as long as that is worth it."""
        block.size += len(arguments)
        if block.size <= MAX_SAID_CHARS:
            block.said.append(arguments)
        else:
            block.said.clear()

    def _advance(self) -> None:
        """Open what waits as far as what is open can be closed."""
        while self._waiting:
            current, first = self._open, self._waiting[0]
            if isinstance(first.key, int) and not first.name:
                return
            if current is not None and isinstance(current.key, int) and not _complete(current):
                return
            self._close()
            self._next()

    def _next(self) -> None:
        """Open the first block that waits, with what it has so far."""
        block = self._open = self._waiting.pop(0)
        self._index += 1
        start, delta = _opening(block)
        self._event("content_block_start", {"index": self._index, "content_block": start})
        self._head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":%b' % (
            self._index,
            delta,
        )
        text = "".join(block.pieces)
        block.pieces.clear()
        self._waiting_chars -= len(text) + BLOCK_CHARS
        if text:
            self._out.append(self._head + dumps(text) + b"}}\n\n")
        if block.whole is not None:
            self._sign(block.whole.get("signature", ""))
            self._close()
        elif isinstance(block.key, int):
            self._remember(block, text)
        elif block.key == _REASONING:
            self._unsigned = True

    def _close(self) -> None:
        block = self._open
        if block is not None:
            block.said.clear()
            self._open = None
            self._event("content_block_stop", {"index": self._index})

    def _sign(self, signature: str) -> None:
        if signature:
            self._delta({"type": "signature_delta", "signature": signature})

    # ------------------------------------------------------------------ bytes
    def _delta(self, delta: Json) -> None:
        self._event("content_block_delta", {"index": self._index, "delta": delta})

    def _event(self, name: str, data: Json) -> None:
        self._out.append(b"event: %b\ndata: %b\n\n" % (name.encode(), dumps({"type": name, **data})))

    def _taken(self) -> bytes:
        out = b"".join(self._out)
        self._out.clear()
        return out


def _opening(block: _Block) -> tuple[Json, bytes]:
    """The empty block of ``content_block_start``, and how its deltas begin."""
    if isinstance(block.key, int):
        use = {"type": "tool_use", "id": block.id or packed_id({}), "name": block.name, "input": {}}
        return use, _TOOL_DELTA
    if block.whole is not None and block.whole["type"] == "redacted_thinking":
        return block.whole, b""
    if block.key == _TEXT:
        return {"type": "text", "text": ""}, _TEXT_DELTA
    return {"type": "thinking", "thinking": "", "signature": ""}, _THINKING_DELTA


def _complete(block: _Block) -> bool:
    """Whether the arguments of an open tool call are one whole JSON value, so that nothing of it can follow."""
    if not block.said or not block.said[-1].rstrip().endswith("}") or block.peeks >= MAX_PEEKS:
        return False
    block.peeks += 1
    text = "".join(block.said)
    block.said = [text]
    try:
        loads(text.encode())
    except DecodeError:
        return False
    return True
