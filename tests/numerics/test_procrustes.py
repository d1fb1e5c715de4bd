import itertools

import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics.procrustes import best_permutation, nearest_orthogonal, orthogonal_procrustes


def rotation(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator).double()).Q


def test_finds_the_rotation_that_was_done():
    source, turn = torch.randn(30, 6).double(), rotation(6)
    assert torch.allclose(orthogonal_procrustes(source, source @ turn), turn, atol=1e-10)


def test_no_rotation_is_better():
    source, target = torch.randn(30, 4), torch.randn(30, 4)
    found = orthogonal_procrustes(source, target)
    best = (source.double() @ found - target).norm()
    assert torch.allclose(found.T @ found, torch.eye(4).double(), atol=1e-12)
    for seed in range(20):
        assert (source.double() @ rotation(4, seed) - target).norm() >= best
        skew = torch.randn(4, 4).double()
        near = found @ torch.linalg.matrix_exp(0.01 * (skew - skew.T))
        assert (source.double() @ near - target).norm() >= best


def test_directions_never_seen_still_give_an_orthogonal_matrix():
    for source in (torch.zeros(5, 3), torch.ones(5, 3), torch.randn(2, 3)):
        found = orthogonal_procrustes(source, source)
        assert torch.allclose(found.T @ found, torch.eye(3).double(), atol=1e-10)
        assert torch.allclose(source.double() @ found, source.double(), atol=1e-6)


def test_batches_and_sums():
    source, target = torch.randn(2, 3, 9, 4), torch.randn(2, 3, 9, 4)
    found = orthogonal_procrustes(source, target)
    assert torch.allclose(found[1, 2], orthogonal_procrustes(source[1, 2], target[1, 2]))
    summed = nearest_orthogonal(source.double().mT @ target.double())
    assert torch.equal(found, summed)


def test_permutation_is_the_best_of_all():
    similarity = torch.randn(6, 6)
    found = best_permutation(similarity)
    total = max(
        sum(similarity[i, p[i]].item() for i in range(6)) for p in itertools.permutations(range(6))
    )
    assert similarity[torch.arange(6), found].sum().item() == pytest.approx(total, rel=1e-6)
    assert sorted(found.tolist()) == list(range(6))


def test_permutation_undoes_one():
    units, order = torch.randn(20, 50), torch.randperm(20)
    assert torch.equal(best_permutation(units[order] @ units.T), order)
    batch = torch.stack([units[order] @ units.T, units @ units.T])
    assert torch.equal(best_permutation(batch), torch.stack([order, torch.arange(20)]))
    assert best_permutation(torch.zeros(0, 3, 3)).shape == (0, 3)


def test_the_same_bits_on_any_number_of_threads(same_bits):
    source, target = torch.randn(400, 150), torch.randn(400, 150)
    same_bits(lambda: orthogonal_procrustes(source, target))


def test_bad_input():
    for bad in (
        lambda: orthogonal_procrustes(torch.ones(3, 2), torch.ones(3, 3)),
        lambda: orthogonal_procrustes(torch.ones(3), torch.ones(3)),
        lambda: nearest_orthogonal(torch.ones(3, 2)),
        lambda: best_permutation(torch.ones(3, 2)),
    ):
        with pytest.raises(UsageError):
            bad()
    nan = torch.full((3, 3), torch.nan)
    for bad in (
        lambda: orthogonal_procrustes(nan, nan),
        lambda: nearest_orthogonal(nan),
        lambda: best_permutation(nan),
    ):
        with pytest.raises(BadWeights):
            bad()
