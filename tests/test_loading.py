import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from laconic.compression import compress
from laconic.errors import CorruptFile, LaconicError, UnsupportedModel
from laconic.loading import load
from laconic.models.memory import MODULE_CONFIG, from_factory
from laconic.quantize.rtn import RTN
from tests.models.tiny import TINY

FACTORY = "laconic.zoo.resnet:resnet20"
OUTSIDE = "tests.test_loading:outside"


def outside():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


@pytest.fixture(scope="module")
def compressed(tiny_models, tmp_path_factory):
    root = tmp_path_factory.mktemp("compressed")
    compress(tiny_models["llama"], RTN(group=16), out=root / "llama")
    compress(FACTORY, RTN(), out=root / "resnet")
    compress(OUTSIDE, RTN(), out=root / "outside")
    return root


@pytest.fixture
def folder(request, compressed, tmp_path):
    """A copy of a compressed model, to be damaged."""
    return shutil.copytree(compressed / getattr(request, "param", "llama"), tmp_path / "model")


class TestDense:
    @pytest.mark.parametrize("name", TINY)
    def test_models_that_are_not_compressed(self, name, tiny_models):
        model = load(tiny_models[name])
        assert not model.training
        assert torch.equal(TINY[name].logits(model), TINY[name].logits(TINY[name].model()))

    def test_factories(self):
        assert not load(FACTORY).training
        assert load(FACTORY, dtype=torch.float64).fc.weight.dtype == torch.float64


class TestDtype:
    def test_auto_is_the_checkpoints(self, compressed):
        assert {p.dtype for p in load(compressed / "llama").parameters()} == {torch.bfloat16}

    def test_given_ones_leave_rotary_tables_alone(self, compressed):
        """Rounding them to bfloat16 moves the angles of late positions by radians."""
        model = load(compressed / "llama", dtype=torch.bfloat16)
        expected = load(compressed / "llama").model.rotary_emb.inv_freq
        found = model.model.rotary_emb.inv_freq
        assert found.dtype == torch.float32 and torch.equal(found, expected)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
    def test_computes_in_it(self, compressed, dtype):
        model = load(compressed / "llama", dtype=dtype)
        assert TINY["llama"].logits(model).dtype == dtype
        expected = TINY["llama"].logits(load(compressed / "llama"))
        assert torch.allclose(TINY["llama"].logits(model).float(), expected.float(), atol=0.05)

    def test_modules(self, compressed):
        model = load(compressed / "resnet", dtype=torch.float64)
        assert model(torch.randn(1, 3, 32, 32).double()).dtype == torch.float64


class TestModules:
    def test_equals_what_was_compressed_in_memory(self, compressed):
        torch.manual_seed(3)
        source = from_factory(FACTORY)
        model = source.skeleton
        x = torch.randn(2, 3, 32, 32)
        compress(source, RTN(bits=3), out=compressed / "three", also=["rest"])
        compress(model, RTN(bits=3), also=["rest"])
        with torch.no_grad():
            assert torch.equal(load(compressed / "three")(x), model(x))

    def test_code_outside_laconic_runs_only_when_trusted(self, compressed):
        with pytest.raises(UnsupportedModel, match="trust=True"):
            load(compressed / "outside")
        assert load(compressed / "outside", trust=True)(torch.zeros(1, 4)).shape == (1, 4)

    @pytest.mark.parametrize("folder", ["resnet"], indirect=True)
    @pytest.mark.parametrize(
        "text",
        [
            "", "[]", "{}", '{"factory": "laconic.zoo.resnet:resnet20"}', "\0",
            '{"factory": "laconic.zoo.resnet:resnet20", "quantization_config": {"modules": 3}}',
            '{"factory": "laconic.zoo.resnet:resnet20", "quantization_config": {"modules": ["x"]}}',
            '{"factory": 3, "quantization_config": {"modules": []}}',
            '{"factory": "laconic.nothing:here", "quantization_config": {"modules": []}}',
            '{"factory": "laconic.errors:LaconicError", "quantization_config": {"modules": []}}',
            '{"factory": "laconic.loading:json", "quantization_config": {"modules": []}}',
        ],
    )  # fmt: skip
    def test_configs_that_lie(self, folder, text):
        (folder / MODULE_CONFIG).write_text(text)
        with pytest.raises(LaconicError):
            load(folder)

    @pytest.mark.parametrize("folder", ["resnet"], indirect=True)
    def test_missing_and_additional_tensors(self, folder):
        path = folder / "model.safetensors"
        state = load_file(path)
        save_file({k: v for k, v in state.items() if k != "fc.weight"}, path)
        with pytest.raises(CorruptFile, match=r"fc\.weight"):
            load(folder)
        save_file(state | {"more": torch.zeros(1)}, path)
        with pytest.raises(CorruptFile, match="more"):
            load(folder)


class TestDamage:
    def test_nothing_there(self, tmp_path):
        with pytest.raises(UnsupportedModel, match="no such directory"):
            load(tmp_path / "absent")
        with pytest.raises(UnsupportedModel, match=r"config\.json"):
            load(tmp_path)

    def test_truncated_at_many_lengths(self, folder):
        path = folder / "model.safetensors"
        content = path.read_bytes()
        for length in range(0, len(content), len(content) // 40):
            path.write_bytes(content[:length])
            with pytest.raises(CorruptFile, match=r"model\.safetensors"):
                load(folder)

    def test_tensor_that_is_not_compressed_is_missing(self, folder):
        """Transformers would fill it with random values and go on."""
        state = load_file(folder / "model.safetensors")
        del state["model.norm.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptFile, match=r"lack model\.norm\.weight"):
            load(folder)

    def test_tensor_of_a_dense_model_is_missing(self, tiny_models, tmp_path):
        folder = shutil.copytree(tiny_models["llama"], tmp_path / "model")
        state = load_file(folder / "model.safetensors")
        del state["model.layers.0.mlp.up_proj.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptFile, match=r"lack model\.layers\.0\.mlp\.up_proj"):
            load(folder)

    def test_a_blob_in_the_place_of_another(self, folder):
        state = load_file(folder / "model.safetensors")
        mlp = "model.layers.0.mlp"
        state[f"{mlp}.up_proj.weight"] = state[f"{mlp}.down_proj.weight"].clone()
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptFile, match=r"up_proj"):
            load(folder)

    def test_shard_that_is_missing(self, folder):
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UnsupportedModel, match="00002"):
            load(folder)

    def test_config_without_our_entry(self, folder):
        """The blobs are then no weights of the model, and it must not start without them."""
        config = json.loads((folder / "config.json").read_text())
        del config["quantization_config"]
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(CorruptFile):
            load(folder)
