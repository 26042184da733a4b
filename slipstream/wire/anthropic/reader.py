"""A stream of Anthropic's as canonical chunks (PROTOCOLS.md 1.6, 2.3, 5).

Events are told apart by the ``type`` inside their JSON, which says more than the ``event:`` line that some proxies
leave out. Unknown events, blocks and deltas are ignored, blanks inside the JSON and pings mean nothing. A block is
known by its index from its start to its stop; deltas of text and thinking are taken even without one.

The finish reason is held back until ``message_stop``: only that ends a stream well (R63), so nobody is told that an
answer is complete which then turns out to be cut. A second ``message_start`` (#1fed7804: a proxy in front began
again) is a new beginning as long as nobody has seen text or calls; after that it is a failure, because what was sent
cannot be taken back and the doubled answer would look whole.

The rule that must not be broken: nothing here raises, and nothing grows without bound.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..._fast import F_DATA, F_ERROR_FIELD, F_STRAY, SseFramer, SseLimitError
from ...errors import MalformedReply, TransportError, UpstreamError
from ..canonical import Chunk, Json
from ..codec import DecodeError, loads
from ..openai_stream import MAX_EVENT_BYTES
from ..usage import Usage
from .failures import is_error, read_failure
from .reply import extra_of, text_of, thinking_block, tool_call, web_citations
from .stop import finish_reason
from .usage import merge, read_usage

MAX_OPEN_BLOCKS = 256
"""Blocks that have begun and not ended; a well-behaved stream has one."""
MAX_THINKING_CHARS = 8 * 1024 * 1024
"""Thinking kept for its signed block; beyond it, it is streamed on and its block is left out."""
MAX_CITATIONS = 1_000
"""Citations of one block."""


class _Block:
    """One content block between its start and its stop. ``call``: index of the tool call it is, -1 for other blocks."""

    __slots__ = ("call", "citations", "input", "kind", "signature", "size", "start", "text")

    def __init__(self, kind: str, start: int) -> None:
        self.kind = kind
        self.start = start
        self.call = -1
        self.input = ""
        self.text: list[str] = []
        self.size = 0
        self.signature = ""
        self.citations: list[Any] = []


class AnthropicReader:
    """Reads one stream (``canonical.StreamReader``)."""

    __slots__ = (
        "_blocks",
        "_calls",
        "_counts",
        "_framer",
        "_given",
        "_length",
        "_provider",
        "_stop",
        "_stop_sequence",
        "created",
        "done",
        "extra",
        "failure",
        "id",
        "model",
        "reads_json",
        "usage",
    )

    def __init__(self, provider: str, max_event: int = MAX_EVENT_BYTES) -> None:
        self._framer = SseFramer(max_event)
        self._provider = provider
        self._blocks: dict[int, _Block] = {}
        self._calls = 0
        self._length = 0  # characters of text so far
        self._given = False  # text or a call went out
        self._counts: Json = {}
        self._stop: str | None = None
        self._stop_sequence: str | None = None
        self.reads_json = False
        self.id = ""
        self.model = ""
        self.created = 0
        self.usage: Usage | None = None
        self.extra: Json = {}
        self.done = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        """Take a piece of the body. Never raises."""
        chunks: list[Chunk] = []
        if self._over():
            return chunks
        framer = self._framer
        try:
            framer.feed(data)
            while flags := framer.next():
                self._look(flags, chunks)
                if self._over():
                    break
        except SseLimitError:
            self.failure = self._malformed("an event beyond the size limit")
        return chunks

    def end(self) -> list[Chunk]:
        """The body ended cleanly: sets ``done`` or ``failure``."""
        chunks: list[Chunk] = []
        if self._over():
            return chunks
        try:
            flags = self._framer.flush()
            if flags:
                self._look(flags, chunks, last=True)
        except SseLimitError:
            self.failure = self._malformed("an event beyond the size limit")
        if not self._over():
            self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
            self.failure.code = "upstream_incomplete"
        return chunks

    def take(self, event: Json, chunks: list[Chunk]) -> None:
        """One decoded event; for providers that wrap the same events in frames of their own."""
        handler = _HANDLERS.get(event.get("type"))  # type: ignore[arg-type]
        if handler is not None:
            handler(self, event, chunks)

    def _over(self) -> bool:
        return self.done or self.failure is not None

    # ------------------------------------------------------------------ frames
    def _look(self, flags: int, chunks: list[Chunk], *, last: bool = False) -> None:
        """``last``: the body ended in this event, so half of it may be missing."""
        if flags & (F_STRAY | F_ERROR_FIELD):
            self._stray(flags)
            return
        if not flags & F_DATA:
            return
        data = self._framer.data()
        try:
            event = loads(data)
        except DecodeError:
            if not last and data.strip() not in (b"", b"[DONE]"):  # proxies add OpenAI's last frame
                self.failure = self._malformed("an event that is not JSON")
            return
        if not isinstance(event, dict):
            return
        kind = event.get("type")
        if not isinstance(kind, str):
            event["type"] = kind = "error" if is_error(event) else self._framer.event()
        if kind == "error":
            self.failure = read_failure(event, data, provider=self._provider)
            return
        self.take(event, chunks)

    def _stray(self, flags: int) -> None:
        """Something that is no event: an error as bare JSON (PROTOCOLS.md 5), a page of HTML."""
        framer = self._framer
        data = framer.error_field() if flags & F_ERROR_FIELD else framer.slice(framer.start, framer.end)
        try:
            value = loads(data)
        except DecodeError:
            value = None
        if isinstance(value, dict) and is_error(value):
            self.failure = read_failure(value, data, provider=self._provider)
        else:
            self.failure = self._malformed("something that is not an event stream")

    def _malformed(self, what: str) -> MalformedReply:
        return MalformedReply(f"the provider {self._provider!r} sent {what}")

    # ------------------------------------------------------------------ the message
    def _message_start(self, event: Json, chunks: list[Chunk]) -> None:
        if self._given:
            self.failure = self._malformed("the beginning of another answer in the middle of one")
            return
        message = _object(event.get("message"))
        self._blocks.clear()
        self._stop = self._stop_sequence = None
        self.id = text_of(message.get("id"))
        self.model = text_of(message.get("model"))
        self._counts = merge({}, message.get("usage"))
        self.usage = read_usage(self._counts)
        self.extra = extra_of(message.get("usage"), None)
        content = message.get("content")
        for block in content if isinstance(content, list) else ():  # what a container already said
            if isinstance(block, dict):
                self._open(-1, block, chunks)
                self._close(-1, chunks)
        self._stopped(message)

    def _message_delta(self, event: Json, chunks: list[Chunk]) -> None:
        delta = _object(event.get("delta"))
        self._stopped(delta)
        self.extra.update(extra_of(event.get("usage"), delta.get("stop_details")))
        self._counts = merge(self._counts, event.get("usage"))
        self.usage = read_usage(self._counts)

    def _stopped(self, source: Json) -> None:
        if isinstance(source.get("stop_reason"), str):
            self._stop = source["stop_reason"]
        if isinstance(source.get("stop_sequence"), str):
            self._stop_sequence = source["stop_sequence"]

    def _message_stop(self, event: Json, chunks: list[Chunk]) -> None:
        for index in list(self._blocks):
            self._close(index, chunks)
        finish = finish_reason(self._stop, calls=self._calls > 0)
        chunks.append(Chunk({}, finish_reason=finish, native_finish=self._stop, stop_sequence=self._stop_sequence))
        self.done = True

    # ------------------------------------------------------------------ blocks
    def _block_start(self, event: Json, chunks: list[Chunk]) -> None:
        index = _index(event)
        self._close(index, chunks)
        self._open(index, _object(event.get("content_block")), chunks)

    def _open(self, index: int, source: Json, chunks: list[Chunk]) -> None:
        if len(self._blocks) >= MAX_OPEN_BLOCKS:
            self.failure = self._malformed("too many blocks at once")
            return
        kind = text_of(source.get("type"))
        block = self._blocks[index] = _Block(kind, self._length)
        if kind == "text":
            self._text(text_of(source.get("text")), chunks)
            self._cite(block, source.get("citations"))
        elif kind == "thinking":
            self._think(block, text_of(source.get("thinking")), chunks)
            block.signature = text_of(source.get("signature"))
        elif kind == "redacted_thinking" and isinstance(source.get("data"), str):
            redacted = {"type": "redacted_thinking", "data": source["data"]}
            chunks.append(Chunk({"thinking_blocks": [redacted]}))
        elif kind == "tool_use":
            call = tool_call(source)
            block.call = self._calls
            block.input = call["function"]["arguments"]
            call["function"]["arguments"] = ""
            self._calls += 1
            self._given = True
            chunks.append(Chunk({"tool_calls": [{"index": block.call, **call}]}))

    def _block_delta(self, event: Json, chunks: list[Chunk]) -> None:
        delta = event.get("delta")
        if not isinstance(delta, dict):
            return
        kind = delta.get("type")
        if kind == "text_delta":
            self._text(text_of(delta.get("text")), chunks)
            return
        block = self._blocks.get(_index(event))
        if kind == "thinking_delta":
            self._think(block, text_of(delta.get("thinking")), chunks)
        elif block is None:
            return
        elif kind == "input_json_delta":
            piece = text_of(delta.get("partial_json"))
            if piece and block.call >= 0:
                block.input = ""
                chunks.append(_arguments(block.call, piece))
        elif kind == "signature_delta":
            block.signature = text_of(delta.get("signature")) or block.signature
        elif kind == "citations_delta":
            self._cite(block, [delta.get("citation")])

    def _block_stop(self, event: Json, chunks: list[Chunk]) -> None:
        self._close(_index(event), chunks)

    def _close(self, index: int, chunks: list[Chunk]) -> None:
        """The end of a block: what is only known now."""
        block = self._blocks.pop(index, None)
        if block is None:
            return
        if block.call >= 0 and block.input:  # the whole input came with the start; no input at all is {}
            chunks.append(_arguments(block.call, block.input))
        elif block.citations:
            notes = web_citations(block.citations, block.start, self._length)
            if notes:
                chunks.append(Chunk({"annotations": notes}))
        elif block.kind == "thinking" and block.size <= MAX_THINKING_CHARS:
            signed = thinking_block("".join(block.text), block.signature)
            if signed:
                chunks.append(Chunk({"thinking_blocks": signed}))

    def _text(self, piece: str, chunks: list[Chunk]) -> None:
        if piece:
            self._length += len(piece)
            self._given = True
            chunks.append(Chunk({"content": piece}))

    def _think(self, block: _Block | None, piece: str, chunks: list[Chunk]) -> None:
        if not piece:
            return
        chunks.append(Chunk({"reasoning_content": piece}))
        if block is not None:
            block.size += len(piece)
            if block.size <= MAX_THINKING_CHARS:
                block.text.append(piece)
            else:
                block.text.clear()

    def _cite(self, block: _Block, citations: object) -> None:
        if isinstance(citations, list):
            block.citations += citations[: MAX_CITATIONS - len(block.citations)]


_HANDLERS: dict[str, Callable[[AnthropicReader, Json, list[Chunk]], None]] = {
    "content_block_delta": AnthropicReader._block_delta,
    "content_block_start": AnthropicReader._block_start,
    "content_block_stop": AnthropicReader._block_stop,
    "message_start": AnthropicReader._message_start,
    "message_delta": AnthropicReader._message_delta,
    "message_stop": AnthropicReader._message_stop,
}


def _object(value: object) -> Json:
    return value if isinstance(value, dict) else {}


def _index(event: Json) -> int:
    index = event.get("index")
    return index if isinstance(index, int) else -1


def _arguments(call: int, piece: str) -> Chunk:
    return Chunk({"tool_calls": [{"index": call, "function": {"arguments": piece}}]})
