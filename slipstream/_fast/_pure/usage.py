"""The specification of usage.pyx in plain Python: same answers.

The rule that must not be broken: change this file first, the compiled twin after it, the tests compare the two.
"""

from __future__ import annotations

from slipstream._fast._errors import JsonError

from .jsonscan import NULL, OBJECT, Node, parse

DEPTH = 512
DIGITS_MAX = 12
ABSENT = -1
PLAIN = ("prompt_tokens", "completion_tokens", "total_tokens", "cached_tokens", "prompt_cache_hit_tokens")


class _Odd(Exception):
    """Something that only a decoder can tell."""


def usage_counts(data: bytes, start: int = 0, end: int = -1) -> tuple[int, int, int, int, int, int] | None:
    """See usage.pyi."""
    if not isinstance(data, bytes):
        raise TypeError("data must be bytes")
    if end == -1:
        end = len(data)
    if not 0 <= start <= end <= len(data):
        raise ValueError("start and end are not offsets of data")
    try:
        members = parse(data, start, end, DEPTH).by_name
        prompt, completion, total, top, hit = (_number(data, members.get(name)) for name in PLAIN)
        cached = _member(data, members.get("prompt_tokens_details"), "cached_tokens")
        written = _member(data, members.get("prompt_tokens_details"), "cache_write_tokens")
        reasoning = _member(data, members.get("completion_tokens_details"), "reasoning_tokens")
    except (JsonError, _Odd):
        return None
    if cached < 0:
        cached = top if top > 0 else hit
    return prompt, completion, total, cached, written, reasoning


def _member(data: bytes, node: Node | None, name: str) -> int:
    if node is None or node.kind == NULL:
        return ABSENT
    if node.kind != OBJECT:
        raise _Odd
    return _number(data, node.by_name.get(name))


def _number(data: bytes, node: Node | None) -> int:
    if node is None or node.kind == NULL:
        return ABSENT
    text = data[node.start : node.end]
    if len(text) > DIGITS_MAX or not text.isdigit():
        raise _Odd
    return int(text)
