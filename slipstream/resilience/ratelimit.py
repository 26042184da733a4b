"""Rate limits of providers: a target that is at its limit is passed over, not asked until it refuses.

Two limits per provider, each known or not (``config.snapshot.LimitsSpec``): requests and tokens a minute. A limit is a
bucket in the shared table, one word per kind, so all workers together keep it (R48) and a reload or a killed worker
changes nothing. The words are those of one row that stands for the provider, whichever of its models is asked for: it
is the provider that counts. The arithmetic is GCRA, the leaky bucket as a meter (ITU-T I.371 annex A; ``Table.take``):

    full after    T = max(T, now) + cost * 60 s / per_min
    let through   if T - now <= burst * 60 s / per_min

* Burst: 2 % of a minute's worth (1.2 s), at least 1. In any minute, wherever it begins, at most
  ``per_min + max(1, 2 %)`` requests are let through, which is all that R48 allows. A bucket of a whole minute would let
  twice the limit through in its first minute. Providers count so too: OpenAI may enforce 60,000 a minute as 1,000 a
  second (rate limits guide), Azure looks at windows of 1 and 10 s (quota guide).
* Tokens are reserved by an estimate of the prompt and corrected by the true usage (``settle``), which is known when the
  answer is whole. What is owed then is waited for by those who come next. A request that needs more than a burst goes
  out when nothing is owed.
* What a provider says beats what we counted: a 429 with nothing left empties the bucket until its reset (``learned``).

The rule that must not be broken: never more than the limit. What is given back early (``release``, a settlement below
the estimate) is given back less what the clock has refilled since, so no interleaving of workers gains anything.

Time is an argument: seconds of the monotonic clock of all workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Final

from .._fast import KEY_MAX, Table
from ..config.snapshot import Target
from ..types import NANOS
from ..wire.headers import MAX_RETRY_AFTER_S, duration_s

REQUESTS: Final = 0
TOKENS: Final = 1
BURST_PARTS: Final = 50
"""A burst is this part of a minute's worth: R48's 2 %."""
MINUTE_NS: Final = 60 * NANOS
PER_MIN_MAX: Final = 1 << 40
"""No limit is higher: a unit would last less than the table can tell."""
_KINDS: Final = ("requests", "tokens")


def is_limited(target: Target) -> bool:
    """Whether its provider has a limit at all. Ask this first: who has none is never looked up."""
    return target.limited


def burst_of(per_min: int) -> int:
    """How much of a limit may be used in one instant."""
    return max(1, per_min // BURST_PARTS)


class RateLimits:
    """The limits of all targets of one table. It has no state of its own: make as many as you like."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    def admit(self, target: Target, tokens: int, now: float) -> float:
        """Take one request and ``tokens`` (an estimate of the prompt): both, or none if one is missing. 0: go; else how
        many seconds until there may be room."""
        row, now_ns = self._row(target), int(now * NANOS)
        requests, per_min = _limits(target)
        if requests:
            wait = self._table.take(row, REQUESTS, 1, requests, burst_of(requests), now_ns)
            if wait:
                return wait / NANOS
        if per_min:
            wait = self._table.take(row, TOKENS, tokens, per_min, burst_of(per_min), now_ns)
            if wait:
                if requests:
                    self._table.refund(row, REQUESTS, 1, requests, now_ns, now_ns)
                return wait / NANOS
        return 0.0

    def release(self, target: Target, tokens: int, taken: float, now: float) -> None:
        """Nothing was sent after all: give back what ``admit`` took at ``taken``."""
        row = self._row(target)
        requests, per_min = _limits(target)
        if requests:
            self._table.refund(row, REQUESTS, 1, requests, int(taken * NANOS), int(now * NANOS))
        if per_min:
            self._table.refund(row, TOKENS, tokens, per_min, int(taken * NANOS), int(now * NANOS))

    def settle(self, target: Target, estimated: int, used: int, taken: float, now: float) -> None:
        """The answer is whole: it took ``used`` tokens and not ``estimated``, as was reserved at ``taken``."""
        per_min, now_ns = _limits(target)[TOKENS], int(now * NANOS)
        if per_min and used > estimated:
            self._table.charge(self._row(target), TOKENS, used - estimated, per_min, now_ns)
        elif per_min and used < estimated:
            self._table.refund(self._row(target), TOKENS, estimated - used, per_min, int(taken * NANOS), now_ns)

    def wait_s(self, target: Target, tokens: int, now: float) -> float:
        """What ``admit`` would answer, without taking anything."""
        row, now_ns, wait = self._row(target), int(now * NANOS), 0
        for kind, (cost, per_min) in enumerate(zip((1, tokens), _limits(target), strict=True)):
            if per_min:
                room = max(0, burst_of(per_min) - cost) * MINUTE_NS // per_min
                wait = max(wait, self._table.debt(row, kind, now_ns) - room)
        return wait / NANOS

    def left(self, target: Target, now: float) -> tuple[int | None, int | None]:
        """Requests and tokens that would be let through at once (for people and pages); ``None``: no limit."""
        row, now_ns = self._row(target), int(now * NANOS)

        def units(kind: int, per_min: int) -> int:
            owed = self._table.debt(row, kind, now_ns) * per_min - MINUTE_NS // 1000  # units are rounded up
            return max(0, burst_of(per_min) - max(0, -(-owed // MINUTE_NS)))

        requests, tokens = _limits(target)
        return (units(REQUESTS, requests) if requests else None), (units(TOKENS, tokens) if tokens else None)

    def learned(self, target: Target, headers: Mapping[str, str], now: float) -> float | None:
        """A 429 came with ``headers``: seconds until what has run out is there again, ``None`` if they do not say. If
        such a limit is configured, nobody is let through before."""
        found: float | None = None
        for kind, per_min in enumerate(_limits(target)):
            reset = reset_s(headers, _KINDS[kind])
            if reset is None:
                continue
            found = max(found or 0.0, reset)
            if per_min:
                # one unit fits again when the reset comes
                room = (burst_of(per_min) - 1) * MINUTE_NS // per_min
                self._table.hold(self._row(target), kind, int(reset * NANOS) + room, int(now * NANOS))
        return found

    def _row(self, target: Target) -> int:
        """The row whose words are the provider's buckets; in a table without room the target's own."""
        key = b"limits/" + target.provider.name.encode()
        if len(key) > KEY_MAX:
            key = key[: KEY_MAX - 33] + b"~" + blake2b(key, digest_size=16).hexdigest().encode()
        row = self._table.target(key)
        return row if row >= 0 else target.row


def reset_s(headers: Mapping[str, str], kind: str) -> float | None:
    """Seconds until the reset of a limit of which nothing remains, from ``x-ratelimit-remaining-{kind}`` and
    ``x-ratelimit-reset-{kind}`` (OpenAI, Groq, Azure: ``6ms``, ``1m2.3s``, or seconds; PROTOCOLS.md 1.5)."""
    if headers.get(f"x-ratelimit-remaining-{kind}", "").strip() not in ("0", "0.0"):
        return None
    text = headers.get(f"x-ratelimit-reset-{kind}", "").strip()[:32]
    seconds = duration_s(text if not text[-1:].isdigit() else text + "s")
    return None if seconds is None else min(seconds, MAX_RETRY_AFTER_S)


def _limits(target: Target) -> tuple[int, int]:
    """Requests and tokens a minute; 0: no limit."""
    limits = target.provider.limits
    return min(limits.requests_per_min or 0, PER_MIN_MAX), min(limits.tokens_per_min or 0, PER_MIN_MAX)
