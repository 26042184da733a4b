"""The official ``openai`` SDK when providers fail: another one answers, or the SDK raises what it would without us."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest

from slipstream.mock.app import MockServer
from tests.aio import DEADLINE_S, run
from tests.harness import KEY, USER, Gateway, config, gateway, mocks, scrape, to

ANSWER = "This is a mock answer, made of nothing but words. This is a"
QUICK = {"connect_s": 1.0, "first_byte_s": 0.2, "idle_s": 0.2, "total_s": 5.0}
MID = ["cut", "reset", "stall-mid", "no-done", "error-mid"]


@asynccontextmanager
async def pair(broken: str) -> AsyncIterator[tuple[MockServer, MockServer, Gateway, openai.AsyncOpenAI]]:
    """Two providers of the model ``m``; the first one, whose turn it is, fails as ``broken`` says."""
    async with mocks(2) as (first, second):
        entry = to(first, "first", model_mapping={"m": f"mock/{broken}"}, timeout=QUICK)
        async with (
            gateway(config(entry, to(second, "second", model_mapping={"m": "good"}))) as running,
            client_of(running) as client,
        ):
            yield first, second, running, client


def client_of(running: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=running.url, api_key=KEY, max_retries=0)


async def ask(client: openai.AsyncOpenAI, stream: bool, model: str = "m") -> str:
    """The text of an answer."""
    if not stream:
        whole = await client.chat.completions.create(model=model, messages=USER)
        return whole.choices[0].message.content or ""
    parts = [chunk async for chunk in await client.chat.completions.create(model=model, messages=USER, stream=True)]
    assert sum(choice.delta.role == "assistant" for chunk in parts for choice in chunk.choices) == 1
    return "".join(choice.delta.content or "" for chunk in parts for choice in chunk.choices)


# ------------------------------------------------------------------ failover before the first byte


FAILOVER = {
    "401": "auth",
    "429": "rate_limited",
    "500": "server",
    "502": "server",
    "503": "overloaded",
    "504": "timeout",
    "529": "overloaded",
    "quota": "quota",
    "html502": "server",
    "cut-first": "transport",
    "stall": "timeout",
    "stall-headers-then": "timeout",
    "malformed": "malformed",
    "error-200": "server",
    "error-first": "server",
    "role-then-error": "server",
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("broken", FAILOVER)
def test_failover(broken: str, stream: bool) -> None:
    """One clean answer from the second provider, counted as what it was; the next requests leave the first alone."""

    async def main() -> None:
        async with pair(broken) as (first, second, running, client):
            assert await ask(client, stream) == ANSWER
            assert (first.ledger.requests, second.ledger.requests) == (1, 1)
            seen = await scrape(running.port)
            assert seen.total("slipstream_failovers_total") == 1
            failed = seen.rows("slipstream_upstream_attempts_total", provider="first")
            assert [(row["outcome"], value) for row, value in failed] == [(FAILOVER[broken], 1)]
            assert seen.total("slipstream_upstream_attempts_total", provider="second", outcome="none") == 1
            (row,) = seen.rows("llm_proxy_requests_total")
            assert (row[0]["provider"], row[0]["status_code"], row[1]) == ("second", "200", 1)
            assert seen.total("llm_proxy_provider_health", provider="first") == 0
            for _ in range(4):
                assert await ask(client, stream) == ANSWER
            assert (first.ledger.requests, second.ledger.requests) == (1, 5)

    run(main())


@pytest.mark.parametrize("stream", [False, True])
def test_failover_on_refused_connection(stream: bool) -> None:
    async def main() -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))  # bound and not listening: refused
            base = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
            async with (
                mocks() as (second,),
                gateway(config(to(base, "first"), to(second, "second"))) as running,
                client_of(running) as client,
            ):
                assert await ask(client, stream) == ANSWER
                seen = await scrape(running.port)
                assert seen.total("slipstream_upstream_attempts_total", provider="first", outcome="connect") == 1

    run(main())


def test_fallback_model() -> None:
    """``routing.fallbacks``: the other model answers when nobody can serve the first."""

    async def main() -> None:
        async with mocks(2) as (first, second):
            entries = to(first, "first", model_mapping={"big": "mock/503"}), to(second, "second", models=["small"])
            conf = config(*entries, routing={"fallbacks": {"big": ["small"]}})
            async with gateway(conf) as running, client_of(running) as client:
                assert await ask(client, False, "big") == ANSWER
                assert second.ledger.by_model == {"small": 1}

    run(main())


@pytest.mark.parametrize("broken", ["400", "404", "413", "context"])
def test_no_failover_on_the_clients_own_mistakes(broken: str) -> None:
    """(R54) What is wrong with the request is wrong everywhere."""

    async def main() -> None:
        async with pair(broken) as (first, second, running, client):
            with pytest.raises(openai.APIStatusError):
                await ask(client, False)
            assert (first.ledger.requests, second.ledger.requests) == (1, 0)
            assert (await scrape(running.port)).total("slipstream_failovers_total") == 0

    run(main())


def test_everybody_fails() -> None:
    """The last failure is what the client gets, told not to multiply our attempts (Q08)."""

    async def main() -> None:
        async with mocks(2) as (first, second):
            entries = [
                to(mock, name, model_mapping={"m": "mock/429:7"}) for mock, name in ((first, "a"), (second, "b"))
            ]
            async with gateway(config(*entries)) as running, client_of(running) as client:
                with pytest.raises(openai.RateLimitError) as limited:
                    await ask(client, True)
                headers = limited.value.response.headers
                assert (headers["retry-after"], headers["x-should-retry"]) == ("7", "false")
                assert headers["x-slipstream-attempts"] == "2"

    run(main())


# ------------------------------------------------------------------ after the first byte


@asynccontextmanager
async def alone(**timeout: float) -> AsyncIterator[tuple[MockServer, Gateway, openai.AsyncOpenAI]]:
    # Paced, so that content and what follows it do not arrive in one read: an error in the same read as the first
    # content comes before anything was sent, and is an HTTP error.
    async with (
        mocks(tokens_per_s=100.0) as (mock,),
        gateway(config(to(mock, timeout=QUICK | timeout))) as running,
        client_of(running) as client,
    ):
        yield mock, running, client


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
@pytest.mark.parametrize("broken", MID)
def test_broken_stream(broken: str, endpoint: str) -> None:
    """What came before is delivered, then the SDK raises: never a clean end, never a hang (R12)."""

    async def main() -> None:
        async with alone() as (mock, running, client):
            got: list[str] = []

            async def read() -> None:
                if endpoint == "chat":
                    chat = await client.chat.completions.create(model=f"mock/{broken}", messages=USER, stream=True)
                    async for chunk in chat:
                        got.append(chunk.choices[0].delta.content or "")
                else:
                    async for piece in await client.completions.create(
                        model=f"mock/{broken}", prompt="Say", stream=True
                    ):
                        got.append(piece.choices[0].text)

            with pytest.raises(openai.APIError) as broke:
                await asyncio.wait_for(read(), DEADLINE_S)
            assert broke.value.message
            text = "".join(got)
            assert ANSWER.startswith(text)
            assert len(text) == len("This is a") or broken == "no-done"
            seen = await scrape(running.port)
            assert seen.total("llm_proxy_requests_total", status_code="200") == 1
            assert seen.total("llm_proxy_active_requests") == 0
            assert seen.total("slipstream_usage_source_total", usage_source="estimated") == 1
            counted = seen.total("llm_proxy_tokens_total", token_type="completion")
            assert counted == mock.ledger.completion_tokens == (16 if broken == "no-done" else 3)

    run(main())


@pytest.mark.parametrize("broken", MID)
def test_broken_stream_plain_client(broken: str) -> None:
    async def main() -> None:
        async with alone() as (_, running, _client):

            def work() -> None:
                with (
                    openai.OpenAI(base_url=running.url, api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client,
                    pytest.raises(openai.APIError) as broke,
                ):
                    list(client.chat.completions.create(model=f"mock/{broken}", messages=USER, stream=True))
                assert not isinstance(broke.value, openai.APITimeoutError)

            await asyncio.to_thread(work)

    run(main())


@pytest.mark.parametrize(
    ("broken", "status", "code"),
    [
        ("cut", 502, "upstream_connection_closed"),
        ("reset", 502, "upstream_connection_closed"),
        ("cut-first", 502, "upstream_connection_closed"),
        ("stall", 504, "upstream_first_byte_timeout"),
        ("stall-headers-then", 504, "upstream_idle_timeout"),
        ("stall-mid", 504, "upstream_idle_timeout"),
        ("malformed", 502, "upstream_malformed_response"),
        ("error-200", 502, None),
        ("html502", 502, None),
    ],
)
def test_broken_whole_answer(broken: str, status: int, code: str | None) -> None:
    """A whole reply that is cut, late or broken is an HTTP error with a code of its own (R17, R66)."""

    async def main() -> None:
        async with alone() as (_, running, client):
            with pytest.raises(openai.InternalServerError) as failed:
                await ask(client, False, f"mock/{broken}")
            assert (failed.value.status_code, failed.value.code) == (status, code)
            assert "<html" not in failed.value.message
            seen = await scrape(running.port)
            assert seen.total("llm_proxy_requests_total", status_code=str(status)) == 1
            assert seen.total("llm_proxy_tokens_total", token_type="completion") == 0  # R8: nothing was delivered

    run(main())


def test_total_limit() -> None:
    """The sum counts too: a stream that never pauses for long ends at ``total_s``."""

    async def main() -> None:
        async with mocks(tokens_per_s=50.0) as (mock,):
            entry = to(mock, timeout=QUICK | {"total_s": 0.15})
            async with gateway(config(entry)) as running, client_of(running) as client:
                with pytest.raises(openai.APIError) as late:
                    await ask(client, True)
                assert late.value.code == "upstream_total_timeout"

    run(main())


# ------------------------------------------------------------------ classes of errors


@pytest.mark.parametrize(
    ("broken", "raised", "code", "says"),
    [
        ("400", openai.BadRequestError, None, "Invalid value in the request."),
        ("403", openai.PermissionDeniedError, "unsupported_country_region_territory", "not supported"),
        ("404", openai.NotFoundError, "model_not_found", "does not exist"),
        ("413", openai.APIStatusError, "request_too_large", "Maximum content size"),
        ("422", openai.UnprocessableEntityError, None, "status 422"),
        ("429:7", openai.RateLimitError, "rate_limit_exceeded", "Rate limit reached"),
        ("quota", openai.RateLimitError, "insufficient_quota", "exceeded your current quota"),
        ("context", openai.BadRequestError, "context_length_exceeded", "maximum context length"),
        ("500", openai.InternalServerError, None, "The server had an error"),
        ("503", openai.InternalServerError, None, "overloaded"),
        ("401", openai.InternalServerError, "upstream_auth_error", "refused the gateway's credentials"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_error_classes(broken: str, raised: type[openai.APIStatusError], code: str, says: str, stream: bool) -> None:
    """The provider's class of failure and its words arrive (R55), its ``Retry-After`` too (R52: a 503 always has one).
    A 401 of ours stays ours."""

    async def main() -> None:
        async with alone() as (_, _running, client):
            with pytest.raises(raised, match=says) as failed:
                await ask(client, stream, f"mock/{broken}")
            wanted: Any = {"413": 413, "401": 502}.get(broken, raised.__dict__.get("status_code", None))
            assert failed.value.status_code == (wanted or int(broken[:3]))
            assert failed.value.code == code
            assert failed.value.response.headers["content-type"] == "application/json"
            rest = {"429:7": "7", "503": "2"}.get(broken)  # 2: the second rest
            assert failed.value.response.headers.get("retry-after") == rest

    run(main())
