"""Settling: exactly once for every request, on every path, with what is known (R8). Counts and logs, nothing else.

Must not raise and must not wait: it runs while a client may be gone and a task may be cancelled.
"""

from __future__ import annotations

import logging

from ..config.snapshot import Target
from ..resilience.bulkhead import Overloaded
from ..resilience.ratelimit import RateLimits, is_limited
from ..types import NANOS, FailureClass
from ..wire.usage import Usage, estimate
from .context import RequestContext
from .runtime import Active, Runtime
from .search import estimated_tokens
from .translate import micro_usd

log = logging.getLogger("slipstream.request")
NONE = FailureClass.NONE
NO_PROVIDER = "none"
MICROS = 1_000_000


def settle(runtime: Runtime, active: Active, ctx: RequestContext) -> None:
    """Count and log one request; ``ctx`` is not used afterwards."""
    metrics = runtime.metrics
    now = ctx.t_end = runtime.clock()
    target = ctx.target
    if target is None:
        labels = ctx.label, ctx.model_label, NO_PROVIDER, ctx.key_name, ctx.status, "", False
        metrics.finished(labels, now - ctx.t_start)
    else:
        provider, usage = target.provider, ctx.usage
        price, prompt, completion = provider.price, usage.prompt, usage.completion
        micro = 0 if price is None else micro_usd(price, usage)
        own_s = now - ctx.t_read - ctx.upstream_s if ctx.error is None and ctx.status == 200 else -1.0
        first = ctx.first_content_at
        labels = (
            ctx.label,
            ctx.model_label,
            provider.name,
            ctx.key_name,
            ctx.status,
            usage.source,
            price is not None,
        )
        started = ctx.t_start
        metrics.finished(labels, now - started, own_s, first - started if first else -1.0, prompt, completion, micro)
        if prompt or completion:
            runtime.table.add_usage(target.row, prompt, completion, micro)
        if provider.limits.tokens_per_min is not None:
            _settle_tokens(runtime, ctx, target, usage)
        if first:
            metrics.speed(ctx.model_label, provider.name, ctx.completion_events, now - first)
    if ctx.error is not None and ctx.error.source != "client" and not isinstance(ctx.error, Overloaded):
        _log(logging.WARNING, active, ctx)
    elif active.snapshot.server.access_log:
        _log(logging.INFO, active, ctx)
    if ctx.error is not None:
        ctx.error.__traceback__ = None  # it leads back here: the body would wait for the collector


def _settle_tokens(runtime: Runtime, ctx: RequestContext, target: Target, usage: Usage) -> None:
    """The limit of the provider counts what was used, if anybody knows, and not what was reserved."""
    if usage.source != "none":
        reserved, used = estimated_tokens(ctx.call), usage.prompt + usage.completion
        RateLimits(runtime.table).settle(target, reserved, used, ctx.t_read, runtime.clock())


def attempted(runtime: Runtime, ctx: RequestContext, failure: FailureClass) -> None:
    """Count one attempt by how it ended (``CLIENT_GONE`` when the client left during it)."""
    target = ctx.target
    assert target is not None
    name, latency_us, ttft_us = target.provider.name, -1, -1
    if failure is NONE:
        latency_us = int(ctx.header_s * MICROS)
    else:
        ctx.trail.append(f"{name}:{failure.label}")
        if failure is FailureClass.CONNECT and is_limited(target):  # nothing was sent
            RateLimits(runtime.table).release(target, estimated_tokens(ctx.call), ctx.t_read, runtime.clock())
    if ctx.first_content_at:
        ttft_us = int((ctx.first_content_at - ctx.t_attempt) * MICROS)
    runtime.metrics.attempt(name, failure)
    runtime.table.record(target.row, failure, latency_us, ttft_us, int(runtime.clock() * NANOS))


def lost(runtime: Runtime, ctx: RequestContext, prompt_bytes: int) -> None:
    """A hedge that was not needed in the end. It will be on the bill, so it is in the accounts (Q14)."""
    target = ctx.target
    if target is None or not ctx.attempts:
        return
    attempted(runtime, ctx, FailureClass.CLIENT_GONE)
    usage = ctx.usage if ctx.usage.source != "none" else estimate(prompt_bytes, ctx.completion_events)
    micro = 0 if target.provider.price is None else micro_usd(target.provider.price, usage)
    runtime.table.add_usage(target.row, usage.prompt, usage.completion, micro)
    if target.provider.limits.tokens_per_min is not None:
        _settle_tokens(runtime, ctx, target, usage)
    runtime.metrics.extra_usage(ctx.model_label, target.provider.name, ctx.key_name, usage, micro)


def _log(level: int, active: Active, ctx: RequestContext) -> None:
    fields: dict[str, object] = {
        "request_id": ctx.request_id,
        "endpoint": ctx.label,
        "model": ctx.model_label,
        "provider": ctx.target.provider.name if ctx.target is not None else NO_PROVIDER,
        "status": ctx.status,
        "ms": round((ctx.t_end - ctx.t_start) * 1000, 1),
        "attempts": ctx.attempts,
        "prompt_tokens": ctx.usage.prompt,
        "completion_tokens": ctx.usage.completion,
        "usage_source": ctx.usage.source,
    }
    if ctx.error is not None:
        fields["code"] = active.redact(ctx.error.code) if ctx.error.code is not None else None
        fields["failure"] = ctx.error.failure.label
        fields["reason"] = active.redact(ctx.error.message)
        if ctx.trail:
            fields["trail"] = ctx.trail
    log.log(level, "request", extra={"fields": fields})
