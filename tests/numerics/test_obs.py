import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics import _obs_run
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.obs import (
    UniformGrid,
    activation_order,
    block_sweep,
    grid_sweep,
    ordered_factor,
    sparse_sweep,
    sweep_loss,
)
from tests.numerics.layers import brute_force, damped, layer, output_loss, row_grid


def by_grid(grid):
    """A callback that rounds to a grid one column at a time."""

    def quantize(columns, first):
        g = first // grid.group
        part = UniformGrid(grid.scale[:, g : g + 1], grid.zero[:, g : g + 1], 1 << 20, *grid[3:])
        return part.project(columns)[1]

    return quantize


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_sweep_is_the_one_that_finds_the_best_rest_from_scratch(bits):
    weight, h = layer()
    grid = row_grid(weight, bits)
    found = grid_sweep(weight, inverse_upper(h).factor, grid)
    slow = brute_force(weight, damped(h), by_grid(grid))
    assert torch.allclose(found.values.double(), slow, atol=1e-5)


@pytest.mark.parametrize("group", [None, 32, 100])
@pytest.mark.parametrize("masked", [False, True])
def test_kernel_callback_and_other_devices_agree(monkeypatch, group, masked):
    """Values bit for bit, over several blocks of columns and parts of rows."""
    weight, h = layer(150, 300)
    upper = inverse_upper(h).factor
    grid = row_grid(weight, 3, group)
    keep = torch.rand(weight.shape) < 0.5 if masked else None
    found = grid_sweep(weight, upper, grid, keep=keep)
    quantize = by_grid(grid)

    def callback(columns, first):
        q = quantize(columns, first)
        return torch.where(keep[:, first : first + 1], q, 0) if masked else q

    slow = block_sweep(weight, upper, callback)
    assert torch.equal(found.values, slow.values)
    assert torch.allclose(found.loss, slow.loss, rtol=1e-12)
    monkeypatch.setattr(_obs_run, "_fix_numba", _obs_run._fix_torch)
    other = grid_sweep(weight, upper, grid, keep=keep)
    assert all(torch.equal(getattr(found, k), getattr(other, k)) for k in ("values", "codes"))


def test_loss_is_the_squared_output_error():
    weight, h = layer(150, 300)
    upper = inverse_upper(h).factor
    grid = row_grid(weight, 3)
    for found in (
        grid_sweep(weight, upper, grid, keep=torch.rand(weight.shape) < 0.7),
        block_sweep(weight, upper, lambda w, _: grid_round(w), dim=4),
        block_sweep(weight, upper, lambda w, _: grid_round(w), dim=4, exact=False),
        sparse_sweep(weight, upper, sparsity=0.4),
        sparse_sweep(weight, upper, pattern=(2, 4), grid=row_grid(weight, 4)),
    ):
        want = output_loss(weight - found.values, damped(h))
        assert torch.allclose(found.loss, want, rtol=1e-3)
        assert torch.allclose(sweep_loss(weight - found.values, upper), want, rtol=1e-9)


def grid_round(x):
    return (x * 2).round() / 2


def test_codes_are_those_of_the_values():
    weight, h = layer()
    grid = row_grid(weight, 3, 10)
    found = grid_sweep(weight, inverse_upper(h).factor, grid)
    column_group = torch.arange(24) // 10
    values = (found.codes.float() - grid.zero[:, column_group]) * grid.scale[:, column_group]
    assert torch.equal(values, found.values)
    assert found.codes.min() >= 1
    assert found.codes.max() <= 7
    asymmetric = UniformGrid(torch.ones(1, 1), torch.full((1, 1), 5.0), 24, 0, 15)
    codes, values = asymmetric.project(torch.tensor([[-9.0, 0.4, 2.5, 30.0]]))
    assert codes.tolist() == [[0, 5, 7, 15]]
    assert values.tolist() == [[-5.0, 0.0, 2.0, 10.0]]


def test_without_correlation_it_is_rounding_to_nearest():
    weight, _ = layer()
    grid = row_grid(weight, 4)
    found = grid_sweep(weight, torch.eye(24), grid)
    assert torch.equal(found.values, grid.project(weight)[1])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loses_less_than_rounding_to_nearest(bits, seed):
    weight, h = layer(48, 64, seed=seed)
    grid = row_grid(weight, bits)
    ours = output_loss(weight - grid_sweep(weight, inverse_upper(h).factor, grid).values, h)
    theirs = output_loss(weight - grid.project(weight)[1], h)
    assert ours.sum() < 0.7 * theirs.sum()


def test_zeros_are_zeros_and_made_up_for():
    weight, h = layer(20, 140)
    upper, grid = inverse_upper(h).factor, row_grid(weight, 4)
    keep = torch.rand(weight.shape) < 0.5
    found = grid_sweep(weight, upper, grid, keep=keep)
    assert (found.values[~keep] == 0).all()
    assert (found.codes[~keep] == 8).all()
    masked = output_loss(weight - grid.project(weight * keep)[1] * keep, h)
    assert output_loss(weight - found.values, h).sum() < masked.sum()


def test_refit_sees_the_columns_as_they_are_when_the_sweep_gets_there():
    weight, h = layer(6, 300)
    upper = inverse_upper(h).factor
    start = row_grid(weight, 3, 80)
    seen = {}

    def refit(columns, first):
        seen[first] = columns.clone()
        grid = row_grid(columns, 3)
        return grid.scale, grid.zero

    found = grid_sweep(weight, upper, start, refit=refit)
    assert [c.shape[1] for c in seen.values()] == [80, 80, 80, 60]
    assert torch.equal(seen[0], weight[:, :80])
    again = grid_sweep(weight, upper, found.grid)
    assert torch.allclose(again.values, found.values, atol=1e-6)
    # what a fixed grid leaves in front of a group is what refit is shown
    errors = torch.linalg.solve_triangular(
        upper.float(), weight - found.values, upper=True, left=False
    )
    moved = weight[:, 160:240] - errors[:, :160] @ upper.float()[:160, 160:240]
    assert torch.allclose(seen[160], moved, atol=1e-4)
    assert torch.equal(start.scale, row_grid(weight, 3, 80).scale)


@pytest.mark.parametrize("dim", [2, 4, 5])
def test_several_columns_at_once_are_the_exact_step(dim):
    """Fixing D columns and finding the best rest from scratch."""
    weight, h = layer(8, 20)
    found = block_sweep(weight, inverse_upper(h).factor, lambda w, _: grid_round(w), dim=dim)
    w, inverse_h = weight.double(), damped(h)
    for j in range(0, 20, dim):
        error = torch.zeros(8, 20, dtype=torch.float64)
        error[:, j : j + dim] = grid_round(w[:, j : j + dim]) - w[:, j : j + dim]
        w = w + error
        rest = slice(j + dim, None)
        if j + dim < 20:
            w[:, rest] -= torch.linalg.solve(
                inverse_h[rest, rest], (error @ inverse_h)[:, rest].T
            ).T
    assert torch.allclose(found.values.double(), w, atol=1e-5)


def test_exact_step_loses_no_more_than_the_diagonal_one():
    """With a nearest-centroid callback that minimises each one's own cost (sheet 114, step 5)."""
    losses = {True: 0.0, False: 0.0}
    for seed in range(4):
        weight, h = layer(64, 128, seed=seed)
        upper = inverse_upper(h).factor
        for exact in losses:
            quantize = nearest_of_256(upper, exact, seed)
            found = block_sweep(weight, upper, quantize, dim=4, exact=exact)
            losses[exact] += found.loss.sum().item()
    assert losses[True] < losses[False]


def nearest_of_256(upper, exact, seed):
    centroids = torch.randn(256, 4, generator=torch.Generator().manual_seed(seed))

    def quantize(columns, first):
        block = upper[first : first + 4, first : first + 4]
        white = torch.linalg.inv(block if exact else torch.diag(block.diagonal())).float()
        return centroids[torch.cdist(columns @ white, centroids @ white).argmin(dim=1)]

    return quantize


def test_enter_comes_at_each_band_with_the_columns_up_to_date():
    weight, h = layer(6, 360)
    seen = []
    found = block_sweep(
        weight, inverse_upper(h).factor, lambda w, _: grid_round(w), dim=4, band=180,
        enter=lambda columns, first: seen.append((first, columns.clone())),
    )  # fmt: skip
    assert [(first, c.shape) for first, c in seen] == [(0, (6, 180)), (180, (6, 180))]
    assert torch.equal(seen[0][1], weight[:, :180])
    assert torch.equal(grid_round(seen[1][1][:, :4]), found.values[:, 180:184])


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 1.0])
def test_sparsity_is_met_exactly(sparsity):
    weight, h = layer(7, 300)
    found = sparse_sweep(weight, inverse_upper(h).factor, sparsity=sparsity)
    assert (~found.keep).sum() == round(sparsity * 2100)
    assert (found.values[~found.keep] == 0).all()
    if sparsity == 0:
        assert torch.equal(found.values, weight)


def test_sparse_sweep_of_one_block_prunes_the_least_saliency_first():
    weight, h = layer(5, 40)
    upper = inverse_upper(h).factor.float()
    score = (weight / upper.diagonal()).square()
    found = sparse_sweep(weight, upper, sparsity=0.25)
    assert score[~found.keep].max() <= score[found.keep].min()
    slow = brute_force(weight, damped(h), lambda w, j: w * found.keep[:, j : j + 1])
    assert torch.allclose(found.values.double(), slow, atol=1e-5)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 3), (4, 4), (0, 2), (5, 150)])
@pytest.mark.parametrize("gridded", [False, True])
def test_pattern_is_kept_and_other_devices_agree(monkeypatch, pattern, gridded):
    weight, h = layer(70, 300)
    upper = inverse_upper(h).factor
    grid = row_grid(weight, 4, 64) if gridded else None
    found = sparse_sweep(weight, upper, pattern=pattern, grid=grid)
    n, m = pattern
    assert (found.keep.reshape(70, -1, m).sum(dim=2) == n).all()
    assert (found.values[~found.keep] == 0).all()
    monkeypatch.setattr(_obs_run, "_fix_numba", _obs_run._fix_torch)
    other = sparse_sweep(weight, upper, pattern=pattern, grid=grid)
    assert torch.equal(found.keep, other.keep)
    assert torch.equal(found.values, other.values)


def test_pattern_is_chosen_from_the_weights_as_moved():
    weight, h = layer(64, 96)
    upper = inverse_upper(h).factor
    late = sparse_sweep(weight, upper, pattern=(2, 4))
    score = (weight / upper.diagonal()).square().reshape(64, 24, 4)
    early = score >= score.topk(2, dim=2).values[..., 1:]
    fixed = block_sweep(weight, upper, lambda w, j: w * early.reshape(64, 96)[:, j : j + 1])
    assert late.loss.sum() < fixed.loss.sum()


def test_sparse_sweep_loses_less_than_zeroing_by_magnitude():
    weight, h = layer(48, 64)
    found = sparse_sweep(weight, inverse_upper(h).factor, sparsity=0.5)
    small = weight.abs() < weight.abs().median()
    magnitude = output_loss(weight * small, h).sum()
    assert output_loss(weight - found.values, h).sum() < 0.6 * magnitude


def test_activation_order_helps_where_one_channel_dominates():
    weight, h = layer(48, 64)
    channel = torch.logspace(-1.5, 1.5, 64, dtype=torch.float64)
    h = h * channel * channel.unsqueeze(1)
    grid = row_grid(weight, 3)
    order = activation_order(h)
    assert (h.diagonal()[order].diff() <= 0).all()
    plain = grid_sweep(weight, inverse_upper(h).factor, grid).values
    ordered = grid_sweep(weight[:, order], inverse_upper(h[order][:, order]).factor, grid).values
    ordered = ordered[:, order.argsort()]
    assert output_loss(weight - ordered, h).sum() < output_loss(weight - plain, h).sum()


@pytest.mark.parametrize("order", ["activation", "given"])
def test_the_factor_is_that_of_the_ordered_moment(order):
    _, h = layer(4, 24)
    columns, factor = ordered_factor(h, order, 0.01)
    assert torch.equal(columns, activation_order(h) if order == "activation" else torch.arange(24))
    expected = inverse_upper(h[columns][:, columns], 0.01).factor
    assert torch.equal(factor.factor, expected)


def test_the_same_bits_on_any_number_of_threads(same_bits):
    weight, h = layer(200, 300)
    upper, grid = inverse_upper(h).factor, row_grid(weight, 3)
    same_bits(lambda: grid_sweep(weight, upper, grid))
    same_bits(lambda: sparse_sweep(weight, upper, pattern=(2, 4)))
    same_bits(lambda: block_sweep(weight, upper, lambda w, _: grid_round(w), dim=4))


def test_arguments_are_left_alone():
    weight, h = layer(10, 20)
    upper, grid = inverse_upper(h).factor, row_grid(weight, 3)
    copies = [t.clone() for t in (weight, upper, grid.scale)]
    grid_sweep(weight, upper, grid, refit=lambda c, _: (torch.ones(10, 1), torch.ones(10, 1)))
    sparse_sweep(weight, upper, sparsity=0.5)
    block_sweep(weight, upper, lambda w, _: w.zero_(), enter=lambda w, _: w.zero_())
    assert all(torch.equal(a, b) for a, b in zip(copies, (weight, upper, grid.scale)))
    block_sweep(weight.requires_grad_(), upper, lambda w, _: w, exact=False)


def test_no_rows():
    upper = torch.eye(8)
    grid = UniformGrid(torch.ones(1, 1), torch.ones(1, 1), 8, 0, 3)
    assert grid_sweep(torch.zeros(0, 8), upper, grid).codes.shape == (0, 8)
    assert sparse_sweep(torch.zeros(0, 8), upper, sparsity=0.5).keep.shape == (0, 8)
    assert block_sweep(torch.zeros(0, 8), upper, lambda w, _: w).values.shape == (0, 8)


def test_bad_input():
    weight, h = layer()
    upper, grid = inverse_upper(h).factor, row_grid(weight, 3)
    for bad in (
        lambda: grid_sweep(weight[0], upper, grid),
        lambda: grid_sweep(weight, upper[:3, :3], grid),
        lambda: grid_sweep(weight, -upper, grid),
        lambda: grid_sweep(weight, upper, grid._replace(group=10)),
        lambda: grid_sweep(weight, upper, grid._replace(high=256)),
        lambda: grid_sweep(weight, upper, grid._replace(scale=grid.scale * 0)),
        lambda: grid_sweep(weight, upper, grid._replace(scale=grid.scale * torch.nan)),
        lambda: grid_sweep(weight, upper, grid._replace(zero=grid.zero[:3])),
        lambda: grid_sweep(weight, upper, grid, keep=weight[:3] > 0),
        lambda: grid_sweep(weight, upper, grid, refit=lambda c, _: (0 * grid.scale, grid.zero)),
        lambda: sparse_sweep(weight, upper),
        lambda: sparse_sweep(weight, upper, sparsity=0.5, pattern=(2, 4)),
        lambda: sparse_sweep(weight, upper, sparsity=1.5),
        lambda: sparse_sweep(weight, upper, pattern=(2, 5)),
        lambda: sparse_sweep(weight, upper, pattern=(5, 4)),
        lambda: block_sweep(weight, upper, lambda w, _: w, dim=5),
        lambda: block_sweep(weight, upper, lambda w, _: w, dim=4, band=6),
        lambda: block_sweep(weight, upper, lambda w, _: w[:, :1], dim=2),
        lambda: activation_order(h[:3]),
        lambda: sweep_loss(weight, upper[:3]),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (weight * torch.nan, weight / 0):
        with pytest.raises(BadWeights):
            grid_sweep(bad, upper, grid)
