"""jsonscan and jsonreply, compiled and pure: against the json module as a strict oracle, against each other, and
against the corpora of ../shared (or $SLIPSTREAM_SHARED) when they are there.

The rule: every test runs on both twins, and whatever they answer (spans, flags, error texts, offsets) is the same.
"""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from slipstream._fast import jsonreply as fast_reply
from slipstream._fast import jsonscan as fast
from slipstream._fast._errors import JsonError
from slipstream._fast._pure import jsonreply as pure_reply
from slipstream._fast._pure import jsonscan as pure

SHARED = Path(os.environ.get("SLIPSTREAM_SHARED") or Path(__file__).resolve().parents[3] / "shared")
KEYS = pure.KEYS
BOM = b"\xef\xbb\xbf"

both = pytest.mark.parametrize("twin", [fast, pure], ids=["compiled", "pure"])
both_replies = pytest.mark.parametrize("twin", [fast_reply, pure_reply], ids=["compiled", "pure"])
# No deadline: a busy machine is no finding. derandomize: a run in CI is the same each time.
fuzz = settings(deadline=None, derandomize=True, max_examples=200, suppress_health_check=[HealthCheck.too_slow])

REPLY_FIELDS = (
    "n_choices", "n_finish", "error_start", "error_end", "usage_start", "usage_end", "finish_start", "finish_end",
    "model_start", "model_end", "id_start", "id_end", "pos",
)  # fmt: skip
REQUEST_FIELDS = (
    "body_open", "body_close", "n_keys", "duplicates", "include_usage", "include_usage_start", "include_usage_end",
    "options_open", "options_keys",
)  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- helpers


def request_outcome(twin: ModuleType, body: bytes, max_depth: int = 128) -> tuple[Any, ...]:
    """All that a twin says about a body."""
    try:
        scan = twin.scan_request(body, max_depth)
    except JsonError as fault:
        return ("error", fault.reason, fault.pos)
    spans = [(scan.kind(k), scan.start(k), scan.end(k), scan.key_start(k), scan.key_end(k)) for k in range(len(KEYS))]
    return (*(getattr(scan, name) for name in REQUEST_FIELDS), *spans)


def reply_outcome(twin: ModuleType, data: bytes, start: int = 0, end: int = -1) -> tuple[int, ...]:
    """All that a twin says about a reply."""
    reply = twin.ReplyScan()
    flags: int = reply.scan(data, start, end)
    return (flags, *(getattr(reply, name) for name in REPLY_FIELDS))


def same(body: bytes) -> tuple[Any, ...]:
    """The outcome of a request, the same from both twins; as a reply, too."""
    outcome = request_outcome(fast, body)
    assert outcome == request_outcome(pure, body)
    assert reply_outcome(fast_reply, body) == reply_outcome(pure_reply, body)
    return outcome


def _no_constant(name: str) -> float:
    raise ValueError(name)


def oracle(body: bytes) -> dict[str, Any] | None:
    """The strict reading of a body by the json module; None: not one JSON object. (It knows no limit of ours.)"""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def oracle_members(body: bytes, start: int = 0) -> list[tuple[str, int, int, int, int]]:
    """The members of the object at byte start: key, span of the key, span of the value; found by json's raw_decode."""
    text = body.decode("utf-8")
    decoder = json.JSONDecoder()
    offsets = [0]
    for c in text:
        offsets.append(offsets[-1] + len(c.encode()))

    def blank(i: int) -> int:
        match = re.compile(r"[ \t\n\r]*").match(text, i)
        assert match is not None
        return match.end()

    members = []
    i = blank(blank(offsets.index(start)) + 1)
    while text[i] != "}":
        key_start = i
        key, key_end = decoder.raw_decode(text, i)
        value_start = blank(blank(key_end) + 1)
        _, value_end = decoder.raw_decode(text, value_start)
        members.append((key, offsets[key_start], offsets[key_end], offsets[value_start], offsets[value_end]))
        i = blank(value_end)
        i = blank(i + 1) if text[i] == "," else i
    return members


def kind_of(value: object) -> int:
    if isinstance(value, bool):
        return pure.TRUE if value else pure.FALSE
    by_type = {str: pure.STRING, int: pure.NUMBER, float: pure.NUMBER, dict: pure.OBJECT, list: pure.ARRAY}
    return by_type.get(type(value), pure.NULL)


def oracle_flags(data: bytes) -> int:
    """The flags of a reply, by json.loads."""
    value = oracle(data.removeprefix(BOM))
    if value is None:
        return pure_reply.R_INVALID
    flags = 0
    if value.get("error") is not None:
        flags |= pure_reply.R_ERROR
    groq = value.get("x_groq")
    if isinstance(value.get("usage"), dict) or (isinstance(groq, dict) and isinstance(groq.get("usage"), dict)):
        flags |= pure_reply.R_USAGE
    if isinstance(value.get("data"), list):
        flags |= pure_reply.R_DATA
    if isinstance(value.get("choices"), list):
        flags |= pure_reply.R_CHOICES
        for choice in value["choices"]:
            flags |= oracle_choice(choice) if isinstance(choice, dict) else 0
    return flags


def oracle_choice(choice: dict[str, Any]) -> int:
    flags = 0
    if choice.get("finish_reason") and isinstance(choice["finish_reason"], str):
        flags |= pure_reply.R_FINISH
    if choice.get("text") and isinstance(choice["text"], str):
        flags |= pure_reply.R_CONTENT
    for part in (choice.get("delta"), choice.get("message")):
        if not isinstance(part, dict):
            continue
        if part.get("role") and isinstance(part["role"], str):
            flags |= pure_reply.R_ROLE
        texts = [part.get(name) for name in ("content", "refusal", "reasoning", "reasoning_content")]
        lists = [part.get(name) for name in ("tool_calls", "reasoning_details")]
        objects = [part.get(name) for name in ("function_call", "audio")]
        if (
            any(isinstance(x, str | list) and x for x in texts)
            or any(isinstance(x, list) and x for x in lists)
            or any(isinstance(x, dict) for x in objects)
        ):
            flags |= pure_reply.R_CONTENT
    return flags


# --------------------------------------------------------------------------------------------- documents for Hypothesis


class Pairs(list[tuple[str, Any]]):
    """An object as its members in order, duplicates allowed."""


SHORT = {'"': '\\"', "\\": "\\\\", "/": "\\/", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def write_string(text: str, rnd: random.Random) -> str:
    out = []
    for c in text:
        dice = rnd.random()
        if c in SHORT and (dice < 0.5 or c < " "):
            out.append(SHORT[c])
        elif dice < 0.1 or c in '"\\' or c < " " or "\ud800" <= c <= "\udfff":
            units = c.encode("utf-16-be", "surrogatepass").hex()
            out += [f"\\u{rnd.choice((units.upper(), units))[k : k + 4]}" for k in range(0, len(units), 4)]
        else:
            out.append(c)
    return '"' + "".join(out) + '"'


def write(value: Any, rnd: random.Random) -> str:
    """JSON with random white space and escapes."""

    def gap() -> str:
        return "".join(rnd.choices(" \t\n\r", k=rnd.choice((0, 0, 0, 1, 2))))

    if isinstance(value, str):
        return write_string(value, rnd)
    if isinstance(value, Pairs):
        items = (f"{gap()}{write_string(k, rnd)}{gap()}:{gap()}{write(v, rnd)}{gap()}" for k, v in value)
        return "{" + (",".join(items) or gap()) + "}"
    if isinstance(value, list):
        return "[" + (",".join(gap() + write(item, rnd) + gap() for item in value) or gap()) + "]"
    return json.dumps(value)


TEXTS = st.text(max_size=20) | st.sampled_from(["", "stop", "a" * 30, "é", "\U0001f600", "\ud800", "x\ud834"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS


def objects(keys: st.SearchStrategy[str], values: st.SearchStrategy[Any], size: int = 6) -> st.SearchStrategy[Pairs]:
    return st.lists(st.tuples(keys, values), max_size=size).map(Pairs)


VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | objects(TEXTS, inner, 4), max_leaves=8)
OPTIONS = objects(st.sampled_from(["include_usage", "include_obfuscation", "a"]), SCALARS) | VALUES
REQUESTS = st.lists(
    st.tuples(st.sampled_from(KEYS) | TEXTS, VALUES) | st.tuples(st.just("stream_options"), OPTIONS), max_size=8
).map(Pairs)
DELTAS = objects(
    st.sampled_from([
        "role", "content", "refusal", "reasoning", "reasoning_content", "tool_calls", "reasoning_details",
        "function_call", "audio", "x",
    ]),
    SCALARS | st.lists(SCALARS, max_size=2) | objects(TEXTS, SCALARS, 2),
)  # fmt: skip
CHOICES = st.lists(st.tuples(
    st.sampled_from(["delta", "message", "finish_reason", "text", "index"]), DELTAS | SCALARS
), max_size=4).map(Pairs)  # fmt: skip
REPLIES = st.lists(
    st.tuples(st.just("choices"), st.lists(CHOICES | VALUES, max_size=3))
    | st.tuples(st.just("x_groq"), objects(st.sampled_from(["usage", "id"]), VALUES, 2))
    | st.tuples(st.sampled_from(["choices", "usage", "x_groq", "error", "id", "model", "data", "x"]), VALUES),
    max_size=6,
).map(Pairs)
INTERESTING = b'"\\{}[]:,0-.eEtfn \n\t\x00\x1f\x7f\x80\xbf\xc2\xe0\xed\xf4\xff\xef\xbb\xbfu/'


def written(documents: st.SearchStrategy[Pairs]) -> st.SearchStrategy[bytes]:
    return st.builds(lambda doc, seed: write(doc, random.Random(seed)).encode(), documents, st.integers(0, 2**32))


def mutate(body: bytes, rnd: random.Random) -> bytes:
    """A body with one to three small faults."""
    out = bytearray(body)
    for _ in range(rnd.randint(1, 3)):
        at = rnd.randrange(len(out) + 1)
        match rnd.randrange(4):
            case 0:
                out[at : at + 1] = b""
            case 1:
                out[at:at] = bytes([rnd.choice(INTERESTING)])
            case 2:
                out[at : at + 1] = bytes([rnd.randrange(256)])
            case _:
                piece = out[at : at + rnd.randrange(1, 8)]
                out[at:at] = piece
    return bytes(out)


# ------------------------------------------------------------------------------------------------------ requests: facts


def test_the_twins_name_the_same_things() -> None:
    for compiled, plain in ((fast, pure), (fast_reply, pure_reply)):
        for name in dir(compiled):
            if name.isupper() or name[:2] in ("K_", "R_"):
                assert getattr(compiled, name) == getattr(plain, name), name
    for name in ("ABSENT", "NULL", "KEYS", "REASONS", "K_TIMEOUT"):
        assert hasattr(fast, name)
    assert fast_reply.R_ROLE == 128
    assert [getattr(fast, "K_" + key.upper()) for key in KEYS] == list(range(16))


@both
def test_spans_of_a_request(twin: ModuleType) -> None:
    body = b' {"model" : "gpt", "stream":true,"stream_options":{"a":1,"include_usage": false},"n":-1.5e3} \n'
    scan = twin.scan_request(body)
    assert (scan.body_open, body[scan.body_close :]) == (2, b"} \n")
    assert (scan.n_keys, scan.duplicates, scan.options_keys) == (4, 0, 2)
    assert body[scan.start(twin.K_MODEL) : scan.end(twin.K_MODEL)] == b'"gpt"'
    assert body[scan.key_start(twin.K_MODEL) : scan.key_end(twin.K_MODEL)] == b'"model"'
    assert scan.kind(twin.K_STREAM) == twin.TRUE
    assert body[scan.start(twin.K_N) : scan.end(twin.K_N)] == b"-1.5e3"
    assert body[scan.options_open :].startswith(b'"a":1')
    assert scan.include_usage == twin.FALSE
    assert body[scan.include_usage_start : scan.include_usage_end] == b"false"
    absent = twin.K_TOOLS
    assert scan.kind(absent) == twin.ABSENT
    assert [scan.start(absent), scan.end(absent), scan.key_start(absent), scan.key_end(absent)] == [-1] * 4


@both
@pytest.mark.parametrize("key", [-1, 16, 1000])
def test_only_watched_keys_can_be_asked_for(twin: ModuleType, key: int) -> None:
    scan = twin.scan_request(b"{}")
    for method in (scan.kind, scan.start, scan.end, scan.key_start, scan.key_end):
        with pytest.raises(IndexError):
            method(key)


@both
def test_keys_compare_after_unescaping(twin: ModuleType) -> None:
    body = b'{"mod\\u0065l":"a","\\u006d\\u006f\\u0064\\u0065\\u006c":"b","Model":1,"model\\u0000":2,"mode":3}'
    scan = twin.scan_request(body)
    assert body[scan.start(twin.K_MODEL) : scan.end(twin.K_MODEL)] == b'"b"'
    assert (scan.duplicates, scan.n_keys) == (1 << twin.K_MODEL, 5)


@both
@pytest.mark.parametrize("key", KEYS)
def test_every_watched_key_plain_and_escaped(twin: ModuleType, key: str) -> None:
    index = KEYS.index(key)
    escaped = "".join(f"\\u{ord(c):04X}" for c in key)
    for spelling in (key, escaped):
        scan = twin.scan_request(f'{{"{spelling}":[]}}'.encode())
        assert [scan.kind(k) for k in range(16)] == [pure.ARRAY if k == index else pure.ABSENT for k in range(16)]
    for other in (key + "x", key[:-1], key.upper(), "x" + key, escaped + "\\ud800", escaped + "\\n"):
        scan = twin.scan_request(f'{{"{other}":[]}}'.encode())
        assert scan.kind(index) == pure.ABSENT


@both
def test_of_duplicate_stream_options_the_last_counts(twin: ModuleType) -> None:
    body = b'{"stream_options":{"include_usage":true},"stream_options":{}}'
    scan = twin.scan_request(body)
    assert (scan.include_usage, scan.include_usage_start, scan.options_keys) == (twin.ABSENT, -1, 0)
    assert scan.options_open == body.rindex(b"{") + 1
    scan = twin.scan_request(b'{"stream_options":{"include_usage":true},"stream_options":null}')
    assert (scan.include_usage, scan.options_open, scan.options_keys) == (twin.ABSENT, -1, 0)
    scan = twin.scan_request(b'{"stream_options":{"include_usage":1,"include_us\\u0061ge":null}}')
    assert (scan.include_usage, scan.options_keys) == (twin.NULL, 2)


FAULTS = [
    (b"", "the body is not a JSON object", 0),
    (b"  ", "the body is not a JSON object", 2),
    (b"[1]", "the body is not a JSON object", 0),
    (b' "x"', "the body is not a JSON object", 1),
    (BOM + b"{}", "the body starts with a byte order mark", 0),
    (b"{", "the text ends inside a value", 1),
    (b'{"a', "the text ends inside a value", 3),
    (b'{"a\\', "the text ends inside a value", 4),
    (b'{"a\\u00', "the text ends inside a value", 7),
    (b'{"a"', "the text ends inside a value", 4),
    (b'{"a":', "the text ends inside a value", 5),
    (b'{"a":-', "the text ends inside a value", 6),
    (b'{"a":1.', "the text ends inside a value", 7),
    (b'{"a":1e+', "the text ends inside a value", 8),
    (b'{"a":1', "the text ends inside a value", 6),
    (b'{"a":[1', "the text ends inside a value", 7),
    (b'{"a":tru', "expected a value", 5),
    (b'{"a":NaN}', "expected a value", 5),
    (b'{"a":Infinity}', "expected a value", 5),
    (b'{"a":-Infinity}', "a malformed number", 6),
    (b'{"a":+1}', "expected a value", 5),
    (b'{"a":.5}', "expected a value", 5),
    (b'{"a":[1,]}', "expected a value", 8),
    (b'{"a":}', "expected a value", 5),
    (b"{\"a\":'b'}", "expected a value", 5),
    (b'{"a":\xa0 1}', "expected a value", 5),
    (b"{a:1}", "expected a key in double quotes", 1),
    (b'{"a":1,}', "expected a key in double quotes", 7),
    (b"{,}", "expected a key in double quotes", 1),
    (b'{"a" 1}', "expected ':'", 5),
    (b'{"a":1 "b":2}', "expected ',' or '}'", 7),
    (b'{"a":1]', "expected ',' or '}'", 6),
    (b'{"a":01}', "a malformed number", 6),
    (b'{"a":-01}', "a malformed number", 7),
    (b'{"a":1.e1}', "a malformed number", 7),
    (b'{"a":1e}', "a malformed number", 7),
    (b'{"a":--1}', "a malformed number", 6),
    (b'{"a":0x1}', "expected ',' or '}'", 6),
    (b'{"a":[1 2]}', "expected ',' or ']'", 8),
    (b'{"a":[1}', "expected ',' or ']'", 7),
    (b"{}{}", "data after the JSON object", 2),
    (b"{} \x00", "data after the JSON object", 3),
    (b'{"a":1}\x0c', "data after the JSON object", 7),
    (b'{"a":"\n"}', "a control character in a string", 6),
    (b'{"a":"\\x"}', "an escape that JSON does not have", 7),
    (b'{"a":"\\N"}', "an escape that JSON does not have", 7),
    (b'{"a":"\\\xff"}', "an escape that JSON does not have", 7),
    (b'{"a":"\\u12G4"}', "\\u without four hexadecimal digits", 10),
    (b'{"a":"\\U0041"}', "an escape that JSON does not have", 7),
    ('{"a":"é\\é"}'.encode(), "an escape that JSON does not have", 9),
    ('{"a":"é\né"}'.encode(), "a control character in a string", 8),
    ('{"a":"é"é"}'.encode(), "expected ',' or '}'", 9),
    (b'{"a":"\xff"}', "not valid UTF-8", 6),
    (b'{"a":"xx\xed\xa0\x80"}', "not valid UTF-8", 8),
    (b'{"\xc3":1}', "not valid UTF-8", 2),
    (b'{"a":"\xe2\x82', "not valid UTF-8", 6),
]


@both
@pytest.mark.parametrize(("body", "reason", "pos"), FAULTS)
def test_faults_and_where_they_are(twin: ModuleType, body: bytes, reason: str, pos: int) -> None:
    with pytest.raises(JsonError) as caught:
        twin.scan_request(body)
    assert (caught.value.reason, caught.value.pos) == (reason, pos)


def test_every_reason_is_tested() -> None:
    tested = {reason for _, reason, _ in FAULTS} | {pure.REASONS[-1], pure.REASONS[-2], ""}
    assert tested == set(pure.REASONS)


@both
def test_nesting(twin: ModuleType) -> None:
    for depth in (1, 2, 3, 128, 1024):
        inside = depth - 1
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"0}")):
            good = b'{"a":' + (opening * inside + closing * inside if inside else b"0") + b"}"
            if opening == b'{"a":':
                good = b'{"a":' * depth + b"0" + b"}" * depth
            twin.scan_request(good, depth)
            if depth > 1:
                with pytest.raises(JsonError, match=f"deeper than {depth - 1} levels"):
                    twin.scan_request(good, depth - 1)
    with pytest.raises(JsonError) as caught:
        twin.scan_request(b'{"stream_options":{}}', 1)
    assert caught.value.pos == 18
    for depth in (0, -1, 1025):
        with pytest.raises(ValueError, match="max_depth"):
            twin.scan_request(b"{}", depth)


@both
@pytest.mark.parametrize("start", [b"", b'{"a":', b'{"stream_options":', b'{"stream_options":{"include_usage":'])
@pytest.mark.parametrize("unit", [b"[", b'{"a":', b'[{"model":'])
def test_100000_brackets_are_an_error_and_no_crash(twin: ModuleType, start: bytes, unit: bytes) -> None:
    with pytest.raises(JsonError):
        twin.scan_request(start + unit * 100_000)
    with pytest.raises(JsonError):
        twin.scan_request(start + unit * 100_000, 1024)


@both
def test_numbers_have_at_most_4300_digits(twin: ModuleType) -> None:
    for number in (b"1" * 4300, b"-" + b"1" * 4300, b"-1." + b"0" * 4290 + b"e+123456789"):
        twin.scan_request(b'{"a":' + number + b"}")
        with pytest.raises(JsonError, match="4300 digits") as caught:
            twin.scan_request(b'{"a":[' + number + b"1]}")
        assert caught.value.pos == 6


@both
def test_every_byte_at_every_offset_of_a_string(twin: ModuleType) -> None:
    """The eight-bytes-at-a-time walk finds each special byte wherever it lies in a word."""
    for at in range(19):
        for c in range(128):
            body = b'{"a":"' + b"x" * at + bytes([c]) + b"x" * (18 - at) + b'"}'
            if c < 0x20 or c in b'"\\':
                with pytest.raises(JsonError) as caught:
                    twin.scan_request(body)
                # behind a quote: ',' is missing; behind a backslash: x is no escape (or the string does not end)
                assert caught.value.pos in ((6 + at,) if c < 0x20 else (7 + at, 27))
            else:
                assert twin.scan_request(body).n_keys == 1


@both
@pytest.mark.parametrize("tail", [b"", b"y", b"yyyyyyyy", "é".encode(), " é, \U0001f600".encode()])
def test_utf8_is_that_of_the_unicode_table(twin: ModuleType, tail: bytes) -> None:
    """All leads, boundary values of continuations: accepted iff bytes.decode does (Unicode table 3-7)."""
    bounds = (0x41, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xFF)
    for lead in range(0x80, 0x100):
        for second in bounds:
            for third in bounds if lead >= 0xE0 else (0x41, 0x80):
                for fourth in (0x41, 0x80, 0xBF, 0xC0) if lead >= 0xEF else (0x41,):
                    text = bytes((lead, second, third, fourth)) + tail
                    try:
                        text.decode()
                        expected = None
                    except UnicodeDecodeError as fault:
                        expected = fault.start + 6
                    try:
                        twin.scan_request(b'{"a":"' + text + b'"}')
                        got = None
                    except JsonError as fault:
                        got = fault.pos
                    assert got == expected, text


@both
def test_only_bytes_are_taken(twin: ModuleType) -> None:
    for wrong in ("{}", None, bytearray(b"{}"), memoryview(b"{}")):
        with pytest.raises(TypeError):
            twin.scan_request(wrong)
        with pytest.raises(TypeError):
            twin.decode_string(wrong, 0, 2)


# ----------------------------------------------------------------------------------------------------- requests: fuzzed


@both
@fuzz
@given(body=written(REQUESTS))
@example(body=b"{}")
@example(body=b'{"model":"\\ud800"}')
def test_what_the_oracle_finds_is_found(twin: ModuleType, body: bytes) -> None:
    scan = twin.scan_request(body)
    members = oracle_members(body)
    value = oracle(body)
    assert value is not None
    assert scan.n_keys == len(members)
    assert body[: scan.body_open].strip() == b"{"
    assert body[scan.body_close :].strip() == b"}"
    last = {name: spans for name, *spans in members}
    for index, name in enumerate(KEYS):
        spans = [scan.key_start(index), scan.key_end(index), scan.start(index), scan.end(index)]
        assert spans == last.get(name, [-1] * 4)
        assert scan.kind(index) == (kind_of(value[name]) if name in value else pure.ABSENT)
        assert bool(scan.duplicates >> index & 1) == (sum(m[0] == name for m in members) > 1)
        if scan.kind(index) == pure.STRING:
            text = twin.decode_string(body, scan.start(index), scan.end(index))
            assert text == (None if re.search("[\ud800-\udfff]", value[name]) else value[name])
    options = value.get("stream_options")
    if isinstance(options, dict):
        inside = oracle_members(body, scan.start(pure.K_STREAM_OPTIONS))
        values = {name: (a, b) for name, _, _, a, b in inside}
        assert (scan.options_open, scan.options_keys) == (scan.start(pure.K_STREAM_OPTIONS) + 1, len(inside))
        assert (scan.include_usage_start, scan.include_usage_end) == values.get("include_usage", (-1, -1))
        expected = kind_of(options["include_usage"]) if "include_usage" in options else pure.ABSENT
        assert scan.include_usage == expected
    else:
        assert (scan.options_open, scan.options_keys, scan.include_usage) == (-1, 0, pure.ABSENT)


@fuzz
@given(body=written(REQUESTS | REPLIES), seed=st.integers(0, 2**32))
def test_mutated_bodies_are_taken_iff_the_oracle_takes_them(body: bytes, seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(4):
        body = mutate(body, rnd)
        outcome = same(body)
        assert (outcome[0] == "error") == (oracle(body) is None)


@fuzz
@given(body=st.binary(max_size=60))
def test_random_bytes(body: bytes) -> None:
    for text in (body, b'{"' + body, b'{"model":"' + body + b'"}', b'{"a":' + body + b"}"):
        outcome = same(text)
        assert (outcome[0] == "error") == (oracle(text) is None)


@fuzz
@given(tokens=st.lists(st.sampled_from([
    b"{", b"}", b"[", b"]", b":", b",", b'"a"', b'"model"', b'"choices"', b'"delta"', b"1", b"-0", b"1e5", b"true",
    b"false", b"null", b" ", b'"stream_options"', b'"include_usage"', b'"x_groq"', b'"usage"',
]), max_size=14))  # fmt: skip
def test_random_tokens(tokens: list[bytes]) -> None:
    for text in (b"".join(tokens), b"{" + b"".join(tokens) + b"}", b'{"choices":[' + b"".join(tokens) + b"]}"):
        outcome = same(text)
        assert (outcome[0] == "error") == (oracle(text) is None)


@settings(fuzz, max_examples=25)
@given(body=written(REQUESTS | REPLIES))
def test_every_truncation_is_an_error(body: bytes) -> None:
    for size in range(len(body)):
        outcome = same(body[:size])
        assert outcome[0] == "error"
        assert outcome[2] <= size


@fuzz
@given(body=written(REQUESTS), depth=st.integers(1, 4))
def test_the_twins_agree_on_depth(body: bytes, depth: int) -> None:
    assert request_outcome(fast, body, depth) == request_outcome(pure, body, depth)


# -------------------------------------------------------------------------------------------------------- decode_string


@both
@fuzz
@given(text=TEXTS, seed=st.integers(0, 2**32), before=st.binary(max_size=3), after=st.binary(max_size=3))
def test_strings_are_decoded(twin: ModuleType, text: str, seed: int, before: bytes, after: bytes) -> None:
    token = write_string(text, random.Random(seed)).encode()
    expected = json.loads(token)
    if re.search("[\ud800-\udfff]", expected):
        expected = None
    assert twin.decode_string(before + token + after, len(before), len(before) + len(token)) == expected


@both
def test_surrogates_in_strings(twin: ModuleType) -> None:
    for token, expected in (
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (rb'"\uDBFF\uDFFFx"', "\U0010ffffx"),
        (rb'"\ud83d"', None),
        (rb'"\ude00"', None),
        (rb'"\ud83dx"', None),
        (rb'"\ud83d\n"', None),
        (rb'"\ud83d\u0041"', None),
        (rb'"\ud83d\ud83d\ude00"', None),
        (rb'"\ude00\ud83d"', None),
        (rb'"\u0000\u007f\u0080\u07ff\u0800\ud7ff\ue000\uffff"', "\0\x7f\x80\u07ff\u0800\ud7ff\ue000\uffff"),
        (b'""', ""),
    ):
        assert twin.decode_string(token, 0, len(token)) == expected


@both
@pytest.mark.parametrize(
    ("body", "start", "end"),
    [(b'"ab"', 0, 5), (b'"ab"', -1, 3), (b'"ab"', 3, 4), (b'"ab"', 1, 4), (b'"ab"', 4, 0), (b'"ab"', 0, 3),
     (b'"a"b"', 0, 5), (b'"a\\"', 0, 4), (b'"\xff"', 0, 3), (b'"\n"', 0, 3), (b"", 0, 0), (b'"\\u12"', 0, 6)],
)  # fmt: skip
def test_what_is_no_string_span(twin: ModuleType, body: bytes, start: int, end: int) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - both ValueError and its child JsonError are right
        twin.decode_string(body, start, end)


# -------------------------------------------------------------------------------------------------------------- replies

ERROR, CHOICES_, CONTENT, FINISH, USAGE, DATA, ROLE = (1 << bit for bit in range(1, 8))


@both_replies
@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (b"[DONE]", 1),
        (b"", 1),
        (b"  {} \n", 0),
        (BOM + b" {}", 0),
        (BOM + BOM + b"{}", 1),
        (b'{"error":null}', 0),
        (b'{"error":{"message":"x"}}', ERROR),
        (b'{"error":"x"}', ERROR),
        (b'{"error":"x","error":null}', 0),
        (b'{"choices":[]}', CHOICES_),
        (b'{"choices":null}', 0),
        (b'{"choices":[{"delta":{"role":"assistant","content":""}}]}', CHOICES_ | ROLE),
        (b'{"choices":[{"delta":{"role":null,"content":null}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"content":"x"}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"content":"x","content":""}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"content":"x"},"delta":{}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"content":"x"}}],"choices":[]}', CHOICES_),
        (b'{"choices":[{"delta":{"con\\u0074ent":"x"}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"content":[ ]}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"content":[ 1 ]}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"content":{"a":1}}}]}', CHOICES_),
        (b'{"choices":[{"message":{"refusal":"x"}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"reasoning":"x"}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"reasoning_content":"x"}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"reasoning_details":[{}]}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"tool_calls":[]}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"tool_calls":"x"}}]}', CHOICES_),
        (b'{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"function_call":{}}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"audio":{"id":"a"}}}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"delta":{"audio":"a"}}]}', CHOICES_),
        (b'{"choices":[{"text":"x"}]}', CHOICES_ | CONTENT),
        (b'{"choices":[{"text":""}]}', CHOICES_),
        (b'{"choices":[{"content":"x"}]}', CHOICES_),
        (b'{"choices":[{"finish_reason":""}]}', CHOICES_),
        (b'{"choices":[{"finish_reason":null}]}', CHOICES_),
        (b'{"choices":[{"finish_reason":"stop"}]}', CHOICES_ | FINISH),
        (b'{"choices":[1,null,"x",[{"delta":{"content":"x"}}]]}', CHOICES_),
        (b'{"usage":null}', 0),
        (b'{"usage":{}}', USAGE),
        (b'{"x_groq":{"usage":{}}}', USAGE),
        (b'{"x_groq":{"usage":{}},"x_groq":{}}', 0),
        (b'{"x_groq":{"usage":null}}', 0),
        (b'{"x_groq":[{"usage":{}}]}', 0),
        (b'{"data":[]}', DATA),
        (b'{"data":[],"data":{}}', 0),
        (b'{"choices":[{"delta":{"content":"x"}}]', 1),
    ],
)
def test_flags_of_a_reply(twin: ModuleType, data: bytes, flags: int) -> None:
    reply = twin.ReplyScan()
    assert reply.scan(data) == flags
    assert (reply.pos >= 0) == (flags == 1)
    if not data.startswith(BOM + BOM):
        assert oracle_flags(data) == flags


@both_replies
def test_spans_of_a_reply_and_that_a_scan_forgets_the_last_one(twin: ModuleType) -> None:
    reply = twin.ReplyScan()
    first = [getattr(reply, name) for name in REPLY_FIELDS]
    data = (
        b'{"x_groq":{"usage":{"a":1}},"usage":{"b":2},"id":"i","model":"m","error":[0],'
        b'"choices":[{"finish_reason":"stop"},{"finish_reason":""},{"finish_reason":"length"},{}]}'
    )
    assert reply.scan(data) == ERROR | CHOICES_ | FINISH | USAGE
    assert (reply.n_choices, reply.n_finish, reply.pos) == (4, 2, -1)
    assert data[reply.usage_start : reply.usage_end] == b'{"b":2}'
    assert data[reply.id_start : reply.id_end] == b'"i"'
    assert data[reply.model_start : reply.model_end] == b'"m"'
    assert data[reply.error_start : reply.error_end] == b"[0]"
    assert data[reply.finish_start : reply.finish_end] == b'"length"'
    assert reply.scan(b"{}") == 0
    assert [getattr(reply, name) for name in REPLY_FIELDS] == first
    assert reply.scan(data) > 1
    assert reply.scan(data[:-1]) == 1
    assert [getattr(reply, name) for name in REPLY_FIELDS] == [*first[:-1], len(data) - 1]
    data = b'{"usage":null,"x_groq":{"id":"r","usage":{"a":1}},"id":null,"model":5}'
    assert reply.scan(data) == USAGE
    assert data[reply.usage_start : reply.usage_end] == b'{"a":1}'
    assert (reply.id_start, reply.id_end, reply.model_start, reply.model_end) == (-1, -1, -1, -1)


@both_replies
def test_a_reply_may_nest_512_levels(twin: ModuleType) -> None:
    reply = twin.ReplyScan()
    around = (
        (b'{"x":', b"}", 1), (b'{"usage":', b"}", 1), (b'{"choices":', b"}", 1), (b'{"choices":[', b"]}", 2),
        (b'{"choices":[{"x":', b"}]}", 3), (b'{"choices":[{"delta":', b"}]}", 3),
        (b'{"choices":[{"delta":{"content":', b"}}]}", 4), (b'{"x_groq":{"x":', b"}}", 2), (b'{"x_groq":', b"}", 1),
    )  # fmt: skip
    for before, after, depth in around:
        inside = 512 - depth
        assert reply.scan(before + b"[" * inside + b"]" * inside + after) & 1 == 0
        inside += 1
        assert reply.scan(before + b"[" * inside + b"]" * inside + after) == 1
        assert reply.pos == len(before) + inside - 1
        assert reply.scan(before + b"[" * 100_000) == 1
        assert reply.scan(before + b'{"a":' * 100_000) == 1


@both_replies
def test_start_and_end_of_a_reply(twin: ModuleType) -> None:
    reply = twin.ReplyScan()
    assert reply.scan(b'data: {"usage":{}}\n\n', 6) == USAGE
    assert (reply.usage_start, reply.usage_end) == (15, 17)
    assert reply.scan(b'{"a":1}23', 0, 7) == 0
    assert reply.scan(b'{"a":1}}', 0, 6) == 1  # the brace behind the end is not read
    assert reply.pos == 6
    assert reply.scan(BOM + b"{}", 0, 2) == 1
    assert reply.scan(b'x{"a":"\xe2\x82\xac"}', 1, 9) == 1
    assert reply.pos == 7
    for start, end in ((-1, 1), (0, 4), (2, 1), (0, -2), (4, -1)):
        with pytest.raises(ValueError, match="start and end"):
            reply.scan(b"{ }", start, end)
    with pytest.raises(TypeError):
        reply.scan("{}")


@both_replies
@fuzz
@given(data=written(REPLIES), before=st.binary(max_size=9), after=st.binary(max_size=9))
def test_replies_agree_with_the_oracle(twin: ModuleType, data: bytes, before: bytes, after: bytes) -> None:
    outcome = reply_outcome(twin, data)
    assert outcome[0] == oracle_flags(data)
    spans = {name: (a, b) for name, _, _, a, b in oracle_members(data)}
    for flag, name, at in ((ERROR, "error", 3), (0, "model", 9), (0, "id", 11)):
        if outcome[at] >= 0 or outcome[0] & flag:
            assert (outcome[at], outcome[at + 1]) == spans[name]
    wrapped = reply_outcome(twin, before + data + after, len(before), len(before) + len(data))
    moved = tuple(x if x < 0 else x + len(before) for x in outcome[3:])
    assert wrapped == (*outcome[:3], *moved)


@fuzz
@given(data=written(REPLIES), seed=st.integers(0, 2**32))
def test_mutated_replies(data: bytes, seed: int) -> None:
    rnd = random.Random(seed)
    for _ in range(4):
        data = mutate(data, rnd)
        outcome = reply_outcome(fast_reply, data)
        assert outcome == reply_outcome(pure_reply, data)
        assert outcome[0] == oracle_flags(data)


# -------------------------------------------------------------------------------------------------------------- corpora


def hostile() -> list[dict[str, str]]:
    index = SHARED / "hostile/json/dev/index.json"
    if not index.is_file():
        pytest.skip(f"no hostile corpus: {index} is not there (set SLIPSTREAM_SHARED)")
    cases: list[dict[str, str]] = json.loads(index.read_text(encoding="utf-8"))
    return cases


@both
def test_hostile_bodies(twin: ModuleType) -> None:
    for case in hostile():
        body = (SHARED / "hostile/json/dev" / case["file"]).read_bytes()
        reason = ""
        try:
            twin.scan_request(body)
        except JsonError as fault:
            reason = fault.reason
        if case["kind"] == "text" and case["expect"] == "reject":
            assert reason, case["file"]
        elif case["expect"] == "accept":
            assert reason == "" or (case["kind"] == "text" and reason == pure.REASONS[1]), case["file"]
        if "4300" in reason or "levels" in reason or len(body) > 50_000:
            continue  # ours alone: json.loads has other limits
        assert bool(reason) == (oracle(body) is None), case["file"]


def test_hostile_bodies_are_the_same_to_both() -> None:
    for case in hostile():
        same((SHARED / "hostile/json/dev" / case["file"]).read_bytes())


def payloads(body: str) -> Iterator[bytes]:
    """The data of each event of an SSE body (WHATWG HTML section 9.2.6, the plain way)."""
    for block in re.split(r"\n\n+", re.sub(r"\r\n?", "\n", body.removeprefix("\ufeff"))):
        lines = [line[5:].removeprefix(" ") for line in block.split("\n") if line.startswith("data:")]
        if lines:
            yield "\n".join(lines).encode("utf-8", "surrogatepass")


def recorded() -> Iterator[tuple[str, bytes]]:
    folder = SHARED / "wire/dev"
    if not folder.is_dir():
        pytest.skip(f"no wire corpus: {folder} is not there (set SLIPSTREAM_SHARED)")
    for path in sorted(folder.glob("*.json")):
        exchange = json.loads(path.read_text(encoding="utf-8"))
        body = exchange["response"].get("body")
        if exchange["api"] not in ("chat-completions", "completions", "embeddings") or not isinstance(body, str):
            continue
        if "event-stream" in exchange["response"]["headers"].get("content-type", ""):
            for data in payloads(body):
                yield path.name, data
        else:
            yield path.name, body.encode("utf-8", "surrogatepass")


@both_replies
def test_recorded_replies(twin: ModuleType) -> None:
    seen = 0
    counts = dict.fromkeys((ERROR, CHOICES_, CONTENT, FINISH, USAGE, DATA, ROLE), 0)
    for name, data in recorded():
        outcome = reply_outcome(twin, data)
        assert outcome[0] == oracle_flags(data), (name, data[:200])
        assert outcome == reply_outcome(pure_reply, data), (name, data[:200])
        for flag in counts:
            counts[flag] += bool(outcome[0] & flag)
        seen += 1
    assert seen > 1000
    assert all(counts.values())


@both
def test_recorded_requests(twin: ModuleType) -> None:
    folder = SHARED / "wire/dev"
    if not folder.is_dir():
        pytest.skip(f"no wire corpus: {folder} is not there (set SLIPSTREAM_SHARED)")
    for path in sorted(folder.glob("*.json")):
        request = json.loads(path.read_text(encoding="utf-8"))["request"].get("body")
        if not isinstance(request, dict):
            continue
        body = json.dumps(request, ensure_ascii=False).encode()
        scan = twin.scan_request(body)
        for index, name in enumerate(KEYS):
            assert (name in request) == (scan.kind(index) != pure.ABSENT)
            if name in request:
                assert json.loads(body[scan.start(index) : scan.end(index)]) == request[name]
