"""Token usage in one canonical form: disjoint buckets (R67).

OpenAI's ``prompt_tokens`` includes cached tokens and ``completion_tokens`` includes reasoning (PROTOCOLS.md 1.4: both
are parts, not additions), so they are taken apart here and never added up again by guesswork.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .codec import DecodeError, loads


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens by bucket. ``source``: ``provider`` (counted by it), ``estimated`` (by us) or ``none``."""

    input_uncached: int = 0
    cache_read: int = 0
    cache_write: int = 0
    output: int = 0
    """Completion tokens without reasoning."""
    reasoning: int = 0
    source: str = "none"

    @property
    def prompt(self) -> int:
        """All input tokens, as OpenAI counts ``prompt_tokens``."""
        return self.input_uncached + self.cache_read + self.cache_write

    @property
    def completion(self) -> int:
        """All output tokens, as OpenAI counts ``completion_tokens``."""
        return self.output + self.reasoning


NO_USAGE = Usage()


def read_openai_usage(span: bytes) -> Usage | None:
    """A ``usage`` object of the OpenAI family; ``None`` if it has no usable counts.

    Details are clamped to what they are part of: Azure-hosted Grok reports more cached than prompt tokens
    (PROTOCOLS.md 1.4).
    """
    try:
        value = loads(span)
    except DecodeError:
        return None
    if not isinstance(value, dict):
        return None
    prompt, completion = _count(value, "prompt_tokens"), _count(value, "completion_tokens")
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    cached = _detail(value, "prompt_tokens_details", "cached_tokens")
    if cached is None:
        cached = _count(value, "cached_tokens") or _count(value, "prompt_cache_hit_tokens")
    reasoning = _detail(value, "completion_tokens_details", "reasoning_tokens")
    cached, reasoning = min(cached or 0, prompt), min(reasoning or 0, completion)
    return Usage(
        input_uncached=prompt - cached,
        cache_read=cached,
        output=completion - reasoning,
        reasoning=reasoning,
        source="provider",
    )


def estimate(prompt_bytes: int, completion_tokens: int) -> Usage:
    """What was probably used when the provider did not say (R8): four bytes a prompt token, one token a content
    event.
    """
    return Usage(input_uncached=max(1, (prompt_bytes + 3) // 4), output=completion_tokens, source="estimated")


def _count(value: dict[str, Any], key: str) -> int | None:
    number = value.get(key)
    return number if isinstance(number, int) and not isinstance(number, bool) and number >= 0 else None


def _detail(value: dict[str, Any], group: str, key: str) -> int | None:
    inner = value.get(group)
    return _count(inner, key) if isinstance(inner, dict) else None
