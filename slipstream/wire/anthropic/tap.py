"""The side tap on a passing stream of Anthropic's events, and the check of a whole message.

The same for Messages as ``wire.openai_stream`` is for chat: the bytes of complete events go on as they came, and each
event is looked at on the side (PROTOCOLS.md 2.3). ``message_start`` and ``ping`` are lifecycle and commit nothing (R9);
a content block does, and so does a stop reason, because a refusal has no content. ``message_stop`` and nothing else
ends a stream well: a stop reason without it is a cut stream.

Every event is scanned once, in C: broken JSON and errors in disguise are found there. What kind of event it is says the
``event:`` line; an event without a known one is decoded. Events with usage are decoded too, there are two in a stream.

The rule that must not be broken: an error event is never relayed, it becomes ``failure`` (R15). The engine writes the
one that the client sees.
"""

from __future__ import annotations

import msgspec

from ..._fast import F_DATA, F_ERROR_FIELD, F_STRAY, R_ERROR, R_INVALID, ReplyScan, SseFramer, SseLimitError
from ...errors import GatewayError, MalformedReply, TransportError, UpstreamError
from ..canonical import Json
from ..codec import DecodeError, TypeMismatch, decoder, loads
from ..openai_errors import read_error_in_200
from ..openai_stream import MAX_EVENT_BYTES
from ..usage import Usage
from .errors import error_event
from .failures import read_failure
from .usage import merge, read_usage

_BOM = b"\xef\xbb\xbf"
_KINDS = frozenset(
    {
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
        "error",
    }
)
_DELTA_HEAD = b'{"type":"content_block_delta"'


class MessagesTap:
    """Reads one upstream stream; the face is that of ``StreamTap``. ``usage`` is canonical and cumulative: each count
    is the last that was said. ``keep_usage`` has no effect: a Messages client always gets usage."""

    reads_json = False
    __slots__ = (
        "_begun",
        "_counts",
        "_framer",
        "_provider",
        "_scan",
        "content_events",
        "done",
        "failure",
        "finished",
    )

    def __init__(self, provider: str, keep_usage: bool = True, *, max_event: int = MAX_EVENT_BYTES) -> None:
        self._framer = SseFramer(max_event)
        self._scan = ReplyScan()
        self._provider = provider
        self._begun = False
        self._counts: Json = {}
        self.content_events = 0
        self.done = False
        self.finished = False
        self.failure: UpstreamError | None = None

    @property
    def committed(self) -> bool:
        """Whether something came that the client must see: a content block, a stop reason or the end (R9)."""
        return self._begun or self.finished or self.done

    @property
    def usage(self) -> Usage | None:
        return read_usage(self._counts)

    def error(self, error: GatewayError) -> bytes:
        """The in-band error, which is also the last event."""
        return error_event(error)

    def read_usage(self) -> Usage | None:
        """What the provider counted so far; ``None`` if it said nothing."""
        return read_usage(self._counts)

    def over(self) -> bool:
        """Whether nothing more is to be read: the stream ended well or it failed."""
        return self.done or self.failure is not None

    def feed(self, chunk: bytes) -> bytes:
        """Take a transport chunk; return the bytes of complete events to relay (``b""`` when none is complete)."""
        if self.over():
            return b""
        framer = self._framer
        first = last = -1
        try:
            framer.feed(chunk)
            while flags := framer.next():
                if not self._look(flags):
                    break
                if first < 0:
                    first = framer.start
                last = framer.end
                if self.done:
                    break
        except SseLimitError:  # what was complete before it is relayed all the same
            self._too_large()
        return framer.slice(first, last) if first >= 0 else b""

    def end(self) -> bytes:
        """The transport ended cleanly: return what is left to relay, or set ``failure`` if the stream is incomplete."""
        if self.over():
            return b""
        try:
            out = self._flush()
        except SseLimitError:
            out = b""
            self._too_large()
        if not self.over():
            self.failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
            self.failure.code = "upstream_incomplete"
        return out

    def _flush(self) -> bytes:
        """The last event of a server that forgot the blank line behind it."""
        framer = self._framer
        flags = framer.flush()
        if not flags or not self._look(flags) or not flags & F_DATA:
            return b""
        raw = framer.slice(framer.start, framer.end)
        return raw + (b"\n" if raw.endswith((b"\n", b"\r")) else b"\n\n")

    def _look(self, flags: int) -> bool:
        """Read the current event. True: relay it; False: ``failure`` is set."""
        framer = self._framer
        if flags & (F_STRAY | F_ERROR_FIELD):
            self.failure = self._stray(flags)
            return False
        if not flags & F_DATA:
            return True
        data = framer.data()
        found = self._scan.scan(data)
        if found & R_INVALID:
            self.failure = MalformedReply(f"the provider {self._provider!r} sent an event that is not JSON")
            return False
        kind = framer.event()
        if found & R_ERROR or kind == "error":
            self.failure = read_failure(_decode(data), data, provider=self._provider)
            return False
        if kind == "content_block_delta" or data.startswith(_DELTA_HEAD):
            self._begun = True
            self.content_events += 1
            return True
        return self._lifecycle(kind, data)

    def _lifecycle(self, kind: str, data: bytes) -> bool:
        """An event other than a delta, or one whose name says nothing."""
        if kind in ("ping", "content_block_stop"):
            return True
        value = _decode(data)
        if kind not in _KINDS:
            named = value.get("type")
            kind = named if isinstance(named, str) else ""
        if kind == "error":
            self.failure = read_failure(value, data, provider=self._provider)
            return False
        if kind == "content_block_start":
            self._begun = True
        elif kind == "content_block_delta":
            self._begun = True
            self.content_events += 1
        elif kind == "message_start":
            message = value.get("message")
            self._counts = merge(self._counts, message.get("usage") if isinstance(message, dict) else None)
        elif kind == "message_delta":
            self._counts = merge(self._counts, value.get("usage"))
            delta = value.get("delta")
            if isinstance(delta, dict) and isinstance(delta.get("stop_reason"), str):
                self.finished = True
        elif kind == "message_stop":
            self.done = True
        return True

    def _too_large(self) -> None:
        self.failure = MalformedReply(f"the provider {self._provider!r} sent an event beyond the size limit")

    def _stray(self, flags: int) -> UpstreamError:
        """A line that is no field: a bare JSON error, an HTML page (PROTOCOLS.md 1.6)."""
        if flags & F_ERROR_FIELD:
            return read_error_in_200(self._framer.error_field(), provider=self._provider)
        return MalformedReply(f"the provider {self._provider!r} sent something that is not an event stream")


def _decode(data: bytes) -> Json:
    """A JSON object that the scan has passed; empty where the two decoders disagree (depth)."""
    try:
        value = loads(data.removeprefix(_BOM))
    except DecodeError:
        return {}
    return value if isinstance(value, dict) else {}


class _Message(msgspec.Struct, gc=False):
    """What must be right in a whole message; its content is not decoded."""

    type: str
    content: list[msgspec.Raw]
    usage: msgspec.Raw = msgspec.Raw()


_read = decoder(_Message)


def check_message(body: bytes, provider: str) -> Usage | None:
    """Check a whole 2xx reply and return what was counted for it, if it says so.

    Raises ``UpstreamError`` when it is an error in disguise and ``MalformedReply`` when it is no message (R66).
    """
    body = body.removeprefix(_BOM)
    try:
        message = _read(body)
    except TypeMismatch:
        raise _not_a_message(body, provider) from None
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    if message.type != "message":
        raise _not_a_message(body, provider)
    return read_usage(_decode(bytes(message.usage))) if message.usage else None


def check_count(body: bytes, provider: str) -> None:
    """Check a whole answer of ``POST /v1/messages/count_tokens`` (#59a11748). Raises like ``check_message``; to count
    costs no tokens."""
    try:
        value = loads(body.removeprefix(_BOM))
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    count = value.get("input_tokens") if isinstance(value, dict) else None
    if not isinstance(count, int):
        raise _not_a_message(body, provider)


def _not_a_message(body: bytes, provider: str) -> UpstreamError:
    try:
        value = loads(body)
    except DecodeError:  # the two libraries do not refuse the same
        value = None
    if isinstance(value, dict) and value.get("error") is not None:
        return read_failure(value, body, provider=provider)
    return MalformedReply(f"the provider {provider!r} sent a reply that is not what was asked for")
