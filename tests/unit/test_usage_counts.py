"""usage_counts, compiled and pure: against each other, and against the decoder that they save."""

from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast import usage as fast
from slipstream._fast._pure import usage as pure
from slipstream.wire.usage import read_openai_usage

both = pytest.mark.parametrize("twin", [fast, pure], ids=["compiled", "pure"])
fuzz = settings(deadline=None, derandomize=True, max_examples=300)

CASES: list[tuple[str, tuple[int, ...] | None]] = [
    ("{}", (-1, -1, -1, -1, -1, -1)),
    (' {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7} ', (3, 4, 7, -1, -1, -1)),
    ('{"prompt_tokens":3,"prompt_tokens":5}', (5, -1, -1, -1, -1, -1)),
    ('{"prompt_tokens":3,"prompt_tokens":null}', (-1, -1, -1, -1, -1, -1)),
    ('{"prompt\\u005ftokens":3}', (3, -1, -1, -1, -1, -1)),
    ('{"prompt_tokens_details":{"cached_tokens":2,"audio_tokens":9},"cached_tokens":8}', (-1, -1, -1, 2, -1, -1)),
    ('{"prompt_tokens_details":{"cached_tokens":0},"cached_tokens":8}', (-1, -1, -1, 0, -1, -1)),
    ('{"prompt_tokens_details":null,"cached_tokens":8,"prompt_cache_hit_tokens":7}', (-1, -1, -1, 8, -1, -1)),
    ('{"cached_tokens":0,"prompt_cache_hit_tokens":7}', (-1, -1, -1, 7, -1, -1)),
    ('{"prompt_tokens_details":{"cached_tokens":2},"prompt_tokens_details":{}}', (-1, -1, -1, -1, -1, -1)),
    ('{"prompt_tokens_details":{"cache_write_tokens":4,"cached_tokens":1}}', (-1, -1, -1, 1, 4, -1)),
    ('{"prompt_tokens_details":7,"prompt_tokens_details":{}}', (-1, -1, -1, -1, -1, -1)),
    ('{"prompt_tokens_details":7}', None),
    ('{"completion_tokens_details":{"reasoning_tokens":6}}', (-1, -1, -1, -1, -1, 6)),
    ('{"completion_tokens":999999999999}', (-1, 999999999999, -1, -1, -1, -1)),
    ('{"completion_tokens":1000000000000}', None),
    ('{"completion_tokens":1.0}', None),
    ('{"completion_tokens":1e3}', None),
    ('{"completion_tokens":-1}', None),
    ('{"completion_tokens":"7"}', None),
    ('{"completion_tokens":true}', None),
    ('{"completion_tokens_details":[]}', None),
    ('{"completion_tokens_details":{"reasoning_tokens":{}}}', None),
    ('{"cost":{"completion_tokens":true},"cost_details":[1.5]}', (-1, -1, -1, -1, -1, -1)),
    ("", None),
    ("[]", None),
    ('{"prompt_tokens":3', None),
    ('{"prompt_tokens":3}x', None),
    ('{"prompt_tokens":03}', None),
]


@both
@pytest.mark.parametrize(("text", "counts"), CASES)
def test_counts(twin: ModuleType, text: str, counts: tuple[int, ...] | None) -> None:
    assert twin.usage_counts(text.encode()) == counts
    inside = b"  " + text.encode() + b"]]"
    assert twin.usage_counts(inside, 2, 2 + len(text)) == counts


@both
def test_offsets_are_checked(twin: ModuleType) -> None:
    for start, end in ((-1, 2), (0, 3), (2, 1)):
        with pytest.raises(ValueError, match="offsets"):
            twin.usage_counts(b"{}", start, end)
    with pytest.raises(TypeError):
        twin.usage_counts(bytearray(b"{}"))


@both
def test_every_truncation_is_refused(twin: ModuleType) -> None:
    text = b'{"prompt_tokens":31,"completion_tokens_details":{"reasoning_tokens":6}}'
    for end in range(len(text)):
        assert twin.usage_counts(text[:end]) is None


NUMBERS = st.one_of(
    st.integers(-5, 10**13),
    st.none(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.booleans(),
    st.text(max_size=3),
)
DETAILS = st.one_of(
    st.dictionaries(st.sampled_from(["cached_tokens", "cache_write_tokens", "reasoning_tokens", "x"]), NUMBERS),
    st.none(),
    NUMBERS,
)
OBJECTS = st.dictionaries(
    st.sampled_from(
        ["prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_cache_hit_tokens", "cost"]
    ),
    NUMBERS,
).flatmap(
    lambda plain: st.dictionaries(st.sampled_from(["prompt_tokens_details", "completion_tokens_details"]), DETAILS).map(
        lambda nested: {**plain, **nested}
    )
)


@fuzz
@given(OBJECTS)
def test_twins_agree_with_each_other_and_with_the_decoder(value: dict[str, Any]) -> None:
    """R67: what the short way says is what the decoder says."""
    data = json.dumps(value).encode()
    assert fast.usage_counts(data) == pure.usage_counts(data)
    quick = read_openai_usage(data)
    odd = json.dumps({**value, "total_tokens": float(value["total_tokens"])}) if _plain_total(value) else None
    if odd is not None:  # the same numbers through the decoder
        assert read_openai_usage(odd.encode()) == quick or value.get("total_tokens") is not None


def _plain_total(value: dict[str, Any]) -> bool:
    return isinstance(value.get("total_tokens"), int) and not isinstance(value.get("total_tokens"), bool)


@fuzz
@given(st.binary(max_size=60))
def test_twins_agree_on_anything(data: bytes) -> None:
    assert fast.usage_counts(data) == pure.usage_counts(data)
