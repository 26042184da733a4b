"""Active health probes: a provider that nobody asks is asked by us, so that its state is known and it comes back early.

Each provider has one task, which looks at it every ``resilience.probe_s`` (+-20 %, so that probes of many gateways do
not fall together) and asks, one question at a time, when

- a breaker of its targets is open and its time is over: the probe takes the place of the client's request that would
  have to find out (``Breakers.admit``). A success closes it, a failure opens it again for longer, and what says nothing
  about the target (a 429, our end) gives the place back.
- it had no attempt since the last look: nothing follows but what the pages show.

The question is the list of its models: it costs nothing, and its answer speaks for all targets of the provider. Where
there is no list, or no answer that says more than that (404, 403 of a restricted key, no JSON), it is a chat request
for one token, for each shut target or else for one of the idle. A target that told us to wait (429, 503) is left alone.

Of several workers the lowest living one probes. The rule that must not be broken: a probe is no traffic. It touches no
statistics, rests, usage or counters of requests; what it does to breakers it does as their probe.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Any

from .._fast import Series
from ..config.snapshot import Target
from ..errors import ClientError, UpstreamError
from ..net.upstream import UpstreamReply, UpstreamRequest
from ..obs.families import EJECTED, PROBED, PROBES
from ..obs.metrics import series_key
from ..resilience.breaker import PROBE
from ..resilience.failures import refine
from ..types import NANOS, FailureClass
from ..wire.canonical import Json
from ..wire.headers import retry_after_s
from .runtime import Active, Outbound, Runtime

log = logging.getLogger("slipstream.probe")

JITTER = 0.2
LIST_S = 10.0
CHAT_S = 30.0
"""A model may have to be loaded first. Less than a half-open breaker's ``probe_s``: the place must not lapse."""
MAX_BYTES = 8 * 1024 * 1024
STALE_NS = 5 * NANOS
"""A worker whose beat is so far behind the newest is stopped or dead."""
NONE = FailureClass.NONE
NO_LIST = frozenset(
    {
        FailureClass.MALFORMED,
        FailureClass.CLIENT_ERROR,
        FailureClass.NOT_FOUND,
        FailureClass.PERMISSION,
        FailureClass.AUTH,
    }
)
"""What a list may answer where chat works: the target is not judged by it."""


class Prober:
    """The probes of one process. ``random`` gives floats in [0, 1)."""

    __slots__ = ("_random", "_runtime", "_tasks")

    def __init__(self, runtime: Runtime, random: Callable[[], float] = random.random) -> None:
        self._runtime = runtime
        self._random = random
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Probe the providers of the active configuration, and those of an earlier one no more."""
        self.stop()
        active = self._runtime.active
        every_s = active.snapshot.resilience.probe_s
        if every_s > 0 and not self._runtime.draining:
            self._tasks = [
                asyncio.create_task(self._watch(_Provider(self._runtime, active, outbound), every_s), name="probe")
                for outbound in active.outbound.values()
            ]

    def stop(self) -> None:
        """A probe under way is given up, and its place at the breaker given back."""
        for task in self._tasks:
            task.cancel()
        self._tasks = []

    async def _watch(self, provider: _Provider, every_s: float) -> None:
        seen = provider.attempts()
        while True:
            await asyncio.sleep(every_s * (1 - JITTER + 2 * JITTER * self._random()))
            idle, seen = seen, provider.attempts()
            try:
                await provider.look(idle == seen)
            except Exception as exc:  # of our own making: the next look may go better, silence would not
                log.error("a probe ended badly", extra={"fields": {"error": type(exc).__name__}})


class _Provider:
    """One provider as the prober sees it."""

    __slots__ = ("_active", "_outbound", "_runtime", "_targets", "_was_ok")

    def __init__(self, runtime: Runtime, active: Active, outbound: Outbound) -> None:
        self._runtime = runtime
        self._active = active
        self._outbound = outbound
        self._targets = [target for target in active.routes.targets if target.provider is outbound.spec]
        self._was_ok = True

    def attempts(self) -> int:
        """Of all workers at all its targets, so far."""
        return sum(sum(self._runtime.table.counters(target.row)) for target in self._targets)

    async def look(self, idle: bool) -> None:
        """Ask what there is to ask now."""
        active, now = self._active, self._runtime.clock()
        free = [target for target in self._targets if not active.cooldowns.hard(target.row, now)]
        states = [(target, active.breakers.state(target.row, now)) for target in free]
        shut = [target for target, state in states if state == "half-open"]
        calm = [target for target, state in states if state == "closed"] if idle else []
        if not (shut or calm) or not probes_here(self._runtime):
            return
        named = [target for target in shut or calm if target.upstream_model is not None]
        lists = bool(self._outbound.kind.models_url(self._outbound.spec))
        if lists and await self._ask(shut, None, last=not named) not in NO_LIST:
            return
        for target in named if shut else named[:1]:
            await self._ask([target] if shut else [], target.upstream_model)

    async def _ask(self, shut: list[Target], model: str | None, last: bool = True) -> FailureClass:
        """One question; its answer decides for the breakers of ``shut``. ``model`` ``None``: the list, of which only
        what it shows is told, unless it is the ``last`` question."""
        clock, breakers = self._runtime.clock, self._active.breakers
        started = clock()
        rows = [target.row for target in shut if breakers.admit(target.row, started) is PROBE]
        if shut and not rows:
            return NONE  # a client's request finds out at this moment
        failure = FailureClass.CLIENT_GONE
        try:
            failure = await self._answer(model)
        finally:
            for row in rows:
                self._judge(row, FailureClass.CLIENT_GONE if model is None and failure in NO_LIST else failure)
        if last or failure not in NO_LIST:
            self._tell(failure, clock() - started)
        return failure

    def _judge(self, row: int, failure: FailureClass) -> None:
        now, breakers = self._runtime.clock(), self._active.breakers
        if failure is NONE:
            breakers.succeeded(row, now)
        elif breakers.failed(row, failure, now, ()):
            self._runtime.metrics.count(EJECTED, (self._outbound.spec.name,))

    def _tell(self, failure: FailureClass, seconds: float) -> None:
        """To the pages of all workers, and when it changes to the log."""
        runtime, name = self._runtime, self._outbound.spec.name
        runtime.metrics.count(PROBES, (name, failure.label))
        slot = _slot(runtime.shared.series, name)
        if slot >= 0:
            runtime.shared.series.set(slot, 1, max(0, int(seconds * 1_000_000)))
            runtime.shared.series.set(slot, 0, max(0, int(runtime.wall() * 1000)) << 8 | failure)
        is_ok = failure is NONE
        if is_ok != self._was_ok:
            self._was_ok = is_ok
            text = "a provider answers its probe again" if is_ok else "a provider failed its probe"
            log.warning(text, extra={"fields": {"provider": name, "failure": failure.label}})

    async def _answer(self, model: str | None) -> FailureClass:
        """How the question ended."""
        outbound = self._outbound
        try:
            async with asyncio.timeout(LIST_S if model is None else CHAT_S):
                await outbound.ready()
                if model is None:
                    await self._list()
                else:
                    await self._chat(model)
        except TimeoutError:
            return FailureClass.TIMEOUT
        except ClientError:
            return FailureClass.CLIENT_ERROR
        except ValueError:
            return FailureClass.MALFORMED
        except UpstreamError as error:
            return refine(error, outbound.kind.name, outbound.spec.name).failure
        return NONE

    async def _list(self) -> None:
        outbound = self._outbound
        request = outbound.models_request(self._runtime.wall())
        assert request is not None
        reply = await outbound.transport.get(*request, connect_s=outbound.spec.timeouts.connect_s)
        outbound.kind.read_models(await self._good(reply))

    async def _chat(self, model: str) -> None:
        outbound, spec = self._outbound, self._outbound.spec
        question: Json = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        built = outbound.kind.build(question, spec, model)
        url, headers = outbound.prepared(built.url, built.headers, built.body, self._runtime.wall())
        reply = await outbound.transport.send(UpstreamRequest(url, headers, built.body, spec.timeouts.connect_s))
        outbound.kind.reply(await self._good(reply), reply.headers, spec)

    async def _good(self, reply: UpstreamReply) -> bytes:
        """The body of a 2xx answer. Raises ``UpstreamError`` for every other."""
        body = bytearray()
        try:
            if reply.complete:
                body += reply.take()
            else:
                while part := await reply.chunk():
                    body += part
                    if len(body) > MAX_BYTES:
                        raise ValueError("the answer to a probe is too large")
        finally:
            reply.close()
        if not 200 <= reply.status < 300:
            outbound = self._outbound
            wait_s = retry_after_s(reply.headers, self._runtime.wall())
            raise outbound.kind.error(reply.status, reply.headers, bytes(body), outbound.spec, wait_s)
        return bytes(body)


def probes_here(runtime: Runtime) -> bool:
    """Whether this worker is the one that probes: the lowest of those that live."""
    workers = runtime.table.workers()
    newest = max((beat for _, _, _, beat, _ in workers), default=0)
    living = [worker for worker, _, _, beat, _ in workers if newest - beat <= STALE_NS]
    return not living or min(living) == runtime.worker


def last_probe(series: Series, provider: str) -> dict[str, Any] | None:
    """What the last probe of ``provider`` found: ``ok``, ``at`` (Unix seconds), ``ms`` it took, ``error`` (a failure
    class); ``None``: there was none."""
    slot = _slot(series, provider)
    word = series.get(slot, 0) if slot >= 0 else 0
    if not word:
        return None
    failure = word & 0xFF
    error = None if failure == NONE or failure >= len(FailureClass) else FailureClass(failure).label
    return {"ok": failure == NONE, "at": (word >> 8) / 1000, "ms": series.get(slot, 1) / 1000, "error": error}


def _slot(series: Series, provider: str) -> int:
    return series.series(series_key(PROBED, (provider,)), 2)
