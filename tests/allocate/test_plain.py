"""The compiled kernels do what their Python does, and never leave their arrays."""

import numpy as np
import pytest

from laconic.allocate import knapsack, pareto
from tests.plain import plain


@pytest.mark.parametrize("limit", [0, 9, 20, 60])
def test_knapsack(limit, monkeypatch):
    rng = np.random.default_rng(limit)
    cost, error = rng.integers(0, 7, (5, 4)).astype(float), rng.random((5, 4))
    cost[:, 0] = 0
    cost[1, 2] = np.inf  # an option that there is not
    expected = knapsack.integer_knapsack(cost, error, limit)
    monkeypatch.setattr(knapsack, "_fill", plain("laconic.allocate.knapsack")._fill)
    assert (knapsack.integer_knapsack(cost, error, limit) == expected).all()


def test_hulls(monkeypatch):
    rng = np.random.default_rng(0)
    rows = rng.random((20, 7)).cumsum(axis=1)[:, ::-1].copy()
    rows[0], rows[1] = 1.0, np.arange(7.0)  # on a line
    points = np.stack([rng.random(40), rng.random(40)], axis=1)
    expected = pareto.lower_hulls(rows), pareto.lower_hull(*points.T)
    python = plain("laconic.allocate.pareto")
    monkeypatch.setattr(pareto, "_hulls", python._hulls)
    monkeypatch.setattr(pareto, "_chain", python._chain)
    assert np.allclose(pareto.lower_hulls(rows), expected[0])
    assert (pareto.lower_hull(*points.T) == expected[1]).all()
