"""The compiled configuration: immutable, validated whole, swapped by one assignment.

Owns the shapes that the data plane reads. A request pins the snapshot it started with; a reload builds a new one and
never touches the old. Nothing here reads a file or knows how users write things (that is ``schema`` and ``load``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ..types import FailureClass, Secret


class ProviderType(Protocol):
    """What the configuration must know about a row of ``providers.registry`` (which is above us, so it is passed in).

    ``default_base`` is used when ``api_base`` is not written; ``needs_base``: there is no default and one must be
    written; ``needs_key``: the provider answers nobody without ``api_key``.
    """

    @property
    def default_base(self) -> str | None: ...

    @property
    def needs_key(self) -> bool: ...

    @property
    def needs_base(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Timeouts:
    """The independent limits of an upstream call, in seconds (R17); defaults from reliability.md Q18.

    ``first_byte_s`` runs to the first content of a stream, or to the header block of a whole reply. Not configured
    (``None``) it is 60 s for streams and ``total_s`` for whole replies, whose first byte comes when the model is done.
    ``send_s`` (S-46): nothing of a request that could not be written at once is read.
    """

    connect_s: float = 5.0
    first_byte_s: float | None = None
    idle_s: float = 300.0
    total_s: float = 600.0
    send_s: float = 30.0

    @property
    def stream_first_byte_s(self) -> float:
        return 60.0 if self.first_byte_s is None else self.first_byte_s


@dataclass(frozen=True, slots=True)
class BreakerSpec:
    """When a target is shut, for how long, and how it comes back (reliability.md 1.2, 1.3; contracts E: 20 calls, 30
    s).

    ``consecutive`` failures in a row, or ``error_share`` of at least ``window_calls`` calls within a minute; shut for
    ``cooldown_s``, longer each time up to ``max_cooldown_s``; at most ``max_ejected`` of a pool; back with 10 % of its
    share, all of it after ``ramp_s``. ``latency_factor`` (0: off): a target that much slower than its pool's median.
    """

    enabled: bool = True
    consecutive: int = 5
    window_calls: int = 20
    error_share: float = 0.5
    cooldown_s: float = 30.0
    max_cooldown_s: float = 300.0
    max_ejected: float = 0.5
    ramp_s: float = 10.0
    latency_factor: float = 0.0


@dataclass(frozen=True, slots=True)
class RetrySpec:
    """How many retries all requests together may make (Q05)."""

    budget_share: float = 0.2
    budget_per_s: float = 10.0


@dataclass(frozen=True, slots=True)
class HedgeSpec:
    """A second attempt beside a slow one. ``delay_s`` ``None``: the target's p95 of the time to the first token."""

    enabled: bool = False
    delay_s: float | None = None
    budget_share: float = 0.08


@dataclass(frozen=True, slots=True)
class AdmissionSpec:
    """How much a worker lets in (Q01, R32). ``adaptive``: its turns move the cap; ``max_rss_bytes`` 0: no
    ceiling; ``max_lag_s``: how long a turn of the event loop is while it has too much to do, 0: as long as it takes."""

    max_in_flight: int = 10_000
    queue: int = 1024
    queue_wait_s: float = 1.0
    adaptive: bool = False
    max_rss_bytes: int = 0
    max_lag_s: float = 0.01


@dataclass(frozen=True, slots=True)
class ResilienceSpec:
    """What happens when providers, clients or this process are in trouble."""

    breaker: BreakerSpec = BreakerSpec()
    retry: RetrySpec = RetrySpec()
    hedge: HedgeSpec = HedgeSpec()
    admission: AdmissionSpec = AdmissionSpec()
    probe_s: float = 0.0
    """Seconds between active health probes of a target that is idle or shut; 0: none."""


@dataclass(frozen=True, slots=True)
class LimitsSpec:
    """What one provider may be asked for, by all workers together but for ``max_in_flight``, which is per worker.
    ``None``: no limit that we know of."""

    max_in_flight: int = 1024
    queue: int = 1024
    requests_per_min: int | None = None
    tokens_per_min: int | None = None

    @property
    def per_minute(self) -> bool:
        """Whether there is a limit per minute at all."""
        return self.requests_per_min is not None or self.tokens_per_min is not None


@dataclass(frozen=True, slots=True)
class Price:
    """US dollars per million tokens."""

    input: float = 0.0
    output: float = 0.0


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """One configured provider: where it is and how we speak to it.

    ``type`` names a row of ``providers.registry``. ``api_base`` has no trailing slash and is what the OpenAI SDK calls
    ``base_url``. ``models`` are exact public names it serves, ``patterns`` are prefixes (written ``name*``),
    ``model_mapping`` public -> upstream name; all three empty means every model.
    """

    name: str
    type: str
    api_base: str
    api_key: Secret
    weight: int = 1
    models: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    model_mapping: Mapping[str, str] = field(default_factory=dict)
    timeouts: Timeouts = Timeouts()
    max_connections: int = 1024
    headers: Mapping[str, Secret] = field(default_factory=dict)
    price: Price | None = None
    limits: LimitsSpec = LimitsSpec()
    region: str | None = None
    api_version: str | None = None
    mock: Mapping[str, float | int | None] | None = None
    """The settings that were written for a ``mock`` provider (only those: the rest are the mock's own defaults)."""

    @property
    def serves_every_model(self) -> bool:
        return not (self.models or self.patterns or self.model_mapping)

    def upstream_model(self, model: str) -> str | None:
        """The name this provider knows ``model`` by, or ``None`` if it does not serve it."""
        mapped = self.model_mapping.get(model)
        if mapped is not None:
            return mapped
        if model in self.models or self.serves_every_model or any(model.startswith(p) for p in self.patterns):
            return model
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A provider together with the upstream model it is asked for. ``row`` is its index in the snapshot's table.

    ``upstream_model`` is ``None`` where the provider serves names that nobody wrote down: it is asked for the model
    that the client named. Targets are equal only to themselves.
    """

    row: int
    provider: ProviderSpec
    upstream_model: str | None
    weight: int
    limited: bool = False
    """Its provider has limits per minute: asked for each request, so it is a field."""


@dataclass(frozen=True, slots=True)
class Cors:
    """Cross-origin settings; ``origins`` ``("*",)`` allows every origin, ``()`` turns CORS off."""

    origins: tuple[str, ...] = ("*",)
    max_age_s: int = 600


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """The listening side. ``host`` is resolved already: loopback when there is no key and none was asked for."""

    host: str = "127.0.0.1"
    port: int = 8080
    workers: int = 1
    master_api_key: Secret | None = None
    max_body_bytes: int = 64 * 1024 * 1024
    max_connections: int = 20_000
    """Client connections at once, per worker (S-80)."""
    cors: Cors = Cors()
    log_level: str = "info"
    access_log: bool = False
    heartbeat_s: float = 15.0
    """Silence after which a stream gets a heartbeat; 0: never (R19)."""
    state_dir: str | None = None
    admin_token: Secret | None = None


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """``retries`` is the number of further attempts after the first; ``fallbacks`` model -> models tried after it
    (separately for a prompt that is too long and for one that was filtered);
    ``strict_params``: what a provider cannot express is refused, not reported (R65); ``retry_on``: only after these
    failures there is a further attempt, ``None``: after all that are the target's (R16); ``on_disconnect``: model or
    prefix with ``*`` -> after so many tokens an answer is read to its end when the client leaves, ``None``: never
    (R7)."""

    policy: str = "weighted_round_robin"
    retries: int = 2
    fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    context_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    content_filter_fallbacks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    strict_params: bool = False
    retry_on: frozenset[FailureClass] | None = None
    on_disconnect: Mapping[str, int | None] = field(default_factory=dict)

    def finishes_after(self, model: str) -> int | None:
        """What ``on_disconnect`` says of ``model``: its own entry, else that of the longest prefix."""
        fits = [name for name in self.on_disconnect if name.endswith("*") and model.startswith(name[:-1])]
        return self.on_disconnect.get(model if model in self.on_disconnect else max(fits, key=len, default=""))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that a request needs to know about the configuration. ``source`` is where it came from, for people."""

    server: ServerSpec
    routing: RoutingSpec
    providers: tuple[ProviderSpec, ...]
    resilience: ResilienceSpec = ResilienceSpec()
    verify_ssl: bool = True
    ca_file: str | None = None
    source: str = "defaults"
    generation: int = 0

    def known_models(self) -> tuple[str, ...]:
        """Exact public model names in the order in which they were written, each once."""
        return tuple(dict.fromkeys(_names(self.providers)))


def _names(providers: Iterable[ProviderSpec]) -> Iterable[str]:
    for provider in providers:
        yield from provider.models
        yield from provider.model_mapping
