"""A few large things in each turn of the event loop: bodies that are read, requests that are sent (R23)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import pytest

from slipstream.net.soon import Soon

MOST = 8


class Loop:
    """Makes the calls that are due when the test says so."""

    def __init__(self) -> None:
        self.soon: list[Callable[[], None]] = []

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def turn(self) -> None:
        due, self.soon = self.soon, []
        for callback in due:
            callback()


class Turns:
    """A loop, and those who wait for calls in it."""

    def __init__(self) -> None:
        self.loop = Loop()
        self.soon = Soon(cast(asyncio.AbstractEventLoop, self.loop), MOST)
        self.reads: list[Body] = []

    def next(self) -> int:
        """How many were called in this turn. Those who wait for an event after it have it at the end of the turn."""
        self.loop.turn()
        called = self.reads[:]
        self.reads.clear()
        for body in called:
            if not body.at_once:
                body.ask()
        return len(called)


class Body:
    """Has ``shares`` to move, one per call, and asks for the next in the call (``at_once``) or later in the turn."""

    def __init__(self, turns: Turns, shares: int, at_once: bool) -> None:
        self.turns, self.left, self.moved, self.at_once = turns, shares, 0, at_once
        self.ask()

    def ask(self) -> None:
        if self.left:
            self.turns.soon.call(self.called)

    def called(self) -> None:
        self.left -= 1
        self.moved += 1
        self.turns.reads.append(self)
        if self.at_once:
            self.ask()


@pytest.fixture
def turns() -> Turns:
    return Turns()


both = pytest.mark.parametrize("at_once", [False, True])


@both
def test_one_alone_goes_on_in_the_next_turn(turns: Turns, at_once: bool) -> None:
    Body(turns, 5, at_once)
    assert [turns.next() for _ in range(7)] == [1] * 5 + [0] * 2
    assert not turns.loop.soon


@both
def test_so_many_need_not_wait(turns: Turns, at_once: bool) -> None:
    for _ in range(MOST):
        Body(turns, 3, at_once)
    assert [turns.next() for _ in range(4)] == [MOST] * 3 + [0]
    assert not turns.loop.soon


@both
def test_no_turn_makes_more_and_nobody_is_passed_over(turns: Turns, at_once: bool) -> None:
    """60 bodies, and others between them that come later: all get the same, in turn."""
    bodies = [Body(turns, 40, at_once) for _ in range(60)]
    later = list[Body]()
    for n in range(200):
        if n % 10 == 0:
            later.append(Body(turns, 2, at_once))
        assert turns.next() == MOST
        moved = [body.moved for body in bodies]
        assert max(moved) - min(moved) <= 1
    assert all(body.moved == 2 for body in later[:16])
    while turns.next():
        pass
    assert not any(body.left for body in [*bodies, *later])
    assert not turns.loop.soon


def test_who_raises_holds_up_nobody(turns: Turns) -> None:
    def broken() -> None:
        raise RuntimeError("broken")

    turns.soon.call(broken)
    body = Body(turns, 2, at_once=True)
    with pytest.raises(RuntimeError, match="broken"):
        turns.next()
    while turns.next():
        pass
    assert body.moved == 2
    assert not turns.loop.soon
