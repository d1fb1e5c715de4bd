import itertools

import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics import adaround
from laconic.numerics.adaround import Annealing, learned_factors, learned_rounding
from laconic.numerics.energies import row_errors
from laconic.numerics.soft_codes import SoftCodes, closed, opened
from tests.numerics.layers import layer, output_loss


def grid(weight, bits):
    low, high = weight.amin(dim=1, keepdim=True), weight.amax(dim=1, keepdim=True)
    scale = (high - low) / (2**bits - 1)
    return scale, (-low / scale).round()


def rounded(weight, scale, zero, bits):
    return (weight / scale + zero).round().clamp(0, 2**bits - 1)


def test_opened_and_closed():
    share = torch.linspace(0, 1, 11)
    torch.testing.assert_close(opened(closed(share)), share)


def test_gradients_are_those_of_autograd():
    weight, h = layer()
    scale, zero = grid(weight, 3)
    soft = SoftCodes(weight, scale, zero, 7)
    v = soft.v.clone().requires_grad_()
    floor = (weight / scale + zero).clamp(0, 7).floor().clamp(0, 6)
    values = (floor + opened(v) - zero) * scale
    torch.testing.assert_close(values, soft.values())
    off = values - weight
    error = ((off @ h.float()) * off).sum()
    (error + 0.5 * (1 - (2 * opened(v) - 1).abs().pow(5.0)).sum()).backward()
    soft.descend(2 * (soft.values() - weight) @ h.float(), 5.0, 0.5)
    torch.testing.assert_close(soft.v.grad, v.grad, rtol=1e-4, atol=1e-5)


def test_finds_the_best_of_all_roundings():
    """Rows of 8 have 256 roundings: learned is the best of them, or nearly, and better than nearest."""
    weight, h = layer(rows=12, columns=8, decay=1.0)
    scale, zero = grid(weight, 2)
    place = (weight / scale + zero).clamp(0, 3)
    floor = place.floor().clamp(max=2)
    ups = torch.tensor(list(itertools.product((0.0, 1.0), repeat=8)))
    every = (floor.unsqueeze(1) + ups - zero.unsqueeze(1)) * scale.unsqueeze(1) - weight.unsqueeze(
        1
    )
    best = output_loss(every.reshape(-1, 8), h).reshape(12, -1).amin(dim=1)
    codes = learned_rounding(weight, scale, zero, h, high=3)
    found = output_loss((codes - zero) * scale - weight, h)
    nearest = output_loss((rounded(weight, scale, zero, 2) - zero) * scale - weight, h)
    assert (codes >= floor).all() and (codes <= floor + 1).all()
    assert found.sum() < 1.3 * best.sum() < 0.8 * nearest.sum()


def test_no_row_is_worse_than_rounded():
    weight, h = layer(rows=40, columns=64)
    scale, zero = grid(weight, 3)
    for annealing in (Annealing(steps=0), Annealing(steps=3), Annealing(steps=30, rate=5.0)):
        codes = learned_rounding(weight, scale, zero, h, high=7, annealing=annealing)
        nearest = rounded(weight, scale, zero, 3)
        found, before = (output_loss((c - zero) * scale - weight, h) for c in (codes, nearest))
        assert (found <= before * (1 + 1e-9)).all()
        if not annealing.steps:
            assert torch.equal(codes, nearest)


def test_parts_of_rows_give_the_same_codes(monkeypatch):
    weight, h = layer(rows=10, columns=16)
    scale, zero = grid(weight, 3)
    whole = learned_rounding(weight, scale, zero, h, high=7, annealing=Annealing(steps=50))
    monkeypatch.setattr(adaround, "WEIGHTS_AT_ONCE", 64)
    parts = learned_rounding(weight, scale, zero, h, high=7, annealing=Annealing(steps=50))
    assert (whole == parts).float().mean() > 0.99  # products of other shapes round otherwise


def test_what_is_held_stays_rounded():
    weight, h = layer(rows=20, columns=32)
    scale, zero = grid(weight, 2)
    keep = torch.rand(20, 32, generator=torch.Generator().manual_seed(0)) > 0.5
    codes = learned_rounding(weight, scale, zero, h, high=3, keep=keep)
    nearest = rounded(weight, scale, zero, 2)
    assert torch.equal(codes[~keep], nearest[~keep])
    assert not torch.equal(codes[keep], nearest[keep])


def factors(weight, h, rank, bits):
    from laconic.numerics.svd import activation_svd

    a, b = (part.float() for part in activation_svd(weight, h).factors(rank))
    return [SoftCodes(part, *grid(part, bits), 2**bits - 1) for part in (a, b)]


def product_loss(soft, codes, weight, h):
    a, b = (s.decided(c) for s, c in zip(soft, codes))
    return float(output_loss(a @ b - weight, h).sum())


def test_factors_learned_together_lose_less():
    weight, h = layer(rows=32, columns=48)
    nearest = [s.nearest() for s in factors(weight, h, 8, 3)]
    soft = factors(weight, h, 8, 3)
    codes = learned_factors(weight, *soft, h)
    unrounded = product_loss_of_values(factors(weight, h, 8, 3), weight, h)
    before, after = (product_loss(soft, c, weight, h) - unrounded for c in (nearest, codes))
    assert after < 0.7 * before  # of what rounding adds


def product_loss_of_values(soft, weight, h):
    a, b = (s.values().double() for s in soft)
    return float(output_loss(a @ b - weight, h).sum())


def test_factors_are_never_worse_than_rounded():
    weight, h = layer(rows=12, columns=16)
    for steps in (0, 2):
        soft = factors(weight, h, 4, 4)
        nearest = [s.nearest() for s in soft]
        codes = learned_factors(weight, *soft, h, annealing=Annealing(steps=steps))
        assert product_loss(soft, codes, weight, h) <= product_loss(soft, nearest, weight, h)


def test_row_errors():
    off, h = layer(rows=5, columns=7)
    torch.testing.assert_close(row_errors(off, h), output_loss(off, h))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "steps"), ({"rate": 0.0}, "learning rate"), ({"warm_up": 1.0}, "warm_up"),
        ({"weight": -1.0}, "weight"), ({"end": 1.0}, "beta"), ({"start": 1.5}, "beta"),
    ],
)  # fmt: skip
def test_annealing_that_cannot_be(settings, message):
    with pytest.raises(UsageError, match=message):
        Annealing(**settings)


def test_bad_input():
    weight, h = layer(rows=4, columns=6)
    one = torch.ones(4, 1)
    with pytest.raises(UsageError, match="scale must have the shape"):
        learned_rounding(weight, torch.ones(3, 1), one, h, high=3)
    with pytest.raises(UsageError, match="may be 0"):
        learned_rounding(weight, 0 * one, one, h, high=3)
    with pytest.raises(UsageError):
        learned_rounding(weight, one, one, h[:5, :5], high=3)
    with pytest.raises(UsageError, match="must have the shape"):
        learned_rounding(weight[:0], one, one, h, high=3)
    with pytest.raises(UsageError, match="from low to high"):
        learned_rounding(weight, one, one, h, high=0)
    with pytest.raises(BadWeights):
        learned_rounding(weight * torch.nan, one, one, h, high=3)
    with pytest.raises(UsageError):
        learned_factors(weight, *factors(weight, h, 2, 4)[::-1], h)
