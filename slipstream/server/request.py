"""What a handler of the reference listener gets: aiohttp's request with our rules about heads and bodies.

Owns ``100 Continue`` (RFC 9110 10.1.1: sent when the body is first asked for, so that a refused request never pulls its
body in) and the last touch to every response head.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import HttpVersion11, RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR
from multidict import CIMultiDict, CIMultiDictProxy

from ..errors import ClientError

if TYPE_CHECKING:
    from .connection import Connection

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
BAD = ERROR._replace(version=HttpVersion11, headers=CIMultiDictProxy(CIMultiDict()))
"""What stands for the request in the answer to bytes that are none."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why the rest of a connection is not served. ``in_body``: the head of this request was good and is passed on."""

    status: int
    reason: str
    in_body: bool


class MalformedBody(ClientError):
    """Reading the body failed: broken framing, too large, too slow. The listener answers, whatever the handler does."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.reason, status=fault.status, code="malformed_request")


class Request(web.BaseRequest):
    """aiohttp's request with lazy ``100 Continue``, our response headers and plain string keys.

    ``request["request_id"]`` is set by whoever needs an id first.
    """

    ATTRS = web.BaseRequest.ATTRS | frozenset({"_wants_continue", "connection", "malformed", "started"})

    def __init__(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        connection: Connection,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        # client_max_size=0: the guard has already refused what is too large.
        super().__init__(message, payload, connection, writer, task, loop, client_max_size=0)
        self.connection = connection
        self.malformed = message is BAD
        self.started = False
        self._wants_continue = (
            hdrs.EXPECT in message.headers and message.version == HttpVersion11 and not payload.is_eof()
        )

    def __setitem__(self, key: Any, value: Any) -> None:
        self._state[key] = value

    async def read(self) -> bytes:
        self._continue()
        return await super().read()

    @property
    def content(self) -> StreamReader:
        self._continue()
        return self._payload

    @property
    def unwanted_body(self) -> bool:
        """The client waits for ``100 Continue`` and nobody asked for the body (RFC 9110 10.1.1)."""
        return self._wants_continue

    def _continue(self) -> None:
        if self._wants_continue:
            self._wants_continue = False
            transport = self.connection.transport
            if transport is not None and not self._payload.is_eof():
                transport.write(CONTINUE)

    async def _prepare_hook(self, response: web.StreamResponse) -> None:
        """The last touch to every response head, ours and the handler's (aiohttp calls it just before writing)."""
        self.started = True
        headers = response.headers
        if self.connection.is_last(self):
            headers[hdrs.CONNECTION] = "close"
        decorate = self.connection.listener.decorate
        if decorate is not None:
            decorate(self, response)
        headers.pop(hdrs.SERVER, None)
        if headers.get(hdrs.CONNECTION, "").lower() == "close":
            response.force_close()
