"""``client.responses`` of the official ``openai`` SDK through the gateway to providers that have no such API: one that
knows chat (the mock), Anthropic, Bedrock and Gemini (recorded). The conversation is kept by the client (PROTOCOLS.md
3.2, "Stateless mode"): what it sends back must reach the provider as that gave it.
"""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode
from collections.abc import Awaitable, Callable
from typing import Any

import openai
import pydantic
import pytest

from tests.aio import DEADLINE_S, run
from tests.contract.recorded import Behind, behind, exchange, needs_recordings
from tests.harness import KEY, scrape

ANSWER = "This is a mock answer, made of nothing but words. This is a"
TOOL: Any = {
    "type": "function",
    "name": "get_weather",
    "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
    "strict": False,
}
STATELESS: Any = {"store": False, "include": ["reasoning.encrypted_content"]}
Json = dict[str, Any]
Test = Callable[[openai.AsyncOpenAI, Behind], Awaitable[None]]
pytestmark = needs_recordings


def through(test: Test, *idents: str, mock: Json | None = None, **settings: Any) -> None:
    """The mock's own type knows chat and not ``/responses``, so it is asked for a chat."""

    async def main() -> None:
        async with (
            behind(*idents, mock={"type": "mock"} | (mock or {}), **settings) as b,
            openai.AsyncOpenAI(base_url=b.running.url, api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client,
        ):
            await test(client, b)

    run(main())


async def answer_of(client: openai.AsyncOpenAI, stream: bool, **fields: Any) -> Any:
    """The response; of a stream the accumulated one, whose text is what came in pieces."""
    if not stream:
        return await client.responses.create(**fields)
    async with client.responses.stream(**fields) as events:
        pieces, names, numbers = [], [], []
        async for event in events:
            names.append(event.type)
            numbers.append(event.sequence_number)
            if event.type == "response.output_text.delta":
                pieces.append(event.delta)
        final = await events.get_final_response()
    assert final.output_text == "".join(pieces)
    assert numbers == list(range(len(numbers)))
    assert names[:2] == ["response.created", "response.in_progress"]
    assert names[-1] in ("response.completed", "response.incomplete")
    return final


def sent_back(response: Any) -> list[Json]:
    """The items of an answer as the next turn's input holds them."""
    return [item.model_dump(exclude_none=True) for item in response.output]


# ------------------------------------------------------------------ text


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_text_of_a_chat_provider(stream: bool) -> None:
    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        fields: Any = {"instructions": "Be brief.", "max_output_tokens": 50, "temperature": 0.5, "metadata": {"a": "b"}}
        response = await answer_of(client, stream, model="m", input="Hi", **fields)
        assert response.output_text == ANSWER
        assert (response.id[:5], response.model, response.status) == ("resp_", "m", "completed")
        assert response.usage is not None
        assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (3, 16, 19)
        assert (response.instructions, response.metadata) == ("Be brief.", {"a": "b"})
        sent = b.mocked
        assert sent["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
        assert (sent["temperature"], sent.get("max_tokens", sent.get("max_completion_tokens"))) == (0.5, 50)
        assert not {"input", "instructions", "max_output_tokens", "store", "include"} & set(sent)
        seen = await scrape(b.running.port)
        assert seen.total("llm_proxy_requests_total", endpoint="/v1/responses", status_code="200") == 1
        assert seen.total("llm_proxy_tokens_total", token_type="completion") == 16

    through(test)


@pytest.mark.parametrize(
    "ident",
    [
        "anthropic.messages.text.8dd34368",
        "anthropic.messages.text-stream.0498421b",
        "anthropic.messages.stop-length-stream.997cb051",
        "bedrock.converse.text-stream.f151dcd0",
        "bedrock.converse.stop-length.7bfc7bbf",
        "gemini.generate-content.tool-result.4dcb71eb",
    ],
)
def test_text_of_recorded_providers(ident: str) -> None:
    expected = exchange(ident)["expected"]

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        response = await answer_of(client, "stream" in ident, model=ident, input="Hi")
        assert response.output_text == expected["text"]
        cut = expected["finish_reason"] == "length"
        assert response.status == ("incomplete" if cut else "completed")
        assert (response.incomplete_details is not None) == cut
        assert response.usage.output_tokens == expected["usage"]["completion"]

    through(test, ident)


def test_plain_client() -> None:
    ident = "bedrock.converse.text-stream.f151dcd0"

    async def main() -> None:
        async with behind(ident, mock={"type": "mock"}) as b:

            def work() -> None:
                with openai.OpenAI(base_url=b.running.url, api_key=KEY, max_retries=0) as client:
                    assert client.responses.create(model="m", input="Hi").output_text == ANSWER
                    *_, last = client.responses.create(model=ident, input="Hi", stream=True)
                    assert last.type == "response.completed"
                    assert last.response.output_text == exchange(ident)["expected"]["text"]

            await asyncio.to_thread(work)

    run(main())


# ------------------------------------------------------------------ reasoning


@pytest.mark.parametrize(
    "ident",
    [
        "anthropic.messages.reasoning-stream.a61694b9",
        "anthropic.messages.reasoning.ce9ef893",
        "bedrock.converse.reasoning.dfda29c3",
        "bedrock.converse.reasoning-stream.3944132a",
    ],
)
def test_reasoning_goes_back_unchanged(ident: str) -> None:
    """An item of its own; what is encrypted in it is the provider's signature, which returns to it."""
    expected, stream = exchange(ident)["expected"], "stream" in ident

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        fields: Any = {"model": ident, "reasoning": {"effort": "low"}, **STATELESS}
        response = await answer_of(client, stream, input="Hi", **fields)
        thought, message = response.output
        assert (thought.type, message.type) == ("reasoning", "message")
        assert thought.encrypted_content
        said = "".join(part.text for part in thought.summary)
        assert said.strip() == (expected["reasoning"] or "").strip()
        question: Any = {"role": "user", "content": "Hi"}
        more: Any = {"role": "user", "content": "And then?"}
        await answer_of(client, stream, input=[question, *sent_back(response), more], **fields)
        assert secrets_in(b.sent)
        assert secrets_in(b.sent) <= secrets_of(exchange(ident))

    through(test, ident)


def secrets_in(body: Json) -> set[str]:
    """Signatures and redacted thinking in the assistant's turn of a provider's body."""
    _, turn, _ = body["messages"]
    found = set()
    for block in turn["content"]:
        inner = block.get("reasoningContent", {}).get("reasoningText", block)
        found |= {inner[name] for name in ("signature", "data") if name in inner}
    return found


def secrets_of(ex: Json) -> set[str]:
    """What may stand there: quoted strings of the recorded answer, which is binary for Bedrock's streams."""
    response = ex["response"]
    raw = b64decode(response["body_base64"]) if "body_base64" in response else response["body"].encode()
    return {piece.decode() for piece in raw.split(b'"') if len(piece) > 50 and piece.isascii()}


# ------------------------------------------------------------------ tools


@pytest.mark.parametrize(
    "ident",
    [
        "anthropic.messages.tools.edfa58d1",
        "anthropic.messages.tools-stream.dfbe0867",
        "bedrock.converse.tools-parallel.267ac6af",
        "bedrock.converse.tools-parallel-stream.a39a8c35",
        "gemini.generate-content.tools.a8221369",
        "gemini.generate-content.tools-stream.63e0e09c",
        "gemini.generate-content.tools-parallel.8af730be",
    ],
)
def test_tools_loop(ident: str) -> None:
    """Calls (R60); in the next turn each result stands under its call, and signatures of calls are there."""
    calls, stream = exchange(ident)["expected"]["tool_calls"], "stream" in ident

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        tools = [TOOL | {"name": name} for name in dict.fromkeys(call["name"] for call in calls)]
        fields: Any = {"model": ident, "tools": tools, **STATELESS}
        response = await answer_of(client, stream, input="Hi", **fields)
        made = [item for item in response.output if item.type == "function_call"]
        assert [(item.name, json.loads(item.arguments)) for item in made] == [
            (call["name"], call["arguments"]) for call in calls
        ]
        assert len({item.call_id for item in made}) == len(calls)
        results: list[Json] = [
            {"type": "function_call_output", "call_id": item.call_id, "output": f"sunny {n}"}
            for n, item in enumerate(made)
        ]
        question: Any = {"role": "user", "content": "Hi"}
        await answer_of(client, stream, input=[question, *sent_back(response), *results], **fields)
        check_turns(b.sent, ident, [item.call_id for item in made])

    through(test, ident)


def check_turns(body: Json, ident: str, ids: list[str]) -> None:
    """The call and result blocks of a provider's body, in its dialect."""
    if ident.startswith("gemini"):
        _, turn, last = body["contents"]
        called = [part for part in turn["parts"] if "functionCall" in part]
        answered = [part["functionResponse"] for part in last["parts"]]
        assert [reply["name"] for reply in answered] == [part["functionCall"]["name"] for part in called]
        assert [f"sunny {n}" in str(reply["response"]) for n, reply in enumerate(answered)] == [True] * len(ids)
        raw = exchange(ident)["response"]["body"]
        signatures = [part["thoughtSignature"] for part in called if "thoughtSignature" in part]
        assert [signature in raw.replace("\\u003d", "=") for signature in signatures] == [True] * len(signatures)
        assert ("thoughtSignature" in called[0]) == ("thoughtSignature" in raw)
        return
    _, turn, last = body["messages"]
    if ident.startswith("bedrock"):
        called = [block["toolUse"]["toolUseId"] for block in turn["content"] if "toolUse" in block]
        results = [block["toolResult"] for block in last["content"]]
        answered = [(result["toolUseId"], result["content"][0]["text"]) for result in results]
    else:
        called = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
        answered = [(block["tool_use_id"], text_in(block["content"])) for block in last["content"]]
    assert called == ids == [call["id"] for call in exchange(ident)["expected"]["tool_calls"]]
    assert answered == [(call_id, f"sunny {n}") for n, call_id in enumerate(ids)]


def text_in(content: Any) -> str:
    return content if isinstance(content, str) else "".join(part["text"] for part in content)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tools_loop_with_a_chat_provider(stream: bool) -> None:
    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        fields: Any = {"model": "m", "tools": [TOOL], **STATELESS}
        response = await answer_of(client, stream, input="Hi", tool_choice="required", **fields)
        (call,) = response.output
        assert (call.type, call.name, call.status) == ("function_call", "get_weather", "completed")
        assert isinstance(json.loads(call.arguments), dict)
        assert b.mocked["tool_choice"] == "required"
        assert b.mocked["tools"][0]["function"]["parameters"] == TOOL["parameters"]
        result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
        question: Any = {"role": "user", "content": "Hi"}
        response = await answer_of(client, stream, input=[question, *sent_back(response), result], **fields)
        assert response.output_text == ANSWER
        _, turn, told = b.mocked["messages"]
        assert turn["tool_calls"][0]["id"] == told["tool_call_id"] == call.call_id
        assert (told["role"], told["content"]) == ("tool", "sunny")

    through(test)


# ------------------------------------------------------------------ structured output


class Author(pydantic.BaseModel):
    first_name: str
    last_name: str


class Review(pydantic.BaseModel):
    title: str
    author: Author
    rating: int


@pytest.mark.parametrize("ident", ["m", "anthropic.messages.structured-output.66ce35f1"])
def test_structured_output(ident: str) -> None:
    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        parsed = await client.responses.parse(model=ident, input="Hi", text_format=Review)
        assert isinstance(parsed.output_parsed, Review)
        if ident == "m":
            form = b.mocked["response_format"]["json_schema"]
            assert (form["name"], form["strict"]) == ("Review", True)
            assert set(form["schema"]["properties"]) == {"title", "author", "rating"}
        else:
            assert parsed.output_parsed.rating == 7
            assert "first_name" in json.dumps(b.sent["output_config"])

    through(test, *(() if ident == "m" else (ident,)))


# ------------------------------------------------------------------ refusals and failures


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"background": True}, "background"),
        ({"extra_body": {"messages": []}}, "messages"),
        ({"extra_body": {"max_tokens": 5}}, "max_tokens"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
    ],
)
def test_refused(fields: Json, param: str) -> None:
    """What points to something stored, or is chat's name of a field: 400 naming it, and nobody is asked."""

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        for model in ("m", "anthropic.messages.text.8dd34368"):
            for stream in (False, True):
                with pytest.raises(openai.BadRequestError) as refused:
                    await client.responses.create(model=model, input="Hi", stream=stream, **fields)
                assert refused.value.param == param
                assert refused.value.type == "invalid_request_error"
        assert b.mock.ledger.requests == len(b.log) == 0

    through(test, "anthropic.messages.text.8dd34368")


ERRORS: list[tuple[str, type[openai.APIStatusError], int]] = [
    ("nobody-serves-this", openai.NotFoundError, 404),
    ("mock/400", openai.BadRequestError, 400),
    ("mock/401", openai.InternalServerError, 502),
    ("mock/429:7", openai.RateLimitError, 429),
    ("mock/500", openai.InternalServerError, 500),
    ("mock/error-200", openai.InternalServerError, 502),
    ("anthropic.messages.error-404.e8f8d677", openai.NotFoundError, 404),
    ("anthropic.messages.error-529.d-overloaded", openai.InternalServerError, 529),
    ("bedrock.converse.error-429.d-throttli", openai.RateLimitError, 429),
    ("bedrock.converse.error-503.d-serviceu", openai.InternalServerError, 503),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors(stream: bool) -> None:
    """OpenAI's form and the SDK's exception, whoever the provider was (R55)."""
    recorded = [model for model, *_ in ERRORS if "." in model]
    faults = [model for model, *_ in ERRORS if model.startswith("mock/")]

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        for model, raised, status in ERRORS:
            with pytest.raises(openai.APIStatusError) as failed:
                await answer_of(client, stream, model=model, input="Hi")
            error = failed.value
            assert (model, type(error), error.status_code) == (model, raised, status)
            assert set(error.response.json()["error"]) == {"message", "type", "param", "code"}
            assert error.message

    through(test, *recorded, mock={"models": faults}, routing={"retries": 0})


def test_wrong_key() -> None:
    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        for stream in (False, True):
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="sk-wrong").responses.create(model="m", input="Hi", stream=stream)
        assert b.mock.ledger.requests == 0

    through(test)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("mock/cut", "This is a"),
        ("mock/error-mid", "This is a"),
        ("mock/no-done", ANSWER),
        ("anthropic.messages.truncated-stream.d-cut", '{\n  "output": 3\n}'),
        ("bedrock.converse.error-midstream.d-throttli", "Hi! How are you? How"),
        ("bedrock.converse.bad-frames.d-truncated", ""),
    ],
)
def test_broken_stream(model: str, text: str) -> None:
    """What came is delivered, then the SDK raises: never a clean end, never a hang (R12, R15)."""

    async def test(client: openai.AsyncOpenAI, b: Behind) -> None:
        got: list[str] = []

        async def read() -> None:
            async for event in await client.responses.create(model=model, input="Hi", stream=True):
                assert event.type != "response.completed"
                if event.type == "response.output_text.delta":
                    got.append(event.delta)

        with pytest.raises(openai.APIError) as broke:
            await asyncio.wait_for(read(), DEADLINE_S)
        assert broke.value.message
        assert "".join(got) == text or not text
        assert (await scrape(b.running.port)).total("llm_proxy_active_requests") == 0

    if model.startswith("mock/"):
        through(test, mock={"models": [model]})
    else:
        through(test, model)
