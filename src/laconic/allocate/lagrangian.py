"""Lagrangian allocation: one option for each item, the least total error within a byte budget."""

import numpy as np

from laconic.errors import BudgetError

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

    Example:
        >>> cost = np.array([[1, 2, 4], [1, 2, 4]])
        >>> lagrangian(cost, np.array([[9, 3, 0], [9, 8, 0]]), 6).tolist()
        [1, 2]
    """
    items = np.arange(len(cost))
    least = cost.min(axis=1).sum()
    if least > budget:
        raise BudgetError(
            f"the budget of {budget:.0f} is below the smallest reachable, {least:.0f}"
        )
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
