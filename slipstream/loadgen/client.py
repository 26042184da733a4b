"""One HTTP/1.1 connection, one request on it at a time: an ``asyncio.Protocol`` and llhttp, nothing between.

The request in flight is described by the connection's own fields, so that a request costs no object. Small on purpose
and apart from ``net``: a load generator that shared the gateway's transport would share its faults.

Nothing is sent twice. A gateway replays a request that died on a reused connection; a load generator counts it.

The rule that must not be broken: each request that was dispatched is reported to the owner exactly once.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol, cast

import httptools

from .reply import Reading
from .stats import TIMEOUT

PROVIDER_HEADER = b"x-slipstream-provider"
_LENGTH, _ENCODING = b"content-length", b"transfer-encoding"
_NAME_SIZES = frozenset(map(len, (PROVIDER_HEADER, _LENGTH, _ENCODING)))

CONNECT = "connect"
"""No connection: DNS, refused, TLS."""
CLOSED = "closed"
"""The connection ended before the reply was complete."""
PROTOCOL = "protocol"
"""Bytes that are not an HTTP reply."""


class Owner(Protocol):
    """What a connection reports to. After ``finished`` it is idle if ``reusable``, else it is gone."""

    def finished(self, connection: Connection, code: str, ok: bool, reusable: bool) -> None: ...

    def lost(self, connection: Connection) -> None:
        """An idle connection was closed by the server."""


class Connection(asyncio.Protocol):
    """``intended_ns``, ``sent_ns``, ``first_ns``, ``done_ns``: the moments of the request in flight; 0 is not yet."""

    __slots__ = (
        "_complete",
        "_framed",
        "_keep_alive",
        "_owner",
        "_parser",
        "_payload",
        "_transport",
        "busy",
        "connecting",
        "dispatched_ns",
        "done_ns",
        "first_ns",
        "intended_ns",
        "provider",
        "reading",
        "sent_ns",
        "status",
    )

    def __init__(self, owner: Owner, reading: Reading) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._payload = b""
        self.reading = reading
        self.connecting: asyncio.Task[None] | None = None
        self.busy = False
        self.intended_ns = self.dispatched_ns = self.done_ns = 0
        self._reset()

    def _reset(self) -> None:
        self.sent_ns = self.first_ns = 0
        self.status = 0
        self.provider = ""
        self._complete = self._framed = self._keep_alive = False

    def dispatch(self, payload: bytes, intended_ns: int, now_ns: int) -> None:
        """Send a request, at once or as soon as there is a connection."""
        self.busy = True
        self._reset()
        self.reading.reset()
        self.intended_ns, self.dispatched_ns = intended_ns, now_ns
        if self._transport is None:
            self._payload = payload
        else:
            self.sent_ns = now_ns
            self._transport.write(payload)

    def give_up(self, now_ns: int) -> None:
        """The time is up for the request in flight."""
        self._finish(TIMEOUT, False, now_ns)

    def failed_to_connect(self, now_ns: int) -> None:
        if self.busy:
            self._finish(CONNECT, False, now_ns)

    def close(self) -> None:
        """Close, without a report of what is in flight."""
        self.busy = False
        if self.connecting is not None:
            self.connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------ asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not of asyncio's classes
        if self.busy:
            self.sent_ns = time.monotonic_ns()
            self._transport.write(self._payload)
            self._payload = b""
        else:
            self._transport.abort()  # given up while it connected

    def data_received(self, data: bytes) -> None:
        if not self.busy:  # nothing was asked: the server says good-bye, or talks nonsense
            self._lose()
            return
        self.done_ns = time.monotonic_ns()
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):  # bytes after the reply are not the reply's
            self._finish("" if self._complete else PROTOCOL, False, self.done_ns)
            return
        if self._complete:
            self._finish("", self._keep_alive, self.done_ns)

    def eof_received(self) -> None:
        self._ended()

    def connection_lost(self, error: Exception | None) -> None:
        self._ended()

    def _ended(self) -> None:
        if not self.busy:
            self._lose()
        elif self.status and not self._framed:  # neither length nor chunks: the end of the connection is the body's
            self._finish("", False, time.monotonic_ns())
        else:
            self._finish(CLOSED, False, time.monotonic_ns())

    def _lose(self) -> None:
        self.close()
        self._owner.lost(self)

    def _finish(self, code: str, reusable: bool, now_ns: int) -> None:
        """Report. ``code`` empty: the reply is complete, and its status and its body are the judges."""
        self.done_ns = now_ns
        self.busy = False
        if not reusable:
            self.close()
        ok = False
        if not code:
            fault = self.reading.fault() if 200 <= self.status < 300 else ""
            code = fault or str(self.status)
            ok = not fault and 200 <= self.status < 300
        self._owner.finished(self, code, ok, reusable)

    # ------------------------------------------------------------------ httptools
    def on_header(self, name: bytes, value: bytes) -> None:
        if len(name) not in _NAME_SIZES:
            return
        name = name.lower()
        if name == PROVIDER_HEADER:
            self.provider = value.decode("latin-1")
        elif name in (_LENGTH, _ENCODING):
            self._framed = True

    def on_headers_complete(self) -> None:
        if self._complete:
            raise ValueError("a second reply to one request")
        status = self._parser.get_status_code()
        if status >= 200:  # 1xx are interim (RFC 9110 15.2)
            self.status = status

    def on_body(self, data: bytes) -> None:
        if self.reading.feed(data):
            self.first_ns = self.done_ns

    def on_message_complete(self) -> None:
        if self.status:
            self._complete = True
            self._keep_alive = self._parser.should_keep_alive()  # known only now: llhttp forgets it with the message
        else:
            self._framed = False
