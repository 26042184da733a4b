"""Recorded traffic of real providers through the gateway: nothing is changed, nothing is invented.

``accept.py`` (shared, not ours) judges what the official SDK sees, and the bytes; the second test looks at what the
gateway counted.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.aio import run
from tests.harness import SHARED, Gateway, clean_env, config, gateway, request_bytes, scrape

WIRE = SHARED / "wire"
PROVIDERS = ("openai", "vllm", "together", "deepseek", "mistral", "groq", "openrouter", "compat")
BASES = {
    "openai": "/openai/v1",
    "vllm": "/vllm/v1",
    "together": "/together/v1",
    "deepseek": "/deepseek",
    "mistral": "/mistral/v1",
    "groq": "/groq/openai/v1",
    "openrouter": "/openrouter/api/v1",
    "compat": "/compat/v1",
}
CHUNKS = {
    "chat": ("event", "bytes:1", "random:7"),
    "responses": ("event", "random:7"),
    "messages": ("event", "random:7"),
}
"""By inbound dialect. Every byte by itself takes twice as long as all others, and what it shows is the framer, which is
the same for all of them. The other three ways of cutting are run by hand before a release: they never found more."""
pytestmark = pytest.mark.skipif(
    not (WIRE / "accept.py").is_file(), reason=f"no {WIRE}/accept.py: set SLIPSTREAM_SHARED"
)


NATIVE_RESPONSES = {"openai", "compat", "azure", "deepseek", "openrouter", "bedrock", "gemini", "ollama"}
"""Providers that are asked by ``/responses`` when the client speaks it; the last three by their OpenAI faces, which are
configured as type ``openai``."""
JUDGED = {"chat": 290, "responses": 200, "messages": 280}
"""Cells by inbound dialect that must have been judged, so that an empty folder is no success."""


@pytest.mark.parametrize("inbound", JUDGED)
def test_accept(tmp_path: Path, inbound: str) -> None:
    """Every exchange through the official SDK, the streams cut in several ways (R60, R62, R64): all pass, and byte for
    byte where client and provider speak the same dialect."""
    out = tmp_path / "out.json"
    command = [sys.executable, str(WIRE / "accept.py"), "--folder", str(WIRE / "dev"), "--gateway", "slipstream"]
    command += ["--inbound", inbound, "--chunk", ",".join(CHUNKS[inbound]), "--same-dialect-bytes", "--json", str(out)]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = clean_env({"PYTHONPATH": str(Path(__file__).parent), "PATH": path})
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert out.is_file(), done.stdout + done.stderr
    cells = json.loads(out.read_text())
    bad = [(cell["id"], cell["chunk"], cell["diffs"]) for cell in cells if cell["result"] == "fail"]
    assert not bad
    assert done.returncode == 0, done.stdout + done.stderr
    unexplained = [(cell["id"], cell["skip"]) for cell in cells if cell["result"] == "skip" and not explained(cell)]
    assert not unexplained
    judged = Counter(cell["chunk"] for cell in cells if cell["result"] == "pass")
    assert set(judged) == set(CHUNKS[inbound])
    assert judged["event"] >= JUDGED[inbound]
    assert min(judged.values()) >= 80


def explained(cell: Any) -> bool:
    """A recording of one API cannot answer a request to another: which one the gateway asks is its choice, and this is
    it."""
    asked = cell["skip"].removeprefix("gateway called ")
    if cell["api"] == "responses":  # recorded through /responses: only a Responses client is passed on to it
        return cell["inbound"] != "responses" and asked == "chat-completions"
    if cell["api"] == "chat-completions":
        return cell["inbound"] == "responses" and asked == "responses" and cell["provider"] in NATIVE_RESPONSES
    return (cell["api"], asked) == ("invoke", "converse")


# ------------------------------------------------------------------ accounts


def replay(chunk: str) -> Any:
    """The shared replay server."""
    spec = importlib.util.spec_from_file_location("slipstream_replay", WIRE / "replay.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Replay(str(WIRE / "dev"), chunk=chunk)


def streams(exchanges: list[Any]) -> list[Any]:
    return [
        ex
        for ex in exchanges
        if ex["provider"] in PROVIDERS and ex["api"] == "chat-completions" and ex["endpoint"] in ("stream", "chat")
    ]


@pytest.mark.parametrize("chunk", ["event", "random:7"])
def test_usage_is_what_the_provider_said(chunk: str) -> None:
    """Each recorded answer, whole or streamed: the token counters have exactly the provider's usage."""

    async def main() -> None:
        server = replay(chunk)
        port = await server.start()
        checked = 0
        exchanges = streams(server.exchanges)
        entries = [
            {
                "name": ex["id"],
                "type": ex["provider"] if ex["provider"] != "compat" else "openai",
                "api_base": f"http://127.0.0.1:{port}{BASES[ex['provider']]}",
                "api_key": "none",
                "models": [ex["id"]],
                "headers": {"x-replay-id": ex["id"]}
                | ({"x-replay-chunk": chunk} if ex["endpoint"] == "stream" else {}),
            }
            for ex in exchanges
        ]
        async with gateway(config(*entries, routing={"retries": 0})) as running:
            for ex in exchanges:
                await fire(running, ex)
            seen = await scrape(running.port)
        for ex in exchanges:
            checked += check_usage(ex, seen)
        assert checked > 80
        server.server.close()

    run(main(), timeout_s=60)


async def fire(running: Gateway, ex: Any) -> None:
    """Ask for the exchange, and take the answer whatever it is."""
    body = {"model": ex["id"], "messages": [{"role": "user", "content": "Go on."}]}
    if ex["endpoint"] == "stream":
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    headers = {"Connection": "close"}
    writer.write(request_bytes("POST", "/v1/chat/completions", json.dumps(body).encode(), headers))
    assert (await asyncio.wait_for(reader.read(-1), 10)).startswith(b"HTTP/1.1 ")
    writer.close()


def check_usage(ex: Any, seen: Any) -> bool:
    expected = ex["expected"].get("usage") or {}
    if ex["expected"]["outcome"] != "ok" or expected.get("prompt") is None:
        return False
    counted = {row["token_type"]: value for row, value in seen.rows("llm_proxy_tokens_total", model=ex["id"])}
    assert counted["prompt"] == expected["prompt"], ex["id"]
    # xAI counts reasoning beside the completion: the corpus takes both readings
    accepted = (ex["expected"].get("accept") or {}).get("usage.completion", [])
    assert counted["completion"] in [expected["completion"] or 0, *accepted], ex["id"]
    assert seen.total("llm_proxy_requests_total", model=ex["id"], status_code="200") == 1
    return True
