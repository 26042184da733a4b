"""Which of the bodies that arrive are read in a turn of the event loop (R23)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from slipstream.server.native_body import AT_ONCE, Intake
from slipstream.server.native_connection import NativeConnection


class Loop:
    """Calls what is to be called soon when the test says so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        due, self.soon = self.soon, []
        for callback in due:
            callback()


class Body:
    """Has ``shares`` to read, and waits for its next turn as soon as it has read one, like a body that arrives fast."""

    def __init__(self, intake: Intake, reads: list[Body], shares: int) -> None:
        self.intake, self.reads, self.left, self.read = intake, reads, shares, 0
        self.wait()

    def wait(self) -> None:
        if self.left:
            self.intake.wait(cast(NativeConnection, self))

    def read_on(self) -> None:
        self.left -= 1
        self.read += 1
        self.reads.append(self)


@pytest.fixture
def loop() -> Loop:
    return Loop()


@pytest.fixture
def intake(loop: Loop) -> Intake:
    return Intake(cast(asyncio.AbstractEventLoop, loop))


def turn(loop: Loop, reads: list[Body]) -> int:
    """One turn: how many were let read on. Those have read their share at the end of it."""
    loop.turn()
    went = reads[:]
    reads.clear()
    for body in went:
        body.wait()
    return len(went)


def test_one_body_alone_goes_on_in_the_next_turn(loop: Loop, intake: Intake) -> None:
    reads = list[Body]()
    Body(intake, reads, 5)
    assert [turn(loop, reads) for _ in range(7)] == [1] * 5 + [0] * 2
    assert not loop.soon


def test_up_to_so_many_need_not_wait(loop: Loop, intake: Intake) -> None:
    reads = list[Body]()
    for _ in range(AT_ONCE):
        Body(intake, reads, 3)
    assert [turn(loop, reads) for _ in range(4)] == [AT_ONCE] * 3 + [0]
    assert not loop.soon


def test_no_turn_reads_more_and_nobody_is_passed_over(loop: Loop, intake: Intake) -> None:
    """60 bodies, others between them that come later: all get the same, in turn."""
    reads = list[Body]()
    bodies = [Body(intake, reads, 40) for _ in range(60)]
    later = list[Body]()
    for n in range(200):
        if n % 10 == 0:
            later.append(Body(intake, reads, 2))
        assert turn(loop, reads) == AT_ONCE
        shares = [body.read for body in bodies]
        assert max(shares) - min(shares) <= 1
    assert all(body.read == 2 for body in later[:16])
    while turn(loop, reads):
        pass
    assert not any(body.left for body in [*bodies, *later])
    assert not loop.soon
