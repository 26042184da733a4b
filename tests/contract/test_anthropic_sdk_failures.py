"""The official ``anthropic`` SDK when a request or a provider fails: it raises what it would without a gateway."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest

from tests.aio import DEADLINE_S, run
from tests.contract.recorded import Behind, behind, exchange, needs_recordings
from tests.contract.test_anthropic_sdk import (
    ANSWER,
    CONVERSE,
    NATIVE,
    Json,
    answer_of,
    ask,
    client_of,
    streamed,
    through,
)
from tests.harness import KEY, USER, scrape

pytestmark = needs_recordings

# ------------------------------------------------------------------ errors


ERRORS: list[tuple[str, type[anthropic.APIStatusError], int, str]] = [
    ("nobody-serves-this", anthropic.NotFoundError, 404, "not_found_error"),
    ("mock/400", anthropic.BadRequestError, 400, "invalid_request_error"),
    ("mock/context", anthropic.BadRequestError, 400, "invalid_request_error"),
    ("mock/401", anthropic.InternalServerError, 502, "api_error"),
    ("mock/403", anthropic.PermissionDeniedError, 403, "permission_error"),
    ("mock/413", anthropic.RequestTooLargeError, 413, "request_too_large"),
    ("mock/429:7", anthropic.RateLimitError, 429, "rate_limit_error"),
    ("mock/500", anthropic.InternalServerError, 500, "api_error"),
    ("mock/529", anthropic.OverloadedError, 529, "overloaded_error"),
    ("mock/error-200", anthropic.InternalServerError, 502, "api_error"),
    ("mock/malformed", anthropic.InternalServerError, 502, "api_error"),
    (NATIVE + "error-400.a212d9fe", anthropic.BadRequestError, 400, "invalid_request_error"),
    (NATIVE + "error-401.9471c052", anthropic.InternalServerError, 502, "api_error"),
    (NATIVE + "error-404.e8f8d677", anthropic.NotFoundError, 404, "not_found_error"),
    (NATIVE + "error-429.d-rate", anthropic.RateLimitError, 429, "rate_limit_error"),
    (NATIVE + "error-529.d-overloaded", anthropic.OverloadedError, 529, "overloaded_error"),
    (CONVERSE + "error-400.0dd6ad59", anthropic.BadRequestError, 400, "invalid_request_error"),
    (CONVERSE + "error-403.f2df511f", anthropic.InternalServerError, 502, "api_error"),
    (CONVERSE + "error-429.d-throttli", anthropic.RateLimitError, 429, "rate_limit_error"),
    (CONVERSE + "error-503.d-serviceu", anthropic.ServiceUnavailableError, 503, "overloaded_error"),
]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_errors(stream: bool) -> None:
    """The SDK's exception and Anthropic's word for each status, whoever the provider was (R55)."""
    recorded = [ident for ident, *_ in ERRORS if ident.startswith((NATIVE, CONVERSE))]
    faults = [model for model, *_ in ERRORS if model.startswith("mock/")]

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        for model, raised, status, kind in ERRORS:
            with pytest.raises(anthropic.APIStatusError) as failed:
                await answer_of(client, stream, **ask(model))
            error = failed.value
            assert (model, type(error), error.status_code) == (model, raised, status)
            assert isinstance(error.body, dict)
            assert (error.body["type"], error.body["error"]["type"]) == ("error", kind), model
            assert error.body["error"]["message"]
            assert set(error.body) <= {"type", "error", "request_id"}

    through(test, *recorded, mock={"models": faults}, routing={"retries": 0})


@pytest.mark.parametrize("auth", ["api_key", "auth_token"])
def test_wrong_key(auth: str) -> None:
    async def main() -> None:
        async with behind() as b, client_of(b, auth, "sk-wrong") as client:
            calls: list[Any] = [
                client.messages.create(**ask("m")),
                streamed(client, **ask("m")),
                client.messages.count_tokens(model="m", messages=USER),
            ]
            for call in calls:
                with pytest.raises(anthropic.AuthenticationError) as refused:
                    await call
                body: Any = refused.value.body
                assert (body["type"], body["error"]["type"]) == ("error", "authentication_error")
            assert b.mock.ledger.requests == 0

    run(main())


def test_what_is_wrong_with_a_request_is_named() -> None:
    """A 400 whose message begins with the field, as Anthropic's own do, and nobody is asked."""
    wrong: list[tuple[Json, str]] = [
        ({"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, "messages.0.content.0"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
        ({"messages": []}, "messages"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tool_choice": {"type": "tool", "name": "f"}}, "tool_choice.name"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
        ({"extra_body": {"temperature": "warm"}}, "temperature"),
    ]

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        for fields, field in wrong:
            with pytest.raises(anthropic.BadRequestError) as refused:
                await client.messages.create(**ask("m") | fields)
            body: Any = refused.value.body
            assert field in body["error"]["message"], body
        assert b.mock.ledger.requests == 0

    through(test)


# ------------------------------------------------------------------ streams that break


BROKEN = [
    ("mock/cut", "This is a"),
    ("mock/reset", "This is a"),
    ("mock/error-mid", "This is a"),
    ("mock/no-done", ANSWER),
    (NATIVE + "truncated-stream.d-cut", '{\n  "output": 3\n}'),
    (NATIVE + "error-midstream.d-overloaded-first", ""),
    (CONVERSE + "error-midstream.d-throttli", "Hi! How are you? How"),
    (CONVERSE + "error-midstream.d-modelstr", "Hi! How are you? How"),
    (CONVERSE + "bad-frames.d-truncated", ""),
    (CONVERSE + "bad-frames.d-payload-bit", ""),
]


@pytest.mark.parametrize(("model", "text"), BROKEN)
def test_broken_stream(model: str, text: str) -> None:
    """What came is delivered, then the SDK raises: never a clean end, never a hang (R12, R15)."""
    idents = () if model.startswith("mock/") else (model,)

    async def test(client: anthropic.AsyncAnthropic, b: Behind) -> None:
        got: list[str] = []

        async def read() -> None:
            async with client.messages.stream(**ask(model)) as stream:
                async for piece in stream.text_stream:
                    got.append(piece)

        with pytest.raises(anthropic.APIStatusError) as broke:
            await asyncio.wait_for(read(), DEADLINE_S)
        body: Any = broke.value.body
        assert body["type"] == "error"
        assert body["error"]["message"]
        said = "".join(got)
        assert said == text or (not text and exchange(model)["expected"]["text"].startswith(said))
        seen = await scrape(b.running.port)
        assert seen.total("llm_proxy_active_requests") == 0

    through(test, *idents, mock={"models": [model]} if not idents else None)


def test_cut_connections() -> None:
    """A recorded provider that drops the connection in the middle of a block; the blocking client."""
    native, converse = NATIVE + "text-stream.0498421b", CONVERSE + "text-stream.f151dcd0"

    async def main() -> None:
        async with behind(native, converse, replaying={"cut": "900"}) as b:

            def work() -> None:
                with anthropic.Anthropic(base_url=b.root, api_key=KEY, max_retries=0, timeout=DEADLINE_S) as client:
                    for ident in (native, converse):
                        with pytest.raises(anthropic.APIStatusError), client.messages.stream(**ask(ident)) as stream:
                            stream.until_done()

            await asyncio.to_thread(work)

    run(main())
