import json
import os
import shutil

import pytest
from safetensors.torch import load_file, save_file

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.models.huggingface import HuggingFaceSource, build_skeleton, load_config, model_class
from tests.models.tiny import TINY
from tests.tensors.strategies import same_bits


def reference(folder):
    """What transformers makes of the directory; tied tensors once."""
    model = model_class(load_config(folder)).from_pretrained(folder, dtype="auto")
    return {k: v for k, v in model.state_dict().items() if k not in model.all_tied_weights_keys}


def assert_equals_transformers(folder):
    source, expected = HuggingFaceSource(folder), reference(folder)
    assert set(source.sizes()) == set(expected)
    found = source.read(source.sizes())
    for name, tensor in expected.items():
        assert same_bits(found[name], tensor), name
        assert source.sizes()[name] == tensor.nbytes
        assert same_bits(source.read([name])[name], tensor), name
    assert source.dense_bytes == sum(t.nbytes for t in expected.values())


def edit(folder, change):
    path = folder / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"format": "pt"})


@pytest.fixture
def folder(request, tiny_models, tmp_path):
    """A copy of the tiny llama, or of the one that the test names, to be damaged."""
    return shutil.copytree(tiny_models[getattr(request, "param", "llama")], tmp_path / "model")


@pytest.mark.parametrize("name", TINY)
def test_reads_what_transformers_loads(name, tiny_models):
    assert_equals_transformers(tiny_models[name])


@pytest.mark.parametrize("name", TINY)
def test_reads_shards(name, tiny_models, tmp_path):
    TINY[name].model().save_pretrained(tmp_path, max_shard_size="15KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    assert_equals_transformers(tmp_path)
    whole = HuggingFaceSource(tiny_models[name])
    assert HuggingFaceSource(tmp_path).sizes() == whole.sizes()


@pytest.mark.parametrize("name", TINY)
def test_blocks_and_layers(name, tiny_models):
    source, tiny = HuggingFaceSource(tiny_models[name]), TINY[name]
    assert [len(block.layers) for block in source.blocks] == [tiny.layers] * 2
    assert tuple(layer.name for layer in source.extra_layers) == tiny.extra
    names = [la.name for block in source.blocks for la in block.layers]
    assert len(set(names)) == len(names)
    for block in source.blocks:
        tensors = source.read({layer.parameter for layer in block.layers})
        for layer in block.layers:
            weight = layer.take(tensors)
            assert weight.shape == layer.shape and weight.is_contiguous()
            assert layer.name.startswith(block.name)
    assert {p.device.type for p in source.skeleton.parameters()} == {"meta"}


def test_experts_are_named_and_cut_as_on_disk(tiny_models):
    source = HuggingFaceSource(tiny_models["qwen3_moe"])
    on_disk = load_file(tiny_models["qwen3_moe"] / "model.safetensors")
    experts = [la for la in source.blocks[1].layers if la.kind == "expert"]
    assert len(experts) == 3 * 4
    tensors = source.read({layer.parameter for layer in experts})
    for layer in experts:
        assert same_bits(layer.take(tensors), on_disk[f"{layer.name}.weight"]), layer.name


def test_weights_kept_transposed_are_turned(tiny_models):
    source = HuggingFaceSource(tiny_models["gpt2"])
    layer = source.blocks[0].layers[0]
    on_disk = source.read([layer.parameter])[layer.parameter]
    assert layer.transposed and layer.shape == (96, 32)
    assert same_bits(layer.take({layer.parameter: on_disk}), on_disk.T.contiguous())


def test_reads_nothing_but_what_was_asked_for(tiny_models, monkeypatch):
    source = HuggingFaceSource(tiny_models["llama"])
    read = []
    from laconic.models import huggingface

    original = huggingface.read_tensor
    monkeypatch.setattr(
        huggingface, "read_tensor", lambda entry: read.append(entry.size) or original(entry)
    )
    source.read(["model.norm.weight"])
    assert read == [64]


def test_missing_tensor_is_named(folder):
    edit(folder, lambda state: state.pop("model.layers.1.mlp.up_proj.weight"))
    with pytest.raises(UnsupportedModel, match=r"1 tensors.*layers\.1\.mlp\.up_proj\.weight"):
        HuggingFaceSource(folder)


def test_truncated_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CorruptFile, match="truncated"):
        HuggingFaceSource(folder)


def test_already_compressed(folder):
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="compressed already .*gptq"):
        HuggingFaceSource(folder)


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(UnsupportedModel, match=r"no config\.json"):
        HuggingFaceSource(folder)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}', "\0"])
def test_configs_that_cannot_be_read(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(UnsupportedModel, match="config"):
        HuggingFaceSource(folder)


@pytest.mark.parametrize("names", [["NoSuchModel"], [], None])
def test_unknown_architecture(folder, names):
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = names
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedModel, match="architectures"):
        HuggingFaceSource(folder)


def test_pickles_only(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match="pickle"):
        HuggingFaceSource(folder)


@pytest.mark.parametrize("folder", ["qwen3"], indirect=True)
class TestTies:
    """Files of tied models that were not written by transformers' save_pretrained."""

    HEAD, TABLE = "lm_head.weight", "model.embed_tokens.weight"

    def test_both_are_there_and_equal(self, folder):
        edit(folder, lambda state: state.update({self.HEAD: state[self.TABLE].clone()}))
        assert_equals_transformers(folder)
        assert self.HEAD not in HuggingFaceSource(folder).sizes()

    def test_both_are_there_and_differ(self, folder):
        edit(folder, lambda state: state.update({self.HEAD: 2 * state[self.TABLE]}))
        assert_equals_transformers(folder)
        assert self.HEAD in HuggingFaceSource(folder).sizes()

    def test_only_the_head_is_there(self, folder):
        edit(folder, lambda state: state.update({self.HEAD: state.pop(self.TABLE)}))
        assert_equals_transformers(folder)

    def test_neither_is_there(self, folder):
        edit(folder, lambda state: state.pop(self.TABLE))
        with pytest.raises(UnsupportedModel, match=self.TABLE):
            HuggingFaceSource(folder)


@pytest.mark.parametrize("folder", ["bert"], indirect=True)
def test_names_of_older_checkpoints(folder):
    """LayerNorm.gamma and .beta, as in the first BERT files."""

    def rename(state):
        for key in [k for k in state if "LayerNorm" in k]:
            old = key.replace("weight", "gamma").replace("bias", "beta")
            state[old] = state.pop(key)

    before = reference(folder)
    edit(folder, rename)
    assert_equals_transformers(folder)
    after = reference(folder)
    assert all(same_bits(before[name], after[name]) for name in before)


def test_skeleton_takes_no_memory(tiny_models):
    skeleton = build_skeleton(load_config(tiny_models["llama"]))
    assert {t.device.type for t in skeleton.parameters()} == {"meta"}
    assert not skeleton.training


class TestConfig:
    def test_all_but_weights_is_copied(self, folder, tmp_path):
        (folder / "vocab.txt").write_text("words")
        index = {"weight_map": dict.fromkeys(reference(folder), "model.safetensors")}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        (folder / "notes.pdf").write_text("not of the model")
        out = tmp_path / "out"
        out.mkdir()
        HuggingFaceSource(folder).save_config(out, {"quant_method": "laconic"})
        before = json.loads((folder / "config.json").read_text())
        after = json.loads((out / "config.json").read_text())
        assert after == before | {"quantization_config": {"quant_method": "laconic"}}
        assert (out / "vocab.txt").read_text() == "words"
        names = {path.name for path in out.iterdir()}
        assert names == {"config.json", "generation_config.json", "vocab.txt"}

    def test_fingerprint_follows_the_files(self, folder):
        source = HuggingFaceSource(folder)
        first = source.fingerprint()
        assert first == HuggingFaceSource(folder).fingerprint()
        for name in ("model.safetensors", "config.json"):
            path = folder / name
            status = path.stat()
            os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
            changed = source.fingerprint()
            assert changed != first
            first = changed
