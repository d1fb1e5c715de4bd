import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laconic.calibrate.histogram import Histogram
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import AbsMax, Collected, Observation
from laconic.compression import compress
from laconic.errors import BadWeights, DataError, UsageError
from laconic.loading import load
from laconic.models.layout import Layer, Part
from laconic.quantize.activations import Activations, no_place
from laconic.quantize.gptq import GPTQ
from laconic.quantize.rtn import RTN
from laconic.tensors import Dense, FloatQuantizer, IntQuantizer, StaticIntQuantizer
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.contracts import test_methods as contract
from tests.models.tiny import TINY

VARIANTS = [Activations(), Activations(4, "mxfp"), Activations(4, "nvfp"), Activations(6, "fp", 16), Activations(4, group=8), Activations(5, range="static", symmetric=False)]  # fmt: skip


def layer(kind="linear", part=None, shape=(4, 6)):
    return Layer("layer", "layer", "weight", torch.Size(shape), kind, part=part)


def stats(x, **what):
    seen = Observation(x, None)
    return LayerStats(
        layer(**what), {s: Collected(s).update(seen) for s in (AbsMax(), Histogram())}
    )


class TestContract(contract.TestEveryMethod, contract.TestEveryLayerMethod):
    """What every method must do, but that the weight does not get smaller."""

    @pytest.fixture(params=VARIANTS, ids=lambda m: f"{m.format}{m.bits}-{m.group}-{m.range}")
    def method(self, request):
        return request.param

    @pytest.fixture
    def layer_method(self, method):
        return method

    def test_is_smaller_and_near(self, layer_method):
        weight = torch.randn(6, 5)
        assert torch.equal(layer_method.compress_weight(weight, None).dense(), weight)

    def test_damaged_weights(self, layer_method):
        with pytest.raises(BadWeights):
            layer_method.compress_weight(torch.full((2, 2), torch.nan), None)


@pytest.mark.parametrize(
    "method, expected",
    [
        (Activations(4), IntQuantizer(4, "row")),
        (Activations(4, group=16, symmetric=False), IntQuantizer(4, 16, symmetric=False)),
        (Activations(8, "fp"), FloatQuantizer("e4m3", "row")),
        (Activations(6, "mxfp"), FloatQuantizer("mxfp6")),
    ],
)
def test_quantizers(method, expected):
    assert method.quantizer() == expected


@pytest.mark.parametrize(
    "wrong",
    [
        {"bits": 1}, {"bits": 5, "format": "fp"}, {"format": "float"}, {"group": "row"}, {"range": "minmax"},
        {"range": "static", "group": 8}, {"range": "static", "format": "fp"}, {"format": "mxfp", "bits": 4, "group": 16},
    ],
)  # fmt: skip
def test_wrong_settings(wrong):
    with pytest.raises(UsageError):
        Activations(**wrong)


@pytest.mark.parametrize("method", [Activations(4), Activations(4, "mxfp"), Activations(8, "fp")])
def test_inputs_are_rounded_token_by_token(method):
    model = nn.Sequential(nn.Linear(64, 8))
    weight, bias = model[0].weight.detach().clone(), model[0].bias
    compress(model, method)
    x = torch.randn(5, 3, 64)
    rounded = method.quantizer().project(x.reshape(15, 64)).reshape(x.shape)
    assert torch.equal(model(x), F.linear(rounded, weight, bias)) and not torch.equal(rounded, x)
    assert torch.equal(model(x[1]), F.linear(rounded[1], weight, bias))


def test_pixels_of_a_convolution_are_its_tokens():
    model = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2))
    weight, bias = model[0].weight.detach().clone(), model[0].bias
    compress(model, Activations(3))
    x = torch.randn(2, 4, 6, 6)
    pixels = IntQuantizer(3, "row").project(x.movedim(1, -1).reshape(-1, 4))
    rounded = pixels.reshape(2, 6, 6, 4).movedim(-1, 1)
    expected = F.conv2d(rounded, weight, bias, padding=1, groups=2)
    assert torch.allclose(model(x), expected, atol=1e-6)


def test_a_static_range_is_of_the_calibration_inputs():
    x = torch.tensor([[0.5, -1.0], [3.0, 0.0]])
    found = Activations(4, range="static", symmetric=False, ends="minmax").revise(
        torch.eye(2), Record(Dense(torch.eye(2))), stats(x)
    )
    assert found.activation == StaticIntQuantizer(4, -1.0, 3.0, symmetric=False)
    ends = found.activation.project(torch.tensor([[99.0, -99.0]]))
    assert torch.allclose(ends, torch.tensor([[3.0, -1.0]]), atol=0.14)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("what", ["outlier", "relu", "shifted"])
def test_searched_ends_lose_less(what, bits, symmetric):
    generator = torch.Generator().manual_seed(bits)
    x = torch.randn(4000, 2, generator=generator)
    x = {"outlier": x.index_fill(0, torch.tensor([7]), 60.0), "relu": x.relu(), "shifted": x + 3}[
        what
    ]
    record, losses = Record(Dense(torch.eye(2))), {}
    for ends in ("minmax", "mse"):
        method = Activations(bits, range="static", symmetric=symmetric, ends=ends)
        found = method.revise(torch.eye(2), record, stats(x)).activation
        losses[ends] = (found.project(x) - x).square().mean()
    assert losses["mse"] <= losses["minmax"] * (1.01 if bits == 8 else 1.0)
    least = min(
        (StaticIntQuantizer(bits, min(0, x.min().item()) * low, x.max().item() * high, symmetric)
         .project(x) - x).square().mean()
        for low in torch.linspace(0.05, 1, 20).tolist() for high in torch.linspace(0.05, 1, 20).tolist()
    )  # fmt: skip
    assert losses["mse"] <= 1.03 * least  # of 400 ranges


def test_where_there_is_no_static_range():
    method, record = Activations(range="static"), Record(Dense(torch.eye(2)))
    for seen, what in (
        (stats(torch.zeros(3, 2)), "all calibration inputs are 0"),
        (stats(torch.ones(3, 2), part=Part(0, 1, 0, 0, 4)), "experts share"),
    ):
        assert method.revise(torch.eye(2), record, seen).activation == IntQuantizer(8, "row")
        assert what in seen.notes[0]
    with pytest.raises(UsageError, match="ends must be"):
        Activations(ends="percentile")
    with pytest.raises(DataError, match="no extremes"):
        method.revise(torch.eye(2), record, LayerStats(layer()))


def test_a_table_has_no_inputs():
    seen, record = LayerStats(layer("embedding")), Record(Dense(torch.eye(2)))
    assert (
        Activations().revise(torch.eye(2), record, seen) is record and "looked up" in seen.notes[0]
    )


def test_static_ranges_need_data():
    with pytest.raises(DataError, match="extremes"):
        compress(nn.Sequential(nn.Linear(4, 4)), Activations(range="static"))


def test_no_place_for_transforms():
    assert no_place(layer()) == ""
    for what in ({"kind": "embedding"}, {"kind": "conv"}, {"part": Part(0, 1, 0, 0, 4)}):
        assert no_place(layer(**what))


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe"])
@pytest.mark.parametrize("method", [Activations(4), Activations(4, range="static")])
def test_a_chain_in_any_order_reloads_bit_equal(name, method, tiny_models, tmp_path):
    rounding = GPTQ(3, 16)
    for number, chain in enumerate(([rounding, method], [method, rounding])):
        out = tmp_path / str(number)
        compress(tiny_models[name], chain, data(name), out=out)
        memory = TINY[name].model()
        compress(memory, chain, data(name))
        assert torch.equal(TINY[name].logits(load(out)), TINY[name].logits(memory))
    assert (tmp_path / "0" / "model.safetensors").read_bytes() == (
        tmp_path / "1" / "model.safetensors"
    ).read_bytes()


def test_fewer_bits_lose_more(tiny_models):
    model = TINY["llama"].model()
    dense = TINY["llama"].logits(model)
    lost = []
    for bits in (8, 6, 4, 2):
        model = TINY["llama"].model()
        compress(model, [RTN(8, "row"), Activations(bits)])
        lost.append((TINY["llama"].logits(model) - dense).norm().item())
    assert lost == sorted(lost) and lost[0] < 0.1 * lost[-1]
