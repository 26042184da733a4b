"""Micro-benchmark of slipstream/_fast/jsonscan and jsonreply, beside orjson.loads and json.loads (the naive rivals).

    python bench/micro/jsonscan.py [--seconds 0.2]

Each figure is the best of five timings of about --seconds / 5 each; GB/s is bytes of the body (10^9) per second.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from slipstream._fast.jsonreply import ReplyScan
from slipstream._fast.jsonscan import K_MODEL, decode_string, scan_request

PROSE = "The quick brown fox jumps over the lazy dog, and then it goes on about other things. "
RUSSIAN = "Съешь же ещё этих мягких французских булок, да выпей чаю. "
CHINESE = "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心。"
CODE = Path(argparse.__file__).read_text(encoding="utf-8")  # real source: escapes at irregular distances
CHUNK = (
    b'{"id":"chatcmpl-AbCdEf0123456789AbCdEf01234","object":"chat.completion.chunk","created":1761000000,'
    b'"model":"gpt-4o-mini-2024-07-18","service_tier":"default","system_fingerprint":"fp_560af6e559",'
    b'"choices":[{"index":0,"delta":{"content":" Hello"},"logprobs":null,"finish_reason":null}],"usage":null,'
    b'"obfuscation":"abc"}'
)


def chat(text: str, size: int, messages: int = 1, *, ascii_only: bool = False, indent: int | None = None) -> bytes:
    """A chat body of about size bytes."""
    unit = len(json.dumps(text, ensure_ascii=ascii_only).encode()) - 2
    content = text * max(1, size // (unit * messages))
    body = {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": content} for _ in range(messages)],
        "temperature": 0.7,
        "max_tokens": 256,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    separators = (",", ":") if indent is None else None
    return json.dumps(body, ensure_ascii=ascii_only, separators=separators, indent=indent).encode()


def tools() -> bytes:
    """Many small tokens: tool schemas."""
    parameter = {"type": "string", "description": "The city, such as Paris", "enum": ["a", "b"], "minLength": 1}
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "parameters": {"type": "object", "properties": {f"p{i}": parameter for i in range(10)}, "required": ["p1"]},
        },
    }
    return orjson.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}], "tools": [tool] * 20})


def nested() -> str:
    """JSON as text (tool arguments), words of irregular length: nothing a branch predictor could learn by heart."""
    rnd = random.Random(1)

    def word() -> str:
        return "".join(rnd.choices("abcdefgh ijklmnop", k=rnd.randrange(2, 14)))

    return json.dumps([{word(): word() for _ in range(8)} for _ in range(5000)])


def bodies() -> Iterator[tuple[str, bytes]]:
    yield "chat 1 KB", chat(PROSE, 900)
    yield "chat 8 KB, 20 messages", chat(PROSE, 8_000, 20)
    yield "chat 1 MB prose", chat(PROSE, 1_000_000)
    yield "chat 1 MB, 2000 messages", chat(PROSE, 1_000_000, 2000)
    yield "chat 1 MB Russian", chat(RUSSIAN, 1_000_000)
    yield "chat 1 MB Chinese", chat(CHINESE, 1_000_000)
    yield "chat 1 MB Chinese, \\u", chat(CHINESE, 1_000_000, ascii_only=True)
    yield "chat 1 MB Python source", chat(CODE, 1_000_000)
    yield "chat 1 MB, JSON in text", chat(nested(), 1_000_000)
    yield "chat 200 KB indented", chat(PROSE, 200_000, 2000, indent=4)
    yield "tools 35 KB", tools()
    yield "embeddings 100k token ids", orjson.dumps({"model": "m", "input": [[i * 7 % 99991 for i in range(100_000)]]})
    yield "embeddings 50k floats", orjson.dumps({"model": "m", "input": [i / 7 for i in range(50_000)]})


def best_ns(call: Callable[[bytes], object], data: bytes, seconds: float) -> float:
    """Nanoseconds of one call, best of five."""
    calls, took = 1, 0.0
    while took < seconds / 10:
        calls *= 2
        start = time.perf_counter()
        for _ in range(calls):
            call(data)
        took = time.perf_counter() - start
    best = took / calls
    for _ in range(4):
        start = time.perf_counter()
        for _ in range(calls):
            call(data)
        best = min(best, (time.perf_counter() - start) / calls)
    return best * 1e9


def row(name: str, data: bytes, ours: Callable[[bytes], object], seconds: float) -> None:
    calls = (ours, orjson.loads, json.loads)
    cells = [f"{ns:12,.0f} {len(data) / ns:6.2f}" for ns in (best_ns(call, data, seconds) for call in calls)]
    print(f"{name:28}{len(data):10,}" + "".join(cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.2)
    seconds = parser.parse_args().seconds
    print(f"Python {platform.python_version()}, orjson {orjson.__version__}, {platform.machine()}; ns per call, GB/s")
    print(f"{'':28}{'bytes':>10}{'scan':>19}{'orjson.loads':>19}{'json.loads':>19}")
    for name, body in bodies():
        row(name, body, scan_request, seconds)
    reply = ReplyScan()
    unary = orjson.dumps(
        {
            "id": "x",
            "choices": [{"message": {"content": PROSE * 12}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 1},
        }
    )
    for name, data in (("reply: OpenAI chunk", CHUNK), ("reply: unary 1 KB", unary)):
        row(name, data, reply.scan, seconds)
    body = chat(PROSE, 900)
    scan = scan_request(body)
    start, end = scan.start(K_MODEL), scan.end(K_MODEL)
    row("decode_string: model", body[start:end], lambda _: decode_string(body, start, end), seconds)


if __name__ == "__main__":
    main()
