import numpy as np
import pytest
from hypothesis import given, settings

from laconic.allocate.minimax import minimax
from laconic.errors import BudgetError, UsageError
from tests.allocate.problems import brute_force, problems


@pytest.mark.parametrize("whole", [True, False])
def test_equals_brute_force(whole):
    @given(problems(whole=whole))
    @settings(max_examples=300)
    def check(problem):
        cost, error, budget = problem
        chosen = minimax(cost, error, budget)
        items = np.arange(len(cost)), chosen
        assert cost[items].sum() <= budget
        worst = error[items].max()
        assert worst == brute_force(cost, error, budget, np.max)
        allowed = np.where(error <= worst, cost, np.inf)
        assert (cost[items] == allowed.min(axis=1)).all()  # nothing is paid for nothing

    check()


def test_of_equally_cheap_options_the_better_one():
    cost, error = np.array([[1.0, 1.0, 9.0]]), np.array([[5.0, 4.0, 0.0]])
    assert minimax(cost, error, 2).tolist() == [1]


def test_many_layers():
    """Truncated ranks: the worst relative error is shared by the layers."""
    generator = np.random.default_rng(0)
    error = np.sort(generator.random((200, 64)), axis=1)[:, ::-1]
    cost = np.arange(1, 65) * generator.integers(1, 9, (200, 1)).astype(float)
    budget = cost[:, -1].sum() / 2
    chosen = minimax(cost, error, budget)
    uniform = np.full(200, 31)
    items = np.arange(200)
    assert cost[items, chosen].sum() <= budget >= cost[items, uniform].sum()
    assert error[items, chosen].max() < error[items, uniform].max()


def test_no_items():
    assert minimax(np.zeros((0, 2)), np.zeros((0, 2)), 0).tolist() == []


def test_bad_input():
    with pytest.raises(BudgetError, match="smallest reachable, 4"):
        minimax(np.array([[1.0, 2], [3, 9]]), np.zeros((2, 2)), 3.9)
    with pytest.raises(UsageError, match="no finite number"):
        minimax(np.array([[1.0]]), np.array([[np.nan]]), 3)
