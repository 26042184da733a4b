"""Asking a second target when the first is slow: whether, and after how long.

The Tail at Scale: ask another after the 95th percentile of the time to first token, take who answers first, cancel the
other. That costs 4 to 8 % more requests and cuts the tail (reliability.md 1.7). A hedge is paid for like any other
request, so it is off by default (Q14), and then

* only once, and only before the first content went to the client,
* only for a request that may be answered twice without harm (``repeatable``),
* only after a delay that somebody has written, or that at least 100 answers of the last minute show,
* only out of a budget of 8 % of the requests (``budget.HEDGE_RATIO`` says why), with nothing free (Finagle).

The rule that must not be broken: hedges never exceed their share, also when every answer is slow. The delay alone does
not see to that: if a provider becomes slow all at once, every request is over the percentile of the minute before.

A loser that is cancelled leaves no mark in the table, since nobody knows how long it would have taken. So the
percentile is that of the answers that came, and a little lower than that of all: a few more hedges (7 % instead of 5 %,
if one answer in twenty is ten times slower; it does not sink further). With the time that losers had waited as their
mark it would lie between the quick and the slow ones in that case, and the p99 would fall by half instead of by three
quarters.
"""

from __future__ import annotations

from dataclasses import dataclass

from .._fast import Table
from .budget import HEDGE_RATIO, HEDGE_TTL_S, Budget, hedge_budget

MIN_DELAY_S = 0.001
"""Finagle's: a shorter one would send two requests at once."""
MICROS = 1_000_000
_INEXACT = 1.0625
"""``Table.quantile`` is the middle of a bucket, within 6.25 %. The delay is its upper end: at the lower one twice as
many may be late as the budget pays for, and of the slowest, which it is all about, half would go without."""


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """``delay_s``: a fixed delay; ``None``: the ``quantile`` of the target's time to first token over the last minute,
    once it has ``min_samples``. ``ratio`` and ``window_s`` are the budget's (Q14)."""

    enabled: bool = False
    delay_s: float | None = None
    quantile: float = 0.95
    min_samples: int = 100
    ratio: float = HEDGE_RATIO
    window_s: float = HEDGE_TTL_S


OFF = HedgeSettings()


class HedgePolicy:
    """The settings with their budget. Give the old ``budget`` to the policy that replaces this one at a reload, if its
    ratio and window are the same: a reload must not hand out what was spent already."""

    __slots__ = ("budget", "settings")

    def __init__(self, settings: HedgeSettings = OFF, budget: Budget | None = None) -> None:
        self.settings = settings
        self.budget = hedge_budget(settings.ratio, settings.window_s) if budget is None else budget

    def allowed(self, *, repeatable: bool, stream: bool, committed: bool = False, hedged: bool = False) -> bool:
        """Whether this request may be hedged at all.

        ``repeatable``: asking twice does no more than cost twice. Not so if the provider acts on it: it runs tools
        itself (web search, code, MCP), stores the answer (``store``), continues a conversation that it keeps, or works
        in the background. And the route must be marked (Q14). ``committed``: content went to the client; ``hedged``:
        it has its hedge already.

        A whole reply (not ``stream``) needs a fixed delay: it has no first token before its end, so how soon streams
        begin says nothing about it.
        """
        settings = self.settings
        measurable = stream or settings.delay_s is not None
        return settings.enabled and repeatable and measurable and not committed and not hedged

    def delay_s(self, table: Table, row: int, now_ns: int) -> float | None:
        """Seconds after the request was sent to the target ``row`` at which to ask another; ``None``: not at all."""
        settings = self.settings
        if not settings.enabled:
            return None
        if settings.delay_s is not None:
            return max(MIN_DELAY_S, settings.delay_s)
        if table.samples(row, now_ns, ttft=True) < settings.min_samples:
            return None
        ttft_us = table.quantile(row, settings.quantile, now_ns, ttft=True)
        if ttft_us < 0:  # no samples after all: another worker's clock has moved the window on since
            return None
        return max(MIN_DELAY_S, ttft_us * _INEXACT / MICROS)

    def request(self, now_s: float) -> None:
        """A request that may be hedged was sent. It pays for ``ratio`` of a hedge."""
        self.budget.request(now_s)

    def try_spend(self, now_s: float) -> bool:
        """The delay is over and a target is at hand: whether to ask it. Paid for then, whoever wins."""
        return self.budget.try_spend(now_s)
