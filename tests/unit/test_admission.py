"""Who is let in: the order of the questions, the way in and out, an adaptive cap (R32, Q01, Q15 to Q17)."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from slipstream.resilience.admission import IN, Admission, Place
from slipstream.resilience.bulkhead import (
    DEADLINE,
    ENDING,
    HIGH,
    LOW,
    NEVER,
    NORMAL,
    QUEUE_FULL,
    QUEUE_WAIT,
    Overloaded,
    Waiter,
)
from slipstream.resilience.shed import LAG, MEMORY
from slipstream.resilience.turns import STANDING_S
from tests.virtual import VirtualLoop, loop_now, run_virtual

TEN_MS = 0.010
CLASSES = (HIGH, NORMAL, LOW)


class Door:
    """An admission, what it looks at, and the way in as listeners write it out."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit: int = 2, queue: int = 2, **more: float) -> None:
        self.rss = 0
        self.loop = loop
        self.admission = Admission(lambda: self.rss, loop=loop)
        self.configure(limit, queue, **more)

    def configure(
        self, limit: int = 2, queue: int = 2, adaptive: bool = False, max_rss: int = 1000, target_s: float = TEN_MS
    ) -> None:
        self.admission.configure(limit, queue, 1.0, adaptive, max_rss, target_s)

    def come(self, priority: int = NORMAL, deadline_s: float = NEVER) -> Place | str:
        admission = self.admission
        if admission.in_flight < admission.free:
            admission.in_flight += 1
            return IN
        return admission.ask(priority, deadline_s, self.loop.time())

    def overload(self, limit: int = 50) -> None:
        """From now on so many may be under way."""
        turns, now = self.admission.turns, self.loop.time()
        turns.seen(1.0, 0, now - STANDING_S * 1.01)
        turns.seen(0.1, 10 * limit, now)
        turns._took_at = now
        self.admission.refresh()
        assert turns.active


def test_in_calm_nobody_is_asked_until_the_cap_then_some_wait_then_none() -> None:
    async def main() -> None:
        door = Door(loop_now())
        admission = door.admission
        assert [door.come(), door.come()] == [IN, IN]
        waiters = [door.come(), door.come()]
        assert all(isinstance(w, Waiter) for w in waiters)
        assert [door.come(p) for p in CLASSES] == [QUEUE_FULL] * 3
        assert (admission.in_flight, admission.queued) == (2, 2)
        admission.give_back(IN)
        first = waiters[0]
        assert isinstance(first, Waiter)
        assert await admission.wait(first) == 0.0
        for place in (IN, IN, waiters[1]):
            admission.give_back(place)
        assert (admission.in_flight, admission.queued) == (0, 0)

    run_virtual(main())


def test_a_wait_has_an_end() -> None:
    async def main() -> None:
        door = Door(loop_now(), 1, 5)
        admission = door.admission
        assert door.come() is IN
        for deadline_s, seconds, reason in ((NEVER, 1.0, QUEUE_WAIT), (0.5, 0.5, DEADLINE)):
            waiter = door.come(deadline_s=deadline_s)
            assert isinstance(waiter, Waiter)
            with pytest.raises(Overloaded) as caught:
                await admission.wait(waiter)
            assert caught.value.reason == reason
            assert caught.value.waited_s == pytest.approx(seconds, abs=0.02)
            admission.give_back(False)
        assert door.come(deadline_s=0.0) == DEADLINE, "who is too late already"
        admission.give_back(IN)
        assert (admission.in_flight, admission.queued) == (0, 0)

    run_virtual(main())


def test_who_waits_is_told_at_the_end_of_the_process() -> None:  # R79
    async def main() -> None:
        door = Door(loop_now(), 1, 5)
        door.come()
        waiter = door.come()
        assert isinstance(waiter, Waiter)
        door.admission.end()
        with pytest.raises(Overloaded) as caught:
            await door.admission.wait(waiter)
        assert caught.value.reason == ENDING
        assert door.come() == QUEUE_FULL

    run_virtual(main())


@pytest.mark.parametrize("given", [False, True])
def test_a_place_is_given_back_once_though_its_task_never_ran(given: bool) -> None:
    """The client left before the task of its request began: the coroutine never runs."""

    async def main() -> None:
        door = Door(loop_now(), 1, 5)
        admission = door.admission
        door.come()
        waiter = door.come()
        assert isinstance(waiter, Waiter)
        if given:
            admission.give_back(IN)
        admission.give_back(waiter)
        admission.give_back(waiter)
        assert (admission.in_flight, admission.queued) == (int(not given), 0)

    run_virtual(main())


def test_near_the_memory_ceiling() -> None:  # Q17
    async def main() -> None:
        door = Door(loop_now(), 10)
        admission = door.admission
        door.rss = 930
        admission.measured(0.0)
        assert admission.free == 0
        assert [door.come(p) for p in CLASSES] == [IN, IN, MEMORY]
        door.rss = 960
        admission.measured(1.0)
        assert [door.come(p) for p in CLASSES] == [MEMORY] * 3
        admission.give_back(IN)
        admission.give_back(IN)
        assert [door.come(), door.come()] == [IN, MEMORY], "with nothing in flight, one"
        door.rss = 0
        admission.measured(2.0)
        assert admission.free == 10

    run_virtual(main())


def test_as_many_as_the_turns_have_time_for_by_class() -> None:
    async def main() -> None:
        door = Door(loop_now(), 10_000)
        door.overload(10)
        assert door.admission.free == 0
        assert [door.come(LOW) for _ in range(6)] == [IN] * 5 + [LAG]
        assert [door.come() for _ in range(6)] == [IN] * 5 + [LAG]
        assert [door.come(HIGH) for _ in range(11)] == [IN] * 10 + [LAG]
        for _ in range(11):
            door.admission.give_back(IN)
        assert door.come() is IN

    run_virtual(main())


def test_who_finds_the_queue_full_is_not_asked_about_turns() -> None:
    async def main() -> None:
        door = Door(loop_now(), 1, 0)
        door.come()
        door.overload()
        assert [door.come() for _ in range(5)] == [QUEUE_FULL] * 5
        assert door.admission.turns.refused == 0

    run_virtual(main())


def test_an_adaptive_cap_follows_the_turns_and_comes_back() -> None:
    """Turns within the target are as good as any; 400 streams that make them four times as long are too many."""

    async def main() -> None:
        door = Door(loop_now(), 10_000, adaptive=True)
        admission, now = door.admission, 0.0

        def seconds(number: int, turn_s: float) -> None:
            nonlocal now
            for _ in range(10 * number):
                now += 0.1
                admission.turns.turn_s = turn_s
                admission.measured(now)

        admission.in_flight = 400
        for turn_s in (0.0001, 0.001, TEN_MS):
            seconds(20, turn_s)
            assert admission.free == admission.limit == 10_000
        seconds(20, 4 * TEN_MS)
        assert 20 <= admission.limit < 400
        assert admission.free == admission.limit
        least = admission.limit
        admission.in_flight = least
        seconds(20, 0.001)
        assert admission.limit > least, "the limit is used, and all is well: it tries more"
        door.configure(50)
        assert admission.free == admission.limit == 50, "a reload turned it off"

    run_virtual(main())


class Machine(RuleBasedStateMachine):
    """Any mix of what may happen, in any order: requests come and go, clients leave, memory and turns are short or not,
    limits move."""

    @initialize(limit=st.integers(1, 4), queue=st.integers(0, 4))
    def begin(self, limit: int, queue: int) -> None:
        self.loop = VirtualLoop()
        self.door = Door(self.loop, limit, queue)
        self.b = self.door.admission
        self.highest = limit
        self.queue = queue
        self.held = 0
        self.waiting: list[Waiter] = []

    def run(self, seconds: float) -> None:
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for waiter in [w for w in self.waiting if w.future.done()]:
            self.waiting.remove(waiter)
            self.held += waiter.future.result()

    @rule(priority=st.sampled_from(CLASSES), deadline_s=st.sampled_from([NEVER, 5.0, 0.5, 0.0]))
    def come(self, priority: int, deadline_s: float) -> None:
        before = self.b.in_flight
        place = self.door.come(priority, deadline_s)
        if place is IN:
            assert before < self.b.limit
            self.held += 1
        elif isinstance(place, Waiter):
            assert before >= self.b.limit
            self.waiting.append(place)
        else:
            assert place in (MEMORY, LAG, QUEUE_FULL, QUEUE_WAIT, DEADLINE)

    @precondition(lambda self: self.held)
    @rule()
    def over(self) -> None:
        self.held -= 1
        self.b.give_back(IN)

    @precondition(lambda self: self.waiting)
    @rule(at=st.integers(0, 100), twice=st.booleans())
    def left(self, at: int, twice: bool) -> None:
        waiter = self.waiting.pop(at % len(self.waiting))
        for _ in range(1 + twice):
            self.b.give_back(waiter)

    @rule(limit=st.integers(1, 5), queue=st.integers(0, 4))
    def reload(self, limit: int, queue: int) -> None:
        self.highest = max(limit, self.b.in_flight)
        self.queue = max(queue, self.b.queued)
        self.door.configure(limit, queue)

    @rule(rss=st.sampled_from([0, 930, 960]), seconds=st.sampled_from([0.0, 0.3, 1.5]))
    def pass_time(self, rss: int, seconds: float) -> None:
        self.door.rss = rss
        self.run(seconds)
        self.b.measured(self.loop.time())

    @rule(limit=st.sampled_from([1, 10]))
    def overload(self, limit: int) -> None:
        if not self.b.turns.active:
            self.door.overload(limit)

    @rule(turn_s=st.sampled_from([0.001, 0.01, 2.0]))
    def turn(self, turn_s: float) -> None:
        if self.b.turns.active:
            self.b.turns.turned(turn_s, self.b.in_flight, self.loop.time())
            self.b.refresh()

    @invariant()
    def within_its_bounds(self) -> None:
        if not hasattr(self, "b"):
            return
        b = self.b
        self.highest = max(b.limit, min(self.highest, b.in_flight))
        assert 0 <= b.in_flight <= self.highest
        assert b.queued <= max(self.queue, b.queue_limit)
        assert not b.queued or b.in_flight >= b.limit, "who waits implies no place is free"
        assert b.free in (0, b.limit)

    def teardown(self) -> None:
        if not hasattr(self, "loop"):
            return
        self.run(0.0)
        assert self.b.in_flight == self.held, "every place is held by somebody"
        assert self.b.queued == len(self.waiting), "nobody is forgotten"
        self.run(3.0)
        assert not self.waiting
        while self.held:
            self.over()
        assert (self.b.in_flight, self.b.queued) == (0, 0)
        self.loop.close()


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestMachine = Machine.TestCase
