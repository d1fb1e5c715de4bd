"""Spaces for `evolve`: tables of levels and costs whose sum never leaves the budget.

up by one level here  ->  debt  ->  down by one level there, ..., until the debt is exactly paid
"""

from collections.abc import Callable, Sequence

import numpy as np

from laconic.allocate.evolution import State
from laconic.allocate.options import checked_table
from laconic.errors import BudgetError, UsageError

MOST_SWITCHES = 3  # of a mutation; the smaller of two draws, so mostly 1
MOST_MOVES = 10  # levels changed to pay for a switch
TRIES = 100  # draws before a first state, or a switch between units of unlike cost, is given up
CELLS = 1 << 12  # steps of a debt that is paid from real costs


def nowhere(state: State) -> None:
    """Applies nothing: for spaces whose fitness looks at the state itself."""


class TableSpace:
    """Units with levels of known cost, within one budget or one for each pool of units.

    A mutation makes one to three switches. A switch moves one unit by a level and pays with others
    of its pool: half of the time with a unit whose step costs the same, half of the time with the
    fewest units of other steps that give the sum. With whole costs the budget is met exactly by every
    state; otherwise states cost at most the budget, and what is left is less than any single step up
    could use.

    Args:
        cost: (units, levels) >= 0, rising; infinity behind the last level of a unit that has fewer.
        budget: what all units cost together, or a number for each pool.
        place: puts the model into a state.
        pools: (units) labels 0..P-1; a switch stays in a pool. One pool by default.
        start: the first state; drawn at random where there is none.
        exact: whether the budget must be met exactly, which needs whole costs.

    Raises:
        BudgetError: the budget is outside of what can be reached; the message names the range.
        UsageError: costs that do not rise, or that are not whole numbers where they must be.

    Example:
        >>> space = TableSpace(np.array([[2, 3, 4]] * 3 + [[4, 6, 8]]), 15)
        >>> rng = np.random.default_rng(0)
        >>> state = space.initial(rng)
        >>> {space.spent(space.mutate(rng, state)) for _ in range(50)}
        {15.0}
    """

    def __init__(
        self, cost: np.ndarray, budget: float | Sequence[float] | np.ndarray,
        *, place: Callable[[State], None] = nowhere, pools: Sequence[int] | np.ndarray | None = None,
        start: State | None = None, exact: bool = True,
    ) -> None:  # fmt: skip
        self.table, _ = checked_table(cost, np.zeros(np.shape(cost)))
        self._levels = np.isfinite(self.table).sum(axis=1)
        self.pools = np.zeros(len(self.table), int) if pools is None else np.asarray(pools, int)
        self.budgets = np.atleast_1d(np.asarray(budget, float))
        self.exact, self._place, self._start = exact, place, start
        _check_rising(self.table, exact)
        for pool, limit in enumerate(self.budgets):
            self._check_reachable(self.pools == pool, float(limit))
        if start is not None and not self.holds(start):
            raise BudgetError(f"the first state costs {self.spent(start):.10g}, not {budget}")

    @property
    def n(self) -> int:
        """How many units there are."""
        return len(self.table)

    def levels(self, unit: int) -> int:
        """How many levels `unit` has."""
        return int(self._levels[unit])

    def cost(self, unit: int, level: int) -> float:
        """What `unit` costs at `level`."""
        return float(self.table[unit, level])

    def spent(self, state: State) -> float:
        """What `state` costs."""
        return float(self.table[np.arange(self.n), list(state)].sum())

    def holds(self, state: State) -> bool:
        """Whether every pool is at its budget, or within it where it need not be exact."""
        levels = np.asarray(state)
        if levels.shape != (self.n,) or (levels < 0).any() or (levels >= self._levels).any():
            return False
        paid = self.table[np.arange(self.n), levels]
        sums = np.array([paid[self.pools == pool].sum() for pool in range(len(self.budgets))])
        return bool((sums == self.budgets if self.exact else sums <= self.budgets).all())

    def apply(self, state: State) -> None:
        """Puts the model into `state`."""
        self._place(state)

    def initial(self, rng: np.random.Generator) -> State:
        """The first state given, or one drawn at random.

        Raises:
            BudgetError: none was found; no sum of levels may give the budget.
        """
        if self._start is not None:
            return self._start
        for _ in range(TRIES):
            state = rng.integers(0, self._levels)
            if all(self.settle(rng, state, pool) for pool in range(len(self.budgets))):
                if not self.exact:
                    self._fill(rng, state)
                return plain(state)
        raise BudgetError(f"no state was found that costs {self.budgets.tolist()}")

    def mutate(self, rng: np.random.Generator, state: State) -> State:
        """A state near `state` within the same budget."""
        levels = np.array(state)
        for _ in range(int(rng.integers(1, MOST_SWITCHES + 1, 2).min())):
            unit = int(rng.integers(self.n))
            changed = self._switch(rng, levels, unit)
            levels = levels if changed is None else changed
        if not self.exact:
            self._fill(rng, levels)
        return plain(levels)

    def settle(self, rng: np.random.Generator, state: np.ndarray, pool: int) -> bool:
        """Brings a pool of `state` to its budget by single steps, in place; whether it could."""
        units = np.flatnonzero(self.pools == pool)
        limit = self.budgets[pool]
        while True:
            over = self.table[units, state[units]].sum() - limit
            if over == 0 or (over < 0 and not self.exact):
                return True
            way, debt = -1 if over > 0 else 1, abs(over)
            steps = self.steps(state, units, way)
            if debt <= MOST_MOVES * steps.max(initial=0) / 2:
                moves = self.payment(rng, steps, debt, at_least=not self.exact)
                if moves is not None:
                    state[units[moves]] += way
                    return True
            able = units[(steps > 0) & (steps <= debt if self.exact else steps > 0)]
            if not len(able):
                return self._detour(rng, state, units, way, debt)
            state[rng.choice(able)] += way

    def _detour(
        self, rng: np.random.Generator, state: np.ndarray, units: np.ndarray, way: int, debt: float
    ) -> bool:
        """Pays what no sum of steps gives after a step of one unit the other way, in place."""
        back = self.steps(state, units, -way)
        for step in rng.permutation(np.unique(back[back > 0])):
            unit = rng.choice(np.flatnonzero(back == step))
            steps = self.steps(state, units, way)
            steps[unit] = 0
            moves = self.payment(rng, steps, debt + step, at_least=False) if self.exact else None
            if moves is not None:
                state[units[unit]] -= way
                state[units[moves]] += way
                return True
        return False

    def steps(self, state: np.ndarray, units: np.ndarray, way: int) -> np.ndarray:
        """What a step of each of `units` up (1) or down (-1) costs or frees; 0 where there is none."""
        to = state[units] + way
        able = (to >= 0) & (to < self._levels[units])
        to = np.where(able, to, state[units])
        price: np.ndarray = np.abs(self.table[units, to] - self.table[units, state[units]])
        return price

    def payment(
        self, rng: np.random.Generator, steps: np.ndarray, debt: float, *, at_least: bool
    ) -> np.ndarray | None:
        """Numbers of the fewest `steps` that sum to `debt`; None where there are none in 10.

        Of sets of equal size one is drawn. Real costs are cut into steps of 1/4096 of the debt and
        rounded down: the sum is at least the debt.
        """
        usable = np.flatnonzero(steps > 0)
        usable = usable[rng.permutation(len(usable))]
        if at_least:  # the fewest that suffice sum to less than twice the debt, or are one
            weights = np.floor(steps[usable] * (CELLS / debt)).clip(max=2 * CELLS).astype(np.int64)
            picks = _fewest(weights, CELLS, 2 * CELLS)
        else:
            divisor = np.gcd.reduce(np.append(steps[usable], debt).astype(np.int64))
            target = int(debt / divisor)
            picks = _fewest((steps[usable] / divisor).astype(np.int64), target, target)
        if picks is None or len(picks) > MOST_MOVES:
            return None
        return np.asarray(usable[picks])

    def _switch(self, rng: np.random.Generator, levels: np.ndarray, unit: int) -> np.ndarray | None:
        """`levels` with `unit` moved by one and others paying for it; None where that cannot be."""
        changed = levels.copy()
        way = 1 if rng.random() < 0.5 else -1
        step = self.steps(changed, np.array([unit]), way)[0]
        if step == 0:
            return None
        changed[unit] += way
        others = np.flatnonzero((self.pools == self.pools[unit]) & (np.arange(self.n) != unit))
        if rng.random() < 0.5:
            paid = self._transfer(rng, changed.copy(), others, way, step)
            if paid is not None:
                return paid
        alike = others[self.steps(changed, others, -way) == step]
        if not len(alike):
            return self._transfer(rng, changed, others, way, step)
        changed[rng.choice(alike)] -= way
        return changed

    def _transfer(
        self,
        rng: np.random.Generator,
        changed: np.ndarray,
        others: np.ndarray,
        way: int,
        step: float,
    ) -> np.ndarray | None:
        """Pays a debt by units of other steps, after more moves the same way where that helps."""
        if not self.exact and way < 0:
            return changed  # what was freed is spent by `_fill`
        debt = step
        for _ in range(MOST_MOVES // 2):
            steps = self.steps(changed, others, -way)
            steps = np.where(steps == step, 0, steps)
            picks = self.payment(rng, steps, debt, at_least=not self.exact)
            if picks is not None:
                changed[others[picks]] -= way
                return changed
            more = self.steps(changed, others, way)
            able = np.flatnonzero(more == step)
            if not len(able):
                return None
            unit = int(rng.choice(able))
            changed[others[unit]] += way
            others = np.delete(others, unit)
            debt += step
        return None

    def _fill(self, rng: np.random.Generator, levels: np.ndarray) -> None:
        """Raises single units, in random order, while that fits into what is left; in place."""
        for pool, limit in enumerate(self.budgets):
            units = np.flatnonzero(self.pools == pool)
            while True:
                left = limit - self.table[units, levels[units]].sum()
                steps = self.steps(levels, units, 1)
                able = units[(steps > 0) & (steps <= left)]
                if not len(able):
                    break
                levels[rng.choice(able)] += 1

    def _check_reachable(self, units: np.ndarray, limit: float) -> None:
        rows = self.table[units]
        least = rows.min(axis=1).sum()
        most = np.where(np.isfinite(rows), rows, 0).max(axis=1).sum()
        if limit < least or (self.exact and limit > most):
            raise BudgetError(
                f"a budget of {limit:.10g} cannot be met; between {least:.10g} and {most:.10g} can"
            )
        grain = granularity(rows) if self.exact else 0
        if grain and (limit - least) % grain:
            nearest = least + (limit - least) // grain * grain
            raise BudgetError(
                f"a budget of {limit:.10g} cannot be met exactly, all costs being {least:.10g} and "
                f"multiples of {grain} more; {nearest:.10g} may be"
            )


def granularity(cost: np.ndarray) -> int:
    """The greatest whole number of which all steps between the levels (units, levels) are multiples.

    0 where there is no step. Budgets that are met exactly are the least cost and multiples of it.

    Example:
        >>> granularity(np.array([[2, 4, 6], [9, 12, np.inf]]))
        1
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity, behind a unit's last level
        steps = np.diff(cost, axis=1)
    return int(np.gcd.reduce(steps[np.isfinite(steps)].astype(np.int64), initial=0))


def _check_rising(table: np.ndarray, exact: bool) -> None:
    with np.errstate(invalid="ignore"):
        falls = np.diff(table, axis=1) <= 0
    gaps = np.isfinite(table[:, 1:]) & ~np.isfinite(table[:, :-1])
    if (falls | gaps).any():
        unit = int((falls | gaps).any(axis=1).argmax())
        raise UsageError(f"unit {unit}: the costs of its levels must rise, found {table[unit]}")
    if exact and (np.isfinite(table) & (table != np.floor(table))).any():
        raise UsageError("a budget is met exactly only by whole costs; give exact=False")


def plain(levels: np.ndarray) -> State:
    """Levels as a state: a tuple of Python's own numbers."""
    return tuple(levels.tolist())


def _fewest(weights: np.ndarray, least: int, most: int) -> list[int] | None:
    """Numbers of the fewest whole `weights` whose sum is in least..most, smallest sum first."""
    count = np.full(most + 1, len(weights) + 1, np.int32)
    count[0] = 0
    taken = np.zeros((len(weights), most + 1), bool)
    for i, weight in enumerate(weights.tolist()):
        if 0 < weight <= most:
            more = count[: most + 1 - weight] + 1
            taken[i, weight:] = more < count[weight:]
            np.minimum(count[weight:], more, out=count[weight:])
    end = least + int(count[least:].argmin())
    if count[end] > len(weights):
        return None
    picks = []
    for i in range(len(weights) - 1, -1, -1):
        if taken[i, end]:
            picks.append(i)
            end -= int(weights[i])
    return picks
