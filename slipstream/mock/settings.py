"""What can be set on a mock, and how its latency is drawn.

Latencies of LLM APIs have a long right tail, so a mean and a p95 are what people know of them; a log-normal
distribution is the simplest that has both. With both zero the mock answers at once.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

Z95 = 1.6448536269514722
"""The 95th percentile of the standard normal distribution."""

MAX_P95_TO_MEAN = math.exp(Z95 * Z95 / 2)
"""3.87: no log-normal distribution has a p95 further above its mean (ln(p95/mean) = z*s - s^2/2 peaks at s = z)."""

DEFAULT_COMPLETION_TOKENS = 16
MAX_COMPLETION_TOKENS = 1_000_000


@dataclass(frozen=True, slots=True)
class LogNormal:
    """A log-normal distribution; ``scale`` zero is the constant 0."""

    scale: float
    """The median, e^mu."""
    sigma: float

    @classmethod
    def fit(cls, mean: float, p95: float) -> LogNormal:
        """The distribution with this mean and 95th percentile.

        From ln(p95/mean) = z*sigma - sigma^2/2 the smaller root is taken (the thinner tail). The mean always holds; a
        p95 that no log-normal has is clamped: p95 <= mean gives the constant ``mean`` (sigma 0), p95 above
        ``MAX_P95_TO_MEAN`` * mean gives sigma = z, whose p95 is just that maximum.
        """
        if mean <= 0:
            return cls(0.0, 0.0)
        ratio = math.log(p95 / mean) if p95 > mean else 0.0
        sigma = Z95 - math.sqrt(max(0.0, Z95 * Z95 - 2 * ratio))
        return cls(mean * math.exp(-sigma * sigma / 2), sigma)

    def sample(self, rng: random.Random) -> float:
        if self.sigma == 0:
            return self.scale
        return self.scale * math.exp(rng.gauss(0.0, self.sigma))


@dataclass(frozen=True, slots=True)
class MockSettings:
    """One mock provider. The defaults of the latencies are those of contracts E (``MOCK_MEAN_LATENCY_MS`` …).

    ``models``: ids that exist; one that ends with ``*`` stands for a prefix; empty means every name exists, and names
    that begin with ``mock/`` always do. ``ttft_ms``: when the first event of a stream goes out, in place of the drawn
    latency. ``tokens_per_s``: pace of a stream after its first token, 0 for as fast as possible. A unary answer waits
    for the drawn latency only. ``seed``: same seed and same order of requests, same ids, latencies and errors.
    """

    name: str = "mock"
    mean_latency_ms: float = 40.0
    p95_latency_ms: float = 120.0
    ttft_ms: float | None = None
    tokens_per_s: float = 0.0
    error_rate: float = 0.0
    error_status: int = 500
    seed: int | None = None
    models: tuple[str, ...] = ()
    price_per_1k_tokens_usd: float | None = None
    completion_tokens: int = DEFAULT_COMPLETION_TOKENS

    def __post_init__(self) -> None:
        if not (self.name.isascii() and self.name.isprintable()):
            raise ValueError("the name of a mock goes into a header: printable ASCII only")
        if min(self.mean_latency_ms, self.p95_latency_ms, self.ttft_ms or 0.0, self.tokens_per_s) < 0:
            raise ValueError("latencies and rates of a mock cannot be negative")
        if not 0 <= self.error_rate <= 1:
            raise ValueError("error_rate is a share between 0 and 1")
        if not 400 <= self.error_status <= 599:
            raise ValueError("error_status is an HTTP status from 400 to 599")
        if not 1 <= self.completion_tokens <= MAX_COMPLETION_TOKENS:
            raise ValueError(f"completion_tokens is between 1 and {MAX_COMPLETION_TOKENS}")

    def has_model(self, model: str) -> bool:
        """Whether a request for this model is answered (or fails on purpose) instead of a 404."""
        if not self.models or model.startswith("mock/"):
            return True
        return any(model.startswith(m[:-1]) if m.endswith("*") else model == m for m in self.models)
