"""One attempt: build the outbound request, send it, tell success from failure, relay.

Raises the upstream branch of the error tree and nothing else (but cancellation and ``ClientGone``). Every attempt
starts from the client's original bytes (R59), under one watchdog for its limits (R17).
"""

from __future__ import annotations

from ..config.snapshot import Target, Timeouts
from ..errors import UpstreamError, UpstreamTimeout
from ..net.upstream import UpstreamReply, UpstreamRequest
from ..obs.families import DROPPED_PARAMS, QUEUE_WAIT
from ..resilience.bulkhead import HIGH, LOW, NORMAL, Bulkhead, Overloaded
from ..resilience.failures import refine
from ..resilience.ratelimit import RateLimits
from ..resilience.watchdog import Watchdog
from ..types import Endpoint, FailureClass
from ..wire.canonical import Built
from ..wire.faces import COUNT_TOKENS
from ..wire.headers import Block, block, retry_after_s
from ..wire.openai_errors import MAX_ERROR_BYTES
from ..wire.request import Call, outbound_body
from ..wire.usage import estimate
from .context import RequestContext
from .exchange import Exchange
from .native import Checked, check_native, native_tap, native_usage
from .relay import LINGER_S, MAX_REPLY_BYTES, Relay, read_whole
from .runtime import Active, Outbound, Runtime
from .translate import Conversion, Tap, convert, refuse_dropped

_PRIORITY = {"high": HIGH, "low": LOW}
ESTIMATED = block({"x-slipstream-usage-source": "estimated"})
DROPPED_CHARS = 1000
PASSED_CHARS = 1000


def total_s(ctx: RequestContext, timeouts: Timeouts) -> float:
    """Seconds that the request may take in all: the provider's limit, or the client's if that is shorter."""
    return timeouts.total_s if ctx.asked_s is None else min(timeouts.total_s, ctx.asked_s)


def priority(exchange: Exchange) -> int:
    """The class in which a request waits for a place: ``x-slipstream-priority: high | low``."""
    return _PRIORITY.get((exchange.header("x-slipstream-priority") or "").lower(), NORMAL)


async def attempt(
    runtime: Runtime, active: Active, ctx: RequestContext, exchange: Exchange, call: Call, target: Target, model: str
) -> None:
    """Ask ``target`` for ``model`` (its own name for it). Returns when the client has its answer."""
    ctx.target = target
    outbound = active.outbound[target.provider.name]
    conversion: Conversion | None = None
    post = outbound.post.get(call.endpoint)
    if post is not None:  # the ordinary case: the client's bytes go to a place that is always the same
        body = outbound_body(call, model, outbound.ask_usage, outbound.rename)
        request = UpstreamRequest(post[0], post[1], body, outbound.connect_s)
    else:
        if outbound.signer is not None:
            await outbound.ready()
        conversion = _translated(runtime, active, ctx, call, outbound, model)
        built = _native(call, outbound, model, exchange) if conversion is None else conversion.built
        if built is None:
            _answer_estimate(exchange, outbound, call)
            return
        url, headers = outbound.prepared(built.url, built.headers, built.body, runtime.wall())
        request = UpstreamRequest(url, headers, built.body, outbound.connect_s)
    clock, deadlines = runtime.clock, runtime.deadlines()
    bulkhead = outbound.bulkhead()
    if not bulkhead.try_enter():
        await _place(runtime, ctx, exchange, bulkhead, target)
    ctx.attempts += 1
    sent = ctx.t_attempt = clock()
    limit = outbound.first_byte_s[call.stream]
    reply: UpstreamReply | None = None
    runtime.enter(target.row)
    try:
        if ctx.pulse is not None:
            ctx.pulse.head = _told(outbound.stream_headers, ctx)
        most_s = outbound.total_s if ctx.asked_s is None else total_s(ctx, target.provider.timeouts)
        with Watchdog(deadlines, deadlines.time() + most_s - (sent - ctx.t_start), most_s) as dog:
            if limit < most_s:
                dog.arm("first_byte", limit)
            try:
                reply = await outbound.transport.send(request)
            finally:
                ctx.header_s = waited = clock() - sent
                ctx.upstream_s += waited
            if not 200 <= reply.status < 300:
                raise await _refused(runtime, ctx, reply, dog, outbound.idle_s, outbound)
            if call.stream:
                await _stream(runtime, ctx, exchange, reply, dog, outbound.idle_s, call, conversion)
            else:
                if reply.complete:
                    whole = reply.take()
                else:
                    whole = await read_whole(ctx, reply, dog, outbound.idle_s, MAX_REPLY_BYTES, clock)
                checked: Checked
                if conversion is None:
                    checked = check_native(call, whole, outbound.name)
                else:
                    whole, checked = conversion.whole(whole, reply.headers, (clock() - ctx.t_start) * 1000)
                head = outbound.whole_headers
                try:
                    if ctx.race is not None:
                        ctx.race.claim(ctx)
                        ctx.committed = True
                    exchange.reply(200, _told(head, ctx) if ctx.attempts > 1 or ctx.dropped else head, whole)
                finally:  # the provider has answered, whether the client gets this answer or not
                    ctx.usage = native_usage(checked, whole) or ctx.usage
        if call.stream:
            # the client has its answer: the rest of the body is the transport's business
            reply.linger(LINGER_S)
            reply = None
    except UpstreamError as error:
        if isinstance(error, UpstreamTimeout) and error.phase == "total" and most_s < outbound.total_s:
            error.failure = FailureClass.CLIENT_GONE  # the client's deadline says nothing about the target
        raise refine(error, outbound.kind.name, outbound.name) from None
    finally:
        bulkhead.leave()
        runtime.leave(target.row)
        if reply is not None:
            reply.close()


async def _place(runtime: Runtime, ctx: RequestContext, exchange: Exchange, bulkhead: Bulkhead, target: Target) -> None:
    """Wait for a place at the provider. That is its time and not our own (R38). Raises ``Overloaded``."""
    left_s = total_s(ctx, target.provider.timeouts) - (runtime.clock() - ctx.t_start)
    waited_s = 0.0
    try:
        waited_s = await bulkhead.enter(left_s, priority(exchange))
    except Overloaded as error:
        waited_s = error.waited_s
        raise
    finally:
        ctx.upstream_s += waited_s
        if waited_s:
            runtime.metrics.observe(QUEUE_WAIT, waited_s, (target.provider.name,))


async def _stream(
    runtime: Runtime,
    ctx: RequestContext,
    exchange: Exchange,
    reply: UpstreamReply,
    dog: Watchdog,
    idle_s: float,
    call: Call,
    conversion: Conversion | None,
) -> None:
    assert ctx.target is not None
    assert ctx.pulse is not None
    tap: Tap
    if conversion is None:
        tap = native_tap(call, ctx.target.provider.name)
    else:
        tap = conversion.tap(lambda: (runtime.clock() - ctx.t_start) * 1000)
    ctx.tap = tap
    try:
        await Relay(ctx, exchange, reply, dog, idle_s, tap, ctx.pulse, runtime.clock).run()
    finally:
        # also on errors and disconnects: what came was paid for (R8)
        ctx.completion_events = tap.content_events
        seen = tap.read_usage()
        if seen is not None:
            ctx.usage = seen
        elif tap.content_events:
            ctx.usage = estimate(prompt_bytes(call), tap.content_events)


def prompt_bytes(call: Call) -> int:
    """Size of what the model reads, in bytes of the request; the basis of an estimate."""
    start, end = call.subject_span()
    return max(0, end - start)


def _native(call: Call, outbound: Outbound, model: str, exchange: Exchange) -> Built | None:
    """The client's own request, where the provider speaks its dialect; ``None`` if it does not."""
    kind = outbound.kind
    if call.endpoint not in kind.natives:
        return None
    body = outbound_body(call, model, kind.ask_usage, kind.rename)
    return Built(kind.url(outbound.spec, call.endpoint, model, call.stream), body, _passed(outbound, exchange))


def _passed(outbound: Outbound, exchange: Exchange) -> dict[str, str]:
    """The client's fields that go with a native request. What is configured wins, but a list is joined with ours."""
    passed = {}
    for name in outbound.kind.passes:
        value = exchange.header(name)
        if value and len(value) <= PASSED_CHARS and value.isascii() and value.isprintable():
            ours = outbound.field(name)
            if ours is not None and name.endswith("-beta"):
                passed[name] = f"{ours},{value}"
            elif not any(configured.lower() == name for configured in outbound.spec.headers):
                passed[name] = value
    return passed


def _translated(
    runtime: Runtime, active: Active, ctx: RequestContext, call: Call, outbound: Outbound, model: str
) -> Conversion | None:
    """The request in the provider's dialect; ``None`` if that is the client's own, or if nobody there counts tokens.
    Raises ``ClientError`` for what it cannot be asked."""
    if call.endpoint in outbound.kind.natives:
        return None
    conversion = convert(call, outbound.kind, outbound.spec, model, ctx.request_id, int(runtime.wall()))
    if conversion is not None and conversion.dropped:
        if active.snapshot.routing.strict_params:
            refuse_dropped(conversion.dropped, outbound.spec.name)
        ctx.dropped = conversion.dropped
        runtime.metrics.count(DROPPED_PARAMS, (outbound.spec.name,))
    return conversion


def _answer_estimate(exchange: Exchange, outbound: Outbound, call: Call) -> None:
    """The provider cannot count tokens: say about how many there are, and that it is an estimate (R8)."""
    assert call.endpoint is Endpoint.COUNT_TOKENS
    tokens = estimate(prompt_bytes(call), 0).prompt
    exchange.reply(200, outbound.whole_headers + ESTIMATED, COUNT_TOKENS.encode_count(tokens))


async def _refused(
    runtime: Runtime, ctx: RequestContext, reply: UpstreamReply, dog: Watchdog, idle_s: float, outbound: Outbound
) -> UpstreamError:
    try:
        body = await read_whole(ctx, reply, dog, idle_s, MAX_ERROR_BYTES, runtime.clock)
    except UpstreamError:
        body = b""  # the status says enough
    wait = retry_after_s(reply.headers, runtime.wall())
    if reply.status == 429 and ctx.target is not None:
        reset = RateLimits(runtime.table).learned(ctx.target, reply.headers, runtime.clock())
        wait = reset if wait is None else wait
    return outbound.kind.error(reply.status, reply.headers, body, outbound.spec, wait)


def _told(base: Block, ctx: RequestContext) -> Block:
    """What the answer says besides its form: how many attempts it took, if it took more than one, and what the
    provider could not be told."""
    if ctx.attempts > 1:
        base = b"%bx-slipstream-attempts: %d\r\n" % (base, ctx.attempts)
    if ctx.dropped:
        base += block({"x-slipstream-dropped-params": dropped_names(ctx.dropped)})
    return base


def dropped_names(names: list[str]) -> str:
    """The names as a header value: they are the client's own keys, so only plain ones, and not without end."""
    plain = (name for name in dict.fromkeys(names) if name.isascii() and name.isprintable() and "," not in name)
    return ", ".join(plain)[:DROPPED_CHARS]
