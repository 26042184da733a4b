"""Rests of targets with a fake clock, and the four limits of an attempt in virtual time (R17, R22, Q11, Q18)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest

from slipstream._fast import Table
from slipstream.errors import ShuttingDown, UpstreamTimeout
from slipstream.resilience.cooldown import BASE_S, KEY_S, MAX_S, Cooldowns
from slipstream.resilience.failures import RETRY
from slipstream.resilience.watchdog import NEVER, Deadlines, Watchdog
from slipstream.state.table import SharedTable, open_table
from slipstream.types import FailureClass
from tests.virtual import loop_now, only_a_stale_timer, run_virtual

OF_THE_KEY = (FailureClass.AUTH, FailureClass.QUOTA)
TELLING = sorted(f for f, rule in RETRY.items() if rule.rests and f not in OF_THE_KEY)
SILENT = sorted(f for f, rule in RETRY.items() if not rule.rests)
RATE = FailureClass.RATE_LIMITED


@pytest.fixture
def table() -> Iterator[Table]:
    """A table with ten rows; they are claimed by name, so any number may be the first."""
    shared: SharedTable = open_table(None)
    for i in range(10):
        shared.table.target(b"t%d" % i)
    yield shared.table
    shared.close()


@pytest.fixture
def c(table: Table) -> Cooldowns:
    return Cooldowns(table)


# ---- cooldowns -------------------------------------------------------------------------------------------------------


def test_nobody_rests_at_first(c: Cooldowns) -> None:
    assert not c.resting(0, 0.0)
    assert c.remaining_s(0, 5.0) == 0.0
    assert c.failures_in_a_row(0) == 0


@pytest.mark.parametrize("failure", TELLING, ids=lambda f: f.label)
def test_a_telling_failure_rests_for_a_second(c: Cooldowns, failure: FailureClass) -> None:
    c.failed(3, failure, 100.0, None)
    assert c.resting(3, 100.0)
    assert c.resting(3, 100.999)
    assert not c.resting(3, 101.0)
    assert c.remaining_s(3, 100.25) == 0.75
    assert c.remaining_s(3, 200.0) == 0.0
    assert not c.resting(4, 100.0), "others are not touched"


@pytest.mark.parametrize("failure", SILENT, ids=lambda f: f.label)
def test_what_says_nothing_of_the_target_never_counts(c: Cooldowns, failure: FailureClass) -> None:  # Q03
    for _ in range(1000):
        c.failed(0, failure, 0.0, 60.0)
    assert not c.resting(0, 0.0)
    assert c.failures_in_a_row(0) == 0


def test_which_failures_are_telling() -> None:  # R16, R54
    assert set(SILENT) == {
        FailureClass.NONE,
        FailureClass.CLIENT_ERROR,
        FailureClass.CLIENT_GONE,
        FailureClass.NOT_FOUND,
        FailureClass.PERMISSION,
        FailureClass.CONTEXT,
        FailureClass.CONTENT_FILTER,
    }


@pytest.mark.parametrize("failure", OF_THE_KEY, ids=lambda f: f.label)
def test_a_refused_or_spent_key_rests_long(c: Cooldowns, failure: FailureClass) -> None:  # S-28, S-49
    c.failed(3, failure, 100.0, None)
    assert c.remaining_s(3, 100.0) == KEY_S
    c.failed(3, failure, 110.0, 5.0)
    assert c.remaining_s(3, 110.0) == 5.0, "unless the provider says when"


def test_it_doubles_up_to_the_cap(c: Cooldowns) -> None:  # Q11
    now, rests = 0.0, []
    for _ in range(40):
        c.failed(0, FailureClass.SERVER, now, None)
        rests.append(c.remaining_s(0, now))
        now += rests[-1]
    assert rests[:7] == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0]
    assert set(rests[6:]) == {MAX_S}
    assert rests[0] == BASE_S
    assert c.failures_in_a_row(0) == 40


@pytest.mark.parametrize("failure", [RATE, FailureClass.OVERLOADED, FailureClass.SERVER], ids=str)
def test_rests_that_began_together_end_apart(table: Table, failure: FailureClass) -> None:  # Q11: with jitter
    chance = random.Random(1)
    c, rests = Cooldowns(table, chance.random), []
    for row in range(1000):
        c.succeeded(0)
        c.failed(0, failure, row * 100.0, None)
        rests.append(c.remaining_s(0, row * 100.0))
    assert 0.9 <= min(rests) < 0.91
    assert 0.99 < max(rests) <= BASE_S, "never longer than the cap or than a client is told"
    c.failed(0, failure, 1e6, 7.0)
    assert c.remaining_s(0, 1e6) == 7.0, "what a provider asked for is kept to the second"


def test_a_success_ends_the_rest_and_the_row(c: Cooldowns) -> None:
    for _ in range(4):
        c.failed(0, FailureClass.SERVER, 0.0, None)
    c.succeeded(0)
    assert not c.resting(0, 0.0)
    c.failed(0, FailureClass.SERVER, 0.0, None)
    assert c.remaining_s(0, 0.0) == BASE_S
    c.succeeded(9)
    assert c.resting(0, 0.0)


@pytest.mark.parametrize("asked", [0.0, 0.5, 2.0, 300.0])
def test_the_provider_says_how_long(c: Cooldowns, asked: float) -> None:  # R53, S-25
    for _ in range(3):
        c.failed(0, RATE, 10.0, asked)
        assert c.remaining_s(0, 10.0) == asked


def test_another_failure_does_not_shorten_what_the_provider_asked_for(c: Cooldowns) -> None:
    """S-25: must not call it in the rest."""
    c.failed(0, RATE, 0.0, 60.0)
    c.failed(0, FailureClass.TRANSPORT, 1.0, None)  # a request that was under way already
    assert c.remaining_s(0, 1.0) == 59.0
    c.failed(0, RATE, 2.0, 5.0)  # the provider's latest word counts
    assert c.remaining_s(0, 2.0) == 5.0


def test_failures_of_one_moment_are_one_failure(c: Cooldowns) -> None:
    """A burst that was in flight when the target broke must not park it for half a minute."""
    for _ in range(50):
        c.failed(3, FailureClass.SERVER, 100.0, None)
    assert c.remaining_s(3, 100.0) == BASE_S
    assert c.failures_in_a_row(3) == 1


def test_a_rest_holds_for_all_workers_and_the_count_for_one(table: Table) -> None:
    one, other = Cooldowns(table), Cooldowns(table)
    one.failed(3, FailureClass.SERVER, 98.0, None)
    one.failed(3, FailureClass.SERVER, 100.0, None)
    assert other.resting(3, 101.5)
    assert other.remaining_s(3, 100.0) == 2.0
    assert (one.failures_in_a_row(3), other.failures_in_a_row(3)) == (2, 0)
    other.failed(3, FailureClass.SERVER, 100.0, None)
    assert one.remaining_s(3, 100.0) == 2.0, "the first failure that this worker sees does not shorten the rest"
    other.succeeded(3)
    assert not one.resting(3, 100.0)
    one.failed(3, FailureClass.SERVER, 100.0, None)
    assert other.remaining_s(3, 100.0) == 4.0, "a row that another worker has ended goes on here"


def test_another_workers_failure_does_not_shorten_what_the_provider_asked_for(table: Table) -> None:  # S-25
    one, other = Cooldowns(table), Cooldowns(table)
    one.failed(0, RATE, 0.0, 60.0)
    for _ in range(3):
        other.failed(0, FailureClass.TRANSPORT, 1.0, None)
    assert one.remaining_s(0, 1.0) == other.remaining_s(0, 1.0) == 59.0
    other.failed(0, RATE, 2.0, 5.0)
    assert one.remaining_s(0, 2.0) == 5.0


def test_a_rest_that_nobody_can_have_asked_for_is_none(c: Cooldowns, table: Table) -> None:
    """Whatever lies in the file, a target is not lost for days."""
    table.extend_cooldown(0, 10**18)
    assert not c.resting(0, 5.0)


# ---- watchdog --------------------------------------------------------------------------------------------------------


def watched(body: Callable[[Watchdog], Coroutine[Any, Any, Any]], *, total_s: float = 600.0) -> tuple[Any, float]:
    """Run ``body`` under a watchdog: its result or the time-out, when it ended, and what timers it left: one at most,
    that does nothing when its time comes.
    """

    async def main() -> Any:
        loop = loop_now()
        before = asyncio.current_task()
        assert before is not None
        try:
            with Watchdog(Deadlines(loop), loop.time() + total_s, total_s) as dog:
                result = await body(dog)
        except UpstreamTimeout as exc:
            result = exc
        assert before.cancelling() == 0
        ended = loop.time()
        await only_a_stale_timer()
        assert before.cancelling() == 0
        return result, ended

    return run_virtual(main())


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


@pytest.mark.parametrize(
    ("phase", "limit"), [("connect", 5.0), ("first_byte", 60.0), ("idle", 300.0), ("idle", 0.001)], ids=str
)
def test_each_phase_has_its_limit_and_its_code(phase: str, limit: float) -> None:  # R17
    async def body(dog: Watchdog) -> None:
        dog.arm(phase, limit)
        await forever()

    error, at = watched(body)
    assert isinstance(error, UpstreamTimeout)
    assert (error.phase, error.code, error.status) == (phase, f"upstream_{phase}_timeout", 504)
    assert f"{limit:g} s" in error.message
    assert error.failure is (FailureClass.CONNECT if phase == "connect" else FailureClass.TIMEOUT)
    assert at == limit


def test_the_total_holds_whatever_is_armed() -> None:  # R17, S-07
    async def body(dog: Watchdog) -> None:
        while True:
            dog.arm("idle", 60)
            await asyncio.sleep(10)

    error, at = watched(body, total_s=95)
    assert (error.phase, error.code, at) == ("total", "upstream_total_timeout", 95)
    assert "95 s" in error.message


def test_a_total_that_has_passed_already_fires_at_once() -> None:
    error, at = watched(lambda dog: forever(), total_s=-1)
    assert (error.phase, at) == ("total", 0.0)


def test_when_both_pass_together_it_is_the_total() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 50)
        await forever()

    assert watched(body, total_s=50)[0].phase == "total"


def test_arming_again_moves_the_limit_later_and_earlier() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("first_byte", 5)
        await asyncio.sleep(4)
        dog.arm("idle", 100)
        await asyncio.sleep(90)
        dog.arm("idle", 3)
        await forever()

    error, at = watched(body)
    assert (error.phase, at) == ("idle", 97)
    assert "3 s" in error.message


def test_a_beat_begins_the_phase_anew() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 10)
        for _ in range(5):
            await asyncio.sleep(9)
            dog.beat()
        await forever()

    error, at = watched(body)
    assert (error.phase, at) == ("idle", 55)
    assert watched(body, total_s=50)[1] == 50, "the total stays"


def test_disarmed_only_the_total_holds() -> None:  # waiting for a slow client is not the provider's time
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 5)
        dog.disarm()
        await asyncio.sleep(500)
        dog.arm("idle", 5)
        await forever()

    error, at = watched(body)
    assert (error.phase, at) == ("idle", 505)
    assert watched(body, total_s=300)[0].phase == "total"


@pytest.mark.parametrize("total_s", [600.0, NEVER, 1e12])
def test_the_end_in_time_leaves_nothing_that_bites(total_s: float) -> None:
    async def body(dog: Watchdog) -> str:
        for _ in range(20):
            dog.arm("idle", 5)
            await asyncio.sleep(1)
        return "done"

    assert watched(body, total_s=total_s) == ("done", 20)


@pytest.mark.parametrize("total_s", [NEVER, 1e12])
def test_limits_hold_without_a_total(total_s: float) -> None:
    async def body(dog: Watchdog) -> None:
        await asyncio.sleep(7)
        dog.arm("idle", 5)
        await asyncio.sleep(4)
        dog.disarm()
        await asyncio.sleep(1000)
        dog.arm("idle", 5)
        await forever()

    error, at = watched(body, total_s=total_s)
    assert (error.phase, at) == ("idle", 1016)


def test_a_thousand_arms_set_one_timer_at_a_time() -> None:
    async def body(dog: Watchdog) -> int:
        most = 0
        for _ in range(1000):
            dog.arm("idle", 60)
            await asyncio.sleep(0)
            most = max(most, len(loop_now().timers()))
        return most

    assert watched(body)[0] == 1


@pytest.mark.parametrize("total_s", [NEVER, 7200.0])
def test_a_token_every_ten_seconds_for_half_an_hour_survives(total_s: float) -> None:  # R22
    async def body(dog: Watchdog) -> int:
        tokens = 0
        while loop_now().time() < 1800:
            dog.arm("idle", 60)
            await asyncio.sleep(10)
            tokens += 1
        return tokens

    assert watched(body, total_s=total_s) == (180, 1800)


def test_an_error_of_the_body_passes() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 5)
        raise KeyError("x")

    async def main() -> None:
        loop = loop_now()
        with pytest.raises(KeyError), Watchdog(Deadlines(loop), 10.0, 10.0) as dog:
            await body(dog)
        await only_a_stale_timer()

    run_virtual(main())


def test_a_cancellation_from_outside_passes() -> None:  # R1: the client's leaving is never called a time-out
    async def main() -> None:
        loop = loop_now()
        task = asyncio.create_task(_hang(5))
        await asyncio.sleep(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert loop.time() == 2
        await only_a_stale_timer()

    run_virtual(main())


def test_a_cancellation_at_the_same_moment_passes() -> None:
    """The rule of ``asyncio.Timeout``: whoever cancelled from outside gets its cancellation."""

    async def main() -> None:
        loop = loop_now()
        task = asyncio.create_task(_hang(5))
        loop.call_at(5.0, task.cancel)
        await asyncio.sleep(6)
        assert task.cancelled()
        await only_a_stale_timer()

    run_virtual(main())


async def _hang(limit: float) -> None:
    loop = loop_now()
    with Watchdog(Deadlines(loop), loop.time() + 600, 600) as dog:
        dog.arm("idle", limit)
        await forever()


def test_inside_another_timeout_the_inner_one_is_told_apart() -> None:
    async def main() -> None:
        loop = loop_now()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(3):
                await _hang(5)
        assert loop.time() == 3
        with pytest.raises(UpstreamTimeout):
            async with asyncio.timeout(9):
                await _hang(5)
        assert loop.time() == 8

    run_virtual(main())


def test_arming_in_the_clean_up_after_a_limit_does_not_fire_twice() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 5)
        try:
            await forever()
        finally:
            dog.arm("idle", 1)
            await asyncio.sleep(3)

    error, at = watched(body)
    assert (error.phase, at) == ("idle", 8)


def test_it_needs_a_task() -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(RuntimeError):
            Watchdog(Deadlines(loop), 1.0, 1.0).__enter__()
    finally:
        loop.close()


# ---- deadlines -------------------------------------------------------------------------------------------------------


async def bitten(deadlines: Deadlines, limit: float, total_s: float = 600.0) -> tuple[str, float]:
    """Hang under a watchdog of ``deadlines``: which limit ended it, and when."""
    try:
        with Watchdog(deadlines, deadlines.time() + total_s, total_s) as dog:
            dog.arm("idle", limit)
            await forever()
    except UpstreamTimeout as exc:
        return exc.phase, deadlines.time()
    raise AssertionError("nothing ends it but its limit")


def test_thousands_share_one_timer_and_each_ends_at_its_moment() -> None:
    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)
        limits = [float(1 + i * 7919 % 500) for i in range(5000)]
        tasks = [asyncio.create_task(bitten(deadlines, limit, 400.0)) for limit in limits]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.5)
            assert len(loop.timers()) <= 1
        for task, limit in zip(tasks, limits, strict=True):
            assert task.result() == (("idle", limit) if limit < 400 else ("total", 400.0))
        await only_a_stale_timer()

    run_virtual(main())


def test_the_timer_is_moved_seldom() -> None:
    """What is armed again and again for later costs no timer: that is the point."""

    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)
        calls: list[float] = []
        call_at = loop.call_at

        def counted(when: float, *args: Any, **more: Any) -> asyncio.TimerHandle:
            calls.append(when)
            return call_at(when, *args, **more)

        async def stream() -> None:
            with Watchdog(deadlines, loop.time() + 600, 600) as dog:
                for _ in range(300):
                    dog.arm("idle", 60)
                    await asyncio.sleep(0.1)

        loop.call_at = counted  # type: ignore[method-assign]
        await asyncio.gather(*(stream() for _ in range(50)))
        ours = len(calls) - 50 * 300
        assert 1 <= ours <= 3

    run_virtual(main())


def test_an_earlier_limit_of_another_comes_first_and_the_later_one_still_comes() -> None:
    async def main() -> None:
        deadlines = Deadlines(loop_now())
        late = asyncio.create_task(bitten(deadlines, 100))
        await asyncio.sleep(1)
        early = asyncio.create_task(bitten(deadlines, 3))
        assert await early == ("idle", 4.0)
        assert len(loop_now().timers()) == 1
        assert await late == ("idle", 100.0)
        await only_a_stale_timer()

    run_virtual(main())


def test_who_has_left_is_not_bitten_and_the_rest_are() -> None:
    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)
        tasks = [asyncio.create_task(bitten(deadlines, 10.0 + i % 5)) for i in range(1000)]
        await asyncio.sleep(5)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks[::2])
        assert [task.result() for task in tasks[1::2]] == [("idle", 10.0 + i % 5) for i in range(1, 1000, 2)]
        await only_a_stale_timer()

    run_virtual(main())


def test_one_task_after_another_under_one_stale_timer() -> None:
    """The timer of the first stays behind; the limits of those that follow hold to the moment."""

    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)
        with Watchdog(deadlines, 7.0, 7.0):
            await asyncio.sleep(5)
        assert len(loop.timers()) == 1
        assert await bitten(deadlines, 10) == ("idle", 15.0)
        with Watchdog(deadlines, loop.time() + 50, 50.0):
            pass
        assert await bitten(deadlines, 1) == ("idle", 16.0)
        await only_a_stale_timer()

    run_virtual(main())


@pytest.mark.parametrize("limits", [(50, 5), (5, 50), (50, 5, 50), (5, 50, 5), (NEVER, 5), (5, NEVER, 6)], ids=str)
def test_the_last_limit_armed_is_the_one_that_holds(limits: tuple[float, ...]) -> None:
    async def main() -> None:
        deadlines = Deadlines(loop_now())
        other = asyncio.create_task(bitten(deadlines, 20))

        async def rearming() -> None:
            with Watchdog(deadlines, 600, 600) as dog:
                for limit in limits:
                    dog.arm("idle", limit)
                    await asyncio.sleep(1)
                await forever()

        with pytest.raises(UpstreamTimeout):
            await rearming()
        assert deadlines.time() == len(limits) - 1 + limits[-1]
        assert await other == ("idle", 20.0)

    run_virtual(main())


def test_many_limits_at_one_moment_all_bite() -> None:
    async def main() -> None:
        deadlines = Deadlines(loop_now())
        found = await asyncio.gather(*(bitten(deadlines, 30) for _ in range(3000)))
        assert found == [("idle", 30.0)] * 3000
        await only_a_stale_timer()

    run_virtual(main())


def test_a_watchdog_within_another() -> None:
    """Two limits of one task: each ends its own part, also when they pass together."""

    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)

        async def outer() -> None:
            with Watchdog(deadlines, 20, 20):
                assert await bitten(deadlines, 5) == ("idle", 5.0)
                await forever()

        with pytest.raises(UpstreamTimeout):
            await outer()
        assert loop.time() == 20
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await only_a_stale_timer()

    run_virtual(main())


def test_the_end_of_the_process_cuts_all_and_lets_none_begin() -> None:
    async def main() -> None:
        loop = loop_now()
        deadlines = Deadlines(loop)
        tasks = [asyncio.create_task(bitten(deadlines, 50)) for _ in range(1000)]
        gone = asyncio.create_task(bitten(deadlines, 50))
        await asyncio.sleep(2)
        gone.cancel()
        assert deadlines.cut() == 1001
        assert deadlines.cut() == 0
        await asyncio.wait([*tasks, gone])
        assert all(isinstance(task.exception(), ShuttingDown) for task in tasks)
        assert gone.cancelled(), "the client's leaving passes, also now"
        with pytest.raises(ShuttingDown):
            await bitten(deadlines, 50)
        assert loop.time() == 2
        await only_a_stale_timer()

    run_virtual(main())
