"""Running coroutines in tests: a fresh uvloop per test, and waiting for an event without guessing a sleep."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")

DEADLINE_S = 20.0
"""How long anything may take before a test calls it lost."""


def run(main: Coroutine[Any, Any, T], timeout_s: float = 90.0) -> T:
    """Run to the end in a new loop; a test that hangs fails, and so does one that leaves a transport open."""
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        result = runner.run(asyncio.wait_for(main, timeout_s))
    except BaseException:
        _close(runner)
        raise
    unclosed = _close(runner)
    assert not unclosed, unclosed
    return result


def _close(runner: asyncio.Runner) -> list[str]:
    """Close the loop, and say what was left open. Not as errors: uvloop never ends closing when a warning is one."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        runner.close()
    return [str(warning.message) for warning in caught]


async def until(condition: Callable[[], bool], deadline_s: float = DEADLINE_S) -> float:
    """Wait until the condition holds; the seconds it took. Polls each millisecond."""
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not condition():
        if loop.time() - start > deadline_s:
            raise AssertionError(f"nothing happened within {deadline_s} s")
        await asyncio.sleep(0.001)
    return loop.time() - start


class RawClient:
    """One TCP connection and no opinion: what the peer sent, byte for byte, and how it ended."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.received = b""

    @classmethod
    async def connect(cls, port: int) -> RawClient:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        lines = [f"{method} {path} HTTP/1.1", "host: test", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def read_until(self, mark: bytes) -> bytes:
        """Read on until the mark was seen; everything so far."""
        while mark not in self.received:
            data = await asyncio.wait_for(self.reader.read(65_536), DEADLINE_S)
            if not data:
                raise AssertionError(f"closed before {mark!r}: {self.received!r}")
            self.received += data
        return self.received

    async def read_to_end(self) -> str:
        """Read until the peer ends the connection: ``"fin"`` or ``"rst"``."""
        try:
            while data := await asyncio.wait_for(self.reader.read(65_536), DEADLINE_S):
                self.received += data
        except ConnectionResetError:
            return "rst"
        return "fin"

    async def is_silent(self, for_s: float = 0.03) -> bool:
        """Whether nothing comes, not even the end of the connection, for this long."""
        try:
            self.received += await asyncio.wait_for(self.reader.read(1), for_s)
        except TimeoutError:
            return True
        return False

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()
