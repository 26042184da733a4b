"""Embeddings: OpenAI's ``/v1/embeddings`` to ``batchEmbedContents`` (Gemini API) or ``predict`` (Vertex AI), and back
(PROTOCOLS.md 2.4; API references, "batchEmbedContents" and "Text embeddings API").
"""

from __future__ import annotations

from typing import Any

from ...errors import MalformedReply
from ..canonical import Json
from ..usage import MAX_TOKENS, Usage
from .parts import note, wrong
from .reply import decode_answer

_HANDLED = frozenset({"model", "input", "dimensions", "encoding_format", "task_type", "title"})
"""``encoding_format`` is how our answer to the client is written; ``task_type`` and ``title`` are Google's own."""


def build_embeddings_body(request: Json, resource: str, *, vertex: bool) -> tuple[Json, list[str]]:
    """The body, and the fields that it cannot say. ``resource`` is the model as ``models/<name>``."""
    texts = _texts(request.get("input"))
    dropped: list[str] = []
    for name, value in request.items():
        if name not in _HANDLED and value not in (None, "", [], {}):
            note(dropped, name)
    more: Json = {}
    size = request.get("dimensions")
    if size is not None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise wrong("dimensions", "'dimensions' must be a whole number above 0.")
        more["outputDimensionality"] = size
    task, title = (_word(request, name) for name in ("task_type", "title"))
    if vertex:
        labels = {**({"task_type": task} if task else {}), **({"title": title} if title else {})}
        body: Json = {"instances": [{"content": text, **labels} for text in texts]}
        return ({**body, "parameters": more} if more else body), dropped
    if task:
        more["taskType"] = task
    if title:
        more["title"] = title
    return {
        "requests": [{"model": resource, "content": {"parts": [{"text": text}]}, **more} for text in texts]
    }, dropped


def _word(request: Json, name: str) -> str | None:
    value = request.get(name)
    if value is not None and not isinstance(value, str):
        raise wrong(name, f"{name!r} must be a string.", "invalid_type")
    return value


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not texts:
        raise wrong("input", "'input' must be a string or an array of strings.", "invalid_type")
    if any(not isinstance(text, str) for text in texts):
        raise wrong("input", "This provider embeds text only: send strings, not token ids.", "unsupported_value")
    if not all(texts):
        raise wrong("input", "'input' must not hold empty strings.")
    return texts


def read_embeddings(body: bytes, *, provider: str) -> tuple[list[list[float]], Usage | None]:
    """The vectors in the order of the inputs. Raises like ``read_reply``."""
    value = decode_answer(body, provider)
    listed = value.get("embeddings")
    if listed is None and "embedding" in value:
        listed = [value["embedding"]]
    predictions = value.get("predictions")
    if listed is None and isinstance(predictions, list):
        listed = [one.get("embeddings") if isinstance(one, dict) else None for one in predictions]
    if not isinstance(listed, list) or not listed:
        raise MalformedReply(f"the provider {provider!r} sent a reply without 'embeddings'")
    return [_vector(one, provider) for one in listed], _usage(value, listed)


def _vector(value: Any, provider: str) -> list[float]:
    numbers = value.get("values") if isinstance(value, dict) else None
    if not isinstance(numbers, list) or not numbers or any(type(one) not in (float, int) for one in numbers):
        raise MalformedReply(f"the provider {provider!r} sent an embedding that is not a list of numbers")
    return numbers


def _usage(value: Json, listed: list[Any]) -> Usage | None:
    """The Gemini API counts the batch, if at all; Vertex counts each text."""
    meta = value.get("usageMetadata")
    counts = [meta.get("promptTokenCount")] if isinstance(meta, dict) else []
    if not counts:
        statistics = [one.get("statistics") for one in listed]
        counts = [one.get("token_count") for one in statistics if isinstance(one, dict)]
    known = [int(one) for one in counts if isinstance(one, int | float) and 0 <= one <= MAX_TOKENS]
    if not counts or len(known) < len(counts):
        return None
    return Usage(input_uncached=sum(known), source="provider")


def read_count(body: bytes, *, provider: str) -> int:
    """``totalTokens`` of an answer to ``countTokens``."""
    total = decode_answer(body, provider).get("totalTokens", 0)  # a proto leaves out a zero
    if isinstance(total, bool) or not isinstance(total, int) or not 0 <= total <= MAX_TOKENS:
        raise MalformedReply(f"the provider {provider!r} sent a reply without 'totalTokens'")
    return total
