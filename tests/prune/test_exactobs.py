import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.prune.exactobs import ExactOBS, shares
from laconic.prune.magnitude import Magnitude
from laconic.prune.sparsegpt import SparseGPT
from tests.prune.layers import layer, lost, stats_of


def pruned(method, weight, x):
    return method.compress_weight(weight, stats_of(method, weight, x))


@pytest.mark.parametrize("settings", [{"sparsity": 0.6}, {"pattern": "2:4"}, {"pattern": "1:4"}])
def test_loses_less_than_sparsegpt_and_magnitude(settings):
    weight, x = layer()
    errors = [
        lost(weight, pruned(kind(**settings), weight, x), x)
        for kind in (ExactOBS, SparseGPT, Magnitude)
    ]
    assert errors[0] < errors[1] < errors[2]


def test_a_share_over_the_layer_loses_no_more_than_the_same_of_each_row():
    weight, x = layer()
    weight = weight * torch.linspace(0.2, 2, len(weight))[:, None]
    free, even = (pruned(ExactOBS(0.5, pattern), weight, x) for pattern in ("layer", "row"))
    assert free.mask.kept == even.mask.kept == weight.numel() // 2
    assert lost(weight, free, x) < lost(weight, even, x)


@pytest.mark.parametrize("columns", [48, 50, 3])
def test_blocks_go_together(columns):
    weight, x = layer(columns=columns)
    value = pruned(ExactOBS(0.5, "1x4"), weight, x)
    keep = value.mask.dense()
    whole = columns // 4 * 4
    runs = keep[:, :whole].reshape(24, -1, 4)
    assert (runs.all(dim=2) | ~runs.any(dim=2)).all()
    tail = keep[:, whole:]
    assert not tail.numel() or (tail.all(dim=1) | ~tail.any(dim=1)).all()


@pytest.mark.parametrize("pattern", ["layer", "row", "2:4", "1x4"])
@pytest.mark.parametrize("shape", [(24, 48), (8, 3, 3, 3), (5, 1), (1, 7)])
def test_zeros_are_exact(pattern, shape):
    weight = torch.randn(shape).bfloat16()
    x = torch.randn(64, weight.flatten(1).shape[1])
    value = pruned(ExactOBS(pattern=pattern), weight, x)
    assert value.shape == weight.shape and value.dtype == weight.dtype
    assert (value.dense()[~value.mask.dense()] == 0).all()


def test_inputs_that_were_always_zero_go_first():
    weight, x = layer()
    weight[:, :12] *= 100
    x[:, :12] = 0
    keep = pruned(ExactOBS(0.25, "row"), weight, x).mask.dense()
    assert not keep[:, :12].any() and keep[:, 12:].all()


def test_no_zeros_change_nothing():
    weight, x = layer()
    assert torch.equal(pruned(ExactOBS(0.0), weight, x).dense(), weight)


def test_wide_weights_are_swept():
    weight, x = layer()
    method = ExactOBS(0.6, widest=47)
    stats = stats_of(method, weight, x)
    value = method.compress_weight(weight, stats)
    assert torch.equal(value.dense(), pruned(SparseGPT(0.6), weight, x).dense())
    assert any("swept as sparsegpt" in note for note in stats.notes)


@pytest.mark.parametrize("pattern", ["row", "1x4"])
def test_wide_weights_that_no_sweep_can_prune(pattern):
    weight, x = layer()
    with pytest.raises(UsageError, match="layer has 48 columns, more than 10"):
        pruned(ExactOBS(pattern=pattern, widest=10), weight, x)


def test_shares_follow_the_hull():
    losses = torch.tensor([[5.0, 0.0, 9.0], [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]])
    assert shares(losses, 0).tolist() == [0, 0, 0]
    assert shares(losses, 3).tolist() == [0, 3, 0]
    assert shares(losses, 5).tolist() == [2, 3, 0]  # both steps of 2.5 each, before those of 3
    assert shares(losses, 9).tolist() == [3, 3, 3]


@pytest.mark.parametrize(
    "settings", [{"sparsity": 1.0}, {"pattern": "1x0"}, {"pattern": "4x1"}, {"damp": 0.0}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        ExactOBS(**settings)


def test_options_are_of_one_pattern():
    assert {m.pattern for m in ExactOBS(pattern="1x4").options()} == {"1x4"}
    assert ExactOBS(0.2).between(ExactOBS(0.4), 0.5) == ExactOBS(0.3)


def test_damaged_weights():
    weight, x = layer()
    weight[0, 0] = torch.nan
    with pytest.raises(BadWeights):
        pruned(ExactOBS(), weight, x)
