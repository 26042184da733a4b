"""What a Claude model takes and refuses, read from its name: the one table of it (Bedrock's Claude uses it too).

A request that says what a model refuses is answered with 400, so the differences have to be known before it is sent.
Sources: PROTOCOLS.md 1.2 and 2.3 (temperature, budgets, prefill, effort); platform.claude.com/docs as of November 2026:
"What's new in Claude Opus 5.5", the migration guides of Opus 5, Sonnet 5, Sonnet 5.5 and Haiku 5.5, the models
overview; AWS, "Adaptive thinking" (Fable 5, Mythos Preview); the API's error "`temperature` and `top_p` cannot both
be specified" (reported for Opus 4.1, for all of 4.5 and for 4.6). Structured outputs are recorded for 4.5
(#66ce35f1).

The rule that must not be broken: a model that is newer than the table gets the row of its newest relative, which sends
less, never more. A name that is no Claude's (Ollama, DeepSeek, ... speak this API too) gets what all of them take.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import lru_cache

LOW_TO_HIGH = ("low", "medium", "high")
LOW_TO_MAX = (*LOW_TO_HIGH, "max")
EVERY_EFFORT = (*LOW_TO_HIGH, "xhigh", "max")
_SEPARATORS = re.compile(r"[-.:@/_]+")
_END_OF_NAME = re.compile(r"\d{3,}|v\d+|latest|preview|thinking")
_NEWEST = (99, 0)


@dataclass(frozen=True, slots=True)
class Traits:
    """``sampling``: takes temperature, top_p and top_k; ``both``: temperature and top_p in one request. ``prefill``:
    the last message may be the assistant's. ``budget``: ``thinking.enabled``; ``adaptive``: ``thinking.adaptive``.
    ``off``: the ``thinking.type`` that turns it off, empty where it is off unless asked for, ``None`` where it never
    is. ``efforts``: values of ``output_config.effort``. ``omits``: thinking comes back without its text unless a
    summary is asked for. ``forced``: takes a ``tool_choice`` that forces a call. ``structured``:
    ``output_config.format`` and strict tools. ``max_output``: most tokens of an answer."""

    sampling: bool = True
    both: bool = False
    prefill: bool = True
    budget: bool = True
    adaptive: bool = False
    off: str | None = ""
    efforts: tuple[str, ...] = ()
    omits: bool = False
    forced: bool = True
    structured: bool = True
    max_output: int = 64_000


_OTHER = Traits(both=True, off="disabled", max_output=8_192)
_CLAUDE_3 = Traits(both=True, budget=False, structured=False, max_output=4_096)
_CLAUDE_3_5 = replace(_CLAUDE_3, max_output=8_192)
_CLAUDE_3_7 = Traits(both=True, structured=False)
_OPUS_4 = replace(_CLAUDE_3_7, max_output=32_000)
_OPUS_4_1 = Traits(max_output=32_000)
_CLAUDE_4_5 = Traits()
_OPUS_4_5 = Traits(efforts=LOW_TO_HIGH)
_CLAUDE_4_6 = Traits(prefill=False, adaptive=True, efforts=LOW_TO_HIGH)
_OPUS_4_6 = replace(_CLAUDE_4_6, efforts=LOW_TO_MAX)
_OPUS_4_7 = Traits(
    sampling=False, prefill=False, budget=False, adaptive=True, efforts=EVERY_EFFORT, omits=True, max_output=128_000
)
_CLAUDE_5 = replace(_OPUS_4_7, off="disabled")
_ALWAYS_THINKS = replace(_OPUS_4_7, off=None)
_OPUS_5_5 = replace(_ALWAYS_THINKS, forced=False)
_SONNET_5_5 = replace(_CLAUDE_5, off="between_tools", forced=False)

# Families (empty: any), from which version on, and the traits; the first row that fits.
_ROWS: tuple[tuple[tuple[str, ...], tuple[int, int], Traits], ...] = (
    (("fable", "mythos"), (5, 1), _OPUS_5_5),
    (("fable", "mythos"), (0, 0), _ALWAYS_THINKS),
    (("opus",), (5, 5), _OPUS_5_5),
    (("sonnet",), (5, 5), _SONNET_5_5),
    ((), (5, 0), _CLAUDE_5),
    ((), (4, 7), _OPUS_4_7),
    (("opus",), (4, 6), _OPUS_4_6),
    ((), (4, 6), _CLAUDE_4_6),
    (("opus",), (4, 5), _OPUS_4_5),
    ((), (4, 5), _CLAUDE_4_5),
    (("opus",), (4, 1), _OPUS_4_1),
    (("opus",), (4, 0), _OPUS_4),
    ((), (3, 7), _CLAUDE_3_7),
    ((), (3, 5), _CLAUDE_3_5),
    ((), (0, 0), _CLAUDE_3),
)


@lru_cache(maxsize=256)
def traits(model: str) -> Traits:
    """The traits of ``model``, whatever is written around its name (``us.anthropic.claude-opus-4-6-v1``)."""
    _, found, name = model.lower().rpartition("claude-")
    if not found:
        return _OTHER
    family, version = _read(name)
    for families, since, row in _ROWS:
        if version >= since and (not families or family in families):
            return row
    return _CLAUDE_3


def _read(name: str) -> tuple[str, tuple[int, int]]:
    """Family and version: ``3-5-sonnet-20241022``, ``opus-4-20250514``, ``haiku-4-5@20251001``, ``opus-4.6``."""
    family = ""
    numbers: list[int] = []
    for word in _SEPARATORS.split(name):
        if _END_OF_NAME.fullmatch(word):
            break
        if word.isascii() and word.isdigit():
            numbers.append(int(word))
        elif not family:
            family = word
    if not numbers:
        return family, _NEWEST if family not in ("fable", "mythos") else (0, 0)
    return family, (numbers[0], numbers[1] if len(numbers) > 1 else 0)
