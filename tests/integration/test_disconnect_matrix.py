"""The client leaves: at every moment, on every endpoint, the provider is let go at once and the accounts are closed.

One matrix (R2): endpoint x {unary, stream} x moment x {FIN, RST}. A new endpoint joins it by construction: it must have
a body in ``CALLS``. The mock knows OpenAI's three endpoints, so the others are translated; the second matrix has
providers that speak other dialects. The moments of back-off and of hedging are in tests/unit/test_engine_again.py and
test_engine_hedge.py.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from slipstream.mock.app import MockServer
from slipstream.types import Endpoint
from tests.aio import DEADLINE_S, RawClient, run, until
from tests.harness import (
    CHAT,
    USER,
    Gateway,
    config,
    gateway,
    mocks,
    request_bytes,
    scrape,
    to,
)
from tests.pace import soon
from tests.unit.test_eventstream import event as frame
from tests.upstreams import Peer, Script, upstream

LIMIT_S = 0.1
"""R1: the upstream connection is closed within 100 ms."""
CALLS: dict[Endpoint, dict[str, Any]] = {
    Endpoint.CHAT: {"messages": USER},
    Endpoint.COMPLETIONS: {"prompt": "Say this is a test"},
    Endpoint.EMBEDDINGS: {"input": ["one", "two"]},
    Endpoint.RESPONSES: {"input": "Say this is a test"},
    Endpoint.MESSAGES: {"messages": USER, "max_tokens": 1000},
    Endpoint.COUNT_TOKENS: {"messages": USER},
    Endpoint.INFER: {"prompt": "Say this is a test"},
}
STREAMS = set(CALLS) - {Endpoint.EMBEDDINGS, Endpoint.COUNT_TOKENS}
MOMENTS = {
    "body": "",
    "headers": "stall",
    "first-token": "stall-headers-then",
    "mid": "stall-mid",
}
"""When the client leaves, and the mock's fault that makes the moment last."""
NO_PROVIDER = {Endpoint.COUNT_TOKENS}
"""Nobody is asked where the provider does not count tokens: only the body can be waited for."""
CASES = [
    pytest.param(endpoint, stream, moment, end, id=f"{endpoint.name}-{'stream' if stream else 'unary'}-{moment}-{end}")
    for endpoint, stream, moment, end in itertools.product(CALLS, (False, True), MOMENTS, ("fin", "rst"))
    if (not stream or endpoint in STREAMS) and (moment == "body" or endpoint not in NO_PROVIDER)
]


def test_every_endpoint_is_here() -> None:
    """R2."""
    assert set(CALLS) == set(Endpoint)


def body_of(endpoint: Endpoint, stream: bool, model: str) -> bytes:
    call = {"model": model, **CALLS[endpoint]} | ({"stream": True} if stream else {})
    return json.dumps(call).encode()


def leave(client: RawClient, end: str) -> None:
    """Close the connection: orderly, or by a reset."""
    if end == "rst":
        sock = client.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.writer.transport.abort()
    else:
        client.writer.close()


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[tuple[MockServer, Gateway]]:
    async with mocks(**settings) as (mock,), gateway(config(to(mock, type="mock"))) as served:
        yield mock, served


async def reach(moment: str, client: RawClient, stream: bool, mock: MockServer, served: Gateway) -> None:
    """Wait until the request is where the client is to leave it."""
    if moment == "body":
        await client.read_until(b"100 Continue")  # the head is read and the body is waited for
        return
    await until(lambda: mock.ledger.open == 1)
    (entry,) = mock.ledger._open
    if moment != "headers":
        await until(lambda: entry.status == 200)
    if moment == "mid" and stream:
        await client.read_until(b'" a"')
        await until(lambda: entry.completion_tokens == 3)
    # Whatever the provider has sent is on its way through the gateway: let it arrive.
    await until(lambda: served.runtime.active.outbound["alpha"].transport.stats()["requests"] == 1)


async def scene(endpoint: Endpoint, stream: bool, moment: str, end: str) -> float:
    """Play one case; seconds from the client's end to the provider's notice of it."""
    async with running() as (mock, served):
        client = await RawClient.connect(served.port)
        try:
            body = body_of(endpoint, stream, f"mock/{MOMENTS[moment] or 'ok'}")
            data = request_bytes("POST", endpoint.path, body, {"Expect": "100-continue"} if moment == "body" else None)
            client.writer.write(data[: -len(body)] if moment == "body" else data)
            await reach(moment, client, stream, mock, served)
            if moment == "body":
                client.writer.write(body[:-10])
            leave(client, end)
            took = await noticed(moment, mock, served)
            await until(lambda: served.runtime.in_flight == mock.ledger.open == 0)
            await check_accounts(endpoint, moment, mock, served)
        finally:
            client.writer.transport.abort()
        return took


async def noticed(moment: str, mock: MockServer, served: Gateway) -> float:
    """Wait until the provider (or, as long as it knows of nothing, the gateway) has seen the end."""
    if moment != "body":
        return await until(lambda: mock.ledger.disconnects == 1)
    loop = asyncio.get_running_loop()
    start = loop.time()
    while not (await scrape(served.port)).total("slipstream_client_disconnects_total"):
        assert loop.time() - start < DEADLINE_S
        await asyncio.sleep(0.001)
    return loop.time() - start


async def check_accounts(endpoint: Endpoint, moment: str, mock: MockServer, served: Gateway) -> None:
    """One request, told once, with the tokens that the provider's ledger has."""
    seen = await scrape(served.port)
    ((row, count),) = seen.rows("llm_proxy_requests_total")
    reached = moment != "body"
    assert (row["endpoint"], row["status_code"], count) == (endpoint.label, "499", 1)
    assert row["provider"] == ("alpha" if reached else "none")
    assert seen.total("slipstream_client_disconnects_total") == 1
    assert seen.total("llm_proxy_active_requests") == 0
    assert seen.total("slipstream_failovers_total") == 0
    assert seen.total("llm_proxy_provider_health", provider="alpha") == reached  # not its fault
    sources = {row["usage_source"]: value for row, value in seen.rows("slipstream_usage_source_total")}
    assert sources == ({"estimated": 1} if reached else {})
    counted = seen.total("llm_proxy_tokens_total", token_type="completion")
    assert abs(counted - mock.ledger.completion_tokens) <= 1
    assert (seen.total("llm_proxy_tokens_total", token_type="prompt") > 0) is reached
    outcomes = {row["outcome"]: value for row, value in seen.rows("slipstream_upstream_attempts_total")}
    assert outcomes == ({"client_gone": 1} if reached else {})
    assert mock.ledger.requests == reached


@pytest.mark.parametrize(("endpoint", "stream", "moment", "end"), CASES)
def test_client_leaves(endpoint: Endpoint, stream: bool, moment: str, end: str) -> None:
    """R1, R2, R3, R5, Q19. One second chance for the time on a machine that has other things to do, else none."""
    took = run(scene(endpoint, stream, moment, end))
    if took > LIMIT_S:
        took = run(scene(endpoint, stream, moment, end))
    assert soon(took, LIMIT_S)


@pytest.mark.parametrize("endpoint", sorted(STREAMS), ids=lambda endpoint: endpoint.name)
def test_client_leaves_a_flowing_stream(endpoint: Endpoint) -> None:
    """Nothing stalls here: tokens come all the time, and what was relayed is what is counted."""

    async def main() -> None:
        async with running(tokens_per_s=200.0, completion_tokens=1000) as (mock, served):
            client = await RawClient.connect(served.port)
            client.writer.write(request_bytes("POST", endpoint.path, body_of(endpoint, True, "m")))
            await until(lambda: mock.ledger.completion_tokens > 20)
            leave(client, "fin")
            await until(lambda: mock.ledger.disconnects == 1)
            await until(lambda: served.runtime.in_flight == 0)
            await check_accounts(endpoint, "mid", mock, served)

    run(main())


# ------------------------------------------------------------------ providers that speak other dialects


def sse(*events: dict[str, Any]) -> bytes:
    named = [(b"event: " + event["type"].encode() + b"\n" if "type" in event else b"", event) for event in events]
    return b"".join(name + b"data: " + json.dumps(event).encode() + b"\n\n" for name, event in named)


def frames(**events: dict[str, Any]) -> bytes:
    return b"".join(frame(name, json.dumps(payload).encode()) for name, payload in events.items())


def chat_chunk(text: str) -> dict[str, Any]:
    return {"id": "c", "model": "m", "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}


_MESSAGE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "m",
    "content": [],
    "stop_reason": None,
}
_STARTED = _MESSAGE | {"stop_sequence": None, "usage": {"input_tokens": 7, "output_tokens": 1}}
_BLOCK = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
_DELTA = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello"}}
_RESPONSE = {"id": "resp_1", "object": "response", "status": "in_progress", "model": "m", "output": []}
BEGUN: dict[str, tuple[str, bytes]] = {
    "anthropic": ("text/event-stream", sse({"type": "message_start", "message": _STARTED}, _BLOCK, _DELTA)),
    "gemini": (
        "text/event-stream",
        sse({"candidates": [{"content": {"role": "model", "parts": [{"text": "Hello"}]}}]}),
    ),
    "bedrock": (
        "application/vnd.amazon.eventstream",
        frames(
            messageStart={"role": "assistant"}, contentBlockDelta={"contentBlockIndex": 0, "delta": {"text": "Hello"}}
        ),
    ),
    "ollama": (
        "application/x-ndjson",
        json.dumps({"model": "m", "message": {"role": "assistant", "content": "Hello"}, "done": False}).encode()
        + b"\n",
    ),
    "azure": ("text/event-stream", sse(chat_chunk("Hello"))),
    "openai": (
        "text/event-stream",
        sse(
            {"type": "response.created", "response": _RESPONSE, "sequence_number": 0},
            {"type": "response.output_text.delta", "delta": "Hello", "output_index": 0, "sequence_number": 1},
        ),
    ),
}
"""The beginning of each dialect's stream, up to one piece of text; OpenAI's is that of its own ``/responses``."""
PAIRS = [(kind, endpoint) for kind in BEGUN for endpoint in sorted(STREAMS) if kind not in ("azure", "openai")]
PAIRS += [("azure", endpoint) for endpoint in sorted(STREAMS - {Endpoint.RESPONSES})]
PAIRS += [("openai", Endpoint.RESPONSES)]
MODELS = {
    ("bedrock", Endpoint.EMBEDDINGS): "cohere.embed-english-v3",
    ("bedrock", Endpoint.COUNT_TOKENS): "anthropic.claude-sonnet-4-20250514-v1:0",
}
"""Where the name decides what is asked; any does elsewhere."""


def stalls(begun: bytes) -> Script:
    """Answer with these bytes and never end."""

    async def script(peer: Peer) -> None:
        if await peer.request() is not None:
            if begun:
                await peer.send(begun)
            await peer.request()  # returns when the other side has closed

    return script


async def leaves(kind: str, endpoint: Endpoint, body: bytes, begun: bytes, sign: bytes, end: str) -> float:
    """Leave a provider that stalls; seconds until it is let go."""
    async with upstream(stalls(begun)) as up:
        entry = {"name": "alpha", "type": kind, "api_base": f"http://127.0.0.1:{up.port}", "api_key": "k"}
        async with gateway(config(entry)) as served:
            client = await RawClient.connect(served.port)
            try:
                client.writer.write(request_bytes("POST", endpoint.path, body))
                await until(lambda: len(up.seen) == 1)
                if sign:
                    await client.read_until(sign)
                leave(client, end)
                took = await until(lambda: up.open == 0)
                await until(lambda: served.runtime.in_flight == 0)
                await check_left(endpoint, served, 1 if sign else 0)
            finally:
                client.writer.transport.abort()
            return took


async def check_left(endpoint: Endpoint, served: Gateway, tokens: int) -> None:
    seen = await scrape(served.port)
    ((row, count),) = seen.rows("llm_proxy_requests_total")
    assert (row["endpoint"], row["provider"], row["status_code"], count) == (endpoint.label, "alpha", "499", 1)
    assert seen.total("llm_proxy_active_requests") == 0
    assert seen.total("llm_proxy_provider_health", provider="alpha") == 1
    assert seen.total("llm_proxy_tokens_total", token_type="completion") == tokens
    assert seen.total("llm_proxy_tokens_total", token_type="prompt") > 0
    outcomes = {row["outcome"]: value for row, value in seen.rows("slipstream_upstream_attempts_total")}
    assert outcomes == {"client_gone": 1}


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(("kind", "endpoint"), PAIRS, ids=lambda value: getattr(value, "name", value))
def test_client_leaves_a_stream_of_another_dialect(kind: str, endpoint: Endpoint, end: str) -> None:
    """R1, R6, R8: each provider dialect under each of the client's, in the middle of the stream."""
    content_type, events = BEGUN[kind]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    begun = head + b"%x\r\n%b\r\n" % (len(events), events)
    body = body_of(endpoint, True, "m")
    took = run(leaves(kind, endpoint, body, begun, b"Hello", end))
    if took > LIMIT_S:
        took = run(leaves(kind, endpoint, body, begun, b"Hello", end))
    assert soon(took, LIMIT_S)


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize(
    ("kind", "endpoint"),
    [
        ("anthropic", Endpoint.COUNT_TOKENS),
        ("bedrock", Endpoint.COUNT_TOKENS),
        ("gemini", Endpoint.COUNT_TOKENS),
        ("anthropic", Endpoint.MESSAGES),
        ("anthropic", Endpoint.CHAT),
        ("bedrock", Endpoint.EMBEDDINGS),
        ("gemini", Endpoint.EMBEDDINGS),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_client_leaves_a_silent_provider(kind: str, endpoint: Endpoint, end: str) -> None:
    """The same before any byte, where the mock cannot be asked."""
    body = body_of(endpoint, False, MODELS.get((kind, endpoint), "m"))
    took = run(leaves(kind, endpoint, body, b"", b"", end))
    if took > LIMIT_S:
        took = run(leaves(kind, endpoint, body, b"", b"", end))
    assert soon(took, LIMIT_S)


# ------------------------------------------------------------------ others, slow readers, leaks


def test_others_go_on() -> None:
    """One client's end is nobody else's."""

    async def main() -> None:
        async with running(tokens_per_s=100.0, completion_tokens=40) as (mock, served):
            data = request_bytes("POST", CHAT, body_of(Endpoint.CHAT, True, "m"))
            clients = [await RawClient.connect(served.port) for _ in range(10)]
            for client in clients:
                client.writer.write(data)
            await until(lambda: mock.ledger.completion_tokens > 50)
            for client in clients[::2]:
                leave(client, "rst")
            for client in clients[1::2]:
                await client.read_until(b"data: [DONE]\n\n")
                assert client.received.count(b'"content"') >= 40
                await client.close()
            await until(lambda: mock.ledger.open == 0)
            seen = await scrape(served.port)
            assert seen.total("llm_proxy_requests_total", status_code="499") == 5
            assert seen.total("llm_proxy_requests_total", status_code="200") == 5
            counted = seen.total("llm_proxy_tokens_total", token_type="completion")
            assert abs(counted - mock.ledger.completion_tokens) <= 5  # one token each may be on its way

    run(main())


def test_a_client_that_stops_reading_then_leaves() -> None:
    """The gateway waits in a write then, not in a read: it must notice all the same, and hold little (R33)."""

    async def main() -> None:
        async with running() as (mock, served):
            client = await RawClient.connect(served.port)
            client.writer.transport.pause_reading()  # type: ignore[attr-defined]
            body = body_of(Endpoint.CHAT, True, "mock/flood").replace(b'"messages"', b'"n": 8, "messages"')
            client.writer.write(request_bytes("POST", CHAT, body))
            sent = -1
            while sent != mock.ledger.completion_tokens:  # until the back-pressure has reached the provider
                sent = mock.ledger.completion_tokens
                await asyncio.sleep(0.05)
            assert 0 < sent < 80_000
            leave(client, "rst")
            await until(lambda: mock.ledger.disconnects == 1)
            await until(lambda: served.runtime.in_flight == 0)
            seen = await scrape(served.port)
            assert seen.total("llm_proxy_requests_total", status_code="499") == 1

    run(main())


def sockets() -> int:
    """Open file descriptors of this process: gateway, provider and clients are all in it."""
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
def test_nothing_is_left_behind() -> None:
    """R6: after 300 clients that left in mid-stream, sockets, tasks and connections are what they were."""

    async def main() -> None:
        async with running() as (mock, served):
            data = request_bytes("POST", CHAT, body_of(Endpoint.CHAT, True, "mock/stall-mid"))

            async def one(end: str) -> None:
                client = await RawClient.connect(served.port)
                client.writer.write(data)
                await client.read_until(b'" a"')
                leave(client, end)

            async def rounds(count: int) -> None:
                for _ in range(count):
                    await asyncio.gather(*(one(end) for end in ("fin", "rst") * 15))
                await until(lambda: served.runtime.in_flight == mock.ledger.open == 0)

            await rounds(1)
            await until(lambda: len(asyncio.all_tasks()) <= 3)  # this one, its wait_for and the gateway
            files, tasks = sockets(), len(asyncio.all_tasks())
            await rounds(10)
            await until(lambda: sockets() <= files)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert mock.ledger.disconnects == 330
            seen = await scrape(served.port)
            assert seen.total("llm_proxy_requests_total", status_code="499") == 330
            assert seen.total("llm_proxy_tokens_total", token_type="completion") == mock.ledger.completion_tokens == 990

    run(main())


# ------------------------------------------------------------------ answers that are read to their end


@pytest.mark.parametrize("end", ["fin", "rst"])
@pytest.mark.parametrize("stream", [False, True], ids=["unary", "stream"])
@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES], ids=lambda endpoint: endpoint.name)
@pytest.mark.parametrize("listener", ["native", "aiohttp"])
def test_an_answer_is_finished_for_the_accounts(
    listener: str, endpoint: Endpoint, stream: bool, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """R7 ``finish``: the provider sees no disconnect, and its own ledger is what is counted (R8)."""
    monkeypatch.setenv("SLIPSTREAM_LISTENER", listener)

    async def main() -> None:
        conf: dict[str, Any] = {"routing": {"on_disconnect": {"*": "finish"}}}
        async with (
            mocks(tokens_per_s=200.0, completion_tokens=60, mean_latency_ms=100, p95_latency_ms=101) as (mock,),
            gateway(config(to(mock, type="mock"), **conf)) as served,
        ):
            client = await RawClient.connect(served.port)
            client.writer.write(request_bytes("POST", endpoint.path, body_of(endpoint, stream, "m")))
            await until(lambda: mock.ledger.open == 1)
            if stream:
                await until(lambda: mock.ledger.completion_tokens > 5)
            leave(client, end)
            await until(lambda: len(served.runtime.outlasting) == 1)
            await until(lambda: served.runtime.in_flight == mock.ledger.open == 0)
            assert (mock.ledger.disconnects, mock.ledger.completion_tokens) == (0, 60)
            seen = await scrape(served.port)
            ((row, count),) = seen.rows("llm_proxy_requests_total")
            assert (row["status_code"], count) == ("499", 1)
            assert seen.total("llm_proxy_tokens_total", token_type="completion") == 60
            assert seen.total("llm_proxy_tokens_total", token_type="prompt") == mock.ledger.prompt_tokens
            assert {row["usage_source"] for row, _ in seen.rows("slipstream_usage_source_total")} == {"provider"}
            assert seen.total("slipstream_client_disconnects_total") == 1
            assert served.runtime.active.in_flight == 0

    run(main())
