"""What a provider of the OpenAI family takes otherwise than OpenAI: one value per provider type, only data.

Owns the shape of the data; the values stand in the rows of ``providers.registry``. The defaults are the cautious ones:
a server that nobody told us about gets OpenAI's oldest and most common form.
"""

from __future__ import annotations

from dataclasses import dataclass

EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "max")
"""All values of ``reasoning_effort``, the least first."""


@dataclass(frozen=True, slots=True)
class ChatQuirks:
    """How chat requests for one provider type are written (PROTOCOLS.md 1.2, 2.8, 2.9)."""

    developer: bool = False
    """Knows the role ``developer``; all others get ``system``."""
    completion_tokens: bool = False
    """Wants ``max_completion_tokens`` for models that reason, takes either name for the others. ``False``: knows
    ``max_tokens`` in any case."""
    rename: tuple[tuple[str, str], ...] = ()
    """Fields that it spells differently."""
    fields: frozenset[str] | None = None
    """It answers 400 or 422 to any field that is not one of these. ``None``: it takes, or ignores, what it does not
    know."""
    extras: frozenset[str] = frozenset()
    """Which of ``top_k``, ``min_p`` and ``repetition_penalty`` it takes."""
    cache_control: bool = False
    """Takes Anthropic's cache marks."""

    thinking: str = ""
    """What becomes of ``thinking``: ``effort``: a ``reasoning_effort``, for ``reasoning_models`` only; ``toggle``:
    ``{"type": "enabled" | "disabled"}`` beside an effort (DeepSeek); ``reasoning``: OpenRouter's object; empty: nothing
    can be said."""
    reasoning_models: tuple[str, ...] = ()
    """What the names of models that reason start with (behind the last ``/``)."""
    efforts: tuple[str, ...] = EFFORTS[:-1]
    """The values of ``reasoning_effort`` that it knows, the least first; others become the next lower one."""
    xhigh_models: tuple[str, ...] | None = None
    """Parts of the names of models that know efforts beyond ``high``; ``None``: all do that ``efforts`` says."""

    reasoning_back: bool = False
    """Wants the ``reasoning_content`` of earlier turns back when the request has tools."""
    reasoning_details: bool = False
    """Takes the reasoning of earlier turns back in any case, as ``reasoning`` or ``reasoning_details`` (OpenRouter)."""

    required_tool: str = "required"
    """Its word for the ``tool_choice`` that demands some call."""
    tool_id_exact: int = 0
    """Tool call ids must have exactly so many ASCII letters and digits (Mistral); 0: any form."""
    tool_id_max: int = 0
    """Longest tool call id; 0: no limit."""
    custom_tools: bool = False
    """Knows tools of type ``custom``."""
    tool_parts: bool = False
    """Tool messages may hold images; elsewhere these move into a user message behind the results."""
    bridge_tool_user: bool = False
    """A user message must not follow a tool message (Mistral)."""
    json_schema: bool = True
    """Knows the ``response_format`` ``json_schema``; otherwise only ``json_object``."""
    document_url: bool = False
    """Takes files as ``document_url`` parts (Mistral) instead of ``file`` parts."""

    def reasons(self, model: str) -> bool:
        """Whether ``model`` is known to reason."""
        return model.rpartition("/")[2].lower().startswith(self.reasoning_models)

    def effort(self, wanted: str, model: str) -> str | None:
        """The effort to ask for instead of ``wanted``; ``None`` if there is none like it (``none`` is never guessed:
        no reasoning at all is another answer, not a lower effort)."""
        known = self.efforts
        if self.xhigh_models is not None and wanted == "max" and not any(m in model for m in self.xhigh_models):
            known = known[: known.index("high") + 1]
        if wanted in known or wanted not in EFFORTS:
            return wanted
        if wanted == "none":
            return None
        some = [effort for effort in known if effort != "none"]
        lower = [effort for effort in some if EFFORTS.index(effort) < EFFORTS.index(wanted)]
        return lower[-1] if lower else some[0] if some else None


PLAIN = ChatQuirks()
OPENAI = ChatQuirks(
    developer=True,
    completion_tokens=True,
    thinking="effort",
    reasoning_models=("o1", "o3", "o4", "gpt-5", "gpt-6"),
    xhigh_models=("gpt-5.2", "gpt-5.3", "gpt-5.4", "gpt-5.5", "gpt-5.6", "gpt-6", "codex-max"),
    tool_id_max=40,
    custom_tools=True,
)
"""OpenAI and Azure. Their reasoning models refuse ``max_tokens``, the others a ``reasoning_effort``; an unknown field
and a longer tool call id are a 400 (PROTOCOLS.md 1.2; pool)."""
