"""Log lines leave by a thread: whoever logs never waits, and what is lost is counted (R45, Q45, S-93, S-94)."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from slipstream.obs import writer
from slipstream.obs.writer import WRITE_BYTES, QueueHandler
from tests.pace import soon

Handlers = Callable[..., QueueHandler]


def record(text: str) -> logging.LogRecord:
    return logging.LogRecord("slipstream.x", logging.INFO, __file__, 1, text, (), None)


def lost(handler: QueueHandler) -> int:
    return sum(handler.losses)  # type: ignore[attr-defined]


@pytest.fixture
def handlers() -> Iterator[Handlers]:
    made: list[QueueHandler] = []

    def make(fd: int) -> QueueHandler:
        losses: list[int] = []
        handler = QueueHandler(fd, losses.append)
        handler.losses = losses  # type: ignore[attr-defined]
        made.append(handler)
        return handler

    yield make
    for handler in made:
        handler.before_fork()
        handler.close()
        assert handler._thread is None


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """Of one page."""
    reader, writer_ = os.pipe()
    fcntl.fcntl(writer_, fcntl.F_SETPIPE_SZ, 4096)
    yield reader, writer_
    os.close(writer_)


def drained(reader: int, until: bytes) -> bytes:
    data = b""
    while not data.endswith(until):
        data += os.read(reader, 65_536)
    return data


def test_lines_come_whole_and_in_order(handlers: Handlers, tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        handler = handlers(file.fileno())
        assert handler._thread is None, "no line, no thread"
        for number in range(500):
            handler.handle(record(f"line {number} é"))
        handler.flush()
        assert (tmp_path / "log").read_text().splitlines() == [f"line {n} é" for n in range(500)]
        assert lost(handler) == 0
        assert handler._bytes_in == handler._bytes_out


def test_what_a_pipe_takes_in_one_piece_is_written_in_one(
    handlers: Handlers, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines of several workers into one pipe stay apart (POSIX, write: up to PIPE_BUF bytes)."""
    sizes: list[bytes] = []
    held = threading.Event()
    write = os.write

    def slow(fd: int, data: bytes) -> int:
        held.wait(5)
        sizes.append(data)
        return write(fd, data)

    monkeypatch.setattr(writer.os, "write", slow)
    handler = handlers(pipe[1])
    lines = ["x" * size for size in (10, *[300] * 40, 2 * WRITE_BYTES, 10)]
    for line in lines:
        handler.handle(record(line))
    held.set()
    got = drained(pipe[0], b"x\n" + b"x" * 10 + b"\n")
    os.close(pipe[0])
    assert got.decode().splitlines() == lines
    assert all(len(data) <= WRITE_BYTES or data.count(b"\n") == 1 for data in sizes)
    assert all(data.endswith(b"\n") for data in sizes)
    assert len(sizes) < 10, "and few writes"


def test_nobody_reads(handlers: Handlers, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """S-94: the queue has a bound in lines and in bytes; what is beyond is counted, and nobody waits."""
    monkeypatch.setattr(writer, "MAX_LINES", 50)
    monkeypatch.setattr(writer, "FLUSH_S", 0.02)
    handler = handlers(pipe[1])
    start = time.monotonic()
    for number in range(1000):
        handler.handle(record(f"line {number:04} " + "x" * 89))
    handler.flush()
    assert soon(time.monotonic() - start, 1.0)
    gone = lost(handler)
    assert 1000 - 50 - 3 * 4096 // 100 <= gone <= 1000 - 50
    monkeypatch.setattr(writer, "MAX_BYTES", 1000)
    handler.handle(record("one more"))
    assert lost(handler) == gone + 1, "bytes beyond the bound"
    got = b""
    while got.count(b"\n") < 1000 - gone:
        got += os.read(pipe[0], 65_536)
    assert got.startswith(b"line 0000 ")
    handler.flush()
    handler.handle(record("and it goes on"))
    assert drained(pipe[0], b"on\n") == b"and it goes on\n"
    os.close(pipe[0])


def test_a_reader_that_is_gone(handlers: Handlers, pipe: tuple[int, int]) -> None:
    """EPIPE: counted, each line."""
    os.close(pipe[0])
    handler = handlers(pipe[1])
    for number in range(20):
        handler.handle(record(str(number)))
    handler.flush()
    assert lost(handler) == 20


def test_a_full_disk_tears_no_later_line(handlers: Handlers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """S-93: half a line got through before the disk was full; the next one begins on a line of its own."""
    write, room = os.write, 25

    def full(fd: int, data: bytes) -> int:
        nonlocal room
        if room <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = write(fd, data[:room])
        room -= done
        return done

    monkeypatch.setattr(writer.os, "write", full)
    with (tmp_path / "log").open("wb") as file:
        handler = handlers(file.fileno())
        for number in range(4):
            handler.handle(record(f"a line {number}"))
        handler.flush()
        assert lost(handler) == 2
        handler.handle(record("nothing of this"))
        handler.flush()
        assert lost(handler) == 3
        room = 1000
        handler.handle(record("well"))
        handler.handle(record("again"))
        handler.flush()
    assert (tmp_path / "log").read_text().splitlines() == ["a line 0", "a line 1", "a line ", "well", "again"]
    assert lost(handler) == 3


def test_a_descriptor_that_does_not_block_is_waited_for(handlers: Handlers, pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[1], False)
    handler = handlers(pipe[1])
    for _ in range(200):
        handler.handle(record("x" * 99))
    got = b""
    while len(got) < 200 * 100:
        got += os.read(pipe[0], 65_536)
    os.close(pipe[0])
    assert got == (b"x" * 99 + b"\n") * 200
    assert lost(handler) == 0


def test_a_child_has_a_queue_and_a_thread_of_its_own(handlers: Handlers, tmp_path: Path) -> None:
    """The parent's thread ends before the fork, and a line of either is written once."""
    with (tmp_path / "log").open("wb") as file:
        handler = handlers(file.fileno())
        handler.handle(record("before"))
        pid = os.fork()
        if not pid:
            code = 1
            try:
                assert handler._thread is None
                assert handler._bytes_in == 0
                handler.handle(record("child"))
                handler.flush()
                code = 0
            finally:
                os._exit(code)
        assert handler._thread is None
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        handler.handle(record("after"))
        handler.flush()
    assert (tmp_path / "log").read_text().splitlines() == ["before", "child", "after"]


def test_a_thread_that_cannot_write_outlives_the_wait(
    handlers: Handlers, pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor starts a worker although nobody reads its log (S-94), and its lines come in the end."""
    monkeypatch.setattr(writer, "FORK_S", 0.02)
    handler = handlers(pipe[1])
    for _ in range(3):
        handler.handle(record("x" * 4000))
    start = time.monotonic()
    handler.before_fork()
    assert soon(time.monotonic() - start, 1.0)
    assert handler._thread is not None
    handler.handle(record("last"))
    assert drained(pipe[0], b"last\n").count(b"\n") == 4
    os.close(pipe[0])
    monkeypatch.setattr(writer, "FORK_S", 5.0)


def test_what_cannot_be_formatted_is_counted(handlers: Handlers, pipe: tuple[int, int]) -> None:
    """``logging`` would print the record raw, in the loop."""
    handler = handlers(pipe[1])
    handler.handle(logging.LogRecord("a", logging.INFO, __file__, 1, "%d", ("x",), None))
    assert lost(handler) == 1
    os.close(pipe[0])


def test_a_closed_table_counts_nothing(pipe: tuple[int, int]) -> None:
    def closed(_: int) -> None:
        raise ValueError("the table is closed")

    handler = QueueHandler(pipe[1], closed)
    handler.handle(logging.LogRecord("a", logging.INFO, __file__, 1, "%d", ("x",), None))
    os.close(pipe[0])
