from itertools import product

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from laconic.allocate.lagrangian import lagrangian
from laconic.errors import BudgetError


def brute_force(cost, error, budget):
    """The least total error within the budget."""
    best = np.inf
    for chosen in product(range(cost.shape[1]), repeat=len(cost)):
        items = np.arange(len(cost)), np.array(chosen, dtype=int)
        if cost[items].sum() <= budget:
            best = min(best, error[items].sum())
    return best


@st.composite
def problems(draw):
    items, options = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([3, 30]))  # few values make ties
    cost, error = generator.integers(0, most + 1, (2, items, options)).astype(float)
    if draw(st.booleans()) and options > 1:
        cost[draw(st.integers(0, items - 1)), draw(st.integers(0, options - 1))] = np.inf
    budget = draw(st.integers(0, most * items))
    assume(cost.min(axis=1).sum() <= budget)
    return cost, error, budget


@given(problems())
@settings(max_examples=400)
def test_meets_the_budget_and_is_optimal_within_the_gap_of_the_hull(problem):
    cost, error, budget = problem
    chosen = lagrangian(cost, error, budget)
    items = np.arange(len(cost)), chosen
    assert cost[items].sum() <= budget
    best = brute_force(cost, error, budget)
    found = error[items].sum()
    assert found >= best - 1e-9
    finite = np.where(np.isfinite(cost), error, np.nan)
    gap = (np.nanmax(finite, axis=1) - np.nanmin(finite, axis=1)).max()
    assert found <= best + gap + 1e-9


@given(problems())
def test_no_single_upgrade_still_fits(problem):
    cost, error, budget = problem
    chosen = lagrangian(cost, error, budget)
    items = np.arange(len(cost))
    left = budget - cost[items, chosen].sum()
    better = error < error[items, chosen][:, None]
    assert not (better & (cost - cost[items, chosen][:, None] <= left)).any()


@given(problems())
def test_on_the_hull_it_is_exact(problem):
    """With the cost of its own result as the budget of a convex problem nothing is lost."""
    cost, _, budget = problem
    cost = np.sort(np.where(np.isfinite(cost), cost, 30), axis=1)
    error = (60 - cost) ** 2  # convex in the cost
    assume(cost.min(axis=1).sum() <= budget)
    chosen = lagrangian(cost, error, budget)
    items = np.arange(len(cost)), chosen
    spent = cost[items].sum()
    finest = brute_force(cost, error, spent)
    assert error[items].sum() <= finest + np.ptp(error, axis=1).max()


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_units_do_not_matter(scale):
    generator = np.random.default_rng(0)
    cost = generator.random((20, 6)).cumsum(axis=1)
    error = generator.random((20, 6)).cumsum(axis=1)[:, ::-1]
    expected = lagrangian(cost, error, 40)
    assert (lagrangian(cost, error * scale, 40) == expected).all()
    assert (lagrangian(cost * 1e6, error, 40e6) == expected).all()


def test_points_above_the_hull_are_used_for_what_is_left():
    cost, error = np.array([[0.0, 5, 30]]), np.array([[30.0, 29, 0]])
    assert lagrangian(cost, error, 10).tolist() == [1]


def test_a_rich_budget_buys_the_best_and_of_equals_the_cheaper():
    cost = np.array([[1.0, 2, 3], [5, 4, 3]])
    error = np.array([[9.0, 1, 1], [0, 0, 7]])
    assert lagrangian(cost, error, 1e9).tolist() == [1, 1]
    assert lagrangian(cost, error, np.inf).tolist() == [1, 1]


def test_a_budget_that_just_fits_takes_the_cheapest():
    cost = np.array([[1.0, 2], [3, 9]])
    assert lagrangian(cost, np.array([[5.0, 0], [5, 0]]), 4).tolist() == [0, 0]


def test_options_that_do_not_exist_are_never_taken():
    cost = np.array([[np.inf, 2.0], [1.0, np.inf]])
    assert lagrangian(cost, np.array([[0.0, 5], [5, 0]]), 100).tolist() == [1, 0]


def test_below_the_smallest():
    with pytest.raises(BudgetError, match="smallest reachable, 4"):
        lagrangian(np.array([[1.0, 2], [3, 9]]), np.zeros((2, 2)), 3.9)


def test_no_items():
    assert lagrangian(np.zeros((0, 3)), np.zeros((0, 3)), 1).tolist() == []


def test_many_items():
    generator = np.random.default_rng(1)
    cost = generator.random((500, 28)).cumsum(axis=1)
    error = 2.0**-cost * generator.random((500, 1))
    budget = cost.mean() * 500
    chosen = lagrangian(cost, error, budget)
    spent = cost[np.arange(500), chosen].sum()
    assert budget - 1.0 < spent <= budget
