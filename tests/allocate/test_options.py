import json

import numpy as np
import pytest
from hypothesis import given

from laconic.allocate.knapsack import knapsack
from laconic.allocate.minimax import minimax
from laconic.allocate.options import Options, undominated
from laconic.errors import BudgetError, CorruptFile, UsageError
from tests.allocate.problems import brute_force, problems

ROWS = {
    "a": [(4, 1.0, {"bits": 4}), (2, 9.0, {"bits": 2}), (3, 9.0, {"bits": 3})],
    "b": [(1, 5.0, {"bits": 2})],
}


def table(cost, error):
    items = tuple(f"item {i}" for i in range(len(cost)))
    return Options(items, cost, error, tuple(tuple(range(cost.shape[1])) for _ in items))


class TestTable:
    def test_rows_may_differ_in_length(self):
        options = Options.of(ROWS)
        assert options.items == ("a", "b") and options.cost.shape == (2, 3) and len(options) == 2
        assert np.isinf(options.cost[1, 1:]).all() and np.isinf(options.error[1, 1:]).all()
        assert options.least == 3

    def test_totals_and_settings(self):
        options = Options.of(ROWS)
        chosen = np.array([2, 0])
        assert options.total(chosen) == (4.0, 14.0)
        assert options.settings(chosen) == {"a": {"bits": 3}, "b": {"bits": 2}}

    @pytest.mark.parametrize("solver", [knapsack, minimax])
    def test_spread(self, solver):
        options = Options.of(ROWS)
        assert options.spread(5, solver) == {"a": {"bits": 4}, "b": {"bits": 2}}
        with pytest.raises(BudgetError, match="below the smallest reachable, 3"):
            options.spread(2, solver)

    def test_nothing(self):
        options = Options.of({})
        assert len(options) == 0 and options.least == 0
        assert Options.from_json(options.to_json()).items == ()


class TestPruning:
    def test_what_is_beaten_goes_and_the_rest_is_in_order(self):
        pruned = Options.of(ROWS).pruned()
        assert pruned.choices[0] == ({"bits": 2}, {"bits": 4})
        assert pruned.cost[0].tolist() == [2, 4]

    @given(problems())
    def test_nothing_is_lost(self, problem):
        cost, error, budget = problem
        pruned = table(cost, error).pruned()
        for cost_row, error_row in zip(pruned.cost, pruned.error):
            there = np.isfinite(cost_row)
            assert (np.diff(cost_row[there]) > 0).all() and (np.diff(error_row[there]) < 0).all()
        found = pruned.total(knapsack(pruned.cost, pruned.error, budget))
        assert found[1] == brute_force(cost, error, budget)

    def test_of_equals_the_first_stays(self):
        assert undominated(np.array([1.0, 1, 1]), np.array([2.0, 2, 2])).tolist() == [0]


class TestJson:
    @given(problems(whole=False))
    def test_comes_back(self, problem):
        cost, error, _ = problem
        before = table(cost, error).pruned()
        after = Options.from_json(json.loads(json.dumps(before.to_json())))
        assert after.items == before.items and after.choices == before.choices
        assert (after.cost == before.cost).all() and (after.error == before.error).all()

    @pytest.mark.parametrize(
        "values",
        [{}, [], {"items": ["a"], "options": []}, {"items": ["a"], "options": [[[1, 2]]]},
         {"items": ["a"], "options": [[["x", 2, None]]]}, {"items": ["a"], "options": [[]]},
         {"items": ["a", "a"], "options": [[[1, 2, 3]], [[1, 2, 3]]]}],
    )  # fmt: skip
    def test_other_values(self, values):
        with pytest.raises(CorruptFile, match="no table of options"):
            Options.from_json(values)


class TestBadInput:
    @pytest.mark.parametrize(
        ("cost", "error", "message"),
        [
            ([[1.0, np.nan]], [[1.0, 1.0]], "item 0 has a cost or an error that is no finite"),
            ([[1.0], [1.0]], [[1.0], [np.nan]], "item 1 has a cost or an error"),
            ([[1.0]], [[np.inf]], "item 0 has a cost or an error"),
            ([[1.0], [-1.0]], [[1.0], [1.0]], "item 1 has a negative cost"),
            ([[1.0], [np.inf]], [[1.0], [1.0]], "item 1 has no option at all"),
            ([[1.0]], [[1.0, 2.0]], r"must be \(items, options\)"),
            ([1.0], [1.0], r"must be \(items, options\)"),
        ],
    )
    def test_tables(self, cost, error, message):
        with pytest.raises(UsageError, match=message):
            Options(("a", "b")[: len(cost)], np.array(cost), np.array(error), (("x",),) * len(cost))

    def test_what_does_not_exist_may_have_any_error(self):
        Options(("a",), np.array([[1.0, np.inf]]), np.array([[1.0, np.nan]]), (("x",),))

    def test_names_and_choices(self):
        one = np.ones((1, 1))
        with pytest.raises(UsageError, match="2 items have costs for 1"):
            Options(("a", "b"), one, one, (("x",),))
        with pytest.raises(UsageError, match="same name"):
            Options(("a", "a"), np.ones((2, 1)), np.ones((2, 1)), (("x",), ("x",)))
        with pytest.raises(UsageError, match="a has 1 choices but costs for more"):
            Options(("a",), np.ones((1, 2)), np.ones((1, 2)), (("x",),))
