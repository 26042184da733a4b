"""When to try again after a failure, if at all: a pure function of the failure, the attempts so far and the time left.

The delay of the n-th retry is random below ``x = min(cap, base * 2^(n-1))`` (reliability.md 1.4, quoting the AWS
architecture blog; Envoy's is of the same kind):

    full jitter          U(0, x)
    equal jitter         x/2 + U(0, x/2)
    decorrelated         min(cap, U(base, 3 * the delay before))

Random, because clients that failed together would else come back together. Full jitter spreads best and is the default
(Q09): 25 ms to 250 ms before another target is asked, 0.5 s to 8 s before the same one. A connection that was refused
or broke is no answer of the same one: a new one is tried as soon as another target would be (S-01, S-03: alone the
client has its error after 1 s and after 100 ms).

Two rules must not be broken: no sleep that does not fit into the time left (Q09, R53), and a target that said when to
come back is not asked before (S-25). If both cannot be kept there is no retry.

What may follow which failure is data, ``failures.RETRY``; whether there is money for it is the ``Budget``'s question,
and who the other target is, the engine's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..types import FailureClass
from .failures import RETRY

Random = Callable[[], float]
"""Numbers from 0 to 1, 1 excluded, like ``random.random``."""
_MAX_DOUBLINGS = 60
"""More would make the number too large for nothing: the cap was reached long before."""
MAX_ATTEMPTS = 3
"""Q05, and contracts E's 2 retries."""
RETRY_AFTER_SPREAD = 0.1
"""What a provider asked for is exceeded by up to this share (S-25: +-10 %), so that not all it has turned away come
back in one moment; it is never undercut."""


def _limit_s(attempt: int, base_s: float, cap_s: float) -> float:
    """``attempt``: how many failed so far, from 1."""
    return min(cap_s, base_s * 2.0 ** min(max(attempt - 1, 0), _MAX_DOUBLINGS))


def full_jitter(attempt: int, base_s: float, cap_s: float, random: Random) -> float:
    """Uniform in [0, min(cap, base * 2^(attempt-1))); ``attempt``: how many failed so far, from 1."""
    return _limit_s(attempt, base_s, cap_s) * random()


def equal_jitter(attempt: int, base_s: float, cap_s: float, random: Random) -> float:
    """Like full jitter, but at least half of it: for those who must not come back at once."""
    half = _limit_s(attempt, base_s, cap_s) / 2
    return half + half * random()


def decorrelated(previous_s: float, base_s: float, cap_s: float, random: Random) -> float:
    """The delay after one of ``previous_s`` (0 at first). Grows on average, and may shrink again."""
    return min(cap_s, base_s + (max(base_s, 3.0 * previous_s) - base_s) * random())


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential from ``base_s`` to ``cap_s``; ``jitter`` is the share of it that is random, downwards.

    1 is full jitter, 0.5 equal jitter, 0.2 is contracts E's, 0 none. A delay is never above ``cap_s``.
    """

    base_s: float
    cap_s: float
    jitter: float = 1.0

    def delay_s(self, attempt: int, random: Random) -> float:
        """``attempt``: how many failed so far, from 1."""
        return _limit_s(attempt, self.base_s, self.cap_s) * (1.0 - self.jitter + self.jitter * random())


OTHER_TARGET = Backoff(0.025, 0.25)
SAME_TARGET = Backoff(0.5, 8.0)
"""Q09."""
RECONNECT = Backoff(0.025, 0.25)
"""To the same target over a new connection (S-01, S-03)."""
LONGEST_HOLD_S = 2.0
"""A client is held for so long in all when its only target asks for time (contracts E's longest back-off); for longer
it is told when to come back, and may use its time otherwise."""
ROUTER = Backoff(0.2, 2.0, 0.2)
"""Contracts E: 200 ms to 2 s, 20 % jitter (below, so that 2 s is the most)."""


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``max_attempts`` counts the first one; ``other`` and ``same``: before another target is asked, and before the
    same one is asked again; ``reconnect``: that after a failure of the connection."""

    max_attempts: int = MAX_ATTEMPTS
    other: Backoff = OTHER_TARGET
    same: Backoff = SAME_TARGET
    reconnect: Backoff = RECONNECT

    def next_delay(
        self,
        failure: FailureClass,
        attempt: int,
        same_target: bool,
        retry_after_s: float | None,
        remaining_s: float,
        random: Random,
    ) -> float | None:
        """Seconds to wait before the next attempt; ``None``: there must not be one.

        ``failure`` and ``retry_after_s`` are the last failure's, ``attempt`` is how many were made so far,
        ``same_target`` whether the next goes where the last one failed, ``remaining_s`` the time that the request has
        left. Only as long as the client has seen no content (Q07), which the caller knows.
        """
        rule = RETRY[failure]
        if attempt >= self.max_attempts or not (rule.same if same_target else rule.other):
            return None
        if not same_target:
            delay = self.other.delay_s(attempt, random)  # what the one asked for says nothing about the other
        elif retry_after_s:  # of 0 (Azure sends it, and a date in the past is one) nothing can be learnt
            delay = retry_after_s * (1.0 + RETRY_AFTER_SPREAD * random())
        else:
            delay = (self.reconnect if rule.broken else self.same).delay_s(attempt, random)
        return delay if delay < remaining_s else None
