import pytest
import torch
from torch import nn

from laconic.compression import compress
from laconic.errors import UsageError
from laconic.probing import output_error
from laconic.quantize.ecgptq import ECGPTQ, channel_scale
from laconic.quantize.gptq import GPTQ
from laconic.tensors.combined import Transformed
from tests.contracts.data import stats_for


@pytest.fixture(scope="module")
def weight():
    return torch.randn(256, 256, generator=torch.Generator().manual_seed(0))


def bits_of(value):
    return 8 * value.stored_bytes / value.numel


@pytest.mark.parametrize("bits", [0.7, 1.0, 2.0, 2.3, 3.0, 4.5, 6.0])
@pytest.mark.parametrize("share", ["tensor", "row"])
def test_takes_the_bits_that_are_asked_for(weight, bits, share):
    method = ECGPTQ(bits, share)
    stats = stats_for(method, weight, 1000)
    assert bits_of(method.compress_weight(weight, stats)) == pytest.approx(bits, rel=5e-3)
    assert not stats.notes


def test_a_convolution_and_a_ragged_width():
    for shape in ((64, 33, 3, 3), (90, 701)):
        weight = torch.randn(shape)
        value = ECGPTQ(2.5, columns="yes").compress_weight(weight, stats_for(ECGPTQ(), weight))
        assert value.shape == weight.shape and bits_of(value) == pytest.approx(2.5, rel=5e-3)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_loses_less_than_gptq_at_equal_stored_bits(weight, bits):
    stats = stats_for(GPTQ(), weight, 1000)
    theirs = GPTQ(bits, range="minmax").compress_weight(weight, stats)
    ours = ECGPTQ(bits_of(theirs)).compress_weight(weight, stats)
    assert output_error(weight, ours, stats) < 0.9 * output_error(weight, theirs, stats)


def test_fewer_bits_lose_more(weight):
    stats = stats_for(ECGPTQ(), weight, 1000)
    errors = [
        output_error(weight, ECGPTQ(b).compress_weight(weight, stats), stats) for b in (1, 2, 3, 4)
    ]
    assert errors == sorted(errors, reverse=True)


class TestColumns:
    def spread_out(self, weight):
        """Inputs whose channels differ by a factor of a thousand."""
        stats = stats_for(ECGPTQ(), weight, 1000)
        (collected,) = stats.collected.values()
        size = torch.logspace(-1.5, 1.5, weight.shape[1], dtype=torch.float64)
        collected.sums["moment"].mul_(size).mul_(size[:, None])
        return stats

    def test_steps_of_their_own_are_used_where_they_pay(self, weight):
        even, uneven = stats_for(ECGPTQ(), weight, 1000), self.spread_out(weight)
        next(iter(even.collected.values())).sums["moment"].copy_(torch.eye(256))
        assert not isinstance(ECGPTQ(3).compress_weight(weight, even), Transformed)
        value = ECGPTQ(3).compress_weight(weight, uneven)
        assert isinstance(value, Transformed)
        one = ECGPTQ(3, columns="no").compress_weight(weight, uneven)
        assert output_error(weight, value, uneven) < output_error(weight, one, uneven)
        assert not isinstance(ECGPTQ(1).compress_weight(weight, uneven), Transformed)

    def test_of_convolutions_are_those_of_their_channels(self):
        weight = torch.randn(64, 8, 3, 3)
        value = ECGPTQ(3, columns="yes").compress_weight(weight, stats_for(ECGPTQ(), weight))
        assert value.transform.scale.shape == (8,) and value.shape == weight.shape

    def test_are_few_values_around_one(self):
        scale = channel_scale(torch.logspace(-2, 2, 64), 64)
        assert len(scale.unique()) < 20 and abs(scale.float().log().mean()) < 0.1
        assert (scale.diff() <= 0).all()  # the more an error counts, the finer


def test_a_tensor_smaller_than_its_header_keeps_its_precision():
    weight = torch.randn(4, 6)
    stats = stats_for(ECGPTQ(), weight)
    value = ECGPTQ(3).compress_weight(weight, stats)
    assert output_error(weight, value, stats) < 0.5
    assert any("not 3" in note for note in stats.notes)


def test_nothing_but_zeros(weight):
    value = ECGPTQ().compress_weight(0 * weight, stats_for(ECGPTQ(), weight))
    assert (value.dense() == 0).all() and bits_of(value) < 0.1


def test_between():
    half = ECGPTQ(2, "row").between(ECGPTQ(3, "row"), 0.5)
    assert half == ECGPTQ(2.5, "row")


@pytest.mark.parametrize("budget", ["2.3bit", "3.1bit"])
def test_budgets_are_met_closely(budget):
    model = nn.Sequential(nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 320))
    rows = [{"x": torch.randn(50, 256)} for _ in range(6)]
    report = compress(model, ECGPTQ(), rows, budget=budget).report
    wanted = float(budget.removesuffix("bit"))
    assert 0.99 * wanted < report.bits_per_weight <= wanted


@pytest.mark.parametrize(
    "settings",
    [{"bits": 0.0}, {"bits": 8.5}, {"share": "column"}, {"columns": "maybe"}, {"order": "random"}, {"trade": -1.0}, {"damp": 0.0}],
)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        ECGPTQ(**settings)
