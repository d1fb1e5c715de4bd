from dataclasses import replace

import pytest
import torch

from laconic.calibrate.statistics import SecondMoment
from laconic.errors import BadWeights, UsageError
from laconic.probing import output_error
from laconic.quantize.gptq import GPTQ
from laconic.quantize.obc import OBQ
from laconic.tensors import Bitmask
from tests.contracts.data import stats_for


@pytest.fixture
def weight():
    return torch.randn(48, 96, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("symmetric", [True, False])
def test_loses_less_than_gptq_on_the_same_grid(weight, bits, symmetric):
    ours, theirs = (kind(bits, "row", symmetric) for kind in (OBQ, GPTQ))
    stats = stats_for(ours, weight, 400)
    exact, swept = (m.compress_weight(weight, stats) for m in (ours, theirs))
    assert torch.equal(exact.scale, swept.scale)
    assert output_error(weight, exact, stats) < output_error(weight, swept, stats)


def test_each_row_takes_what_loses_least(weight):
    stats = stats_for(OBQ(), weight, 400)
    best, *others = (
        method.compress_weight(weight, stats).dense().double()
        for method in (OBQ(3, "row"), GPTQ(3, "row"), OBQ(3, "row", order="greedy"))
    )
    moment = stats.mean(SecondMoment())
    losses = [((w - weight) @ moment * (w - weight)).sum(dim=1) for w in (best, *others)]
    assert (losses[0] <= torch.minimum(*losses[1:]) * (1 + 1e-9)).all()
    assert losses[0].sum() < min(losses[1].sum(), losses[2].sum())


def test_wide_weights_are_rounded_in_blocks(weight, monkeypatch):
    monkeypatch.setattr("laconic.quantize.obc.BLOCKS", (1, 40))  # the last is ragged
    stats = stats_for(OBQ(), weight, 400)
    greedy = OBQ(3, symmetric=False, order="greedy")
    methods = (GPTQ(3, symmetric=False), replace(greedy, widest=95), replace(greedy, widest=96))
    swept, blocks, whole = (
        output_error(weight, m.compress_weight(weight, stats), stats) for m in methods
    )
    assert whole < blocks < swept
    assert any("in blocks of 40" in note for note in stats.notes)


def test_blocks_of_one_column_are_the_sweep_of_gptq(weight, monkeypatch):
    monkeypatch.setattr("laconic.quantize.obc.BLOCKS", (1,))
    stats = stats_for(OBQ(), weight)
    value = OBQ(widest=0).compress_weight(weight, stats)
    assert torch.equal(value.packed, GPTQ().compress_weight(weight, stats).packed)


def test_zeros_of_a_chain_stay_and_the_rest_is_rounded_among_itself(weight):
    keep = torch.rand(48, 96, generator=torch.Generator().manual_seed(1)) < 0.5
    pruned = weight * keep
    stats = stats_for(OBQ(), pruned, 400)
    stats.mask = Bitmask.of(keep)
    value = OBQ(3, "row").compress_weight(pruned, stats)
    assert (value.dense()[~keep] == 0).all()
    swept = GPTQ(3, "row").compress_weight(pruned, stats)
    assert output_error(pruned, value, stats) < output_error(pruned, swept, stats)


def test_raised_damping_is_noted(weight):
    stats = stats_for(OBQ(), weight, 1)
    OBQ(damp=1e-30).compress_weight(weight, stats)
    assert any("damping was raised" in note for note in stats.notes)


@pytest.mark.parametrize(
    "settings", [{"widest": -1}, {"order": "natural"}, {"damp": 0.0}, {"bits": 9}]
)
def test_settings_out_of_range(settings):
    with pytest.raises(UsageError):
        OBQ(**settings)


def test_damaged_weights(weight):
    weight[0, 0] = torch.inf
    with pytest.raises(BadWeights):
        OBQ().compress_weight(weight, stats_for(OBQ(), weight))
