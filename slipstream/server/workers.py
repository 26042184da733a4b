"""Several serving processes on one listening socket: a small supervisor.

The parent binds once, forks the workers and serves nothing itself. All workers accept from the same socket, so a worker
that dies takes no waiting connection with it. A worker that ends by itself is started again, with a growing pause when
it does so at once. SIGTERM and SIGINT are passed on and waited for; SIGHUP is passed on.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable

log = logging.getLogger("slipstream.workers")
RESTART_BASE_S = 0.1
RESTART_MAX_S = 5.0
QUICK_DEATH_S = 5.0
"""A worker that lives shorter than this makes the next pause longer."""
BACKLOG = 4096
SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, inherited by forked workers. ``port`` 0 picks a free one. Raises ``OSError``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock


class Supervisor:
    """Runs ``serve`` (a function that returns an exit code) in ``count`` forked processes, which share ``sock``.

    The parent closes its own handle of ``sock`` when it is told to stop: as long as anybody holds one, the kernel takes
    connections that nobody will serve. ``on_reload`` runs in the parent at SIGHUP, so that a worker started later gets
    the new configuration too.
    """

    def __init__(
        self,
        count: int,
        serve: Callable[[], int],
        sock: socket.socket,
        on_reload: Callable[[], None] = lambda: None,
    ) -> None:
        self._count = count
        self._serve = serve
        self._sock = sock
        self._on_reload = on_reload
        self._born: dict[int, float] = {}
        self._stopping = False

    def run(self) -> int:
        """Returns 0 after a stop signal, when every worker has ended."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hup)
        for _ in range(self._count):
            self._fork()
        pause = RESTART_BASE_S
        while self._born:
            try:
                pid, status = os.wait()
            except InterruptedError:
                continue
            lived = time.monotonic() - self._born.pop(pid, 0.0)
            if self._stopping:
                continue
            log.error("worker ended", extra={"fields": {"pid": pid, "status": os.waitstatus_to_exitcode(status)}})
            pause = min(pause * 2, RESTART_MAX_S) if lived < QUICK_DEATH_S else RESTART_BASE_S
            time.sleep(pause)
            if not self._stopping:
                self._fork()
        return 0

    def _fork(self) -> None:
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # none is lost on the way to the right handler
        pid = os.fork()
        if pid:
            self._born[pid] = time.monotonic()
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
            return
        code = 1
        try:
            for number in SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            # SIGHUP waits until the worker listens for it (``Process``): by default it kills
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS - {signal.SIGHUP})
            code = self._serve()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            os._exit(code)

    def _on_stop(self, number: int, _frame: object) -> None:
        self._stopping = True
        self._sock.close()
        self._send(number)

    def _on_hup(self, number: int, _frame: object) -> None:
        self._on_reload()
        self._send(number)

    def _send(self, number: int) -> None:
        for pid in list(self._born):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
