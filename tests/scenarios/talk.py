"""What is said on both sides of the fault matrix: the bytes of upstreams, and what the client makes of its answer.

Pieces of a script that are callables are waited for between two writes: so a fault waits for the client to have what
came before it (``matrix.Row.saw``).
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from tests.harness import CHAT, Answer, Http
from tests.upstreams import CHUNKED, Peer, Script, ok

MESSAGES = "/v1/messages"
TEXT = "Hello from a provider"
ANY = "*"
"""Whatever the error's code is."""


# ------------------------------------------------------------------ what upstreams say
def reply(text: str = TEXT, **more: Any) -> bytes:
    """A whole chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
    head = {"id": "c1", "object": "chat.completion", "created": 1, "model": "m"}
    return json.dumps({**head, "choices": [choice], "usage": usage, **more}).encode()


def event(text: str = "", finish: str | None = None) -> bytes:
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m"}
    return b"data: " + json.dumps({**head, "choices": [choice]}).encode() + b"\n\n"


def words(count: int) -> list[bytes]:
    """So many events of one word each; together they say ``said(count)``."""
    return [event(f"w{i} ") for i in range(count)]


def said(count: int) -> str:
    return "".join(f"w{i} " for i in range(count))


DONE = event(finish="stop") + b"data: [DONE]\n\n"
STREAM = event(TEXT) + DONE
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def chunked(*parts: bytes) -> list[bytes]:
    """The head of a stream and these parts as chunks, without the last chunk."""
    return [CHUNKED, *map(chunk, parts)]


def http(status: int | bytes, body: bytes = b"", *fields: str, kind: str = "application/json") -> bytes:
    """A whole answer with ``Content-Length``."""
    line = status if isinstance(status, bytes) else b"%d Status" % status
    head = [f"Content-Type: {kind}", f"Content-Length: {len(body)}", *fields]
    return b"HTTP/1.1 " + line + b"\r\n" + "\r\n".join([*head, "", ""]).encode("latin-1") + body


def problem(message: str = "it failed", kind: str = "server_error", code: str | None = None) -> bytes:
    """An error in OpenAI's form."""
    return json.dumps({"error": {"message": message, "type": kind, "param": None, "code": code}}).encode()


Piece = bytes | Callable[[], Awaitable[None]]


def says(*pieces: Piece, then: str = "keep") -> Script:
    """Answer every request with these pieces, a write each; a callable is waited for. ``then``: ``keep`` waits for the
    next request, ``close`` ends the connection, ``reset`` resets it, ``hang`` says no more until the peer closes."""

    async def script(peer: Peer) -> None:
        while await peer.request() is not None:
            for piece in pieces:
                await (peer.send(piece) if isinstance(piece, bytes) else piece())
            if then != "keep":
                await _ended(peer, then)
                return

    return script


async def _ended(peer: Peer, how: str) -> None:
    if how == "reset":
        peer.reset()
    elif how == "hang":
        await peer.reader.read()


async def good(peer: Peer) -> None:
    """A provider that does what it is asked."""
    while (request := await peer.request()) is not None:
        if json.loads(request[1]).get("stream"):
            await peer.send(b"".join([*chunked(STREAM), LAST]))
        else:
            await peer.send(ok(reply()))


async def silent(peer: Peer) -> None:
    """Reads all and says nothing."""
    await peer.request()
    await peer.reader.read()


# ------------------------------------------------------------------ what the client gets
class Got(Answer):
    """An answer, when its pieces came, and how long it took."""

    def __init__(self, answer: Answer, path: str, took_s: float, ended_at: float, times: list[float]) -> None:
        super().__init__(answer.status, answer.headers, answer.body)
        self.path = path
        self.took_s = took_s
        self.ended_at = ended_at
        self.times = times

    @property
    def streamed(self) -> bool:
        return self.headers["content-type"].startswith("text/event-stream")

    @property
    def events(self) -> list[tuple[str, str]]:
        """``(event, data)`` of each event of the stream (WHATWG HTML, "Event streams", for whole events)."""
        lines = re.split("\r\n|\r|\n", self.body.decode().removeprefix("\ufeff"))
        found: list[tuple[str, str]] = []
        name, data = "", list[str]()
        for line in lines:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line and data:
                found.append((name, "\n".join(data)))
            if not line:
                name, data = "", []
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
        assert not data, f"half an event: {self.body[-200:]!r}"
        return found

    @property
    def text(self) -> str:
        if not self.streamed:
            whole = self.json()
            if self.path == MESSAGES:
                return "".join(part["text"] for part in whole["content"])
            return str(whole["choices"][0]["message"]["content"])
        values = [json.loads(data) for _, data in self.events if data != "[DONE]"]
        if self.path == MESSAGES:
            return "".join(v["delta"].get("text", "") for v in values if v.get("type") == "content_block_delta")
        return "".join(c["delta"].get("content") or "" for v in values for c in v.get("choices") or ())

    @property
    def whole(self) -> bool:
        """Whether a stream has its clean end."""
        name, data = self.events[-1]
        return name == "message_stop" if self.path == MESSAGES else data == "[DONE]"

    def good(self, text: str = TEXT) -> None:
        """A complete answer with this text."""
        assert self.status == 200, self.body[:500]
        assert self.text == text
        assert self.headers["x-request-id"]
        if self.streamed:
            assert self.whole
            assert not self.failures

    @property
    def failures(self) -> list[dict[str, Any]]:
        """The error objects in the stream."""
        values = [(name, json.loads(data)) for name, data in self.events if data != "[DONE]"]
        return [value["error"] for name, value in values if name == "error" or "error" in value]

    def failed(self, status: int, code: str | None = ANY, *, says: str = "") -> dict[str, Any]:
        """An HTTP error in the client's dialect; the error object."""
        assert self.status == status, (self.status, self.body[:500])
        assert self.headers["content-type"] == "application/json"
        assert self.headers["x-request-id"]
        value = self.json()
        if self.path == MESSAGES:
            assert (value["type"], set(value["error"]) >= {"type", "message"}) == ("error", True)
        else:
            assert set(value) == {"error"}
            assert set(value["error"]) >= {"message", "type", "param", "code"}
            assert code == ANY or value["error"]["code"] == code, value
        error: dict[str, Any] = value["error"]
        assert error["message"]
        assert says in error["message"]
        return error

    def broken(self, text: str, code: str | None = ANY) -> dict[str, Any]:
        """A stream that said ``text``, then one error in the client's dialect, and no clean end (R12)."""
        assert (self.status, self.streamed) == (200, True), (self.status, self.body[:500])
        assert self.text == text
        name, data = self.events[-1]
        assert (name == "error") == (self.path == MESSAGES)
        assert "[DONE]" not in self.body.decode()
        assert "message_stop" not in self.body.decode()
        assert len(self.failures) == 1
        error: dict[str, Any] = json.loads(data)["error"]
        assert error["message"]
        assert code == ANY or self.path == MESSAGES or error["code"] == code, error
        return error


class Timed(Http):
    """Notes when each piece of a body came, and tells how many events there are so far."""

    def watch(self, told: Callable[[int], None]) -> None:
        self.times: list[float] = []
        self.told = told

    async def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") != "chunked":
            return await super()._body(headers)
        parts = []
        while size := int(await self.reader.readline(), 16):
            parts.append(await self.reader.readexactly(size))
            self.times.append(time.monotonic())
            self.told(parts[-1].count(b'"content": "') + parts[-1].count(b"content_block_delta"))
            await self.reader.readexactly(2)
        await self.reader.readexactly(2)
        return b"".join(parts)


def chat(stream: bool = False, path: str = CHAT, content: str = "Hello there", **more: Any) -> bytes:
    body: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": content}], **more}
    if stream:
        body["stream"] = True
    if path == MESSAGES:
        body["max_tokens"] = 100
    return json.dumps(body).encode()
