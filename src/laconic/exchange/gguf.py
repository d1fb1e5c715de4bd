"""GGUF files with Q4_0 and Q8_0 blocks, which llama.cpp and transformers read.

Q4_0 = fp16 scale d | 32 codes of 4 bits, of which the first 16 stand in the low halves;  value = d (q - 8)
Q8_0 = fp16 scale d | 32 signed bytes;  value = d q
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from laconic.errors import MissingExtra, UnsupportedModel
from laconic.exchange.compressed_folder import CompressedFolder
from laconic.exchange.gguf_tokenizer import tokenizer_fields
from laconic.exchange.uniform import UniformLayer, rounding_of
from laconic.files import expect_free

BLOCK = 32
#: Architectures by transformers' model type: llama.cpp's name, and whether it rotates pairs of neighbours.
ARCHITECTURES = {
    "llama": ("llama", True),
    "mistral": ("llama", True),
    "qwen2": ("qwen2", False),
    "qwen3": ("qwen3", False),
}
QUERIES, KEYS = ("self_attn.q_proj",), ("self_attn.k_proj",)


def write_gguf(
    folder: CompressedFolder, out: Path, overwrite: bool
) -> tuple[int, float, tuple[str, ...]]:
    """Writes one GGUF file.

    Returns:
        How many layers are codes there, the greatest relative change of a scale, and notes.

    Raises:
        UnsupportedModel: an architecture or a layer that the format does not know.
        OutputExists: `out` is there.
        MissingExtra: gguf is not installed.
    """
    library = _library()
    expect_free(out, overwrite)
    kind = str(folder.config.get("model_type"))
    if kind not in ARCHITECTURES:
        raise UnsupportedModel(
            f"llama.cpp's form of {kind} is not known here; known: {', '.join(ARCHITECTURES)}"
        )
    architecture, paired = ARCHITECTURES[kind]
    names = _names(library, architecture, int(folder.config["num_hidden_layers"]))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.partial-{os.getpid()}"
    writer = library.GGUFWriter(temporary, architecture, use_temp_file=True)
    count, rounding = 0, 0.0
    try:
        notes = _describe(writer, library, folder)
        for part in folder.parts():
            if isinstance(part, UniformLayer):
                blocks, form = quantized_blocks(_rotated(part, folder.config, paired))
                kept = library.GGMLQuantizationType[form]
                writer.add_tensor(names(f"{part.path}.weight"), blocks, raw_dtype=kept)
                rounding = max(rounding, rounding_of(part, torch.float16))
                count += 1
            else:
                name, value = part[0], _rotated_tensor(*part, folder.config, paired)
                writer.add_tensor(names(name), *_plain(value, library))
        if not count:
            raise UnsupportedModel("none of its layers is compressed")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return count, rounding, notes


def quantized_blocks(layer: UniformLayer) -> tuple[np.ndarray, str]:
    """The bytes (R, bytes) of a layer's rows, and what their format is called.

    Raises:
        UnsupportedModel: another width than 4 or 8, zero points, or scales that 32 columns do not share.
    """
    rows, columns = layer.codes.shape
    if layer.factors is not None:
        raise UnsupportedModel(f"{layer.path} has factors of low rank added to it")
    if layer.bits not in (4, 8):
        raise UnsupportedModel(f"{layer.path} has {layer.bits} bits; Q4_0 and Q8_0 have 4 and 8")
    if not layer.symmetric:
        raise UnsupportedModel(f"{layer.path} has zero points, which Q4_0 and Q8_0 do not")
    if layer.order is not None:
        raise UnsupportedModel(f"{layer.path} has its columns in another order")
    if columns % BLOCK or (layer.group % BLOCK and layer.group < columns):
        raise UnsupportedModel(
            f"{layer.path} has {columns} columns in groups of {layer.group}: both must be multiples of "
            f"{BLOCK}"
        )
    first = torch.arange(0, columns, BLOCK) // layer.group
    scale = layer.scale_as(torch.float16)[:, first].contiguous()  # (R, blocks)
    codes = layer.codes.reshape(rows, -1, BLOCK)
    if layer.bits == 4:
        half = BLOCK // 2
        body = codes[..., :half] | codes[..., half:] << 4
    else:
        body = (codes.int() - 128).to(torch.int8).view(torch.uint8)
    head = scale.view(torch.uint8).reshape(rows, -1, 2)
    return torch.cat([head, body], -1).reshape(rows, -1).numpy(), f"Q{layer.bits}_0"


def _describe(writer: Any, library: Any, folder: CompressedFolder) -> tuple[str, ...]:
    """Writes what is known of the model besides its weights; notes for the user."""
    config = folder.config
    heads = int(config["num_attention_heads"])
    width = int(config.get("head_dim") or config["hidden_size"] // heads)
    rope = config.get("rope_parameters") or {}
    theta = rope.get("rope_theta", config.get("rope_theta", 10_000.0))
    scaling = rope.get("rope_type", (config.get("rope_scaling") or {}).get("rope_type", "default"))
    if scaling != "default":
        raise UnsupportedModel(f"its rotary positions are scaled by {scaling!r}")
    writer.add_name(folder.folder.name)
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(theta))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))
    writer.add_quantization_version(library.GGML_QUANT_VERSION)
    return tokenizer_fields(writer, library, folder.folder, config)


def _names(library: Any, architecture: str, blocks: int) -> Any:
    """A function from names in transformers to names in GGUF."""
    found = {value: key for key, value in library.MODEL_ARCH_NAMES.items()}
    table = library.get_tensor_name_map(found[architecture], blocks)

    def name(ours: str) -> str:
        theirs = table.get_name(ours, try_suffixes=(".weight", ".bias"))
        if theirs is None:
            raise UnsupportedModel(f"llama.cpp has no name for {ours}")
        return str(theirs)

    return name


def _rotated(layer: UniformLayer, config: dict[str, Any], paired: bool) -> UniformLayer:
    """`layer` with the rows of queries and keys where llama.cpp's rotation wants them."""
    order = _row_order(layer.path, layer.codes.shape[0], config) if paired else None
    if order is None:
        return layer
    zero = None if layer.zero is None else layer.zero[order]
    return replace(layer, codes=layer.codes[order], scale=layer.scale[order], zero=zero)


def _rotated_tensor(name: str, value: Tensor, config: dict[str, Any], paired: bool) -> Tensor:
    order = _row_order(name.rpartition(".")[0], value.shape[0], config) if paired else None
    return value if order is None else value[order]


def _row_order(path: str, rows: int, config: dict[str, Any]) -> Tensor | None:
    """Rows of a head pair up as (0, half), (1, half + 1), ...; None for other layers."""
    if not path.endswith((*QUERIES, *KEYS)):
        return None
    heads = int(config["num_attention_heads"])
    if path.endswith(KEYS):
        heads = int(config.get("num_key_value_heads") or heads)
    return torch.arange(rows).reshape(heads, 2, -1).transpose(1, 2).reshape(-1)


def _plain(value: Tensor, library: Any) -> tuple[np.ndarray, list[int] | None, Any]:
    """A tensor that stays as it is; vectors in fp32, as llama.cpp wants them."""
    types = library.GGMLQuantizationType
    if value.ndim < 2:
        return value.float().numpy(), None, types.F32
    if value.dtype == torch.bfloat16:
        raw = value.contiguous().view(torch.uint8).numpy()
        return raw, None, types.BF16
    if value.dtype == torch.float16:
        return value.numpy(), None, types.F16
    return value.float().numpy(), None, types.F32


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise MissingExtra("gguf", "export") from error
    return gguf
