"""The provider types we know. One row each; a provider that is more than a row gets a file of its own.

Base URLs and quirks: ../shared/wire/PROTOCOLS.md sections 1.1, 1.2 and 2.9.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from .base import ProviderType

_ROWS = (
    # Any OpenAI-compatible API; with the default base, OpenAI itself.
    ProviderType("openai", default_base="https://api.openai.com/v1"),
    ProviderType("vllm", needs_key=False, needs_base=True),
    # Together, DeepSeek, Groq and OpenRouter report usage in streams without being asked.
    ProviderType("together", default_base="https://api.together.xyz/v1", ask_usage=False),
    ProviderType("deepseek", default_base="https://api.deepseek.com", ask_usage=False),
    # Mistral refuses fields it does not know with a 422, max_completion_tokens among them.
    ProviderType(
        "mistral",
        default_base="https://api.mistral.ai/v1",
        ask_usage=False,
        rename=(("max_completion_tokens", "max_tokens"),),
        owned_by="mistralai",
    ),
    ProviderType("groq", default_base="https://api.groq.com/openai/v1", ask_usage=False),
    ProviderType("openrouter", default_base="https://openrouter.ai/api/v1", ask_usage=False),
    # Runs in this process (slipstream.mock); without api_base the server starts one on a free loopback port.
    ProviderType("mock", needs_key=False),
)

PROVIDER_TYPES: Mapping[str, ProviderType] = MappingProxyType({row.name: row for row in _ROWS})
