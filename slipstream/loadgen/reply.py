"""Whether a reply says what a good one says, read as it passes: no body is kept that is not needed. Pure.

A 200 is not a success yet: LLM APIs put errors into whole bodies and into streams, and a broken upstream ends early.
One reader is made per connection and reset per request. ``feed`` tells when the first content has come (for TTFT),
``fault`` gives the code of what was wrong with a 2xx, or ``""``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

from ..wire.codec import DecodeError, loads

ERROR = "error_body"
"""A 200 that holds an error."""
MALFORMED = "malformed"
"""A 200 whose body is not what it claims to be."""
INCOMPLETE = "incomplete"
"""A stream that ended without its terminal event."""

EDGE_BYTES = 64
"""Kept of both ends of a body; no error marker is longer."""
MAX_EVENT_BYTES = 1 << 20
"""An event that is longer than this is content, whatever it holds."""

_ERROR = rb'\{\s*"error"\s*:\s*[^\sn]'
"""An object that begins with an error which is not null."""
_ERROR_BODY = re.compile(rb"\s*" + _ERROR)
_ERROR_EVENT = re.compile(rb"[\r\n](?:(?:data:\s*)?" + _ERROR + rb"|event:\s*error)")
_CONTENT = ("content", "reasoning_content", "reasoning", "tool_calls", "refusal", "text")


class Reading(Protocol):
    """One kind of reply. ``provider`` and ``cost_usd`` are what the body said, if it says such things."""

    provider: str
    cost_usd: float

    def reset(self) -> None: ...

    def feed(self, data: bytes) -> bool: ...

    def fault(self) -> str: ...


class Whole:
    """A whole JSON body: looked at from both ends only, so that a megabyte costs what a kilobyte does."""

    provider = ""
    cost_usd = 0.0
    __slots__ = ("_head", "_tail")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._head = b""
        self._tail = b""

    def feed(self, data: bytes) -> bool:
        if len(self._head) < EDGE_BYTES:
            self._head += data[:EDGE_BYTES]
        self._tail = (self._tail + data)[-EDGE_BYTES:] if len(data) < EDGE_BYTES else data[-EDGE_BYTES:]
        return False

    def fault(self) -> str:
        if self._head.lstrip()[:1] != b"{" or self._tail.rstrip()[-1:] != b"}":
            return MALFORMED
        return ERROR if _ERROR_BODY.match(self._head) else ""


class Infer:
    """The answer of ``/v1/infer``, which says who answered and what it cost."""

    __slots__ = ("_parts", "cost_usd", "provider")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._parts: list[bytes] = []
        self.provider = ""
        self.cost_usd = 0.0

    def feed(self, data: bytes) -> bool:
        self._parts.append(data)
        return False

    def fault(self) -> str:
        try:
            answer = loads(b"".join(self._parts))
        except DecodeError:
            return MALFORMED
        if not isinstance(answer, dict) or "text" not in answer:
            return MALFORMED
        cost, provider = answer.get("cost_usd"), answer.get("provider")
        self.cost_usd = float(cost) if isinstance(cost, (int, float)) else 0.0
        self.provider = provider if isinstance(provider, str) else ""
        return ""


class Stream:
    """Server-sent events. Decoded up to the first content; after it, only errors and the end are looked for."""

    provider = ""
    cost_usd = 0.0
    __slots__ = ("_broken", "_buffer", "_done_wanted", "_error", "_reading_on", "_tail")

    def __init__(self, done_wanted: bool = True) -> None:
        self._done_wanted = done_wanted
        self.reset()

    def reset(self) -> None:
        self._buffer = b""
        self._tail = b"\n"
        self._reading_on = True
        self._broken = self._error = False

    def feed(self, data: bytes) -> bool:
        window = self._tail + data
        if b"error" in window and _ERROR_EVENT.search(window):
            self._error = True
        self._tail = window[-EDGE_BYTES:]
        return self._reading_on and self._first_content(data)

    def _first_content(self, data: bytes) -> bool:
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        if any(map(self._has_content, lines)) or len(self._buffer) > MAX_EVENT_BYTES:
            self._reading_on = False
            self._buffer = b""
            return True
        return False

    def _has_content(self, line: bytes) -> bool:
        payload = line[5:].strip() if line.startswith(b"data:") else b""
        if not payload or payload == b"[DONE]":
            return False
        try:
            event = loads(payload)
        except DecodeError:
            self._broken = True
            return False
        return isinstance(event, dict) and event.get("error") is None and _carries(event)

    def fault(self) -> str:
        if self._error:
            return ERROR
        if self._broken:
            return MALFORMED
        return INCOMPLETE if self._done_wanted and b"data: [DONE]" not in self._tail else ""


def _carries(event: dict[str, Any]) -> bool:
    """Whether a chunk carries something for the user: not the role alone, not usage. Other dialects' events do."""
    choices = event.get("choices")
    if not isinstance(choices, list):
        return True
    for choice in choices:
        delta = (choice.get("delta") or choice) if isinstance(choice, dict) else {}
        if any(delta.get(field) for field in _CONTENT):
            return True
    return False


def reader(endpoint: str, stream: bool) -> Callable[[], Reading]:
    """The maker of readers for an endpoint's replies."""
    if stream:
        return lambda: Stream(done_wanted=endpoint == "chat")
    return Infer if endpoint == "infer" else Whole
