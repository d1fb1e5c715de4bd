"""What a model does on data, collected on a CUDA device and on the CPU."""

from functools import partial

import pytest
import torch

from laconic.calibrate.collect import collect
from laconic.calibrate.gradients import collect_gradients
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import (
    AbsMax,
    Collected,
    CrossMoment,
    GradientMoment,
    InputNorm,
    KroneckerFactors,
    Observation,
    OutputMoment,
    SecondMoment,
)
from laconic.calibrate.stream import open_stream
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MemorySource
from laconic.zoo.resnet import resnet20
from tests.calibrate.test_collect import logits, sequences
from tests.calibrate.test_gradients import calibration
from tests.gpu.near import assert_near
from tests.models.tiny import TINY

ALL = (
    SecondMoment(), InputNorm(), AbsMax(), OutputMoment(), CrossMoment(), GradientMoment(),
    KroneckerFactors(),
)  # fmt: skip
OF_BLOCKS = ALL[:4]


@pytest.mark.parametrize("statistic", ALL, ids=lambda s: s.name)
def test_every_statistic(device, statistic):
    """Over several panels, then merged."""
    draw = torch.Generator().manual_seed(0)

    def observations():
        for _ in range(3):
            x, y, g, r = (torch.randn(50, n, generator=draw) for n in (150, 70, 70, 150))
            yield Observation(x, y, g, r)

    found = {}
    for place in (device, "cpu"):
        draw.manual_seed(0)
        collected, other = Collected(statistic), Collected(statistic)
        for number, seen in enumerate(observations()):
            there = Observation(*(getattr(seen, n).to(place) for n in seen.__dataclass_fields__))
            (collected if number < 2 else other).update(there)
        collected.merge(other, 0.5)
        found[place] = collected.sums
    assert_near(found[device], found["cpu"], device, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("folder", [False, True], ids=["memory", "disk"])
def test_block_by_block(device, name, folder, tiny_models, tmp_path):
    """Hidden states rest on the CPU, or in files, between blocks; statistics are near."""
    source = HuggingFaceSource(tiny_models[name])
    with torch.inference_mode():
        found = {
            p: seen(source, name, p, tmp_path / p if folder else None) for p in (device, "cpu")
        }
    assert_near(found[device], found["cpu"], device, rtol=1e-2, atol=1e-3)


def seen(source, name, place, folder):
    """Sums of all blocks, and what the model answers in the end."""
    stream = open_stream(source, sequences(name), device=place, folder=folder)
    sums = []
    for number, block in enumerate(source.blocks):
        live = LiveBlock(source, block, place)
        run = partial(stream.run, number, live.module)
        stats = collect(live, live.layers, OF_BLOCKS, run, range(3), batch=2)
        sums.append({n: [c.sums or {} for c in s.collected.values()] for n, s in stats.items()})
        stream.advance(number, live.module)
        assert stream._states.get(0).device.type == "cpu"
    return sums, [logits(stream.finish(number)) for number in range(3)]


@pytest.mark.parametrize("name", ["llama", "gpt2", "vit", "bert", "qwen3_moe"])
def test_gradients(device, name):
    found = {}
    for place in (device, "cpu"):
        source = MemorySource(TINY[name].model().float())
        stats = collect_gradients(
            source, calibration(name, name in ("vit", "bert")), ALL[5:], device=place
        )
        found[place] = {n: [c.sums or {} for c in s.collected.values()] for n, s in stats.items()}
    assert_near(found[device], found["cpu"], device, rtol=1e-2, atol=1e-3)


def test_blocks_with_something_between_them(device):
    """The whole model is run for each block: images through a residual network."""
    source = MemorySource(resnet20().eval())
    inputs = [{"x": torch.randn(1, 3, 32, 32)} for _ in range(2)]
    with torch.inference_mode():
        stream = open_stream(source, inputs, device=device)
        for number, block in enumerate(source.blocks):
            stream.advance(number, LiveBlock(source, block, device).module)
        expected = source.skeleton(inputs[0]["x"])
        assert_near(stream.finish(0), expected, device, rtol=1e-3, atol=1e-3)


def test_what_was_read_does_not_move_the_model(device):
    model = TINY["llama"].model()
    live = LiveBlock(MemorySource(model), MemorySource(model).blocks[0], device)
    assert {t.device.type for t in live.tensors.values()} == {torch.device(device).type}
    assert {p.device.type for p in model.parameters()} == {"cpu"}
