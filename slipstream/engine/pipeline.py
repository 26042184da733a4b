"""The straight line of a request, in one function (design.md section 3):

accept -> authenticate -> peek -> route -> attempt (next target on failure) -> relay -> respond -> settle.

The listener has authenticated from the headers before this is called. What may end a request early is an exception of
the error tree; the client's disconnect is a cancellation. ``settle`` runs on every path, exactly once.
"""

from __future__ import annotations

import asyncio
import math
import random

from ..config.snapshot import Target
from ..errors import ClientError, GatewayError, UpstreamError, UpstreamTimeout
from ..obs.families import EJECTED, FAILOVERS, RETRIES, RETRY_AMBIGUOUS, RETRY_BUDGET_EXHAUSTED, TIMEOUTS
from ..obs.metrics import CLIENT_GONE_STATUS, OTHER
from ..resilience.bulkhead import Overloaded
from ..resilience.failures import RETRY
from ..routing.table import NOTHING, Pool
from ..types import NANOS, Endpoint, FailureClass
from ..wire.faces import FACES, Face
from ..wire.headers import Block, block
from ..wire.request import Call, is_model_name, peek
from ..wire.usage import estimate
from .account import NONE, attempted, settle
from .attempt import attempt, prompt_bytes, total_s
from .context import RequestContext
from .exchange import ClientGone, Exchange
from .pulse import Pulse
from .race import Hedged, repeatable
from .runtime import Active, Runtime
from .search import Choice, Search, choose, give_up, nobody, outage, ready_in_s, room_in_s


async def serve(
    runtime: Runtime,
    exchange: Exchange,
    endpoint: Endpoint,
    key_name: str,
    waited_s: float = 0.0,
    ctx: RequestContext | None = None,
) -> None:
    """Serve one request of the data plane from its body to its settlement. ``waited_s``: what it has waited already;
    its time began then. ``ctx`` only from ``engine.stay``."""
    label = endpoint.label
    if ctx is None:
        if runtime.active.outlasts:
            from .stay import outlast

            return await outlast(runtime, exchange, endpoint, key_name, waited_s)
        now = runtime.clock() - waited_s
        ctx = RequestContext(endpoint, label, exchange.request_id, key_name, now, now)
    runtime.requests += 1
    active = runtime.pin()
    runtime.metrics.enter(label)
    failure: GatewayError | None = None
    try:
        try:
            body = await exchange.body()
            ctx.t_read = runtime.clock()
            call = ctx.call = peek(endpoint, body)
            ctx.asked_s = exchange.asked_s
            if call.stream:
                with Pulse(runtime.pulses(), exchange, FACES[endpoint].ping) as ctx.pulse:
                    await _answer(runtime, active, ctx, exchange, call)
            else:
                await _answer(runtime, active, ctx, exchange, call)
            ctx.status = 200
        except GatewayError as error:
            failure = ctx.error = error
            ctx.status = 200 if exchange.started else error.status
        except (asyncio.CancelledError, ClientGone):
            ctx.status = CLIENT_GONE_STATUS
            _abandoned(runtime, ctx)
            raise
        except BaseException:
            ctx.status = 500
            raise
        if failure is not None:
            await _respond(runtime, active, ctx, exchange, failure)
    finally:
        if ctx.probe and ctx.target is not None:  # it ended without a word about the target
            active.breakers.released(ctx.target.row, runtime.clock())
        runtime.metrics.leave(label)
        runtime.release(active)
        settle(runtime, active, ctx)


async def _answer(runtime: Runtime, active: Active, ctx: RequestContext, exchange: Exchange, call: Call) -> None:
    """Try the targets in turn until one answers. Raises the last failure if none does."""
    pool = _route(active, ctx, call)
    target = pool.choose(NOTHING, runtime.available, ctx.t_read)
    if target is None or runtime.table.breaker(target.row) or target.limited:
        found = choose(runtime, active, pool, NOTHING, ctx.t_read, turn=target, call=call)
        if found is None:
            raise nobody(runtime, active, pool, ctx.t_read, call)
        target, ctx.probe = found
    model = target.upstream_model or call.model
    search: Search | None = None
    while True:
        failure: UpstreamError | Overloaded | None = None
        try:
            delay_s = _hedge_after(runtime, active, call, target) if active.hedges else None
            if delay_s is None or search is not None:
                await attempt(runtime, active, ctx, exchange, call, target, model)
            else:
                race = Hedged(runtime, active, ctx, exchange, call, _failed)
                target, model, pool, ctx.probe = await race.run(Choice(target, model, pool, ctx.probe), delay_s)
                failure = race.error
        except (UpstreamError, Overloaded) as error:
            failure = error
        if failure is None:
            _succeeded(runtime, active, ctx, target, pool)
            return
        failed = Choice(target, model, pool, ctx.probe)
        _failed(runtime, active, ctx, failed, failure)
        if ctx.committed:
            raise failure
        search = search or Search(runtime, active, call, failed)
        following, delay_s = _following(runtime, active, ctx, exchange, search, failed, failure)
        if following is None:
            _tell_when(runtime, active, call, failed.pool, failure)
            raise failure
        again = following[:2] == failed[:2]
        target, model, pool, ctx.probe = following
        ctx.target = target
        if delay_s:
            ctx.waits = True
            waited_from = runtime.clock()
            await asyncio.sleep(delay_s)
            ctx.upstream_s += runtime.clock() - waited_from  # for its sake, not our own time (R38)
            ctx.waits = False
        if again and search.waits(following):  # others have asked it meanwhile
            search.release(following)
            _tell_when(runtime, active, call, pool, failure)
            raise failure
        runtime.metrics.count(RETRIES if again else FAILOVERS)
        if RETRY[failure.failure].ambiguous:
            runtime.metrics.count(RETRY_AMBIGUOUS)


def _succeeded(runtime: Runtime, active: Active, ctx: RequestContext, target: Target, pool: Pool) -> None:
    """What the end of an attempt that went well says about its target."""
    attempted(runtime, ctx, NONE)
    if (
        ctx.first_content_at
        and active.snapshot.resilience.breaker.latency_factor
        and active.breakers.slow(target.row, runtime.clock(), pool.rows)
    ):
        runtime.metrics.count(EJECTED, (target.provider.name,))
    if runtime.table.cooldown(target.row) or runtime.table.breaker(target.row):
        active.cooldowns.succeeded(target.row)
        active.breakers.succeeded(target.row, runtime.clock(), probe=ctx.probe)
        ctx.probe = False


def _hedge_after(runtime: Runtime, active: Active, call: Call, target: Target) -> float | None:
    """Seconds after which a second target is asked beside this one; ``None``: not at all."""
    hedging = active.hedging
    if not hedging.allowed(repeatable=repeatable(call), stream=call.stream):
        return None
    now = runtime.clock()
    hedging.request(now)
    return hedging.delay_s(runtime.table, target.row, int(now * NANOS))


def _failed(
    runtime: Runtime, active: Active, ctx: RequestContext, choice: Choice, error: UpstreamError | Overloaded
) -> None:
    """What the failure says about the target. That it has no place for us says nothing, and nothing was sent."""
    now, row = runtime.clock(), choice.target.row
    ctx.probe = False
    if isinstance(error, UpstreamError):
        attempted(runtime, ctx, error.failure)
        if isinstance(error, UpstreamTimeout):
            runtime.metrics.count(TIMEOUTS, (choice.target.provider.name, error.phase))
        active.cooldowns.failed(row, error.failure, now, error.retry_after_s)
        if active.breakers.failed(row, error.failure, now, choice.pool.rows, probe=choice.probe):
            runtime.metrics.count(EJECTED, (choice.target.provider.name,))
        return
    give_up(runtime, active, choice.target, choice.probe, ctx.call, ctx.t_read)


def _following(
    runtime: Runtime,
    active: Active,
    ctx: RequestContext,
    exchange: Exchange,
    search: Search,
    failed: Choice,
    error: UpstreamError | Overloaded,
) -> tuple[Choice | None, float]:
    """Who is asked next, and after how many seconds: another, or the same again if nobody else is there. Nobody when
    the request's time or the budget is used up (Q05, Q18): nobody else is to be blamed for what could not end well."""
    now = runtime.clock()
    left_s = total_s(ctx, failed.target.provider.timeouts) - (now - ctx.t_start)
    switches = (exchange.header("x-slipstream-no-retry"), exchange.header("x-slipstream-no-fallback"))  # R13
    may = left_s > 0 and switches[0] is None
    choice = search.after(error, failed, may, fallbacks=switches[1] is None)
    again = False
    wait_s = 0.0
    if choice is None and may and isinstance(error, UpstreamError):
        found = search.again(error, failed) if _harmless(error, ctx.call) else None
        if found is not None:
            again, (choice, wait_s) = True, found
    if choice is None:
        return None, 0.0
    delay_s: float | None = 0.0
    if isinstance(error, UpstreamError) and RETRY[error.failure].other:
        delay_s = active.policy.next_delay(error.failure, ctx.attempts, again, wait_s, left_s, random.random)
        runtime.count_requests(now)
        if delay_s is not None and not runtime.retry_budget.try_spend(now):
            runtime.metrics.count(RETRY_BUDGET_EXHAUSTED)
            delay_s = None
    if delay_s is None:
        search.release(choice)
        return None, 0.0
    return choice, delay_s


def _harmless(error: UpstreamError, call: Call | None) -> bool:
    """Whether the same target may be asked the same again: it may have done already what it was asked for (Q06c)."""
    return not RETRY[error.failure].ambiguous or (call is not None and repeatable(call))


def _tell_when(runtime: Runtime, active: Active, call: Call, pool: Pool, error: UpstreamError | Overloaded) -> None:
    """A 429 or 503 says when the first of the targets may be asked again (R52), and so does an outage of all."""
    if not isinstance(error, UpstreamError):
        return
    now = runtime.clock()
    outage(active, runtime, pool, error, now)
    if error.failure in (FailureClass.RATE_LIMITED, FailureClass.OVERLOADED):
        soonest = min(max(ready_in_s(active, t, now), room_in_s(runtime, t, call, now)) for t in pool.targets)
        if soonest > 0:
            error.retry_after_s = soonest


def _route(active: Active, ctx: RequestContext, call: Call) -> Pool:
    """Who serves the model. Raises ``ClientError``: 400 for what is no model name, 404 for a model nobody serves."""
    routes, model = active.routes, call.model
    if not model:  # /v1/infer may leave it open (contracts E)
        model = call.model = next(iter(routes.models), "default")
    if routes.knows(model):
        ctx.model_label = model
    else:
        ctx.model_label = OTHER
        if not routes.remembers(model) and not is_model_name(model):
            raise ClientError("'model' is not a usable model name.", param="model", code="invalid_value")
    pool = routes.find(model)
    if pool is None:
        raise ClientError(
            f"The model {model!r} does not exist or is not served here. GET /v1/models lists what is.",
            status=404,
            param="model",
            code="model_not_found",
        )
    return pool


async def _respond(
    runtime: Runtime, active: Active, ctx: RequestContext, exchange: Exchange, error: GatewayError
) -> None:
    """Tell the client, in its dialect: an HTTP error before the first content, an in-band error event after it
    (R12).
    """
    if isinstance(error, UpstreamError):
        error.message = active.redact(error.message)
        error.type = active.redact(error.type)
        error.code = None if error.code is None else active.redact(error.code)
        error.param = None if error.param is None else active.redact(error.param)
        if error.body is not None:
            error.body = active.redact.body(error.body)
    try:
        if exchange.started:
            event = FACES[ctx.endpoint].error_event(error) if ctx.tap is None else ctx.tap.error(error)
            waiting = exchange.write(event)
            if waiting is not None:
                await waiting
            await exchange.end()
        else:
            face = FACES[ctx.endpoint]
            exchange.reply(
                error.status, _error_headers(ctx, exchange, error, face), face.error_body(error, ctx.request_id)
            )
    except ClientGone:
        pass


def _error_headers(ctx: RequestContext, exchange: Exchange, error: GatewayError, face: Face) -> Block:
    headers = {"Content-Type": face.error_type, **(error.headers or {})}
    if isinstance(error, UpstreamError):
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(max(0, math.ceil(error.retry_after_s)))
        if ctx.attempts > 1:
            headers["x-should-retry"] = "false"  # we have tried elsewhere already: SDKs must not multiply that (Q08)
            headers["x-slipstream-attempts"] = str(ctx.attempts)
        if ctx.trail and exchange.header("x-slipstream-trail") is not None:  # R56
            headers["x-slipstream-trail"] = ", ".join(ctx.trail)
    return block(headers)


def _abandoned(runtime: Runtime, ctx: RequestContext) -> None:
    """The client left. If an attempt was under way it is counted, and its prompt was very likely paid for."""
    if ctx.target is None or ctx.call is None or ctx.waits:
        return
    attempted(runtime, ctx, FailureClass.CLIENT_GONE)
    if ctx.usage.source == "none":
        ctx.usage = estimate(prompt_bytes(ctx.call), 0)
