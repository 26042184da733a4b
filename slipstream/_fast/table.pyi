"""The shared table: statistics, breakers and worker slots in memory that all workers map (compiled: ``table.pyx``; in
plain words, for one process: ``_pure/table.py``).

    buffer = mmap.mmap(-1, sizes.total)
    Table.format(buffer, sizes)               # once, before the workers fork
    table = Table(buffer, sizes)
    row = table.target(b"openai/gpt-4o@eu")   # once per target
    table.enter(worker, row); ...; table.leave(worker, row)
    table.record(row, FailureClass.NONE, 812_000, 240_000, time.monotonic_ns())

Every call is safe beside every other call of any process, and against a process that is killed at any instruction:

* Each word is complete in itself and changed by one atomic instruction or a compare-and-swap loop. There are no locks.
* Counters: no addition is lost. A killed process loses at most the words of the one call that it was in; what it had
  not yet written of that call is missing, nothing is half-written.
* Windows: counts carry the number of their turn in the same word, so a stale slice is never cleared and never counted;
  calls and errors of a slice are of the same instant.
* Averages: value and time are two words, each complete. A killed writer can take only its own sample with it.
* Rows, series and pools are found or claimed by compare-and-swap and are never given back; two processes that claim
  one key at once get one slot; a claimant that dies leaves a slot that others finish or step over.
* In-flight counts are kept per worker, so ``reap`` takes back exactly what a dead worker held.
* Whatever lies in the file, no call crashes or loops: values out of range count as none.

Times are ``now_ns`` of the caller: one clock for all processes that does not go back (``time.monotonic_ns``; it starts
anew with the machine, see ``forget_times``). ``IndexError`` for rows and workers that do not exist, ``ValueError``
when the table was closed, ``OverflowError`` for numbers that do not fit.
"""

from typing import Any, final

from ._pure.layout import Sizes as Sizes
from ._pure.layout import TableError as TableError

LAYOUT: dict[str, int]

@final
class Table:
    @property
    def sizes(self) -> Sizes: ...
    @property
    def created_ns(self) -> int: ...
    @property
    def boot(self) -> int:
        """What was given to ``format`` or ``forget_times``: which boot of the machine the times belong to."""

    def __init__(
        self,
        buffer: Any,
        sizes: Sizes = ...,
        *,
        errors: int = 0xFFFE,
        neutral: int = 0,
        tau_s: float = 10.0,
        peak: bool = False,
    ) -> None:
        """Works on ``buffer`` (writable, of ``sizes.total`` bytes) until ``close``.

        ``errors``: bit ``i`` set: class ``i`` counts as an error in ``errors()`` and ``consecutive()``. ``neutral``: it
        says nothing about the target (a 4xx, a client that left): only its counter is bumped. ``tau_s``: of the moving
        averages. ``peak``: a sample above an average replaces it (Finagle's peak EWMA).

        These four belong to this object, not to the file. Raises ``TableError`` when the bytes are not such a table.
        """
    @staticmethod
    def format(buffer: Any, sizes: Sizes = ..., *, created_ns: int = 0, boot: int = 0) -> None:
        """Writes the header into zeroed memory. The first word is written last: a file without it is no table."""
    def close(self) -> None:
        """Lets go of the buffer; every later call raises ``ValueError``."""
    def forget_times(self, boot: int) -> None:
        """After the clock began anew: forgets averages, windows, breakers, rests and failures in a row. Counters, usage
        and series stay. Not while workers run."""
    def target(self, key: bytes) -> int:
        """The row of a target (key: at most 208 bytes), for the life of the file; -1 when there is no room."""
    def targets(self) -> list[tuple[int, bytes]]: ...
    def record(self, row: int, failure_class: int, latency_us: int, ttft_us: int, now_ns: int) -> None:
        """One finished attempt; ``failure_class`` 0 (none) to 15. Negative times are no samples: give -1 where a time
        says nothing about speed (a refused connection, a 429 in 1 ms)."""
    def ewma(self, row: int) -> tuple[float, float]:
        """Averages of latency and time to first token in us, not decayed since the last sample; 0.0: no sample."""
    def quantile(self, row: int, q: float, now_ns: int, ttft: bool = False) -> int:
        """Quantile in us over the last 50 to 60 s, within 6.25 % (from 256 us to 36 min); -1: no samples."""
    def samples(self, row: int, now_ns: int, ttft: bool = False) -> int:
        """How many samples ``quantile`` looks at."""
    def errors(self, row: int, window_s: int, now_ns: int) -> tuple[int, int]:
        """(calls, errors) of the last ``window_s`` (5 to 3600) in slices of 5 s: the running slice is the last of
        them, so the time covered is ``window_s`` less up to 5 s."""
    def counters(self, row: int) -> tuple[int, ...]:
        """Attempts by failure class, 16 of them."""
    def consecutive(self, row: int) -> int:
        """Errors since the last success."""
    def last_failure(self, row: int) -> tuple[int, int, bool]:
        """Class, time in ms, and whether nothing succeeded since. (0, 0, False): there was none."""
    def breaker(self, row: int) -> int:
        """The breaker word, which ``resilience`` owns. Read here: bits 0-1 not 0: not closed, and then shut until the
        time in bits 8-63 (ms of ``now_ns``). Bits 2-7 are free for its owner.

        So ``open`` is ``until << 8 | n << 2 | 1``: when the time has come the target may be chosen again, and who
        changes the word to half-open with ``cas_breaker`` has the probe. Half-open carries a time too: until then no
        one else probes; a probe whose worker was killed lapses.
        """
    def cas_breaker(self, row: int, old: int, new: int) -> bool: ...
    def cooldown(self, row: int) -> int:
        """Rests until (ns)."""
    def extend_cooldown(self, row: int, until_ns: int) -> None:
        """The latest time of all workers holds."""
    def clear_cooldown(self, row: int) -> None: ...
    def available(self, row: int, now_ns: int) -> bool:
        """Neither resting nor shut. A rest of more than an hour was not written by us and is ignored."""
    def take(self, row: int, kind: int, cost: int, per_min: int, burst: int, now_ns: int) -> int:
        """Takes ``cost`` units from the bucket of a limit (``kind`` 0: requests, 1: tokens) that all workers share. It
        holds ``burst`` and gets ``per_min`` of them a minute, evenly (GCRA). 0: taken. Else nothing was, and the answer
        is for how long (ns) it would not be. What costs more than a burst is let through when the bucket is full, and
        the next wait until it is paid for. In any time t at most ``burst + per_min * t`` units are taken, and once
        more what one costs above a burst. Limits are arguments: a bucket keeps only how long it needs to be full.
        """
    def charge(self, row: int, kind: int, cost: int, per_min: int, now_ns: int) -> None:
        """Takes ``cost`` units whether they are there or not: it was used. At most an hour is owed."""
    def refund(self, row: int, kind: int, cost: int, per_min: int, taken_ns: int, now_ns: int) -> None:
        """Gives back what was taken at ``taken_ns`` and not used, less what the clock has given back since: so the
        limit holds over what was really used."""
    def hold(self, row: int, kind: int, debt_ns: int, now_ns: int) -> None:
        """The bucket needs at least ``debt_ns`` to be full: the provider said so. At most an hour."""
    def debt(self, row: int, kind: int, now_ns: int) -> int:
        """How long (ns) the bucket needs to be full; 0: it is."""
    def add_usage(self, row: int, tokens_in: int, tokens_out: int, micro_usd: int) -> None: ...
    def usage(self, row: int) -> tuple[int, int, int]: ...
    def claim_worker(self, pid: int, now_ns: int) -> int:
        """A free worker slot of 64, or -1."""
    def beat(self, worker: int, now_ns: int) -> None: ...
    def workers(self) -> list[tuple[int, int, int, int, int]]:
        """Slots in use: (worker, pid, generation, last beat in ns, started in ns)."""
    def reap(self, worker: int) -> int:
        """The worker is dead: takes back its requests in flight, says how many, frees the slot."""
    def enter(self, worker: int, row: int) -> None: ...
    def leave(self, worker: int, row: int) -> None:
        """Never below zero."""
    def in_flight(self, row: int) -> int:
        """Of all workers."""
