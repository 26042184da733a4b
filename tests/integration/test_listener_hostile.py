"""A listener on a real port against the hostile corpus, slow clients and everything a broken client can do.

The corpus test knows nothing of the listener but its port: ``LISTENERS`` names what starts one, and another listener
only has to be added there.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import logging
import os
import random
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop
from aiohttp import web
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_parser import HttpRequestParser

from slipstream._fast import RequestGuard
from slipstream.config.snapshot import ProviderSpec, RoutingSpec, ServerSpec, Snapshot
from slipstream.engine.runtime import Runtime
from slipstream.server import native, native_connection
from slipstream.server.app import App
from slipstream.server.limits import ListenerLimits
from slipstream.server.listener import Listener
from slipstream.server.native import NativeListener
from slipstream.server.process import make_transport
from slipstream.types import Endpoint, Secret
from tests.aio import DEADLINE_S, RawClient, run, until
from tests.pace import soon

SHARED = Path(os.environ.get("SLIPSTREAM_SHARED") or Path(__file__).parents[2].parent / "shared")
FIRE = SHARED / "hostile" / "fire.py"
WORKERS = 48
TIMEOUT_S = 1.0
NEVER = {"smuggled", "desync", "garbage", "switched", "crash"}
GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"
BAD = b"GET / HTTP/1.1\r\nHost: a\r\nBad canary-sk-123: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n%s\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
HOT = tuple(b"/" + name for name in (b"hostile", b"", b"upload", b"post_identity_body_world", b"echo", b"p"))
LONG = {"header_timeout_s": 5.0, "body_idle_s": 5.0, "keepalive_s": 5.0}

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


async def read_and_404(request: web.BaseRequest) -> web.StreamResponse:
    body = await request.read()
    return web.json_response({"path": request.rel_url.raw_path, "size": len(body)}, status=404)


def error_json(status: int, reason: str, request_id: str) -> tuple[bytes, str]:
    return json.dumps({"error": {"message": reason, "code": status, "id": request_id}}).encode(), "application/json"


def tag(request: web.BaseRequest, response: web.StreamResponse) -> None:
    response.headers["X-Request-ID"] = request.get("request_id") or "none"
    response.headers["Server"] = "must not get out"


class Running:
    """A started listener and what it reported."""

    def __init__(self, handler: Handler, **limits: Any) -> None:
        self.bad: list[tuple[int, str, str]] = []
        self.listener = Listener(
            handler,
            limits=ListenerLimits(**(LONG | limits)),
            error_body=error_json,
            on_bad_request=lambda *report: self.bad.append(report),
            decorate=tag,
        )

    @property
    def port(self) -> int:
        return self.listener.port


@asynccontextmanager
async def listening(handler: Handler = read_and_404, **limits: Any) -> AsyncIterator[Running]:
    running = Running(handler, **limits)
    await running.listener.start("127.0.0.1", 0)
    try:
        yield running
    finally:
        await running.listener.close(0.0)
        assert running.listener.connections == 0


async def send(port: int, *pieces: bytes) -> RawClient:
    """Send, then read until the peer closes."""
    client = await RawClient.connect(port)
    for piece in pieces:
        client.writer.write(piece)
        await client.writer.drain()
    await client.read_to_end()
    await client.close()
    return client


def statuses(received: bytes) -> list[int]:
    return [int(part[:3]) for part in received.split(b"HTTP/1.1 ")[1:]]


# ----------------------------------------------------------------------------------------------------------- corpus
@asynccontextmanager
async def native_listening() -> AsyncIterator[Running]:
    """The native listener, which needs an application, with one provider that nobody reaches."""
    provider = ProviderSpec(
        name="a", type="openai", api_base="http://127.0.0.1:9/v1", api_key=Secret("k"), models=("m",)
    )
    runtime = Runtime(Snapshot(server=ServerSpec(), routing=RoutingSpec(), providers=(provider,)), make_transport)
    running = Running(read_and_404)
    app = App(runtime)
    app.bad_request = lambda *report: running.bad.append(report)  # type: ignore[method-assign]
    running.listener = NativeListener(app, running.listener.limits, running.listener)  # type: ignore[assignment]
    await running.listener.start("127.0.0.1", 0)
    try:
        yield running
    finally:
        await running.listener.close(0.0)
        await runtime.close()
        assert running.listener.connections == 0


@asynccontextmanager
async def native_hot_listening() -> AsyncIterator[Running]:
    """The same, with the paths of the corpus for its hot routes and an engine that does what ``read_and_404`` does: no
    POST is handed over."""

    async def engine(_runtime: object, exchange: Any, _endpoint: object, _key_name: str) -> None:
        exchange.reply(404, b"Content-Type: application/json\r\n", b'{"size": %d}' % len(exchange.data))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "PATHS", HOT)
        patch.setattr(native_connection, "ENDPOINTS", [Endpoint.CHAT] * len(HOT))
        patch.setattr(native_connection, "serve", engine)
        patch.setattr(native_connection, "check_media_type", lambda _value: None)
        async with native_listening() as running:
            yield running


@contextmanager
def in_thread(make: Callable[[], AbstractAsyncContextManager[Running]]) -> Iterator[int]:
    """A listener on a uvloop of its own, in a thread; gives the port."""
    ports: list[int] = []
    ready, loops = threading.Event(), [uvloop.new_event_loop()]
    stop = asyncio.Event()

    async def main() -> None:
        async with make() as running:
            ports.append(running.port)
            ready.set()
            await stop.wait()

    def serve() -> None:
        with asyncio.Runner(loop_factory=lambda: loops[0]) as runner:
            runner.run(main())

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        assert ready.wait(DEADLINE_S)
        yield ports[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(DEADLINE_S)


LISTENERS = [
    pytest.param(lambda: in_thread(listening), id="aiohttp"),
    pytest.param(lambda: in_thread(native_listening), id="native"),
    pytest.param(lambda: in_thread(native_hot_listening), id="native-hot"),
]


def load_fire() -> Any:
    spec = importlib.util.spec_from_file_location("fire", FIRE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not FIRE.is_file(), reason=f"no hostile corpus at {FIRE} (set SLIPSTREAM_SHARED)")
@pytest.mark.parametrize("listener", LISTENERS)
def test_corpus(listener: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Q28."""
    fire = load_fire()
    cases = fire.load("http", "dev")
    assert len(cases) > 400

    def one(port: int, case: dict[str, Any]) -> tuple[dict[str, Any], str, bool, str]:
        data = Path(case["_dir"], case["file"]).read_bytes()
        case["_closing"] = b"connection: close" in data.lower() or b"HTTP/1.0" in data
        return case, *fire.judge(case, fire.exchange("127.0.0.1", port, data, TIMEOUT_S, case))

    with caplog.at_level(logging.DEBUG), listener() as port, ThreadPoolExecutor(WORKERS) as pool:
        results = list(pool.map(lambda case: one(port, case), cases))
    failed = [(case["level"], case["name"], outcome, note) for case, outcome, good, note in results if not good]
    total, lost = Counter(case["level"] for case in cases), Counter(level for level, *_ in failed)
    assert [case["name"] for case, outcome, *_ in results if outcome in NEVER] == []
    assert lost["MUST"] == 0, failed
    assert lost["SHOULD"] <= 0.02 * total["SHOULD"], failed
    assert lost["POLICY"] <= 0.02 * total["POLICY"], failed
    assert [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG] == []


@pytest.mark.skipif(not FIRE.is_file(), reason=f"no hostile corpus at {FIRE} (set SLIPSTREAM_SHARED)")
def test_aiohttp_reads_what_the_guard_passes_alike() -> None:
    """Q33: on what the guard lets through, aiohttp's parser sees the same messages and the same ends of bodies."""
    rng = random.Random(33)
    cases = [Path(case["_dir"], case["file"]).read_bytes() for case in load_fire().load("http", "dev")]
    cases = [data for data in cases if len(data) < 2000]
    tokens = [b"\r\n", b" ", b"\t", b",", b";", b"0", b"close", b"chunked", GET % b"", b"Upgrade: websocket\r\n",
              b"Connection: upgrade\r\n", b"Connection: close\r\n", b"Content-Length: 3\r\n"]  # fmt: skip

    async def main() -> int:
        compared = 0
        for _ in range(10_000):
            data = bytearray(b"".join(rng.choices(cases, k=2)))
            for _ in range(rng.randrange(3)):
                at = rng.randrange(len(data) + 1)
                data[at : at + rng.randrange(3)] = rng.choice(tokens)
            guard = RequestGuard()
            passed = guard.feed(bytes(data))
            protocol = BaseProtocol(asyncio.get_running_loop())
            parser = protocol._parser = HttpRequestParser(
                protocol, protocol._loop, 1 << 20, max_line_size=20_000, max_field_size=20_000, auto_decompress=False
            )
            messages, upgraded, _ = parser.feed_data(passed)
            ended = [payload.is_eof() for _, payload in messages]
            assert (len(messages), sum(ended), upgraded) == (guard.heads, guard.messages, False), bytes(data)
            assert all(payload.exception() is None for _, payload in messages), bytes(data)
            compared += len(messages)
        return compared

    assert run(main()) > 1000


# -------------------------------------------------------------------------------------------------- malformed bytes
def test_malformed_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with listening() as server:
            client = await send(server.port, BAD)
            head, _, body = client.received.partition(b"\r\n\r\n")
            fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
            assert head.startswith(b"HTTP/1.1 400 ")
            assert fields[b"Content-Length"] == b"%d" % len(body)
            assert (fields[b"Connection"], fields[b"Content-Type"]) == (b"close", b"application/json")
            assert b"Server" not in fields
            error = json.loads(body)["error"]
            assert (error["message"], error["code"]) == ("malformed header field name", 400)
            assert error["id"].startswith("req_")
            assert fields[b"X-Request-ID"].decode() == error["id"]
            assert len(server.bad) == 1
            assert server.bad[0][:2] == (400, "malformed header field name")
            assert server.bad[0][2].startswith("127.0.0.1:")
            assert b"canary" not in client.received

    with caplog.at_level(logging.DEBUG):
        run(main())
    assert caplog.records == []


def test_what_aiohttp_alone_refuses_is_answered_the_same_way(caplog: pytest.LogCaptureFixture) -> None:
    """``Sec-WebSocket-Key1`` is refused by aiohttp and unknown to the guard."""

    async def main() -> None:
        async with listening() as server:
            client = await send(server.port, GET.replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key1: canary\r\n\r\n") % b"")
            assert statuses(client.received) == [400]
            assert b"canary" not in client.received
            assert [report[:2] for report in server.bad] == [(400, "malformed request")]

    with caplog.at_level(logging.INFO):
        run(main())
    assert caplog.records == []


def test_good_requests_are_answered_before_the_fault() -> None:
    async def main() -> None:
        gate = asyncio.Event()

        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/0":
                await gate.wait()
            return await read_and_404(request)

        async with listening(slow) as server:
            client = await RawClient.connect(server.port)
            client.writer.write(b"".join(GET % b"%d" % i for i in range(40)) + BAD + GET % b"never")
            await until(lambda: len(server.bad) == 1)
            assert await client.is_silent()
            gate.set()
            assert await client.read_to_end() == "fin"
            assert statuses(client.received) == [404] * 40 + [400]
            order = [int(part.split(b'"')[0]) for part in client.received.split(b'"path": "/')[1:]]
            assert order == list(range(40))
            await client.close()

    run(main())


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"5\r\nhelloXX", 400), (b"zz\r\n", 400), (b"fffffff\r\n", 413), (b"0\r\nHost: x\r\n\r\n", 400)],
)
@pytest.mark.parametrize("split", [True, False])
def test_a_fault_in_the_body_overrules_the_handler(body: bytes, status: int, split: bool) -> None:
    async def swallow(request: web.BaseRequest) -> web.StreamResponse:
        with suppress(Exception):
            await request.read()
        return web.Response(text="fine")

    async def main() -> None:
        for handler in (swallow, read_and_404):
            async with listening(handler) as server:
                first = [CHUNKED + body] if not split else [CHUNKED, body]
                client = await RawClient.connect(server.port)
                for piece in first:
                    client.writer.write(piece)
                    await client.writer.drain()
                    await asyncio.sleep(0)
                await client.read_to_end()
                await client.close()
                assert statuses(client.received) == [status]
                assert [report[0] for report in server.bad] == [status]

    run(main())


def test_too_large_is_refused_at_the_head_and_the_answer_survives_the_upload() -> None:
    """RFC 9112 9.6: the client sends megabytes nobody wants and still gets to read its 413."""

    async def main() -> None:
        async with listening(max_body_bytes=1000) as server:
            client = await RawClient.connect(server.port)
            client.writer.write(POST % (8_000_000, b"Expect: 100-continue\r\n"))
            for _ in range(80):
                client.writer.write(b"x" * 100_000)
                await client.writer.drain()
            assert await client.read_to_end() == "fin"
            assert statuses(client.received) == [413]
            await client.close()

    run(main())


def test_a_half_closed_client_gets_its_refusal() -> None:
    async def main() -> None:
        async with listening() as server:
            client = await RawClient.connect(server.port)
            client.writer.write(BAD)
            client.writer.write_eof()
            assert await client.read_to_end() == "fin"
            assert statuses(client.received) == [400]
            await client.close()

    run(main())


# --------------------------------------------------------------------------------------------------------- handlers
def test_a_failing_handler_is_one_line_and_a_500(caplog: pytest.LogCaptureFixture) -> None:
    async def fail(request: web.BaseRequest) -> web.StreamResponse:
        raise ValueError(request.headers["X-Canary"])

    async def nothing(request: web.BaseRequest) -> Any:
        return None

    async def main() -> None:
        for handler in (fail, nothing):
            async with listening(handler) as server:
                client = await send(server.port, GET.replace(b"\r\n\r\n", b"\r\nX-Canary: canary\r\n\r\n") % b"")
                assert statuses(client.received) == [500]
                assert b"internal error" in client.received
                assert server.bad == []

    with caplog.at_level(logging.DEBUG):
        run(main())
    assert len(caplog.records) == 2
    assert {record.name for record in caplog.records} == {"slipstream.server"}
    assert "ValueError at " in caplog.text
    assert "canary" not in caplog.text
    assert "Traceback" not in caplog.text


def test_a_stream_that_fails_is_cut_off_without_its_end(caplog: pytest.LogCaptureFixture) -> None:
    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"some")
        raise ValueError

    async def main() -> None:
        async with listening(stream) as server:
            client = await send(server.port, GET % b"")
            assert client.received.endswith(b"\r\n\r\n4\r\nsome\r\n")
            assert b"\r\nServer:" not in client.received

    run(main())
    assert len(caplog.records) == 1


@pytest.mark.parametrize("streaming", [True, False])
def test_the_handler_is_cancelled_when_the_client_goes(streaming: bool) -> None:
    """R1, R3, R5."""

    async def main() -> None:
        started, cancelled = asyncio.Event(), asyncio.Event()

        async def wait(request: web.BaseRequest) -> web.StreamResponse:
            response = web.StreamResponse()
            if streaming:
                await response.prepare(request)
                await response.write(b"x")
            started.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return response

        async with listening(wait) as server:
            client = await RawClient.connect(server.port)
            client.writer.write(GET % b"")
            await started.wait()
            client.writer.transport.abort()
            assert soon(await until(cancelled.is_set), 0.1)
            await until(lambda: server.listener.connections == 0)

    run(main())


# --------------------------------------------------------------------------------------------------- HTTP semantics
@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"GET / HTTP/1.0\r\n\r\n", False),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", True),
        (b"GET / HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n", False),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", True),
        (b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", False),
    ],
)
def test_persistence(head: bytes, kept: bool) -> None:
    async def main() -> None:
        async with listening() as server:
            client = await RawClient.connect(server.port)
            client.writer.write(head)
            await client.read_until(b"}")
            assert (b"Connection: close" in client.received) is not kept
            if kept:
                client.writer.write(head)
                client.received = b""
                await client.read_until(b"}")
            else:
                client.writer.write(head)
                await client.read_to_end()
                assert client.received.count(b" 404 ") == 1
            assert server.bad == []
            await client.close()

    run(main())


def test_continue_is_sent_when_the_body_is_read() -> None:
    """RFC 9110 10.1.1."""

    async def picky(request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/no":
            return web.Response(status=401)
        return await read_and_404(request)

    async def main() -> None:
        async with listening(picky) as server:
            client = await RawClient.connect(server.port)
            client.writer.write(POST % (5, b"Expect: 100-Continue\r\n"))
            await client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
            client.writer.write(b"hello")
            await client.read_until(b'"size": 5}')
            assert statuses(client.received) == [100, 404]
            client.writer.write(POST.replace(b" / ", b" /no ") % (5, b"Expect: 100-continue\r\n"))
            await client.read_until(b" 401 ")
            await client.read_to_end()
            assert statuses(client.received) == [100, 404, 401]
            assert client.received.count(b"Connection: close") == 1
            await client.close()

            client = await RawClient.connect(server.port)
            client.writer.write(POST.replace(b"1.1", b"1.0") % (5, b"Expect: 100-continue\r\n"))
            assert await client.is_silent()
            client.writer.write(b"hello")
            await client.read_to_end()
            assert client.received.startswith(b"HTTP/1.0 404 ")
            await client.close()

    run(main())


def test_upgrades_are_ignored() -> None:
    upgrade = b"\r\nConnection: Upgrade\r\nUpgrade: %s\r\nSec-WebSocket-Key: eA==\r\n\r\n"

    async def main() -> None:
        async with listening() as server:
            for protocol in (b"websocket", b"h2c", b"tls/1.0"):
                client = await RawClient.connect(server.port)
                client.writer.write(GET.replace(b"\r\n\r\n", upgrade % protocol) % b"1" + GET % b"2")
                await client.read_until(b'"/2"')
                assert statuses(client.received) == [404, 404]
                await client.close()

    run(main())


def test_a_large_body_arrives_whole() -> None:
    async def main() -> None:
        async with listening() as server:
            client = await RawClient.connect(server.port)
            size = 3_000_000
            client.writer.write(POST % (size, b"Content-Encoding: gzip\r\n") + b"x" * size)
            await client.read_until(b'"size": 3000000}')
            client.writer.write(CHUNKED + b"10000\r\n" + b"y" * 65536 + b"\r\n1;a=b\r\nz\r\n0\r\n\r\n")
            await client.read_until(b'"size": 65537}')
            await client.close()

    run(main())


# ----------------------------------------------------------------------------------------------------- slow clients
def test_slow_clients() -> None:
    """Q30: a slow head or body is told so; silence on a new or an idle connection is just closed."""

    async def main() -> None:
        async with listening(header_timeout_s=0.2, body_idle_s=0.2, keepalive_s=0.4) as server:
            loop = asyncio.get_running_loop()
            begin = loop.time()

            async def ask(*pieces: bytes) -> tuple[list[int], float]:
                client = await send(server.port, *pieces)
                return statuses(client.received), loop.time() - begin

            async def drip() -> tuple[list[int], float]:
                client = await RawClient.connect(server.port)
                client.writer.write(b"GET / HTTP/1.1\r\nHost: a\r\nX: ")
                while await client.is_silent(0.02):
                    client.writer.write(b"a")
                await client.read_to_end()
                await client.close()
                return statuses(client.received), loop.time() - begin

            results = await asyncio.gather(
                ask(),
                ask(b"\r\n"),
                ask(b"GET / HT"),
                drip(),
                ask(POST % (5, b""), b"he"),
                ask(CHUNKED + b"5\r\nhe"),
                ask(GET % b"1" + b"GET /"),
                ask(GET % b"1"),
            )
            assert [status for status, _ in results] == [[], [], [408], [408], [408], [408], [404, 408], [404]]
            assert all(0.15 < taken < 2.0 for _, taken in results), results
            assert results[-1][1] > 0.35, results
            assert [report[0] for report in server.bad] == [408] * 5

    run(main())


def test_a_trickled_body_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.server.limits.BODY_RATE_AFTER_S", 0.2)

    async def main() -> None:
        async with listening() as server:
            client = await RawClient.connect(server.port)
            client.writer.write(POST % (1000, b""))
            while await client.is_silent(0.02):
                client.writer.write(b"a")
            await client.read_to_end()
            assert statuses(client.received) == [408]
            await client.close()

    run(main())


# ------------------------------------------------------------------------------------------------------------ drain
def test_drain() -> None:
    """Idle connections close at once, a request in flight is finished and told to close, a stuck one is cancelled."""

    async def main() -> None:
        gate, cancelled = asyncio.Event(), asyncio.Event()

        async def slow(request: web.BaseRequest) -> web.StreamResponse:
            if request.path == "/stuck":
                try:
                    await asyncio.Event().wait()
                finally:
                    cancelled.set()
            if request.path == "/slow":
                await gate.wait()
            return await read_and_404(request)

        server = Running(slow)
        await server.listener.start("127.0.0.1", 0)
        clients = [await RawClient.connect(server.port) for _ in range(4)]
        silent, idle, busy, stuck = clients
        idle.writer.write(GET % b"idle")
        await idle.read_until(b"}")
        busy.writer.write(GET % b"slow")
        stuck.writer.write(GET % b"stuck")
        await until(lambda: server.listener.connections == 4)
        closing = asyncio.create_task(server.listener.close(0.3))
        assert await silent.read_to_end() == "fin"
        assert await idle.read_to_end() == "fin"
        with pytest.raises(ConnectionRefusedError):
            await RawClient.connect(server.port)
        gate.set()
        await busy.read_to_end()
        assert statuses(busy.received) == [404]
        assert b"Connection: close" in busy.received
        assert not closing.done()
        await closing
        assert cancelled.is_set()
        await stuck.read_to_end()
        assert statuses(stuck.received) == []
        assert server.listener.connections == 0
        for client in clients:
            await client.close()

    run(main())


def test_a_given_socket() -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        server = Running(read_and_404)
        await server.listener.start(None, 0, sock=sock)
        assert server.port == sock.getsockname()[1]
        client = await send(server.port, b"GET / HTTP/1.0\r\n\r\n")
        assert b" 404 " in client.received
        await server.listener.close(1.0)

    run(main())
