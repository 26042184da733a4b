"""``POST /v1/infer`` as the published description has it (contract E, llm-router-openapi.yaml): each request of its
schema is served, each answer and each error is of its schemas, whoever the provider is.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import yaml

from slipstream.wire.infer import POLICIES
from tests.aio import run
from tests.contract.recorded import Behind, behind, exchange, needs_recordings
from tests.harness import KEY, Answer, ask, scrape
from tests.unit.test_wire_infer import CONTRACT, faults, needs_contract, schema

pytestmark = [needs_recordings, needs_contract]
ANSWER = "This is a mock answer, made of nothing but words. This is a"
NATIVE = "anthropic.messages.text.8dd34368"
PRICE = {"price": {"input": 1.0, "output": 2.0}}
Json = dict[str, Any]
Test = Callable[[Behind], Awaitable[None]]


@pytest.fixture(scope="module")
def published() -> Json:
    value: Json = yaml.safe_load(CONTRACT.read_text())
    return value


def through(test: Test, *idents: str, **settings: Any) -> None:
    async def main() -> None:
        async with behind(*idents, **settings) as b:
            await test(b)

    run(main())


async def infer(b: Behind, key: str | None = KEY, **body: Any) -> Answer:
    headers = {} if key is None else {"X-API-Key": key}
    return await ask(b.running.port, "POST", "/v1/infer", json.dumps(body).encode(), headers)


def check_problem(answer: Answer, published: Json, status: int) -> Json:
    """The answer is a problem document of the published form (RFC 9457); the problem."""
    assert answer.status == status, answer.body
    assert answer.headers["content-type"] == "application/problem+json"
    problem: Json = answer.json()
    assert faults(problem, schema(published, "Problem")) == []
    assert problem["status"] == status
    assert problem["request_id"] == answer.headers["x-request-id"]
    return problem


# ------------------------------------------------------------------ answers


def test_answer(published: Json) -> None:
    async def test(b: Behind) -> None:
        for key in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            body = json.dumps({"prompt": "What is the capital of France?", "model": "m", "max_tokens": 40}).encode()
            answer = await ask(b.running.port, "POST", "/v1/infer", body, key)
            assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
            reply = answer.json()
            assert faults(reply, schema(published, "InferResponse")) == []
            assert (reply["provider"], reply["text"]) == ("mock", ANSWER)
            assert reply["request_id"] == answer.headers["x-request-id"]
            assert reply["cost_usd"] == pytest.approx((8 * 1.0 + 16 * 2.0) / 1e6)
        sent = b.mocked
        assert sent["messages"] == [{"role": "user", "content": "What is the capital of France?"}]
        assert not {"prompt", "policy", "idempotency_key"} & set(sent)
        seen = await scrape(b.running.port)
        assert seen.total("llm_proxy_requests_total", endpoint="/v1/infer", status_code="200") == 2
        assert seen.total("llm_proxy_tokens_total", token_type="completion") == 32

    through(test, mock=PRICE)


def test_every_example_of_the_description(published: Json) -> None:
    """All that the schema allows is taken: its examples, each policy, each limit."""
    content = published["paths"]["/v1/infer"]["post"]["requestBody"]["content"]["application/json"]
    examples = [example["value"] for example in content["examples"].values()]
    examples += [{"prompt": "x", "model": "gpt-4o", "policy": policy} for policy in POLICIES]
    examples += [{"prompt": "x", "max_tokens": 1}, {"prompt": "x", "max_tokens": 4096, "stream": False}]
    examples += [{"prompt": "x", "idempotency_key": "k" * 255}, {"prompt": "x" * 100_000}, {"prompt": "x"}]
    assert set(schema(published, "InferRequest")["properties"]["policy"]["enum"]) == set(POLICIES)

    async def test(b: Behind) -> None:
        for body in examples:
            assert faults(body, schema(published, "InferRequest")) == []
            answer = await infer(b, **body)
            assert answer.status == 200, (body, answer.body)
            assert faults(answer.json(), schema(published, "InferResponse")) == []
            assert "x-slipstream-dropped-params" not in answer.headers
        assert b.mock.ledger.by_model == {"gpt-4o": len(examples)}  # the only one there is, also where none was named

    through(test, mock={"models": ["gpt-4o"]})


@pytest.mark.parametrize(
    "ident",
    [
        NATIVE,
        "anthropic.messages.text-stream.63863daa",
        "bedrock.converse.text.271241e4",
        "bedrock.converse.text-stream.f151dcd0",
        "gemini.generate-content.tool-result.4dcb71eb",
    ],
)
def test_recorded_providers(ident: str, published: Json) -> None:
    async def test(b: Behind) -> None:
        stream = "stream" in ident
        answer = await infer(b, prompt="Hi", model=ident, max_tokens=64, stream=stream)
        assert answer.status == 200, answer.body
        reply = pieces_of(answer)[1] if stream else answer.json()
        assert faults(reply, schema(published, "InferResponse")) == []
        assert reply["text"] == exchange(ident)["expected"]["text"]

    through(test, ident)


def pieces_of(answer: Answer) -> tuple[list[str], Json]:
    """The pieces of a stream and its last event without the mark that says so."""
    assert answer.headers["content-type"].startswith("text/event-stream")
    events = answer.body.decode().removesuffix("\n\n").split("\n\n")
    *pieces, last = [json.loads(event.removeprefix("data: ")) for event in events]
    assert last.pop("done") is True
    assert all(set(piece) == {"text"} for piece in pieces)
    return [piece["text"] for piece in pieces], last


def test_stream(published: Json) -> None:
    """Pieces, and at the end what would have come without streaming."""

    async def test(b: Behind) -> None:
        answer = await infer(b, prompt="What is the capital of France?", model="m", stream=True)
        pieces, last = pieces_of(answer)
        assert len(pieces) == 16
        assert "".join(pieces) == last["text"] == ANSWER
        assert faults(last, schema(published, "InferResponse")) == []
        assert last["request_id"] == answer.headers["x-request-id"]
        assert last["cost_usd"] == pytest.approx((8 * 1.0 + 16 * 2.0) / 1e6)
        assert last["latency_ms"] > 0

    through(test, mock=PRICE)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_keys(stream: bool, published: Json) -> None:
    async def test(b: Behind) -> None:
        example = published["paths"]["/v1/infer"]["post"]["responses"]["401"]["content"]["application/problem+json"]
        for key in (None, "wrong", ""):
            answer = await infer(b, key, prompt="Hi", model="m", stream=stream)
            problem = check_problem(answer, published, 401)
            assert problem["title"] == example["example"]["title"]
        assert b.mock.ledger.requests == 0

    through(test)


BAD: list[tuple[Any, str]] = [
    ({}, "prompt"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": 5}, "prompt"),
    ({"prompt": None}, "prompt"),
    ({"prompt": "x", "model": 5}, "model"),
    ({"prompt": "x", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "x", "max_tokens": 4097}, "max_tokens"),
    ({"prompt": "x", "max_tokens": "many"}, "max_tokens"),
    ({"prompt": "x", "stream": "yes"}, "stream"),
    ({"prompt": "x", "policy": "dearest"}, "policy"),
    ({"prompt": "x", "idempotency_key": "k" * 256}, "idempotency_key"),
    ([], "JSON"),
    ("prompt", "JSON"),
]


def test_what_is_wrong_with_a_request_is_named(published: Json) -> None:
    """400 as published, and nobody is asked; also for bodies that are no JSON, and for the wrong method and type."""

    async def test(b: Behind) -> None:
        keyed = {"X-API-Key": KEY}
        for body, field in BAD:
            answer = await ask(b.running.port, "POST", "/v1/infer", json.dumps(body).encode(), keyed)
            assert field in check_problem(answer, published, 400)["detail"]
        answer = await ask(b.running.port, "POST", "/v1/infer", b'{"prompt": ', keyed)
        check_problem(answer, published, 400)
        check_problem(await ask(b.running.port, "GET", "/v1/infer", None, keyed), published, 405)
        answer = await ask(b.running.port, "POST", "/v1/infer", b"prompt=x", keyed | {"Content-Type": "text/plain"})
        check_problem(answer, published, 415)
        assert b.mock.ledger.requests == 0

    through(test)


def test_unknown_model(published: Json) -> None:
    async def test(b: Behind) -> None:
        for stream in (False, True):
            problem = check_problem(await infer(b, prompt="Hi", model="gpt-9", stream=stream), published, 404)
            assert "gpt-9" in problem["detail"]

    through(test)


FAILED = {
    "mock/400": 400,
    "mock/context": 400,
    "mock/401": 502,
    "mock/403": 403,
    "mock/429:7": 429,
    "mock/quota": 429,
    "mock/500": 500,
    "mock/503": 503,
    "mock/error-200": 502,
    "mock/html502": 502,
    "mock/malformed": 502,
    "anthropic.messages.error-529.d-overloaded": 529,
    "bedrock.converse.error-429.d-throttli": 429,
    "bedrock.converse.error-403.f2df511f": 502,
}


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_failures_of_providers(stream: bool, published: Json) -> None:
    async def test(b: Behind) -> None:
        for model, status in FAILED.items():
            answer = await infer(b, prompt="Hi", model=model, stream=stream)
            problem = check_problem(answer, published, status)
            assert "<html" not in problem["detail"]
            waits = answer.headers.get("retry-after")
            if model == "mock/429:7":
                assert waits == "7"
            else:  # R52; for a spent plan there is no time to name
                assert bool(waits) == (status in (429, 503, 529) and model != "mock/quota")

    recorded = [model for model in FAILED if not model.startswith("mock/")]
    faulty = [model for model in FAILED if model.startswith("mock/")]
    through(test, *recorded, mock={"models": faulty}, routing={"retries": 0})


@pytest.mark.parametrize("broken", ["mock/cut", "mock/reset", "mock/error-mid", "mock/no-done"])
def test_broken_stream(broken: str, published: Json) -> None:
    """The pieces that came, then the problem as an ``error`` event, and no last event (R12)."""

    async def test(b: Behind) -> None:
        answer = await infer(b, prompt="Hi", model=broken, stream=True)
        assert answer.status == 200
        *pieces, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
        text = "".join(json.loads(piece.removeprefix("data: "))["text"] for piece in pieces)
        assert text == (ANSWER if broken == "mock/no-done" else "This is a")
        event, data = last.split("\n")
        assert event == "event: error"
        problem = json.loads(data.removeprefix("data: "))
        assert faults(problem, schema(published, "Problem")) == []
        assert problem["status"] == 502
        assert problem["request_id"] == answer.headers["x-request-id"]
        assert b'"done"' not in answer.body

    through(test, mock={"models": [broken]})
