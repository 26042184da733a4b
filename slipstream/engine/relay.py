"""From the provider's answer to the client's: whole replies and streams of the same dialect.

A reply is *committed* when its first content goes to the client. Before that everything may still fail over, so
lifecycle events (role-only deltas, comments) are held back; after it a failure becomes an in-band error and never a
clean end (R9, R12). ``ctx.committed`` says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..errors import MalformedReply, UpstreamError
from ..net.upstream import UpstreamReply
from ..resilience.watchdog import Watchdog
from ..types import Clock
from ..wire.canonical import Json
from ..wire.codec import DecodeError, loads
from ..wire.openai_errors import read_error_in_200
from .context import RequestContext
from .exchange import Exchange
from .pulse import Pulse
from .translate import Tap

MAX_REPLY_BYTES = 64 * 1024 * 1024
"""A whole reply is held in memory until it is known to be good; no provider sends more."""
MAX_STREAM_BYTES = 64 * 1024 * 1024
"""A stream is not endless, whatever its pace (R21, S-39)."""
MAX_HELD_BYTES = 256 * 1024
"""Lifecycle events held before the first content (R33)."""
LINGER_S = 0.05
"""After ``[DONE]`` the end of the body is waited for this long, so that the connection can be used again."""


async def next_chunk(ctx: RequestContext, reply: UpstreamReply, clock: Clock) -> bytes:
    """The next piece of the body. The wait is the upstream's time, also when it ends in a failure (R38)."""
    before = clock()
    try:
        return await reply.chunk()
    finally:
        ctx.upstream_s += clock() - before


async def read_whole(
    ctx: RequestContext, reply: UpstreamReply, dog: Watchdog, idle_s: float, limit: int, clock: Clock
) -> bytes:
    """The whole body. Raises ``MalformedReply`` beyond ``limit`` bytes, ``TransportError`` if it is cut."""
    dog.arm("idle", idle_s)  # the header block is here: what was waited for before it is over
    parts: list[bytes] = []
    size = 0
    while part := await next_chunk(ctx, reply, clock):
        dog.arm("idle", idle_s)
        size += len(part)
        if size > limit:
            raise MalformedReply(f"the provider's answer is larger than {limit} bytes")
        parts.append(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


class Relay:
    """Passes on one stream event by event: first what comes before its first content is held back, then everything goes
    out as it comes.

    ``run`` raises ``UpstreamError`` when the stream fails, before or after its first content. The times of waiting are
    the upstream's (R38).
    """

    __slots__ = (
        "_bytes", "_clock", "_ctx", "_dog", "_exchange", "_idle_s", "_own_s", "_pulse", "_reply", "_tap", "_waiting",
    )  # fmt: skip

    def __init__(
        self,
        ctx: RequestContext,
        exchange: Exchange,
        reply: UpstreamReply,
        dog: Watchdog,
        idle_s: float,
        tap: Tap,
        pulse: Pulse,
        clock: Clock,
    ) -> None:
        self._ctx = ctx
        self._exchange = exchange
        self._reply = reply
        self._dog = dog
        self._idle_s = idle_s
        self._tap = tap
        self._pulse = pulse
        self._clock = clock
        self._bytes = 0
        self._own_s = 0.0
        """Own time within a wait: what ``_pass_on`` took."""
        self._waiting: Awaitable[None] | None = None
        """The client is slower than the provider: what must be waited for."""

    async def run(self) -> None:
        await self._before_content()
        tap = self._tap
        pour = getattr(self._reply, "pour", None)
        while not tap.done:
            if pour is not None:
                await self._pour(pour)
            if self._waiting is None and not tap.done and tap.failure is None:
                chunk = await next_chunk(self._ctx, self._reply, self._clock)
                self._take(chunk or None)
            if self._waiting is not None:
                self._dog.disarm()
                waiting, self._waiting = self._waiting, None
                await waiting
                self._dog.arm("idle", self._idle_s)
            if tap.failure is not None:
                raise tap.failure
        self._dog.disarm()
        await self._exchange.end()

    async def _before_content(self) -> None:
        """Read and hold until there is something that the client must see, then begin the answer with it."""
        ctx, tap, dog = self._ctx, self._tap, self._dog
        held: list[bytes] = []
        held_bytes = 0
        first = True
        while not (tap.committed or held_bytes > MAX_HELD_BYTES):
            chunk = await next_chunk(ctx, self._reply, self._clock)
            if first and chunk.strip():
                first = False
                if not tap.reads_json and chunk.lstrip()[:1] in (b"{", b"["):
                    rest = await read_whole(ctx, self._reply, dog, self._idle_s, MAX_REPLY_BYTES, self._clock)
                    raise _not_a_stream(ctx, chunk + rest)
            held.append(tap.feed(chunk) if chunk else tap.end())
            held_bytes += len(held[-1])
            if tap.failure is not None:
                raise tap.failure
        if ctx.race is not None:
            ctx.race.claim(ctx)
        ctx.first_content_at = self._clock()
        ctx.committed = True
        dog.disarm()
        await self._pulse.begin()
        waiting = self._exchange.write(b"".join(held))
        if waiting is not None:
            await waiting
        dog.arm("idle", self._idle_s)

    async def _pour(self, pour: Callable[[Callable[[bytes], bool]], Awaitable[None]]) -> None:
        """Let the transport hand over each piece as it comes: no turn of this task for an event."""
        clock = self._clock
        before = clock()
        self._own_s = 0.0
        try:
            await pour(self._pass_on)
        finally:
            self._ctx.upstream_s += clock() - before - self._own_s

    def _pass_on(self, chunk: bytes) -> bool:
        """One piece of the stream; true when it takes more than this to go on."""
        clock = self._clock
        before = clock()
        tap = self._tap
        out = tap.feed(chunk)
        self._bytes += len(chunk)
        if self._bytes > MAX_STREAM_BYTES and tap.failure is None and not tap.done:
            tap.failure = MalformedReply(f"the provider's stream is larger than {MAX_STREAM_BYTES} bytes")
        if out:
            self._pulse.moved = True
            self._waiting = self._exchange.write(out)
        self._dog.beat()
        self._own_s += clock() - before
        return self._waiting is not None or tap.done or tap.failure is not None

    def _take(self, chunk: bytes | None) -> None:
        """A piece that ``next_chunk`` brought, ``None`` for the end."""
        if chunk is not None:
            self._pass_on(chunk)
            return
        out = self._tap.end()
        if out:
            self._waiting = self._exchange.write(out)


def _not_a_stream(ctx: RequestContext, body: bytes) -> UpstreamError:
    """A stream was asked for and JSON came: an error in disguise, or a server that cannot stream."""
    assert ctx.target is not None
    provider = ctx.target.provider.name
    value: Json | None
    try:
        value = loads(body)
    except DecodeError:
        return MalformedReply(f"the provider {provider!r} sent a reply that is not JSON")
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, dict) and value.get("error"):
        return read_error_in_200(body, provider=provider)
    return MalformedReply(f"the provider {provider!r} answered a stream request with a whole reply")
