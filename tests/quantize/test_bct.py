import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    ViTConfig,
    ViTForImageClassification,
)

import laconic
from laconic.errors import UnsupportedModel, UsageError
from laconic.models.edits import apply_edits
from laconic.models.integer import unsupported
from laconic.models.integer_modules import IntegerActivation, IntegerNorm
from laconic.models.operators import Operators
from laconic.quantize.bct import BCT, PARTS, ShiftBlocks
from laconic.tensors import Shifted
from laconic.tensors.modules import CompressedEmbedding, CompressedLinear

SIZE = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
WORDS = {"vocab_size": 128, "max_position_embeddings": 64}


def bert():
    config = BertConfig(**SIZE, **WORDS, intermediate_size=128)
    return BertForSequenceClassification(config)


def vit():
    return ViTForImageClassification(
        ViTConfig(**SIZE, intermediate_size=128, image_size=16, patch_size=4)
    )


def gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=128, n_positions=64, n_embd=64, n_head=2, n_layer=2)
    )


def opt():
    return OPTForCausalLM(OPTConfig(**SIZE, **WORDS, ffn_dim=128, word_embed_proj_dim=64))


def llama():
    config = LlamaConfig(**SIZE, **WORDS, intermediate_size=128, num_key_value_heads=1)
    return LlamaForCausalLM(config)


MAKERS = {"bert": bert, "vit": vit, "gpt2": gpt2, "opt": opt, "llama": llama}
CAUSAL = ("gpt2", "opt", "llama")


def made(kind):
    """A model whose attention is not even: its queries are large."""
    torch.manual_seed(0)
    model = MAKERS[kind]().eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.mul_(6 if "embed" not in name else 3)
    return model


def given(kind, batch=3, tokens=20):
    generator = torch.Generator().manual_seed(1)
    if kind == "vit":
        return {"pixel_values": torch.randn(batch, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(5, 128, (batch, tokens), generator=generator)}


def logits(model, inputs):
    with torch.inference_mode():
        return model(**inputs).logits


def off(model, dense, inputs):
    return float((logits(model, inputs) - dense).norm() / (dense - dense.mean()).norm())


@pytest.fixture(params=MAKERS)
def kind(request):
    return request.param


class TestModels:
    def test_all_of_it_is_near_at_8_bits_and_comes_back(self, kind, tmp_path):
        model, inputs = made(kind), given(kind)
        dense = logits(model, inputs)
        model.save_pretrained(tmp_path / "dense")
        result = laconic.compress(model, BCT(wbits=8))
        assert 0 < off(model, dense, inputs) < 0.15
        modules = [type(m).__name__ for m in model.modules()]
        assert "LayerNorm" not in modules and "LlamaRMSNorm" not in modules
        assert modules.count("IntegerNorm") >= 4
        assert ("IntegerActivation" in modules) == (kind != "opt")
        assert all(la["format"].startswith("int8 shift") for la in result.report.layers)
        laconic.compress(tmp_path / "dense", BCT(wbits=8), out=tmp_path / "small")
        again = laconic.load(tmp_path / "small")
        assert torch.equal(logits(again, inputs), logits(model, inputs))
        again.save_pretrained(tmp_path / "copy")
        assert torch.equal(logits(laconic.load(tmp_path / "copy"), inputs), logits(model, inputs))

    def test_transformers_opens_it(self, kind, tmp_path):
        import laconic.hf

        model, inputs = made(kind), given(kind)
        model.save_pretrained(tmp_path / "dense")
        laconic.compress(tmp_path / "dense", BCT(), out=tmp_path / "small")
        again = type(model).from_pretrained(tmp_path / "small").eval()
        expected = logits(laconic.load(tmp_path / "small"), inputs)
        assert torch.equal(logits(again, inputs), expected)

    @pytest.mark.parametrize("part", PARTS)
    def test_each_part_alone(self, kind, part):
        model, inputs = made(kind), given(kind)
        dense = logits(model, inputs)
        laconic.compress(model, BCT(wbits=8, parts=part))
        lost = off(model, dense, inputs)
        idle = (part == "embedding" and kind == "vit") or (part == "activation" and kind == "opt")
        assert lost < 0.1 and (lost == 0) == idle
        held = {type(m) for m in model.modules()}
        blocked = {type(m) for m in model.modules() if isinstance(getattr(m, "weight", 0), Shifted)}
        assert (CompressedLinear in blocked) == (part == "linear")
        assert (CompressedEmbedding in blocked) == (part == "embedding" and not idle)
        assert (IntegerNorm in held) == (part in ("norm", "stream"))
        assert (IntegerActivation in held) == (part == "activation" and not idle)

    def test_the_batch_does_not_matter(self, kind):
        model, inputs = made(kind), given(kind)
        laconic.compress(model, BCT())
        whole = logits(model, inputs)
        for number in range(3):
            one = {name: value[number : number + 1] for name, value in inputs.items()}
            assert torch.allclose(logits(model, one)[0], whole[number], atol=1e-4, rtol=1e-4)

    def test_inputs_are_not_written_to(self, kind):
        model, inputs = made(kind), given(kind)
        laconic.compress(model, BCT())
        before = {name: value.clone() for name, value in inputs.items()}
        once = logits(model, inputs)
        assert all(torch.equal(value, before[name]) for name, value in inputs.items())
        assert torch.equal(logits(model, inputs), once)


@pytest.mark.parametrize("kind", CAUSAL)
class TestLanguageModels:
    def test_later_tokens_do_not_matter(self, kind):
        model, inputs = made(kind), given(kind)
        laconic.compress(model, BCT())
        whole = logits(model, inputs)
        head = logits(model, {"input_ids": inputs["input_ids"][:, :11]})
        assert torch.allclose(whole[:, :11], head, atol=1e-4, rtol=1e-4)

    def test_generates_with_a_cache_as_without(self, kind):
        model, inputs = made(kind), given(kind, tokens=8)
        laconic.compress(model, BCT())
        a, b = (
            model.generate(
                **inputs, max_new_tokens=6, do_sample=False, use_cache=cache, pad_token_id=0,
                eos_token_id=None,
            )
            for cache in (True, False)
        )  # fmt: skip
        assert torch.equal(a, b)


def test_padding_does_not_matter():
    model, ids = made("bert"), given("bert", tokens=20)["input_ids"]
    laconic.compress(model, BCT())
    mask = torch.ones_like(ids)
    mask[:, 12:] = 0
    padded = logits(model, {"input_ids": ids, "attention_mask": mask})
    alone = logits(model, {"input_ids": ids[:, :12]})
    assert torch.allclose(padded, alone, atol=1e-4, rtol=1e-4)


def test_four_bits_and_24_bits_a_block():
    model = made("gpt2")
    laconic.compress(model, BCT())
    for module in model.modules():
        if isinstance(module, CompressedLinear):
            value = module.weight
            assert isinstance(value, Shifted)
            blocks = value.numel / 4096
            assert 8 * value.resident_bytes == 4 * value.numel + 24 * blocks


def test_nonlinear_operators_may_stay():
    operators = BCT(nonlinear="fp").operators().operators
    assert operators == ("attention", "stream")


def test_what_stays_float_is_noted_or_refused():
    model = made("llama")
    assert any("Rotary" in note for note in unsupported(model))
    with pytest.raises(UnsupportedModel, match="Rotary"):
        laconic.compress(model, BCT(strict=True))
    notes = laconic.compress(model, BCT()).report.notes
    assert any("LlamaRotaryEmbedding" in note for note in notes)
    laconic.compress(made("bert"), BCT(strict=True))


def test_embeddings_by_rows():
    model = made("gpt2")
    laconic.compress(model, BCT(embeddings="row"))
    assert model.transformer.wte.weight.format == "int4 shift 1x64"


def test_settings_are_checked():
    for wrong in (
        {"parts": "linear+sofmax"}, {"nonlinear": "float"}, {"embeddings": "column"}, {"wbits": 9},
        {"abits": 1}, {"stream": 17}, {"attention": "all"}, {"tokens": 0}, {"search": 5},
    ):  # fmt: skip
        with pytest.raises(UsageError):
            BCT(**wrong)
    for wrong in ({"bits": 16}, {"inputs": 9}, {"rows": 0}):
        with pytest.raises(UsageError):
            ShiftBlocks(**wrong)


def test_edits_are_checked():
    edit = Operators(("norm",)).edit()
    assert Operators.from_edit(edit) == Operators(("norm",))
    for wrong in ({"operators": ["nrom"]}, {"bits": 9}, {"colour": 1}):
        with pytest.raises(UsageError):
            apply_edits(made("gpt2"), [{**edit, **wrong}])


def test_more_bits_lose_less():
    weight = torch.randn(128, 128)
    lost = [
        float((o.compress_weight(weight).dense() - weight).norm()) for o in ShiftBlocks().options()
    ]
    assert lost == sorted(lost, reverse=True)
