import itertools

import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.numerics import obs_exact
from laconic.numerics._obs_eliminate import eliminate_blocks_torch, eliminate_torch
from laconic.numerics.absorb import absorb_error
from laconic.numerics.cholesky import inverse, inverse_upper
from laconic.numerics.obs import activation_order, grid_sweep, sparse_sweep
from laconic.numerics.obs_exact import exact_prune, exact_prune_blocks, exact_quantize, kept_after
from tests.numerics.layers import clipped_grid, damped, layer, mixed_layer, output_loss, row_grid


@pytest.fixture(params=["numba", "torch"])
def device(request, monkeypatch):
    """The kernel of this device, and that of the others, run here."""
    if request.param == "torch":
        monkeypatch.setattr(obs_exact, "eliminate_numba", eliminate_torch)
        monkeypatch.setattr(obs_exact, "eliminate_blocks_numba", eliminate_blocks_torch)


def test_each_step_takes_the_weight_whose_removal_costs_least(device):
    """Against refitting all that is left from scratch for every candidate."""
    weight, h = layer(5, 9)
    damp_h = damped(h)
    found = exact_prune(weight, inverse(h))
    for row in range(5):
        w, gone = weight[row].double(), []
        total = 0.0
        for step in range(9):
            costs = {}
            for j in set(range(9)) - set(gone):
                costs[j] = refit(w, damp_h, [*gone, j])[1]
            best = min(costs, key=costs.get)
            assert found.order[row, step] == best
            assert found.loss[row, step].item() == pytest.approx(costs[best] - total, abs=1e-9)
            gone.append(best)
            total = costs[best]


def refit(w, h, gone):
    """The best values where `gone` are zero, and their loss."""
    kept = [j for j in range(len(w)) if j not in gone]
    new = torch.zeros_like(w)
    if kept:
        new[kept] = w[kept] + torch.linalg.solve(h[kept][:, kept], h[kept][:, gone] @ w[gone])
    return new, ((w - new) @ h @ (w - new)).item()


@pytest.mark.parametrize("steps", [0, 1, 30, 64])
def test_values_and_losses_equal_the_closed_form(device, steps):
    weight, h = layer(12, 64)
    found = exact_prune(weight, inverse(h), steps=steps)
    keep = kept_after(found.order, 64, steps)
    assert (keep.sum(dim=1) == 64 - steps).all()
    removed = weight * ~keep
    closed = (weight + absorb_error(removed, h, keep)) * keep
    assert torch.allclose(found.values, closed, atol=1e-8)
    want = output_loss(weight - found.values, damped(h))
    assert torch.allclose(found.loss.sum(dim=1), want, rtol=1e-8)
    assert (found.values[~keep] == 0).all()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_step_takes_the_block_whose_removal_costs_least(device, size):
    weight, h = layer(4, 12)
    damp_h, blocks = damped(h), 12 // size
    found = exact_prune_blocks(weight, inverse(h), size)
    for row in range(4):
        w, gone, total = weight[row].double(), [], 0.0
        for step in range(blocks):
            columns = lambda block: [*range(block * size, block * size + size)]  # noqa: E731
            before = [j for block in gone for j in columns(block)]
            left = set(range(blocks)) - set(gone)
            costs = {b: refit(w, damp_h, before + columns(b))[1] for b in left}
            best = min(costs, key=costs.get)
            assert found.order[row, step] == best
            assert found.loss[row, step].item() == pytest.approx(costs[best] - total, abs=1e-9)
            gone.append(best)
            total = costs[best]


def test_values_after_some_blocks(device):
    weight, h = layer(6, 24)
    found = exact_prune_blocks(weight, inverse(h), 4, 2)
    keep = kept_after(found.order, 6, 2).repeat_interleave(4, dim=1)
    closed = (weight + absorb_error(weight * ~keep, h, keep)) * keep
    assert torch.allclose(found.values, closed, atol=1e-8)
    assert (found.values[~keep] == 0).all()


def test_blocks_of_one_are_weights(device):
    weight, h = layer(5, 10)
    one, other = exact_prune_blocks(weight, inverse(h), 1), exact_prune(weight, inverse(h))
    assert torch.equal(one.order, other.order) and torch.allclose(one.loss, other.loss)


@pytest.mark.parametrize("size, steps", [(0, None), (5, None), (4, 4), (4, -1)])
def test_blocks_that_do_not_fit(size, steps):
    weight, h = layer(2, 12)
    with pytest.raises(UsageError, match="blocks"):
        exact_prune_blocks(weight, inverse(h), size, steps)


@pytest.mark.parametrize("pattern", [(2, 4), (1, 3), (3, 3), (0, 2)])
def test_pattern(device, pattern):
    weight, h = layer(9, 24)
    n, m = pattern
    found = exact_prune(weight, inverse(h), pattern=pattern)
    keep = kept_after(found.order, 24, found.order.shape[1])
    assert (keep.reshape(9, -1, m).sum(dim=2) == n).all()
    assert ((found.values != 0) == keep).all()
    if pattern == (2, 4):
        sweep = sparse_sweep(weight, inverse_upper(h).factor, pattern=pattern)
        assert found.loss.sum() < sweep.loss.sum()


def test_quantized_values_lie_on_the_grid_and_the_losses_are_theirs(device):
    weight, h = layer(12, 40)
    grid = row_grid(weight, 3, 16)
    found = exact_quantize(weight, inverse(h), grid)
    group = torch.arange(40) // 16
    values = (found.codes.double() - grid.zero[:, group]) * grid.scale[:, group].double()
    assert torch.allclose(found.values, values, atol=1e-12)
    want = output_loss(weight - found.values, damped(h))
    assert torch.allclose(found.loss.sum(dim=1), want, rtol=1e-8)
    assert (found.order.sort(dim=1).values == torch.arange(40)).all()


def test_quantize_takes_the_cheapest_first_and_the_others_make_up(device):
    """One row, followed by hand with the best rest from scratch after each step."""
    weight, h = layer(1, 8)
    grid = row_grid(weight, 4)
    found = exact_quantize(weight, inverse(h), grid)
    damp_h, scale = damped(h), grid.scale.item()
    w, left = weight[0].double(), list(range(8))
    for step in range(8):
        inverse_left = torch.linalg.inv(damp_h[left][:, left])
        q = ((w[left] / scale).round().clamp(-7, 7)) * scale
        cost = (w[left] - q) ** 2 / inverse_left.diagonal()
        outside = (w[left] - q).abs() > 0.5001 * scale
        at = (w[left] - q).abs().argmax() if outside.any() else cost.argmin()
        assert found.order[0, step] == left[at]
        w[left] = w[left] - inverse_left[:, at] * ((w[left] - q)[at] / inverse_left[at, at])
        left.pop(at)
    assert torch.allclose(found.values[0], w, atol=1e-6)


def test_weights_outside_of_the_grid_go_first(device):
    weight = torch.tensor([[0.1, 9.0, 0.2, -20.0]])
    grid = row_grid(torch.ones(1, 4), 3)
    found = exact_quantize(weight, torch.eye(4), grid)
    assert found.order[0].tolist()[:2] == [3, 1]
    assert found.codes[0, 3] == 1


def test_masked_weights_stay_zero_and_the_rest_sees_its_own_inverse(device):
    weight, h = layer(6, 20)
    keep = torch.rand(6, 20) < 0.6
    keep[0] = False
    keep[1] = True
    grid = row_grid(weight, 3)
    found = exact_quantize(weight, inverse(h), grid, keep=keep)
    assert (found.values[~keep] == 0).all()
    assert (found.codes[~keep] == 4).all()
    for row in range(6):
        own = keep[row]
        count = int(own.sum())
        assert (found.order[row, count:] == -1).all()
        if count:
            part = torch.linalg.inv(damped(h)[own][:, own])
            alone = exact_quantize(weight[row : row + 1, own], part, row_of(grid, row))
            assert torch.allclose(found.values[row, own], alone.values[0], atol=1e-9)
            assert torch.allclose(found.loss[row, :count], alone.loss[0], rtol=1e-6)


def row_of(grid, row):
    return grid._replace(
        scale=grid.scale[row : row + 1], zero=grid.zero[row : row + 1], group=1 << 20
    )


def test_kernel_and_other_devices_agree(monkeypatch):
    weight, h = layer(21, 48)
    keep = torch.rand(21, 48) < 0.8
    cases = [
        lambda: exact_prune(weight, inverse(h), steps=30),
        lambda: exact_prune(weight, inverse(h), pattern=(2, 4)),
        lambda: exact_quantize(weight, inverse(h), row_grid(weight, 3, 12), keep=keep),
    ]
    ours = [case() for case in cases]
    monkeypatch.setattr(obs_exact, "eliminate_numba", eliminate_torch)
    for found, case in zip(ours, cases):
        other = case()
        assert torch.equal(found.order, other.order)
        assert torch.allclose(found.values, other.values, atol=1e-9)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_errors_fall_from_nearest_over_sweep_to_exact(bits):
    """The order that sheet 012, step 10 reports for clipped grids; wide ones may turn it round."""
    total = dict.fromkeys(("nearest", "sweep", "exact"), 0.0)
    for seed in range(3):
        weight, h = mixed_layer(seed=seed)
        grid = clipped_grid(weight, bits)
        order = activation_order(h)
        values = {
            "nearest": grid.project(weight)[1],
            "sweep": grid_sweep(
                weight[:, order], inverse_upper(h[order][:, order]).factor, grid
            ).values[:, order.argsort()],
            "exact": exact_quantize(weight, inverse(h), grid).values,
        }
        for name, value in values.items():
            total[name] += output_loss(weight - value, h).sum().item()
    assert total["exact"] < total["sweep"] < 0.7 * total["nearest"]


def test_pruning_errors_fall_from_magnitude_over_sweep_to_exact():
    weight, h = layer(48, 64)
    exact = exact_prune(weight, inverse(h), steps=38).loss.sum()
    sweep = sparse_sweep(weight, inverse_upper(h).factor, sparsity=38 / 64).loss.sum()
    small = weight.abs().argsort(dim=1).argsort(dim=1) < 38
    assert exact < 0.8 * sweep < 0.8 * output_loss(weight * small, damped(h)).sum()


def test_the_same_bits_on_any_number_of_threads(same_bits):
    weight, h = layer(30, 40)
    same_bits(lambda: exact_prune(weight, inverse(h)))
    same_bits(lambda: exact_quantize(weight, inverse(h), row_grid(weight, 3)))
    same_bits(lambda: absorb_error(weight, h, weight > 0))


def test_arguments_are_left_alone_and_no_rows(device):
    weight, h = layer(4, 8)
    copy, inv = weight.clone(), inverse(h)
    exact_prune(weight, inv)
    assert torch.equal(weight, copy)
    assert torch.equal(inv, inverse(h))
    grid = row_grid(weight, 3)
    assert exact_prune(weight[:0], inv).order.shape == (0, 8)
    empty = grid._replace(scale=grid.scale[:0], zero=grid.zero[:0])
    assert exact_quantize(weight[:0], inv, empty).codes.shape == (0, 8)
    assert absorb_error(weight[:0].double(), h, weight[:0] > 0).shape == (0, 8)


def test_absorbed_error_is_the_best_answer():
    """Against least squares from scratch, and no answer of any row is better."""
    weight, h = layer(7, 12)
    receivers = torch.rand(7, 12) < 0.5
    receivers[0], receivers[1] = False, True
    change = absorb_error(weight, h, receivers, damp=0.05)
    assert (change[~receivers] == 0).all()
    error = weight.double() * ~receivers
    for row in range(7):
        r, e = receivers[row], ~receivers[row]
        dh = damped(h, 0.05)
        if r.any():
            want = torch.linalg.solve(dh[r][:, r], dh[r][:, e] @ error[row, e])
            assert torch.allclose(change[row, r], want, atol=1e-10)
    best = output_loss(error - change, damped(h, 0.05))
    for _ in range(10):
        other = change + 0.01 * torch.randn(7, 12) * receivers
        assert (output_loss(error - other, damped(h, 0.05)) >= best - 1e-12).all()


def test_absorbing_in_parts_and_at_dead_columns(monkeypatch):
    weight, h = layer(9, 12)
    h[3], h[:, 3] = 0, 0
    receivers = torch.rand(9, 12) < 0.5
    whole = absorb_error(weight, h, receivers)
    assert (whole[:, 3] == 0).all()
    monkeypatch.setattr("laconic.numerics.absorb.BYTES_AT_ONCE", 1)
    assert torch.allclose(whole, absorb_error(weight, h, receivers), atol=1e-12)
    live = torch.arange(12) != 3
    alone = absorb_error(weight[:, live], h[live][:, live], receivers[:, live])
    assert torch.allclose(whole[:, live], alone, atol=1e-12)


def test_kept_after_each_row_its_own_steps():
    order = torch.tensor([[2, 0, 1], [1, 2, 0]])
    keep = kept_after(order, 3, torch.tensor([1, 3]))
    assert keep.tolist() == [[True, True, False], [False, False, False]]
    every = list(itertools.chain(*kept_after(order, 4, 0).tolist()))
    assert all(every)
    assert len(every) == 8


def test_bad_input():
    weight, h = layer(4, 8)
    inv, grid = inverse(h), row_grid(weight, 3)
    for bad in (
        lambda: exact_prune(weight[0], inv),
        lambda: exact_prune(weight, inv[:3]),
        lambda: exact_prune(weight, -inv),
        lambda: exact_prune(weight, inv, steps=9),
        lambda: exact_prune(weight, inv, pattern=(2, 3)),
        lambda: exact_prune(weight, inv, steps=2, pattern=(2, 4)),
        lambda: exact_quantize(weight, inv, grid._replace(group=3)),
        lambda: exact_quantize(weight, inv, grid, keep=weight[:2] > 0),
        lambda: kept_after(torch.tensor([[0, 1]]), 2, 3),
        lambda: absorb_error(weight[0], h, weight > 0),
        lambda: absorb_error(weight, h[:3], weight > 0),
        lambda: absorb_error(weight, h, weight[:3] > 0),
    ):
        with pytest.raises(UsageError):
            bad()
    for bad in (
        lambda: exact_prune(weight * torch.nan, inv),
        lambda: exact_quantize(weight, inv * torch.inf, grid),
        lambda: absorb_error(weight / 0, h, weight > 0),
    ):
        with pytest.raises(BadWeights):
            bad()
