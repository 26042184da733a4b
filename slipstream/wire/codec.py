"""JSON encoding and decoding: the only importer of a JSON library (design.md section 2).

The data plane does not decode bodies; this is for errors, usage objects, pages and everything else that is small or
rare.
"""

from __future__ import annotations

from typing import Any

import orjson

DecodeError = orjson.JSONDecodeError


def loads(data: bytes) -> Any:
    """Decode one JSON document (UTF-8). Raises ``DecodeError`` (a ``ValueError``)."""
    return orjson.loads(data)


def dumps(value: Any) -> bytes:
    """Encode compactly as UTF-8. Raises ``TypeError`` for what JSON has no form for."""
    return orjson.dumps(value)
