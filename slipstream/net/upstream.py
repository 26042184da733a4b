"""The face that a transport shows to the engine: send one request, read one reply. Two protocols and one value class.

A transport owns sockets, pools and TLS, and nothing else: no retries that a client could notice, no provider knowledge,
no time-outs but those for connecting and for sending. It reports failures with the upstream branch of the error tree:
``ConnectFailed``/``UpstreamTimeout("connect")`` when nothing was sent, ``UpstreamTimeout("send")`` when the provider
reads no more of a request, ``TransportError`` when the connection broke later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

SEND_S = 30.0
"""The provider may read nothing of a request for so long (S-46); a transport is told another limit when it is made."""


class UpstreamRequest:
    """One attempt on the wire. ``url`` and ``headers`` are prepared by the transport (``prepare``) and opaque here;
    ``body`` is what is sent."""

    __slots__ = ("body", "connect_s", "headers", "url")

    def __init__(self, url: Any, headers: Any, body: bytes, connect_s: float) -> None:
        self.url = url
        self.headers = headers
        self.body = body
        self.connect_s = connect_s


class UpstreamReply(Protocol):
    """A reply whose header block has arrived."""

    status: int

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, case-insensitive."""

    @property
    def complete(self) -> bool:
        """Whether the whole body is here already and ``take`` may be called."""

    def take(self) -> bytes:
        """The whole body, without waiting."""

    async def chunk(self) -> bytes:
        """The next piece of the body, ``b""`` at its clean end. Raises ``TransportError`` if it is cut."""

    def close(self) -> None:
        """Give the connection back if the body was read to its end, else close it at once. Idempotent."""

    def linger(self, seconds: float) -> None:
        """As ``close``, but the end of the body may still come for so long: nobody reads on, and the connection is
        worth keeping."""


class Pouring(UpstreamReply, Protocol):
    """A reply that can do without a turn of the task for each piece, which is a third of what an event costs. Optional:
    look for ``pour`` with ``getattr``.
    """

    async def pour(self, sink: Callable[[bytes], bool]) -> None:
        """Give each further piece of the body to ``sink`` in the callback that brings it, until ``sink`` returns true,
        or there will be no more; then ``chunk`` goes on, and tells of the end or of the failure.

        Returns at once when ``chunk`` has something to say already, and always for a reply that must be decoded.
        ``sink`` must not wait; what it raises is raised here. Pieces that come after it returned true are kept for
        ``chunk``. It is not called any more once the task that waits here was cancelled."""


class Upstream(Protocol):
    """A transport."""

    def prepare(self, url: str, headers: Mapping[str, str]) -> tuple[Any, Any]:
        """Turn a URL and header fields into the forms that ``send`` wants; called once per target, not per request."""

    async def send(self, request: UpstreamRequest) -> UpstreamReply:
        """Send a POST and return its reply when the header block has arrived."""

    async def get(self, url: Any, headers: Any, *, connect_s: float) -> UpstreamReply:
        """Send a GET (model lists, probes)."""

    async def close(self) -> None:
        """Close every connection."""

    def stats(self) -> Mapping[str, int]:
        """Counters: ``requests``, ``connections_made``, ``connections_reused``, ``replays`` (R40), ``waits`` for a free
        connection and ``wait_us``, how long they took (R41)."""
