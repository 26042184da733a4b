"""The reader of upstream responses: compiled and pure twin under the same tests, beside llhttp, and compared.

Rows S-11 to S-22 of the fault scenarios stand here by number, as far as they can be seen in the bytes alone.
"""

from __future__ import annotations

import importlib
import itertools
import random
import re
import time
from typing import Any

import httptools
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure import response as pure
from slipstream._fast._pure.response import E_BODY, E_DONE, E_ERROR, E_EXTRA, E_HEAD, REASONS

try:
    compiled: Any = importlib.import_module("slipstream._fast.response")
except ImportError:
    compiled = None

NOT_BUILT = pytest.mark.skipif(compiled is None, reason="slipstream._fast.response is not built (setup.py build_ext)")
MODULES = [pytest.param(compiled, id="compiled", marks=NOT_BUILT), pytest.param(pure, id="pure")]
FACTS = ["status", "keep_alive", "content_length", "chunked", "close_delimited", "started", "error_reason"]
REPLY = b"HTTP/1.1 200 OK\r\nServer: x\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello"
HINTED = b"HTTP/1.1 103 E\r\nA: b\r\n\r\n" + REPLY
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
STREAM = CHUNKED + b"3\r\nabc\r\nA;x=1\r\n0123456789\r\n0\r\nT: v\r\n\r\n"


@pytest.fixture(params=MODULES)
def m(request: pytest.FixtureRequest) -> Any:
    return request.param


def response(*lines: str, line: str = "HTTP/1.1 200 OK", body: bytes = b"") -> bytes:
    return "\r\n".join([line, *lines, "", ""]).encode("latin-1") + body


def cut(data: bytes, where: list[int]) -> list[bytes]:
    edges = [0, *sorted(where), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges) if b > a]


def byte_by_byte(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def read(m: Any, *pieces: bytes, end: bool | int = False, **limits: int) -> tuple[Any, int, bytes]:
    """The reader, all flags, the whole body."""
    reader, flags, body = m.ResponseReader(**limits), 0, b""
    reader.expect()
    for piece in pieces:
        got = reader.feed(piece)
        bytes_now = reader.take_body()
        assert bool(got & E_BODY) == bool(bytes_now)
        assert not got & ~E_EXTRA & flags & ~E_BODY, "reported twice"
        assert reader.take_body() == b""
        flags, body = flags | got, body + bytes_now
    if end:
        flags |= reader.end()
    return reader, flags, body


def outcome(m: Any, pieces: list[bytes], end: bool | int = False, **limits: int) -> tuple[Any, ...]:
    reader, flags, body = read(m, *pieces, end=end, **limits)
    return (flags, body, reader.headers(), *(getattr(reader, fact) for fact in FACTS))


def refused(m: Any, data: bytes, reason: str, **limits: int) -> None:
    for pieces in ([data], byte_by_byte(data)):
        reader, flags, _ = read(m, *pieces, **limits)
        assert flags & E_ERROR, data
        assert (reader.error_reason, reader.keep_alive) == (reason, False)
        assert reader.feed(REPLY) == reader.end() == 0
        with pytest.raises(RuntimeError):
            reader.expect()


# ------------------------------------------------------------------------------------------------------- what is read
def test_whole(m: Any) -> None:
    reader = m.ResponseReader()
    for _ in range(3):
        reader.expect()
        assert (reader.status, reader.started, reader.headers(), reader.header(b"server")) == (0, False, [], None)
        assert reader.feed(REPLY) == E_HEAD | E_BODY | E_DONE
        assert [getattr(reader, fact) for fact in FACTS] == [200, True, 5, False, False, True, ""]
        assert reader.take_body() == b"hello"
        assert reader.take_body() == b""
        assert reader.headers() == [(b"server", b"x"), (b"content-type", b"text/plain"), (b"content-length", b"5")]
        assert reader.header(b"content-type") == b"text/plain"
        for name in (b"Content-Type", b"content-typ", b"content-type:", b"", b"hello", b"http/1.1 200 ok"):
            assert reader.header(name) is None
    assert reader.end() == 0
    assert reader.keep_alive is False


def test_types(m: Any) -> None:
    reader = m.ResponseReader()
    for what in (None, "x", bytearray(b"x"), memoryview(b"x")):
        with pytest.raises(TypeError):
            reader.feed(what)
    for limits in ((-1,), (2**31,), (1, -1), (1, 1, -1)):
        with pytest.raises(ValueError, match="out of range"):
            m.ResponseReader(*limits)
    reader.expect()
    reader.feed(REPLY)
    for fact in ("keep_alive", "chunked", "close_delimited", "started"):
        assert type(getattr(reader, fact)) is bool


@pytest.mark.parametrize("data", [REPLY, STREAM, HINTED, response(body=b"to the end")])
def test_cut_anywhere(m: Any, data: bytes) -> None:
    whole = outcome(m, [data])
    assert whole[0] & E_HEAD
    assert outcome(m, byte_by_byte(data)) == whole
    for i in range(1, len(data)):
        assert outcome(m, [data[:i], data[i:]]) == whole
        assert outcome(m, [data[:i], b"", data[i : i + 1], data[i + 1 :]]) == whole


def test_same_object(m: Any) -> None:
    chunked = m.ResponseReader()
    for reader, head in ((m.ResponseReader(), response("Content-Length: 9")), (chunked, CHUNKED + b"100\r\n")):
        reader.expect()
        assert reader.feed(head) == E_HEAD
        piece = b"123456789"
        reader.feed(piece)
        assert reader.take_body() is piece
    chunked.feed(b"0123")
    assert chunked.feed(b"4567") == E_BODY
    assert chunked.feed(b"") == 0
    assert chunked.take_body() == b""  # not taken in time


def test_several_chunks_in_one_feed(m: Any) -> None:
    chunks = [bytes([65 + i % 26]) * (i % 40 + 1) for i in range(200)]
    data = CHUNKED + b"".join(b"%X\r\n%s\r\n" % (len(c), c) for c in chunks)
    reader, flags, body = read(m, data)
    assert (flags, body) == (E_HEAD | E_BODY, b"".join(chunks))
    assert reader.feed(b"000\r\n\r\n") == E_DONE
    assert reader.keep_alive


def test_bytes_before_an_error_are_delivered(m: Any) -> None:
    for pieces in ([x := CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n!"], byte_by_byte(x)):
        reader, flags, body = read(m, *pieces)
        assert (flags, body, reader.error_reason) == (E_HEAD | E_BODY | E_ERROR, b"abcde", "invalid chunk size")
        assert (reader.status, reader.header(b"transfer-encoding")) == (200, b"chunked")


@pytest.mark.parametrize(
    ("lines", "keep"),
    [
        (["HTTP/1.1 200 OK"], True),
        (["HTTP/1.1 200 OK", "Connection: close"], False),
        (["HTTP/1.1 200 OK", "Connection: foo ,\tCLOSE"], False),
        (["HTTP/1.1 200 OK", "Connection: keep-alive", "Connection: close"], False),
        (["HTTP/1.1 200 OK", "Connection: closed, x-close"], True),
        (["HTTP/1.0 200 OK"], False),
        (["HTTP/1.0 200 OK", "Connection: Keep-Alive"], True),
        (["HTTP/1.0 200 OK", "Connection: keep-alive, close"], False),
    ],
)
def test_keep_alive(m: Any, lines: list[str], keep: bool) -> None:
    line, *fields = lines
    assert read(m, response(*fields, "Content-Length: 0", line=line))[0].keep_alive is keep
    reader, flags, _ = read(m, response(*fields, line=line))  # without a length: up to the close
    assert (flags, reader.keep_alive, reader.close_delimited) == (E_HEAD, False, True)


def test_no_body(m: Any) -> None:
    for line in ("HTTP/1.1 204 No Content", "HTTP/1.1 304 Not Modified"):
        for fields in ([], ["Content-Length: 5"], ["Transfer-Encoding: chunked"]):
            reader, flags, _ = read(m, response(*fields, line=line))
            assert flags == E_HEAD | E_DONE
            assert (reader.content_length, reader.chunked, reader.keep_alive) == (0, False, True)
    assert read(m, response("Content-Length: 0"))[1] == E_HEAD | E_DONE
    assert read(m, CHUNKED + b"0\r\n\r\n")[1] == E_HEAD | E_DONE


def test_bare_lf_ends_a_line_of_a_head(m: Any) -> None:
    reader, flags, body = read(m, b"HTTP/1.1 103\n\nHTTP/1.1 200\nA: b \r\nContent-Length: 2\n\nok")
    assert (flags, body) == (E_HEAD | E_BODY | E_DONE, b"ok")
    assert reader.headers() == [(b"a", b"b"), (b"content-length", b"2")]


def test_fields(m: Any) -> None:
    reader, _, _ = read(m, response("A:", "b: \t ", "X-Y_z|~!#$%&'*+.^`:\t a:\tb \t", "D: \xff\x80", "a: 2"))
    assert reader.headers() == [
        (b"a", b""),
        (b"b", b""),
        (b"x-y_z|~!#$%&'*+.^`", b"a:\tb"),
        (b"d", b"\xff\x80"),
        (b"a", b"2"),
    ]
    assert [reader.header(x) for x in (b"a", b"b", b"d", b"x-y_z|~!#$%&'*+.~`")] == [b"", b"", b"\xff\x80", None]


def test_status_lines(m: Any) -> None:
    for line, status in (("HTTP/1.1 200", 200), ("HTTP/1.0 599 ", 599), ("HTTP/1.1 418 I'm\ta \xfc", 418)):
        assert read(m, response(line=line))[0].status == status
    for line in ("HTTP/1.1 200 \0", "HTTP/1.1 200 a\rb", "HTTP/1.1 200\r"):
        refused(m, response(line=line), "control character in the head")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (["A b: c"], "invalid header field"),
        (["A : c"], "invalid header field"),
        ([": c"], "invalid header field"),
        (["A"], "invalid header field"),
        (["A\xff: b"], "invalid header field"),
        (["A\0: b"], "invalid header field"),
        (["A: b", " c"], "folded header field"),
        (["\tA: b"], "folded header field"),
        (["A: b\rc"], "control character in the head"),
        (["A: b\r"], "control character in the head"),
        (["A: \0"], "control character in the head"),
        (["A: \x7f"], "control character in the head"),
        (["Content-Length:"], "invalid Content-Length"),
        (["Content-Length: +1"], "invalid Content-Length"),
        (["Content-Length: 1 1"], "invalid Content-Length"),
        (["Content-Length: 0x1"], "invalid Content-Length"),
        (["Content-Length: 5, 5"], "invalid Content-Length"),
        (["Content-Length: \xb2"], "invalid Content-Length"),
        (["Content-Length: 9223372036854775808"], "invalid Content-Length"),
        (["Content-Length: " + "9" * 5000], "invalid Content-Length"),
        (["Content-Length: 5", "content-length: 6"], "conflicting Content-Length"),
        (["Content-Length: 5", "content-length: x"], "invalid Content-Length"),
        (["Transfer-Encoding: gzip, chunked"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: chunked, gzip"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: chunked,"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: chunked;a=b"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: xchunked"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: identity"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding:"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], "unsupported Transfer-Encoding"),
        (["Transfer-Encoding: chunked", "Content-Length: 5"], "Content-Length with Transfer-Encoding"),
        (["Content-Length: 0", "Transfer-Encoding: chunked"], "Content-Length with Transfer-Encoding"),
    ],
)
def test_refused_fields(m: Any, fields: list[str], reason: str) -> None:
    refused(m, response(*fields), reason)
    if "Content-Length" not in reason:  # also in a head that is skipped
        refused(m, response(*fields, line="HTTP/1.1 103 Early Hints") + REPLY, reason)


def test_lengths(m: Any) -> None:
    for fields, length in (
        (["Content-Length: 5", "content-length: 5", "CONTENT-LENGTH:\t005 "], 5),
        (["Content-Length: 9223372036854775807"], 2**63 - 1),
        (["Content-Length: " + "0" * 5000 + "7"], 7),
    ):
        assert read(m, response(*fields))[0].content_length == length
    reader, _, _ = read(m, response("Transfer-Encoding:\t CHunkED \t"))
    assert (reader.chunked, reader.content_length) == (True, -1)
    refused(m, response("Transfer-Encoding: chunked", line="HTTP/1.0 200 OK"), "Transfer-Encoding in HTTP/1.0")


@pytest.mark.parametrize(
    ("framing", "reason"),
    [
        (b"\r\n", "invalid chunk size"),
        (b";a\r\n", "invalid chunk size"),
        (b"-1\r\n", "invalid chunk size"),
        (b"0x1\r\n", "invalid chunk size"),
        (b" 1\r\n", "invalid chunk size"),
        (b"1 \r\n", "invalid chunk size"),
        (b"1\n", "invalid chunk size"),
        (b"1\rx", "invalid chunk size"),
        (b"8000000000000000\r\n", "invalid chunk size"),
        (b"00000000000000001\r\n", "invalid chunk size"),
        (b"1;a\n", "invalid chunk extension"),
        (b"1;\0\r\n", "invalid chunk extension"),
        (b"1;a\rb", "invalid chunk size"),
        (b"1;" + b"a" * 4096, "chunk extension too long"),
        (b"1\r\nab", "chunk data without CRLF"),
        (b"1\r\na\n", "chunk data without CRLF"),
        (b"1\r\na\rb", "chunk data without CRLF"),
        (b"1\r\na\r\n\r\n", "invalid chunk size"),
        (b"0\r\n\n", "invalid trailer"),
        (b"0\r\nA\r\n", "invalid trailer"),
        (b"0\r\n: b\r\n", "invalid trailer"),
        (b"0\r\n A: b\r\n", "invalid trailer"),
        (b"0\r\nA : b\r\n", "invalid trailer"),
        (b"0\r\nA: b\n", "invalid trailer"),
        (b"0\r\nA: \0", "invalid trailer"),
        (b"0\r\nA: b\r\r", "invalid trailer"),
        (b"0\r\n\r\r", "invalid trailer"),
    ],
)
def test_refused_chunks(m: Any, framing: bytes, reason: str) -> None:
    refused(m, CHUNKED + framing, reason)
    refused(m, CHUNKED + b"2\r\nxy\r\n" + framing, reason)


def test_chunks(m: Any) -> None:
    for framing, flags in (
        (b"0000000000000001\r\na\r\n0\r\n\r\n", E_HEAD | E_BODY | E_DONE),
        (b"7fffffffffffffff\r\na", E_HEAD | E_BODY),
        (b"1;" + b"a" * 4095 + b"\r\na\r\n", E_HEAD | E_BODY),
        (b'1;a="b";c\t=\xff\r\na\r\n', E_HEAD | E_BODY),
        (b"0\r\nA:\r\nB: \xff\t\r\nContent-Length: 9\r\n\r\n", E_HEAD | E_DONE),
    ):
        assert read(m, CHUNKED + framing)[1] == flags


def test_every_reason_is_a_fixed_text() -> None:
    assert len(set(REASONS)) == len(REASONS)
    assert all(reason.isascii() and len(reason) < 60 for reason in REASONS)


# ---------------------------------------------------------------------------------------------- order, extra, the end
def test_extra_bytes(m: Any) -> None:
    for complete in (REPLY, STREAM, response(line="HTTP/1.1 204 x")):
        for pieces in ([complete + b"\r\n"], [complete, b"\r\n"], [complete + REPLY], [complete, REPLY, REPLY]):
            reader, flags, body = read(m, *pieces)
            assert flags & (E_DONE | E_EXTRA | E_ERROR) == E_DONE | E_EXTRA
            assert body == read(m, complete)[2]
            assert (reader.status, reader.keep_alive, reader.error_reason) == (204 if not body else 200, False, "")
            with pytest.raises(RuntimeError):
                reader.expect()
    idle = m.ResponseReader()
    assert (idle.feed(b""), idle.feed(b"H"), idle.feed(b"T"), idle.started) == (0, E_EXTRA, E_EXTRA, False)
    with pytest.raises(RuntimeError):
        idle.expect()


def test_expect_while_unfinished(m: Any) -> None:
    for i in range(len(REPLY)):
        reader, _, _ = read(m, REPLY[:i])
        with pytest.raises(RuntimeError):
            reader.expect()
        assert reader.feed(REPLY[i:]) & E_DONE


@pytest.mark.parametrize("data", [REPLY, STREAM, HINTED])
def test_truncated(m: Any, data: bytes) -> None:
    final = data.index(b"HTTP/1.1 200")
    head = data.index(b"\r\n\r\n", final) + 4
    for i in range(len(data)):
        reader, flags, _ = read(m, data[:i], end=True)
        assert flags & (E_DONE | E_ERROR) == E_ERROR
        assert reader.error_reason == ("closed before the head" if i < head else "truncated body")
        assert (reader.started, bool(reader.status), reader.keep_alive) == (i > 0, i >= head, False)
        assert reader.end() == reader.feed(b"x") == 0


def test_end_when_nothing_is_awaited(m: Any) -> None:
    for reader in (m.ResponseReader(), read(m, REPLY)[0]):
        assert (reader.end(), reader.end(), reader.keep_alive, reader.error_reason) == (0, 0, False, "")
        with pytest.raises(RuntimeError):
            reader.expect()


# ------------------------------------------------------------------------------------------------------ the scenarios
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'


def test_s11_close_without_last_chunk(m: Any) -> None:
    reader, flags, body = read(m, CHUNKED, *[b"%x\r\n%s\r\n" % (len(EVENT), EVENT)] * 3)
    assert (flags, body, reader.end(), reader.error_reason) == (E_HEAD | E_BODY, EVENT * 3, E_ERROR, "truncated body")


def test_s12_truncated_chunk(m: Any) -> None:
    reader, flags, body = read(m, CHUNKED + b"64\r\n" + b"x" * 40)
    assert (flags, body, reader.end(), reader.error_reason) == (E_HEAD | E_BODY, b"x" * 40, E_ERROR, "truncated body")


def test_s13_content_length_too_large(m: Any) -> None:
    reader, flags, body = read(m, response("Content-Length: 1000", body=b"x" * 500))
    assert (flags, len(body), reader.end(), reader.error_reason) == (E_HEAD | E_BODY, 500, E_ERROR, "truncated body")


def test_s14_content_length_too_small(m: Any) -> None:
    reader, flags, body = read(m, response("Content-Length: 10", body=b"x" * 500))
    assert (flags, len(body), reader.keep_alive) == (E_HEAD | E_BODY | E_DONE | E_EXTRA, 10, False)


def test_s15_close_delimited(m: Any) -> None:
    for line in ("HTTP/1.0 200 OK", "HTTP/1.1 200 OK"):
        reader, flags, body = read(m, response("Connection: keep-alive", line=line), EVENT, EVENT)
        assert (flags, body, reader.close_delimited, reader.keep_alive) == (E_HEAD | E_BODY, EVENT * 2, True, False)
        assert (reader.end(), reader.end(), reader.feed(b"x")) == (E_DONE, 0, E_EXTRA)
        with pytest.raises(RuntimeError):
            reader.expect()


S16 = ["HELLO", "HTTP/1.1 abc", "HTTP/1.1 99999", "HTTP/1.1 2000 OK", "HTTP/1.1 20", "HTTP/1.1  200", "HTTP/1.1 099 x",
       "HTTP/1.1 600 x", "HTTP/2.0 200 OK", "HTTP/1.2 200 OK", "HTTP/1.1200 OK", "http/1.1 200 OK", " HTTP/1.1 200 OK",
       "HTTP/1.1\t200 OK", "HTTP/1.1 200\tOK", "HTTP/1.1 -20 OK", "HTTP/11 200 OK", "ICY 200 OK", "", "HTTP/1.1 2 0",
       "\r\nHTTP/1.1 200 OK", "GET / HTTP/1.1"]  # fmt: skip


@pytest.mark.parametrize("line", S16)
def test_s16_garbage_status_line(m: Any, line: str) -> None:
    refused(m, response(line=line), "invalid status line")


def test_s17_no_status_at_all(m: Any) -> None:
    refused(m, b'{"a":1}', "invalid status line")
    assert read(m, b"{")[1] == E_ERROR  # at once: the line may never end


def test_s18_informational_flood(m: Any) -> None:
    hint = response("Link: </a>", line="HTTP/1.1 103 Early Hints")
    reader, flags, body = read(m, hint * 16 + REPLY)
    assert (flags, body, reader.header(b"link")) == (E_HEAD | E_BODY | E_DONE, b"hello", None)
    refused(m, hint * 17, "too many informational responses")
    refused(m, response(line="HTTP/1.1 100 Continue") * 1000, "too many informational responses")
    refused(m, hint, "too many informational responses", max_informational=0)
    reader, _, _ = read(m, hint * 50 + REPLY, max_informational=50)
    assert reader.status == 200
    for _ in range(3):  # counted per response
        reader.expect()
        assert reader.feed(hint * 50 + REPLY) & E_DONE


def test_s19_unexpected_101(m: Any) -> None:
    refused(m, response("Upgrade: websocket", "Connection: upgrade", line="HTTP/1.1 101 x"), "unexpected 101")


def test_s20_redirect_is_a_response_like_any_other(m: Any) -> None:
    for status in (301, 302, 307, 308):
        reader, flags, _ = read(m, response("Location: http://b/", "Content-Length: 0", line=f"HTTP/1.1 {status} x"))
        assert (flags, reader.status, reader.header(b"location")) == (E_HEAD | E_DONE, status, b"http://b/")


def test_s21_body_where_none_may_be(m: Any) -> None:
    for status in (204, 304):
        for fields in ([], ["Content-Length: 2"], ["Transfer-Encoding: chunked"]):
            data = response(*fields, line=f"HTTP/1.1 {status} x")
            for pieces in ([data + b"ab"], [data, b"ab"], byte_by_byte(data + b"ab")):
                reader, flags, body = read(m, *pieces)
                assert (flags, body, reader.keep_alive) == (E_HEAD | E_DONE | E_EXTRA, b"", False)


def test_s22_huge_heads(m: Any) -> None:
    huge = response("X: " + "x" * (1 << 20))
    for step in (len(huge), 65536, 1000):
        reader, flags, _ = read(m, *(huge[i : i + step] for i in range(0, len(huge), step)))
        assert (flags, reader.error_reason) == (E_ERROR, "head too large")
    many = response(*(["A: b"] * 10_000))
    for step in (len(many), 1000):
        reader, flags, _ = read(m, *(many[i : i + step] for i in range(0, len(many), step)))
        assert (flags, reader.error_reason) == (E_ERROR, "too many header fields")


# ------------------------------------------------------------------------------------------------------------- limits
def test_limits(m: Any) -> None:
    head = len(REPLY) - 5
    for pieces in ([REPLY], byte_by_byte(REPLY), [REPLY[:9], REPLY[9:]]):
        assert read(m, *pieces, max_head=head, max_fields=3)[1] & E_DONE
    refused(m, REPLY, "head too large", max_head=head - 1)
    refused(m, REPLY, "too many header fields", max_fields=2)
    hints = response("A: b", line="HTTP/1.1 103 x") * 10  # each head has a limit of its own
    assert read(m, hints + REPLY, max_head=head, max_fields=3)[1] & E_DONE
    for i in (0, 1, 5, 12, 13):
        refused(m, REPLY, "head too large", max_head=i)


def test_no_more_than_a_head_is_awaited(m: Any) -> None:
    endless = b"HTTP/1.1 200 " + b"x" * 1000
    for i in range(1, 200):
        assert read(m, endless[:100], max_head=100)[1] == 0
        assert read(m, endless[:i], endless[i:101], max_head=100)[1] == E_ERROR


def test_limit_of_trailers(m: Any) -> None:
    trailers = b"A: b\r\n" * 10 + b"\r\n"
    last = CHUNKED + b"0\r\n" + trailers
    assert read(m, last, max_head=len(trailers))[1] & E_DONE
    refused(m, last, "trailers too large", max_head=len(trailers) - 1)


@pytest.mark.parametrize("field", [b"X-Field: " + b"v" * 51 + b"\r\n", b""], ids=["lines", "one line"])
def test_linear_byte_by_byte(m: Any, field: bytes) -> None:
    def seconds(size: int) -> float:
        fill = field * (size // len(field)) if field else b"X: " + b"v" * size + b"\r\n"
        pieces = byte_by_byte(b"HTTP/1.1 200 OK\r\n" + fill + b"Content-Length: 1\r\n\r\n.")
        best = 1e9
        for _ in range(2):
            start = time.process_time()
            assert read(m, *pieces, max_fields=2000)[1] & E_DONE
            best = min(best, time.process_time() - start)
        return best

    assert seconds(60_000) < 25 * seconds(6_000)  # linear: 10, quadratic: 100


# ------------------------------------------------------------------------------------------------- llhttp beside us
class Llhttp:
    """The first final response that llhttp finds, in its strict default."""

    def __init__(self, data: bytes) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.state, self.error, self.status = "open", "", 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.body = b""
        try:
            self.parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self.state == "open":
                self.state, self.error = "error", str(error)

    def on_message_begin(self) -> None:
        if self.state == "open":
            self.status, self.headers, self.in_head = 0, [], True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.state == "open" and self.in_head:  # trailers are none of ours
            self.headers.append((name.lower(), value.strip(b" \t")))  # httptools leaves blanks at the end

    def on_headers_complete(self) -> None:
        if self.state == "open":
            self.in_head, self.status = False, self.parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        if self.state == "open":
            self.body += body

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.state = "done"

    def seen(self) -> tuple[Any, ...]:
        if self.status < 200:
            return (0, [], b"")
        return (self.status, self.headers, self.body)


FIELDS = ["Content-Type: text/plain", "X-A:b", "X-B:\t c d \t", "Server: \xff", "X: ", "Connection: close", "x-a: 2",
          "Connection: keep-alive, x", "Date: Thu, 01 Jan 1970 00:00:00 GMT"]  # fmt: skip


def valid(rnd: random.Random) -> bytes:
    status = rnd.choice([200, 200, 200, 204, 302, 304, 404, 429, 500, 599])
    version = rnd.choice([0, 1, 1, 1])
    fields = rnd.choices(FIELDS, k=rnd.randrange(6))
    body = b"" if status in (204, 304) else bytes(rnd.choices(b"abc\r\n012", k=rnd.randrange(30)))
    kind = rnd.choice(["length", "chunks", "close"])
    tail = body
    if kind == "length":
        fields.append(f"Content-Length: {len(body)}")
    elif kind == "chunks" and version and status not in (204, 304):
        fields.append("Transfer-Encoding: chunked")
        chunks = cut(body, [rnd.randrange(len(body) + 1) for _ in range(rnd.randrange(4))])
        tail = b"".join(b"%x%s\r\n%s\r\n" % (len(c), rnd.choice([b"", b";a=b", b';a="b"']), c) for c in chunks)
        tail += b"0\r\n" + rnd.choice([b"", b"T: v\r\n"]) + b"\r\n"
    rnd.shuffle(fields)
    hints = [response("A: b", line=f"HTTP/1.1 10{rnd.choice('023')} x") for _ in range(rnd.choice([0, 0, 0, 1, 2]))]
    reason = rnd.choice([" OK", "", " ", " Not \xe9 found"])
    return b"".join(hints) + response(*fields, line=f"HTTP/1.{version} {status}{reason}", body=tail)


MUTATIONS = [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b";", b",", b"\0", b"0", b"1", b"9", b"a", b"\xff", b"\x7f",
             b"HTTP/1.1 200 OK\r\n", b"Content-Length: 5\r\n", b"Content-Length: 3\r\n", b"Connection: close\r\n",
             b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"\r\n\r\n",
             b"chunked, "]  # fmt: skip


def mutated(rnd: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rnd.randint(1, 3)):
        i = rnd.randrange(len(out) + 1)
        kind = rnd.choice(["drop", "replace", "insert", "line"])
        if kind == "line":
            i = out.find(b"\n", i) + 1
        out[i : i + (kind in ("drop", "replace"))] = b"" if kind == "drop" else rnd.choice(MUTATIONS)
    return bytes(out)


# Where we refuse and llhttp does not: our reason, and why.
STRICTER = {
    "invalid status line": "llhttp skips empty lines before it, takes 0.9 and 2.0, and 000 to 999",
    "control character in the head": "llhttp takes DEL, and any byte but CR and LF in a reason phrase",
    "unsupported Transfer-Encoding": "llhttp takes any coding; without chunked at the end it reads to the close",
    "Transfer-Encoding in HTTP/1.0": "RFC 9112 6.1: the framing is to be treated as faulty",
}
# Where llhttp refuses and we do not: its text, and why.
MORE_TOLERANT = {
    "Missing expected CR after header value": "a bare LF ends a line of a head (RFC 9112 2.2)",
    "Missing expected CR after response line": "the same",
    "Invalid response status": "the same, behind the status",
    "Invalid header value char": "the same, behind an empty value",
    "Invalid header field char": "the same, in an empty line",
    "Duplicate Content-Length": "identical ones are one (RFC 9112 6.3)",
    "Data after `Connection: close`": "what a 1xx says about the connection is not of interest",
    "Content-Length can't be present with Transfer-Encoding": "trailers are skipped",
    "Invalid character in chunk extensions": "extensions are skipped, only control characters are refused",
    "Invalid character in chunk extensions name": "the same",
    "Invalid character in chunk extensions value": "the same",
    "Invalid character in chunk extensions quoted value": "the same",
    "Invalid character in chunk extensions quote value": "the same",
}


# Where both go on and see something else: what llhttp gets wrong then.
OTHERWISE = {
    "a HTAB behind `chunked` is no blank to it (RFC 9110 5.5)": re.compile(rb"chunked\t", re.IGNORECASE),
    "1xx but 100 to 103 may have a body (RFC 9112 6.3: none)": re.compile(rb"HTTP/1.[01] 1(?!0[0-3])"),
}


def compare(m: Any, data: bytes) -> str:
    """The documented reason for which we and llhttp differ; empty when we do not."""
    reader, flags, body = read(m, data)
    state = "error" if flags & E_ERROR else "done" if flags & E_DONE else "open"
    theirs = Llhttp(data)
    if state == theirs.state == "error":
        return ""
    if state == theirs.state and (reader.status, reader.headers(), body) == theirs.seen():
        return ""
    for why, pattern in OTHERWISE.items():
        if pattern.search(data):
            return why
    if state == "error":
        assert reader.error_reason in STRICTER, (data, reader.error_reason)
        return str(reader.error_reason)
    assert theirs.state == "error", (data, state, theirs.seen())
    if reader.status == 0 and read(m, data + b"\r\n\r\n")[1] & E_ERROR:
        return "a line is judged when it ends"
    assert theirs.error in MORE_TOLERANT, (data, theirs.error)
    return theirs.error


def test_llhttp_on_valid_responses(m: Any) -> None:
    rnd = random.Random(9112)
    for _ in range(1500):
        data = valid(rnd)
        assert compare(m, data) == "", data
        pieces = cut(data, [rnd.randrange(len(data)) for _ in range(rnd.randrange(5))])
        assert outcome(m, pieces) == outcome(m, [data])


@pytest.mark.parametrize("seed", range(4))
def test_llhttp_on_mutated_responses(m: Any, seed: int) -> None:
    rnd = random.Random(seed)
    found = {compare(m, mutated(rnd, valid(rnd))) for _ in range(3000)}
    assert {"", "invalid status line", "Missing expected CR after header value"} < found


# --------------------------------------------------------------------------------------------------- the twins agree
@st.composite
def streams(draw: st.DrawFn) -> bytes:
    rnd = draw(st.randoms(use_true_random=False))
    data = b"".join(valid(rnd) for _ in range(draw(st.integers(1, 2))))
    return mutated(rnd, data) if draw(st.booleans()) else data


SMALL = st.fixed_dictionaries(
    {},
    optional={"max_head": st.integers(0, 120), "max_fields": st.integers(0, 5), "max_informational": st.integers(0, 2)},
)


@NOT_BUILT
@settings(max_examples=700, deadline=None, derandomize=True, database=None)
@given(data=streams() | st.binary(max_size=60), cuts=st.lists(st.integers(0, 300), max_size=8), limits=SMALL)
def test_twins(data: bytes, cuts: list[int], limits: dict[str, int]) -> None:
    pieces = cut(data, [x for x in cuts if x < len(data)])
    readers = [module.ResponseReader(**limits) for module in (compiled, pure)]
    for i, piece in enumerate([*pieces, b"", None]):
        rows = []
        for reader in readers:
            row: list[Any] = []
            try:
                if i % 3 == 0:
                    reader.expect()
            except RuntimeError as error:
                row.append(str(error))
            row += [reader.end() if piece is None else reader.feed(piece), reader.take_body(), reader.headers()]
            rows.append([*row, *(getattr(reader, fact) for fact in FACTS)])
        assert rows[0] == rows[1]
    assert outcome(pure, pieces, end=True, **limits) == outcome(compiled, [data], end=True, **limits)
    assert outcome(compiled, byte_by_byte(data), **limits) == outcome(compiled, [data], **limits)
