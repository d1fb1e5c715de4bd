"""Formats on a CUDA device: moved there, made there, computing there, and back in a file."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from laconic.registry import ENTRIES
from laconic.tensors import ChannelMask, IntQuantizer
from laconic.tensors.kv import KVQuantizer, QuantizedKV
from laconic.tensors.replacement import replace_module, twin_class
from laconic.tensors.stored import Record, decode, encode
from laconic.tensors.transforms import ChannelScale, Hadamard
from tests.contracts.cases import QUANTIZERS
from tests.gpu.near import assert_near, moved
from tests.tensors.strategies import KINDS, MASKS, TRANSFORMS, same_bits
from tests.tensors.test_modules import CASES as MODULES
from tests.tensors.test_modules import slots_of

ALL = [(name, settings) for name, variants in QUANTIZERS.items() for settings in variants]
FEW = settings(max_examples=12)


def on(value, device):
    return {tensor.device.type for tensor in value.tensors().values()} <= {
        torch.device(device).type
    }


@pytest.mark.parametrize("kind", KINDS)
class TestEveryTensor:
    @given(data=st.data())
    @FEW
    def test_moves_there_and_back(self, device, kind, data):
        value = data.draw(KINDS[kind])
        there = value.to(device)
        assert on(there, device) and there.format == value.format
        assert encode(there) == encode(value) == encode(there.to("cpu"))
        assert there.stored_bytes == value.stored_bytes
        assert same_bits(decode(encode(there)).dense(), value.dense())
        dense = there.dense()
        assert dense.device.type == torch.device(device).type
        assert_near(dense.float(), value.dense().float(), device, rtol=2e-2, atol=1e-3)

    @given(data=st.data())
    @FEW
    def test_multiplies_and_looks_up(self, device, kind, data):
        value = data.draw(KINDS[kind])
        if len(value.shape) != 2 or 0 in value.shape:
            return
        there, draw = value.to(device), torch.Generator().manual_seed(0)
        bias = torch.randn(value.shape[0], generator=draw)
        for count in (1, 40):
            x = torch.randn(count, value.shape[1], generator=draw)
            y, expected = there.matmul(x.to(device), bias.to(device)), value.matmul(x, bias)
            assert_near(y, expected, device, rtol=1e-3, atol=1e-3)
        index = torch.randint(value.shape[0], (2, 3), generator=draw)
        assert_near(
            there.rows(index.to(device)).float(), value.rows(index).float(), device, 2e-2, 1e-2
        )


@pytest.mark.parametrize("kind", MASKS)
@given(data=st.data())
@FEW
def test_every_mask(device, kind, data):
    mask = data.draw(MASKS[kind])
    there = mask.to(device)
    values = torch.arange(1.0, 1 + mask.kept)
    whole = mask.scatter(values)
    assert_near(there.dense(), mask.dense(), device)
    assert_near(there.scatter(values.to(device)), whole, device)
    assert_near(there.gather(whole.to(device)), mask.gather(whole), device)
    ours, theirs = there.state().arrays, mask.state().arrays
    assert all(same_bits(ours[name].cpu(), theirs[name]) for name in theirs)


def test_masks_are_made_where_their_booleans_are(device):
    keep = torch.tensor([True, False, True], device=device)
    for mask in (ChannelMask.of((2, 3), columns=keep), ChannelMask.of((3, 2), rows=keep)):
        assert on(mask, device)


@pytest.mark.parametrize("kind", TRANSFORMS)
@given(data=st.data())
@FEW
def test_every_transform(device, kind, data):
    transform = data.draw(TRANSFORMS[kind](data.draw(st.integers(1, 12))))
    there, draw = transform.to(device), torch.Generator().manual_seed(0)
    x = torch.randn(5, transform.width, generator=draw)
    h = x.T @ x
    for function, given_ in (("__call__", x), ("fold", x), ("unfold", x), ("moment", h.double())):
        ours, theirs = getattr(there, function), getattr(transform, function)
        assert_near(ours(given_.to(device)), theirs(given_), device, rtol=1e-3, atol=1e-3)


def spelt(case):
    return f"{case[0]}-{'-'.join(map(str, case[1].values())) or 'default'}"


@pytest.mark.parametrize("case", ALL, ids=spelt)
@pytest.mark.parametrize("shape", [(24, 40), (7, 13), (8, 4, 3, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_quantizer(device, case, shape, dtype):
    """Made of a weight on the device: as good as on the CPU, and the same from its file."""
    quantizer = ENTRIES[case[0]].load()(**case[1])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    there, here = quantizer.quantize(x.to(device)), quantizer.quantize(x)
    assert on(there, device) and there.format == here.format
    errors = [(v.dense(torch.float32).cpu() - x.float()).square().mean() for v in (there, here)]
    assert errors[0] == pytest.approx(float(errors[1]), rel=0.1, abs=1e-7)
    assert same_bits(decode(encode(there)).dense(), there.dense().cpu())
    projected = quantizer.project(x.to(device))
    assert same_bits(projected.cpu(), there.dense().cpu())


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_every_module(device, name, compute):
    build, inputs = MODULES[name]
    module = build().eval()
    values = slots_of(module, IntQuantizer(8, "row").quantize)
    here = twin_class(module).from_module(module, {k: Record(v) for k, v in values.items()})
    here.requires_grad_(False)
    there = copy.deepcopy(here).to(device)
    given_ = tuple(x.to(compute) if x.is_floating_point() else x for x in inputs())
    there, here = (m.to(compute) for m in (there, here))
    ours, theirs = there(*moved(given_, device)), here(*given_)
    tolerance = 1e-4 if compute == torch.float32 else 5e-2
    assert_near(ours.float(), theirs.float(), device, rtol=tolerance, atol=tolerance)
    for slot, record in there.records.items():
        assert on(record.weight, device)
        assert encode(record) == encode(here.records[slot])


@pytest.mark.parametrize(
    "activation", [IntQuantizer(8, "row"), IntQuantizer(4, 8, symmetric=False), *(
        ENTRIES["float"].load()(**s) for s in ({}, {"format": "mxfp8"}, {"format": "e4m3"})
    ), ENTRIES["static-int"].load()(bits=6)], ids=str,
)  # fmt: skip
@pytest.mark.parametrize(
    "transform", [None, ChannelScale(torch.rand(32) + 0.5), Hadamard.random(32, 1)]
)
def test_activations(device, activation, transform):
    """Inputs are transformed and rounded; a few may round otherwise."""
    holder = nn.Sequential(nn.Linear(32, 12))
    value = IntQuantizer(4).quantize(holder[0].weight.detach())
    here = replace_module(holder, "0", {"weight": Record(value, transform, activation)})
    there = copy.deepcopy(here).to(device)
    x = torch.randn(9, 32)
    assert_near(there(x.to(device)), here(x), device, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [(2, 2), (4, 8)])
def test_caches(device, dtype, bits):
    draw = torch.Generator().manual_seed(0)
    caches = [QuantizedKV(KVQuantizer(*bits, group=8, residual=8)) for _ in range(2)]
    for count in (30, 1, 1, 9):
        keys, values = (torch.randn(2, 3, count, 16, generator=draw).to(dtype) for _ in range(2))
        caches[0].append(keys.to(device), values.to(device))
        caches[1].append(keys, values)
    assert caches[0].resident_bytes == caches[1].resident_bytes
    ours, theirs = caches[0].dense(), caches[1].dense()
    for one, other in zip(ours, theirs):
        assert one.device.type == torch.device(device).type and one.dtype == other.dtype
        assert ((one.cpu() - other).abs() < 1e-2).double().mean() > 0.99
