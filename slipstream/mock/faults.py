"""Faults on demand: how they are named, and the error bodies that go with them.

A request asks for a fault with the header ``x-mock-fault: <fault>`` or the model ``mock/<fault>`` (for clients and
gateways that pass no headers on). ``KINDS`` is the list; a status from 400 to 599 is a fault too, ``429:7`` sets its
retry-after. Bodies are in OpenAI's form ``{"error": {message, type, param, code}}``, with the types and codes that it
sends itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..errors import ClientError, GatewayError
from ..wire.codec import dumps

HEADER = "x-mock-fault"
MODEL_PREFIX = "mock/"
DEFAULT_RETRY_AFTER_S = 1

KINDS = {
    "stall": "the request is read, nothing is ever answered",
    "stall-headers-then": "status and headers, then never a byte of the body",
    "stall-mid": "stops for ever after 3 content chunks (unary: after half of the body)",
    "cut": "closes after 3 content chunks without ending the body (unary: after half of it)",
    "reset": "TCP reset after 3 content chunks (unary: before any byte)",
    "cut-first": "closes before any byte of the answer",
    "error-first": "200, and the first event of the stream is an error (unary: as error-200)",
    "role-then-error": "the role-only chunk, then an error event (unary: as error-200)",
    "error-mid": "an error event after 3 content chunks, no [DONE] (unary: as error-200)",
    "no-done": "ends cleanly, but without finish_reason, usage and [DONE] (unary: finish_reason null)",
    "malformed": "200 with broken JSON (stream: in its first event, then [DONE])",
    "error-200": "200 with a JSON error body, also when a stream was asked for",
    "html502": "502 with an HTML page",
    "usage-missing": "no usage, even when asked for",
    "slow": "ten times the latency, at least 100 ms",
    "drip": "one byte per write",
    "big": "1 MiB of content, in 16 pieces",
    "flood": "10,000 tokens; a stream ignores tokens_per_s",
    "quota": "429 insufficient_quota: trying again cannot help",
    "context": "400 context_length_exceeded",
}

_SERVER_ERROR = "The server had an error while processing your request. Sorry about that!"
_STATUS: dict[int, tuple[str, str, str | None]] = {
    400: ("Invalid value in the request.", "invalid_request_error", None),
    401: ("Incorrect API key provided: ****.", "invalid_request_error", "invalid_api_key"),
    403: ("Country, region, or territory not supported", "request_forbidden", "unsupported_country_region_territory"),
    404: ("The model does not exist or you do not have access to it.", "invalid_request_error", "model_not_found"),
    413: ("Maximum content size limit exceeded.", "invalid_request_error", "request_too_large"),
    429: ("Rate limit reached for requests. Please try again later.", "requests", "rate_limit_exceeded"),
    500: (_SERVER_ERROR, "server_error", None),
    502: ("Bad gateway.", "server_error", None),
    503: ("The engine is currently overloaded, please try again later", "server_error", None),
    504: ("The request timed out.", "server_error", None),
    529: ("Overloaded", "overloaded_error", None),
}
"""Messages, types and codes per status: OpenAI's guide "Error codes"; 413 and 529 are what others send."""

HTML_502 = (
    b"<html>\r\n<head><title>502 Bad Gateway</title></head>\r\n<body><h1>502 Bad Gateway</h1></body>\r\n</html>\r\n"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """``kind`` is a key of ``KINDS``, or ``"status"`` with ``status`` and, for a 429, ``retry_after_s``."""

    kind: str
    status: int = 0
    retry_after_s: int | None = None


def parse_fault(name: str) -> Fault | None:
    """The fault of this name; ``None`` when there is none of it."""
    head, _, tail = name.partition(":")
    if head.isdecimal() and len(head) == 3 and 400 <= int(head) <= 599 and (not tail or tail.isdecimal()):
        after = int(tail) if tail else (DEFAULT_RETRY_AFTER_S if head == "429" else None)
        return Fault("status", int(head), after)
    return Fault(name) if name in KINDS else None


def requested_fault(header: str | None, model: str) -> Fault | None:
    """The fault that a request asks for; the header beats the model. A header nobody knows is an error (a typo would
    make a test pass for the wrong reason), a model name nobody knows is just a model."""
    if header is not None and header != "ok":
        fault = parse_fault(header)
        if fault is None:
            raise ClientError(f"unknown {HEADER}; known: a status, {', '.join(KINDS)}", code="unknown_fault")
        return fault
    return parse_fault(model.removeprefix(MODEL_PREFIX)) if model.startswith(MODEL_PREFIX) else None


def status_error(status: int, retry_after_s: int | None = None) -> GatewayError:
    """OpenAI's error for a status, with the headers that come with it."""
    message, type_, code = _STATUS.get(status) or (
        f"The mock was asked to fail with status {status}.",
        "invalid_request_error" if status < 500 else "server_error",
        None,
    )
    headers = {}
    if retry_after_s is not None:
        headers["retry-after"] = str(retry_after_s)
        if status == 429:
            headers |= {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": f"{retry_after_s}s"}
    return GatewayError(message, status=status, type=type_, code=code, headers=headers)


def fault_error(fault: Fault) -> GatewayError | None:
    """The plain HTTP error that a fault amounts to, if it is one."""
    if fault.kind == "status":
        return status_error(fault.status, fault.retry_after_s)
    if fault.kind == "quota":
        message = "You exceeded your current quota, please check your plan and billing details."
        return GatewayError(message, status=429, type="insufficient_quota", code="insufficient_quota")
    if fault.kind == "context":
        message = "This model's maximum context length is 8192 tokens. Please reduce the length of the messages."
        return ClientError(message, code="context_length_exceeded", param="messages")
    return None


def error_object(error: GatewayError) -> dict[str, Any]:
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


def error_body(error: GatewayError) -> bytes:
    return dumps(error_object(error))


IN_BAND_ERROR = error_body(status_error(500))
"""What goes out inside a 200 (protocol notes 1.6)."""

ERROR_EVENT = b"data: " + IN_BAND_ERROR + b"\n\n"
