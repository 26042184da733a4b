"""The provider types we know. One row each; a provider that is more than a row has a file of its own, which is
imported when a configuration first names it (R80: what nobody uses costs no start-up time).

Base URLs and quirks: ../shared/wire/PROTOCOLS.md sections 1.1, 1.2, 2.8 and 2.9, and the providers' own references.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib import import_module

from ..types import Endpoint
from ..wire.openai_chat.quirks import OPENAI, ChatQuirks
from .base import OPENAI_ENDPOINTS, ProviderType

_SAMPLING = frozenset({"top_k", "min_p", "repetition_penalty"})
_WITH_RESPONSES = OPENAI_ENDPOINTS | {Endpoint.RESPONSES}
_CHAT_AND_RESPONSES = frozenset({Endpoint.CHAT, Endpoint.RESPONSES})


def _fields(names: str) -> frozenset[str]:
    return frozenset(names.split())


_COMMON = _fields(
    "model messages temperature top_p max_tokens stream stop response_format tools tool_choice parallel_tool_calls "
    "reasoning_effort"
)
_MISTRAL = _COMMON | _fields(
    "n random_seed presence_penalty frequency_penalty prediction metadata prompt_mode safe_prompt"
)
_GROQ = _COMMON | _fields(
    "n max_completion_tokens stream_options seed presence_penalty frequency_penalty user service_tier reasoning_format "
    "include_reasoning search_settings documents citation_options compound_custom"
)
_CEREBRAS = _COMMON | _fields(
    "max_completion_tokens stream_options seed logprobs top_logprobs user reasoning_format clear_thinking"
)
_PERPLEXITY = _fields(
    "model messages temperature top_p top_k max_tokens stream response_format presence_penalty frequency_penalty "
    "reasoning_effort web_search_options search_mode search_domain_filter search_recency_filter return_images "
    "return_related_questions"
)

_ROWS = (
    # Any OpenAI-compatible API; with the default base, OpenAI itself.
    ProviderType("openai", default_base="https://api.openai.com/v1", natives=_WITH_RESPONSES, chat=OPENAI),
    ProviderType(
        "vllm",
        needs_key=False,
        needs_base=True,
        natives=OPENAI_ENDPOINTS,
        chat=ChatQuirks(extras=_SAMPLING, thinking="effort", efforts=("low", "medium", "high"), reasoning_back=True),
    ),
    # Together, DeepSeek, Groq and OpenRouter report usage in streams without being asked.
    ProviderType(
        "together",
        default_base="https://api.together.xyz/v1",
        ask_usage=False,
        chat=ChatQuirks(
            extras=_SAMPLING, thinking="effort", efforts=("low", "medium", "high"), reasoning_models=("gpt-oss",)
        ),
    ),
    # A request with tools must hold the reasoning of all earlier turns; without tools it is ignored (its guide
    # "Thinking Mode"). It maps efforts that it does not know itself.
    ProviderType(
        "deepseek",
        default_base="https://api.deepseek.com",
        ask_usage=False,
        natives=_CHAT_AND_RESPONSES,
        chat=ChatQuirks(
            thinking="toggle",
            efforts=("minimal", "low", "medium", "high", "xhigh", "max"),
            reasoning_back=True,
            json_schema=False,
        ),
    ),
    # Mistral refuses fields it does not know with a 422, max_completion_tokens among them.
    ProviderType(
        "mistral",
        default_base="https://api.mistral.ai/v1",
        ask_usage=False,
        rename=(("max_completion_tokens", "max_tokens"),),
        owned_by="mistralai",
        natives=frozenset({Endpoint.CHAT, Endpoint.EMBEDDINGS}),
        chat=ChatQuirks(
            rename=(("seed", "random_seed"),),
            fields=_MISTRAL,
            thinking="effort",
            reasoning_models=("mistral-small-latest", "mistral-small-26"),
            efforts=("none", "high"),
            required_tool="any",
            tool_id_exact=9,
            tool_parts=True,
            bridge_tool_user=True,
            document_url=True,
        ),
    ),
    # Its reference, "OpenAI Compatibility": logprobs, logit_bias and messages[].name are a 400.
    ProviderType(
        "groq",
        default_base="https://api.groq.com/openai/v1",
        ask_usage=False,
        natives=frozenset({Endpoint.CHAT}),
        chat=ChatQuirks(
            fields=_GROQ,
            thinking="effort",
            reasoning_models=("gpt-oss",),
            efforts=("none", "low", "medium", "high"),
        ),
    ),
    ProviderType(
        "openrouter",
        default_base="https://openrouter.ai/api/v1",
        ask_usage=False,
        natives=_WITH_RESPONSES,
        chat=ChatQuirks(extras=_SAMPLING, cache_control=True, thinking="reasoning", reasoning_details=True),
    ),
    ProviderType(
        "fireworks",
        default_base="https://api.fireworks.ai/inference/v1",
        natives=_WITH_RESPONSES,
        chat=ChatQuirks(
            extras=_SAMPLING,
            thinking="effort",
            reasoning_models=("gpt-oss", "qwen3", "glm-", "kimi-k2-thinking", "minimax-m", "deepseek-v"),
            reasoning_back=True,
        ),
    ),
    # Most of its models refuse an effort; those that always reason need none.
    ProviderType(
        "xai",
        default_base="https://api.x.ai/v1",
        natives=_CHAT_AND_RESPONSES,
        chat=ChatQuirks(thinking="effort", reasoning_models=("grok-3-mini",), efforts=("low", "medium", "high")),
    ),
    # Usage is on every chunk, there are no tools.
    ProviderType(
        "perplexity",
        default_base="https://api.perplexity.ai",
        ask_usage=False,
        natives=frozenset({Endpoint.CHAT}),
        lists_models=False,
        chat=ChatQuirks(
            fields=_PERPLEXITY,
            extras=frozenset({"top_k"}),
            thinking="effort",
            reasoning_models=("sonar-deep-research",),
            efforts=("minimal", "low", "medium", "high"),
        ),
    ),
    # Its reference, "OpenAI Compatibility": penalties, logit_bias and service_tier are a 400.
    ProviderType(
        "cerebras",
        default_base="https://api.cerebras.ai/v1",
        natives=frozenset({Endpoint.CHAT, Endpoint.COMPLETIONS}),
        chat=ChatQuirks(
            fields=_CEREBRAS,
            thinking="effort",
            reasoning_models=("gpt-oss",),
            efforts=("low", "medium", "high"),
        ),
    ),
    # Runs in this process (slipstream.mock); without api_base the server starts one on a free loopback port.
    ProviderType("mock", needs_key=False, chat=ChatQuirks(extras=_SAMPLING)),
)

_FILES = ("anthropic", "gemini", "bedrock", "azure", "ollama", "cohere")
"""Types with a file of their own: ``slipstream.providers.<name>``, attribute ``TYPE``."""


class _Types(Mapping[str, ProviderType]):
    """The types by name. Names cost nothing; a type in a file is imported when it is asked for."""

    __slots__ = ("_files", "_rows")

    def __init__(self, rows: tuple[ProviderType, ...], files: tuple[str, ...]) -> None:
        self._rows = {row.name: row for row in rows}
        self._files = files

    def __getitem__(self, name: str) -> ProviderType:
        if name not in self._files:
            return self._rows[name]
        found = import_module(f"{__package__}.{name}").TYPE
        assert isinstance(found, ProviderType)
        return found

    def __contains__(self, name: object) -> bool:
        return name in self._rows or name in self._files

    def __iter__(self) -> Iterator[str]:
        yield from self._rows
        yield from self._files

    def __len__(self) -> int:
        return len(self._rows) + len(self._files)


PROVIDER_TYPES: Mapping[str, ProviderType] = _Types(_ROWS, _FILES)
