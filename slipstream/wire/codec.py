"""JSON encoding and decoding: the only importer of a JSON library (design.md section 2).

The data plane does not decode bodies; this is for errors, usage objects, pages and everything else that is small or
rare.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec
import orjson

T = TypeVar("T")
DecodeError = ValueError
"""What ``loads`` and the decoders raise for bytes that are not JSON (``orjson``'s and ``msgspec``'s errors are kinds of
it)."""
TypeMismatch = msgspec.ValidationError
"""What a typed decoder raises for JSON of another shape; a ``DecodeError`` too."""


def loads(data: bytes) -> Any:
    """Decode one JSON document (UTF-8). Raises ``DecodeError`` (a ``ValueError``)."""
    return orjson.loads(data)


def dumps(value: Any) -> bytes:
    """Encode compactly as UTF-8. Raises ``TypeError`` for what JSON has no form for."""
    return orjson.dumps(value)


def decoder(kind: type[T]) -> Callable[[bytes], T]:
    """A decoder for one ``msgspec.Struct``: several times faster than decoding all and picking. Unknown members are
    skipped. Raises ``TypeMismatch`` or ``DecodeError``."""
    return msgspec.json.Decoder(kind).decode


def ascii_string(text: str) -> str:
    """A JSON string in ASCII: safe in a terminal and in one line of a log, whatever is in ``text``."""
    return json.dumps(text)


def pretty(value: Any) -> str:
    """Indented JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False)
