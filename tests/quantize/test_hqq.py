import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.quantize.hqq import BETA, HQQ, half_quadratic, shrink
from laconic.quantize.rtn import RTN
from laconic.tensors import Grouped, IntQuantizer
from laconic.tensors.combined import Sum


def skewed(rows=32, columns=96):
    return torch.randn(rows, columns).abs() ** 1.5 + 0.1 * torch.randn(rows, columns)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loses_less_than_zero_points_at_the_extremes(bits):
    weight = skewed()
    plain = RTN(bits, 32, symmetric=False, range="minmax").compress_weight(weight).dense()
    ours = HQQ(bits, 32).compress_weight(weight).dense()
    for p in (0.7, 1, 2):
        assert (ours - weight).abs().pow(p).sum() < (plain - weight).abs().pow(p).sum()


def test_no_group_gets_worse_than_where_it_started():
    weight, quantizer = skewed(), IntQuantizer(3, 32, symmetric=False)
    grid = quantizer.fit(weight)
    zero = half_quadratic(weight, grid, 3, 20)

    def error(zero):
        scale, zero = grid.scale.repeat_interleave(32, 1), zero.repeat_interleave(32, 1)
        codes = (weight / scale + zero).round().clamp(0, 7)
        return ((codes - zero) * scale - weight).abs().reshape(32, 3, 32).sum(-1)

    better = error(zero) - error(grid.zero)
    assert (better < 1e-4).all() and (better < -1e-3).float().mean() > 0.5


def test_equal_weights_in_other_units_have_equal_codes():
    weight = skewed()
    one, other = (HQQ(3, 32).compress_weight(weight * unit).parts[0] for unit in (1, 1 / 1024))
    assert torch.equal(one.packed, other.packed)


def test_shrinking():
    x = torch.tensor([0.5, -0.5, 0.05, 0.0])
    drawn = 0.5 - 0.5**-0.3 / BETA
    assert torch.allclose(shrink(x, BETA), torch.tensor([drawn, -drawn, 0, 0]))


@pytest.mark.parametrize("shape", [(8, 50), (8, 6, 3, 3), (4, 5, 3)])
@pytest.mark.parametrize("group", [16, "row"])
def test_shapes_and_ragged_groups(shape, group):
    weight = torch.rand(shape).bfloat16()
    value = HQQ(8, group).compress_weight(weight)
    assert isinstance(value, Sum) and (value.shape, value.dtype) == (weight.shape, weight.dtype)
    assert (value.dense(torch.float32) - weight).abs().max() < 0.006


def test_integer_zero_points_are_those_of_a_plain_grid():
    weight = skewed()
    value = HQQ(3, 32, zero="integer").compress_weight(weight)
    assert isinstance(value, Grouped) and value.format == "int3 g32 asymmetric"
    real = HQQ(3, 32).compress_weight(weight)
    assert (real.dense() - weight).norm() < (value.dense() - weight).norm()


def test_offsets_are_two_bytes_a_group():
    value = HQQ(4, 32).compress_weight(skewed())
    assert value.parts[1].left.resident_bytes == 2 * 32 * 3
    assert value.parts[1].right.resident_bytes == 2 * 3 * 96


def test_wrong_settings_and_weights():
    for wrong in ({"bits": 9}, {"group": 0}, {"group": "tensor"}, {"zero": 1}, {"iterations": 0}):
        with pytest.raises(UsageError):
            HQQ(**wrong)
    with pytest.raises(BadWeights):
        HQQ().compress_weight(torch.full((2, 2), torch.inf))
