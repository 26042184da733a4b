"""What both JSON libraries must agree on behind the codec."""

from __future__ import annotations

import pytest

from slipstream.wire.codec import DecodeError, dumps, loads


def test_half_a_surrogate_pair_survives() -> None:  # S-74; RFC 8259 section 8.2
    text = b'{"content":"half \\ud83d"}'
    value = loads(text)
    assert value == {"content": "half \ud83d"}
    assert dumps(value) == text
    assert loads(b'"\\uD83D\\uDE00"') == "\U0001f600"


@pytest.mark.parametrize(
    "text",
    [
        b'{"a":NaN,"b":"\\ud83d"}',
        b'["\\ud83d",Infinity]',
        b'"\\ud83d',
        b'"\\ud83d" x',
        b"\xff\\ud8",
        b"[" * 5000 + b'"\\ud800"',
    ],
)
def test_the_second_chance_is_no_licence(text: bytes) -> None:
    with pytest.raises(DecodeError):
        loads(text)


def test_what_cannot_be_written() -> None:
    deep: object = 1
    for _ in range(300):
        deep = [deep]
    for value in (deep, {1, 2}, 2**70):
        with pytest.raises(TypeError):
            dumps(value)
