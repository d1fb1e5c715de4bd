from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.allocate.depth import DepthSpace, ProductSpace
from laconic.allocate.evolution import brute_force, evolve
from laconic.allocate.spaces import TableSpace, _fewest, granularity
from laconic.errors import BudgetError, UsageError

LLAMA = [65536, 32768, 32768, 65536, 180224, 180224, 180224]  # weights of a block's layers


def bits(sizes, levels=(2, 3, 4)):
    return np.array([[size * bit for bit in levels] for size in sizes], float)


@st.composite
def tables(draw, whole=True):
    """(cost, budget): ragged rows of rising costs, and a budget that a random state has."""
    units, levels = draw(st.integers(1, 8)), draw(st.integers(2, 5))
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):  # a few kinds of equal units, as layers are
        kinds = generator.integers(1, 12, (3, levels)).cumsum(axis=1)
        cost = kinds[generator.integers(0, 3, units)].astype(float)
    else:
        cost = generator.integers(1, 20, (units, levels)).cumsum(axis=1).astype(float)
    if not whole:
        cost = cost + generator.random((units, 1)) + np.arange(levels) * 0.37
    counts = generator.integers(1, levels + 1, units)
    cost = np.where(np.arange(levels) < counts[:, None], cost, np.inf)
    state = generator.integers(0, counts)
    return cost, float(cost[np.arange(units), state].sum()), state


class TestTableSpace:
    @given(tables(), st.integers(0, 2**32))
    @settings(max_examples=300)
    def test_every_state_meets_the_budget_exactly(self, problem, seed):
        cost, budget, start = problem
        space = TableSpace(cost, budget, start=tuple(start.tolist()))
        rng = np.random.default_rng(seed)
        state = space.initial(rng)
        for _ in range(20):
            state = space.mutate(rng, state)
            assert space.spent(state) == budget and space.holds(state)
            assert all(type(level) is int for level in state)

    @given(tables(whole=False), st.integers(0, 2**32), st.floats(0, 1))
    @settings(max_examples=300)
    def test_real_costs_stay_within_it_and_leave_nothing_over(self, problem, seed, share):
        cost, _, _ = problem
        least, most = cost.min(axis=1).sum(), np.where(np.isfinite(cost), cost, 0).max(axis=1).sum()
        budget = least + share * (most - least) + 1e-9
        space = TableSpace(cost, budget, exact=False)
        rng = np.random.default_rng(seed)
        state = space.initial(rng)
        for _ in range(20):
            state = space.mutate(rng, state)
            assert space.holds(state) and space.spent(state) <= budget
            levels = np.array(state)
            ups = space.steps(levels, np.arange(space.n), 1)
            assert not ((ups > 0) & (ups <= budget - space.spent(state))).any()

    @given(tables(), st.integers(0, 2**32))
    def test_a_first_state_is_found(self, problem, seed):
        cost, budget, _ = problem
        space = TableSpace(cost, budget)
        try:
            state = space.initial(np.random.default_rng(seed))
        except BudgetError:  # rare: the draw is random and sums may be hard to hit
            return
        assert space.spent(state) == budget

    def test_average_bits_of_a_model(self):
        """Also where uniform levels do not give the average."""
        cost = bits(LLAMA * 6, (2, 3, 4, 5, 6))
        for average in (2, 3, 3.3, 4.5, 6):
            budget = round(average * sum(LLAMA) * 6)
            space = TableSpace(cost, budget)
            states = {space.initial(np.random.default_rng(seed)) for seed in range(20)}
            assert {space.spent(s) for s in states} == {budget}
            assert len(states) == 20 or average in (2, 6)

    def test_weights_move_between_layers_of_unlike_size(self):
        space = TableSpace(bits(LLAMA * 2), 3 * sum(LLAMA) * 2, start=(1,) * 14)
        rng = np.random.default_rng(0)
        state, shares = space.initial(rng), set()
        for _ in range(300):
            state = space.mutate(rng, state)
            assert space.spent(state) == 3 * sum(LLAMA) * 2
            shares.add(sum(state[i] * LLAMA[i] for i in (0, 1, 2, 3)))
        assert len(shares) > 3

    def test_all_states_are_reached(self):
        cost, budget = np.array([[1.0, 2, 3]] * 3 + [[2.0, 4, 6]] * 2), 14
        space = TableSpace(cost, budget)
        rng, seen = np.random.default_rng(0), set()
        state = space.initial(rng)
        for _ in range(3000):
            state = space.mutate(rng, state)
            seen.add(state)
        assert seen == {s for s in product(range(3), repeat=5) if space.holds(s)}

    def test_pools_keep_their_own(self):
        cost = np.array([[1.0, 2]] * 4)
        space = TableSpace(cost, [3, 3], pools=[0, 1, 0, 1])
        rng, seen = np.random.default_rng(0), set()
        state = space.initial(rng)
        for _ in range(100):
            state = space.mutate(rng, state)
            assert state[0] + state[2] == state[1] + state[3] == 1
            seen.add(state)
        assert len(seen) == 4

    def test_states_that_do_not_hold(self):
        space = TableSpace(np.array([[1.0, 2, np.inf], [1, 2, 3]]), 3)
        assert space.holds((0, 1)) and space.holds((1, 0))
        for state in [(0, 0), (1, 1), (0,), (0, 1, 0), (2, 0), (-1, 2), (0, 3)]:
            assert not space.holds(state)

    def test_places_the_states_it_is_told_to(self):
        placed = []
        space = TableSpace(np.array([[0.0, 1]]), 1, place=placed.append)
        space.apply((1,))
        assert placed == [(1,)]

    @pytest.mark.parametrize(("budget", "reach"), [(1.5, "2 and 6"), (7, "2 and 6")])
    def test_out_of_reach(self, budget, reach):
        with pytest.raises(BudgetError, match=f"between {reach} can"):
            TableSpace(np.array([[1.0, 3]] * 2), budget)

    def test_a_sum_that_does_not_exist(self):
        with pytest.raises(BudgetError, match="no state was found"):
            TableSpace(np.array([[0.0, 4], [0.0, 5]]), 6).initial(np.random.default_rng(0))

    def test_a_budget_between_the_steps(self):
        with pytest.raises(
            BudgetError, match="cannot be met exactly, .* 4 and multiples of 2 more; 6"
        ):
            TableSpace(np.array([[2.0, 4]] * 2), 7)

    def test_granularity(self):
        assert granularity(bits(LLAMA)) == 16384
        assert granularity(np.array([[3.0, np.inf]])) == 0

    def test_bad_input(self):
        with pytest.raises(UsageError, match="unit 1: the costs of its levels must rise"):
            TableSpace(np.array([[1.0, 2], [2, 2]]), 3)
        with pytest.raises(UsageError, match="unit 0: the costs of its levels must rise"):
            TableSpace(np.array([[np.inf, 2], [1, 2]]), 3)
        with pytest.raises(UsageError, match="only by whole costs"):
            TableSpace(np.array([[1.5, 2]]), 2)
        with pytest.raises(BudgetError, match="the first state costs 2, not 3"):
            TableSpace(np.array([[1.0, 2]] * 2), 3, start=(0, 0))


class TestDepthSpace:
    @given(st.integers(1, 8), st.integers(0, 8), st.integers(0, 2**32))
    def test_as_many_of_each_kind(self, blocks, drop, seed):
        kinds = ["attention", "mlp"] * blocks
        if drop > blocks:
            with pytest.raises(BudgetError, match=f"{blocks} can"):
                DepthSpace(kinds, drop)
            return
        space, rng = DepthSpace(kinds, drop), np.random.default_rng(seed)
        state = space.initial(rng)
        for _ in range(10):
            state = space.mutate(rng, state)
            gone = space.dropped(state)
            assert len(gone) == 2 * drop
            assert sum(kinds[unit] == "mlp" for unit in gone) == drop

    def test_protected(self):
        space, rng = DepthSpace(["block"] * 5, 2, protected=[0, 4]), np.random.default_rng(0)
        found = set()
        for _ in range(50):
            state = space.mutate(rng, space.initial(rng))
            assert space.holds(state)
            found.add(tuple(space.dropped(state)))
        assert found == {(1, 2), (1, 3), (2, 3)}
        with pytest.raises(BudgetError, match="2 can"):
            DepthSpace(["block"] * 4, 3, protected=[0, 1])


class TestProductSpace:
    """Blocks of two layers each, and a layer that is always there."""

    @pytest.fixture
    def space(self):
        cost = bits([4, 6] * 4 + [5])
        return ProductSpace(cost, [0, 0, 1, 1, 2, 2, 3, 3, -1], 4, budget=100, most=2)

    def test_every_state_is_within_the_budget(self, space):
        rng, seen = np.random.default_rng(0), set()
        state = space.initial(rng)
        for _ in range(500):
            state = space.mutate(rng, state)
            assert space.holds(state) and space.spent(state) <= 100
            seen.add(sum(state[:4]))
            for part in range(4):
                if not state[part]:
                    assert state[4 + 2 * part : 6 + 2 * part] == (0, 0)
        assert seen == {2, 3, 4}

    def test_counts_present_layers_only(self, space):
        assert space.spent((1,) * 4 + (0,) * 9) == 90
        assert space.spent((1, 0, 0, 1) + (0,) * 9) == 50
        assert not space.holds((1, 0, 0, 0) + (0,) * 9)  # three dropped
        assert not space.holds((1, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0))  # a level for nothing
        assert not space.holds((1,) * 4 + (1,) * 9)
        assert not space.holds((1,) * 4 + (3,) + (0,) * 8) and not space.holds((1,))

    def test_drops_as_many_as_the_budget_needs(self):
        cost = bits([4, 6] * 4)
        space = ProductSpace(cost, [0, 0, 1, 1, 2, 2, 3, 3], 4, budget=45)
        rng = np.random.default_rng(1)
        assert {sum(space.initial(rng)[:4]) for _ in range(20)} == {2}
        with pytest.raises(BudgetError, match="smallest reachable, 60"):
            ProductSpace(cost, [0, 0, 1, 1, 2, 2, 3, 3], 4, budget=45, most=1)

    def test_finds_what_brute_force_finds(self):
        """Block 1 matters little: dropping it pays for more bits elsewhere."""
        cost = bits([4, 4, 4])
        space = ProductSpace(cost, [0, 1, 2], 3, budget=32, most=1)
        weight = np.array([5.0, 0.1, 3.0])

        def loss(state, samples, seed):
            present, levels = np.array(state[:3]), np.array(state[3:])
            return float((weight * np.where(present, 0.25**levels, 4)).sum())

        best = next(iter(brute_force(space, loss, samples=1)))
        assert best[:3] == (1, 0, 1)
        found = evolve(space, loss, generations=30, offspring=8, seed=0)
        assert found.state == best

    def test_places(self):
        placed = []
        ProductSpace(bits([4]), [0], 1, 16, place=placed.append).apply((1, 2))
        assert placed == [(1, 2)]

    def test_bad_input(self):
        with pytest.raises(UsageError, match="2 layers need an owner each, below 1"):
            ProductSpace(bits([4, 4]), [0, 1], 1, 99)
        with pytest.raises(UsageError, match="need an owner"):
            ProductSpace(bits([4, 4]), [0], 1, 99)


@given(st.lists(st.integers(1, 9), max_size=7), st.integers(1, 25), st.integers(0, 5))
def test_the_fewest_weights_that_sum_to_something(weights, least, more):
    found = _fewest(np.array(weights, int), least, least + more)
    sums = {}
    for picks in product([0, 1], repeat=len(weights)):
        total = sum(w for w, p in zip(weights, picks) if p)
        if least <= total <= least + more:
            sums.setdefault(sum(picks), set()).add(total)
    if not sums:
        assert found is None
        return
    assert len(found) == min(sums) and len(set(found)) == len(found)
    assert sum(weights[i] for i in found) == min(sums[min(sums)])
