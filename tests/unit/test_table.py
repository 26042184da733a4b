"""The shared table: compiled and pure twin under the same tests, against simple models, and compared byte for byte."""

from __future__ import annotations

import hashlib
import importlib
import math
import mmap
import os
import random
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream._fast._pure import layout
from slipstream._fast._pure.layout import Sizes, TableError
from slipstream.errors import ConfigError
from slipstream.state import table as state
from slipstream.types import FailureClass

PARTS = {"table": ["Table", "LAYOUT"], "series": ["Series"], "select": ["Pool"]}


def twin(prefix: str) -> Any:
    """The names of one implementation, or None when it is not built."""
    try:
        modules = {name: importlib.import_module(f"{prefix}.{name}") for name in PARTS}
    except ImportError:
        return None
    return SimpleNamespace(**{n: getattr(modules[m], n) for m, names in PARTS.items() for n in names})


PURE = twin("slipstream._fast._pure")
COMPILED = twin("slipstream._fast")
NOT_BUILT = pytest.mark.skipif(COMPILED is None, reason="slipstream._fast.table is not built (setup.py build_ext)")
TWINS = [pytest.param(COMPILED, id="compiled", marks=NOT_BUILT), pytest.param(PURE, id="pure")]
SMALL = Sizes(targets=8, counters=16, histograms=8, pools=4)
S = 1_000_000_000
NOW = 123_456 * S


@pytest.fixture(params=TWINS)
def fast(request: pytest.FixtureRequest) -> Any:
    return request.param


def new(fast: Any, sizes: Sizes = SMALL, **options: Any) -> Any:
    buffer = mmap.mmap(-1, sizes.total)
    fast.Table.format(buffer, sizes, created_ns=7, boot=9)
    return fast.Table(buffer, sizes, **options)


@pytest.fixture
def table(fast: Any) -> Iterator[Any]:
    made = new(fast)
    yield made
    made.close()


# ------------------------------------------------------------------------------------------------------- the header


@NOT_BUILT
def test_layouts_are_the_same() -> None:
    assert COMPILED.LAYOUT == layout.LAYOUT


def test_layout_is_pinned() -> None:
    """Who changes this must raise VERSION too: files in state directories would be read wrongly otherwise."""
    assert layout.VERSION == 2
    assert layout_digest() == "851e20019f4a7674"
    assert Sizes().total == 26_550_272


def layout_digest() -> str:
    return hashlib.sha256(repr(sorted(layout.LAYOUT.items())).encode()).hexdigest()[:16]


def test_every_slot_is_made_of_cache_lines() -> None:
    words = [layout.LAYOUT[n] for n in layout.LAYOUT if n.endswith("_WORDS") and n != "KEY_WORDS"]
    assert all(n % 8 == 0 for n in [*words, *SMALL.words(), *Sizes().words(), layout.LAYOUT["ROWS_AT"]])


@pytest.mark.parametrize("damage", ["magic", "version", "layout", "size", "short", "empty", "zero"])
def test_what_is_not_a_table_is_refused(fast: Any, damage: str) -> None:
    buffer = bytearray(SMALL.total)
    fast.Table.format(buffer, SMALL)
    at = {"magic": 0, "version": 8, "layout": 16, "size": 24}
    if damage in at:
        buffer[at[damage]] ^= 1
    elif damage == "zero":
        buffer = bytearray(SMALL.total)
    else:
        buffer = buffer[: 100 if damage == "short" else 0]
    with pytest.raises(TableError):
        fast.Table(buffer, SMALL)
    with pytest.raises(TableError):
        fast.Table(bytearray(Sizes(9, 16, 8, 4).total), SMALL)


def test_other_capacities_are_another_layout(fast: Any) -> None:
    a, b = Sizes(8, 16, 8, 4), Sizes(8, 22, 4, 4)
    assert a.total == b.total, "the sizes differ in no more than their meaning"
    buffer = bytearray(a.total)
    fast.Table.format(buffer, a)
    with pytest.raises(TableError, match="layout"):
        fast.Table(buffer, b)


def test_bad_arguments(fast: Any) -> None:
    with pytest.raises(ValueError, match="capacities"):
        fast.Table(bytearray(8), Sizes(targets=0))
    with pytest.raises(BufferError):
        fast.Table(bytes(SMALL.total), SMALL)
    for tau in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="tau"):
            new(fast, tau_s=tau)


def test_closed(fast: Any) -> None:
    buffer = mmap.mmap(-1, SMALL.total)
    fast.Table.format(buffer, SMALL, created_ns=7, boot=9)
    table = fast.Table(buffer, SMALL)
    series, pool = fast.Series(table), fast.Pool(table, b"p", [0])
    assert (table.created_ns, table.boot, table.sizes) == (7, 9, SMALL)
    table.close()
    table.close()
    calls = [
        lambda: table.target(b"a"), lambda: table.record(0, 0, 1, 1, 1), lambda: table.boot, lambda: table.workers(),
        lambda: table.enter(0, 0), lambda: table.reap(0), lambda: series.series(b"a", 1), lambda: series.get(0, 0),
        lambda: series.items(), lambda: pool.pick(1, 1), lambda: pool.turn(), lambda: pool.refresh(1),
        lambda: pool.fastest(), lambda: table.targets(), lambda: table.forget_times(1), lambda: table.errors(0, 60, 1),
        lambda: table.quantile(0, 0.5, 1), lambda: fast.Pool(table, b"p", [0]), lambda: series.observe(0, 0, 1),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(ValueError, match="closed"):
            call()
    buffer.close()  # nothing holds it any more


# ---------------------------------------------------------------------------------------------------- rows and keys


def test_targets_keep_their_rows(fast: Any, table: Any) -> None:
    keys = [f"provider-{i}/model".encode() for i in range(7)] + [b""]
    rows = {key: table.target(key) for key in keys}
    assert sorted(rows.values()) == list(range(8))
    assert {key: table.target(key) for key in reversed(keys)} == rows
    assert dict(table.targets()) == {row: key for key, row in rows.items()}
    assert table.target(b"one too many") == -1
    with pytest.raises(ValueError, match="208"):
        table.target(b"x" * 209)
    with pytest.raises(TypeError):
        table.target("text")
    for row in (-1, 8, 1 << 40):
        with pytest.raises(IndexError):
            table.record(row, 0, 1, 1, 1)
        with pytest.raises(IndexError):
            table.breaker(row)
    with pytest.raises(IndexError):
        table.record(0, 16, 1, 1, 1)


@settings(max_examples=60, deadline=None)
@given(keys=st.lists(st.binary(max_size=208), max_size=30))
def test_keys_against_a_dict(keys: list[bytes]) -> None:
    for fast in filter(None, (COMPILED, PURE)):
        table, model = new(fast, Sizes(16, 1, 1, 1)), {}
        for key in keys:
            row = table.target(key)
            assert row == model.get(key, -1 if len(model) == 16 else row)
            if row >= 0:
                model[key] = row
        assert sorted(table.targets()) == sorted((row, key) for key, row in model.items())
        assert len(set(model.values())) == len(model)


def test_a_claimant_that_died_is_finished_or_stepped_over(fast: Any) -> None:
    buffer = bytearray(SMALL.total)
    fast.Table.format(buffer, SMALL)
    key, other = b"the key of the dead", b""
    mark = layout.key_hash(key, 0) & ~3
    at = layout.key_hash(key, 0) % 8
    other = next(k for i in range(999) if layout.key_hash(k := b"%d" % i, 0) % 8 == at)
    start = 8 * (layout.LAYOUT["ROWS_AT"] + at * layout.LAYOUT["ROW_WORDS"])
    struct.pack_into("<Q", buffer, start, mark | layout.CLAIMING)
    table = fast.Table(buffer, SMALL)
    assert table.targets() == []
    assert table.target(other) == (at + 1) % 8, "stepped over"
    assert table.target(key) == at, "finished"
    assert sorted(table.targets()) == sorted([(at, key), ((at + 1) % 8, other)])


# ----------------------------------------------------------------------------------------------------------- record


def test_counters_usage_and_failures(fast: Any) -> None:
    table = new(fast, errors=0b0110, neutral=0b1000)
    table.record(3, 1, -1, -1, 5 * S)
    table.record(3, 2, -1, -1, 6 * S)
    assert (table.consecutive(3), table.last_failure(3)) == (2, (2, 6000, True))
    table.record(3, 3, -1, -1, 7 * S)
    assert (table.consecutive(3), table.last_failure(3)) == (2, (2, 6000, True)), "neutral"
    table.record(3, 4, -1, -1, 7 * S)
    assert (table.consecutive(3), table.last_failure(3)) == (2, (4, 7000, True)), "no error, but a failure"
    table.record(3, 0, -1, -1, 8 * S)
    assert (table.consecutive(3), table.last_failure(3)) == (0, (4, 7000, False))
    assert table.counters(3) == (1, 1, 1, 1, 1, *[0] * 11)
    assert table.errors(3, 60, 8 * S) == (4, 2), "the neutral one is no call"
    assert table.ewma(3) == (0.0, 0.0)
    assert table.samples(3, 8 * S) == 0
    assert table.quantile(3, 0.5, 8 * S) == -1
    table.add_usage(3, 10, 20, 30)
    table.add_usage(3, 1, 2, 3)
    assert table.usage(3) == (11, 22, 33)
    assert table.counters(2) == (0,) * 16
    table.close()


def test_breaker_and_rest(table: Any) -> None:
    assert table.available(1, NOW)
    assert table.cas_breaker(1, 0, 77)
    assert not table.cas_breaker(1, 0, 78)
    assert table.breaker(1) == 77
    ms = NOW // 1_000_000
    assert table.cas_breaker(1, 77, (ms + 30_000) << 8 | 5)
    assert not table.available(1, NOW)
    assert table.available(1, NOW + 30 * S)
    assert table.cas_breaker(1, (ms + 30_000) << 8 | 5, (ms + 30_000) << 8)
    assert table.available(1, NOW), "closed, whatever time it carries"
    table.extend_cooldown(1, NOW + 2 * S)
    table.extend_cooldown(1, NOW + S)
    assert table.cooldown(1) == NOW + 2 * S
    assert not table.available(1, NOW + 2 * S - 1)
    assert table.available(1, NOW + 2 * S)
    table.clear_cooldown(1)
    assert table.available(1, NOW)
    table.extend_cooldown(1, (1 << 64) - 1)
    assert table.available(1, NOW), "nobody rests for centuries"
    table.clear_cooldown(1)
    assert table.cas_breaker(1, (ms + 30_000) << 8, (1 << 64) - 1)
    assert table.available(1, NOW)


samples = st.lists(
    st.tuples(st.integers(0, 30 * S), st.integers(-1, 1 << 32), st.integers(-1, 1 << 24)), min_size=1, max_size=30
)


@settings(max_examples=60, deadline=None)
@given(samples=samples, tau=st.sampled_from([0.001, 0.5, 10.0, 1e6]), peak=st.booleans())
def test_ewma_is_the_formula(samples: list[tuple[int, int, int]], tau: float, peak: bool) -> None:
    results = []
    for fast in filter(None, (COMPILED, PURE)):
        table, now = new(fast, tau_s=tau, peak=peak), NOW
        want: list[float | None] = [None, None]
        then = [0, 0]
        for dt, *xs in samples:
            now += dt
            table.record(0, 0, *xs, now)
            for i, us in enumerate(xs):
                if us < 0:
                    continue
                x, v = float(max(us, 1)), want[i]
                w = math.exp(-(now - then[i]) / (tau * 1e9))
                want[i] = x if v is None or (peak and x > v) else v * w + x * (1 - w)
                then[i] = now
        got = table.ewma(0)
        for g, v in zip(got, want, strict=True):
            assert g == (0.0 if v is None else pytest.approx(v, rel=1e-9))
        results.append(got)
    assert len(set(results)) == 1, "the twins agree to the last bit"


@settings(max_examples=60, deadline=None)
@given(
    samples=st.lists(st.tuples(st.integers(0, 15 * S), st.integers(0, 1 << 31)), min_size=1, max_size=60),
    q=st.sampled_from([0.0, 0.01, 0.5, 0.9, 0.95, 0.99, 1.0]),
    ttft=st.booleans(),
)
def test_quantiles_within_an_eighth(samples: list[tuple[int, int]], q: float, ttft: bool) -> None:
    answers = []
    for fast in filter(None, (COMPILED, PURE)):
        table, now, seen = new(fast), NOW, []
        for dt, us in samples:
            now += dt
            table.record(2, 0, *((-1, us) if ttft else (us, -1)), now)
            seen.append((now, us))
        first = now // (10 * S) - 5
        values = sorted(us for t, us in seen if t // (10 * S) >= first)
        assert table.samples(2, now, ttft) == len(values)
        assert table.samples(2, now, not ttft) == 0
        want = max(256, values[max(0, math.ceil(q * len(values) - 1e-9) - 1)])
        got = table.quantile(2, q, now, ttft)
        assert abs(got - want) <= want / 8
        answers.append(got)
        assert table.quantile(2, q, now + 70 * S, ttft) == -1, "a minute later all of it is gone"
    assert len(set(answers)) == 1


def test_buckets_touch_and_hold_what_they_should() -> None:
    edges = [layout.bucket_of(us) for us in (0, 255, 256, 287, 288, 511, 512, (1 << 31) - 1, 1 << 31, 1 << 63)]
    assert edges == [0, 0, 0, 0, 1, 7, 8, 183, 183, 183]
    for us in [random.Random(3).randrange(256, 1 << 31) for _ in range(2000)]:
        assert abs(layout.bucket_middle(layout.bucket_of(us)) - us) <= us / 16


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(st.integers(0, 400 * S), st.booleans()), min_size=1, max_size=40),
    window=st.sampled_from([1, 5, 10, 60, 300, 3600, 9999]),
)
def test_error_windows_against_a_list(calls: list[tuple[int, bool]], window: int) -> None:
    for fast in filter(None, (COMPILED, PURE)):
        table, now, seen = new(fast), NOW, []
        for dt, error in calls:
            now += dt
            table.record(0, int(error), -1, -1, now)
            seen.append((now // (5 * S), error))
        first = now // (5 * S) - min(720, max(1, window // 5))
        inside = [error for epoch, error in seen if epoch > first]
        assert table.errors(0, window, now) == (len(inside), sum(inside))


def test_windows_at_the_beginning_of_time_and_after_a_step_back(table: Any) -> None:
    table.record(0, 1, 1000, -1, 0)
    assert table.errors(0, 3600, 0) == (1, 1)
    assert table.samples(0, 0) == 1
    table.record(1, 1, 1000, -1, NOW)
    table.record(1, 1, 1000, -1, NOW - 3600 * S)
    assert table.errors(1, 60, NOW - 3600 * S) == (1, 1), "a step back heals by itself"
    table.record(1, 0, 3000, -1, NOW - 3600 * S + 20 * S)
    assert table.ewma(1)[0] > 2000
    table.record(2, 1, 1 << 62, 1 << 62, (1 << 64) - 1)


def test_full_words_stay_full(fast: Any) -> None:
    buffer = bytearray(SMALL.total)
    fast.Table.format(buffer, SMALL)
    table = fast.Table(buffer, SMALL)
    table.record(0, 1, 1000, -1, NOW)
    windows = 8 * SMALL.words()[3]
    ring = windows + 8 * (NOW // (5 * S) % 720)
    cell = windows + 8 * (720 + layout.bucket_of(1000) * 6 + NOW // (10 * S) % 6)
    word = struct.unpack_from("<Q", buffer, ring)[0]
    struct.pack_into("<Q", buffer, ring, word >> 48 << 48 | 0xFFFFFF << 24 | 5)
    struct.pack_into("<Q", buffer, cell, struct.unpack_from("<Q", buffer, cell)[0] | 0xFFFFFFFF)
    table.record(0, 1, 1000, -1, NOW)
    assert table.errors(0, 5, NOW) == (0xFFFFFF, 5)
    assert table.samples(0, NOW) == 0xFFFFFFFF


# ---------------------------------------------------------------------------------------------------------- workers


def test_workers(table: Any) -> None:
    a, b = table.claim_worker(100, 5), table.claim_worker(200, 6)
    table.beat(b, 9)
    assert table.workers() == [(a, 100, 1, 5, 5), (b, 200, 1, 9, 6)]
    for worker, row, n in ((a, 0, 3), (a, 1, 1), (b, 0, 2)):
        for _ in range(n):
            table.enter(worker, row)
    table.leave(b, 0)
    assert [table.in_flight(row) for row in range(3)] == [4, 1, 0]
    assert table.reap(a) == 4
    assert [table.in_flight(row) for row in range(3)] == [1, 0, 0]
    table.leave(a, 0)
    assert table.in_flight(0) == 1, "never below zero"
    assert table.claim_worker(300, 7) == a
    assert table.workers()[0] == (a, 300, 2, 7, 7)
    assert [table.claim_worker(1000 + i, 8) for i in range(63)][-2:] == [63, -1]
    with pytest.raises(IndexError):
        table.enter(64, 0)
    with pytest.raises(IndexError):
        table.reap(-1)


def test_no_cells_before_a_worker_is_claimed(table: Any) -> None:
    with pytest.raises(IndexError):
        table.enter(0, 0)


def test_forget_times(table: Any) -> None:
    row = table.target(b"a")
    table.record(row, 1, 1000, 1000, NOW)
    table.add_usage(row, 1, 2, 3)
    table.extend_cooldown(row, NOW + S)
    table.cas_breaker(row, 0, 1)
    table.charge(row, 0, 5, 60, NOW)
    table.charge(row, 1, 5, 60, NOW)
    table.forget_times(10)
    assert (table.debt(row, 0, NOW), table.debt(row, 1, NOW)) == (0, 0)
    assert table.boot == 10
    assert (table.ewma(row), table.cooldown(row), table.breaker(row)) == ((0.0, 0.0), 0, 0)
    assert (table.errors(row, 60, NOW), table.samples(row, NOW), table.consecutive(row)) == ((0, 0), 0, 0)
    assert (table.usage(row), table.counters(row)[1]) == ((1, 2, 3), 1)


# ----------------------------------------------------------------------------------------------------------- series


def test_series(fast: Any, table: Any) -> None:
    series = fast.Series(table)
    one, two, histogram = series.series(b"a", 1), series.series(b"a", 2), series.series(b"a", 5)
    assert len({one, two, histogram}) == 3
    assert series.series(b"a", 1) == one
    series.add(one, 0, 5)
    series.add(one, 0, -7)
    series.set(two, 1, 1 << 62)
    series.observe(histogram, 3, 250)
    series.observe(histogram, 0, 1)
    assert [series.get(one, 0), series.get(two, 1), series.get(histogram, 4)] == [-2, 1 << 62, 251]
    assert sorted(series.items()) == [(b"a", [-2]), (b"a", [0, 1 << 62]), (b"a", [1, 0, 0, 1, 251])]
    for bucket in (4, 5, -1, 20):
        with pytest.raises(IndexError):
            series.observe(histogram, bucket, 1)
    for slot, index in ((one, 2), (one, -1), (-1, 0), (24, 0), (histogram, 20)):
        with pytest.raises(IndexError):
            series.add(slot, index, 1)
    for key, n in ((b"a", 0), (b"a", 21), (b"x" * 209, 1)):
        with pytest.raises(ValueError, match="208 bytes"):
            series.series(key, n)
    with pytest.raises(OverflowError):
        series.add(one, 0, 1 << 63)


def test_series_overflow(fast: Any, table: Any) -> None:
    series = fast.Series(table)
    slots = [series.series(b"%d" % i, 1) for i in range(17)]
    assert sorted(slots) == list(range(-1, 16))
    assert slots[-1] == -1
    large = [series.series(b"%d" % i, 20) for i in range(9)]
    assert sorted(large) == [-1, *range(16, 24)]


# ------------------------------------------------------------------------------------- the same bytes, whatever comes

calls = st.lists(
    st.one_of(
        st.tuples(st.just("record"), st.integers(0, 3), st.integers(0, 15), st.integers(-1, 1 << 33),
                  st.integers(-1, 1 << 25), st.integers(0, 7200 * S)),
        st.tuples(st.just("target"), st.binary(max_size=208)),
        st.tuples(st.just("add_usage"), st.integers(0, 3), *[st.integers(0, (1 << 64) - 1)] * 3),
        st.tuples(st.just("extend_cooldown"), st.integers(0, 3), st.integers(0, (1 << 64) - 1)),
        st.tuples(st.just("cas_breaker"), st.integers(0, 3), st.sampled_from([0, 5]), st.sampled_from([0, 5])),
        st.tuples(st.just("claim_worker"), st.integers(1, 99), st.integers(0, 99)),
        st.tuples(st.just("enter"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("leave"), st.integers(0, 1), st.integers(0, 3)),
        st.tuples(st.just("reap"), st.integers(0, 3)),
        st.tuples(st.just("series"), st.binary(max_size=208), st.integers(1, 20)),
        st.tuples(st.just("add"), st.integers(0, 23), st.integers(0, 19), st.integers(-9, 9)),
        st.tuples(st.just("observe"), st.integers(0, 23), st.integers(0, 19), st.integers(0, 9)),
        st.tuples(st.just("pick"), st.integers(0, (1 << 64) - 1), st.integers(0, 7200 * S)),
        st.tuples(st.just("turn")),
        st.tuples(st.just("refresh"), st.integers(0, 7200 * S)),
        st.tuples(st.just("forget_times"), st.integers(0, 9)),
    ),
    max_size=60,
)  # fmt: skip


def play(fast: Any, script: list[Any], buffer: bytearray) -> list[Any]:
    table = fast.Table(buffer, SMALL, tau_s=3.0, neutral=0b1000)
    table.claim_worker(1, 1)
    series = fast.Series(table)
    pool = fast.Pool(table, b"pool", [0, 1, 2, 3], [0, 0, 1, 2, 3], [3, 2, 2, 9])
    answers = []
    for name, *args in script:
        owner = next(o for o in (table, series, pool) if hasattr(o, name))
        try:
            answers.append(getattr(owner, name)(*args))
        except (IndexError, ValueError) as error:
            answers.append((type(error), str(error)))
    for row in range(4):
        answers += [table.counters(row), table.errors(row, 3600, 3600 * S), table.quantile(row, 0.9, 3600 * S)]
    return [*answers, series.items(), table.targets(), table.workers(), pool.fastest(), pool.cheapest()]


@NOT_BUILT
@settings(max_examples=120, deadline=None)
@given(script=calls)
def test_twins_leave_the_same_bytes(script: list[Any]) -> None:
    buffers = [bytearray(SMALL.total), bytearray(SMALL.total)]
    answers = []
    for fast, buffer in zip((COMPILED, PURE), buffers, strict=True):
        fast.Table.format(buffer, SMALL, created_ns=5, boot=6)
        answers.append(play(fast, script, buffer))
    assert answers[0] == answers[1]
    assert buffers[0] == buffers[1]


def test_golden_bytes(fast: Any) -> None:
    """A file of today is readable tomorrow: these bytes change only with VERSION."""
    buffer = bytearray(SMALL.total)
    fast.Table.format(buffer, SMALL, created_ns=5, boot=6)
    script: list[Any] = [
        ("target", b"openai/gpt-4o"), ("record", 1, 0, 500_000, 90_000, NOW), ("record", 1, 6, 7, -1, NOW + S // 1000),
        ("enter", 0, 1), ("add_usage", 1, 10, 20, 30), ("series", b"requests", 1), ("series", b"duration", 12),
        ("extend_cooldown", 2, NOW + S), ("cas_breaker", 2, 0, 0x1234), ("turn",), ("refresh", NOW),
    ]  # fmt: skip
    play(fast, script, buffer)
    assert buffer[:8] == b"SLIPSTBL"
    assert hashlib.sha256(buffer).hexdigest()[:16] == "6becd09e50b17db1"


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1 << 32), script=calls)
def test_garbage_never_crashes(seed: int, script: list[Any]) -> None:
    """Random words behind a good header: every call answers, and nothing is read outside (debug build: UBSan)."""
    rng = random.Random(seed)
    for fast in filter(None, (COMPILED, PURE)):
        buffer = bytearray(SMALL.total)
        for at in range(64, SMALL.total - 8, 8 * rng.randrange(1, 9)):
            struct.pack_into("<Q", buffer, at, rng.choice([rng.getrandbits(64), (1 << 64) - 1, 0x7FF8 << 48, 1, 2, 3]))
        fast.Table.format(buffer, SMALL)
        answers = play(fast, script, buffer)
        assert len(answers) >= 12
        table = fast.Table(buffer, SMALL)
        for row in range(8):
            assert all(0.0 <= v <= layout.AVERAGE_MAX for v in table.ewma(row))
            table.in_flight(row), table.usage(row), table.last_failure(row), table.samples(row, NOW)


# ----------------------------------------------------------------------------------------------------------- files


def test_anonymous() -> None:
    shared = state.open_table(None, SMALL)
    assert (shared.path, shared.note, shared.shared) == (None, None, False)
    shared.table.record(0, FailureClass.CLIENT_ERROR, -1, -1, NOW)
    shared.table.record(0, FailureClass.RATE_LIMITED, -1, -1, NOW)
    shared.table.record(0, FailureClass.SERVER, -1, -1, NOW)
    assert shared.table.errors(0, 60, NOW) == (2, 1)
    shared.close()
    shared.close()


def test_counters_survive(tmp_path: Path) -> None:
    directory = tmp_path / "new" / "state"
    first = state.open_table(directory, SMALL, boot=5)
    path = directory / "table.bin"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert [p.name for p in directory.iterdir()] == ["table.bin"]
    row, slot = first.table.target(b"a"), first.series.series(b"s", 1)
    worker = first.table.claim_worker(4242, NOW)
    first.table.enter(worker, row)
    first.table.record(row, 0, 5000, -1, NOW)
    first.series.add(slot, 0, 3)
    second = state.open_table(directory, SMALL, boot=5)
    assert second.shared, "another gateway has it open: its workers are left alone"
    assert second.table.in_flight(row) == 1
    second.close()
    first.close()
    third = state.open_table(directory, SMALL, boot=5)
    assert (third.note, third.shared, third.path) == (None, False, path)
    assert (third.table.in_flight(row), third.table.workers()) == (0, [])
    assert (third.table.counters(row)[0], third.table.ewma(row)[0], third.series.get(slot, 0)) == (1, 5000.0, 3)
    third.close()
    rebooted = state.open_table(directory, SMALL, boot=6)
    assert (rebooted.table.counters(row)[0], rebooted.table.ewma(row)[0], rebooted.table.boot) == (1, 0.0, 6)
    rebooted.close()


@pytest.mark.parametrize("damage", ["truncated", "empty", "longer", "header", "zeros", "fifo"])
def test_a_file_that_cannot_be_used_is_moved_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "table.bin"
    state.open_table(tmp_path, SMALL, boot=5).close()
    good = path.read_bytes()
    if damage == "fifo":
        path.unlink()
        os.mkfifo(path)
    else:
        bad = {"truncated": good[:5000], "empty": b"", "longer": good + b"x", "header": b"X" + good[1:]}
        path.write_bytes(bad.get(damage, bytes(len(good))))
    shared = state.open_table(tmp_path, SMALL, boot=5)
    assert shared.note is not None
    assert "table.bin.old" in shared.note
    assert (tmp_path / "table.bin.old").exists()
    assert shared.table.target(b"a") >= 0
    shared.close()
    again = state.open_table(tmp_path, SMALL, boot=5)
    assert again.note is None
    again.close()


def test_other_sizes_move_the_file_aside(tmp_path: Path) -> None:
    state.open_table(tmp_path, SMALL, boot=5).close()
    shared = state.open_table(tmp_path, Sizes(9, 16, 8, 4), boot=5)
    assert shared.note is not None
    shared.close()


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="state directory"):
        state.open_table(tmp_path / "file" / "state", SMALL)
    (tmp_path / "table.bin").symlink_to(tmp_path / "file")
    with pytest.raises(ConfigError, match="state directory"):
        state.open_table(tmp_path, SMALL)


def test_boot_number(tmp_path: Path) -> None:
    assert state.boot_number(tmp_path / "none") == 0
    (tmp_path / "id").write_text("0a8b5a4e-7d5c-4a43-bb5b-4c4f66dba4ab\n")
    assert state.boot_number(tmp_path / "id") == 0x0A8B5A4E7D5C4A4
    assert 0 <= state.boot_number() < 1 << 63
