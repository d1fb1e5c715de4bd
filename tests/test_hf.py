"""laconic inside transformers: opening, generating, saving again, and failing loudly without it."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import laconic.hf
from laconic.compression import compress
from laconic.errors import CorruptFile, LaconicError
from laconic.hf import FORMAT, LaconicConfig, is_registered, quantization_config
from laconic.quantize.rtn import RTN
from tests.models.tiny import TINY

UNPREPARED = """
import sys
from transformers import AutoModelForCausalLM
refused = []
for folder in sys.argv[1:]:
    try:
        AutoModelForCausalLM.from_pretrained(folder)
    except Exception as error:
        refused.append(type(error).__name__)
print(*refused)
sys.exit(len(refused) and not any(name.startswith("laconic") for name in sys.modules))
"""


@pytest.fixture(scope="module")
def compressed(tiny_models, tmp_path_factory):
    """Directories that laconic wrote, by name."""
    root = tmp_path_factory.mktemp("compressed")
    for name in ("llama", "qwen3", "qwen3_moe"):
        compress(tiny_models[name], RTN(group=16), out=root / name, also=["embeddings"])
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def folder(compressed, tmp_path):
    """A copy of the compressed llama, to be damaged."""
    return shutil.copytree(compressed["llama"], tmp_path / "model")


def edit_config(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config["quantization_config"])
    path.write_text(json.dumps(config))


def test_unprepared_transformers_refuses(compressed):
    """It must not start from random weights; neither for a plain model nor for a mixture."""
    folders = [str(compressed[name]) for name in ("llama", "qwen3_moe")]
    run = subprocess.run(
        [sys.executable, "-c", UNPREPARED, *folders], capture_output=True, text=True
    )
    assert run.returncode != 0, run.stderr
    assert run.stdout.split() == ["RuntimeError", "RuntimeError"], run.stderr


@pytest.mark.parametrize("name", ["llama", "qwen3", "qwen3_moe"])
def test_auto_model_opens_generates_and_saves_the_same_bytes(compressed, name, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(compressed[name], dtype="auto")
    assert not model.training
    inputs = TINY[name].inputs()
    tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)
    assert tokens.shape == (2, 12)
    model.save_pretrained(tmp_path / "again")
    for file in ("model.safetensors",):
        assert (tmp_path / "again" / file).read_bytes() == (compressed[name] / file).read_bytes()
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype="auto")
    assert torch.equal(TINY[name].logits(again), TINY[name].logits(model))
    configs = [
        json.loads((f / "config.json").read_text()) for f in (compressed[name], tmp_path / "again")
    ]
    assert configs[0]["quantization_config"] == configs[1]["quantization_config"]


def test_saves_again_in_shards(compressed, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(compressed["qwen3_moe"], dtype="auto")
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    tiny = TINY["qwen3_moe"]
    assert torch.equal(tiny.logits(again), tiny.logits(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_apply_to_what_is_not_compressed(compressed, dtype):
    model = AutoModelForCausalLM.from_pretrained(compressed["llama"], dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model.lm_head.weight.dtype == torch.bfloat16  # as the checkpoint had it
    assert TINY["llama"].logits(model).dtype == dtype


def test_the_tied_head_follows_the_compressed_table(compressed):
    model = AutoModelForCausalLM.from_pretrained(compressed["qwen3"], dtype="auto")
    assert "lm_head.weight" not in load_file(compressed["qwen3"] / "model.safetensors")
    assert "lm_head.weight" not in model.state_dict()
    x = torch.randn(1, 32)
    table = model.model.embed_tokens.weight.dense()
    assert torch.equal(model.lm_head(x), torch.nn.functional.linear(x, table))


def test_is_not_trainable(compressed):
    model = AutoModelForCausalLM.from_pretrained(compressed["llama"], dtype="auto")
    assert model.hf_quantizer.is_trainable is False and model.hf_quantizer.is_serializable() is True


class TestDamage:
    def test_module_that_is_not_in_the_files(self, folder):
        state = load_file(folder / "model.safetensors")
        del state["model.layers.1.mlp.up_proj.weight"]
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptFile, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
            AutoModelForCausalLM.from_pretrained(folder)

    def test_flipped_byte_in_a_blob_names_the_module(self, folder):
        state = load_file(folder / "model.safetensors")
        state["model.layers.1.mlp.up_proj.weight"][60] ^= 1
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CorruptFile, match=r"model\.layers\.1\.mlp\.up_proj: .*checksum"):
            AutoModelForCausalLM.from_pretrained(folder)

    def test_newer_format(self, folder):
        edit_config(folder, lambda config: config.update(format=FORMAT + 1))
        with pytest.raises(CorruptFile, match="pip install -U laconic"):
            AutoModelForCausalLM.from_pretrained(folder)

    @pytest.mark.parametrize("path", ["model.layers.7.mlp.up_proj", "model.norm", "nothing"])
    def test_modules_that_the_model_lacks(self, folder, path):
        edit_config(folder, lambda config: config["modules"].append(path))
        with pytest.raises(LaconicError, match=path.replace(".", r"\.")):
            AutoModelForCausalLM.from_pretrained(folder)

    @pytest.mark.parametrize("modules", [None, 3, "text", [3], {}])
    def test_module_lists_that_are_none(self, folder, modules):
        edit_config(folder, lambda config: config.update(modules=modules))
        with pytest.raises((LaconicError, RuntimeError)):
            AutoModelForCausalLM.from_pretrained(folder)


class TestConfig:
    def test_registers_once(self):
        assert is_registered()
        import importlib

        importlib.reload(laconic.hf)
        assert is_registered()

    def test_round_trip(self):
        values = quantization_config(["a", "b"], [{"method": "rtn", "settings": {}}])
        assert json.loads(json.dumps(values)) == values
        config = LaconicConfig.from_dict(dict(values))
        assert {k: v for k, v in config.to_dict().items() if k in values} == values

    def test_unknown_keys_of_the_same_format_are_ignored(self):
        assert LaconicConfig([], [], later=3).format == FORMAT
