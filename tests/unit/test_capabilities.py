"""What is known of models by their names."""

from __future__ import annotations

import pytest

from slipstream.providers.capabilities import Capabilities, capabilities


@pytest.mark.parametrize(
    ("name", "flags", "context"),
    [
        ("gpt-4o", "vtj", 128_000),
        ("gpt-4o-2024-08-06", "vtj", 128_000),
        ("openai/gpt-5-mini", "vtjr", 400_000),
        ("gpt-5.1-chat-latest", "vtj", 128_000),
        ("o3", "vtjr", 200_000),
        ("o4-mini", "vtjr", 200_000),
        ("us.anthropic.claude-opus-4-6-v1", "vtjr", 1_000_000),
        ("anthropic.claude-opus-4-5-20251101-v1:0", "vtjr", 200_000),
        ("anthropic/claude-3-5-sonnet", "vt", 200_000),
        ("models/gemini-2.5-flash", "vtjr", 1_048_576),
        ("us.deepseek.r1-v1:0", "tr", 128_000),
        ("deepseek.v3.2", "tr", 128_000),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "t", 131_072),
    ],
)
def test_families(name: str, flags: str, context: int) -> None:
    found = capabilities(name)
    assert found == Capabilities("v" in flags, "t" in flags, "j" in flags, "r" in flags, context)


@pytest.mark.parametrize("name", ["m", "", "my-own", "foo3", "turbo3", "text-embedding-3-small"])
def test_unknown_is_not_incapable(name: str) -> None:
    assert capabilities(name) is None
