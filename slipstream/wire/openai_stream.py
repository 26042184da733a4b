"""The side tap on a passing stream of the OpenAI family, and the check of a whole reply.

A stream whose ends speak the same dialect is relayed as the bytes that came; this module looks at each event on the
side and says: what may go to the client now, whether content has begun, what the usage is, whether it ended well.

Only complete events leave ``feed``, so that an error event of ours can follow at any time. Dropped are: a usage chunk
that the client did not ask for (R68) and whatever follows ``[DONE]``. An event that is not a chunk of the dialect
(broken JSON, an error object, a bare line, an ``error:`` field) ends the stream: it sets ``failure`` and nothing after
it is looked at.

A stream is complete when ``[DONE]`` came, or when a finish reason came and the transport then ended cleanly (R63, S-35:
some servers forget ``[DONE]``; we add it). Anything else is a cut stream, never a clean end.
"""

from __future__ import annotations

from .._fast import (
    F_DATA,
    F_ERROR_FIELD,
    F_LIMIT,
    F_STRAY,
    R_CHOICES,
    R_CONTENT,
    R_DATA,
    R_ERROR,
    R_FINISH,
    R_INVALID,
    R_USAGE,
    ReplyScan,
    SseFramer,
)
from ..errors import GatewayError, MalformedReply, TransportError, UpstreamError
from ..types import Endpoint
from .openai_errors import error_event, read_error_in_200
from .usage import Usage, read_openai_usage

VECTORS = Endpoint.EMBEDDINGS
DONE = b"[DONE]"
DONE_EVENT = b"data: [DONE]\n\n"
MAX_EVENT_BYTES = 8 * 1024 * 1024


class StreamTap:
    """Reads one upstream stream. ``content_events`` counts events with content (an estimate of tokens, R8)."""

    reads_json = False
    __slots__ = (
        "_framer",
        "_keep_usage",
        "_provider",
        "_scan",
        "content_events",
        "done",
        "failure",
        "finished",
        "usage",
    )

    def __init__(self, *, provider: str, keep_usage: bool, max_event: int = MAX_EVENT_BYTES) -> None:
        self._framer = SseFramer(max_event)
        self._scan = ReplyScan()
        self._provider = provider
        self._keep_usage = keep_usage
        self.content_events = 0
        self.done = False
        self.finished = False
        self.usage: bytes | None = None
        self.failure: UpstreamError | None = None

    @property
    def committed(self) -> bool:
        """Whether something came that the client must see: content, a finish reason or the end (R9)."""
        return self.content_events > 0 or self.finished or self.done

    def read_usage(self) -> Usage | None:
        """What the stream said was used; ``None`` if it said nothing usable."""
        return None if self.usage is None else read_openai_usage(self.usage)

    def error(self, error: GatewayError) -> bytes:
        """The in-band error. No ``[DONE]`` follows it: clients take that for success."""
        return error_event(error)

    def over(self) -> bool:
        """Whether nothing more is to be read: the stream ended well or it failed."""
        return self.done or self.failure is not None

    def feed(self, chunk: bytes) -> bytes:
        """Take a transport chunk; return the bytes of complete events to relay (``b""`` when none is complete)."""
        if self.done or self.failure is not None:
            return b""
        framer = self._framer
        framer.feed(chunk)
        flags = framer.ordinary(self._scan)
        if flags:
            return self._drain(flags)
        if framer.run_start < 0:
            return b""
        self.content_events += framer.run_content
        if framer.run_finish:
            self.finished = True
        return framer.slice(framer.run_start, framer.run_end)

    def end(self) -> bytes:
        """The transport ended cleanly: return what is left to relay, or set ``failure`` if the stream is incomplete."""
        if self.over():
            return b""
        out = self._flush()
        if self.over():
            return out
        if self.finished:
            self.done = True
            return out + DONE_EVENT
        self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
        self.failure.code = "upstream_incomplete"
        return out

    def _flush(self) -> bytes:
        """The last event of a server that forgot the blank line behind it."""
        flags = self._framer.flush()
        if not flags or not self._look(flags) or not flags & F_DATA:
            return b""
        return b"data: " + self._framer.data().replace(b"\n", b"\ndata: ") + b"\n\n"

    def _drain(self, flags: int) -> bytes:
        """Relay what is complete, where an event needs a second look (``flags``: the first). Spans between dropped
        events are joined, mostly there is just one."""
        framer = self._framer
        parts: list[bytes] = []
        first = last = -1
        while True:
            if framer.run_start >= 0:
                if first < 0:
                    first = framer.run_start
                last = framer.run_end
                self.content_events += framer.run_content
                if framer.run_finish:
                    self.finished = True
            if not flags:
                break
            if flags == F_LIMIT:  # what was complete before it is relayed all the same
                self.failure = MalformedReply(f"the provider {self._provider!r} sent an event beyond the size limit")
                break
            if self._look(flags):
                if first < 0:
                    first = framer.start
                last = framer.end
            elif first >= 0:
                parts.append(framer.slice(first, last))
                first = -1
            if self.over():
                break
            flags = framer.ordinary(self._scan)
        if first >= 0:
            if not parts:
                return framer.slice(first, last)
            parts.append(framer.slice(first, last))
        return b"".join(parts)

    def _look(self, flags: int) -> bool:
        """Read the current event. True: relay it; False: drop it (and maybe ``failure`` is set)."""
        if flags & (F_STRAY | F_ERROR_FIELD):
            self.failure = self._stray(flags)
            return False
        if not flags & F_DATA:
            return True
        data = self._framer.data()
        found = self._scan.scan(data)
        if found & R_INVALID:
            if data.strip() == DONE:
                self.done = True
                return True
            self.failure = MalformedReply(f"the provider {self._provider!r} sent an event that is not JSON")
            return False
        if found & R_ERROR:
            self.failure = read_error_in_200(data, provider=self._provider)
            return False
        if found & R_CONTENT:
            self.content_events += 1
        if found & R_FINISH:
            self.finished = True
        if found & R_USAGE:
            self.usage = data[self._scan.usage_start : self._scan.usage_end]
            if self._scan.n_choices == 0 and found & R_CHOICES and not self._keep_usage:
                return False
        return True

    def _stray(self, flags: int) -> UpstreamError:
        """A line that is no field: a bare JSON error, an HTML page, or llama-box's ``error:`` field (PROTOCOLS.md
        1.6).
        """
        if flags & F_ERROR_FIELD:
            return read_error_in_200(self._framer.error_field(), provider=self._provider)
        return MalformedReply(f"the provider {self._provider!r} sent something that is not an event stream")


def check_reply(endpoint: Endpoint, body: bytes, provider: str) -> ReplyScan:
    """Check a whole 2xx reply; what was found is for ``reply_usage``.

    Raises ``UpstreamError`` when the reply is an error in disguise (OpenRouter answers 200 with an error body) and
    ``MalformedReply`` when it is not what the endpoint promises (R66).
    """
    scan = ReplyScan()
    found = scan.scan(body)
    if found & R_INVALID:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON")
    wanted = R_DATA if endpoint is VECTORS else R_CHOICES
    if found & R_ERROR and (not found & wanted or (wanted == R_CHOICES and not found & R_CONTENT)):
        raise read_error_in_200(body, provider=provider)
    if not found & wanted:
        missing = "data" if wanted == R_DATA else "choices"
        raise MalformedReply(f"the provider {provider!r} sent a reply without {missing!r}")
    return scan


def reply_usage(scan: ReplyScan, body: bytes) -> Usage | None:
    """The usage that a reply which was found good speaks of, if any. Apart from ``check_reply``: no client waits for
    it."""
    return read_openai_usage(body, scan.usage_start, scan.usage_end) if scan.usage_start >= 0 else None
