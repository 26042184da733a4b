"""Our own surface: health, metrics, description, CORS, and the errors that never reach a provider."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from slipstream.mock.app import MockServer
from tests.aio import RawClient, run, until
from tests.harness import CHAT, KEY, Answer, Gateway, Http, ask, chat_body, config, gateway, mocks, scrape, to

KEYED = {"Authorization": f"Bearer {KEY}"}
CONTRACT_C = {
    "llm_proxy_requests_total": {"method", "endpoint", "model", "provider", "status_code", "api_key_name"},
    "llm_proxy_request_duration_seconds_bucket": {"method", "endpoint", "model", "provider", "api_key_name", "le"},
    "llm_proxy_active_requests": {"endpoint"},
    "llm_proxy_tokens_total": {"model", "provider", "token_type", "api_key_name"},
    "llm_proxy_provider_health": {"provider"},
    "llm_proxy_provider_latency_seconds": {"provider"},
    "llm_proxy_ttft_seconds_bucket": {"source", "model", "provider", "le"},
    "llm_proxy_tokens_per_second": {"source", "model", "provider"},
}
BUCKETS = {"0.1", "0.5", "1.0", "2.0", "5.0", "10.0", "30.0", "60.0", "120.0", "+Inf"}
PATHS = {
    "/v1/chat/completions": {"post"},
    "/v1/completions": {"post"},
    "/v1/embeddings": {"post"},
    "/v1/responses": {"post"},
    "/v1/messages": {"post"},
    "/v1/messages/count_tokens": {"post"},
    "/v1/infer": {"post"},
    "/v1/models": {"get"},
    "/v1/models/{id}": {"get"},
    "/health": {"get"},
    "/health/detailed": {"get"},
    "/v1/healthz": {"get"},
    "/v1/readyz": {"get"},
    "/metrics": {"get"},
    "/docs": {"get"},
    "/openapi.json": {"get"},
}
OPEN = ["/health", "/v1/healthz", "/v1/readyz", "/metrics", "/docs", "/openapi.json"]
LOCKED = ["/health/detailed", "/v1/models", "/v1/models/m"]


def on_gateway(test: Callable[[Gateway, MockServer], Awaitable[None]], **server: Any) -> None:
    async def main() -> None:
        async with (
            mocks(tokens_per_s=2000.0) as (mock,),
            gateway(config(to(mock, models=["m"]), master_api_key=KEY, **server)) as running,
        ):
            await test(running, mock)

    run(main())


def check_error(answer: Answer, status: int, code: str | None = None) -> None:
    """OpenAI's form, with an id, in JSON, and without a word about what we are."""
    assert answer.status == status, answer.body
    assert set(answer.error) == {"message", "type", "param", "code"}
    assert answer.error["message"]
    assert answer.error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    if code is not None:
        assert answer.error["code"] == code
    assert answer.headers["content-type"].startswith("application/json")
    check_headers(answer)


def check_headers(answer: Answer) -> None:
    assert re.fullmatch(r"req_[0-9a-f]{24}", answer.headers["x-request-id"])
    assert "server" not in answer.headers
    assert "x-powered-by" not in answer.headers


# ------------------------------------------------------------------ pages


@pytest.mark.parametrize("path", OPEN + LOCKED)
def test_pages_and_their_locks(path: str) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        async with await Http.connect(running.port) as http:
            plain = await http.ask("GET", path)
            keyed = await http.ask("GET", path, headers=KEYED)
            head = await http.ask("HEAD", path, headers=KEYED)
            after = await http.ask("GET", "/v1/healthz")  # the HEAD had no body: the connection is in step
        if path in LOCKED:
            check_error(plain, 401, "invalid_api_key")
            assert plain.headers["www-authenticate"] == "Bearer"
        else:
            assert plain.status == 200
        assert (keyed.status, head.status, after.body) == (200, 200, b"ok")
        assert head.headers["content-type"] == keyed.headers["content-type"]
        if path not in ("/metrics", "/health/detailed"):  # those change from one moment to the next
            assert head.headers["content-length"] == str(len(keyed.body))
        for answer in (plain, keyed, head):
            check_headers(answer)

    on_gateway(test)


def test_health() -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        assert (await ask(running.port, "GET", "/health")).json() == {"status": "ok"}
        assert (await ask(running.port, "POST", CHAT, chat_body(), KEYED)).status == 200
        detailed = (await ask(running.port, "GET", "/health/detailed", headers=KEYED)).json()
        assert (detailed["status"], detailed["ready"], detailed["in_flight"]) == ("ok", True, 0)
        (provider,) = detailed["providers"]
        assert (provider["name"], provider["healthy"], provider["attempts"]) == ("alpha", True, 1)
        assert mock.base_url not in str(detailed)

    on_gateway(test)


def test_readiness() -> None:
    """503 with a problem document when every target rests, and again 200 when one answered."""

    async def main() -> None:
        async with mocks() as (mock,):
            entry = to(mock, model_mapping={"bad": "mock/429:60"})
            async with gateway(config(entry)) as running:
                assert (await ask(running.port, "GET", "/v1/readyz")).status == 200
                assert (await ask(running.port, "POST", CHAT, chat_body("bad"))).status == 429
                answer = await ask(running.port, "GET", "/v1/readyz")
                check_problem(answer, "no-provider")
                detailed = (await ask(running.port, "GET", "/health/detailed")).json()
                assert (detailed["status"], detailed["ready"]) == ("down", False)
                assert 55 < detailed["providers"][0]["resting_s"] <= 60
                assert detailed["providers"][0]["last_failure"] == "rate_limited"

    run(main())


def test_draining() -> None:
    """From the signal on: not ready, no new connections, the stream in flight goes on to its end."""

    async def main() -> None:
        async with mocks(tokens_per_s=100.0, completion_tokens=30) as (mock,), gateway(config(to(mock))) as running:
            probe = await Http.connect(running.port)
            client = await RawClient.connect(running.port)
            client.send("POST", CHAT, chat_body(stream=True), {"content-type": "application/json"})
            await client.read_until(b"data: ")
            probe.writer.write(b"GET /v1/readyz HTTP/1.1\r\n")  # under way, so that it is not closed as idle
            await until(lambda: running.runtime.in_flight == 1)
            running.process.stop()
            await until(lambda: running.runtime.draining)
            probe.writer.write(b"Host: a\r\n\r\n")
            answer = await probe.answer()
            check_problem(answer, "draining")
            assert answer.headers["connection"] == "close"
            with pytest.raises(OSError, match=r".*"):
                await RawClient.connect(running.port)
            await client.read_until(b"data: [DONE]\n\n")
            assert await client.read_to_end() == "fin"
            await client.close()
            probe.writer.close()
            assert mock.ledger.completion_tokens == 30

    run(main())


def check_problem(answer: Answer, kind: str) -> None:
    """RFC 9457, as contracts E has it."""
    assert answer.status == 503
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert set(problem) == {"type", "title", "status", "detail", "request_id"}
    assert problem["type"].endswith("/" + kind)
    assert (problem["status"], problem["request_id"]) == (503, answer.headers["x-request-id"])


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0", "text/plain"])
def test_metrics(accept: str) -> None:
    """Every name and label that contracts C promises, in a page that Prometheus reads."""

    async def test(running: Gateway, mock: MockServer) -> None:
        for stream in (False, True):
            assert (await ask(running.port, "POST", CHAT, chat_body(stream=stream), KEYED)).status == 200
        assert (await ask(running.port, "POST", CHAT, chat_body("nobody"), KEYED)).status == 404
        answer = await ask(running.port, "GET", "/metrics", headers={"Accept": accept} if accept else None)
        wanted = "application/openmetrics-text" if "openmetrics" in accept else "text/plain"
        assert answer.headers["content-type"].startswith(wanted)
        seen = await scrape(running.port)
        for name, labels in CONTRACT_C.items():
            rows = seen.rows(name)
            assert rows, name
            assert all(set(row) == labels for row, _ in rows), name
        assert {row["le"] for row, _ in seen.rows("llm_proxy_request_duration_seconds_bucket")} == BUCKETS
        assert {row["token_type"] for row, _ in seen.rows("llm_proxy_tokens_total")} == {
            "prompt",
            "completion",
            "total",
        }
        assert seen.total("llm_proxy_requests_total", status_code="404", model="other", provider="none") == 1
        assert seen.total("slipstream_resident_memory_bytes") > 1e7

    on_gateway(test)


def test_docs_need_nobody_else() -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        page = (await ask(running.port, "GET", "/docs")).body.decode()
        assert not re.search(r"(?:https?:)?//(?!HOST:PORT)[\w.]", page)
        assert not re.search(r"<(?:script|link|img|iframe|object)\b|@import|url\(", page)
        assert all(path.replace("{", "").split("/")[1] in page for path in PATHS)

    on_gateway(test)


def test_openapi() -> None:
    """The description is true: each path it names is there, and no other method works."""

    async def test(running: Gateway, mock: MockServer) -> None:
        document = (await ask(running.port, "GET", "/openapi.json")).json()
        assert document["openapi"].startswith("3.1")
        assert {path: set(operations) for path, operations in document["paths"].items()} == PATHS
        names = [op["operationId"] for operations in document["paths"].values() for op in operations.values()]
        assert len(names) == len(set(names))
        assert set(document["components"]["securitySchemes"]) == {"bearer", "apiKey"}
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                answer = await ask(
                    running.port, method.upper(), path.replace("{id}", "m"), b"" if method == "post" else None
                )
                assert answer.status == (401 if operation.get("security") else 200)

    on_gateway(test)


# ------------------------------------------------------------------ CORS

PREFLIGHT = {
    "Origin": "https://app.example",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os",
}


@pytest.mark.parametrize(
    ("cors", "allowed"),
    [
        (True, "*"),
        (False, None),
        ({"origins": ["https://app.example"], "max_age_s": 60}, "https://app.example"),
        ({"origins": ["https://other.example"]}, None),
    ],
)
def test_cors(cors: Any, allowed: str | None) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        preflight = await ask(running.port, "OPTIONS", CHAT, headers=PREFLIGHT)  # browsers send no key here
        assert (preflight.status, preflight.body) == (204, b"")
        assert preflight.headers.get("access-control-allow-origin") == allowed
        simple = await ask(running.port, "POST", CHAT, chat_body(), KEYED | {"Origin": "https://app.example"})
        failed = await ask(running.port, "POST", CHAT, chat_body(), {"Origin": "https://app.example"})
        streamed = await ask(
            running.port, "POST", CHAT, chat_body(stream=True), KEYED | {"Origin": "https://app.example"}
        )
        assert (simple.status, failed.status, streamed.status) == (200, 401, 200)
        for answer in (simple, failed, streamed):
            assert answer.headers.get("access-control-allow-origin") == allowed
            exposed = answer.headers.get("access-control-expose-headers", "")
            assert ("X-Request-ID" in exposed) is (allowed is not None)
        if allowed is not None:
            assert "POST" in preflight.headers["access-control-allow-methods"]
            assert preflight.headers["access-control-allow-headers"] == PREFLIGHT["Access-Control-Request-Headers"]
            assert preflight.headers["access-control-max-age"] == ("60" if isinstance(cors, dict) else "600")
            assert ("Origin" in preflight.headers.get("vary", "")) is (allowed != "*")
        assert "access-control-allow-credentials" not in preflight.headers
        plain = await ask(running.port, "POST", CHAT, chat_body(), KEYED)
        assert not any(name.startswith("access-control") for name in plain.headers)

    on_gateway(test, cors=cors)


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/", 404, None),
        ("GET", "/v1", 404, None),
        ("POST", "/v1/chat/completions/", 404, None),
        ("POST", "/v1/chat%2Fcompletions", 404, None),
        ("POST", "//v1/chat/completions", 404, None),
        ("POST", "/v1/images/generations", 404, None),
        ("GET", "/v1/chat/completions", 405, "POST"),
        ("DELETE", "/v1/embeddings", 405, "POST"),
        ("PUT", "/v1/completions", 405, "POST"),
        ("POST", "/v1/models", 405, "GET"),
        ("DELETE", "/v1/models/m", 405, "GET"),
        ("POST", "/metrics", 405, "GET"),
        ("OPTIONS", "/v1/models", 405, "GET"),
        ("PATCH", "/health", 405, "GET"),
    ],
)
def test_unknown_paths_and_methods(method: str, path: str, status: int, allow: str | None) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        async with await Http.connect(running.port) as http:
            for body in (None, chat_body()):
                answer = await http.ask(method, path, body, KEYED)
                check_error(answer, status, "unknown_url" if status == 404 else "method_not_allowed")
                assert answer.headers.get("allow") == allow
            assert (await http.ask("GET", "/health")).status == 200  # the connection is in step
        assert mock.ledger.requests == 0

    on_gateway(test)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        (b"", None),
        (b"{", None),
        (b"[]", None),
        (b"null", None),
        (b'{"model": "m"}', "messages"),
        (b'{"messages": []}', "model"),
        (b'{"model": 7, "messages": []}', "model"),
        (b'{"model": "", "messages": []}', "model"),
        (b'{"model": "m", "messages": {}}', "messages"),
        (b'{"model": "m", "messages": [], "stream": "yes"}', "stream"),
        (b'{"model": "m", "messages": [], "stream_options": 1}', "stream_options"),
        (b'{"model": "m", "model": "n", "messages": []}', "model"),
        (b'{"model": "m", "messages": [], "\\u006dessages": []}', "messages"),
        (b'{"model": "m", "messages": ["\xff"]}', None),
        (b'{"model": "m", "messages": []} x', None),
        (b'{"model": "m", "messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", None),
    ],
)
def test_bodies_that_are_no_request(body: bytes, param: str | None) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        async with await Http.connect(running.port) as http:
            answer = await http.ask("POST", CHAT, body, KEYED)
            check_error(answer, 400)
            assert answer.error["param"] == param
            assert (await http.ask("POST", CHAT, chat_body(), KEYED)).status == 200
        assert mock.ledger.requests == 1

    on_gateway(test)


@pytest.mark.parametrize(
    "media", ["text/plain", "multipart/form-data; boundary=x", "application/x-www-form-urlencoded"]
)
def test_media_types(media: str) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        answer = await ask(running.port, "POST", CHAT, chat_body(), KEYED | {"Content-Type": media})
        check_error(answer, 415, "unsupported_media_type")
        for fine in ("application/json; charset=utf-8", "APPLICATION/JSON", "application/vnd.x+json"):
            assert (await ask(running.port, "POST", CHAT, chat_body(), KEYED | {"Content-Type": fine})).status == 200

    on_gateway(test)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: a\r\n\r\n", 505),
        (b"GET /" + b"x" * 20_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
    ],
)
def test_malformed_requests(data: bytes, status: int) -> None:
    async def test(running: Gateway, mock: MockServer) -> None:
        http = await Http.connect(running.port)
        http.writer.write(data)
        answer = await http.answer()
        assert answer.status == status
        assert set(answer.error) == {"message", "type", "param", "code"}
        assert answer.headers["connection"] == "close"
        check_headers(answer)
        http.writer.close()
        seen = await scrape(running.port)
        assert seen.total("slipstream_bad_requests_total", status=str(status)) == 1

    on_gateway(test)
