"""ns per message of the HTTP/1.1 readers: guard, request head, response reader; compiled, plain, and llhttp beside.

Owns: the figures for ``slipstream/_fast/http1``, ``head`` and ``response`` (one core, no I/O). The rival is what a
Python gateway does without them: httptools (llhttp) with callbacks in Python that collect fields and body. It does not
judge what the guard judges (duplicate lengths, hosts, targets), and makes two objects for each field.

Run: ``python -m bench.micro.http`` (or the file itself with the repository in PYTHONPATH).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import httptools

from slipstream._fast._pure import head as pure_head
from slipstream._fast._pure import http1 as pure_http1
from slipstream._fast._pure import response as pure_response

try:
    from slipstream._fast import head, http1, response
except ImportError:  # not built
    head = http1 = response = None  # type: ignore[assignment]

PATHS = (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings")
FIELDS = (
    b"Accept: application/json\r\nAccept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\n"
    b"User-Agent: OpenAI/Python 1.60.0\r\nX-Stainless-Lang: python\r\nX-Stainless-OS: Linux\r\n"
    b"Authorization: Bearer sk-0123456789abcdef0123456789abcdef\r\nContent-Type: application/json\r\n"
)
REQUEST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost:4000\r\n" + FIELDS + b"Content-Length: 800\r\n\r\n"
REQUEST += b"x" * 800
REPLY_HEAD = (
    b"HTTP/1.1 200 OK\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Type: application/json\r\n"
    b"Server: cloudflare\r\nx-request-id: req_0123456789abcdef\r\nopenai-processing-ms: 312\r\n"
    b"x-ratelimit-limit-requests: 10000\r\n"
    b"x-ratelimit-remaining-requests: 9999\r\nCF-RAY: 0123456789abcdef-FRA\r\nConnection: keep-alive\r\n"
)
REPLY = REPLY_HEAD + b"Content-Length: 800\r\n\r\n" + b"x" * 800
STREAM_HEAD = REPLY_HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
CHUNK = b"12c\r\n" + b"d" * 300 + b"\r\n"


class Collector:
    """The callbacks of the rival."""

    def __init__(self) -> None:
        self.messages = 0

    def on_message_begin(self) -> None:
        self.fields: list[tuple[bytes, bytes]] = []
        self.body: list[bytes] = []

    def on_url(self, url: bytes) -> None:
        self.url = url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.fields.append((name.lower(), value))

    def on_body(self, body: bytes) -> None:
        self.body.append(body)

    def on_message_complete(self) -> None:
        self.messages += 1


Work = Callable[[int], None]


def rival(parser: Any, first: bytes, data: bytes) -> Work:
    collector = Collector()
    feed = parser(collector).feed_data
    if first:
        feed(first)

    def run(n: int) -> None:
        for _ in range(n):
            feed(data)
            collector.body.clear()

    return run


def guard(module: Any) -> Work:
    feed = module.RequestGuard().feed

    def run(n: int) -> None:
        for _ in range(n):
            feed(REQUEST)

    return run


def request_head(module: Any) -> Work:
    one = module.RequestHead(PATHS)
    read, value = one.read, one.value

    def run(n: int) -> None:
        for _ in range(n):
            read(REQUEST)
            value(0)

    return run


def reply(module: Any, pieces: tuple[bytes, ...], *, fields: bool = False) -> Work:
    reader = module.ResponseReader()
    expect, feed, take, headers = reader.expect, reader.feed, reader.take_body, reader.headers

    def run(n: int) -> None:
        for _ in range(n):
            expect()
            for piece in pieces:
                feed(piece)
                take()
            if fields:
                headers()

    return run


def chunk(module: Any, data: bytes) -> Work:
    reader = module.ResponseReader()
    reader.expect()
    reader.feed(STREAM_HEAD)
    feed, take = reader.feed, reader.take_body

    def run(n: int) -> None:
        for _ in range(n):
            feed(data)
            take()

    return run


def ns(run: Work, n: int) -> float:
    best = 1e18
    for _ in range(7):
        start = time.perf_counter_ns()
        run(n)
        best = min(best, time.perf_counter_ns() - start)
    return best / n


def main() -> None:
    print(
        f"{platform.python_implementation()} {platform.python_version()}, {platform.machine()}, httptools "
        f"{httptools.__version__}; ns, best of 7\n"
        f"request {len(REQUEST)} bytes, reply {len(REPLY)} bytes, each 10 fields and 800 bytes of body; chunk 300 bytes"
    )
    ask, answer = httptools.HttpRequestParser, httptools.HttpResponseParser
    halves = (REPLY[:200], REPLY[200:600], REPLY[600:])
    cases: dict[str, tuple[Callable[[Any], Work], str, Work | None]] = {
        "guard: request": (guard, "http1", rival(ask, b"", REQUEST)),
        "head: read, one value": (request_head, "head", None),
        "reply: expect, feed, take": (lambda m: reply(m, (REPLY,)), "response", rival(answer, b"", REPLY)),
        "reply, then headers()": (lambda m: reply(m, (REPLY,), fields=True), "response", None),
        "reply in three pieces": (lambda m: reply(m, halves), "response", None),
        "chunk: feed, take": (lambda m: chunk(m, CHUNK), "response", rival(answer, STREAM_HEAD, CHUNK)),
        "8 chunks: feed, take": (lambda m: chunk(m, CHUNK * 8), "response", rival(answer, STREAM_HEAD, CHUNK * 8)),
        "a chunk's inside": (lambda m: chunk(m, CHUNK[5:-2]), "response", None),
    }
    modules = {
        "compiled": {"http1": http1, "head": head, "response": response},
        "pure": {"http1": pure_http1, "head": pure_head, "response": pure_response},
    }
    print(f"{'':28}{'compiled':>12}{'pure':>12}{'httptools':>12}")
    for label, (work, name, other) in cases.items():
        row = ""
        for kind, n in (("compiled", 20_000), ("pure", 1_000)):
            module = modules[kind][name]
            row += f"{ns(work(module), n):12.0f}" if module else f"{'-':>12}"
        print(f"{label:28}{row}" + (f"{ns(other, 10_000):12.0f}" if other else f"{'-':>12}"))


if __name__ == "__main__":
    main()
