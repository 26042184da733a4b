"""The reader of request heads: compiled and pure twin under the same tests, on heads that ``RequestGuard`` passed."""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure import head as pure
from slipstream._fast._pure.head import (
    H_ACCEPT,
    H_API_KEY,
    H_AUTHORIZATION,
    H_CONTENT_ENCODING,
    H_CONTENT_TYPE,
    H_ORIGIN,
    H_REQUEST_ID,
    H_TIMEOUT,
)
from slipstream._fast._pure.http1 import RequestGuard

try:
    compiled: Any = importlib.import_module("slipstream._fast.head")
except ImportError:
    compiled = None

NOT_BUILT = pytest.mark.skipif(compiled is None, reason="slipstream._fast.head is not built (setup.py build_ext)")
MODULES = [pytest.param(compiled, id="compiled", marks=NOT_BUILT), pytest.param(pure, id="pure")]
PATHS = (b"/v1/chat/completions", b"/v1/completions", b"/v1/embeddings", b"/v1")
FACTS = ["start", "route", "content_length", "chunked", "expect_continue", "keep_alive", "http10"]
NAMES = {
    "Authorization": H_AUTHORIZATION,
    "X-Api-Key": H_API_KEY,
    "Content-Type": H_CONTENT_TYPE,
    "Content-Encoding": H_CONTENT_ENCODING,
    "X-Request-Id": H_REQUEST_ID,
    "Origin": H_ORIGIN,
    "X-Request-Timeout": H_TIMEOUT,
    "Accept": H_ACCEPT,
}


@pytest.fixture(params=MODULES)
def m(request: pytest.FixtureRequest) -> Any:
    return request.param


def request(*fields: str, line: str = "POST /v1/chat/completions HTTP/1.1", host: bool = True) -> bytes:
    """A head; the guard has passed it."""
    data = "\r\n".join([line, *(["Host: a"] if host else []), *fields, "", ""]).encode("latin-1")
    guard = RequestGuard()
    assert guard.feed(data) == data, guard.error_reason
    assert guard.heads == 1
    return data


def read(m: Any, data: bytes, at: int = 0) -> Any:
    head = m.RequestHead(PATHS)
    assert head.read(data, at) == len(data)
    return head


def facts(head: Any) -> tuple[Any, ...]:
    return (*(getattr(head, fact) for fact in FACTS), *map(head.value, range(-1, 9)), *head.values())


def test_constants() -> None:
    assert sorted(NAMES.values()) == list(range(8))
    for name in [name for name in vars(pure) if name.startswith("H_")] if compiled else []:
        assert getattr(compiled, name) == getattr(pure, name)


def test_all_fields(m: Any) -> None:
    head = read(m, request(*(f"{name}: value of {name}" for name in NAMES), "Content-Length: 12"))
    assert facts(head)[:7] == (0, 0, 12, False, False, True, False)
    for name, field in NAMES.items():
        assert head.value(field) == b"value of " + name.encode()
    assert (head.value(-1), head.value(8), head.value(1 << 30)) == (None, None, None)
    usual = (H_AUTHORIZATION, H_API_KEY, H_CONTENT_TYPE, H_CONTENT_ENCODING, H_REQUEST_ID, H_ORIGIN, H_TIMEOUT)
    assert head.values() == tuple(map(head.value, usual))
    head.forget()
    assert head.values() == (None,) * 7
    assert [head.value(field) for field in range(8)] == [None] * 8
    assert (head.route, head.content_length) == (0, 12)


def test_names_are_matched_whole_and_in_any_case(m: Any) -> None:
    for name, field in NAMES.items():
        for spelled in (name.lower(), name.upper(), name.swapcase()):
            assert read(m, request(f"{spelled}: x")).value(field) == b"x"
        for other in (f"X-{name}", f"{name}s", name[1:], name[:-1], name.replace("-", "_"), "x" * len(name)):
            if other not in NAMES and other != name:
                assert read(m, request(f"{other}: x")).value(field) is None


@pytest.mark.parametrize(
    ("text", "value"), [("x", b"x"), ("", b""), (" \t ", b""), ("\t a\t b \t", b"a\t b"), ("\xff", b"\xff")]
)
def test_blanks(m: Any, text: str, value: bytes) -> None:
    head = read(m, request(f"X-Request-Id:{text}", f"Accept:{text}"))
    assert (head.value(H_REQUEST_ID), head.value(H_ACCEPT), head.value(H_TIMEOUT)) == (value, value, None)


def test_the_first_of_several_wins(m: Any) -> None:
    head = read(m, request("Accept: 1", "accept: 2", "X-Request-Id:", "x-request-id: 2", "Origin: a", "ORIGIN: b"))
    assert [head.value(x) for x in (H_ACCEPT, H_REQUEST_ID, H_ORIGIN)] == [b"1", b"", b"a"]


@pytest.mark.parametrize(
    ("line", "route"),
    [
        ("POST /v1/chat/completions HTTP/1.1", 0),
        ("POST /v1/completions HTTP/1.1", 1),
        ("POST /v1/embeddings?a=b HTTP/1.1", 2),
        ("POST /v1/embeddings? HTTP/1.1", 2),
        ("POST /v1/embeddings?a?/v1 HTTP/1.0", 2),
        ("POST /v1 HTTP/1.1", 3),
        ("POST /v1/ HTTP/1.1", -1),
        ("POST /v1/embedding HTTP/1.1", -1),
        ("POST /v1/embeddingss HTTP/1.1", -1),
        ("POST /V1/embeddings HTTP/1.1", -1),
        ("POST /v1%2Fembeddings HTTP/1.1", -1),
        ("POST //v1/embeddings HTTP/1.1", -1),
        ("POST http://a/v1/embeddings HTTP/1.1", -1),
        ("POST / HTTP/1.1", -1),
        ("POST /?/v1 HTTP/1.1", -1),
        ("GET /v1/embeddings HTTP/1.1", -1),
        ("PUT /v1/embeddings HTTP/1.1", -1),
        ("OPTIONS * HTTP/1.1", -1),
    ],
)
def test_routes(m: Any, line: str, route: int) -> None:
    assert read(m, request(line=line)).route == route


def test_no_routes_and_too_many(m: Any) -> None:
    head = m.RequestHead(())
    assert head.read(request()) > 0
    assert head.route == -1
    many = tuple(b"/%d" % i for i in range(16))
    head = m.RequestHead(many)
    for i in range(16):
        head.read(request(line=f"POST /{i} HTTP/1.1"))
        assert head.route == i
    with pytest.raises(ValueError, match="too many"):
        m.RequestHead((*many, b"/x"))


@pytest.mark.parametrize(
    ("fields", "http11", "http10"),
    [
        ([], True, False),
        (["Connection: close"], False, False),
        (["Connection: keep-alive"], True, True),
        (["Connection: Keep-Alive,\tx"], True, True),
        (["Connection: x , CLOSE"], False, False),
        (["Connection: keep-alive", "Connection: close"], False, False),
        (["Connection: closed, unclose"], True, False),
        (["Connection: ,, ,"], True, False),
    ],
)
def test_keep_alive(m: Any, fields: list[str], http11: bool, http10: bool) -> None:
    for version, keep in ((1, http11), (0, http10)):
        head = read(m, request(*fields, line=f"POST /v1 HTTP/1.{version}"))
        assert (head.keep_alive, head.http10) == (keep, not version)


def test_http10_may_leave_out_the_host(m: Any) -> None:
    head = read(m, request(line="GET / HTTP/1.0", host=False))
    assert facts(head)[:7] == (0, -1, -1, False, False, False, True)


def test_framing(m: Any) -> None:
    for digits, length in (("0", 0), ("5", 5), ("0005", 5), ("67108864", 1 << 26)):
        assert read(m, request(f"content-length:\t{digits} ")).content_length == length
    head = read(m, request("Transfer-Encoding: chunked"))
    assert (head.chunked, head.content_length) == (True, -1)
    assert not read(m, request("X-Transfer-Encoding: chunked", "X-Content-Length: 1")).chunked


def test_expect(m: Any) -> None:
    fields = ["Expect: 100-continue", "Content-Length: 1"]
    assert read(m, request(*fields)).expect_continue is True
    assert read(m, request(*fields, line="POST /v1 HTTP/1.0")).expect_continue is False  # RFC 9110 10.1.1


def test_offsets_of_pipelined_heads(m: Any) -> None:
    heads = [
        request(f"X-Request-Id: {i}", "Content-Length: 3", line=f"POST {path.decode()} HTTP/1.1")
        for i, path in enumerate(PATHS)
    ]
    data = b"".join(head + b"\n\r\n" for head in heads)  # bodies that look like the end of a head
    head, at = m.RequestHead(PATHS), 0
    for i, one in enumerate(heads):
        assert head.read(data, at) == at + len(one)
        assert (head.start, head.route, head.value(H_REQUEST_ID)) == (at, i, b"%d" % i)
        at += len(one) + head.content_length
    assert at == len(data)
    assert head.read(data, at) == -1
    for outside in (-1, len(data) + 1):
        with pytest.raises(ValueError, match="outside"):
            head.read(data, outside)


def test_empty_lines_before_a_head(m: Any) -> None:
    one = request("Origin: o")
    for n in range(3):
        data = b"x" + b"\r\n" * n + one
        head = read(m, data, 1)
        assert (head.start, head.route, head.value(H_ORIGIN)) == (1 + 2 * n, 0, b"o")
    assert m.RequestHead(PATHS).read(b"\r\n\r\n") == -1


def test_truncated(m: Any) -> None:
    data = request("Authorization: Bearer x", "Content-Length: 3") + b"abc"
    whole = m.RequestHead(PATHS)
    assert whole.read(data) == len(data) - 3
    for i in range(len(data) - 3):
        head = m.RequestHead(PATHS)
        assert head.read(data[:i]) == head.read(b"\r\n" + data[:i], 2) == -1
        assert [head.value(field) for field in range(8)] == [None] * 8
        assert head.read(data) == len(data) - 3
        assert facts(head) == facts(whole)
        assert head.read(data[:i]) == -1
        assert head.value(H_AUTHORIZATION) is None


def test_types(m: Any) -> None:
    head = read(m, request())
    for fact in ("chunked", "expect_continue", "keep_alive", "http10"):
        assert type(getattr(head, fact)) is bool


# --------------------------------------------------------------------------------------------------- the twins agree
BLANK = st.text(alphabet=" \t", max_size=3)
VALUE = st.text(alphabet='aZ09 \t,;="\xe9\xff-', max_size=12) | st.sampled_from(["close", "keep-alive", "a, Close ,b"])
NAME = st.sampled_from([*NAMES, "Connection", "Accept-Encoding", "X", "Cookie"]) | st.text(
    alphabet="aX-_9", min_size=1, max_size=17
)
TARGET = st.sampled_from([path.decode() for path in PATHS]) | st.text(alphabet="/v1a%20", min_size=1, max_size=8)


@st.composite
def heads(draw: st.DrawFn) -> bytes:
    method = draw(st.sampled_from(["POST", "POST", "POST", "GET", "PUT"]))
    query = draw(st.sampled_from(["", "", "?", "?a=b", "?a?b"]))
    version = draw(st.sampled_from(["1.1", "1.1", "1.0"]))
    rnd = draw(st.randoms(use_true_random=False))
    fields = [
        f"{name.swapcase() if rnd.random() < 0.3 else name}:{left}{value}"
        for name, left, value in draw(st.lists(st.tuples(NAME, BLANK, VALUE), max_size=6))
    ]
    framing = draw(st.sampled_from(["", "Content-Length: 0", "content-length:\t07 ", "Transfer-Encoding: Chunked"]))
    fields += [line for line in ("Host: a", framing, draw(st.sampled_from(["", "Expect: 100-Continue"]))) if line]
    rnd.shuffle(fields)
    line = f"{method} {draw(TARGET)}{query} HTTP/{version}"
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1")


@NOT_BUILT
@settings(max_examples=800, deadline=None, derandomize=True, database=None)
@given(data=heads(), empty=st.integers(0, 2), behind=st.binary(max_size=20))
def test_twins(data: bytes, empty: int, behind: bytes) -> None:
    guard = RequestGuard()
    passed = guard.feed(data)
    if guard.heads != 1:
        return
    stream = b"?" + b"\r\n" * empty + passed + behind
    ours, spec = compiled.RequestHead(PATHS), pure.RequestHead(PATHS)
    end = 1 + 2 * empty + len(passed)
    assert ours.read(stream, 1) == spec.read(stream, 1) == end
    assert facts(ours) == facts(spec)
    framing = (ours.content_length, ours.chunked, ours.keep_alive)
    assert framing == (guard.content_length, guard.chunked, guard.keep_alive)
    body = ours.chunked or ours.content_length > 0  # the guard counts an Expect only with a body behind it
    assert guard.expect_continue == (ours.expect_continue and body)
    assert ours.read(stream[: end - 1], 1) == spec.read(stream[: end - 1], 1) == -1


@NOT_BUILT
def test_compiled_is_safe_on_any_bytes() -> None:
    """No guard before it: nothing is promised but that it comes back, and from inside of the data."""
    rnd = random.Random(2)
    seed = request("Content-Length: 3", "Connection: a, close", "Accept: x")
    parts = [b"\r", b"\n", b"\r\n", b":", b" ", b",", b"POST ", b"Content-Length:", b"\n\n", b"\n\r\n", b"\0", b"\xff"]
    for _ in range(5000):
        data = bytearray(seed)
        for _ in range(rnd.randint(1, 6)):
            i = rnd.randrange(len(data) + 1)
            data[i : i + rnd.randrange(20)] = rnd.choice(parts)
        head = compiled.RequestHead(PATHS)
        assert -1 <= head.read(bytes(data)) <= len(data)
        if b":\n" not in data:  # no empty value before a bare LF: value() takes a CR off that is not there
            assert all(value is None or value in data for value in map(head.value, range(8)))
