"""How much a model is to think: every vendor has a form of its own in ``additionalModelRequestFields`` (PROTOCOLS.md
1.2).

Claude's is planned by ``wire.anthropic`` (budgets, adaptive thinking, which model takes which); Nova 2 takes
``reasoningConfig``, OpenAI's models an effort. The others think or do not, whatever is said, which is reported.
"""

from __future__ import annotations

import msgspec

from ...errors import ClientError
from ..anthropic.request_thinking import Limits, plan
from ..anthropic.traits import Traits
from ..canonical import Json
from .dropped import Dropped
from .models import Model

_LEVELS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "high", "max": "high"}
_NOTHING = ("none", "disabled")
LOW_BUDGET, MEDIUM_BUDGET = 2_048, 8_192
"""Budgets up to which an explicit ``thinking`` means low and medium effort (as ``wire.anthropic`` reads efforts)."""


class Reasoning(msgspec.Struct):
    """``fields`` of ``additionalModelRequestFields``, Converse's own ``effort``; ``max_tokens`` where they need
    another limit than the client's. ``on``: sampling is refused while it thinks; ``lone``: so is every inference
    parameter."""

    fields: Json = {}
    effort: str | None = None
    max_tokens: int | None = None
    on: bool = False
    lone: bool = False


def read_reasoning(request: Json, model: Model, traits: Traits | None, limits: Limits, dropped: Dropped) -> Reasoning:
    """``traits``: of a Claude model, ``None`` for others."""
    if request.get("thinking") is None and request.get("reasoning_effort") is None:
        return Reasoning()
    if traits is not None:
        return _claude(request, traits, limits, dropped)
    if model.opaque and isinstance(request.get("thinking"), dict):
        return Reasoning(fields={"thinking": request["thinking"]})  # who hides the model knows what it takes
    level = _level(request)
    if level in _NOTHING:
        if model.name.startswith(("r1", "gpt-oss")):  # these always think
            dropped.add(_source(request))
        return Reasoning()
    if model.nova_2:
        fields = {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": level}}
        return Reasoning(fields=fields, lone=level == "high")
    if model.vendor == "openai":
        oss = model.name.startswith("gpt-oss")
        return Reasoning(fields={"reasoning_effort": level} if oss else {"reasoning": {"effort": level}})
    dropped.add(_source(request))
    return Reasoning()


def _claude(request: Json, traits: Traits, limits: Limits, dropped: Dropped) -> Reasoning:
    thinking = plan(request, traits, limits, dropped.names)
    return Reasoning(
        fields={} if thinking.field is None else {"thinking": thinking.field},
        effort=thinking.effort,
        max_tokens=thinking.max_tokens if thinking.on else None,
        on=thinking.on,
    )


def _level(request: Json) -> str:
    """``low``, ``medium``, ``high``, or one of ``_NOTHING``."""
    thinking = request.get("thinking")
    if thinking is None:
        effort = request["reasoning_effort"]
        if not isinstance(effort, str) or (effort not in _LEVELS and effort not in _NOTHING):
            raise ClientError(
                "'reasoning_effort' must be none, minimal, low, medium, high, xhigh or max.",
                param="reasoning_effort",
                code="invalid_value",
            )
        return _LEVELS.get(effort, effort)
    if not isinstance(thinking, dict) or not isinstance(thinking.get("type"), str):
        raise ClientError("'thinking' must be an object with a 'type'.", param="thinking", code="invalid_type")
    if thinking["type"] == "disabled":
        return "disabled"
    budget = thinking.get("budget_tokens")
    if not isinstance(budget, int):
        return _LEVELS.get(str(request.get("reasoning_effort")), "medium")
    return "low" if budget <= LOW_BUDGET else "medium" if budget <= MEDIUM_BUDGET else "high"


def _source(request: Json) -> str:
    return "thinking" if request.get("thinking") is not None else "reasoning_effort"
