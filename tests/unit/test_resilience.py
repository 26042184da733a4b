"""Rests of targets with a fake clock, and the four limits of an attempt in virtual time (R17, R22, Q11, Q18)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from slipstream.errors import UpstreamTimeout
from slipstream.resilience.cooldown import BASE_S, MAX_S, RETRYABLE, Cooldowns
from slipstream.resilience.watchdog import NEVER, Watchdog
from slipstream.types import FailureClass
from tests.virtual import loop_now, run_virtual

TELLING = sorted(RETRYABLE)
SILENT = sorted(set(FailureClass) - RETRYABLE)
RATE = FailureClass.RATE_LIMITED


# ---- cooldowns -------------------------------------------------------------------------------------------------------


def test_nobody_rests_at_first() -> None:
    c = Cooldowns()
    assert not c.resting(0, 0.0)
    assert c.remaining_s(0, 5.0) == 0.0
    assert c.failures_in_a_row(0) == 0


@pytest.mark.parametrize("failure", TELLING, ids=lambda f: f.label)
def test_a_telling_failure_rests_for_a_second(failure: FailureClass) -> None:
    c = Cooldowns()
    c.failed(3, failure, 100.0, None)
    assert c.resting(3, 100.0)
    assert c.resting(3, 100.999)
    assert not c.resting(3, 101.0)
    assert c.remaining_s(3, 100.25) == 0.75
    assert c.remaining_s(3, 200.0) == 0.0
    assert not c.resting(4, 100.0), "others are not touched"


@pytest.mark.parametrize("failure", SILENT, ids=lambda f: f.label)
def test_what_says_nothing_of_the_target_never_counts(failure: FailureClass) -> None:  # Q03
    c = Cooldowns()
    for _ in range(1000):
        c.failed(0, failure, 0.0, 60.0)
    assert not c.resting(0, 0.0)
    assert c.failures_in_a_row(0) == 0


def test_which_failures_are_telling() -> None:  # R16, R54
    assert set(SILENT) == {
        FailureClass.NONE,
        FailureClass.AUTH,
        FailureClass.CLIENT_ERROR,
        FailureClass.CLIENT_GONE,
    }


def test_it_doubles_up_to_the_cap() -> None:  # Q11
    c = Cooldowns()
    now, rests = 0.0, []
    for _ in range(40):
        c.failed(0, FailureClass.SERVER, now, None)
        rests.append(c.remaining_s(0, now))
        now += rests[-1]
    assert rests[:6] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    assert set(rests[5:]) == {MAX_S}
    assert rests[0] == BASE_S
    assert c.failures_in_a_row(0) == 40


def test_a_success_ends_the_rest_and_the_row() -> None:
    c = Cooldowns()
    for _ in range(4):
        c.failed(0, FailureClass.SERVER, 0.0, None)
    c.succeeded(0)
    assert not c.resting(0, 0.0)
    c.failed(0, FailureClass.SERVER, 0.0, None)
    assert c.remaining_s(0, 0.0) == BASE_S
    c.succeeded(9)
    assert c.resting(0, 0.0)


@pytest.mark.parametrize("asked", [0.0, 0.5, 2.0, 300.0])
def test_the_provider_says_how_long(asked: float) -> None:  # R53, S-25
    c = Cooldowns()
    for _ in range(3):
        c.failed(0, RATE, 10.0, asked)
        assert c.remaining_s(0, 10.0) == asked


def test_another_failure_does_not_shorten_what_the_provider_asked_for() -> None:  # S-25: "must not call it in the rest"
    c = Cooldowns()
    c.failed(0, RATE, 0.0, 60.0)
    c.failed(0, FailureClass.TRANSPORT, 1.0, None)  # a request that was under way already
    assert c.remaining_s(0, 1.0) == 59.0
    c.failed(0, RATE, 2.0, 5.0)  # the provider's latest word counts
    assert c.remaining_s(0, 2.0) == 5.0


# ---- watchdog --------------------------------------------------------------------------------------------------------


def watched(
    body: Callable[[Watchdog], Coroutine[Any, Any, Any]], *, total_s: float = 600.0
) -> tuple[Any, float, list[asyncio.TimerHandle]]:
    """Run ``body`` under a watchdog: its result or the time-out, when it ended, and what timers it left."""

    async def main() -> Any:
        loop = loop_now()
        before = asyncio.current_task()
        assert before is not None
        try:
            with Watchdog(loop, loop.time() + total_s, total_s) as dog:
                result = await body(dog)
        except UpstreamTimeout as exc:
            result = exc
        assert before.cancelling() == 0
        return result, loop.time(), loop.timers()

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

    error, at, timers = watched(body)
    assert isinstance(error, UpstreamTimeout)
    assert (error.phase, error.code, error.status) == (phase, f"upstream_{phase}_timeout", 504)
    assert f"{limit:g} s" in error.message
    assert error.failure is (FailureClass.CONNECT if phase == "connect" else FailureClass.TIMEOUT)
    assert at == limit
    assert timers == []


def test_the_total_holds_whatever_is_armed() -> None:  # R17, S-07
    async def body(dog: Watchdog) -> None:
        while True:
            dog.arm("idle", 60)
            await asyncio.sleep(10)

    error, at, timers = watched(body, total_s=95)
    assert (error.phase, error.code, at, timers) == ("total", "upstream_total_timeout", 95, [])
    assert "95 s" in error.message


def test_a_total_that_has_passed_already_fires_at_once() -> None:
    error, at, _ = watched(lambda dog: forever(), total_s=-1)
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

    error, at, _ = watched(body)
    assert (error.phase, at) == ("idle", 97)
    assert "3 s" in error.message


def test_disarmed_only_the_total_holds() -> None:  # waiting for a slow client is not the provider's time
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 5)
        dog.disarm()
        await asyncio.sleep(500)
        dog.arm("idle", 5)
        await forever()

    error, at, _ = watched(body)
    assert (error.phase, at) == ("idle", 505)
    assert watched(body, total_s=300)[0].phase == "total"


@pytest.mark.parametrize("total_s", [600.0, NEVER, 1e12])
def test_the_end_in_time_leaves_no_timer(total_s: float) -> None:
    async def body(dog: Watchdog) -> str:
        for _ in range(20):
            dog.arm("idle", 5)
            await asyncio.sleep(1)
        return "done"

    assert watched(body, total_s=total_s) == ("done", 20, [])


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

    error, at, timers = watched(body, total_s=total_s)
    assert (error.phase, at, timers) == ("idle", 1016, [])


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

    assert watched(body, total_s=total_s) == (180, 1800, [])


def test_an_error_of_the_body_passes() -> None:
    async def body(dog: Watchdog) -> None:
        dog.arm("idle", 5)
        raise KeyError("x")

    async def main() -> None:
        loop = loop_now()
        with pytest.raises(KeyError), Watchdog(loop, 10.0, 10.0) as dog:
            await body(dog)
        assert loop.timers() == []

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
        assert loop.timers() == []

    run_virtual(main())


def test_a_cancellation_at_the_same_moment_passes() -> None:
    """The rule of ``asyncio.Timeout``: whoever cancelled from outside gets its cancellation."""

    async def main() -> None:
        loop = loop_now()
        task = asyncio.create_task(_hang(5))
        loop.call_at(5.0, task.cancel)
        await asyncio.sleep(6)
        assert task.cancelled()
        assert loop.timers() == []

    run_virtual(main())


async def _hang(limit: float) -> None:
    loop = loop_now()
    with Watchdog(loop, loop.time() + 600, 600) as dog:
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

    error, at, timers = watched(body)
    assert (error.phase, at, timers) == ("idle", 8, [])


def test_it_needs_a_task() -> None:
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(RuntimeError):
            Watchdog(loop, 1.0, 1.0).__enter__()
    finally:
        loop.close()
