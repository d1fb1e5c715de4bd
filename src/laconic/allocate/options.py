"""`Options`: what each item may become, at what cost and with what error."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from laconic.errors import BudgetError, CorruptFile, UsageError

PRECISION = np.float64

Solver = Callable[[np.ndarray, np.ndarray, float], np.ndarray]  # (cost, error, budget) -> chosen


@dataclass(frozen=True, eq=False)
class Options:
    """Items and, for each, the options of which one must be taken.

    Costs may be bytes, bits, parameters or milliseconds; errors anything that adds up (`knapsack`,
    `lagrangian`) or whose greatest counts (`minimax`). Items may have different numbers of options:
    those that an item does not have cost infinity.

    Args:
        items: (I) names.
        cost: (I, K) >= 0; infinity where an option does not exist.
        error: (I, K); what stands at options that do not exist is ignored.
        choices: (I) tuples of up to K settings, in the order of the columns; JSON values if the
            table is to be saved.

    Raises:
        UsageError: NaN, infinite errors, negative costs, shapes that do not fit together, or an item without options.

    Example:
        >>> table = Options.of({"a": [(1, 9.0, "2bit"), (2, 3.0, "3bit")], "b": [(2, 1.0, "3bit")]})
        >>> from laconic.allocate.knapsack import knapsack
        >>> table.spread(4, knapsack)
        {'a': '3bit', 'b': '3bit'}
    """

    items: tuple[str, ...]
    cost: np.ndarray
    error: np.ndarray
    choices: tuple[tuple[Any, ...], ...]

    def __post_init__(self) -> None:
        cost, error = checked_table(self.cost, self.error)
        object.__setattr__(self, "items", tuple(self.items))
        object.__setattr__(self, "cost", cost)
        object.__setattr__(self, "error", np.where(np.isfinite(cost), error, np.inf))
        object.__setattr__(self, "choices", tuple(tuple(row) for row in self.choices))
        if not len(self.items) == len(self.cost) == len(self.choices):
            raise UsageError(
                f"{len(self.items)} items have costs for {len(self.cost)} and choices for "
                f"{len(self.choices)}"
            )
        if len(set(self.items)) < len(self.items):
            raise UsageError("two items have the same name")
        for name, row, choices in zip(self.items, self.cost, self.choices):
            if np.isfinite(row[len(choices) :]).any():
                raise UsageError(f"{name} has {len(choices)} choices but costs for more")

    @classmethod
    def of(cls, rows: Mapping[str, Sequence[tuple[float, float, Any]]]) -> Self:
        """From a list of (cost, error, choice) for each item; the lists may differ in length."""
        width = max((len(row) for row in rows.values()), default=0)
        cost = np.full((len(rows), width), np.inf)
        error = np.full((len(rows), width), np.inf)
        for i, row in enumerate(rows.values()):
            for k, (paid, lost, _) in enumerate(row):
                cost[i, k], error[i, k] = paid, lost
        choices = tuple(tuple(choice for _, _, choice in row) for row in rows.values())
        return cls(tuple(rows), cost, error, choices)

    def __len__(self) -> int:
        return len(self.items)

    @property
    def least(self) -> float:
        """The cost of the cheapest option of every item together."""
        return float(self.cost.min(axis=1, initial=np.inf).sum()) if len(self) else 0.0

    def total(self, chosen: np.ndarray) -> tuple[float, float]:
        """Cost and error, summed, of the options `chosen` (I) by number."""
        rows = np.arange(len(self))
        return float(self.cost[rows, chosen].sum()), float(self.error[rows, chosen].sum())

    def settings(self, chosen: np.ndarray) -> dict[str, Any]:
        """The choice of each item for the option numbers `chosen` (I)."""
        return {n: c[k] for n, c, k in zip(self.items, self.choices, chosen.tolist())}

    def spread(self, budget: float, solver: Solver) -> dict[str, Any]:
        """The choice of each item that `solver` takes within `budget`; raises `BudgetError`."""
        return self.settings(solver(self.cost, self.error, budget))

    def pruned(self) -> "Options":
        """Without options that another of the same item beats in cost and error.

        Those that stay are in order of their cost; of equals the first stays.
        """
        rows = {}
        for i, name in enumerate(self.items):
            keep = undominated(self.cost[i], self.error[i])
            rows[name] = [(self.cost[i, k], self.error[i, k], self.choices[i][k]) for k in keep]
        return Options.of(rows)

    def to_json(self) -> dict[str, Any]:
        """JSON values; options that do not exist are left out."""
        rows = []
        for cost, error, choices in zip(self.cost.tolist(), self.error.tolist(), self.choices):
            rows.append(
                [[c, e, choice] for c, e, choice in zip(cost, error, choices) if c < np.inf]
            )
        return {"items": list(self.items), "options": rows}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of `to_json`.

        Raises:
            CorruptFile: they are not such values.
        """
        try:
            names, rows = values["items"], values["options"]
            if len(set(names)) != len(rows):
                raise ValueError(f"{len(set(names))} names, {len(rows)} rows")
            return cls.of({name: [(c, e, s) for c, e, s in row] for name, row in zip(names, rows)})
        except (KeyError, TypeError, ValueError, UsageError) as problem:
            raise CorruptFile(f"this is no table of options: {problem!r}") from problem


def checked_table(cost: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Costs and errors (I, K) as float64, once they are known to make sense.

    Raises:
        UsageError: NaN, an infinite error, a negative cost, other shapes, or an item all of whose options are missing.
    """
    cost, error = np.asarray(cost, PRECISION), np.asarray(error, PRECISION)
    if cost.ndim != 2 or cost.shape != error.shape:
        raise UsageError(
            f"costs and errors must be (items, options), found {cost.shape}, {error.shape}"
        )
    exists = np.isfinite(cost)
    wrong = np.isnan(cost) | (exists & ~np.isfinite(error))
    if wrong.any():
        raise UsageError(
            f"item {int(wrong.any(axis=1).argmax())} has a cost or an error that is no finite number; "
            "an option that does not exist costs infinity"
        )
    if (cost < 0).any():
        raise UsageError(f"item {int((cost < 0).any(axis=1).argmax())} has a negative cost")
    if len(cost) and not exists.any(axis=1).all():
        raise UsageError(f"item {int(exists.any(axis=1).argmin())} has no option at all")
    return cost, error


def check_reachable(cost: np.ndarray, budget: float) -> None:
    """`BudgetError`, naming the smallest reachable, if the cheapest options exceed `budget`."""
    least = cost.min(axis=1).sum() if len(cost) else 0.0
    if not least <= budget:
        raise BudgetError(
            f"the budget of {budget:.10g} is below the smallest reachable, {least:.10g}"
        )


def undominated(cost: np.ndarray, error: np.ndarray) -> np.ndarray:
    """Numbers of the options (K) that no other beats, by rising cost and falling error.

    Example:
        >>> undominated(np.array([3.0, 1, 2, 2]), np.array([1.0, 5, 5, 3])).tolist()
        [1, 3, 0]
    """
    order = np.lexsort((error, cost))
    order = order[np.isfinite(cost[order])]
    falling = np.minimum.accumulate(np.append(np.inf, error[order]))[:-1]
    keep: np.ndarray = order[error[order] < falling]
    return keep if len(keep) else order[:1]
