"""One client connection of the native listener, from the socket to the engine and back.

Every byte passes ``RequestGuard`` first; a request for a hot route is answered here, in one task that lives as long as
the request; at any other request the connection, bytes and all, becomes one of the reference listener's.

The rules that must not be broken: one request of a connection at a time, answers in the order of requests, a disconnect
cancels the task at once (R1), and a client that is slow to read stops everything behind it (R33): the upstream of its
stream, and the requests that it has sent already.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING

from .._fast import RequestTask
from ..engine.exchange import ClientGone
from ..engine.pipeline import serve
from ..errors import GatewayError
from ..obs.metrics import CLIENT_GONE_STATUS
from ..resilience.admission import Place
from ..resilience.bulkhead import Waiter
from ..types import Endpoint
from ..wire.faces import FACES, Face, face_of_request
from ..wire.headers import block
from .app import SHORT_BODY_BYTES, malformed
from .faults import is_ours, where
from .fields import check_media_type, choose_request_id
from .gate import Refusal
from .limits import LINGER_S, guard_for
from .native_body import TURN_BYTES, Incoming
from .native_exchange import CONTINUE, NativeExchange, peer_of
from .request import Fault

if TYPE_CHECKING:
    from .native import NativeListener

log = logging.getLogger("slipstream.server")

ENDPOINTS = tuple(Endpoint)
HEAVY_BYTES = 1024 * 1024
"""Larger bodies are joined and begun one in each turn of the loop."""
QUEUED_MAX = 64 * 1024
"""Bytes of pipelined requests kept while one is served; more stay in the socket."""
WRITE_HIGH = 64 * 1024
"""Unsent bytes above which the upstream is no longer read (R33: at most 256 KiB a stream, with what waits there)."""
REFUSED_BYTES = 64
"""Enough of a request to know its route."""
NEVER = float("inf")
ENDED = Fault(400, "", False)  # in the place of a fault: nothing more is read, and nobody is to be told


class NativeConnection:
    """One client connection: a protocol of asyncio."""

    __slots__ = (
        "_buffer", "_drain", "_error", "_exchange", "_fault", "_guard", "_in_head", "_incoming", "_key_name",
        "_moved_at", "_paused", "_place", "_refused", "_route", "_starting", "_task", "_turn_bytes", "_unsent",
        "blocked", "deadline", "http10", "keep_alive", "lingering", "listener", "transport",
    )  # fmt: skip

    def __init__(self, listener: NativeListener) -> None:
        self.listener = listener
        self.transport: asyncio.Transport | None = None
        self._guard = guard_for(listener.limits)
        # between requests
        self._buffer = b""
        """Bytes that passed the guard and were not used yet: pipelined requests."""
        self._fault: Fault | None = None
        self._refused = b""
        """The beginning of the bytes in which the fault is."""
        self._in_head = self._paused = self.lingering = False
        self.deadline = listener.loop.time() + listener.limits.header_timeout_s
        # the request that is arriving
        self._exchange: NativeExchange | None = None
        self._key_name = ""
        self._route = 0
        self._error: GatewayError | None = None
        """Why it will be refused when its body is here."""
        self._place: Place = False
        """What it holds of the room in this process."""
        self._incoming: Incoming | None = None
        """Its body, while that is not whole."""
        self._turn_bytes = 0
        # the request that is being served
        self._task: RequestTask | None = None
        self._starting = False
        """The task is in its first step, within ``_serve``."""
        self._drain: asyncio.Future[None] | None = None
        self.blocked = False
        self._unsent, self._moved_at = 0, 0.0
        """What the client has not taken, and when it was last seen to take some."""
        self.keep_alive = True
        self.http10 = False

    # ------------------------------------------------------------------ the socket's side
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.listener.surplus.takes(transport):
            return
        self.transport = transport  # type: ignore[assignment]
        transport.set_write_buffer_limits(high=WRITE_HIGH)  # type: ignore[attr-defined]
        self.listener.opened(self)

    def data_received(self, data: bytes) -> None:
        if self._fault is not None:
            return
        guard = self._guard
        passed = guard.feed(data)
        if guard.error_status:
            self._fault = Fault(guard.error_status, guard.error_reason, guard.error_in_body)
            self._refused = data[:REFUSED_BYTES]
        if self._incoming is not None:
            self._more_body(passed)
        elif self._task is None and not self.blocked:
            self._buffer = self._buffer + passed if self._buffer else passed
            self._advance()
        else:
            self._buffer += passed
            if len(self._buffer) > QUEUED_MAX:
                self._pause()

    def eof_received(self) -> bool:
        """A client that half-closes while it waits for an answer is gone (R1)."""
        if self._task is not None or self._incoming is not None:
            self.abort()  # close() would wait until what is unsent has been taken
        else:
            self._end()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self._buffer = b""  # nothing more of it is begun
        self.listener.closed(self)
        if self._task is not None:
            self._task.cancel()
        elif self._incoming is not None and self._error is None and self._fault is None:
            self._settle(CLIENT_GONE_STATUS)
        self._leave()
        self._let_write()

    def pause_writing(self) -> None:
        self.blocked = True
        self._watch_progress()

    def resume_writing(self) -> None:
        self.blocked = False
        self._let_write()
        if self._fault is not ENDED:
            self.listener.stalled.discard(self)
            if self._task is None and self._incoming is None:
                self.deadline = self.listener.idle_until
                self._advance()

    def _let_write(self) -> None:
        if self._drain is not None and not self._drain.done():
            self._drain.set_result(None)

    def _pause(self) -> None:
        """Read no more for now. The listener looks whether the client is still there: we cannot see it leave."""
        if not self._paused and self.transport is not None:
            self._paused = True
            self.transport.pause_reading()
            self.listener.watch(self)

    def _resume(self) -> None:
        if self._paused and self.transport is not None and len(self._buffer) <= QUEUED_MAX:
            self._paused = False
            self.listener.paused.discard(self)
            self.transport.resume_reading()

    # ------------------------------------------------------------------ requests arrive
    def _advance(self) -> None:
        """Begin requests from the buffer until one is being served or none is whole."""
        while self._buffer:
            if self._task is not None or self._incoming is not None or self.blocked:
                return
            if not self._begin():
                break
        if self._task is not None or self._incoming is not None or self.transport is None:
            return
        self._resume()
        fault = self._fault
        if fault is not None:
            if fault is not ENDED and not self.blocked:
                self._refuse(fault)
        elif not self._in_head and not self._guard.idle:
            self._in_head = True
            self.deadline = self.listener.loop.time() + self.listener.limits.header_timeout_s

    def _begin(self) -> bool:
        """Read the head in front of the buffer. False: there is none, or the connection is no longer ours."""
        listener = self.listener
        head = listener.head
        data = self._buffer
        end = head.read(data)
        if end < 0:
            return False
        if head.route < 0:
            self._hand_over()
            return False
        self._in_head = False
        self._route = head.route
        self.http10 = head.http10
        self.keep_alive = head.keep_alive
        self._error = None
        authorization, api_key, media_type, encoding, given_id, origin, timeout = head.values()
        request_id = choose_request_id(given_id)
        exchange = self._exchange = NativeExchange(self, request_id, encoding, origin, timeout is not None)
        exchange.head = data[:end]
        try:
            self._key_name = listener.app.auth.check_bytes(authorization, api_key)
            check_media_type(media_type)
            admission = listener.admission
            if admission.in_flight < admission.free:
                admission.in_flight += 1
                self._place = True
            else:
                self._place, self._error = listener.gate.ask(exchange, ENDPOINTS[self._route], self._key_name)
        except GatewayError as error:
            self._error = error
            listener.app.settle(ENDPOINTS[self._route], exchange.request_id, error.status, error=error)
        size = max(0, head.content_length)
        have = len(data) - end
        if have >= size and not head.chunked:
            self._buffer = data[end + size :] if have > size else b""
            self._serve(data[end : end + size])
        else:
            self._await_body(data, end, size, head.chunked, head.expect_continue)
        return True

    def _await_body(self, data: bytes, end: int, size: int, chunked: bool, expect: bool) -> None:
        """The head ends at ``end`` of ``data``; behind it is the beginning of the body."""
        self._buffer = b""
        if self._error is not None and (expect or size > SHORT_BODY_BYTES):
            self._refuse_now(self._error)
            return
        transport = self.transport
        if expect and transport is not None:
            transport.write(CONTINUE)
        incoming = self._incoming = Incoming(size, chunked, self.listener.loop.time())
        self._turn_bytes = 0
        self._resume()
        inlet = incoming.inlet(self, data, end) if self._error is None and self._fault is None else None
        if inlet is None or transport is None:
            self._more_body(data[end:])
        else:
            self._came(incoming, incoming.received)
            transport.set_protocol(inlet)

    def _more_body(self, data: bytes) -> None:
        incoming = self._incoming
        assert incoming is not None
        rest = incoming.feed(data)
        if rest is not None:
            self._whole(incoming, rest)
        elif self._fault is not None:
            self._refuse(self._fault)
        elif self._error is not None and incoming.received > SHORT_BODY_BYTES:
            self._refuse_now(self._error)  # nobody uploads 50 MB to be told 401
        else:
            self._came(incoming, len(data))

    def arrived(self, incoming: Incoming, size: int, whole: bool) -> None:
        """The inlet has read so much."""
        self._guard.body_passed(size)
        if not whole:
            self._came(incoming, size)
        elif self.transport is not None:
            self.transport.set_protocol(self)  # type: ignore[arg-type]
            self._whole(incoming, b"")

    def _came(self, incoming: Incoming, size: int) -> None:
        """More is here of a body that is not whole."""
        listener = self.listener
        self._turn_bytes += size
        if self._turn_bytes >= TURN_BYTES and self.transport is not None:
            self.transport.pause_reading()
            listener.intake.call(self._read_on)
        self.deadline = listener.limits.body_deadline(incoming.since, incoming.received, listener.loop.time())

    def _read_on(self) -> None:
        """The body may go on: ``_came`` had stopped it."""
        self._turn_bytes = 0
        if self.transport is not None and not self._paused:
            self.transport.resume_reading()

    def _whole(self, incoming: Incoming, rest: bytes) -> None:
        parts = incoming.parts
        self._buffer, self._incoming = rest, None
        if incoming.received > HEAVY_BYTES and self._exchange is not None and self._error is None:
            self._exchange.parts = parts
            self._serve(b"")
        else:
            self._serve(parts[0] if len(parts) == 1 else b"".join(parts))
        if self._task is None:
            self._advance()

    # ------------------------------------------------------------------ requests are served
    def _serve(self, body: bytes) -> None:
        exchange = self._exchange
        assert exchange is not None
        self.deadline = NEVER
        if self._error is not None:
            self._answer_error(self._error)
            self._answered()
            return
        exchange.data = body
        task = self._task = RequestTask(self._run(exchange), self.listener.loop)
        self._starting = True
        task.begin(not self._buffer)  # one request of a connection in each turn
        self._starting = False

    async def _run(self, exchange: NativeExchange) -> None:
        try:
            if self._place is True:
                await serve(self.listener.runtime, exchange, ENDPOINTS[self._route], self._key_name)
            else:
                await self._wait(exchange)
        except ClientGone:
            self.abort()
        except (Exception, asyncio.CancelledError) as exc:
            ours = is_ours(exc)
            if ours:
                log.error("the request handler failed: %s", where(exc))
            if exchange.started or not ours:
                self.abort()
            else:
                self.keep_alive = False
                self._answer_error(GatewayError("internal error"))
        self._task = None
        self._answered()
        if self._starting:
            return  # who began it goes on
        if self._buffer:  # not within the callback that brought the answer: it has the provider's connection still
            self.listener.loop.call_soon(self._advance)
        elif self._paused or self._fault is not None or not self._guard.idle:
            self._advance()

    async def _wait(self, exchange: NativeExchange) -> None:
        """Serve it when its turn has come."""
        listener, endpoint = self.listener, ENDPOINTS[self._route]
        assert isinstance(self._place, Waiter)
        told = await listener.gate.wait(self._place, exchange, endpoint, self._key_name)
        self._place = not isinstance(told, Refusal)
        if isinstance(told, Refusal):
            self._answer_error(told)
        else:
            await serve(listener.runtime, exchange, endpoint, self._key_name, told)

    def _leave(self) -> None:
        """The request is over: its place is another's."""
        if self._place:
            self.listener.admission.give_back(self._place)
            self._place = False

    def _answered(self) -> None:
        """The answer is written: wait for the next request, or end the connection."""
        self._exchange = None
        self._leave()
        transport = self.transport
        if transport is None or transport.is_closing():
            self._fault, self._buffer = ENDED, b""
        elif self.keep_alive:
            self.deadline = self.listener.idle_until
        else:
            self._end()

    def _end(self) -> None:
        """Close when everything is sent. The listener sees to it that this does not take for ever."""
        self._fault, self._buffer, self.deadline = ENDED, b"", NEVER
        if self.transport is not None:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                self._watch_progress()

    def _answer_error(self, error: GatewayError, face: Face | None = None) -> None:
        exchange = self._exchange
        assert exchange is not None
        if isinstance(error, Refusal) and exchange.refuse(ENDPOINTS[self._route], error):
            return
        face = face or FACES[ENDPOINTS[self._route]]
        headers = block({"Content-Type": face.error_type, **(error.headers or {})})
        with contextlib.suppress(ClientGone):
            exchange.reply(error.status, headers, face.error_body(error, exchange.request_id))

    def _refuse_now(self, error: GatewayError) -> None:
        """Answer before the body is here, and give the connection up."""
        self.keep_alive = False
        self._answer_error(error)
        self._linger()

    def _refuse(self, fault: Fault) -> None:
        """Answer malformed bytes, behind everything that was answered before them."""
        listener = self.listener
        listener.app.bad_request(fault.status, fault.reason, peer_of(self.transport))
        if self._incoming is not None and self._error is None:
            self._settle(fault.status)
        self.keep_alive = False
        if self._exchange is None:
            self.http10 = False
            self._exchange = NativeExchange(self, choose_request_id(None), None, None, False)
            face = face_of_request(self._refused)
        else:
            face = FACES[ENDPOINTS[self._route]]
        self._answer_error(malformed(fault.status, fault.reason, listener.limits.max_body_bytes), face)
        self._linger()

    def _settle(self, status: int) -> None:
        """A request ends before its body was whole: no task has begun, and it is counted all the same (R2)."""
        assert self._exchange is not None
        self.listener.app.settle(ENDPOINTS[self._route], self._exchange.request_id, status, self._key_name)

    def _linger(self) -> None:
        """Half-close, then read and drop for a moment: a reset would destroy the answer (RFC 9112 9.6)."""
        self._fault, self._buffer, self._incoming = ENDED, b"", None
        self._leave()
        self.lingering = True
        self.deadline = self.listener.loop.time() + LINGER_S
        transport = self.transport
        if transport is not None and not transport.is_closing():
            protocol: object = transport.get_protocol()
            if protocol is not self:
                transport.set_protocol(self)  # type: ignore[arg-type]  # an inlet would wait for the body
            with contextlib.suppress(OSError, RuntimeError):  # the client may have gone first
                transport.write_eof()
            self._resume()

    def _hand_over(self) -> None:
        """Not a hot route: from here on the connection is the reference listener's."""
        transport, self.transport = self.transport, None
        assert transport is not None
        data, fault = self._buffer + self._guard.unpassed(), self._fault
        self._fault, self._buffer = ENDED, b""
        other = self.listener.reference.connection()
        transport.set_protocol(other)
        other.connection_made(transport)
        self.listener.closed(self)
        if self._paused:
            transport.resume_reading()
        other.data_received(data)
        if fault is not None:
            other.refuse(fault)

    def writable(self) -> asyncio.Future[None]:
        """Done when the client has taken most of what was written. When it goes the task is cancelled instead."""
        if self._drain is None or self._drain.done():
            self._drain = self.listener.loop.create_future()
        return self._drain

    # ------------------------------------------------------------------ the listener's side
    def _watch_progress(self) -> None:
        assert self.transport is not None
        self._unsent = self.transport.get_write_buffer_size()
        self._moved_at = self.listener.loop.time()
        self.listener.stalled.add(self)

    def check_progress(self, now: float) -> None:
        """Something waits to be sent: does the client take any of it?"""
        if self.transport is None:
            return
        unsent = self.transport.get_write_buffer_size()
        if unsent < self._unsent:
            self._moved_at = now
        elif now - self._moved_at >= self.listener.limits.slow_reader_s:
            self.abort()
        self._unsent = unsent

    def expire(self) -> None:
        """The deadline has passed."""
        if self.lingering:
            self._end()
        elif self._incoming is not None:
            self._refuse(Fault(408, "the request body came too slowly", True))
        elif self._task is not None or self.blocked:
            self.deadline = self.listener.idle_until  # progress is being watched
        elif self._in_head:
            self._refuse(Fault(408, "the request head came too slowly", False))
        else:
            self._end()

    def drain(self) -> None:
        """Close now if nothing is under way; else after the answer in progress."""
        self.keep_alive = False
        busy = self._task is not None or self._incoming is not None or self._fault is not None
        if busy or self._buffer.strip() or not self._guard.idle:
            return
        self._end()

    def abort(self) -> RequestTask | None:
        """Drop the connection; gives the task that is still winding down."""
        if self.transport is not None:
            self.transport.abort()
        return self._task
