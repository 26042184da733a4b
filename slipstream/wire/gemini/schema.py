"""JSON Schema to the OpenAPI subset that Gemini's ``Schema`` type is, for models that take nothing else (PROTOCOLS.md
1.2: no ``$ref``, no ``additionalProperties``; API reference, "Schema").

What the subset can say in other words is translated: references are put in place, ``null`` in a type list becomes
``nullable``, ``const`` a one-element ``enum``, ``oneOf`` ``anyOf``, ``allOf`` one merged schema. What it cannot say is
left out and named, so that the caller can report it (R65).

The rule that must not be broken: the result is finite and made in bounded time, whatever the schema refers to.
"""

from __future__ import annotations

from typing import Any

from ..canonical import Json

_PLAIN = frozenset(
    {
        "title",
        "description",
        "nullable",
        "minItems",
        "maxItems",
        "minProperties",
        "maxProperties",
        "minLength",
        "maxLength",
        "pattern",
        "minimum",
        "maximum",
        "default",
        "example",
    }
)
_SILENT = frozenset(
    {"$schema", "$id", "$comment", "$defs", "definitions", "$anchor", "examples", "deprecated", "readOnly", "writeOnly"}
)
"""Annotations and containers: nothing is lost with them."""
_FORMATS = frozenset({"enum", "date-time", "int32", "int64", "float", "double"})
"""Other formats are refused with a 400 (API reference, "Schema.format")."""
MAX_DEPTH = 32
MAX_NODES = 10_000
"""A schema that grows beyond this when its references are put in place is not sent whole."""


def to_openapi(schema: Json) -> tuple[Json, list[str]]:
    """``schema`` in the subset, and the keywords that were lost."""
    walk = _Walk(schema)
    return walk.node(schema, 0, ()), sorted(walk.lost)


class _Walk:
    __slots__ = ("_left", "_root", "lost")

    def __init__(self, root: Json) -> None:
        self._root = root
        self._left = MAX_NODES
        self.lost: set[str] = set()

    def node(self, schema: Any, depth: int, seen: tuple[str, ...]) -> Json:
        """One schema. ``seen`` are the references we are inside of: a recursive type ends as a plain object."""
        if not isinstance(schema, dict):
            return {}  # true and false
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            self.lost.add("depth")
            return {"type": "OBJECT"}
        ref = schema.get("$ref")
        if isinstance(ref, str):
            if ref in seen:
                self.lost.add("$ref")
                return {"type": "OBJECT"}
            rest = {key: value for key, value in schema.items() if key != "$ref"}
            return {**self.node(self._resolve(ref), depth + 1, (*seen, ref)), **self.node(rest, depth + 1, seen)}
        out: Json = {}
        for key, value in schema.items():
            self._keyword(out, key, value, depth, seen)
        if out.get("type") == "ARRAY":
            out.setdefault("items", {})  # required by the API for arrays
        return out

    def _keyword(self, out: Json, key: str, value: Any, depth: int, seen: tuple[str, ...]) -> None:
        if key in _PLAIN:
            out[key] = value
        elif key == "type":
            self._type(out, value)
        elif key == "properties" and isinstance(value, dict):
            if value:  # an OBJECT with empty properties is refused
                out["properties"] = {name: self.node(inner, depth + 1, seen) for name, inner in value.items()}
        elif key == "required" and isinstance(value, list):
            if value:
                out["required"] = value
        elif key == "propertyOrdering":
            out[key] = value
        elif key == "items" and isinstance(value, dict):
            out["items"] = self.node(value, depth + 1, seen)
        elif key in ("anyOf", "oneOf") and isinstance(value, list):
            self._any(out, value, depth, seen)
        elif key == "allOf" and isinstance(value, list):
            for inner in value:
                _merge(out, self.node(inner, depth + 1, seen))
        elif key in ("enum", "const"):
            self._enum(out, value if key == "enum" and isinstance(value, list) else [value])
        elif key == "format" and isinstance(value, str) and value in _FORMATS:
            out["format"] = value
        elif key not in _SILENT and not (key == "additionalProperties" and isinstance(value, bool)):
            self.lost.add(key)

    def _type(self, out: Json, value: Any) -> None:
        names = [name for name in (value if isinstance(value, list) else [value]) if isinstance(name, str)]
        kinds = [name.upper() for name in names if name.lower() != "null"]
        if len(kinds) < len(names):
            out["nullable"] = True
        if len(kinds) == 1:
            out["type"] = kinds[0]
        elif kinds:
            out["anyOf"] = [{"type": kind} for kind in kinds]

    def _any(self, out: Json, options: list[Any], depth: int, seen: tuple[str, ...]) -> None:
        inner = [option for option in options if not (isinstance(option, dict) and option.get("type") == "null")]
        if len(inner) < len(options):
            out["nullable"] = True
        if len(inner) == 1:
            _merge(out, self.node(inner[0], depth + 1, seen))
        elif inner:
            out["anyOf"] = [self.node(option, depth + 1, seen) for option in inner]

    def _enum(self, out: Json, values: list[Any]) -> None:
        if None in values:
            out["nullable"] = True
        words = [value for value in values if isinstance(value, str)]
        if words:
            out["enum"] = words
            out.setdefault("type", "STRING")
        if len(words) + values.count(None) < len(values):
            self.lost.add("enum")  # only strings may be listed (API reference, "Schema.enum")

    def _resolve(self, ref: str) -> Any:
        """What a reference inside the document points at; nothing outside of it is ever fetched."""
        if not ref.startswith("#"):
            self.lost.add("$ref")
            return {}
        at: Any = self._root
        for step in ref[1:].split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            at = at.get(name) if isinstance(at, dict) else None
        if not isinstance(at, dict):
            self.lost.add("$ref")
            return {}
        return at


def _merge(out: Json, more: Json) -> None:
    """Lay ``more`` over ``out``; properties and required names add up."""
    for key, value in more.items():
        if key == "properties" and isinstance(out.get(key), dict):
            out[key] = {**out[key], **value}
        elif key == "required" and isinstance(out.get(key), list):
            out[key] = out[key] + [name for name in value if name not in out[key]]
        else:
            out[key] = value
