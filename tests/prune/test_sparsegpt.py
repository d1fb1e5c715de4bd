import pytest
import torch
from torch import nn

import laconic
from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BadWeights, DataError, UsageError
from laconic.numerics.cholesky import inverse_upper
from laconic.prune.magnitude import Magnitude
from laconic.prune.sparsegpt import SparseGPT, sweep
from laconic.prune.wanda import Wanda
from tests.prune.layers import layer, lost, stats_of

PATTERNS = ["layer", "2:4", "4:8", "1:4"]


def by_hand(rows, moment, sparsity, run, damp):
    """The algorithm as the paper has it: explicit inverse, one column after the other, float64."""
    upper = inverse_upper(moment, damp).factor
    w, keep = rows.double().clone(), torch.ones(rows.shape, dtype=torch.bool)
    columns = rows.shape[1]
    for j in range(columns):
        if run is None and j % 128 == 0:
            last = min(j + 128, columns)
            cost = (w[:, j:last] / upper.diagonal()[j:last]) ** 2
            zeros = round(sparsity * last * len(w)) - round(sparsity * j * len(w))
            kept = torch.ones(cost.numel(), dtype=torch.bool)
            kept[cost.flatten().argsort(stable=True)[:zeros]] = False
            keep[:, j:last] = kept.reshape(cost.shape)
        if run is not None and j % run[1] == 0:
            last = min(j + run[1], columns)
            cost = (w[:, j:last] / upper.diagonal()[j:last]) ** 2
            order = cost.argsort(dim=1, stable=True)[:, : max(0, last - j - run[0])]
            keep[:, j:last] = keep[:, j:last].scatter(1, order, False)
        e = torch.where(keep[:, j], 0, w[:, j]) / upper[j, j]
        w[:, j] = torch.where(keep[:, j], w[:, j], 0)
        w[:, j + 1 :] -= e[:, None] * upper[j, j + 1 :]
    return w, keep


@pytest.mark.parametrize("columns", [48, 130, 27, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_is_the_algorithm_of_the_paper(pattern, columns):
    weight, x = layer(columns=columns)
    moment = (x.T @ x / len(x)).double()
    n, _, m = pattern.partition(":")
    run = (int(n), int(m)) if m else None
    values, keep, note = sweep(weight, moment, 0.6, pattern, 0.01)
    expected, mask = by_hand(weight, moment, 0.6, run, 0.01)
    assert note == ""
    assert (keep == mask).float().mean() > 0.999  # float32 may decide a near tie otherwise
    if torch.equal(keep, mask):
        assert torch.allclose(values.double(), expected, atol=1e-3)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_loses_less_of_the_outputs_than_wanda_and_magnitude(pattern):
    weight, x = layer()
    errors = [
        lost(weight, m.compress_weight(weight, stats_of(m, weight, x)), x)
        for m in (SparseGPT(pattern=pattern), Wanda(pattern=pattern), Magnitude(pattern=pattern))
    ]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize("shape", [(24, 48), (8, 3, 3, 3), (5, 1), (1, 7)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zeros_are_exact_and_counted(shape, dtype):
    weight = torch.randn(shape).to(dtype)
    x = torch.randn(64, weight.flatten(1).shape[1])
    for sparsity in (0.0, 0.3, 0.5, 0.9):
        method = SparseGPT(sparsity)
        value = method.compress_weight(weight, stats_of(method, weight, x))
        assert int((value.dense() == 0).sum()) == round(sparsity * weight.numel())
        assert value.dtype == dtype and value.shape == weight.shape


def test_short_runs_are_noted_and_keep_their_n():
    weight, x = layer(columns=27)
    weight[:, 24] = 0  # ties with what the run is filled up with, and goes before nothing
    method = SparseGPT(pattern="2:4")
    stats = stats_of(method, weight, x)
    value = method.compress_weight(weight, stats)
    assert stats.notes == ["rows of 27 are no multiple of 4: 2 of the last 3 stay"]
    assert value.format == "float32, 2:4"
    assert (value.mask.dense()[:, 24:].sum(dim=1) == 2).all()


def test_inputs_that_are_never_there_go_first():
    """Their weights count for nothing, however large; those that stay all the same are not lost."""
    weight, x = layer(columns=32)
    x[:, 5:13] = 0
    weight[:, 5:13] *= 100
    method = SparseGPT(0.25)
    assert (method.compress_weight(weight, stats_of(method, weight, x)).dense()[:, 5:13] == 0).all()
    few = SparseGPT(0.125)
    dense = few.compress_weight(weight, stats_of(few, weight, x)).dense()
    assert int((dense == 0).sum()) == 24 * 4
    assert torch.equal(dense.masked_fill(dense == 0, 1), weight.masked_fill(dense == 0, 1))


def test_damping_that_had_to_be_raised_is_noted():
    weight, x = layer(positions=3)
    method = SparseGPT(damp=1e-12)
    stats = stats_of(method, weight, x)
    value = method.compress_weight(weight, stats)
    assert value.dense().isfinite().all()
    assert len(stats.notes) == 1 and stats.notes[0].startswith("damping was raised to ")


def test_the_same_bits_on_any_number_of_threads():
    weight, x = layer(rows=300, columns=150)
    moment = (x.T @ x / len(x)).double()
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(sweep(weight, moment, 0.5, "layer", 0.01)[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


def test_settings_and_data_that_do_not_hold():
    with pytest.raises(UsageError, match="damp must be above 0, found 0"):
        SparseGPT(damp=0)
    with pytest.raises(UsageError, match="must be 'layer', or n:m"):
        SparseGPT(pattern="row")
    weight, x = layer()
    with pytest.raises(DataError, match="there is no second moment"):
        SparseGPT().compress_weight(weight, stats_of(Magnitude(), weight, x))
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        SparseGPT().compress_weight(weight, stats_of(SparseGPT(), weight, x))


def test_options_are_weakest_first():
    options = SparseGPT(damp=0.1).options()
    assert [o.sparsity for o in options] == [n / 10 for n in range(1, 10)]
    assert all(o.damp == 0.1 and o.wants == (SecondMoment(),) for o in options)
    assert [o.pattern for o in SparseGPT(pattern="2:4").options()] == ["3:4", "2:4", "1:4"]


def test_a_model_from_data_to_zeros():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    data = [{"x": torch.randn(1, 3, 8, 8)} for _ in range(6)]
    report = laconic.compress(model, SparseGPT(pattern="2:4"), data).report
    assert [row["format"] for row in report.layers] == ["float32, 2:4"] * 2
    notes = [list(row["notes"]) for row in report.layers]
    assert any("multiple of 4" in note for note in notes[0]) and not any(
        "multiple" in note for note in notes[1]
    )


def test_strengths_between_options():
    weak, strong = SparseGPT().options()[4:6]
    assert weak.between(strong, 0.5) == SparseGPT(0.55)
    assert SparseGPT(pattern="2:4").between(SparseGPT(pattern="1:4"), 0.5) is None
