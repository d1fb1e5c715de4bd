"""Losses, times, counts, samples and features on a CUDA device."""

import pytest
import torch
from torch import nn

from laconic.compression import compress
from laconic.evaluate import evaluate
from laconic.loading import load
from laconic.measure.features import (
    extract,
    frechet_distance,
    kernel_distance,
    moments,
    penultimate,
)
from laconic.measure.flops import count
from laconic.measure.generation import generate, side_by_side
from laconic.measure.images import psnr, ssim
from laconic.measure.latency import LatencyTable
from laconic.measure.losses import labelled_batches, language_batches, measure_losses
from laconic.measure.timing import time_call
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.tensors import IntQuantizer
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from laconic.zoo.resnet import resnet20
from tests.calibrate.test_calibrated import data
from tests.gpu.near import assert_near, moved
from tests.models.tiny import TINY, VOCABULARY

WINDOWS = torch.randint(4, VOCABULARY, (9, 24), generator=torch.Generator().manual_seed(0))


def pair(device):
    """A dense and a quantized model, on `device`."""
    models = [TINY["qwen3"].model().to(device) for _ in range(2)]
    compress(models[1], RTN(bits=3, group=16))
    return models


def test_paired_losses(device):
    found = {}
    for place in (device, "cpu"):
        dense, small = pair(place)
        losses = measure_losses(small, language_batches(WINDOWS, 4), reference=dense, device=place)
        table = losses.nll, losses.predictions, losses.kl, losses.reference.nll
        found[place] = table
        again = measure_losses(small, language_batches(WINDOWS, 9), device=place)
        assert_near(again.nll, losses.nll, "cpu", rtol=1e-4)  # a GPU takes whole batches
    assert_near(found[device], found["cpu"], "cpu", rtol=1e-3, atol=1e-3)


def test_losses_of_a_classifier(device):
    from laconic.calibrate.data import Labelled

    images = Labelled({"x": torch.randn(6, 3, 32, 32)}, torch.arange(6))
    torch.manual_seed(0)
    model = resnet20().eval()
    here = measure_losses(model, labelled_batches(images, 4))
    there = measure_losses(model.to(device), labelled_batches(images, 4), device=device)
    assert_near(there.nll, here.nll, "cpu", rtol=1e-3)


def test_reports(device, tiny_models, tmp_path):
    compress(tiny_models["qwen3"], GPTQ(bits=3, group=16), data("qwen3"), out=tmp_path / "o")
    reports = [
        evaluate(tmp_path / "o", WINDOWS, against=tiny_models["qwen3"], device=place, batch=4)
        for place in (device, "cpu")
    ]
    ours, theirs = reports
    assert ours.loss == pytest.approx(theirs.loss, abs=1e-3) and ours.tokens == theirs.tokens
    assert ours.stored_bytes == theirs.stored_bytes and ours.resident_bytes == theirs.resident_bytes
    name = "excess_log_perplexity"
    assert ours.against[name] == pytest.approx(theirs.against[name], abs=1e-3)
    assert ours.against["speed_ratio"] > 0


def test_samples(device):
    found = {}
    prompts = [WINDOWS[0, :5], WINDOWS[1, :5], WINDOWS[2, :3]]
    for place in (device, "cpu"):
        models = [model.float() for model in pair(place)]
        found[place] = [
            generate(models[0], prompts, tokens=6, temperature=t, batch=2) for t in (0.0, 1.0)
        ]
        both = side_by_side(*models, prompts, tokens=6, batch=2)
        assert both.ours.device.type == "cpu"
    for one, other in zip(found[device], found["cpu"]):
        assert (
            one.shape == (3, 6) and (one == other).double().mean() > 0.8
        )  # ties may break otherwise


def test_counts(device):
    for name in ("qwen3", "gpt2", "vit"):
        model, inputs = TINY[name].model(), TINY[name].inputs()
        here = count(model, inputs)
        there = count(model.to(device), moved(inputs, device))
        assert (there.macs, there.params) == (here.macs, here.params)
        assert (there.uncounted, there.by_module) == (here.uncounted, here.by_module)


def test_counts_of_values_alone(device):
    """A module that holds a compressed weight and no parameter is counted where its weight is."""
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    replace_module(
        model, "0", {"weight": Record(IntQuantizer().quantize(model[0].weight.detach()))}
    )
    assert count(model.to(device), torch.zeros(3, 8)).macs == 96


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latency(device, dtype, tmp_path):
    model = TINY["qwen3"].model().to(device)
    model = model.to(dtype)
    inputs = {"input_ids": WINDOWS[:1]}
    table = LatencyTable(tmp_path / "times.json", device=device, threads=1, dtype=dtype, rounds=2)
    found = table.calibrate(model, inputs)
    assert 0 < found.seconds < 60 and len(found.blocks) == 2
    again = LatencyTable(
        tmp_path / "times.json", device=device, threads=1, dtype=dtype, rounds=2, measure=False
    )
    assert again.environment == table.environment
    assert again.predict(model, inputs).seconds == pytest.approx(found.seconds)


def test_latency_of_a_compressed_model(device):
    model = pair(device)[1]
    table = LatencyTable(device=device, threads=1, rounds=1)
    assert table.calibrate(model, {"input_ids": WINDOWS[:1]}).seconds > 0


def test_timing_waits_for_the_device(device):
    """Long products are queued in no time; what is timed is their end."""
    size = 4096 if torch.device(device).type == "cuda" else 256
    x = torch.randn(size, size, device=device)
    timed = time_call(lambda: x @ x, rival=lambda: x[:64] @ x, rounds=3, device=device)
    assert timed.ratio < 1


def test_features(device):
    torch.manual_seed(0)
    model, images = resnet20().eval(), torch.randn(24, 3, 32, 32)
    here = extract(penultimate(model), images, 8)
    there = extract(penultimate(model.to(device)), images.to(device), 8)
    assert_near(there, here, device, rtol=1e-3, atol=1e-4)
    other = torch.randn(24, here.shape[1]) * here.std() + here.mean()
    assert frechet_distance(moments(there), moments(other.to(device))) == pytest.approx(
        frechet_distance(here, other), rel=1e-2
    )
    assert kernel_distance(there, other.to(device)) == pytest.approx(
        kernel_distance(here, other), rel=1e-2, abs=1e-4
    )


def test_images(device):
    x = torch.rand(2, 3, 32, 32)
    y = (x + 0.05 * torch.randn_like(x)).clamp(0, 1)
    for function in (psnr, ssim):
        there, here = function(x.to(device), y.to(device)), function(x, y)
        assert torch.as_tensor(there).cpu().double().mean() == pytest.approx(
            float(torch.as_tensor(here).double().mean()), rel=1e-3
        )


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
def test_a_loaded_model_is_where_it_was_asked_for(device, name, tiny_models, tmp_path):
    compress(tiny_models[name], RTN(bits=4), out=tmp_path / "o", also=["embeddings", "rest"])
    model = load(tmp_path / "o", dtype=torch.float32, device=device)
    plain = load(tmp_path / "o", dtype=torch.float32)
    inputs = moved(TINY[name].inputs(), device)
    with torch.no_grad():
        there, here = model(**inputs).logits, plain(**TINY[name].inputs()).logits
    assert_near(there.float(), here.float(), device, rtol=1e-3, atol=1e-3)
