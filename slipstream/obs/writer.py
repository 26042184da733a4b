"""Log lines leave by a thread: neither a full disk nor a pipe that nobody reads makes a request wait (R45, Q45, S-93,
S-94).

``QueueHandler`` makes the line where it is logged and puts it into a queue; the thread, which begins with the first
line, writes whole lines to a file descriptor. What finds no place in the queue, and what could not be written, is
counted and gone. A process that logs nothing has no thread. A forked child begins with an empty queue and, when it
logs, a thread of its own; the parent's thread ends before the fork, unless it cannot write.

The rule that must not be broken: whoever logs never waits for the descriptor.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from weakref import WeakSet

MAX_LINES = 10_000
"""Lines in the queue (S-94)."""
MAX_BYTES = 16 << 20
"""Bytes in the queue: a line with a traceback is 50 times as long as another."""
WRITE_BYTES = getattr(select, "PIPE_BUF", 512)
"""Lines are written together up to so many bytes: a pipe takes these in one piece, and lines of several workers stay
apart (POSIX, ``write``). A longer line has a write of its own."""
FLUSH_S = 0.5
"""How long the end of a process waits for its last lines."""
FORK_S = 0.1
"""How long a fork waits for them."""
RETRY_S = 1.0
"""How long a descriptor that does not block is waited for at a time."""


class QueueHandler(logging.Handler):
    """Writes to ``fd`` behind the caller's back. ``dropped`` is told how many lines were lost, from any thread."""

    def __init__(self, fd: int, dropped: Callable[[int], None] | None = None) -> None:
        super().__init__()
        self.fd = fd
        self.dropped = dropped
        self.begin()
        _HANDLERS.add(self)

    def begin(self) -> None:
        """Forget what is queued: it is another process's."""
        self._queue: SimpleQueue[bytes | threading.Event] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._end: threading.Event | None = None
        self._torn = False
        self._bytes_in = 0
        self._bytes_out = 0

    # ------------------------------------------------------------------ whoever logs
    def emit(self, record: logging.LogRecord) -> None:
        """Never raises and never waits. The handler's lock is held."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # logging would print the record raw, and wait for it
            self._lost(1)
            return
        waiting = self._bytes_in - self._bytes_out
        if self._queue.qsize() >= MAX_LINES or (waiting and waiting + len(line) > MAX_BYTES):
            self._lost(1)
            return
        self._bytes_in += len(line)
        self._queue.put(line)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="slipstream-log", daemon=True)
            with contextlib.suppress(RuntimeError):  # no more threads to be had: the next line tries again
                thread.start()
                self._thread = thread

    def flush(self) -> None:
        """Wait until what was logged so far is written or lost, for ``FLUSH_S`` at most. ``logging`` calls it at the
        end of the process."""
        if self._thread is not None:
            written = threading.Event()
            self._queue.put(written)
            written.wait(FLUSH_S)

    def before_fork(self) -> None:
        """End the thread when all is written. One that cannot write goes on: it holds nothing that a child needs."""
        with self._locked():
            thread = self._thread
            if thread is None:
                return
            self._end = end = threading.Event()
            self._queue.put(end)
        if end.wait(FORK_S):
            thread.join(FORK_S)
        with self._locked():
            self._end = None

    # ------------------------------------------------------------------ the thread
    def _run(self) -> None:
        queue = self._queue
        held: bytes | threading.Event | None = None
        while True:
            item = held if held is not None else queue.get()
            held = None
            if isinstance(item, threading.Event):
                if self._ends(item):
                    return
                continue
            lines = [item]
            size = len(item)
            while held is None and not queue.empty():
                more = queue.get()
                if isinstance(more, bytes) and size + len(more) <= WRITE_BYTES:
                    lines.append(more)
                    size += len(more)
                else:
                    held = more
            self._write(lines)
            self._bytes_out += size

    def _ends(self, mark: threading.Event) -> bool:
        """All before the mark is written; whether the thread ends here."""
        ends = False
        if mark is self._end:  # else the lock is let alone: who waits for the mark may hold it
            with self._locked():
                ends = mark is self._end and self._queue.empty()
                if ends:
                    self._thread = None
        mark.set()
        return ends

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        if self._torn:
            data = b"\n" + data
        done = 0
        try:
            while done < len(data):
                try:
                    done += os.write(self.fd, data[done:] if done else data)
                except BlockingIOError:
                    select.select([], [self.fd], [], RETRY_S)
        except (OSError, ValueError):  # a full disk, a pipe without a reader; a descriptor beyond select's
            whole = data[:done].count(b"\n") - (self._torn and done > 0)
            self._lost(len(lines) - whole)
        if done:
            self._torn = not data.endswith(b"\n", 0, done)

    def _lost(self, lines: int) -> None:
        if self.dropped is not None:
            with contextlib.suppress(ValueError):  # the shared table is closed: the process ends
                self.dropped(lines)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self.acquire()
        try:
            yield
        finally:
            self.release()


_HANDLERS: WeakSet[QueueHandler] = WeakSet()


def _before_fork() -> None:
    for handler in list(_HANDLERS):
        handler.before_fork()


def _in_child() -> None:
    for handler in list(_HANDLERS):
        handler.begin()


os.register_at_fork(before=_before_fork, after_in_child=_in_child)
