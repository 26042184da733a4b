"""Errors as ``application/problem+json`` (RFC 9457, formerly 7807), which the endpoints of contract E answer with.

``{type, title, status, detail, request_id, trace_id?}`` (llm-router-openapi.yaml, ``Problem``). ``type`` is a URN whose
last part is the word that the published examples end with; the title belongs to the type (RFC 9457 3.1.3), what is
special about this case is the ``detail``.

The rule that must not be broken: nothing of an error but its status, code and message is told.
"""

from __future__ import annotations

from ..errors import GatewayError
from .codec import dumps

CONTENT_TYPE = "application/problem+json"
TYPE_PREFIX = "urn:slipstream:error:"

_BY_CODE = {
    "insufficient_quota": ("quota_exhausted", "Quota exhausted"),
    "context_length_exceeded": ("context_length_exceeded", "Prompt too long"),
    "content_filter": ("content_filter", "Refused by a content filter"),
}
_BY_STATUS = {
    400: ("invalid_request", "Invalid request"),
    401: ("invalid_api_key", "Invalid API key"),
    402: ("quota_exhausted", "Quota exhausted"),
    403: ("forbidden", "Forbidden"),
    404: ("not_found", "Not found"),
    405: ("method_not_allowed", "Method not allowed"),
    408: ("request_timeout", "Request timed out"),
    409: ("conflict", "Conflict"),
    413: ("request_too_large", "Request too large"),
    415: ("unsupported_media_type", "Unsupported media type"),
    422: ("invalid_request", "Invalid request"),
    429: ("rate_limit_exceeded", "Rate limit exceeded"),
    500: ("internal_error", "Internal error"),
    501: ("not_implemented", "Not implemented"),
    502: ("bad_gateway", "Bad answer from the provider"),
    503: ("service_unavailable", "Service unavailable"),
    504: ("gateway_timeout", "The provider did not answer in time"),
}


def problem_body(error: GatewayError, request_id: str, trace_id: str | None = None) -> bytes:
    """The body for ``error``. Only its message is told, never a provider's body."""
    return dumps(problem(error, request_id, trace_id))


def problem(error: GatewayError, request_id: str, trace_id: str | None = None) -> dict[str, object]:
    """The problem as an object."""
    status = error.status if 400 <= error.status <= 599 else 500
    word, title = _BY_CODE.get(error.code or "") or _BY_STATUS.get(status) or _other(status)
    shown: dict[str, object] = {
        "type": TYPE_PREFIX + word,
        "title": title,
        "status": status,
        "detail": error.message or title,
        "request_id": request_id,
    }
    if trace_id:
        shown["trace_id"] = trace_id
    return shown


def _other(status: int) -> tuple[str, str]:
    return ("client_error", "Request refused") if status < 500 else ("server_error", "Server error")
