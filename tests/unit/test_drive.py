"""RequestTask and Waiter, compiled and pure: what asyncio sees of a task and a future, and when things happen."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Callable, Coroutine
from types import ModuleType
from typing import Any

import pytest
import uvloop

from slipstream._fast import drive as fast
from slipstream._fast._pure import drive as pure
from tests.aio import run

both = pytest.mark.parametrize("twin", [fast, pure], ids=["compiled", "pure"])
loops = pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])


def begun(twin: ModuleType, coro: Coroutine[Any, Any, None], at_once: bool = True) -> Any:
    task = twin.RequestTask(coro, asyncio.get_running_loop())
    task.begin(at_once)
    return task


async def ended(task: Any) -> Any:
    """Wait as the listener does; the task's exception."""
    await asyncio.wait([task], timeout=5)
    assert task.done()
    return None if task.cancelled() else task.exception()


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


# ---- when the coroutine goes on --------------------------------------------------------------------------------------


@both
def test_few_requests_go_on_at_once(twin: ModuleType) -> None:
    """The callback that brings the news runs the coroutine, to its next wait or to its end."""
    seen: list[Any] = []

    async def main() -> None:
        waiter = twin.Waiter(asyncio.get_running_loop())

        async def request() -> None:
            seen.append("begun")
            seen.append(await waiter)

        task = begun(twin, request())
        assert seen == ["begun"]
        assert twin.requests_begun() == 1
        waiter.deliver("reply")
        assert seen == ["begun", "reply"]
        assert task.done()
        assert twin.requests_begun() == 0

    run(main())


@both
def test_a_request_that_may_not_begin_at_once_begins_in_the_next_turn(twin: ModuleType) -> None:
    seen: list[int] = []

    async def main() -> None:
        async def request() -> None:
            seen.append(1)

        task = begun(twin, request(), at_once=False)
        assert not seen
        await turns(1)
        assert seen == [1]
        assert task.done()

    run(main())


@both
def test_many_requests_go_on_in_turns(twin: ModuleType) -> None:
    """With more than four in flight each step is in the loop's next turn, in the order of the news."""
    seen: list[int] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiters = [twin.Waiter(loop) for _ in range(7)]

        async def request(number: int) -> None:
            seen.append(number)
            assert await waiters[number] == number
            seen.append(10 + number)

        tasks = [begun(twin, request(number)) for number in range(7)]
        assert seen == [0, 1, 2, 3]
        await turns(1)
        assert seen == [0, 1, 2, 3, 4, 5, 6]
        for number in (6, 0, 3):
            waiters[number].deliver(number)
        assert len(seen) == 7
        await turns(1)
        assert seen[7:] == [16, 10, 13]
        waiters[1].deliver(1)  # four are left
        assert seen[-1] == 11
        for number in (2, 4, 5):
            waiters[number].deliver(number)
        assert all(task.done() for task in tasks)
        assert twin.requests_begun() == 0

    run(main())


@both
def test_news_for_the_coroutine_that_runs_waits_for_its_turn(twin: ModuleType) -> None:
    """A coroutine that delivers to itself, or brings what it will wait for, is not entered twice."""
    seen: list[str] = []

    async def main() -> None:
        waiter = twin.Waiter(asyncio.get_running_loop())

        async def request() -> None:
            waiter.deliver("early")
            seen.append(await waiter)
            with pytest.raises(asyncio.InvalidStateError):
                waiter.deliver("twice")

        assert await ended(begun(twin, request())) is None
        assert seen == ["early"]

    run(main())


@both
def test_a_request_begins_once(twin: ModuleType) -> None:
    async def main() -> None:
        async def request() -> None:
            await asyncio.sleep(0)

        task = begun(twin, request())
        with pytest.raises(RuntimeError, match="begins once"):
            task.begin(True)
        await ended(task)
        with pytest.raises(RuntimeError, match="begins once"):
            task.begin(True)

    run(main())


@both
def test_a_request_begins_within_another(twin: ModuleType) -> None:
    """The next request of a connection begins at the end of the one before; the running task is right in both."""
    seen: list[bool] = []

    async def main() -> None:
        tasks: list[Any] = []

        async def second() -> None:
            seen.append(asyncio.current_task() is tasks[1])

        async def first() -> None:
            loop = asyncio.get_running_loop()
            tasks.append(twin.RequestTask(second(), loop))
            tasks[1].begin(True)
            seen.append(asyncio.current_task() is tasks[0])

        tasks.append(twin.RequestTask(first(), asyncio.get_running_loop()))
        tasks[0].begin(True)
        assert seen == [True, True]
        assert isinstance(asyncio.current_task(), asyncio.Task)

    run(main())


# ---- what asyncio wants ----------------------------------------------------------------------------------------------


@both
@loops
def test_all_that_a_task_can_wait_for(twin: ModuleType, factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Futures, tasks, timers, locks, queues, groups, shields, nothing: as under ``asyncio.Task``."""
    seen: list[Any] = []

    async def value(number: int) -> int:
        await asyncio.sleep(0)
        return number

    async def request() -> None:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        loop.call_soon(future.set_result, 1)
        seen.append(await future)
        seen.append(await asyncio.create_task(value(2)))
        await asyncio.sleep(0.001)
        seen.extend(await asyncio.gather(value(3), value(4)))
        seen.append(await asyncio.wait_for(value(5), 1))
        seen.append(await asyncio.shield(asyncio.ensure_future(value(6))))
        async with asyncio.Lock(), asyncio.TaskGroup() as group:
            grouped = group.create_task(value(7))
        seen.append(grouped.result())
        queue: asyncio.Queue[int] = asyncio.Queue()
        loop.call_soon(queue.put_nowait, 8)
        seen.append(await queue.get())
        done = loop.create_future()
        done.set_result(9)
        seen.append(await done)
        failing = loop.create_future()
        loop.call_soon(failing.set_exception, ValueError("no"))
        with pytest.raises(ValueError, match="no"):
            await failing
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.001):
                await loop.create_future()
        task: Any = asyncio.current_task()
        seen.append((task.get_name(), task.cancelling(), task.get_loop() is loop, task.get_coro() is not None))

    async def main() -> None:
        assert await ended(begun(twin, request())) is None

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert seen == [1, 2, 3, 4, 5, 6, 7, 8, 9, ("request", 0, True, True)]


@both
def test_a_waiter_is_a_future_to_others(twin: ModuleType) -> None:
    """A task of asyncio waits for it too, and callbacks are told in a later turn and not after they were removed."""
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        waiter = twin.Waiter(loop)
        with pytest.raises(asyncio.InvalidStateError):
            waiter.result()

        def no(_: object) -> None:
            told.append("no")

        waiter.add_done_callback(no)
        waiter.add_done_callback(no)
        waiter.add_done_callback(lambda _: told.append("yes"))
        assert waiter.remove_done_callback(no) == 2
        loop.call_soon(waiter.deliver, 5)
        assert await asyncio.wait_for(waiter, 1) == 5
        await turns(1)
        assert told == ["yes"]
        waiter.add_done_callback(lambda _: told.append("late"))
        await turns(1)
        assert told == ["yes", "late"]
        assert (waiter.done(), waiter.cancelled(), waiter.result(), waiter.exception()) == (True, False, 5, None)
        assert waiter.get_loop() is loop
        failed = twin.Waiter(loop)
        failed.set_exception(OSError("gone"))
        assert isinstance(failed.exception(), OSError)
        with pytest.raises(OSError, match="gone"):
            await failed
        assert not failed.cancel()

    run(main())


@both
def test_an_exception_reaches_the_coroutine(twin: ModuleType) -> None:
    async def main() -> None:
        waiter = twin.Waiter(asyncio.get_running_loop())

        async def request() -> None:
            with pytest.raises(OSError, match="reset"):
                await waiter

        task = begun(twin, request())
        waiter.set_exception(OSError("reset"))
        assert await ended(task) is None

    run(main())


# ---- the end ---------------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("many", [False, True])
def test_cancelled_at_every_point(twin: ModuleType, many: bool) -> None:
    """Before it begins, while it waits for a Waiter, a future or a turn, after its news came, while it runs (R1)."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        others = [loop.create_future() for _ in range(6 if many else 0)]

        async def other(future: asyncio.Future[None]) -> None:
            await future

        tasks = [begun(twin, other(future)) for future in others]
        await turns(2)
        reached: list[str] = []

        async def not_reached() -> None:
            raise AssertionError("it was cancelled before")

        task = begun(twin, not_reached(), at_once=False)
        assert task.cancel()
        await ended(task)
        assert task.cancelled()

        for kind in ("waiter", "future", "turn", "delivered"):
            waiter, future = twin.Waiter(loop), loop.create_future()

            async def waits(kind: str = kind, waiter: Any = waiter, future: Any = future) -> None:
                try:
                    if kind in ("waiter", "delivered"):
                        await waiter
                    elif kind == "future":
                        await future
                    else:
                        while True:
                            await asyncio.sleep(0)
                except asyncio.CancelledError:
                    reached.append(kind)
                    raise

            task = begun(twin, waits())
            await turns(2)
            if kind == "delivered":
                waiter.set_result(None)  # it goes on in the next turn
            task.cancel()
            await ended(task)
            assert task.cancelled(), kind
            with pytest.raises(asyncio.CancelledError):
                task.exception()
            assert not task.cancel()
        assert reached == ["waiter", "future", "turn", "delivered"]

        async def itself() -> None:
            current = asyncio.current_task()
            assert current is not None
            current.cancel()
            assert current.cancelling() == 1
            assert current.uncancel() == 0
            await asyncio.sleep(0)
            current.cancel()
            await loop.create_future()

        task = begun(twin, itself())
        await ended(task)
        assert task.cancelled()
        for future in others:
            future.set_result(None)
        for task in tasks:
            await ended(task)
        assert twin.requests_begun() == 0

    run(main())


@both
def test_a_coroutine_may_refuse_to_be_cancelled(twin: ModuleType) -> None:
    async def main() -> None:
        async def request() -> None:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.get_running_loop().create_future()

        task = begun(twin, request())
        task.cancel()
        assert await ended(task) is None
        assert not task.cancelled()

    run(main())


@both
def test_a_failure_nobody_asked_for_is_reported(twin: ModuleType) -> None:
    told: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context["exception"]))

        async def request() -> None:
            raise ValueError("a mistake")

        task = begun(twin, request())
        assert isinstance(task.exception(), ValueError)
        assert [str(error) for error in told] == ["a mistake"]
        later = begun(twin, request(), at_once=False)
        with pytest.raises(asyncio.InvalidStateError):
            later.exception()
        removed = told.append
        later.add_done_callback(removed)
        assert later.remove_done_callback(removed) == 1
        assert isinstance(await ended(later), ValueError)
        assert len(told) == 1, "who asked to be told was told"

    run(main())


@both
def test_waiting_for_what_cannot_be_waited_for(twin: ModuleType) -> None:
    class Odd:
        def __await__(self) -> Any:
            yield 5

    async def main() -> None:
        async def request() -> None:
            with pytest.raises(RuntimeError, match="cannot wait for a int"):
                await Odd()

        assert await ended(begun(twin, request())) is None

    run(main())


@both
def test_an_interrupt_passes_through(twin: ModuleType) -> None:
    async def main() -> None:
        async def request() -> None:
            raise KeyboardInterrupt

        task = twin.RequestTask(request(), asyncio.get_running_loop())
        with pytest.raises(KeyboardInterrupt):
            task.begin(True)
        assert task.done()
        assert isinstance(asyncio.current_task(), asyncio.Task)

    run(main())


@both
def test_a_request_that_its_loop_left_behind_is_not_counted(twin: ModuleType) -> None:
    async def main() -> None:
        async def request() -> None:
            await asyncio.get_running_loop().create_future()

        begun(twin, request())
        assert twin.requests_begun() == 1

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(main())
        gc.collect()
    assert twin.requests_begun() == 0


def test_both_agree_on_what_few_is() -> None:
    """The compiled one has no name for it that Python sees: it is counted."""

    def most(twin: ModuleType) -> int:
        async def main() -> int:
            loop = asyncio.get_running_loop()
            future = loop.create_future()
            at_once = 0
            tasks = []

            async def request() -> None:
                nonlocal at_once
                at_once += 1
                await future

            for _ in range(9):
                tasks.append(begun(twin, request()))
            result = at_once
            await turns(2)
            future.set_result(None)
            for task in tasks:
                await ended(task)
            return result

        return run(main())

    assert most(fast) == most(pure) == pure.FEW
