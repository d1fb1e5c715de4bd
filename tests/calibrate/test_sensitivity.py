import torch
from torch.nn import functional as F

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.sensitivity import SEQUENCES, measure_sensitivity
from laconic.models.open import open_source
from laconic.probing import measure_options
from laconic.quantize.gptq import GPTQ
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY


def calibration(count=20):
    return Calibration(tuple(data("llama", count)), None, range(count - 2), range(count - 2, count))


def test_mean_squares_of_gradients_as_autograd_gives_them(tiny_models):
    found = measure_sensitivity(open_source(tiny_models["llama"]), calibration())
    model = TINY["llama"].model().float()
    layer = model.model.layers[1].mlp.down_proj
    kept = []
    layer.register_forward_hook(lambda _m, _i, y: (y.retain_grad(), kept.append(y))[1])
    total = torch.zeros(model.config.hidden_size, dtype=torch.float64)
    for row in data("llama", 20)[:SEQUENCES]:
        ids = row["input_ids"]
        F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
        total += kept[-1].grad[0].double().square().sum(dim=0)
    assert torch.allclose(found["model.layers.1.mlp.down_proj"], total, rtol=1e-3)
    assert len(found) == 14 and all((value > 0).all() for value in found.values())


def test_a_model_that_is_too_large_or_data_without_a_loss(tiny_models, monkeypatch):
    source = open_source(tiny_models["vit"])
    images = Calibration(tuple(data("vit", 4)), None, range(4), range(0))
    assert measure_sensitivity(source, images) == {}
    monkeypatch.setattr("laconic.calibrate.outline.LARGEST", 1000)
    assert measure_sensitivity(open_source(tiny_models["llama"]), calibration()) == {}


def alike(source):
    layers = [layer for block in source.blocks for layer in block.layers]
    return {la.name: torch.ones(la.shape[0], dtype=torch.float64) for la in layers}


def test_options_are_weighed_by_it(tiny_models):
    source = open_source(tiny_models["llama"])
    plain = measure_options(source, GPTQ(), calibration=calibration())
    one = measure_options(source, GPTQ(), calibration=calibration(), sensitivity=alike(source))
    share = one.weighed() / plain.error
    assert (share.std(axis=1) < 1e-9 * share.mean(axis=1)).all()  # the same factor for all options
    name = plain.layers[3]
    twice = alike(source) | {name: 2 * alike(source)[name]}
    two = measure_options(source, GPTQ(), calibration=calibration(), sensitivity=twice)
    assert abs((two.weighed() / one.weighed())[3] - 2).max() < 1e-9
    assert abs((two.weighed() / one.weighed())[4] - 1).max() < 1e-9


def test_each_output_counts_for_itself(tiny_models):
    source = open_source(tiny_models["llama"])
    first = {name: torch.zeros_like(each) for name, each in alike(source).items()}
    for each in first.values():
        each[:3] = 1
    weighed = measure_options(source, GPTQ(), calibration=calibration(), sensitivity=first)
    whole = measure_options(source, GPTQ(), calibration=calibration(), sensitivity=alike(source))
    assert (weighed.weighed() < whole.weighed()).all() and (weighed.weighed() > 0).all()


def test_layers_outside_the_blocks_count_as_an_average_one(tiny_models):
    source = open_source(tiny_models["llama"])
    found = measure_options(
        source, GPTQ(), calibration=calibration(), also=("rest",), sensitivity=alike(source)
    )
    [head] = [name for name in found.layers if name not in alike(source)]
    mine = found.weighed()[found.layers.index(head)]
    others = [row for name, row in zip(found.layers, found.weighed()) if name != head]
    assert head == "lm_head" and min(r[0] for r in others) < mine[0] < 100 * max(
        r[0] for r in others
    )
