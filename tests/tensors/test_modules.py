import copy
import pickle

import pytest
import torch
from torch import nn

from laconic.errors import CorruptFile, UnsupportedModel, UsageError
from laconic.tensors import Dense, IntQuantizer, Stacked
from laconic.tensors.convolutions import CompressedConv1d, CompressedConv2d
from laconic.tensors.experts import CompressedExperts
from laconic.tensors.modules import (
    CompressedEmbedding,
    CompressedLinear,
    TiedEmbedding,
    TiedLinear,
    device_of,
    is_conv1d,
)
from laconic.tensors.replacement import materialise, replace_module, twin_class
from laconic.tensors.stored import Record, encode
from laconic.tensors.transforms import ChannelScale
from tests.tensors.strategies import same_bits


def conv1d(*sizes):
    from transformers.pytorch_utils import Conv1D

    layer = Conv1D(*sizes)
    nn.init.normal_(layer.bias)
    return layer


def experts(count=4, hidden=16, inner=12):
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    config = Qwen3MoeConfig(
        num_experts=count, hidden_size=hidden, moe_intermediate_size=inner, hidden_act="silu"
    )
    config._experts_implementation = "eager"
    module = Qwen3MoeExperts(config)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module


def routed(tokens=9, hidden=16, count=4, top=2):
    """Inputs of experts; expert 3 is never chosen."""
    index = torch.stack([torch.randperm(count - 1)[:top] for _ in range(tokens)])
    return torch.randn(tokens, hidden), index, torch.rand(tokens, top)


IMAGE = torch.randn(2, 6, 9, 11)
SERIES = torch.randn(2, 6, 13)
CASES = {
    "linear": (lambda: nn.Linear(12, 7), lambda: (torch.randn(2, 3, 12),)),
    "linear without bias": (lambda: nn.Linear(12, 7, bias=False), lambda: (torch.randn(5, 12),)),
    "linear of one": (lambda: nn.Linear(1, 1), lambda: (torch.randn(1, 1),)),
    "gpt2": (lambda: conv1d(7, 12), lambda: (torch.randn(2, 3, 12),)),
    "conv1d": (lambda: nn.Conv1d(6, 4, 3), lambda: (SERIES,)),
    "conv1d grouped": (
        lambda: nn.Conv1d(6, 9, 3, stride=2, padding=1, dilation=2, groups=3, bias=False),
        lambda: (SERIES,),
    ),
    "conv1d circular": (
        lambda: nn.Conv1d(6, 4, 3, padding=2, padding_mode="circular"), lambda: (SERIES,)
    ),
    "conv2d": (lambda: nn.Conv2d(6, 4, 3), lambda: (IMAGE,)),
    "conv2d strided": (
        lambda: nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(1, 0)), lambda: (IMAGE,)
    ),
    "conv2d dilated": (lambda: nn.Conv2d(6, 4, 3, dilation=2), lambda: (IMAGE,)),
    "conv2d depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6, padding=1), lambda: (IMAGE,)),
    "conv2d same": (lambda: nn.Conv2d(6, 4, 3, padding="same"), lambda: (IMAGE,)),
    "conv2d reflect": (
        lambda: nn.Conv2d(6, 4, (5, 3), padding=(2, 1), padding_mode="reflect"), lambda: (IMAGE,)
    ),
    "conv2d unbatched": (lambda: nn.Conv2d(6, 4, 3), lambda: (IMAGE[0],)),
    "embedding": (lambda: nn.Embedding(20, 10), lambda: (torch.randint(20, (3, 4)),)),
    "embedding padded": (
        lambda: nn.Embedding(20, 10, padding_idx=2), lambda: (torch.tensor([2, 0, 19]),)
    ),
    "experts": (experts, routed),
}  # fmt: skip


def slots_of(module, compress):
    """Every slot's value; matrices are compressed as (out, in), experts slice by slice."""
    if is_conv1d(module):
        return {"weight": compress(module.weight.data.T.contiguous())}
    if isinstance(module, nn.Module) and hasattr(module, "gate_up_proj"):
        half = module.gate_up_proj.shape[1] // 2
        gate_up = [
            compress(rows.contiguous())
            for slice_ in module.gate_up_proj.data
            for rows in (slice_[:half], slice_[half:])
        ]
        down = [compress(slice_.contiguous()) for slice_ in module.down_proj.data]
        return {"gate_up_proj": Stacked(tuple(gate_up), 2), "down_proj": Stacked(tuple(down))}
    return {"weight": compress(module.weight.data)}


def pair(name, compress):
    """(the ordinary module with the values that the compressed one holds, the compressed one)."""
    module = CASES[name][0]().eval()
    values = slots_of(module, compress)
    expected = copy.deepcopy(module)
    for slot, value in values.items():
        dense = value.dense()
        expected.get_parameter(slot).data = dense.T if is_conv1d(module) else dense
    records = {slot: Record(value) for slot, value in values.items()}
    return expected, twin_class(module).from_module(module, records)


int4 = IntQuantizer(4, 8, symmetric=False).quantize


@pytest.mark.parametrize("compress", [Dense, int4], ids=["dense", "int4"])
@pytest.mark.parametrize("name", CASES)
def test_computes_what_the_dense_module_computes(name, compress):
    expected, compressed = pair(name, compress)
    inputs = CASES[name][1]()
    assert torch.allclose(compressed(*inputs), expected(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("gpt2", "experts")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_stored_without_loss_computes_without_loss(name, dtype):
    """To the bit: the bias is added before the result is rounded, as in the ordinary module."""
    module = CASES[name][0]().eval().to(dtype)
    records = {"weight": Record(Dense(module.weight.data))}
    compressed = twin_class(module).from_module(module, records)
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in CASES[name][1]())
    assert torch.equal(compressed(*inputs), module(*inputs))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_casting_leaves_codes_alone_and_still_computes(name, dtype):
    expected, compressed = pair(name, int4)
    codes = {slot: encode(record) for slot, record in compressed.records.items()}
    inputs = tuple(x.to(dtype) if x.is_floating_point() else x for x in CASES[name][1]())
    y = compressed.to(dtype)(*inputs)
    assert y.dtype == dtype
    assert {slot: encode(record) for slot, record in compressed.records.items()} == codes
    tolerance = 1e-6 if dtype == torch.float64 else 0.1
    assert torch.allclose(y, expected.to(dtype)(*inputs), atol=tolerance, rtol=tolerance)


def test_half_and_double():
    _, compressed = pair("linear", int4)
    assert compressed.half()(torch.randn(1, 12).half()).dtype == torch.float16
    assert compressed.double()(torch.randn(1, 12).double()).dtype == torch.float64
    _, table = pair("embedding", int4)
    assert table.half()(torch.tensor([1])).dtype == torch.float16


@pytest.mark.parametrize("name", CASES)
def test_state_dict_has_blobs_under_the_names_of_the_weights(name):
    expected, compressed = pair(name, int4)
    state, dense = compressed.state_dict(), expected.state_dict()
    assert set(state) == set(dense)
    for slot in compressed.slot_names:
        assert state[slot].dtype == torch.uint8 and state[slot].ndim == 1
        assert state[slot].numpy().tobytes() == encode(compressed.records[slot])
    if "bias" in dense:
        assert torch.equal(state["bias"], dense["bias"])


@pytest.mark.parametrize("name", CASES)
def test_load_state_dict_into_another(name):
    _, source = pair(name, int4)
    _, other = pair(name, Dense)
    inputs = CASES[name][1]()
    assert not torch.equal(other(*inputs), source(*inputs))
    result = other.load_state_dict(source.state_dict())
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(other(*inputs), source(*inputs))


@pytest.mark.parametrize("name", CASES)
def test_empty_module_takes_blobs_as_buffers_then_values(name):
    """As transformers does it: sized on the meta device, filled, decoded."""
    module = CASES[name][0]()
    _, source = pair(name, int4)
    state = source.state_dict()
    with torch.device("meta"):
        empty = twin_class(module).from_module(
            module, {s: state[s].numel() for s in source.slot_names}
        )
    assert {n: tuple(b.shape) for n, b in empty.named_buffers()} == {
        s: tuple(state[s].shape) for s in source.slot_names
    }
    assert "not loaded" in repr(empty)
    empty.load_state_dict(state, assign=True)
    materialise(empty)
    assert not list(empty.buffers())
    inputs = CASES[name][1]()
    assert torch.equal(empty(*inputs), source(*inputs))


@pytest.mark.parametrize("name", CASES)
def test_copies_and_pickles(name):
    _, compressed = pair(name, int4)
    inputs = CASES[name][1]()
    for twin in (copy.deepcopy(compressed), pickle.loads(pickle.dumps(compressed))):
        assert torch.equal(twin(*inputs), compressed(*inputs))
        assert twin.records is not compressed.records
        assert encode(next(iter(twin.records.values()))) == encode(
            next(iter(compressed.records.values()))
        )


class TestStateDict:
    def model(self, compress=int4):
        model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        for path in ("0", "1.0"):
            weight = model.get_submodule(path).weight.data
            replace_module(model, path, {"weight": Record(compress(weight))})
        return model

    def test_missing_and_unexpected_keys_are_told(self):
        model = self.model()
        state = model.state_dict()
        del state["1.0.weight"]
        state["more"] = torch.zeros(1)
        with pytest.raises(RuntimeError, match=r'Missing key.*"1\.0\.weight"') as error:
            model.load_state_dict(state)
        assert '"more"' in str(error.value)
        result = model.load_state_dict(state, strict=False)
        assert result.missing_keys == ["1.0.weight"] and result.unexpected_keys == ["more"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
    def test_dense_weights_are_not_taken_for_blobs(self, dtype):
        model = self.model()
        state = model.state_dict() | {"0.weight": torch.ones(8, 8).to(dtype)}
        with pytest.raises(CorruptFile):
            model.load_state_dict(state)

    def test_damaged_blobs_name_the_module(self):
        model = self.model()
        state = model.state_dict()
        state["1.0.weight"][40] ^= 1
        empty = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
        for path in ("0", "1.0"):
            replace_module(empty, path, {"weight": state[f"{path}.weight"].numel()})
            empty.get_submodule(path)._buffers["weight"] = state[f"{path}.weight"]
        with pytest.raises(CorruptFile, match=r"^1\.0: "):
            materialise(empty)

    def test_copies_are_independent(self):
        model = self.model()
        twin = copy.deepcopy(model)
        twin.load_state_dict(self.model(Dense).state_dict())
        assert model[0].weight.format.startswith("int4")
        assert twin[0].weight.format == "float32"


class TestPreparedInputs:
    """What stands before the weight: a transform, an activation quantizer, or both."""

    scale = torch.rand(12) + 0.5
    activation = IntQuantizer(8, "row", symmetric=False)

    def linear(self, transform, activation):
        layer = nn.Linear(12, 7)
        weight = layer.weight.data * (self.scale if transform else 1)
        record = Record(int4(weight), transform, activation)
        return layer, CompressedLinear.from_module(layer, {"weight": record})

    @pytest.mark.parametrize("with_scale", [True, False])
    @pytest.mark.parametrize("with_activation", [True, False])
    def test_linear(self, with_scale, with_activation):
        transform = ChannelScale(self.scale) if with_scale else None
        activation = self.activation if with_activation else None
        layer, compressed = self.linear(transform, activation)
        x = torch.randn(2, 5, 12)
        prepared = x / self.scale if with_scale else x
        if with_activation:
            prepared = self.activation.project(prepared.reshape(10, 12)).reshape(2, 5, 12)
        expected = nn.functional.linear(prepared, compressed.weight.dense(), layer.bias)
        assert torch.allclose(compressed(x), expected, atol=1e-6)

    def test_round_trip_through_the_state_dict(self):
        _, compressed = self.linear(ChannelScale(self.scale), self.activation)
        _, other = self.linear(None, None)
        other.load_state_dict(compressed.state_dict())
        x = torch.randn(4, 12)
        assert torch.equal(other(x), compressed(x))
        assert other.records["weight"].activation == self.activation

    def test_transforms_count_as_resident(self):
        _, plain = self.linear(None, None)
        _, scaled = self.linear(ChannelScale(self.scale), None)
        assert scaled.resident_bytes - plain.resident_bytes == self.scale.nbytes

    @pytest.mark.parametrize("size", [(9, 11), (6, 6)])  # as wide as there are channels, too
    def test_convolutions_scale_channels_not_columns(self, size):
        layer = nn.Conv2d(6, 4, 3)
        scale = torch.rand(6) + 0.5
        weight = layer.weight.data * scale[:, None, None]
        record = Record(Dense(weight), ChannelScale(scale))
        compressed = CompressedConv2d.from_module(layer, {"weight": record})
        x = torch.randn(2, 6, *size)
        assert torch.allclose(compressed(x), layer(x), atol=1e-5)
        series = nn.Conv1d(6, 4, 3)
        record = Record(Dense(series.weight.data * scale[:, None]), ChannelScale(scale))
        compressed = CompressedConv1d.from_module(series, {"weight": record})
        assert torch.allclose(compressed(SERIES), series(SERIES), atol=1e-5)

    def test_experts_have_one_for_each_projection(self):
        module = experts()
        inputs = routed()
        expected = module(*inputs)
        scale = torch.rand(16) + 0.5
        values = slots_of(module, Dense)
        gate_up = Stacked(tuple(Dense(p.value * scale) for p in values["gate_up_proj"].parts), 2)
        records = {
            "gate_up_proj": Record(gate_up, ChannelScale(scale)),
            "down_proj": Record(values["down_proj"]),
        }
        compressed = CompressedExperts.from_module(module, records)
        assert torch.allclose(compressed(*inputs), expected, atol=1e-5)


class TestExperts:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_equals_the_eager_forward_of_transformers(self, dtype):
        module = experts().to(dtype)
        records = {slot: Record(value) for slot, value in slots_of(module, Dense).items()}
        compressed = CompressedExperts.from_module(module, records)
        x, index, weights = routed(tokens=33)
        inputs = x.to(dtype), index, weights.to(dtype)
        tolerance = 1e-5 if dtype == torch.float32 else 0.05
        assert torch.allclose(compressed(*inputs), module(*inputs), atol=tolerance, rtol=tolerance)

    def test_only_chosen_experts_are_decoded(self, monkeypatch):
        _, compressed = pair("experts", int4)
        decoded = []
        original = Stacked.slice
        monkeypatch.setattr(
            Stacked,
            "slice",
            lambda self, number, dtype: decoded.append(number) or original(self, number, dtype),
        )
        compressed(torch.randn(2, 16), torch.tensor([[2], [0]]), torch.ones(2, 1))
        assert sorted(decoded) == [0, 0, 2, 2]

    def test_no_tokens(self):
        _, compressed = pair("experts", int4)
        empty = torch.zeros(0, 2, dtype=torch.int64)
        assert compressed(torch.zeros(0, 16), empty, torch.zeros(0, 2)).shape == (0, 16)


class TestTies:
    def test_head_and_second_table_follow_the_first(self):
        table = nn.Embedding(20, 10)
        _, compressed = (
            table,
            CompressedEmbedding.from_module(table, {"weight": Record(int4(table.weight.data))}),
        )
        bias = nn.Parameter(torch.randn(20))
        head, twin = TiedLinear(compressed, bias), TiedEmbedding(compressed)
        dense, x, index = compressed.weight.dense(), torch.randn(3, 10), torch.tensor([4, 19])
        assert torch.allclose(head(x), x @ dense.T + bias, atol=1e-5)
        assert torch.equal(twin(index), dense[index])
        assert list(head.state_dict()) == ["bias"] and list(twin.state_dict()) == []
        assert list(head.modules()) == [head]

    def test_ties_survive_a_deep_copy(self):
        table = nn.Embedding(20, 10)
        model = nn.Module()
        model.table = CompressedEmbedding.from_module(
            table, {"weight": Record(Dense(table.weight.data))}
        )
        model.head = TiedLinear(model.table)
        twin = copy.deepcopy(model)
        assert twin.head.__dict__["embedding"] is twin.table is not model.table


class TestReplace:
    @pytest.mark.parametrize("training", [True, False])
    def test_keeps_the_mode(self, training):
        model = nn.Sequential(nn.Linear(4, 4)).train(training)
        compressed = replace_module(model, "0", {"weight": Record(Dense(model[0].weight.data))})
        assert compressed.training == training and model[0] is compressed
        assert model.eval()[0].training is False and model.train()[0].training is True

    def test_shares_the_bias(self):
        model = nn.Sequential(nn.Linear(4, 4))
        bias = model[0].bias
        replace_module(model, "0", {"weight": Record(Dense(model[0].weight.data))})
        assert model[0].bias is bias and [n for n, _ in model.named_parameters()] == ["0.bias"]

    @pytest.mark.parametrize("path", ["1", "0.more", "relu"])
    def test_what_cannot_be_replaced(self, path):
        model = nn.Sequential(nn.Linear(4, 4))
        model.relu = nn.ReLU()
        with pytest.raises(UnsupportedModel, match=path):
            replace_module(model, path, {"weight": Record(Dense(torch.zeros(4, 4)))})

    def test_twins(self):
        class Offset(nn.Embedding):
            pass

        class Special(nn.Linear):
            pass

        assert twin_class(nn.Linear(2, 2)) is CompressedLinear
        assert twin_class(conv1d(2, 2)) is CompressedLinear
        assert twin_class(experts()) is CompressedExperts
        for module in (
            Offset(3, 2), Special(2, 2), nn.Embedding(3, 2, max_norm=1.0), nn.LayerNorm(3),
            nn.ReLU(), nn.ConvTranspose2d(2, 2, 3), nn.Conv3d(2, 2, 3), nn.Module(),
            nn.Bilinear(2, 2, 2), pair("linear", int4)[1], pair("experts", int4)[1],
        ):  # fmt: skip
            assert twin_class(module) is None


def test_prints_what_it_holds():
    assert "weight=int4 g8 asymmetric [7, 12]" in repr(pair("linear", int4)[1])
    assert "down_proj=float32 [4, 16, 12]" in repr(pair("experts", Dense)[1])


def test_weight_is_the_compressed_value_and_nothing_else_is_invented():
    _, compressed = pair("linear", int4)
    assert compressed.weight is compressed.values["weight"]
    assert compressed.weight.shape == (7, 12) and compressed.weight.dtype == torch.float32
    with pytest.raises(AttributeError):
        compressed.not_there
    assert same_bits(compressed.weight.dense(), compressed.records["weight"].weight.dense())


def test_fused_layers_of_torch_call_their_parts():
    """nn.TransformerEncoderLayer hands its parts' weights to one kernel in evaluation mode."""
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True).eval()
    x = torch.randn(2, 3, 16)
    with torch.no_grad():
        expected = layer(x)
        for path in ("linear1", "linear2"):
            weight = layer.get_submodule(path).weight.data
            replace_module(layer, path, {"weight": Record(Dense(weight))})
        assert torch.allclose(layer(x), expected, atol=1e-5)


CONVOLUTIONS = [name for name in CASES if name.startswith("conv") and "unbatched" not in name]


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "valid", "same in a line"])
def test_an_observed_convolution_is_its_kernels_times_what_it_shows(name):
    extra = {
        "valid": (nn.Conv2d(6, 4, 3, padding="valid", stride=2), IMAGE),
        "same in a line": (nn.Conv1d(6, 4, 4, padding="same", dilation=2, groups=2), SERIES),
    }
    conv, x = extra[name] if name in extra else (CASES[name][0](), CASES[name][1]()[0])
    compressed = twin_class(conv).from_module(conv, {"weight": Record(Dense(conv.weight.data))})
    seen = []
    compressed.observer = seen.append
    y = compressed(x)
    assert torch.allclose(y, conv(x), atol=1e-5)
    (sight,) = seen
    assert sight.raw is x and torch.equal(sight.outputs, y.movedim(1, -1))
    kernels = conv.weight.flatten(1).view(conv.groups, -1, conv.weight[0].numel())
    patches = sight.inputs.view(2, conv.groups, -1, kernels.shape[-1])
    out = torch.einsum("bgnc,goc->bgon", patches, kernels).reshape(2, conv.out_channels, -1)
    bias = 0 if conv.bias is None else conv.bias[:, None]
    assert torch.allclose((out + bias).reshape(y.shape), y, atol=1e-4)


def test_patches_are_of_what_the_transform_makes():
    conv, scale, seen = nn.Conv2d(6, 4, 3), torch.rand(6) + 0.5, []
    record = Record(Dense(conv.weight.data), ChannelScale(scale))
    compressed = CompressedConv2d.from_module(conv, {"weight": record})
    compressed.observer = seen.append
    compressed(IMAGE)
    expected = compressed.patches(IMAGE / scale[:, None, None])
    assert torch.allclose(seen[0].inputs, expected, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_what_is_foreseen_is_what_is_shown(name):
    module, inputs = CASES[name][0](), CASES[name][1]()
    slots = {n: Record(v) for n, v in slots_of(module, Dense).items()}
    compressed, seen = twin_class(module).from_module(module, slots), []
    compressed.observer = seen.append
    foreseen = compressed.foresee(*inputs)
    compressed(*inputs)
    if foreseen is None:
        assert name.startswith(("embedding", "experts"))
    else:
        assert foreseen.slot == seen[0].slot and torch.equal(foreseen.inputs, seen[0].inputs)
        assert foreseen.outputs.numel() == 0


def test_where_a_model_is():
    layer = nn.Linear(4, 4, bias=False)
    assert device_of(layer.to("meta")).type == "meta"
    assert device_of(nn.BatchNorm1d(3, affine=False, device="meta")).type == "meta"
    held = CompressedLinear.from_module(layer, {"weight": Record(Dense(torch.ones(4, 4)))})
    assert device_of(nn.Sequential(nn.ReLU(), held)).type == "cpu"
    assert device_of(nn.Sequential(held).to("meta")).type == "meta"
    assert device_of(nn.ReLU()).type == "cpu"


def test_experts_that_are_no_stack():
    module = experts()
    slots = slots_of(module, Dense)
    records = {name: Record(value) for name, value in slots.items()}
    records["down_proj"] = Record(Dense(module.down_proj.data))
    with pytest.raises(UsageError, match="compute with a stack, found Dense"):
        CompressedExperts.from_module(module, records)(*routed())
