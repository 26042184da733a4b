"""ConverseStream as canonical chunks (PROTOCOLS.md 1.6, 2.5, 4).

Blocks are numbered; only blocks of tools announce themselves, text and reasoning begin with their first delta. After
``messageStop`` comes ``metadata`` with the usage, and there is no end marker: the stream is good when its body ends
after a ``messageStop``.

The rule that must not be broken: nothing but a good end sets ``done``. Damaged or cut frames, exceptions, a body that
is no event stream and one that ends early all set ``failure``.
"""

from __future__ import annotations

from ..._fast import M_BROKEN, M_ERROR, M_EXCEPTION, EventStream
from ...errors import MalformedReply, TransportError, UpstreamError
from ..canonical import Chunk, Json, make_id
from ..codec import DecodeError, loads
from ..usage import Usage
from .errors import MAX_ERROR_BYTES, read_error_frame, read_exception, read_in_200
from .reply import SERVER_CALL, finish_reason, read_citation, read_extra, read_usage, signed_thought, stop_sequence

MAX_FRAME_BYTES = 8 * 1024 * 1024 + 16
"""Frames of this API hold some hundred bytes; the format's own limit is 24 MiB."""
MAX_THOUGHT_CHARS = 16 * 1024 * 1024
"""Reasoning that is kept until its block is signed. No model thinks so much."""
_FRAME_STARTS = (0, 1)
"""First bytes of a length below 32 MiB; JSON and HTML begin with others."""


class _Block:
    """An open block. ``index`` is that of the client's tool call, -1 where it is none."""

    __slots__ = ("empty", "index", "redacted", "signature", "size", "thoughts")

    def __init__(self, index: int = -1) -> None:
        self.index = index
        self.empty = True
        self.thoughts: list[str] = []
        self.size = 0
        self.signature = ""
        self.redacted = ""


class ConverseReader:
    __slots__ = (
        "_blocks",
        "_calls",
        "_length",
        "_other",
        "_provider",
        "_started",
        "_stopped",
        "_stream",
        "created",
        "done",
        "extra",
        "failure",
        "id",
        "model",
        "reads_json",
        "usage",
    )

    def __init__(self, *, provider: str) -> None:
        self._provider = provider
        self._stream = EventStream(MAX_FRAME_BYTES)
        self._blocks: dict[int, _Block] = {}
        self._calls = 0
        self._length = 0  # of the text so far, for citations
        self._other: bytearray | None = None  # the body, where it is no event stream
        self._started = False
        self._stopped = False
        self.reads_json = True
        self.id = self.model = ""
        self.created = 0
        self.usage: Usage | None = None
        self.extra: Json = {}
        self.done = False
        self.failure: UpstreamError | None = None

    def feed(self, data: bytes) -> list[Chunk]:
        if self.done or self.failure is not None or not data:
            return []
        if not self._started:
            self._started = True
            if data[0] not in _FRAME_STARTS:
                self._other = bytearray()
        if self._other is not None:
            self._keep_other(data)
            return []
        out: list[Chunk] = []
        stream = self._stream
        stream.feed(data)
        while self.failure is None and (kind := stream.next()):
            if kind == M_BROKEN:
                self._malformed(f"a damaged stream: {stream.reason}")
            elif kind == M_EXCEPTION:
                self.failure = read_exception(stream.exception_type, stream.payload(), provider=self._provider)
            elif kind == M_ERROR:
                self.failure = read_error_frame(stream.error_code, stream.error_message, provider=self._provider)
            else:
                self._event(stream.event_type, stream.payload(), out)
        return out

    def end(self) -> list[Chunk]:
        if self.done or self.failure is not None:
            return []
        if self._other is not None:
            self.failure = read_in_200(bytes(self._other), provider=self._provider)
        elif self._stopped and not self._stream.pending:
            self.done = True
        else:
            self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
            self.failure.code = "upstream_incomplete"
        return []

    def _keep_other(self, data: bytes) -> None:
        """An error in place of the stream (PROTOCOLS.md 5): it is read when it is whole."""
        assert self._other is not None
        self._other += data
        if len(self._other) > MAX_ERROR_BYTES:
            self._other = bytearray()
            self._malformed("something that is no event stream")

    def _malformed(self, what: str) -> None:
        self.failure = MalformedReply(f"the provider {self._provider!r} sent {what}")

    # ------------------------------------------------------------------ events

    def _event(self, kind: str, payload: bytes, out: list[Chunk]) -> None:
        try:
            value = loads(payload) if payload else None
        except DecodeError:
            self._malformed("an event that is not JSON")
            return
        if kind.endswith("Exception"):  # a relay that lost the type of the frame
            self.failure = read_exception(kind, payload, provider=self._provider)
        elif not isinstance(value, dict) or (self._stopped and kind != "metadata"):
            return
        elif kind == "contentBlockDelta":
            self._delta(value, out)
        elif kind == "contentBlockStart":
            self._start(value, out)
        elif kind == "contentBlockStop":
            block = self._blocks.pop(_index(value), None)
            if block is not None:
                self._close(block, out)
        elif kind == "messageStop":
            self._stop(value, out)
        elif kind == "metadata":
            self.usage = read_usage(value.get("usage")) or self.usage
            self.extra.update(read_extra(value))

    def _start(self, value: Json, out: list[Chunk]) -> None:
        start = value.get("start")
        use = start.get("toolUse") if isinstance(start, dict) else None
        at = _index(value)
        if at in self._blocks:
            return
        if not isinstance(use, dict) or use.get("type") == SERVER_CALL:
            self._blocks[at] = _Block()  # what is in it is Bedrock's own business
            return
        name, call_id = use.get("name"), use.get("toolUseId")
        if not isinstance(name, str) or not name:
            self._malformed("a tool call without a name")
            return
        self._blocks[at] = _Block(self._calls)
        call: Json = {
            "index": self._calls,
            "id": call_id if isinstance(call_id, str) and call_id else make_id("tooluse_"),
            "type": "function",
            "function": {"name": name, "arguments": ""},
        }
        self._calls += 1
        out.append(Chunk({"tool_calls": [call]}))

    def _delta(self, value: Json, out: list[Chunk]) -> None:
        delta = value.get("delta")
        if not isinstance(delta, dict):
            return
        text = delta.get("text")
        if isinstance(text, str):
            if text:
                self._length += len(text)
                out.append(Chunk({"content": text}))
        elif isinstance(delta.get("toolUse"), dict):
            self._arguments(_index(value), delta["toolUse"].get("input"), out)
        elif isinstance(delta.get("reasoningContent"), dict):
            self._think(_index(value), delta["reasoningContent"], out)
        elif isinstance(delta.get("citation"), dict):
            annotation = read_citation(delta["citation"], self._length, self._length)
            if annotation is not None:
                out.append(Chunk({"annotations": [annotation]}))

    def _arguments(self, at: int, piece: object, out: list[Chunk]) -> None:
        block = self._blocks.get(at)
        if block is None:
            self._malformed("arguments of a call that it did not begin")
        elif block.index >= 0 and isinstance(piece, str) and piece:  # the first is often "" (PROTOCOLS.md 2.5)
            block.empty = False
            out.append(_arguments_of(block.index, piece))

    def _think(self, at: int, reasoning: Json, out: list[Chunk]) -> None:
        block = self._blocks.get(at)
        if block is None:
            block = self._blocks[at] = _Block()
        text, signature, redacted = (reasoning.get(name) for name in ("text", "signature", "redactedContent"))
        if isinstance(text, str) and text:
            block.thoughts.append(text)
            out.append(Chunk({"reasoning_content": text}))
        if isinstance(signature, str):
            block.signature += signature
        if isinstance(redacted, str):
            block.redacted += redacted
        block.size += sum(len(piece) for piece in (text, signature, redacted) if isinstance(piece, str))
        if block.size > MAX_THOUGHT_CHARS:
            self._malformed("reasoning without an end")

    def _close(self, block: _Block, out: list[Chunk]) -> None:
        if block.index >= 0 and block.empty:
            out.append(_arguments_of(block.index, "{}"))  # a call without arguments has no other delta than ""
        thought = signed_thought("".join(block.thoughts), block.signature)
        if thought is None and block.redacted:
            thought = {"type": "redacted_thinking", "data": block.redacted}
        if thought is not None:
            out.append(Chunk({"thinking_blocks": [thought]}))

    def _stop(self, value: Json, out: list[Chunk]) -> None:
        for block in self._blocks.values():
            self._close(block, out)
        self._blocks.clear()
        native = value.get("stopReason")
        if not isinstance(native, str) or not native:
            return  # no reason, no end: what follows decides
        self._stopped = True
        self.extra.update(read_extra(value))
        finish = finish_reason(native, calls=self._calls > 0)
        out.append(Chunk({}, 0, finish, native, stop_sequence(value)))


def _arguments_of(index: int, piece: str) -> Chunk:
    return Chunk({"tool_calls": [{"index": index, "function": {"arguments": piece}}]})


def _index(value: Json) -> int:
    index = value.get("contentBlockIndex")
    return index if isinstance(index, int) else 0
