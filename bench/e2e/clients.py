"""Clients that wrk cannot be: they read streams, or hold connections open. Each run is a process of its own.

    python -m bench.e2e.clients sse PORT CONNECTIONS ROUNDS TIMEOUT_S HEADERS MARK
    python -m bench.e2e.clients idle PORT CONNECTIONS TIMEOUT_S HEADERS
    python -m bench.e2e.clients streams PORT CONNECTIONS TIMEOUT_S HEADERS

``sse`` prints one JSON object. The other two print one when all connections are there (each has had a whole answer,
or the first event of a stream), wait for a line, and print another at the end (how many were still there; for
streams, how many came to their proper end). HEADERS is a JSON object, MARK a text at the end of a whole stream.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

from bench.e2e import payloads

AT_ONCE = 64
"""Connections that are being opened at the same time."""
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
CHUNKED_END = b"0\r\n\r\n"
KEEP = 128
"""Bytes of the end that are kept, to see [DONE] and the last chunk wherever reads were cut."""


class Client(asyncio.Protocol):
    """One connection that asks the same question ``rounds`` times."""

    def __init__(self, request: bytes, rounds: int, mark: bytes = payloads.END_MARK) -> None:
        loop = asyncio.get_running_loop()
        self.request = request
        self.mark = mark
        self.left = rounds
        self.events = self.complete = self.wrong = 0
        self.first_us: list[int] = []
        self.begun: asyncio.Future[None] = loop.create_future()
        self.ended: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        self.head: bytes | None = b""
        self.body_left = -1
        self.tail = b""
        self.started = False
        self.asked = time.perf_counter()
        self.transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        if self.head is not None:
            self.head += data
            head, found, data = self.head.partition(b"\r\n\r\n")
            if not found:
                return
            self.head = None
            if not head.startswith(b"HTTP/1.1 200 "):
                self.wrong += 1
                self.transport.abort()
                return
            length = LENGTH.search(head)
            self.body_left = int(length[1]) if length else -1
        if data:
            self.body(data)

    def body(self, data: bytes) -> None:
        if self.body_left >= 0:
            self.body_left -= len(data)
            if not self.body_left:
                self.finish()
            return
        mark = payloads.EVENT_MARK
        found = data.count(mark) + (self.tail[1 - len(mark) :] + data[: len(mark) - 1]).count(mark)
        if found and not self.begun.done():
            self.begun.set_result(None)
        if found and not self.started:
            self.started = True
            self.first_us.append(round((time.perf_counter() - self.asked) * 1e6))
        self.events += found
        self.tail = (self.tail + data)[-KEEP:]
        if self.tail.endswith(CHUNKED_END):
            if self.mark in self.tail or not self.started:
                self.finish()
            else:
                self.transport.abort()

    def finish(self) -> None:
        self.complete += 1
        self.left -= 1
        if not self.begun.done():
            self.begun.set_result(None)
        if self.left:
            self.ask()
        elif not self.ended.done():
            self.ended.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        for future in (self.begun, self.ended):
            if not future.done():
                future.set_result(None)


async def opened(port: int, count: int, request: bytes, rounds: int, mark: bytes = payloads.END_MARK) -> list[Client]:
    loop = asyncio.get_running_loop()
    connect = [loop.create_connection(lambda: Client(request, rounds, mark), "127.0.0.1", port) for _ in range(count)]
    return [(await one)[1] for one in connect]


async def sse(port: int, connections: int, rounds: int, timeout_s: float, headers: dict[str, str], mark: str) -> None:
    request = payloads.http(payloads.request(stream=True), headers)
    began = time.perf_counter()
    clients = await opened(port, connections, request, rounds, mark.encode())
    await asyncio.wait([c.ended for c in clients], timeout=timeout_s)
    complete = sum(c.complete for c in clients)
    tell(
        events=sum(c.events for c in clients),
        complete=complete,
        bad=connections * rounds - complete,
        first_us=sorted(value for c in clients for value in c.first_us),
        seconds=time.perf_counter() - began,
    )


async def idle(port: int, connections: int, timeout_s: float, headers: dict[str, str]) -> None:
    clients = await gathered(port, connections, payloads.http(payloads.request(), headers), timeout_s)
    tell(ready=sum(c.complete == 1 for c in clients), wrong=sum(c.wrong for c in clients))
    await said()
    tell(open=sum(not c.transport.is_closing() for c in clients))


async def streams(port: int, connections: int, timeout_s: float, headers: dict[str, str]) -> None:
    request = payloads.http(payloads.request(stream=True), headers)
    clients = await gathered(port, connections, request, timeout_s)
    tell(ready=sum(c.events > 0 and not c.complete for c in clients), wrong=sum(c.wrong for c in clients))
    await said()
    in_flight = sum(c.events > 0 and not c.ended.done() for c in clients)
    await asyncio.wait([c.ended for c in clients], timeout=timeout_s)
    tell(open=in_flight, complete=sum(c.complete for c in clients), events=sum(c.events for c in clients))


async def gathered(port: int, connections: int, request: bytes, timeout_s: float) -> list[Client]:
    """Connections that all have got something, ``AT_ONCE`` at a time."""
    clients: list[Client] = []
    until = time.monotonic() + timeout_s
    while len(clients) < connections and time.monotonic() < until:
        more = await opened(port, min(AT_ONCE, connections - len(clients)), request, 1)
        await asyncio.wait([c.begun for c in more], timeout=max(0.1, until - time.monotonic()))
        clients += more
    return clients


async def said() -> None:
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


def main() -> None:
    kind, *rest = sys.argv[1:]
    marks = [rest.pop()] if kind == "sse" else []
    headers = json.loads(rest.pop())
    numbers = [int(value) for value in rest[:-1]]
    timeout_s = float(rest[-1])
    kinds: dict[str, Callable[..., Coroutine[Any, Any, None]]] = {"sse": sse, "idle": idle, "streams": streams}
    work = kinds[kind](*numbers, timeout_s, headers, *marks)
    try:
        import uvloop

        uvloop.run(work)
    except ImportError:
        asyncio.run(work)


if __name__ == "__main__":
    main()
