"""The framer of AWS event streams (PROTOCOLS.md section 4): compiled and pure twin under the same tests.

Every stream is fed whole, byte by byte, at random cuts, truncated and damaged; frames are made by the encoder here,
after the text of the specification, and taken from the recorded exchanges.
"""

from __future__ import annotations

import base64
import importlib
import itertools
import json
import random
import struct
import zlib
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure import eventstream as pure
from slipstream._fast._pure.eventstream import M_BROKEN, M_ERROR, M_EVENT, M_EXCEPTION, M_OTHER
from tests.harness import SHARED

try:
    compiled: ModuleType | None = importlib.import_module("slipstream._fast.eventstream")
except ImportError:
    compiled = None

NOT_BUILT = "slipstream._fast.eventstream is not built (python setup.py build_ext --inplace)"
MODULES = [pytest.param(compiled, id="compiled", marks=pytest.mark.skipif(compiled is None, reason=NOT_BUILT))]
MODULES.append(pytest.param(pure, id="pure"))
DEV = SHARED / "wire" / "dev"
PRELUDE_SUM, SIZE, FRAME_SUM, HEADERS = pure.REASONS[1:]


@pytest.fixture(params=MODULES)
def es(request: pytest.FixtureRequest) -> Any:
    return request.param


# ---- the encoder ----------------------------------------------------------------------------------------------------

WIDTHS = {0: 0, 1: 0, 2: 1, 3: 2, 4: 4, 5: 8, 8: 8, 9: 16}


def header(name: bytes, value: bytes, kind: int = 7) -> bytes:
    length = struct.pack(">H", len(value)) if kind in (6, 7) else b""
    return bytes([len(name)]) + name + bytes([kind]) + length + value


def raw(headers: bytes, payload: bytes) -> bytes:
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    body = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return body + struct.pack(">I", zlib.crc32(body))


def frame(payload: bytes = b"{}", **fields: str) -> bytes:
    """``event_type="x"`` becomes the header ``:event-type: x``."""
    names = ((b":" + name.replace("_", "-").encode(), value.encode()) for name, value in fields.items())
    return raw(b"".join(header(name, value) for name, value in names), payload)


def event(kind: str, payload: bytes = b"{}") -> bytes:
    return frame(payload, event_type=kind, content_type="application/json", message_type="event")


Row = tuple[int, str, str, str, str, str, bytes]


def row(s: Any, kind: int) -> Row:
    return (kind, s.event_type, s.message_type, s.exception_type, s.error_code, s.error_message, s.payload())


def run(s: Any, chunks: list[bytes]) -> list[Row]:
    rows = []
    for chunk in chunks:
        s.feed(chunk)
        while kind := s.next():
            rows.append(row(s, kind))
            if kind == M_BROKEN:
                return rows
    return rows


def parts(stream: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, len(stream), *(c for c in cuts if 0 < c < len(stream))})
    return [stream[i:j] for i, j in itertools.pairwise(at)]


def of_event(kind: str, payload: bytes = b"{}") -> Row:
    return (M_EVENT, kind, "event", "", "", "", payload)


THREE = event("messageStart", b'{"role":"assistant"}') + event("é" * 3, "☃".encode() * 9) + event("messageStop", b"")
THREE_ROWS = [
    of_event("messageStart", b'{"role":"assistant"}'),
    of_event("ééé", "☃".encode() * 9),
    of_event("messageStop", b""),
]

# ---- frames ---------------------------------------------------------------------------------------------------------


def test_whole_and_byte_by_byte(es: Any) -> None:  # R64
    assert run(es.EventStream(), [THREE]) == THREE_ROWS
    assert run(es.EventStream(), [THREE[i : i + 1] for i in range(len(THREE))]) == THREE_ROWS
    assert run(es.EventStream(), [b"", THREE, b""]) == THREE_ROWS


@given(cuts=st.lists(st.integers(0, len(THREE)), max_size=12))
@pytest.mark.parametrize("module", MODULES)
def test_cut_anywhere(module: Any, cuts: list[int]) -> None:
    assert run(module.EventStream(), parts(THREE, cuts)) == THREE_ROWS


def test_truncated_at_each_byte(es: Any) -> None:
    ends = [0]
    for payload in THREE_ROWS:
        size = struct.unpack_from(">I", THREE, ends[-1])[0]
        ends.append(ends[-1] + size)
        assert payload
    for k in range(len(THREE) + 1):
        s = es.EventStream()
        whole = sum(k >= end for end in ends[1:])
        assert run(s, [THREE[:k]]) == THREE_ROWS[:whole]
        assert s.pending == k - ends[whole]
        assert s.reason == ""


def test_kinds(es: Any) -> None:
    """PROTOCOLS.md 1.6: exceptions and errors; the order of the headers is not relied on (section 4)."""
    stream = (
        frame(b'{"message":"m"}', exception_type="throttlingException", message_type="exception")
        + frame(b"", error_code="InternalFailure", error_message="wörds", message_type="error")
        + frame(b"1", message_type="event", event_type="late")
        + frame(b"2", message_type="Event")
        + frame(b"3", event_type="untyped")
        + raw(b"", b"4")
    )
    assert run(es.EventStream(), [stream]) == [
        (M_EXCEPTION, "", "exception", "throttlingException", "", "", b'{"message":"m"}'),
        (M_ERROR, "", "error", "", "InternalFailure", "wörds", b""),
        (M_EVENT, "late", "event", "", "", "", b"1"),
        (M_OTHER, "", "Event", "", "", "", b"2"),
        (M_OTHER, "untyped", "", "", "", "", b"3"),
        (M_OTHER, "", "", "", "", "", b"4"),
    ]


def test_all_types_of_headers_are_stepped_over(es: Any) -> None:
    others = b"".join(header(b"h%d" % kind, b"\xff" * width, kind) for kind, width in WIDTHS.items())
    others += header(b"bytes", b"\x00" * 300, 6) + header(b"h" * 255, b"v" * 65_535) + header(b":event-typo", b"")
    stream = raw(others + header(b":message-type", b"event") + header(b":event-type", b"\xc3("), b"x")
    assert run(es.EventStream(), [stream]) == [of_event("�(", b"x")]
    as_bytes = header(b":message-type", b"event", 6) + header(b":event-type", b"", 0)
    assert run(es.EventStream(), [raw(as_bytes, b"x")]) == [(M_OTHER, "", "", "", "", "", b"x")]


def test_the_current_frame_is_forgotten_by_feed(es: Any) -> None:
    s = es.EventStream()
    assert run(s, [THREE])
    assert row(s, 0)[1] == "messageStop"
    s.feed(b"")
    assert row(s, 0) == (0, "", "", "", "", "", b"")


# ---- what is broken -------------------------------------------------------------------------------------------------


def broken(es: Any, stream: bytes, **limits: int) -> str:
    s = es.EventStream(**limits)
    rows = run(s, [stream])
    assert rows[-1] == (M_BROKEN, "", "", "", "", "", b"")
    assert s.next() == M_BROKEN
    s.feed(THREE)
    assert s.next() == M_BROKEN, "a broken stream stays broken"
    one_by_one = es.EventStream(**limits)
    assert run(one_by_one, [stream[i : i + 1] for i in range(len(stream))]) == rows
    assert one_by_one.reason == s.reason
    return str(s.reason)


def prelude(total: int, headers: int) -> bytes:
    start = struct.pack(">II", total, headers)
    return start + struct.pack(">I", zlib.crc32(start))


def test_any_bit_that_flips_is_seen(es: Any) -> None:
    """#d-prelude-crc, #d-payload-bit."""
    whole = event("contentBlockDelta", b'{"delta":{"text":"hi"}}')
    for at in range(len(whole)):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << at % 8
        assert broken(es, bytes(damaged)) == (PRELUDE_SUM if at < 12 else FRAME_SUM)


def test_sizes_are_bounded_before_anything_is_kept(es: Any) -> None:
    for total, headers in ((0, 0), (15, 0), (16, 1), (40, 25), (2**32 - 1, 0), (pure.MAX_FRAME + 1, 0)):
        assert broken(es, prelude(total, headers)) == SIZE, (total, headers)
    assert broken(es, prelude(1 << 20, pure.MAX_HEADERS + 1)) == SIZE
    assert broken(es, event("x", b"y" * 100), max_frame=150) == SIZE
    s = es.EventStream()
    s.feed(prelude(pure.MAX_FRAME, pure.MAX_HEADERS))
    assert s.next() == 0
    with pytest.raises(ValueError, match="max_frame"):
        es.EventStream(max_frame=15)


@pytest.mark.parametrize(
    "headers",
    [
        b"\x00\x07\x00\x01v",
        b"\x01",
        b"\x01a",
        b"\x05a\x07\x00\x01v",
        b"\x01a\x07",
        b"\x01a\x07\x00",
        b"\x01a\x07\x00\x02v",
        b"\x01a\x0a",
        b"\x01a\xff\x00\x01v",
        b"\x01a\x09" + b"u" * 15,
        header(b":event-type", b"a") * 2,
    ],
)
def test_headers_that_are_none(es: Any, headers: bytes) -> None:
    assert broken(es, raw(headers, b"payload")) == HEADERS
    assert broken(es, event("first") + raw(headers, b"")) == HEADERS


def test_wrong_arguments(es: Any) -> None:
    for wrong in ("text", None, bytearray(b"x")):
        with pytest.raises(TypeError, match="bytes wanted"):
            es.EventStream().feed(wrong)


# ---- against each other ---------------------------------------------------------------------------------------------

names = st.sampled_from([b":event-type", b":message-type", b":exception-type", b":error-code", b":x", b"x" * 40])
strings = st.builds(header, names, st.sampled_from([b"event", b"exception", b"error", b"", b"\xff", b"v" * 300]))
others = st.sampled_from([header(b"n", b"\x01" * width, kind) for kind, width in WIDTHS.items()])
frames = st.builds(raw, st.lists(strings | others, max_size=4).map(b"".join), st.binary(max_size=60))


@settings(max_examples=150)
@given(st.lists(frames, max_size=6).map(b"".join), st.lists(st.integers(0, 900), max_size=8), st.data())
def test_both_are_the_same(stream: bytes, cuts: list[int], data: st.DataObject) -> None:
    if compiled is None:
        pytest.skip(NOT_BUILT)
    if stream and data.draw(st.booleans()):
        damaged = bytearray(stream)
        damaged[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
        stream = bytes(damaged)
    one, two = compiled.EventStream(), pure.EventStream()
    chunks = parts(stream, cuts)
    assert run(one, chunks) == run(two, chunks)
    assert (one.pending, one.reason) == (two.pending, two.reason)


@pytest.mark.parametrize("size", [0, 1, 7, 8, 9, 15, 16, 17, 4095, 100_000])
def test_checksums_of_all_lengths(es: Any, size: int) -> None:
    payload = random.Random(size).randbytes(size)
    assert run(es.EventStream(), [event("x", payload)]) == [of_event("x", payload)]


def test_a_large_frame_in_small_pieces_is_not_quadratic(es: Any) -> None:
    stream = event("x", bytes(1 << 20)) * 2
    s = es.EventStream()
    assert len(run(s, [stream[i : i + 97] for i in range(0, len(stream), 97)])) == 2
    assert s.pending == 0


# ---- recorded -------------------------------------------------------------------------------------------------------


def recorded() -> list[Any]:
    found = []
    for path in sorted(DEV.glob("bedrock.*.json")) if DEV.is_dir() else []:
        exchange = json.loads(path.read_text(encoding="utf-8"))
        if "eventstream" in exchange["response"]["headers"].get("content-type", ""):
            found.append(pytest.param(base64.b64decode(exchange["response"]["body_base64"]), id=exchange["id"]))
    return found


@pytest.mark.skipif(not DEV.is_dir(), reason=f"no recorded exchanges in {DEV}")
@pytest.mark.parametrize("body", recorded())
def test_recorded(es: Any, body: bytes, request: pytest.FixtureRequest) -> None:
    whole, single = es.EventStream(), es.EventStream()
    rows = run(whole, [body])
    assert run(single, [body[i : i + 1] for i in range(len(body))]) == rows
    damaged = "bad-frames" in request.node.callspec.id
    assert (rows[-1][0] == M_BROKEN or whole.pending > 0) == damaged
