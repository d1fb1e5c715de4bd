import pytest
import torch
from torch import nn

from laconic.calibrate.layer_stats import LayerStats
from laconic.compression import compress
from laconic.errors import BadWeights, UsageError
from laconic.loading import load
from laconic.models.layout import Layer, Part
from laconic.quantize.activations import Activations
from laconic.quantize.gptq import GPTQ
from laconic.quantize.hadamard import Hadamard
from laconic.quantize.rtn import RTN
from laconic.tensors import Chain, ChannelScale, Dense
from laconic.tensors.stored import Record
from tests.calibrate.test_calibrated import data
from tests.contracts import test_methods as contract
from tests.models.tiny import TINY

VARIANTS = [Hadamard(), Hadamard(seed=7, block=8)]


def stats(shape, kind="linear", part=None):
    return LayerStats(Layer("layer", "layer", "weight", torch.Size(shape), kind, part=part))


class TestContract(contract.TestEveryMethod, contract.TestEveryLayerMethod):
    """What every method must do, but that the weight does not get smaller."""

    @pytest.fixture(params=VARIANTS, ids=lambda m: f"{m.seed}-{m.block}")
    def method(self, request):
        return request.param

    @pytest.fixture
    def layer_method(self, method):
        return method

    def test_is_smaller_and_near(self, layer_method):
        weight = torch.randn(16, 48)
        near = layer_method.compress_weight(weight, None).dense()
        assert torch.allclose(near, weight, atol=1e-5)

    def test_damaged_weights(self, layer_method):
        with pytest.raises(BadWeights):
            layer_method.compress_weight(torch.full((2, 2), torch.nan), None)


@pytest.mark.parametrize("wrong", [{"seed": -1}, {"block": 1}, {"block": 48}, {"block": 2.0}])
def test_wrong_settings(wrong):
    with pytest.raises(UsageError):
        Hadamard(**wrong)


def test_blocks_divide_the_width():
    assert Hadamard().transform(704).block == 64
    assert Hadamard().transform(256).block == 256
    assert Hadamard(block=32).transform(256).block == 32
    assert Hadamard(block=128).transform(704).block == 64


def test_signs_are_those_of_the_width_and_the_seed():
    first, again, other = (Hadamard(seed=s).transform(64).signs for s in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "vit"])
def test_the_model_computes_what_it_did(name, tiny_models, tmp_path):
    dense = TINY[name].logits(TINY[name].model())
    compress(tiny_models[name], Hadamard(), out=tmp_path / "a")
    found = TINY[name].logits(load(tmp_path / "a"))
    assert torch.allclose(found, dense, atol=1e-3 if TINY[name].dtype == torch.float32 else 0.1)
    assert not torch.equal(found, dense)


def test_outliers_are_spread():
    torch.manual_seed(0)
    x = torch.randn(40, 64)
    x[:, 5] *= 50
    lost = {}
    for chain in ([RTN(8, "row"), Activations(4)], [Hadamard(), RTN(8, "row"), Activations(4)]):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(64, 32))
        dense = model(x)
        compress(model, chain)
        lost[len(chain)] = (model(x) - dense).norm().item()
    assert lost[3] < 0.5 * lost[2]


@pytest.mark.parametrize("name", ["llama", "qwen3_moe"])
def test_a_chain_reloads_bit_equal(name, tiny_models, tmp_path):
    chain = [Hadamard(), GPTQ(4, "row"), Activations(4)]
    report = compress(tiny_models[name], chain, data(name), out=tmp_path / "a").report
    memory = TINY[name].model()
    compress(memory, chain, data(name))
    assert torch.equal(TINY[name].logits(load(tmp_path / "a")), TINY[name].logits(memory))
    noted = [row for row in report.layers if row["notes"]]
    assert all("experts" in row["name"] for row in noted) and bool(noted) == (name == "qwen3_moe")


def test_layers_that_are_not_rotated_say_so():
    for shape, what, reason in (
        ((4, 7), {}, "no Hadamard matrix"),
        ((4, 8, 3, 3), {"kind": "conv"}, "convolution"),
        ((4, 8), {"kind": "embedding"}, "table"),
        ((4, 8), {"part": Part(0, 1, 0, 0, 4)}, "experts"),
    ):
        weight, seen = torch.randn(shape), stats(shape, **what)
        record = Record(Dense(weight))
        assert Hadamard().revise(weight, record, seen) is record
        assert seen.notes[0].startswith("not rotated: ") and reason in seen.notes[0]


def test_after_a_transform():
    weight, scale = torch.randn(4, 8), ChannelScale(torch.rand(8) + 0.5)
    record = Record(Dense(scale.fold(weight)), scale)
    for _ in range(2):
        record = Hadamard().revise(weight, record, stats((4, 8)))
    assert isinstance(record.transform, Chain) and len(record.transform.parts) == 3
    x = torch.randn(5, 8)
    assert torch.allclose(record.weight.matmul(record.transform(x)), x @ weight.T, atol=1e-5)


def test_what_is_compressed_is_not_rotated():
    with pytest.raises(UsageError, match="before the methods that compress"):
        compress(nn.Sequential(nn.Linear(8, 8)), [RTN(), Hadamard()])


def test_in_a_budget():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    report = compress(model, [Hadamard(), RTN()], budget="60%").report
    assert report.kept <= 0.6 and model(torch.randn(2, 64)).isfinite().all()
