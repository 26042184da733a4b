"""Connections beyond ``server.max_connections`` (S-80): told 503 and closed, but for who asks how we are.

A full gateway that does not answer its health checks is killed by whoever runs it, and all its streams with it. So a
few connections beyond the limit are read as far as their request line: one that asks for health or metrics is answered
like any other, once; the rest is told to come back. What comes beyond these few is dropped at once, so that the number
of open files is bounded whatever comes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from .limits import LINGER_S

if TYPE_CHECKING:
    from .listener import Listener

PLACES = 64
"""Connections beyond the limit that are open at one time."""
LINE_S = 1.0
"""How long such a connection may take for its request line."""
LINE_BYTES = 1024
ALWAYS = frozenset({b"/health", b"/v1/healthz", b"/v1/readyz", b"/metrics"})
"""What is answered to anybody at any time."""


class Surplus:
    """What is done about connections beyond ``most``.

    ``count`` gives the connections within it, ``refuse(beginning)`` counts one that is turned away and gives the whole
    answer to a request that begins so; ``reference`` takes those that are let in.
    """

    def __init__(
        self, most: int, count: Callable[[], int], refuse: Callable[[bytes], bytes], reference: Listener
    ) -> None:
        self._most = most
        self._count = count
        self.refuse = refuse
        self.reference = reference
        self.open: set[SurplusConnection] = set()

    def takes(self, transport: asyncio.BaseTransport) -> bool:
        """Ask for each new connection: whether it is beyond the limit, and so is none of yours."""
        if self._count() < self._most:
            return False
        connection = SurplusConnection(self)
        transport.set_protocol(connection)
        connection.connection_made(transport)
        return True

    def close(self) -> None:
        """Drop them all."""
        for connection in list(self.open):
            connection.drop()


class SurplusConnection(asyncio.Protocol):
    """One connection beyond the limit."""

    __slots__ = ("_answered", "_data", "_owner", "_timer", "_transport")

    def __init__(self, owner: Surplus) -> None:
        self._owner = owner
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._data = b""
        self._answered = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        owner = self._owner
        if len(owner.open) >= PLACES:
            owner.refuse(b"")
            self.drop()
            return
        owner.open.add(self)
        self._timer = asyncio.get_running_loop().call_later(LINE_S, self._answer)

    def data_received(self, data: bytes) -> None:
        if self._answered:
            return
        self._data += data
        line, end, _ = self._data.partition(b"\r\n")
        if not end and len(line) < LINE_BYTES:
            return
        method, _, rest = line.partition(b" ")
        if method in (b"GET", b"HEAD") and rest.partition(b" ")[0].partition(b"?")[0] in ALWAYS:
            self._let_in()
        else:
            self._answer()

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()

    def drop(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _leave(self) -> None:
        self._owner.open.discard(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _let_in(self) -> None:
        """The reference listener answers this one request and closes."""
        transport = self._transport
        assert transport is not None
        self._leave()
        other = self._owner.reference.connection(once=True)
        transport.set_protocol(other)
        other.connection_made(transport)
        other.data_received(self._data)

    def _answer(self) -> None:
        """Turn it away, then read and drop for a moment: a reset would destroy the answer (RFC 9112 9.6)."""
        transport = self._transport
        assert transport is not None
        self._answered = True
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_later(LINGER_S, self.drop)
        transport.write(self._owner.refuse(self._data))
        self._data = b""
        with contextlib.suppress(OSError, RuntimeError):  # the client may have gone first
            transport.write_eof()
