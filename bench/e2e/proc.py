"""The processes of a benchmark: pinned to a core, each in its own session, read from /proc, ended on every way out.

The rule that must not be broken: whatever happens to us (Ctrl-C, SIGTERM, an exception), no process that was started
here is still there afterwards. Hence one stack of processes, signals held back while one is being spawned, and a kill
of the whole group before its leader is reaped (afterwards the number could already belong to somebody else).
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType

START_S = 30.0
ATTEMPT_S = 10.0
STOP_S = 8.0
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.002
TAIL_BYTES = 2000
AMBIENT = ("PORT", "CONFIG_PATH", "ROUTER_POLICY", "MASTER_API_KEY", "ADMIN_TOKEN", "ENABLE_MOCK_PROVIDER")
"""Variables that would make a gateway other than the one that is meant; so would a proxy, so would SLIPSTREAM_*.
PYTHONDONTWRITEBYTECODE would have every start compile the package again."""


class Failed(Exception):
    """A process did not do what it should, or an answer was not the upstream's. The text says which and how."""


class Cores:
    """Which core the proxy has to itself, and which one load and upstream share."""

    def __init__(self) -> None:
        usable = sorted(os.sched_getaffinity(0))
        self.proxy, self.load = usable[0], usable[1 if len(usable) > 1 else 0]
        self.shared = len(usable) < 2

    def take_load(self) -> None:
        """This process keeps off the proxy's core."""
        os.sched_setaffinity(0, {self.load})


class Memory:
    """Of a process tree, in bytes. PSS divides shared pages among those that map them."""

    def __init__(self, pids: Sequence[int]) -> None:
        self.rss = self.pss = 0
        for pid in pids:
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/smaps_rollup").read_text()
                self.rss += _kb(text, "Rss")
                self.pss += _kb(text, "Pss")


def _kb(text: str, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def tree(pid: int) -> list[int]:
    """The process and its descendants."""
    pids, at = [pid], 0
    while at < len(pids):
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pids[at]}/task"):
                children = Path(f"/proc/{pids[at]}/task/{task}/children").read_text().split()
                pids += [int(c) for c in children if int(c) not in pids]
        at += 1
    return pids


def cpu_us(pids: Sequence[int]) -> float:
    """User and system time of all threads so far, from the scheduler's own nanoseconds (not ticks)."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{pid}/task"):
                total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total / 1000


class Running:
    """One command, its output in a file."""

    def __init__(self, name: str, port: int) -> None:
        self.name, self.port = name, port
        self.process: subprocess.Popen[bytes] | None = None
        self.log = Path()
        self.spawned = 0.0

    def start(self, command: Sequence[str], core: int, folder: Path, env: Mapping[str, str]) -> None:
        self.log = folder / f"{self.name}.log"
        kept = {k: v for k, v in os.environ.items() if not _ambient(k)}
        with self.log.open("ab") as out, deferred():
            self.spawned = time.perf_counter()
            self.process = subprocess.Popen(
                ["taskset", "-c", str(core), *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=folder,
                env=kept | dict(env),
                start_new_session=True,
            )

    def first_200(self, request: bytes, within_s: float = START_S) -> float:
        """Milliseconds from the spawn to the first answer with status 200, tried on new connections."""
        head = b"no connection"
        while time.perf_counter() < self.spawned + within_s:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), ATTEMPT_S) as sock:
                sock.sendall(request)
                head = sock.recv(4096)
                if head.startswith(b"HTTP/1.1 200 "):
                    return (time.perf_counter() - self.spawned) * 1000
            self.check()
            time.sleep(POLL_S)
        raise Failed(f"{self.name} gave no 200 within {within_s:.0f} s, last {head[:300]!r}\n{self.tail()}")

    def pids(self) -> list[int]:
        assert self.process is not None
        return tree(self.process.pid)

    def check(self) -> None:
        if self.process is None or self.process.poll() is not None:
            code = None if self.process is None else self.process.returncode
            raise Failed(f"{self.name} has ended ({code})\n{self.tail()}")

    def tail(self) -> str:
        with contextlib.suppress(OSError):
            return self.log.read_bytes()[-TAIL_BYTES:].decode(errors="replace")
        return ""

    def stop(self) -> None:
        if self.process is None or self.process.returncode is not None:
            return
        pid = self.process.pid
        os.kill(pid, signal.SIGTERM)  # not reaped, so the number is still its own
        until = time.monotonic() + STOP_S
        while time.monotonic() < until:
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                break
            time.sleep(0.01)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self.process.wait()


class Stage:
    """A folder and the processes on it; leaving it ends them all, the last one first."""

    def __init__(self, cores: Cores) -> None:
        self.cores = cores
        self._running: list[Running] = []
        self._folder = tempfile.TemporaryDirectory(prefix="slipstream-e2e-")
        self.folder = Path(self._folder.name)

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        with _ignored(*SIGNALS):  # each stop is bounded; an impatient second Ctrl-C would leak
            self.clear()
            self._folder.cleanup()

    def clear(self) -> None:
        while self._running:
            self._running[-1].stop()
            self._running.pop()

    def spawn(
        self, name: str, port: int, command: Sequence[str], core: int, env: Mapping[str, str] | None = None
    ) -> Running:
        running = Running(name, port)
        self._running.append(running)
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        running.start(command, core, folder, env or {})
        return running


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def open_files(wanted: int) -> int:
    """Raise the limit for us and our children as far as allowed, at most to ``wanted``; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
        if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard), hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _ambient(name: str) -> bool:
    return (
        name in AMBIENT
        or name == "PYTHONDONTWRITEBYTECODE"
        or name.startswith("SLIPSTREAM_")
        or name.upper().endswith("_PROXY")
    )


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """Signals wait: a child that nobody knows yet could not be ended."""
    came: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)

    old = {number: signal.signal(number, remember) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for number in came[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def _ignored(*numbers: signal.Signals) -> Iterator[None]:
    old = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
