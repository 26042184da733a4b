"""Weighted turns are exact over a cycle and smooth within it; a pool passes over what was tried or rests; names that
nobody wrote down cost no memory."""

from __future__ import annotations

from collections import Counter
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slipstream.config.snapshot import ProviderSpec, Target
from slipstream.engine.runtime import row_of
from slipstream.errors import ConfigError
from slipstream.routing.table import MAX_REMEMBERED, Pool, RouteTable
from slipstream.routing.weighted import MAX_CYCLE, cycle
from slipstream.state.table import SharedTable, Sizes, open_table
from tests.fakes import snapshot, spec

fuzz = settings(deadline=None, derandomize=True, max_examples=120)
weights_lists = st.lists(st.integers(0, 30), min_size=1, max_size=6).filter(any)


def all_well(row: int, now_ns: int) -> bool:
    return True


def all_rest(row: int, now_ns: int) -> bool:
    return False


def pool(*weights: int) -> Pool:
    return Pool(tuple(Target(row, spec(f"p{row}"), "m", weight) for row, weight in enumerate(weights)))


def chosen(p: Pool, times: int) -> list[int | None]:
    return [t.row if (t := p.choose(set(), all_well, 0.0)) else None for _ in range(times)]


# ---- the cycle -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "order"),
    [
        ([1], [0]),
        ([7], [0]),
        ([1, 1], [0, 1]),
        ([2, 1], [0, 1, 0]),
        ([20, 10], [0, 1, 0]),
        ([1, 2], [1, 0, 1]),
        ([0, 3], [1]),
        ([0, 2, 0, 4], [3, 1, 3]),
        ([5, 1], [0, 0, 0, 1, 0, 0]),
    ],
)
def test_known_cycles(weights: list[int], order: list[int]) -> None:
    assert sorted(cycle(weights)) == sorted(order)
    assert list(cycle(weights)) == order


@fuzz
@given(weights_lists)
def test_counts_are_exact_over_a_cycle(weights: list[int]) -> None:
    turns = cycle(weights)
    counts = Counter(turns)
    assert all(counts[i] * sum(weights) == weights[i] * len(turns) for i in range(len(weights)))
    assert len(turns) <= sum(weights)


@fuzz
@given(weights_lists)
def test_no_window_strays_from_the_shares(weights: list[int]) -> None:
    """A target with share ``p`` of ``n`` that have a weight gets its share of any ``L`` turns in a row within
    ``1 + p (n - 2)``: each target is within half a turn of its ideal at any moment, and a window is two moments.
    For two targets that is one turn.
    """
    turns = list(cycle(weights)) * 2
    n, total = sum(1 for w in weights if w), sum(weights)
    for i, weight in enumerate(weights):
        p = weight / total
        ahead = [0.0]
        for turn in turns:
            ahead.append(ahead[-1] + (turn == i) - p)
        assert max(ahead) - min(ahead) <= 1 + p * max(0, n - 2) + 1e-6


@fuzz
@given(weights_lists, st.integers(1, 1000))
def test_only_the_ratio_counts(weights: list[int], factor: int) -> None:
    assert cycle([w * factor for w in weights]) == cycle(weights)


def test_huge_weights_are_scaled_to_fit() -> None:
    weights = [1_000_003, 500_000, 1, 0]
    turns = cycle(weights)
    assert len(turns) <= MAX_CYCLE + len(weights)
    counts = Counter(turns)
    assert counts[2] == 1, "a weight is never rounded away"
    assert counts[3] == 0
    for i in (0, 1):
        assert abs(counts[i] / len(turns) - weights[i] / sum(weights)) < 2 / MAX_CYCLE


def test_a_cycle_at_the_limit_is_not_scaled() -> None:
    assert Counter(cycle([MAX_CYCLE - 1, 1])) == {0: MAX_CYCLE - 1, 1: 1}


@pytest.mark.parametrize("weights", [[], [0], [0, 0]])
def test_all_zero_is_an_error(weights: list[int]) -> None:
    with pytest.raises(ValueError, match="every weight is zero"):
        cycle(weights)


# ---- the pool --------------------------------------------------------------------------------------------------------


def test_two_to_one_over_three_thousand() -> None:  # issue 2, Must show 3
    assert Counter(chosen(pool(2, 1), 3000)) == {0: 2000, 1: 1000}


def test_the_turn_moves_on_whoever_is_chosen() -> None:
    p = pool(1, 1, 1)
    first = p.choose({0}, all_well, 0.0)
    assert first is not None
    assert first.row == 1
    assert chosen(p, 3) == [1, 2, 0]


def test_a_resting_target_is_passed_over() -> None:
    p = pool(2, 1)
    for _ in range(9):
        target = p.choose(set(), lambda row, now_ns: row != 0, 0.0)
        assert target is not None
        assert target.row == 1


def test_resting_is_asked_with_the_time() -> None:
    asked: list[tuple[int, int]] = []

    def available(row: int, now_ns: int) -> bool:
        asked.append((row, now_ns))
        return True

    assert pool(1, 1).choose({1}, available, 7.5) is not None
    assert set(asked) == {(0, 7_500_000_000)}


def test_when_all_rest_none_is_chosen() -> None:  # who is better than nobody is the engine's decision
    p = pool(2, 1)
    assert p.choose(set(), all_rest, 0.0) is None
    assert Counter(t.row for _ in range(30) if (t := p.choose(set(), all_well, 0.0))) == {0: 20, 1: 10}


def test_all_tried_is_none() -> None:
    assert pool(2, 1).choose({0, 1}, all_well, 0.0) is None


def test_zero_weight_gets_no_traffic_even_alone() -> None:
    assert chosen(pool(0), 2) == [None, None]
    assert set(chosen(pool(0, 1), 10)) == {1}
    p = pool(0, 1)
    assert p.choose({1}, all_well, 0.0) is None


def test_shares() -> None:
    p = pool(2, 1, 0)
    assert [p.share(t) for t in p.targets] == pytest.approx([2 / 3, 1 / 3, 0])
    assert pool(0).share(pool(0).targets[0]) == 0.0


@fuzz
@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5),
    st.sets(st.integers(0, 4)),
    st.sets(st.integers(0, 4)),
    st.integers(0, 20),
)
def test_the_rules_of_choice(weights: list[int], tried: set[int], rests: set[int], before: int) -> None:
    p = pool(*weights)
    chosen(p, before)
    target = p.choose(tried, lambda row, now_ns: row not in rests, 0.0)
    usable = {i for i, w in enumerate(weights) if w} - tried - rests
    if target is None:
        assert not usable
    else:
        assert target.row in usable


# ---- the table -------------------------------------------------------------------------------------------------------


class Rows:
    """Gives rows in turn; remembers the names that it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str) -> int:
        self.names.append(name)
        return len(self.names) - 1


def routes(*specs: ProviderSpec) -> RouteTable:
    return RouteTable(snapshot(*specs), Rows())


NAMED = (
    spec("listed", models=("m", "both")),
    spec("mapped", models=(), model_mapping={"public": "actual", "both": "other"}, weight=2),
    spec("pattern", models=(), patterns=("gpt-", "o1")),
)


def table() -> RouteTable:
    return routes(*NAMED)


def rows(t: RouteTable, model: str) -> list[tuple[str, str | None]] | None:
    p = t.find(model)
    return None if p is None else [(target.provider.name, target.upstream_model) for target in p.targets]


def test_each_way_to_name_a_model() -> None:
    t = table()
    assert rows(t, "m") == [("listed", "m")]
    assert rows(t, "public") == [("mapped", "actual")]
    assert rows(t, "both") == [("listed", "both"), ("mapped", "other")]
    assert rows(t, "gpt-4o") == [("pattern", None)]
    assert rows(t, "o1-mini") == [("pattern", None)]


@pytest.mark.parametrize("model", ["unknown", "actual", "M", "gpt", "xgpt-4", "m ", ""])
def test_nobody_serves_it(model: str) -> None:
    assert table().find(model) is None


def test_known_are_exactly_the_names_written_down() -> None:  # R31
    t = table()
    assert list(t.models) == ["m", "both", "public"]
    assert t.knows("public")
    assert not t.knows("gpt-4o")
    assert not t.knows("actual")


def test_a_catch_all_serves_every_name_from_one_row() -> None:
    t = routes(spec("all", models=()), spec("one", models=("m",)))
    assert rows(t, "m") == [("all", None), ("one", "m")]
    assert rows(t, "anything") == [("all", None)]
    assert len(t.targets) == 2


def test_each_target_has_its_own_row_and_is_asked_for_once() -> None:
    given_rows = Rows()
    t = RouteTable(snapshot(*NAMED), given_rows)
    for model in ("gpt-1", "gpt-2", "both", "m"):
        t.find(model)
    assert [target.row for target in t.targets] == list(range(len(t.targets)))
    assert len({(target.provider.name, target.upstream_model) for target in t.targets}) == len(t.targets) == 5
    assert given_rows.names == ["listed/m", "listed/both", "mapped/other", "mapped/actual", "pattern"]


def test_names_with_a_slash_do_not_share_a_row() -> None:
    """Two targets in one row would count as one: after the first was tried, the second would be passed over."""
    given_rows = Rows()
    t = RouteTable(
        snapshot(
            spec("a", models=(), model_mapping={"m": "b/c"}),
            spec("a/b", models=(), model_mapping={"m": "c"}),
            spec("a%2Fb", models=(), model_mapping={"m": "c"}),
            spec("a/b/c", models=()),
            spec("x", models=("*", "y"), patterns=("",)),
        ),
        given_rows,
    )
    t.find("anything")
    assert len(set(given_rows.names)) == len(given_rows.names) == len(t.targets) == 7


def test_every_row_is_claimed_before_the_first_request() -> None:
    """A table that is full refuses the configuration; it does not fail the requests."""
    given_rows = Rows()
    t = RouteTable(snapshot(*NAMED, spec("all", models=())), given_rows)
    before = list(given_rows.names)
    assert {"pattern", "all"} <= set(before)
    for model in ("gpt-1", "unheard-of", "m", "both"):
        assert t.find(model) is not None
    assert given_rows.names == before


# ---- rows in the shared table ----------------------------------------------------------------------------------------


def shared_routes(shared: SharedTable, *specs: ProviderSpec) -> RouteTable:
    return RouteTable(snapshot(*specs), lambda name: row_of(shared, name))


def test_a_reload_finds_its_rows_again() -> None:
    """What is known of a target outlives the configuration: rows belong to names, not to their order."""
    shared = open_table(None)
    before = {(t.provider.name, t.upstream_model): t.row for t in shared_routes(shared, *NAMED).targets}
    after = shared_routes(shared, spec("new"), *reversed(NAMED))
    assert {(t.provider.name, t.upstream_model): t.row for t in after.targets if t.provider.name != "new"} == before
    rows_now = [t.row for t in after.targets]
    assert len(set(rows_now)) == len(rows_now) == len(before) + 1
    shared.close()


@pytest.mark.parametrize("size", [1, 100, 207, 208, 209, 1000])
@pytest.mark.parametrize("letter", ["x", "ü", "\U0001f600"])
def test_long_names_have_rows_of_their_own(letter: str, size: int) -> None:
    shared = open_table(None)
    name = letter * size
    row = row_of(shared, name)
    assert row >= 0
    assert row_of(shared, name) == row
    others = {row_of(shared, name + end) for end in ("", "a", "b", "ab")} | {row_of(shared, name[:-1] + "!")}
    assert len(others) == 5
    assert all(len(key) <= 208 for _, key in shared.table.targets())
    shared.close()


def test_a_full_table_is_said_in_plain_words() -> None:
    shared = open_table(None, Sizes(targets=3, counters=64, histograms=8, pools=4))
    assert len(shared_routes(shared, *NAMED[:1]).targets) == 2
    with pytest.raises(ConfigError, match="no room for another target"):
        shared_routes(shared, *NAMED)
    assert len(shared_routes(shared, *NAMED[:1]).targets) == 2, "those that are there stay usable"
    shared.close()


def test_the_weights_hold_over_all_names_together() -> None:
    t = routes(spec("a", models=(), weight=2), spec("b", models=()))
    pools = [t.find(f"model-{i}") for i in range(300)]
    assert len({id(p) for p in pools}) == 1
    names = Counter(
        target.provider.name for p in pools if p is not None and (target := p.choose(set(), all_well, 0.0)) is not None
    )
    assert names == {"a": 200, "b": 100}


def test_unknown_names_leave_no_memory() -> None:  # R31
    t = routes(spec("all", models=()), spec("some", models=(), patterns=("x-",)))
    for i in range(5000):
        assert t.find(f"name-{i}") is not None
        assert t.find(f"x-{i}") is not None
    assert len(t.targets) == 2
    assert len(t._remembered) == 2
    assert not t.models


def test_remembered_pools_are_bounded() -> None:
    size = 11  # 2**11 combinations of providers by pattern
    specs = [spec(f"p{i}", models=(), patterns=tuple(_codes(i, size))) for i in range(size)]
    t = routes(*specs)
    for code in product("01", repeat=size):
        if "1" in code:
            found = t.find("".join(code))
            assert found is not None
            assert [target.provider.name for target in found.targets] == [
                f"p{i}" for i, c in enumerate(code) if c == "1"
            ]
    assert len(t._remembered) == MAX_REMEMBERED
    assert len(t.targets) == size


def _codes(position: int, size: int) -> list[str]:
    """Every prefix of a code that has a 1 at ``position``."""
    return ["".join(head) + "1" for head in product("01", repeat=position)]


def test_the_order_of_providers_is_the_files() -> None:
    t = routes(*(spec(n) for n in "cab"))
    found = t.find("m")
    assert found is not None
    assert [target.provider.name for target in found.targets] == ["c", "a", "b"]
