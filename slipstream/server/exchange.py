"""``engine.Exchange`` over an aiohttp request: the reference listener's side of the data plane."""

from __future__ import annotations

from collections.abc import Awaitable

from aiohttp import HttpVersion11, web
from multidict import CIMultiDict

from ..engine.exchange import ClientGone
from ..resilience.deadlines import TIMEOUT_FIELD, parse_timeout_header
from ..wire.headers import Block, fields
from .inflate import inflate


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

    @property
    def asked_s(self) -> float | None:
        value = self.header(TIMEOUT_FIELD)
        return None if value is None else parse_timeout_header(value)

    def header(self, name: str) -> str | None:
        values = self._request.headers.getall(name, ())
        return ",".join(values) if values else None

    async def body(self) -> bytes:
        content = self._request.content
        parts: list[bytes] = []
        while part := await content.readany():
            parts.append(part)
        raw = parts[0] if len(parts) == 1 else b"".join(parts)  # BaseRequest.read() copies it twice
        encoding = self._request.headers.get("Content-Encoding")
        return raw if encoding is None else inflate(raw, encoding, self._max_body)

    def reply(self, status: int, headers: Block, body: bytes) -> None:
        self.response = web.Response(status=status, headers=CIMultiDict(fields(headers)), body=body)

    async def begin(self, headers: Block) -> None:
        stream = web.StreamResponse(status=200, headers=CIMultiDict(fields(headers)))
        if self._request.version < HttpVersion11:
            stream.force_close()  # no chunks: the end of the stream is the end of the connection
        self.started = True
        try:
            await stream.prepare(self._request)
        except ConnectionError:
            raise ClientGone from None
        self._stream = self.response = stream

    def write(self, data: bytes) -> Awaitable[None]:
        return self._write(data)

    async def _write(self, data: bytes) -> None:
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
