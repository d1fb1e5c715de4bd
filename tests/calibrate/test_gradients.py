import pytest
import torch
from torch.nn import functional as F

from laconic.calibrate.calibration import Calibration
from laconic.calibrate.gradients import collect_gradients, sequence_loss
from laconic.calibrate.statistics import GradientMoment, KroneckerFactors, SecondMoment
from laconic.errors import DataError
from laconic.models.memory import MemorySource
from tests.calibrate.test_collect import sequences
from tests.models.tiny import TINY

WANTS = (GradientMoment(), KroneckerFactors(), SecondMoment())


def calibration(name, labelled):
    inputs = tuple(sequences(name, 4))
    targets = torch.tensor([0, 1, 1, 0]) if labelled else None
    return Calibration(inputs, targets, range(3), range(3, 4))


@pytest.mark.parametrize(
    ("name", "labelled"), [("llama", False), ("gpt2", False), ("vit", True), ("bert", True)]
)
def test_against_autograd(name, labelled):
    """`g^T x` summed over the positions of a sequence is the gradient of the weight."""
    model, data = TINY[name].model().float(), calibration(name, labelled)
    source = MemorySource(model)
    stats = collect_gradients(source, data, WANTS)
    for block in source.blocks:
        for layer in block.layers:
            expected, squares = 0, 0
            weight = model.get_parameter(layer.parameter)
            for number in data.fitted:
                inputs = data.inputs[number]
                out = model(**inputs).logits
                if labelled:
                    loss = F.cross_entropy(out, data.targets[number : number + 1])
                else:
                    loss = F.cross_entropy(out[0, :-1], inputs["input_ids"][0, 1:])
                (gradient,) = torch.autograd.grad(loss, weight)
                gradient = gradient.T if layer.transposed else gradient
                expected, squares = expected + gradient, squares + gradient.square()
            sums = stats[layer.name][GradientMoment()]
            scale = expected.abs().max()
            torch.testing.assert_close(
                sums["gradient"].float(), expected, atol=1e-4 * scale, rtol=1e-3
            )
            torch.testing.assert_close(
                sums["square"].float(), squares, atol=1e-4 * squares.max(), rtol=1e-3
            )
            factors = stats[layer.name][KroneckerFactors()]
            assert factors["gradients"].shape == (layer.shape[0],) * 2
            assert torch.equal(factors["inputs"], stats[layer.name][SecondMoment()]["moment"])
    assert all(p.grad is None for p in model.parameters())


def test_convolutions():
    from laconic.zoo.resnet import resnet20

    torch.manual_seed(0)
    model = resnet20().eval()
    x = torch.randn(2, 1, 3, 32, 32)
    data = Calibration(tuple({"x": row} for row in x), torch.tensor([1, 2]), range(2), range(0))
    stats = collect_gradients(MemorySource(model), data, [GradientMoment()])
    losses = [F.cross_entropy(model(row), data.targets[i : i + 1]) for i, row in enumerate(x)]
    (gradient,) = torch.autograd.grad(sum(losses), model.blocks[3].conv1.weight)
    found = stats["blocks.3.conv1"][GradientMoment()]["gradient"]
    torch.testing.assert_close(found.float(), gradient.flatten(1), atol=1e-5, rtol=1e-3)


def test_the_same_bits_on_two_threads():
    source, data = MemorySource(TINY["qwen3_moe"].model()), calibration("qwen3_moe", False)
    once = collect_gradients(source, data, WANTS)
    torch.set_num_threads(2)
    again = collect_gradients(source, data, WANTS)
    torch.set_num_threads(1)
    for name, stats in once.items():
        for statistic, found in stats.collected.items():
            for key, tensor in (found.sums or {}).items():
                assert torch.equal(tensor, again[name].collected[statistic].sums[key])


def test_bad_losses():
    data = calibration("vit", False)
    with pytest.raises(DataError, match="needs labels"):
        collect_gradients(MemorySource(TINY["vit"].model()), data, WANTS)
    model = TINY["llama"].model().float()
    model.lm_head.weight.data.fill_(float("inf"))
    with pytest.raises(DataError, match="the loss of calibration sequence 0 is"):
        collect_gradients(MemorySource(model), calibration("llama", False), WANTS)
    with pytest.raises(DataError, match="not logits"):
        sequence_loss("text", {}, None)
