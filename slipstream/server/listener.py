"""The reference listener: aiohttp's low-level server behind our ``RequestGuard``, without ``web.Application``.

Owns the listening socket, the set of open connections and how they end; what happens on one of them is in
``connection.py``. The handler is called once per well-formed request and cancelled the moment its client is gone
(R1, R3, R5). Every response passes ``decorate``, also those to malformed requests, and none has a ``Server`` field.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from aiohttp import http_parser, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.http import RawRequestMessage
from aiohttp.streams import StreamReader
from aiohttp.web_protocol import ERROR, RequestHandler

from ..errors import ConfigError
from .acceptor import Accept, Listening
from .connection import Connection, Handler, log
from .faults import where
from .limits import CANCEL_S, ListenerLimits
from .request import BAD, MalformedBody, Request
from .surplus import Surplus

__all__ = ["Listener", "ListenerLimits", "MalformedBody"]

BACKLOG = 1024


def require_c_parser() -> None:
    """Raises ``ConfigError`` where aiohttp has only its Python parser."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise ConfigError(["aiohttp's C parser is missing, and its Python parser is less strict: install a wheel"])


class Listener:
    """One listening socket.

    ``handler(request)`` gives the response. ``error_body(status, reason, request_id)`` gives body and content type of
    the answers that the listener makes itself; ``on_bad_request(status, reason, peer)`` is told once of each malformed
    request; ``on_unserved(request, status)`` of each request whose body is malformed before the handler could be called
    for it; ``refuse(beginning)`` of each connection beyond the limit (``Surplus``); ``decorate(request, response)`` may
    change the head of every response. For a malformed request, the
    ``request`` it gets has no fields and the method ``UNKNOWN``.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        limits: ListenerLimits,
        error_body: Callable[[int, str, str], tuple[bytes, str]],
        on_bad_request: Callable[[int, str, str], None],
        decorate: Callable[[web.BaseRequest, web.StreamResponse], None] | None = None,
        on_unserved: Callable[[web.BaseRequest, int], None] | None = None,
        refuse: Callable[[bytes], bytes] | None = None,
    ) -> None:
        require_c_parser()
        self._handler = handler
        self.limits = limits
        self.error_body = error_body
        self.on_bad_request = on_bad_request
        self.decorate = decorate
        self._on_unserved = on_unserved
        self.closing = False
        self._surplus = None if refuse is None else Surplus(limits.max_connections, self._count, refuse, self)
        self._open: set[Connection] = set()
        self._drained = asyncio.Event()
        self._listening: Listening | None = None
        self._server: _Server | None = None
        self._port = 0

    @property
    def port(self) -> int:
        """The bound port, after ``start``."""
        return self._port

    @property
    def connections(self) -> int:
        return len(self._open)

    async def start(
        self, host: str | None, port: int, *, sock: socket.socket | None = None, accept: Accept | None = None
    ) -> None:
        """Listen on host and port, on ``sock``, or where ``accept`` does."""
        loop = asyncio.get_running_loop()
        if accept is not None:
            self._listening = accept(self.connection)
        elif sock is not None:
            self._listening = await loop.create_server(self.connection, sock=sock, backlog=BACKLOG)
        else:
            self._listening = await loop.create_server(self.connection, host, port, backlog=BACKLOG, reuse_address=True)
        self._port = self._listening.sockets[0].getsockname()[1]

    def connection(self, once: bool = False) -> Connection:
        """A protocol for one more connection: of our own socket, or handed over by the native listener. ``once``: it
        ends with its first answer."""
        if self._server is None:
            self._server = _Server(self)
        return Connection(self._server, self, self._server._loop, once)

    def turns_away(self, transport: asyncio.BaseTransport) -> bool:
        """Whether a new connection is one too many, and answered elsewhere. Not asked of those that are handed over."""
        return self._surplus is not None and self._listening is not None and self._surplus.takes(transport)

    def _count(self) -> int:
        return len(self._open)

    def drain(self) -> None:
        """Stop accepting, close idle connections, and the others after the answer in progress."""
        self.closing = True
        if self._listening is not None:
            self._listening.close()
        for connection in list(self._open):
            connection.drain()

    async def close(self, drain_s: float) -> None:
        """``drain``, let requests in flight end within ``drain_s``, cancel the rest."""
        self.drain()
        if self._surplus is not None:
            self._surplus.close()
        if self._open:
            self._drained.clear()
            try:
                async with asyncio.timeout(drain_s):
                    await self._drained.wait()
            except TimeoutError:
                pass
        tasks = [task for connection in list(self._open) if (task := connection.abort()) is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_S)

    # ------------------------------------------------------------------ called by connections
    def opened(self, connection: Connection) -> None:
        self._open.add(connection)
        if self.closing:  # after this turn: one that was handed over has a request with it
            asyncio.get_running_loop().call_soon(connection.drain)

    def closed(self, connection: Connection) -> None:
        self._open.discard(connection)
        if self.closing and not self._open:
            self._drained.set()

    async def serve(self, request: web.BaseRequest) -> web.StreamResponse:
        """The handler's response, or ours if it fails or its request turns out malformed."""
        assert isinstance(request, Request)
        connection = request.connection
        response: web.StreamResponse | None = None
        early = connection.fault_of(request)
        if early is None:
            try:
                response = await self._handler(request)
            except web.HTTPException:
                raise
            except Exception as exc:
                if connection.transport is None or connection.transport.is_closing():
                    raise ConnectionResetError("the client is gone") from None
                if connection.fault_of(request) is None:
                    log.error("the request handler failed: %s", where(exc))
                    return connection.refusal(request, 500, "internal error")
        elif self._on_unserved is not None:
            self._on_unserved(request, early.status)
        fault = connection.fault_of(request)
        if fault is not None and not request.started:
            return connection.refusal(request, fault.status, fault.reason)
        if response is None:
            log.error("the request handler gave no response")
            return connection.refusal(request, 500, "internal error")
        return response


class _Server(web.Server):
    """aiohttp's factory of connections, making ours."""

    def __init__(self, listener: Listener) -> None:
        super().__init__(listener.serve, request_factory=self._new_request, handler_cancellation=True)
        self._listener = listener

    def _new_request(
        self,
        message: RawRequestMessage,
        payload: StreamReader,
        protocol: RequestHandler,
        writer: AbstractStreamWriter,
        task: asyncio.Task[None],
    ) -> web.BaseRequest:
        assert isinstance(protocol, Connection)
        return Request(BAD if message is ERROR else message, payload, protocol, writer, task, self._loop)
