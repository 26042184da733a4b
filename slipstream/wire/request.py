"""What the gateway must know of a request, read without decoding it, and the few edits made on the way out.

Owns the inbound half of the OpenAI family (chat, legacy completions, embeddings). One scan validates the whole body
(RFC 8259) and finds the spans of the keys that matter; everything else reaches the provider byte for byte, so unknown
fields and numbers beyond 2**53 survive.

The rule that must not be broken: what was checked is what is sent. A key that decides something and occurs twice is
refused (Q41), because two parsers may pick different ones.
"""

from __future__ import annotations

import re
from typing import Any

from .._fast import (
    ABSENT,
    ARRAY,
    FALSE,
    K_INPUT,
    K_MAX_COMPLETION_TOKENS,
    K_MAX_TOKENS,
    K_MESSAGES,
    K_MODEL,
    K_PROMPT,
    K_STREAM,
    K_STREAM_OPTIONS,
    KEYS,
    NULL,
    OBJECT,
    STRING,
    TRUE,
    JsonError,
    RequestScan,
    decode_string,
    scan_request,
)
from ..errors import ClientError
from ..types import Endpoint
from .codec import dumps

MAX_MODEL_BYTES = 256
_MODEL_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._:@+-]|/(?![/.]))*")
_DECISIVE = (K_MODEL, K_STREAM, K_STREAM_OPTIONS, K_MESSAGES, K_PROMPT, K_INPUT)
_SUBJECT = {
    Endpoint.CHAT: K_MESSAGES,
    Endpoint.COMPLETIONS: K_PROMPT,
    Endpoint.EMBEDDINGS: K_INPUT,
    Endpoint.RESPONSES: K_INPUT,
    Endpoint.MESSAGES: K_MESSAGES,
    Endpoint.COUNT_TOKENS: K_MESSAGES,
    Endpoint.INFER: K_PROMPT,
}
_ASKED = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS})
"""Where usage in a stream must be asked for."""
_STREAMLESS = frozenset({Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS})
_RENAMABLE = {"max_tokens": K_MAX_TOKENS, "max_completion_tokens": K_MAX_COMPLETION_TOKENS}

Edit = tuple[int, int, bytes]
"""Replace ``body[start:end]`` by the bytes."""


class Call:
    """One inbound request. ``model`` is the public name (empty where an endpoint may leave it out); ``wants_usage``:
    the client asked for usage in a stream."""

    __slots__ = ("body", "canonical", "endpoint", "model", "scan", "stream", "wants_usage")

    def __init__(
        self, endpoint: Endpoint, body: bytes, scan: RequestScan, model: str, stream: bool, wants_usage: bool = False
    ) -> None:
        self.endpoint = endpoint
        self.body = body
        self.scan = scan
        self.model = model
        self.stream = stream
        self.wants_usage = wants_usage
        self.canonical: tuple[dict[str, Any], list[str], dict[str, Any]] | None = None
        """Once decoded: the request in the canonical shape, what that has no place for, and the client's own body."""

    def subject_span(self) -> tuple[int, int]:
        """Where the messages (or the prompt, or the input) are in the body."""
        key = _SUBJECT[self.endpoint]
        return self.scan.start(key), self.scan.end(key)


def peek(endpoint: Endpoint, body: bytes) -> Call:
    """Validate ``body`` and read what routing needs. Raises ``ClientError`` (400) naming the field."""
    try:
        scan = scan_request(body)
    except JsonError as exc:
        raise ClientError(
            f"The body is not valid JSON: {exc.reason} (byte {exc.pos}). Send one JSON object in UTF-8.",
            code="invalid_json",
        ) from None
    model = scan.plain_model(body, _SUBJECT[endpoint])
    if model is None:
        model = _examine(endpoint, body, scan)
    stream = scan.kind(K_STREAM) == TRUE and endpoint not in _STREAMLESS
    return Call(endpoint, body, scan, model, stream, stream and scan.include_usage == TRUE)


def _examine(endpoint: Endpoint, body: bytes, scan: RequestScan) -> str:
    """The model of a request that is not plain, or what is wrong with it."""
    if scan.duplicates:
        for key in _DECISIVE:
            if scan.duplicates >> key & 1:
                name = KEYS[key]
                raise ClientError(f"The key {name!r} occurs more than once; send it once.", param=name)
    model = "" if endpoint is Endpoint.INFER and scan.kind(K_MODEL) in (ABSENT, NULL) else _model(body, scan)
    subject = _SUBJECT[endpoint]
    if scan.kind(subject) == ABSENT and endpoint is not Endpoint.RESPONSES:  # a stored prompt may stand for the input
        name = KEYS[subject]
        raise ClientError(f"Missing required parameter: {name!r}.", param=name, code="missing_required_parameter")
    if subject == K_MESSAGES and scan.kind(K_MESSAGES) != ARRAY:
        raise ClientError("'messages' must be an array of messages.", param="messages", code="invalid_type")
    if scan.kind(K_STREAM) not in (ABSENT, TRUE, FALSE, NULL):
        raise ClientError("'stream' must be true or false.", param="stream", code="invalid_type")
    if scan.kind(K_STREAM_OPTIONS) not in (ABSENT, NULL, OBJECT):
        raise ClientError("'stream_options' must be an object.", param="stream_options", code="invalid_type")
    return model


def _model(body: bytes, scan: RequestScan) -> str:
    kind = scan.kind(K_MODEL)
    if kind == ABSENT:
        raise ClientError(
            "Missing required parameter: 'model'. GET /v1/models lists what is served.",
            param="model",
            code="missing_required_parameter",
        )
    start, end = scan.start(K_MODEL), scan.end(K_MODEL)
    if kind != STRING or end - start - 2 > MAX_MODEL_BYTES:  # less the quotes
        raise ClientError(
            f"'model' must be a string of at most {MAX_MODEL_BYTES} bytes.", param="model", code="invalid_type"
        )
    name = decode_string(body, start, end)
    if not name:
        raise ClientError("'model' is empty or not valid text.", param="model", code="invalid_value")
    return name


def is_model_name(name: str) -> bool:
    """Whether ``name`` may be sent to a provider that serves every model: a plain ASCII identifier.

    Names written in the configuration are exempt. The others must not be able to become a path, a header or a log
    line (Q40).
    """
    return _MODEL_NAME.fullmatch(name) is not None


def outbound_body(call: Call, upstream_model: str, ask_usage: bool, rename: tuple[tuple[str, str], ...] = ()) -> bytes:
    """The body for one attempt, always made from the client's original bytes (R59).

    ``ask_usage`` adds ``stream_options.include_usage`` to a stream that lacks it (R68); ``rename`` are the provider's
    spellings of renamed keys, e.g. ``("max_completion_tokens", "max_tokens")``. Returns the same object when nothing
    changes.
    """
    if not (call.stream or rename) and upstream_model == call.model:
        return call.body
    scan = call.scan
    edits: list[Edit] = []
    ask_usage = ask_usage and call.endpoint in _ASKED
    if upstream_model != call.model:
        edits.append((scan.start(K_MODEL), scan.end(K_MODEL), dumps(upstream_model)))
    if ask_usage and call.stream and not call.wants_usage:
        edits.append(_usage_edit(scan))
    for old, new in rename:
        key = _RENAMABLE[old]
        if scan.kind(key) != ABSENT and scan.kind(_RENAMABLE[new]) == ABSENT:
            edits.append((scan.key_start(key), scan.key_end(key), dumps(new)))
    return patch(call.body, edits) if edits else call.body


def _usage_edit(scan: RequestScan) -> Edit:
    if scan.include_usage != ABSENT:
        return scan.include_usage_start, scan.include_usage_end, b"true"
    if scan.options_open >= 0:
        comma = b"," if scan.options_keys else b""
        return scan.options_open, scan.options_open, b'"include_usage":true' + comma
    if scan.kind(K_STREAM_OPTIONS) == NULL:
        return scan.start(K_STREAM_OPTIONS), scan.end(K_STREAM_OPTIONS), b'{"include_usage":true}'
    return scan.body_close, scan.body_close, b',"stream_options":{"include_usage":true}'


def patch(body: bytes, edits: list[Edit]) -> bytes:
    """Apply non-overlapping ``edits`` with a single join."""
    edits.sort()
    parts: list[bytes] = []
    at = 0
    for start, end, new in edits:
        parts.append(body[at:start])
        parts.append(new)
        at = end
    parts.append(body[at:])
    return b"".join(parts)
