"""From the provider's answer to the client's: whole replies and streams of the same dialect.

A reply is *committed* when its first content goes to the client. Before that everything may still fail over, so
lifecycle events (role-only deltas, comments) are held back; after it a failure becomes an in-band error and never a
clean end (R9, R12). ``ctx.committed`` says so.
"""

from __future__ import annotations

import asyncio

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
MAX_HELD_BYTES = 256 * 1024
"""Lifecycle events held before the first content (R33)."""
DRAIN_S = 0.05
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


async def relay_stream(
    ctx: RequestContext,
    exchange: Exchange,
    reply: UpstreamReply,
    dog: Watchdog,
    idle_s: float,
    tap: Tap,
    pulse: Pulse,
    clock: Clock,
) -> None:
    """Pass on a stream event by event. Raises ``UpstreamError`` when it fails, started or not."""
    held: list[bytes] = []
    held_bytes = 0
    first = True
    while not tap.done:
        before = clock()
        try:  # next_chunk() without its coroutine: this is the hot loop
            chunk = await reply.chunk()
        finally:
            ctx.upstream_s += clock() - before
        if first and chunk.strip():
            first = False
            if not tap.reads_json and chunk.lstrip()[:1] in (b"{", b"["):
                rest = await read_whole(ctx, reply, dog, idle_s, MAX_REPLY_BYTES, clock)
                raise _not_a_stream(ctx, chunk + rest)
        out = tap.feed(chunk) if chunk else tap.end()
        if ctx.committed:
            if out:
                pulse.moved = True
                waiting = exchange.write(out)
                if waiting is not None:
                    dog.disarm()
                    await waiting
            dog.arm("idle", idle_s)
        else:
            held.append(out)
            held_bytes += len(out)
            if tap.failure is None and (tap.committed or held_bytes > MAX_HELD_BYTES):
                ctx.first_content_at = clock()
                ctx.committed = True
                dog.disarm()
                await pulse.begin()
                waiting = exchange.write(b"".join(held))
                if waiting is not None:
                    await waiting
                held.clear()
                dog.arm("idle", idle_s)
        if tap.failure is not None:
            raise tap.failure
    dog.disarm()
    await exchange.end()


async def drain(ctx: RequestContext, reply: UpstreamReply, clock: Clock) -> None:
    """Read to the end of the body, briefly. The client has its answer already: nothing here may fail the request, not
    even that it leaves now, as most clients do after ``[DONE]``: the cancellation ends the draining and no more."""
    try:
        async with asyncio.timeout(DRAIN_S):
            while await next_chunk(ctx, reply, clock):
                pass
    except (UpstreamError, TimeoutError, asyncio.CancelledError):
        pass


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
