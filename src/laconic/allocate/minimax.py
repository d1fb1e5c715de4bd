"""Minimax allocation: one option for each item so that the worst error is least within a budget."""

import numpy as np

from laconic.allocate.options import check_reachable, checked_table


def minimax(cost: np.ndarray, error: np.ndarray, budget: float) -> np.ndarray:
    """Picks one option for each item; the greatest error of all is as small as the budget allows.

    For a bound t every item takes its cheapest option with an error of at most t. The total cost
    falls as t grows, so the smallest t that fits is found by bisection over the errors that occur,
    which is exact (ALDS, Liebenwein et al., 2021, arXiv 2107.11442, the global step). Errors must be
    comparable between items: relative ones are.

    Args:
        cost: (items, options) >= 0, inf where an option does not exist.
        error: (items, options), for example `||W - W'|| / ||W||`.
        budget: upper limit of the total cost. What is left over is not spent.

    Returns:
        (items,) option numbers; of equally cheap options the one with the smaller error.

    Raises:
        BudgetError: even the cheapest options cost more; says how much they cost.
        UsageError: NaN, negative costs or other shapes.

    Example:
        >>> cost = np.array([[1, 2, 4], [1, 2, 4]])
        >>> minimax(cost, np.array([[9, 3, 0], [9, 8, 0]]), 6).tolist()
        [1, 2]
    """
    cost, error = checked_table(cost, error)
    check_reachable(cost, budget)
    if not len(cost):
        return np.zeros(0, np.int64)
    bounds = np.unique(error[np.isfinite(cost)])
    low, high = 0, len(bounds) - 1  # the last bound allows everything, which fits
    while low < high:
        middle = (low + high) // 2
        if _cheapest(cost, error, bounds[middle]).sum() <= budget:
            high = middle
        else:
            low = middle + 1
    allowed = np.where(error <= bounds[high], cost, np.inf)
    cheap = allowed <= allowed.min(axis=1, keepdims=True)
    chosen: np.ndarray = np.where(cheap & np.isfinite(allowed), error, np.inf).argmin(axis=1)
    return chosen


def _cheapest(cost: np.ndarray, error: np.ndarray, bound: float) -> np.ndarray:
    """(items,) the least cost of an option whose error is at most `bound`."""
    least: np.ndarray = np.where(error <= bound, cost, np.inf).min(axis=1)
    return least
