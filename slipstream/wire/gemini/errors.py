"""Google's errors: ``{"error": {"code", "message", "status", "details"}}``, also as a one-element array, as a whole
answer or in the middle of a stream (PROTOCOLS.md 1.5, 1.6).

What Google says in its own way is put into words that the rest knows: a bad key is a 400 here, a wait is told in
``details`` or only in the text, and quota and rate are one status.

The rule that must not be broken: a key never gets out. Texts about keys are replaced, and a text that quotes one
("Consumer 'api_key:...'") is cleaned.
"""

from __future__ import annotations

import re
from typing import Any

from ...errors import UpstreamError
from ...types import FailureClass
from ..canonical import Json
from ..codec import DecodeError, dumps, loads
from ..headers import MAX_RETRY_AFTER_S, duration_s
from ..openai_errors import MAX_ERROR_BYTES, read_error, read_error_in_200

_STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "UNAUTHENTICATED": 401,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
}
"""google.rpc.Code to HTTP (googleapis, google/rpc/code.proto)."""
_CODES = {
    FailureClass.RATE_LIMITED: ("rate_limit_error", "rate_limit_exceeded"),
    FailureClass.QUOTA: ("insufficient_quota", "insufficient_quota"),
    FailureClass.CONTEXT: ("invalid_request_error", "context_length_exceeded"),
    FailureClass.NOT_FOUND: ("invalid_request_error", "model_not_found"),
    FailureClass.PERMISSION: ("permission_error", "permission_denied"),
    FailureClass.OVERLOADED: ("overloaded_error", "overloaded"),
    FailureClass.TIMEOUT: ("timeout_error", "timeout"),
    FailureClass.SERVER: ("server_error", "server_error"),
}
"""``type`` and ``code`` as OpenAI's clients know them."""
_BAD_KEY = (
    "api key not valid",
    "api key expired",
    "invalid api key",
    "api key not found",
    "api key was reported as leaked",
    "unregistered callers",
)
_TOO_LONG = ("exceeds the maximum number of tokens", "input token count", "context length", "context window")
_SPENT = ("credits are depleted", "billing account", "spending cap", "limit: 0,")
_WAIT = re.compile(r"retry in ((?:\d{1,6}(?:\.\d{1,12})?(?:ms|[dhms])){1,5})")
_KEY = re.compile(r"api_key:[^\s'\"]+")
_MAX_DETAILS = 32


def read_google_error(status: int, body: bytes, *, provider: str, retry_after_s: float | None = None) -> UpstreamError:
    """What a non-2xx answer means. Never raises."""
    error = error_in(_decode(body))
    if error is None or not 400 <= status <= 599:
        return read_error(status, body, provider=provider, retry_after_s=retry_after_s)
    return _make(error, status, status, provider, retry_after_s)


def error_in_200(value: Any, *, provider: str) -> UpstreamError:
    """The error inside an answer or a stream whose status said success; ``value`` is what ``error_in`` found it in."""
    error = error_in(value)
    if error is None:
        return read_error_in_200(dumps(value), provider=provider)
    code = error.get("code")
    if isinstance(code, bool) or not isinstance(code, int) or not 400 <= code <= 599:
        code = _STATUS.get(str(error.get("status")), 502)
    return _make(error, code, 200, provider, None)


def error_in(value: Any) -> Json | None:
    """The error object of a decoded answer or event, if that is what it is."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    error = value.get("error") if isinstance(value, dict) else None
    if isinstance(error, str) and error:
        return {"message": error}
    return error if isinstance(error, dict) else None


def _decode(body: bytes) -> Any:
    try:
        return loads(body) if body.strip() and len(body) <= MAX_ERROR_BYTES else None
    except DecodeError:
        return None


def _make(error: Json, status: int, upstream_status: int, provider: str, retry_after_s: float | None) -> UpstreamError:
    message = error.get("message")
    text = message if isinstance(message, str) else ""
    details = error.get("details")
    details = [one for one in details[:_MAX_DETAILS] if isinstance(one, dict)] if isinstance(details, list) else []
    failure = _class(status, str(error.get("status")), text.lower(), details)
    if failure is FailureClass.AUTH:
        return read_error(401, b"", provider=provider)  # what Google's 400 means; of its text nothing is told
    kind, code = _CODES.get(failure, ("invalid_request_error", str(error.get("status") or "bad_request").lower()[:64]))
    shown = {"message": _KEY.sub("api_key:***", text), "type": kind, "code": code}
    if retry_after_s is None:
        retry_after_s = _wait(details, text)
    out = read_error(status, dumps({"error": shown}), provider=provider, retry_after_s=retry_after_s)
    out.failure = failure
    out.upstream_status = upstream_status
    return out


def _class(status: int, canonical: str, text: str, details: list[Json]) -> FailureClass:
    if status == 401 or (status in (400, 403) and _bad_key(text, details)):
        return FailureClass.AUTH
    if status == 400:
        return _bad_request(canonical, text)
    if status == 429:
        return FailureClass.QUOTA if _spent(text, details) else FailureClass.RATE_LIMITED
    known = {
        402: FailureClass.QUOTA,
        403: FailureClass.PERMISSION,
        404: FailureClass.NOT_FOUND,
        408: FailureClass.TIMEOUT,
        503: FailureClass.OVERLOADED,
        504: FailureClass.TIMEOUT,
        529: FailureClass.OVERLOADED,
    }.get(status)
    if known is not None:
        return known
    return FailureClass.SERVER if status >= 499 else FailureClass.CLIENT_ERROR


def _bad_key(text: str, details: list[Json]) -> bool:
    """A bad key is a 400 here (PROTOCOLS.md 1.5), a revoked one a 403."""
    return any(one.get("reason") == "API_KEY_INVALID" for one in details) or any(word in text for word in _BAD_KEY)


def _bad_request(canonical: str, text: str) -> FailureClass:
    """A 400 can be about the caller's country or plan, the length, or the request itself."""
    if canonical == "FAILED_PRECONDITION":  # "User location is not supported", "enable billing" (API docs)
        return FailureClass.QUOTA if "billing" in text else FailureClass.PERMISSION
    if any(word in text for word in _TOO_LONG):
        return FailureClass.CONTEXT
    return FailureClass.CLIENT_ERROR


def _spent(text: str, details: list[Json]) -> bool:
    """Whether waiting a minute is no use: the quota of the day, or none at all."""
    if any(word in text for word in _SPENT):
        return True
    for one in details:
        violations = one.get("violations")
        for violation in violations if isinstance(violations, list) else ():
            if isinstance(violation, dict) and "PerDay" in str(violation.get("quotaId")):
                return True
    return False


def _wait(details: list[Json], text: str) -> float | None:
    """``RetryInfo.retryDelay`` ("48s"), else the text "Please retry in 48.93s." (PROTOCOLS.md 1.5)."""
    seconds = None
    for one in details:
        delay = one.get("retryDelay")
        if isinstance(delay, str) and len(delay) <= 32:
            seconds = duration_s(delay)
    if seconds is None:
        found = _WAIT.search(text)
        seconds = duration_s(found[1]) if found is not None else None
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)
