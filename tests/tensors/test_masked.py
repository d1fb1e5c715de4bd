import pytest
import torch
from torch.nn import functional as F

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import (
    Bitmask,
    ChannelMask,
    Codebook,
    CodebookQuantizer,
    Dense,
    FloatQuantizer,
    IntQuantizer,
    Masked,
    MaskedCodes,
    NofM,
)
from laconic.tensors.compressed import State, from_state
from laconic.tensors.stored import decode, encode


def test_groups_run_over_what_is_kept():
    weight = torch.zeros(4, 32)
    keep = torch.rand(4, 32) < 0.5
    weight[keep] = torch.randn(int(keep.sum()))
    value = Masked.of(weight, Bitmask.of(keep), IntQuantizer(8, 16).quantize)
    assert value.values.shape == (1, int(keep.sum()))
    assert torch.allclose(value.dense(), weight, atol=0.02)
    assert (value.dense()[~keep] == 0).all()
    assert value.format == f"int8 g16, {100 * value.values.numel / 128:.3g} % kept"


def test_scales_stay_those_of_the_whole_weight():
    weight, keep = torch.randn(4, 32), torch.rand(4, 32) < 0.5
    for quantizer in (IntQuantizer(4, 16), IntQuantizer(4, 16, False), FloatQuantizer("nvfp4")):
        whole = quantizer.quantize(weight)
        value = MaskedCodes.of(whole, Bitmask.of(keep))
        assert torch.equal(value.dense(), whole.dense() * keep)
        assert value.format.startswith(f"{whole.format}, ")


def test_bits_in_memory():
    whole = IntQuantizer(4, 64).quantize(torch.randn(8, 64))
    keep = torch.tensor([True, False, False, True]).repeat(8, 16)
    value = MaskedCodes.of(whole, NofM.of(keep, 2, 4))
    assert value.resident_bytes == 8 * 32 * 4 // 8 + 8 * 16 * 3 // 8 + 8 * 2


def test_kept_channels_alone_are_multiplied(monkeypatch):
    weight = torch.randn(6, 10)
    mask = ChannelMask.of((6, 10), rows=torch.arange(6) % 2 == 0, columns=torch.arange(10) < 7)
    value, x, bias = Masked.of(weight, mask), torch.randn(3, 10), torch.randn(6)
    expected = [F.linear(x, value.dense(), b) for b in (None, bias)]
    monkeypatch.setattr(Masked, "dense", None)
    for b, y in zip((None, bias), expected):
        assert torch.allclose(value.matmul(x, b), y, atol=1e-5)
    assert value.values.shape == (3, 7)


def test_values_and_masks_that_do_not_fit():
    mask = Bitmask.of(torch.tensor([[True, False, True]]))
    with pytest.raises(UsageError, match="3 values for a mask that keeps 2"):
        Masked(Dense(torch.ones(1, 3)), mask)
    whole = IntQuantizer().quantize(torch.randn(2, 3))
    with pytest.raises(UsageError, match="a mask"):
        MaskedCodes.of(whole, mask)
    with pytest.raises(UsageError, match="use Masked"):
        MaskedCodes.of(Dense(torch.ones(1, 3)), mask)
    pairs = CodebookQuantizer(2, 2).quantize(torch.randn(1, 3))
    assert isinstance(pairs, Codebook)
    with pytest.raises(UsageError, match="use Masked"):
        MaskedCodes.of(pairs, mask)


def test_false_frames():
    value = MaskedCodes.of(
        IntQuantizer(4, 8).quantize(torch.randn(2, 8)), Bitmask.of(torch.ones(2, 8) > 0)
    )
    state = value.state()
    other = IntQuantizer(4, 8).quantize(torch.randn(4, 4)).state()
    frame = State(other.kind, other.meta, {"scale": other.arrays["scale"]})
    for parts in (
        state.parts | {"frame": frame},
        state.parts | {"frame": Dense(torch.ones(2, 8)).state()},
    ):
        with pytest.raises(CorruptFile):
            from_state(State(state.kind, state.meta, state.arrays, parts))


def test_pruned_codes_take_no_room_in_the_file():
    weight = torch.randn(64, 256)
    whole = IntQuantizer(4, "row").quantize(weight)
    keep = weight.abs() > weight.abs().quantile(0.9)
    value = MaskedCodes.of(whole, Bitmask.of(keep))
    assert value.stored_bytes < 0.4 * whole.stored_bytes
    assert torch.equal(decode(encode(value)).dense(), whole.dense() * keep)
