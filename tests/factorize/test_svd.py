import pytest
import torch
from torch import nn

import laconic
from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BadWeights, DataError, UsageError
from laconic.factorize.svd import SVD
from laconic.tensors import Dense, LowRank
from tests.prune.layers import layer, lost, stats_of


def factored(weight, x, **settings):
    method = SVD(**settings)
    stats = stats_of(method, weight, x)
    return method.compress_weight(weight, stats), stats.notes


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.8])
def test_loses_less_of_the_outputs_than_the_svd_of_the_weight(keep):
    weight, x = layer(rows=40, columns=48)
    ours, _ = factored(weight, x, keep=keep)
    plain, _ = factored(weight, x, keep=keep, inputs="none")
    assert ours.rank == plain.rank == int(keep * 40 * 48 / 88)
    assert lost(weight, ours, x) < 0.7 * lost(weight, plain, x)
    assert (weight - plain.dense()).norm() < (weight - ours.dense()).norm()


def test_a_weight_of_low_rank_comes_back():
    weight = torch.randn(40, 4) @ torch.randn(4, 30)
    x = torch.randn(64, 30)
    for inputs in ("activation", "none"):
        value, notes = factored(weight, x, rank=4, inputs=inputs)
        assert isinstance(value, LowRank) and not notes
        assert torch.allclose(value.dense(), weight, atol=1e-4)
        assert value.resident_bytes == 4 * 4 * 70


@pytest.mark.parametrize(("shape", "rank"), [((8, 8), 4), ((1, 9), None), ((6, 6), 99)])
def test_factors_that_save_nothing_leave_the_layer_dense(shape, rank):
    weight = torch.randn(shape)
    value, notes = factored(weight, torch.randn(32, shape[1]), rank=rank)
    assert isinstance(value, Dense) and torch.equal(value.dense(), weight)
    assert notes == [
        f"factors of rank {rank or 1} have no fewer parameters than {shape[0]} x {shape[1]}: left dense"
    ]
    weight.zero_()
    assert value.dense().abs().sum() > 0  # a copy


def test_keep_is_not_looked_at_beside_a_rank():
    weight, x = layer()
    assert factored(weight, x, rank=3, keep=0.9)[0].rank == 3


def test_ridge_counts_directions_that_were_never_seen():
    weight, x = layer(rows=40, columns=48, positions=4)
    none, some = (factored(weight, x, rank=8, ridge=r)[0].dense() for r in (0.0, 0.1))
    assert (weight - some).norm() < (weight - none).norm()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be a whole number of at least 1, found 0"),
        ({"rank": 2.0}, "rank must be"),
        ({"rank": True}, "rank must be"),
        ({"keep": 1.0}, "above 0 and below 1, found 1.0"),
        ({"keep": 0}, "above 0"),
        ({"inputs": "outputs"}, "'activation' or 'none', found 'outputs'"),
        ({"ridge": -1}, "ridge must be at least 0"),
        ({"ridge": float("nan")}, "ridge must be"),
    ],
)
def test_settings_that_do_not_hold(settings, message):
    with pytest.raises(UsageError, match=message):
        SVD(**settings)


def test_data_and_weights_that_do_not_hold():
    weight, x = layer()
    with pytest.raises(DataError, match="there is no second moment"):
        SVD().compress_weight(weight, stats_of(SVD(inputs="none"), weight, x))
    weight[0, 0] = torch.inf
    with pytest.raises(BadWeights):
        factored(weight, x, inputs="none")


def test_options_are_shares_and_no_ranks():
    options = SVD(rank=7, ridge=0.1).options()
    assert [o.keep for o in options] == [n / 10 for n in range(9, 0, -1)]
    assert all(o.rank is None and o.ridge == 0.1 for o in options)
    assert SVD().wants == (SecondMoment(),) and SVD(inputs="none").wants == ()


def test_a_model_without_data():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 5))
    expected = model[3].weight.detach().clone()
    report = laconic.compress(model, SVD(keep=0.6, inputs="none")).report
    assert [row["format"] for row in report.layers] == ["rank 3 float32", "rank 2 float32"]
    u, s, vh = torch.linalg.svd(expected, full_matrices=False)
    assert torch.allclose(model[3].weight.dense(), u[:, :2] * s[:2] @ vh[:2], atol=1e-5)


def test_strengths_between_options():
    weak, strong = SVD(ridge=0.1).options()[:2]
    assert weak.between(strong, 0.25) == SVD(keep=0.875, ridge=0.1)
