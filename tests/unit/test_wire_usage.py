"""Usage in disjoint buckets, from golden payloads of each provider of the family (R67; PROTOCOLS.md 1.4)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.wire.usage import NO_USAGE, Usage, estimate, read_openai_usage

fuzz = settings(deadline=None, derandomize=True, max_examples=200)


def read(value: Any) -> Usage | None:
    return read_openai_usage(json.dumps(value).encode())


def made(uncached: int, cached: int, output: int, reasoning: int) -> Usage:
    return Usage(uncached, cached, 0, output, reasoning, "provider")


GOLDEN = {
    "plain": ({"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}, made(11, 0, 7, 0)),
    "openai cached and reasoning": (
        {
            "prompt_tokens": 2006,
            "completion_tokens": 300,
            "total_tokens": 2306,
            "prompt_tokens_details": {"cached_tokens": 1920, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 256, "accepted_prediction_tokens": 0},
        },
        made(86, 1920, 44, 256),
    ),
    "deepseek hit and miss": (
        {
            "prompt_tokens": 100,
            "completion_tokens": 9,
            "total_tokens": 109,
            "prompt_tokens_details": {"cached_tokens": 64},
            "prompt_cache_hit_tokens": 64,
            "prompt_cache_miss_tokens": 36,
        },
        made(36, 64, 9, 0),
    ),
    "deepseek without details": (
        {"prompt_tokens": 100, "completion_tokens": 9, "prompt_cache_hit_tokens": 64, "prompt_cache_miss_tokens": 36},
        made(36, 64, 9, 0),
    ),
    "together flat": ({"prompt_tokens": 50, "completion_tokens": 5, "cached_tokens": 32}, made(18, 32, 5, 0)),
    "azure grok: more cached than prompt": (
        {"prompt_tokens": 298, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 387}},
        made(0, 298, 4, 0),
    ),
    "openrouter: more reasoning than completion": (
        {"prompt_tokens": 1, "completion_tokens": 4, "completion_tokens_details": {"reasoning_tokens": 9}},
        made(1, 0, 0, 4),
    ),
    "embeddings": ({"prompt_tokens": 8, "total_tokens": 8}, made(8, 0, 0, 0)),
    "completion only": ({"completion_tokens": 3}, made(0, 0, 3, 0)),
    "null details": (
        {"prompt_tokens": 5, "completion_tokens": 2, "prompt_tokens_details": None, "completion_tokens_details": None},
        made(5, 0, 2, 0),
    ),
    "zero": ({"prompt_tokens": 0, "completion_tokens": 0}, made(0, 0, 0, 0)),
    "groq": ({"queue_time": 0.02, "prompt_tokens": 3, "prompt_time": 0.1, "completion_tokens": 4}, made(3, 0, 4, 0)),
}


@pytest.mark.parametrize(("payload", "usage"), GOLDEN.values(), ids=GOLDEN)
def test_golden_payloads(payload: dict[str, Any], usage: Usage) -> None:  # R67
    assert read(payload) == usage


@pytest.mark.parametrize(
    "value",
    [{}, [], None, "x", 5, {"prompt_tokens": None}, {"prompt_tokens": "11", "completion_tokens": "7"},
     {"prompt_tokens": True, "completion_tokens": False}, {"prompt_tokens": -1, "completion_tokens": -2},
     {"prompt_tokens": 1.5}, {"prompt_tokens": [1]}, {"input_tokens": 5, "output_tokens": 6}],
)  # fmt: skip
def test_no_usable_counts_is_none(value: Any) -> None:  # S-32
    assert read(value) is None


@pytest.mark.parametrize("span", [b"", b"{", b"\xff", b"nonsense"])
def test_broken_json_is_none(span: bytes) -> None:
    assert read_openai_usage(span) is None


@pytest.mark.parametrize("bad", [-3, True, "5", None, 2.5, [], {}])
def test_one_bad_count_does_not_spoil_the_others(bad: Any) -> None:
    assert read({"prompt_tokens": 9, "completion_tokens": bad}) == made(9, 0, 0, 0)
    details = {"prompt_tokens_details": {"cached_tokens": bad}, "completion_tokens_details": {"reasoning_tokens": bad}}
    assert read({"prompt_tokens": 9, "completion_tokens": 4, **details}) == made(9, 0, 4, 0)
    assert read({"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": bad}) == made(9, 0, 4, 0)


counts = st.one_of(st.integers(-5, 10_000), st.none(), st.booleans(), st.floats(0, 9), st.text(max_size=2))


@fuzz
@given(
    st.dictionaries(
        st.sampled_from(["prompt_tokens", "completion_tokens", "cached_tokens", "prompt_cache_hit_tokens"]), counts
    ),
    st.dictionaries(st.just("cached_tokens"), counts),
    st.dictionaries(st.just("reasoning_tokens"), counts),
)
def test_buckets_are_disjoint_and_sum_up(flat: dict[str, Any], prompt: Any, completion: Any) -> None:  # R67
    usage = read({**flat, "prompt_tokens_details": prompt, "completion_tokens_details": completion})
    if usage is None:
        return
    buckets = (usage.input_uncached, usage.cache_read, usage.cache_write, usage.output, usage.reasoning)
    assert min(buckets) >= 0
    said = [flat.get(k) for k in ("prompt_tokens", "completion_tokens")]
    want = [v if type(v) is int and v >= 0 else 0 for v in said]
    assert [usage.prompt, usage.completion] == want
    assert sum(buckets) == sum(want)
    assert usage.source == "provider"


@pytest.mark.parametrize(("size", "tokens"), [(0, 1), (1, 1), (4, 1), (5, 2), (4000, 1000)])
def test_estimates_are_labelled(size: int, tokens: int) -> None:  # R8
    assert estimate(size, 3) == Usage(input_uncached=tokens, output=3, source="estimated")


def test_no_usage_is_labelled() -> None:
    assert (NO_USAGE.prompt, NO_USAGE.completion, NO_USAGE.source) == (0, 0, "none")
