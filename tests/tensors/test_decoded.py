"""Weights that are decoded once multiply as those that are decoded each time."""

import pytest
import torch
from torch import nn

from laconic.tensors import (
    Bitmask,
    ChannelScale,
    Dense,
    IntQuantizer,
    LowRank,
    Masked,
    Stacked,
    Sum,
)
from laconic.tensors.combined import Transformed
from laconic.tensors.decoded import decode_slots, decoded, decoded_bytes, kept_decoded
from laconic.tensors.masked import MaskedCodes
from laconic.tensors.modules import CompressedLinear
from laconic.tensors.stored import Record

WEIGHT = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
CODED = IntQuantizer(3, 4).quantize(WEIGHT)
VALUES = {
    "coded": CODED,
    "bfloat16": Dense(WEIGHT.bfloat16()),
    "sum": Sum((CODED, LowRank(Dense(WEIGHT[:, :2].clone()), Dense(WEIGHT[:2].clone())))),
    "factors": LowRank(IntQuantizer().quantize(WEIGHT[:, :3]), IntQuantizer().quantize(WEIGHT[:3])),
    "masked": Masked.of(WEIGHT, Bitmask.of(WEIGHT > 0)),
    "masked codes": MaskedCodes.of(CODED, Bitmask.of(WEIGHT > 0)),
    "transformed": Transformed(CODED, ChannelScale(torch.rand(8) + 0.5)),
}


def linear(value):
    return CompressedLinear({"weight": Record(value)}, None, 8, 6)


@pytest.mark.parametrize("name", VALUES)
def test_multiplies_as_before(name):
    value, x = VALUES[name], torch.randn(5, 8)
    held = decoded(value)
    assert torch.equal(held.matmul(x), value.matmul(x))
    assert all(t.dtype == torch.float32 for n, t in held.tensors().items() if "scale" not in n)


def test_slices_of_a_stack():
    stack = Stacked((CODED, Dense(WEIGHT)) * 2, per_slice=2)
    held = decoded(stack)
    assert torch.equal(held.slice(1), stack.slice(1, torch.float32)) and held.per_slice == 1


def test_while_inside_only():
    module = nn.Sequential(linear(CODED), linear(CODED))
    assert decoded_bytes(module) == 2 * 48 * 4
    with kept_decoded(module, 400):
        assert all(m.operand().format == "float32" for m in module)
        assert module[0].weight is CODED  # what it is does not change
    assert all(m.operand() is CODED for m in module)


def test_not_what_would_take_too_much():
    module = nn.Sequential(linear(CODED), linear(CODED))
    with kept_decoded(module, 300):
        assert all(m.operand() is CODED for m in module)


def test_moving_a_module_drops_what_was_decoded():
    module = linear(CODED)
    decode_slots(module)
    module.to("cpu")
    assert module.operand() is CODED
