import pytest
import torch
from torch import nn

import laconic
from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import BadWeights, UsageError
from laconic.models.layout import Layer
from laconic.prune.magnitude import Magnitude
from laconic.tensors.stored import encode


def nothing(weight):
    return LayerStats(Layer("layer", "layer", "weight", weight.shape, "linear"))


def pruned(weight, **settings):
    return Magnitude(**settings).compress_weight(weight, nothing(weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pattern", ["layer", "row", "2:4"])
def test_what_stays_is_not_changed_and_is_larger(pattern, dtype):
    weight = torch.randn(16, 64).to(dtype)
    dense = pruned(weight, pattern=pattern).dense()
    kept = dense != 0
    assert torch.equal(dense[kept], weight[kept]) and int(kept.sum()) == 512
    for row in range(16) if pattern == "row" else ():
        assert weight[row][kept[row]].abs().min() >= weight[row][~kept[row]].abs().max()
    if pattern == "layer":
        assert weight[kept].abs().min() >= weight[~kept].abs().max()


def test_convolutions_are_compared_over_all_their_weights():
    weight = torch.randn(8, 4, 3, 3)
    assert (
        (pruned(weight, sparsity=0.75, pattern="row").dense() != 0).flatten(1).sum(1) == 9
    ).all()


def test_short_runs_are_noted():
    weight = torch.randn(4, 3, 3, 3)
    stats = nothing(weight)
    value = Magnitude(pattern="2:4").compress_weight(weight, stats)
    assert stats.notes == ["rows of 27 are no multiple of 4: 2 of the last 3 stay"]
    assert value.format == "float32, 2:4" and int((value.dense() != 0).sum()) == 4 * 14


def test_zeros_take_the_entropy_of_their_places():
    """Values are noise here: 90 % of them are gone, and where they were takes H(0.9) bits each."""
    weight = torch.randn(256, 512)
    full, sparse = (
        len(encode(pruned(weight, sparsity=0.0))),
        len(encode(pruned(weight, sparsity=0.9))),
    )
    entropy = -(0.9 * torch.tensor(0.9).log2() + 0.1 * torch.tensor(0.1).log2())
    assert sparse < 0.1 * full + 1.02 * float(entropy) * weight.numel() / 8 + 500


def test_settings_and_weights_that_do_not_hold():
    with pytest.raises(UsageError, match="below 1"):
        Magnitude(1.0)
    with pytest.raises(BadWeights, match="NaN"):
        pruned(torch.full((2, 2), float("nan")))


def test_options_are_weakest_first():
    assert [o.sparsity for o in Magnitude().options()] == [n / 10 for n in range(1, 10)]
    assert [o.pattern for o in Magnitude(pattern="2:4").options()] == ["3:4", "2:4", "1:4"]
    sizes = [
        len(encode(pruned(torch.randn(64, 256), **o.settings()))) for o in Magnitude().options()
    ]
    assert sizes == sorted(sizes, reverse=True)


def test_a_budget_spreads_zeros_over_layers():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    model[0].weight.data *= torch.rand(64, 64) < 0.3  # has zeros already, which are free
    report = laconic.compress(model, Magnitude(), budget="50%").report
    first, second = (model[i].weight.mask.count for i in (0, 2))
    assert report.kept <= 0.5 and first < second


def test_strengths_between_options():
    weak, strong = Magnitude().options()[4:6]
    assert weak.between(strong, 0.5) == Magnitude(0.55)
    assert Magnitude(pattern="2:4").between(Magnitude(pattern="1:4"), 0.5) is None
