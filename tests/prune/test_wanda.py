import pytest
import torch

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, InputNorm, Observation, SecondMoment
from laconic.errors import BadWeights, DataError
from laconic.prune.magnitude import Magnitude
from laconic.prune.wanda import Wanda, scores
from tests.prune.layers import layer, lost, stats_of


def test_keeps_by_magnitude_times_norm_within_each_row():
    weight, x = layer()
    value = Wanda(0.5).compress_weight(weight, stats_of(Wanda(), weight, x))
    score = weight.abs() * x.norm(dim=0)
    expected = score >= score.sort(dim=1).values[:, 24:25]
    assert torch.equal(value.dense() != 0, expected)
    assert torch.equal(value.dense(), weight * expected)


def test_equal_inputs_make_it_magnitude():
    weight = torch.randn(8, 16)
    x = torch.eye(16) * 3
    for pattern in ("row", "layer", "2:4"):
        ours = Wanda(pattern=pattern).compress_weight(weight, stats_of(Wanda(), weight, x))
        plain = Magnitude(pattern=pattern).compress_weight(weight, stats_of(Wanda(), weight, x))
        assert torch.equal(ours.dense(), plain.dense())


@pytest.mark.parametrize("pattern", ["row", "layer", "2:4", "1:8"])
def test_loses_less_of_the_outputs_than_magnitude(pattern):
    weight, x = layer()
    stats = stats_of(Wanda(), weight, x)
    ours, theirs = (
        cls(pattern=pattern).compress_weight(weight, stats) for cls in (Wanda, Magnitude)
    )
    assert lost(weight, ours, x) < lost(weight, theirs, x)


def test_inputs_that_are_never_there_go_first():
    weight, x = layer(columns=16)
    x[:, 3:9] = 0
    value = Wanda(0.5).compress_weight(weight, stats_of(Wanda(), weight, x))
    assert (value.dense()[:, 3:9] == 0).all()


def test_second_moments_do_where_there_are_no_norms():
    weight, x = layer()
    moment = LayerStats(
        stats_of(Wanda(), weight, x).layer,
        {SecondMoment(): Collected(SecondMoment()).update(Observation(x, None))},
    )
    assert torch.allclose(moment.input_norm(), stats_of(Wanda(), weight, x).input_norm(), rtol=1e-5)
    assert torch.allclose(moment.input_norm().float(), x.square().mean(dim=0).sqrt(), rtol=1e-4)


def test_what_is_missing_or_damaged():
    weight, x = layer()
    with pytest.raises(DataError, match="layer: there is no input norm"):
        Wanda().compress_weight(weight, LayerStats(stats_of(Wanda(), weight, x).layer))
    x[0, 0] = torch.inf
    with pytest.raises(BadWeights, match="layer: its inputs hold NaN"):
        Wanda().compress_weight(weight, stats_of(Wanda(), weight, x))


def test_scores_follow_the_dtype_of_the_weights():
    assert scores(torch.ones(2, 3), torch.ones(3).double()).dtype == torch.float32
    assert Wanda().wants == (InputNorm(),) and Wanda().pattern == "row"
