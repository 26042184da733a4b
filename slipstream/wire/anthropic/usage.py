"""Anthropic's usage objects in our disjoint buckets (R67; PROTOCOLS.md 1.4, 2.3).

``input_tokens`` excludes what was read from and written to the cache; thinking is inside ``output_tokens`` and only
newer models say how much of it (``output_tokens_details.thinking_tokens``).

The rule that must not be broken: the counts of a stream are cumulative. Each field is taken from ``message_delta`` if
it is there and from ``message_start`` if not; nothing is ever added up.
"""

from __future__ import annotations

from ..canonical import Json
from ..usage import MAX_TOKENS, Usage

_COUNTS = ("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
_GROUPS = ("cache_creation", "output_tokens_details")


def read_usage(usage: object) -> Usage | None:
    """A ``usage`` object; ``None`` if it has no usable counts."""
    if not isinstance(usage, dict):
        return None
    prompt, output = _count(usage.get("input_tokens")), _count(usage.get("output_tokens"))
    if prompt is None and output is None:
        return None
    output = output or 0
    reasoning = min(_inner(usage, "output_tokens_details", "thinking_tokens"), output)
    written = _count(usage.get("cache_creation_input_tokens"))
    if written is None:
        written = _inner(usage, "cache_creation", "ephemeral_5m_input_tokens")
        written += _inner(usage, "cache_creation", "ephemeral_1h_input_tokens")
    read = _count(usage.get("cache_read_input_tokens")) or 0
    return Usage(prompt or 0, read, written, output - reasoning, reasoning, "provider")


def merge(old: Json, new: object) -> Json:
    """``old`` with what ``new`` says: the usage of a stream so far, for ``read_usage``."""
    if not isinstance(new, dict):
        return old
    merged = dict(old)
    for name in _COUNTS:
        if _count(new.get(name)) is not None:
            merged[name] = new[name]
    for name in _GROUPS:
        if isinstance(new.get(name), dict):
            merged[name] = new[name]
    return merged


def _count(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS:
        return value
    return None


def _inner(usage: Json, group: str, name: str) -> int:
    inner = usage.get(group)
    return _count(inner.get(name)) or 0 if isinstance(inner, dict) else 0
