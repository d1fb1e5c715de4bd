import pytest
import torch
from torch import nn

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import AbsMax, Collected, Observation
from laconic.compression import compress
from laconic.errors import DataError, UsageError
from laconic.loading import load
from laconic.models.layout import Layer, Part
from laconic.quantize.activations import Activations
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.quantize.smoothquant import SmoothQuant, smoothing
from laconic.tensors import Chain, Dense, IntQuantizer, StaticIntQuantizer
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY


def stats(x, kind="linear", part=None):
    layer = Layer("layer", "layer", "weight", torch.Size((8, x.shape[1])), kind, part=part)
    return LayerStats(layer, {AbsMax(): Collected(AbsMax()).update(Observation(x, None))})


def outliers():
    x = torch.randn(60, 32)
    x[:, [3, 17]] *= 60
    return x


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_scales_are_the_papers(alpha):
    weight, x = torch.randn(6, 9), torch.randn(20, 9)
    most, heaviest = x.abs().amax(0), weight.abs().amax(0)
    scale = smoothing(weight, most, alpha)
    assert torch.allclose(scale, most.pow(alpha) / heaviest.pow(1 - alpha))
    if alpha == 0.5:  # both are left with the same range
        assert torch.allclose(most / scale, heaviest * scale)


def test_channels_that_are_zero_are_left_alone():
    weight, most = torch.tensor([[0.0, 2.0, 0.0]]), torch.tensor([3.0, 0.0, 0.0])
    assert smoothing(weight, most, 0.5).tolist() == [1, 1, 1]


@pytest.mark.parametrize("wrong", [{"alpha": 1.1}, {"bits": 9}, {"group": 0}, {"inputs": "tensor"}])
def test_wrong_settings(wrong):
    with pytest.raises(UsageError):
        SmoothQuant(**wrong)


@pytest.mark.parametrize("inputs", ["token", "static"])
def test_outliers_cost_less(inputs):
    x, lost = outliers(), {}
    plain = [RTN(8, "row", range="minmax"), Activations(8, range="dynamic" if inputs == "token" else inputs)]  # fmt: skip
    for chain in (plain, [SmoothQuant(inputs=inputs)]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(32, 16))
        dense = model(x)
        compress(model, chain, [{"x": row[None]} for row in x])
        lost[len(chain)] = (model(x) - dense).norm().item()
    assert lost[1] < 0.5 * lost[2]


def test_without_rounding_the_layer_computes_what_it_did():
    weight, x = torch.randn(8, 32), outliers()
    record = SmoothQuant().revise(weight, Record(Dense(weight)), stats(x))
    y = record.weight.matmul(record.transform(x))
    assert (y - x @ weight.T).norm() < 0.02 * y.norm()
    assert record.activation == IntQuantizer(8, "row") and record.weight.format == "int8 row"
    assert record.transform.resident_bytes == 2 * 32


def test_a_static_range_is_of_smoothed_inputs():
    weight, x = torch.randn(8, 32), outliers()
    record = SmoothQuant(inputs="static").revise(weight, Record(Dense(weight)), stats(x))
    smooth = record.transform(x)
    assert isinstance(record.activation, StaticIntQuantizer)
    assert record.activation.high == pytest.approx(smooth.max().item(), rel=1e-5)
    assert record.activation.low == pytest.approx(smooth.min().item(), rel=1e-5)


def test_where_no_scale_can_stand():
    weight, method = torch.randn(8, 32), SmoothQuant(inputs="static")
    for what, activation in (
        ({"part": Part(0, 1, 0, 0, 8)}, IntQuantizer(8, "row")),
        ({"kind": "embedding"}, None),
    ):
        seen = stats(outliers(), **what)
        record = method.revise(weight, Record(Dense(weight)), seen)
        assert record.transform is None and record.activation == activation
        assert seen.notes[0].startswith("not smoothed: ")
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2))
    x = torch.randn(2, 4, 6, 6)
    dense = model(x)
    report = compress(model, method, [{"x": row[None]} for row in x]).report
    assert (model(x) - dense).norm() < 0.05 * dense.norm() and "convolution" in report.notes[0]


def test_after_a_rotation():
    weight, x = torch.randn(8, 32), outliers()
    rotated = Hadamard().revise(weight, Record(Dense(weight)), stats(x))
    record = SmoothQuant().revise(weight, rotated, stats(rotated.transform(x)))
    assert isinstance(record.transform, Chain)
    y = record.weight.matmul(record.transform(x))
    assert (y - x @ weight.T).norm() < 0.02 * y.norm()


def test_needs_data():
    with pytest.raises(DataError, match="extremes"):
        compress(nn.Sequential(nn.Linear(4, 4)), SmoothQuant())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "bert"])
@pytest.mark.parametrize("chain", [[SmoothQuant()], [SmoothQuant(inputs="static"), GPTQ(4, "row")]])
def test_reloads_bit_equal(name, chain, tiny_models, tmp_path):
    report = compress(tiny_models[name], chain, data(name), out=tmp_path / "a").report
    memory = TINY[name].model()
    compress(memory, chain, data(name))
    assert torch.equal(TINY[name].logits(load(tmp_path / "a")), TINY[name].logits(memory))
    assert {row["format"] for row in report.layers} == {f"int{8 if len(chain) == 1 else 4} row"}
