import pytest
import torch

from laconic.errors import UsageError
from laconic.prune.random import Random, uniform
from tests.prune.layers import stats_of


def mask(weight, name, **settings):
    method = Random(**settings)
    return method.compress_weight(weight, stats_of(method, weight, None, name)).dense() != 0


def test_depends_on_the_name_and_the_seed_alone():
    weight = torch.randn(16, 32)
    first = mask(weight, "a")
    assert torch.equal(first, mask(torch.randn(16, 32), "a"))
    assert not torch.equal(first, mask(weight, "b"))
    assert not torch.equal(first, mask(weight, "a", seed=1))


def test_numbers_never_change():
    """Files and results of years ago must come out again."""
    found = uniform("layer", 7, (3,)).tolist()
    assert found == pytest.approx([0.0951258, 0.5217124, 0.1573727], abs=1e-7)


def test_numbers_are_even_and_independent():
    u = uniform("layer", 0, (2, 50_000))
    assert u.min() >= 0 and u.max() < 1 and u.shape == (2, 50_000)
    assert abs(float(u.mean()) - 0.5) < 0.005 and abs(float(u.var()) - 1 / 12) < 0.002
    assert abs(float(torch.corrcoef(u)[0, 1])) < 0.02
    assert abs(float(torch.corrcoef(torch.stack([u[0, 1:], u[0, :-1]]))[0, 1])) < 0.02


@pytest.mark.parametrize("seed", [-1, 1 << 63, 0.5, "x"])
def test_seeds_that_do_not_hold(seed):
    with pytest.raises(UsageError, match="seed must be"):
        Random(seed=seed)


def test_shares_are_checked():
    with pytest.raises(UsageError, match="sparsity"):
        Random(1.5)
