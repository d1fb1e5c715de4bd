import math

import pytest
import torch

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import Bitmask, ChannelMask, NofM
from laconic.tensors.compressed import State, from_state


def test_bytes_of_a_bitmask():
    mask = Bitmask.of(torch.rand(8, 20) < 0.3)
    assert mask.resident_bytes == 20
    assert mask.format == f"{100 * mask.count / 160:.3g} % kept"


@pytest.mark.parametrize("n, m, bits", [(2, 4, 3), (4, 8, 7), (1, 4, 2), (1, 1, 1), (8, 16, 14)])
def test_bits_of_a_pattern(n, m, bits):
    keep = (torch.arange(m) < n).repeat(6, 2)
    mask = NofM.of(keep, n, m)
    assert (mask.bits, mask.format) == (bits, f"{n}:{m}")
    assert mask.resident_bytes == math.ceil(12 * bits / 8)
    assert torch.equal(mask.dense(), keep)


def test_every_pattern_has_its_number():
    patterns = [
        p for p in (torch.arange(16)[:, None] >> torch.arange(4) & 1).bool() if p.sum() == 2
    ]
    mask = NofM.of(torch.stack(patterns), 2, 4)
    assert sorted(mask._numbers().tolist()) == list(range(6))
    assert torch.equal(mask.dense(), torch.stack(patterns))


def test_runs_that_keep_another_number():
    with pytest.raises(UsageError, match="not 2:4"):
        NofM.of(torch.tensor([[True, True, True, False]]), 2, 4)
    with pytest.raises(UsageError, match="not 2:4"):  # a run of two keeps both
        NofM.of(torch.tensor([[True, True, False, False, True, False]]), 2, 4)


@pytest.mark.parametrize("n, m", [(0, 4), (5, 4), (2, 17), (2.0, 4), (1, 0)])
def test_runs_that_cannot_be(n, m):
    with pytest.raises(UsageError, match="n:m"):
        NofM.of(torch.ones(1, 4, dtype=torch.bool), n, m)


def test_channels():
    rows, columns = torch.tensor([True, False, True]), torch.tensor([False, True])
    mask = ChannelMask.of((3, 2, 5), rows=rows, columns=columns)
    assert (mask.kept_shape, mask.kept, mask.format) == ((2, 1, 5), 10, "2 x 1 channels")
    assert mask.dense()[:, :, 0].tolist() == [[False, True], [False, False], [False, True]]
    assert ChannelMask.of((3, 2)).kept == 6


def test_channels_that_do_not_fit():
    with pytest.raises(UsageError, match="has no rows and columns"):
        ChannelMask.of((3,))
    with pytest.raises(UsageError, match="do not fit"):
        ChannelMask.of((3, 2), rows=torch.ones(2, dtype=torch.bool))


def test_false_states():
    bitmask = Bitmask.of(torch.tensor([True, False, True])).state()
    with pytest.raises(CorruptFile, match="another number"):
        from_state(State(bitmask.kind, bitmask.meta | {"count": 1}, bitmask.arrays))
    runs = NofM.of(torch.tensor([[True, True, False, False, True, True]]), 2, 4).state()
    numbers = runs.arrays["patterns"].clone()
    numbers[1] = 5  # keeps the two columns behind the end
    with pytest.raises(CorruptFile, match="last run"):
        from_state(State(runs.kind, runs.meta, {"patterns": numbers}))


@pytest.mark.parametrize(
    "mask", [
        Bitmask.of(torch.rand(3, 8) < 0.5), ChannelMask.of((3, 8)),
        NofM.of(torch.tensor([True, False]).repeat(3, 4), 1, 2),
    ], ids=lambda mask: mask.kind,
)  # fmt: skip
def test_other_devices(mask):
    """Nothing of a kernel is used where there is none."""
    moved = mask.to("meta")
    if mask.kind != "channel mask":  # whose places have to be known
        assert moved.scatter(torch.zeros(mask.kept_shape, device="meta")).shape == mask.shape
    assert moved.dense().shape == mask.shape
