"""Writes docs/translation.md: what each provider takes of what each client dialect can say.

    python docs/generate_matrix.py

Nothing in the table is written by hand: every scenario is a small request in the client's dialect, which goes through
the same code as a client's (``wire.faces`` and the provider type's ``build``). A scenario also names *witnesses*, texts
that must be in what is sent: if one is missing and nothing was reported, the cell says LOST, and a test fails
(R65: nothing is dropped in silence).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path += [str(ROOT), str(ROOT / "docs")]  # at the end: an installed slipstream goes first

from matrix_scenarios import (  # noqa: E402
    COMPLETIONS,
    EMBEDDINGS,
    SCENARIOS,
    SMALLEST,
    Json,
    Scenario,
)

from slipstream.config.snapshot import ProviderSpec  # noqa: E402
from slipstream.errors import ClientError  # noqa: E402
from slipstream.providers.registry import PROVIDER_TYPES  # noqa: E402
from slipstream.types import Endpoint, Secret  # noqa: E402
from slipstream.wire.canonical import Built  # noqa: E402
from slipstream.wire.codec import dumps, loads  # noqa: E402
from slipstream.wire.faces import FACES  # noqa: E402

TARGET = ROOT / "docs" / "translation.md"
MODELS = {
    "openai": ("gpt-4.1", "gpt-5.1"),
    "azure": ("gpt-4.1", "gpt-5.1"),
    "vllm": ("Qwen/Qwen3-8B", "openai/gpt-oss-20b"),
    "together": ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "openai/gpt-oss-120b"),
    "deepseek": ("deepseek-chat", "deepseek-reasoner"),
    "mistral": ("mistral-large-latest", "mistral-small-latest"),
    "groq": ("llama-3.3-70b-versatile", "openai/gpt-oss-120b"),
    "openrouter": ("anthropic/claude-sonnet-4.5", "anthropic/claude-sonnet-4.5"),
    "fireworks": ("accounts/fireworks/models/llama-v3p3-70b-instruct", "accounts/fireworks/models/gpt-oss-120b"),
    "xai": ("grok-4", "grok-3-mini"),
    "perplexity": ("sonar", "sonar-deep-research"),
    "cerebras": ("llama-3.3-70b", "gpt-oss-120b"),
    "anthropic": ("claude-sonnet-4-5", "claude-sonnet-4-5"),
    "gemini": ("gemini-2.5-flash", "gemini-2.5-flash"),
    "bedrock": ("us.anthropic.claude-sonnet-4-5-20250929-v1:0", "us.anthropic.claude-sonnet-4-5-20250929-v1:0"),
    "ollama": ("llama3.3", "gpt-oss:20b"),
    "cohere": ("command-a-03-2025", "command-a-reasoning-08-2025"),
}
"""Asked for in all rows, and in those about reasoning."""
EMBEDDERS = {
    "gemini": "gemini-embedding-001",
    "bedrock": "cohere.embed-v4:0",
    "ollama": "nomic-embed-text",
    "cohere": "embed-v4.0",
}
# ------------------------------------------------------------------ cells


def spec(name: str) -> ProviderSpec:
    return ProviderSpec(
        name=name, type=name, api_base="https://provider.test/v1", api_key=Secret("key"), region="us-east-1"
    )


def ask(endpoint: Endpoint, provider: str, model: str, extra: Json) -> tuple[list[str], Built | None]:
    """What is reported, and what is sent (``None``: nothing is, the gateway answers by itself)."""
    kind = PROVIDER_TYPES[provider]
    body = {"model": "m", **SMALLEST[endpoint], **extra}
    request, lost = FACES[endpoint].decode(loads(dumps(body)))
    build: Callable[..., Built | None] = kind.build
    if endpoint is Endpoint.EMBEDDINGS:
        build = kind.build_embeddings
    elif endpoint is Endpoint.COUNT_TOKENS:
        build = kind.build_count
    built = build(request, spec(provider), model)
    return [*lost, *(built.dropped if built is not None else ())], built


def cell(endpoint: Endpoint, provider: str, scenario: Scenario, extra: Json | None) -> str:
    if extra is None:
        return ""
    model = EMBEDDERS[provider] if endpoint is Endpoint.EMBEDDINGS else MODELS[provider][scenario.reasoning]
    try:
        usual, _ = ask(endpoint, provider, model, {})
        dropped, built = ask(endpoint, provider, model, extra)
    except ClientError as error:
        return f"400 `{error.param}`"
    names = list(dict.fromkeys(name for name in dropped if name not in usual))
    if names:
        return "no: " + ", ".join(f"`{name}`" for name in names)
    sent = "" if built is None else built.body.decode()
    return "yes" if all(text in sent for text in scenario.seen) else "**LOST**"


def table(endpoint: Endpoint, providers: Iterable[str], scenarios: Iterable[Scenario], extra: str) -> str:
    names = list(providers)
    lines = [["", *names], ["---"] * (len(names) + 1)]
    for scenario in scenarios:
        more = getattr(scenario, extra)
        if more is not None:
            lines.append([scenario.name, *(cell(endpoint, name, scenario, more) for name in names)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def strangers(endpoint: Endpoint) -> list[str]:
    """The providers that do not speak the dialect of ``endpoint`` themselves."""
    return [name for name in MODELS if endpoint not in PROVIDER_TYPES[name].natives]


def counts() -> str:
    """Who counts tokens."""
    counting = [name for name in strangers(Endpoint.COUNT_TOKENS) if _counts(name)]
    estimated = [name for name in strangers(Endpoint.COUNT_TOKENS) if name not in counting]
    return (
        f"Passed on as it is: {_natives(Endpoint.COUNT_TOKENS)}. Asked in their own way: {', '.join(counting)}. Cannot "
        f"count, so we estimate and say so (`x-slipstream-usage-source: estimated`): {', '.join(estimated)}.\n"
    )


def _counts(name: str) -> bool:
    _, built = ask(Endpoint.COUNT_TOKENS, name, MODELS[name][0], {})
    return built is not None


def _natives(endpoint: Endpoint) -> str:
    return ", ".join(name for name in MODELS if endpoint in PROVIDER_TYPES[name].natives)


HEAD = """# What is translated, and what is not

Written by `docs/generate_matrix.py` from the code itself; do not edit.

Where a client speaks a provider's own dialect, its bytes are passed on as they are: every field arrives, also those
that nobody here has heard of. Only the model's name is changed. Such pairs are not in the tables.

For the others, a cell says what becomes of one request:

- **yes**: the provider gets it, under its own name and in its own form.
- **no: `name`**: the provider cannot be told. The request is served without it, and the answer names it in
  `x-slipstream-dropped-params`. With `routing.strict_params: true` it is refused instead, with a 400.
- **400 `name`**: refused; the error names the field and says what to do.

The columns are provider types, each asked for one of its usual models, and in the rows about reasoning for one that
reasons. Other models of the same provider may take more or less: what a model takes is looked up by its name.

| provider | model | in rows about reasoning |
| --- | --- | --- |
{models}
"""
SECTIONS = (
    (Endpoint.CHAT, "Chat completions", SCENARIOS, "chat"),
    (Endpoint.RESPONSES, "Responses", SCENARIOS, "responses"),
    (Endpoint.MESSAGES, "Messages", SCENARIOS, "messages"),
    (Endpoint.COMPLETIONS, "Completions", COMPLETIONS, "chat"),
)
INFER = """`prompt`, `model`, `max_tokens` and `stream` are all there is, and every provider takes them. `policy` and
`idempotency_key` are for the gateway.
"""


def render() -> str:
    """The whole document."""
    models = "\n".join(
        f"| {name} | `{usual}` | " + (f"`{reasoning}` |" if reasoning != usual else "the same |")
        for name, (usual, reasoning) in MODELS.items()
    )
    parts = [HEAD.format(models=models)]
    for endpoint, title, scenarios, extra in SECTIONS:
        parts.append(f"## {title}: `{endpoint.path}`\n\nPassed on as it is: {_natives(endpoint)}.\n")
        parts.append(table(endpoint, strangers(endpoint), scenarios, extra))
    none = [name for name in strangers(Endpoint.EMBEDDINGS) if name not in EMBEDDERS]
    parts.append(
        f"## Embeddings: `{Endpoint.EMBEDDINGS.path}`\n\nPassed on as it is: {_natives(Endpoint.EMBEDDINGS)}. "
    )
    parts[-1] += f"Have none (400 `model`): {', '.join(none)}.\n"
    parts.append(table(Endpoint.EMBEDDINGS, EMBEDDERS, EMBEDDINGS, "chat"))
    parts.append(f"## Counting tokens: `{Endpoint.COUNT_TOKENS.path}`\n")
    parts.append(counts())
    parts.append(f"## Infer: `{Endpoint.INFER.path}`\n\n{INFER}")
    return "\n".join(parts)


if __name__ == "__main__":
    TARGET.write_text(render(), encoding="utf-8")
