"""Multiple-choice knapsack: one option for each item, exactly the least total error in a budget.

`knapsack` keeps the list of partial sums that no other beats and is exact for real costs; a table
over whole costs (`integer_knapsack`) or over costs in coarse steps (`stepped_knapsack`) is bounded
in time whatever the numbers are. All share the signature of `lagrangian`.
"""

from dataclasses import dataclass

import numpy as np
from numba import njit

from laconic.allocate.lagrangian import dual, lagrangian
from laconic.allocate.options import check_reachable, checked_table, undominated
from laconic.errors import UsageError

PRECISION = np.float64
STATES = 1 << 15  # partial sums that are kept at most
STEPS = 1 << 16  # of a budget whose costs are rounded
CELLS = 1 << 30  # of the table over whole costs: one or two bytes each
ROUNDING = 1e-12  # relative; sums of real costs differ by this with their order


@dataclass(frozen=True)
class Solution:
    """A choice and how good it is known to be.

    Attributes:
        chosen: (items,) option numbers.
        cost: of all.
        error: of all.
        slack: by how much `error` may exceed the optimum; 0 where the choice is the optimum.
    """

    chosen: np.ndarray
    cost: float
    error: float
    slack: float


def knapsack(cost: np.ndarray, error: np.ndarray, budget: float) -> np.ndarray:
    """Picks one option for each item: the least total error within the budget, for real costs.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options).
        budget: upper limit of the total cost; never exceeded.

    Returns:
        (items,) option numbers. They are the optimum unless more than `STATES` partial sums are
        undominated, which `solve` tells.

    Raises:
        BudgetError: even the cheapest options cost more; says how much they cost.
        UsageError: NaN, negative costs or other shapes.

    Example:
        >>> cost = np.array([[0.0, 3.0, 4.0], [0.0, 3.0, 4.0]])
        >>> error = np.array([[9.0, 2.0, 1.0], [9.0, 5.0, 0.0]])
        >>> knapsack(cost, error, 7.0).tolist()
        [1, 2]
    """
    return solve(cost, error, budget).chosen


def solve(cost: np.ndarray, error: np.ndarray, budget: float, *, states: int = STATES) -> Solution:
    """As `knapsack`, with the guarantee.

    Items are added one by one to a list of (cost, error) sums. A sum is dropped when another costs
    and loses no more, and when the Lagrangian bound of the items still to come shows that it cannot
    end below the Lagrangian's own choice; both keep the optimum. Where more than `states` are left,
    the range of errors is cut into `states` steps of width d and only the cheapest sum of each step
    is kept: the final error is at most the optimum plus the sum of all d, which is the `slack`.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options).
        budget: upper limit of the total cost.
        states: sums kept at most; memory is items x states x 6 bytes.

    Raises:
        BudgetError: even the cheapest options cost more; says how much they cost.
        UsageError: NaN, negative costs or other shapes.
    """
    cost, error = checked_table(cost, error)
    check_reachable(cost, budget)
    if states < 2:
        raise UsageError(f"states must be 2 or more, found {states}")
    start = lagrangian(cost, error, budget)
    bound, multiplier = dual(cost, error, budget)
    best = _sum(error, start)
    if best <= bound or not len(cost):
        return Solution(start, _sum(cost, start), best, 0.0)
    options = [undominated(c, e) for c, e in zip(cost, error)]
    after = _after(cost, error, multiplier)
    trail: list[tuple[np.ndarray, np.ndarray]] = []
    costs, errors, slack = np.zeros(1), np.zeros(1), 0.0
    ceiling = best + ROUNDING * max(1.0, abs(best), float(np.abs(after[0, 0])))
    for i, row in enumerate(options):
        parent, option = (
            part.reshape(-1) for part in np.meshgrid(np.arange(len(costs)), row, indexing="ij")
        )
        costs, errors = costs[parent] + cost[i, option], errors[parent] + error[i, option]
        room = budget * (1 + ROUNDING) - costs
        hopeful = (room >= after[i + 1, 1] * (1 - ROUNDING)) & (
            errors + after[i + 1, 0] - multiplier * room <= ceiling
        )
        keep = np.flatnonzero(hopeful)
        keep = keep[undominated(costs[keep], errors[keep])]
        if len(keep) > states:
            keep, width = _thinned(keep, errors, states)
            slack += width
        trail.append((parent[keep].astype(np.int32), option[keep].astype(np.int16)))
        costs, errors = costs[keep], errors[keep]
        if not len(keep):  # nothing can beat the Lagrangian's choice
            return Solution(start, _sum(cost, start), best, slack)
    for end in np.argsort(errors, kind="stable").tolist():
        chosen = _trace(trail, end)
        if _sum(cost, chosen) <= budget and _sum(error, chosen) <= best:
            return Solution(chosen, _sum(cost, chosen), _sum(error, chosen), slack)
    return Solution(start, _sum(cost, start), best, slack)


def integer_knapsack(cost: np.ndarray, error: np.ndarray, budget: float) -> np.ndarray:
    """Picks one option for each item: the least total error within the budget, for whole costs.

    Dynamic programming over every cost up to the budget (`f[j][b] = min_k f[j-1][b - cost] + error`,
    after division of all costs by their greatest common divisor): exact, and its time depends on
    nothing but items x options x budget.

    Args:
        cost: (items, options) whole numbers >= 0, inf where an option does not exist.
        error: (items, options), finite.
        budget: upper limit of the total cost.

    Returns:
        (items,) option numbers.

    Raises:
        BudgetError: even the cheapest options cost more; says how much they cost.
        UsageError: costs that are not whole numbers, NaN, or a table of more than 2^30 cells (use
            `knapsack` or `stepped_knapsack`).

    Example:
        >>> integer_knapsack(np.array([[1, 2], [1, 3]]), np.array([[5, 1], [5, 0]]), 4).tolist()
        [0, 1]
    """
    cost, error = checked_table(cost, error)
    check_reachable(cost, budget)
    exists = np.isfinite(cost)
    if (cost[exists] != np.floor(cost[exists])).any():
        raise UsageError("the costs are not whole numbers; use knapsack or stepped_knapsack")
    if not len(cost):
        return np.zeros(0, np.int64)
    whole = np.where(exists, cost, 0).astype(np.int64)
    ceiling = np.where(exists, cost, 0).max(axis=1).sum()  # beyond it nothing more can be bought
    limit = int(np.floor(min(budget, ceiling)))
    divisor = max(1, int(np.gcd.reduce(whole, axis=None)))
    whole, limit = whole // divisor, limit // divisor
    if len(cost) * (limit + 1) > CELLS:
        raise UsageError(
            f"{len(cost)} items and costs up to {limit} need a table of more than {CELLS} cells; "
            "use knapsack or stepped_knapsack"
        )
    picks = np.zeros((len(cost), limit + 1), np.uint8 if cost.shape[1] <= 256 else np.int16)
    return np.asarray(_fill(np.where(exists, whole, -1), error, limit, picks))


def stepped_knapsack(
    cost: np.ndarray, error: np.ndarray, budget: float, *, steps: int = STEPS
) -> np.ndarray:
    """`integer_knapsack` over costs rounded up to multiples of a `steps`-th of the budget.

    The budget is never exceeded. Whole costs up to `steps` are not rounded: the result is the
    optimum. Otherwise it loses no more than the optimum of a budget that is
    smaller by items / steps of itself. Where rounding up leaves no choice within the budget, the
    steps are made finer until there is one, up to the table's limit.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options), finite.
        budget: upper limit of the total cost.
        steps: of the budget; time grows with it.

    Returns:
        (items,) option numbers.

    Raises:
        BudgetError: even the cheapest options cost more, or rounded up they do.
        UsageError: NaN, negative costs or other shapes.

    Example:
        >>> stepped_knapsack(np.array([[0.1, 0.35], [0.2, 0.6]]), np.array([[4, 1], [5, 1]]), 0.75)
        array([0, 1])
    """
    cost, error = checked_table(cost, error)
    check_reachable(cost, budget)
    ceiling = np.where(np.isfinite(cost), cost, 0).max(axis=1, initial=0).sum()
    budget = min(budget, float(ceiling))
    if budget == 0:
        return np.asarray(np.where(cost == 0, error, np.inf).argmin(axis=1))
    if budget <= steps and (cost[np.isfinite(cost)] % 1 == 0).all():
        return integer_knapsack(cost, error, budget)
    while True:
        rounded = np.ceil(cost * (steps / budget) * (1 - ROUNDING))
        if rounded.min(axis=1).sum() <= steps:
            chosen = integer_knapsack(rounded, error, steps)
            if _sum(cost, chosen) <= budget:
                return chosen
        if 2 * steps * len(cost) > CELLS:
            return lagrangian(cost, error, budget)
        steps *= 2


def _sum(table: np.ndarray, chosen: np.ndarray) -> float:
    return float(table[np.arange(len(table)), chosen].sum())


def _after(cost: np.ndarray, error: np.ndarray, multiplier: float) -> np.ndarray:
    """(items + 1, 2): least `error + multiplier * cost`, and least cost, of the items from i on."""
    value = np.where(
        np.isfinite(cost), error + multiplier * np.where(cost < np.inf, cost, 0), np.inf
    )
    least = np.stack([value.min(axis=1), cost.min(axis=1)], axis=1)
    return np.concatenate([np.cumsum(least[::-1], axis=0)[::-1], np.zeros((1, 2))])


def _thinned(keep: np.ndarray, errors: np.ndarray, states: int) -> tuple[np.ndarray, float]:
    """The cheapest of each of `states` equal steps of the error; and the width of a step.

    `keep` is in order of rising cost and falling error, so the first of a step is its cheapest.
    """
    lost = errors[keep]
    width = float(lost[0] - lost[-1]) / (states - 1)
    step = np.floor((lost - lost[-1]) / width)
    first = np.append(True, step[1:] != step[:-1])
    return keep[first], width


def _trace(trail: list[tuple[np.ndarray, np.ndarray]], end: int) -> np.ndarray:
    chosen = np.zeros(len(trail), np.int64)
    for i in range(len(trail) - 1, -1, -1):
        parent, option = trail[i]
        chosen[i], end = option[end], parent[end]
    return chosen


@njit(cache=True, nogil=True)
def _fill(cost, error, limit, picks):  # type: ignore[no-untyped-def]
    """Fills `picks` (I, limit + 1) item by item, then follows it back from the best last cell."""
    items, options = cost.shape
    best = np.full(limit + 1, np.inf)
    best[0] = 0.0
    for i in range(items):
        following = np.full(limit + 1, np.inf)
        for k in range(options):
            paid, lost = cost[i, k], error[i, k]
            if paid < 0:
                continue
            for b in range(paid, limit + 1):
                value = best[b - paid] + lost
                if value < following[b]:
                    following[b] = value
                    picks[i, b] = k
        best = following
    end = 0
    for b in range(limit + 1):
        if best[b] < best[end]:
            end = b
    chosen = np.zeros(items, np.int64)
    for i in range(items - 1, -1, -1):
        chosen[i] = picks[i, end]
        end -= cost[i, chosen[i]]
    return chosen
