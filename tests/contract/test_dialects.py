"""What every endpoint owes its client whatever its dialect is: the wait that a provider asks for, the names of what
could not be passed on, an error in its own form, and no secret in it.
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from slipstream.types import Endpoint
from tests.aio import run
from tests.contract.recorded import behind, needs_recordings
from tests.harness import KEY, USER, Answer, Config, ask, config, gateway, scrape
from tests.integration.test_disconnect_matrix import BEGUN
from tests.unit.test_eventstream import frame
from tests.upstreams import Peer, upstream

Json = dict[str, Any]
NATIVE = "anthropic.messages.text.8dd34368"
SAID: dict[Endpoint, Json] = {
    Endpoint.CHAT: {"messages": USER},
    Endpoint.COMPLETIONS: {"prompt": "Say"},
    Endpoint.RESPONSES: {"input": "Say"},
    Endpoint.MESSAGES: {"messages": USER, "max_tokens": 100},
    Endpoint.INFER: {"prompt": "Say"},
}
"""The endpoints that generate, and the least that they want."""
KEYED = {"Authorization": f"Bearer {KEY}"}
named = pytest.mark.parametrize("endpoint", SAID, ids=lambda endpoint: endpoint.name)


async def asked(port: int, endpoint: Endpoint, model: str, **fields: Any) -> Answer:
    body = json.dumps({"model": model, **SAID.get(endpoint, {}), **fields}).encode()
    return await ask(port, "POST", endpoint.path, body, KEYED)


def message_of(endpoint: Endpoint, answer: Answer) -> tuple[str, str | None]:
    """Message and named field of an error, which is in the endpoint's own form."""
    body = answer.json()
    if endpoint is Endpoint.INFER:
        assert answer.headers["content-type"] == "application/problem+json"
        assert set(body) == {"type", "title", "status", "detail", "request_id"}
        return body["detail"], None
    assert answer.headers["content-type"] == "application/json"
    if endpoint in (Endpoint.MESSAGES, Endpoint.COUNT_TOKENS):
        assert (set(body) - {"request_id"}, set(body["error"])) == ({"type", "error"}, {"type", "message"})
        return body["error"]["message"], None
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]["message"], body["error"]["param"]


# ------------------------------------------------------------------ retry-after


WAITS = {
    "mock/429:7": "7",
    "anthropic.messages.error-429.d-rate": "17",
    "mock/503": "1",
}


@needs_recordings
@named
def test_retry_after(endpoint: Endpoint) -> None:
    """R52, R53: passed on as it came, whole or streamed, in every dialect; a 503 that says nothing gets our own."""

    async def main() -> None:
        recorded = [model for model in WAITS if not model.startswith("mock/")]
        faults = [model for model in WAITS if model.startswith("mock/")]
        async with behind(*recorded, mock={"type": "mock", "models": faults}, routing={"retries": 0}) as b:
            for model, wait in WAITS.items():
                for stream in (False, True):
                    answer = await asked(b.running.port, endpoint, model, stream=stream)
                    assert answer.status == (503 if model == "mock/503" else 429)
                    assert answer.headers.get("retry-after") == wait
                    assert message_of(endpoint, answer)[0]

    run(main())


# ------------------------------------------------------------------ what could not be passed on


LOST: list[tuple[Endpoint, str, Json, list[str]]] = [
    (Endpoint.CHAT, NATIVE, {"seed": 7, "logit_bias": {"50256": -100}}, ["seed", "logit_bias"]),
    (Endpoint.CHAT, NATIVE, {"presence_penalty": 0.5, "frequency_penalty": 0, "n": 1}, ["presence_penalty"]),
    (Endpoint.COMPLETIONS, NATIVE, {"seed": 7, "echo": False}, ["seed"]),
    (Endpoint.RESPONSES, "m", {"truncation": "auto", "max_tool_calls": 3}, ["max_tool_calls", "truncation"]),
    (Endpoint.MESSAGES, "m", {"context_management": {"edits": [{"type": "x"}]}}, ["context_management"]),
    (Endpoint.INFER, "m", {"temperature": 0.5}, ["temperature"]),
]
by_loss = pytest.mark.parametrize(
    ("endpoint", "model", "fields", "names"), LOST, ids=[f"{row[0].name}-{row[3][0]}" for row in LOST]
)


@needs_recordings
@by_loss
def test_dropped_is_named(endpoint: Endpoint, model: str, fields: Json, names: list[str]) -> None:
    """R65: the request is served, the header names what did not reach the provider, and it is counted."""

    async def main() -> None:
        async with behind(NATIVE, mock={"type": "mock"}) as b:
            plain = await asked(b.running.port, endpoint, model)
            assert (plain.status, plain.headers.get("x-slipstream-dropped-params")) == (200, None)
            answer = await asked(b.running.port, endpoint, model, **fields)
            assert answer.status == 200, answer.body
            assert sorted(answer.headers["x-slipstream-dropped-params"].split(", ")) == sorted(names)
            sent = b.sent if model == NATIVE else b.mocked
            assert not set(sent) & set(fields)
            assert (await scrape(b.running.port)).total("slipstream_dropped_params_total") == 1

    run(main())


@needs_recordings
@by_loss
@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
def test_strict_params(endpoint: Endpoint, model: str, fields: Json, names: list[str], stream: bool) -> None:
    """R65: refused instead, with the field's name, and nobody is asked. What can be expressed goes on."""

    async def main() -> None:
        async with behind(NATIVE, mock={"type": "mock"}, routing={"strict_params": True}) as b:
            answer = await asked(b.running.port, endpoint, model, stream=stream, **fields)
            assert answer.status == 400, answer.body
            message, param = message_of(endpoint, answer)
            assert all(repr(name) in message for name in names)
            assert param in (None, *names)
            assert "strict_params" in message
            assert b.mock.ledger.requests == len(b.log) == 0
            assert (await asked(b.running.port, endpoint, model)).status == 200

    run(main())


@needs_recordings
def test_dropped_in_a_stream() -> None:
    """The header is there before the first event."""
    ident = "anthropic.messages.text-stream.63863daa"

    async def main() -> None:
        async with behind(ident) as b:
            answer = await asked(b.running.port, Endpoint.CHAT, ident, stream=True, seed=7)
            assert answer.headers["x-slipstream-dropped-params"] == "seed"
            assert answer.body.endswith(b"data: [DONE]\n\n")

    run(main())


# ------------------------------------------------------------------ errors before anything is read


@pytest.mark.parametrize("endpoint", Endpoint, ids=lambda endpoint: endpoint.name)
def test_errors_of_the_gateway_are_in_the_dialect(endpoint: Endpoint) -> None:
    """Wrong key, wrong JSON, wrong method, wrong type, unknown model, something missing: always the endpoint's form."""

    async def main() -> None:
        async with behind() as b:
            port, path = b.running.port, endpoint.path
            some = json.dumps({"model": "nobody", **SAID.get(endpoint, {"messages": USER, "input": "x"})}).encode()
            answers = [
                (401, await ask(port, "POST", path, some, {"Authorization": "Bearer wrong"})),
                (400, await ask(port, "POST", path, b'{"model": ', KEYED)),
                (400, await ask(port, "POST", path, b"[]", KEYED)),
                (400, await ask(port, "POST", path, b'{"model": 5}', KEYED)),
                (404, await ask(port, "POST", path, some, KEYED)),
                (405, await ask(port, "PUT", path, some, KEYED)),
                (415, await ask(port, "POST", path, some, KEYED | {"Content-Type": "text/plain"})),
            ]
            for status, answer in answers:
                assert answer.status == status, answer.body
                assert message_of(endpoint, answer)[0]
                assert answer.headers["x-request-id"].startswith("req_")

    run(main())


# ------------------------------------------------------------------ secrets


PROVIDER_KEY = "canary-provider-77ab34cd01"
EXTRA = "canary-header-5566778899"
TEXT = f"Something broke for {PROVIDER_KEY}; also {EXTRA}, Bearer {PROVIDER_KEY}."
"""Not about credentials: an error that is loses its text altogether (R56)."""
STATUSES = (400, 401, 402, 403, 404, 413, 422, 429, 500, 503, 529, 200)
ERRORS: dict[str, Json] = {
    "vllm": {"error": {"message": TEXT, "type": "x", "code": 7, "param": None, "metadata": {"a": TEXT}}},
    "anthropic": {"type": "error", "error": {"type": "api_error", "message": TEXT}, "request_id": PROVIDER_KEY},
    "bedrock": {"message": TEXT, "__type": "InternalServerException"},
    "gemini": {"error": {"code": 500, "message": TEXT, "status": "INTERNAL", "details": [{"reason": EXTRA}]}},
    "ollama": {"error": TEXT},
}


def provider(kind: str, status: int, port: int) -> Config:
    """The status is asked for by the address, because not every dialect has the model in the body."""
    model = "anthropic.claude-sonnet-4-20250514-v1:0" if kind == "bedrock" else "some-model"
    return {
        "name": f"{kind}-{status}",
        "type": kind,
        "api_base": f"http://127.0.0.1:{port}/{status}",
        "api_key": PROVIDER_KEY,
        "headers": {"X-Extra": EXTRA},
        "model_mapping": {f"{kind}-{status}": model},
    }


async def indiscreet(peer: Peer) -> None:
    """Repeat what it was sent, in an error of its dialect; under 200 it is inside what should be an answer."""
    while (request := await peer.request()) is not None:
        head = request[0].decode()
        assert PROVIDER_KEY in head
        kind = head.partition("x-kind: ")[2].split("\r\n")[0]
        status = int(head.split(" ")[1].split("/")[1])
        body = json.dumps(ERRORS[kind]).encode()
        await peer.send(
            f"HTTP/1.1 {status} No\r\nContent-Type: application/json\r\nX-Amzn-ErrorType: x:{PROVIDER_KEY}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )


@pytest.mark.parametrize("kind", ERRORS)
def test_no_secret_in_an_error(kind: str) -> None:
    """R84: a provider that repeats the key it was given, in each dialect of both sides, by every status."""

    async def main() -> None:
        async with upstream(indiscreet) as up:
            entries = [provider(kind, status, up.port) for status in STATUSES]
            for entry in entries:
                entry["headers"]["x-kind"] = kind
            async with gateway(config(*entries, master_api_key=KEY, routing={"retries": 0})) as running:
                for endpoint in (*SAID, Endpoint.COUNT_TOKENS, Endpoint.EMBEDDINGS):
                    for status in STATUSES:
                        for stream in (False, True):
                            await check_silence(running.port, endpoint, f"{kind}-{status}", stream)
                page = (await scrape(running.port)).page
                assert "canary" not in page
            assert len(up.seen) > len(SAID) * len(STATUSES)

    run(main())


async def check_silence(port: int, endpoint: Endpoint, model: str, stream: bool) -> None:
    fields: Json = {"messages": USER} if endpoint is Endpoint.COUNT_TOKENS else {"input": "x"}
    if endpoint in SAID:
        fields = {"stream": stream}
    answer = await asked(port, endpoint, model, **fields)
    if endpoint is not Endpoint.COUNT_TOKENS:  # which is estimated where nobody counts
        assert answer.status >= 400, answer.body
    everything = answer.body.decode() + str(answer.headers)
    for secret in (PROVIDER_KEY, EXTRA, KEY):
        assert secret not in everything, (endpoint, model, everything)


FAILING = {
    "vllm": (BEGUN["azure"], b"data: " + json.dumps(ERRORS["vllm"]).encode() + b"\n\n"),
    "anthropic": (BEGUN["anthropic"], b"event: error\ndata: " + json.dumps(ERRORS["anthropic"]).encode() + b"\n\n"),
    "bedrock": (
        BEGUN["bedrock"],
        frame(json.dumps({"message": TEXT}).encode(), message_type="exception", exception_type="throttlingException"),
    ),
    "gemini": (BEGUN["gemini"], b"data: " + json.dumps(ERRORS["gemini"]).encode() + b"\n\n"),
    "ollama": (BEGUN["ollama"], json.dumps(ERRORS["ollama"]).encode() + b"\n"),
}
"""What a stream begins with, and the error that ends it."""


@pytest.mark.parametrize("kind", FAILING)
def test_no_secret_in_the_error_of_a_stream(kind: str) -> None:
    """R84, R12, R15: after the first content, in each dialect of both sides."""
    (content_type, begun), failed = FAILING[kind]

    async def script(peer: Peer) -> None:
        await peer.request()
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nConnection: close\r\n\r\n"
        await peer.send(head.encode() + begun)
        await asyncio.sleep(0.01)  # so that the content is read before the error
        await peer.send(failed)

    async def main() -> None:
        async with upstream(script) as up:
            entry = provider(kind, 200, up.port)
            async with gateway(config(entry, master_api_key=KEY, routing={"retries": 0})) as running:
                for endpoint in SAID:
                    answer = await asked(running.port, endpoint, f"{kind}-200", stream=True)
                    assert answer.status == 200
                    text = answer.body.decode()
                    assert "Hello" in text
                    assert "Something broke for ***; also ***" in text
                    assert "canary" not in text
                    assert KEY not in text
                    for target in running.runtime.active.routes.targets:
                        running.runtime.table.clear_cooldown(target.row)  # a throttled target would not be asked

    run(main())
