"""The metric families we export: their names, labels and buckets, and nothing else.

System C's names (``llm_proxy_*``) stand as they were promised (contracts C); ours begin with ``slipstream_``.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

DURATION_BUCKETS_S = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0)
"""System C's buckets for request durations."""
TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
QUEUE_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
OVERHEAD_BUCKETS_S = (
    10e-6, 20e-6, 30e-6, 40e-6, 60e-6, 80e-6, 100e-6, 150e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 50e-3,
)  # fmt: skip


class Kind(Enum):
    """How the values of a series are read."""

    COUNTER = "counter"
    MICRO = "counter of millionths"
    GAUGE = "gauge of thousandths"
    HISTOGRAM = "histogram; the sum is in nanoseconds"
    TOKENS = "two counters, prompt and completion, with the label token_type behind the second"
    ACTIVE = "gauge per worker, its first label the worker; summed over those that live"


class Family(NamedTuple):
    """One exported family. ``labels`` are the label names in the order of the values in a series' key."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()

    @property
    def values(self) -> int:
        """Words of a series: two, or the buckets with the one beyond the bounds, and the sum."""
        return len(self.bounds) + 2 if self.kind is Kind.HISTOGRAM else 2

    @property
    def key_labels(self) -> int:
        """Label values in a series' key."""
        return len(self.labels) + {Kind.ACTIVE: 1, Kind.TOKENS: -1}.get(self.kind, 0)


_WHO = ("model", "provider", "api_key_name")

REQUESTS = Family(
    "llm_proxy_requests",
    Kind.COUNTER,
    "Finished requests.",
    ("method", "endpoint", "model", "provider", "status_code", "api_key_name"),
)
DURATION = Family(
    "llm_proxy_request_duration_seconds",
    Kind.HISTOGRAM,
    "From the request read to the last byte written.",
    ("method", "endpoint", *_WHO),
    DURATION_BUCKETS_S,
)
ACTIVE = Family("llm_proxy_active_requests", Kind.ACTIVE, "Requests in flight.", ("endpoint",))
TOKENS = Family("llm_proxy_tokens", Kind.TOKENS, "Tokens used.", ("model", "provider", "token_type", "api_key_name"))
TTFT = Family(
    "llm_proxy_ttft_seconds",
    Kind.HISTOGRAM,
    "Time to first token.",
    ("source", "model", "provider"),
    TTFT_BUCKETS_S,
)
SPEED = Family("llm_proxy_tokens_per_second", Kind.GAUGE, "Speed of the last stream.", ("source", "model", "provider"))
ATTEMPTS = Family("slipstream_upstream_attempts", Kind.COUNTER, "Attempts by outcome.", ("provider", "outcome"))
TIMEOUTS = Family(
    "slipstream_upstream_timeouts", Kind.COUNTER, "Attempts that a limit ended (R17).", ("provider", "limit")
)
FAILOVERS = Family("slipstream_failovers", Kind.COUNTER, "Attempts made on another target.")
RETRIES = Family("slipstream_retries", Kind.COUNTER, "Attempts made on the same target again, nobody else being there.")
RETRY_AMBIGUOUS = Family(
    "slipstream_retry_ambiguous", Kind.COUNTER, "Attempts that followed one that may have been billed (Q06)."
)
EJECTED = Family("slipstream_targets_ejected", Kind.COUNTER, "Breakers that opened.", ("provider",))
HEDGES = Family("slipstream_hedges", Kind.COUNTER, "Second attempts beside a slow one (Q14).", ("outcome",))
PROBES = Family("slipstream_probes", Kind.COUNTER, "Health probes of our own by outcome.", ("provider", "outcome"))
PROBED = Family("slipstream_probed", Kind.GAUGE, "The last probe, for the health page; not exported.", ("provider",))
SHED = Family("slipstream_shed", Kind.COUNTER, "Requests turned away at the door (Q15 to Q17).", ("reason",))
QUEUE_WAIT = Family(
    "slipstream_queue_wait_seconds",
    Kind.HISTOGRAM,
    "Waits for a place, in vain or not, of requests that found none free; provider none: at the door (R38).",
    ("provider",),
    QUEUE_BUCKETS_S,
)
RETRY_BUDGET_EXHAUSTED = Family(
    "slipstream_retry_budget_exhausted", Kind.COUNTER, "Failures passed on as the retries' share was used up (Q05)."
)
DISCONNECTS = Family("slipstream_client_disconnects", Kind.COUNTER, "Clients gone before the end.")
USAGE_SOURCE = Family("slipstream_usage_source", Kind.COUNTER, "Where token counts came from (R8).", ("usage_source",))
COST = Family("slipstream_cost_usd", Kind.MICRO, "Cost by the configured prices.", ("provider",))
COST_UNKNOWN = Family("slipstream_cost_unknown", Kind.COUNTER, "Answers without a known price (R69).")
DROPPED_PARAMS = Family(
    "slipstream_dropped_params",
    Kind.COUNTER,
    "Requests with settings a provider has no words for (R65).",
    ("provider",),
)
AUTH_FAILURES = Family("slipstream_auth_failures", Kind.COUNTER, "Refused keys: 401 (Q37).", ("reason",))
BAD_REQUESTS = Family("slipstream_bad_requests", Kind.COUNTER, "Malformed HTTP by status.", ("status",))
CONNECTIONS_REFUSED = Family(
    "slipstream_connections_refused", Kind.COUNTER, "Connections beyond server.max_connections (S-80)."
)
LOG_SUPPRESSED = Family("slipstream_log_suppressed", Kind.COUNTER, "Log lines not written (Q32).")
LOG_DROPPED = Family(
    "slipstream_log_dropped", Kind.COUNTER, "Log lines lost: nobody took them, or they could not be written (Q45)."
)
RELOADS = Family("slipstream_config_reloads", Kind.COUNTER, "Reloads by result.", ("result",))
WORKER_RESTARTS = Family("slipstream_worker_restarts", Kind.COUNTER, "Workers started in place of one that ended.")
DRAIN_CUT = Family("slipstream_drain_cut_requests", Kind.COUNTER, "Answers cut short by the end of the process (R79).")
OVERHEAD = Family(
    "slipstream_overhead_seconds",
    Kind.HISTOGRAM,
    "Own time of a request without the upstream's (R38).",
    (),
    OVERHEAD_BUCKETS_S,
)
FAMILIES = {
    family.name: family
    for family in (
        REQUESTS, DURATION, ACTIVE, TOKENS, TTFT, SPEED, ATTEMPTS, TIMEOUTS, FAILOVERS, RETRIES, RETRY_AMBIGUOUS,
        EJECTED, HEDGES, PROBES, SHED, QUEUE_WAIT, RETRY_BUDGET_EXHAUSTED, DISCONNECTS, USAGE_SOURCE, COST,
        COST_UNKNOWN, DROPPED_PARAMS, AUTH_FAILURES, BAD_REQUESTS, CONNECTIONS_REFUSED, LOG_SUPPRESSED, LOG_DROPPED,
        RELOADS, WORKER_RESTARTS, DRAIN_CUT, OVERHEAD,
    )
}  # fmt: skip
