"""The client's side of one request, as the engine sees it. A listener implements it."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Protocol

from ..wire.headers import Block


class ClientGone(Exception):
    """The client closed its connection. Listeners raise it from writes; reads and waits end by cancellation instead."""


class Exchange(Protocol):
    """One request and its answer. ``started``: the status line of a stream has been written."""

    request_id: str
    started: bool

    @property
    def asked_s(self) -> float | None:
        """The client's own deadline (``x-request-timeout``), in seconds."""

    def header(self, name: str) -> str | None:
        """A field of the request's head by its name in lower case; several of one name are joined by commas (RFC 9110
        5.3)."""

    async def body(self) -> bytes:
        """The whole request body, decoded from its content-encoding. Raises ``ClientError`` (400, 408, 413, 415)."""

    def reply(self, status: int, headers: Block, body: bytes) -> None:
        """Answer at once with a whole body."""

    async def begin(self, headers: Block) -> None:
        """Start a 200 event stream."""

    def write(self, data: bytes) -> Awaitable[None] | None:
        """Write a piece of the stream. ``None``: it was taken; else wait for what is returned, because the client is
        slower than we are (R33)."""

    async def end(self) -> None:
        """End the stream."""
