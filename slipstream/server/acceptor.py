"""Accepting from a listening socket that several workers share, so that each gets its part of the connections.

The event loop's own server takes whatever waits, so the worker that wakes first has them all (measured: 64 of 64). Here
a worker takes one connection at a time, and when it has more than the least loaded worker it looks away for a
millisecond first: if nobody else has taken the connection by then, it does. A worker that hangs or is dead holds nobody
up for longer than that, since all wait on the same queue.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import mmap
import socket
import struct
import sys
import time
from array import array
from collections.abc import Callable
from typing import Final, Protocol

log = logging.getLogger("slipstream.workers")
LOOK_AWAY_S: Final = 0.001
SLACK: Final = 1
"""Connections that a worker may have more than the least loaded one."""
TELL_S: Final = 1.0
FROZEN_S: Final = 3.0
"""Who has not told its load for this long takes no connections now."""
NO_FILES_S: Final = 0.1
LATE_S: Final = 0.5
SO_ATTACH_FILTER: Final = 26
NO_SYN: Final = ((0x30, 0, 0, 13), (0x54, 0, 0, 0x12), (0x15, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))
"""Classic BPF over the TCP header: drop what has SYN and not ACK among its flags, let all else pass."""
NOBODY: Final = (1 << 63) - 1
BATCH: Final = 64

Factory = Callable[[], asyncio.Protocol]


class Listening(Protocol):
    """What a listener needs of that on which it listens (``asyncio.Server`` is one)."""

    @property
    def sockets(self) -> tuple[socket.socket, ...]: ...
    def close(self) -> None: ...


Accept = Callable[[Factory], Listening]


def turn_away(sock: socket.socket) -> None:
    """Drop new connections before they are made (Linux; elsewhere nothing happens). The client's system tries again
    after a second, and then finds the next gateway on this port, or nobody.
    """
    if sys.platform == "linux":
        program = array("B", b"".join(struct.pack("HBBI", *step) for step in NO_SYN))
        with contextlib.suppress(OSError):
            sock.setsockopt(
                socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HL", len(NO_SYN), program.buffer_info()[0])
            )


class Loads:
    """Connections of each worker, in memory that they share: two words each, the number and when it was told (ns). One
    more word says that all of them end.
    """

    def __init__(self, workers: int) -> None:
        self._words = memoryview(mmap.mmap(-1, 16 * workers + 8)).cast("Q")
        self._seats = range(0, 2 * workers, 2)
        for seat in range(workers):
            self.gone(seat)

    @property
    def ending(self) -> bool:
        return bool(self._words[-1])

    def end(self) -> None:
        self._words[-1] = 1

    def tell(self, seat: int, connections: int) -> None:
        self._words[2 * seat] = connections
        self._words[2 * seat + 1] = time.monotonic_ns()

    def gone(self, seat: int) -> None:
        self._words[2 * seat] = NOBODY

    def least(self, but: int) -> int:
        """The smallest number of connections of any other worker that is well; ``NOBODY`` if there is none."""
        words, alive = self._words, time.monotonic_ns() - int(FROZEN_S * 1e9)
        return min((words[i] for i in self._seats if i != 2 * but and words[i + 1] > alive), default=NOBODY)


class Acceptor:
    """Accepts from ``sock`` for one process. ``loads`` (with its ``seat``): it has siblings. ``connections`` says how
    many it has.
    """

    def __init__(
        self, sock: socket.socket, factory: Factory, connections: Callable[[], int], loads: Loads | None, seat: int
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._factory = factory
        self._connections = connections
        self._loads = loads
        self._seat = seat
        self._looked_away = False
        self._last = -LATE_S
        self._tasks: set[asyncio.Task[object]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._teller: asyncio.TimerHandle | None = None
        if loads is not None:
            self._tell(loads)
        self._listen()

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return (self._sock,)

    def close(self) -> None:
        """Accept no more."""
        if self._sock.fileno() < 0:
            return
        self._loop.remove_reader(self._sock.fileno())
        for timer in (self._timer, self._teller):
            if timer is not None:
                timer.cancel()
        self._sock.close()

    async def finish(self, last: bool, handshakes_s: float = 0.0) -> None:
        """Accept no more. Returns when the latest connections had their moment to send a request: a client that has
        just connected cannot know that we end.

        ``last``: nobody goes on with this socket. When it is closed the kernel resets the connections that it has made
        and nobody accepted, so these are taken. ``handshakes_s``: no new ones are let in, and those that are half made
        are waited for so long.
        """
        if last:
            self._loop.remove_reader(self._sock.fileno())
            if handshakes_s:
                turn_away(self._sock)
                await asyncio.sleep(handshakes_s)
            while self._take():
                pass
        self.close()
        await asyncio.sleep(max(0.0, self._last + LATE_S - self._loop.time()))

    def _tell(self, loads: Loads) -> None:
        loads.tell(self._seat, self._connections())
        self._teller = self._loop.call_later(TELL_S, self._tell, loads)

    def _listen(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock.fileno(), self._ready)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._sock.fileno())
        self._timer = self._loop.call_later(seconds, self._listen)

    def _ready(self) -> None:
        if self._loads is None:
            for _ in range(BATCH):
                if not self._take():
                    return
            return
        mine = self._connections() + len(self._tasks)
        self._loads.tell(self._seat, mine)
        if not self._looked_away and mine > self._loads.least(self._seat) + SLACK:
            self._looked_away = True
            self._pause(LOOK_AWAY_S)
            return
        self._looked_away = False
        if self._take():
            self._loads.tell(self._seat, mine + 1)

    def _take(self) -> bool:
        try:
            client, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError):
            return False
        except ConnectionError:
            return True
        except OSError as error:  # no more file descriptors
            log.error("cannot accept", extra={"fields": {"error": error.strerror or type(error).__name__}})
            self._pause(NO_FILES_S)
            return False
        client.setblocking(False)
        self._last = self._loop.time()
        task = self._loop.create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    async def _connect(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):  # gone already
            await self._loop.connect_accepted_socket(self._factory, client)
