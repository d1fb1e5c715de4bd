import copy

import pytest
import torch
from torch import nn

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import Collected, Observation, SecondMoment
from laconic.compression import compress
from laconic.errors import BadWeights, DataError, UsageError
from laconic.loading import load
from laconic.models.layout import Layer
from laconic.quantize.awq import AWQ, diagonal_blocks, output_grid
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.tensors import Chain, ChannelScale, Dense, Grouped, IntQuantizer, Transformed
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.models.tiny import TINY


def inputs(width=64, count=200):
    """Correlated, some channels much larger than the others."""
    x = torch.randn(count, width) @ (torch.eye(width) + torch.randn(width, width) / width)
    return x * torch.exp(torch.randn(width))


def stats(x, kind="linear", shape=None):
    layer = Layer("layer", "layer", "weight", torch.Size(shape or (16, x.shape[1])), kind)
    collected = {SecondMoment(): Collected(SecondMoment()).update(Observation(x, None))}
    return LayerStats(layer, collected)


def lost(value, weight, x):
    return (x.double() @ (value.dense().double() - weight.double()).T).square().sum().item()


@pytest.mark.parametrize("group", [16, "row", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_best_alpha_by_running_data(group, symmetric):
    """The paper's search, with the inputs themselves."""
    weight, x = torch.randn(16, 64), inputs()
    method = AWQ(3, group, symmetric, "minmax", grid=9)
    size = x.square().mean(0).sqrt()
    size = size / size.mean()
    errors = []
    for alpha in torch.linspace(0, 1, 9):
        scale = size**alpha
        scale = (scale / (scale.max() * scale.min()).sqrt()).bfloat16().float()
        rounded = IntQuantizer(3, group, symmetric).project(weight * scale) / scale
        errors.append((x @ (rounded - weight).T).square().sum().item())
    found = lost(method.compress_weight(weight, stats(x)), weight, x)
    assert found == pytest.approx(min(errors), rel=1e-3) and min(errors) < errors[0]


@pytest.mark.parametrize("range_", ["minmax", "mse", "output"])
@pytest.mark.parametrize("bits", [2, 4])
def test_loses_less_than_rounding(bits, range_):
    weight, x = torch.randn(16, 64), inputs()
    plain = RTN(bits, 16, range="minmax" if range_ == "minmax" else "mse").compress_weight(weight)
    ours = AWQ(bits, 16, range=range_).compress_weight(weight, stats(x))
    assert lost(ours, weight, x) < 0.9 * lost(plain, weight, x)


def test_no_scale_where_inputs_are_alike():
    weight, x = torch.randn(16, 64), torch.eye(64)
    value = AWQ(range="minmax").compress_weight(weight, stats(x))
    assert isinstance(value, Grouped)
    assert torch.equal(value.dense(), RTN(range="minmax").compress_weight(weight).dense())
    record = AWQ(range="minmax").revise(weight, Record(Dense(weight)), stats(x))
    assert record.transform is None


@pytest.mark.parametrize("group", [8, 12, "row", "tensor"])
@pytest.mark.parametrize("symmetric", [True, False])
def test_ranges_by_output(group, symmetric):
    """Each group by itself loses no more of its share of the output than any of the ranges tried."""
    rows, x = torch.randn(6, 32), inputs(32)
    quantizer = IntQuantizer(3, group, symmetric)
    size = group if isinstance(group, int) else 32

    def shares(grid):
        e = quantizer.decode(quantizer.encode(rows, grid), grid) - rows
        parts = [
            (x[:, i : i + size] @ e[:, i : i + size].T).square().sum(0) for i in range(0, 32, size)
        ]
        found = torch.stack(parts, dim=1)
        return found.sum().reshape(1, 1) if group == "tensor" else found

    widest = quantizer.fit(rows)
    blocks = diagonal_blocks(x.T @ x, size)
    best = shares(output_grid(rows, torch.ones(32), blocks, quantizer))
    assert best.shape == widest.scale.shape
    for clip in torch.linspace(0.2, 1, 9):
        low, high = -(widest.zero - quantizer.code_range[0]) * widest.scale, None
        high = (quantizer.code_range[1] - widest.zero) * widest.scale
        tried = quantizer.grid(low * clip, high * clip, widest.group)
        assert (best <= shares(tried) * 1.02).all()
    assert best.sum() < 0.95 * shares(widest).sum()


def test_channels_without_input():
    weight, x = torch.randn(16, 64), inputs()
    x[:, ::3] = 0
    value = AWQ(3, "row").compress_weight(weight, stats(x))
    assert value.dense().isfinite().all()
    assert lost(value, weight, x) < lost(RTN(3, "row").compress_weight(weight), weight, x)
    nothing = AWQ(3).compress_weight(weight, stats(torch.zeros(4, 64)))
    assert torch.equal(nothing.dense(), RTN(3).compress_weight(weight).dense())


def test_the_scale_stands_before_the_layer():
    weight, x = torch.randn(16, 64).bfloat16(), inputs()
    record = AWQ().revise(weight, Record(Dense(weight)), stats(x))
    assert isinstance(record.transform, ChannelScale) and isinstance(record.weight, Grouped)
    assert record.transform.resident_bytes == 2 * 64 and record.weight.dtype == torch.bfloat16
    inside = AWQ().compress_weight(weight, stats(x))
    y = record.weight.matmul(record.transform(x))
    assert torch.allclose(y, x @ inside.dense(torch.float32).T, atol=1e-3)


def test_after_a_rotation():
    weight, x = torch.randn(16, 64), inputs()
    rotated = Hadamard().revise(weight, Record(Dense(weight)), stats(x))
    z = rotated.transform(x)
    record = AWQ(6).revise(weight, rotated, stats(z))
    y = record.weight.matmul(record.transform(x))
    assert isinstance(record.transform, Chain)
    assert (y - x @ weight.T).norm() < 0.02 * y.norm()


@pytest.mark.parametrize("groups", [1, 2, 64])
def test_a_convolution_keeps_its_scale_within(groups):
    model = nn.Sequential(nn.Conv2d(64, 64, 3, groups=groups))
    nn.init.normal_(model[0].weight)
    x = torch.randn(6, 64, 9, 9)
    x[:, ::32] *= 8
    dense, lost = model(x), {}
    for method in (RTN(3, "row"), AWQ(3, "row")):
        copied = copy.deepcopy(model)
        compress(copied, method, [{"x": row[None]} for row in x])
        lost[type(method)] = (copied(x) - dense).norm()
    assert isinstance(copied[0].weight, Transformed) == (groups < 64)
    assert lost[AWQ] < (1 if groups < 64 else 1.05) * lost[RTN]


def test_wrong_settings():
    for wrong in ({"bits": 9}, {"group": 0}, {"range": "max"}, {"grid": 1}):
        with pytest.raises(UsageError):
            AWQ(**wrong)


def test_damaged_weights_and_no_data():
    with pytest.raises(BadWeights):
        AWQ().compress_weight(torch.full((2, 2), torch.nan), stats(torch.eye(2)))
    with pytest.raises(DataError, match="second moment"):
        compress(nn.Sequential(nn.Linear(4, 4)), AWQ())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("chain", [[AWQ(3, 16)], [AWQ(3, 16), GPTQ(3, 16)]])
def test_reloads_bit_equal(name, chain, tiny_models, tmp_path):
    report = compress(tiny_models[name], chain, data(name), out=tmp_path / "a").report
    memory = TINY[name].model()
    compress(memory, chain, data(name))
    assert torch.equal(TINY[name].logits(load(tmp_path / "a")), TINY[name].logits(memory))
    assert all(row["format"].startswith("int3 g16") for row in report.layers)


def test_the_same_bits_on_any_number_of_threads():
    weight, x = torch.randn(64, 256), inputs(256, 400)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(AWQ(3).compress_weight(weight, stats(x)).dense())
    torch.set_num_threads(before)
    assert torch.equal(*found)


def test_with_an_embedding():
    model = TINY["llama"].model()
    compress(model, AWQ(4, 16), data("llama"), also=["embeddings", "rest"])
    assert TINY["llama"].logits(model).isfinite().all()
