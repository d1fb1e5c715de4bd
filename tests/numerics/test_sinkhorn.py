import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import BadWeights, UsageError
from laconic.numerics.sinkhorn import sinkhorn


@given(st.integers(1, 7), st.integers(1, 5), st.floats(0.02, 2.0), st.integers(0, 99))
def test_marginals(rows, columns, epsilon, seed):
    generator = torch.Generator().manual_seed(seed)
    cost = torch.rand(rows, columns, generator=generator)
    a = torch.rand(rows, generator=generator) + 0.1
    b = torch.rand(columns, generator=generator) + 0.1
    found = sinkhorn(cost, a, b, epsilon=epsilon, iterations=20000, tolerance=1e-9)
    assert found.converged
    assert (found.plan >= 0).all()
    assert torch.allclose(found.plan.sum(dim=1), (a / a.sum()).double(), atol=1e-7)
    assert torch.allclose(found.plan.sum(dim=0), (b / b.sum()).double(), atol=1e-7)


def test_plan_is_the_gibbs_kernel_scaled_by_rows_and_columns():
    """Which, with the marginals, is what makes it the optimum."""
    cost = torch.rand(6, 4).double()
    plan = sinkhorn(cost, epsilon=0.3).plan
    left = plan.log() + cost / (0.3 * cost.mean())
    cross = left[1:, 1:] - left[:-1, 1:] - left[1:, :-1] + left[:-1, :-1]
    assert torch.allclose(cross, torch.zeros(5, 3).double(), atol=1e-9)


def test_duplicates_go_to_their_own_target():
    """Sheet 008: with little entropy each target takes exactly the two that equal it."""
    x = torch.randn(40, 5)
    both = torch.cat([x, x], dim=1)
    cost = torch.cdist(both.T.contiguous(), x.T.contiguous(), p=1)
    plan = sinkhorn(cost, epsilon=0.01).plan
    want = torch.eye(5).double().repeat(2, 1) / 10
    assert torch.allclose(plan, want, atol=1e-6)


def test_more_entropy_spreads_more():
    cost = torch.rand(8, 8)
    spread = [
        -(p * p.clamp(min=1e-300).log()).sum().item()
        for p in (sinkhorn(cost, epsilon=e, iterations=9999).plan for e in (0.02, 0.2, 2.0))
    ]
    assert spread[0] < spread[1] < spread[2]


def test_no_mass_no_plan():
    cost = torch.rand(4, 3)
    a, b = torch.tensor([0.0, 1.0, 1.0, 2.0]), torch.tensor([1.0, 0.0, 1.0])
    found = sinkhorn(cost, a, b, epsilon=0.5)
    assert found.converged
    assert (found.plan[0] == 0).all()
    assert (found.plan[:, 1] == 0).all()
    assert torch.isfinite(found.plan).all()


def test_equal_costs_give_the_product():
    for cost in (torch.zeros(3, 2), torch.ones(3, 2), torch.full((3, 2), -7.0)):
        assert torch.allclose(sinkhorn(cost).plan, torch.full((3, 2), 1 / 6).double())


def test_says_when_it_has_not_converged():
    cost = torch.rand(30, 30, generator=torch.Generator().manual_seed(0))
    short = sinkhorn(cost, epsilon=0.001, iterations=3)
    assert not short.converged
    assert short.error > 1e-6
    assert torch.allclose(short.plan.sum(dim=0), torch.full((30,), 1 / 30).double())
    assert sinkhorn(cost, epsilon=0.1, iterations=5000).converged


def test_a_batch_is_its_problems():
    cost = torch.rand(3, 2, 6, 4)
    cost[0] *= 100
    a = torch.rand(3, 2, 6)
    many = sinkhorn(cost, a, epsilon=0.05)
    for i in range(3):
        for j in range(2):
            one = sinkhorn(cost[i, j], a[i, j], epsilon=0.05)
            assert torch.allclose(many.plan[i, j], one.plan, atol=1e-12)
            assert many.converged[i, j] == one.converged
    assert sinkhorn(cost, a[0, 0]).plan.shape == cost.shape


def test_the_same_bits_on_any_number_of_threads(same_bits):
    cost = torch.rand(200, 150)
    same_bits(lambda: sinkhorn(cost, epsilon=0.05, iterations=20))


def test_bad_input():
    cost = torch.rand(3, 2)
    for bad in (
        lambda: sinkhorn(cost[0]),
        lambda: sinkhorn(cost[:0]),
        lambda: sinkhorn(cost, torch.ones(2)),
        lambda: sinkhorn(cost, torch.ones(1, 3)),
        lambda: sinkhorn(cost, -torch.ones(3)),
        lambda: sinkhorn(cost, None, torch.zeros(2)),
        lambda: sinkhorn(cost, epsilon=0.0),
        lambda: sinkhorn(cost, iterations=0),
        lambda: sinkhorn(cost, tolerance=-1.0),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (lambda: sinkhorn(cost / 0), lambda: sinkhorn(cost, torch.ones(3) * torch.nan)):
        with pytest.raises(BadWeights):
            bad()
