"""Bulkheads in virtual time: the cap, the queue, the quick no, and that nothing is ever lost (Q01, Q15, R32)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slipstream.resilience.bulkhead import (
    DEADLINE,
    HIGH,
    LOW,
    NEVER,
    NORMAL,
    QUEUE_FULL,
    QUEUE_WAIT,
    TICK_S,
    Bulkhead,
    Overloaded,
)
from slipstream.types import FailureClass
from slipstream.wire.openai_errors import error_body
from tests import aio
from tests.virtual import VirtualLoop, loop_now, only_a_stale_timer, run_virtual


def virtually(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run in virtual time; nothing but one stale timer may be left."""

    async def main() -> None:
        await body()
        await only_a_stale_timer()

    run_virtual(main())


def bulkhead(limit: int = 1, queue_limit: int = 10, queue_wait_s: float = 1.0) -> Bulkhead:
    return Bulkhead(limit, queue_limit, queue_wait_s, loop=asyncio.get_running_loop())


def empty(b: Bulkhead) -> bool:
    return (b.in_flight, b.queued) == (0, 0)


async def spin() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def refused(b: Bulkhead, *args: Any) -> Overloaded:
    with pytest.raises(Overloaded) as caught:
        await b.enter(*args)
    return caught.value


# ---- places ----------------------------------------------------------------------------------------------------------


def test_places_up_to_the_limit() -> None:
    async def main() -> None:
        b = bulkhead(3)
        assert [b.try_enter() for _ in range(4)] == [True, True, True, False]
        b.leave()
        assert await b.enter() == 0.0
        assert not b.try_enter()
        for _ in range(3):
            b.leave()
        assert empty(b)
        assert b.left == 4
        assert loop_now().timers() == [], "who need not wait needs no timer"

    virtually(main)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_bulkhead_that_lets_nobody_in_is_a_mistake(limit: int) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="at least one"):
            bulkhead(limit)
        b = bulkhead(2)
        with pytest.raises(ValueError, match="at least one"):
            b.limit = limit
        assert b.limit == 2

    virtually(main)


def test_a_place_is_handed_over_and_the_wait_is_told() -> None:
    async def main() -> None:
        b = bulkhead()
        assert b.try_enter()
        waiting = asyncio.create_task(b.enter())
        await asyncio.sleep(0.25)
        assert b.queued == 1
        b.leave()
        assert not b.try_enter(), "the place was never free: nobody overtakes who waits"
        assert await waiting == 0.25
        assert (b.in_flight, b.queued) == (1, 0)
        b.leave()
        assert empty(b)

    virtually(main)


def test_first_come_first_served_within_a_class_and_high_before_low() -> None:
    async def main() -> None:
        b = bulkhead(queue_limit=100)
        order: list[tuple[int, int]] = []

        async def client(n: int, priority: int) -> None:
            await b.enter(NEVER, priority)
            order.append((priority, n))
            await asyncio.sleep(0.01)
            b.leave()

        assert b.try_enter()
        tasks = [asyncio.create_task(client(n, p)) for n in range(10) for p in (LOW, HIGH, NORMAL)]
        await spin()
        b.leave()
        await asyncio.wait(tasks)
        assert order == sorted(order)
        assert len(order) == 30
        assert empty(b)

    virtually(main)


# ---- who is refused --------------------------------------------------------------------------------------------------


def test_what_the_client_is_told() -> None:  # R21, R52
    error = Overloaded(2.1, QUEUE_FULL)
    assert (error.status, error.code, error.headers, error.reason) == (
        503,
        "overloaded",
        {"Retry-After": "3"},
        QUEUE_FULL,
    )
    assert error.failure is FailureClass.NONE, "it says nothing about a target"
    assert b'"overloaded"' in error_body(error)
    assert "3 s" in error.message


@pytest.mark.parametrize(("asked", "told"), [(0.0, "1"), (-5.0, "1"), (1.0, "1"), (1.001, "2"), (1e9, "30")])
def test_retry_after_is_a_whole_number_of_seconds_within_bounds(asked: float, told: str) -> None:
    error = Overloaded(asked)
    assert error.headers == {"Retry-After": told}
    assert error.retry_after_s == float(told)


def test_a_full_queue_refuses_at_once() -> None:
    async def main() -> None:
        b = bulkhead(1, queue_limit=2)
        assert b.try_enter()
        waiting = [asyncio.create_task(b.enter()) for _ in range(2)]
        await spin()
        error = await refused(b)
        assert error.reason == QUEUE_FULL
        assert b.queued == 2
        assert loop_now().time() == 0.0
        b.leave()
        await spin()
        b.leave()
        assert [await task for task in waiting] == [0.0, 0.0]
        b.leave()
        assert empty(b)

    virtually(main)


@pytest.mark.parametrize("deadline_s", [0.0, -1.0])
def test_who_is_too_late_already_is_refused_at_once_but_not_if_a_place_is_free(deadline_s: float) -> None:
    async def main() -> None:
        b = bulkhead()
        assert await b.enter(deadline_s) == 0.0
        assert (await refused(b, deadline_s)).reason == DEADLINE
        assert loop_now().time() == 0.0
        b.leave()

    virtually(main)


@pytest.mark.parametrize(
    ("deadline_s", "at", "reason"), [(NEVER, 1.0, QUEUE_WAIT), (5.0, 1.0, QUEUE_WAIT), (0.3, 0.3, DEADLINE)]
)
def test_the_wait_ends(deadline_s: float, at: float, reason: str) -> None:
    async def main() -> None:
        b = bulkhead()
        assert b.try_enter()
        error = await refused(b, deadline_s)
        assert error.reason == reason
        assert loop_now().time() == at
        assert (b.in_flight, b.queued) == (1, 0)
        b.leave()
        assert empty(b)

    virtually(main)


def test_without_a_queue_nobody_waits() -> None:
    async def main() -> None:
        for b, reason in ((bulkhead(1, queue_limit=0), QUEUE_FULL), (bulkhead(1, queue_wait_s=0.0), QUEUE_WAIT)):
            assert b.try_enter()
            assert (await refused(b)).reason == reason
            b.leave()
            assert empty(b)

    virtually(main)


def test_many_limits_of_many_waiters_share_one_timer() -> None:
    async def main() -> None:
        loop = loop_now()
        b = bulkhead(1, queue_limit=5000, queue_wait_s=10.0)
        assert b.try_enter()
        late: list[float] = []

        async def client(deadline_s: float) -> None:
            with pytest.raises(Overloaded):
                await b.enter(deadline_s)
            late.append(loop.time() - deadline_s)

        calls: list[float] = []
        call_at = loop.call_at

        def counted(when: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
            calls.append(when)
            return call_at(when, *args, **more)

        loop.call_at = counted  # type: ignore[method-assign]
        await asyncio.gather(*(client(0.001 * (1 + n * 7919 % 3000)) for n in range(3000)))
        assert 0.0 <= min(late) <= max(late) <= TICK_S + 1e-6
        assert len(calls) < 3.0 / TICK_S + 20
        assert len(loop.timers()) <= 1
        b.leave()
        assert empty(b)

    virtually(main)


async def keep_busy(b: Bulkhead, service_s: float, until_s: float) -> None:
    """One client after another who never waits longer than it has to."""
    loop = asyncio.get_running_loop()
    while loop.time() < until_s:
        try:
            await b.enter()
        except Overloaded:
            await asyncio.sleep(0.005)
            continue
        await asyncio.sleep(service_s)
        b.leave()


def test_a_queue_whose_pace_is_known_refuses_at_once_who_would_wait_in_vain() -> None:  # Q15
    """10 places of 0.1 s: 100 a second. Whoever has 60 before it and 0.5 s left need not wait to learn that."""

    async def main() -> None:
        loop = loop_now()
        b = bulkhead(10, queue_limit=1000)
        clients = [asyncio.create_task(keep_busy(b, 0.1, 5.0)) for _ in range(70)]
        await asyncio.sleep(2.0)
        assert b.queued == 60
        before = loop.time()
        assert (await refused(b, 0.5)).reason == DEADLINE
        assert loop.time() == before
        assert await b.enter(0.5, HIGH) <= 0.1, "classes before it count, those behind it do not"
        b.leave()
        waited = await b.enter(0.9)
        assert 0.5 <= waited <= 0.71
        b.leave()
        await asyncio.sleep(0.05)
        assert b.queued == 60
        crowd = [asyncio.create_task(b.enter()) for _ in range(100)]
        await spin()
        assert 30 <= sum(not task.done() for task in crowd) <= 50, "as many as have a chance within a second"
        errors = [task.exception() for task in crowd if task.done()]
        assert all(isinstance(e, Overloaded) and e.reason == QUEUE_WAIT for e in errors)
        for task in crowd:
            task.cancel()
        await asyncio.wait([*crowd, *clients])
        assert empty(b)

    virtually(main)


def test_retry_after_is_how_long_the_queue_needs() -> None:  # R52
    async def main() -> None:
        b = bulkhead(10, queue_limit=1000, queue_wait_s=20.0)
        clients = [asyncio.create_task(keep_busy(b, 0.1, 5.0)) for _ in range(510)]
        await asyncio.sleep(2.0)
        assert (await refused(b, 1.0)).headers == {"Retry-After": "6"}, "500 wait, 100 a second"
        await asyncio.wait(clients)
        assert empty(b)

    virtually(main)


def test_the_pace_of_a_quiet_time_says_nothing() -> None:
    """A burst after a pause is not refused for the little that was asked of the bulkhead before."""

    async def main() -> None:
        b = bulkhead(5, queue_limit=1000)

        async def client() -> float:
            waited = await b.enter()
            await asyncio.sleep(0.05)
            b.leave()
            return waited

        await asyncio.gather(*(client() for _ in range(20)))
        await asyncio.sleep(0.7)
        waits = await asyncio.gather(*(client() for _ in range(95)))
        assert max(waits) == pytest.approx(0.9, abs=0.01)
        assert empty(b)

    virtually(main)


# ---- cancelled -------------------------------------------------------------------------------------------------------


def test_a_cancelled_waiter_frees_its_place_in_the_queue() -> None:
    async def main() -> None:
        b = bulkhead(1, queue_limit=1)
        assert b.try_enter()
        first = asyncio.create_task(b.enter())
        await spin()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        assert b.queued == 0
        second = asyncio.create_task(b.enter())
        await spin()
        b.leave()
        assert await second == 0.0
        b.leave()
        assert empty(b)

    virtually(main)


@pytest.mark.parametrize("cancel_first", [True, False])
@pytest.mark.parametrize("others", [0, 1, 3])
def test_cancelled_at_the_moment_of_the_hand_over(cancel_first: bool, others: int) -> None:
    """Whichever comes first, the place goes to the next one or is free: no wake-up is lost."""

    async def main() -> None:
        b = bulkhead()
        assert b.try_enter()
        unlucky = asyncio.create_task(b.enter())
        tasks = [asyncio.create_task(b.enter()) for _ in range(others)]
        await spin()
        if cancel_first:
            unlucky.cancel()
            b.leave()
        else:
            b.leave()
            unlucky.cancel()
        await asyncio.wait([unlucky])
        assert unlucky.cancelled()
        for task in tasks:
            assert await task == 0.0
            b.leave()
        assert empty(b)
        assert b.left == 1 + others, "nobody left who was not served"

    virtually(main)


def test_cancelled_at_the_moment_the_wait_is_over() -> None:
    async def main() -> None:
        b = bulkhead()
        assert b.try_enter()
        task = asyncio.create_task(b.enter())
        loop_now().call_later(1.0, task.cancel)
        await asyncio.wait([task])
        assert task.cancelled()
        assert (b.in_flight, b.queued) == (1, 0)
        b.leave()
        assert empty(b)

    virtually(main)


# ---- the limit moves -------------------------------------------------------------------------------------------------


def test_a_higher_limit_lets_waiters_in_at_once() -> None:
    async def main() -> None:
        b = bulkhead()
        assert b.try_enter()
        tasks = [asyncio.create_task(b.enter()) for _ in range(5)]
        await spin()
        b.limit = 4
        await spin()
        assert [task.done() for task in tasks] == [True, True, True, False, False]
        assert (b.in_flight, b.queued) == (4, 2)
        b.limit = 10
        await asyncio.wait(tasks)
        assert (b.in_flight, b.queued) == (6, 0)
        for _ in range(6):
            b.leave()
        assert empty(b)

    virtually(main)


def test_a_lower_limit_ends_nothing_and_lets_nobody_in() -> None:
    async def main() -> None:
        b = bulkhead(5)
        for _ in range(5):
            assert b.try_enter()
        task = asyncio.create_task(b.enter())
        await spin()
        b.limit = 2
        for left in (4, 3, 2):
            b.leave()
            await spin()
            assert b.in_flight == left
            assert not task.done()
            assert not b.try_enter()
        b.leave()
        await spin()
        assert task.done()
        assert b.in_flight == 2
        b.leave()
        b.leave()
        assert empty(b)

    virtually(main)


# ---- all together ----------------------------------------------------------------------------------------------------


def test_five_thousand_clients_and_a_target_that_is_stuck() -> None:  # Q01
    async def main() -> None:
        loop = loop_now()
        b = bulkhead(1024, 1024, 1.0)
        never = loop.create_future()
        peak = [0, 0]
        refusals: list[float] = []

        async def client() -> None:
            try:
                if not b.try_enter():
                    await b.enter(600.0, NORMAL)
            except Overloaded:
                refusals.append(loop.time())
                return
            try:
                peak[0] = max(peak[0], b.in_flight)
                peak[1] = max(peak[1], b.queued)
                await asyncio.shield(never)
            finally:
                b.leave()

        tasks = [asyncio.create_task(client()) for _ in range(5000)]
        await spin()
        assert len(refusals) == 5000 - 2048, "at once"
        assert (b.in_flight, b.queued) == (1024, 1024)
        await asyncio.sleep(1.1)
        assert len(refusals) == 5000 - 1024
        assert max(refusals) <= 1.0 + TICK_S
        assert (b.in_flight, b.queued) == (1024, 0)
        assert peak[0] == 1024
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert empty(b)
        assert b.try_enter(), "and it serves again"
        b.leave()

    virtually(main)


def test_at_ten_times_the_load_the_places_are_always_used() -> None:  # Q15
    """100 a second can be served, 1,000 come: goodput stays, refusals are quick, and who is served waited a second."""

    async def main() -> None:
        loop = loop_now()
        b = bulkhead(10, 1024, 1.0)
        served: list[float] = []
        refusals: list[float] = []

        async def client() -> None:
            start = loop.time()
            try:
                await b.enter()
            except Overloaded:
                refusals.append(loop.time() - start)
                return
            await asyncio.sleep(0.1)
            b.leave()
            served.append(loop.time() - start)

        tasks = set()
        for _ in range(10_000):
            tasks.add(asyncio.create_task(client()))
            await asyncio.sleep(0.001)
        await asyncio.wait(tasks)
        assert len(served) >= 0.99 * 100 * 10
        assert max(served) <= 1.1 + TICK_S
        refusals.sort()
        assert refusals[int(len(refusals) * 0.8)] == 0.0, "but for the first, while the pace was not known"
        assert empty(b)

    virtually(main)


def test_on_the_real_loop() -> None:
    """uvloop counts in milliseconds and may fire a little early: nobody is forgotten."""

    async def main() -> None:
        b = bulkhead(1, 100, 0.02)
        assert b.try_enter()
        results = await asyncio.gather(*(b.enter(0.005 + 0.0005 * n) for n in range(50)), return_exceptions=True)
        assert all(isinstance(result, Overloaded) for result in results)
        b.leave()
        assert empty(b)

    aio.run(main())


class Machine(RuleBasedStateMachine):
    """Any mix of what can happen, with the loop run at any moment or not at all in between."""

    @initialize(limit=st.integers(1, 4), queue_limit=st.integers(0, 6))
    def begin(self, limit: int, queue_limit: int) -> None:
        self.loop = VirtualLoop()
        self.b = Bulkhead(limit, queue_limit, 1.0, loop=self.loop)
        self.queue_limit = queue_limit
        self.cap = limit
        self.held = 0
        self.begun = 0
        self.entered: dict[int, list[int]] = {HIGH: [], NORMAL: [], LOW: []}
        self.waiting: list[asyncio.Task[None]] = []

    def run(self, main: Coroutine[Any, Any, Any]) -> None:
        self.loop.run_until_complete(main)
        self.waiting = [task for task in self.waiting if not task.done()]

    async def client(self, number: int, deadline_s: float, priority: int) -> None:
        if not self.b.try_enter():
            try:
                await self.b.enter(deadline_s, priority)
            except Overloaded:
                return
            self.entered[priority].append(number)
        self.held += 1

    @rule()
    def try_enter(self) -> None:
        self.held += self.b.try_enter()

    @rule(priority=st.sampled_from([HIGH, NORMAL, LOW]), deadline_s=st.sampled_from([NEVER, 5.0, 0.5, 0.0]))
    def enter(self, priority: int, deadline_s: float) -> None:
        self.begun += 1
        self.waiting.append(self.loop.create_task(self.client(self.begun, deadline_s, priority)))

    @precondition(lambda self: self.held)
    @rule(times=st.integers(1, 3))
    def leave(self, times: int) -> None:
        for _ in range(min(times, self.held)):
            self.held -= 1
            self.b.leave()

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 100))
    def cancel(self, at: int) -> None:
        self.waiting[at % len(self.waiting)].cancel()

    @rule(limit=st.integers(1, 5))
    def move_the_limit(self, limit: int) -> None:
        self.cap = max(limit, self.b.in_flight)
        self.b.limit = limit

    @rule()
    def settle(self) -> None:
        self.run(spin())

    @rule(seconds=st.sampled_from([0.1, 0.4, 0.5, 1.0, 1.5]))
    def pass_time(self, seconds: float) -> None:
        self.run(asyncio.sleep(seconds))

    @invariant()
    def within_its_bounds(self) -> None:
        b = self.b
        self.cap = max(b.limit, min(self.cap, b.in_flight))
        assert 0 <= b.in_flight <= self.cap
        assert 0 <= b.queued <= self.queue_limit
        assert b.queued == sum(len(queue) for queue in b._queues)
        assert not b.queued or b.in_flight >= b.limit, "who waits implies no place is free"
        for order in self.entered.values():
            assert order == sorted(order), "first come, first served"
        assert len(self.loop.timers()) <= 1

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.run(spin())
        assert self.b.in_flight == self.held, "every place is held by somebody"
        assert self.b.queued == len(self.waiting), "nobody is forgotten"
        for task in self.waiting[::2]:
            task.cancel()
        self.run(asyncio.sleep(2.0))
        assert not self.waiting
        while self.held:
            self.leave(1)
        assert empty(self.b)
        self.loop.close()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
