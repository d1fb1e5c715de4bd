import math

import pytest
import torch

from laconic.entropy.counter import _density, _smoothed, soft_bits
from laconic.errors import BadWeights, UsageError

KERNELS = ("cos", "tri", "lin")


def distribution(u, kernel):
    """K(u), by its definition."""
    inside = u.clamp(-1, 1)
    if kernel == "lin":
        return (inside + 1) / 2
    if kernel == "cos":
        return 0.5 - 0.5 * (math.pi * (inside + 1) / 2).cos()
    return torch.where(inside < 0, (1 + inside) ** 2 / 2, 1 - (1 - inside) ** 2 / 2)


def entropy(codes):
    counts = codes.round().flatten().unique(return_counts=True)[1].double()
    return float(-(counts * (counts / counts.sum()).log2()).sum())


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("delta", [0.05, 0.7, 3.0])
def test_prefix_sums_are_the_sum_over_all_codes(kernel, delta):
    c = (torch.randn(500, generator=torch.Generator().manual_seed(0)) * 3).double().sort().values
    places = torch.arange(-12, 12).double() + 0.5
    want = distribution((places[:, None] - c) / delta, kernel).sum(dim=1)
    assert torch.allclose(_smoothed(c, places, delta, kernel), want, atol=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_densities_are_the_slopes(kernel):
    u = torch.linspace(-0.95, 0.95, 20).double()
    u = u[u.abs() > 1e-3]
    slope = (distribution(u + 1e-6, kernel) - distribution(u - 1e-6, kernel)) / 2e-6
    assert torch.allclose(_density(u, kernel), slope, atol=1e-5)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("step", [0.1, 0.5, 1.5])
def test_is_near_the_entropy_of_rounded_codes(kernel, step):
    codes = torch.randn(200_000, generator=torch.Generator().manual_seed(0)) / step
    assert float(soft_bits(codes, kernel)) == pytest.approx(entropy(codes), rel=0.02)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("resolution", [3, 20])
def test_gradients_are_differences(kernel, resolution):
    """Of the bits with the places that codes are looked up at moving along, as rounding passes gradients."""
    codes = (torch.randn(60, generator=torch.Generator().manual_seed(1)) * 2).double()
    codes[0], codes[1] = -6.0, 6.0  # the range stays as it is
    codes.requires_grad_()
    soft_bits(codes, kernel, resolution).backward()
    delta = float(codes.max() - codes.min()) / resolution
    levels = codes.detach().round()

    def bits(c):
        places = levels + (c - codes.detach())  # straight through
        high, low = (
            distribution((places[:, None] + half - c) / delta, kernel).sum(dim=1)
            for half in (0.5, -0.5)
        )
        return -((high - low).clamp(min=0.5) / len(c)).log2().sum()

    for j in range(2, 60, 7):
        step = torch.zeros(60).double()
        step[j] = 1e-6
        slope = (bits(codes.detach() + step) - bits(codes.detach() - step)) / 2e-6
        assert float(codes.grad[j]) == pytest.approx(float(slope), rel=1e-3, abs=1e-4)


def test_following_the_gradient_saves_bits():
    codes = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 4
    codes.requires_grad_()
    before = soft_bits(codes)
    before.backward()
    moved = codes.detach() - 0.05 * codes.grad.sign()
    assert entropy(moved) < entropy(codes.detach())


def test_one_level_takes_nothing():
    assert float(soft_bits(torch.zeros(10))) == 0


@pytest.mark.parametrize(
    "codes, settings, error",
    [
        (torch.zeros(0), {}, UsageError), (torch.zeros(3), {"kernel": "x"}, UsageError),
        (torch.zeros(3), {"resolution": 0}, UsageError), (torch.tensor([0.0, 1e6]), {}, UsageError),
        (torch.tensor([torch.nan]), {}, BadWeights),
    ],
)  # fmt: skip
def test_what_cannot_be_counted(codes, settings, error):
    with pytest.raises(error):
        soft_bits(codes, **settings)
