import torch

from laconic.prune.magnitude import Magnitude
from laconic.prune.nowag import NoWagPruner
from laconic.prune.wanda import Wanda
from tests.prune.layers import layer, lost, stats_of


def kept(method, weight, x):
    return method.compress_weight(weight, stats_of(method, weight, x)).mask.dense()


def test_sizes_of_rows_hardly_matter():
    weight, x = layer(rows=200)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))
    rows = weight * torch.logspace(-1, 1, 200)[order][:, None]
    same = [
        (kept(method, weight, x) == kept(method, rows, x)).float().mean()
        for method in (NoWagPruner(), Wanda(), Magnitude())
    ]
    assert same[0] > 0.9 and same[1] == 1 and same[2] < 0.7  # Wanda compares within rows


def test_loses_less_than_magnitude():
    weight, x = layer()
    errors = [
        lost(weight, m.compress_weight(weight, stats_of(m, weight, x)), x)
        for m in (NoWagPruner(), Magnitude())
    ]
    assert errors[0] < errors[1]


def test_what_is_kept_is_not_changed():
    weight, x = layer()
    method = NoWagPruner(pattern="2:4")
    value = method.compress_weight(weight, stats_of(method, weight, x))
    keep = value.mask.dense()
    assert torch.equal(value.dense()[keep], weight[keep])
    assert (keep.reshape(24, -1, 4).sum(dim=2) == 2).all()
