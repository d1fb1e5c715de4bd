import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import IntQuantizer
from laconic.tensors.percentile import SHARES, percentile_grid


def lost(quantizer, x, grid):
    return (quantizer.decode(quantizer.encode(x, grid), grid) - x).square().sum(dim=1)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_is_the_best_of_the_shares(bits, symmetric):
    x = torch.distributions.StudentT(3.0).sample((20, 500))
    quantizer = IntQuantizer(bits, "row", symmetric)
    found = lost(quantizer, x, percentile_grid(quantizer, x))
    every = []
    for share in SHARES:
        low, high = (torch.quantile(x, p, dim=1, keepdim=True) for p in (1 - share, share))
        every.append(lost(quantizer, x, quantizer.grid(low, high, 500)))
    torch.testing.assert_close(found, torch.stack(every).amin(dim=0), rtol=1e-3, atol=1e-6)


def test_clips_outliers_at_few_bits():
    x = torch.randn(8, 1000)
    x[:, 0] = 50
    quantizer = IntQuantizer(3, "row", False)
    assert (
        lost(quantizer, x, percentile_grid(quantizer, x)) < lost(quantizer, x, quantizer.fit(x))
    ).any()
    same = torch.ones(8, 10)
    assert torch.equal(percentile_grid(quantizer, same).scale, quantizer.fit(same).scale)


def test_takes_the_loss_that_it_is_given():
    """Only the outlier counts, which the grid of the least squared error clips."""
    x = torch.randn(8, 1000)
    x[:, 0] = 50
    quantizer = IntQuantizer(3, "row", False)
    first, all_ = (percentile_grid(quantizer, x, loss=loss) for loss in (_first(x), None))
    off = [_first(x)(quantizer.decode(quantizer.encode(x, g), g)) for g in (first, all_)]
    assert (off[0] <= off[1]).all() and (off[0] < off[1]).any()


def _first(x):
    return lambda values: (values - x)[:, 0].square()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (1, 1), (3, 2, 2)])
def test_odd_shapes(shape):
    quantizer = IntQuantizer(3, "row", False)
    x = torch.randn(shape)
    grid = percentile_grid(quantizer, x)
    assert grid.scale.shape == quantizer.fit(x).scale.shape
    assert quantizer.decode(quantizer.encode(x, grid), grid).shape == x.shape


def test_of_rows_alone():
    with pytest.raises(UsageError, match="group must be 'row'"):
        percentile_grid(IntQuantizer(3, 16), torch.randn(2, 32))
