"""Errors of this dialect inside a stream: an ``error`` event, and ``response.failed`` as the last one.

PROTOCOLS.md 3.2 and 1.6 (#501de15e). The API reference has ``code``, ``message`` and ``param`` at the top of the
``error`` event, the recorded API puts them into ``error``; clients read either, and the official one raises only for
the second form, so both are written. An HTTP error body is OpenAI's own (``openai_errors.error_body``).

The rule that must not be broken: what is written comes from the error's own fields, never from the provider's bytes.
"""

from __future__ import annotations

from ...errors import GatewayError
from ...types import FailureClass
from ..canonical import Json
from ..codec import dumps

_CODES = {
    FailureClass.RATE_LIMITED: "rate_limit_exceeded",
    FailureClass.QUOTA: "insufficient_quota",
    FailureClass.CONTEXT: "context_length_exceeded",
    FailureClass.CLIENT_ERROR: "invalid_prompt",
    FailureClass.CONTENT_FILTER: "invalid_prompt",
}
"""``response.error.code`` is one of a list (API reference), beside which the API is seen to send the middle two."""


def event(name: str, fields: Json, sequence: int) -> bytes:
    """One event: ``data`` repeats its name as ``type`` and carries its number."""
    head = b"event: %s\ndata: " % name.encode()
    return head + dumps({"type": name, **fields, "sequence_number": sequence}) + b"\n\n"


def error_event(error: GatewayError, sequence: int = 0) -> bytes:
    """The ``error`` event alone: for a stream that was never opened, or whose response is not known."""
    shown = {"type": error.type, "code": error.code, "message": error.message, "param": error.param}
    return event(
        "error", {"code": error.code, "message": error.message, "param": error.param, "error": shown}, sequence
    )


def response_error(error: GatewayError) -> Json:
    """The ``error`` member of a failed response."""
    return {"code": _CODES.get(error.failure, "server_error"), "message": error.message}


def failed_events(error: GatewayError, response: Json, sequence: int) -> bytes:
    """The end of a stream that failed. ``response`` is the whole response object; it is made a failed one."""
    failed = {**response, "status": "failed", "error": response_error(error), "incomplete_details": None}
    return error_event(error, sequence) + event("response.failed", {"response": failed}, sequence + 1)
