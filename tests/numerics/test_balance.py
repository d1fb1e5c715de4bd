import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.balance import balanced_transforms
from laconic.numerics.hadamard import hadamard_transform


def problem(rows=40, columns=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(200, columns, generator=generator, dtype=torch.float64) @ mix
    x = x * torch.logspace(-1, 1, columns, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator).double() @ mix, x.T @ x / 200


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("block", [4, 16, 32])
def test_both_moments_become_one(block, spread):
    weight, moment = problem()
    found = balanced_transforms(weight, moment, block, spread=spread, damp=0.0)
    for number, t in enumerate(found.matrix):
        here = slice(number * block, number * block + block)
        inputs = t @ moment[here, here] @ t.T
        inverse = torch.linalg.inv(t)
        weights = inverse.T @ (weight[:, here].T @ weight[:, here] / 40) @ inverse
        assert torch.allclose(inputs, weights, atol=1e-8 * float(inputs.abs().max()))
        if spread:
            mean = inputs.diagonal().mean()
            assert torch.allclose(inputs.diagonal(), mean.expand(block))
        else:
            off = inputs - torch.diag(inputs.diagonal())
            assert off.abs().max() < 1e-8 * inputs.abs().max()
            assert (inputs.diagonal().diff() <= 0).all()


def test_the_gain_is_what_the_traces_say():
    weight, moment = problem()
    found = balanced_transforms(weight, moment, 32, damp=0.0)
    t = found.matrix[0]
    ours = (t @ moment @ t.T).trace()  # of inputs and of weights alike
    plain = moment.trace() * (weight.T @ weight / 40).trace()
    assert found.gain[0] == pytest.approx(float(ours**2 / plain))
    assert found.gain[0] < 0.5


def test_nothing_to_gain_where_all_directions_are_alike():
    q, _ = torch.linalg.qr(torch.randn(32, 32, dtype=torch.float64))
    found = balanced_transforms(q, torch.eye(32), 32, damp=0.0)
    assert found.gain[0] == pytest.approx(1.0)
    t = found.matrix[0] / found.matrix[0].norm() * 32**0.5
    assert torch.allclose(t @ t.T, torch.eye(32, dtype=torch.float64), atol=1e-8)


def test_the_last_step_is_a_hadamard():
    weight, moment = problem()
    a, b = (balanced_transforms(weight, moment, 16, spread=on).matrix for on in (True, False))
    assert torch.allclose(hadamard_transform(b.mT, 16).mT, a)


def test_inputs_that_were_never_seen():
    weight, moment = problem()
    moment[:5], moment[:, :5] = 0, 0
    assert balanced_transforms(weight, moment, 16).matrix.isfinite().all()


@pytest.mark.parametrize("block", [0, 3, 64])
def test_blocks_that_do_not_fit(block):
    weight, moment = problem()
    with pytest.raises(UsageError, match="power of two"):
        balanced_transforms(weight, moment, block)


def test_damaged_values():
    weight, moment = problem()
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        balanced_transforms(weight, moment, 16)
