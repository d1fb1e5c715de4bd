import copy
from functools import cache, partial

import pytest
import torch
from torch import nn

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.runner import run_layers
from laconic.errors import DataError, UsageError
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.sink import NoSink
from laconic.tensors import IntQuantizer
from laconic.tensors.stored import Record
from laconic.tune.adapters import add_lora, merge_lora
from laconic.tune.blocks import fit_block
from laconic.tune.subsets import train_only
from laconic.tune.tunable import Tunable
from tests.models.tiny import VOCABULARY


def block():
    """A block whose norm was bent, its inputs, and what it gave before."""
    torch.manual_seed(3)
    module = nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.LayerNorm(12), nn.Dropout(0.5), nn.Linear(12, 6)).eval()  # fmt: skip
    good = copy.deepcopy(module)
    nn.init.uniform_(module[2].weight, 0.5, 1.5)
    nn.init.uniform_(module[2].bias, -0.5, 0.5)
    x = torch.randn(20, 1, 9, 6)
    return module, (lambda i: module(x[i])), (lambda i: (good(x[i]), None))


def fit(rate=0.02, sequences=range(20), **settings):
    module, output, target = block()
    train_only(module, "norm")
    settings = {"epochs": 20, "batch": 4} | settings
    return module, fit_block(module, output, target, sequences, rate=rate, **settings)


def test_finds_the_norm_again():
    module, found = fit()
    assert found.after < 0.05 * found.before and not found.diverged
    assert torch.allclose(module[2].weight, torch.ones(12), atol=0.15)
    assert not module[3].training


def test_same_seed_same_bits():
    one, two, other = (fit(seed=seed)[0][2].weight for seed in (1, 1, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_never_worse_than_the_start():
    module, found = fit(rate=30.0, patience=2)
    assert found.after == found.before and found.epochs == 2
    assert torch.equal(module[2].weight, block()[0][2].weight)


@pytest.mark.parametrize("when", [0, 3])
def test_divergence_leaves_the_best(when):
    module, output, target = block()
    train_only(module, "norm")
    calls = []

    def failing(i):
        if torch.is_grad_enabled():
            calls.append(i)
        return output(i) * (torch.nan if len(calls) > 16 * when else 1.0)

    start = module[2].weight.clone()
    found = fit_block(module, failing, target, range(20), rate=0.02, epochs=20, batch=4)
    assert "loss is nan" in found.diverged and found.epochs == when
    assert torch.equal(module[2].weight, start) == (when == 0)
    assert found.after <= found.before


def test_parameters_from_anywhere_and_no_held_out_part():
    module, output, target = block()
    module.requires_grad_(False)
    shift = torch.zeros(6, requires_grad=True)
    before = {n: v.clone() for n, v in module.state_dict().items()}
    found = fit_block(
        module, lambda i: output(i) + shift, target, [3], parameters=[shift], rate=0.05, epochs=40
    )
    assert found.after < found.before and shift.abs().sum() > 0
    assert all(torch.equal(before[n], v) for n, v in module.state_dict().items())


def test_bad_input():
    module, output, target = block()
    with pytest.raises(DataError, match="no sequences"):
        fit_block(module, output, target, [])
    with pytest.raises(DataError, match="would be held out"):
        fit_block(module, output, target, [1, 2], held_out=0.9)
    with pytest.raises(UsageError, match="held_out"):
        fit_block(module, output, target, [1, 2], held_out=1.0)
    with pytest.raises(UsageError, match="nothing to fit"):
        fit_block(module.requires_grad_(False), output, target, [1, 2])


class Tuned:
    """A step of a real run: 2-bit weights, then what `prepare` sets free is fitted."""

    wants, changes_inputs, follows_dense = (), False, False

    def __init__(self, prepare, settle=lambda live: None):
        self.prepare, self.settle, self.fits = prepare, settle, []

    def revise_block(self, view):
        dense = copy.deepcopy(view.live.module)
        for layer in view.live.layers:
            value = IntQuantizer(bits=2, group=16).quantize(view.live.weight(layer))
            view.live.install(layer, Record(value))
        free = self.prepare(view.live)
        target = cache(partial(view.target, dense=dense))
        fit = fit_block(
            view.live.module,
            view.output,
            target,
            view.sequences,
            parameters=free,
            rate=3e-3,
            epochs=6,
        )
        self.settle(view.live)
        self.fits.append((fit, _error(view, dense)))


@torch.no_grad()
def _error(view, dense):
    goal = torch.stack([view.target(i, dense) for i in view.sequences])
    found = torch.stack([view.output(i) for i in view.sequences])
    return ((found - goal).square().sum() / goal.square().sum()).item()


def _norms(live):
    return train_only(live.module, "norm")


def _scales(live):
    free = []
    for layer in live.layers:
        value = Tunable.of(live.record(layer).weight, ["scale"])
        live.install(layer, Record(value))
        free += value.values.values()
    return free


def _settle_scales(live):
    for layer in live.layers:
        live.install(layer, Record(live.record(layer).weight.settled()))


def _adapters(live):
    return [f for adapter in add_lora(live.module, rank=2).values() for f in adapter.factors()]


@pytest.mark.parametrize(
    "step",
    [
        lambda: Tuned(_norms), lambda: Tuned(_scales, _settle_scales),
        lambda: Tuned(_adapters, lambda live: merge_lora(live.module)),
    ],
    ids=["norms", "scales", "adapters"],
)  # fmt: skip
def test_blocks_of_a_real_run(tiny_models, step):
    ids = torch.randint(4, VOCABULARY, (30, 1, 12), generator=torch.Generator().manual_seed(1))
    data = Calibration(tuple({"input_ids": row} for row in ids), None, range(30), range(0))
    tuned = step()
    run_layers(HuggingFaceSource(tiny_models["llama"]), NoSink(), [tuned], calibration=data)
    assert len(tuned.fits) == 2
    for fit, error in tuned.fits:
        assert fit.after < 0.98 * fit.before and error < fit.before
