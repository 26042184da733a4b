"""The straight line of a request, in one function (design.md section 3):

accept -> authenticate -> peek -> route -> attempt (next target on failure) -> relay -> respond -> settle.

The listener has authenticated from the headers before this is called. What may end a request early is an exception of
the error tree; the client's disconnect is a cancellation. ``settle`` runs on every path, exactly once.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

from ..config.snapshot import Target
from ..errors import ClientError, GatewayError, UpstreamError
from ..obs.families import FAILOVERS
from ..obs.metrics import CLIENT_GONE_STATUS, OTHER
from ..resilience.failures import RETRY
from ..routing.table import NOTHING, Pool
from ..types import Endpoint, FailureClass, Secret
from ..wire.faces import FACES, Face
from ..wire.headers import Block, block
from ..wire.request import Call, is_model_name, peek
from ..wire.usage import estimate
from . import account
from .attempt import attempt, prompt_bytes
from .context import RequestContext
from .exchange import ClientGone, Exchange
from .pulse import Pulse
from .runtime import Active, Runtime


async def serve(runtime: Runtime, exchange: Exchange, endpoint: Endpoint, key_name: str) -> None:
    """Serve one request of the data plane from its body to its settlement."""
    now = runtime.clock()
    label = endpoint.label
    ctx = RequestContext(endpoint, label, exchange.request_id, key_name, now, now)
    active = runtime.pin()
    runtime.metrics.enter(label)
    try:
        body = await exchange.body()
        ctx.t_read = runtime.clock()
        call = ctx.call = peek(endpoint, body)
        if call.stream:
            with Pulse(runtime.pulses, exchange, FACES[endpoint].ping) as ctx.pulse:
                await _answer(runtime, active, ctx, exchange, call)
        else:
            await _answer(runtime, active, ctx, exchange, call)
        ctx.status = 200
    except GatewayError as error:
        ctx.error = error
        ctx.status = 200 if exchange.started else error.status
        await _respond(runtime, active, ctx, exchange, error)
    except (asyncio.CancelledError, ClientGone):
        ctx.status = CLIENT_GONE_STATUS
        _abandoned(runtime, ctx)
        raise
    except BaseException:
        ctx.status = 500
        raise
    finally:
        runtime.metrics.leave(label)
        runtime.release(active)
        account.settle(runtime, active, ctx)


async def _answer(runtime: Runtime, active: Active, ctx: RequestContext, exchange: Exchange, call: Call) -> None:
    """Try the targets in turn until one answers. Raises the last failure if none does."""
    pool = _route(active, ctx, call)
    target = pool.choose(NOTHING, runtime.table.available, ctx.t_read)
    if target is None:
        raise GatewayError("No provider can take this request.", status=503, code="no_provider")
    model = target.upstream_model or call.model
    others: Iterator[tuple[Target, str]] | None = None
    while True:
        try:
            await attempt(runtime, active, ctx, exchange, call, target, model)
        except UpstreamError as error:
            account.attempted(runtime, ctx, error.failure)
            active.cooldowns.failed(target.row, error.failure, runtime.clock(), error.retry_after_s)
            rule = RETRY[error.failure]
            if ctx.committed or not rule.other:
                raise
            if others is None:
                others = _others(runtime, active, call, pool, target)
            refused = (target.provider.api_key or None) if rule.new_key else None
            following = next((o for o in others if _may_follow(runtime, ctx, o[0], refused)), None)
            if following is None:
                raise
            target, model = following
            runtime.metrics.count(FAILOVERS)
        else:
            account.attempted(runtime, ctx, account.NONE)
            if runtime.table.cooldown(target.row):
                active.cooldowns.succeeded(target.row)
            return


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


def _others(
    runtime: Runtime, active: Active, call: Call, first_pool: Pool, first: Target
) -> Iterator[tuple[Target, str]]:
    """Who to try after ``first`` has failed, and the model to ask each for: at most ``1 + retries`` targets for the
    model, then as many for each fallback model. A resting target is passed over while another is left.
    """
    routing = active.snapshot.routing
    asked = {(first.row, first.upstream_model or call.model)}
    """Rows and the model each was asked for: one row may stand for all models of a provider."""
    left = routing.retries
    for model in (call.model, *routing.fallbacks.get(call.model, ())):
        pool = first_pool if model == call.model else active.routes.find(model)
        if pool is None:
            continue
        tried = {t.row for t in pool.targets if (t.row, t.upstream_model or model) in asked}
        for _ in range(left):
            target = pool.choose(tried, runtime.table.available, runtime.clock())
            if target is None:
                break
            tried.add(target.row)
            asked.add((target.row, target.upstream_model or model))
            yield target, target.upstream_model or model
        left = 1 + routing.retries


def _may_follow(runtime: Runtime, ctx: RequestContext, target: Target, refused: Secret | None) -> bool:
    """Whether the request's time is not yet up: else nobody else is asked, nor blamed for it (Q18). After a key was
    ``refused``, whoever has the same one is not asked (Q06d)."""
    if target.provider.api_key == refused:
        return False
    return runtime.clock() - ctx.t_start < target.provider.timeouts.total_s


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
            exchange.reply(error.status, _error_headers(ctx, error, face), face.error_body(error, ctx.request_id))
    except ClientGone:
        pass


def _error_headers(ctx: RequestContext, error: GatewayError, face: Face) -> Block:
    headers = {"Content-Type": face.error_type, **(error.headers or {})}
    if isinstance(error, UpstreamError):
        if error.retry_after_s is not None:
            headers["Retry-After"] = str(max(0, math.ceil(error.retry_after_s)))
        if ctx.attempts > 1:
            headers["x-should-retry"] = "false"  # we have tried elsewhere already: SDKs must not multiply that (Q08)
            headers["x-slipstream-attempts"] = str(ctx.attempts)
    return block(headers)


def _abandoned(runtime: Runtime, ctx: RequestContext) -> None:
    """The client left. If an attempt was under way it is counted, and its prompt was very likely paid for."""
    if ctx.target is None or ctx.call is None:
        return
    account.attempted(runtime, ctx, FailureClass.CLIENT_GONE)
    if ctx.usage.source == "none":
        ctx.usage = estimate(prompt_bytes(ctx.call), 0)
