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
from ..wire.codec import DecodeError, loads

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
            kind = active.outbound[pool.targets[0].provider.name].kind
            found[name] = {"id": name, "object": "model", "created": self._created, "owned_by": kind.owner}
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
                models = await self._fetch(outbound)
            except (UpstreamError, TimeoutError, DecodeError, ValueError) as exc:
                log.warning(
                    "the model list of a provider could not be read",
                    extra={"fields": {"provider": outbound.spec.name, "error": type(exc).__name__}},
                )
                models = known[1] if known is not None else []
            self._asked[outbound.key] = now, models
            return models

    async def _fetch(self, outbound: Outbound) -> list[Model]:
        url, headers = outbound.get_models
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
        if reply.status != 200:
            raise ValueError("no list")
        return self._read(loads(b"".join(parts)), outbound.kind.owner)

    def _read(self, value: Any, owner: str) -> list[Model]:
        """OpenAI's ``{"data": [...]}``; Together answers with the bare array (PROTOCOLS.md 2.9)."""
        items = value.get("data") if isinstance(value, dict) else value
        if not isinstance(items, list):
            raise ValueError("not a model list")
        models: list[Model] = []
        for item in items[:MAX_LISTED]:
            name = item.get("id") if isinstance(item, dict) else None
            if not isinstance(name, str) or not name:
                continue
            created, owned_by = item.get("created"), item.get("owned_by")
            models.append(
                {
                    "id": name,
                    "object": "model",
                    "created": created if isinstance(created, int) else self._created,
                    "owned_by": owned_by if isinstance(owned_by, str) and owned_by else owner,
                }
            )
        return models
