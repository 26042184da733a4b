"""curl as a client: what people paste from a README, and the corners of HTTP that only curl asks for."""

from __future__ import annotations

import asyncio
import gzip
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.mock.app import MockServer
from tests.aio import DEADLINE_S, run
from tests.harness import KEY, USER, chat_body, config, gateway, mocks, scrape, to

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
ANSWER = "This is a mock answer, made of nothing but words. This is a"
JSON = ("-H", "Content-Type: application/json")
Curl = Callable[..., subprocess.CompletedProcess[bytes]]


def with_curl(test: Callable[[Curl, MockServer], None]) -> None:
    """Run ``test`` in a thread; ``curl(path, *flags)`` calls a locked gateway before a mock."""

    async def main() -> None:
        async with mocks() as (mock,), gateway(config(to(mock), master_api_key=KEY)) as running:

            def curl(path: str, *flags: str, key: str = KEY) -> subprocess.CompletedProcess[bytes]:
                command = ["curl", "-q", "-sS", "--noproxy", "*", "-m", str(DEADLINE_S)]
                command += ["-H", f"Authorization: Bearer {key}", *flags, f"http://127.0.0.1:{running.port}{path}"]
                return subprocess.run(command, capture_output=True, check=False)

            await asyncio.to_thread(test, curl, mock)
            assert (await scrape(running.port)).total("llm_proxy_active_requests") == 0

    run(main())


def text_of(answer: subprocess.CompletedProcess[bytes]) -> str:
    assert answer.returncode == 0, answer.stderr
    return str(json.loads(answer.stdout)["choices"][0]["message"]["content"])


def test_unary() -> None:
    def test(curl: Curl, mock: MockServer) -> None:
        assert text_of(curl("/v1/chat/completions", *JSON, "-d", chat_body().decode())) == ANSWER

    with_curl(test)


def test_stream() -> None:
    def test(curl: Curl, mock: MockServer) -> None:
        answer = curl("/v1/chat/completions", "-N", "-i", *JSON, "-d", chat_body(stream=True).decode())
        assert answer.returncode == 0
        head, _, body = answer.stdout.partition(b"\r\n\r\n")
        assert b"content-type: text/event-stream" in head.lower()
        assert body.endswith(b"data: [DONE]\n\n")
        assert body.count(b"data: ") == 19

    with_curl(test)


@pytest.mark.parametrize("stream", [False, True])
def test_http_1_0(stream: bool) -> None:
    """No chunks for a client that knows none: the end of the connection is the end of the body."""

    def test(curl: Curl, mock: MockServer) -> None:
        answer = curl("/v1/chat/completions", "--http1.0", "-i", *JSON, "-d", chat_body(stream=stream).decode())
        assert answer.returncode == 0, answer.stderr
        head, _, body = answer.stdout.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        assert body.endswith(b"data: [DONE]\n\n" if stream else b"}")

    with_curl(test)


@pytest.mark.parametrize("coding", ["gzip", "identity"])
def test_compressed(coding: str, tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(gzip.compress(chat_body()) if coding == "gzip" else chat_body())

    def test(curl: Curl, mock: MockServer) -> None:
        flags = (*JSON, "-H", f"Content-Encoding: {coding}", "--compressed", "--data-binary", f"@{body}")
        assert text_of(curl("/v1/chat/completions", *flags)) == ANSWER
        assert mock.ledger.last_requests[-1]["body"] == {"model": "m", "messages": USER}
        assert "content-encoding" not in mock.ledger.last_requests[-1]["headers"]

    with_curl(test)


def test_expect_continue(tmp_path: Path) -> None:
    """A body of 2 MB waits for our word, and gets it only with the right key."""
    body = tmp_path / "body"
    body.write_bytes(chat_body(padding="x" * 2_000_000))

    def test(curl: Curl, mock: MockServer) -> None:
        flags = (*JSON, "-v", "--expect100-timeout", "4", "-H", "Expect: 100-continue", "--data-binary", f"@{body}")
        answer = curl("/v1/chat/completions", *flags)
        assert text_of(answer) == ANSWER
        assert b"< HTTP/1.1 100 Continue" in answer.stderr
        assert mock.ledger.last_requests[-1]["body_bytes"] == body.stat().st_size
        refused = curl("/v1/chat/completions", *flags, "-w", "%{http_code} %{size_upload}", key="sk-wrong")
        assert refused.returncode == 0
        assert b"100 Continue" not in refused.stderr
        assert refused.stdout.endswith(b"401 0")

    with_curl(test)


def test_chunked_body(tmp_path: Path) -> None:
    body = tmp_path / "body"
    body.write_bytes(chat_body(padding="x" * 300_000))

    def test(curl: Curl, mock: MockServer) -> None:
        flags = (*JSON, "-H", "Transfer-Encoding: chunked", "--data-binary", f"@{body}")
        assert text_of(curl("/v1/chat/completions", *flags)) == ANSWER
        assert mock.ledger.last_requests[-1]["body_bytes"] == body.stat().st_size

    with_curl(test)
