"""Settling: exactly once for every request, on every path, with what is known (R8). Counts and logs, nothing else.

Must not raise and must not wait: it runs while a client may be gone and a task may be cancelled.
"""

from __future__ import annotations

import logging

from ..types import FailureClass
from ..wire.usage import Usage
from .context import CLIENT_GONE_STATUS, RequestContext
from .runtime import Active, Runtime

log = logging.getLogger("slipstream.request")
NO_PROVIDER = "none"


def settle(runtime: Runtime, active: Active, ctx: RequestContext) -> None:
    metrics = runtime.metrics
    now = ctx.t_end = runtime.clock()
    provider = ctx.target.provider.name if ctx.target is not None else NO_PROVIDER
    endpoint = ctx.endpoint.label
    metrics.request(endpoint, ctx.model_label, provider, ctx.status, ctx.key_name, now - ctx.t_start)
    if ctx.status == CLIENT_GONE_STATUS:
        metrics.disconnects += 1
    if ctx.attempts:
        usage = ctx.usage
        metrics.add_tokens(ctx.model_label, provider, ctx.key_name, usage.prompt, usage.completion, usage.source)
        _price(runtime, ctx, usage)
        if ctx.error is None and ctx.status == 200:
            metrics.overhead.add(max(0.0, now - ctx.t_read - ctx.upstream_s))
        if ctx.first_content_at:
            spent = now - ctx.first_content_at
            metrics.stream_speed(
                ctx.model_label, provider, ctx.first_content_at - ctx.t_start, ctx.completion_events, spent
            )
    if ctx.error is not None and ctx.error.source != "client":
        _log(logging.WARNING, active, ctx, provider)
    elif active.snapshot.server.access_log:
        _log(logging.INFO, active, ctx, provider)


def _price(runtime: Runtime, ctx: RequestContext, usage: Usage) -> None:
    """Micro-dollars by the configured price; unknown is counted, never taken for 0 (R69)."""
    if ctx.target is None or usage.source == "none":
        return
    spec = ctx.target.provider
    if spec.price is None:
        runtime.metrics.cost_unknown += 1
        return
    micro = round(usage.prompt * spec.price.input + usage.completion * spec.price.output)
    costs = runtime.metrics.cost_micro_usd
    costs[spec.name] = costs.get(spec.name, 0) + micro


def _log(level: int, active: Active, ctx: RequestContext, provider: str) -> None:
    fields: dict[str, object] = {
        "request_id": ctx.request_id,
        "endpoint": ctx.endpoint.label,
        "model": ctx.model_label,
        "provider": provider,
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


def failed(runtime: Runtime, ctx: RequestContext, failure: FailureClass) -> None:
    """Count one failed attempt (``CLIENT_GONE`` when the client left during it)."""
    assert ctx.target is not None
    name = ctx.target.provider.name
    ctx.trail.append(f"{name}:{failure.label}")
    runtime.metrics.attempt(name, failure, ctx.header_s)
