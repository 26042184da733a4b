"""The shared hostile corpora against the whole gateway, and hostile event streams through it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.aio import run
from tests.harness import CHAT, KEY, SHARED, chat_body, config, gateway, request_bytes, served, to

HOSTILE = SHARED / "hostile"
NEVER = {"smuggled", "desync", "garbage", "switched", "crash", "refused"}
KINDS = {
    "http": [],
    "http-chat": ["--path", CHAT],
    "http-models": ["--path", "/v1/models"],
    "json": ["--kind", "json", "--auth", "Bearer " + KEY],
}
pytestmark = pytest.mark.skipif(
    not (HOSTILE / "fire.py").is_file(), reason=f"no {HOSTILE}/fire.py: set SLIPSTREAM_SHARED"
)


@pytest.mark.parametrize("kind", KINDS)
def test_corpus(kind: str, tmp_path: Path) -> None:
    """MUST 100 %, SHOULD and POLICY >= 98 %, and nothing that a proxy must never do."""
    stub = {
        "name": "stub",
        "type": "mock",
        "models": ["m", "allowed"],
        "mock": {"mean_latency_ms": 0, "p95_latency_ms": 0},
    }
    out = tmp_path / "out.json"
    with served(config(stub, master_api_key=KEY)) as running:
        command = [sys.executable, str(HOSTILE / "fire.py"), f"127.0.0.1:{running.port}", "--set", "dev"]
        command += ["--workers", "64", "--json", str(out), *KINDS[kind]]
        subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        log = running.log
        assert running.stop() == 0
    results = json.loads(out.read_text())
    assert len(results) > 90
    never = [(r["name"], r["outcome"], r["snippet"]) for r in results if r["outcome"] in NEVER]
    assert not never
    for level, share in (("MUST", 1.0), ("SHOULD", 0.98), ("POLICY", 0.98)):
        cases = [r for r in results if r["level"] == level]
        failed = [(r["name"], r["outcome"], r["note"], r["why"]) for r in cases if not r["ok"]]
        assert len(failed) <= (1 - share) * len(cases), (level, failed)
    check_log(log, results)


def check_log(log: str, results: list[Any]) -> None:
    """One line per bad request and ten a second at most (Q32); no traceback, none of the request's bytes."""
    assert "Traceback" not in log
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    bad = [line for line in lines if line["msg"] == "malformed request"]
    assert len(bad) <= len(results)
    assert max(Counter(line["ts"][:19] for line in bad).values(), default=0) <= 20  # two windows may share a second
    assert all(line["level"] in ("info", "warning") for line in lines), [x for x in lines if x["level"] == "error"]
    for canary in (KEY, "sk-", "hostile", "smuggle", "x-canary"):
        assert canary not in log.lower()


# ------------------------------------------------------------------ event streams


def sse_cases() -> list[Any]:
    index = HOSTILE / "sse" / "dev" / "index.json"
    if not index.is_file():
        return []
    return [case for case in json.loads(index.read_text()) if case.get("llm")]


def _marked(case: Any) -> Any:
    skip = pytest.mark.skip(reason=f"{case['llm']} streams come with PROVIDERS")
    return pytest.param(case, id=Path(case["file"]).stem, marks=() if case["llm"] == "openai" else skip)


@pytest.mark.parametrize("step", [0, 1], ids=["whole", "bytes"])
@pytest.mark.parametrize("case", [_marked(case) for case in sse_cases()])
def test_event_streams(case: Any, step: int) -> None:
    """What a provider's stream says at its end is what the client is told: done is done, everything else is not."""
    raw = (HOSTILE / "sse" / "dev" / case["file"]).read_bytes()

    async def main() -> None:
        upstream = await asyncio.start_server(lambda r, w: _serve(r, w, raw, step), "127.0.0.1", 0)
        base = f"http://127.0.0.1:{upstream.sockets[0].getsockname()[1]}/v1"
        async with gateway(config(to(base))) as running:
            body = chat_body(stream=True, stream_options={"include_usage": True})
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(request_bytes("POST", CHAT, body, {"Connection": "close"}))
            answer = await asyncio.wait_for(reader.read(-1), 10)
            writer.close()
        upstream.close()
        judge(case, answer)

    run(main())


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, raw: bytes, step: int) -> None:
    """One answer with this event stream, in chunks of ``step`` bytes (0: whole)."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]))
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
    size = step or len(raw)
    for start in range(0, len(raw), size):
        piece = raw[start : start + size]
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        await writer.drain()
        if step:
            await asyncio.sleep(0)  # each its own packet
    writer.write(b"0\r\n\r\n")
    writer.close()


def judge(case: Any, answer: bytes) -> None:
    """``llm_end`` of the case against what the client got."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split(b" ")[1])
    if b"transfer-encoding: chunked" in head.lower():
        body = dechunk(body)
    data = events(body) if status == 200 else []
    end, sent = case["llm_end"], [event["data"] for event in case["events"]]
    if end == "done":
        assert status == 200
        assert data[-1] == "[DONE]"
        assert data.count("[DONE]") == 1
        assert data[:-1] == [text for text in sent if text != "[DONE]"]
        return
    if end == "lenient":  # [DONE] came without its empty line: both readings are right
        assert status == 200
        assert data[:1] == sent[:1]
        return
    assert "[DONE]" not in data
    if status == 200:
        assert data[:-1] == sent[: len(data) - 1]  # what came before it, and no more
        error = json.loads(data[-1])["error"]
    else:
        assert status >= 400
        error = json.loads(body)["error"]
    assert error["message"]
    assert status == {"error-first": 429}.get(end, status)


def dechunk(body: bytes) -> bytes:
    parts = []
    while True:
        line, _, body = body.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            assert body == b"\r\n"
            return b"".join(parts)
        parts.append(body[:size])
        body = body[size + 2 :]


def events(body: bytes) -> list[str]:
    """The data of each event, after the WHATWG rules: line ends are CR, LF or both, never U+2028."""
    found, lines = [], []
    for line in body.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            found.append("\n".join(lines))
            lines = []
    assert not lines, "the last event has no end"
    return found
