from torch.nn import functional as F

from laconic.calibrate import sensitivity
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
    total = 0.0
    for row in data("llama", 20)[:SEQUENCES]:
        ids = row["input_ids"]
        F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
        total += kept[-1].grad.double().square().sum().item()
    expected = total / layer.weight.shape[0]
    assert abs(found["model.layers.1.mlp.down_proj"] / expected - 1) < 1e-4
    assert len(found) == 14 and all(value > 0 for value in found.values())


def test_a_model_that_is_too_large_or_data_without_a_loss(tiny_models, monkeypatch):
    source = open_source(tiny_models["vit"])
    images = Calibration(tuple(data("vit", 4)), None, range(4), range(0))
    assert measure_sensitivity(source, images) == {}
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
