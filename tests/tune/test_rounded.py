import pytest
import torch

from laconic.errors import UsageError
from laconic.tensors import Grouped, IntQuantizer
from laconic.tune.rounded import SHIFT, Rounded

KINDS = {
    "symmetric": IntQuantizer(3, 8),
    "asymmetric": IntQuantizer(3, 8, symmetric=False),
    "ragged": IntQuantizer(2, 5),
    "row": IntQuantizer(4, "row"),
    "tensor": IntQuantizer(4, "tensor"),
}


def weight(*shape):
    return torch.randn(*(shape or (6, 16)), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", KINDS)
def test_starts_as_it_was(name):
    value = KINDS[name].quantize(weight())
    rounded = Rounded.between(value, weight())
    assert torch.equal(rounded.dense(), value.dense())
    assert torch.equal(rounded.settled().codes(), value.codes())
    assert torch.equal(rounded.settled().scale, value.scale)


def test_codes_that_were_moved_far_stay_at_first():
    """Error feedback may have put them steps away from their weight."""
    grid = IntQuantizer(4, "row")
    value = grid.quantize(weight())
    codes = (value.codes().int() + 3).clamp(max=15).to(torch.uint8)
    moved = Grouped.from_codes(codes, value.scale, None, bits=4, group=16, dtype=torch.float32)
    rounded = Rounded.between(moved, weight())
    assert torch.equal(rounded.settled().codes(), codes)
    with torch.no_grad():
        rounded.values[SHIFT] -= 0.1  # towards the weight: one step at once
    assert (rounded.settled().codes().int() - codes.int() <= 0).all()
    assert (rounded.settled().codes() != codes).float().mean() > 0.5


@pytest.mark.parametrize("name", KINDS)
def test_learns_what_rounding_alone_cannot(name):
    """A sum over columns, which rounding each weight to the nearest misses."""
    w, x = weight(8, 32), weight(40, 32) + 2
    value = KINDS[name].quantize(w)
    rounded = Rounded.between(value, w)
    goal = x @ w.T
    before = (x @ value.dense().T - goal).square().sum()
    adam = torch.optim.Adam([rounded.values[SHIFT]], lr=0.01, betas=(0.9, 0.99))
    for step in range(100):
        adam.param_groups[0]["lr"] = 0.01 * (1 - step / 100)
        adam.zero_grad()
        (x @ rounded.dense().T - goal).square().sum().backward()
        adam.step()
    after = rounded.settled()
    assert torch.equal(after.dense(), rounded.dense())
    assert (x @ after.dense().T - goal).square().sum() < 0.7 * before
    assert (after.codes().int() - value.codes().int()).abs().max() == 1


def test_no_gradient_beyond_the_ends():
    value = IntQuantizer(2, "row").quantize(torch.tensor([[1.0, -1.0, 0.2, 0.1]]))
    rounded = Rounded.between(value, torch.tensor([[1.0, -9.0, 0.2, 0.1]]))
    rounded.dense().sum().backward()
    gradient = rounded.values[SHIFT].grad
    assert gradient[0, 1] == 0 and (gradient[0, 2:] != 0).all()


def test_convolutions_keep_their_shape():
    w = weight(4, 3, 3, 3)
    value = IntQuantizer(4, "row").quantize(w)
    assert Rounded.between(value, w).dense().shape == w.shape


def test_another_shape():
    with pytest.raises(UsageError, match="shape"):
        Rounded.between(IntQuantizer().quantize(weight()), weight(6, 15))
