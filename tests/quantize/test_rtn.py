import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.quantize.rtn import RTN
from laconic.tensors import IntQuantizer


@pytest.mark.parametrize("group", [1, 16, "row", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_is_its_quantizer(group, symmetric):
    x = torch.randn(8, 40)
    for range_ in ("minmax", "mse"):
        expected = IntQuantizer(3, group, symmetric, range_).project(x)
        assert torch.equal(RTN(3, group, symmetric, range_).compress_weight(x).dense(), expected)


def test_settings_are_checked_when_it_is_made():
    for wrong in ({"bits": 9}, {"group": 0}, {"group": "column"}, {"range": "max"}):
        with pytest.raises(UsageError):
            RTN(**wrong)


def test_damaged_weights():
    with pytest.raises(BadWeights):
        RTN().compress_weight(torch.full((2, 2), float("nan")))


def test_options_span_bits_and_groups_and_keep_the_rest():
    options = RTN(bits=4, symmetric=False, range="minmax").options()
    assert len(set(options)) == len(options)
    assert {option.bits for option in options} == set(range(2, 9))
    assert {option.group for option in options} >= {"row", 64}
    assert all(not option.symmetric and option.range == "minmax" for option in options)


def test_more_bits_lose_less():
    x = torch.randn(32, 64)
    lost = [(RTN(bits=b).compress_weight(x).dense() - x).norm().item() for b in range(2, 9)]
    assert lost == sorted(lost, reverse=True) and lost[-1] < 0.02 * x.norm()
