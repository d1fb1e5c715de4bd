import pytest
import torch

from laconic.calibrate import label_free
from laconic.calibrate.calibration import Calibration
from laconic.calibrate.label_free import label_free_hessian
from laconic.errors import DataError, UsageError
from laconic.models.memory import MemorySource
from tests.calibrate.test_collect import sequences
from tests.models.tiny import TINY


def calibration(name, fitted=2):
    inputs = tuple(sequences(name, 3))
    return Calibration(inputs, None, range(fitted), range(fitted, 3))


def expected(model, parameter, inputs):
    """The mean over all answers, one by one, of the squared derivative: what random directions estimate."""
    total = 0
    answers = model(**inputs).logits.flatten()
    for answer in answers:
        (gradient,) = torch.autograd.grad(answer, parameter, retain_graph=True)
        total = total + gradient.square()
    return total / len(answers)


@pytest.mark.parametrize("name", ["vit", "bert", "gpt2"])
def test_is_the_mean_square_of_derivatives(name):
    model, data = TINY[name].model().float(), calibration(name, fitted=1)
    model_small = name != "gpt2"
    source = MemorySource(model)
    found = label_free_hessian(source, data, probes=400)
    layer = source.blocks[0].layers[-1]
    if model_small:
        weight = model.get_parameter(layer.parameter)
        truth = expected(model, weight, data.inputs[0])
        assert float(found[layer.name].sum() / truth.sum()) == pytest.approx(1, abs=0.25)
        close = torch.corrcoef(torch.stack([found[layer.name].flatten(), truth.flatten()]))[0, 1]
        assert close > 0.9
    assert all(found[la.name].shape == la.shape for b in source.blocks for la in b.layers)
    assert all((h >= 0).all() and (h > 0).any() for h in found.values())
    assert all(p.grad is None for p in model.parameters())


def test_copies_together_are_the_same_as_one_by_one(monkeypatch):
    data, source = calibration("vit"), MemorySource(TINY["vit"].model().float())
    together = label_free_hessian(source, data, probes=6)
    monkeypatch.setattr(label_free, "AT_ONCE", 1)
    alone = label_free_hessian(source, data, probes=6)
    for name, h in together.items():
        torch.testing.assert_close(h, alone[name], rtol=1e-3, atol=1e-6 * float(h.max()))


def test_stops_when_nothing_changes(monkeypatch):
    data, source = calibration("vit"), MemorySource(TINY["vit"].model().float())
    short = label_free_hessian(source, data, probes=16)
    monkeypatch.setattr(label_free, "SETTLED", 1e9)
    assert_equal(short, label_free_hessian(source, data, probes=80))


def test_does_not_depend_on_threads():
    data, source = calibration("gpt2"), MemorySource(TINY["gpt2"].model().float())
    one = label_free_hessian(source, data, probes=9)
    torch.set_num_threads(2)
    try:
        assert_equal(one, label_free_hessian(source, data, probes=9))
    finally:
        torch.set_num_threads(1)


def assert_equal(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_experts():
    """Layers of experts see positions of a sequence, and those that see none have zeros."""
    data, source = calibration("qwen3_moe"), MemorySource(TINY["qwen3_moe"].model().float())
    found = label_free_hessian(source, data, probes=3)
    layers = [la for b in source.blocks for la in b.layers]
    assert set(found) == {la.name for la in layers}
    assert sum(bool((h > 0).any()) for h in found.values()) > len(layers) / 2


def test_refusals():
    source = MemorySource(TINY["vit"].model().float())
    with pytest.raises(UsageError, match="at least 1"):
        label_free_hessian(source, calibration("vit"), probes=0)
    empty = Calibration(tuple(sequences("vit", 1)), None, range(0), range(1))
    with pytest.raises(DataError, match="no sequences"):
        label_free_hessian(source, empty)
    model = TINY["vit"].model().float()
    model.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(DataError, match="no finite answers"):
        label_free_hessian(MemorySource(model), calibration("vit"))
