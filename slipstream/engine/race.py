"""Hedging: a second attempt beside a first one that is slow to begin (Q14; the policy is ``resilience.hedge``).

Each attempt runs in a task of its own with a context of its own. Whoever has content first claims the race, which
cancels the other at once; only then does anything reach the client. The loser's connection is closed by its own
cancellation, and what it had used is in the accounts, because it will be on the bill.

The rule that must not be broken: nothing is written to the client before the race is claimed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ..errors import UpstreamError
from ..obs.families import HEDGES
from ..resilience.bulkhead import Overloaded
from ..types import Endpoint
from ..wire.request import Call
from . import account
from .attempt import attempt, prompt_bytes
from .context import RequestContext
from .exchange import Exchange
from .runtime import Active, Runtime
from .search import Choice, choose, give_up

Failure = UpstreamError | Overloaded
_ACTS = (b'"store"', b'"background"', b"web_search", b"code_execution", b"code_interpreter", b'"mcp', b"computer_use")
"""In a request that does more than ask: what the provider keeps or runs itself would be done twice."""
_REPEATABLE = frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS, Endpoint.EMBEDDINGS, Endpoint.MESSAGES, Endpoint.INFER})


def repeatable(call: Call) -> bool:
    """Whether asking twice does no more than cost twice. In doubt not."""
    return call.endpoint in _REPEATABLE and not any(mark in call.body for mark in _ACTS)


class Race:
    """The attempts of one request that run side by side."""

    __slots__ = ("_entrants", "winner")

    def __init__(self) -> None:
        self._entrants: list[tuple[RequestContext, asyncio.Task[None]]] = []
        self.winner: RequestContext | None = None

    def enter(self, ctx: RequestContext, task: asyncio.Task[None]) -> None:
        self._entrants.append((ctx, task))

    def claim(self, ctx: RequestContext) -> None:
        """``ctx`` has content: it answers, and the others are cancelled. Raises ``CancelledError`` in one that lost."""
        if self.winner is None:
            self.winner = ctx
            for other, task in self._entrants:
                if other is not ctx:
                    task.cancel()
        elif self.winner is not ctx:
            raise asyncio.CancelledError


class Hedged:
    """One request whose first attempt may get a second beside it."""

    __slots__ = ("_active", "_call", "_ctx", "_exchange", "_failed", "_race", "_running", "_runtime", "error")

    def __init__(
        self,
        runtime: Runtime,
        active: Active,
        ctx: RequestContext,
        exchange: Exchange,
        call: Call,
        failed: Callable[[Runtime, Active, RequestContext, Choice, Failure], None],
    ) -> None:
        self._runtime = runtime
        self._active = active
        self._ctx = ctx
        self._exchange = exchange
        self._call = call
        self._failed = failed
        """Told of a failure that does not end the race."""
        self._race = Race()
        self.error: Failure | None = None
        """After ``run``: the failure in which the race ended."""
        self._running: dict[asyncio.Task[None], tuple[Choice, RequestContext]] = {}

    async def run(self, first: Choice, delay_s: float) -> Choice:
        """Who answered, or whose failure was the last (``error``). The request's context is that one's then."""
        self._start(first)
        self._ctx.race = self._race
        try:
            await asyncio.wait(self._running, timeout=delay_s)
            self._hedge(first)
            while True:
                done, _ = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    choice, ctx = self._running.pop(task)
                    if await self._ended(task, choice, ctx):
                        return choice
        except BaseException:
            await self._end()
            raise

    async def _ended(self, task: asyncio.Task[None], choice: Choice, ctx: RequestContext) -> bool:
        """One attempt is over. True: and with it the race. Raises what is no failure of a provider."""
        if task.cancelled():
            self._lost(choice, ctx)
            return False
        error = task.exception()
        if error is not None and not isinstance(error, UpstreamError | Overloaded):
            self._adopt(ctx)  # also of one whose client has gone there are accounts
            raise error
        if error is not None and not ctx.committed and self._running:
            self._failed(self._runtime, self._active, ctx, choice, error)
            return False
        await self._end()
        self._adopt(ctx)
        self.error = error
        return True

    def _start(self, choice: Choice) -> None:
        ctx = self._ctx.beside()
        ctx.race = self._race
        ctx.attempts += len(self._running)
        ctx.probe = choice.probe
        work = attempt(self._runtime, self._active, ctx, self._exchange, self._call, choice.target, choice.model)
        task = asyncio.get_running_loop().create_task(work, name="attempt")
        self._race.enter(ctx, task)
        self._running[task] = choice, ctx

    def _hedge(self, first: Choice) -> None:
        """The delay is over: ask another target, if there is one and the budget allows it."""
        runtime, active = self._runtime, self._active
        if self._race.winner is not None or any(task.done() for task in self._running):
            return
        now = runtime.clock()
        pool = active.routes.find(self._call.model) or first.pool
        found = choose(runtime, active, pool, {first.target.row}, now, call=self._call)
        if found is None:
            return
        target, probe = found
        if not active.hedging.try_spend(now):
            runtime.metrics.count(HEDGES, ("no_budget",))
            give_up(runtime, active, target, probe, self._call, now)
            return
        runtime.metrics.count(HEDGES, ("sent",))
        self._start(Choice(target, target.upstream_model or self._call.model, pool, probe))

    async def _end(self) -> None:
        """Cancel what still runs, wait until its connections are closed, and account for it."""
        running, self._running = self._running, {}
        for task in running:
            task.cancel()
        if running:
            await asyncio.wait(running)
        for task, (choice, ctx) in running.items():
            if not task.cancelled():
                task.exception()  # seen: it ended while it was being cancelled
            self._lost(choice, ctx)

    def _lost(self, choice: Choice, ctx: RequestContext) -> None:
        account.lost(self._runtime, ctx, prompt_bytes(self._call))
        if choice.probe:
            self._active.breakers.released(choice.target.row, self._runtime.clock())

    def _adopt(self, winner: RequestContext) -> None:
        """The request goes on with what its last attempt has found."""
        if winner.attempts > self._ctx.attempts + 1 and winner.committed:
            self._runtime.metrics.count(HEDGES, ("won",))
        self._ctx.adopt(winner)
        self._ctx.race = None
