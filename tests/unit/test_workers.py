"""The parts of the supervisor that need no process: processors, pauses, loads, drain times, shared turns."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from pathlib import Path

import pytest

from slipstream._fast import COMPILED
from slipstream.config.snapshot import ProviderSpec, RoutingSpec, ServerSpec, Snapshot
from slipstream.errors import ConfigError, ShuttingDown
from slipstream.resilience.watchdog import Deadlines, Watchdog
from slipstream.routing.table import RouteTable, turns_key
from slipstream.server import acceptor, cpus
from slipstream.server.acceptor import NOBODY, Loads
from slipstream.server.cpus import auto_workers, usable_cpus
from slipstream.server.drain import Drain
from slipstream.server.workers import QUICK_DEATH_S, Seat, restart_pause_s
from slipstream.state.table import SharedTable, open_table
from slipstream.types import Secret
from tests.aio import run

# ------------------------------------------------------------------ processors


def group(root: Path, path: str, **files: str) -> None:
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)


def usable(root: Path, own: str) -> int:
    (root / "own").write_text(own)
    return usable_cpus(root / "fs", root / "own")


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("quota", "count"),
    [
        ("max 100000\n", 16), ("400000 100000\n", 4), ("250000 100000\n", 2), ("50000 100000\n", 1),
        ("9000000 100000\n", 16), ("25000 10000\n", 2), ("", 16), ("nonsense\n", 16), ("100000 0\n", 16),
        ("0 100\n", 16),
    ],
)  # fmt: skip
def test_cpu_max(tmp_path: Path, quota: str, count: int) -> None:
    group(tmp_path / "fs", "a/b", cpu__max=quota)
    assert usable(tmp_path, "0::/a/b\n") == count


@pytest.mark.usefixtures("sixteen")
def test_every_group_on_the_way_up_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs", "pod/container", cpu__max="max 100000")
    group(tmp_path / "fs", "pod", cpu__max="300000 100000")
    assert usable(tmp_path, "0::/pod/container\n") == 3
    assert usable(tmp_path, "0::/pod/another/that/is/not/mounted\n") == 3
    group(tmp_path / "fs", "", cpu__max="200000 100000")
    assert usable(tmp_path, "0::/\n") == 2, "in a container the root is the group itself"
    group(tmp_path, "", cpu__max="100000 100000")
    assert usable(tmp_path, "0::/\n") == 2, "nothing above the mount is looked at"


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize("folder", ["cpu", "cpu,cpuacct"])
def test_version_1(tmp_path: Path, folder: str) -> None:
    own = "9:name=systemd:/\n4:memory:/x\n2:cpu,cpuacct:/docker/7\n0::/\n"
    assert usable(tmp_path, own) == 16
    group(tmp_path / "fs", f"{folder}/docker/7", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    assert usable(tmp_path, own) == 16
    group(tmp_path / "fs", f"{folder}/docker/7", cpu__cfs_quota_us="500000\n")
    assert usable(tmp_path, own) == 5


@pytest.mark.usefixtures("sixteen")
def test_no_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert usable_cpus(tmp_path, tmp_path / "none") == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert usable_cpus(tmp_path, tmp_path / "none") == 1


def test_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpus, "usable_cpus", lambda: 500)
    assert auto_workers() == (32 if COMPILED else 1)


# ------------------------------------------------------------------ restarts


def test_pauses() -> None:
    assert [restart_pause_s(n) for n in range(9)] == [0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert restart_pause_s(10_000) == 5.0


def test_the_first_restart_is_immediate() -> None:
    seat = Seat(0, slot=3, pid=77)
    seat.died(QUICK_DEATH_S + 1)
    assert (seat.pid, seat.slot, seat.due, seat.quick_deaths) == (0, -1, QUICK_DEATH_S + 1, 0)
    dues = []
    for _ in range(4):
        seat.born, seat.pid = seat.due, 77
        seat.died(seat.born + 1)
        dues.append(round(seat.due - seat.born - 1, 3))
    assert dues == [0, 0.1, 0.2, 0.4]
    seat.born = seat.due
    seat.died(seat.born + QUICK_DEATH_S)
    assert seat.quick_deaths == 0, "it has served well"


# ------------------------------------------------------------------ loads


def test_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100_000_000_000
    monkeypatch.setattr(acceptor.time, "monotonic_ns", lambda: now)
    loads = Loads(3)
    assert loads.least(0) == NOBODY
    loads.tell(0, 1)
    loads.tell(1, 5)
    loads.tell(2, 7)
    assert [loads.least(seat) for seat in range(3)] == [5, 1, 1]
    loads.gone(0)
    assert loads.least(2) == 5
    assert not loads.ending
    loads.end()
    assert loads.ending
    now += 2_000_000_000
    loads.tell(2, 9)
    now += 2_000_000_000
    assert loads.least(0) == 9, "nobody waits for one that is frozen"


# ------------------------------------------------------------------ the end


def test_drain_times() -> None:
    assert Drain.from_environment({}) == Drain(0.0, 30.0)
    env = {"SLIPSTREAM_DRAIN_DELAY_S": "5", "SLIPSTREAM_DRAIN_DEADLINE_S": "0.5"}
    assert Drain.from_environment(env) == Drain(5.0, 0.5)
    env = {"SLIPSTREAM_DRAIN_DELAY_S": "soon", "SLIPSTREAM_DRAIN_DEADLINE_S": "-1"}
    with pytest.raises(ConfigError) as caught:
        Drain.from_environment(env)
    assert [problem.split(": ")[1] for problem in caught.value.problems] == list(env)
    with pytest.raises(ConfigError):
        Drain.from_environment({"SLIPSTREAM_DRAIN_DELAY_S": "nan"})


def test_attempts_are_cut() -> None:
    async def main() -> None:
        deadlines = Deadlines(asyncio.get_running_loop())

        async def attempt() -> None:
            with Watchdog(deadlines, deadlines.time() + 100, 100) as dog:
                dog.arm("idle", 50)
                await asyncio.sleep(10)

        running = [asyncio.create_task(attempt()) for _ in range(2)]
        await asyncio.sleep(0)
        assert deadlines.cut() == 2
        for task in (*running, asyncio.create_task(attempt())):  # the third begins after the end
            with pytest.raises(ShuttingDown):
                await asyncio.wait_for(task, 5)
            assert task.cancelling() == 0
        assert deadlines.cut() == 0

    run(main())


# ------------------------------------------------------------------ turns


def provider(name: str, weight: int, **fields: tuple[str, ...]) -> ProviderSpec:
    return ProviderSpec(name, "openai", "http://x/v1", Secret("k"), weight=weight, **fields)  # type: ignore[arg-type]


def routes(shared: SharedTable, *specs: ProviderSpec) -> RouteTable:
    return RouteTable(
        Snapshot(ServerSpec(), RoutingSpec(), specs), lambda name: shared.table.target(name.encode()), shared.table
    )


def always(_row: int, _now_ns: int) -> bool:
    return True


@pytest.mark.parametrize(("models", "asked"), [(("m",), "mm"), ((), "mn"), ((), "nm")])
def test_workers_take_turns_together(models: tuple[str, ...], asked: str) -> None:
    """Whoever is asked, and for whichever model of the pool: the order is that of one round robin."""
    shared = open_table(None)
    specs = provider("a", 2, models=models), provider("b", 1, models=models)
    workers = [routes(shared, *specs) for _ in range(3)]
    workers[1].find("m")  # workers see the names in another order
    chosen = []
    for i in range(30):
        pool = workers[i % 3].find(asked[i % 2])
        assert pool is not None
        target = pool.choose(frozenset(), always, 1.0)
        assert target is not None
        chosen.append(target.provider.name)
    assert chosen == ["a", "b", "a"] * 10
    counts = Counter(chosen)
    assert (counts["a"], counts["b"]) == (20, 10)


def test_keys_of_turns() -> None:
    shared = open_table(None)
    pool = routes(shared, provider("a", 1), provider("b", 1)).find("m")
    assert pool is not None
    assert turns_key("gpt", pool.targets) == b"=gpt"
    assert turns_key(None, pool.targets) == b"*%d,%d" % (pool.targets[0].row, pool.targets[1].row)
    long = {turns_key("x" * 300 + end, pool.targets) for end in "ab"}
    assert len(long) == 2
    assert all(len(key) <= 208 for key in long)
