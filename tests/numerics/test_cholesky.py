import pytest
import scipy.linalg
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.cholesky import damped_cholesky, inverse, inverse_upper, ridge_of, solve


def moment(width=24, tokens=200, batch=(), seed=0):
    x = torch.randn(*batch, tokens, width, generator=torch.Generator().manual_seed(seed)).double()
    x = x * torch.logspace(0, -2, width, dtype=torch.float64)
    return x.mT @ x


def damped(h, damp):
    return h + ridge_of(h, damp) * torch.eye(h.shape[-1], dtype=torch.float64)


@pytest.mark.parametrize("damp", [0.0, 0.01, 1.0])
def test_factors_multiply_to_the_damped_moment_and_its_inverse(damp):
    h = moment()
    lower, upper = damped_cholesky(h, damp).factor, inverse_upper(h, damp).factor
    assert torch.allclose(lower @ lower.T, damped(h, damp), rtol=1e-12)
    assert torch.equal(lower, lower.tril())
    assert torch.equal(upper, upper.triu())
    assert (upper.diagonal() > 0).all()
    eye = torch.eye(24, dtype=torch.float64)
    assert torch.allclose(upper.T @ upper @ damped(h, damp), eye, atol=1e-9)
    assert torch.allclose(inverse(h, damp) @ damped(h, damp), eye, atol=1e-9)
    assert damped_cholesky(h, damp).damping.item() == damp


def test_upper_is_accurate_where_the_moment_is_nearly_singular():
    """The inverse of the Hilbert matrix of size 8 (condition 1.5e10) is known exactly."""
    hilbert = torch.from_numpy(scipy.linalg.hilbert(8))
    upper = inverse_upper(hilbert, damp=0.0).factor
    exact = torch.from_numpy(scipy.linalg.invhilbert(8))
    assert torch.allclose(upper.T @ upper, exact, rtol=1e-5)


def test_dead_columns_are_ones_tied_to_nothing():
    h = moment()
    h[5], h[:, 5] = 0, 0
    live = torch.arange(24) != 5
    for function in (damped_cholesky, inverse_upper):
        found, alone = function(h, 0.01), function(h[live][:, live], 0.01)
        assert found.dead.nonzero().tolist() == [[5]]
        assert torch.allclose(found.factor[live][:, live], alone.factor, rtol=1e-12)
        assert found.factor[5, 5] == 1
        assert found.factor[5].abs().sum() == 1
        assert found.factor[:, 5].abs().sum() == 1
    assert (solve(h, torch.ones(24, 2))[5] == 0).all()


def test_nothing_seen_at_all():
    found = inverse_upper(torch.zeros(3, 3))
    assert torch.equal(found.factor, torch.eye(3, dtype=torch.float64))
    assert found.dead.all()
    assert (solve(torch.zeros(3, 3), torch.ones(3, 1)) == 0).all()


def test_damping_is_raised_until_it_works_for_each_matrix_alone():
    good, singular = moment(), moment(tokens=3)
    broken = moment() - 0.2 * ridge_of(moment(), 1.0) * torch.eye(24, dtype=torch.float64)
    broken.diagonal().clamp_(min=1e-6)
    found = damped_cholesky(torch.stack([good, singular, broken]), damp=0.0)
    assert found.damping[0] == 0
    assert 1e-8 <= found.damping[1] <= 1e-6
    assert 0.01 < found.damping[2] <= 1
    for h, factor, damping in zip((good, singular, broken), *found[:2]):
        assert torch.allclose(factor @ factor.T, damped(h, damping), rtol=1e-9, atol=1e-9)
    assert damped_cholesky(good, 0.01).factor.shape == (24, 24)
    assert torch.equal(found.factor[0], damped_cholesky(good, 0.0).factor)


def test_only_the_lower_triangle_is_read():
    h = moment()
    assert torch.equal(damped_cholesky(h).factor, damped_cholesky(h.tril()).factor)
    assert torch.equal(inverse_upper(h).factor, inverse_upper(h.tril()).factor)


def test_scale_does_not_matter():
    h = moment()
    for scale in (1e-30, 1e30):
        upper = inverse_upper(h * scale).factor * scale**0.5
        assert torch.allclose(upper, inverse_upper(h).factor, rtol=1e-9)


def test_solve():
    h, right = moment(batch=(2, 3)), torch.randn(2, 3, 24, 5)
    found = solve(h, right, 0.1)
    assert torch.allclose(damped(h, 0.1) @ found, right.double(), atol=1e-9)


def test_the_same_bits_on_any_number_of_threads(same_bits):
    h = moment(width=300, tokens=600)
    same_bits(lambda: damped_cholesky(h))
    same_bits(lambda: inverse_upper(h))
    same_bits(lambda: inverse(h))
    same_bits(lambda: solve(h, h[:, :7]))


def test_bad_input():
    h = moment()
    for bad in (
        lambda: damped_cholesky(h[:3]),
        lambda: damped_cholesky(h[0]),
        lambda: damped_cholesky(h, -0.1),
        lambda: solve(h, h[:5]),
        lambda: solve(h, h[0]),
    ):
        with pytest.raises(UsageError):
            bad()
    for broken in (h * torch.nan, -h, torch.tensor([[1.0, 9.0], [9.0, 1.0]])):
        with pytest.raises(BadWeights):
            damped_cholesky(broken)
        with pytest.raises(BadWeights):
            inverse_upper(broken)
    with pytest.raises(BadWeights, match=r"eigenvalues from -8 to 10"):
        damped_cholesky(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))
