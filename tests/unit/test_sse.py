"""The framer of event streams: compiled and pure twin under the same tests, and against a parser written here.

Every stream is fed whole, byte by byte, at random cuts, and truncated at each byte.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import os
import random
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._errors import SseLimitError
from slipstream._fast._pure import jsonreply as pure_reply
from slipstream._fast._pure import sse as pure
from slipstream._fast._pure.sse import (
    F_COMMENT,
    F_DATA,
    F_ERROR_FIELD,
    F_EVENT,
    F_ID,
    F_MULTI,
    F_RETRY,
    F_STRAY,
)
from tests.pace import soon

try:
    compiled: ModuleType | None = importlib.import_module("slipstream._fast.sse")
except ImportError:
    compiled = None

NOT_BUILT = "slipstream._fast.sse is not built (python setup.py build_ext --inplace)"
MODULES = [pytest.param(compiled, id="compiled", marks=pytest.mark.skipif(compiled is None, reason=NOT_BUILT))]
MODULES.append(pytest.param(pure, id="pure"))
DONE = 0x100
BOM = b"\xef\xbb\xbf"


@pytest.fixture(params=MODULES)
def sse(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---- a plain parser after the text of WHATWG HTML 9.2.6, plus our four flags ----------------------------------------


@dataclass
class Block:
    flags: int = 0
    data: list[bytes] = field(default_factory=list)
    event: bytes = b""
    id: bytes = b""  # last event id at its end
    retry: int = -1
    error: bytes | None = None
    stray: bytes = b""


def reference(stream: bytes) -> list[Block]:
    """Parses a whole stream; an unfinished block is discarded."""
    lines = re.split(rb"\r\n|\n|\r", stream.removeprefix(BOM))[:-1]
    blocks, b, last_id, retry = [], Block(), b"", -1
    for line in lines:
        if line == b"":  # "If the line is empty: dispatch the event"
            b.id, b.retry = last_id, retry
            blocks.append(b)
            b = Block()
            continue
        if line.startswith(b":"):  # "If the line starts with a U+003A COLON character: ignore the line"
            b.flags |= F_COMMENT
            continue
        name, value = line, b""
        if b":" in line:
            at = line.index(b":")
            name, value = line[:at], line[at + 1 :]
            if value[:1] == b" ":
                value = value[1:]
        if name == b"event":
            b.event = value
            b.flags |= F_EVENT
        elif name == b"data":
            b.flags |= F_DATA
            if b.data:
                b.flags |= F_MULTI
            b.data.append(value)
        elif name == b"id":
            if 0 not in value:
                last_id = value
                b.flags |= F_ID
        elif name == b"retry":
            if value and all(c in b"0123456789" for c in value):
                retry = min(int(value), 2**53 - 1)
                b.flags |= F_RETRY
        elif name == b"error":
            b.flags |= F_ERROR_FIELD
            b.error = value if b.error is None else b.error
        elif not all(c in b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_" for c in name):
            b.stray = b.stray if b.flags & F_STRAY else line[:4096]
            b.flags |= F_STRAY
    return blocks


Row = tuple[int, bytes, str, str, int, bytes, bytes]


def expected(stream: bytes) -> list[Row]:
    return [
        (
            b.flags | DONE,
            b"\n".join(b.data),
            b.event.decode("utf-8", "replace"),
            b.id.decode("utf-8", "replace"),
            b.retry,
            b.error or b"",
            b.stray,
        )
        for b in reference(stream)
    ]


def row(f: Any, flags: int) -> Row:
    return (flags, f.data(), f.event(), f.id(), f.retry, f.error_field(), f.stray())


def parts(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(c for c in cuts if 0 < c < len(stream))})
    return [stream[i:j] for i, j in itertools.pairwise(at)]


def run(f: Any, chunks: list[bytes]) -> tuple[list[Row], list[bytes]]:
    rows, raws = [], []
    for chunk in chunks:
        f.feed(chunk)
        while flags := f.next():
            rows.append(row(f, flags))
            raws.append(f.slice(f.start, f.end))
    return rows, raws


def one(sse: Any, stream: bytes, **kw: int) -> Any:
    """A framer whose current block is the only one of the stream."""
    f = sse.SseFramer(**kw)
    f.feed(stream)
    assert f.next()
    return f


# ---- the corpus -----------------------------------------------------------------------------------------------------


FOREIGN = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the corpus loader does not close


def load_checker() -> ModuleType:
    shared = Path(os.environ.get("SLIPSTREAM_SHARED") or Path(__file__).parents[3] / "shared")
    path = shared / "hostile" / "sse_ref.py"
    if not path.is_file():
        pytest.skip(f"no corpus: {path} is absent (set SLIPSTREAM_SHARED)")
    spec = importlib.util.spec_from_file_location("sse_ref", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@FOREIGN
def test_corpus(sse: Any) -> None:
    class Adapter:
        def __init__(self) -> None:
            self.f = sse.SseFramer()

        def feed(self, chunk: bytes) -> list[dict[str, str]]:
            f, out = self.f, []
            f.feed(chunk)
            while flags := f.next():
                if flags & F_DATA:
                    data = f.data().decode("utf-8", "replace")
                    out.append({"event": f.event() or "message", "data": data, "id": f.id()})
            return out

        def close(self) -> list[dict[str, str]]:
            return []

    checker = load_checker()
    assert any(True for _ in checker.load()), "the corpus is empty"
    assert checker.check(Adapter, quiet=False) == 0


@FOREIGN
def test_corpus_raw_and_truncated(sse: Any) -> None:
    rng = random.Random(1)
    for case in load_checker().load():
        stream: bytes = case["bytes"]
        for k in range(len(stream)) if len(stream) < 400 else [rng.randrange(len(stream)) for _ in range(3)]:
            f = sse.SseFramer()
            rows, raws = run(f, [stream[:k]])
            assert rows == expected(stream[:k]), case["name"]
            assert b"".join(raws) + f.rest() in (stream[:k], stream[3:k]), case["name"]


# ---- cuts -----------------------------------------------------------------------------------------------------------

STREAMS = {
    "lf": b"event: a\ndata: 1\ndata:2\n\n: ping\n\nid: 7\ndata\n\nretry: 10\n\n",
    "crlf": b"event: a\r\ndata: 1\r\ndata:2\r\n\r\n: ping\r\n\r\nid: 7\r\ndata\r\n\r\n",
    "cr": b"event: a\rdata: 1\rdata:2\r\r: ping\r\rid: 7\rdata\r\r",
    "mixed": b"data: x\r\ndata: y\rdata: z\n\r\ndata: u\n\rdata: v\r\r\n\n\r\n\r",
    "bom": BOM + b"data: 1\n\n" + BOM + b"data: 2\n\n",
    "utf8": "data: é…👩‍👩‍👧\u2028\u0085\x0b\x0c\u2029\n\nevent: 我\ndata: x\n\n".encode(),
    "bare json": b'data: {}\n\n{\n  "error": {\n    "code": 429\n  }\n}\n',
    "blank first": b"\n\r\n\r\r\n\ndata: x\n\n\n\n",
    "nul": b"id: a\0b\nda\0ta: x\ndata:\0\n\nid: 3\n\ndata\n\nid\ndata\n\n",
    "no end": b"data: 1\n\ndata: [DONE]",
    "bad utf8": b"data: a\xffb\xc3\ndata: \xa9\nevent: \xe2\x80\n\n",
    "bad bom": b"\xef\xbbdata: 1\n\ndata: 2\n\n",
}


@pytest.mark.parametrize("name", STREAMS)
def test_cuts(sse: Any, name: str) -> None:
    stream = STREAMS[name]
    want = expected(stream)
    assert run(sse.SseFramer(), [stream])[0] == want
    assert run(sse.SseFramer(), [stream[i : i + 1] for i in range(len(stream))])[0] == want
    for k in range(1, len(stream)):
        assert run(sse.SseFramer(), [stream[:k], b"", stream[k:]])[0] == want, k


@pytest.mark.parametrize("name", STREAMS)
def test_truncated_at_each_byte_and_flushed(sse: Any, name: str) -> None:
    stream = STREAMS[name]
    for k in range(len(stream) + 1):
        prefix = stream[:k]
        for chunks in ([prefix], [prefix[i : i + 1] for i in range(k)]):
            f = sse.SseFramer()
            rows, _ = run(f, chunks)
            assert rows == expected(prefix)
            rest = f.rest()
            flags = f.flush()
            if rest.strip():
                closed = expected(prefix + b"\n\n")
                assert row(f, flags) == closed[len(rows)]
                assert f.slice(f.start, f.end) == rest
                assert (f.pending, f.rest()) == (0, b"")
            else:
                assert flags == 0
                assert f.rest() == rest
            assert f.flush() == 0
            assert f.next() == 0


# ---- Hypothesis -----------------------------------------------------------------------------------------------------

NAMES = [b"data"] * 5 + [b"event", b"id", b"retry", b"error", b"", b"", b"dat", b"datas", b"Data", b"x-y_1", b" data"]
NAMES += [b"data ", b"{", b'  "error"', b"<html>", BOM, b"\xff", b"d\0", "é".encode()]
text = st.text("ab: \t\0{}é…👩\ufeff\u2028\u2029\u0085\x0b\x0c019", max_size=8).map(str.encode)
value = st.one_of(
    text, st.sampled_from([b"10", b"0", b"99999999999999999999", b"[DONE]", b"1a", "\u0661".encode(), b""])
)
value = st.one_of(value, st.binary(max_size=4))
line = st.builds(
    bytes.__add__, st.sampled_from(NAMES), st.builds(bytes.__add__, st.sampled_from([b":", b": ", b":  ", b""]), value)
)
line_end = st.sampled_from([b"\n", b"\n", b"\n\n", b"\n\n", b"\r\n", b"\r\n\r\n", b"\r", b"\r\r", b"\n\r", b"\r\n\n\r"])
streams = st.builds(
    lambda bom, body, tail: bom + b"".join(a + b for a, b in body) + tail,
    st.sampled_from([b"", b"", BOM, BOM + BOM, BOM[:2], BOM[:1], b"\n"]),
    st.lists(st.tuples(line, line_end), max_size=12),
    st.one_of(line, st.just(b"")),
)
cut_lists = st.lists(st.integers(1, 160), max_size=12)


@pytest.mark.parametrize("module", MODULES)
@settings(max_examples=300, deadline=None)
@given(stream=streams, cuts=cut_lists)
def test_random_streams(module: Any, stream: bytes, cuts: list[int]) -> None:
    f = module.SseFramer()
    want = expected(stream)
    rows, raws = run(f, parts(stream, cuts))
    assert rows == want
    assert f.events == sum(bool(r[0] & F_DATA) for r in rows)
    whole = run(module.SseFramer(), [stream])[0]
    assert whole == want
    # raw spans: what is missing is the BOM, or an LF that completed the CRLF of an ended block across a cut
    at = 3 if stream.startswith(BOM) else 0
    for raw in [*raws, f.rest()]:
        if stream[at - 1 : at + 1] == b"\r\n" and at in cuts:
            at += 1
        assert stream[at : at + len(raw)] == raw
        at += len(raw)
    assert at == len(stream)
    # ... and they say the same again
    if not b"".join(raws).startswith(BOM):
        again = run(module.SseFramer(), [b"".join(raws)])[0]
        assert [r for r in again if r[0] & F_DATA] == [r for r in rows if r[0] & F_DATA]


@pytest.mark.skipif(compiled is None, reason=NOT_BUILT)
@settings(max_examples=400, deadline=None)
@given(
    stream=streams,
    cuts=cut_lists,
    calls=st.lists(st.integers(0, 4), max_size=14),
    limit=st.sampled_from([1 << 20, 9, 40]),
)
def test_compiled_is_pure(stream: bytes, cuts: list[int], calls: list[int], limit: int) -> None:
    """Everything that can be seen, offsets included, also when fed early and after a limit was hit."""
    assert compiled is not None
    twins = [compiled.SseFramer(limit), pure.SseFramer(limit)]

    def seen(f: Any, step: str, *args: bytes) -> list[Any]:
        try:
            got = getattr(f, step)(*args)
        except SseLimitError as e:
            got = str(e)
        spans = [f.start, f.end, f.slice(f.start, f.end), f.pending, f.rest(), f.events]
        return [got, *row(f, 0), *spans]

    for chunk, n in itertools.zip_longest(parts(stream, cuts), calls):
        a, b = (seen(f, "feed", chunk or b"") for f in twins)
        assert a == b
        for _ in range(9999 if n is None else n):
            a, b = (seen(f, "next") for f in twins)
            assert a == b
            if not a[0] or isinstance(a[0], str):
                break
    for _ in range(200):
        a, b = (seen(f, "flush") for f in twins)
        assert a == b
        if not a[0] or isinstance(a[0], str):
            break
    if not isinstance(a[0], str):
        assert twins[0].events == sum(bool(r[0] & F_DATA) for r in expected(stream + b"\n\n"))


# ---- fields ---------------------------------------------------------------------------------------------------------


def test_flags(sse: Any) -> None:
    names = {n: getattr(sse, n) for n in dir(sse) if n.startswith("F_")}
    assert names.pop("F_LIMIT") == 0x200
    assert names == {
        "F_DATA": 1,
        "F_MULTI": 2,
        "F_EVENT": 4,
        "F_STRAY": 8,
        "F_ERROR_FIELD": 16,
        "F_ID": 32,
        "F_RETRY": 64,
        "F_COMMENT": 128,
    }
    f = sse.SseFramer()
    f.feed(b":c\nevent:e\nid:1\nretry:2\nerror:x\n{\ndata\ndata\n\n")
    assert f.next() == 0x1FF
    assert row(f, 0) == (0, b"\n", "e", "1", 2, b"x", b"{")
    assert f.next() == 0
    assert f.data() == b"\n", "the block stays current until feed()"
    f.feed(b"")
    assert (f.data(), f.event(), f.error_field(), f.stray(), f.start, f.end) == (b"", "", b"", b"", 0, 0)
    assert (f.id(), f.retry, f.events) == ("1", 2, 1)


def test_every_block_counts(sse: Any) -> None:
    f = sse.SseFramer()
    f.feed(b": ping\n\nevent: e\n\n\ndata\n\n")
    assert [f.next() for _ in range(5)] == [DONE | F_COMMENT, DONE | F_EVENT, DONE, DONE | F_DATA, 0]
    assert f.events == 1


def test_id_is_that_of_complete_blocks(sse: Any) -> None:
    f = sse.SseFramer()
    f.feed(b"id: 1\ndata: a\n\nid: 2\n")
    assert f.next() == DONE | F_DATA | F_ID
    assert f.next() == 0
    assert f.id() == "1"
    f.feed(b"id: x\0\n\n")
    assert f.next() == DONE | F_ID
    assert f.id() == "2"
    f.feed(b"id\n\n")
    assert f.next() == DONE | F_ID
    assert f.id() == ""


@pytest.mark.parametrize(
    ("text", "want"),
    [
        (b"0", 0),
        (b"0003000", 3000),
        (b"9007199254740991", 2**53 - 1),
        (b"9" * 5000, 2**53 - 1),
        (b"0" * 5000 + b"7", 7),
        (b"", -1),
        (b" 1", -1),
        (b"+1", -1),
        (b"1 ", -1),
        ("\u0661".encode(), -1),
    ],
)
def test_retry(sse: Any, text: bytes, want: int) -> None:
    f = one(sse, b"retry: " + text + b"\n\n")
    assert f.retry == want


def test_error_field(sse: Any) -> None:
    """llama-box: ``error: {...}`` instead of data; and an event named error is another thing."""
    f = one(sse, b'error: {"code":500}\nerror: second\n\n')
    assert f.error_field() == b'{"code":500}'
    assert f.data() == b""
    f = one(sse, b"event: error\ndata: {}\n\n")
    assert f.error_field() == b""
    f = one(sse, b"error\n\n")
    assert (f.error_field(), f.stray()) == (b"", b"")
    assert f.flush() == 0


@pytest.mark.parametrize(
    "line", [b'{"error":1}', b"  }", b"<html>", b"]", b"data : x", b"\xef\xbb\xbfdata: x", b" ", b"a.b: 1"]
)
def test_stray(sse: Any, line: bytes) -> None:
    f = sse.SseFramer()
    f.feed(b"data: x\n" + line + b"\n[second]\n\n")
    assert f.next() == DONE | F_DATA | F_STRAY
    assert f.stray() == line
    assert f.data() == b"x"


@pytest.mark.parametrize("line", [b"foo: bar", b"foo", b"X-Y_z-09:", b"Data: x", b":{", b": <html>", b"DONE"])
def test_not_stray(sse: Any, line: bytes) -> None:
    assert one(sse, line + b"\n\n").stray() == b""


def test_stray_is_bounded(sse: Any) -> None:
    assert one(sse, b"<" * 10_000 + b"\n\n").stray() == b"<" * 4096


def test_bare_json_error_without_blank_line(sse: Any) -> None:
    body = b'{\n  "error": {\n    "code": 429\n  }\n}\n'
    f = sse.SseFramer()
    f.feed(body)
    assert f.next() == 0
    assert f.flush() == DONE | F_STRAY
    assert f.stray() == b"{"
    assert f.slice(f.start, f.end) == body


# ---- raw spans ------------------------------------------------------------------------------------------------------


def test_slice_of_the_whole_chunk_is_the_chunk(sse: Any) -> None:
    f = sse.SseFramer()
    chunk = b"data: 1\n\ndata: 2\n\n"
    f.feed(chunk)
    assert f.next()
    first = f.start
    assert f.next()
    assert f.slice(first, f.end) is chunk
    assert f.slice(0, 9) == b"data: 1\n\n"
    assert (f.pending, f.rest()) == (0, b"")
    f.feed(b"data: 3")
    assert f.next() == 0
    f.feed(b"\n\n")
    assert f.next()
    assert f.slice(f.start, f.end) == b"data: 3\n\n"
    f.feed(chunk)
    assert f.next()
    assert f.next()
    assert f.slice(0, len(chunk)) is chunk, "back to working on the chunk itself"
    tail = bytes(bytearray(b"data: 4"))
    f.feed(tail)
    assert f.next() == 0
    assert f.rest() is tail


def test_slice_bounds(sse: Any) -> None:
    f = sse.SseFramer()
    assert (f.slice(0, 0), f.rest(), f.pending, f.next(), f.flush()) == (b"", b"", 0, 0, 0)
    f.feed(b"abc")
    for start, end in ((-1, 2), (2, 1), (0, 4)):
        with pytest.raises(ValueError, match="span"):
            f.slice(start, end)


def test_lf_of_a_split_crlf(sse: Any) -> None:
    f = sse.SseFramer()
    f.feed(b"data: 1\r")
    assert f.next() == 0
    f.feed(b"\n\r")
    assert f.next() == DONE | F_DATA, "a CR at the end of a chunk ends the line at once"
    assert f.slice(f.start, f.end) == b"data: 1\r\n\r"
    f.feed(b"\n")
    assert (f.next(), f.pending) == (0, 0)
    f.feed(b"\n")
    assert f.next() == DONE, "only one LF belongs to the CR"


@pytest.mark.parametrize("bad", ["data", bytearray(b"x"), memoryview(b"x"), None, 1])
def test_only_bytes(sse: Any, bad: Any) -> None:
    with pytest.raises(TypeError):
        sse.SseFramer().feed(bad)


# ---- flush ----------------------------------------------------------------------------------------------------------


def test_flush_reports_complete_blocks_first(sse: Any) -> None:
    f = sse.SseFramer()
    f.feed(b"data: 1\n\ndata: 2\n\ndata: a\ndata: b")
    got = []
    while flags := f.flush():
        got.append((flags & ~DONE, f.data()))
    assert got == [(F_DATA, b"1"), (F_DATA, b"2"), (F_DATA | F_MULTI, b"a\nb")]
    assert f.events == 3
    f.feed(b"data: 4\n\n")
    assert f.next()
    assert f.data() == b"4"


@pytest.mark.parametrize("rest", [b"", b" ", b"\t \n ", BOM, BOM + b" ", b" \r"])
def test_flush_of_white_space(sse: Any, rest: bytes) -> None:
    f = sse.SseFramer()
    f.feed(rest)
    assert (f.next(), f.flush(), f.flush()) == (0, 0, 0)


def test_flush_of_a_part_of_a_bom(sse: Any) -> None:
    f = sse.SseFramer()
    f.feed(BOM[:2])
    assert (f.next(), f.pending) == (0, 2)
    assert f.flush() == DONE | F_STRAY
    assert f.stray() == BOM[:2]


# ---- limits and memory ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_limit(sse: Any, step: int) -> None:
    fits = b"data: " + b"x" * 92 + b"\n\n"
    stream = fits + b"data: x" + fits[6:]
    f = sse.SseFramer(max_event=100)
    with pytest.raises(SseLimitError, match="100 bytes"):
        run(f, [stream[i : i + step] for i in range(0, len(stream), step)])
    assert f.events == 1
    for call in (f.next, f.flush, lambda: f.feed(b"\n\n")):
        with pytest.raises(SseLimitError):
            call()


def test_limit_of_an_unfinished_event(sse: Any) -> None:
    f = sse.SseFramer(max_event=100)
    f.feed(b"data: " + b"x" * 95)
    with pytest.raises(SseLimitError):
        f.next()
    for bad in (0, -1):
        with pytest.raises(ValueError, match="positive"):
            sse.SseFramer(bad)


@pytest.mark.parametrize("step", [997, 65_536, 4 << 20])
def test_a_large_comment_does_not_count(sse: Any, step: int) -> None:
    comment = b": " + "é…👩".encode() * 120_000
    event = b"event: e\ndata: x\n\n"
    stream = b"data: 1\n" + comment + b"\r\n" + event
    f = sse.SseFramer(max_event=100)
    largest, raws = 0, []
    for i in range(0, len(stream), step):
        f.feed(stream[i : i + step])
        while flags := f.next():
            assert flags == DONE | F_DATA | F_MULTI | F_EVENT | F_COMMENT
            assert (f.data(), f.event()) == (b"1\nx", "e")
            raws.append(f.slice(f.start, f.end))
        largest = max(largest, f.pending)
    assert len(raws) == 1
    raws[0].decode()  # cut between characters
    assert raws[0].startswith(stream[:60_000])
    assert raws[0].endswith(b"\r\n" + event)
    if step < len(stream):
        assert len(raws[0]) <= 65_536 + step + 100
        assert largest <= 65_536 + step + 100
    else:
        assert raws[0] is stream


def test_comments_without_end_are_bounded(sse: Any) -> None:
    f = sse.SseFramer(max_event=100)
    comments = (b": " + b"x" * 61 + b"\n") * 4096
    with pytest.raises(SseLimitError):
        run(f, [comments] * 40)
    assert f.pending > 8 << 20
    assert f.pending < 9 << 20


# ---- no quadratic behaviour: each bound is far above the linear time and far below the quadratic one -----------------


def cpu_s(call: Any) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def test_20000_lines_in_one_event(sse: Any) -> None:
    lines = b"".join(b"data: %d\n" % i for i in range(20_000)) + b"\n"
    want = b"\n".join(b"%d" % i for i in range(20_000))
    for step in (len(lines), 1000):
        f = sse.SseFramer()

        def go(f: Any = f, step: int = step) -> None:
            rows, _ = run(f, [lines[i : i + step] for i in range(0, len(lines), step)])
            assert [r[1] for r in rows] == [want]

        assert soon(cpu_s(go), 0.1 if sse is compiled else 1)


def test_a_large_line_byte_by_byte(sse: Any) -> None:
    n = (1 << 20) if sse is compiled else 1 << 17
    stream = b"data: " + b"x" * n + b"\n\n"
    chunks = [stream[i : i + 1] for i in range(len(stream))]
    f = sse.SseFramer()

    def go() -> None:
        rows, raws = run(f, chunks)
        assert [len(r[1]) for r in rows] == [n]
        assert raws == [stream]

    assert soon(cpu_s(go), 3)


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\n"])
def test_many_small_blocks_in_one_chunk(sse: Any, end: bytes) -> None:
    """A CR-only stream must not look for an LF to the end of the chunk at every line, nor the other way round."""
    n = 20_000
    stream = (b"data: x" + end * 2) * n
    f = sse.SseFramer()
    f.feed(stream)

    def go() -> None:
        while f.next():
            pass

    assert soon(cpu_s(go), 2)
    assert (f.events, f.pending) == (n, 0)


def test_a_backlog_fed_early(sse: Any) -> None:
    """One next() per feed, several events per feed: the backlog grows, the work per byte does not."""
    f = sse.SseFramer()
    chunk = b"data: 0123456789\n\n" * 4
    n = 3000

    def go() -> None:
        for _ in range(n):
            f.feed(chunk)
            assert f.next()
        while f.next():
            pass

    assert soon(cpu_s(go), 3)
    assert f.events == 4 * n


# ---- runs of ordinary blocks -----------------------------------------------------------------------------------------

PLAIN = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
QUIET = b'data: {"choices":[{"delta":{"role":"assistant"}}]}\n\n'
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
OTHERS = [
    b"data: [DONE]\n\n",
    b'data: {"error":{"message":"no"}}\n\n',
    b'data: {"choices":[],"usage":{"prompt_tokens":1}}\n\n',
    b"data: {broken\n\n",
    b'data: {"choices":[]}\ndata: \n\n',
    b"id: 7\n" + PLAIN,
    b"retry: 7\n" + PLAIN,
    b"<html>\n\n",
    b"error: {}\n\n",
    b"event: x\n\n",
]


def look_for(sse: Any) -> Any:
    return (pure_reply if sse is pure else importlib.import_module("slipstream._fast.jsonreply")).ReplyScan()


@pytest.mark.parametrize("other", OTHERS)
def test_ordinary_walks_up_to_what_needs_a_look(sse: Any, other: bytes) -> None:
    framer, look = sse.SseFramer(), look_for(sse)
    before = b": hi\n\n" + QUIET + PLAIN + FINISH
    framer.feed(before + other + PLAIN)
    assert framer.ordinary(look)
    assert framer.slice(framer.run_start, framer.run_end) == before
    assert (framer.run_content, framer.run_finish) == (1, 1)
    assert framer.slice(framer.start, framer.end) == other
    assert framer.ordinary(look) == 0
    assert framer.slice(framer.run_start, framer.run_end) == PLAIN
    assert framer.ordinary(look) == 0
    assert (framer.run_start, framer.run_content) == (-1, 0)


def test_ordinary_tells_of_a_limit_behind_what_was_good(sse: Any) -> None:
    framer, look = sse.SseFramer(60), look_for(sse)
    framer.feed(PLAIN + b"data: " + b"x" * 100)
    assert framer.ordinary(look) == sse.F_LIMIT
    assert framer.slice(framer.run_start, framer.run_end) == PLAIN
    assert framer.ordinary(look) == sse.F_LIMIT


@given(st.lists(st.sampled_from([PLAIN, QUIET, FINISH, b": c\r\n\r\n", *OTHERS]), max_size=12), st.data())
def test_ordinary_is_next_with_fewer_calls(blocks: list[bytes], data: Any) -> None:
    """Both twins, at random cuts: the same blocks, in the same order, none lost and none twice. The LF of a CRLF that
    was cut in two belongs to no block (``SseFramer.end``): then the CR alone ends it.
    """
    stream = b"".join(blocks)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    for sse in filter(None, (pure, compiled)):
        framer, look, seen, events = sse.SseFramer(), look_for(sse), b"", 0
        for chunk in (stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)):
            framer.feed(chunk)
            while True:
                flags = framer.ordinary(look)
                if framer.run_start >= 0:
                    seen += framer.slice(framer.run_start, framer.run_end)
                if not flags:
                    break
                seen += framer.slice(framer.start, framer.end)
            events = framer.events
        assert seen.replace(b"\r\n", b"\n").replace(b"\r", b"\n") == stream.replace(b"\r\n", b"\n")
        assert events == sum(b"data" in block for block in blocks)
