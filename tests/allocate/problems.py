"""Random allocation problems, small enough to be solved by going through everything."""

from itertools import product

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st


@st.composite
def problems(draw, whole=True):
    """(cost, error, budget): few values, so that ties are common; options may be missing."""
    items, options = draw(st.integers(1, 4)), draw(st.integers(1, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    most = draw(st.sampled_from([3, 30]))
    cost, error = generator.integers(0, most + 1, (2, items, options)).astype(float)
    if not whole:
        cost, error = cost / 8 + generator.random(cost.shape), error - most / 2
    if draw(st.booleans()) and options > 1:
        cost[draw(st.integers(0, items - 1)), draw(st.integers(0, options - 1))] = np.inf
    budget = draw(st.integers(0, most * items)) * (1 if whole else draw(st.floats(0.1, 1)))
    assume(cost.min(axis=1).sum() <= budget)
    return cost, error, budget


def brute_force(cost, error, budget, value=np.sum):
    """The least `value` of the errors within the budget."""
    items = np.arange(len(cost))
    best = np.inf
    for chosen in product(range(cost.shape[1]), repeat=len(cost)):
        picks = items, np.array(chosen, dtype=int)
        if cost[picks].sum() <= budget:
            best = min(best, value(error[picks]))
    return best
