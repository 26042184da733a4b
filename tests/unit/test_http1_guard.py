"""The guard of client bytes: compiled and pure twin under the same tests, on the hostile corpus, and compared."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure import http1 as pure

try:
    compiled: Any = importlib.import_module("slipstream._fast.http1")
except ImportError:
    compiled = None

NOT_BUILT = pytest.mark.skipif(compiled is None, reason="slipstream._fast.http1 is not built (setup.py build_ext)")
MODULES = [pytest.param(compiled, id="compiled", marks=NOT_BUILT), pytest.param(pure, id="pure")]
SHARED = Path(os.environ.get("SLIPSTREAM_SHARED") or Path(__file__).parents[2].parent / "shared")
CORPUS = SHARED / "hostile" / "http" / "dev"
GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL = {"max_target": 60, "max_field": 60, "max_fields": 150, "max_count": 6, "max_body": 60, "max_chunk_ext": 12}
FACTS = ["error_status", "error_reason", "error_in_body", "heads", "messages", "idle", "in_head", "in_body", "done",
         "content_length", "chunked", "expect_continue", "keep_alive"]  # fmt: skip


@pytest.fixture(params=MODULES)
def http1(request: pytest.FixtureRequest) -> Any:
    return request.param


def fed(module: Any, *pieces: bytes, **limits: int) -> tuple[Any, bytes]:
    guard = module.RequestGuard(**limits)
    return guard, b"".join([guard.feed(piece) for piece in pieces])


def verdict(module: Any, pieces: list[bytes], **limits: int) -> tuple[Any, ...]:
    guard, passed = fed(module, *pieces, **limits)
    return (passed, *(getattr(guard, fact) for fact in FACTS))


def cut(data: bytes, where: list[int]) -> list[bytes]:
    edges = [0, *sorted(where), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def request(*lines: str | bytes, line: str | bytes = "GET / HTTP/1.1", host: bool = True) -> bytes:
    parts = [line, *(["Host: a"] if host else []), *lines]
    return b"\r\n".join([x.encode("latin-1") if isinstance(x, str) else x for x in parts]) + b"\r\n\r\n"


# ---------------------------------------------------------------------------------------------------- what passes
def test_passes_the_same_object(http1: Any) -> None:
    guard = http1.RequestGuard()
    data = b"POST /v1/x?a[]=%41 HTTP/1.1\r\nHost: a:80\r\nContent-Length: 3\r\n\r\nabc" + GET
    assert guard.feed(data) is data
    assert (guard.heads, guard.messages, guard.idle, guard.error_status) == (2, 2, True, 0)


def test_holds_a_head_back_until_it_is_whole(http1: Any) -> None:
    guard = http1.RequestGuard()
    for i in range(len(GET) - 1):
        assert guard.feed(GET[i : i + 1]) == b""
        assert (guard.in_head, guard.idle, guard.in_body, guard.heads) == (True, False, False, 0)
    assert guard.feed(GET[-1:]) == GET
    assert (guard.in_head, guard.idle, guard.heads, guard.messages) == (False, True, 1, 1)


def test_body_bytes_are_never_held(http1: Any) -> None:
    guard = http1.RequestGuard()
    head = request("Content-Length: 5", line="POST / HTTP/1.1")
    assert guard.feed(head) == head
    assert guard.in_body
    assert guard.content_length == 5
    assert [guard.feed(b"he"), guard.feed(b"llo" + GET[:5]), guard.feed(GET[5:])] == [b"he", b"llo", GET]


def test_body_bytes_that_go_past_the_guard(http1: Any) -> None:
    """What has a length may be read by somebody else: the guard is told how much, and goes on behind it."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n"
    guard, passed = fed(http1, head + b"ab")
    assert passed == head + b"ab"
    guard.body_passed(0)
    guard.body_passed(5)
    assert guard.in_body
    for wrong in (-1, 4):
        with pytest.raises(ValueError, match="are due"):
            guard.body_passed(wrong)
    guard.body_passed(3)
    assert (guard.in_body, guard.idle, guard.messages) == (False, True, 1)
    assert guard.feed(GET) == GET
    assert guard.messages == 2


def test_only_a_body_of_known_length_may_go_past_the_guard(http1: Any) -> None:
    for before in (b"", GET[:10], GET, CHUNKED, CHUNKED + b"5\r\nab"):
        guard, _ = fed(http1, before)
        with pytest.raises(ValueError, match="are due"):
            guard.body_passed(1)


def test_the_last_body_that_goes_past_the_guard(http1: Any) -> None:
    guard, _ = fed(http1, b"POST / HTTP/1.0\r\nContent-Length: 3\r\n\r\n")
    guard.body_passed(3)
    assert guard.done
    assert guard.feed(GET) == b""


@given(st.binary(max_size=60), st.integers(0, 60), st.integers(0, 9), st.lists(st.integers(1, 20)))
@settings(max_examples=60)
@pytest.mark.parametrize("module", MODULES)
def test_a_body_is_read_into_its_place(module: Any, body: bytes, here: int, start: int, reads: list[int]) -> None:
    here = min(here, len(body))
    buffer = module.BodyBuffer(len(body), b"x" * start + body[:here], start)
    left = len(body) - here
    for most in [*reads, len(body)]:
        with memoryview(buffer.room(most)) as room:
            assert not room.readonly
            assert room.nbytes == min(most, left)
            taken = (room.nbytes + 1) // 2 if most < len(body) else room.nbytes  # a read may give less than it could
            if left:
                with pytest.raises(BufferError):
                    buffer.take()
            room[:taken] = body[len(body) - left :][:taken]
        left -= taken
        assert buffer.took(taken) == left
    assert not memoryview(buffer.room(1)).nbytes
    assert buffer.take() == body


def test_what_a_body_has_no_room_for(http1: Any) -> None:
    for size, first, start in ((1, b"ab", 0), (1, b"ab", -1), (1, b"ab", 3), (-1, b"", 0)):
        with pytest.raises(ValueError, match="not the beginning"):
            http1.BodyBuffer(size, first, start)
    buffer = http1.BodyBuffer(4, b"a")
    with pytest.raises(ValueError, match="no room"):
        buffer.took(1)  # nobody asked for room
    buffer.room(2)
    for wrong in (-1, 3):
        with pytest.raises(ValueError, match="no room"):
            buffer.took(wrong)
    assert buffer.took(2) == 1


def test_a_good_request_passes_before_a_bad_one(http1: Any) -> None:
    guard, passed = fed(http1, GET + b"GET / HTTP/1.1\r\nBad Name: x\r\n\r\n" + GET)
    assert passed == GET
    assert (guard.error_status, guard.error_in_body, guard.heads, guard.messages) == (400, False, 1, 1)
    assert guard.feed(GET) == b""


def test_nothing_passes_after_the_last_message(http1: Any) -> None:
    last = request("Connection: x, Close\t")
    guard, passed = fed(http1, last + b"junk")
    assert (passed, guard.done, guard.keep_alive, guard.error_status) == (last, True, False, 0)
    assert guard.feed(GET) == b""


@pytest.mark.parametrize(
    ("line", "connection", "kept"),
    [
        ("GET / HTTP/1.1", None, True),
        ("GET / HTTP/1.1", "upgrade", True),
        ("GET / HTTP/1.1", "keep-alive, close", False),
        ("GET / HTTP/1.0", None, False),
        ("GET / HTTP/1.0", "Keep-Alive", True),
        ("GET / HTTP/1.0", "keep-alive, close", False),
    ],
)
def test_persistence(http1: Any, line: str, connection: str | None, kept: bool) -> None:
    """RFC 9112 9.3."""
    guard, _ = fed(http1, request(*([f"Connection: {connection}"] if connection else []), line=line))
    assert (guard.keep_alive, guard.done) == (kept, not kept)


def test_upgrade_is_made_unreadable(http1: Any) -> None:
    """RFC 9110 7.8: a server may ignore Upgrade; here the server behind the guard has no other choice."""
    data = request("X: upgrade", "UPGRADE: h2c", "Upgrade: websocket", "Upgrades: 1", "Connection: upgrade") + GET
    for pieces in ([data], [data[:30], data[30:]]):
        guard, passed = fed(http1, *pieces)
        assert passed == data.replace(b"UPGRADE:", b"XPGRADE:").replace(b"\nUpgrade:", b"\nXpgrade:")
        assert (guard.heads, guard.messages) == (2, 2)
    guard, passed = fed(http1, GET + request("Upgrade: h2c", "Upgrade: h2c", "A : b"))
    assert (passed, guard.error_status) == (GET, 400)


def test_expectation(http1: Any) -> None:
    for line, field, length, wanted in (
        ("POST / HTTP/1.1", "100-Continue", 3, True),
        ("POST / HTTP/1.1", "100-continue", 0, False),
        ("POST / HTTP/1.0", "100-continue", 3, False),
        ("POST / HTTP/1.0", "anything", 3, False),
    ):
        guard, _ = fed(http1, request(f"Expect: {field}", f"Content-Length: {length}", line=line))
        assert (guard.error_status, guard.expect_continue) == (0, wanted)


@pytest.mark.parametrize(
    "body",
    [
        b"0\r\n\r\n",
        b"000\r\n\r\n",
        b"5\r\nhello\r\n0\r\n\r\n",
        b'00A;a;b=c;d="x\\";y\t\xe9 "\r\n0123456789\r\n0;e=1\r\nX-Sum: 1\r\nContent-Type: text/plain\r\n\r\n',
    ],
)
def test_chunked_bodies(http1: Any, body: bytes) -> None:
    guard, passed = fed(http1, CHUNKED + body + GET)
    assert passed == CHUNKED + body + GET
    assert (guard.messages, guard.idle, guard.error_reason) == (2, True, "")


# ------------------------------------------------------------------------------------------------- what is refused
BAD_HEADS: list[tuple[bytes, int]] = [
    *((request(line=line), status) for line, status in (
        ("GET  / HTTP/1.1", 400), ("GET / HTTP/1.1 ", 400), (" GET / HTTP/1.1", 400), ("GET\t/\tHTTP/1.1", 400),
        ("GET /", 400), ("GET / HTTP/1.1x", 400), ("GET / http/1.1", 400), ("GET / RTSP/1.0", 400),
        ("GET / HTTP/1.2", 505), ("GET / HTTP/2.0", 505), ("PRI * HTTP/2.0", 505), ("get / HTTP/1.1", 501),
        ("CONNECT a:443 HTTP/1.1", 501), ("BREW / HTTP/1.1", 501), ("G@T / HTTP/1.1", 400), ("A" * 40, 501),
        ("GET * HTTP/1.1", 400), ("GET x HTTP/1.1", 400), ("GET /a#b HTTP/1.1", 400), ("GET /a\\b HTTP/1.1", 400),
        ("GET /%4 HTTP/1.1", 400), ("GET /%zz HTTP/1.1", 400), ("GET /\xe9 HTTP/1.1", 400), ("GET /[ HTTP/1.1", 400),
        ('GET /" HTTP/1.1', 400), ("GET ftp://a/ HTTP/1.1", 400), ("GET http:///x HTTP/1.1", 400),
        ("GET http://u@a/ HTTP/1.1", 400), ("GET http://a:99999/ HTTP/1.1", 400), ("GET https:/a HTTP/1.1", 400),
    )),
    *((request(f"Host: {host}", host=False), 400) for host in (
        "a/b", "u@a", "a,b", "a, b", "a b", "<a>", "a\\b", 'a"', "a?b", "a#b", "a:b", "a:-1", "a:80:80", "::1", ":80",
        "[::1", "[::1]x", "[1:2]", "[1:2:3:4:5:6:7:8:9]", "[::1::]", "[12345::]", "[::1.2.3]", "[::01.2.3.4]", "[]",
        "[fe80::1%25eth0]", "a:65536", "a\x00b", "h\xe9", "%4", "http://a", "[v1.]", "[v.a]",
    )),
    *((request(f"Content-Length: {value}"), 400) for value in (
        "", "+1", "-1", "0x5", "1 2", "5,", "5, 5", "5, 6", "1_0", '"5"', "1.0", "\xb2", "five",
    )),
    *((request(f"Content-Length: {value}"), 413) for value in ("67108865", str(2**64), "1" + "0" * 60)),
    *((request(f"Transfer-Encoding: {value}"), status) for value, status in (
        ("", 400), ("identity", 400), ("chunked, chunked", 400), ("chunked, gzip", 400), ("xchunked", 400),
        ("chunked;q=1", 400), ("chunked,", 400), ("chunked\t ", 400), ('"chunked"', 400), ("gzip, chunked", 501),
        (",chunked", 501),
    )),
    (request("Transfer-Encoding: chunked", "Content-Length: 3"), 400),
    (request("Transfer-Encoding: chunked", line="POST / HTTP/1.0"), 400),
    *((request(f"{name}: 1", f"{name.lower()}: 1"), 400) for name in (
        "Content-Length", "Content-Type", "User-Agent", "Authorization", "X-Api-Key", "Api-Key", "ETag", "Server",
        "Content-Range", "Content-Location", "Max-Forwards",
    )),
    (request("Transfer-Encoding: chunked", "transfer-encoding: chunked"), 400),
    (request("Host: a"), 400), (request(host=False), 400), (request("Expect: 200-ok"), 417),
    (request("Expect: 100-continue", "Expect: 100-continue"), 400),
    *((request(line), 400) for line in (
        "A : b", ": b", "A", " A: b", "\tA: b", "  ", "A b: c", "A\x7f: b", "A: b\x00", "A: b\rc", "A: \x0b", "A: \x7f",
        "A: b\r", "A: b\nC: d", "(A): b", "\xe9: b",
    )),
    (b"\n" + GET, 400), (b"\r" + GET, 400), (b"\r\n\r\n\r\n" + GET, 400), (GET.replace(b"\r\n", b"\n"), 400),
    (b"\x16\x03\x01\x02\x00", 400), (b"\xff" * 50, 400), (b"SSH-2.0-x\r\n", 400),
]  # fmt: skip


@pytest.mark.parametrize(("data", "status"), BAD_HEADS)
def test_refused_heads(http1: Any, data: bytes, status: int) -> None:
    guard, passed = fed(http1, GET + data)
    assert (guard.error_status, guard.error_in_body) == (status, False)
    assert passed in (GET, GET + b"\r\n", GET + b"\r\n\r\n")
    assert guard.error_reason
    assert not guard.idle
    assert not guard.in_head


@pytest.mark.parametrize(
    "host",
    ["", "a", "A-b_c.d~", "a.", "a:", "a:80", "1.2.3.4:65535", "0.0.0.0=5000", "a%41", "[::]", "[::1]:8080",
     "[1:2:3:4:5:6:7:8]", "[1:2:3:4:5:6:1.2.3.4]", "[1::8]", "[1:2:3:4:5:6:7::]", "[::ffff:1.2.3.4]", "[v1.a:b]"],
)  # fmt: skip
def test_accepted_hosts(http1: Any, host: str) -> None:
    guard, _ = fed(http1, request(f"Host: {host}", host=False))
    assert (guard.error_reason, guard.messages) == ("", 1)
    if host:
        guard, _ = fed(http1, request(line=f"GET http://{host}/x HTTP/1.1"))
        assert (guard.error_reason, guard.messages) == ("", 1)


@pytest.mark.parametrize(
    "line",
    ["OPTIONS * HTTP/1.1", "GET //a/;b=c,d/@:!$&'()*+~ HTTP/1.1", "GET /?a?b/c[]=%Fe HTTP/1.1", "PURGE / HTTP/1.1",
     "GET HTTP://a?b HTTP/1.1", "GET https://a HTTP/1.1", "M-SEARCH / HTTP/1.1"],
)  # fmt: skip
def test_accepted_request_lines(http1: Any, line: str) -> None:
    guard, _ = fed(http1, request(line=line))
    assert (guard.error_reason, guard.messages) == ("", 1)


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"5\r\nhelloX", 400), (b"5\r\nhello\rX", 400), (b"5\r\nhello\n0", 400),
     *((line + b"\r\nhello\r\n0\r\n\r\n", 400) for line in (
         b"", b" 5", b"5 ", b"5\t", b"+5", b"-5", b"0x5", b"5_0", b"5,", b";", b"5;", b"5;;", b"5;a=", b"5 ;a", b"5; a",
         b'5;a="b', b'5;a="b"c', b"5;a\rb", b"5;a\nb", b"5;a\0", b"5;a=b=c", b"5\r", b"0" * 17, b"10000000000000005",
     )),
     *((b"0\r\n" + line + b"\r\n\r\n", 400) for line in (
         b"A", b" A: b", b"A : b", b"Host: x", b"content-length: 1", b"Transfer-Encoding: chunked", b"authorization: x",
         b"X-API-Key: x", b"Cookie: x", b"X-Forwarded-For: x", b"Expect: x", b"A: \x00",
     )),
     (b"0\r\n\n", 400), (b"FFFFFFFFFFFFFFFF\r\n", 413), (b"4000001\r\n", 413)],
)  # fmt: skip
def test_refused_bodies(http1: Any, body: bytes, status: int) -> None:
    guard, passed = fed(http1, CHUNKED + body)
    assert (guard.error_status, guard.error_in_body, guard.heads, guard.messages) == (status, True, 1, 0)
    assert passed.startswith(CHUNKED)
    assert not guard.in_body


# ----------------------------------------------------------------------------------------------------------- limits
@pytest.mark.parametrize("at_limit", [True, False])
@pytest.mark.parametrize(
    ("limits", "status", "build"),
    [
        ({"max_target": 20}, 414, lambda n: request(line="GET /" + "a" * (19 + n) + " HTTP/1.1")),
        ({"max_field": 20}, 431, lambda n: request("X: " + "a" * (17 + n))),
        ({"max_fields": 40}, 431, lambda n: request("X: " + "a" * (28 + n))),
        ({"max_count": 3}, 431, lambda n: request(*["X: a"] * (2 + n))),
        ({"max_body": 9}, 413, lambda n: request(f"Content-Length: {9 + n}")),
        ({"max_body": 9}, 413, lambda n: CHUNKED + b"5\r\nhello\r\n%d\r\n" % (4 + n)),
        ({"max_chunk_ext": 9}, 400, lambda n: CHUNKED + b"0000000000000001;" + b"a" * (8 + n) + b"\r\n"),
        ({"max_chunk_ext": 2}, 400, lambda n: CHUNKED + b"1;a\r\nx\r\n" * 16 + b"1;a\r\n" * n),
        ({"max_fields": 60, "max_count": 9}, 431, lambda n: CHUNKED + b"0\r\nX: " + b"a" * (20 + n) + b"\r\n"),
        ({"max_count": 3}, 431, lambda n: CHUNKED + b"0\r\n" + b"X: a\r\n" * (1 + n)),
    ],
)
def test_limits(http1: Any, limits: dict[str, int], status: int, build: Any, at_limit: bool) -> None:
    data = build(0 if at_limit else 1)
    guard, _ = fed(http1, data, **limits)
    assert guard.error_status == (0 if at_limit else status)
    assert verdict(http1, cut(data, list(range(len(data)))), **limits) == verdict(http1, [data], **limits)


def test_endless_lines_are_refused_without_their_end(http1: Any) -> None:
    assert fed(http1, b"GET /" + b"a" * 20_000)[0].error_status == 414
    assert fed(http1, b"GET / HTTP/1.1\r\nX: " + b"a" * 20_000)[0].error_status == 431
    assert fed(http1, CHUNKED + b"0" * 20_000)[0].error_status == 400


def test_a_dripped_head_is_scanned_once(http1: Any) -> None:
    """A line that grows byte by byte: the work is linear, so this ends at once."""
    guard = http1.RequestGuard()
    for byte in (b"GET / HTTP/1.1\r\nHost: a\r\nX: ", *[b"a"] * 16_000, b"\r\n\r\n"):
        guard.feed(byte)
    assert guard.messages == 1


@pytest.mark.parametrize("limits", [{"max_body": -1}, {"max_field": 10**16}])
def test_limits_are_checked(http1: Any, limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="out of range"):
        http1.RequestGuard(**limits)


def test_reasons_are_ours(http1: Any) -> None:
    """Q32: never bytes of the request in a reason."""
    for data, _ in BAD_HEADS:
        guard, _ = fed(http1, data)
        assert (guard.error_status, guard.error_reason) in pure.ERRORS


# ----------------------------------------------------------------------------------------------------------- corpus
def corpus() -> list[dict[str, Any]]:
    if not CORPUS.is_dir():
        return []
    cases = json.loads((CORPUS / "index.json").read_text(encoding="utf-8"))
    for case in cases:
        case["bytes"] = (CORPUS / case["file"]).read_bytes()
    return cases


CASES = corpus()
needs_corpus = pytest.mark.skipif(not CASES, reason=f"no hostile corpus at {CORPUS} (set SLIPSTREAM_SHARED)")


@needs_corpus
def test_corpus(http1: Any) -> None:
    wrong = []
    for case in CASES:
        guard, _ = fed(http1, case["bytes"])
        refused, closing = bool(guard.error_status), case["file"].rsplit("/", 1)[-1].startswith("own-pipe")
        if (
            (case["expect"] == "reject" and not refused and not case["incomplete"])
            or (case["expect"] == "accept" and refused and not closing)
            or (case["expect"] == "accept" and guard.heads < case["min_responses"])
            or (guard.messages > case["responses"])
        ):
            wrong.append((case["level"], case["file"], guard.error_reason))
    assert wrong == []


@needs_corpus
def test_corpus_however_cut(http1: Any) -> None:
    rng = random.Random(20)
    for case in CASES:
        data = case["bytes"]
        whole = verdict(http1, [data])
        if len(data) < 20_000:
            assert verdict(http1, cut(data, list(range(1, len(data))))) == whole, case["file"]
        for _ in range(3):
            where = [rng.randrange(len(data) + 1) for _ in range(5)]
            assert verdict(http1, cut(data, where)) == whole, (case["file"], where)


TOKENS = [b"\r\n", b"\r", b"\n", b" ", b"\t", b":", b",", b";", b'"', b"\\", b"%41", b"[::1]", b"\0", b"\x80", b"?",
          b"0", b"Upgrade: x\r\n", b"Host: a\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n",
          b"chunked", b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"5\r\nhello\r\n0\r\n\r\n",
          GET, CHUNKED]  # fmt: skip
SEEDS = [GET, CHUNKED + b'5;a="b c"\r\nhello\r\n0\r\nX: y\r\n\r\n', request("Content-Length: 5") + b"hello",
         request("Host: [1::2:3.4.5.6]:80", host=False, line="GET http://[::1]/a?b HTTP/1.1"),
         *(case["bytes"] for case in CASES if len(case["bytes"]) < 2000)]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(b"".join(draw(st.lists(st.sampled_from(SEEDS), min_size=1, max_size=2))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 4))] = draw(st.sampled_from(TOKENS) | st.binary(max_size=3))
    return bytes(data)


@NOT_BUILT
@settings(max_examples=600, deadline=None)
@given(mutated(), st.lists(st.integers(0, 400), max_size=6), st.booleans())
def test_twins_agree(data: bytes, where: list[int], small: bool) -> None:
    limits = SMALL if small else {}
    pieces = cut(data, [min(i, len(data)) for i in where])
    assert verdict(compiled, pieces, **limits) == verdict(pure, pieces, **limits) == verdict(pure, [data], **limits)


@NOT_BUILT
@settings(max_examples=400, deadline=None)
@given(st.text("012af:.v[]%", max_size=24))
def test_twins_agree_on_hosts(host: str) -> None:
    for data in (request(f"Host: {host}", host=False), request(f"Host: [{host}]", host=False)):
        assert verdict(compiled, [data]) == verdict(pure, [data])
