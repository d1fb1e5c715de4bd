import pytest
import torch
from torch import nn

from laconic.errors import UnsupportedModel, UsageError
from laconic.models.dropped import DroppedAttention, DroppedBlock
from laconic.models.edits import (
    apply_edits,
    drop,
    droppable,
    drops,
    remove_blocks,
    renumber,
)
from laconic.models.layout import find_blocks, layers_of
from tests.models.tiny import TINY

BLOCKS = 4
CAUSAL = [name for name, tiny in TINY.items() if tiny.causal]

#: What adds to the residual stream: without them a sublayer adds nothing.
LAST = {
    "llama": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3": ("self_attn.o_proj", "mlp.down_proj"),
    "qwen3_moe": ("self_attn.o_proj", "mlp.experts"),
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "opt": ("self_attn.out_proj", "fc2"),
    "bert": ("attention.output.dense", "output.dense"),
    "vit": ("attention.o_proj", "mlp.fc2"),
}


def build(name, **changes):
    """A random model of four blocks."""
    cls, config = TINY[name].build()
    settings = {**config.to_dict(), "layer_types": None, "num_hidden_layers": BLOCKS, **changes}
    settings.pop("n_layer", None)
    torch.manual_seed(0)
    model = cls._from_config(type(config)(**settings), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def logits(name, model):
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in TINY[name].inputs().items()}
    with torch.no_grad():
        return model(**inputs).logits


def generated(model, *, cache, length=9):
    prompt = torch.tensor([[5, 9, 33, 7], [4, 4, 80, 11]])
    padded = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
    return model.generate(
        prompt, attention_mask=padded, max_new_tokens=length,
        min_new_tokens=length, do_sample=False, use_cache=cache, output_scores=True,
        return_dict_in_generate=True,
    )  # fmt: skip


def same_generation(model):
    with_cache, without = (generated(model, cache=cache) for cache in (True, False))
    assert torch.equal(with_cache.sequences, without.sequences)
    for one, other in zip(with_cache.scores, without.scores):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    prompt = torch.tensor([[5, 9, 33, 7, 80, 21, 6]])
    with torch.no_grad():  # several tokens at once, and positions that the model finds itself
        begun = model(prompt[:, :4], use_cache=True)
        going_on = model(prompt[:, 4:], past_key_values=begun.past_key_values, use_cache=True)
        torch.testing.assert_close(
            going_on.logits, model(prompt, use_cache=False).logits[:, 4:], atol=1e-4, rtol=1e-4
        )


def units(model, kind, *blocks):
    return [u.path for u in droppable(model) if u.kind == kind and u.block in blocks]


@pytest.mark.parametrize("name", TINY)
class TestEveryArchitecture:
    def test_units(self, name):
        model = build(name)
        found = droppable(model)
        assert len(found) == 3 * BLOCKS and len({unit.path for unit in found}) == 3 * BLOCKS
        assert [u.path for u in found if u.kind == "block"] == find_blocks(model)

    @pytest.mark.parametrize("kind", ["attention", "mlp"])
    def test_a_dropped_sublayer_adds_nothing(self, name, kind):
        model, zeroed = build(name), build(name)
        (path,) = units(model, kind, 1)
        before = logits(name, model)
        drop(model, path)
        block = zeroed.get_submodule(find_blocks(zeroed)[1])
        last = block.get_submodule(LAST[name][kind == "mlp"])
        for parameter in last.parameters():
            parameter.data.zero_()
        assert torch.equal(logits(name, model), logits(name, zeroed))
        assert not torch.equal(logits(name, model), before)

    def test_dropped_parts_hold_nothing(self, name):
        model = build(name)
        weights = sum(p.numel() for p in model.parameters())
        layers = len(layers_of(model, find_blocks(model)[2]))
        for path in units(model, "attention", 2) + units(model, "mlp", 2):
            drop(model, path)
        assert sum(p.numel() for p in model.parameters()) < weights
        left = len(layers_of(model, find_blocks(model)[2]))
        assert left == 0 and layers > 0
        drop(model, find_blocks(model)[2])
        assert not list(model.get_submodule(find_blocks(model)[2]).parameters())

    def test_a_dropped_block_is_a_removed_block(self, name):
        model, smaller = build(name), build(name)
        drop(model, find_blocks(model)[0])
        drop(model, find_blocks(model)[2])
        remove_blocks(smaller, [2, 0])
        assert len(find_blocks(smaller)) == 2 == smaller.config.num_hidden_layers
        assert torch.equal(logits(name, model), logits(name, smaller))

    def test_a_smaller_model_is_a_plain_model(self, name, tmp_path):
        model = build(name)
        remove_blocks(model, [1])
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
        assert torch.equal(logits(name, again), logits(name, model))

    def test_undo(self, name):
        model = build(name)
        before = logits(name, model)
        paths = [*units(model, "mlp", 0), *units(model, "attention", 0, 3), find_blocks(model)[1]]
        undos = [drop(model, path) for path in paths]
        assert not torch.equal(logits(name, model), before)
        for undo in reversed(undos):
            undo()
        assert torch.equal(logits(name, model), before)

    def test_edits_replay(self, name):
        model, again = build(name), build(name)
        edits = drops([*units(model, "mlp", 1), *units(model, "attention", 0)])
        edits.append({"op": "remove_blocks", "blocks": [2]})
        for target in (model, again):
            apply_edits(target, edits)
        assert torch.equal(logits(name, model), logits(name, again))
        assert len(find_blocks(again)) == BLOCKS - 1

    def test_twice_is_an_error(self, name):
        model = build(name)
        (path,) = units(model, "mlp", 1)
        drop(model, path)
        with pytest.raises(UsageError, match="dropped already"):
            drop(model, path)
        drop(model, find_blocks(model)[0])
        with pytest.raises(UsageError, match="its block is dropped already"):
            drop(model, units(model, "attention", 0)[0])


@pytest.mark.parametrize("name", CAUSAL)
class TestCache:
    @pytest.mark.parametrize("attentions", [(0,), (1, 2), (0, 1, 2), (3,), (0, 1, 2, 3)], ids=str)
    def test_dropped_attentions(self, name, attentions):
        model = build(name)
        for path in units(model, "attention", *attentions):
            drop(model, path)
        same_generation(model)

    def test_slots_are_taken_in_order(self, name):
        model = build(name)
        for path in units(model, "attention", 0, 2):
            drop(model, path)
        cache = generated(model, cache=True).past_key_values
        lengths = [layer.get_seq_length() for layer in cache.layers]
        assert lengths[0] == lengths[1] > 0 and sum(lengths) == 2 * lengths[0]

    def test_dropped_mlps_and_blocks(self, name):
        model = build(name)
        for path in [*units(model, "mlp", 0, 2), *units(model, "attention", 1)]:
            drop(model, path)
        drop(model, find_blocks(model)[3])
        same_generation(model)
        drop(model, find_blocks(model)[0])
        same_generation(model)

    def test_all_blocks(self, name):
        model = build(name)
        for path in find_blocks(model):
            drop(model, path)
        same_generation(model)

    def test_removed_blocks(self, name):
        model = build(name)
        drop(model, units(model, "attention", 1)[0])
        remove_blocks(model, [0])
        same_generation(model)

    def test_undo_gives_the_slots_back(self, name):
        model = build(name)
        before = generated(model, cache=True).sequences
        undo = drop(model, units(model, "attention", 0)[0])
        undo()
        assert torch.equal(generated(model, cache=True).sequences, before)


class TestMixedAttention:
    """Each kind of attention has cache slots of its own."""

    @pytest.fixture
    def model(self):
        return build("qwen3", use_sliding_window=True, sliding_window=4, max_window_layers=2)

    @pytest.mark.parametrize("attentions", [(0,), (2,), (0, 2), (0, 1), (2, 3), (1, 2, 3)], ids=str)
    def test_generates(self, model, attentions):
        assert len(set(model.config.layer_types)) == 2
        for path in units(model, "attention", *attentions):
            drop(model, path)
        same_generation(model)

    def test_removed_blocks_keep_their_kind(self, model, tmp_path):
        remove_blocks(model, [1])
        assert model.config.layer_types.count("sliding_attention") == 2
        same_generation(model)
        model.save_pretrained(tmp_path)
        again = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
        assert torch.equal(logits("qwen3", again), logits("qwen3", model))


def test_blocks_without_experts_are_found_again(tmp_path):
    model = build("qwen3_moe", mlp_only_layers=[0], decoder_sparse_step=2, intermediate_size=40)
    kinds = [type(b.mlp).__name__ for b in model.model.layers]
    assert len(set(kinds)) == 2
    remove_blocks(model, [2])
    model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path, dtype=torch.float32).eval()
    assert [type(b.mlp).__name__ for b in again.model.layers] == [kinds[i] for i in (0, 1, 3)]
    assert torch.equal(logits("qwen3_moe", again), logits("qwen3_moe", model))


def test_training_mode_and_devices_are_kept():
    model = build("llama").train()
    drop(model, "model.layers.1.self_attn")
    assert model.model.layers[1].self_attn.training
    x = torch.ones(1, 2, 3, dtype=torch.bfloat16)
    assert DroppedAttention()(x)[0].dtype == torch.bfloat16
    assert DroppedBlock()(x) is x


class TestBadInput:
    def test_other_architectures(self):
        model = nn.Sequential(nn.Linear(2, 2))
        for call in (droppable, lambda m: drop(m, "0"), lambda m: remove_blocks(m, [0])):
            with pytest.raises(UnsupportedModel, match="cannot be edited; known: .*llama"):
                call(model)

    @pytest.mark.parametrize(
        "path", ["model.layers.9", "model.layers.0.self_attn.q_proj", "lm_head", ""]
    )
    def test_no_such_unit(self, path):
        with pytest.raises(UsageError, match="cannot be dropped; (did you mean|known)"):
            drop(build("llama"), path)

    @pytest.mark.parametrize("numbers", [[4], [-1], [0, 7]])
    def test_no_such_block(self, numbers):
        with pytest.raises(UsageError, match="there are blocks 0 to 3"):
            remove_blocks(build("llama"), numbers)

    def test_one_block_must_be_left(self):
        with pytest.raises(UsageError, match="one block must be left"):
            remove_blocks(build("llama"), range(BLOCKS))

    def test_scaled_by_number(self):
        model = build("gpt2", scale_attn_by_inverse_layer_idx=True)
        with pytest.raises(UnsupportedModel, match="drop it instead"):
            remove_blocks(model, [0])
        drop(model, "transformer.h.0")
        same_generation(model)

    def test_what_the_configuration_cannot_say_changes_nothing(self):
        model = build("llama")
        model.model.layers[3].mlp.down_proj = nn.Linear(20, 32, bias=False)
        with pytest.raises(UnsupportedModel, match=r"cannot describe blocks \[0, 2, 3\]"):
            remove_blocks(model, [1])
        assert len(model.model.layers) == BLOCKS == model.config.num_hidden_layers

    @pytest.mark.parametrize(
        "edit", [{}, {"op": "drop"}, {"op": "fold", "module": "a"}, {"op": "drop", "module": 3}]
    )
    def test_unknown_edits(self, edit):
        with pytest.raises(UsageError, match="unknown edit"):
            apply_edits(build("llama"), [edit])


def test_renumbering_again_changes_nothing():
    model = build("llama")
    drop(model, "model.layers.0.self_attn")
    before = [getattr(b.self_attn, "layer_idx", None) for b in model.model.layers]
    renumber(model)
    assert before == [None, 0, 1, 2]
    assert before == [getattr(b.self_attn, "layer_idx", None) for b in model.model.layers]
