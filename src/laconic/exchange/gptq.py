"""The layout of GPTQ checkpoints: AutoGPTQ, GPTQModel, vLLM, transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.exchange.uniform import UniformLayer, pack_words, unpack_words

METHOD = "gptq"
BITS = (2, 3, 4, 8)
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
FIRST, SECOND = "gptq", "gptq_v2"  # zero points are stored less one, or as they are


class GPTQWriter:
    """Writes layers as qweight, qzeros, scales and g_idx; zero points as they are (`gptq_v2`) if one is 0."""

    method = METHOD

    def __init__(self) -> None:
        self._bits: int | None = None
        self._groups: set[int] = set()  # of layers with several groups a row
        self._rows: set[int] = set()  # columns of layers with one
        self._symmetric = True
        self._in_order = True

    def tensors(self, layer: UniformLayer, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the file holds of `layer`; scales are fp16, whatever the model's `dtype`."""
        layer.only_linear()
        rows, columns = layer.codes.shape
        self._agree(layer)
        if layer.bits not in BITS:
            raise UnsupportedModel(f"GPTQ files have 2, 3, 4 or 8 bits, found {layer.bits}")
        if rows * layer.bits % 32 or columns * layer.bits % 32:
            raise UnsupportedModel(
                f"{layer.path} is {rows} x {columns}: {layer.bits}-bit codes do not fill words of 32 bits"
            )
        layer.whole_groups()
        if not layer.symmetric and bool((layer.zeros == 0).any()):
            raise UnsupportedModel(
                f"{layer.path} has a zero point of 0, which GPTQ files cannot say: take "
                "compressed-tensors"
            )
        self._symmetric &= layer.symmetric
        index = torch.arange(columns, dtype=torch.int32) // layer.group
        codes = layer.codes
        if layer.order is not None:  # columns go back to where their inputs are
            self._in_order = False
            place = layer.order.long().argsort()
            codes, index = codes[:, place], index[place]
        zeros = (layer.zeros.T - 1).to(torch.uint8)
        found = {
            "qweight": pack_words(codes, layer.bits).T.contiguous(),
            "qzeros": pack_words(zeros, layer.bits),
            "scales": layer.scale_as(self.scales_in(dtype)).T.contiguous(),
            "g_idx": index,
        }
        return {f"{layer.path}.{name}": tensor for name, tensor in found.items()}

    def _agree(self, layer: UniformLayer) -> None:
        """Raises `UnsupportedModel` where `layer` has another width or group than those before it."""
        (self._rows if layer.group >= layer.columns else self._groups).add(layer.group)
        if self._bits not in (None, layer.bits):
            raise UnsupportedModel(
                f"a GPTQ file has one width for all layers, found {self._bits} and {layer.bits} bits: take "
                "compressed-tensors"
            )
        self._bits = layer.bits
        if len(self._groups) > 1 or (self._groups and self._rows - self._groups):
            found = ", ".join(map(str, sorted(self._groups | self._rows)))
            raise UnsupportedModel(
                f"a GPTQ file has one group for all layers, found {found} columns: take compressed-tensors"
            )

    def leave(self, path: str) -> None:
        """Nothing to do: what is not packed is not quantized."""

    def scales_in(self, dtype: torch.dtype) -> torch.dtype:
        """What scales are kept in where the model is in `dtype`."""
        return torch.float16

    def config(self) -> dict[str, Any]:
        """The `quantization_config` of what was written."""
        group = next(iter(self._groups), -1)
        return {
            "quant_method": METHOD, "bits": self._bits, "group_size": group, "sym": self._symmetric,
            "desc_act": not self._in_order, "checkpoint_format": FIRST, "pack_dtype": "int32",
            "lm_head": False, "true_sequential": True,
        }  # fmt: skip


class GPTQReader:
    """Reads GPTQ checkpoints of either version, in any order of columns.

    Args:
        config: the `quantization_config` in config.json.

    Raises:
        UnsupportedModel: another width, or a packing that is not in words of 32 bits.
    """

    suffixes = SUFFIXES

    def __init__(self, config: Mapping[str, Any]) -> None:
        bits = config.get("bits")
        if bits not in BITS:
            raise UnsupportedModel(f"GPTQ files have 2, 3, 4 or 8 bits, found {bits!r}")
        self._bits = int(bits)
        form = config.get("checkpoint_format") or FIRST
        if form not in (FIRST, SECOND) or config.get("pack_dtype", "int32") != "int32":
            raise UnsupportedModel(
                f"only {FIRST} and {SECOND} in words of 32 bits can be imported, found {form!r} in "
                f"{config.get('pack_dtype', 'int32')}"
            )
        if config.get("dynamic"):
            raise UnsupportedModel("layers of different widths in one GPTQ file cannot be imported")
        self._less = 1 if form == FIRST else 0

    def layer(self, path: str, tensors: Mapping[str, Tensor]) -> UniformLayer:
        """The layer `path` from its tensors, named by `suffixes`."""
        try:
            words, scales = tensors["qweight"], tensors["scales"]
            packed_zeros = tensors["qzeros"]
        except KeyError as error:
            raise CorruptFile(f"{path}.{error.args[0]} is missing") from error
        columns = words.shape[0] * 32 // self._bits
        groups, rows = scales.shape
        if words.shape[1] != rows or packed_zeros.shape[0] != groups or groups < 1:
            raise CorruptFile(f"{path}: its tensors do not fit together")
        codes = unpack_words(words.T, self._bits, columns)
        zero = (unpack_words(packed_zeros, self._bits, rows) + self._less) & (2**self._bits - 1)
        group = -(-columns // groups)
        index = tensors.get("g_idx", torch.arange(columns) // group).long()
        order = None
        if bool((index[1:] < index[:-1]).any()):
            order = index.argsort(stable=True)
            codes, index = codes[:, order], index[order]
        if not torch.equal(index, torch.arange(columns) // group):
            raise UnsupportedModel(f"{path} has groups of different sizes")
        return UniformLayer(path, self._bits, group, codes, scales.T, zero.T, order)
