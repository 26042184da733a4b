"""What the mock does with a request: a pure decision, executed by ``app``.

``Behaviour.plan`` turns a request into a ``Plan``: how long to wait and a ``Script``, which says byte for byte what is
sent and how the connection ends. Nothing here does I/O or reads a clock, so each fault is tested as a value.

The rule that must not be broken: one element of ``Script.content`` is one completion token. A relay that counts the
chunks it passed on must come to the same number as the ledger.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from itertools import islice
from typing import Any

from ..errors import ClientError, GatewayError
from ..wire.codec import dumps
from . import faults, replies, requests
from .faults import Fault
from .requests import CHAT, COMPLETIONS, EMBEDDINGS, MODELS, Call, count_tokens
from .settings import LogNormal, MockSettings

__all__ = [
    "CHAT",
    "COMPLETIONS",
    "CONTENT_BEFORE_FAULT",
    "EMBEDDINGS",
    "MODELS",
    "Behaviour",
    "Ending",
    "Fault",
    "LogNormal",
    "MockSettings",
    "Plan",
    "Script",
    "count_tokens",
]

CONTENT_BEFORE_FAULT = 3
"""Content chunks that go out before a fault in mid-stream."""

MAX_MODEL_CHARS = 256
"""Of a model name, what the ledger keeps."""

FLOOD_BURST = 64
"""Events per write of a flood: the mock must not be the slow side."""

SLOW_FACTOR = 10
SLOW_FLOOR_MS = 100.0
"""``slow`` is slow also on a mock without latency."""

_JSON: Mapping[str, str] = {"content-type": "application/json"}
_SSE: Mapping[str, str] = {"content-type": "text/event-stream; charset=utf-8", "cache-control": "no-cache"}
_HTML: Mapping[str, str] = {"content-type": "text/html; charset=utf-8"}
_BROKEN_EVENT = b'data: {"id":"chatcmpl-broken","choices":[{"index":0,"del\n\n'
_ID_PREFIX = {CHAT: "chatcmpl-", COMPLETIONS: "cmpl-"}


class Ending(Enum):
    """How an answer ends, after its last byte."""

    COMPLETE = "the body is complete and the connection stays"
    CLOSE = "the body is complete, then the connection closes"
    CUT = "the connection closes (FIN) in the middle of the body"
    RESET = "the connection is reset (RST)"
    STALL = "nothing more, for ever"


@dataclass(frozen=True, slots=True)
class Script:
    """What is sent: ``lead``, then ``content`` token by token, then ``tail``.

    ``status`` 0: not even headers. ``length`` is the announced Content-Length, ``None`` means chunked. ``tokens`` are
    counted when everything was written (a body that is not streamed), besides one per element of ``content``.
    """

    status: int
    headers: Mapping[str, str]
    lead: bytes = b""
    content: Iterable[bytes] = ()
    tail: bytes = b""
    ending: Ending = Ending.COMPLETE
    length: int | None = None
    tokens: int = 0
    burst: int = 1
    paced: bool = True
    drip: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision about one request. ``body`` is what the request held, for the request log."""

    ident: str
    model: str
    stream: bool
    prompt_tokens: int
    fault: str | None
    delay_s: float
    script: Script
    body: Any = None


class Behaviour:
    """One mock provider's decisions. State: three random generators, apart from one another so that a different error
    rate does not change the ids or the latencies that a seed gives."""

    def __init__(self, settings: MockSettings) -> None:
        self.settings = settings
        seed = settings.seed if settings.seed is not None else random.SystemRandom().getrandbits(64)
        self._ids, self._latencies, self._errors = (random.Random(f"{seed}/{use}") for use in "iel")
        self._latency_ms = LogNormal.fit(settings.mean_latency_ms, settings.p95_latency_ms)

    def latency_ms(self) -> float:
        """Draw the latency of one answer."""
        return self._latency_ms.sample(self._latencies)

    def plan(self, endpoint: str, raw: bytes, fault_header: str | None, created: int) -> Plan:
        """Decide about a POST to ``endpoint``. Never raises: what is wrong with the request becomes the answer."""
        ident = f"{self._ids.getrandbits(96):024x}"
        model, fault, body, call = "", None, None, None
        try:
            body = requests.parse_body(raw)
            name = body.get("model")
            model = name if isinstance(name, str) else ""
            fault = faults.requested_fault(fault_header, model)
            requests.model_of(body, self.settings)
            call = requests.read_call(endpoint, body, self.settings, fault, model)
            script = self._script(call, fault, ident, created)
        except ClientError as error:
            script = error_script(error)
        stream = call is not None and call.stream
        counts = call is not None and script.status in (0, 200)
        return Plan(
            ident=ident,
            model=model[:MAX_MODEL_CHARS],
            stream=stream,
            prompt_tokens=call.prompt_tokens if call is not None and counts else 0,
            fault=_name(fault),
            delay_s=self._delay_s(stream, fault),
            script=script,
            body=body,
        )

    def plan_models(self, model: str | None, fault_header: str | None) -> Plan:
        """Decide about a GET of the model list, or of one model. Costs no latency."""
        fault = None
        try:
            fault = faults.requested_fault(fault_header, "")
            if model is None:
                body = replies.models_body(self.settings)
            elif self.settings.has_model(model):
                body = dumps(replies.model_object(model, self.settings))
            else:
                raise requests.unknown_model(model)
            script = _spoil_unary(_unary(body, 0), fault)
        except ClientError as error:
            script = error_script(error)
        ident = f"{self._ids.getrandbits(96):024x}"
        return Plan(ident, (model or "")[:MAX_MODEL_CHARS], False, 0, _name(fault), 0.0, script)

    def _delay_s(self, stream: bool, fault: Fault | None) -> float:
        ttft_ms = self.settings.ttft_ms
        delay_ms = ttft_ms if stream and ttft_ms is not None else self.latency_ms()
        if fault is not None and fault.kind == "slow":
            delay_ms = max(SLOW_FLOOR_MS, SLOW_FACTOR * delay_ms)
        return delay_ms / 1000

    def _script(self, call: Call, fault: Fault | None, ident: str, created: int) -> Script:
        rate = self.settings.error_rate
        if fault is None and rate and self._errors.random() < rate:
            fault = faults.parse_fault(str(self.settings.error_status))
        ident = _ID_PREFIX.get(call.endpoint, "") + ident
        if call.stream and not (fault is not None and fault.kind in _UNARY_KINDS):
            return _spoil_stream(replies.Stream(call, ident, created, self.settings), call, fault)
        script = _unary(replies.body_of(call, ident, created, self.settings), call.n * len(call.pieces))
        return _spoil_unary(script, fault)


def error_script(error: GatewayError) -> Script:
    """An ordinary HTTP error in OpenAI's form."""
    body = faults.error_body(error)
    return Script(error.status, {**_JSON, **(error.headers or {})}, tail=body, length=len(body))


def _name(fault: Fault | None) -> str | None:
    if fault is None:
        return None
    return str(fault.status) if fault.kind == "status" else fault.kind


def _unary(body: bytes, tokens: int) -> Script:
    return Script(200, _JSON, tail=body, length=len(body), tokens=tokens)


def _silent(ending: Ending) -> Script:
    return Script(0, {}, ending=ending)


def _html() -> Script:
    return Script(502, _HTML, tail=faults.HTML_502, length=len(faults.HTML_502))


def _error_200() -> Script:
    return _unary(faults.IN_BAND_ERROR, 0)


_ANY: dict[str, Callable[[], Script]] = {
    "stall": partial(_silent, Ending.STALL),
    "cut-first": partial(_silent, Ending.CUT),
    "html502": _html,
    "error-200": _error_200,
}
"""Faults that are the same for streams and whole bodies."""

_UNARY_KINDS = {"status", "quota", "context", *_ANY}


def _spoil_unary(script: Script, fault: Fault | None) -> Script:
    """Apply a fault to a whole body."""
    if fault is None:
        return script
    if (error := faults.fault_error(fault)) is not None:
        return error_script(error)
    kind, half = fault.kind, script.tail[: len(script.tail) // 2]
    if kind in _ANY:
        return _ANY[kind]()
    if kind in ("error-first", "role-then-error", "error-mid"):
        return _error_200()
    if kind == "reset":
        return _silent(Ending.RESET)
    if kind == "stall-headers-then":
        return replace(script, tail=b"", tokens=0, ending=Ending.STALL)
    if kind == "malformed":
        return replace(script, tail=half, length=len(half))
    if kind in ("cut", "stall-mid"):
        return replace(script, tail=half, tokens=0, ending=Ending.CUT if kind == "cut" else Ending.STALL)
    return replace(script, drip=kind == "drip")


def _spoil_stream(stream: replies.Stream, call: Call, fault: Fault | None) -> Script:
    """Apply a fault to a stream."""
    kind = "" if fault is None else fault.kind
    role, opening = stream.role(), stream.role() + stream.tool()
    if kind == "error-first":
        return Script(200, _SSE, tail=faults.ERROR_EVENT, ending=Ending.CLOSE)
    if kind == "role-then-error":
        return Script(200, _SSE, lead=role, tail=faults.ERROR_EVENT, ending=Ending.CLOSE)
    if kind == "stall-headers-then":
        return Script(200, _SSE, ending=Ending.STALL)
    if kind == "malformed":
        return Script(200, _SSE, tail=_BROKEN_EVENT + replies.DONE)
    if kind in _MID:
        return _MID[kind](Script(200, _SSE, lead=opening, content=_some(stream)))
    if kind == "no-done":
        return Script(200, _SSE, lead=opening, content=stream.content())
    return Script(
        200,
        _SSE,
        lead=opening,
        content=stream.content(),
        tail=stream.finish() + replies.DONE,
        burst=FLOOD_BURST if kind == "flood" else 1,
        paced=kind != "flood",
        drip=kind == "drip",
    )


def _some(stream: replies.Stream) -> Iterator[bytes]:
    return islice(stream.content(), CONTENT_BEFORE_FAULT)


_MID: dict[str, Callable[[Script], Script]] = {
    "cut": lambda s: replace(s, ending=Ending.CUT),
    "reset": lambda s: replace(s, ending=Ending.RESET),
    "stall-mid": lambda s: replace(s, ending=Ending.STALL),
    "error-mid": lambda s: replace(s, tail=faults.ERROR_EVENT, ending=Ending.CLOSE),
}
