"""The upstream that thinks: streams of events one write each, or an answer computed from the question.

    python -m bench.e2e.upstream PORT [--events 200] [--gap-ms 5] [--delay-ms 0] [--dialect openai]

``"stream":true`` gets ``--events`` events, ``--gap-ms`` apart, then usage if it was asked for
and [DONE]; anything else gets ``payloads.reply_to`` of its body after ``--delay-ms``. Where a fast upstream is needed,
nginx serves a file instead. In another dialect (``dialects``) the texts are the same; a path may ask for a stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re

from bench.e2e import dialects, payloads

BACKLOG = 4096
MAX_BODY = 16 << 20
LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
USAGE = re.compile(rb'"include_usage":\s*true')
STREAMED = re.compile(rb'"stream":\s*true')
STREAM_PATH = re.compile(rb"POST \S+(?:converse-stream|:streamGenerateContent)")


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


class Provider(asyncio.Protocol):
    """One connection; requests are answered one after the other."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.loop = asyncio.get_running_loop()
        self.buffer = bytearray()
        self.needed = 0
        self.busy = False
        self.dialect = dialects.DIALECTS.get(args.dialect)
        kind, begin = "text/event-stream", b""
        if self.dialect is None:
            self.events = [chunk(payloads.event(number)) for number in (0, 1)]
            ends = [payloads.last_events(args.events, usage=u) for u in (False, True)]
        else:
            self.events = [chunk(event) for event in self.dialect.texts]
            ends = [self.dialect.end] * 2
            kind, begin = self.dialect.content_type, self.dialect.begin
        self.ends = [chunk(end) + b"0\r\n\r\n" for end in ends]
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nTransfer-Encoding: chunked\r\n\r\n"
        self.begin = head.encode() + (chunk(begin) if begin else b"")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.busy and len(self.buffer) >= self.needed:
            self.take()

    def take(self) -> None:
        """Answer the next request if it is here as a whole."""
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = LENGTH.search(self.buffer, 0, end)
        size = int(length[1]) if length else MAX_BODY + 1
        if size > MAX_BODY:
            self.transport.write(b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            self.transport.close()
            return
        self.needed = end + 4 + size
        if len(self.buffer) < self.needed:
            return
        body = bytes(self.buffer[end + 4 : self.needed])
        streamed = STREAMED.search(body) or (self.dialect is not None and STREAM_PATH.match(self.buffer))
        del self.buffer[: self.needed]
        self.needed = 0
        self.busy = True
        if streamed:
            self.transport.write(self.begin)
            self.tick(0, self.ends[USAGE.search(body) is not None])
        elif self.args.delay_ms:
            self.loop.call_later(self.args.delay_ms / 1000, self.answer, body)
        else:
            self.answer(body)

    def tick(self, number: int, end: bytes) -> None:
        if self.transport.is_closing():
            return
        if number < self.args.events:
            self.transport.write(self.events[number % 2])
            self.loop.call_later(self.args.gap_ms / 1000, self.tick, number + 1, end)
        else:
            self.done(end)

    def answer(self, body: bytes) -> None:
        question = json.loads(body)
        other = self.dialect
        reply = payloads.reply_to(question) if other is None else other.reply(dialects.digest(question))
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(reply)
        self.done(head + reply)

    def done(self, data: bytes) -> None:
        if not self.transport.is_closing():
            self.transport.write(data)
            self.busy = False
            self.take()


async def serve(args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Provider(args), "127.0.0.1", args.port, backlog=BACKLOG)
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--events", type=int, default=payloads.EVENTS)
    parser.add_argument("--gap-ms", type=float, default=payloads.EVENT_GAP_MS)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--dialect", choices=("openai", *dialects.NAMES), default="openai")
    args = parser.parse_args()
    try:
        import uvloop

        uvloop.run(serve(args))
    except ImportError:
        asyncio.run(serve(args))


if __name__ == "__main__":
    main()
