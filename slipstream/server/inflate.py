"""Undoing the ``Content-Encoding`` of a request body (RFC 9110 8.4), within bounds (R27, R28, Q31)."""

from __future__ import annotations

import zlib
from typing import Any

from ..errors import ClientError
from ..net.decode import Refusing, decoder_for

INFLATE_RATIO = 100
"""A body that unpacks to more than this many times its size is an attack once it is above ``INFLATE_FREE`` (Q31)."""
INFLATE_FREE = 1024 * 1024


def inflate(raw: bytes, encoding: str, limit: int) -> bytes:
    """Undo a request's ``Content-Encoding`` (RFC 9110 8.4), never holding more than ``limit`` bytes (R27, R28).

    Raises ``ClientError``: 415 for a coding we cannot undo, 400 for broken data, 413 beyond the limit or the ratio.
    """
    for coding in reversed([c.strip().lower() for c in encoding.split(",")]):
        if coding in ("identity", ""):
            continue
        allowed = min(limit, max(INFLATE_FREE, len(raw) * INFLATE_RATIO))
        try:
            raw = _decoder(coding)(raw, allowed)
        except ClientError:
            raise
        except Exception:
            raise ClientError(f"The body is not valid {coding} data.", code="invalid_content_encoding") from None
    return raw


def _decoder(coding: str) -> Any:
    if coding in ("gzip", "x-gzip"):
        return lambda raw, limit: _zlib(raw, limit, zlib.MAX_WBITS | 16)
    if coding == "deflate":
        return lambda raw, limit: _zlib(raw, limit, zlib.MAX_WBITS)
    if coding in ("br", "zstd") and not isinstance(decoder := decoder_for(coding.encode()), Refusing):
        return lambda raw, limit: _pieces(decoder, raw, limit)
    raise ClientError(
        f"Content-Encoding {coding[:20]!r} is not supported here; send gzip, deflate or identity.",
        status=415,
        code="unsupported_content_encoding",
    )


def _zlib(raw: bytes, limit: int, wbits: int) -> bytes:
    decoder = zlib.decompressobj(wbits)
    out = decoder.decompress(raw, limit + 1)
    _bounded(out, limit)
    if not decoder.eof or decoder.unused_data:
        raise ValueError("truncated, or data after the end")
    return out


def _pieces(decoder: Any, raw: bytes, limit: int) -> bytes:
    """A coding of the extra ``codings``, by pieces: no more than one above the limit is ever made."""
    parts = [decoder.decode(raw)]
    while decoder.pending and sum(map(len, parts)) <= limit:
        parts.append(decoder.decode(b""))
    out = _bounded(b"".join(parts), limit)
    decoder.finish()
    return out


def _bounded(out: bytes, limit: int) -> bytes:
    if len(out) > limit:
        raise ClientError(f"The decompressed body is larger than {limit} bytes.", status=413, code="request_too_large")
    return out
