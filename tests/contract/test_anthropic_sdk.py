"""The official ``anthropic`` SDK through the gateway to providers of three kinds: OpenAI's API (the mock), Anthropic's
own and Bedrock's (recorded). What the SDK gives its user is what it gives without a gateway.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anthropic
import pytest

from tests.aio import DEADLINE_S, run
from tests.contract.recorded import Behind, behind, exchange, needs_recordings, recorded_model
from tests.harness import KEY, USER, scrape
from tests.harness import ask as http

ANSWER = "This is a mock answer, made of nothing but words. This is a"
NATIVE = "anthropic.messages."
CONVERSE = "bedrock.converse."
TOOL: Any = {
    "name": "get_weather",
    "description": "The weather at a place.",
    "input_schema": {"type": "object", "properties": {"location": {"type": "string"}}, "required": ["location"]},
}
Json = dict[str, Any]
Test = Callable[[anthropic.AsyncAnthropic, Behind], Awaitable[None]]
pytestmark = needs_recordings


def client_of(b: Behind, auth: str = "api_key", key: str = KEY) -> anthropic.AsyncAnthropic:
    """``auth``: ``api_key`` is sent as ``x-api-key``, ``auth_token`` as a bearer token."""
    options: Any = {"api_key": None, "auth_token": None} | {auth: key}
    return anthropic.AsyncAnthropic(base_url=b.root, max_retries=0, timeout=DEADLINE_S, **options)


def through(test: Test, *idents: str, auth: str = "api_key", **settings: Any) -> None:
    """Run ``test`` with an SDK client before these recorded exchanges and a mock, through a locked gateway."""

    async def main() -> None:
        async with behind(*idents, **settings) as b, client_of(b, auth) as client:
            await test(client, b)

    run(main())


def ask(model: str, **fields: Any) -> Any:
    return {"model": model, "max_tokens": 2048, "messages": USER} | fields


def text_of(message: Any) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


async def streamed(client: anthropic.AsyncAnthropic, **fields: Any) -> Any:
    """The SDK's accumulated message. Its text is what came in pieces."""
    async with client.messages.stream(**fields) as stream:
        pieces = [piece async for piece in stream.text_stream]
        final = await stream.get_final_message()
    assert text_of(final) == "".join(pieces)
    return final


async def answer_of(client: anthropic.AsyncAnthropic, stream: bool, **fields: Any) -> Any:
    return await (streamed(client, **fields) if stream else client.messages.create(**fields))


# ------------------------------------------------------------------ text


@pytest.mark.parametrize("auth", ["api_key", "auth_token"])
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_text_of_an_openai_provider(stream: bool, auth: str) -> None:
    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        message = await answer_of(client, stream, **ask("m", system="Be brief."))
        assert text_of(message) == ANSWER
        assert (message.id[:4], message.model, message.role) == ("msg_", "m", "assistant")
        assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
        assert (message.usage.input_tokens, message.usage.output_tokens) == (5, 16)
        assert b.mocked["messages"] == [{"role": "system", "content": "Be brief."}, *USER]
        rows = (await scrape(b.running.port)).rows("llm_proxy_requests_total")
        assert [(row["endpoint"], row["status_code"], row["api_key_name"]) for row, _ in rows] == [
            ("/v1/messages", "200", "master")
        ]

    through(test, auth=auth)


@pytest.mark.parametrize(
    "ident",
    [
        NATIVE + "text.8dd34368",
        NATIVE + "text-stream.63863daa",
        CONVERSE + "text.271241e4",
        CONVERSE + "text-stream.f151dcd0",
        CONVERSE + "stop-length-stream.bd617102",
    ],
)
@pytest.mark.parametrize("auth", ["api_key", "auth_token"])
def test_text_of_recorded_providers(ident: str, auth: str) -> None:
    expected = exchange(ident)["expected"]
    stops = {"stop": "end_turn", "length": "max_tokens"}

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        message = await answer_of(client, "stream" in ident, **ask(ident))
        assert text_of(message) == expected["text"]
        assert message.stop_reason == stops[expected["finish_reason"]]
        assert message.usage.output_tokens == expected["usage"]["completion"]
        headers = b.log[-1]["headers"]
        sent = ("x-api-key", "upstream-anthropic") if NATIVE in ident else ("authorization", "Bearer upstream-bedrock")
        assert headers[sent[0]] == sent[1]
        assert KEY not in str(headers)

    through(test, ident, auth=auth)


def test_plain_client() -> None:
    """The blocking client, in a thread of its own."""
    ident = NATIVE + "text-stream.63863daa"

    async def main() -> None:
        async with behind(ident) as b:

            def work() -> None:
                with anthropic.Anthropic(base_url=b.root, api_key=KEY, max_retries=0) as client:
                    assert text_of(client.messages.create(**ask("m"))) == ANSWER
                    for model, wanted in (("m", ANSWER), (ident, "pong")):
                        with client.messages.stream(**ask(model)) as stream:
                            assert "".join(stream.text_stream) == wanted
                        kinds = [event.type for event in client.messages.create(**ask(model, stream=True))]
                        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")
                    assert client.messages.count_tokens(model="m", messages=USER).input_tokens > 0

            await asyncio.to_thread(work)

    run(main())


# ------------------------------------------------------------------ thinking, and its way back


@pytest.mark.parametrize(
    "ident",
    [
        NATIVE + "reasoning-stream.a61694b9",
        NATIVE + "reasoning.ce9ef893",
        CONVERSE + "reasoning-stream.3944132a",
        CONVERSE + "reasoning.dfda29c3",
    ],
)
def test_thinking_goes_back_unchanged(ident: str) -> None:
    """Signatures and redacted thinking reach the provider in the next turn byte for byte (PROTOCOLS.md 2.3, 2.5)."""
    expected = exchange(ident)["expected"]

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        fields = ask(ident, thinking={"type": "enabled", "budget_tokens": 1024})
        stream = "stream" in ident
        message = await answer_of(client, stream, **fields)
        thought = message.content[0]
        if thought.type == "thinking":
            assert thought.thinking.strip() == expected["reasoning"].strip()
            secret = thought.signature
        else:
            secret = thought.data
        assert len(secret) > 50
        assert text_of(message) == expected["text"]
        again = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": "And then?"}]
        await answer_of(client, stream, **fields | {"messages": again})
        assert thinking_in(b.sent, ident) == [(getattr(thought, "thinking", None), secret)]

    through(test, ident)


def thinking_in(body: Json, ident: str) -> list[tuple[str | None, str]]:
    """The text and the signature (or the redacted data) of each block of the assistant's turn."""
    _, turn, _ = body["messages"]
    assert turn["role"] == "assistant"
    if ident.startswith(NATIVE):
        blocks = [block for block in turn["content"] if "thinking" in block["type"]]
        return [(block.get("thinking"), block.get("signature") or block["data"]) for block in blocks]
    texts = [block["reasoningContent"]["reasoningText"] for block in turn["content"] if "reasoningContent" in block]
    return [(text["text"], text["signature"]) for text in texts]


# ------------------------------------------------------------------ tools


TOOLED = [
    NATIVE + "tools.edfa58d1",
    NATIVE + "tools-stream.dfbe0867",
    CONVERSE + "tools.ab8d58f2",
    CONVERSE + "tools-stream.c34abd0a",
    CONVERSE + "tools-parallel.267ac6af",
    CONVERSE + "tools-parallel-stream.a39a8c35",
]


@pytest.mark.parametrize("ident", TOOLED)
def test_tools_loop(ident: str) -> None:
    """Calls with their arguments, then the results under the ids that the provider gave (R60)."""
    expected = exchange(ident)["expected"]
    calls = expected["tool_calls"]

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        tools = [TOOL | {"name": name} for name in dict.fromkeys(call["name"] for call in calls)]
        stream = "stream" in ident
        message = await answer_of(client, stream, **ask(ident, tools=tools))
        assert message.stop_reason == "tool_use"
        uses = [block for block in message.content if block.type == "tool_use"]
        assert [(use.name, use.input, use.id) for use in uses] == [
            (call["name"], call["arguments"], call["id"]) for call in calls
        ]
        results = [{"type": "tool_result", "tool_use_id": use.id, "content": f"sunny {use.id}"} for use in uses]
        again = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        await answer_of(client, stream, **ask(ident, tools=tools, messages=again))
        wanted = [(call["id"], f"sunny {call['id']}") for call in calls]
        assert results_in(b.sent, ident) == ([call["id"] for call in calls], wanted)

    through(test, ident)


def results_in(body: Json, ident: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The ids of the calls in the provider's body, and the ids and texts of the results."""
    _, turn, last = body["messages"]
    if ident.startswith(NATIVE):
        calls = [block["id"] for block in turn["content"] if block["type"] == "tool_use"]
        return calls, [(block["tool_use_id"], block["content"]) for block in last["content"]]
    calls = [block["toolUse"]["toolUseId"] for block in turn["content"] if "toolUse" in block]
    results = [block["toolResult"] for block in last["content"] if "toolResult" in block]
    return calls, [(result["toolUseId"], result["content"][0]["text"]) for result in results]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_tools_loop_with_an_openai_provider(stream: bool) -> None:
    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        fields = ask("m", tools=[TOOL], tool_choice={"type": "any"})
        message = await answer_of(client, stream, **fields)
        (use,) = [block for block in message.content if block.type == "tool_use"]
        assert (use.name, message.stop_reason) == ("get_weather", "tool_use")
        assert isinstance(use.input, dict)
        sent = b.mocked
        assert sent["tool_choice"] == "required"
        assert sent["tools"][0]["function"]["parameters"] == TOOL["input_schema"]
        result = {"type": "tool_result", "tool_use_id": use.id, "is_error": True, "content": "no such place"}
        said = {"type": "text", "text": "Try again"}
        again = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": [result, said]}]
        await answer_of(client, stream, **ask("m", tools=[TOOL], messages=again))
        _, turn, told, last = b.mocked["messages"]
        assert turn["tool_calls"][0]["id"] == told["tool_call_id"] == use.id
        assert (told["role"], last) == ("tool", {"role": "user", "content": "Try again"})
        assert "no such place" in str(told["content"])

    through(test)


@pytest.mark.parametrize("name", ["tools.a8221369", "tools-stream.63e0e09c", "tools-parallel.8af730be"])
def test_signatures_of_calls_go_back(name: str) -> None:
    """Gemini signs its calls and wants the signature back (PROTOCOLS.md 2.4); a Messages client has no field for it."""
    ident = "gemini.generate-content." + name
    calls, stream = exchange(ident)["expected"]["tool_calls"], "stream" in ident

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        tools = [TOOL | {"name": name} for name in dict.fromkeys(call["name"] for call in calls)]
        message = await answer_of(client, stream, **ask(ident, tools=tools))
        uses = [block for block in message.content if block.type == "tool_use"]
        assert [(use.name, use.input) for use in uses] == [(call["name"], call["arguments"]) for call in calls]
        results = [
            {"type": "tool_result", "tool_use_id": use.id, "content": f"sunny {n}"} for n, use in enumerate(uses)
        ]
        again = [*USER, {"role": "assistant", "content": message.content}, {"role": "user", "content": results}]
        await answer_of(client, stream, **ask(ident, tools=tools, messages=again))
        _, turn, last = b.sent["contents"]
        called = [part for part in turn["parts"] if "functionCall" in part]
        assert [part["functionCall"]["name"] for part in called] == [use.name for use in uses]
        signature = called[0]["thoughtSignature"]
        assert signature in exchange(ident)["response"]["body"].replace("\\u003d", "=")
        assert signature not in str([part["functionCall"] for part in called])
        answered = [part["functionResponse"]["response"] for part in last["parts"]]
        assert [f"sunny {n}" in str(response) for n, response in enumerate(answered)] == [True] * len(uses)

    through(test, ident)


# ------------------------------------------------------------------ counting tokens


def test_count_tokens() -> None:
    """Asked where somebody counts, estimated and said to be so elsewhere (R8)."""
    own, aws = "anthropic.count-tokens.count-tokens.59a11748", "bedrock.count-tokens.count-tokens.bfc028a1"

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        for ident in (own, aws):
            fields: Any = {"model": ident, "messages": USER, "system": "Be brief.", "tools": [TOOL]}
            counted = await client.messages.count_tokens(**fields)
            assert counted.input_tokens == exchange(ident)["expected"]["tokens"]
        assert b.log[0]["body"] == {
            "model": recorded_model(exchange(own)), "messages": USER, "system": "Be brief.", "tools": [TOOL]
        }  # fmt: skip
        assert set(b.sent["input"]["converse"]) == {"messages", "system", "toolConfig"}
        assert (await client.messages.count_tokens(model="m", messages=USER)).input_tokens > 0
        body = json.dumps({"model": "m", "messages": USER}).encode()
        answer = await http(b.running.port, "POST", "/v1/messages/count_tokens", body, {"X-API-Key": KEY})
        assert answer.headers["x-slipstream-usage-source"] == "estimated"
        assert b.mock.ledger.requests == 0

    through(test, own, aws)
