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
_MANY_DIGITS = 32
DecodeError = ValueError
"""What ``loads`` and the decoders raise for bytes that are not JSON (``orjson``'s and ``msgspec``'s errors are kinds of
it)."""
TypeMismatch = msgspec.ValidationError
"""What a typed decoder raises for JSON of another shape; a ``DecodeError`` too."""


def loads(data: bytes) -> Any:
    """Decode one JSON document (UTF-8). Raises ``DecodeError`` (a ``ValueError``).

    Half a surrogate pair, as an escape, is legal (RFC 8259 section 8.2) and occurs where a provider cuts text between
    two tokens; orjson refuses it, so a document with such an escape gets a second chance.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        if b"\\ud" not in data and b"\\uD" not in data:
            raise
    try:
        return json.loads(data.decode("utf-8"), parse_constant=_no_number, parse_float=_finite, parse_int=_whole)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    """As orjson has it: a number beyond a double is none."""
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise ValueError("number is infinity when parsed as double")
    return value


def _whole(text: str) -> int | float:
    """As orjson has it: beyond 64 bits it is a double."""
    value = int(text) if len(text) < _MANY_DIGITS else None
    return value if value is not None and -(1 << 63) <= value < 1 << 64 else _finite(text)


def dumps(value: Any) -> bytes:
    """Encode compactly as UTF-8. Raises ``TypeError`` for what JSON has no form for, and for more than 254 levels
    (fewer than ``loads`` takes). Half a surrogate pair is written as the escape that it came as.
    """
    try:
        return orjson.dumps(value)
    except TypeError as error:
        if "surrogates" not in str(error):
            raise
    try:
        return json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (ValueError, RecursionError):
        raise TypeError("nested too deeply, or with a number that JSON has no form for") from None


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
