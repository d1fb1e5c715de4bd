import pytest
import torch
from torch.nn import functional as F

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import (
    Bitmask,
    ChannelMask,
    ChannelScale,
    Codebook,
    CodebookQuantizer,
    Dense,
    FloatQuantizer,
    Hadamard,
    IntQuantizer,
    LowRank,
    Masked,
    MaskedCodes,
    NofM,
    Sum,
    Transformed,
)
from laconic.tensors.compressed import State, from_state
from laconic.tensors.masked import mask_of, masked_again, replaceable
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


class TestAgain:
    """Another format for a weight that was pruned."""

    keep = torch.arange(48).reshape(3, 16) % 4 > 0
    mask = Bitmask.of(keep)
    weight = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)) * keep
    scale = ChannelScale(torch.linspace(0.5, 2, 16))

    @pytest.mark.parametrize("behind", [False, True])
    @pytest.mark.parametrize("compress", [Dense, IntQuantizer(4, 8, False).quantize])
    def test_zeros_come_back(self, compress, behind):
        value = compress(self.weight + 1)
        value = Transformed(value, self.scale) if behind else value
        found = masked_again(value, self.mask)
        assert torch.equal(found.dense(), value.dense() * self.keep)
        assert torch.equal(mask_of(found).dense(), self.keep) and mask_of(value) is None

    def test_what_has_zeros_is_left_alone(self):
        value = Masked.of(self.weight, self.mask)
        assert masked_again(value, Bitmask.of(~self.keep)) is value
        behind = Transformed(value, self.scale)
        assert mask_of(behind) is self.mask and masked_again(behind, self.mask) is behind

    def test_what_cannot_have_zeros(self):
        pairs = CodebookQuantizer(2, 2).quantize(self.weight)
        mixed = Transformed(Dense(self.weight), Hadamard.random(16, 0))
        for value in (pairs, mixed, Transformed(pairs, self.scale), Sum((Dense(self.weight),))):
            assert masked_again(value, self.mask) is None

    def test_what_another_grid_may_replace(self):
        grid = IntQuantizer(4, 8).quantize(self.weight)
        for value in (Dense(self.weight), grid, Transformed(grid, self.scale)):
            assert replaceable(value)
        factors = LowRank(Dense(torch.ones(3, 1)), Dense(torch.ones(1, 16)))
        for value in (factors, Transformed(factors, self.scale), Masked.of(self.weight, self.mask)):
            assert not replaceable(value)
