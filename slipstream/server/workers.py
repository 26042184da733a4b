"""Several serving processes on one listening socket: a small supervisor.

The parent binds once, forks the workers and serves nothing itself. All workers accept from the same socket, so a worker
that dies takes no waiting connection with it, and one that hangs holds nobody up. A worker that ends by itself is
started again: at once the first time, then with a growing pause.

Each worker has a slot of the shared table. The parent claims it before the fork and takes it back (``Table.reap``) when
it has seen the worker end, so nobody else can get it in between, and what was in flight on a killed worker is no longer
counted. The workers hold the reading end of a pipe that nobody writes to: at its end they know that the parent is dead.

The rule that must not be broken: the parent never blocks but in ``select``, so that no signal waits.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..obs.families import WORKER_RESTARTS
from ..obs.metrics import Metrics
from ..state.table import SharedTable
from .acceptor import Loads

log = logging.getLogger("slipstream.workers")
RESTART_BASE_S = 0.1
RESTART_MAX_S = 5.0
QUICK_DEATH_S = 5.0
"""A worker that lives shorter than this makes the next pause longer."""
BACKLOG = 4096
HURRY_S = 2.0
"""After the second signal a worker that is still there is killed."""
SIGNALLED = 128
"""And the number of a signal: the exit code of who ended at once because of it (POSIX shells, ``$?``)."""
STOPS = frozenset({signal.SIGTERM, signal.SIGINT})
SIGNALS = STOPS | {signal.SIGHUP, signal.SIGCHLD}
NEVER = float("inf")


def bind(host: str, port: int, *, share: bool = False) -> socket.socket:
    """A listening socket, inherited by forked workers. ``port`` 0 picks a free one. Raises ``OSError``.

    ``share``: the next gateway of this user may listen on the same port before this one ends (a rolling restart);
    see ``taken`` for how it knows.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share and hasattr(socket, "SO_REUSEPORT"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


def taken(host: str, port: int) -> bool:
    """Whether somebody listens on this port already."""
    if not port:
        return False
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return True
    return False


def restart_pause_s(quick_deaths: int) -> float:
    """How long to wait after so many quick deaths in a row: not at all, then 0.1 s doubling to 5 s."""
    return 0.0 if quick_deaths <= 1 else min(RESTART_BASE_S * 2.0 ** min(quick_deaths - 2, 16), RESTART_MAX_S)


@dataclass(slots=True)
class Seat:
    """The place of one worker, whoever sits on it. ``slot``: in the shared table, -1 while nobody does."""

    number: int
    slot: int = -1
    pid: int = 0
    born: float = 0.0
    due: float = 0.0
    """When the next worker is to be started, if there is none."""
    quick_deaths: int = 0

    def died(self, now: float) -> None:
        self.quick_deaths = self.quick_deaths + 1 if now - self.born < QUICK_DEATH_S else 0
        self.pid, self.slot = 0, -1
        self.due = now + restart_pause_s(self.quick_deaths)


@dataclass(frozen=True, slots=True)
class Place:
    """What a worker is told: its slot in the shared table, the reading end of a pipe that ends when the parent is dead,
    its seat and the loads of all.
    """

    slot: int
    lifeline: int
    seat: int
    loads: Loads


@dataclass
class Supervisor:
    """Runs ``serve`` (returns an exit code) in ``count`` forked processes, which share ``sock`` and ``shared``.

    ``reload`` runs in the parent at SIGHUP, before the workers are told: so that a worker started later gets the new
    configuration too, and none is told when it cannot be used (``False``). ``drain_s`` is how long workers may take to
    end; after it they are killed.
    """

    count: int
    serve: Callable[[Place], int]
    sock: socket.socket
    shared: SharedTable
    reload: Callable[[], bool]
    drain_s: float
    _seats: list[Seat] = field(default_factory=list)
    _stopping: bool = False
    _code: int = 0
    _kill_at: float = NEVER
    _lifeline: tuple[int, int] = (-1, -1)

    def __post_init__(self) -> None:
        self._metrics = Metrics(self.shared.series)
        self._loads = Loads(self.count)

    def run(self) -> int:
        """Returns the exit code after a stop signal, when every worker has ended: 0, or after a second signal 128 and
        its number."""
        self._seats = [Seat(number) for number in range(self.count)]
        self._lifeline = os.pipe()
        gc.collect()
        gc.freeze()  # collections in the workers leave the pages of what was there before alone
        with _Wakeups() as wakeups:
            while True:
                now = time.monotonic()
                self._collect(now)
                if self._stopping and not any(seat.pid for seat in self._seats):
                    return self._code
                if now >= self._kill_at:
                    log.error("workers did not end in time and are killed")
                    self._kill_at = NEVER
                    self._send(signal.SIGKILL)
                for seat in self._seats:
                    if not seat.pid and seat.due <= now and not self._stopping:
                        self._start(seat, wakeups)
                for number in wakeups.wait(self._pause_s()):
                    self._handle(number)

    def _pause_s(self) -> float | None:
        """Until something is due; ``None`` if nothing is."""
        due = [self._kill_at, *(s.due for s in self._seats if not s.pid and not self._stopping)]
        return max(0.0, min(due) - time.monotonic()) if min(due) < NEVER else None

    # ------------------------------------------------------------------ signals
    def _handle(self, number: int) -> None:
        now = time.monotonic()
        if number == signal.SIGHUP and not self._stopping:
            try:
                good = self.reload()
            except Exception:  # it must not end the gateway
                log.exception("configuration not reloaded")
                good = False
            if good:
                self._send(signal.SIGHUP)
        elif number in STOPS and not self._stopping:
            self._stopping = True
            self._kill_at = now + self.drain_s
            self._loads.end()
            self._send(signal.SIGTERM)
            self.sock.close()  # as long as anybody holds one, the kernel takes connections that nobody will serve
        elif number in STOPS:
            self._code = SIGNALLED + number
            self._kill_at = min(self._kill_at, now + HURRY_S)
            # a signal of its own: terminals and systemd send theirs to parent and workers, and ours comes on top
            self._send(signal.SIGQUIT)

    def _send(self, number: int) -> None:
        for seat in self._seats:
            if seat.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(seat.pid, number)

    # ------------------------------------------------------------------ workers
    def _start(self, seat: Seat, wakeups: _Wakeups) -> None:
        slot = self.shared.table.claim_worker(os.getpid(), time.monotonic_ns())
        seat.born = time.monotonic()
        if slot < 0:
            log.error("no worker started: the shared table has no free slot")
            seat.due = seat.born + RESTART_MAX_S
            return
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none is lost on the way to the right handler
        pid = os.fork()
        if pid:
            seat.pid, seat.slot = pid, slot
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return
        code = 1
        try:
            wakeups.forget()
            os.close(self._lifeline[1])
            # SIGHUP waits until the worker listens for it (``Process``): by default it kills
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - {signal.SIGHUP})
            code = self.serve(Place(slot, self._lifeline[0], seat.number, self._loads))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        except BaseException:
            log.exception("worker failed")
        finally:
            try:
                logging.shutdown()  # the last lines
            finally:
                os._exit(code)

    def _collect(self, now: float) -> None:
        """Look who has ended."""
        for seat in self._seats:
            if not seat.pid:
                continue
            pid, status = os.waitpid(seat.pid, os.WNOHANG)
            if not pid:
                continue
            lost = self.shared.table.reap(seat.slot)
            seat.died(now)
            self._loads.gone(seat.number)
            if not self._stopping:
                self._metrics.count(WORKER_RESTARTS)
                fields = {"pid": pid, "status": os.waitstatus_to_exitcode(status), "in_flight": lost}
                log.error("worker ended", extra={"fields": fields})


class _Wakeups:
    """Signals as bytes of a pipe: they end a ``select``, and are handled in its turn instead of in the middle."""

    def __enter__(self) -> _Wakeups:
        self._read, self._write = os.pipe()
        os.set_blocking(self._read, False)
        os.set_blocking(self._write, False)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for number in SIGNALS:
            signal.signal(number, lambda *_: None)
        return self

    def __exit__(self, *_: object) -> None:
        self.forget()

    def forget(self) -> None:
        """Signals do again what they do by default."""
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)

    def wait(self, timeout_s: float | None) -> Iterator[int]:
        """The signals that came, after at most ``timeout_s``."""
        if select.select([self._read], [], [], timeout_s)[0]:
            yield from os.read(self._read, 4096)
