import pytest
import torch

from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.alphatuning import BCQ
from laconic.quantize.floats import Floats, GPTQFloats
from laconic.tensors import Bitmask, FloatQuantizer
from laconic.tensors.binary_quantizer import BinaryQuantizer
from tests.contracts.data import stats_for


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "e4m3"])
def test_floats_are_their_quantizer(format):
    x = torch.randn(8, 64)
    expected = FloatQuantizer(format, None, "mse").project(x)
    assert torch.equal(Floats(format).compress_weight(x).dense(), expected)


def test_binary_coding_is_its_quantizer():
    x = torch.randn(8, 64)
    assert torch.equal(BCQ(2).compress_weight(x).dense(), BinaryQuantizer(2).project(x))


@pytest.mark.parametrize("method", [Floats(), BCQ()])
def test_stronger_options_lose_more(method):
    x = torch.randn(32, 256)
    values = [option.compress_weight(x) for option in method.options()]
    by_size = sorted(values, key=lambda v: v.resident_bytes)
    lost = [float((v.dense() - x).norm()) for v in by_size]
    assert lost[0] > 3 * lost[-1] and len(values) > 3


@pytest.mark.parametrize(
    "wrong",
    [lambda: Floats("fp5"), lambda: Floats("mxfp4", 16), lambda: BCQ(9), lambda: BCQ(group=3)],
)
def test_settings_out_of_range(wrong):
    with pytest.raises(UsageError):
        wrong()


@pytest.mark.parametrize("format", ["mxfp4", "nvfp4", "e2m1", "mxfp8"])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_sweeps_lose_less_on_the_same_scales(format, order):
    weight = torch.randn(32, 96, generator=torch.Generator().manual_seed(0))
    method = GPTQFloats(format, order=order)
    stats = stats_for(method, weight, 400)
    swept, nearest = method.compress_weight(weight, stats), Floats(format).compress_weight(weight)
    assert torch.equal(swept.scale, nearest.scale)
    assert output_error(weight, swept, stats) < 0.9 * output_error(weight, nearest, stats)


def test_sweeps_over_an_uncorrelated_input_are_to_the_nearest():
    weight = torch.randn(8, 32)
    stats = stats_for(GPTQFloats(), weight)
    stats.collected[SecondMoment()].sums["moment"] = torch.eye(32, dtype=torch.float64)
    assert torch.equal(
        GPTQFloats().compress_weight(weight, stats).packed, Floats().compress_weight(weight).packed
    )


def test_zeros_of_a_chain_stay():
    weight = torch.randn(8, 96)
    keep = torch.rand(8, 96) < 0.5
    stats = stats_for(GPTQFloats(), weight, 400)
    stats.mask = Bitmask.of(keep)
    value = GPTQFloats("mxfp4").compress_weight(weight * keep, stats).dense()
    assert (value[~keep] == 0).all() and (value[keep] != 0).any()


@pytest.mark.parametrize("settings", [{"damp": 0.0}, {"order": "random"}, {"format": "fp5"}])
def test_settings_of_sweeps_out_of_range(settings):
    with pytest.raises(UsageError):
        GPTQFloats(**settings)


def test_damaged_weights():
    weight = torch.randn(4, 32)
    stats = stats_for(GPTQFloats(), weight)
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        GPTQFloats().compress_weight(weight, stats)
