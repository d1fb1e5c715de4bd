"""Tiny random models in the layouts that matter, built in memory: no files, no network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

VOCABULARY = 160


@dataclass(frozen=True)
class Tiny:
    """A model of two blocks and what a reader of its checkpoint must find.

    Attributes:
        build: the class and the configuration.
        layers: of one block.
        extra: layers outside the blocks.
        dtype: of the weights.
        causal: whether it generates.
        tied: the head shares the embedding's table.
    """

    build: Callable[[], tuple[Any, Any]]
    layers: int
    extra: tuple[str, ...]
    dtype: torch.dtype = torch.float32
    causal: bool = True
    tied: bool = False

    def model(self, seed: int = 0) -> Any:
        """A new random model; every parameter differs from its usual constant."""
        cls, config = self.build()
        torch.manual_seed(seed)
        model = cls._from_config(config, dtype=self.dtype)  # `.to` would round rotary buffers
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    def inputs(self, seed: int = 0) -> dict[str, torch.Tensor]:
        """A batch of two."""
        draw = torch.Generator().manual_seed(seed)
        if "vit" in self.build.__name__:
            pixels = torch.randn(2, 3, 16, 16, generator=draw)
            return {"pixel_values": pixels.to(self.dtype)}
        return {"input_ids": torch.randint(4, VOCABULARY, (2, 7), generator=draw)}

    def logits(self, model: Any) -> torch.Tensor:
        """What `model` answers to `inputs`."""
        with torch.no_grad():
            return model(**self.inputs()).logits


def llama() -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM, LlamaConfig(
        **_decoder(), tie_word_embeddings=False, num_key_value_heads=2
    )


def qwen3() -> tuple[Any, Any]:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    return Qwen3ForCausalLM, Qwen3Config(
        **_decoder(), tie_word_embeddings=True, num_key_value_heads=2, head_dim=16
    )


def qwen3_moe() -> tuple[Any, Any]:
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    return Qwen3MoeForCausalLM, Qwen3MoeConfig(
        **_decoder(), tie_word_embeddings=False, num_key_value_heads=2, head_dim=16,
        num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, norm_topk_prob=True,
    )  # fmt: skip


def gpt2() -> tuple[Any, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel, GPT2Config(
        vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64,
        bos_token_id=1, eos_token_id=2, attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0,
    )  # fmt: skip


def opt() -> tuple[Any, Any]:
    from transformers import OPTConfig, OPTForCausalLM

    return OPTForCausalLM, OPTConfig(
        vocab_size=VOCABULARY, hidden_size=32, word_embed_proj_dim=24, ffn_dim=48,
        num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64,
        pad_token_id=1, bos_token_id=2, eos_token_id=2, do_layer_norm_before=False,
    )  # fmt: skip


def bert() -> tuple[Any, Any]:
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification, BertConfig(**_encoder(), vocab_size=VOCABULARY)


def vit() -> tuple[Any, Any]:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification, ViTConfig(
        **_encoder(), image_size=16, patch_size=4, num_labels=3
    )


def _decoder() -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip


def _encoder() -> dict[str, Any]:
    return {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }  # fmt: skip


TINY = {
    "llama": Tiny(llama, 7, ("model.embed_tokens", "lm_head"), torch.bfloat16),
    "qwen3": Tiny(qwen3, 7, ("model.embed_tokens",), tied=True),
    "gpt2": Tiny(gpt2, 4, ("transformer.wte", "transformer.wpe"), tied=True),
    "opt": Tiny(
        opt, 6,
        ("model.decoder.embed_tokens", "model.decoder.project_out", "model.decoder.project_in"),
        torch.float16, tied=True,
    ),
    "bert": Tiny(
        bert, 6,
        (
            "bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings",
            "bert.embeddings.token_type_embeddings", "bert.pooler.dense", "classifier",
        ),
        causal=False,
    ),
    "vit": Tiny(
        vit, 6, ("vit.embeddings.patch_embeddings.projection", "classifier"), causal=False
    ),
    "qwen3_moe": Tiny(
        qwen3_moe, 4 + 3 * 4, ("model.embed_tokens", "lm_head"), torch.bfloat16
    ),
}  # fmt: skip
