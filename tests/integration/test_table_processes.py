"""The shared table under several processes at once: nothing is lost, and ``kill -9`` at any moment breaks nothing."""

from __future__ import annotations

import importlib
import mmap
import os
import random
import signal
import struct
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from slipstream._fast._pure import layout
from slipstream._fast._pure.layout import Sizes
from slipstream.routing.weighted import cycle
from slipstream.state.table import open_table

try:
    Table: Any = importlib.import_module("slipstream._fast.table").Table
    Series: Any = importlib.import_module("slipstream._fast.series").Series
    Pool: Any = importlib.import_module("slipstream._fast.select").Pool
except ImportError:
    Table = None

pytestmark = pytest.mark.skipif(Table is None, reason="slipstream._fast.table is not built: no atomics, no processes")

S = 1_000_000_000
NOW = 123_456 * S
SIZES = Sizes(targets=64, counters=4096, histograms=64, pools=4)
PROCESSES = 4
ROUNDS = 80_000
KILLS_S = 4.0
"""How long the killing goes on."""


def shared(size: int) -> mmap.mmap:
    return mmap.mmap(-1, size)


def new_table() -> tuple[mmap.mmap, Any]:
    memory = shared(SIZES.total)
    Table.format(memory, SIZES)
    return memory, Table(memory, SIZES, errors=0b0010)


def spawn(work: Callable[[], None]) -> int:
    """Forks a child that does ``work`` and exits with 0, or with 1 after printing why."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def wait(pids: list[int]) -> None:
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0] * len(pids)


@contextmanager
def killed_at_the_end(pids: list[int]) -> Iterator[None]:
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class Acks:
    """Words of one process each: what it is about to do, and what it has done."""

    def __init__(self, slots: int) -> None:
        self.memory = shared(16 * slots)
        self.words = memoryview(self.memory).cast("Q")

    def begin(self, slot: int) -> None:
        self.words[2 * slot] += 1

    def end(self, slot: int) -> None:
        self.words[2 * slot + 1] += 1

    def bounds(self) -> tuple[int, int]:
        return sum(self.words[1::2]), sum(self.words[0::2])


def test_no_update_is_lost() -> None:
    _memory, table = new_table()
    series = Series(table)
    counter, histogram = series.series(b"counter", 2), series.series(b"histogram", 5)
    order = cycle([3, 2, 1])
    results = shared(PROCESSES * 24)
    gate = shared(8)

    def work(me: int) -> None:
        worker = table.claim_worker(os.getpid(), NOW)
        pool = Pool(table, b"pool", [0, 1, 2], order)
        turns: Counter[int] = Counter()
        while not gate[0]:
            pass
        for i in range(ROUNDS):
            table.enter(worker, i & 3)
            table.record(0, i & 1, 1000 + i, 1000, NOW + i * 1000)
            table.add_usage(0, 1, 2, 3)
            series.add(counter, 1, 2)
            series.observe(histogram, i & 3, 10)
            table.extend_cooldown(0, i)
            turns[pool.turn()] += 1
            table.leave(worker, i & 3)
        struct.pack_into("<3Q", results, 24 * me, *[turns[i] for i in range(3)])

    pids = [spawn(lambda me=me: work(me)) for me in range(PROCESSES)]  # type: ignore[misc]
    gate[0] = 1
    wait(pids)
    total = PROCESSES * ROUNDS
    assert table.counters(0)[:2] == (total // 2, total // 2)
    assert table.errors(0, 60, NOW) == (total, total // 2)
    assert (table.samples(0, NOW), table.samples(0, NOW, True)) == (total, total)
    assert table.usage(0) == (total, 2 * total, 3 * total)
    assert dict(series.items()) == {b"counter": [0, 2 * total], b"histogram": [total // 4] * 4 + [10 * total]}
    assert [table.in_flight(row) for row in range(4)] == [0] * 4
    assert table.cooldown(0) == ROUNDS - 1
    latency, ttft = table.ewma(0)
    assert 1000 <= latency <= 1000 + ROUNDS
    assert ttft == 1000
    turns = [sum(struct.unpack_from("<Q", results, 24 * me + 8 * i)[0] for me in range(PROCESSES)) for i in range(3)]
    want = Counter(order[i % len(order)] for i in range(total))
    assert turns == [want[i] for i in range(3)], "the workers together take every turn once"
    assert len({worker for worker, *_ in table.workers()}) == PROCESSES


def test_one_key_one_slot() -> None:
    memory, table = new_table()
    keys = [f"series/{i}/{'x' * (i % 150)}".encode() for i in range(3000)]
    results = shared(PROCESSES * 8 * len(keys))
    gate = shared(8)

    def work(me: int) -> None:
        series = Series(table)
        order = list(range(len(keys)))
        random.Random(me // 2).shuffle(order)  # two and two of them race for the same keys
        while not gate[0]:
            pass
        for i in order:
            struct.pack_into("<q", results, 8 * (me * len(keys) + i), series.series(keys[i], 1))

    pids = [spawn(lambda me=me: work(me)) for me in range(PROCESSES)]  # type: ignore[misc]
    gate[0] = 1
    wait(pids)
    slots = [struct.unpack_from(f"<{len(keys)}q", results, 8 * me * len(keys)) for me in range(PROCESSES)]
    assert len(set(slots)) == 1, "all got the same"
    assert len(set(slots[0])) == len(keys)
    assert sorted(key for key, _ in Series(table).items()) == sorted(keys)
    assert all(state & 3 in (0, layout.READY) for state in states(memory))


def states(memory: mmap.mmap) -> list[int]:
    """State words of all small series."""
    words, at = memoryview(memory).cast("Q"), SIZES.words()[0]
    found = [words[at + i * layout.LAYOUT["COUNTER_WORDS"]] for i in range(SIZES.counters)]
    words.release()
    return found


def check(memory: mmap.mmap, table: Any, acks: Acks) -> None:
    """Everything that must hold at any moment, whoever is in the middle of what."""
    done, _ = acks.bounds()
    total = dict(Series(table).items()).get(b"total", [0])[0]
    counted = table.counters(0)[0]
    assert min(total, counted) >= done, "what was said to be done was done"
    _, begun = acks.bounds()
    assert max(total, counted) <= begun
    keys = [key for key, _ in Series(table).items()]
    assert len(keys) == len(set(keys))
    rows = table.targets()
    assert len({key for _, key in rows}) == len(rows)
    assert all(state & 3 in (0, layout.CLAIMING, layout.READY) for state in states(memory))
    now = time.monotonic_ns()
    for row in range(4):
        calls, errors = table.errors(row, 3600, now)
        assert 0 <= errors <= calls <= acks.bounds()[1]
        assert table.samples(row, now) <= acks.bounds()[1]
        assert all(v == 0.0 or 1000 <= v <= 2000 for v in table.ewma(row))


def test_kill_9_at_any_moment() -> None:
    memory, table = new_table()
    acks = Acks(4096)

    def work(me: int) -> None:
        rng = random.Random(me)
        series = Series(table)
        worker = table.claim_worker(os.getpid(), NOW)
        total = series.series(b"total", 1)
        for i in range(1 << 40):
            acks.begin(me)
            row = rng.randrange(4)
            table.enter(worker, row)
            series.add(total, 0, 1)
            table.record(0, 0, rng.randrange(1000, 2001), rng.randrange(1000, 2001), time.monotonic_ns())
            acks.end(me)
            table.record(1 + i % 3, rng.randrange(2), rng.randrange(1000, 2001), -1, time.monotonic_ns())
            series.series(b"%d" % rng.randrange(3000), 1)
            table.target(b"%d" % rng.randrange(80))
            table.leave(worker, row)

    survivor, me = spawn(lambda: work(0)), 0
    rng = random.Random(5)
    with killed_at_the_end([survivor]):
        end, kills, steps = time.monotonic() + KILLS_S, 0, 0
        while time.monotonic() < end:
            me += 1
            victim = spawn(lambda me=me: work(me))  # type: ignore[misc]
            time.sleep(rng.uniform(0.001, 0.03))
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            kills += 1
            for worker, pid, *_ in table.workers():
                if pid == victim:
                    assert table.reap(worker) <= 1
            os.kill(survivor, signal.SIGSTOP)  # between two rows that are read it could move from one to the other
            os.waitpid(survivor, os.WUNTRACED)
            assert sum(table.in_flight(row) for row in range(4)) <= 1, "only what the survivor has in flight"
            os.kill(survivor, signal.SIGCONT)
            if kills % 10 == 0:
                check(memory, table, acks)
                assert acks.words[1] > steps, "the survivor goes on"
                steps = acks.words[1]
        assert kills >= 30
    table.reap(next(worker for worker, pid, *_ in table.workers() if pid == survivor))
    check(memory, table, acks)
    assert table.workers() == []
    assert [table.in_flight(row) for row in range(4)] == [0] * 4
    assert Series(table).series(b"one more", 1) >= 0


def test_counters_survive_the_death_of_everybody(tmp_path: Path) -> None:
    ready = shared(8)

    def work() -> None:
        opened = open_table(tmp_path, SIZES, boot=1)
        row = opened.table.target(b"target")
        worker = opened.table.claim_worker(os.getpid(), NOW)
        slot = opened.series.series(b"requests", 1)
        for _ in range(1000):
            opened.table.record(row, 0, 5000, -1, NOW)
            opened.series.add(slot, 0, 1)
        opened.table.enter(worker, row)
        ready[0] = 1
        signal.pause()

    pid = spawn(work)
    with killed_at_the_end([pid]):
        while not ready[0]:
            time.sleep(0.001)
    opened = open_table(tmp_path, SIZES, boot=1)
    row = opened.table.target(b"target")
    assert (opened.note, opened.shared) == (None, False)
    assert (opened.table.counters(row)[0], opened.series.items()) == (1000, [(b"requests", [1000])])
    assert opened.table.samples(row, NOW) == 1000
    assert opened.table.in_flight(row) == 0
    opened.close()
