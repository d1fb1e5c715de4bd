import torch

from laconic.allocate import sensitivity
from laconic.allocate.sensitivity import MOST, PROBE, measure_sensitivity
from laconic.calibrate.calibration import Calibration
from laconic.models.open import open_source
from laconic.probing import measure_options
from laconic.quantize.gptq import GPTQ
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY


def calibration(kind="llama", count=20):
    return Calibration(tuple(data(kind, count)), None, range(count - 2), range(count - 2, count))


def test_divergence_of_a_model_with_one_rounded_layer(tiny_models):
    found = measure_sensitivity(open_source(tiny_models["llama"]), calibration())
    model = TINY["llama"].model().float()
    rows = [row["input_ids"] for row in data("llama", 20)[:MOST]]
    with torch.no_grad():
        before = [model(ids).logits[0].log_softmax(-1) for ids in rows]
        weight = model.model.layers[1].mlp.down_proj.weight
        weight.copy_(PROBE.project(weight))
        after = [model(ids).logits[0].log_softmax(-1) for ids in rows]
    parts = [(p.exp() * (p - q)).sum(-1) for p, q in zip(before, after)]
    expected = torch.cat(parts).double().mean().item()
    assert abs(found["model.layers.1.mlp.down_proj"] / expected - 1) < 1e-3
    assert len(found) == 14 and all(value > 0 for value in found.values())


def test_classifiers_need_no_labels(tiny_models):
    found = measure_sensitivity(open_source(tiny_models["vit"]), calibration("vit", 4))
    assert found and all(value >= 0 for value in found.values())


def test_many_layers_get_fewer_sequences(tiny_models, monkeypatch):
    asked = []
    monkeypatch.setattr(sensitivity, "RUNS", 14 * 3)
    monkeypatch.setattr(
        sensitivity, "DenseKL", lambda _m, inputs, **_: asked.append(len(inputs)) or _Nothing()
    )
    measure_sensitivity(open_source(tiny_models["llama"]), calibration())
    assert asked == [3]


class _Nothing:
    samples = 1

    def __call__(self, *_):
        return 1.0


def test_a_model_that_is_too_large(tiny_models, monkeypatch):
    monkeypatch.setattr(sensitivity, "LARGEST", 1000)
    assert measure_sensitivity(open_source(tiny_models["llama"]), calibration()) == {}


def test_options_are_weighed_by_it(tiny_models):
    source = open_source(tiny_models["llama"])
    plain = measure_options(source, GPTQ(), calibration=calibration())
    names = plain.layers
    one = {name: 1.0 + (name == names[3]) for name in names}
    two = measure_options(source, GPTQ(), calibration=calibration(), sensitivity=one)
    share = two.error / plain.error
    assert (share.std(axis=1) < 1e-9 * share.mean(axis=1)).all()  # the same factor for all options
    three = measure_options(
        source, GPTQ(), calibration=calibration(), sensitivity=dict.fromkeys(names, 1.0)
    )
    assert abs((two.error / three.error)[3] - 2).max() < 1e-9
    assert abs((two.error / three.error)[4] - 1).max() < 1e-9


def test_layers_outside_the_blocks_count_as_an_average_one(tiny_models):
    source = open_source(tiny_models["llama"])
    names = [layer.name for block in source.blocks for layer in block.layers]
    known = {name: float(number) for number, name in enumerate(names)}
    found = measure_options(
        source, GPTQ(), calibration=calibration(), also=("rest",), sensitivity=known
    )
    [head] = [name for name in found.layers if name not in names]
    assert head == "lm_head" and (found.error[found.layers.index(head)] > 0).all()
