"""What well-known model families can do, by name: for lists that people read and for routing by capability.

Names are matched without the vendor's and the region's prefix, so ``us.anthropic.claude-opus-4-6-v1``,
``anthropic/claude-opus-4-6`` and ``claude-opus-4-6`` are one. The first row that fits counts. A model that is in no row
is unknown (``None``), which is not the same as incapable.

Sources: the providers' model pages and litellm's ``model_prices_and_context_window`` (PROTOCOLS.md section 6), read
October 2026. Context windows are tokens.
"""

from __future__ import annotations

import re
from typing import NamedTuple


class Capabilities(NamedTuple):
    """``json_schema``: answers after a schema are enforced, not only asked for."""

    vision: bool
    tools: bool
    json_schema: bool
    reasoning: bool
    context_window: int | None = None


def _row(pattern: str, flags: str, context_window: int | None = None) -> tuple[re.Pattern[str], Capabilities]:
    """``flags``: v(ision), t(ools), j(son schema), r(easoning)."""
    return re.compile(pattern), Capabilities("v" in flags, "t" in flags, "j" in flags, "r" in flags, context_window)


_ROWS = (
    # OpenAI
    _row(r"gpt-5[\w.]*-chat", "vtj", 128_000),
    _row(r"gpt-5", "vtjr", 400_000),
    _row(r"gpt-4\.1", "vtj", 1_047_576),
    _row(r"gpt-4o|chatgpt-4o", "vtj", 128_000),
    _row(r"gpt-4-turbo", "vt", 128_000),
    _row(r"gpt-4", "t", 8_192),
    _row(r"gpt-3\.5-turbo", "t", 16_385),
    _row(r"gpt-oss", "tjr", 131_072),
    _row(r"o1-mini", "r", 128_000),
    _row(r"o[134](?:-|$)", "vtjr", 200_000),
    # Anthropic
    _row(r"claude-(?:opus-4-[678]|sonnet-(?:4-6|5)|opus-5)", "vtjr", 1_000_000),
    _row(r"claude-(?:opus|sonnet|haiku)-4-[15]", "vtjr", 200_000),
    _row(r"claude-(?:opus|sonnet)-4", "vtr", 200_000),
    _row(r"claude-3-7", "vtr", 200_000),
    _row(r"claude-3", "vt", 200_000),
    # Google
    _row(r"gemini-(?:[3-9]|2\.5)", "vtjr", 1_048_576),
    _row(r"gemini-2\.0-flash-lite", "vtj", 1_048_576),
    _row(r"gemini-2|gemini-1\.5", "vtj", 1_048_576),
    _row(r"gemma-?3", "v", 131_072),
    # DeepSeek
    _row(r"deepseek[.-]?(?:reasoner|r1)", "tr", 128_000),
    _row(r"deepseek[.-]?(?:chat|v3)", "tr", 128_000),
    # Mistral
    _row(r"magistral", "tjr", 128_000),
    _row(r"pixtral|mistral-(?:medium|small)", "vtj", 128_000),
    _row(r"mistral-large|codestral|ministral", "tj", 128_000),
    # Meta, Alibaba, Amazon, xAI, Cohere
    _row(r"llama-?4", "vt", 131_072),
    _row(r"llama-?3[.-]2-(?:11|90)b", "vt", 131_072),
    _row(r"llama-?3", "t", 131_072),
    _row(r"qwen-?3", "tr", 131_072),
    _row(r"qwen-?2", "t", 131_072),
    _row(r"nova-(?:pro|lite|premier)", "vt", 300_000),
    _row(r"nova-micro", "t", 128_000),
    _row(r"grok-(?:4|3-mini)", "vtjr", 131_072),
    _row(r"grok", "tj", 131_072),
    _row(r"command-(?:a|r)", "tj", 128_000),
)


def capabilities(model: str) -> Capabilities | None:
    """What the model of this name can do; ``None`` for one that we do not know."""
    name = model.lower().rsplit("/", 1)[-1]
    for pattern, found in _ROWS:
        at = pattern.search(name)
        if at is not None and (at.start() == 0 or name[at.start() - 1] in ".-:_"):
            return found
    return None
