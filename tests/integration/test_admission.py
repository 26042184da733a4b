"""The door of a whole gateway behind either listener: in, wait, or 503 with Retry-After, before the body (R32, Q15)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slipstream.resilience.admission import Admission
from slipstream.resilience.turns import TurnBudget
from slipstream.types import Endpoint
from tests.aio import RawClient, run, until
from tests.harness import CHAT, KEY, Answer, Gateway, Http, ask, chat_body, config, gateway, request_bytes, scrape, to
from tests.hotpath import both, reply, statuses, until_answers
from tests.upstreams import Peer, upstream

KEYED = {"Authorization": f"Bearer {KEY}"}


class Stage:
    """A gateway before a provider that answers when ``go`` says so, with the ``user`` field of the request."""

    def __init__(self, running: Gateway, go: asyncio.Event, served: list[str]) -> None:
        self.running = running
        self.port = running.port
        self.go = go
        self.served = served
        """In the order in which they came to the provider."""
        self.tasks: list[asyncio.Task[Answer]] = []

    @property
    def admission(self) -> Admission:
        return self.running.process._app.load.admission

    def start(self, user: str, **headers: str) -> asyncio.Task[Answer]:
        fields = KEYED | {name.replace("_", "-"): value for name, value in headers.items()}
        task = asyncio.create_task(ask(self.port, "POST", CHAT, chat_body(user=user), fields))
        self.tasks.append(task)
        return task

    async def full(self, queued: int = 0) -> None:
        """``a`` has the one place, and ``queued`` others wait for it."""
        self.start("a")
        await until(lambda: self.admission.in_flight == 1)
        for n in range(queued):
            self.start(f"q{n}")
            await until(lambda n=n: self.admission.queued == n + 1)  # type: ignore[misc]

    async def end(self) -> list[int]:
        self.go.set()
        return [(await task).status for task in self.tasks]


@asynccontextmanager
async def stage(kind: str, **admission: Any) -> AsyncIterator[Stage]:
    go, served = asyncio.Event(), []

    async def script(peer: Peer) -> None:
        while (request := await peer.request()) is not None:
            user = json.loads(request[1]).get("user", "")
            served.append(user)
            await go.wait()
            await peer.send(reply(user))

    wanted = {"max_in_flight": 1, "queue": 2, "queue_wait_s": 5.0} | admission
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLIPSTREAM_LISTENER", kind)
        async with upstream(script) as up:
            conf = config(to(f"http://127.0.0.1:{up.port}/v1", models=["m"]), master_api_key=KEY, log_level="error")
            async with gateway(conf | {"resilience": {"admission": wanted}}) as running:
                found = Stage(running, go, served)
                yield found
                await until(lambda: (found.admission.in_flight, found.admission.queued) == (0, 0))


@both
def test_in_then_wait_then_no(kind: str) -> None:
    """The queue wait is measured, and none of our own time (R38)."""

    async def main() -> None:
        async with stage(kind) as s:
            await s.full(queued=2)
            answer = await ask(s.port, "POST", CHAT, chat_body(user="late"), KEYED)
            assert (answer.status, answer.error["code"], answer.error["type"]) == (
                503, "overloaded", "overloaded_error",
            )  # fmt: skip
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-request-id"]
            await asyncio.sleep(0.06)
            assert await s.end() == [200] * 3
            assert s.served == ["a", "q0", "q1"]
            seen = await scrape(s.port)
            assert seen.total("slipstream_shed_total", reason="queue_full") == 1
            assert seen.total("llm_proxy_requests_total", status_code="503") == 1
            assert seen.total("llm_proxy_requests_total", status_code="200") == 3
            assert seen.total("slipstream_queue_wait_seconds_count", provider="none") == 2
            assert seen.total("slipstream_queue_wait_seconds_sum", provider="none") >= 0.12
            assert seen.total("slipstream_overhead_seconds_sum") < 0.06
            assert seen.total("llm_proxy_request_duration_seconds_sum") >= 0.18, "the client has waited"

    run(main())


@both
def test_a_refusal_is_in_the_dialect_of_each_endpoint_and_the_connection_goes_on(kind: str) -> None:
    async def main() -> None:
        async with stage(kind, queue=0) as s:
            await s.full()
            async with await Http.connect(s.port) as http:
                for endpoint in Endpoint:
                    fields = KEYED | {"X-Request-ID": f"mine-{endpoint.name}", "Origin": "https://a.test"}
                    for more in (KEYED, fields):
                        answer = await http.ask("POST", endpoint.path, chat_body(), more)
                        assert (answer.status, "retry-after" in answer.headers) == (503, True)
                        told = answer.json()
                        if endpoint in (Endpoint.MESSAGES, Endpoint.COUNT_TOKENS):
                            assert (told["type"], told["error"]["type"]) == ("error", "overloaded_error")
                            assert told["request_id"] == answer.headers["x-request-id"]
                        elif endpoint is Endpoint.INFER:
                            assert answer.headers["content-type"] == "application/problem+json"
                        else:
                            assert told["error"]["code"] == "overloaded"
                    assert answer.headers["x-request-id"] == f"mine-{endpoint.name}"
                s.go.set()
                await s.end()
                assert (await http.ask("POST", CHAT, chat_body(), KEYED)).status == 200

    run(main())


@both
def test_who_may_not_call_is_told_only_that(kind: str) -> None:
    async def main() -> None:
        async with stage(kind, queue=0) as s:
            await s.full()
            assert (await ask(s.port, "POST", CHAT, chat_body())).status == 401
            assert (await ask(s.port, "GET", "/health")).status == 200
            assert (await scrape(s.port)).total("slipstream_shed_total") == 0
            await s.end()

    run(main())


@both
def test_the_head_is_enough(kind: str) -> None:
    """Nobody uploads 50 MB to be told 503; a short body is taken off the connection first."""

    async def main() -> None:
        async with stage(kind, queue=0) as s:
            await s.full()
            client = await RawClient.connect(s.port)
            head = request_bytes("POST", CHAT, b"", KEYED)
            client.writer.write(head.replace(b"Content-Length: 0", b"Content-Length: 50000000"))
            await client.read_until(b"overloaded")
            client.writer.close()
            client = await RawClient.connect(s.port)
            body = chat_body()
            client.writer.write(head.replace(b"Content-Length: 0", b"Content-Length: %d" % len(body)) + body[:5])
            await asyncio.sleep(0.02)
            client.writer.write(body[5:])
            assert await until_answers(client, 1) == [503]
            s.go.set()
            await s.end()
            client.writer.write(request_bytes("POST", CHAT, body, KEYED))
            assert await until_answers(client, 2) == [503, 200]
            client.writer.close()

    run(main())


@both
def test_a_client_that_leaves_while_it_waits_makes_room(kind: str) -> None:  # R1, R2
    async def main() -> None:
        async with stage(kind, queue=1) as s:
            await s.full()
            for _ in range(3):
                client = await RawClient.connect(s.port)
                client.writer.write(request_bytes("POST", CHAT, chat_body(user="gone"), KEYED))
                await until(lambda: s.admission.queued == 1)
                await asyncio.sleep(0.005)
                client.writer.transport.abort()
                await until(lambda: s.admission.queued == 0)
            assert await s.end() == [200]
            assert s.served == ["a"]
            assert (await scrape(s.port)).total("llm_proxy_requests_total", status_code="499") == 3

    run(main())


@both
def test_a_client_that_leaves_at_the_moment_it_came_takes_nothing_along(kind: str) -> None:
    async def main() -> None:
        async with stage(kind, queue=50) as s:
            await s.full()
            for _ in range(20):
                client = await RawClient.connect(s.port)
                client.writer.write(request_bytes("POST", CHAT, chat_body(), KEYED))
                client.writer.transport.abort()
            client = await RawClient.connect(s.port)  # its body never comes whole
            client.writer.write(request_bytes("POST", CHAT, b"x" * 500, KEYED)[:-400])
            await asyncio.sleep(0.02)
            client.writer.transport.abort()
            await until(lambda: s.admission.queued == 0)
            assert await s.end() == [200]

    run(main())


@both
def test_a_body_that_turns_out_malformed_gives_its_place_back(kind: str) -> None:
    async def main() -> None:
        async with stage(kind) as s:
            client = await RawClient.connect(s.port)
            head = request_bytes("POST", CHAT, b"", KEYED)
            client.writer.write(head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked"))
            await asyncio.sleep(0.02)
            client.writer.write(b"zz\r\n")
            await client.read_until(b"HTTP/1.1 400")
            await until(lambda: s.admission.in_flight == 0)
            client.writer.close()
            s.go.set()
            assert await s.start("b") is not None

    run(main())


@both
def test_the_classes_and_the_deadline_of_the_client(kind: str) -> None:
    async def main() -> None:
        async with stage(kind, queue=3) as s:
            await s.full()
            for number, (user, value) in enumerate((("low", "low"), ("normal", ""), ("high", "high"))):
                s.start(user, x_slipstream_priority=value)
                await until(lambda n=number: s.admission.queued == n + 1)  # type: ignore[misc]
            await s.end()
            assert s.served == ["a", "high", "normal", "low"]
            s.go.clear()
            s.tasks.clear()
            await s.full()
            answer = await s.start("hasty", x_request_timeout="0.05")
            assert answer.status == 503
            assert (await scrape(s.port)).total("slipstream_shed_total", reason="deadline") == 1
            await s.end()

    run(main())


@both
def test_the_wait_has_an_end(kind: str) -> None:
    async def main() -> None:
        async with stage(kind, queue_wait_s=0.05) as s:
            await s.full()
            answer = await s.start("patient")
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            seen = await scrape(s.port)
            assert seen.total("slipstream_shed_total", reason="queue_wait") == 1
            assert seen.total("slipstream_queue_wait_seconds_count", provider="none") == 1
            s.tasks.pop()
            await s.end()

    run(main())


@both
def test_who_waits_at_the_end_of_the_process_is_told(kind: str) -> None:  # R79
    async def main() -> None:
        async with stage(kind) as s:
            await s.full(queued=2)
            s.running.process._cut(s.running.runtime)
            for task in s.tasks[1:]:
                answer = await task
                assert (answer.status, "retry-after" in answer.headers) == (503, True)
            assert (await scrape(s.port)).total("slipstream_shed_total", reason="ending") == 2

    run(main())


@both
def test_a_loop_that_is_behind_takes_in_what_it_can(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Q16, S-103: the shares are those of ``resilience.turns``; here that the listeners ask, and one line is logged."""

    async def main() -> None:
        with pytest.MonkeyPatch.context() as patch:
            async with stage(kind, max_in_flight=100) as s:
                s.go.set()
                patch.setattr(TurnBudget, "take", lambda *_: False)
                s.admission.turns.active = True
                s.admission.refresh()
                for _ in range(5):
                    answer = await ask(s.port, "POST", CHAT, chat_body(), KEYED)
                    assert (answer.status, answer.headers["retry-after"]) == (503, "1")
                assert (await ask(s.port, "GET", "/health")).status == 200
                assert (await scrape(s.port)).total("slipstream_shed_total", reason="lag") == 5
                s.admission.turns.active = False
                s.admission.refresh()
                assert (await ask(s.port, "POST", CHAT, chat_body(), KEYED)).status == 200

    with caplog.at_level(logging.WARNING, "slipstream.server"):
        run(main())
    (line,) = [r for r in caplog.records if r.message == "requests are turned away"]
    assert line.__dict__["fields"].items() >= {"reason": "lag", "requests": 1, "in_flight": 0}.items()


def test_pipelined_requests_are_refused_in_their_order() -> None:
    async def main() -> None:
        async with stage("native", queue=0) as s:
            await s.full()
            client = await RawClient.connect(s.port)
            client.writer.write(request_bytes("POST", CHAT, chat_body(), KEYED) * 50)
            assert await until_answers(client, 50) == [503] * 50
            client.writer.close()
            await s.end()

    run(main())


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_connection_that_ends_with_its_answer(version: str) -> None:
    async def main() -> None:
        async with stage("native", queue=0) as s:
            await s.full()
            client = await RawClient.connect(s.port)
            request = request_bytes("POST", CHAT, chat_body(), KEYED | {"Connection": "close"})
            client.writer.write(request.replace(b"HTTP/1.1", f"HTTP/{version}".encode()))
            assert await client.read_to_end() == "fin"
            client.writer.close()
            assert statuses(client.received) == [503]
            assert b"connection: close" in client.received.lower()
            await s.end()

    run(main())
