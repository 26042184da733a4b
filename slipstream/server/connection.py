"""One client connection of the reference listener: aiohttp's ``RequestHandler`` behind our ``RequestGuard``.

Owns what happens between the socket and the handler: validation (reliability.md 2.1), the answer to malformed bytes,
the time-outs for slow clients (Q30), ``100 Continue``, lingering close. aiohttp parses again, but only what the guard
has passed.

Two rules that must not be broken. Answers leave in the order of the requests: a fault waits behind the good requests
before it. And no byte of a request gets into a log or an answer of ours (Q32): a fault is a status and a fixed text.

The private names of aiohttp that are used here exist in 3.14 (the floor in pyproject.toml); the hostile corpus in
``tests/integration/test_listener_hostile.py`` is what notices when a new version moves them.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aiohttp import web
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from .limits import LINGER_S, guard_for
from .request import Fault, MalformedBody, Request
from .unread import Unread

if TYPE_CHECKING:
    from .listener import Listener

log = logging.getLogger("slipstream.server")

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

QUEUE_MAX = 16
"""Pipelined requests waiting behind the one in progress; more stay in the socket (reading is paused)."""
READ_BUFFER = 256 * 1024
"""Bytes of a body that wait for the handler before reading is paused (twice this in aiohttp)."""


class Connection(RequestHandler):
    """aiohttp's connection, fed through the guard."""

    __slots__ = (
        "_body_bytes", "_body_since", "_delivered", "_fault", "_guard", "_head_since", "_last_byte", "_lingering",
        "_once", "_payload", "_stopped", "_timer", "_timer_at", "_unread", "listener",
    )  # fmt: skip

    def __init__(
        self, server: web.Server, listener: Listener, loop: asyncio.AbstractEventLoop, once: bool = False
    ) -> None:
        limits = listener.limits
        super().__init__(
            server,
            loop=loop,
            keepalive_timeout=limits.keepalive_s,
            logger=log,
            access_log=None,  # type: ignore[arg-type]  # aiohttp tests it for truth
            lingering_time=LINGER_S,
            auto_decompress=False,
            read_bufsize=READ_BUFFER,
            # Not stricter than the guard: its answers are the better ones.
            max_line_size=limits.max_target_bytes + 64,
            max_field_size=limits.max_field_bytes + 64,
            max_headers=limits.max_fields + 1,
        )
        self._max_msg_queue_size = QUEUE_MAX
        self._msg_queue_resume_size = QUEUE_MAX // 2
        self.listener = listener
        self._guard = guard_for(limits)
        self._fault: Fault | None = None
        self._delivered = False
        self._payload: StreamReader = EMPTY_PAYLOAD
        self._lingering: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._head_since = self._body_since = self._last_byte = loop.time()
        self._body_bytes = 0
        self._stopped = False
        self._unread: Unread | None = None
        self._once = once
        """It ends with its first answer."""

    # ------------------------------------------------------------------ the socket's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not self._once and self.listener.turns_away(transport):
            return
        super().connection_made(transport)
        self.listener.opened(self)
        self._arm(self._head_since + self.listener.limits.header_timeout_s)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unread is not None:
            self._unread.stop()
        self._stop_lingering()
        super().connection_lost(exc)
        self.listener.closed(self)

    def data_received(self, data: bytes) -> None:
        if not data:  # aiohttp: go on with what your parser still holds
            self._parse(data)
            self._deliver()
            return
        if self._fault is not None or self._lingering is not None or self._force_close:
            return
        guard = self._guard
        idle, heads, messages = guard.idle, guard.heads, guard.messages
        passed = guard.feed(data)
        if passed:
            self._parse(passed)
        if guard.error_status:
            self.refuse(Fault(guard.error_status, guard.error_reason, guard.error_in_body))
        elif not guard.idle and not guard.done:
            now = self._last_byte = self._loop.time()
            if guard.in_head:
                if idle or guard.messages != messages:
                    self._head_since = now
            elif guard.heads != heads:
                self._body_since, self._body_bytes = now, 0
            self._body_bytes += len(data)
            self._watch()

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that half-closes after malformed bytes still gets its answer; any other is gone (R1)."""
        if self._lingering is None and self._fault is None:
            return False
        self._stop_lingering()
        self._loop.call_later(LINGER_S, self.force_close)
        return True

    def _parse(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages:
            self._payload = self._messages[-1][1]

    # ------------------------------------------------------------------ malformed bytes
    def refuse(self, fault: Fault) -> None:
        self._fault = fault
        self._report(fault)
        self._deliver()

    def _report(self, fault: Fault) -> None:
        self.listener.on_bad_request(fault.status, fault.reason, self.peer)

    def _deliver(self) -> None:
        """Queue the fault behind the requests before it, as soon as aiohttp's parser has given out the last of them."""
        fault = self._fault
        if fault is None or self._delivered or self._request_count < self._guard.heads:
            return
        self._delivered = True
        if fault.in_body:
            self._payload.set_exception(MalformedBody(fault))
            return
        self._request_count += 1
        self._messages.append((_ErrInfo(fault.status, MalformedBody(fault), fault.reason), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fault_of(self, request: Request) -> Fault | None:
        """The fault in the body of this request, if there is one."""
        if self._fault is not None and self._fault.in_body and request._payload is self._payload:
            return self._fault
        return None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """aiohttp asks for the answer to what could not be parsed, and to what ``Listener.serve`` raised."""
        assert isinstance(request, Request)
        if isinstance(exc, ConnectionError):
            raise exc
        if not request.malformed:
            return self.refusal(request, 500, "internal error")
        if self._fault is None:  # aiohttp refuses what the guard has passed
            self._fault = Fault(400, "malformed request", False)
            self._delivered = True
            self._report(self._fault)
        return self.refusal(request, self._fault.status, self._fault.reason)

    def refusal(self, request: Request, status: int, reason: str) -> web.Response:
        """An error answer of our own, after which the connection is closed."""
        if request.started:
            raise ConnectionResetError("a response is under way: it can only be cut off")
        request_id = request.get("request_id")
        if request_id is None:
            request_id = request["request_id"] = "req_" + secrets.token_hex(12)
        body, content_type = self.listener.error_body(status, reason, str(request_id))
        response = web.Response(status=status, body=body, headers={"Content-Type": content_type, "Connection": "close"})
        response.force_close()
        return response

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        assert isinstance(request, Request)
        finished, lost = await super().finish_response(request, resp, start_time)
        if request.malformed or request.unwanted_body or self.fault_of(request) is not None:
            await self._linger()
        elif self.listener.closing:
            finished.force_close()
        return finished, lost

    async def _linger(self) -> None:
        """Half-close, then read and drop until the client closes: a reset would destroy the answer (RFC 9112 9.6)."""
        transport = self.transport
        if transport is not None and not transport.is_closing():
            self._lingering = self._loop.create_future()
            handle = self._loop.call_later(LINGER_S, self._stop_lingering)
            try:
                with suppress(OSError):  # the client may have gone first
                    transport.write_eof()
                self._resume_transport_reading()
                await self._lingering
            finally:
                handle.cancel()
        self.force_close()

    def _stop_lingering(self) -> None:
        if self._lingering is not None and not self._lingering.done():
            self._lingering.set_result(None)

    # ------------------------------------------------------------------ slow clients
    def _arm(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_at(deadline, self._on_time)

    def _deadline(self) -> float:
        """When what has begun to arrive is too late: a head as a whole; a body by its pauses and its average rate."""
        limits = self.listener.limits
        if not self._guard.in_body:
            return self._head_since + limits.header_timeout_s
        return limits.body_deadline(self._body_since, self._body_bytes, self._last_byte)

    def _watch(self) -> None:
        """Have the timer run no later than the deadline. It is moved when it fires, not with every read."""
        deadline = self._deadline()
        if self._timer is None or deadline < self._timer_at:
            self._arm(deadline)

    def _on_time(self) -> None:
        self._timer = None
        guard = self._guard
        if self._fault is not None or self._force_close:
            return
        if guard.idle or guard.done:
            if guard.heads == 0:
                self.force_close()  # a new connection that says nothing
            return  # else: aiohttp's keep-alive timer is in charge
        if self._stopped:
            self._forgive()
        deadline = self._deadline()
        if deadline > self._loop.time():
            self._arm(deadline)
        elif guard.in_body:
            self.refuse(Fault(408, "the request body came too slowly", True))
        else:
            self.refuse(Fault(408, "the request head came too slowly", False))

    def _forgive(self) -> None:
        """We stopped reading, so the client could not be faster."""
        self._head_since = self._body_since = self._last_byte = self._loop.time()
        self._body_bytes = 0

    def _pause_transport_reading(self) -> None:
        self._stopped = True
        super()._pause_transport_reading()

    def _resume_transport_reading(self) -> None:
        if self._stopped:  # aiohttp also resumes what was never paused
            self._stopped = False
            self._forgive()
        super()._resume_transport_reading()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_unread(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        transport = self.transport
        if self._unread is not None and transport is not None and not transport.is_closing():
            self._unread.stop()
            self._unread = None

    async def start(self) -> None:
        await super().start()
        self._watch_unread(self.transport)

    def force_close(self) -> None:
        transport = self.transport  # aiohttp forgets it, and it closes when all is sent
        super().force_close()
        self._watch_unread(transport)

    def _watch_unread(self, transport: asyncio.Transport | None) -> None:
        """What waits to be sent must be taken, also behind the end of the connection."""
        if transport is not None and self._unread is None and transport.get_write_buffer_size():
            self._unread = Unread(transport, self.listener.limits.slow_reader_s, self._loop)

    def _process_keepalive(self) -> None:
        if self._guard.idle:
            super()._process_keepalive()
        else:
            self._keepalive_handle = None  # the next request is arriving; start() sets a new one after it

    # ------------------------------------------------------------------ the listener's side
    @property
    def peer(self) -> str:
        name = self.peername
        return f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unknown"

    def is_last(self, request: Request) -> bool:
        """Whether the connection ends with the answer to this request."""
        guard = self._guard
        return (
            self.listener.closing
            or self._once
            or request.malformed
            or request.unwanted_body
            or (guard.done and not self._messages and self._request_count >= guard.heads)
            or self.fault_of(request) is not None
        )

    def drain(self) -> None:
        """Close now if nothing is under way; else after the response in progress."""
        if self._waiter is not None and not self._messages and self._guard.idle:
            self.force_close()

    def abort(self) -> asyncio.Task[None] | None:
        """Cancel what is under way and drop the connection; the task that is still winding down."""
        task = self._task_handler
        if self.transport is not None:
            self.transport.abort()
        if task is not None:
            task.cancel()
        return task

    def log_exception(self, *args: Any, **kw: Any) -> None:
        """aiohttp's own complaints, without their traceback and text: both may hold bytes of the request."""
        exc = kw.get("exc_info")
        if not isinstance(exc, MalformedBody):
            log.error("connection failed: %s", type(exc).__name__ if exc is not None else "no response")
