"""Where the shared table lives: a file in the state directory, or memory that only the forked workers share.

Owns opening, creating and closing; the words themselves are ``_fast.table``'s. The file is made beside its place and
linked there whole, so nobody ever maps half a header. A file of another layout, or a damaged one, is moved aside
(``table.bin.old``) and reported; it is never repaired, and never a reason not to start.

The rule that must not be broken: ``table.bin`` is never truncated or rewritten in place. Whoever maps it would be
killed by SIGBUS. For the same reason its blocks are reserved when it is made: a full disk must not kill a worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import stat
import tempfile
import time
from pathlib import Path

from .._fast import DEFAULT_SIZES, WORKERS, Series, Sizes, Table, TableError
from ..errors import ConfigError
from ..types import FailureClass

FILE = "table.bin"
OLD = "table.bin.old"
TAU_S = 10.0
"""Decay of the moving averages (Linkerd's default, reliability.md 1.6)."""
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TRIES = 5


def _bits(*classes: FailureClass) -> int:
    return sum(1 << c for c in classes)


ERRORS = _bits(
    FailureClass.CONNECT,
    FailureClass.TIMEOUT,
    FailureClass.TRANSPORT,
    FailureClass.SERVER,
    FailureClass.MALFORMED,
    FailureClass.AUTH,
)
"""Count as errors of a target. 429 and 529 do not: they make it rest (reliability.md Q03)."""
NEUTRAL = _bits(
    FailureClass.CLIENT_ERROR,
    FailureClass.CLIENT_GONE,
    FailureClass.NOT_FOUND,
    FailureClass.PERMISSION,
    FailureClass.CONTEXT,
    FailureClass.CONTENT_FILTER,
)
"""Say nothing about a target (Q03: other 4xx never count)."""


class SharedTable:
    """The open table: ``table`` for targets and workers, ``series`` for metrics.

    ``path`` is ``None`` for memory without a file. ``note`` says what an operator should know (an old file was moved
    aside), else ``None``. ``shared``: another gateway has the same file open, and its workers are in the table too.
    """

    __slots__ = ("_fd", "_memory", "note", "path", "series", "shared", "table")

    def __init__(
        self, memory: mmap.mmap, sizes: Sizes, path: Path | None = None, fd: int = -1, note: str | None = None
    ) -> None:
        self.table = Table(memory, sizes, errors=ERRORS, neutral=NEUTRAL, tau_s=TAU_S, peak=True)
        self.series = Series(self.table)
        self.path = path
        self.note = note
        self.shared = False
        self._memory = memory
        self._fd = fd

    def close(self) -> None:
        """Lets go of memory and file (twice does no harm); what was written is in the file already."""
        self.table.close()
        self._memory.close()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def boot_number(path: Path = BOOT_ID) -> int:
    """Which boot of the machine this is; 0 where nobody can tell (then times in a file are never trusted)."""
    try:
        return int(path.read_text().strip().replace("-", "")[:15], 16)
    except (OSError, ValueError):
        return 0


def open_table(state_dir: Path | None, sizes: Sizes = DEFAULT_SIZES, *, boot: int | None = None) -> SharedTable:
    """The table in ``state_dir`` (made if need be), or without a directory one that forked children inherit.

    Call it once, before the workers fork. When no other gateway has the file open, its workers are dead: what they had
    in flight is taken back. After a new boot the times in the table mean nothing and are forgotten.

    Raises ``ConfigError`` when the directory cannot be used.
    """
    boot = boot_number() if boot is None else boot
    if state_dir is None:
        memory = mmap.mmap(-1, sizes.total)
        Table.format(memory, sizes, created_ns=time.time_ns(), boot=boot)
        return SharedTable(memory, sizes)
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return _open_file(state_dir / FILE, sizes, boot)
    except OSError as error:
        raise ConfigError([f"the state directory {state_dir} cannot be used: {error.strerror or error}"]) from None


def _open_file(path: Path, sizes: Sizes, boot: int) -> SharedTable:
    note = None
    for _ in range(_TRIES):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            _create(path, sizes, boot)
            continue
        try:
            alone = _lock(fd)
            if not _same_file(fd, path):
                os.close(fd)
                continue
            shared = SharedTable(_map(fd, sizes), sizes, path, fd, note)
        except TableError as error:
            path.replace(path.with_name(OLD))  # those who have it open go on with it
            os.close(fd)
            note = f"{path} could not be used ({error}): it is now {OLD}, and all counters begin at zero"
            continue
        except BaseException:
            os.close(fd)
            raise
        _settle(shared, alone, boot)
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH)
        return shared
    raise OSError(f"{path} changes all the time")


def _map(fd: int, sizes: Sizes) -> mmap.mmap:
    seen = os.fstat(fd)
    if not stat.S_ISREG(seen.st_mode):
        raise TableError("not a regular file")
    if seen.st_size != sizes.total:
        raise TableError(f"{seen.st_size} bytes, not {sizes.total}")
    return mmap.mmap(fd, sizes.total)


def _create(path: Path, sizes: Sizes, boot: int) -> None:
    """Makes the file whole (mode 0600) under another name and links it; somebody else's file wins."""
    fd, name = tempfile.mkstemp(prefix=FILE + ".", dir=path.parent)
    try:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(fd, 0, sizes.total)
        else:
            os.ftruncate(fd, sizes.total)
        with mmap.mmap(fd, sizes.total) as memory:
            Table.format(memory, sizes, created_ns=time.time_ns(), boot=boot)
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
    finally:
        os.unlink(name)
        os.close(fd)


def _lock(fd: int) -> bool:
    """Whether nobody else has the file open. The lock lasts as long as any process of ours; the kernel frees it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_SH)
        return False
    return True


def _same_file(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except FileNotFoundError:
        return False


def _settle(shared: SharedTable, alone: bool, boot: int) -> None:
    shared.shared = not alone
    if alone:
        for worker in range(WORKERS):
            shared.table.reap(worker)
        if not boot or shared.table.boot != boot:
            shared.table.forget_times(boot)
