"""A gateway before recorded providers, and a mock: what the tests of the official SDKs share.

``behind("anthropic.messages.text.8dd34368", ...)`` runs the shared replay server (``../shared/wire``) and a gateway
with one provider per exchange, of the type that it was recorded from; the exchange's id is the model to ask for. What
reached the "provider" is in ``log``. ``mock/...`` names go to a mock of OpenAI's API, with its faults.
"""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import unquote

import pytest

from slipstream.mock.app import MockServer
from tests.harness import KEY, SHARED, Gateway, config, gateway, mocks, to

WIRE = SHARED / "wire"
needs_recordings = pytest.mark.skipif(
    not (WIRE / "replay.py").is_file(), reason=f"no {WIRE}/replay.py: set SLIPSTREAM_SHARED"
)
Json = dict[str, Any]
_MODEL = re.compile(r"/(?:model|models)/([^/]+?)(?::(?:stream)?(?:Raw|G|g|raw).*|/[a-z-]+)?$")
_BASES = {"gemini": "/gemini/v1beta", "bedrock": "/bedrock", "anthropic": "/anthropic"}


def replay_server() -> Any:
    """The shared replay server, not yet started."""
    spec = importlib.util.spec_from_file_location("slipstream_replay", WIRE / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Replay(str(WIRE / "dev"))


def exchange(ident: str) -> Json:
    """One recorded exchange."""
    value: Json = json.loads((WIRE / "dev" / f"{ident}.json").read_text())
    return value


def recorded_model(ex: Json) -> str:
    """The provider's own name of the model that was asked."""
    body = ex["request"].get("body")
    if isinstance(body, dict) and isinstance(body.get("model"), str):
        return str(body["model"])
    found = _MODEL.search(ex["request"]["url"].partition("?")[0])
    assert found is not None, ex["id"]
    return unquote(found[1]).replace("@", "-")


class Behind:
    """A running gateway, its mock, and what the recorded providers were sent."""

    def __init__(self, running: Gateway, mock: MockServer, server: Any) -> None:
        self.running = running
        self.mock = mock
        self._server = server

    @property
    def root(self) -> str:
        """What Anthropic's SDK calls ``base_url``."""
        return self.running.url.removesuffix("/v1")

    @property
    def log(self) -> list[Json]:
        entries: list[Json] = self._server.log
        return entries

    @property
    def sent(self) -> Json:
        """The body of the last request to a recorded provider."""
        body: Json = self.log[-1]["body"]
        return body

    @property
    def mocked(self) -> Json:
        """The body of the last request to the mock."""
        body: Json = self.mock.ledger.last_requests[-1]["body"]
        return body


@asynccontextmanager
async def behind(
    *idents: str, replaying: Mapping[str, str] | None = None, mock: Json | None = None, **server: Any
) -> AsyncIterator[Behind]:
    """``replaying``: further ``x-replay-*`` fields for all; ``mock``: further keys of the mock's entry."""
    recordings = replay_server() if idents else None
    port = await recordings.start() if recordings is not None else 0
    entries = [_entry(exchange(ident), port, dict(replaying or {})) for ident in idents]
    # Paced, so that content and what follows it are two reads: an error in the same read as the first content comes
    # before anything was sent, and is an HTTP error.
    async with mocks(tokens_per_s=400.0) as (upstream,):
        faults = to(upstream, "mock", **({"type": "vllm", "models": ["m"]} | (mock or {})))
        async with gateway(config(*entries, faults, **({"master_api_key": KEY} | server))) as running:
            yield Behind(running, upstream, recordings)
    if recordings is not None:
        recordings.server.close()


def _entry(ex: Json, port: int, replaying: dict[str, str]) -> Json:
    provider = ex["provider"]
    return {
        "name": ex["id"].replace(".", "-"),
        "type": provider,
        "api_base": f"http://127.0.0.1:{port}{_BASES[provider]}",
        "api_key": f"upstream-{provider}",
        "model_mapping": {ex["id"]: recorded_model(ex)},
        "headers": {"x-replay-id": ex["id"], **{f"x-replay-{name}": value for name, value in replaying.items()}},
    }
