import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from laconic.errors import DataError, UnsupportedModel
from laconic.measure.counts import ParameterCounts
from laconic.measure.flops import call, count, count_parameters
from laconic.measure.operations import Operation
from laconic.measure.values import kept, products, transform_products, unknown_products
from laconic.models.memory import MemorySource
from laconic.models.open import open_source
from laconic.tensors import (
    Bitmask,
    BlockDiagonal,
    Chain,
    ChannelScale,
    Dense,
    Hadamard,
    InputTransform,
    IntQuantizer,
    LowRank,
    Masked,
    MaskedCodes,
    Stacked,
    Sum,
    Transformed,
)
from laconic.tensors.modules import TiedEmbedding, TiedLinear
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from tests.models.tiny import TINY

MODULES = {
    "linear": (nn.Linear(6, 4), (2, 3, 6), 2 * 3 * 24),
    "conv1d": (nn.Conv1d(4, 6, 3, stride=2, groups=2), (2, 4, 9), 2 * 4 * 6 * 2 * 3),
    "conv2d": (nn.Conv2d(3, 8, 3, padding=1), (2, 3, 5, 7), 2 * 35 * 8 * 3 * 9),
    "same": (nn.Conv2d(3, 4, 3, padding="same"), (1, 3, 5, 5), 25 * 4 * 3 * 9),
    "valid": (nn.Conv2d(3, 4, 3, padding="valid"), (1, 3, 5, 5), 9 * 4 * 3 * 9),
    "no batch": (nn.Conv2d(3, 4, 1), (3, 5, 5), 25 * 12),
    "depthwise": (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 6, 6), 16 * 8 * 9),
    "conv3d": (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4), 27 * 6 * 8),
    "transposed": (nn.ConvTranspose2d(4, 6, 2, stride=2), (2, 4, 3, 3), 2 * 9 * 24 * 4),
}


def torchs(model, inputs):
    """What torch counts, attention taken apart."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as mode, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call(model, inputs)
    return mode.get_total_flops() / 2


@pytest.mark.parametrize("name", MODULES)
def test_closed_forms(name):
    module, shape, macs = MODULES[name]
    x = torch.randn(shape)
    counts = count(module, x)
    assert counts.macs == counts.dense_macs == macs and counts.flops == 2 * macs
    assert counts.params == sum(p.numel() for p in module.parameters())
    if name != "no batch":
        assert macs == torchs(module, x)
    assert count(module.to("meta"), x).macs == macs
    assert counts.uncounted == {}


@pytest.mark.parametrize("name", TINY)
def test_transformers_as_torch_counts_them(name, tiny_models):
    model, inputs = TINY[name].model(), TINY[name].inputs()
    counts = count(model, inputs)
    assert counts.macs == torchs(model, inputs) and counts.uncounted == {}
    assert counts.params == sum(p.numel() for p in model.parameters())
    source = open_source(tiny_models[name])  # no weights
    assert count(source, inputs).to_json() == counts.to_json()
    assert count_parameters(source).total == counts.params
    block = source.blocks[0].name
    assert count_parameters(source).blocks[block] == counts.below(block).params > 0


def test_attention_is_counted_in_full_causal_or_not():
    q, k, v = torch.randn(2, 4, 5, 8), torch.randn(2, 2, 7, 8), torch.randn(2, 2, 7, 3)

    class Attention(nn.Module):
        def forward(self, q, k, v, causal):
            return F.scaled_dot_product_attention(q, k, v, is_causal=causal, enable_gqa=True)

    full = count(Attention(), (q, k, v, False))
    assert full.macs == 2 * 4 * 5 * 7 * (8 + 3)
    assert count(Attention(), (q, k, v, True)).macs == full.macs


def test_only_routed_experts_count():
    model, inputs = TINY["qwen3_moe"].model(), TINY["qwen3_moe"].inputs()
    one = count(model, inputs).by_module["model.layers.0.mlp.experts"]
    tokens = inputs["input_ids"].numel()
    assert one.macs == tokens * 2 * 3 * 32 * 24  # top 2 of 4
    assert one.operations[0]["experts"] == 4


def test_torchs_own_attention_and_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 5, 8)
    counts = count(layer, x)
    assert counts.macs == 2 * 5 * (4 * 64 + 2 * 128) + 2 * 2 * 25 * 8
    assert counts.uncounted == {} and torch.backends.mha.get_fastpath_enabled()


def test_what_cannot_be_counted_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.spare = nn.LSTM(4, 4), nn.Linear(4, 4)
            self.table, self.weight = nn.Embedding(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            F.linear(x, self.weight.weight)
            return torch.fft.fft(self.rnn(x)[0].sum(0)).real @ torch.ones(4)

    counts = count(Odd(), torch.randn(3, 1, 4))
    assert "fft" in counts.uncounted[""] and "not called" in counts.uncounted["spare"]
    assert "not called" in counts.uncounted["weight"] and "table" not in counts.uncounted
    assert counts.by_module[""].macs == 3 * 16 + 4
    assert counts.macs > 52 or "rnn" in counts.uncounted


def test_a_weight_that_is_only_scaled_with_is_named():
    class Scale(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return x * self.table

    assert "no product was seen in this Scale" in count(Scale(), torch.ones(3, 3)).uncounted[""]


def test_custom_operators_are_named():
    @torch.library.custom_op("laconic_test::double", mutates_args=())
    def double(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    class Custom(nn.Module):
        def forward(self, x):
            return double(x)

    why = count(Custom(), torch.ones(2)).uncounted[""]
    assert why == "the operator laconic_test::double is not counted"


@pytest.mark.parametrize("operator", ["mv", "dot", "addmv", "baddbmm"])
def test_operators_without_a_module(operator):
    m, v, b = torch.ones(3, 4), torch.ones(4), torch.ones(2, 3, 4)
    calls = {
        "mv": (lambda: m @ v, 12),
        "dot": (lambda: v @ v, 4),
        "addmv": (lambda: torch.addmv(torch.ones(3), m, v), 12),
        "baddbmm": (lambda: torch.baddbmm(torch.ones(2, 3, 3), b, b.mT), 72),
    }
    function, macs = calls[operator]

    class Calls(nn.Module):
        def forward(self, x):
            return function()

    assert count(Calls(), v).macs == macs


def test_the_model_is_left_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[2].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count(model, torch.randn(2, 3, 4, 4))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [m.training for m in model] == [True, True, False]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_shared_modules_and_tied_weights_count_once():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    assert count(model, torch.ones(1, 4)).params == 16 + 8
    layer = nn.Linear(4, 4)
    twice = count(nn.Sequential(layer, layer), torch.ones(1, 4))
    assert twice.params == 20 and twice.macs == 32


def test_wrong_inputs():
    with pytest.raises(DataError, match="Linear cannot take these inputs"):
        count(nn.Linear(3, 3), torch.ones(2, 4))

    class Looks(nn.Linear):
        def forward(self, x):
            return super().forward(x) if x.sum().item() > 0 else x

    with pytest.raises(UnsupportedModel, match="load it"):
        count(Looks(3, 3, device="meta"), torch.ones(2, 3))
    assert count(Looks(3, 3), torch.ones(2, 3)).macs == 18


def test_questions_about_numbers_that_are_not_there_are_told_no():
    class Asks(nn.Linear):
        def forward(self, x):
            return x if (x > 0).any() else super().forward(x)

    class Waits(nn.Linear):
        def forward(self, x):
            while not (x > 0).all():
                x = x + 1
            return x

    assert count(Asks(3, 3, device="meta"), torch.ones(2, 3)).macs == 18
    with pytest.raises(UnsupportedModel):
        count(Waits(3, 3, device="meta"), torch.ones(2, 3))


class Odd(InputTransform):
    kind = "odd"
    width = 8

    def __call__(self, x):
        return x

    _fold = _unfold = state = from_state = None


Odd.__abstractmethods__ = frozenset()


def value(seed=0, rows=8, columns=8):
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def test_compressed_values_cost_what_they_keep():
    dense, mask = value(), Bitmask.of(value(1) > 0)
    low = LowRank(Dense(value(0, 8, 2)), Dense(value(0, 2, 8)))
    int4 = IntQuantizer(4, "row").quantize(dense)
    full = LowRank(Dense(value(0, 8, 8)), Dense(value(0, 8, 8)))
    assert (kept(low), products(low)) == (32, 32)
    assert (kept(full), products(full)) == (128, 64)  # rebuilt once, then dense
    assert kept(Masked.of(dense, mask)) == products(MaskedCodes.of(int4, mask)) == mask.kept
    assert products(int4) == kept(int4) == 64
    assert products(Sum((int4, low))) == 96 and kept(Stacked((low, low))) == 64
    rotated = Transformed(int4, Hadamard.random(8, 0))
    assert products(rotated) == 64 + 8 * 3 and kept(rotated) == 64


def test_transforms_cost_what_they_multiply():
    scale, blocks = ChannelScale(torch.ones(8)), BlockDiagonal(torch.eye(4).repeat(2, 1, 1))
    assert transform_products(None) == transform_products(scale) == 0
    assert transform_products(Chain((scale, blocks))) == 32
    assert unknown_products(Chain((scale, blocks, Odd()))) == ("the transform 'odd'",)


def compressed(model, path, record, slots=("weight",)):
    return replace_module(model, path, dict.fromkeys(slots, record))


def test_compressed_modules():
    model = nn.Sequential(nn.Linear(8, 8), nn.Conv2d(1, 8, 1), nn.Embedding(4, 4), nn.Linear(8, 8))
    low = LowRank(Dense(value(0, 8, 1)), Dense(value(0, 1, 8)))
    compressed(model, "0", Record(low, Hadamard.random(8, 0)))
    layer = count(model[0], torch.ones(3, 8)).by_module[""]
    assert (layer.macs, layer.dense_macs) == (3 * (16 + 24), 3 * 64)
    assert (layer.params, layer.dense_params) == (16 + 8, 64 + 8)
    assert layer.operations[0].format == low.format
    kernel = Masked.of(
        value(0, 8, 1)[..., None, None], Bitmask.of(value(0, 8, 1)[..., None, None] > 0)
    )
    compressed(model, "1", Record(kernel))
    conv = count(model[1], torch.ones(2, 1, 3, 3)).by_module[""]
    assert (conv.macs, conv.dense_macs) == (18 * kernel.mask.kept, 18 * 8)
    compressed(model, "2", Record(IntQuantizer(4, "row").quantize(value(0, 4, 4))))
    tied = nn.Sequential(TiedEmbedding(model[2]), TiedLinear(model[2]))
    counts = count(tied, torch.tensor([0, 1]))
    assert counts.macs == 2 * 16 and counts.params == 0 and counts.uncounted == {}
    compressed(model, "3", Record(Dense(value()), Odd()))
    assert "odd" in count(model[3], torch.ones(3, 8)).uncounted[""]


def test_compressed_experts_cost_what_their_routed_slices_keep():
    model, inputs = TINY["qwen3_moe"].model().float(), TINY["qwen3_moe"].inputs()
    path = "model.layers.0.mlp.experts"
    experts = model.get_submodule(path)
    dense = count(model, inputs).by_module[path]
    slots = {}
    for name in ("gate_up_proj", "down_proj"):
        weight = experts.get_parameter(name).detach()
        per_slice = 2 if name == "gate_up_proj" else 1
        parts = [
            Masked.of(part, Bitmask.of(torch.arange(part.shape[1]).expand_as(part) % 2 == 0))
            for each in weight for part in each.chunk(per_slice)
        ]  # fmt: skip
        slots[name] = Record(Stacked(tuple(parts), per_slice))
    replace_module(model, path, slots)
    half = count(model, inputs).by_module[path]
    assert half.macs == dense.macs / 2 and half.dense_macs == dense.macs
    assert half.params == dense.params / 2 and half.dense_params == dense.params


def test_parameters_of_a_source():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))  # its statistics are no parameters
    found = count_parameters(MemorySource(model))
    assert found == ParameterCounts({"0": 15}, 6) and found.total == 21


def test_operations_are_values():
    one = Operation.of("linear", rows=2, inputs=3, outputs=4)
    assert one == Operation.of("linear", source=nn.Linear(1, 1), rows=2, inputs=3, outputs=4)
    assert one.with_sizes(rows=4).macs == 2 * one.macs == 48 and one["inputs"] == 3
    assert Operation.of("embedding", rows=2, width=3).macs == 0
