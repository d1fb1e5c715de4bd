import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("order", ["natural", "activation"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_loses_less_than_rounding_on_the_same_grid(weight, bits, order, symmetric):
    method = GPTQ(bits, 32, symmetric, order=order)
    stats = stats_for(method, weight, 400)
    ours = method.compress_weight(weight, stats)
    theirs = RTN(bits, 32, symmetric).compress_weight(weight)
    assert torch.equal(ours.scale, theirs.scale)
    assert output_error(weight, ours, stats) < 0.9 * output_error(weight, theirs, stats)


def test_is_rounding_where_inputs_have_nothing_in_common(weight):
    method = GPTQ(3, order="natural")
    stats = stats_for(method, weight)
    (collected,) = stats.collected.values()
    collected.sums["moment"].copy_(torch.eye(96))
    value = method.compress_weight(weight, stats)
    assert torch.equal(value.dense(), RTN(3).compress_weight(weight).dense())


def test_the_order_of_columns_does_not_move_groups(weight):
    values = [GPTQ(4, 16, order=o) for o in ("natural", "activation")]
    a, b = (m.compress_weight(weight, stats_for(m, weight)) for m in values)
    assert torch.equal(a.scale, b.scale) and not torch.equal(a.packed, b.packed)


def test_raised_damping_is_noted(weight):
    method = GPTQ(damp=1e-30)
    stats = stats_for(method, weight, 1)
    method.compress_weight(weight, stats)
    assert any("damping was raised" in note for note in stats.notes)


@pytest.mark.parametrize("settings", [{"order": "random"}, {"damp": 0.0}, {"bits": 9}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        GPTQ(**settings)


def test_damaged_weights(weight):
    weight[0, 0] = torch.inf
    with pytest.raises(BadWeights):
        GPTQ().compress_weight(weight, stats_for(GPTQ(), weight))
