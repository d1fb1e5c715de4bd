import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.calibrate.histogram import BINS, Histogram, rounding_error
from laconic.calibrate.statistics import Collected, Observation


def counts(x: torch.Tensor) -> torch.Tensor:
    return Collected(Histogram()).update(Observation(x, None)).sums["counts"]


def test_every_value_is_counted_once():
    x = torch.tensor([[0.0, -0.0, 1.0, -1.0, 1e-30, -1e-30, 1e30, -1e30]])
    found = counts(x)
    assert found.sum() == 8 and found.shape == (2, BINS)
    assert found[0, 0] == 3 and found[1, 0] == 1  # zeros have no sign
    assert found[:, BINS // 2].tolist() == [1, 1] and found[:, -1].tolist() == [1, 1]


def test_values_that_are_no_numbers_are_counted_somewhere():
    assert counts(torch.tensor([[torch.nan, torch.inf, -torch.inf]])).sum() == 3


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("clip", [0.3, 0.7, 1.0])
def test_the_error_is_that_of_the_values(bits, clip):
    """Bins of 2 % tell the error of rounding to within 2 %, clipping included."""
    x = torch.randn(200, 200, generator=torch.Generator().manual_seed(0)) * 3
    top = 2 ** (bits - 1) - 1
    scale = clip * x.abs().max() / top
    exact = ((x / scale).round().clamp(-top, top) * scale - x).square().mean()
    found = rounding_error(counts(x), scale.reshape(1), -top, top)
    assert found.item() == pytest.approx(exact.item(), rel=0.02)


@given(st.floats(-1000, 1000), st.floats(0.01, 100), st.integers(0, 130))
def test_one_value_is_rounded_to_its_bin(value, scale, top):
    x = torch.tensor([[value]])
    exact = (x / scale).round().clamp(-top, top) * scale - x
    found = rounding_error(counts(x), torch.tensor([scale]), -top, top)
    assert 0 <= found.item() <= (abs(exact.item()) + 0.023 * abs(value) + 1e-6) ** 2 * 1.001


def test_many_scales_at_once_and_no_values():
    of = counts(torch.rand(50, 4))
    scales, lowest = torch.tensor([0.1, 0.2]), torch.tensor([0.0, -3.0])
    both = rounding_error(of, scales, lowest, 7)
    each = [
        rounding_error(of, s.reshape(1), float(low), 7)
        for s, low in zip(scales, lowest, strict=True)
    ]
    assert torch.allclose(both, torch.cat(each))
    assert rounding_error(torch.zeros(2, BINS), scales, 0, 7).tolist() == [0, 0]
