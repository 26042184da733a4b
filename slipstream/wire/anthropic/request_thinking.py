"""How much a Claude model is to think: ``reasoning_effort`` and ``thinking`` to what the model takes (PROTOCOLS.md
1.2).

Models up to 4.5 take a budget of tokens, 4.6 a budget or ``adaptive`` with an effort, later ones ``adaptive`` only;
some always think, and those of version 5 do unless told not to. Which model does what stands in ``traits``.

Efforts as budgets (none is documented; the API's least is 1,024): see ``_BUDGETS``. A budget counts against
``max_tokens`` and must be below it, so at least a quarter of what the client allows is left for the answer.
"""

from __future__ import annotations

import msgspec

from ...errors import ClientError
from ..canonical import Json
from .request_parts import note
from .traits import EVERY_EFFORT, Traits

MIN_BUDGET = 1_024
"""API reference, "thinking.budget_tokens"."""
ANSWER_TOKENS = 8_192
"""Left for the answer beside a budget where the client does not say how long it may be."""
_BUDGETS = {"minimal": 1_024, "low": 2_048, "medium": 8_192, "high": 16_384, "xhigh": 24_576, "max": 49_152}
_EFFORTS = ("none", "minimal", *EVERY_EFFORT)
_WITHOUT_THINKING = EVERY_EFFORT[: EVERY_EFFORT.index("high") + 1]
"""Efforts with which thinking may be turned off (What's new in Opus 5.5, in Sonnet 5.5)."""


class Thinking(msgspec.Struct, gc=False):
    """``field``: the ``thinking`` of the request for Anthropic; ``effort``: its ``output_config.effort``."""

    max_tokens: int
    field: Json | None = None
    effort: str | None = None

    @property
    def on(self) -> bool:
        """Whether it was asked for. Models that think unasked take no sampling parameters anyway."""
        return self.field is not None and self.field["type"] in ("enabled", "adaptive")


class Limits(msgspec.Struct, gc=False):
    """What stands around the wish. ``given``: the client's ``max_tokens``; ``default``: ours. ``forced``: a tool call
    is forced. ``bare_loop``: the tool loop that goes on has no thinking block (``Conversation``)."""

    given: int | None
    default: int
    forced: bool = False
    bare_loop: bool = False


def unasked(traits: Traits, given: int | None, default: int) -> Thinking:
    """The room of a request that does not speak of thinking; the limits are those of ``Limits``."""
    return Thinking(given if given is not None else min(default, traits.max_output))


def plan(request: Json, traits: Traits, limits: Limits, dropped: list[str]) -> Thinking:
    """The thinking of a request, and with it the room it needs. Raises ``ClientError``."""
    asked, effort = _asked(request), _effort(request)
    thinking = unasked(traits, limits.given, limits.default)
    if asked is None and effort is None:
        return thinking
    field = "thinking" if asked is not None else "reasoning_effort"
    kind = asked["type"] if asked is not None else "disabled" if effort == "none" else "adaptive"
    if kind == "disabled" or (kind == "between_tools" and traits.off != kind):
        done = _off(thinking, effort, traits)
    elif kind == "between_tools":
        thinking.field, thinking.effort = asked, _nearest(effort, _WITHOUT_THINKING)
        done = True
    elif _clashes(kind, traits, limits):
        thinking.effort = _nearest(effort, traits.efforts)
        done = False
    elif traits.adaptive and not (kind == "enabled" and traits.budget):
        done = _adaptive(thinking, asked, effort, traits)
    else:
        done = traits.budget and _budget(thinking, asked, effort, traits, limits)
    if not done:
        note(dropped, field)
    return thinking


def _clashes(kind: str, traits: Traits, limits: Limits) -> bool:
    """Whether the API would refuse thinking here: with a forced call (unless the model thinks unasked), or with a
    budget in a tool loop whose assistant turn does not begin with a thinking block ("Extended thinking with tool
    use")."""
    budget = traits.budget and (kind == "enabled" or not traits.adaptive)
    return (limits.forced and (budget or traits.off == "")) or (limits.bare_loop and budget)


def _asked(request: Json) -> Json | None:
    value = request.get("thinking")
    if value is None:
        return None
    if isinstance(value, dict) and value.get("type") in ("enabled", "adaptive", "disabled", "between_tools"):
        return value
    raise ClientError(
        "'thinking' must be an object whose 'type' is enabled, adaptive or disabled.",
        param="thinking",
        code="invalid_value",
    )


def _effort(request: Json) -> str | None:
    value = request.get("reasoning_effort")
    if value is None or (isinstance(value, str) and value in _EFFORTS):
        return value
    raise ClientError(
        f"'reasoning_effort' must be one of {', '.join(_EFFORTS)}.", param="reasoning_effort", code="invalid_value"
    )


def _off(thinking: Thinking, effort: str | None, traits: Traits) -> bool:
    if traits.off is None:  # it cannot be turned off: as little as possible
        thinking.effort = _nearest("low" if effort in (None, "none") else effort, traits.efforts)
        return False
    if traits.off:
        thinking.field = {"type": traits.off}
    thinking.effort = _nearest(effort, tuple(e for e in traits.efforts if e in _WITHOUT_THINKING or not traits.off))
    return True


def _adaptive(thinking: Thinking, asked: Json | None, effort: str | None, traits: Traits) -> bool:
    field: Json = {"type": "adaptive"}
    if asked is not None:
        if asked.get("display") is not None:
            field["display"] = asked["display"]
        if asked["type"] == "enabled" and effort is None:
            effort = _effort_of(asked.get("budget_tokens"))
    elif traits.omits:  # chat clients that ask for reasoning read it as ``reasoning_content``
        field["display"] = "summarized"
    thinking.field, thinking.effort = field, _nearest(effort, traits.efforts)
    return True


def _budget(thinking: Thinking, asked: Json | None, effort: str | None, traits: Traits, limits: Limits) -> bool:
    """A budget and room for it. False: the client's ``max_tokens`` leaves none."""
    wanted = asked.get("budget_tokens") if asked is not None else None
    exact = isinstance(wanted, int) and not isinstance(wanted, bool)
    budget = wanted if exact and wanted is not None else _BUDGETS.get(effort or "medium", MIN_BUDGET)
    if limits.given is None:
        room = budget + ANSWER_TOKENS
        thinking.max_tokens = max(thinking.max_tokens, room if exact else min(room, traits.max_output))
    if not exact:
        if thinking.max_tokens <= MIN_BUDGET:
            return False
        budget = max(MIN_BUDGET, min(budget, thinking.max_tokens * 3 // 4))
    thinking.field = {"type": "enabled", "budget_tokens": budget}
    if asked is not None:
        if asked.get("display") is not None:
            thinking.field["display"] = asked["display"]
        thinking.effort = _nearest(effort, traits.efforts)
    return True


def _nearest(effort: str | None, efforts: tuple[str, ...]) -> str | None:
    """The highest of ``efforts`` that is not above ``effort``, else the lowest."""
    if effort in (None, "none") or not efforts:
        return None
    most = _EFFORTS.index(effort)
    fitting = [known for known in efforts if _EFFORTS.index(known) <= most]
    return fitting[-1] if fitting else efforts[0]


def _effort_of(budget: object) -> str | None:
    """The effort that comes nearest to a budget."""
    if not isinstance(budget, int):
        return None
    fitting = [effort for effort in EVERY_EFFORT if _BUDGETS[effort] <= budget]
    return fitting[-1] if fitting else EVERY_EFFORT[0]
