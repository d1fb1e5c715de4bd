import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.nystrom import nystrom, nystrom_fold, ridge_leverage
from tests.numerics.layers import layer


def test_leverage_is_its_definition():
    _, h = layer(2, 12)
    lam = 0.05 * h.diagonal().mean()
    want = (h @ torch.linalg.inv(h + lam * torch.eye(12))).diagonal()
    assert torch.allclose(ridge_leverage(h, 0.05), want, atol=1e-10)
    both = ridge_leverage(torch.stack([h, 3 * h]), 0.05)
    assert torch.allclose(both, want.expand(2, 12), atol=1e-10)


def test_leverage_of_copies_is_shared_and_of_nothing_is_zero():
    x = torch.randn(100, 6).double()
    x[:, 5] = x[:, 4]
    x[:, 3] = 0
    score = ridge_leverage(x.T @ x, 1e-6)
    assert score[3] == 0
    assert torch.allclose(score[4:], torch.tensor([0.5, 0.5]).double(), atol=1e-3)
    assert (score[:3] > 0.99).all()
    assert (ridge_leverage(torch.zeros(3, 3)) == 0).all()


def test_fold_is_least_squares_on_the_inputs():
    x = torch.randn(200, 10).double() @ torch.randn(10, 10).double()
    keep = torch.tensor([7, 2, 3])
    fold = nystrom_fold(x.T @ x, keep, ridge=0.0)
    assert torch.allclose(fold, torch.linalg.lstsq(x[:, keep], x).solution, atol=1e-8)
    assert torch.allclose(fold[:, keep], torch.eye(3).double(), atol=1e-8)


def test_fold_replaces_what_depends_linearly():
    x = torch.randn(200, 4).double()
    x = torch.cat([x, x @ torch.randn(4, 5).double()], dim=1)
    weight = torch.randn(3, 9).double()
    keep = torch.arange(4)
    h = x.T @ x
    folded = weight @ nystrom_fold(h, keep, ridge=0.0).T
    assert torch.allclose(x[:, keep] @ folded.T, x @ weight.T, atol=1e-8)
    assert torch.allclose(nystrom(h, keep), h, atol=1e-8)


def test_best_channels_by_leverage_beat_the_first_ones():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, 6, generator=generator).double()
    x = torch.cat([0.05 * torch.randn(500, 6, generator=generator).double(), x], dim=1)
    h = x.T @ x
    keep = ridge_leverage(h).topk(6).indices
    assert sorted(keep.tolist()) == list(range(6, 12))


def test_approximation_is_never_above_the_moment():
    _, h = layer(2, 14)
    left = h - nystrom(h, torch.tensor([0, 5, 9]))
    assert torch.linalg.eigvalsh(left).min() > -1e-10
    assert left[[0, 5, 9]].abs().max() < 1e-9


def test_batches_and_dead_channels():
    _, h = layer(2, 8)
    h[2], h[:, 2] = 0, 0
    both = nystrom_fold(torch.stack([h, 2 * h]), torch.tensor([2, 5]), 0.01)
    assert torch.allclose(both[0], both[1])
    assert (both[:, 0] == 0).all()


def test_the_same_bits_on_any_number_of_threads(same_bits):
    _, h = layer(2, 300)
    same_bits(lambda: ridge_leverage(h))
    same_bits(lambda: nystrom_fold(h, torch.arange(100)))
    same_bits(lambda: nystrom(h, torch.arange(100)))


def test_bad_input():
    _, h = layer(2, 8)
    for bad in (
        lambda: ridge_leverage(h, 0.0),
        lambda: ridge_leverage(h[:3]),
        lambda: nystrom_fold(h, torch.tensor([8])),
        lambda: nystrom_fold(h, torch.tensor([1, 1])),
        lambda: nystrom_fold(h, torch.zeros(0, dtype=torch.int64)),
        lambda: nystrom_fold(h, torch.tensor([1]), -0.1),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (lambda: ridge_leverage(-h), lambda: nystrom_fold(h / 0, torch.tensor([0]))):
        with pytest.raises(BadWeights):
            bad()
