import pytest
import torch

from laconic.allocate import logit_error
from laconic.allocate.fitness import LiveModel
from laconic.allocate.logit_error import LogitError
from laconic.errors import DataError, UsageError
from laconic.models.memory import MemorySource
from laconic.quantize.rtn import RTN
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY


def made(name, **kwargs):
    source = MemorySource(TINY[name].model().float())
    model = LiveModel(source)
    return source, model, LogitError(source, model, data(name, 5), **kwargs)


def coarse(model, name):
    model.install(name, Record(RTN(2).compress_weight(model.weight(name))))


def by_hand(source, model, rows):
    off = energy = 0.0
    with torch.no_grad():
        for row in rows:
            row = {k: v.float() if v.is_floating_point() else v for k, v in row.items()}
            dense = TINY_DENSE(source)(**row).logits
            off += float((model.module(**row).logits - dense).double().square().sum())
            energy += float(dense.double().square().sum())
    return off / energy


def TINY_DENSE(source):
    return LiveModel(source).module


@pytest.mark.parametrize("name", TINY)
def test_is_the_relative_squared_error_of_the_answers(name):
    source, model, error = made(name)
    assert error() < 1e-10
    layer = list(model.layers)[-1]
    coarse(model, layer)
    assert error() == pytest.approx(by_hand(source, model, data(name, 5)), rel=1e-3)


@pytest.mark.parametrize("name", TINY)
def test_blocks_before_are_replayed(name):
    source, model, error = made(name)
    block = source.blocks[1]
    layer = block.layers[0].name
    coarse(model, layer)
    whole = error()
    model.install(layer, None)
    with error.behind(1):
        assert error() < 1e-10
        coarse(model, layer)
        assert error() == pytest.approx(whole, rel=1e-3)
        model.install(layer, None)
    assert error.replays
    assert error() < 1e-10


def test_replayed_blocks_are_not_computed(monkeypatch):
    source, model, error = made("llama")
    with error.behind(1):
        coarse(model, source.blocks[0].layers[0].name)
        assert error() < 1e-10  # nobody looks at block 0
    assert error() > 1e-6


def test_blocks_compute_again_after_an_error():
    source, model, error = made("llama")
    coarse(model, source.blocks[0].layers[0].name)
    before = error()
    with pytest.raises(RuntimeError, match="stop"), error.behind(1):
        raise RuntimeError("stop")
    assert error() == before


def test_takes_as_many_sequences_as_hold_the_predictions():
    assert made("llama", predictions=25)[2].sequences == 2  # of 24 each
    assert made("llama", predictions=24)[2].predictions == 24
    assert made("vit", predictions=3)[2].sequences == 3
    assert made("llama", predictions=10**6)[2].sequences == 5


def test_does_not_depend_on_how_many_go_together(monkeypatch):
    _, model, error = made("vit")
    coarse(model, next(iter(model.layers)))
    together = error()
    monkeypatch.setattr(logit_error, "TOGETHER", 2)
    _, model, error = made("vit")
    coarse(model, next(iter(model.layers)))
    assert error() == pytest.approx(together, rel=1e-4)


def test_refusals(monkeypatch):
    with pytest.raises(UsageError, match="at least 1"):
        made("vit", predictions=0)
    source = MemorySource(TINY["vit"].model().float())
    with pytest.raises(DataError, match="no sequences"):
        LogitError(source, LiveModel(source), [])
    monkeypatch.setattr(logit_error, "LARGEST", 10)
    with pytest.raises(DataError, match="look at fewer"):
        made("vit")
    monkeypatch.undo()
    model = TINY["vit"].model().float()
    model.classifier.weight.data.fill_(torch.nan)
    source = MemorySource(model)
    with pytest.raises(DataError, match="not finite"):
        LogitError(source, LiveModel(source), data("vit", 2))
