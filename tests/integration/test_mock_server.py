"""The mock on a real port: the official SDK talks to it, and each fault looks on the wire as it is described."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from slipstream.mock import faults
from slipstream.mock.app import MockServer
from slipstream.mock.settings import MockSettings
from tests.aio import RawClient, run, until
from tests.pace import soon

USER: Any = [{"role": "user", "content": "Hello there"}]
TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
CHAT = "/v1/chat/completions"


@asynccontextmanager
async def mock(**settings: Any) -> AsyncIterator[MockServer]:
    server = MockServer(MockSettings(**({"mean_latency_ms": 0, "seed": 1} | settings)))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def sdk(server: MockServer) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0) as client:
        yield client


def port_of(server: MockServer) -> int:
    return int(server.base_url.rsplit(":", 1)[1].removesuffix("/v1"))


async def ask(server: MockServer, path: str = CHAT, headers: dict[str, str] | None = None, **fields: Any) -> RawClient:
    """Send a chat request over a connection of its own; the caller reads."""
    client = await RawClient.connect(port_of(server))
    client.send("POST", path, json.dumps({"model": "m", "messages": USER} | fields).encode(), headers)
    return client


async def get(server: MockServer, path: str, method: str = "GET") -> Any:
    client = await RawClient.connect(port_of(server))
    client.send(method, path, headers={"connection": "close"})
    await client.read_to_end()
    await client.close()
    return json.loads(client.received.partition(b"\r\n\r\n")[2])


def with_mock(test: Callable[[MockServer], Awaitable[None]], **settings: Any) -> None:
    async def main() -> None:
        async with mock(**settings) as server:
            await test(server)

    run(main())


# the official SDK


def test_sdk_chat() -> None:
    async def test(server: MockServer) -> None:
        async with sdk(server) as client:
            answer = await client.chat.completions.create(model="m", messages=USER)
        assert answer.choices[0].message.content == "This is a mock answer, made of nothing but words. This is a"
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)
        assert (server.ledger.prompt_tokens, server.ledger.completion_tokens) == (3, 16)

    with_mock(test)


@pytest.mark.parametrize("usage", [True, False])
def test_sdk_stream(usage: bool) -> None:
    async def test(server: MockServer) -> None:
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        async with sdk(server) as client:
            stream = await client.chat.completions.create(model="m", messages=USER, stream=True, **options)
            chunks = [chunk async for chunk in stream]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text.endswith("but words. This is a")
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([16] if usage else [])
        assert len(chunks) == 18 + usage
        assert server.ledger.completion_tokens == 16
        assert server.ledger.streams == 1

    with_mock(test)


def test_sdk_tools() -> None:
    async def test(server: MockServer) -> None:
        async with sdk(server) as client:
            answer = await client.chat.completions.create(model="m", messages=USER, tools=TOOLS)
            (whole,) = answer.choices[0].message.tool_calls or []
            assert whole.type == "function"
            assert whole.function.arguments == '{"echo":"Hello there"}'
            async with client.chat.completions.stream(model="m", messages=USER, tools=TOOLS) as stream:
                final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls or []
        assert (call.function.name, call.function.arguments) == ("look_up", '{"echo":"Hello there"}')
        assert final.choices[0].finish_reason == "tool_calls"

    with_mock(test)


def test_sdk_everything_else() -> None:
    async def test(server: MockServer) -> None:
        async with sdk(server) as client:
            vectors = await client.embeddings.create(model="gpt-x", input=["a", "b"], dimensions=16)
            assert [len(item.embedding) for item in vectors.data] == [16, 16]
            floats = await client.embeddings.create(model="gpt-x", input="a", dimensions=16, encoding_format="float")
            assert floats.data[0].embedding == pytest.approx(vectors.data[0].embedding)
            assert [model.id async for model in client.models.list()] == ["gpt-x"]
            assert (await client.models.retrieve("open-model")).owned_by == "mock"
            legacy = await client.completions.create(model="gpt-x", prompt="Say", max_tokens=2)
            assert (legacy.choices[0].text, legacy.choices[0].finish_reason) == ("This is", "length")
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="other", messages=USER)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.RateLimitError) as limited:
                await client.chat.completions.create(model="mock/429:7", messages=USER)
            assert limited.value.response.headers["retry-after"] == "7"

    with_mock(test, models=("gpt-x", "open-*"))


@pytest.mark.parametrize(("fault", "chunks"), [("error-first", 0), ("role-then-error", 1), ("error-mid", 4)])
def test_sdk_sees_errors_in_the_stream(fault: str, chunks: int) -> None:
    async def test(server: MockServer) -> None:
        got = []

        async def read(client: openai.AsyncOpenAI) -> None:
            async for chunk in await client.chat.completions.create(model=f"mock/{fault}", messages=USER, stream=True):
                got.append(chunk)

        async with sdk(server) as client:
            with pytest.raises(openai.APIError, match="The server had an error"):
                await read(client)
        assert len(got) == chunks

    with_mock(test)


def test_sdk_sync() -> None:
    async def test(server: MockServer) -> None:
        def talk() -> tuple[str | None, int]:
            with openai.OpenAI(base_url=server.base_url, api_key="sk-test", max_retries=0) as client:
                answer = client.chat.completions.create(model="m", messages=USER)
                stream = client.chat.completions.create(model="m", messages=USER, stream=True)
                return answer.choices[0].message.content, len(list(stream))

        text, chunks = await asyncio.to_thread(talk)
        assert text is not None
        assert text.startswith("This is a mock")
        assert chunks == 18

    with_mock(test)


# faults on the wire

MID = b'"content":" a"'
"""In the third content chunk."""


def both(*cases: tuple[str, bool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(("fault", "stream"), cases)


@both(("cut", True), ("cut", False), ("cut-first", True), ("cut-first", False))
def test_cut(fault: str, stream: bool) -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=stream, headers={"x-mock-fault": fault})
        assert await client.read_to_end() == "fin"
        # the role chunk has an empty content
        assert client.received.count(b'"content":"') == (0 if fault == "cut-first" else 4 if stream else 1)
        assert not client.received.endswith(b"0\r\n\r\n")
        assert (b"HTTP/1.1 200" in client.received) == (fault == "cut")
        await client.close()
        await until(lambda: server.ledger.open == 0)
        record = server.ledger.last[-1]
        assert (record.disconnected, record.status) == (False, 200 if fault == "cut" else 0)
        assert record.completion_tokens == (3 if fault == "cut" and stream else 0)

    with_mock(test)


def test_cut_leaves_half_of_a_body() -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, model="mock/cut")
        await client.read_to_end()
        head, _, body = client.received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        assert len(body) == length // 2
        await client.close()

    with_mock(test)


@both(("reset", True), ("reset", False))
def test_reset(fault: str, stream: bool) -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=stream, model=f"mock/{fault}")
        assert await client.read_to_end() == "rst"
        assert (MID in client.received) == stream
        assert bool(client.received) == stream
        await client.close()
        await until(lambda: server.ledger.open == 0)
        assert server.ledger.disconnects == 0

    with_mock(test)


@both(("stall", True), ("stall", False), ("stall-headers-then", True), ("stall-headers-then", False))
def test_stall_before_the_body(fault: str, stream: bool) -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=stream, model=f"mock/{fault}")
        if fault == "stall":
            await until(lambda: server.ledger.open == 1)
        else:
            assert (await client.read_until(b"\r\n\r\n")).endswith(b"\r\n\r\n")
        assert await client.is_silent()
        await client.close()
        assert soon(await until(lambda: server.ledger.disconnects == 1), 0.1)
        assert server.ledger.by_status == {0 if fault == "stall" else 200: 1}

    with_mock(test)


@pytest.mark.parametrize("stream", [True, False])
def test_stall_in_the_middle(stream: bool) -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=stream, model="mock/stall-mid")
        await client.read_until(MID if stream else b'"content":"This')
        while not await client.is_silent():
            pass
        assert server.ledger.open == 1
        assert server.ledger.completion_tokens == (3 if stream else 0)
        await client.close()
        await until(lambda: server.ledger.disconnects == 1)

    with_mock(test)


@both(("error-first", True), ("role-then-error", True), ("error-mid", True))
def test_errors_in_a_stream_close_without_done(fault: str, stream: bool) -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=stream, model=f"mock/{fault}")
        assert await client.read_to_end() == "fin"
        assert client.received.startswith(b"HTTP/1.1 200")
        assert faults.ERROR_EVENT in client.received
        assert b"[DONE]" not in client.received
        assert client.received.endswith(b"\r\n0\r\n\r\n")
        assert (MID in client.received) == (fault == "error-mid")
        assert (b'"role":"assistant"' in client.received) == (fault != "error-first")
        await client.close()

    with_mock(test)


def test_answers_that_end_but_are_wrong() -> None:
    async def test(server: MockServer) -> None:
        async def received(end: bytes, **fields: Any) -> bytes:
            client = await ask(server, **fields)
            data = await client.read_until(end)
            await client.close()
            return data

        no_done = await received(b"\r\n0\r\n\r\n", model="mock/no-done", stream=True)
        assert b"[DONE]" not in no_done
        assert b'"finish_reason":"' not in no_done
        broken = await received(b"[DONE]", model="mock/malformed", stream=True)
        assert b'"del\n\n' in broken
        page = await received(b"</html>", model="mock/html502", stream=True)
        assert page.startswith(b"HTTP/1.1 502")
        error = await received(b"}}", model="mock/error-200", stream=True)
        assert error.startswith(b"HTTP/1.1 200")
        assert b"application/json" in error
        dripped = await received(b"\r\n0\r\n\r\n", model="mock/drip", stream=True, max_tokens=1)
        assert dripped.count(b"\r\n1\r\n") > 100
        assert server.ledger.disconnects == 0

    with_mock(test)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("fault", "tokens"), [("big", 16), ("flood", 10_000)])
def test_large_answers(fault: str, tokens: int, stream: bool) -> None:
    async def test(server: MockServer) -> None:
        async with sdk(server) as client:
            if stream:
                got = await client.chat.completions.create(model=f"mock/{fault}", messages=USER, stream=True)
                assert len([chunk async for chunk in got]) == tokens + 2
            else:
                answer = await client.chat.completions.create(model=f"mock/{fault}", messages=USER)
                assert answer.usage is not None
                assert answer.usage.completion_tokens == tokens
        assert server.ledger.completion_tokens == tokens

    with_mock(test)


# time


def test_pace_and_latency_are_slept_not_guessed() -> None:
    slept: list[float] = []
    now = 100.0

    async def sleep(delay_s: float) -> None:
        nonlocal now
        slept.append(delay_s)
        now += delay_s

    async def main() -> None:
        settings = MockSettings(
            mean_latency_ms=50, p95_latency_ms=50, ttft_ms=200, tokens_per_s=10, completion_tokens=4
        )
        server = MockServer(settings, clock=lambda: now, sleep=sleep)
        await server.start()
        for fields, waits in (({}, [0.05]), ({"stream": True}, [0.2, 0.1, 0.1, 0.1]), ({"model": "mock/slow"}, [0.5])):
            slept.clear()
            client = await ask(server, headers={"connection": "close"}, **fields)
            await client.read_to_end()
            await client.close()
            assert slept == pytest.approx(waits)
        assert [entry.ms for entry in server.ledger.last] == pytest.approx([50, 500, 500])
        await server.stop()

    run(main())


# the client goes away, the server stops


def test_a_client_that_leaves_in_mid_stream_is_seen_at_once() -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server, stream=True)
        await client.read_until(b'"content":" is"')
        await client.close()
        assert soon(await until(lambda: server.ledger.disconnects == 1), 0.1)
        record = server.ledger.last[-1]
        assert record.disconnected
        assert 2 <= record.completion_tokens < 16
        assert server.ledger.completion_tokens == record.completion_tokens
        assert server.ledger.open == 0

    with_mock(test, tokens_per_s=50)


def test_a_client_that_leaves_before_the_answer() -> None:
    async def test(server: MockServer) -> None:
        client = await ask(server)
        await until(lambda: server.ledger.open == 1)
        client.writer.transport.abort()
        assert soon(await until(lambda: server.ledger.disconnects == 1), 0.1)

    with_mock(test, mean_latency_ms=60_000)


def test_a_client_that_leaves_in_mid_request_is_nobody() -> None:
    async def test(server: MockServer) -> None:
        client = await RawClient.connect(port_of(server))
        client.writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        await client.close()
        assert (await get(server, "/health")) == {"status": "ok", "name": "mock"}
        assert server.ledger.requests == 0

    with_mock(test)


def test_stop_does_not_wait_for_anybody() -> None:
    async def test(server: MockServer) -> None:
        idle = await ask(server)
        await idle.read_until(b'"usage"')
        stalled = await ask(server, model="mock/stall")
        await until(lambda: server.ledger.open == 1)
        loop = asyncio.get_running_loop()
        start = loop.time()
        await server.stop()
        assert soon(loop.time() - start, 0.5)
        assert (server.ledger.open, server.ledger.disconnects) == (0, 0)
        for client in (idle, stalled):
            await client.read_to_end()
            await client.close()
        await server.start()
        assert (await get(server, "/v1/models"))["object"] == "list"

    with_mock(test)


# the mock's own pages


def test_pages() -> None:
    async def test(server: MockServer) -> None:
        headers = {"authorization": "Bearer sk-secret", "x-trace": "7", "x-api-key": "sk-secret", "connection": "close"}
        client = await ask(server, "/chat/completions", headers, user="me")
        await client.read_to_end()
        await client.close()
        (seen,) = (await get(server, "/mock/requests"))["requests"]
        assert seen["body"]["user"] == "me"
        assert seen["path"] == "/chat/completions"
        assert (seen["headers"]["x-trace"], seen["headers"]["authorization"]) == ("7", "***")
        totals = await get(server, "/mock/ledger")
        assert totals["by_status"] == {"200": 1}
        assert totals["last"][0]["completion_tokens"] == 16
        assert "sk-secret" not in json.dumps([seen, totals])
        await get(server, "/mock/ledger/reset", "POST")
        assert (await get(server, "/mock/ledger"))["requests"] == 0
        assert (await get(server, CHAT))["error"]["code"] == "method_not_supported"
        assert (await get(server, "/v1/nothing"))["error"]["message"] == "Invalid URL (GET /v1/nothing)"

    with_mock(test)


def test_a_body_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("slipstream.mock.app.MAX_BODY_BYTES", 1000)

    async def test(server: MockServer) -> None:
        async with sdk(server) as client:
            with pytest.raises(openai.APIStatusError) as caught:
                await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x" * 2000}])
        assert caught.value.status_code == 413

    with_mock(test)
