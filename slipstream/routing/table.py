"""The compiled routes of a snapshot: public model name -> pool of targets, and the choice within a pool.

A pool is all providers that serve a model; pools are shared by all models that the same providers serve under the same
names, so that the weights hold over all of them together. A model nobody wrote down is served by the providers that
serve every model (or whose pattern fits), if the name is a plain identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from hashlib import blake2b
from itertools import count

from .. import _fast
from ..config.snapshot import ProviderSpec, Snapshot, Target
from ..types import NANOS
from .weighted import cycle

NOTHING: frozenset[int] = frozenset()
"""No row was tried yet."""
MAX_REMEMBERED = 1024
"""Pools remembered for names that are not in the configuration; the rest are computed again each time."""


class Pool:
    """Targets for one model, in weighted order. A pool counts its turns alone until it is told to ``take_turns``."""

    __slots__ = ("_next_turn", "_order", "rows", "targets")

    def __init__(self, targets: tuple[Target, ...]) -> None:
        self.targets = targets
        self.rows = tuple(dict.fromkeys(target.row for target in targets))
        self._order = cycle([t.weight for t in targets]) if any(t.weight for t in targets) else None
        self._next_turn: Callable[[], int] = count().__next__

    def take_turns(self, table: _fast.Table, key: bytes) -> None:
        """From now on with all workers that do so under the same key: together they keep the weights exactly."""
        if self._order is not None:
            rows = [self.targets[i].row for i in self._order]
            self._next_turn = _fast.Pool(table, key, rows).turn

    def choose(self, tried: Set[int], available: Callable[[int, int], bool], now: float) -> Target | None:
        """The next target in turn that was not tried and is available; ``None`` if there is none.
        ``available(row, now_ns)`` says whether a target neither rests nor is shut; ``now`` is in seconds.

        The turn moves on by one, whoever is chosen: a target that is passed over does not get its turn later.
        """
        order = self._order
        if order is None:
            return None
        size = len(order)
        turn = self._next_turn() % size
        now_ns = int(now * NANOS)
        target = self.targets[order[turn]]
        if available(target.row, now_ns) and target.row not in tried:
            return target
        for step in range(size):
            at = turn + step
            target = self.targets[order[at if at < size else at - size]]
            if target.row in tried:
                continue
            if available(target.row, now_ns):
                return target
        return None

    @property
    def empty(self) -> bool:
        """Whether nobody in it has a weight."""
        return self._order is None

    def share(self, target: Target) -> float:
        """The part of this pool's traffic that goes to ``target`` when all are healthy, 0..1."""
        order = self._order
        return order.count(self.targets.index(target)) / len(order) if order is not None else 0.0


class RouteTable:
    """All routes of one snapshot. ``row_of`` gives the row of a target's statistics by the target's name; with
    ``table`` the workers that share it take turns together.
    """

    __slots__ = ("_by_name", "_remembered", "_row_of", "_rows", "_snapshot", "_static", "_table", "targets")

    def __init__(self, snapshot: Snapshot, row_of: Callable[[str], int], table: _fast.Table | None = None) -> None:
        self._snapshot = snapshot
        self._row_of = row_of
        self._table = table
        self._rows: dict[tuple[str, str | None], Target] = {}
        self._remembered: dict[tuple[Target, ...], Pool] = {}
        self.targets: list[Target] = []
        self._static: dict[str, Pool] = {}
        self._by_name: dict[str, Pool] = {}
        for model in snapshot.known_models():
            pool = self._build(model, listed=True)
            if pool is not None:
                self._static[model] = pool
        for spec in snapshot.providers:
            if spec.patterns or spec.serves_every_model:
                self._target(spec, None)  # now, while a full table is a refusal to start and not a failed request

    @property
    def models(self) -> Mapping[str, Pool]:
        """Models that the configuration names, in its order."""
        return self._static

    def knows(self, model: str) -> bool:
        """Whether the configuration names ``model``."""
        return model in self._static

    def remembers(self, model: str) -> bool:
        """Whether a request for ``model``, which nobody wrote down, was routed before."""
        return model in self._by_name

    def find(self, model: str) -> Pool | None:
        """The pool for ``model``, or ``None`` if nobody serves it."""
        return self._static.get(model) or self._by_name.get(model) or self._find(model)

    def _find(self, model: str) -> Pool | None:
        """For a name that nobody wrote down. The first few are remembered: traffic is mostly a handful of models."""
        pool = self._build(model)
        if pool is not None and len(self._by_name) < MAX_REMEMBERED:
            self._by_name[model] = pool
        return pool

    def _build(self, model: str, listed: bool = False) -> Pool | None:
        targets = tuple(
            self._target(spec, name if name in spec.models or name in spec.model_mapping.values() else None)
            for spec in self._snapshot.providers
            if (name := spec.upstream_model(model)) is not None
        )
        if not targets:
            return None
        pool = self._remembered.get(targets)
        if pool is None:
            pool = Pool(targets)
            if self._table is not None:
                pool.take_turns(self._table, turns_key(model if listed else None, targets))
            if len(self._remembered) < MAX_REMEMBERED:
                self._remembered[targets] = pool
        return pool

    def _target(self, spec: ProviderSpec, listed: str | None) -> Target:
        """One row per provider and written-down name; a provider serving every model has one row for all of them."""
        key = (spec.name, listed)
        target = self._rows.get(key)
        if target is None:
            target = Target(self._row_of(row_name(*key)), spec, listed, spec.weight, spec.limits.per_minute)
            self._rows[key] = target
            self.targets.append(target)
        return target


def row_name(provider: str, model: str | None) -> str:
    """``provider/model``, or ``provider`` for all models that nobody wrote down. A slash in a provider's name is
    escaped, so that no two targets have one name: they would share a row, and failing over would skip the second.
    """
    escaped = provider.replace("%", "%25").replace("/", "%2F")
    return escaped if model is None else f"{escaped}/{model}"


def turns_key(model: str | None, targets: tuple[Target, ...]) -> bytes:
    """The name of a pool's turns, the same in every worker: the first model that the configuration names for it, or
    (``None``) the rows it chooses from, since workers may see the names that nobody wrote down in another order.
    """
    key = b"=" + model.encode() if model is not None else b"*" + b",".join(b"%d" % t.row for t in targets)
    if len(key) > _fast.KEY_MAX:
        key = key[: _fast.KEY_MAX - 33] + b"~" + blake2b(key, digest_size=16).hexdigest().encode()
    return key
