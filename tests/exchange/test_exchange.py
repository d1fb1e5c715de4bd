"""Models that go out in other tools' files, and come back: the same logits everywhere."""

import json
import shutil

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import laconic
from laconic.errors import CorruptFile, OutputExists, UnsupportedModel, UsageError
from laconic.exchange import export, import_model
from laconic.exchange.gguf import quantized_blocks
from laconic.models.safetensors import read_headers
from laconic.prune.magnitude import Magnitude
from laconic.quantize.awq import AWQ
from laconic.quantize.eora import EoRA
from laconic.quantize.rtn import RTN
from tests.exchange.test_uniform import layer
from tests.models.tiny import TINY, VOCABULARY

SETTINGS = {
    "4 bits": RTN(4, 16), "8 bits": RTN(8, "row"), "asymmetric": RTN(4, 16, symmetric=False), "3 bits": RTN(3, 16),
    "2 bits": RTN(2, 16), "rows": RTN(4, "row"), "tensor": RTN(4, "tensor"),
}  # fmt: skip
COMPRESSED_TENSORS = ["4 bits", "8 bits", "asymmetric", "3 bits", "2 bits", "rows", "tensor"]


@pytest.fixture(scope="module")
def models(tiny_models, tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, method in SETTINGS.items():
        laconic.compress(tiny_models["llama"], method, out=root / name)
    laconic.compress(tiny_models["gpt2"], RTN(4, 16), out=root / "gpt2")
    for name in ("llama", "qwen3"):
        cls, config = TINY[name].build()
        config.hidden_size, config.intermediate_size = 64, 96
        config.head_dim = 16 if name == "llama" else 128  # transformers reads GGUF as if it were
        cls(config).save_pretrained(root / f"wide {name}")
        tokenizer(root / f"wide {name}")
    laconic.compress(
        root / "wide llama", RTN(4, 32), out=root / "blocks", also=["embeddings", "lm_head"]
    )
    laconic.compress(root / "wide qwen3", RTN(8, 32), out=root / "qwen3")
    laconic.compress(tiny_models["qwen3_moe"], RTN(4, 8), out=root / "moe")
    return root


def tokenizer(folder):
    """A byte-level tokenizer of a few merges."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.train_from_iterator(
        ["a b c ab abc"] * 9, trainers.BpeTrainer(vocab_size=20, special_tokens=["<end>"])
    )
    made.save(str(folder / "tokenizer.json"))


def logits(model, name="llama"):
    return TINY[name].logits(model)


@pytest.mark.parametrize("name", COMPRESSED_TENSORS)
def test_transformers_opens_compressed_tensors_with_the_same_logits(models, tmp_path, name):
    done = export(models / name, "compressed-tensors", tmp_path / "out")
    assert done.layers == 14 and done.rounding == 0
    more = {"quantization_config": CompressedTensorsConfig(dequantize=True)}  # its other way fails
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", **(more if name == "asymmetric" else {})
    )
    assert torch.equal(logits(theirs), logits(laconic.load(models / name)))
    assert not (tmp_path / "out" / "laconic.json").exists()


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq"])
@pytest.mark.parametrize("name", COMPRESSED_TENSORS)
def test_what_went_out_comes_back(models, tmp_path, name, to):
    if to == "gptq" and name in ("asymmetric", "3 bits"):
        pytest.skip("test_what_gptq_cannot_say has them")
    export(models / name, to, tmp_path / "out")
    done = import_model(tmp_path / "out", tmp_path / "back")
    assert done.method == to and done.layers == 14
    assert done.stored_bytes > 0 < done.before_bytes
    assert torch.equal(logits(laconic.load(tmp_path / "back")), logits(laconic.load(models / name)))


def test_gptq_of_the_transposed_layers_of_gpt2(models, tmp_path):
    export(models / "gpt2", "gptq", tmp_path / "out")
    import_model(tmp_path / "out", tmp_path / "back")
    ours, again = (laconic.load(path) for path in (models / "gpt2", tmp_path / "back"))
    assert torch.equal(logits(ours, "gpt2"), logits(again, "gpt2"))
    with pytest.raises(UnsupportedModel, match="Conv1D.*take gptq"):
        export(models / "gpt2", "compressed-tensors", tmp_path / "no")


def test_gptq_by_hand(models, tmp_path):
    """The layout, from its description: eight 4-bit codes a word, zero points less one."""
    export(models / "4 bits", "gptq", tmp_path / "out")
    tensors = load_file(tmp_path / "out" / "model.safetensors")
    path = "model.layers.0.self_attn.q_proj"
    words, scales = tensors[f"{path}.qweight"].numpy(), tensors[f"{path}.scales"].float()
    zeros = tensors[f"{path}.qzeros"].numpy()
    shifts = 4 * np.arange(8)
    codes = (words[:, None, :] >> shifts[None, :, None] & 15).reshape(-1, words.shape[1])
    middle = (zeros[:, :, None] >> shifts & 15).reshape(zeros.shape[0], -1) + 1
    group = tensors[f"{path}.g_idx"].long()
    dense = (torch.tensor(codes) - torch.tensor(middle)[group]).float() * scales[group]
    ours = laconic.load(models / "4 bits").get_submodule(path).operand().dense(torch.float32)
    assert torch.equal(dense.T, ours)


def test_columns_in_the_order_of_their_energy(models, tmp_path):
    """A GPTQ file with desc_act: groups are of columns that are not neighbours."""
    export(models / "4 bits", "gptq", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    tensors = load_file(file)
    name = "model.layers.1.mlp.up_proj.g_idx"
    torch.manual_seed(0)
    order = torch.randperm(len(tensors[name]))
    before = import_model(tmp_path / "out", tmp_path / "plain")
    tensors[name] = tensors[name][order].contiguous()
    save_file(tensors, file, {"format": "pt"})
    done = import_model(tmp_path / "out", tmp_path / "back")
    assert done.layers == before.layers
    path = name.rpartition(".")[0]
    codes = laconic.load(tmp_path / "plain").get_submodule(path).operand()
    found = laconic.load(tmp_path / "back").get_submodule(path)
    groups = tensors[name].long()
    expected = (codes.codes().float() - 8) * codes.scale.float()[:, groups]
    x = torch.randn(3, len(groups))
    assert torch.allclose(found(x), x @ expected.T, atol=1e-5)
    export(tmp_path / "back", "gptq", tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)
    with pytest.raises(UnsupportedModel, match="another order"):
        export(tmp_path / "back", "compressed-tensors", tmp_path / "no")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("3 bits", "do not fill words"),
        ("moe", "compressed Qwen3MoeExperts"),
        ("blocks", "embedding"),
    ],
)
def test_what_gptq_cannot_say(models, tmp_path, name, message):
    with pytest.raises(UnsupportedModel, match=f"cannot be written as gptq: .*{message}"):
        export(models / name, "gptq", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_layers_of_different_widths(tiny_models, models, tmp_path):
    laconic.compress(tiny_models["llama"], RTN(), out=tmp_path / "mixed", budget="3.9bit")
    with pytest.raises(UnsupportedModel, match="one (width|group) for all"):
        export(tmp_path / "mixed", "gptq", tmp_path / "out")
    export(tmp_path / "mixed", "compressed-tensors", tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(theirs), logits(laconic.load(tmp_path / "mixed")))
    import_model(tmp_path / "out", tmp_path / "back")
    assert torch.equal(logits(laconic.load(tmp_path / "back")), logits(theirs))


def test_layers_that_stay_dense(tiny_models, tmp_path):
    laconic.compress(tiny_models["llama"], RTN(4, 16), out=tmp_path / "m", also=["lm_head"])
    done = export(tmp_path / "m", "compressed-tensors", tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert done.layers == 15 and config["ignore"] == []
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(theirs), logits(laconic.load(tmp_path / "m")))


@pytest.mark.parametrize("name", ["blocks", "qwen3"])
def test_transformers_opens_gguf_with_the_same_logits(models, tmp_path, name):
    kind = "qwen3" if name == "qwen3" else "llama"
    done = export(models / name, "gguf", tmp_path / "model.gguf")
    assert done.rounding == 0 and done.notes == ()
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", dtype=torch.float32
    )
    ours = laconic.load(models / name, dtype=torch.float32)
    assert torch.allclose(logits(theirs, kind), logits(ours, kind), atol=1e-5)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.pre"].contents() == "gpt-2"
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert len(tokens) == VOCABULARY and tokens[0] == "<end>"
    assert fields["tokenizer.ggml.token_type"].contents()[:2] == [3, 1]
    assert fields["tokenizer.ggml.merges"].contents()[0] == "a b"


def test_gguf_without_a_tokenizer(models, tmp_path):
    shutil.copytree(models / "blocks", tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").unlink()
    assert "no tokenizer" in export(tmp_path / "m", "gguf", tmp_path / "m.gguf").notes[0]
    (tmp_path / "m" / "tokenizer.json").write_text('{"model": {"type": "BPE"}}')
    assert "no tokenizer" in export(tmp_path / "m", "gguf", tmp_path / "n.gguf").notes[0]
    (tmp_path / "m" / "tokenizer.json").write_text('{"model": 3, "pre_tokenizer": {}}')
    with pytest.raises(CorruptFile, match="tokenizer.json"):
        export(tmp_path / "m", "gguf", tmp_path / "o.gguf")


@pytest.mark.parametrize("bits", [4, 8])
def test_blocks_as_gguf_decodes_them(bits):
    found, value = layer(rows=5, columns=96, bits=bits, group=32)
    blocks, form = quantized_blocks(found)
    dense = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[form])
    assert torch.equal(torch.tensor(dense), value.dense())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bits": 3}, "3 bits"), ({"symmetric": False}, "zero points"), ({"group": 16}, "multiples of 32"),
        ({"columns": 48, "group": "row"}, "multiples of 32"),
    ],
)  # fmt: skip
def test_what_blocks_cannot_hold(settings, message):
    with pytest.raises(UnsupportedModel, match=message):
        quantized_blocks(layer(**settings)[0])


def test_refusals(tiny_models, models, tmp_path):
    with pytest.raises(UnsupportedModel, match="was not compressed by laconic"):
        export(tiny_models["llama"], "gptq", tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="of no format that can be imported"):
        import_model(models / "4 bits", tmp_path / "out")
    with pytest.raises(UsageError, match="did you mean 'gptq'"):
        export(models / "4 bits", "gtpq", tmp_path / "out")
    with pytest.raises(UnsupportedModel, match="gpt2 is not known"):
        export(models / "gpt2", "gguf", tmp_path / "out.gguf")
    (tmp_path / "out.gguf").write_text("mine")
    with pytest.raises(OutputExists):
        export(models / "blocks", "gguf", tmp_path / "out.gguf")
    laconic.compress(tiny_models["llama"], [Magnitude(0.5), RTN(4, 16)], out=tmp_path / "sparse")
    with pytest.raises(UnsupportedModel, match="not integers on a uniform grid"):
        export(tmp_path / "sparse", "gptq", tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "sparse"]


def test_transforms_are_refused(tiny_models, tmp_path):
    tokens = [{"input_ids": torch.randint(4, 160, (1, 12))} for _ in range(4)]
    laconic.compress(tiny_models["llama"], AWQ(4, 16), tokens, out=tmp_path / "awq")
    with pytest.raises(UnsupportedModel, match="has a channel scale before it"):
        export(tmp_path / "awq", "gptq", tmp_path / "out")


def test_what_eora_added_is_an_adapter(tiny_models, tmp_path):
    tokens = [{"input_ids": torch.randint(4, 160, (1, 24))} for _ in range(8)]
    both, base = tmp_path / "both", tmp_path / "base"
    laconic.compress(tiny_models["llama"], [RTN(3, 16), EoRA(rank=4)], tokens, out=both)
    laconic.compress(tiny_models["llama"], RTN(3, 16), out=base)
    expected = logits(laconic.load(both, dtype=torch.float32))
    done = export(both, "compressed-tensors", tmp_path / "ct")
    assert "adapter" in done.notes[0]
    export(both, "peft", tmp_path / "lora")
    for folder, adapter in (
        (tmp_path / "ct", tmp_path / "ct" / "adapter"),
        (base, tmp_path / "lora"),
    ):
        if folder == base:
            model = laconic.load(base, dtype=torch.float32)
        else:
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            model(**TINY["llama"].inputs())  # decoded by then
        plain = logits(model)
        factors = load_file(adapter / "adapter_model.safetensors")
        config = json.loads((adapter / "adapter_config.json").read_text())
        assert config["lora_alpha"] == config["r"] == 4 and len(config["target_modules"]) == 14
        for path in config["target_modules"]:
            a, b = (factors[f"base_model.model.{path}.lora_{n}.weight"].float() for n in "AB")
            model.get_submodule(path).register_forward_hook(
                lambda _m, x, y, a=a, b=b: y + x[0] @ a.T @ b.T
            )
        assert torch.allclose(logits(model), expected, atol=1e-4)
        assert not torch.allclose(plain, expected, atol=1e-2)
    with pytest.raises(UnsupportedModel, match="nothing of low rank"):
        export(base, "peft", tmp_path / "none")
    with pytest.raises(OutputExists):
        export(both, "peft", tmp_path / "lora")


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq"])
def test_damaged_checkpoints(models, tmp_path, to):
    export(models / "4 bits", to, tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    whole = load_file(file)
    path = "model.layers.0.self_attn.q_proj"
    names = [name for name in whole if name.startswith(path)]
    for missing in [*names, "model.norm.weight"]:
        if missing.endswith("g_idx"):
            continue  # without it groups are of neighbours
        save_file({n: t for n, t in whole.items() if n != missing}, file, {"format": "pt"})
        with pytest.raises(CorruptFile):
            import_model(tmp_path / "out", tmp_path / "back")
    for name in names:
        short = whole | {name: whole[name].reshape(-1)[: whole[name].numel() // 2].reshape(1, -1)}
        save_file({n: t.contiguous() for n, t in short.items()}, file, {"format": "pt"})
        with pytest.raises((CorruptFile, UnsupportedModel)):
            import_model(tmp_path / "out", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_nothing_else_is_touched(models, tmp_path):
    export(models / "4 bits", "compressed-tensors", tmp_path / "out")
    ours = read_headers(sorted((models / "4 bits").glob("*.safetensors")))
    theirs = read_headers(sorted((tmp_path / "out").glob("*.safetensors")))
    plain = [n for n, e in ours.items() if e.dtype != "U8"]
    assert all(theirs[n].shape == ours[n].shape and theirs[n].dtype == ours[n].dtype for n in plain)
