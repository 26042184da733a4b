"""What must hold of an error in every dialect, however it came about: no secret in it, and the right form."""

from __future__ import annotations

import asyncio
import json

import pytest

from slipstream.types import Endpoint
from tests.aio import run
from tests.contract import test_dialects as d
from tests.contract.recorded import behind
from tests.harness import KEY, config, gateway
from tests.upstreams import Peer, upstream

HEAD = b"HTTP/1.1 400 No\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
STREAM = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize("endpoint", [Endpoint.CHAT, Endpoint.MESSAGES, Endpoint.INFER], ids=lambda e: e.name)
def test_a_body_that_is_too_large(endpoint: Endpoint) -> None:
    async def main() -> None:
        async with behind(max_body_bytes=2000) as b:
            answer = await d.asked(b.running.port, endpoint, "m", prompt="x" * 3000)
            assert answer.status == 413
            assert d.message_of(endpoint, answer)[0]

    run(main())


@pytest.mark.parametrize("field", ["type", "code", "param"])
@pytest.mark.parametrize("endpoint", [Endpoint.MESSAGES, Endpoint.RESPONSES], ids=lambda e: e.name)
@pytest.mark.parametrize("begun", [False, True])
def test_no_field_of_a_providers_error_shows_a_secret(endpoint: Endpoint, field: str, begun: bool) -> None:  # R84
    error = {"message": "It broke.", "type": "t", "code": "c", "param": "p"}
    body = json.dumps({"error": error | {field: d.PROVIDER_KEY}}).encode()

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            if not begun:
                await peer.send(HEAD % (len(body), body))
                continue
            await peer.send(STREAM + d.BEGUN["azure"][1])
            await asyncio.sleep(0.01)
            await peer.send(b"data: " + body + b"\n\n")
            return

    async def main() -> None:
        async with upstream(script) as up:
            entry = d.provider("mock", 200, up.port)
            async with gateway(config(entry, master_api_key=KEY, routing={"retries": 0})) as running:
                answer = await d.asked(running.port, endpoint, "mock-200", stream=True)
                assert answer.status == (200 if begun else 400)
                assert d.PROVIDER_KEY not in answer.body.decode()

    run(main())
