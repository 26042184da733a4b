"""The body of a request of the native listener while it arrives: what is here of it, and how the rest is read.

Small bodies come with their head and are never seen here. The rest of a large one is read by an ``Inlet`` straight to
where it will stay: taking it through pieces that are joined in the end would cost twice the memory, and more time than
everything else that happens to it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from .._fast import BodyBuffer
from .native_exchange import Dechunker

if TYPE_CHECKING:
    from .native_connection import NativeConnection

INLET_BYTES = 64 * 1024
"""When so much is still to come, it is read by an inlet."""
TURN_BYTES = 256 * 1024
"""Of one body per turn of the loop: libuv alone would take 8 MB from each socket that has them (R23)."""
AT_ONCE = 8
"""So many bodies are read in one turn, when more are arriving: ``TURN_BYTES`` of each (R23)."""
PARTS_MAX = 1024
"""Pieces kept apart: many small ones would take more memory than what is in them."""


class Incoming:
    """What is here of a body, and how much of it is to come."""

    __slots__ = ("_chunks", "_joined", "_left", "parts", "received", "since")

    def __init__(self, size: int, chunked: bool, since: float) -> None:
        self._left = size
        """Bytes still to come, if it is not chunked."""
        self._chunks = Dechunker() if chunked else None
        self._joined = 0
        self.parts: list[bytes] = []
        self.received = 0
        """Bytes of the connection, with the framing of chunks."""
        self.since = since

    def feed(self, data: bytes) -> bytes | None:
        """More bytes of the connection. When the body is whole: those behind it."""
        parts, left = self.parts, self._left
        if self._chunks is not None:
            rest = self._chunks.feed(data, parts)
        elif len(data) >= left:
            parts.append(data[:left])
            rest = data[left:]
        else:
            self._left = left - len(data)
            parts.append(data)
            rest = None
        self.received += len(data) - len(rest or b"")
        if len(parts) - self._joined > PARTS_MAX:
            parts[self._joined :] = [b"".join(parts[self._joined :])]
            self._joined += 1
        return rest

    def inlet(self, connection: NativeConnection, data: bytes, start: int) -> Inlet | None:
        """What reads the rest of it, if that is much; ``data[start:]`` is what is here."""
        have = len(data) - start
        if self._chunks is not None or self._left - have < INLET_BYTES:
            return None
        body = BodyBuffer(self._left, data, start)
        self._left -= have
        self.received = have
        return Inlet(connection, self, body)

    def took(self, size: int, body: BodyBuffer) -> bool:
        """``size`` bytes were read into ``body``: is it whole?"""
        self.received += size
        if body.took(size):
            return False
        self.parts.append(body.take())
        return True


class Inlet(asyncio.BufferedProtocol):
    """Stands in for a connection while the rest of a body of known length comes: nothing in it is to be judged."""

    __slots__ = ("_body", "_connection", "_incoming")

    def __init__(self, connection: NativeConnection, incoming: Incoming, body: BodyBuffer) -> None:
        self._connection = connection
        self._incoming = incoming
        self._body = body

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._body.room(TURN_BYTES)

    def buffer_updated(self, nbytes: int) -> None:
        self._connection.arrived(self._incoming, nbytes, self._incoming.took(nbytes, self._body))

    def eof_received(self) -> bool:
        return self._connection.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connection.connection_lost(exc)

    def pause_writing(self) -> None:
        self._connection.pause_writing()

    def resume_writing(self) -> None:
        self._connection.resume_writing()
