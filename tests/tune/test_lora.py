import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from laconic.errors import BadWeights, UsageError
from laconic.tensors import (
    Bitmask,
    ChannelScale,
    Dense,
    FloatQuantizer,
    IntQuantizer,
    LowRank,
    Masked,
    MaskedCodes,
    Sum,
)  # fmt: skip
from laconic.tensors.modules import CompressedLinear
from laconic.tensors.stored import Record, decode_record, encode
from laconic.tune.lora import LoRA, dense_weight
from laconic.tune.sparse_lora import KINDS, MaskedLoRA, ScaleLoRA

OUT, IN = 6, 8


def weight(dtype=torch.float32, sparse=True):
    value = torch.randn(OUT, IN, generator=torch.Generator().manual_seed(3))
    return (value * (value.abs() > 0.6) if sparse else value).to(dtype)


def linear(dtype=torch.float32):
    layer = nn.Linear(IN, OUT, dtype=dtype)
    layer.weight.data = weight(dtype)
    return layer


def conv1d(dtype=torch.float32):
    layer = Conv1D(OUT, IN).to(dtype)
    layer.weight.data = weight(dtype).T.contiguous()
    layer.bias.data = torch.randn(OUT, dtype=dtype)
    return layer


def compressed(value, transform=None, activation=None):
    return CompressedLinear(
        {"weight": Record(value, transform, activation)}, torch.randn(OUT), IN, OUT
    )


def masked_value():
    return Masked.of(weight(), Bitmask.of(weight() != 0))


BASES = {
    "linear": linear,
    "conv1d": conv1d,
    "dense": lambda: compressed(Dense(weight())),
    "masked": lambda: compressed(masked_value()),
}


def trained(kind, base, **settings):
    """An adapter whose factors are not at their start."""
    adapter = KINDS[kind](base, 3, alpha=6.0, **settings)
    for factor in adapter.factors():
        nn.init.normal_(factor, std=0.3)
    return adapter


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", KINDS)
def test_starts_as_the_layer_and_merges_into_the_same_function(kind, base):
    layer, x = BASES[base](), torch.randn(2, 5, IN)
    before = layer(x)
    assert torch.equal(KINDS[kind](layer, 3)(x), before)
    adapter = trained(kind, layer)
    y = adapter(x)
    assert not torch.allclose(y, before, atol=1e-2)
    merged = adapter.merge()
    assert merged is layer
    assert torch.allclose(merged(x), y, atol=1e-5)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("kind", ["masked", "scale"])
def test_zeros_stay_exactly_zero(kind, base):
    layer = BASES[base]()
    before = dense_weight(layer).clone()
    after = dense_weight(trained(kind, layer).merge())
    assert torch.equal(before == 0, after == 0)
    assert not torch.equal(before, after)


def test_updates_are_the_papers():
    adapter = trained("plain", linear())
    a, b = adapter.factors()
    assert torch.allclose(adapter.delta(), 2 * b @ a)
    for kind, expected in (
        ("masked", 2 * (b @ a) * (weight() != 0)),
        ("scale", 2 * (b @ a) * weight()),
    ):
        other = KINDS[kind](linear(), 3, alpha=6.0)
        other.lora_A.weight, other.lora_B.weight = a, b
        assert torch.allclose(other.delta(), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_formula(kind):
    adapter, x = trained(kind, linear()), torch.randn(5, IN, requires_grad=True)
    adapter(x).square().sum().backward()
    found = [x.grad, *(factor.grad for factor in adapter.factors())]
    y = F.linear(x, dense_weight(adapter.base) + adapter.delta(), adapter.bias)
    expected = torch.autograd.grad(y.square().sum(), [x, *adapter.factors()])
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(found, expected))


def test_explicit_masks_keep_what_is_zero_by_chance():
    keep = torch.ones(OUT, IN, dtype=torch.bool)
    keep[:, 0] = False
    after = dense_weight(trained("masked", linear(), mask=keep).merge())
    assert torch.equal(after[:, 0], weight()[:, 0])
    assert (after[:, 1:] != 0).all()


FORMATS = {
    "int": lambda: IntQuantizer(bits=3).quantize(weight()),
    "float": lambda: FloatQuantizer().quantize(weight()),
    "codes": lambda: MaskedCodes.of(
        IntQuantizer(bits=4).quantize(weight()), Bitmask.of(weight() != 0)
    ),
    "sum": lambda: Sum((IntQuantizer(bits=3).quantize(weight()), Dense(0.1 * weight()))),
}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_compressed_weights_become_sums_that_can_be_stored(kind, form):
    layer, x = compressed(FORMATS[form]()), torch.randn(4, IN)
    adapter = trained(kind, layer)
    y = adapter(x)
    adapter.merge()
    assert torch.allclose(layer(x), y, atol=1e-5)
    value = layer.weight
    assert isinstance(value, Sum) and len(value.parts) == (3 if form == "sum" else 2)
    assert isinstance(value.parts[-1], LowRank if kind == "plain" else Masked)
    again = decode_record(encode(layer.records["weight"])).weight
    assert torch.equal(again.dense(), value.dense())


def test_a_mask_that_lets_through_what_was_pruned():
    layer, x = compressed(masked_value()), torch.randn(4, IN)
    adapter = trained("masked", layer, mask=torch.ones(OUT, IN))
    y = adapter(x)
    assert isinstance(adapter.merge().weight, Sum)
    assert torch.allclose(layer(x), y, atol=1e-5)


def test_works_behind_transform_and_activation_quantizer():
    scale = ChannelScale(torch.rand(IN) + 0.5)
    layer = compressed(IntQuantizer(bits=4).quantize(weight()), scale, IntQuantizer(bits=8))
    x, seen = torch.randn(4, IN), []
    adapter = trained("plain", layer)
    y = adapter(x)
    layer.observer = seen.append
    assert torch.equal(adapter(x), y)
    assert torch.equal(seen[0].inputs, scale(x)) and torch.equal(seen[0].raw, x)
    assert torch.allclose(adapter.merge()(x), y, atol=1e-4)
    assert layer.records["weight"].transform is scale


def test_gradients_pass_through_compressed_weights():
    layer = compressed(IntQuantizer(bits=4).quantize(weight()))
    x = torch.randn(4, IN, requires_grad=True)
    trained("plain", layer)(x).sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_weights_have_fp32_factors(kind):
    layer, x = linear(torch.bfloat16), torch.randn(3, IN, dtype=torch.bfloat16)
    adapter = trained(kind, layer)
    y = adapter(x)
    assert y.dtype == torch.bfloat16 and adapter.lora_A.weight.dtype == torch.float32
    expected = (weight(torch.bfloat16).float() + adapter.delta()).to(torch.bfloat16)
    assert torch.equal(adapter.merge().weight, expected)
    assert KINDS[kind](linear(), 2).to(torch.bfloat16)(x).dtype == torch.bfloat16


def test_autocast():
    adapter, x = trained("masked", linear()), torch.randn(3, IN)
    with torch.autocast("cpu", torch.bfloat16):
        y = adapter(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16 and adapter.lora_B.weight.grad.dtype == torch.float32


def test_dropout_is_for_training_only():
    adapter, x = trained("plain", linear(), dropout=0.5), torch.randn(64, IN)
    assert not torch.equal(adapter(x), adapter(x))
    adapter.eval()
    assert torch.equal(adapter(x), adapter(x))


def test_shows_what_the_layer_has():
    adapter = LoRA(linear(), 2)
    assert adapter.weight is adapter.base.weight and adapter.in_features == IN
    assert "plain, rank=2, alpha=2" in repr(adapter)
    with pytest.raises(AttributeError):
        adapter.nothing


def test_same_generator_same_start():
    starts = [
        LoRA(linear(), 2, generator=torch.Generator().manual_seed(seed)).lora_A.weight
        for seed in (1, 1, 2)
    ]
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])
    assert starts[0].abs().max() <= IN**-0.5


@pytest.mark.parametrize(
    "make",
    [
        lambda: LoRA(nn.Conv2d(2, 2, 1), 1),
        lambda: LoRA(nn.Embedding(2, 2), 1),
        lambda: LoRA(linear(), 0),
        lambda: LoRA(linear(), 1, dropout=1.0),
        lambda: MaskedLoRA(linear(), 1, mask=torch.ones(IN, OUT)),
        lambda: ScaleLoRA(compressed(IntQuantizer(bits=4).quantize(weight())), 1),
    ],
)
def test_bad_settings(make):
    with pytest.raises(UsageError):
        make()


def test_a_diverged_update_is_not_merged():
    adapter = trained("masked", linear())
    adapter.lora_A.weight.data[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        adapter.merge()
    assert torch.equal(adapter.base.weight, weight())
