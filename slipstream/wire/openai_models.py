"""The list of models of a provider of the OpenAI family (``GET /v1/models``).

Owns its two forms, ``{"data": [...]}`` and Together's bare array (PROTOCOLS.md 2.9), and the names under which servers
tell how much a model can read.
"""

from __future__ import annotations

from typing import Any

from .canonical import Json
from .codec import loads

_WINDOWS = ("context_window", "context_length", "max_model_len", "max_context_length", "inputTokenLimit")
"""Groq; Together, OpenRouter, Fireworks; vLLM (PROTOCOLS.md 2.8); Mistral."""
_OUTPUTS = ("max_output_tokens", "max_completion_tokens")


def read_models(body: bytes) -> list[Json]:
    """The models, each once: ``{"id", "created"?, "owned_by"?, "context_window"?, "max_output_tokens"?}``. Entries
    without an id are skipped. Raises ``ValueError`` for anything else than a list of models."""
    value = loads(body.strip(b" \t\r\n\xef\xbb\xbf"))
    if isinstance(value, dict):
        value = value.get("data")
    if not isinstance(value, list):
        raise ValueError("not a list of models")
    found: dict[str, Json] = {}
    for item in value:
        if isinstance(item, dict) and isinstance(name := item.get("id"), str) and name:
            found.setdefault(name, _model(name, item))
    return list(found.values())


def _model(name: str, item: Json) -> Json:
    model: Json = {"id": name}
    if (created := _count(item.get("created"))) is not None:
        model["created"] = created
    owner = item.get("owned_by") or item.get("organization")
    if isinstance(owner, str) and owner:
        model["owned_by"] = owner
    provider = item.get("top_provider")  # OpenRouter: the limit of an answer
    places = (item, provider) if isinstance(provider, dict) else (item,)
    for ours, names in (("context_window", _WINDOWS), ("max_output_tokens", _OUTPUTS)):
        counts = (_count(place.get(theirs)) for place in places for theirs in names)
        count = next((count for count in counts if count), None)
        if count is not None:
            model[ours] = count
    return model


def _count(value: Any) -> int | None:
    if isinstance(value, float) and 0 <= value < 1e15:
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
