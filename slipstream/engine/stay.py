"""What becomes of the provider's answer when the client leaves (R7, ``routing.on_disconnect``).

By default the attempt is cancelled and its connection closed at once (R1). Where a model is to ``finish``, the answer
is read to its end and dropped, so that the accounts have the provider's own usage and not an estimate. Since a listener
cancels the task of a client that has gone, such requests run in a task of their own from the start.

Only an attempt that is under way goes on. Who waits for a place or between two attempts is cancelled, nobody else is
asked afterwards, and two attempts of which none has won its race are cancelled both. What is read is bounded by the
limits of the attempt (time, size), by ``MOST`` requests a process, and by the end of the process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from ..types import Endpoint
from ..wire.headers import Block
from .context import RequestContext
from .exchange import ClientGone, Exchange
from .pipeline import serve
from .runtime import Runtime

log = logging.getLogger("slipstream.request")

MOST = 256
"""Beyond so many without a client whoever leaves is cancelled: they hold places at their providers."""
_NO_RETRY = "x-slipstream-no-retry"


async def outlast(runtime: Runtime, exchange: Exchange, endpoint: Endpoint, key_name: str, waited_s: float) -> None:
    """``pipeline.serve``, with an answer that may be read for nobody. Raises ``CancelledError`` as soon as it is
    cancelled, whether the answer is read on or not."""
    now = runtime.clock() - waited_s
    ctx = RequestContext(endpoint, endpoint.label, exchange.request_id, key_name, now, now)
    shell = Staying(runtime, exchange, ctx)
    task = asyncio.get_running_loop().create_task(serve(runtime, shell, endpoint, key_name, ctx=ctx), name="request")
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        if not task.done():
            runtime.outlasting.add(task)
            task.add_done_callback(runtime.outlasting.discard)
            task.add_done_callback(_seen)
            if not shell.leave():
                asyncio.get_running_loop().call_soon(task.cancel)  # it has begun then, and settles
        raise


def _seen(task: asyncio.Task[None]) -> None:
    """Nobody else looks at how it ended; what is no ``ClientGone`` is a fault of ours."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, ClientGone):
        log.error("a request without a client failed", extra={"fields": {"error": type(error).__name__}})


class Staying:
    """An ``Exchange`` whose client may have left: what is written then is dropped, and the end is ``ClientGone``."""

    __slots__ = ("_ctx", "_exchange", "_runtime", "_stays", "request_id", "started")

    def __init__(self, runtime: Runtime, exchange: Exchange, ctx: RequestContext) -> None:
        self._runtime = runtime
        self._exchange = exchange
        self._ctx = ctx
        self._stays: bool | None = None
        """``None`` as long as the client is there."""
        self.request_id = exchange.request_id
        self.started = False

    def leave(self) -> bool:
        """The client has gone. Whether the answer is read on all the same; decided once."""
        if self._stays is None:
            self._stays = self._finishes()
        return self._stays

    def _finishes(self) -> bool:
        runtime, ctx = self._runtime, self._ctx
        asked = ctx.attempts > len(ctx.trail)  # each that has failed is in the trail
        if ctx.race is not None:
            asked = ctx.race.winner is not None
            ctx = ctx.race.winner or ctx
        if ctx.call is None or not asked or runtime.draining or len(runtime.outlasting) > MOST:
            return False
        least = runtime.active.snapshot.routing.finishes_after(ctx.call.model)
        return least is not None and (0 if ctx.tap is None else ctx.tap.content_events) >= least

    # ------------------------------------------------------------------ the Exchange
    @property
    def asked_s(self) -> float | None:
        return self._exchange.asked_s

    def header(self, name: str) -> str | None:
        if name == _NO_RETRY and self._stays is not None:
            return "client gone"
        return self._exchange.header(name)

    async def body(self) -> bytes:
        return await self._exchange.body()

    def reply(self, status: int, headers: Block, body: bytes) -> None:
        if self._stays is not None:
            raise ClientGone
        self._exchange.reply(status, headers, body)

    async def begin(self, headers: Block) -> None:
        self.started = True
        if self._stays is None:
            await self._reaching(self._exchange.begin(headers))

    def write(self, data: bytes) -> Awaitable[None] | None:
        if self._stays is not None:
            return None
        try:
            waiting = self._exchange.write(data)
        except ClientGone:
            if self.leave():
                return None
            raise
        return None if waiting is None else self._reaching(waiting)

    async def end(self) -> None:
        if self._stays is not None:
            raise ClientGone
        await self._exchange.end()

    async def _reaching(self, waiting: Awaitable[None]) -> None:
        try:
            await waiting
        except ClientGone:
            if not self.leave():
                raise
