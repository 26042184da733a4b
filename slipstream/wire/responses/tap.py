"""The side tap on a passing Responses stream, and the check of a whole response.

The client speaks this dialect and so does the provider: bytes are relayed as they came. The interface is
``openai_stream.StreamTap``'s; what differs is the dialect. Events carry their names, usage comes with the last event,
and an error is an event of its own (PROTOCOLS.md 1.6, 3.2).

Lifecycle events commit nothing (R9): ``response.created``, ``.in_progress``, ``.queued``, and an item or part that is
added while it is empty. Deltas do, and calls, and the end. The stream is complete with ``response.completed`` or
``response.incomplete`` and not before (R63); ``[DONE]``, which OpenRouter sends after it, is left out.

Most events are deltas and are known by how they begin, so that they need not be decoded. Some providers write their
members in another order (recorded: xAI): then the event is decoded and its ``type`` read.

The rule that must not be broken: an error event, a failed response or a cut stream never looks like a clean end.
"""

from __future__ import annotations

from ..._fast import F_DATA, F_ERROR_FIELD, F_STRAY, SseFramer, SseLimitError
from ...errors import GatewayError, MalformedReply, TransportError, UpstreamError
from ...types import FailureClass
from ..canonical import Json
from ..codec import DecodeError, dumps, loads
from ..openai_errors import read_error_in_200
from ..openai_stream import DONE, MAX_EVENT_BYTES
from ..usage import MAX_TOKENS, Usage
from .errors import error_event, failed_events

_TYPE = b'{"type":"'
_DELTA = b".delta"
_ENDS = frozenset({"response.completed", "response.incomplete"})
_FAILS = frozenset({"error", "response.error", "response.failed", "response.cancelled"})
_ITEMS = frozenset({"response.output_item.added", "response.output_item.done"})
_SHOWS = (".delta", ".partial_image", "_text.done", "_arguments.done", "_input.done", "refusal.done")
"""How the names of events end that hold something for the client to see."""
_QUIET_ITEMS = ("reasoning", "message")
_CODES = {
    "insufficient_quota": (429, FailureClass.QUOTA),
    "context_length_exceeded": (400, FailureClass.CONTEXT),
    "invalid_prompt": (400, FailureClass.CLIENT_ERROR),
    "bio_policy": (400, FailureClass.CONTENT_FILTER),
    "image_content_policy_violation": (400, FailureClass.CONTENT_FILTER),
}
"""Codes of this API that the chat dialect's table does not know (API reference, "The response object": error.code)."""


class ResponsesTap:
    """Reads one upstream stream. ``content_events`` counts deltas (an estimate of tokens, R8)."""

    reads_json = False
    __slots__ = (
        "_committed",
        "_events",
        "_framer",
        "_opening",
        "_provider",
        "content_events",
        "done",
        "failure",
        "finished",
        "usage",
    )

    def __init__(self, provider: str, keep_usage: bool = True, max_event: int = MAX_EVENT_BYTES) -> None:
        """``keep_usage`` is there for the interface: usage is part of the last event and always stays."""
        self._framer = SseFramer(max_event)
        self._provider = provider
        self._committed = False
        self._events = 0
        self._opening = b""
        self.content_events = 0
        self.done = False
        self.finished = False
        self.usage: Usage | None = None
        self.failure: UpstreamError | None = None

    @property
    def committed(self) -> bool:
        """Whether something came that the client must see (R9)."""
        return self._committed or self.content_events > 0 or self.done

    def over(self) -> bool:
        """Whether nothing more is to be read: the stream ended well or it failed."""
        return self.done or self.failure is not None

    def read_usage(self) -> Usage | None:
        """What the provider counted, if it said so yet."""
        return self.usage

    def feed(self, chunk: bytes) -> bytes:
        """Take a transport chunk; return the bytes of complete events to relay (``b""`` when none is complete)."""
        if self.over():
            return b""
        framer = self._framer
        first = last = -1
        try:
            framer.feed(chunk)
            while flags := framer.next():
                if not self._look(flags, whole=True):
                    break
                if first < 0:
                    first = framer.start
                last = framer.end
                if self.done:
                    break
        except SseLimitError:
            self.failure = MalformedReply(f"the provider {self._provider!r} sent an event beyond the size limit")
        return framer.slice(first, last) if first >= 0 else b""

    def end(self) -> bytes:
        """The transport ended cleanly: return what is left to relay, or set ``failure`` if the stream is incomplete."""
        if self.over():
            return b""
        out = self._flush()
        if not self.over():
            self.failure = self._incomplete()
        return out

    def error(self, error: GatewayError) -> bytes:
        """The in-band end of a stream of which something was relayed, numbered on from it (R12)."""
        try:
            response = loads(self._opening)["response"] if self._opening else None
        except (DecodeError, KeyError, TypeError):
            response = None
        if not isinstance(response, dict):
            return error_event(error, self._events)
        try:
            return failed_events(error, response, self._events)
        except TypeError:  # the encoder's: what can be read may be nested too deeply to be written
            return error_event(error, self._events)

    # ------------------------------------------------------------------ one event
    def _flush(self) -> bytes:
        """The last event of a server that forgot the blank line behind it, if it is whole."""
        framer = self._framer
        try:
            flags = framer.flush()
        except SseLimitError:
            return b""
        if not flags & F_DATA or not self._look(flags, whole=False):
            return b""
        name = framer.event().encode()
        head = b"event: " + name + b"\n" if name else b""
        return head + b"data: " + framer.data().replace(b"\n", b"\ndata: ") + b"\n\n"

    def _look(self, flags: int, *, whole: bool) -> bool:
        """Read the current event. True: relay it; False: drop it (then ``failure`` is set). ``whole``: a blank line
        ended it, so a delta need not be decoded to know that."""
        if flags & (F_STRAY | F_ERROR_FIELD):
            self.failure = self._stray(flags)
            return False
        if not flags & F_DATA:
            return True
        data = self._framer.data()
        if whole and data.startswith(_TYPE) and data.endswith(b"}") and data[9 : data.find(b'"', 9)].endswith(_DELTA):
            self.content_events += 1
            self._events += 1
            return True
        return self._decoded(data, whole)

    def _decoded(self, data: bytes, whole: bool) -> bool:
        """An event that decides something, or whose type is not at its beginning."""
        try:
            event = loads(data)
        except DecodeError:
            cut = not whole or data.strip() == DONE  # ``[DONE]`` without a terminal event is no end (R63)
            self.failure = self._incomplete() if cut else self._malformed()
            return False
        if not isinstance(event, dict):
            self.failure = self._malformed()
            return False
        name = event.get("type")
        if not isinstance(name, str):
            name = self._framer.event()
        if name in _FAILS or (not name.startswith("response.") and event.get("error")) or _failed(name, event):
            self._fail(event)
            return False
        self._take(name, event, data)
        return True

    def _take(self, name: str, event: Json, data: bytes) -> None:
        self._events += 1
        if name.endswith(_DELTA.decode()):
            self.content_events += 1
        elif name in _ENDS:
            self.finished = self.done = True
            self.usage = _usage_in(event)
        elif name == "response.created":
            self._opening = data
        elif name in _ITEMS:
            self._committed = self._committed or _has_content(event.get("item"))
        elif name.endswith(_SHOWS):
            self._committed = True

    def _fail(self, event: Json) -> None:
        self.usage = _usage_in(event) or self.usage
        self.failure = _failure(_error_in(event), self._provider)

    def _stray(self, flags: int) -> UpstreamError:
        """A line that is no field: a bare JSON error, an HTML page, or an ``error:`` field (PROTOCOLS.md 1.6)."""
        if flags & F_ERROR_FIELD:
            return read_error_in_200(self._framer.error_field(), provider=self._provider)
        return MalformedReply(f"the provider {self._provider!r} sent something that is not an event stream")

    def _malformed(self) -> MalformedReply:
        return MalformedReply(f"the provider {self._provider!r} sent an event that is not a JSON object")

    def _incomplete(self) -> UpstreamError:
        failure = TransportError(f"the stream of the provider {self._provider!r} ended before it was complete")
        failure.code = "upstream_incomplete"
        return failure


def _failed(name: str, event: Json) -> bool:
    """Whether a last event of success holds a response that failed."""
    response = event.get("response") if name in _ENDS else None
    return isinstance(response, dict) and response.get("status") == "failed"


def _has_content(item: object) -> bool:
    """Whether an item is more than the announcement of text: a call, or text that came whole."""
    if not isinstance(item, dict):
        return False
    if item.get("type") not in _QUIET_ITEMS:
        return True
    return bool(item.get("content") or item.get("summary"))


# ------------------------------------------------------------------ errors


def _error_in(event: Json) -> Json | None:
    """The error of an ``error`` event in either form (see ``errors``), or of the response that failed."""
    response = event.get("response")
    holder = response if isinstance(response, dict) else event
    inner = holder.get("error")
    if isinstance(inner, dict):
        return inner
    if isinstance(inner, str):
        return {"message": inner, "code": holder.get("code")}
    return None if holder is response else {key: event[key] for key in ("code", "message", "param") if key in event}


def _failure(error: Json | None, provider: str) -> UpstreamError:
    """One error object as what it means. Never raises."""
    error = error or {}
    code = error.get("code")
    known = _CODES.get(code) if isinstance(code, str) else None
    if known is None:
        return read_error_in_200(_packed(error), provider=provider)
    status, failure = known
    made = read_error_in_200(_packed({**error, "status_code": status}), provider=provider)
    if made.status == status:  # else there was no message in it, and nothing was read
        made.failure = failure
    return made


def _packed(error: Json) -> bytes:
    try:
        return dumps({"error": error})
    except TypeError:  # the encoder's: what can be read may be nested too deeply to be written
        return b"{}"


# ------------------------------------------------------------------ whole replies and usage


def check_response(body: bytes, provider: str) -> Usage | None:
    """Check a whole 2xx response and return its usage.

    Raises ``UpstreamError`` for an error in disguise or a response that failed, and ``MalformedReply`` for what is not
    a response (R66).
    """
    try:
        value = loads(body)
    except DecodeError:
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not JSON") from None
    if not isinstance(value, dict):
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not a JSON object")
    if value.get("error"):
        error = value["error"]
        raise _failure(error if isinstance(error, dict) else _error_in(value), provider)
    if value.get("status") == "failed":
        raise _failure(None, provider)
    if value.get("object") != "response" or not isinstance(value.get("output"), list):
        raise MalformedReply(f"the provider {provider!r} sent a reply that is not a response with 'output'")
    return read_usage(value.get("usage"))


def _usage_in(event: Json) -> Usage | None:
    response = event.get("response")
    return read_usage(response.get("usage")) if isinstance(response, dict) else None


def read_usage(usage: object) -> Usage | None:
    """A ``usage`` object of this dialect, ``None`` if it has no usable counts. Cached, written and reasoning tokens are
    parts of the totals (PROTOCOLS.md 1.4; R67) and are clamped to them."""
    if not isinstance(usage, dict):
        return None
    given, made = _count(usage, "input_tokens"), _count(usage, "output_tokens")
    if given is None and made is None:
        return None
    given, made = given or 0, made or 0
    inputs, outputs = usage.get("input_tokens_details"), usage.get("output_tokens_details")
    cached = min(_count(inputs, "cached_tokens") or 0, given)
    written = min(_count(inputs, "cache_write_tokens") or 0, given - cached)
    reasoning = min(_count(outputs, "reasoning_tokens") or 0, made)
    return Usage(given - cached - written, cached, written, made - reasoning, reasoning, "provider")


def _count(group: object, name: str) -> int | None:
    value = group.get(name) if isinstance(group, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_TOKENS:
        return None
    return value
