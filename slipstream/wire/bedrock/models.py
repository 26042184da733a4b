"""What a model behind Converse takes and refuses, read from its id: the one table of it.

Converse is one API in front of many vendors' models; fields of it that a model does not have are answered with 400.
Ids are ``vendor.name``, with a region group before it (``us.``, ``global.``) for inference profiles, or an ARN that
ends so. The ARN of an application profile says nothing: such a model is *opaque*, and gets what its client asks for.

Sources: PROTOCOLS.md 2.5; Amazon Bedrock user guide, "Supported models and model features" and "Carry out a
conversation with the Converse API operations" (which model has system prompts, tools, tool choice, prompt caching);
service model of botocore 1.43; "Nova 2: extended thinking". Claude's own table is ``wire.anthropic.traits``.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

from ..anthropic.traits import traits

_VENDORS = "ai21|amazon|anthropic|cohere|deepseek|google|luma|meta|minimax|mistral|moonshot(?:ai)?|nvidia|openai|qwen"
_ID = re.compile(rf"(?:^|[./])({_VENDORS}|stability|twelvelabs|writer|zai)\.([a-z0-9][^/]*)$")
_REGION_GROUP = re.compile(r"(?:us-gov|us|eu|apac|ap|au|ca|jp|sa|global)\.(?=[a-z0-9]+\.)")


class Model(NamedTuple):
    """``vendor`` is empty for an opaque id; ``name`` has no vendor."""

    vendor: str
    name: str

    @property
    def opaque(self) -> bool:
        return not self.vendor

    @property
    def claude(self) -> bool:
        return self.vendor == "anthropic"

    @property
    def nova(self) -> bool:
        return self.vendor == "amazon" and self.name.startswith("nova")

    @property
    def nova_2(self) -> bool:
        return self.vendor == "amazon" and self.name.startswith("nova-2")

    @property
    def rich(self) -> bool:
        """Has cache points, the status of a tool result and signed reasoning: Claude and Nova (service model)."""
        return self.claude or self.nova or self.opaque

    @property
    def takes_system(self) -> bool:
        if self.vendor == "amazon":
            return not self.name.startswith("titan")
        return not (self.vendor == "mistral" and self.name.startswith(("mistral-7b", "mixtral")))

    @property
    def takes_tool_choice(self) -> bool:
        """Of the others ``toolChoice`` is refused with 400."""
        return self.vendor not in ("ai21", "cohere", "meta") and not self.name.startswith(("titan", "r1"))

    @property
    def structured(self) -> bool:
        """Takes ``outputConfig.textFormat`` and strict tools. Of those vendors no model has it ("Structured
        outputs")."""
        if self.claude:
            return traits(self.name).structured
        return self.vendor not in ("ai21", "amazon", "cohere", "meta", "writer")

    @property
    def json_results(self) -> bool:
        """Wants tool results as JSON, not as text."""
        return self.vendor == "mistral"

    @property
    def top_k(self) -> tuple[str, ...]:
        """Where ``top_k`` is in ``additionalModelRequestFields``; empty if it has none."""
        if self.nova:
            return "inferenceConfig", "topK"
        if self.vendor == "cohere":
            return ("k",)
        return ("top_k",) if self.vendor in ("anthropic", "mistral", "") else ()


@lru_cache(maxsize=256)
def read_model(model_id: str) -> Model:
    """What ``model_id`` says."""
    lower = model_id.lower()
    found = _ID.search(lower)
    if found is not None:
        return Model(found[1], found[2])
    if "claude-" in lower:
        return Model("anthropic", lower[lower.rindex("claude-") :])
    return Model("", lower)


def without_region_group(model_id: str) -> str:
    """The id of the model itself: ``us.anthropic.claude-x`` is a profile of ``anthropic.claude-x``."""
    return _REGION_GROUP.sub("", model_id, count=1) if _REGION_GROUP.match(model_id) else model_id
