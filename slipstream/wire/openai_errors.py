"""Errors in OpenAI's dialect: reading a provider's, writing our own.

Providers of the OpenAI family agree on the status and disagree on the body (PROTOCOLS.md 1.5): ``error`` may be an
object, a string or absent; ``message`` may itself be an object; the body may be HTML or nothing. This module reads all
of them into one ``UpstreamError`` whose class decides about retries, and always writes
``{"error": {"message", "type", "param", "code"}}``.

The rule that must not be broken: nothing of a provider's body reaches the client unless it was a JSON error object,
and then shortened and passed through ``redact`` (Q39).
"""

from __future__ import annotations

import re
from typing import Any

from ..errors import GatewayError, UpstreamError
from ..types import FailureClass
from .codec import DecodeError, dumps, loads

MAX_MESSAGE_CHARS = 2000
"""Longer provider messages are cut (Q39: at most 2 KB of them is relayed)."""
_LAST_WORD = re.compile(r"[^\s\"'(),;:<>]{1,255}\Z")
MAX_ERROR_BYTES = 64 * 1024
"""No provider sends a longer error body on purpose."""
_EXTRA_FIELDS = ("failed_generation", "innererror", "metadata", "content_filter_result")
_MAX_EXTRA_BYTES = 4096

_BY_STATUS = {
    401: FailureClass.AUTH,
    403: FailureClass.CLIENT_ERROR,
    408: FailureClass.TIMEOUT,
    429: FailureClass.RATE_LIMITED,
    503: FailureClass.OVERLOADED,
    504: FailureClass.TIMEOUT,
    529: FailureClass.OVERLOADED,
}
# Codes and types seen under status 200 (in the body or in a stream), to the status they would have had.
_STATUS_OF_CODE = {
    "rate_limit_exceeded": 429,
    "rate_limit": 429,
    "rate_limited": 429,
    "insufficient_quota": 429,
    "tokens": 429,
    "overloaded": 503,
    "overloaded_error": 503,
    "service_unavailable": 503,
    "service_unavailable_error": 503,
    "server_error": 502,
    "internal_error": 502,
    "invalid_request_error": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "invalid_api_key": 401,
    "authentication_error": 401,
    "model_not_found": 404,
    "timeout": 504,
}


def error_body(error: GatewayError) -> bytes:
    """The response body for ``error`` (API reference, "Error codes")."""
    if isinstance(error, UpstreamError) and error.body is not None:
        return error.body
    return dumps(error_object(error))


def error_object(error: GatewayError) -> dict[str, Any]:
    return {
        "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code},
    }


def error_event(error: GatewayError) -> bytes:
    """The in-band error of a stream that has begun. No ``[DONE]`` may follow: clients take that for success."""
    return b"data: " + error_body(error) + b"\n\n"


def status_class(status: int) -> FailureClass:
    """The failure class of an HTTP status, before the body is known."""
    known = _BY_STATUS.get(status)
    if known is not None:
        return known
    return FailureClass.SERVER if status >= 500 else FailureClass.CLIENT_ERROR


def read_error(status: int, body: bytes, *, provider: str, retry_after_s: float | None = None) -> UpstreamError:
    """The error that a provider's non-2xx answer means. Never raises."""
    failure = status_class(status)
    if 300 <= status < 400:
        return UpstreamError(
            f"the provider {provider!r} answered with a redirect ({status}), which is never followed",
            failure=FailureClass.MALFORMED,
            code="upstream_redirect",
            upstream_status=status,
        )
    if not 400 <= status <= 599:  # S-16, S-19: a 101 handed on would switch the client's protocol
        return UpstreamError(
            f"the provider {provider!r} answered with status {status}, which is no answer",
            failure=FailureClass.MALFORMED,
            code="upstream_malformed_response",
            upstream_status=status,
        )
    if failure is FailureClass.AUTH:
        # The client's own key was fine; a 401 would tell it otherwise (R56). The provider's text may show part of the
        # key.
        return UpstreamError(
            f"the provider {provider!r} refused the gateway's credentials",
            failure=failure,
            code="upstream_auth_error",
            upstream_status=status,
        )
    fields = _fields(_decode(body))
    if fields is None:
        fields = {"message": f"the provider {provider!r} answered with status {status}", "type": None}
    return _make(fields, status, status, failure, retry_after_s)


def read_error_in_200(body: bytes, *, provider: str) -> UpstreamError:
    """The error inside an answer whose status said success (PROTOCOLS.md 1.6)."""
    fields = _fields(_decode(body))
    if fields is None:
        return UpstreamError(
            f"the provider {provider!r} sent an error it did not describe",
            failure=FailureClass.SERVER,
            upstream_status=200,
        )
    status = _status_in(fields)
    failure = status_class(status)
    if failure is FailureClass.AUTH:
        return read_error(status, b"", provider=provider)
    return _make(fields, 200, status, failure, None)


def _decode(body: bytes) -> Any:
    try:
        return loads(body) if body.strip() else None
    except DecodeError:
        return None


def _fields(value: Any) -> dict[str, Any] | None:
    """The error object inside a decoded body, whatever its form; ``None`` if there is none."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not isinstance(value, dict):
        return None
    inner = value.get("error", value)
    if isinstance(inner, str):
        inner = {"message": inner, "type": value.get("type"), "code": value.get("code")}
    if not isinstance(inner, dict):
        return None
    message = inner.get("message", inner.get("detail"))
    if isinstance(message, dict | list):
        message = _text(message)
    if not isinstance(message, str) or not message.strip():
        return None
    return {**inner, "message": message}


def _text(value: object) -> str:
    """A JSON value as text; nothing for one that is nested too deeply to be written."""
    try:
        return dumps(value).decode()
    except TypeError:
        return ""


def _status_in(fields: dict[str, Any]) -> int:
    for key in ("status_code", "code", "status"):
        value = fields.get(key)
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) == 3:
            value = int(value)
        if isinstance(value, int) and 400 <= value <= 599:
            return value
    for key in ("code", "type"):
        value = fields.get(key)
        if isinstance(value, str) and value in _STATUS_OF_CODE:
            return _STATUS_OF_CODE[value]
    return 502


def _make(
    fields: dict[str, Any], upstream_status: int, status: int, failure: FailureClass, retry_after_s: float | None
) -> UpstreamError:
    message = fields["message"]
    if len(message) > MAX_MESSAGE_CHARS:
        # A secret that the cut goes through would not be known any more by those who redact: its word goes whole.
        message = _LAST_WORD.sub("", message[:MAX_MESSAGE_CHARS])
    kind = fields.get("type")
    code = fields.get("code")
    param = fields.get("param")
    shown: dict[str, Any] = {
        "message": message,
        "type": kind if isinstance(kind, str) else ("invalid_request_error" if status < 500 else "upstream_error"),
        "param": param if isinstance(param, str) else None,
        "code": code if isinstance(code, str | int) else None,
    }
    for name in _EXTRA_FIELDS:
        extra = fields.get(name)
        if extra is not None and 0 < len(_text([[[extra]]])) <= _MAX_EXTRA_BYTES:
            shown[name] = extra
    return UpstreamError(
        message,
        failure=failure,
        status=status,
        type=shown["type"],
        code=None if shown["code"] is None else str(code),
        param=shown["param"],
        upstream_status=upstream_status,
        retry_after_s=retry_after_s,
        body=dumps({"error": shown}),
    )
