"""Starting without a file: environment variables alone (contracts E), or the embedded demo.

The environment becomes the same ``ConfigFile`` that a file would give, so that everything after it is shared.

The rule that must not be broken: a variable that is set but useless is told, by its name and never by its value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from ..errors import ConfigError
from ..types import Secret
from . import rules
from .compile import DEFAULT_PORT, LOOPBACK, Overrides, override_problems
from .schema import MAX_TIMEOUT_S, ConfigFile, MockFile, ProviderFile, ServerFile
from .snapshot import Cors, Price, ProviderSpec, ProviderType, RoutingSpec, ServerSpec, Snapshot

# What OpenAI's models are called: without these, OPENAI_API_KEY alone would serve one model only.
OPENAI_FAMILIES = ("gpt-*", "chatgpt-*", "o1*", "o3*", "o4*", "text-embedding-*")

NOTHING = (
    "nothing is configured; start in one of three ways: 'slipstream serve --demo' (two mock providers, no key needed), "
    "'slipstream serve --config FILE' (or CONFIG_PATH, or ./config.yaml), or environment variables alone "
    "(OPENAI_API_KEY=..., or ENABLE_MOCK_PROVIDER=1)"
)


def config_from_environment(
    env: Mapping[str, str], provider_types: Mapping[str, ProviderType]
) -> tuple[ConfigFile | None, list[str], list[str]]:
    """A configuration, or none; the problems; and notes."""
    reading = _Reading(env, provider_types)
    providers = [p for p in (reading.openai(), reading.bedrock(), reading.mock()) if p is not None]
    key = reading.secret("MASTER_API_KEY")
    if env.get("MASTER_API_KEY") == "":
        # Compose files pass empty variables on; here that would open the gateway to everybody.
        reading.problem("MASTER_API_KEY", "is set but empty; give it a value, or unset it to run without a key")
    if reading.problems:
        return None, reading.problems, reading.notes
    if not providers:
        return None, [NOTHING, *reading.notes], []
    return ConfigFile(providers=providers, server=ServerFile(master_api_key=key)), [], reading.notes


class _Reading:
    """One pass over the environment. An empty variable is an unset one, except where that is dangerous."""

    def __init__(self, env: Mapping[str, str], provider_types: Mapping[str, ProviderType]) -> None:
        self.env = env
        self.types = provider_types
        self.problems: list[str] = []
        self.notes: list[str] = []

    def problem(self, variable: str, text: str) -> None:
        self.problems.append(f"environment: {variable}: {text}")

    def text(self, variable: str, default: str, rule: rules.Rule) -> str:
        value = self.env.get(variable) or default
        fault = rule(value) if value else None
        if fault is not None:
            self.problem(variable, fault)
        return value

    def secret(self, variable: str) -> Secret | None:
        value = self.text(variable, "", rules.header_value)
        return Secret(value) if value else None

    def number(self, variable: str, default: float, most: float) -> float:
        text = self.env.get(variable)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 <= value <= most:
            self.problem(variable, f"must be a number between 0 and {most:g}")
            return default
        return value

    def openai(self) -> ProviderFile | None:
        key = self.secret("OPENAI_API_KEY")
        if key is None:
            return None
        model = self.text("OPENAI_MODEL", "gpt-4o", rules.model)
        return ProviderFile(name="openai", type="openai", api_key=key, models=[model, *OPENAI_FAMILIES])

    def bedrock(self) -> ProviderFile | None:
        pair = self.env.get("AWS_ACCESS_KEY_ID") and self.env.get("AWS_SECRET_ACCESS_KEY")
        if not (pair or self.env.get("AWS_PROFILE")):
            return None
        if "bedrock" not in self.types:
            self.notes.append("AWS credentials are set, but this build has no provider of type bedrock: not used")
            return None
        model = self.text("BEDROCK_MODEL_ID", "", rules.model)
        if not model:
            self.notes.append("AWS credentials are set, but BEDROCK_MODEL_ID is not: Bedrock is not used")
            return None
        region = self.text("BEDROCK_REGION", self.env.get("REGION") or "us-east-1", rules.region)
        return ProviderFile(name="bedrock", type="bedrock", region=region, models=[model])

    def mock(self) -> ProviderFile | None:
        switch = self.env.get("ENABLE_MOCK_PROVIDER", "").strip().lower()
        if switch not in ("1", "true", "yes", "on"):
            if switch not in ("", "0", "false", "no", "off"):
                self.problem("ENABLE_MOCK_PROVIDER", "must be 1 or 0")
            return None
        if "mock" not in self.types:
            self.problem("ENABLE_MOCK_PROVIDER", "this build has no provider of type mock; unset it")
            return None
        mean = self.number("MOCK_MEAN_LATENCY_MS", 40.0, MAX_TIMEOUT_S * 1000)
        p95 = self.number("MOCK_P95_LATENCY_MS", 120.0, MAX_TIMEOUT_S * 1000)
        errors = self.number("MOCK_ERROR_RATE", 0.01, 1.0)
        cost = self.number("MOCK_COST_PER_1K_TOKENS_USD", 0.002, 1e6)
        if p95 < mean:
            self.problem("MOCK_P95_LATENCY_MS", "is less than MOCK_MEAN_LATENCY_MS; swap or raise it")
        settings = MockFile(mean_latency_ms=mean, p95_latency_ms=p95, error_rate=errors, cost_per_1k_tokens_usd=cost)
        return ProviderFile(name="mock", type="mock", models=["mock", "*"], mock=settings)


def demo_snapshot(overrides: Overrides) -> Snapshot:
    """``slipstream serve --demo``: two mocks of different speed and price, port 8080, no key, this machine only."""
    problems = override_problems(overrides)
    if problems:
        raise ConfigError(problems)
    return Snapshot(
        server=ServerSpec(
            host=overrides.host or LOOPBACK,
            port=DEFAULT_PORT if overrides.port is None else overrides.port,
            workers=overrides.workers or 1,
            log_level=overrides.log_level or "info",
            cors=Cors(origins=()),
        ),
        routing=RoutingSpec(),
        providers=(
            _demo("mock-fast", Price(2.5, 10.0), mean_latency_ms=20.0, p95_latency_ms=60.0, tokens_per_s=400.0),
            _demo("mock-cheap", Price(0.15, 0.6), mean_latency_ms=80.0, p95_latency_ms=200.0, tokens_per_s=100.0),
        ),
        source="demo",
    )


def _demo(name: str, price: Price, **mock: float) -> ProviderSpec:
    return ProviderSpec(
        name=name,
        type="mock",
        api_base="",
        api_key=Secret(""),
        models=("demo", name.replace("mock", "demo")),
        patterns=("mock/",),
        price=price,
        mock=dict(mock, error_rate=0.0),
    )
