import pytest
import torch

from laconic.errors import BadWeights, UsageError
from laconic.quantize.requant import REQuant, table
from laconic.quantize.rtn import RTN
from tests.contracts.data import stats_for


def lost(method, weight, stats=None):
    return float((method.compress_weight(weight, stats).dense() - weight).square().mean())


def noise(kind):
    torch.manual_seed(0)
    shape = (64, 1024)
    return (
        torch.randn(shape) if kind == "gauss" else torch.distributions.Laplace(0, 1).sample(shape)
    )


#: Squared errors over those between the extremes, from the sheet of REQuant, per tensor of the same size.
KNOWN = {
    ("gauss", 4): (0.439, 0.407), ("gauss", 6): (0.706, 0.584), ("laplace", 4): (0.306, 0.232),
    ("laplace", 6): (0.590, 0.375), ("laplace", 8): (0.904, 0.467),
}  # fmt: skip


@pytest.mark.parametrize("kind, bits", KNOWN)
def test_gains_of_noise(kind, bits):
    weight = noise(kind)
    extremes = lost(RTN(bits, "tensor", range="minmax"), weight)
    even, bent = (lost(REQuant(bits, "tensor", p), weight) / extremes for p in (1.0, 0.75))
    searched, companded = KNOWN[kind, bits]
    assert even == pytest.approx(searched, rel=0.2) and bent < 1.1 * companded
    assert bent < even < 1


@pytest.mark.parametrize("group", ["row", "tensor", 16, 100])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_best_power_loses_least(bits, group):
    weight = noise("laplace")[:16, :100]
    best = lost(REQuant(bits, group), weight)
    each = [lost(REQuant(bits, group, p), weight) for p in (1.0, 0.85, 0.75, 0.65, 0.5)]
    assert best == pytest.approx(min(each))


def test_even_levels_are_rounding_with_a_finer_search():
    weight = noise("gauss")
    assert lost(REQuant(4, power=1.0), weight) <= 1.002 * lost(RTN(4, "row"), weight)


def test_every_weight_goes_to_its_nearest_level():
    weight = noise("gauss")[:8, :64]
    value = REQuant(3, power=0.5).compress_weight(weight)
    levels = table(3, 0.5) * value.scale.dense().float().reshape(-1, 1)
    nearest = (weight.unsqueeze(2) - levels.unsqueeze(1)).abs().min(dim=2).values
    assert torch.allclose((value.dense() - weight).abs(), nearest, atol=1e-6)


def test_inputs_weigh_errors():
    weight = noise("laplace")[:32, :64]
    method = REQuant(3, inputs="activation")
    stats = stats_for(method, weight)
    for sums in (found.sums for found in stats.collected.values()):
        sums["square"].copy_(torch.logspace(-3, 3, 64))
    heavy = torch.logspace(-3, 3, 64)
    errors = [
        float(((m.compress_weight(weight, stats).dense() - weight).square() * heavy).sum())
        for m in (method, REQuant(3))
    ]
    assert errors[0] < errors[1]


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (1, 1), (0, 4), (3, 0)])
def test_shapes(shape):
    weight = torch.randn(shape)
    assert REQuant().compress_weight(weight).shape == weight.shape


def test_rows_of_zeros():
    weight = torch.randn(4, 8)
    weight[1] = 0
    assert (REQuant().compress_weight(weight).dense()[1] == 0).all()


@pytest.mark.parametrize("settings", [{"bits": 9}, {"group": 0}, {"power": 1.5}, {"inputs": "x"}])
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        REQuant(**settings)


def test_damaged_weights():
    with pytest.raises(BadWeights):
        REQuant().compress_weight(torch.full((2, 2), torch.nan))
