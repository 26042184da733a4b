"""What AWS says instead of an answer: error bodies, and exceptions within a stream (PROTOCOLS.md 1.5, 1.6).

The type of an error is in the header ``x-amzn-errortype`` or in ``__type``, with decoration around it
(``ns#ValidationException:http://...``); the body has ``message`` or ``Message``. Statuses say less than types: 400 is
also a used-up quota, 403 also bad credentials, 424 a broken model, 429 also a model that is still being loaded.

The rule that must not be broken: nothing of the account gets to a client. Refused credentials are not described, and a
message that holds an ARN (they hold account numbers and names of roles) is not repeated.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...errors import MalformedReply, UpstreamError
from ...types import FailureClass
from .. import openai_errors
from ..codec import DecodeError, dumps, loads

ERROR_TYPE_HEADER = "x-amzn-errortype"
MAX_ERROR_BYTES = openai_errors.MAX_ERROR_BYTES
_F = FailureClass

_BY_TYPE = {
    "throttling": _F.RATE_LIMITED,
    "throttled": _F.RATE_LIMITED,
    "toomanyrequests": _F.RATE_LIMITED,
    "limitexceeded": _F.RATE_LIMITED,
    "modelnotready": _F.OVERLOADED,
    "serviceunavailable": _F.OVERLOADED,
    "slowdown": _F.OVERLOADED,
    "servicequotaexceeded": _F.QUOTA,
    "modeltimeout": _F.TIMEOUT,
    "requesttimeout": _F.TIMEOUT,
    "modelerror": _F.SERVER,
    "modelstreamerror": _F.SERVER,
    "internalserver": _F.SERVER,
    "internalservererror": _F.SERVER,
    "internalfailure": _F.SERVER,
    "resourcenotfound": _F.NOT_FOUND,
    "unknownoperation": _F.NOT_FOUND,
    "accessdenied": _F.PERMISSION,
    "notauthorized": _F.PERMISSION,
    "optinrequired": _F.PERMISSION,
    "unrecognizedclient": _F.AUTH,
    "expiredtoken": _F.AUTH,
    "invalidclienttokenid": _F.AUTH,
    "invalidsignature": _F.AUTH,
    "signaturedoesnotmatch": _F.AUTH,
    "incompletesignature": _F.AUTH,
    "missingauthenticationtoken": _F.AUTH,
    "missingauthentication": _F.AUTH,
    "requestexpired": _F.AUTH,
    "unauthorized": _F.AUTH,
    "validation": _F.CLIENT_ERROR,
    "serialization": _F.CLIENT_ERROR,
    "requestentitytoolarge": _F.CLIENT_ERROR,
    "conflict": _F.CLIENT_ERROR,
}
"""Types, in small letters and without ``Exception`` (service model; common errors of AWS)."""
_BY_STATUS = {
    402: _F.QUOTA,
    403: _F.PERMISSION,
    404: _F.NOT_FOUND,
    408: _F.TIMEOUT,
    424: _F.SERVER,
}
# What a message says more exactly than its type; (class of the type, words in small letters, class). First match wins.
_BY_WORDS: tuple[tuple[FailureClass, tuple[str, ...], FailureClass], ...] = (
    (_F.PERMISSION, ("security token", "authentication failed", "api key", "bearer token"), _F.AUTH),
    (_F.RATE_LIMITED, ("per day", "daily"), _F.QUOTA),
    (
        _F.CLIENT_ERROR,
        (
            "input tokens exceeded",  # #0dd6ad59
            "input is too long",
            "prompt is too long",
            "maximum context length",
            "exceeds the context",
            "exceeds maximum length",
            "exceed context limit",
            "context window",
            "too many input tokens",
            "maximum number of input tokens",
            "too large for model with",
        ),
        _F.CONTEXT,
    ),
    (_F.CLIENT_ERROR, ("content filter", "blocked by guardrail", "content policy"), _F.CONTENT_FILTER),
    (
        _F.CLIENT_ERROR,
        ("model identifier is invalid", "on-demand throughput", "end of its life", "end of life"),
        _F.NOT_FOUND,
    ),
    (_F.CLIENT_ERROR, ("operation not allowed", "not authorized"), _F.PERMISSION),
)
# Status and ``code`` for the client; ``type`` is OpenAI's word for the status.
_SHOWN = {
    _F.RATE_LIMITED: (429, "rate_limit_error", "rate_limit_exceeded"),
    _F.OVERLOADED: (503, "overloaded_error", "overloaded"),
    _F.QUOTA: (429, "insufficient_quota", "insufficient_quota"),
    _F.TIMEOUT: (504, "timeout_error", "upstream_timeout"),
    _F.SERVER: (502, "upstream_error", "bad_upstream"),
    _F.NOT_FOUND: (404, "invalid_request_error", "model_not_found"),
    _F.PERMISSION: (403, "permission_error", "permission_denied"),
    _F.CONTEXT: (400, "invalid_request_error", "context_length_exceeded"),
    _F.CONTENT_FILTER: (400, "invalid_request_error", "content_filter"),
}


def read_error(
    status: int, headers: Mapping[str, str], body: bytes, *, provider: str, retry_after_s: float | None = None
) -> UpstreamError:
    """The error that a non-2xx answer means. Never raises."""
    if not 400 <= status <= 599:
        return openai_errors.read_error(status, body, provider=provider)
    value = _decode(body)
    kind = headers.get(ERROR_TYPE_HEADER) or _type_in(value)
    failure = _BY_TYPE.get(_plain_type(kind))
    if failure is None:
        failure = _BY_STATUS.get(status, openai_errors.status_class(status))
    return _make(failure, status, _message_in(value), provider, retry_after_s)


def read_exception(kind: str, payload: bytes, *, provider: str) -> UpstreamError:
    """An exception (or an ``error`` frame's code) within a stream. Types that nobody knows are the server's fault."""
    failure = _BY_TYPE.get(_plain_type(kind), FailureClass.SERVER)
    return _make(failure, 200, _message_in(_decode(payload)), provider, None)


def read_error_frame(code: str, message: str, *, provider: str) -> UpstreamError:
    """A frame of type ``error``: an error outside of the service's model (#d-unmodelled)."""
    return read_exception(code, dumps({"message": message}), provider=provider)


def read_in_200(body: bytes, *, provider: str) -> UpstreamError:
    """JSON, or something else, where an answer or a stream was promised."""
    value = _decode(body)
    kind, message = _type_in(value), _message_in(value)
    if not kind and message is None:
        return MalformedReply(f"the provider {provider!r} sent something that is no answer of Converse")
    return read_exception(kind, body, provider=provider)


def _make(
    failure: FailureClass, status: int, message: str | None, provider: str, retry_after_s: float | None
) -> UpstreamError:
    failure = _refine(failure, message)
    shown, kind, code = _SHOWN.get(failure, (status if 400 <= status < 500 else 400, "invalid_request_error", None))
    if failure is FailureClass.AUTH:  # never described: the client's own key was fine (R56)
        error = openai_errors.read_error(401, b"", provider=provider)
    else:
        if message is None or "arn:aws" in message:
            message = _WITHOUT_WORDS.get(failure, _FAILED).format(provider=provider)
        fields = {"message": message, "type": kind, "code": code, "param": None}
        error = openai_errors.read_error(
            shown, dumps({"error": fields}), provider=provider, retry_after_s=retry_after_s
        )
    error.failure = failure
    error.upstream_status = status
    return error


_FAILED = "the provider {provider!r} could not answer"
_WITHOUT_WORDS = {
    _F.PERMISSION: "the provider {provider!r} does not allow the gateway to use this model",
    _F.NOT_FOUND: "the provider {provider!r} does not have this model",
    _F.CLIENT_ERROR: "the provider {provider!r} refused the request",
}


def _refine(failure: FailureClass, message: str | None) -> FailureClass:
    lower = (message or "").lower()
    for of, words, better in _BY_WORDS:
        if of is failure and any(word in lower for word in words):
            return better
    return failure


def _plain_type(kind: object) -> str:
    """``com.amazon.coral#ThrottlingException:http://...`` -> ``throttling``."""
    if not isinstance(kind, str):
        return ""
    return kind.partition(":")[0].rpartition("#")[2].strip().lower().removesuffix("exception")


def _decode(body: bytes) -> Any:
    try:
        return loads(body) if body.strip() else None
    except DecodeError:
        return None


def _type_in(value: Any) -> str:
    """``__type`` or ``code`` of an error body; also in the ``Output`` that Coral wraps errors of its own in."""
    for holder in _holders(value):
        for name in ("__type", "code", "type"):
            if isinstance(holder.get(name), str) and holder[name]:
                return str(holder[name])
    return ""


def _message_in(value: Any) -> str | None:
    for holder in _holders(value):
        for name in ("message", "Message", "errorMessage", "detail"):
            message = holder.get(name)
            if isinstance(message, str) and message.strip():
                return _unwrap(message)
    return None


def _holders(value: Any) -> list[dict[str, Any]]:
    """The objects in which an error may be described, the inner ones first."""
    if not isinstance(value, dict):
        return []
    inner = [value.get("error"), value.get("Error"), value.get("Output"), value]
    return [holder for holder in inner if isinstance(holder, dict)]


def _unwrap(message: str) -> str:
    """A message may be the JSON of another error (PROTOCOLS.md 2.5)."""
    if message.lstrip()[:1] != "{":
        return message
    try:
        inner = loads(message.encode("utf-8", "replace"))
    except DecodeError:
        return message
    for holder in _holders(inner):
        text = holder.get("message")
        if isinstance(text, str) and text.strip():
            return text
    return message
