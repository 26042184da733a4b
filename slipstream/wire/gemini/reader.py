"""A Gemini stream, read into canonical chunks (PROTOCOLS.md 1.6, 2.4, 5).

The first byte that is not blank tells the framing: ``[`` a JSON array, ``{`` a JSON document (an error under status
200), anything else an event stream. In the latter, bare JSON between the events is an error of Google's, not noise.

A finish reason does not end the stream: old servers repeat it on every event, usage and citations come with or after
it. So it is kept, and told once, at the end of the body. A body that ends without one, or without the reason why the
prompt was blocked, was cut (R63).
"""

from __future__ import annotations

from typing import Any

from ..._fast import F_DATA, F_ERROR_FIELD, F_STRAY, SseFramer, SseLimitError
from ...errors import MalformedReply, TransportError, UpstreamError
from ..canonical import Chunk, Json
from ..codec import DecodeError, loads
from ..openai_errors import read_error_in_200
from ..openai_stream import DONE, MAX_EVENT_BYTES
from ..usage import Usage
from .errors import error_in, error_in_200
from .framing import JsonSplitter
from .reply import (
    MAX_INDEX,
    Candidate,
    blocked,
    has_counts,
    index_of,
    is_answer,
    read_created,
    read_logprobs,
    read_usage,
)

_BLANKS = b" \t\r\n\xef\xbb\xbf"
_MAX_BLANKS = 1024


class GeminiReader:
    """Reads one stream (``canonical.StreamReader``)."""

    __slots__ = (
        "_blocked",
        "_candidates",
        "_lead",
        "_provider",
        "_said",
        "_splitter",
        "_sse",
        "_strange",
        "created",
        "done",
        "extra",
        "failure",
        "id",
        "model",
        "reads_json",
    )

    def __init__(self, *, provider: str) -> None:
        self._provider = provider
        self._lead = b""
        self._sse: SseFramer | None = None
        self._splitter: JsonSplitter | None = None
        self._candidates: dict[int, Candidate] = {}
        self._blocked: str | None = None
        self._said: Json | None = None
        self._strange = False
        self.reads_json = True
        self.id = ""
        self.model = ""
        self.created = 0
        self.extra: Json = {}
        self.done = False
        self.failure: UpstreamError | None = None

    @property
    def usage(self) -> Usage | None:
        """What was said last, for it is cumulative (PROTOCOLS.md 1.4, 2.4). Every event says it, so it is read when
        it is asked for."""
        return read_usage(self._said)

    def feed(self, data: bytes) -> list[Chunk]:
        """Take a piece of the body. Never raises."""
        out: list[Chunk] = []
        if self.done or self.failure is not None:
            return out
        if self._sse is not None:
            self._feed_events(self._sse, data, out)
        elif self._splitter is not None:
            self._feed_array(self._splitter, data, out)
        else:
            self._sniff(data, out)
        return out

    def end(self) -> list[Chunk]:
        """The body ended cleanly: sets ``done`` or ``failure``."""
        out: list[Chunk] = []
        if self.done or self.failure is not None:
            return out
        if self._sse is not None:
            self._flush(self._sse, out)
        elif self._splitter is not None and self._splitter.pending:
            self._cut()
        if self.failure is None:
            self._finish(out)
        return out

    # ------------------------------------------------------------------ framing
    def _sniff(self, data: bytes, out: list[Chunk]) -> None:
        lead = self._lead + data
        begun = lead.lstrip(_BLANKS)
        if not begun:
            self._lead = lead if len(lead) <= _MAX_BLANKS else b""
            return
        self._lead = b""
        if begun[:1] in (b"[", b"{"):
            self._splitter = JsonSplitter(MAX_EVENT_BYTES)
            self._feed_array(self._splitter, begun, out)
        else:
            self._sse = SseFramer(MAX_EVENT_BYTES)
            self._feed_events(self._sse, lead, out)

    def _feed_array(self, splitter: JsonSplitter, data: bytes, out: list[Chunk]) -> None:
        found, good = splitter.feed(data)
        for element in found:
            if self.failure is None:
                self._event(element, out)
        if not good and self.failure is None:
            self._malformed("something that is not a stream of JSON objects")

    def _feed_events(self, framer: SseFramer, data: bytes, out: list[Chunk]) -> None:
        try:
            framer.feed(data)
            while self.failure is None:
                flags = framer.next()
                if not flags:
                    return
                self._block(framer, flags, out)
        except SseLimitError:
            self._malformed("an event beyond the size limit")

    def _flush(self, framer: SseFramer, out: list[Chunk]) -> None:
        """The last event of a server that forgot the blank line behind it, if it is whole."""
        try:
            flags = framer.flush()
        except SseLimitError:
            flags = 0
        if not flags:
            return
        self._block(framer, flags, out)
        if isinstance(self.failure, MalformedReply):
            self._cut()

    def _block(self, framer: SseFramer, flags: int, out: list[Chunk]) -> None:
        if flags & F_DATA:
            data = framer.data()
            if data and data != DONE:  # some proxies add OpenAI's end; ours is the end of the body
                self._event(data, out)
        if flags & F_ERROR_FIELD and self.failure is None:
            self.failure = read_error_in_200(framer.error_field(), provider=self._provider)
        if flags & F_STRAY and self.failure is None:
            raw = framer.slice(framer.start, framer.end)
            self._event(raw[max(0, raw.find(framer.stray())) :], out)

    # ------------------------------------------------------------------ events
    def _event(self, data: bytes, out: list[Chunk]) -> None:
        try:
            value = loads(data)
        except DecodeError:
            self._malformed("an event that is not JSON")
            return
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if not isinstance(value, dict):
            self._malformed("an event that is not an object")
        elif "error" in value and error_in(value) is not None:
            self.failure = error_in_200(value, provider=self._provider)
        else:
            try:
                self._take(value, out)
            except TypeError:  # the encoder's: what is read may be nested deeper than what can be written
                self._malformed("an event that is nested too deep")

    def _take(self, value: Json, out: list[Chunk]) -> None:
        candidates = value.get("candidates")
        self._strange = self._strange or (candidates is None and not is_answer(value))
        self._describe(value)
        if isinstance(candidates, list):
            for position, one in enumerate(candidates[:MAX_INDEX]):
                if isinstance(one, dict):
                    self._candidate(one, index_of(one, position), out)
        if "promptFeedback" in value:
            self._blocked = self._blocked or blocked(value)

    def _describe(self, value: Json) -> None:
        """What is said of the whole answer."""
        said = value.get("usageMetadata")
        if has_counts(said):
            self._said = said
        if not self.id:
            self.id = _text(value.get("responseId"))
        if not self.model:
            self.model = _text(value.get("modelVersion"))
        if not self.created:
            self.created = read_created(value.get("createTime"))

    def _candidate(self, value: Json, index: int, out: list[Chunk]) -> None:
        candidate = self._candidates.get(index)
        if candidate is None:
            candidate = self._candidates[index] = Candidate(index)
        chunks = [Chunk(delta, index) for delta in candidate.deltas(value)]
        logprobs = read_logprobs(value) if "logprobsResult" in value else None
        if logprobs is not None:
            if not chunks:
                chunks.append(Chunk({}, index))
            chunks[-1].logprobs = logprobs
        out += chunks

    # ------------------------------------------------------------------ the end
    def _finish(self, out: list[Chunk]) -> None:
        if not self._candidates and self._blocked is not None:
            out.append(Chunk({}, 0, "content_filter", self._blocked))
            self.done = True
            return
        ended = [self._candidates[index] for index in sorted(self._candidates)]
        if not ended and self._strange:
            self._malformed("a stream that has nothing of an answer")
            return
        if not ended or any(candidate.native is None for candidate in ended):
            self._cut()
            return
        for candidate in ended:
            annotations = candidate.annotations()
            if annotations:
                out.append(Chunk({"annotations": annotations}, candidate.index))
            out.append(Chunk({}, candidate.index, candidate.finish, candidate.native))
        self.done = True

    def _cut(self) -> None:
        self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
        self.failure.code = "upstream_incomplete"

    def _malformed(self, what: str) -> None:
        self.failure = MalformedReply(f"the provider {self._provider!r} sent {what}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
