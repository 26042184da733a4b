"""The engine and rate limits of providers: who is at its limit is passed over, the client told when (R48, R52)."""

from __future__ import annotations

from typing import Any

from slipstream.config.snapshot import BreakerSpec, LimitsSpec, ResilienceSpec, RetrySpec
from slipstream.engine import account
from slipstream.engine.context import RequestContext
from slipstream.engine.search import Choice, Search, choose, estimated_tokens, nobody
from slipstream.errors import ConnectFailed, UpstreamError
from slipstream.resilience.breaker import HALF_OPEN, OPEN, pack
from slipstream.resilience.ratelimit import RateLimits
from slipstream.routing.table import NOTHING
from slipstream.types import Endpoint, FailureClass
from slipstream.wire.request import Call, peek
from slipstream.wire.usage import Usage
from tests.fakes import Plan, World, ok, refuse, request_body, spec
from tests.virtual import loop_now, run_virtual

CALM = ResilienceSpec(breaker=BreakerSpec(enabled=False))


def limited(**limits: dict[str, int]) -> Any:
    """Providers by name with their limits."""
    return lambda name, **kw: spec(name, limits=LimitsSpec(**limits.get(name, {})), **kw)


def call_of(size: int = 0) -> Call:
    return peek(Endpoint.CHAT, request_body(messages=[{"role": "user", "content": "x" * size}]))


class Rig:
    """``choose`` on a pool of the model ``m``."""

    def __init__(self, **limits: dict[str, int]) -> None:
        self.world = World({name: [ok()] for name in limits}, make=limited(**limits), resilience=CALM)
        self.runtime, self.active = self.world.runtime, self.world.runtime.active
        pool = self.active.routes.find("m")
        assert pool is not None
        self.pool = pool
        self.rates = RateLimits(self.runtime.table)

    def target(self, name: str) -> Any:
        return next(t for t in self.pool.targets if t.provider.name == name)

    def choose(self, call: Call | None = None, tried: Any = NOTHING) -> str | None:
        found = choose(self.runtime, self.active, self.pool, tried, loop_now().time(), call=call)
        return None if found is None else found[0].provider.name

    def nobody(self, call: Call | None = None) -> Any:
        return nobody(self.runtime, self.active, self.pool, loop_now().time(), call)

    def left(self, name: str) -> Any:
        return self.rates.left(self.target(name), loop_now().time())


def test_who_is_at_its_limit_is_passed_over() -> None:
    async def main() -> None:
        rig = Rig(a={"requests_per_min": 100}, b={})
        chosen = [rig.choose() for _ in range(20)]
        assert (chosen.count("a"), chosen.count("b")) == (2, 18), "a burst of 2"
        loop_now().now += 0.6
        assert [rig.choose() for _ in range(6)].count("a") == 1

    run_virtual(main())


def test_when_all_are_at_their_limit_the_answer_says_when() -> None:
    async def main() -> None:
        rig = Rig(a={"requests_per_min": 2}, b={"requests_per_min": 5})
        assert {rig.choose(), rig.choose()} == {"a", "b"}
        assert rig.choose() is None
        error = rig.nobody()
        assert (error.status, error.code, error.headers) == (429, "rate_limit_exceeded", {"Retry-After": "12"})
        loop_now().now += 12
        assert rig.choose() == "b"
        assert rig.nobody().headers == {"Retry-After": "12"}

    run_virtual(main())


def test_of_a_target_at_its_limit_that_also_rests_the_later_time_counts() -> None:
    async def main() -> None:
        rig = Rig(a={"requests_per_min": 6})
        assert rig.choose() == "a"
        rig.active.cooldowns.failed(rig.target("a").row, FailureClass.RATE_LIMITED, loop_now().time(), 25.0)
        assert rig.choose() is None
        assert rig.nobody().headers == {"Retry-After": "25"}
        rig.active.cooldowns.succeeded(rig.target("a").row)
        assert rig.nobody().headers == {"Retry-After": "10"}

    run_virtual(main())


def test_who_has_just_failed_is_asked_only_within_its_limit() -> None:
    async def main() -> None:
        rig = Rig(a={"requests_per_min": 60})
        rig.active.cooldowns.failed(rig.target("a").row, FailureClass.SERVER, loop_now().time(), None)
        assert [rig.choose(), rig.choose()] == ["a", None]

    run_virtual(main())


def test_a_long_prompt_goes_where_there_is_room() -> None:
    async def main() -> None:
        rig = Rig(a={"tokens_per_min": 50_000}, b={"tokens_per_min": 500_000})  # bursts of 1,000 and 10,000
        long, short = call_of(16_000), call_of(100)
        assert 4000 <= estimated_tokens(long) <= 4020
        assert {rig.choose(long), rig.choose(long)} == {"a", "b"}, "more than a burst: when nothing is owed"
        assert rig.choose(long) == "b"
        assert [rig.choose(short) for _ in range(4)] == ["b"] * 4
        assert rig.nobody(short).headers == {"Retry-After": "1"}

    run_virtual(main())


def test_a_probe_without_room_is_given_back() -> None:
    async def main() -> None:
        loop_now().now += 100
        rig = Rig(a={"requests_per_min": 60}, b={})
        row, table = rig.target("a").row, rig.runtime.table
        while rig.choose() != "a":
            pass
        table.cas_breaker(row, 0, pack(OPEN, 1, int(loop_now().time() * 1000) - 1))
        assert [rig.choose() for _ in range(4)] == ["b"] * 4
        assert table.breaker(row) & 3 != HALF_OPEN, "nobody waits for a probe that was not made"
        loop_now().now += 1
        assert "a" in [rig.choose() for _ in range(2)]
        assert table.breaker(row) & 3 == HALF_OPEN

    run_virtual(main())


def test_a_choice_that_is_not_made_is_given_back() -> None:
    async def main() -> None:
        rig = Rig(a={}, b={"requests_per_min": 60, "tokens_per_min": 60_000})
        call = call_of(400)
        a, failure = rig.target("a"), UpstreamError("no", failure=FailureClass.SERVER)
        first = Choice(a, "m", rig.pool)
        search = Search(rig.runtime, rig.active, call, first)
        following = search.after(failure, first, True)
        assert following is not None
        assert following.target is rig.target("b")
        tokens = estimated_tokens(call)
        assert rig.left("b") == (0, 1200 - tokens)
        search.release(following)
        assert rig.left("b") == (1, 1200)

    run_virtual(main())


def context(rig: Rig, call: Call, name: str) -> RequestContext:
    now = loop_now().time()
    ctx = RequestContext(Endpoint.CHAT, Endpoint.CHAT.label, "r", "k", now, now)
    ctx.call, ctx.target, ctx.status = call, rig.target(name), 200
    rig.runtime.metrics.enter(ctx.label)
    return ctx


def test_the_true_usage_is_settled() -> None:
    async def main() -> None:
        rig = Rig(a={"tokens_per_min": 60_000})
        call = call_of(400)
        assert rig.choose(call) == "a"
        ctx = context(rig, call, "a")
        ctx.usage = Usage(input_uncached=300, output=500, source="provider")
        account.settle(rig.runtime, rig.active, ctx)
        assert rig.left("a") == (None, 1200 - 800)
        assert rig.choose(call) == "a"
        account.settle(rig.runtime, rig.active, context(rig, call, "a"))
        assert rig.left("a") == (None, 400 - estimated_tokens(call)), "nobody said: the estimate stands"

    run_virtual(main())


def test_what_never_reached_the_provider_does_not_count() -> None:
    async def main() -> None:
        rig = Rig(a={"requests_per_min": 60, "tokens_per_min": 60_000})
        call = call_of(400)
        tokens = estimated_tokens(call)
        for failure, left in ((FailureClass.CONNECT, (1, 1200)), (FailureClass.SERVER, (0, 1200 - tokens))):
            assert rig.choose(call) == "a"
            ctx = context(rig, call, "a")
            account.attempted(rig.runtime, ctx, failure)
            assert rig.left("a") == left

    run_virtual(main())


def test_what_a_lost_hedge_used_is_settled() -> None:
    async def main() -> None:
        rig = Rig(a={"tokens_per_min": 60_000})
        call = call_of(400)
        assert rig.choose(call) == "a"
        ctx = context(rig, call, "a")
        ctx.attempts, ctx.completion_events = 1, 50
        start, end = call.subject_span()
        account.lost(rig.runtime, ctx, end - start)
        assert rig.left("a") == (None, 1200 - estimated_tokens(call) - 50)

    run_virtual(main())


def test_counting_tokens_reserves_none() -> None:
    body = request_body(messages=[{"role": "user", "content": "x" * 400}])
    assert estimated_tokens(peek(Endpoint.COUNT_TOKENS, body)) == 0
    assert estimated_tokens(None) == 0


# ---- whole requests --------------------------------------------------------------------------------------------------


def test_a_limit_of_requests_over_a_minute() -> None:
    async def main() -> None:
        world = World({"a": [ok()], "b": [ok()]}, make=limited(a={"requests_per_min": 30}), resilience=CALM)
        for _ in range(600):
            assert (await world.ask()).status == 200
            loop_now().now += 0.1
        assert 29 <= world.asked["a"] <= 31, "R48"
        assert sum(world.asked.values()) == 600
        world.settled_once(600)

    run_virtual(main())


def test_alone_at_its_limit_the_client_is_told_when_to_come_back() -> None:
    async def main() -> None:
        world = World({"a": [ok()]}, make=limited(a={"requests_per_min": 6}), resilience=CALM)
        assert (await world.ask()).status == 200
        second = await world.ask()
        assert (second.status, second.headers["Retry-After"]) == (429, "10")
        assert second.json["error"]["code"] == "rate_limit_exceeded"
        assert world.asked == {"a": 1}
        loop_now().now += 10
        assert (await world.ask()).status == 200
        world.settled_once(3)

    run_virtual(main())


def test_tokens_that_were_used_are_waited_for() -> None:
    async def main() -> None:
        big = ok(usage={"prompt_tokens": 2000, "completion_tokens": 1000, "total_tokens": 3000})
        world = World({"a": [big]}, make=limited(a={"tokens_per_min": 6000}), resilience=CALM)
        assert (await world.ask()).status == 200
        refused = await world.ask()
        assert (refused.status, refused.headers["Retry-After"]) == (429, "29"), "30 s to pay for them, 1.2 s ahead"
        loop_now().now += 29
        assert (await world.ask()).status == 200

    run_virtual(main())


def test_a_refused_connection_takes_nothing() -> None:
    async def main() -> None:
        down = Plan(fail=ConnectFailed("refused"))
        world = World({"a": [down], "b": [ok()]}, make=limited(a={"requests_per_min": 60}), resilience=CALM)
        while not world.asked["a"]:
            assert (await world.ask()).status == 200
        (target,) = (t for t in world.runtime.active.routes.targets if t.provider.name == "a")
        assert RateLimits(world.runtime.table).left(target, loop_now().time()) == (1, None)

    run_virtual(main())


def test_a_retry_goes_past_who_is_at_its_limit() -> None:
    async def main() -> None:
        spare = ResilienceSpec(breaker=BreakerSpec(enabled=False), retry=RetrySpec(budget_share=1.0))
        world = World(
            {"a": [refuse(500)], "b": [ok()], "c": [ok()]},
            make=limited(b={"requests_per_min": 1}),
            resilience=spare,
        )
        for _ in range(12):
            assert (await world.ask()).status == 200
            loop_now().now += 0.5
        assert world.asked["b"] <= 12
        assert world.asked["c"] > 0

    run_virtual(main())


def test_a_429_with_nothing_left_empties_the_bucket() -> None:
    async def main() -> None:
        headers = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "40s"}
        world = World({"a": [refuse(429, **headers), ok()]}, make=limited(a={"requests_per_min": 600}), resilience=CALM)
        first = await world.ask()
        assert (first.status, first.headers["Retry-After"]) == (429, "40")
        loop_now().now += 39
        assert (await world.ask()).status == 429
        loop_now().now += 1.1
        assert (await world.ask()).status == 200
        assert world.asked == {"a": 2}

    run_virtual(main())


def test_the_reset_counts_where_no_limit_is_configured() -> None:  # R53
    async def main() -> None:
        headers = {"x_ratelimit_remaining_tokens": "0", "x_ratelimit_reset_tokens": "1m2s"}
        world = World({"a": [refuse(429, **headers), ok()]}, resilience=CALM)
        assert (await world.ask()).headers["Retry-After"] == "62"
        loop_now().now += 61
        assert (await world.ask()).status == 429
        loop_now().now += 1.1
        assert (await world.ask()).status == 200

    run_virtual(main())
