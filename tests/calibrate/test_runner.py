import pytest
import torch
from torch import nn

from laconic.calibrate.extras import choose_extra
from laconic.calibrate.reports import relative_error
from laconic.calibrate.runner import run_layers
from laconic.errors import BadWeights, UsageError
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MemorySource
from laconic.models.sink import Sink
from laconic.tensors import Dense, IntQuantizer, Stacked
from laconic.tensors.stored import Record
from tests.models.tiny import TINY
from tests.tensors.strategies import same_bits


class Keeps(Sink):
    """Keeps all it is given, and in which order."""

    def __init__(self):
        self.modules, self.kept, self.tensors, self.order = {}, {}, {}, []

    def put_module(self, path, slots):
        self.order.append(path)
        self.modules[path] = slots
        return {name: record.weight.stored_bytes for name, record in slots.items()}

    def keep_module(self, path, slots):
        self.order.append(path)
        self.kept[path] = slots

    def put_tensor(self, name, tensor):
        self.order.append(name)
        self.tensors[name] = tensor


class Each:
    """A step that makes a value of each weight, as `compress` says."""

    wants, changes_inputs, follows_dense = (), False, False

    def __init__(self, compress):
        self.compress = compress

    def revise(self, layer, weight, record, stats):
        return Record(self.compress(weight))


TO_DENSE = [Each(Dense)]


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("also", [(), ("embeddings", "rest")], ids=["blocks", "all"])
def test_every_tensor_goes_to_the_sink_exactly_once(name, also, tiny_models):
    source, sink = HuggingFaceSource(tiny_models[name]), Keeps()
    run_layers(source, sink, TO_DENSE, also=also)
    slots = {
        f"{path}.{slot}": record.weight.dense()
        for group in (sink.modules, sink.kept)
        for path, records in group.items()
        for slot, record in records.items()
    }
    assert not set(slots) & set(sink.tensors)
    assert len(sink.order) == len(set(sink.order))
    transposed = {la.parameter for b in source.blocks for la in b.layers if la.transposed}
    for key, tensor in source.read(source.sizes()).items():
        expected = tensor.T if key in transposed else tensor
        assert same_bits(slots.get(key, sink.tensors.get(key)), expected.contiguous()), key
    assert set(slots) | set(sink.tensors) == set(source.sizes())


@pytest.mark.parametrize("name", TINY)
def test_what_also_chooses(name, tiny_models):
    source, extra = HuggingFaceSource(tiny_models[name]), TINY[name].extra
    kinds = {layer.name: layer.kind for layer in source.extra_layers}
    embeddings = [n for n in extra if kinds[n] == "embedding"]
    assert [la.name for la in choose_extra(source, ["embeddings"])[0]] == embeddings
    rest = [n for n in extra if n not in embeddings]
    assert [la.name for la in choose_extra(source, ["rest"])[0]] == rest
    assert [la.name for la in choose_extra(source, extra[-1:])[0]] == list(extra[-1:])
    chosen, kept = choose_extra(source, ())
    assert chosen == [] and {la.module for la in kept.values()} == set(extra)


def test_also_names_nothing(tiny_models):
    source = HuggingFaceSource(tiny_models["llama"])
    with pytest.raises(UsageError, match=r"did you mean 'lm_head'"):
        run_layers(source, Keeps(), TO_DENSE, also=["lm_haed"])
    with pytest.raises(UsageError):  # tied: it has no state of its own
        choose_extra(HuggingFaceSource(tiny_models["qwen3"]), ["lm_head"])


def test_reports_are_exact(tiny_models):
    source, sink = HuggingFaceSource(tiny_models["qwen3_moe"]), Keeps()
    quantize = IntQuantizer(4, 16).quantize
    reports = run_layers(source, sink, [Each(quantize)])
    layers = {la.name: la for block in source.blocks for la in block.layers}
    assert [r.name for r in reports] == list(layers)
    tensors = source.read(source.sizes())
    for report in reports:
        layer = layers[report.name]
        weight = layer.take(tensors)
        value = quantize(weight)
        assert (report.weights, report.format) == (weight.numel(), value.format)
        assert report.resident_bits_per_weight == 8 * value.resident_bytes / weight.numel()
        lost = (weight.double() - value.dense().double()).norm() / weight.double().norm()
        assert report.error == pytest.approx(lost.item() ** 2, rel=0.05)
    for path, slots in sink.modules.items():
        stored = sum(record.weight.stored_bytes for record in slots.values())
        mine = [r for r in reports if layers[r.name].module == path]
        assert sum(r.bits_per_weight * r.weights / 8 for r in mine) == pytest.approx(stored)


def test_experts_become_one_stack_in_the_order_of_the_parameter(tiny_models):
    source, sink = HuggingFaceSource(tiny_models["qwen3_moe"]), Keeps()
    run_layers(source, sink, TO_DENSE)
    slots = sink.modules["model.layers.1.mlp.experts"]
    assert set(slots) == {"gate_up_proj", "down_proj"}
    assert all(isinstance(record.weight, Stacked) for record in slots.values())
    name = "model.layers.1.mlp.experts.gate_up_proj"
    assert same_bits(slots["gate_up_proj"].weight.dense(), source.read([name])[name])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "parameter", "says"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight", "model.layers.1.mlp.down_proj.weight"),
        ("gpt2", "transformer.h.1.attn.c_attn.weight", "transformer.h.1.attn.c_attn.weight"),
        ("qwen3_moe", "model.layers.1.mlp.experts.gate_up_proj", "experts.3.up_proj.weight"),
    ],
)
def test_damaged_weights_are_named(name, parameter, says, bad):
    model = TINY[name].model()
    model.get_parameter(parameter).data.view(-1)[-1] = bad
    with pytest.raises(BadWeights, match=says.replace(".", r"\.")) as error:
        run_layers(MemorySource(model), Keeps(), TO_DENSE)
    assert str(bad) in str(error.value)


def test_one_block_at_a_time(tiny_models):
    source = HuggingFaceSource(tiny_models["llama"])
    asked, original = [], source.read
    source.read = lambda names: asked.append(list(names)) or original(asked[-1])
    run_layers(source, Keeps(), TO_DENSE)
    blocks = [{n.split(".")[2] for n in names if ".layers." in n} for names in asked]
    assert all(len(numbers) <= 1 for numbers in blocks)
    assert len([n for names in asked for n in names]) == len(source.sizes())


def test_progress_follows_the_blocks():
    class Counts:
        def track(self, items, what, total=None):
            seen.append(what)
            for number, block in items:
                seen.append(block.name)
                yield number, block

    seen = []
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    run_layers(MemorySource(model), Keeps(), TO_DENSE, progress=Counts())
    assert seen == ["compressing blocks", "0", "1"]


def test_relative_error():
    weight = torch.tensor([[3.0, 4.0]])
    assert relative_error(weight, Dense(torch.tensor([[3.0, 0.0]]))) == pytest.approx(16 / 25)
    assert relative_error(torch.zeros(2, 2), Dense(torch.zeros(2, 2))) == 0
    assert relative_error(weight * 1e30, Dense(weight * 0)) == pytest.approx(1)
