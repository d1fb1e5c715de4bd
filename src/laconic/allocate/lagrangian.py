"""Lagrangian allocation: one option for each item, the least total error within a byte budget."""

import numpy as np

from laconic.allocate.options import check_reachable, checked_table

STEPS = 60  # of the bisection on the multiplier


def lagrangian(cost: np.ndarray, error: np.ndarray, budget: float) -> np.ndarray:
    """Picks one option for each item.

    Minimises `error + multiplier * cost` per item; bisection finds the least multiplier that meets
    the budget (Shoham and Gersho, 1988). What is left over is spent greedily, best gain for its
    cost first, so that the points between the vertices of the convex hull are used too.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options).
        budget: upper limit of the total cost.

    Returns:
        (items,) option numbers.

    Raises:
        BudgetError: even the cheapest options cost more; says how much they cost.
        UsageError: NaN, negative costs or other shapes.

    Example:
        >>> cost = np.array([[1, 2, 4], [1, 2, 4]])
        >>> lagrangian(cost, np.array([[9, 3, 0], [9, 8, 0]]), 6).tolist()
        [1, 2]
    """
    cost, error = checked_table(cost, error)
    check_reachable(cost, budget)
    items = np.arange(len(cost))
    finite = np.where(np.isfinite(cost), error, np.inf)

    def pick(multiplier: float) -> np.ndarray:
        value = finite + multiplier * np.where(np.isfinite(cost), cost, 0)
        ties = value <= value.min(axis=1, keepdims=True)  # of equals, the cheaper
        chosen: np.ndarray = np.where(ties, cost, np.inf).argmin(axis=1)
        return chosen

    low, high = 0.0, 1.0
    while cost[items, pick(high)].sum() > budget:
        high *= 4
        if high > 1e300:
            return np.asarray(cost.argmin(axis=1))
    if cost[items, pick(0.0)].sum() <= budget:
        return pick(0.0)
    for _ in range(STEPS):
        middle = (low + high) / 2
        if cost[items, pick(middle)].sum() > budget:
            low = middle
        else:
            high = middle
    return _spend(cost, finite, pick(high), budget)


def dual(cost: np.ndarray, error: np.ndarray, budget: float) -> tuple[float, float]:
    """A lower bound of the total error within `budget`, and the multiplier that gives it.

    For every multiplier >= 0 the least `error + multiplier * cost` of all items, minus multiplier *
    budget, is at most the optimum (weak duality). It is concave in the multiplier: its greatest
    value is where the cost of the minimising options crosses the budget, which is found by bisection.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options).
        budget: upper limit of the total cost, at least that of the cheapest options.
    """
    exists = np.isfinite(cost)
    finite, paid = np.where(exists, error, np.inf), np.where(exists, cost, 0)
    items = np.arange(len(cost))

    def least(multiplier: float) -> tuple[float, float]:
        value = finite + multiplier * paid
        chosen = np.where(value <= value.min(axis=1, keepdims=True), cost, np.inf).argmin(axis=1)
        spent = cost[items, chosen].sum()
        return float(value[items, chosen].sum() - multiplier * min(budget, 1e308)), float(spent)

    bound, spent = least(0.0)
    if not len(cost) or spent <= budget:
        return bound, 0.0
    low, high = 0.0, 1.0
    while least(high)[1] > budget and high < 1e300:
        high *= 4
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if least(middle)[1] > budget else (low, middle)
    best = max((0.0, low, high), key=lambda multiplier: least(multiplier)[0])
    return least(best)[0], best


def optimality_gap(cost: np.ndarray, error: np.ndarray, budget: float, chosen: np.ndarray) -> float:
    """By how much the total error of `chosen` (items,) can at most exceed the optimum; >= 0.

    Example:
        >>> cost = np.array([[1, 2, 4], [1, 2, 4]])
        >>> error = np.array([[9, 3, 0], [9, 8, 0]])
        >>> optimality_gap(cost, error, 6, lagrangian(cost, error, 6))
        0.0
    """
    found = float(error[np.arange(len(cost)), chosen].sum())
    return max(0.0, found - dual(cost, error, budget)[0])


def _spend(cost: np.ndarray, error: np.ndarray, chosen: np.ndarray, budget: float) -> np.ndarray:
    """Upgrades single items while that fits into what is left, best gain per cost first."""
    chosen = chosen.copy()
    items = np.arange(len(cost))
    while True:
        left = budget - cost[items, chosen].sum()
        extra = cost - cost[items, chosen][:, None]
        gain = error[items, chosen][:, None] - error
        fits = (extra <= left) & (gain > 0)
        if not fits.any():
            return chosen
        rate = np.full(cost.shape, -np.inf)
        rate[fits] = gain[fits] / np.maximum(extra[fits], 1e-12)
        item, option = np.unravel_index(int(rate.argmax()), rate.shape)
        chosen[item] = option
