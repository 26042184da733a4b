"""The engine between two dialects: what goes out, what comes back, what is reported, and what passes as it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from slipstream.config.snapshot import ProviderSpec
from slipstream.errors import ClientError, UpstreamError
from slipstream.obs.families import DROPPED_PARAMS
from slipstream.types import Endpoint, Secret
from tests.fakes import FakeExchange, Plan, World, ok, refuse, request_body, spec, stream
from tests.virtual import run_virtual

CLAUDE: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [{"type": "text", "text": "Hi"}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 7},
}


def event(kind: str, **more: Any) -> bytes:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **more})}\n\n".encode()


EVENTS = (
    event("message_start", message={**CLAUDE, "content": [], "stop_reason": None}),
    event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
    event("content_block_delta", index=0, delta={"type": "text_delta", "text": "Hi"}),
    event("content_block_stop", index=0),
    event("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 7}),
    event("message_stop"),
)
OVERLOADED = event("error", error={"type": "overloaded_error", "message": "Overloaded"})
MESSAGE = {"model": "m", "max_tokens": 64, "messages": [{"role": "user", "content": "Hello"}]}


def claude(name: str, **more: Any) -> ProviderSpec:
    return spec(name, type="anthropic", api_base=f"https://{name}.test", **more)


def whole(value: Any = CLAUDE) -> Plan:
    return Plan((json.dumps(value).encode(),))


async def fire(world: World, endpoint: Endpoint, body: dict[str, Any], **fields: str) -> FakeExchange:
    from slipstream.engine.pipeline import serve

    exchange = FakeExchange(json.dumps(body).encode())
    exchange.fields = {name.replace("_", "-"): value for name, value in fields.items()}
    await serve(world.runtime, exchange, endpoint, "default")
    return exchange


def test_chat_to_anthropic_and_back() -> None:
    async def main() -> None:
        world = World({"a": [whole()]}, make=claude)
        exchange = await world.ask()
        assert exchange.status == 200
        assert exchange.json["choices"][0]["message"]["content"] == "Hi"
        assert exchange.json["usage"]["prompt_tokens"] == 11
        request = world.upstreams["a"].requests[0]
        assert request.url == "https://a.test/v1/messages"
        (turn,) = world.upstreams["a"].bodies[0]["messages"]
        assert turn == {"role": "user", "content": [{"type": "text", "text": "Hello"}]}
        world.settled_once()

    run_virtual(main())


def test_a_stream_of_another_dialect() -> None:
    async def main() -> None:
        world = World({"a": [stream(*EVENTS)]}, make=claude)
        exchange = await world.ask(stream=True, stream_options={"include_usage": True})
        events = exchange.events
        assert (
            "".join(e["choices"][0]["delta"].get("content") or "" for e in events if e != "[DONE]" and e["choices"])
            == "Hi"
        )
        assert events[-1] == "[DONE]"
        assert events[-2]["usage"]["completion_tokens"] == 7
        world.settled_once()

    run_virtual(main())


def test_an_error_before_the_first_content_goes_elsewhere() -> None:  # R9, R15: also between dialects
    async def main() -> None:
        world = World({"a": [stream(EVENTS[0], OVERLOADED)], "b": [stream(*EVENTS)]}, make=claude)
        exchange = await world.ask(stream=True)
        assert exchange.events[-1] == "[DONE]"
        assert world.asked == {"a": 1, "b": 1}
        world.settled_once()

    run_virtual(main())


def test_an_error_after_content_is_told_in_the_clients_dialect() -> None:  # R12, R15
    async def main() -> None:
        world = World({"a": [stream(*EVENTS[:3], OVERLOADED)]}, make=claude)
        exchange = await world.ask(stream=True)
        assert exchange.events[-1]["error"]["message"] == "Overloaded"
        world.settled_once()

    run_virtual(main())


def test_what_cannot_be_said_is_reported_or_refused() -> None:  # R65
    async def main() -> None:
        world = World({"a": [whole()]}, make=claude)
        exchange = await world.ask(seed=7, logit_bias={"5": 1})
        assert sorted(exchange.headers["x-slipstream-dropped-params"].split(", ")) == ["logit_bias", "seed"]
        assert world.counted(DROPPED_PARAMS) == {("a",): 1}
        strict = World({"a": [whole()]}, make=claude, strict_params=True)
        refused = await strict.ask(seed=7)
        assert (refused.status, refused.json["error"]["param"]) == (400, "seed")
        assert strict.asked == {"a": 0}

    run_virtual(main())


def test_messages_pass_to_anthropic_as_they_are() -> None:
    async def main() -> None:
        world = World(
            {"a": [whole()]}, make=lambda name, **kw: claude(name, model_mapping={"m": "claude"}, models=(), **kw)
        )
        exchange = await fire(
            world, Endpoint.MESSAGES, MESSAGE, anthropic_beta="context-1m", anthropic_version="2026-10-21", cookie="x"
        )
        assert exchange.json == CLAUDE
        request = world.upstreams["a"].requests[0]
        assert json.loads(request.body) == {**MESSAGE, "model": "claude"}
        fields = {name.lower(): value for name, value in request.headers.items()}
        assert (fields["anthropic-beta"], fields["anthropic-version"]) == ("context-1m", "2026-10-21")
        assert "cookie" not in fields
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize("value", ["", "a\r\nb", "\xff", "x" * 2000])
def test_what_does_not_look_like_such_a_field_does_not_pass(value: str) -> None:  # Q40
    async def main() -> None:
        world = World({"a": [whole()]}, make=claude)
        await fire(world, Endpoint.MESSAGES, MESSAGE, anthropic_beta=value)
        assert "anthropic-beta" not in {name.lower() for name in world.upstreams["a"].requests[0].headers}

    run_virtual(main())


def test_configured_fields_win_and_lists_are_joined() -> None:
    async def main() -> None:
        headers = {"anthropic-beta": Secret("ours"), "Anthropic-Version": Secret("2023-01-01")}
        world = World({"a": [whole()]}, make=lambda name, **kw: claude(name, headers=headers, **kw))
        await fire(world, Endpoint.MESSAGES, MESSAGE, anthropic_beta="theirs", anthropic_version="2026-10-21")
        sent = world.upstreams["a"].requests[0].headers
        assert [v for n, v in sent.items() if n.lower() == "anthropic-beta"] == ["ours,theirs"]
        assert [v for n, v in sent.items() if n.lower() == "anthropic-version"] == ["2023-01-01"]

    run_virtual(main())


def test_tokens_that_nobody_can_count_are_estimated() -> None:
    async def main() -> None:
        world = World({"a": [ok()]})
        exchange = await fire(world, Endpoint.COUNT_TOKENS, MESSAGE)
        assert exchange.json["input_tokens"] > 0
        assert exchange.headers["x-slipstream-usage-source"] == "estimated"
        assert world.asked == {"a": 0}

    run_virtual(main())


@pytest.mark.parametrize("endpoint", [Endpoint.MESSAGES, Endpoint.RESPONSES, Endpoint.INFER])
def test_every_attempt_starts_from_the_original(endpoint: Endpoint) -> None:  # R59
    bodies = {
        Endpoint.MESSAGES: MESSAGE,
        Endpoint.RESPONSES: {"model": "m", "input": "Hello"},
        Endpoint.INFER: {"model": "m", "prompt": "Hello"},
    }

    async def main() -> None:
        world = World({"a": [refuse(500)], "b": [ok()]}, make=lambda name, **kw: spec(name, type="vllm", **kw))
        exchange = await fire(world, endpoint, bodies[endpoint])
        assert exchange.status == 200
        first, second = world.upstreams["a"].bodies[0], world.upstreams["b"].bodies[0]
        assert first == second
        world.settled_once()

    run_virtual(main())


@pytest.mark.parametrize(
    ("endpoint", "shape"),
    [
        (Endpoint.CHAT, {"error"}),
        (Endpoint.RESPONSES, {"error"}),
        (Endpoint.MESSAGES, {"type", "error"}),
        (Endpoint.INFER, {"type", "title", "status", "detail", "request_id"}),
    ],
)
def test_errors_are_in_the_dialect_of_the_endpoint(endpoint: Endpoint, shape: set[str]) -> None:
    async def main() -> None:
        world = World({"a": [refuse(503, "busy")]}, retries=0)
        for body in (b"{", request_body(), json.dumps({**MESSAGE, "input": "x", "prompt": "x"}).encode()):
            exchange = FakeExchange(body)
            from slipstream.engine.pipeline import serve

            await serve(world.runtime, exchange, endpoint, "default")
            if exchange.status >= 400:
                assert set(exchange.json) >= shape
                kind = "application/problem+json" if endpoint is Endpoint.INFER else "application/json"
                assert exchange.headers["Content-Type"] == kind

    run_virtual(main())


def test_the_error_tree_reaches_the_tap() -> None:
    """What a writer cannot hold together ends the stream as a failure, not as a crash."""
    from slipstream.engine.translate import TranslatingTap
    from slipstream.errors import MalformedReply

    class Reader:
        reads_json = False
        done = False
        failure: UpstreamError | None = None
        usage = None

        def feed(self, data: bytes) -> list[Any]:
            return [object.__new__(type("C", (), {"delta": {"content": "x"}, "finish_reason": None}))]

        def end(self) -> list[Any]:
            return []

    class Writer:
        def write(self, *_: Any) -> bytes:
            raise MalformedReply("too much")

        def error(self, error: ClientError) -> bytes:
            return error.message.encode()

    tap = TranslatingTap(Reader(), Writer())  # type: ignore[arg-type]
    assert tap.feed(b"x") == b""
    assert isinstance(tap.failure, MalformedReply)
