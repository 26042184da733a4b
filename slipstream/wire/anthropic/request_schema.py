"""A JSON Schema in the subset that Anthropic's structured outputs take.

The API answers 400 to objects that are not closed and to limits that its grammar cannot hold ("Structured outputs",
JSON Schema limitations). So objects are closed, ``oneOf`` becomes ``anyOf``, and what cannot be held is told to the
model in the description: what Anthropic's own SDKs do (``anthropic.transform_schema``). The client still gets JSON of
the form it asked for; only the limits are no longer guaranteed.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Json
from .request_parts import written

MAX_DEPTH = 100
"""Deeper schemas are passed on as they are; nobody writes them by hand."""
_MAPS = ("properties", "$defs", "definitions")
_LISTS = ("anyOf", "allOf", "oneOf")
_KEPT = frozenset(
    (*_MAPS, *_LISTS, *("type", "items", "required", "additionalProperties", "enum", "const", "default", "$ref"))
) | {"title", "description"}
_FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid", "text")
)
_SILENT = frozenset(("$schema", "$id", "$comment"))
"""They say nothing to a model."""


def subset(schema: Json, depth: int = 0) -> Json:
    """``schema`` in the subset; never changes what it is given."""
    if depth > MAX_DEPTH:
        return schema
    out: Json = {}
    told: list[str] = []
    for name, value in schema.items():
        if not _is_kept(name, value):
            if name not in _SILENT:
                told.append(f"{name}: {written(value).decode()}")
        elif name in _MAPS and isinstance(value, dict):
            out[name] = {key: _inner(inner, depth) for key, inner in value.items()}
        elif name in _LISTS and isinstance(value, list):
            out["anyOf" if name == "oneOf" and "anyOf" not in schema else name] = [_inner(x, depth) for x in value]
        elif name == "items":
            out[name] = _inner(value, depth)
        else:
            out[name] = value
    if schema.get("type") == "object" or "properties" in schema:
        out["additionalProperties"] = False
    if told:
        limits = "{" + ", ".join(told) + "}"
        text = out.get("description")
        out["description"] = f"{text}\n\n{limits}" if isinstance(text, str) and text else limits
    return out


def _inner(value: Any, depth: int) -> Any:
    return subset(value, depth + 1) if isinstance(value, dict) else value


def _is_kept(name: str, value: object) -> bool:
    if name == "minItems":
        return value in (0, 1)
    if name == "format":
        return isinstance(value, str) and value in _FORMATS
    return name in _KEPT
