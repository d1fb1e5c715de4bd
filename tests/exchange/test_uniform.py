import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from laconic.errors import UnsupportedModel
from laconic.exchange.uniform import UniformLayer, pack_words, rounding_of, unpack_words
from laconic.tensors import ChannelScale, Grouped, IntQuantizer
from laconic.tensors.stored import Record


def layer(rows=8, columns=64, bits=4, group=32, symmetric=True, seed=0):
    torch.manual_seed(seed)
    value = IntQuantizer(bits, group, symmetric).quantize(torch.randn(rows, columns))
    return UniformLayer.of("layer", Record(value), nn.Linear(columns, rows)), value


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([2, 3, 4, 8]), st.integers(0, 99))
def test_words_hold_codes(rows, lots, bits, seed):
    torch.manual_seed(seed)
    codes = torch.randint(0, 2**bits, (rows, 32 * lots), dtype=torch.uint8)
    words = pack_words(codes, bits)
    assert words.shape == (rows, lots * bits) and words.dtype == torch.int32
    assert torch.equal(unpack_words(words, bits, 32 * lots), codes)
    assert int(words[0, 0]) & (2**bits - 1) == int(codes[0, 0])  # the first in the lowest bits


@pytest.mark.parametrize("group", [32, "row", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_record_comes_back(group, symmetric):
    found, value = layer(group=group, symmetric=symmetric)
    assert found.symmetric == symmetric
    again = found.record(torch.float32)
    assert torch.equal(again.weight.dense(), value.dense())


def test_what_is_no_uniform_grid():
    codes = IntQuantizer(4, 32).quantize(torch.randn(4, 64))
    linear = nn.Linear(64, 4)
    scaled = Record(codes, ChannelScale(torch.ones(64)))
    with pytest.raises(UnsupportedModel, match="channel scale before it"):
        UniformLayer.of("a.b", scaled, linear)
    with pytest.raises(UnsupportedModel, match="rounds its inputs"):
        UniformLayer.of("a.b", Record(codes, activation=IntQuantizer(8, "row")), linear)
    with pytest.raises(UnsupportedModel, match="a.b is .*not integers"):
        UniformLayer.of("a.b", Record(torch_dense()), linear)


def torch_dense():
    from laconic.tensors import FloatQuantizer

    return FloatQuantizer("e4m3", "row").quantize(torch.randn(4, 64))


def test_scales_in_another_dtype():
    found, value = layer()
    assert torch.equal(found.scale_as(torch.float16).float(), value.scale.float())
    assert rounding_of(found, torch.float16) == 0
    fine = scaled(value, torch.full_like(value.scale, 1.4 * 2.0**-22))
    assert 0 < rounding_of(fine, torch.float16) < 0.1
    with pytest.raises(UnsupportedModel, match="a scale that is beyond"):
        scaled(value, torch.full_like(value.scale, 1e30)).scale_as(torch.float16)
    with pytest.raises(UnsupportedModel, match="a scale that is beyond"):
        scaled(value, torch.full_like(value.scale, 1e-30)).scale_as(torch.float16)


def test_scales_of_zeros_say_nothing():
    value = IntQuantizer(4, 32).quantize(torch.zeros(2, 64))
    empty = scaled(value, torch.full_like(value.scale, 1e-30))
    assert torch.equal(empty.scale_as(torch.float16), torch.ones(2, 2, dtype=torch.float16))
    assert rounding_of(empty, torch.float16) == 0


def scaled(value: Grouped, scale):
    changed = Grouped(value.shape, value.dtype, value.bits, value.group, value.packed, scale)
    return UniformLayer.of("layer", Record(changed), nn.Linear(value.shape[1], value.shape[0]))
