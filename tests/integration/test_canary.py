"""R84: a secret given to the gateway, and what users say to it, are nowhere that somebody else reads.

A real process at the log level ``debug``, a provider that talks about the key it was given, and every way in which a
request can fail. Then each text that came out is searched.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import signal
from pathlib import Path

import pytest

from tests.aio import run
from tests.harness import CHAT, Served, command, config, request_bytes, served, to, write_config

MASTER = "canary-master-1f6e4b2a9d"
PROVIDER = "canary-provider-77ab34cd01"
HEADER = "canary-header-5566778899"
WRONG = "canary-wrong-0a1b2c3d4e"
PROMPT = "canary-prompt tell me about my illness"
CANARIES = (MASTER, PROVIDER, HEADER, WRONG, "canary-prompt")


async def _indiscreet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A provider that repeats what it was sent: the key and the prompt, in an error whose status the model asks for."""
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
            body = json.loads(await reader.readexactly(size)) if size else {"model": "404"}
            assert PROVIDER in head.decode()
            status = int(body["model"].rpartition("-")[2])
            message = f"Incorrect API key provided: {PROVIDER}, also {HEADER} (sk-proj-canary-prompt-abcdef)."
            answer = json.dumps({"error": {"message": message, "type": "x", "code": "y", "param": None}}).encode()
            if status == 200:  # an error inside a stream that has begun
                piece = b'data: {"choices":[{"index":0,"delta":{"content":"Hi"}}]}\n\n'
                tail = b"data: " + answer + b"\n\n"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n" + piece)
                await writer.drain()
                await asyncio.sleep(0.02)  # so that the content is read before the error
                writer.write(tail)
                break
            writer.write(b"HTTP/1.1 %d No\r\nContent-Type: application/json\r\n" % status)
            writer.write(b"Content-Length: %d\r\n\r\n" % len(answer) + answer)
    except asyncio.IncompleteReadError:
        pass
    finally:
        writer.close()


def _requests() -> list[bytes]:
    messages = [{"role": "user", "content": PROMPT}]
    keyed = {"Authorization": f"Bearer {MASTER}"}

    def chat(status: int, headers: dict[str, str], **more: object) -> bytes:
        body = json.dumps({"model": f"model-{status}", "messages": messages, **more}).encode()
        return request_bytes("POST", CHAT, body, {**headers, "Connection": "close"})

    out = [chat(status, keyed) for status in (400, 401, 403, 404, 422, 429, 500, 503)]
    out += [chat(status, keyed, stream=True) for status in (200, 400, 500)]
    out += [chat(200, keyed)]  # a whole reply was asked for, and a stream comes
    out += [chat(400, {"Authorization": f"Bearer {WRONG}"}), chat(400, {"X-API-Key": WRONG}), chat(400, {})]
    out += [chat(400, {"Authorization": f"Basic {WRONG}"}), chat(400, {"Authorization": WRONG})]
    out += [request_bytes("POST", CHAT, b'{"model": "' + PROMPT.encode(), {**keyed, "Connection": "close"})]
    out += [request_bytes("GET", path, None, {**keyed, "Connection": "close"}) for path in PAGES]
    out += [request_bytes("GET", f"/v1/models/{WRONG}?key={MASTER}", None, {"X-API-Key": WRONG, "Connection": "close"})]
    out += [f"GET /{WRONG} HTTP/1.1\r\nHost: a\r\nAuthorization {MASTER}\r\n\r\n".encode()]
    out += [f"GET / HTTP/1.1\r\nHost: {WRONG} x\r\nX-API-Key: {MASTER}\r\n\r\n".encode()]
    out += [f"{WRONG} / HTTP/1.1\r\nHost: a\r\nX-API-Key: {MASTER}\x01\r\n\r\n".encode()]
    return out


PAGES = ("/health", "/health/detailed", "/v1/readyz", "/v1/models", "/metrics", "/docs", "/openapi.json", "/nowhere")


async def _play(port: int) -> bytes:
    """Send every request on a connection of its own; everything that came back."""
    seen = []
    for data in _requests():
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(data)
        seen.append(await asyncio.wait_for(reader.read(-1), 10))
        writer.close()
        assert seen[-1].startswith(b"HTTP/1.1 ")
    return b"\n".join(seen)


def test_canaries(tmp_path: Path) -> None:
    async def main() -> None:
        provider = await asyncio.start_server(_indiscreet, "127.0.0.1", 0)
        base = f"http://127.0.0.1:{provider.sockets[0].getsockname()[1]}/v1"
        entry = to(base) | {"api_key": "${PROVIDER_KEY}", "headers": {"X-Extra": "${EXTRA}"}}
        conf = config(entry, master_api_key="${MASTER_API_KEY}", log_level="debug", access_log=True)
        env = {"PROVIDER_KEY": PROVIDER, "MASTER_API_KEY": MASTER, "EXTRA": HEADER}
        with served(write_config(tmp_path, conf), env=env) as running:
            answers = await _play(running.port)
            # A reload that fails must not show what it read either.
            write_config(tmp_path, config(entry | {"weight": "${PROVIDER_KEY}"}, master_api_key=["${MASTER_API_KEY}"]))
            running.send(signal.SIGHUP)
            await asyncio.to_thread(running.wait_for_log, "configuration not reloaded")
            metrics = await asyncio.to_thread(_get, running, "/metrics")
            assert running.stop() == 0
            out = {"log": running.log, "stdout": running.announced, "metrics": metrics}
        provider.close()
        out["answers"] = answers.decode()
        for where, text in out.items():
            for canary in CANARIES:
                assert canary not in text, where
        assert out["log"].count("\n") > 15  # there was something to search
        assert "Traceback" not in out["log"]
        assert "Incorrect API key provided: ***, also ***" in out["answers"]

    run(main(), timeout_s=60)


def _get(running: Served, path: str) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    connection.request("GET", path)
    text = connection.getresponse().read().decode()
    connection.close()
    return text


@pytest.mark.parametrize("broken", [False, True])
def test_check_output(broken: bool, tmp_path: Path) -> None:
    """``slipstream check`` prints the routes, or what is wrong, and never a value that may be a key."""
    entry = to("http://127.0.0.1:1/v1") | {"api_key": PROVIDER, "headers": {"X-Extra": HEADER}}
    if broken:
        entry |= {"api_base": f"http://user:{PROVIDER}@host/v1", "weight": WRONG, "headers": {"X-Extra": HEADER + "\n"}}
    conf = config(entry, master_api_key=MASTER + ("\n" if broken else ""))
    done = command("check", "--config", str(write_config(tmp_path, conf)), cwd=tmp_path)
    assert done.returncode == broken
    for canary in CANARIES:
        assert canary not in done.stdout + done.stderr
