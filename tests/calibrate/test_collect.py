import pytest
import torch
from torch import nn
from torch.nn import functional as F

from laconic.calibrate.collect import collect
from laconic.calibrate.live import LiveBlock
from laconic.calibrate.statistics import AbsMax, CrossMoment, InputNorm, OutputMoment, SecondMoment
from laconic.calibrate.stream import SequentialStream, WholeStream, open_stream
from laconic.errors import BadWeights, DataError
from laconic.models.huggingface import HuggingFaceSource
from laconic.models.memory import MemorySource
from laconic.models.open import open_source
from laconic.tensors import Dense, IntQuantizer, Stacked
from laconic.tensors.stored import Record
from laconic.tensors.transforms import ChannelScale
from tests.models.tiny import TINY

WANTS = (SecondMoment(), InputNorm(), AbsMax(), OutputMoment())


def sequences(name, count=3):
    whole = TINY[name].inputs(seed=1)
    return [
        {k: (v[i % 2 : i % 2 + 1] if "pixel" in k else v[i % 2 : i % 2 + 1, : 4 + i])
         for k, v in whole.items()} for i in range(count)
    ]  # fmt: skip


def logits(answer):
    return getattr(answer, "logits", answer)


@pytest.fixture
def two_threads():
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("folder", [False, True], ids=["memory", "disk"])
def test_block_by_block_is_the_whole_model(name, folder, tiny_models, tmp_path):
    source, inputs = HuggingFaceSource(tiny_models[name]), sequences(name)
    model = TINY[name].model().float()
    with torch.inference_mode():
        stream = open_stream(source, inputs, folder=tmp_path if folder else None)
        assert isinstance(stream, SequentialStream)
        for number, block in enumerate(source.blocks):
            stream.advance(number, LiveBlock(source, block).module)
        for number, given in enumerate(inputs):
            expected = model(**{k: v.float() if "pixel" in k else v for k, v in given.items()})
            torch.testing.assert_close(logits(stream.finish(number)), expected.logits)


def test_blocks_with_something_between_them():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3))
    source, inputs = MemorySource(model.eval()), [{"x": torch.randn(4, 6)} for _ in range(3)]
    with torch.inference_mode():
        stream = open_stream(source, inputs)
        assert isinstance(stream, WholeStream)
        twin = stream.fork()
        for number, block in enumerate(source.blocks):
            live = LiveBlock(source, block)
            stats = collect(
                live, live.layers, [SecondMoment()], lambda s, n=number, m=live: stream.run(n, m.module, s),
                range(3),
            )  # fmt: skip
            assert stats[block.name].count(SecondMoment()) == 12
            live.install(
                live.layers[0], Record(IntQuantizer(2, "row").quantize(live.weight(live.layers[0])))
            )
            stream.advance(number, live.module)
        assert not torch.allclose(stream.finish(0), model(input=inputs[0]["x"]))
        torch.testing.assert_close(twin.finish(0), model(inputs[0]["x"]))
    assert all(type(m) is not LiveBlock for m in model.modules())
    assert not stream.resume(1)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3_moe", "vit"])
def test_what_layers_saw(name, tiny_models):
    """Against forward hooks on the ordinary model."""
    source, inputs = HuggingFaceSource(tiny_models[name]), sequences(name)
    model = TINY[name].model().float()
    block = source.blocks[0]
    linear = [la for la in block.layers if la.part is None]
    seen = {la.name: [] for la in linear}
    for la in linear:
        model.get_submodule(la.module).register_forward_hook(
            lambda m, args, out, n=la.name: seen[n].append((args[0], out))
        )
    with torch.inference_mode():
        for given in inputs:
            model(**{k: v.float() if "pixel" in k else v for k, v in given.items()})
        stream = open_stream(source, inputs)
        live = LiveBlock(source, block)
        stats = collect(live, live.layers, WANTS, lambda s: stream.run(0, live.module, s), range(3))
    for la in linear:
        x = torch.cat([x.flatten(0, -2) for x, _ in seen[la.name]]).double()
        y = torch.cat([y.flatten(0, -2) for _, y in seen[la.name]]).double()
        found = stats[la.name]
        assert found.count(SecondMoment()) == len(x)
        torch.testing.assert_close(
            found.mean(SecondMoment()), x.T @ x / len(x), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            found.mean(OutputMoment()), y.T @ y / len(y), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            found[AbsMax()]["high"].double(), x.amax(0), rtol=1e-4, atol=1e-5
        )


def test_experts_are_counted_by_what_is_routed_to_them(tiny_models):
    source = HuggingFaceSource(tiny_models["qwen3_moe"])
    inputs = sequences("qwen3_moe")
    tokens = sum(given["input_ids"].numel() for given in inputs)
    with torch.inference_mode():
        stream, live = open_stream(source, inputs), LiveBlock(source, source.blocks[0])
        stats = collect(live, live.layers, WANTS, lambda s: stream.run(0, live.module, s), range(3))
    by = {la.name: stats[la.name] for la in live.layers if la.kind == "expert"}
    gates = [s for n, s in by.items() if n.endswith("gate_proj")]
    assert sum(s.count(SecondMoment()) for s in gates) == 2 * tokens  # two experts each
    for name, found in by.items():
        if name.endswith("gate_proj") and found.count(SecondMoment()):
            up = by[name.replace("gate", "up")]
            assert up.collected[SecondMoment()] is found.collected[SecondMoment()]
            assert found.collected[OutputMoment()] is not up.collected[OutputMoment()]
            assert found[OutputMoment()]["moment"].shape == (24, 24)


CONVOLUTIONS = {
    "plain": nn.Conv2d(3, 8, 3),
    "strided": nn.Conv2d(3, 8, (3, 2), stride=2, padding=1, dilation=(1, 2)),
    "groups": nn.Conv2d(4, 8, 3, groups=2, padding=2),
    "same": nn.Conv2d(3, 8, (3, 4), padding="same"),
    "valid": nn.Conv2d(3, 8, 3, padding="valid"),
    "reflect": nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect"),
    "line": nn.Conv1d(4, 6, 3, stride=2, padding=1),
    "line in groups": nn.Conv1d(4, 6, 3, padding="same", groups=2),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_of_convolutions(name):
    """A convolution is its kernels times its patches."""
    conv = CONVOLUTIONS[name]
    model = nn.Sequential(conv).eval()
    flat = isinstance(conv, nn.Conv1d)
    x = torch.randn(2, conv.in_channels, *((13,) if flat else (9, 10)))
    source = MemorySource(model)
    live = LiveBlock(source, source.blocks[0])
    with torch.inference_mode(), live.watched(live.layers) as watch, watch.trace() as trace:
        y = live.module(x)
    ((_, sight),) = trace
    kernels = conv.weight.flatten(1).view(conv.groups, -1, conv.weight[0].numel())
    patches = sight.inputs.view(2, conv.groups, -1, kernels.shape[-1])
    out = torch.einsum("bgnc,goc->bgon", patches, kernels).reshape(2, conv.out_channels, -1)
    if conv.bias is not None:
        out = out + conv.bias[:, None]
    torch.testing.assert_close(out.reshape(y.shape), conv(x))
    torch.testing.assert_close(y, conv(x))


class TestSameBits:
    @pytest.fixture
    def run(self, tiny_models):
        def run(threads, batch):
            source, inputs = HuggingFaceSource(tiny_models["llama"]), sequences("llama", 9)
            torch.set_num_threads(threads)
            try:
                with torch.inference_mode():
                    stream, live = open_stream(source, inputs), LiveBlock(source, source.blocks[0])
                    return collect(
                        live, live.layers, WANTS, lambda s: stream.run(0, live.module, s), range(9),
                        batch=batch,
                    )  # fmt: skip
            finally:
                torch.set_num_threads(1)

        return run

    @pytest.mark.parametrize(("threads", "batch"), [(1, 8), (2, 1), (2, 8), (2, 0)])
    def test_whatever_the_threads_and_the_batch(self, run, threads, batch):
        once, again = run(1, 1), run(threads, batch)
        for name, stats in once.items():
            for statistic, sums in stats.collected.items():
                for key, tensor in sums.sums.items():
                    assert torch.equal(tensor, again[name].collected[statistic].sums[key])


class TestReference:
    def test_against_the_dense_model(self, tiny_models):
        source, inputs = HuggingFaceSource(tiny_models["llama"]), sequences("llama")
        with torch.inference_mode():
            stream = open_stream(source, inputs)
            dense = stream.fork()
            first = LiveBlock(source, source.blocks[0])
            dense.advance(0, first.module)
            for layer in first.layers:
                first.install(layer, Record(IntQuantizer(2, "row").quantize(first.weight(layer))))
            stream.advance(0, first.module)
            live = LiveBlock(source, source.blocks[1])
            stats = collect(
                live, live.layers, [SecondMoment(), CrossMoment()],
                lambda s: stream.run(1, live.module, s), range(3),
                reference=(live, lambda s: dense.run(1, live.module, s)),
            )  # fmt: skip
        found = stats[live.layers[0].name]
        cross, own = found.mean(CrossMoment(), "cross"), found.mean(SecondMoment())
        assert not torch.allclose(cross, own, rtol=1e-3)
        assert not torch.allclose(cross, cross.T, rtol=1e-3)

    def test_nothing_compressed_yet_is_the_own_moment(self, tiny_models):
        source, inputs = HuggingFaceSource(tiny_models["qwen3_moe"]), sequences("qwen3_moe")
        with torch.inference_mode():
            stream, live = open_stream(source, inputs), LiveBlock(source, source.blocks[0])

            def run(s):
                return stream.run(0, live.module, s)

            stats = collect(
                live,
                live.layers,
                [SecondMoment(), CrossMoment()],
                run,
                range(3),
                reference=(live, run),
            )
        for found in stats.values():
            if found.count(SecondMoment()):
                torch.testing.assert_close(
                    found.mean(CrossMoment(), "cross"), found.mean(SecondMoment())
                )


class TestLive:
    def test_installing_changes_what_the_block_computes_and_nothing_else(self, tiny_models):
        source = HuggingFaceSource(tiny_models["llama"])
        live, other = (LiveBlock(source, source.blocks[0]) for _ in range(2))
        layer = live.layers[3]
        scale = torch.rand(layer.shape[1]) + 0.5
        folded = live.weight(layer).float() * scale
        live.install(layer, Record(Dense(folded), ChannelScale(scale)))
        assert isinstance(live.record(layer).transform, ChannelScale)
        x = torch.randn(2, 5, layer.shape[1])
        path = layer.module.removeprefix("model.layers.0.")
        torch.testing.assert_close(
            live.module.get_submodule(path)(x), F.linear(x, live.weight(layer).float()),
            rtol=1e-4, atol=1e-5,
        )  # fmt: skip
        assert (
            isinstance(other.record(layer).weight, Dense) and other.record(layer).transform is None
        )

    def test_experts_with_transforms_of_their_own(self, tiny_models):
        source = HuggingFaceSource(tiny_models["qwen3_moe"])
        live = LiveBlock(source, source.blocks[0])
        layer = next(la for la in live.layers if la.part is not None and la.part.position == 2)
        scale = torch.rand(layer.shape[1]) + 0.5
        live.install(layer, Record(Dense(live.weight(layer).float() * scale), ChannelScale(scale)))
        stack = live.slots()[layer.module][layer.slot].weight
        assert isinstance(stack, Stacked)
        torch.testing.assert_close(
            stack.parts[2].dense(torch.float32), live.weight(layer).float(), rtol=1e-5, atol=1e-6
        )

    def test_damaged_weights_are_named(self):
        model = TINY["gpt2"].model()
        model.transformer.h[0].mlp.c_fc.weight.data[1, 2] = float("nan")
        source = MemorySource(model)
        with pytest.raises(BadWeights, match=r"h\.0\.mlp\.c_fc\.weight holds nan at \[2, 1\]"):
            LiveBlock(source, source.blocks[0])

    def test_the_model_in_memory_is_not_touched(self):
        model = TINY["llama"].model()
        before = {k: (v.data_ptr(), v.dtype) for k, v in model.state_dict().items()}
        source = MemorySource(model)
        with torch.inference_mode():
            stream = open_stream(source, sequences("llama"))
            stream.advance(0, LiveBlock(source, source.blocks[0]).module)
        assert before == {k: (v.data_ptr(), v.dtype) for k, v in model.state_dict().items()}
        assert model.config.use_cache


class TestBadData:
    def test_no_sequences(self, tiny_models):
        with pytest.raises(DataError, match="no calibration sequences"):
            open_stream(open_source(tiny_models["llama"]), [])

    def test_of_another_kind(self, tiny_models):
        with pytest.raises(DataError, match="cannot take this data"):
            open_stream(
                open_source(tiny_models["llama"]), [{"pixel_values": torch.randn(1, 3, 4, 4)}]
            )
