"""Who is asked: the first target of a request, and after each failure the next.

Decisions only: nothing here waits or sends. A target is asked when it neither rests nor is shut; one that has just
failed (it rests *softly*) only when nobody else is left; one that told us when to come back, that its breaker has shut,
or that is at a rate limit of its provider, never before its time. If that leaves nobody, the answer says when somebody
will be there (R52).

Who is chosen has room at its limits and has taken it: whoever does not ask it after all must say so (``release``).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Set
from typing import NamedTuple

from ..config.snapshot import RoutingSpec, Target
from ..errors import GatewayError, UpstreamError
from ..resilience.backoff import LONGEST_HOLD_S
from ..resilience.breaker import PROBE, YES
from ..resilience.bulkhead import Overloaded
from ..resilience.failures import RETRY
from ..resilience.ratelimit import RateLimits, is_limited
from ..routing.table import NOTHING, Pool
from ..types import Endpoint, FailureClass, Secret
from ..wire.request import Call
from ..wire.usage import estimate
from .runtime import Active, Runtime

NOBODY_S = "30"
"""``Retry-After`` where no target has a weight: nobody will recover, somebody has to change that."""
DOWN = 5
"""A target with so many failures in a row is down: as many as open a breaker (Q02); that of the last never opens."""


class Choice(NamedTuple):
    """One attempt to make. ``probe``: the target's breaker waits for its end."""

    target: Target
    model: str
    pool: Pool
    probe: bool = False


def choose(
    runtime: Runtime,
    active: Active,
    pool: Pool,
    tried: Set[int],
    now: float,
    pardoned: Set[int] = NOTHING,
    turn: Target | None = None,
    call: Call | None = None,
) -> tuple[Target, bool] | None:
    """The target in turn and whether it is a probe; ``None``: nobody may be asked now. ``pardoned`` rows may be asked
    although they told us to wait: it was another model that they were asked for. ``turn``: the pool chose it
    already. ``call``: what it is asked, by whose size its tokens are reckoned.
    """
    table = runtime.table
    passed = set(tried)
    target = turn or pool.choose(passed, table.available, now)
    full: set[int] = set()
    while target is not None:
        admission = active.breakers.admit(target.row, now) if table.breaker(target.row) else YES
        if admission:
            if not is_limited(target) or _takes(runtime, target, call, now):
                return target, admission is PROBE
            full.add(target.row)
            if admission is PROBE:
                active.breakers.released(target.row, now)
        passed.add(target.row)
        target = pool.choose(passed, table.available, now)

    def better_than_nobody(row: int, _now_ns: int) -> bool:
        """It has just failed, or recovers, or waits for somebody to try it."""
        waits = active.cooldowns.hard(row, now) and row not in pardoned
        return not waits and active.breakers.state(row, now) != "open"

    passed = full.union(tried)
    while (target := pool.choose(passed, better_than_nobody, now)) is not None:
        half_open = active.breakers.state(target.row, now) == "half-open"
        admission = active.breakers.admit(target.row, now) if half_open else YES
        if admission and (not is_limited(target) or _takes(runtime, target, call, now)):
            return target, admission is PROBE
        if admission is PROBE:
            active.breakers.released(target.row, now)
        passed.add(target.row)
    return None


def _takes(runtime: Runtime, target: Target, call: Call | None, now: float) -> bool:
    """Whether there was room at the limits of ``target``; it is taken then."""
    return not RateLimits(runtime.table).admit(target, estimated_tokens(call), now)


def estimated_tokens(call: Call | None) -> int:
    """What is reserved of a provider's tokens: about those of the prompt."""
    if call is None or call.endpoint is Endpoint.COUNT_TOKENS:  # counting them costs none
        return 0
    start, end = call.subject_span()
    return estimate(max(0, end - start), 0).prompt


def nobody(runtime: Runtime, active: Active, pool: Pool, now: float, call: Call | None = None) -> GatewayError:
    """Why no target of ``pool`` may be asked, and when one may (S-27, S-110)."""
    if pool.empty:
        return GatewayError(
            "No provider can take this request.", status=503, code="no_provider", headers={"Retry-After": NOBODY_S}
        )
    soonest = min(max(ready_in_s(active, t, now), room_in_s(runtime, t, call, now)) for t in pool.targets)
    limited = any(
        room_in_s(runtime, target, call, now) > 0
        or (
            active.cooldowns.hard(target.row, now)
            and runtime.table.last_failure(target.row)[0] == FailureClass.RATE_LIMITED
        )
        for target in pool.targets
    )
    return GatewayError(
        "All providers of this model are "
        + ("at their rate limit." if limited else "failing.")
        + f" Try again in {math.ceil(soonest)} s.",
        status=429 if limited else 503,
        type="rate_limit_error" if limited else "overloaded_error",
        code="rate_limit_exceeded" if limited else "no_provider",
        headers={"Retry-After": str(max(1, math.ceil(soonest)))}
        # a client that waits no longer than its request may take need not try (S-27)
        | ({"x-should-retry": "false"} if soonest > pool.targets[0].provider.timeouts.total_s else {}),
    )


def outage(active: Active, runtime: Runtime, pool: Pool, error: UpstreamError, now: float) -> None:
    """Say so when nobody of ``pool`` can be reached, and that was so before this request (S-110), however often it has
    tried: then it is no longer one attempt's failure that the client should hear of, but when to come back (R52).

    The targets are asked all the same, and the first success ends it: a refused connection costs a millisecond, and a
    guess about health never turns a request away. So nothing waits, and nothing has to find out that they are back.
    """
    if error.failure not in (FailureClass.CONNECT, FailureClass.TRANSPORT) or error.status != 502:
        return
    rows = [target.row for target in pool.targets]
    if all(runtime.table.consecutive(row) >= DOWN and active.cooldowns.ill(row, now) for row in rows):
        soonest = max(1, math.ceil(min(ready_in_s(active, target, now) for target in pool.targets)))
        error.message = f"No provider of this model can be reached. Try again in {soonest} s."
        error.status, error.type, error.code = 503, "overloaded_error", "no_provider"
        error.retry_after_s = soonest


def ready_in_s(active: Active, target: Target, now: float) -> float:
    """Seconds until ``target`` neither rests nor is shut."""
    return max(active.cooldowns.remaining_s(target.row, now), active.breakers.remaining_s(target.row, now))


def room_in_s(runtime: Runtime, target: Target, call: Call | None, now: float) -> float:
    """Seconds until ``target`` has room for ``call`` at the limits of its provider."""
    if not is_limited(target):
        return 0.0
    return RateLimits(runtime.table).wait_s(target, estimated_tokens(call), now)


def give_up(runtime: Runtime, active: Active, target: Target, probe: bool, call: Call | None, taken: float) -> None:
    """``target``, chosen at ``taken``, is not asked after all, or nothing was sent to it: its breaker waits for nobody,
    and what was taken of its limits is there again."""
    now = runtime.clock()
    if probe:
        active.breakers.released(target.row, now)
    if is_limited(target):
        RateLimits(runtime.table).release(target, estimated_tokens(call), taken, now)


class Search:
    """The attempts of one request after its first has failed: at most ``1 + retries`` targets for the model, then as
    many for each fallback model. Which chain of fallbacks that is the failure says."""

    __slots__ = ("_active", "_again", "_asked", "_call", "_chains", "_held_s", "_pool", "_runtime")

    def __init__(self, runtime: Runtime, active: Active, call: Call, first: Choice) -> None:
        self._runtime = runtime
        self._active = active
        self._call = call
        self._pool = first.pool
        self._asked = {(first.target.row, first.model)}
        """Rows and the model each was asked for: one row may stand for all models of a provider."""
        self._chains: dict[FailureClass | None, Iterator[Choice]] = {}
        self._again = 0
        """How often the first target was asked again."""
        self._held_s = 0.0
        """How long we have waited because it asked for time."""

    def after(self, error: GatewayError, failed: Choice, time_left: bool, *, fallbacks: bool = True) -> Choice | None:
        """Who may follow; ``None``: the failure is the answer. After a refused key, whoever has the same one is not
        asked (Q06d). Without ``fallbacks`` only other targets of the same model."""
        rule, kind = RETRY[error.failure], error.failure
        special = kind in (FailureClass.CONTEXT, FailureClass.CONTENT_FILTER)
        other = rule.other and self._triggers(kind)
        if not time_left or not (other or special or isinstance(error, Overloaded)):
            return None
        chain = self._chains.get(kind if special else None)
        if chain is None:
            chain = self._chains[kind if special else None] = self._choices(kind if special else None)
        refused = (failed.target.provider.api_key or None) if rule.new_key else None
        for choice in chain:
            if not _shares(choice.target, refused) and (fallbacks or choice.pool is self._pool):
                return choice
            self.release(choice)
        return None

    def again(self, error: UpstreamError, failed: Choice) -> tuple[Choice, float] | None:
        """The same target once more, and the seconds that it has asked us to wait: where nobody else was there to be
        asked (Q06b), at most ``retries`` times.

        Not one that is ill: in an outage that goes on another try is only more load, and clients had better know at
        once. Not one that wants to be left alone for longer than a client is held in all, nor after a failure that
        ``lasts``.
        """
        if error.lasts or not RETRY[error.failure].same or len(self._asked) > 1 or not self._triggers(error.failure):
            return None
        runtime, active, row = self._runtime, self._active, failed.target.row
        now = runtime.clock()
        wait_s = max(error.retry_after_s or 0.0, active.cooldowns.remaining_s(row, now) if self.waits(failed) else 0.0)
        if (
            self._again >= active.snapshot.routing.retries
            or self._held_s + wait_s > LONGEST_HOLD_S
            or active.cooldowns.ill(row, now)
            or active.breakers.state(row, now) != "closed"
            or (is_limited(failed.target) and not _takes(runtime, failed.target, self._call, now))
        ):
            return None
        self._again += 1
        self._held_s += wait_s
        return failed._replace(probe=False), wait_s

    def _triggers(self, failure: FailureClass) -> bool:
        """Whether the configuration lets a failure lead to a further attempt (R16)."""
        wanted = self._active.snapshot.routing.retry_on
        return wanted is None or failure in wanted

    def waits(self, choice: Choice) -> bool:
        """Whether a target told us to come back later."""
        return self._active.cooldowns.hard(choice.target.row, self._runtime.clock())

    def release(self, choice: Choice) -> None:
        """``choice`` is not asked after all."""
        runtime = self._runtime
        give_up(runtime, self._active, choice.target, choice.probe, self._call, runtime.clock())

    def _choices(self, kind: FailureClass | None) -> Iterator[Choice]:
        routing, asked, call = self._active.snapshot.routing, self._asked, self._call
        left = routing.retries
        for model in (*((call.model,) if kind is None else ()), *fallbacks(routing, kind).get(call.model, ())):
            pool = self._pool if model == call.model else self._active.routes.find(model)
            if pool is not None:
                tried = {t.row for t in pool.targets if (t.row, t.upstream_model or model) in asked}
                pardoned = {row for row, _ in asked} - tried
                for _ in range(left if model == call.model else 1 + routing.retries):
                    now = self._runtime.clock()
                    found = choose(self._runtime, self._active, pool, tried, now, pardoned, call=call)
                    if found is None:
                        break
                    target, probe = found
                    tried.add(target.row)
                    asked.add((target.row, target.upstream_model or model))
                    yield Choice(target, target.upstream_model or model, pool, probe)


def fallbacks(routing: RoutingSpec, kind: FailureClass | None) -> dict[str, tuple[str, ...]]:
    """The chains for a failure: its own for a prompt that is too long or was filtered."""
    if kind is FailureClass.CONTEXT:
        return dict(routing.context_fallbacks)
    if kind is FailureClass.CONTENT_FILTER:
        return dict(routing.content_filter_fallbacks)
    return dict(routing.fallbacks)


def _shares(target: Target, refused: Secret | None) -> bool:
    return refused is not None and target.provider.api_key == refused
