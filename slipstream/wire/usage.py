"""Token usage in one canonical form: disjoint buckets (R67).

OpenAI's ``prompt_tokens`` includes cached tokens and ``completion_tokens`` includes reasoning (PROTOCOLS.md 1.4: both
are parts, not additions), so they are taken apart here and never added up again by guesswork.
"""

from __future__ import annotations

import msgspec

from .codec import DecodeError, TypeMismatch, decoder, loads


class Usage(msgspec.Struct, frozen=True, gc=False):
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
MAX_TOKENS = 1 << 40
"""A provider that counts more is not believed: sums of it would not fit the shared counters."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None


class _Counts(msgspec.Struct, gc=False):
    """The counts of the family under all the names they have (PROTOCOLS.md 1.4)."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None
    cached_tokens: int | None = None
    prompt_cache_hit_tokens: int | None = None
    prompt_tokens_details: _Details | None = None
    completion_tokens_details: _Details | None = None


_read = decoder(_Counts)


def read_openai_usage(span: bytes) -> Usage | None:
    """A ``usage`` object of the OpenAI family; ``None`` if it has no usable counts.

    Details are clamped to what they are part of: Azure-hosted Grok reports more cached than prompt tokens
    (PROTOCOLS.md 1.4).
    """
    try:
        counts = _read(span)
    except TypeMismatch:
        counts = _salvage(span)
    except DecodeError:
        return None
    prompt, completion = _valid(counts.prompt_tokens), _valid(counts.completion_tokens)
    if prompt is None and completion is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    inputs, outputs = counts.prompt_tokens_details, counts.completion_tokens_details
    cached = _valid(inputs.cached_tokens) if inputs is not None else None
    if cached is None:
        cached = _valid(counts.cached_tokens) or _valid(counts.prompt_cache_hit_tokens) or 0
    cached = min(cached, prompt)
    reasoning = (_valid(outputs.reasoning_tokens) if outputs is not None else None) or 0
    if reasoning and counts.total_tokens == prompt + completion + reasoning:
        completion += reasoning  # xAI counts reasoning outside of completion (PROTOCOLS.md 1.4)
    reasoning = min(reasoning, completion)
    return Usage(prompt - cached, cached, 0, completion - reasoning, reasoning, "provider")


def _valid(number: int | None) -> int | None:
    return number if number is not None and 0 <= number <= MAX_TOKENS else None


def _salvage(span: bytes) -> _Counts:
    """What can be used of an object that has something else than a whole number where one belongs."""
    value = loads(span)
    if not isinstance(value, dict):
        return _Counts()
    counts = _Counts()
    for name in ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_cache_hit_tokens"):
        setattr(counts, name, _whole(value.get(name)))
    for name, inner in (("prompt_tokens_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens")):
        group = value.get(name)
        if isinstance(group, dict):
            setattr(counts, name, _Details(**{inner: _whole(group.get(inner))}))
    return counts


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def estimate(prompt_bytes: int, completion_tokens: int) -> Usage:
    """What was probably used when the provider did not say (R8): four bytes a prompt token, one token a content
    event.
    """
    return Usage(input_uncached=max(1, (prompt_bytes + 3) // 4), output=completion_tokens, source="estimated")
