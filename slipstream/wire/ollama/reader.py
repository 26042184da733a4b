"""Ollama's streams: NDJSON, one object per line, cut anywhere by the transport (PROTOCOLS.md 2.7).

The line with ``done: true`` ends a good stream; a line ``{"error": ...}`` ends a bad one (1.6). A body that just ends
is a cut stream, also when what is left of its last line is no JSON. The last line may lack its line feed.

The rule that must not be broken: nothing after the end, good or bad, is looked at, and a line that does not end costs
at most ``MAX_LINE_BYTES``.
"""

from __future__ import annotations

from ...errors import MalformedReply, TransportError, UpstreamError
from ..canonical import Chunk, Json
from ..codec import DecodeError, loads
from ..openai_stream import MAX_EVENT_BYTES
from ..usage import Usage
from .reply import decode, finish_reason, logprobs, string, tool_calls, unix_seconds, usage

MAX_LINE_BYTES = MAX_EVENT_BYTES
"""A line is what an event is elsewhere."""


class ChatReader:
    """Reads one stream of ``/api/chat``."""

    __slots__ = (
        "_calls",
        "_held",
        "_ids",
        "_max_line",
        "_parts",
        "_provider",
        "created",
        "done",
        "extra",
        "failure",
        "id",
        "model",
        "reads_json",
        "usage",
    )

    def __init__(self, *, provider: str, max_line: int = MAX_LINE_BYTES) -> None:
        self._provider = provider
        self._max_line = max_line
        self._parts: list[bytes] = []
        """The beginning of a line whose end has not come."""
        self._held = 0
        self._calls = 0
        self._ids: set[str] = set()
        self.reads_json = True
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
        lines = data.split(b"\n")
        rest = lines.pop()
        if lines:
            lines[0] = self._joined(lines[0])
            for line in lines:
                if not self._take(line, chunks):
                    return chunks
        self._hold(rest)
        return chunks

    def end(self) -> list[Chunk]:
        """The body ended cleanly: sets ``done`` or ``failure``."""
        chunks: list[Chunk] = []
        if self._over():
            return chunks
        rest = self._joined(b"")
        if rest.strip() and _is_json(rest):
            self._take(rest, chunks)
        if not self._over():
            self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
            self.failure.code = "upstream_incomplete"
        return chunks

    def _over(self) -> bool:
        return self.done or self.failure is not None

    def _joined(self, end: bytes) -> bytes:
        if not self._parts:
            return end
        self._parts.append(end)
        line = b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        return line

    def _hold(self, rest: bytes) -> None:
        if not rest:
            return
        self._held += len(rest)
        self._parts.append(rest)
        if self._held > self._max_line:
            self._refuse_long()

    def _refuse_long(self) -> None:
        self._parts.clear()
        self.failure = MalformedReply(f"the provider {self._provider!r} sent a line beyond the size limit")

    def _take(self, line: bytes, chunks: list[Chunk]) -> bool:
        """Read one line into ``chunks``. False: nothing is to be read after it."""
        if len(line) > self._max_line:
            self._refuse_long()
            return False
        if not line or line.isspace():
            return True
        try:
            self._read(decode(line, self._provider), chunks)
        except UpstreamError as error:
            self.failure = error
        return not self._over()

    def _read(self, line: Json, chunks: list[Chunk]) -> None:
        if not self.model:
            self.model = string(line.get("model"))
            self.created = unix_seconds(line.get("created_at"))
        first = len(chunks)
        message = line.get("message")
        if isinstance(message, dict):
            self._read_message(message, chunks)
        if line.get("done") is True:
            finish, native = finish_reason(line, self._calls > 0)
            chunks.append(Chunk({}, finish_reason=finish, native_finish=native or None))
            self.usage = usage(line) or self.usage
            self.done = True
        if "logprobs" in line and len(chunks) > first:
            chunks[first].logprobs = logprobs(line)

    def _read_message(self, message: Json, chunks: list[Chunk]) -> None:
        """One chunk per kind of content, in the order in which a model makes them."""
        thinking = message.get("thinking")
        if thinking and isinstance(thinking, str):
            chunks.append(Chunk({"reasoning_content": thinking}))
        content = message.get("content")
        if content and isinstance(content, str):
            chunks.append(Chunk({"content": content}))
        if message.get("tool_calls"):
            calls = tool_calls(message, self._calls, self._ids, self._provider)
            if calls:
                self._calls += len(calls)
                self._ids.update(call["id"] for call in calls)
                chunks.append(Chunk({"tool_calls": calls}))


def _is_json(line: bytes) -> bool:
    try:
        loads(line)
    except DecodeError:
        return False
    return True
