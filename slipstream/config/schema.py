"""The configuration file as users write it: the names, types, ranges and defaults, and nothing else.

The Structs are the one source of truth: the reader (``walk``) checks the file against them, ``describe.json_schema``
publishes them, ``compile`` turns them into the snapshot. System C's file (contracts C) is a subset and works unchanged.

The rule that must not be broken: whatever may hold a credential is a ``Secret`` here already, so that no ``repr`` of
anything that was read can show one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType, field

from ..types import Secret
from . import rules

POLICIES = ("weighted_round_robin", "cheapest", "fastest_p95", "slo_burn_aware", "canary")
LOG_LEVELS = ("debug", "info", "warning", "error")

MAX_PORT = 65535
MAX_WORKERS = 512
MAX_WEIGHT = 1000
"""Exact smooth weighted round robin walks a cycle of the sum of weights: keep it short."""
MAX_TIMEOUT_S = 86_400.0
MAX_BODY_BYTES = 1 << 30

Policy = Literal["weighted_round_robin", "cheapest", "fastest_p95", "slo_burn_aware", "canary"]
LogLevel = Literal["debug", "info", "warning", "error"]
Trigger = Literal[
    "connect", "timeout", "transport", "rate_limited", "overloaded", "server", "malformed", "auth", "quota"
]
"""What may be tried again: the outcomes of ``slipstream_upstream_attempts`` that are about the provider."""

Seconds = Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S)]
Dollars = Annotated[float, Meta(ge=0)]
Millis = Annotated[float, Meta(ge=0, le=MAX_TIMEOUT_S * 1000)]
ModelName = Annotated[str, Meta(extra={"rule": rules.model})]
HeaderName = Annotated[str, Meta(extra={"rule": rules.header_name})]
HeaderValue = Annotated[Secret, Meta(extra={"rule": rules.header_value})]


def _doc(text: str, rule: rules.Rule | None = None, **extra: Any) -> Meta:
    if rule is not None:
        extra["rule"] = rule
    return Meta(description=text, extra=extra)


class TimeoutFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The independent limits of an upstream call, in seconds."""

    connect_s: Annotated[Seconds, _doc("To reach the provider: DNS, TCP and TLS.")] = 5.0
    send_s: Annotated[Seconds, _doc("The longest time in which the provider reads nothing of a large request.")] = 30.0
    first_byte_s: Annotated[
        Seconds | None,
        _doc("To the first content of a stream, or to the head of a whole reply; without it 60, or total_s."),
    ] = None
    idle_s: Annotated[Seconds, _doc("The longest silence within an answer.")] = 300.0
    total_s: Annotated[Seconds, _doc("The whole call.")] = 600.0


class PriceFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """US dollars per million tokens."""

    input: Annotated[Dollars, _doc("Per million prompt tokens.")] = 0.0
    output: Annotated[Dollars, _doc("Per million completion tokens.")] = 0.0


class MockFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How a provider of type mock behaves. What is not written is the mock's own default."""

    mean_latency_ms: Annotated[Millis | UnsetType, _doc("Mean of the log-normal latency.")] = UNSET
    p95_latency_ms: Annotated[Millis | UnsetType, _doc("95th percentile of the latency; not below the mean.")] = UNSET
    ttft_ms: Annotated[Millis | UnsetType | None, _doc("Time to the first token; null follows the latency.")] = UNSET
    tokens_per_s: Annotated[
        Annotated[float, Meta(gt=0)] | UnsetType | None, _doc("Speed of a stream; null is as fast as it goes.")
    ] = UNSET
    error_rate: Annotated[
        Annotated[float, Meta(ge=0, le=1)] | UnsetType, _doc("Share of the requests that fail, 0 to 1.")
    ] = UNSET
    error_status: Annotated[
        Annotated[int, Meta(ge=400, le=599)] | UnsetType, _doc("HTTP status of those that fail.")
    ] = UNSET
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**63 - 1)] | UnsetType | None, _doc("Makes latencies and errors repeatable.")
    ] = UNSET
    cost_per_1k_tokens_usd: Annotated[
        Dollars | UnsetType, _doc("Price per thousand tokens, used when there is no price.")
    ] = UNSET


class LimitsFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What a provider may be asked for."""

    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000, description="Requests at once, per worker.")] = 1024
    queue: Annotated[int, Meta(ge=0, le=1_000_000, description="Requests that may wait for one of these.")] = 1024
    requests_per_min: Annotated[
        Annotated[int, Meta(ge=1)] | None, _doc("Its own limit, over all workers; learned from its headers too.")
    ] = None
    tokens_per_min: Annotated[
        Annotated[int, Meta(ge=1)] | None, _doc("Its own limit, over all workers; learned from its headers too.")
    ] = None


class ProviderFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """One provider: where it is, what it serves, how it is spoken to."""

    name: Annotated[str, _doc("Unique; appears in metrics, logs and a response header.", rules.provider_name)]
    type: Annotated[str, _doc("How it is spoken to; openai fits every OpenAI-compatible API.")] = "openai"
    api_base: Annotated[
        str | None, _doc("Root of its API, as the OpenAI SDK's base_url; each type may have a default.", rules.url)
    ] = None
    api_key: Annotated[
        Secret | None, _doc("Credential; write ${NAME} and keep it out of the file.", rules.header_value, empty_ok=True)
    ] = None
    weight: Annotated[
        int,
        Meta(
            ge=0,
            le=MAX_WEIGHT,
            description="Share of the requests; 0 gives none, but some provider of a model needs one.",
        ),
    ] = 1
    models: Annotated[
        list[Annotated[str, Meta(extra={"rule": rules.model_pattern})]],
        _doc("What it serves; an entry that ends in * is a prefix. Without models and model_mapping: every model."),
    ] = field(default_factory=list)
    model_mapping: Annotated[dict[ModelName, ModelName], _doc("Public model name -> name at this provider.")] = field(
        default_factory=dict
    )
    timeout: TimeoutFile = TimeoutFile()
    max_connections: Annotated[int, Meta(ge=1, le=65536, description="Open connections to it, at most.")] = 1024
    headers: Annotated[dict[HeaderName, HeaderValue], _doc("Extra request headers.")] = field(default_factory=dict)
    price: Annotated[PriceFile | None, _doc("US dollars per million tokens.")] = None
    limits: LimitsFile = LimitsFile()
    region: Annotated[str | None, _doc("Cloud region, where the type has regions.", rules.region)] = None
    api_version: Annotated[str | None, _doc("API version, where the type wants one.", rules.region)] = None
    mock: Annotated[MockFile | None, _doc("Behaviour of a provider of type mock.")] = None


class CorsFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """Who may call from a browser."""

    origins: Annotated[
        list[Annotated[str, Meta(extra={"rule": rules.origin})]], _doc("Allowed origins; '*' is any.")
    ] = field(default_factory=lambda: ["*"])
    max_age_s: Annotated[int, Meta(ge=0, le=86_400, description="How long a browser keeps the answer.")] = 600


class ServerFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The listening side."""

    host: Annotated[
        str | None,
        _doc("Address to listen on; without it 0.0.0.0 if there is a master_api_key, else 127.0.0.1.", rules.host),
    ] = None
    port: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_PORT)] | None,
        _doc("Without it the variable PORT, else 8080; 0 picks a free one."),
    ] = None
    master_api_key: Annotated[
        Secret | None, _doc("What clients must send; write ${NAME} and keep it out of the file.", rules.header_value)
    ] = None
    workers: Annotated[int, Meta(ge=1, le=MAX_WORKERS, description="Processes.")] = 1
    cors: Annotated[
        bool | CorsFile | None,
        _doc("true: any origin, false: off, or the details. Not written: any origin if there is a key, else off."),
    ] = None
    max_body_bytes: Annotated[
        int, Meta(ge=1024, le=MAX_BODY_BYTES, description="The largest request body, decompressed.")
    ] = 64 * 1024 * 1024
    max_connections: Annotated[
        int,
        Meta(
            ge=1,
            le=1_000_000,
            description="Client connections at once, per worker; more are told 503, but for health checks.",
        ),
    ] = 20_000
    heartbeat_s: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_TIMEOUT_S)],
        _doc("Seconds of silence after which a stream gets a heartbeat; 0 turns them off."),
    ] = 15.0
    log_level: LogLevel = "info"
    access_log: Annotated[bool, _doc("One line per request.")] = False
    state_dir: Annotated[
        str | None, _doc("Where counters and spend survive a restart; relative to the file.", rules.path)
    ] = None


class FinishFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """An answer that is read to its end when its client leaves late."""

    finish_after_tokens: Annotated[int, Meta(ge=1, description="Only if it has so many tokens by then.")]


class RoutingFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How a provider is chosen, and what happens when it fails."""

    policy: Annotated[Policy | None, _doc("Without it the variable ROUTER_POLICY, else weighted_round_robin.")] = None
    strict_params: Annotated[
        bool, _doc("Refuse requests with settings that the provider has no words for, instead of reporting them.")
    ] = False
    retries: Annotated[int, Meta(ge=0, le=10, description="Further attempts after the first.")] = 2
    retry_on: Annotated[
        list[Trigger] | None, _doc("Failures after which a further attempt is made; without it after all of these.")
    ] = None
    fallbacks: Annotated[dict[ModelName, list[ModelName]], _doc("Model -> models that are tried after it.")] = field(
        default_factory=dict
    )
    context_fallbacks: Annotated[
        dict[ModelName, list[ModelName]], _doc("Model -> models for prompts that are too long for it.")
    ] = field(default_factory=dict)
    content_filter_fallbacks: Annotated[
        dict[ModelName, list[ModelName]], _doc("Model -> models for prompts that its provider refused to answer.")
    ] = field(default_factory=dict)
    on_disconnect: Annotated[
        dict[Annotated[str, Meta(extra={"rule": rules.model_pattern})], Literal["cancel", "finish"] | FinishFile],
        _doc("Model, or prefix with *: whether its answer is read to the end for the accounts when a client leaves."),
    ] = field(default_factory=dict)


class BreakerFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """When a target is shut out, and how it comes back."""

    enabled: bool = True
    consecutive: Annotated[int, Meta(ge=1, le=1000, description="Failures in a row.")] = 5
    window_calls: Annotated[int, Meta(ge=1, le=100_000, description="Calls before a share of failures counts.")] = 20
    error_share: Annotated[float, Meta(gt=0, le=1, description="Share of failures within a minute.")] = 0.5
    cooldown_s: Annotated[Seconds, _doc("The first time it is shut; longer each further time.")] = 30.0
    max_cooldown_s: Annotated[Seconds, _doc("The longest time it is shut.")] = 300.0
    max_ejected: Annotated[float, Meta(ge=0, le=1, description="Share of a pool that may be shut at once.")] = 0.5
    ramp_s: Annotated[Annotated[float, Meta(ge=0, le=3600)], _doc("From 10 % of its share back to all of it.")] = 10.0
    latency_factor: Annotated[
        Annotated[float, Meta(ge=0, le=1000)], _doc("Also shut what is so many times slower than its pool; 0 is off.")
    ] = 0.0


class RetryFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How many retries all requests together may make."""

    budget_share: Annotated[float, Meta(ge=0, le=10, description="Retries per request, over 10 seconds.")] = 0.2
    budget_per_s: Annotated[float, Meta(ge=0, le=100_000, description="And so many a second in any case.")] = 10.0


class HedgeFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """A second attempt beside one that is slow to begin."""

    enabled: bool = False
    delay_ms: Annotated[
        Annotated[float, Meta(gt=0, le=MAX_TIMEOUT_S * 1000)] | None,
        _doc("After this; without it the target's 95th percentile of the time to the first token."),
    ] = None
    budget_share: Annotated[float, Meta(ge=0, le=1, description="Extra requests, at most this share.")] = 0.08


class AdmissionFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """How much is let in before requests are turned away with 503."""

    max_in_flight: Annotated[int, Meta(ge=1, le=1_000_000, description="Requests at once, per worker.")] = 10_000
    queue: Annotated[int, Meta(ge=0, le=1_000_000, description="Requests that may wait.")] = 1024
    queue_wait_s: Annotated[Seconds, _doc("The longest wait, here or for a place at a provider.")] = 1.0
    adaptive: Annotated[bool, _doc("Let the length of the loop's turns move the cap, up to max_in_flight.")] = False
    max_rss_mb: Annotated[int, Meta(ge=0, le=1 << 20, description="Memory of a worker; 0 is no ceiling.")] = 0
    max_lag_ms: Annotated[
        Millis,
        _doc(
            "While turns of the event loop take five times as long, requests beyond what keeps a turn so short are "
            "turned away; 0 is never."
        ),
    ] = 10.0


class ResilienceFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """What happens in trouble."""

    breaker: BreakerFile = BreakerFile()
    retry: RetryFile = RetryFile()
    hedge: HedgeFile = HedgeFile()
    admission: AdmissionFile = AdmissionFile()
    probe_s: Annotated[
        Annotated[float, Meta(ge=0, le=MAX_TIMEOUT_S)],
        _doc("Seconds between health probes of targets that are idle or shut; 0 is none."),
    ] = 0.0


class ConfigFile(Struct, forbid_unknown_fields=True, frozen=True, kw_only=True):
    """The configuration of a Slipstream gateway."""

    providers: Annotated[list[ProviderFile], Meta(min_length=1, description="At least one.")]
    server: ServerFile = ServerFile()
    routing: RoutingFile = RoutingFile()
    resilience: ResilienceFile = ResilienceFile()
    verify_ssl: Annotated[bool, _doc("Check the providers' certificates.")] = True
    ca_file: Annotated[
        str | None, _doc("PEM file of certificate authorities to trust; relative to the file.", rules.path)
    ] = None
