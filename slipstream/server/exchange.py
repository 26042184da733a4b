"""``engine.Exchange`` over an aiohttp request: the reference listener's side of the data plane."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from ..engine.exchange import ClientGone
from ..errors import ClientError

INFLATE_RATIO = 100
"""A body that unpacks to more than this many times its size is an attack once it is above ``INFLATE_FREE`` (Q31)."""
INFLATE_FREE = 1024 * 1024


class AiohttpExchange:
    """One request. The handler returns ``response`` when the engine is done."""

    __slots__ = ("_max_body", "_request", "_stream", "request_id", "response", "started")

    def __init__(self, request: web.BaseRequest, request_id: str, max_body: int) -> None:
        self._request = request
        self._max_body = max_body
        self._stream: web.StreamResponse | None = None
        self.request_id = request_id
        self.response: web.StreamResponse | None = None
        self.started = False

    async def body(self) -> bytes:
        raw = await self._request.read()
        encoding = self._request.headers.get("Content-Encoding")
        return raw if encoding is None else inflate(raw, encoding, self._max_body)

    def reply(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.response = web.Response(status=status, headers=headers, body=body)

    async def begin(self, headers: Mapping[str, str]) -> None:
        stream = web.StreamResponse(status=200, headers=headers)
        self.started = True
        try:
            await stream.prepare(self._request)
        except ConnectionError:
            raise ClientGone from None
        self._stream = self.response = stream

    async def write(self, data: bytes) -> None:
        assert self._stream is not None
        try:
            await self._stream.write(data)
        except ConnectionError:
            raise ClientGone from None

    async def end(self) -> None:
        assert self._stream is not None
        try:
            await self._stream.write_eof()
        except ConnectionError:
            raise ClientGone from None


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
    if coding == "zstd":
        try:
            from compression import zstd  # type: ignore[import-not-found,unused-ignore]  # Python 3.14
        except ImportError:
            pass
        else:
            return lambda raw, limit: _bounded(zstd.ZstdDecompressor().decompress(raw, limit + 1), limit)
    raise ClientError(
        f"Content-Encoding {coding[:20]!r} is not supported; send gzip, deflate or identity.",
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


def _bounded(out: bytes, limit: int) -> bytes:
    if len(out) > limit:
        raise ClientError(f"The decompressed body is larger than {limit} bytes.", status=413, code="request_too_large")
    return out
