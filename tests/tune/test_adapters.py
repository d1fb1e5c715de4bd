import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from laconic.errors import CorruptFile, UsageError
from laconic.tensors import IntQuantizer
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record
from laconic.tune.adapter_files import load_lora, save_lora
from laconic.tune.adapters import (
    add_lora,
    find_targets,
    lora_parameters,
    loras,
    merge_lora,
    remove_lora,
)  # fmt: skip
from laconic.tune.sparse_lora import KINDS
from tests.models.tiny import TINY


def model_of(name):
    """A tiny model of fp32 weights, a third of them zero."""
    model = TINY[name].model().float()
    for module in model.modules():
        if len(getattr(module, "weight", torch.empty(0)).shape) == 2:
            module.weight.data *= torch.rand(module.weight.shape) > 1 / 3
    return model


def shaken(model):
    for factor in lora_parameters(model):
        nn.init.normal_(factor, std=0.1)
    return model


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "bert", "vit"])
@pytest.mark.parametrize("kind", KINDS)
def test_whole_models_merge_into_the_same_function(name, kind):
    model = model_of(name)
    tiny = TINY[name]
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in tiny.inputs().items()}
    answer = lambda: model(**inputs).logits.detach()  # noqa: E731
    before, zeros = answer(), {n: p == 0 for n, p in model.named_parameters()}
    found = add_lora(model, rank=2, kind=kind)
    assert torch.equal(answer(), before) and len(found) >= 2 * tiny.layers
    assert [n for n, p in model.named_parameters() if p.requires_grad] == [
        f"{path}.lora_{letter}.weight" for path in found for letter in "AB"
    ]
    adapted = (shaken(model), answer())[1]
    assert not torch.allclose(adapted, before, atol=1e-3)
    assert torch.allclose((merge_lora(model), answer())[1], adapted, atol=1e-4)
    assert not loras(model)
    if kind != "plain":
        assert all(torch.equal(zeros[n], p == 0) for n, p in model.named_parameters())


def test_removed_without_a_trace():
    model = model_of("llama")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shaken((add_lora(model), model)[1])
    after = remove_lora(model).state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_targets():
    model = model_of("llama")
    assert "lm_head" not in find_targets(model) and len(find_targets(model)) == 14
    assert len(find_targets(model, ["q_proj"])) == 2
    assert len(find_targets(model, ["*.0.mlp.*", "lm_head"])) == 4
    assert find_targets(model, ["model.layers.1.self_attn.k_proj"]) == [
        "model.layers.1.self_attn.k_proj"
    ]
    with pytest.raises(UsageError, match="did you mean 'q_proj'"):
        find_targets(model, ["q_prj"])
    with pytest.raises(UsageError, match="no linear layer"):
        find_targets(nn.ReLU())


def test_ranks_and_masks_by_path():
    model = model_of("llama")
    found = add_lora(model, rank={"q_proj": 1, "*.v_proj": 3}, targets=["q_proj", "v_proj"])
    assert sorted(adapter.rank for adapter in found.values()) == [1, 1, 3, 3]
    with pytest.raises(UsageError, match="no rank was given"):
        add_lora(model_of("llama"), rank={"q_proj": 1}, targets=["q_proj", "k_proj"])
    path = "model.layers.0.self_attn.q_proj"
    keep = torch.zeros(32, 32, dtype=torch.bool)
    found = add_lora(model_of("llama"), kind="masked", targets=["q_proj"], masks={path: keep})
    assert not found[path].mask.any()
    with pytest.raises(UsageError, match="gets no adapter"):
        add_lora(model_of("llama"), kind="masked", targets=["k_proj"], masks={path: keep})
    with pytest.raises(UsageError, match="for kind='masked'"):
        add_lora(model_of("llama"), masks={path: keep})
    with pytest.raises(UsageError, match="did you mean 'masked'"):
        add_lora(model_of("llama"), kind="maskd")


def test_shared_weights_are_refused_and_the_model_left_alone():
    model = model_of("qwen3")
    with pytest.raises(UsageError, match="one tensor"):
        add_lora(model, targets=["lm_head"])
    assert not loras(model) and all(p.requires_grad for p in model.parameters())
    assert add_lora(model)
    twice = nn.Linear(2, 2)
    with pytest.raises(UsageError, match="one tensor"):
        add_lora(nn.ModuleList([twice, twice]))


def test_same_seed_same_start():
    starts = [lora_parameters((add_lora(m, seed=s), m)[1]) for s in (1, 1, 2) for m in [model_of("gpt2")]]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1]))
    assert not torch.equal(starts[0][0], starts[2][0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_files_come_back(tmp_path, name, kind):
    model = model_of(name)
    add_lora(model, rank=2, alpha=3.0, kind=kind, dropout=0.1)
    next(iter(loras(model).values())).alpha = 5.0
    shaken(model)
    save_lora(model, tmp_path / "adapter")
    other = model_of(name)
    other.load_state_dict(without_adapters(model))
    found = load_lora(other, tmp_path / "adapter")
    assert {a.kind for a in found.values()} == {kind}
    assert [a.alpha for a in found.values()][:2] == [5.0, 3.0]
    assert torch.equal(TINY[name].logits(model.eval()), TINY[name].logits(other.eval()))
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip


def without_adapters(model):
    """The state of `model` without its adapters."""
    state = model.state_dict()
    return {n.replace(".base.", "."): v for n, v in state.items() if ".lora_" not in n}


def test_the_layout_is_pefts(tmp_path):
    model = model_of("gpt2")
    add_lora(model, rank=4, alpha=8, targets=["c_attn"])
    save_lora(model, tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    start = "base_model.model.transformer.h.0.attn.c_attn"
    assert tensors[f"{start}.lora_A.weight"].shape == (4, 32)
    assert tensors[f"{start}.lora_B.weight"].shape == (96, 4)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", 4, 8)
    assert config["fan_in_fan_out"] is True and config["rank_pattern"] == {}
    add_lora(masked := model_of("llama"), kind="masked")
    save_lora(masked, tmp_path / "masked")  # which PEFT must refuse
    written = json.loads((tmp_path / "masked" / "adapter_config.json").read_text())
    assert written["peft_type"] == "LACONIC_MASKED_LORA"


def test_compressed_models(tmp_path):
    model = model_of("llama")
    for path in find_targets(model):
        value = IntQuantizer(bits=4).quantize(model.get_submodule(path).weight.detach())
        replace_module(model, path, {"weight": Record(value)})
    add_lora(model, rank=2)
    logits = TINY["llama"].logits(shaken(model))
    save_lora(model, tmp_path)
    merge_lora(model)
    assert torch.allclose(TINY["llama"].logits(model), logits, atol=1e-4)
    path = "model.layers.0.mlp.up_proj"
    assert model.get_submodule(path).weight.format == "int4 row + rank 2 float32"
    assert torch.equal(model.get_submodule(path).weight.parts[1].right.value, load_file(
        tmp_path / "adapter_model.safetensors")[f"base_model.model.{path}.lora_A.weight"])  # fmt: skip


def test_bad_files(tmp_path):
    with pytest.raises(UsageError, match="none"):
        save_lora(model_of("llama"), tmp_path)
    mixed = model_of("llama")
    add_lora(mixed, targets=["q_proj"])
    add_lora(mixed, targets=["k_proj"], kind="scale")
    with pytest.raises(UsageError, match="one kind"):
        save_lora(mixed, tmp_path)
    with pytest.raises(CorruptFile):
        load_lora(model_of("llama"), tmp_path / "none")
    model = model_of("llama")
    add_lora(model, rank=2)
    save_lora(model, tmp_path)
    with pytest.raises(UsageError, match="another model"):
        load_lora(model_of("gpt2"), tmp_path)
    tensors, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    good, settings = tensors.read_bytes(), json.loads(config.read_text())
    values = load_file(tensors)
    first = next(iter(values))
    for broken in (
        {k: v for k, v in values.items() if k != first},
        values | {first: values[first][0]},
        values | {first: torch.zeros(7, 32)},
    ):
        save_file(broken, tensors)
        with pytest.raises(CorruptFile):
            load_lora(model_of("llama"), tmp_path)
    tensors.write_bytes(good[: len(good) // 2])
    with pytest.raises(CorruptFile):
        load_lora(model_of("llama"), tmp_path)
    tensors.write_bytes(good)
    for change in ({"use_rslora": True}, {"peft_type": "LOHA"}):
        config.write_text(json.dumps(settings | change))
        with pytest.raises(UsageError):
            load_lora(model_of("llama"), tmp_path)
