"""Embeddings in OpenAI's dialect (``POST /v1/embeddings``) for providers that speak another one.

Owns the check of the request and the form of the answer: vectors as numbers, or as base64 of little-endian float32,
which the official SDKs ask for by default (PROTOCOLS.md 2.1).

The rule that must not be broken: as many vectors leave as inputs came, in their order.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any

from ..errors import ClientError, MalformedReply
from .canonical import Answer, Json
from .codec import dumps
from .usage import Usage

MAX_INPUTS = 2048
"""API reference, "Create embeddings": inputs of one request."""
_FORMS = "a string, an array of strings, an array of token ids or an array of those"


def decode_request(body: Json) -> Json:
    """The request, checked; ``input`` as it is. Raises ``ClientError`` naming the field."""
    given = body.get("input")
    if given is None:
        raise ClientError("Missing required parameter: 'input'.", param="input", code="missing_required_parameter")
    if given == "" or given == []:
        raise ClientError("'input' is empty; send some text.", param="input", code="invalid_value")
    if not isinstance(given, str):
        _check_list(given)
    form = body.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise ClientError(
            "'encoding_format' must be 'float' or 'base64'.", param="encoding_format", code="invalid_value"
        )
    dimensions = body.get("dimensions")
    if dimensions is not None and not (_is_whole(dimensions) and dimensions > 0):
        raise ClientError("'dimensions' must be a whole number above 0.", param="dimensions", code="invalid_value")
    return {key: value for key, value in body.items() if value is not None}


def _check_list(given: Any) -> None:
    if not isinstance(given, list):
        raise ClientError(f"'input' must be {_FORMS}.", param="input", code="invalid_type")
    if all(isinstance(item, str) for item in given):
        if "" in given:
            raise ClientError("'input' has an empty string in it; leave it out.", param="input", code="invalid_value")
    elif not all(_is_whole(item) for item in given) and not all(
        isinstance(item, list) and item and all(_is_whole(token) for token in item) for item in given
    ):
        raise ClientError(f"'input' must be {_FORMS}.", param="input", code="invalid_type")
    elif _is_whole(given[0]):
        return
    if len(given) > MAX_INPUTS:
        raise ClientError(f"'input' may hold {MAX_INPUTS} entries at most.", param="input", code="invalid_value")


def inputs_of(request: Json) -> list[Any]:
    """The inputs one by one: strings, or lists of token ids."""
    given = request.get("input")
    if isinstance(given, list) and given and not _is_whole(given[0]):
        return given
    return [given]


def encode_reply(vectors: Sequence[Sequence[float]], usage: Usage | None, answer: Answer) -> bytes:
    """The answer to ``answer.request``. Raises ``MalformedReply`` for vectors that no float32 can hold."""
    packed = answer.request.get("encoding_format") == "base64"
    prompt = usage.prompt if usage is not None else 0
    data = [
        {"object": "embedding", "index": index, "embedding": _base64(vector) if packed else vector}
        for index, vector in enumerate(vectors)
    ]
    return dumps(
        {
            "object": "list",
            "data": data,
            "model": answer.model,
            "usage": {"prompt_tokens": prompt, "total_tokens": prompt},
        }
    )


def _base64(vector: Sequence[float]) -> str:
    try:
        return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
    except (struct.error, OverflowError, TypeError):
        raise MalformedReply("the provider sent an embedding that is not made of numbers") from None


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
