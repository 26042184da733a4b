"""Errors in Anthropic's dialect, as a Messages client gets them (what a provider's mean is in ``failures``).

The form is ``{"type": "error", "error": {"type", "message"}, "request_id"?}`` (PROTOCOLS.md 1.5). The official clients
choose their exception by the HTTP status alone, so the ``type`` follows from the status and never from what another
provider called it. The form has no place for OpenAI's ``param``: Anthropic names the field at the head of the message
("messages.0.content: ..."), and so do we.

The rule that must not be broken: only ``error.message`` is written, which is safe to show. ``error.body`` is in another
dialect and is not looked at.
"""

from __future__ import annotations

from ...errors import GatewayError
from ..codec import dumps
from ..openai_errors import MAX_MESSAGE_CHARS

# API reference, "Errors"; 504 is `timeout_error` in the official SDK (types/shared/gateway_timeout_error_object.py).
_TYPE_OF_STATUS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_type(status: int) -> str:
    """Anthropic's word for an HTTP status."""
    return _TYPE_OF_STATUS.get(status) or ("api_error" if status >= 500 else "invalid_request_error")


def error_body(error: GatewayError, request_id: str = "") -> bytes:
    """The response body for ``error``."""
    message = error.message.strip() or "The request failed."
    if error.param and f"'{error.param}'" not in message and not message.startswith(error.param):
        message = f"{error.param}: {message}"
    if len(message) > MAX_MESSAGE_CHARS:
        message = message[:MAX_MESSAGE_CHARS]
    body: dict[str, object] = {"type": "error", "error": {"type": error_type(error.status), "message": message}}
    if request_id:
        body["request_id"] = request_id
    return dumps(body)


def error_event(error: GatewayError, request_id: str = "") -> bytes:
    """The in-band error of a stream that has begun. It is the last event: no ``message_stop`` follows (PROTOCOLS.md
    1.6), because clients take that for success."""
    return b"event: error\ndata: " + error_body(error, request_id) + b"\n\n"
