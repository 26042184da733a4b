"""Errors of Anthropic that come under status 200: in a stream, or as a whole body (PROTOCOLS.md 1.5, 1.6).

Their ``type`` says which status they would have had; from there on they are read like any other error, so that the same
message may go on and the same decisions are taken.
"""

from __future__ import annotations

from ...errors import UpstreamError
from ..canonical import Json
from ..openai_errors import read_error, read_error_in_200

# API reference, "Errors".
_STATUS = {
    "invalid_request_error": 400,
    "authentication_error": 401,
    "billing_error": 402,
    "permission_error": 403,
    "not_found_error": 404,
    "request_too_large": 413,
    "rate_limit_error": 429,
    "api_error": 500,
    "timeout_error": 504,
    "overloaded_error": 529,
}


def is_error(value: Json) -> bool:
    """Whether a decoded event or body is an error object."""
    return value.get("type") == "error" or (value.get("error") is not None and value.get("type") != "message")


def read_failure(value: Json, data: bytes, *, provider: str) -> UpstreamError:
    """The error that ``data``, decoded as ``value``, means. Never raises."""
    error = value.get("error")
    kind = error.get("type") if isinstance(error, dict) else None
    status = _STATUS.get(kind) if isinstance(kind, str) else None
    if status is None:
        return read_error_in_200(data, provider=provider)
    failure = read_error(status, data, provider=provider)
    failure.upstream_status = 200
    return failure
