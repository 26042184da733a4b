"""``/v1/models``: the union of what the providers serve, in OpenAI's shape.

Providers whose models are written in the configuration answer from it; one that serves every model is asked for its
list, at most once a minute, for all callers at once. A provider that does not answer is left out, and says so in the
log.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from ..engine.runtime import Active, Outbound, Runtime
from ..errors import UpstreamError
from ..providers.capabilities import capabilities

log = logging.getLogger("slipstream.models")
FRESH_S = 60.0
ASK_S = 5.0
MAX_LIST_BYTES = 8 * 1024 * 1024
MAX_LISTED = 5000

Model = dict[str, Any]


class ModelList:
    """The list for the active configuration; ``created`` is Unix time."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._created = int(runtime.wall())
        self._asked: dict[tuple[object, ...], tuple[float, list[Model]]] = {}
        self._lock = asyncio.Lock()

    async def all(self) -> list[Model]:
        active = self._runtime.active
        found: dict[str, Model] = {}
        for name, pool in active.routes.models.items():
            target = pool.targets[0]
            kind = active.outbound[target.provider.name].kind
            model: Model = {"id": name, "object": "model", "created": self._created, "owned_by": kind.owner}
            found[name] = describe(model, target.upstream_model or name)
        for outbound in active.outbound.values():
            if outbound.spec.serves_every_model:
                for model in await self._ask(active, outbound):
                    found.setdefault(model["id"], model)
        return list(found.values())

    async def one(self, name: str) -> Model | None:
        return next((m for m in await self.all() if m["id"] == name), None)

    async def _ask(self, active: Active, outbound: Outbound) -> list[Model]:
        async with self._lock:
            now = self._runtime.clock()
            known = self._asked.get(outbound.key)
            if known is not None and now - known[0] < FRESH_S:
                return known[1]
            try:
                base = {"object": "model", "created": self._created, "owned_by": outbound.kind.owner}
                listed = await fetch_models(outbound, self._runtime.wall())
                models = [describe({**base, **model}, model["id"]) for model in listed]
            except (UpstreamError, TimeoutError, ValueError) as exc:
                log.warning(
                    "the model list of a provider could not be read",
                    extra={"fields": {"provider": outbound.spec.name, "error": type(exc).__name__}},
                )
                models = known[1] if known is not None else []
            self._asked[outbound.key] = now, models
            return models


def describe(model: Model, upstream: str) -> Model:
    """``model`` with what is known of the one behind it, in fields that are ours: OpenAI has none for it."""
    known = capabilities(upstream)
    if known is not None:
        flags: dict[str, Any] = known._asdict()
        model.setdefault("context_window", flags.pop("context_window"))
        model["capabilities"] = flags
    return model


async def fetch_models(outbound: Outbound, wall_now: float) -> list[Model]:
    """What a provider says it serves, nothing if it has no such list. ``wall_now`` is Unix seconds (signatures).

    Raises ``UpstreamError`` if it cannot be reached or refuses, ``TimeoutError`` after ``ASK_S``, ``ValueError`` for an
    answer that is no list.
    """
    await outbound.ready()
    request = outbound.models_request(wall_now)
    if request is None:
        return []
    url, headers = request
    async with asyncio.timeout(ASK_S):
        reply = await outbound.transport.get(url, headers, connect_s=outbound.spec.timeouts.connect_s)
        try:
            parts: list[bytes] = []
            while part := await reply.chunk():
                parts.append(part)
                if sum(map(len, parts)) > MAX_LIST_BYTES:
                    raise ValueError("list too large")
        finally:
            reply.close()
    body = b"".join(parts)
    if not 200 <= reply.status < 300:
        raise outbound.kind.error(reply.status, reply.headers, body, outbound.spec, None)
    return outbound.kind.read_models(body)[:MAX_LISTED]
