"""The mock's HTTP face: executes what ``behaviour`` decided, on aiohttp's low-level server.

Owns sockets, time and the ledger's moments. ``web.Server`` is used without an ``Application`` because routing and
middlewares would cost more than the answer. ``handler_cancellation`` is what tells a handler at once that its client
has gone; a handler that hangs up on purpose waits for that same cancellation.

The rule that must not be broken: every request that entered the ledger leaves it, on every path.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from collections.abc import Awaitable, Callable
from itertools import islice
from typing import Any, NoReturn

from aiohttp import web

from ..errors import ClientError
from ..types import Clock
from ..wire.codec import dumps
from . import faults
from .behaviour import (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    MODELS,
    Behaviour,
    Ending,
    MockSettings,
    Plan,
    Script,
    error_script,
)
from .ledger import Entry, Ledger, fingerprint

MAX_BODY_BYTES = 64 * 1024 * 1024
"""Above OpenAI's own limit (about 50 MB with images)."""

BACKLOG = 1024
STOP_GRACE_S = 1.0
FLUSH_TURNS = 100
"""Turns of the loop that a reset waits for the bytes before it; a client that does not read may lose them."""

_POST = {path[3:]: path for path in (CHAT, COMPLETIONS, EMBEDDINGS)}
_LINGER_0 = struct.pack("ii", 1, 0)

Sleep = Callable[[float], Awaitable[object]]


class MockServer:
    """A mock provider on a port, in the caller's event loop.

    ``clock`` (monotonic seconds) and ``sleep`` are only used for latencies and pacing.

        server = MockServer(MockSettings(mean_latency_ms=0))
        port = await server.start()
        ...
        await server.stop()
    """

    def __init__(
        self,
        settings: MockSettings | None = None,
        *,
        clock: Clock = time.monotonic,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self.settings = settings or MockSettings()
        self.ledger = Ledger(self.settings.price_per_1k_tokens_usd)
        self.base_url = ""
        """With ``/v1``, as the OpenAI SDK wants it; set by ``start``."""
        self._behaviour = Behaviour(self.settings)
        self._clock = clock
        self._sleep = sleep
        self._token_s = 1 / self.settings.tokens_per_s if self.settings.tokens_per_s else 0.0
        self._listener: asyncio.Server | None = None
        self._http: web.Server | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> int:
        """Listen, and return the port."""
        if self._listener is not None:
            raise RuntimeError("the mock is already running")
        loop = asyncio.get_running_loop()
        self._http = web.Server(
            self._handle, request_factory=self._make_request, handler_cancellation=True, access_log=None
        )
        self._listener = await loop.create_server(self._http, host, port, backlog=BACKLOG)
        self._stopping = False
        bound: int = self._listener.sockets[0].getsockname()[1]
        self.base_url = f"http://{f'[{host}]' if ':' in host else host}:{bound}/v1"
        return bound

    async def stop(self) -> None:
        """Close the port and every connection, whatever is in flight. The ledger can still be read."""
        if self._listener is None or self._http is None:
            return
        listener, self._listener = self._listener, None
        self._stopping = True
        listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        self._http.pre_shutdown()
        await self._http.shutdown(STOP_GRACE_S)
        await listener.wait_closed()

    def _make_request(self, message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
        loop = asyncio.get_running_loop()
        return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=MAX_BODY_BYTES)

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        path, method = request.path, request.method
        short = path[3:] if path.startswith("/v1/") else path
        endpoint = _POST.get(short)
        if endpoint is not None and method == "POST":
            return await self._post(request, endpoint)
        if method == "GET" and (short == "/models" or short.startswith("/models/")):
            plan = self._behaviour.plan_models(short[8:] or None, request.headers.get(faults.HEADER))
            return await self._answer(request, MODELS, plan)
        return self._own(method, path, known=endpoint is not None)

    def _own(self, method: str, path: str, known: bool) -> web.Response:
        """The mock's own pages, and the ends of the road."""
        match method, path:
            case "GET", "/health":
                return _page(dumps({"status": "ok", "name": self.settings.name}))
            case "GET", "/mock/ledger":
                return _page(dumps({"name": self.settings.name} | self.ledger.snapshot()))
            case "POST", "/mock/ledger/reset":
                self.ledger.reset()
                return _page(dumps({"status": "ok"}))
            case "GET", "/mock/requests":
                return _page(self.ledger.requests_page())
        if known:
            message, status, code = f"Not allowed to {method} on {path}.", 405, "method_not_supported"
        else:
            message, status, code = f"Invalid URL ({method} {path})", 404, None
        error = ClientError(message, status=status, code=code)
        return web.Response(status=status, body=faults.error_body(error), content_type="application/json")

    async def _post(self, request: web.BaseRequest, endpoint: str) -> web.StreamResponse:
        try:
            raw = await request.read()
        except web.HTTPRequestEntityTooLarge:
            script = error_script(faults.status_error(413))
            return web.Response(status=413, headers=script.headers, body=script.tail)
        except ConnectionError:
            raise asyncio.CancelledError from None  # the client left while it sent: aiohttp would log an error
        plan = self._behaviour.plan(endpoint, raw, request.headers.get(faults.HEADER), int(time.time()))
        self.ledger.saw(request.method, request.path, request.headers, len(raw), plan.body)
        return await self._answer(request, endpoint, plan)

    async def _answer(self, request: web.BaseRequest, endpoint: str, plan: Plan) -> web.StreamResponse:
        key = fingerprint(request.headers.get("Authorization"))
        entry = Entry(f"req_{plan.ident}", endpoint, plan.model, plan.stream, key, self._clock())
        entry.fault = plan.fault
        gone = False
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.ledger.begin(entry, plan.prompt_tokens)
        try:
            if plan.delay_s > 0:
                await self._sleep(plan.delay_s)
            return await self._send(request, plan.script, entry)
        except (asyncio.CancelledError, ConnectionError):
            gone = not (entry.hung_up or self._stopping)
            raise asyncio.CancelledError from None
        finally:
            self._tasks.discard(task)
            self.ledger.finish(entry, self._clock(), gone)

    async def _send(self, request: web.BaseRequest, script: Script, entry: Entry) -> web.StreamResponse:
        if script.status == 0:
            await self._break_off(request, script.ending, entry)
        entry.status = script.status
        headers = {**script.headers, "x-request-id": entry.id, "x-mock-name": self.settings.name}
        if script.length is not None and script.ending is Ending.COMPLETE and not script.drip:
            whole = web.Response(status=script.status, headers=headers, body=script.tail)
            await whole.prepare(request)
            await whole.write_eof()
            self.ledger.wrote(entry, script.tokens)
            return whole
        response = web.StreamResponse(status=script.status, headers=headers)
        if script.length is not None:
            response.content_length = script.length
        if script.ending is Ending.CLOSE:
            response.force_close()
        await response.prepare(request)
        await self._send_body(response, script, entry)
        if script.ending not in (Ending.COMPLETE, Ending.CLOSE):
            await self._break_off(request, script.ending, entry)
        await response.write_eof()
        self.ledger.wrote(entry, script.tokens)
        return response

    async def _send_body(self, response: web.StreamResponse, script: Script, entry: Entry) -> None:
        write = response.write if not script.drip else _Drip(response)
        if script.lead:
            await write(script.lead)
        token_s = self._token_s if script.paced else 0.0
        content, sent, first = iter(script.content), 0, self._clock() if token_s else 0.0
        while batch := tuple(islice(content, script.burst)):
            # against the first token's time, so that late timers do not add up
            if token_s and sent and (wait_s := first + sent * token_s - self._clock()) > 0:
                await self._sleep(wait_s)
            await write(b"".join(batch))
            self.ledger.wrote(entry, len(batch))
            sent += len(batch)
        if script.tail:
            await write(script.tail)

    async def _break_off(self, request: web.BaseRequest, ending: Ending, entry: Entry) -> NoReturn:
        """End the answer as ``ending`` says, short of completing it, and wait for the connection to be gone."""
        transport = request.transport
        if transport is not None and ending in (Ending.CUT, Ending.RESET):
            entry.hung_up = True
            if ending is Ending.CUT:
                transport.close()  # what was written still goes out
            else:
                await _reset(transport)
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nothing completes this future")


class _Drip:
    """Writes byte by byte, each in a turn of the loop of its own, so that each is a packet of its own."""

    __slots__ = ("_response",)

    def __init__(self, response: web.StreamResponse) -> None:
        self._response = response

    async def __call__(self, data: bytes) -> None:
        for i in range(len(data)):
            await self._response.write(data[i : i + 1])
            await asyncio.sleep(0)


async def _reset(transport: asyncio.Transport) -> None:
    """Close with RST: lingering for no time is how a socket says that."""
    for _ in range(FLUSH_TURNS):
        if transport.get_write_buffer_size() == 0:
            break
        await asyncio.sleep(0)
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    transport.abort()


def _page(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
