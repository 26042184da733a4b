"""What the load generator makes of a reply, however it is cut; and what it asks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from slipstream.loadgen.reply import ERROR, INCOMPLETE, MALFORMED, Infer, Reading, Stream, Whole, reader
from slipstream.loadgen.target import Ask, Target, build_requests, parse_base_url

DONE = b"data: [DONE]\n\n"


def chunk(delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


ROLE = chunk({"role": "assistant", "content": ""})
WORD = chunk({"content": 'error: "error" {"error": 1}'})
ERROR_EVENT = b'data: {"error": {"message": "no"}}\n\n'


def cuts(data: bytes) -> Iterator[list[bytes]]:
    yield [data]
    yield [data[i : i + 1] for i in range(len(data))]
    yield from ([data[:i], data[i:]] for i in range(1, len(data)))


def verdicts(reading: Reading, data: bytes) -> set[str]:
    found = set()
    for parts in cuts(data):
        reading.reset()
        for part in parts:
            reading.feed(part)
        found.add(reading.fault())
    return found


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'{"id": "x", "error": null}', ""),
        (b'{"error": null, "id": "x"}', ""),
        (b' {"choices": []}\r\n', ""),
        (b'{"error": {"message": "no"}}', ERROR),
        (b'\n{ "error" :"no"}', ERROR),
        (b"", MALFORMED),
        (b"<html></html>", MALFORMED),
        (b'{"choices": [', MALFORMED),
        (b'{"text": "' + b"x" * 300 + b'"}', ""),
    ],
)
def test_whole(body: bytes, fault: str) -> None:
    assert verdicts(Whole(), body) == {fault}


def test_whole_body_is_not_kept() -> None:
    reading = Whole()
    for _ in range(100):
        reading.feed(b"{" + b"x" * 65_536)
    reading.feed(b"}")
    assert reading.fault() == ""
    assert len(reading._head) + len(reading._tail) <= 128


@pytest.mark.parametrize(
    ("stream", "fault"),
    [
        (ROLE + WORD + WORD + DONE, ""),
        (DONE, ""),
        (ROLE + WORD, INCOMPLETE),
        (b"", INCOMPLETE),
        (ERROR_EVENT, ERROR),
        (ROLE + ERROR_EVENT + DONE, ERROR),
        (ROLE + WORD + ERROR_EVENT, ERROR),
        (b'{"error": {"message": "no"}}', ERROR),
        (b"event: error\ndata: {}\n\n", ERROR),
        (b"data: {broken\n\n" + DONE, MALFORMED),
        ((ROLE + WORD + DONE).replace(b"\n", b"\r\n"), ""),
        (b'data: {"error": null, "choices": []}\n\n' + WORD + DONE, ""),
    ],
)
def test_stream(stream: bytes, fault: str) -> None:
    assert verdicts(Stream(), stream) == {fault}


@pytest.mark.parametrize("delta", [{"content": "a"}, {"reasoning_content": "a"}, {"tool_calls": [{}]}])
def test_first_content(delta: object) -> None:
    reading = Stream()
    assert not reading.feed(b": ping\n\n" + ROLE)
    assert not reading.feed(chunk(delta)[:-2])
    assert reading.feed(b"\n\n")
    assert not reading.feed(WORD)
    reading.reset()
    assert reading.feed(ROLE + WORD)


def test_first_content_of_completions_and_others() -> None:
    assert Stream().feed(b'data: {"choices": [{"text": "a"}]}\n\n')
    assert not Stream().feed(b'data: {"choices": [{"text": ""}, 7], "usage": {}}\n\n')
    assert Stream(done_wanted=False).feed(b'data: {"text": "a"}\n\n')
    assert not Stream().feed(b"data: 7\n\n" + DONE)
    assert Stream().feed(b"data: " + b"x" * (1 << 20))


def test_infer() -> None:
    reading = Infer()
    assert verdicts(reading, b'{"provider": "p", "text": "t", "cost_usd": 0.5, "latency_ms": 1}') == {""}
    assert (reading.provider, reading.cost_usd) == ("p", 0.5)
    assert verdicts(reading, b'{"text": "t", "provider": null}') == {""}
    assert (reading.provider, reading.cost_usd) == ("", 0.0)
    assert verdicts(reading, b"[]") == verdicts(reading, b"{") == verdicts(reading, b"") == {MALFORMED}


def test_reader() -> None:
    assert type(reader("chat", False)()) is Whole
    assert type(reader("infer", False)()) is Infer
    streams = [reader(endpoint, True)() for endpoint in ("chat", "infer")]
    assert [s.fault() for s in streams] == [INCOMPLETE, ""]


# what is asked


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("http://127.0.0.1:8080", Target("http", "127.0.0.1", 8080), "127.0.0.1:8080"),
        ("http://localhost/", Target("http", "localhost", 80), "localhost"),
        ("https://api.example.com/v1", Target("https", "api.example.com", 443), "api.example.com"),
        ("HTTPS://h:444/a/v1/", Target("https", "h", 444, "/a"), "h:444"),
        ("http://[::1]:9", Target("http", "::1", 9), "[::1]:9"),
    ],
)
def test_base_url(url: str, target: Target, authority: str) -> None:
    assert parse_base_url(url) == target
    assert target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        *("", "localhost:8080", "ftp://h", "http://", "http://h:0", "http://h:99999", "http://h:x", "http://u:p@h"),
        *("http://h/?q=1", "http://h/#f", "http://a b/", "http://h/a b", "http://[::1", "http://ü.example"),
    ],
)
def test_bad_base_url(url: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_base_url(url)


def test_chat_request() -> None:
    ask = Ask(model="m", policy="cheapest", max_tokens=5, stream=True, api_key="sk-1")
    (request,) = build_requests(parse_base_url("http://h:1/x/v1"), ask, ["Hi ü"])
    head, body = request.split(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[:2] == ["POST /x/v1/chat/completions HTTP/1.1", "Host: h:1"]
    assert "Authorization: Bearer sk-1" in lines
    assert lines[-1] == f"Content-Length: {len(body)}"
    messages = [{"role": "user", "content": "Hi ü"}]
    assert json.loads(body) == {"model": "m", "messages": messages, "max_tokens": 5, "stream": True}


def test_infer_request() -> None:
    first, second = build_requests(parse_base_url("http://h"), Ask("infer", policy="canary", api_key="k"), ["a", "b"])
    head, body = first.split(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/infer HTTP/1.1\r\n")
    assert b"X-API-Key: k\r\n" in head
    assert json.loads(body) == {"prompt": "a", "policy": "canary"}
    assert json.loads(second.split(b"\r\n\r\n")[1])["prompt"] == "b"


@pytest.mark.parametrize("key", ["a\r\nX: y", "ü", " a", ""])
def test_bad_key(key: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        build_requests(parse_base_url("http://h"), Ask(api_key=key), ["a"])
