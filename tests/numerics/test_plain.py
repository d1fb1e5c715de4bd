"""The compiled kernels do what their Python does, and never leave their arrays."""

import pytest
import torch

from laconic.numerics import _nearest, _obs_eliminate, _obs_run, kmeans, kmeans_1d, obs_coded
from laconic.numerics.cholesky import inverse, inverse_upper
from laconic.numerics.kmeans_1d import kmeans_1d_exact
from laconic.numerics.obs import grid_sweep, sparse_sweep
from laconic.numerics.obs_coded import coded_sweep, expected_lengths
from laconic.numerics.obs_exact import exact_prune, exact_prune_blocks, exact_quantize
from tests.numerics.layers import layer, row_grid
from tests.plain import check_same


@pytest.mark.parametrize("masked", [False, True])
def test_grid_sweep(masked):
    weight, h = layer(3, 20)
    keep = torch.rand(3, 20) < 0.6 if masked else None
    upper, grid = inverse_upper(h).factor, row_grid(weight, 3, 8)
    check_same(_obs_run, "_fix", lambda: grid_sweep(weight, upper, grid, keep=keep))


@pytest.mark.parametrize("gridded", [False, True])
def test_sparse_sweep(gridded):
    weight, h = layer(3, 20)
    upper, grid = inverse_upper(h).factor, row_grid(weight, 3) if gridded else None
    check_same(_obs_run, "_fix", lambda: sparse_sweep(weight, upper, pattern=(2, 4), grid=grid))


@pytest.mark.parametrize("masked", [False, True])
def test_coded_sweep(masked):
    weight, h = layer(3, 20)
    keep = torch.rand(3, 20) < 0.6 if masked else None
    upper, step, lengths = inverse_upper(h).factor, torch.full((3,), 0.4), expected_lengths(2.0)
    sweep = lambda: coded_sweep(weight, upper, step, lengths, trade=0.3, keep=keep)  # noqa: E731
    check_same(obs_coded, "_fix", sweep)


@pytest.mark.parametrize("masked", [False, True])
def test_exact_sweeps(masked):
    weight, h = layer(3, 12)
    keep = torch.rand(3, 12) < 0.6 if masked else None
    grid = row_grid(weight, 3)._replace(low=3, high=4)  # most lie outside, and go first
    check_same(
        _obs_eliminate, "_eliminate",
        lambda: [
            *exact_prune(weight, inverse(h), steps=7),
            *exact_prune(weight, inverse(h), pattern=(2, 4)),
            *exact_quantize(weight, inverse(h), grid, keep=keep),
        ],
    )  # fmt: skip


def test_exact_blocks():
    weight, h = layer(3, 12)
    check_same(
        _obs_eliminate, "_eliminate_blocks", lambda: exact_prune_blocks(weight, inverse(h), 3)
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_nearest_centroids(weighted):
    points = torch.randn(2, 40, 3)
    weights = torch.rand(2, 40, 3) if weighted else None
    check_same(
        _nearest, "_nearest", lambda: kmeans.kmeans(points, 5, weights=weights, iterations=3)
    )


def test_centroids_on_a_line():
    points, weights = torch.randn(3, 30), torch.rand(3, 30)
    weights[1], weights[2, ::2] = 0, 0
    check_same(kmeans_1d, "_optimum", lambda: kmeans_1d_exact(points, 7, weights=weights))
