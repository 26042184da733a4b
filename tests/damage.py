"""Damage: seeded changes to JSON, to bytes and to streams of events, of every kind that was seen or can be thought of.

Pure functions of a ``random.Random``, so that a case that fails comes back by its number.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from tests.recorded import payload_of, with_payload

Random = random.Random

DEEP = "[" * 300 + "]" * 300
"""Deeper than the encoder goes (254 levels), not than the decoder."""
EDGES = tuple("[" * depth + "]" * depth for depth in range(238, 256, 2))
"""Around that depth: what can be written by itself cannot inside of something else."""
GARBAGE = (
    b"\x00", b"\x00\x00\x00\x10", b"\xff\xfe", b"\xc3", b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\r", b"\n\n", b"data:",
    b"data: {\n\n", b"event: error\n", b"error: {}\n\n", b"<html>502</html>\n\n", b": ping\n\n", b"data: [DONE]\n\n",
    b"data: null\n\n", b"data: 0\n\n", b"data: []\n\n", b'data: {}\n\n', b'{"error":"x"}\n', b"retry: 9\n\n",
    b'data: {"error":{"message":"no","code":429}}\n\n', b"data: " + DEEP.encode() + b"\n\n", b"}" * 9, b'"', b"x" * 999,
)  # fmt: skip
RAW = (
    "null", "true", "false", "0", "-1", "1.5", "1e999", "-0.0", "9" * 30, "1" + "0" * 400, '""', '" "', '"x"', '"null"',
    '"[DONE]"', '"\\u0000"', '"\\ud800"', '"\\u2028\\ud83d\\ude00"', "[]", "{}", "[null]", "[[]]", "[{}]", '{"":null}',
    '{"type":"text"}', '{"text":null}', '{"error":{}}', '[{"index":-1}]', '[{"index":1e9,"id":5}]', "NaN", DEEP,
    '{"a":' * 300 + "1" + "}" * 300, '"' + "y" * 3000 + '"', '[{"type":"text","text":7}]', "18446744073709551616",
    *EDGES,
)  # fmt: skip
"""JSON texts that a field may suddenly have (and one that is none)."""
HALVES = ("\ud83d", "\ude00", "\udfff\ud800")
"""Half a surrogate pair, as providers send it that cut text between two tokens."""
OUTSIDE = {"args", "arguments", "input", "partial_json", "json"}
"""Free-form objects: another member there is another argument."""


class _Raw:
    """Stands for a JSON text that is written as it is."""

    def __init__(self, text: str) -> None:
        self.text = text


def dumps(value: Any) -> bytes:
    """JSON with ``_Raw`` in it; a key ``("twice", key)`` is written as ``key`` again."""
    if isinstance(value, _Raw):
        return value.text.encode()
    if isinstance(value, list):
        return b"[" + b",".join(map(dumps, value)) + b"]"
    if isinstance(value, dict):
        pairs = ((key[1] if isinstance(key, tuple) else key, one) for key, one in value.items())
        return b"{" + b",".join(json.dumps(key).encode() + b":" + dumps(one) for key, one in pairs) + b"}"
    try:
        return json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # half a surrogate pair: it can only be written as an escape
        return json.dumps(value).encode()


def nodes(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a decoded document, as its container and its key."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from nodes(value[key])


def mutate_json(rng: Random, text: bytes) -> bytes:
    """The document with one or two of its values replaced, removed, renamed, doubled, or wrapped."""
    try:
        value = json.loads(text)
    except ValueError:
        return mutate_bytes(rng, text)
    for _ in range(rng.choice((1, 1, 2))):
        places = list(nodes(value))
        if not places:
            return dumps(_Raw(rng.choice(RAW)))
        inside, key = rng.choice(places)
        how = rng.randrange(8)
        if how <= 3:
            inside[key] = _Raw(rng.choice(RAW))
        elif how == 7:
            inside[key] = rng.choice(HALVES) + inside[key] if isinstance(inside[key], str) else _Raw(DEEP)
        elif how == 4:
            del inside[key]
        elif isinstance(inside, list):
            inside.insert(key, inside[key])
        elif how == 5:
            inside[("twice", key)] = _Raw(rng.choice(RAW))
        else:
            inside[key] = rng.choice(([inside[key]], {"value": inside[key]}, [inside[key], inside[key]]))
        if not _plain(value):
            break
    return dumps(value)


def _plain(value: Any) -> bool:
    """Whether ``value`` may be gone through once more."""
    return not any(isinstance(box[key], _Raw) or isinstance(key, tuple) for box, key in nodes(value))


def mutate_bytes(rng: Random, data: bytes) -> bytes:
    if not data:
        return rng.choice(GARBAGE)
    at = rng.randrange(len(data))
    to = min(len(data), at + rng.choice((1, 2, 7, 100)))
    how = rng.randrange(5)
    if how == 0:
        return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
    if how == 1:
        return data[:at]
    if how == 2:
        return data[:at] + rng.choice(GARBAGE) + data[at:]
    return data[:at] + data[to:] if how == 3 else data[:to] + data[at:]


def mutate_events(rng: Random, framing: str, events: list[bytes]) -> list[bytes]:
    """A stream with one thing wrong, or a few."""
    events = list(events)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(events)) if events else 0
        how = rng.randrange(10)
        if not events or how == 0:
            events.insert(at, rng.choice(GARBAGE))
        elif how == 1:
            events.insert(rng.randrange(len(events) + 1), events[at])
        elif how == 2:
            del events[at]
        elif how == 3:
            rng.shuffle(events)
        elif how == 4:
            events[at] = mutate_bytes(rng, events[at])
        else:
            parts = payload_of(framing, events[at])
            if parts is not None:
                events[at] = with_payload(framing, events[at], mutate_json(rng, parts[1]))
    return events


def pieces(rng: Random, body: bytes) -> list[bytes]:
    """The body as a transport may deliver it."""
    if rng.random() < 0.3:
        return [body]
    cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.choice((1, 3, 20))))
    ends = [0, *cuts, len(body)]
    return [body[a:b] for a, b in pairwise(ends)]
