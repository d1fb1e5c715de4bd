import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.errors import UsageError
from laconic.tensors import KVQuantizer, QuantizedKV
from tests.tensors.strategies import same_bits

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def filled(quantizer, keys, values, portions) -> QuantizedKV:
    cache = QuantizedKV(quantizer)
    for k, v in zip(keys.split(portions, 2), values.split(portions, 2)):
        cache.append(k, v)
    return cache


def on_grids(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row (.., n) on a uniform grid from its least to its greatest value, in scalars."""
    kept = torch.float16 if values.dtype == torch.float16 else torch.bfloat16
    out = torch.empty(values.shape)
    for index in np.ndindex(values.shape[:-1]):
        row = values[index].float()
        low = row.min().to(kept).float()
        scale = ((row.max() - low).clamp(min=0) / (2**bits - 1)).to(kept)
        scale = scale.clamp(min=torch.finfo(kept).tiny).float()
        out[index] = low + ((row - low) / scale).round().clamp(0, 2**bits - 1) * scale
    return out.to(values.dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_keys_by_channel_values_by_token(bits, dtype):
    keys, values = torch.randn(2, 3, 19, 5).to(dtype), torch.randn(2, 3, 19, 16).to(dtype)
    cache = QuantizedKV(KVQuantizer(bits, bits, group=8, residual=2))
    cache.append(keys, values)
    assert (cache.quantized, cache.length) == (16, 19)
    got_keys, got_values = cache.dense()
    runs = keys[:, :, :16].reshape(2, 3, 2, 8, 5).transpose(3, 4)
    expected = on_grids(runs, bits).transpose(3, 4).reshape(2, 3, 16, 5)
    assert same_bits(got_keys[:, :, :16], expected)
    expected = on_grids(values[:, :, :16].reshape(2, 3, 16, 2, 8), bits).reshape(2, 3, 16, 16)
    assert same_bits(got_values[:, :, :16], expected)
    assert same_bits(got_keys[:, :, 16:], keys[:, :, 16:])
    assert same_bits(got_values[:, :, 16:], values[:, :, 16:])


@given(
    portions=st.lists(st.integers(0, 12), min_size=1, max_size=6), residual=st.integers(0, 20),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=60)
def test_portions_do_not_matter(portions, residual, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(1, 2, sum(portions), 6, generator=generator).to(dtype)
    values = torch.randn(1, 2, sum(portions), 12, generator=generator).to(dtype)
    quantizer = KVQuantizer(2, 3, group=8, residual=residual)
    cache = filled(quantizer, keys, values, portions)
    once = filled(quantizer, keys, values, [sum(portions)])
    assert cache.length == once.length == sum(portions)
    assert cache.quantized == once.quantized == max(0, sum(portions) - residual) // 8 * 8
    assert cache.resident_bytes == once.resident_bytes
    for ours, theirs, given_ in zip(cache.dense(), once.dense(), (keys, values)):
        assert same_bits(ours, theirs) and ours.shape == given_.shape


def test_bytes():
    cache = QuantizedKV(KVQuantizer(2, 4, group=32, residual=0))
    assert cache.resident_bytes == cache.length == 0
    cache.append(torch.randn(1, 4, 64, 128).bfloat16(), torch.randn(1, 4, 64, 128).bfloat16())
    numbers = 4 * 64 * 128
    assert cache.resident_bytes == numbers * (2 + 4) // 8 + 2 * 4 * (numbers // 32)


def test_more_bits_lose_less():
    keys, values = torch.randn(1, 2, 64, 32), torch.randn(1, 2, 64, 32)
    lost = []
    for bits in range(2, 9):
        cache = filled(KVQuantizer(bits, bits, residual=0), keys, values, [64])
        lost.append(
            sum(float((a - b).square().sum()) for a, b in zip(cache.dense(), (keys, values)))
        )
    assert lost == sorted(lost, reverse=True) and lost[-1] < 1e-3 * lost[0]


def test_constant_values_stay():
    cache = QuantizedKV(KVQuantizer(group=8, residual=0))
    cache.append(torch.full((1, 1, 8, 4), 3.0), torch.zeros(1, 1, 8, 4))
    assert all((got == value).all() for got, value in zip(cache.dense(), (3.0, 0.0)))


def test_the_group_of_odd_widths_is_a_divisor():
    keys, values = torch.randn(1, 1, 8, 3), torch.randn(1, 1, 8, 7)
    cache = filled(KVQuantizer(8, 8, group=8, residual=0), keys, values, [8])
    assert torch.allclose(cache.dense()[1], values, atol=0.03)


def test_does_not_hold_on_to_what_came():
    keys, values = torch.randn(1, 1, 3, 4), torch.randn(1, 1, 3, 4)
    cache = filled(KVQuantizer(), keys, values, [3])
    before = [t.clone() for t in cache.dense()]
    keys.zero_()
    values.zero_()
    assert all(map(torch.equal, cache.dense(), before))


@pytest.mark.parametrize(
    "settings", [
        {"key_bits": 1}, {"value_bits": 9}, {"key_bits": 2.0}, {"group": 12}, {"group": 4},
        {"group": "row"}, {"residual": -1}, {"residual": 0.5},
    ],
)  # fmt: skip
def test_settings(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        KVQuantizer(**settings)


@pytest.mark.parametrize(
    "keys, values, match", [
        ((1, 2, 3), (1, 2, 3, 4), "must be"), ((1, 2, 3, 4), (1, 2, 4, 4), "must be"),
        ((0, 2, 3, 4), (0, 2, 3, 4), "no heads"), ((1, 2, 3, 0), (1, 2, 3, 4), "no heads"),
        ((1, 2, 3, 5), (1, 2, 3, 4), "cannot go on"), ((2, 2, 3, 4), (2, 2, 3, 4), "cannot go on"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit(keys, values, match):
    cache = QuantizedKV(KVQuantizer())
    cache.append(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))
    with pytest.raises(UsageError, match=match):
        cache.append(torch.randn(keys), torch.randn(values))
    assert cache.length == 3


def test_empty():
    with pytest.raises(UsageError, match="empty"):
        QuantizedKV(KVQuantizer()).dense()
