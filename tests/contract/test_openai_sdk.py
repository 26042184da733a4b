"""The official ``openai`` SDK through the gateway to the mock: what works without the gateway works with it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pytest

from slipstream.mock.app import MockServer
from tests.aio import run
from tests.harness import KEY, USER, Gateway, ask, chat_body, config, gateway, mocks, scrape, to

TOOLS: Any = [{"type": "function", "function": {"name": "look_up", "parameters": {"type": "object"}}}]
ANSWER = "This is a mock answer, made of nothing but words. This is a"
Test = Callable[[openai.AsyncOpenAI, MockServer, Gateway], Awaitable[None]]


def through(test: Test, **provider: Any) -> None:
    """Run ``test`` with an SDK client, one mock, and a locked gateway between them."""

    async def main() -> None:
        async with (
            mocks() as (mock,),
            gateway(config(to(mock, **provider), master_api_key=KEY)) as running,
            sdk(running) as client,
        ):
            await test(client, mock, running)

    run(main())


def sdk(running: Gateway, key: str = KEY) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=running.url, api_key=key, max_retries=0)


def plainly(test: Callable[[openai.OpenAI, MockServer], None], **provider: Any) -> None:
    """The same for the blocking client, in a thread of its own."""

    async def main() -> None:
        async with mocks() as (mock,), gateway(config(to(mock, **provider), master_api_key=KEY)) as running:

            def work() -> None:
                with openai.OpenAI(base_url=running.url, api_key=KEY, max_retries=0) as client:
                    test(client, mock)

            await asyncio.to_thread(work)

    run(main())


# ------------------------------------------------------------------ chat


def test_chat() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        answer = await client.chat.completions.create(model="m", messages=USER)
        assert answer.choices[0].message.content == ANSWER
        assert answer.usage is not None
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 16)
        seen = await scrape(running.port)
        tokens = {row["token_type"]: value for row, value in seen.rows("llm_proxy_tokens_total")}
        assert tokens == {"prompt": 3, "completion": 16, "total": 19}
        assert seen.total("slipstream_usage_source_total", usage_source="provider") == 1

    through(test)


def test_chat_plain_client() -> None:
    def test(client: openai.OpenAI, mock: MockServer) -> None:
        assert client.chat.completions.create(model="m", messages=USER).choices[0].message.content == ANSWER
        chunks = list(client.chat.completions.create(model="m", messages=USER, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ANSWER
        assert len(client.embeddings.create(model="m", input="a").data[0].embedding) == 1536
        assert mock.ledger.completion_tokens == 32

    plainly(test)


@pytest.mark.parametrize("asked", [True, False, None])
def test_stream(asked: bool | None) -> None:
    """Usage is always asked for upstream, and passed on only to who asked (R68)."""

    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        options: Any = {} if asked is None else {"stream_options": {"include_usage": asked}}
        stream = await client.chat.completions.create(model="m", messages=USER, stream=True, **options)
        chunks = [chunk async for chunk in stream]
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == ANSWER
        assert [chunk.usage.completion_tokens for chunk in chunks if chunk.usage] == ([16] if asked else [])
        assert len(chunks) == 18 + bool(asked)
        assert all(chunk.choices for chunk in chunks[:18])
        assert mock.ledger.last_requests[-1]["body"]["stream_options"] == {"include_usage": True}
        seen = await scrape(running.port)
        assert seen.total("llm_proxy_tokens_total", token_type="completion") == 16
        assert seen.total("slipstream_usage_source_total", usage_source="provider") == 1
        assert seen.total("llm_proxy_ttft_seconds_count") == 1

    through(test)


def test_stream_helper_and_choices() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        async with client.chat.completions.stream(model="m", messages=USER) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == ANSWER
        whole = await client.chat.completions.create(model="m", messages=USER, n=3)
        assert [choice.index for choice in whole.choices] == [0, 1, 2]
        texts: dict[int, str] = {}
        async for chunk in await client.chat.completions.create(model="m", messages=USER, n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
        assert texts == {0: ANSWER, 1: ANSWER}

    through(test)


@pytest.mark.parametrize("text", ["Hello there", 'grüße 日本語 🎈 \u2028 \x00 "quoted" \\'])
def test_tools(text: str) -> None:
    """The mock's tool call holds what the user wrote: so it came through both ways unharmed."""

    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        messages: Any = [{"role": "user", "content": text}]
        answer = await client.chat.completions.create(model="m", messages=messages, tools=TOOLS)
        (whole,) = answer.choices[0].message.tool_calls or []
        assert whole.type == "function"
        async with client.chat.completions.stream(model="m", messages=messages, tools=TOOLS) as stream:
            final = await stream.get_final_completion()
        (call,) = final.choices[0].message.tool_calls or []
        assert final.choices[0].finish_reason == answer.choices[0].finish_reason == "tool_calls"
        assert (call.function.name, call.function.arguments) == ("look_up", whole.function.arguments)
        assert json.loads(call.function.arguments) == {"echo": text}

    through(test)


# ------------------------------------------------------------------ the other endpoints


def test_embeddings() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        packed = await client.embeddings.create(model="m", input=["a", "b"], dimensions=16)
        assert mock.ledger.last_requests[-1]["body"]["encoding_format"] == "base64"  # what the SDK asks for itself
        floats = await client.embeddings.create(model="m", input=["a", "b"], dimensions=16, encoding_format="float")
        assert [len(item.embedding) for item in packed.data] == [16, 16]
        for one, other in zip(packed.data, floats.data, strict=True):
            assert one.embedding == pytest.approx(other.embedding)
        assert floats.usage.prompt_tokens == 2
        seen = await scrape(running.port)
        assert seen.total("llm_proxy_tokens_total", token_type="prompt") == 4
        assert seen.total("llm_proxy_requests_total", endpoint="/v1/embeddings", status_code="200") == 2

    through(test)


def test_models() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        listed = [model async for model in client.models.list()]
        assert {model.id for model in listed} == {"gpt-x", "public", "org/name"}
        assert all(model.object == "model" and model.created > 0 and model.owned_by for model in listed)
        assert (await client.models.retrieve("public")).id == "public"
        assert (await client.models.retrieve("org/name")).id == "org/name"
        with pytest.raises(openai.NotFoundError) as missing:
            await client.models.retrieve("hidden")
        assert missing.value.code == "model_not_found"

    through(test, models=["gpt-x", "org/name"], model_mapping={"public": "hidden"})


def test_models_of_a_provider_that_serves_all() -> None:
    async def main() -> None:
        async with (
            mocks(models=("one", "two")) as (mock,),
            gateway(config(to(mock))) as running,
            sdk(running) as client,
        ):
            assert [model.id async for model in client.models.list()] == ["one", "two"]
            assert [model.id async for model in client.models.list()] == ["one", "two"]
            assert mock.ledger.by_endpoint == {"/v1/models": 1}  # asked once a minute, not once a request

    run(main())


def test_legacy_completions() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        whole = await client.completions.create(model="m", prompt="Say", max_tokens=2)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == ("This is", "length")
        chunks = [c async for c in await client.completions.create(model="m", prompt="Say", stream=True)]
        assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
        assert all(chunk.usage is None for chunk in chunks)
        assert (await scrape(running.port)).total("llm_proxy_tokens_total", token_type="completion") == 18

    through(test)


def test_model_mapping() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        await client.chat.completions.create(model="public", messages=USER, extra_body={"x_unknown": [1, {"a": None}]})
        sent = mock.ledger.last_requests[-1]["body"]
        assert sent == {"model": "hidden", "messages": USER, "x_unknown": [1, {"a": None}]}

    through(test, model_mapping={"public": "hidden"})


# ------------------------------------------------------------------ refusals


def test_keys() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        async with sdk(running, "sk-wrong") as stranger:
            for call in (
                stranger.chat.completions.create(model="m", messages=USER),
                stranger.chat.completions.create(model="m", messages=USER, stream=True),
                stranger.embeddings.create(model="m", input="a"),
                stranger.models.list().__aiter__().__anext__(),
            ):
                with pytest.raises(openai.AuthenticationError) as refused:
                    await call
                assert refused.value.code == "invalid_api_key"
        assert mock.ledger.requests == 0
        answer = await ask(running.port, "POST", "/v1/chat/completions", chat_body(), {"X-API-Key": KEY})
        assert answer.status == 200
        rows = (await scrape(running.port)).rows("llm_proxy_requests_total")
        counted = [(row["api_key_name"], row["status_code"]) for row, value in rows for _ in range(int(value))]
        assert sorted(counted) == [("master", "200"), *[("none", "401")] * 3], "a list of models is none"

    through(test)


def test_unknown_model() -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        for stream in (False, True):
            with pytest.raises(openai.NotFoundError) as missing:
                await client.chat.completions.create(model="other", messages=USER, stream=stream)
            assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
        assert mock.ledger.requests == 0

    through(test, models=["m"])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("abc-123", True),
        ("A" * 128, True),
        ("A" * 129, False),
        ("bad id", False),
        ("ü", False),
        ("<b>", False),
        (None, False),
    ],
)
def test_request_ids(given: str | None, kept: bool) -> None:
    async def test(client: openai.AsyncOpenAI, mock: MockServer, running: Gateway) -> None:
        headers = {"X-API-Key": KEY} | ({} if given is None else {"X-Request-ID": given})
        seen = []
        for body in (chat_body(), chat_body(stream=True), chat_body(model="mock/500"), b"{"):
            answer = await ask(running.port, "POST", "/v1/chat/completions", body, headers)
            seen.append(answer.headers["x-request-id"])
        assert (set(seen) == {given}) is kept
        if not kept:
            assert len(set(seen)) == 4
            assert all(len(made) == 28 and made.startswith("req_") for made in seen)

    through(test)
