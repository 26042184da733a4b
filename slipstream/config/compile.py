"""From what users wrote to the snapshot: defaults that depend on each other, overrides, and what is worth a note.

Precedence: flag, then file, then environment variable, then default. So ``PORT`` and ``ROUTER_POLICY`` (contracts E)
count where the file is silent, and a flag beats everything.

The rule that must not be broken: without a key nobody but this machine is served, unless somebody wrote a host.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec
from msgspec import UNSET

from ..errors import ConfigError
from ..types import FailureClass, Secret
from . import rules
from .schema import (
    LOG_LEVELS,
    MAX_PORT,
    MAX_WORKERS,
    POLICIES,
    ConfigFile,
    CorsFile,
    FinishFile,
    ProviderFile,
    ResilienceFile,
    ServerFile,
    Trigger,
)
from .snapshot import (
    AdmissionSpec,
    BreakerSpec,
    Cors,
    HedgeSpec,
    LimitsSpec,
    Price,
    ProviderSpec,
    ProviderType,
    ResilienceSpec,
    RetrySpec,
    RoutingSpec,
    ServerSpec,
    Snapshot,
    Timeouts,
)

LOOPBACK = "127.0.0.1"
ANY = "0.0.0.0"
DEFAULT_PORT = 8080
DEFAULT_POLICY = "weighted_round_robin"


@dataclass(frozen=True, slots=True)
class Overrides:
    """What flags of the command line say; ``None`` where they say nothing."""

    host: str | None = None
    port: int | None = None
    workers: int | None = None
    log_level: str | None = None


@dataclass(frozen=True, slots=True)
class Ambient:
    """What environment variables say where the file is silent."""

    port: int | None = None
    policy: str | None = None
    admin_token: Secret | None = None


def override_problems(overrides: Overrides) -> list[str]:
    """Flags are checked here and not by click, so that ``serve`` and programs get the same answers."""
    problems = []
    if overrides.host is not None and rules.host(overrides.host) is not None:
        problems.append(f"--host: {rules.host(overrides.host)}")
    if overrides.port is not None and not 0 <= overrides.port <= MAX_PORT:
        problems.append(f"--port: is out of range; it must be between 0 and {MAX_PORT}")
    if overrides.workers is not None and not 1 <= overrides.workers <= MAX_WORKERS:
        problems.append(f"--workers: is out of range; it must be between 1 and {MAX_WORKERS}")
    if overrides.log_level is not None and overrides.log_level not in LOG_LEVELS:
        problems.append(f"--log-level: is not known{rules.nearest(overrides.log_level, list(LOG_LEVELS))}")
    return problems


def ambient_from(env: Mapping[str, str]) -> tuple[Ambient, list[str]]:
    """The variables that count with or without a file, and what is wrong with them. Empty is unset."""
    problems: list[str] = []
    port = policy = None
    if env.get("PORT"):
        text = env["PORT"].strip()
        if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_PORT:
            port = int(text)
        else:
            problems.append(f"environment: PORT: must be a whole number between 0 and {MAX_PORT}")
    if env.get("ROUTER_POLICY"):
        if env["ROUTER_POLICY"] in POLICIES:
            policy = env["ROUTER_POLICY"]
        else:
            problems.append(f"environment: ROUTER_POLICY: must be one of {', '.join(POLICIES)}")
    token = env.get("ADMIN_TOKEN") or None
    if token is not None and rules.header_value(token) is not None:
        problems.append(f"environment: ADMIN_TOKEN: {rules.header_value(token)}")
    return Ambient(port, policy, Secret(token) if token is not None else None), problems


def compile_config(
    config: ConfigFile,
    *,
    source: str,
    folder: Path,
    overrides: Overrides,
    ambient: Ambient,
    provider_types: Mapping[str, ProviderType],
) -> tuple[Snapshot, list[str]]:
    """The snapshot of a checked configuration, and notes for whoever starts the server."""
    problems = override_problems(overrides)
    if problems:
        raise ConfigError(problems)
    snapshot = Snapshot(
        server=_server(config.server, folder, overrides, ambient),
        routing=RoutingSpec(
            policy=config.routing.policy or ambient.policy or DEFAULT_POLICY,
            retries=config.routing.retries,
            retry_on=_triggers(config.routing.retry_on),
            fallbacks=_chains(config.routing.fallbacks),
            context_fallbacks=_chains(config.routing.context_fallbacks),
            content_filter_fallbacks=_chains(config.routing.content_filter_fallbacks),
            strict_params=config.routing.strict_params,
            on_disconnect={name: _least(policy) for name, policy in config.routing.on_disconnect.items()},
        ),
        providers=tuple(_provider(provider, provider_types) for provider in config.providers),
        resilience=_resilience(config.resilience),
        verify_ssl=config.verify_ssl,
        ca_file=str(folder / config.ca_file) if config.ca_file is not None else None,
        source=source,
    )
    asked = overrides.host is not None or config.server.host is not None
    return snapshot, _notes(snapshot, asked, provider_types)


def _triggers(written: list[Trigger] | None) -> frozenset[FailureClass] | None:
    return None if written is None else frozenset(FailureClass[label.upper()] for label in written)


def _chains(written: Mapping[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {model: tuple(others) for model, others in written.items()}


def _resilience(written: ResilienceFile) -> ResilienceSpec:
    hedge, admission = written.hedge, written.admission
    return ResilienceSpec(
        breaker=BreakerSpec(**msgspec.structs.asdict(written.breaker)),
        retry=RetrySpec(**msgspec.structs.asdict(written.retry)),
        hedge=HedgeSpec(
            enabled=hedge.enabled,
            delay_s=None if hedge.delay_ms is None else hedge.delay_ms / 1000,
            budget_share=hedge.budget_share,
        ),
        admission=AdmissionSpec(
            max_in_flight=admission.max_in_flight,
            queue=admission.queue,
            queue_wait_s=admission.queue_wait_s,
            adaptive=admission.adaptive,
            max_rss_bytes=admission.max_rss_mb << 20,
            max_lag_s=admission.max_lag_ms / 1000,
        ),
        probe_s=written.probe_s,
    )


def resolve_host(host: str | None, has_key: bool) -> str:
    """The address to listen on when ``host`` is what was written, if anything was."""
    return host or (ANY if has_key else LOOPBACK)


def _server(server: ServerFile, folder: Path, overrides: Overrides, ambient: Ambient) -> ServerSpec:
    has_key = server.master_api_key is not None
    ports = (overrides.port, server.port, ambient.port, DEFAULT_PORT)
    return ServerSpec(
        host=resolve_host(overrides.host or server.host, has_key),
        port=next(port for port in ports if port is not None),
        workers=overrides.workers or server.workers,
        master_api_key=server.master_api_key,
        max_body_bytes=server.max_body_bytes,
        max_connections=server.max_connections,
        cors=_cors(server.cors, has_key),
        heartbeat_s=server.heartbeat_s,
        log_level=overrides.log_level or server.log_level,
        access_log=server.access_log,
        state_dir=str(folder / server.state_dir) if server.state_dir is not None else None,
        admin_token=ambient.admin_token,
    )


def _cors(cors: bool | CorsFile | None, has_key: bool) -> Cors:
    """Without a key, any page that a browser on this machine opens could spend through an open CORS."""
    if cors is None:
        cors = has_key
    if isinstance(cors, bool):
        return Cors() if cors else Cors(origins=())
    return Cors(tuple(dict.fromkeys(cors.origins)), cors.max_age_s)


def _least(policy: str | FinishFile) -> int | None:
    """After how many tokens an answer is read to its end, whoever has left; ``None``: never."""
    if isinstance(policy, FinishFile):
        return policy.finish_after_tokens
    return 0 if policy == "finish" else None


def _provider(written: ProviderFile, provider_types: Mapping[str, ProviderType]) -> ProviderSpec:
    default_base = provider_types[written.type].default_base
    limits = written.timeout
    return ProviderSpec(
        name=written.name,
        type=written.type,
        api_base=(written.api_base or default_base or "").rstrip("/"),
        api_key=written.api_key or Secret(""),
        weight=written.weight,
        models=tuple(name for name in written.models if not name.endswith("*")),
        patterns=tuple(name[:-1] for name in written.models if name.endswith("*")),
        model_mapping=dict(written.model_mapping),
        timeouts=Timeouts(limits.connect_s, limits.first_byte_s, limits.idle_s, limits.total_s, limits.send_s),
        max_connections=written.max_connections,
        headers=dict(written.headers),
        price=_price(written),
        limits=LimitsSpec(**msgspec.structs.asdict(written.limits)),
        region=written.region,
        api_version=written.api_version,
        mock=_mock(written) if written.type == "mock" else None,
    )


def _price(written: ProviderFile) -> Price | None:
    if written.price is not None:
        return Price(written.price.input, written.price.output)
    cost = written.mock.cost_per_1k_tokens_usd if written.mock is not None else UNSET
    return None if cost is UNSET else Price(cost * 1000, cost * 1000)


def _mock(written: ProviderFile) -> dict[str, float | int | None]:
    if written.mock is None:
        return {}
    values = ((name, getattr(written.mock, name)) for name in written.mock.__struct_fields__)
    return {name: value for name, value in values if value is not UNSET}


def _notes(snapshot: Snapshot, host_asked: bool, provider_types: Mapping[str, ProviderType]) -> list[str]:
    notes = []
    if snapshot.server.master_api_key is None:
        if snapshot.server.host in (LOOPBACK, "localhost", "::1"):
            why = (
                ""
                if host_asked
                else " only; set server.master_api_key, or server.host / --host, to be reached from elsewhere"
            )
            notes.append(f"no master_api_key: listening on {snapshot.server.host}{why}")
        else:
            notes.append(
                f"no master_api_key: whoever reaches {snapshot.server.host} can use the providers at your cost"
            )
    if not snapshot.verify_ssl:
        notes.append("verify_ssl is false: the providers' certificates are not checked")
    keyless = [p.name for p in snapshot.providers if provider_types[p.type].needs_key and not p.api_key]
    if keyless:
        notes.append(f"no api_key, so requests go out without one: {', '.join(keyless)}")
    return notes
