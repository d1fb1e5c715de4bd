import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.allocate import knapsack as module
from laconic.allocate.knapsack import integer_knapsack, knapsack, solve, stepped_knapsack
from laconic.allocate.lagrangian import dual, lagrangian, optimality_gap
from laconic.errors import BudgetError, UsageError
from tests.allocate.problems import brute_force, problems

ALL = [knapsack, integer_knapsack, stepped_knapsack]


def totals(cost, error, chosen):
    items = np.arange(len(cost)), chosen
    return cost[items].sum(), error[items].sum()


def large(items=300, options=14, seed=1):
    """Costs and errors as real layers have them."""
    generator = np.random.default_rng(seed)
    cost = generator.random((items, options)).cumsum(axis=1) * generator.integers(1, 9, (items, 1))
    return cost, 2.0**-cost * generator.random((items, 1)) * cost[:, -1:]


class TestExact:
    @pytest.mark.parametrize("solver", ALL)
    @given(problem=problems())
    @settings(max_examples=300)
    def test_equals_brute_force(self, solver, problem):
        cost, error, budget = problem
        chosen = solver(cost, error, budget)
        spent, lost = totals(cost, error, chosen)
        assert spent <= budget and chosen.shape == (len(cost),)
        assert lost == brute_force(cost, error, budget)

    @given(problems(whole=False))
    @settings(max_examples=300)
    def test_equals_brute_force_for_real_costs(self, problem):
        cost, error, budget = problem
        found = solve(cost, error, budget)
        assert found.slack == 0
        assert (found.cost, found.error) == totals(cost, error, found.chosen)
        assert found.cost <= budget
        assert found.error == pytest.approx(brute_force(cost, error, budget), abs=1e-9)

    def test_hundreds_of_items(self):
        cost, error = large()
        budget = cost.mean() * len(cost)
        found = solve(cost, error, budget)
        assert found.slack == 0 and found.cost <= budget
        assert found.error <= totals(cost, error, lagrangian(cost, error, budget))[1]
        assert found.error >= dual(cost, error, budget)[0] - 1e-9

    def test_whole_and_real_costs_agree(self):
        cost, error = large(items=40)
        cost = np.ceil(cost * 50)
        for share in (0.2, 0.5, 0.8):
            budget = np.floor(cost.sum(axis=0).max() * share)
            one, other = (f(cost, error, budget) for f in (knapsack, integer_knapsack))
            assert totals(cost, error, one)[1] == pytest.approx(totals(cost, error, other)[1])


class TestBounded:
    """With few states or coarse steps the budget still holds, and the loss is within what is said."""

    @given(problems(whole=False), st.integers(2, 6))
    @settings(max_examples=300)
    def test_few_states(self, problem, states):
        cost, error, budget = problem
        found = solve(cost, error, budget, states=states)
        assert found.cost <= budget and found.slack >= 0
        assert found.error <= brute_force(cost, error, budget) + found.slack + 1e-9

    def test_few_states_of_many(self):
        generator = np.random.default_rng(0)
        cost = 2.0 * generator.integers(1, 500, (30, 5))
        error = 1000 - cost  # nothing tells the options apart but what fits
        budget = 2 * np.floor(cost.mean() * 10) + 1
        exact, few = solve(cost, error, budget), solve(cost, error, budget, states=8)
        assert exact.slack == 0 < few.slack and few.cost <= budget
        assert exact.cost == budget - 1
        assert exact.error <= few.error <= exact.error + few.slack

    @given(problems(whole=False), st.integers(1, 50))
    def test_coarse_steps(self, problem, steps):
        cost, error, budget = problem
        spent, lost = totals(cost, error, stepped_knapsack(cost, error, budget, steps=steps))
        assert spent <= budget and lost >= brute_force(cost, error, budget) - 1e-9

    def test_coarse_steps_lose_no_more_than_a_smaller_budget(self):
        cost, error = large(items=30)
        budget, steps = cost.mean() * 30, 2000
        lost = totals(cost, error, stepped_knapsack(cost, error, budget, steps=steps))[1]
        smaller = solve(cost, error, budget * (1 - 30 / steps))
        assert solve(cost, error, budget).error <= lost <= smaller.error + 1e-9

    def test_where_rounding_up_leaves_nothing_the_steps_are_made_finer(self):
        cost = np.array([[1.0, 2.0]] * 3)
        assert stepped_knapsack(cost, np.ones((3, 2)), 3.0000001, steps=2).tolist() == [0, 0, 0]

    def test_where_no_steps_are_fine_enough(self, monkeypatch):
        monkeypatch.setattr(module, "CELLS", 100)
        cost = np.array([[1.0, 2.0]] * 3) / 3
        chosen = stepped_knapsack(cost, np.array([[2.0, 1.0]] * 3), 1.00001, steps=20)
        assert chosen.tolist() == [0, 0, 0]


@pytest.mark.parametrize("solver", [*ALL, lagrangian])
class TestEverySolver:
    def test_a_rich_budget_buys_the_best(self, solver):
        cost, error = np.array([[1.0, 2, 3], [5, 4, 3]]), np.array([[9.0, 1, 0], [0, 1, 7]])
        assert solver(cost, error, 1e9).tolist() == [2, 0]
        assert solver(cost, error, np.inf).tolist() == [2, 0]

    def test_a_budget_that_just_fits(self, solver):
        cost = np.array([[1.0, 2], [3, 9]])
        assert solver(cost, np.array([[5.0, 0], [5, 0]]), 4).tolist() == [0, 0]

    def test_options_that_do_not_exist(self, solver):
        cost, error = np.array([[np.inf, 2.0], [1.0, np.inf]]), np.array([[np.nan, 5], [5, 0]])
        assert solver(cost, error, 100).tolist() == [1, 0]

    def test_free_options(self, solver):
        cost, error = np.array([[0.0, 0.0, 1.0]]), np.array([[2.0, 1.0, 0.0]])
        assert solver(cost, error, 0).tolist() == [1]

    def test_below_the_smallest(self, solver):
        with pytest.raises(
            BudgetError, match=r"budget of 3.9 is below the smallest reachable, 4\b"
        ):
            solver(np.array([[1.0, 2], [3, 9]]), np.zeros((2, 2)), 3.9)
        with pytest.raises(BudgetError):
            solver(np.array([[1.0]]), np.zeros((1, 1)), np.nan)

    def test_no_items(self, solver):
        assert solver(np.zeros((0, 3)), np.zeros((0, 3)), 1).tolist() == []

    @pytest.mark.parametrize("bad", [np.nan, -1.0])
    def test_bad_costs(self, solver, bad):
        with pytest.raises(UsageError, match="item 1"):
            solver(np.array([[1.0], [bad]]), np.zeros((2, 1)), 10)

    def test_the_same_again_and_nothing_is_changed(self, solver):
        cost, error = (np.ceil(part) for part in large(items=20))
        before = cost.copy(), error.copy()
        first = solver(cost, error, 300)
        assert (solver(cost, error, 300) == first).all()
        assert (cost == before[0]).all() and (error == before[1]).all()


class TestGap:
    @given(problems())
    def test_bounds_the_optimum_from_below(self, problem):
        cost, error, budget = problem
        best = brute_force(cost, error, budget)
        bound, multiplier = dual(cost, error, budget)
        assert bound <= best + 1e-9 and multiplier >= 0
        chosen = lagrangian(cost, error, budget)
        found = totals(cost, error, chosen)[1]
        assert best <= found <= best + optimality_gap(cost, error, budget, chosen) + 1e-9

    def test_no_gap_where_everything_is_affordable(self):
        cost, error = large(items=5)
        chosen = lagrangian(cost, error, np.inf)
        assert optimality_gap(cost, error, np.inf, chosen) == 0


class TestBadInput:
    def test_fractions_in_a_whole_table(self):
        with pytest.raises(UsageError, match="not whole numbers; use knapsack"):
            integer_knapsack(np.array([[0.5]]), np.array([[1.0]]), 3)

    def test_a_table_that_is_too_large(self):
        cost = np.array([[1.0, 1e12]] * 2)
        with pytest.raises(UsageError, match="more than .* cells"):
            integer_knapsack(cost, np.array([[1.0, 0.0]] * 2), 1e12)

    def test_large_costs_with_a_common_divisor(self):
        cost = np.array([[1.0, 3.0]] * 2) * 1e12
        assert integer_knapsack(cost, np.array([[1.0, 0.0], [2.0, 0.0]]), 4e12).tolist() == [0, 1]

    def test_states(self):
        with pytest.raises(UsageError, match="2 or more"):
            solve(np.ones((1, 1)), np.ones((1, 1)), 3, states=1)
