"""Spaces of what is there at all: units that are dropped, alone or beside levels for the rest."""

from collections.abc import Callable, Sequence

import numpy as np

from laconic.allocate.evolution import State
from laconic.allocate.spaces import MOST_SWITCHES, TRIES, TableSpace, nowhere, plain
from laconic.errors import BudgetError, UsageError


class DepthSpace(TableSpace):
    """Which of some units are dropped; units of one kind take each other's place.

    Args:
        kinds: (units) the kind of each, such as `attention` and `mlp`; as many of every kind stay
            dropped as are dropped at first.
        drop: how many of each kind.
        place: puts the model into a state; level 1 stands for present, 0 for dropped.
        protected: units that are never dropped.

    Raises:
        BudgetError: fewer units can be dropped.

    Example:
        >>> space = DepthSpace(["attention", "mlp"] * 4, 1)
        >>> sum(space.initial(np.random.default_rng(0)))
        6
    """

    def __init__(
        self, kinds: Sequence[str], drop: int,
        *, place: Callable[[State], None] = nowhere, protected: Sequence[int] = (),
    ) -> None:  # fmt: skip
        names = list(dict.fromkeys(kinds))
        pools = np.array([names.index(kind) for kind in kinds], int)
        kept = np.bincount(pools, minlength=len(names)) - drop
        free = np.bincount(np.delete(pools, list(protected)), minlength=len(names))
        if drop < 0 or (free < drop).any() or (kept < 0).any():
            raise BudgetError(
                f"{drop} units of each kind cannot be dropped; {int(min(free, default=0))} can"
            )
        cost = np.tile([0.0, 1.0], (len(kinds), 1))
        cost[list(protected)] = [1.0, np.inf]  # present is their only level
        super().__init__(cost, kept, place=place, pools=pools)
        self.protected = frozenset(protected)

    def dropped(self, state: State) -> list[int]:
        """Numbers of the units that `state` drops."""
        return [u for u, level in enumerate(state) if not level and u not in self.protected]


class ProductSpace:
    """Which parts are present, and at which level each layer of the present ones is: one budget.

    A state is first a level for each part (1 present, 0 dropped), then one for each layer. A dropped
    part's layers cost nothing, so dropping more affords more for the others; the search finds out
    what is better. Layers of dropped parts stand at their first level: equal models are equal states.

    Args:
        cost: (layers, levels) >= 0, rising; infinity where there is no such level.
        owner: (layers) the number of the part each belongs to; -1 for layers that are always there.
        parts: how many parts there are.
        budget: upper limit of what the present layers cost.
        place: puts the model into a state.
        most: parts that may be dropped.

    Raises:
        BudgetError: not even the cheapest levels with `most` parts dropped are within the budget.

    Example:
        >>> space = ProductSpace(np.array([[2, 4]] * 4), owner=[0, 0, 1, 1], parts=2, budget=12)
        >>> rng = np.random.default_rng(0)
        >>> space.holds(space.mutate(rng, space.initial(rng)))
        True
    """

    def __init__(
        self, cost: np.ndarray, owner: Sequence[int], parts: int, budget: float,
        *, place: Callable[[State], None] = nowhere, most: int | None = None,
    ) -> None:  # fmt: skip
        self.layers = TableSpace(cost, np.inf, exact=False)
        self.owner, self.parts, self.budget = np.asarray(owner, int), parts, float(budget)
        self.most, self._place = parts if most is None else most, place
        if self.owner.shape != (self.layers.n,) or (self.owner >= parts).any():
            raise UsageError(f"{self.layers.n} layers need an owner each, below {parts}")
        least = self.layers.table.min(axis=1)
        freed = np.sort([least[self.owner == part].sum() for part in range(parts)])[::-1]
        reach = least.sum() - freed[: self.most].sum()
        if reach > self.budget:
            raise BudgetError(
                f"the budget of {self.budget:.10g} is below the smallest reachable, {reach:.10g}"
            )

    @property
    def n(self) -> int:
        """Parts and layers together."""
        return self.parts + self.layers.n

    def levels(self, unit: int) -> int:
        """2 for parts; for layers how many they have."""
        return 2 if unit < self.parts else self.layers.levels(unit - self.parts)

    def cost(self, unit: int, level: int) -> float:
        """Of a layer whose part is present; parts themselves cost nothing."""
        return 0.0 if unit < self.parts else self.layers.cost(unit - self.parts, level)

    def spent(self, state: State) -> float:
        """What the layers of the present parts cost."""
        present, levels = self._split(np.asarray(state))
        return float(self.layers.table[np.arange(self.layers.n), levels][present].sum())

    def holds(self, state: State) -> bool:
        """Whether it is within the budget and drops at most `most` parts."""
        values = np.asarray(state)
        if values.shape != (self.n,) or (values < 0).any():
            return False
        if any(level >= self.levels(unit) for unit, level in enumerate(state)):
            return False
        present, levels = self._split(values)
        dropped = self.parts - int(values[: self.parts].sum())
        return bool(
            dropped <= self.most and not levels[~present].any() and self.spent(state) <= self.budget
        )

    def apply(self, state: State) -> None:
        """Puts the model into `state`."""
        self._place(state)

    def initial(self, rng: np.random.Generator) -> State:
        """As few parts dropped as the budget needs, drawn at random, and random levels."""
        for tries in range(TRIES * (self.most + 1)):
            state = np.zeros(self.n, int)
            state[: self.parts] = 1
            drop = min(tries // TRIES, self.most)
            state[rng.permutation(self.parts)[:drop]] = 0
            if self._repair(rng, state):
                return plain(state)
        raise BudgetError(f"no state was found that costs at most {self.budget:.10g}")

    def mutate(self, rng: np.random.Generator, state: State) -> State:
        """One to three changes of a part or of a level, then levels down or up to the budget."""
        values = np.array(state)
        for _ in range(int(rng.integers(1, MOST_SWITCHES + 1, 2).min())):
            if rng.random() < 0.5:
                self._change_parts(rng, values)
            else:
                self._change_level(rng, values)
        return plain(values) if self._repair(rng, values) else state

    def _split(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(L) whether a layer is there, (L) its level."""
        part = np.append(values[: self.parts], 1)[self.owner]  # -1 looks up the last
        return part == 1, values[self.parts :]

    def _change_parts(self, rng: np.random.Generator, values: np.ndarray) -> None:
        """Drops one, restores one, or both."""
        present = np.flatnonzero(values[: self.parts] == 1)
        dropped = np.flatnonzero(values[: self.parts] == 0)
        kind = rng.integers(3)
        if kind != 0 and len(dropped):
            there, levels = self._split(values)
            part = rng.choice(dropped)
            usual = round(levels[there].mean()) if there.any() else 0
            mine = np.flatnonzero(self.owner == part)
            levels[mine] = [min(usual, self.layers.levels(layer) - 1) for layer in mine.tolist()]
            values[part] = 1
        room = len(dropped) < self.most or (kind == 2 and len(dropped))
        if kind != 1 and len(present) and room:
            values[rng.choice(present)] = 0

    def _change_level(self, rng: np.random.Generator, values: np.ndarray) -> None:
        """Moves a present layer up or down by one."""
        present, levels = self._split(values)
        way = 1 if rng.random() < 0.5 else -1
        able = np.flatnonzero(
            present & (self.layers.steps(levels, np.arange(len(levels)), way) > 0)
        )
        if len(able):
            values[self.parts + rng.choice(able)] += way

    def _repair(self, rng: np.random.Generator, values: np.ndarray) -> bool:
        """Lowers, then raises, random present layers to the budget, in place; whether it could."""
        present, levels = self._split(values)  # `levels` is a view
        levels[~present] = 0
        units = np.flatnonzero(present)
        for way in (-1, 1):
            while True:
                left = self.budget - self.layers.table[units, levels[units]].sum()
                steps = self.layers.steps(levels, units, way)
                able = units[(steps > 0) & ((left < 0) if way < 0 else (steps <= left))]
                if not len(able):
                    break
                levels[rng.choice(able)] += way
        return bool(self.layers.table[units, levels[units]].sum() <= self.budget)
