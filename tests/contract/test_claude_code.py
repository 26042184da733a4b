"""Claude Code's requests, in the form in which it sends them, to providers that are not Anthropic.

It is the most demanding client of ``/v1/messages``: many tools, several system blocks with cache marks, thinking, beta
headers and fields, a user id that is longer than other providers take. The answer must be a complete lifecycle
(PROTOCOLS.md 2.3, 3.3), and what reaches the provider must hold all of it that the provider can express, and no more.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.aio import run
from tests.contract.recorded import Behind, behind, exchange, needs_recordings, recorded_model
from tests.harness import KEY, ask

pytestmark = needs_recordings
Json = dict[str, Any]
Test = Callable[[Behind], Awaitable[None]]
BEDROCK = "bedrock.converse.reasoning-stream.3944132a"
BEDROCK_TOOL = "bedrock.converse.tools-stream.c34abd0a"
NATIVE = "anthropic.messages.reasoning-stream.a61694b9"
NAMES = (
    "Task",
    "Bash",
    "Glob",
    "Grep",
    "LS",
    "Read",
    "Edit",
    "MultiEdit",
    "Write",
    "TodoWrite",
    "WebFetch",
    "mcp__a__b",
)
HEADERS = {
    "Authorization": f"Bearer {KEY}",
    "User-Agent": "claude-cli/2.0.14 (external, cli)",
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14",
    "anthropic-dangerous-direct-browser-access": "true",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "Accept": "application/json",
}
MARK = {"type": "ephemeral"}
CACHED = {"cachePoint": {"type": "default"}}
SYSTEM = ("You are Claude Code, Anthropic's official CLI for Claude.", "Working directory: /srv/u\nPlatform: linux")
USER_ID = "user_" + "0f" * 32 + "_account__session_7e57ab1e-0000-4000-8000-000000000000"
TURNS: list[Json] = [
    {
        "role": "user",
        "content": [
            {"type": "text", "text": "<system-reminder>\nAs you answer, use the context.\n</system-reminder>"},
            {"type": "text", "text": "What is in this folder?"},
        ],
    },
    {
        "role": "assistant",
        "content": [
            {"type": "thinking", "thinking": "Two looks will do.", "signature": "c2lnbmF0dXJl"},
            {"type": "text", "text": "I'll look."},
            {"type": "tool_use", "id": "toolu_01A", "name": "LS", "input": {"path": "/srv/u"}},
            {"type": "tool_use", "id": "toolu_01B", "name": "Bash", "input": {"command": "git status"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_01A", "content": [{"type": "text", "text": "a.py\nb.py"}]},
            {
                "type": "tool_result",
                "tool_use_id": "toolu_01B",
                "content": "fatal: not a git repository",
                "is_error": True,
                "cache_control": MARK,
            },
        ],
    },
]


def tool(name: str) -> Json:
    schema = {
        "type": "object",
        "properties": {"path": {"type": "string"}, "mode": {"type": "string", "enum": ["fast", "full"]}},
        "required": ["path"],
        "additionalProperties": False,
        "$schema": "http://json-schema.org/draft-07/schema#",
    }
    return {"name": name, "description": f"{name} does what its name says.\n\nUsage:\n- Once.", "input_schema": schema}


TOOLS = [tool(name) for name in NAMES]


def request(model: str, **fields: Any) -> Json:
    body = {
        "model": model,
        "messages": TURNS,
        "system": [{"type": "text", "text": text, "cache_control": MARK} for text in SYSTEM],
        "tools": TOOLS,
        "metadata": {"user_id": USER_ID},
        "max_tokens": 32000,
        "thinking": {"budget_tokens": 31999, "type": "enabled"},
        "stream": True,
    }
    return body | fields


def before(test: Test, *idents: str, **settings: Any) -> None:
    async def main() -> None:
        async with behind(*idents, **settings) as b:
            await test(b)

    run(main())


async def asked(b: Behind, model: str, **fields: Any) -> tuple[Json, dict[str, str]]:
    """The message that the stream amounts to, and the header fields."""
    body = json.dumps(request(model, **fields)).encode()
    answer = await ask(b.running.port, "POST", "/v1/messages?beta=true", body, HEADERS)
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"].startswith("text/event-stream")
    return lifecycle(answer.body), answer.headers


# ------------------------------------------------------------------ what a stream must be


EMPTY: dict[str, Json] = {
    "text": {"text": ""},
    "thinking": {"thinking": "", "signature": ""},
    "tool_use": {"input": {}},
}
PIECE = {"text_delta": "text", "thinking_delta": "thinking", "signature_delta": "signature"}


def events_of(body: bytes) -> list[tuple[str, Json]]:
    found = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        event, data = block.split("\n")
        found.append((event.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in found)
    return found


def lifecycle(body: bytes) -> Json:
    """Assert that the events follow one another as they must, and put the message together."""
    events = [(name, data) for name, data in events_of(body) if name != "ping"]
    names = [name for name, _ in events]
    assert (names[0], names[-2:]) == ("message_start", ["message_delta", "message_stop"])
    message: Json = events[0][1]["message"]
    assert (message["type"], message["role"], message["content"]) == ("message", "assistant", [])
    assert message["id"].startswith("msg_")
    assert message["stop_reason"] is None
    assert {"input_tokens", "output_tokens"} <= message["usage"].keys()
    blocks: list[Json] = message["content"]
    is_open = False
    for name, data in events[1:-2]:
        if name == "content_block_start":
            assert not is_open
            assert data["index"] == len(blocks)
            block = data["content_block"]
            assert EMPTY[block["type"]].items() <= block.items()
            blocks.append(block | ({"input": ""} if block["type"] == "tool_use" else {}))
            is_open = True
        else:
            assert is_open
            assert data["index"] == len(blocks) - 1
            is_open = name == "content_block_delta"
            if is_open:
                grow(blocks[-1], data["delta"])
            else:
                assert name == "content_block_stop"
    assert not is_open
    end = events[-2][1]
    assert end["usage"]["output_tokens"] > 0
    usage = message["usage"] | end["usage"]
    return {**message, **end["delta"], "usage": usage}


def grow(block: Json, delta: Json) -> None:
    if delta["type"] == "input_json_delta":
        block["input"] += delta["partial_json"]
    else:
        block[PIECE[delta["type"]]] += delta[PIECE[delta["type"]]]


# ------------------------------------------------------------------ providers of OpenAI's kind


@pytest.mark.parametrize("kind", ["openai", "vllm", "mock"])
def test_openai_provider(kind: str) -> None:
    """Text, tools, calls and results arrive; what OpenAI's API has no word for is named (R65), never sent along."""

    async def test(b: Behind) -> None:
        message, headers = await asked(b, "m")
        assert [block["type"] for block in message["content"]] == ["text"]
        assert message["stop_reason"] == "end_turn"
        sent = b.mocked
        known = {"model", "messages", "tools", "max_tokens", "stream", "stream_options", "user"}
        assert set(sent) == known | ({"reasoning_effort"} if kind == "vllm" else set())  # whose servers ignore it
        system, question, turn, *results = sent["messages"]
        assert system == {"role": "system", "content": "\n".join(SYSTEM)}
        assert question["content"].endswith("</system-reminder>\nWhat is in this folder?")
        assert turn["content"] == "I'll look."
        calls = [(call["id"], call["function"]["name"], json.loads(call["function"]["arguments"]))
                 for call in turn["tool_calls"]]  # fmt: skip
        assert calls == [("toolu_01A", "LS", {"path": "/srv/u"}), ("toolu_01B", "Bash", {"command": "git status"})]
        assert [result["tool_call_id"] for result in results] == ["toolu_01A", "toolu_01B"]
        assert "fatal: not a git repository" in results[1]["content"]
        assert [made["function"]["name"] for made in sent["tools"]] == list(NAMES)
        assert all(made["function"]["parameters"] == TOOLS[0]["input_schema"] for made in sent["tools"])
        assert sent["max_tokens"] == 32000
        assert 0 < len(sent["user"]) <= 64
        assert sent["stream_options"] == {"include_usage": True}
        assert "cache_control" not in json.dumps(sent)
        dropped = headers["x-slipstream-dropped-params"].split(", ")
        assert {"cache_control"} | (set() if kind == "vllm" else {"thinking"}) <= set(dropped)
        assert set(dropped) <= {"cache_control", "thinking", "messages[].is_error", "messages[].thinking_blocks"}

    before(test, mock={"type": kind})


def test_thinking_becomes_an_effort() -> None:
    """OpenAI's models that reason know no budget (PROTOCOLS.md 1.2)."""

    async def test(b: Behind) -> None:
        await asked(b, "gpt-5")
        assert b.mocked["reasoning_effort"] in ("medium", "high")
        assert "thinking" not in b.mocked

    before(test, mock={"type": "openai", "models": ["gpt-5"]})


def test_the_user_stays_the_same_and_short() -> None:
    async def test(b: Behind) -> None:
        users = []
        for user in (USER_ID, USER_ID, USER_ID + "x", "short"):
            await asked(b, "m", metadata={"user_id": user})
            users.append(b.mocked["user"])
        assert users[0] == users[1] != users[2]
        assert users[3] == "short"

    before(test)


def test_a_tool_is_called() -> None:
    async def test(b: Behind) -> None:
        message, _ = await asked(b, "m", messages=TURNS[:1], tools=TOOLS[1:2])
        (block,) = message["content"]
        assert (block["type"], block["name"], message["stop_reason"]) == ("tool_use", "Bash", "tool_use")
        assert isinstance(json.loads(block["input"]), dict)
        assert block["id"]

    before(test)


def test_fields_of_betas() -> None:
    """Fields and tools that only Anthropic's servers know are named, and the request goes on."""
    web: Json = {"type": "web_search_20250305", "name": "web_search", "max_uses": 8}
    edits = {"edits": [{"type": "clear_tool_uses_20250919"}]}

    async def test(b: Behind) -> None:
        _, headers = await asked(b, "m", tools=[*TOOLS, web], context_management=edits, betas=["x"])
        dropped = headers["x-slipstream-dropped-params"].split(", ")
        assert {"context_management", "tools[].web_search"} <= set(dropped)
        assert len(b.mocked["tools"]) == len(NAMES)

    before(test)


def test_the_small_requests() -> None:
    """What it sends beside the conversation: a check of the quota, a title, a count of tokens."""

    async def test(b: Behind) -> None:
        ping = {"model": "m", "max_tokens": 1, "messages": [{"role": "user", "content": "quota"}]}
        whole = await ask(b.running.port, "POST", "/v1/messages?beta=true", json.dumps(ping).encode(), HEADERS)
        assert (whole.status, whole.json()["stop_reason"]) == (200, "max_tokens")
        count = {
            "model": "m",
            "messages": TURNS,
            "tools": TOOLS,
            "thinking": {"type": "enabled", "budget_tokens": 5000},
        }
        path = "/v1/messages/count_tokens?beta=true"
        counted = await ask(b.running.port, "POST", path, json.dumps(count).encode(), HEADERS)
        assert (counted.status, set(counted.json())) == (200, {"input_tokens"})
        assert counted.json()["input_tokens"] > 50

    before(test)


# ------------------------------------------------------------------ Bedrock


def test_bedrock() -> None:
    """Cache marks become cache points behind the same blocks, thinking goes into the fields of the model, the calls and
    the signature stay as they were (PROTOCOLS.md 1.2, 2.5)."""

    async def test(b: Behind) -> None:
        message, headers = await asked(b, BEDROCK)
        thought, text = message["content"]
        expected = exchange(BEDROCK)["expected"]
        assert (thought["thinking"], text["text"]) == (expected["reasoning"], expected["text"])
        assert len(thought["signature"]) > 100
        assert message["stop_reason"] == "end_turn"
        assert message["usage"]["input_tokens"] == expected["usage"]["prompt"]
        assert b.log[-1]["target"] == "/bedrock" + exchange(BEDROCK)["request"]["url"]
        sent = b.sent
        assert set(sent) == {"messages", "system", "toolConfig", "inferenceConfig", "additionalModelRequestFields"}
        assert sent["system"] == [{"text": SYSTEM[0]}, CACHED, {"text": SYSTEM[1]}, CACHED]
        assert sent["inferenceConfig"] == {"maxTokens": 32000}
        assert sent["additionalModelRequestFields"] == {"thinking": {"type": "enabled", "budget_tokens": 31999}}
        specs = [made["toolSpec"] for made in sent["toolConfig"]["tools"]]
        assert [spec["name"] for spec in specs] == list(NAMES)
        assert all(spec["inputSchema"]["json"] == TOOLS[0]["input_schema"] for spec in specs)
        check_bedrock_turns(sent["messages"])
        assert headers["x-slipstream-dropped-params"] == "user"
        assert b.log[-1]["headers"]["authorization"] == "Bearer upstream-bedrock"
        assert "claude-cli" not in str(b.log[-1]["headers"])

    before(test, BEDROCK)


def check_bedrock_turns(messages: list[Json]) -> None:
    question, turn, results = messages
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [block["text"] for block in question["content"]] == [block["text"] for block in TURNS[0]["content"]]
    thought, text, *calls = turn["content"]
    assert thought["reasoningContent"]["reasoningText"] == {"text": "Two looks will do.", "signature": "c2lnbmF0dXJl"}
    assert text == {"text": "I'll look."}
    assert [call["toolUse"]["toolUseId"] for call in calls] == ["toolu_01A", "toolu_01B"]
    assert calls[1]["toolUse"]["input"] == {"command": "git status"}
    first, second, mark = results["content"]
    assert first["toolResult"]["content"] == [{"text": "a.py\nb.py"}]
    assert (second["toolResult"]["toolUseId"], second["toolResult"]["status"]) == ("toolu_01B", "error")
    assert mark == CACHED


def test_bedrock_calls_a_tool() -> None:
    async def test(b: Behind) -> None:
        message, _ = await asked(b, BEDROCK_TOOL, thinking={"type": "disabled"})
        (call,) = exchange(BEDROCK_TOOL)["expected"]["tool_calls"]
        used = [block for block in message["content"] if block["type"] == "tool_use"]
        assert [(block["id"], block["name"], json.loads(block["input"])) for block in used] == [
            (call["id"], call["name"], call["arguments"])
        ]
        assert message["stop_reason"] == "tool_use"

    before(test, BEDROCK_TOOL)


# ------------------------------------------------------------------ Anthropic itself


def test_anthropic_gets_what_was_sent() -> None:
    """The same dialect on both sides: the body is the client's but for the model's name, and nothing was dropped."""

    async def test(b: Behind) -> None:
        message, headers = await asked(b, NATIVE, context_management={"edits": []})
        assert [block["type"] for block in message["content"]] == ["thinking", "text"]
        named = request(recorded_model(exchange(NATIVE)), context_management={"edits": []})
        assert json.dumps(b.sent) == json.dumps(named)
        assert "x-slipstream-dropped-params" not in headers
        assert b.log[-1]["headers"]["anthropic-version"] == "2023-06-01"
        assert b.log[-1]["headers"]["anthropic-beta"] == HEADERS["anthropic-beta"]  # else Anthropic refuses beta fields
        assert b.log[-1]["headers"]["x-api-key"] == "upstream-anthropic"

    before(test, NATIVE)
