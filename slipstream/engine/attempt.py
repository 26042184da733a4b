"""One attempt: build the outbound request, send it, tell success from failure, relay.

Raises the upstream branch of the error tree and nothing else (but cancellation and ``ClientGone``). Every attempt
starts from the client's original bytes (R59), under one watchdog for the four limits (R17).
"""

from __future__ import annotations

from ..config.snapshot import Target, Timeouts
from ..errors import UpstreamError
from ..net.upstream import UpstreamReply, UpstreamRequest
from ..resilience.watchdog import Watchdog
from ..wire.headers import Block, retry_after_s
from ..wire.openai_errors import MAX_ERROR_BYTES, read_error
from ..wire.openai_stream import StreamTap, check_reply
from ..wire.request import Call, outbound_body
from ..wire.usage import estimate, read_openai_usage
from .context import RequestContext
from .exchange import Exchange
from .relay import MAX_REPLY_BYTES, drain, read_whole, relay_stream
from .runtime import Active, Runtime


def first_byte_limit(timeouts: Timeouts, stream: bool) -> float:
    """Seconds to the first content of a stream, or to the header block of a whole reply (which comes when the model is
    done, so its limit is the total unless one was configured)."""
    if timeouts.first_byte_s is not None:
        return timeouts.first_byte_s
    return timeouts.stream_first_byte_s if stream else timeouts.total_s


async def attempt(
    runtime: Runtime, active: Active, ctx: RequestContext, exchange: Exchange, call: Call, target: Target, model: str
) -> None:
    """Ask ``target`` for ``model`` (its own name for it). Returns when the client has its answer."""
    ctx.target = target
    ctx.attempts += 1
    provider = target.provider
    outbound = active.outbound[provider.name]
    timeouts = provider.timeouts
    url, headers = outbound.post[call.endpoint]
    body = outbound_body(call, model, ask_usage=outbound.kind.ask_usage, rename=outbound.kind.rename)
    clock, deadlines = runtime.clock, runtime.deadlines
    sent = ctx.t_attempt = clock()
    limit = first_byte_limit(timeouts, call.stream)
    reply: UpstreamReply | None = None
    runtime.enter(runtime.worker, target.row)
    try:
        with Watchdog(deadlines, deadlines.time() + timeouts.total_s - (sent - ctx.t_start), timeouts.total_s) as dog:
            if limit < timeouts.total_s:
                dog.arm("first_byte", limit)
            try:
                reply = await outbound.transport.send(UpstreamRequest(url, headers, body, timeouts.connect_s))
            finally:
                ctx.header_s = clock() - sent
                ctx.upstream_s += ctx.header_s
            if not 200 <= reply.status < 300:
                raise await _refused(runtime, ctx, reply, dog, timeouts.idle_s, target)
            if call.stream:
                head = _headers(outbound.stream_headers, ctx)
                await _stream(runtime, ctx, exchange, reply, dog, timeouts.idle_s, call, head)
            else:
                if reply.complete:
                    whole = reply.take()
                else:
                    whole = await read_whole(ctx, reply, dog, timeouts.idle_s, MAX_REPLY_BYTES, clock)
                usage = check_reply(call.endpoint, whole, provider=provider.name)
                exchange.reply(200, _headers(outbound.whole_headers, ctx), whole)
                if usage is not None:
                    ctx.usage = read_openai_usage(usage) or ctx.usage
        if call.stream:
            await drain(ctx, reply, clock)
    finally:
        runtime.leave(runtime.worker, target.row)
        if reply is not None:
            reply.close()


async def _stream(
    runtime: Runtime,
    ctx: RequestContext,
    exchange: Exchange,
    reply: UpstreamReply,
    dog: Watchdog,
    idle_s: float,
    call: Call,
    headers: Block,
) -> None:
    assert ctx.target is not None
    tap = StreamTap(provider=ctx.target.provider.name, keep_usage=call.wants_usage)
    try:
        await relay_stream(ctx, exchange, reply, dog, idle_s, headers, tap, runtime.clock)
    finally:
        # also on errors and disconnects: what came was paid for (R8)
        ctx.completion_events = tap.content_events
        seen = read_openai_usage(tap.usage) if tap.usage is not None else None
        if seen is not None:
            ctx.usage = seen
        elif tap.content_events:
            ctx.usage = estimate(prompt_bytes(call), tap.content_events)


def prompt_bytes(call: Call) -> int:
    """Size of what the model reads, in bytes of the request; the basis of an estimate."""
    start, end = call.subject_span()
    return end - start


async def _refused(
    runtime: Runtime, ctx: RequestContext, reply: UpstreamReply, dog: Watchdog, idle_s: float, target: Target
) -> UpstreamError:
    try:
        body = await read_whole(ctx, reply, dog, idle_s, MAX_ERROR_BYTES, runtime.clock)
    except UpstreamError:
        body = b""  # the status says enough
    wait = retry_after_s(reply.headers, runtime.wall())
    return read_error(reply.status, body, provider=target.provider.name, retry_after_s=wait)


def _headers(base: Block, ctx: RequestContext) -> Block:
    """What the answer says besides its form: how many attempts it took, if it took more than one."""
    return base if ctx.attempts == 1 else b"%bx-slipstream-attempts: %d\r\n" % (base, ctx.attempts)
