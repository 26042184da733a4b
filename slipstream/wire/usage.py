"""Token usage in one canonical form: disjoint buckets (R67).

OpenAI's ``prompt_tokens`` includes cached tokens and ``completion_tokens`` includes reasoning (PROTOCOLS.md 1.4: both
are parts, not additions), so they are taken apart here and never added up again by guesswork.
"""

from __future__ import annotations

from typing import Any

import msgspec

from .._fast import usage_counts
from .codec import DecodeError, TypeMismatch, decoder, loads


class Usage:
    """Tokens by bucket, never changed. ``output`` are completion tokens without reasoning; ``source``: ``provider``
    (counted by it), ``estimated`` (by us) or ``none``."""

    __slots__ = (
        "cache_read", "cache_write", "completion", "input_uncached", "output", "prompt", "reasoning", "source",
    )  # fmt: skip

    def __init__(
        self,
        input_uncached: int = 0,
        cache_read: int = 0,
        cache_write: int = 0,
        output: int = 0,
        reasoning: int = 0,
        source: str = "none",
    ) -> None:
        self.input_uncached = input_uncached
        self.cache_read = cache_read
        self.cache_write = cache_write
        self.output = output
        self.reasoning = reasoning
        self.source = source
        self.prompt = input_uncached + cache_read + cache_write
        """All input tokens, as OpenAI counts ``prompt_tokens``."""
        self.completion = output + reasoning
        """All output tokens, as OpenAI counts ``completion_tokens``."""

    def _buckets(self) -> tuple[int, int, int, int, int, str]:
        return self.input_uncached, self.cache_read, self.cache_write, self.output, self.reasoning, self.source

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Usage) and self._buckets() == other._buckets()

    def __hash__(self) -> int:
        return hash(self._buckets())

    def __repr__(self) -> str:
        return f"Usage{self._buckets()}"


NO_USAGE = Usage()
MAX_TOKENS = 1 << 40
"""A provider that counts more is not believed: sums of it would not fit the shared counters."""


class _Details(msgspec.Struct, gc=False):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    """OpenRouter's: written to the provider's cache, a part of the prompt that was not read from it."""
    reasoning_tokens: int | None = None


_NO_DETAILS = _Details()


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


def read_openai_usage(data: bytes, start: int = 0, end: int = -1) -> Usage | None:
    """The object ``data[start:end]``, a ``usage`` object of the OpenAI family; ``None`` if it has no usable counts.

    Details are clamped to what they are part of: Azure-hosted Grok reports more cached than prompt tokens
    (PROTOCOLS.md 1.4).
    """
    found = usage_counts(data, start, end)
    if found is not None:
        return _split(*found)
    span = data[start:] if end == -1 else data[start:end]
    try:
        counts = _read(span)
    except TypeMismatch:
        try:
            counts = _salvage(loads(span))
        except DecodeError:  # the two libraries do not refuse the same (1e999)
            return None
    except DecodeError:
        return None
    return _buckets(counts)


def usage_from(value: object) -> Usage | None:
    """The same for an object that is decoded already."""
    return _buckets(_salvage(value)) if isinstance(value, dict) else None


def usage_object(usage: Usage) -> dict[str, Any]:
    """``usage`` as OpenAI's object: cached tokens are a part of the prompt, reasoning a part of the completion. What
    was written to a cache has no name there; it goes by OpenRouter's, beside the part that was read."""
    inputs = {"cached_tokens": usage.cache_read}
    if usage.cache_write:
        inputs["cache_write_tokens"] = usage.cache_write
    prompt, completion = usage.prompt, usage.completion
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": inputs,
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning},
    }


def _buckets(counts: _Counts) -> Usage | None:
    inputs, outputs = counts.prompt_tokens_details or _NO_DETAILS, counts.completion_tokens_details or _NO_DETAILS
    cached = _valid(inputs.cached_tokens)
    if cached < 0:
        cached = max(_valid(counts.cached_tokens), 0) or _valid(counts.prompt_cache_hit_tokens)
    return _split(
        _valid(counts.prompt_tokens),
        _valid(counts.completion_tokens),
        _valid(counts.total_tokens),
        cached,
        _valid(inputs.cache_write_tokens),
        _valid(outputs.reasoning_tokens),
    )


def _split(prompt: int, completion: int, total: int, cached: int, written: int, reasoning: int) -> Usage | None:
    """Disjoint buckets of OpenAI's overlapping counts; -1 is for what was not said."""
    if prompt >= 0 and completion >= 0 and cached <= 0 and written <= 0 and reasoning <= 0:
        return Usage(prompt, 0, 0, completion, 0, "provider")  # nothing to take apart
    if prompt < 0 and completion < 0:
        return None
    prompt, completion = max(prompt, 0), max(completion, 0)
    cached = min(max(cached, 0), prompt)
    written = min(max(written, 0), prompt - cached)
    if reasoning > 0:
        if total == prompt + completion + reasoning:
            completion += reasoning  # xAI counts reasoning outside of completion (PROTOCOLS.md 1.4)
        reasoning = min(reasoning, completion)
    else:
        reasoning = 0
    return Usage(prompt - cached - written, cached, written, completion - reasoning, reasoning, "provider")


def _valid(number: int | None) -> int:
    """A count that may be believed, else -1."""
    return number if number is not None and 0 <= number <= MAX_TOKENS else -1


_NAMES = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_cache_hit_tokens")


def _salvage(value: object) -> _Counts:
    """What can be used of an object, also of one that has something else than a whole number where one belongs."""
    counts = _Counts()
    if not isinstance(value, dict):
        return counts
    for name in _NAMES:
        setattr(counts, name, _whole(value.get(name)))
    inputs, outputs = value.get("prompt_tokens_details"), value.get("completion_tokens_details")
    if isinstance(inputs, dict):
        counts.prompt_tokens_details = _Details(
            cached_tokens=_whole(inputs.get("cached_tokens")),
            cache_write_tokens=_whole(inputs.get("cache_write_tokens")),
        )
    if isinstance(outputs, dict):
        counts.completion_tokens_details = _Details(reasoning_tokens=_whole(outputs.get("reasoning_tokens")))
    return counts


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def estimate(prompt_bytes: int, completion_tokens: int) -> Usage:
    """What was probably used when the provider did not say (R8): four bytes a prompt token, one token a content
    event.
    """
    return Usage(input_uncached=max(1, (prompt_bytes + 3) // 4), output=completion_tokens, source="estimated")
