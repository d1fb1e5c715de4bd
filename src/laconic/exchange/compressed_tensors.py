"""The `pack-quantized` format of compressed-tensors, which vLLM and transformers read."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from laconic.errors import CorruptFile, MissingExtra, UnsupportedModel
from laconic.exchange.uniform import UniformLayer

METHOD = "compressed-tensors"
FORMAT = "pack-quantized"
SUFFIXES = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point")
Scheme = tuple[int, int | None, bool]  # bits, group or None for a row, symmetric


class CompressedTensorsWriter:
    """Writes layers as `pack-quantized`: codes in words of 32 bits, scales in the model's dtype."""

    method = METHOD

    def __init__(self) -> None:
        self._helpers = helpers()
        self._schemes: dict[Scheme, list[str]] = {}
        self._plain: list[str] = []

    def tensors(self, layer: UniformLayer, dtype: torch.dtype) -> dict[str, Tensor]:
        """What the file holds of `layer`."""
        layer.only_linear()
        if layer.transposed:
            raise UnsupportedModel(
                f"{layer.path} is a Conv1D, which compressed-tensors does not know: take gptq"
            )
        if layer.order is not None:
            raise UnsupportedModel(f"{layer.path} has its columns in another order")
        group = None if layer.group >= layer.columns else layer.group
        if group is not None:
            layer.whole_groups()
        self._schemes.setdefault((layer.bits, group, layer.symmetric), []).append(layer.path)
        middle = 2 ** (layer.bits - 1)
        whole = self._helpers.pack_to_int32((layer.codes.int() - middle).to(torch.int8), layer.bits)
        found = {
            "weight_packed": whole,
            "weight_scale": layer.scale_as(dtype),
            "weight_shape": torch.tensor(layer.codes.shape),
        }
        if not layer.symmetric:
            zero = (layer.zeros.int() - middle).to(torch.int8)
            found["weight_zero_point"] = self._helpers.pack_to_int32(
                zero, layer.bits, packed_dim=0
            ).contiguous()
        return {f"{layer.path}.{name}": tensor for name, tensor in found.items()}

    def leave(self, path: str) -> None:
        """Has the configuration say that the linear layer `path` is not compressed."""
        self._plain.append(path)

    def scales_in(self, dtype: torch.dtype) -> torch.dtype:
        """What scales are kept in where the model is in `dtype`."""
        return dtype

    def config(self) -> dict[str, Any]:
        """The `quantization_config` of what was written."""
        single = len(self._schemes) == 1
        groups = {}
        for number, ((bits, group, symmetric), paths) in enumerate(self._schemes.items()):
            weights = {
                "num_bits": bits, "type": "int", "symmetric": symmetric, "dynamic": False,
                "strategy": "channel" if group is None else "group", "group_size": group,
            }  # fmt: skip
            groups[f"group_{number}"] = {
                "targets": ["Linear"] if single else paths, "weights": weights,
                "input_activations": None, "output_activations": None, "format": FORMAT,
            }  # fmt: skip
        return {
            "quant_method": METHOD, "format": FORMAT, "quantization_status": "compressed",
            "config_groups": groups, "ignore": sorted(self._plain), "kv_cache_scheme": None,
        }  # fmt: skip


class CompressedTensorsReader:
    """Reads `pack-quantized` integer checkpoints.

    Args:
        config: the `quantization_config` in config.json.

    Raises:
        UnsupportedModel: another format of compressed-tensors.
    """

    suffixes = SUFFIXES

    def __init__(self, config: Mapping[str, Any]) -> None:
        if config.get("format") != FORMAT:
            raise UnsupportedModel(
                f"only {FORMAT} of compressed-tensors can be imported, found {config.get('format')!r}"
            )
        schemes = list(config.get("config_groups", {}).values())
        if not schemes:
            raise CorruptFile("the quantization_config has no config_groups")
        for scheme in schemes:
            if scheme.get("input_activations") is not None:
                raise UnsupportedModel("the model rounds its inputs: only weights can be imported")
            weights = scheme.get("weights") or {}
            if weights.get("type") != "int" or not 2 <= weights.get("num_bits", 0) <= 8:
                raise UnsupportedModel(
                    f"only integers of 2 to 8 bits can be imported, found {weights}"
                )
        self._bits = sorted({int(scheme["weights"]["num_bits"]) for scheme in schemes})
        self._helpers = helpers()

    def layer(self, path: str, tensors: Mapping[str, Tensor]) -> UniformLayer:
        """The layer `path` from its tensors, named by `suffixes`."""
        if "weight_g_idx" in tensors:
            raise UnsupportedModel(f"{path} has its columns in another order")
        try:
            words, scale = tensors["weight_packed"], tensors["weight_scale"]
            shape = tensors["weight_shape"].flatten().tolist()
        except KeyError as error:
            raise CorruptFile(f"{path}.{error.args[0]} is missing") from error
        if len(shape) != 2 or words.ndim != 2 or (scale.numel() > 1 and len(scale) != shape[0]):
            raise CorruptFile(f"{path}: its tensors do not fit together")
        rows, columns = shape
        bits = self._width(path, words.shape[-1], columns)
        middle = 2 ** (bits - 1)
        codes = self._helpers.unpack_from_int32(words, bits, torch.Size((rows, columns)))
        scale = scale.reshape(-1, scale.shape[-1]).expand(rows, -1)
        zero = tensors.get("weight_zero_point")
        if zero is not None:
            groups = torch.Size((rows, scale.shape[1]))
            zero = self._helpers.unpack_from_int32(zero, bits, groups, packed_dim=0)
            zero = (zero.int() + middle).to(torch.uint8)
        group = -(-columns // scale.shape[1])
        return UniformLayer(path, bits, group, (codes.int() + middle).to(torch.uint8), scale, zero)

    def _width(self, path: str, words: int, columns: int) -> int:
        """The bits of a code that make `columns` of them fill `words`."""
        for bits in self._bits:
            if -(-columns * bits // 32) == words:
                return bits
        raise CorruptFile(
            f"{path}: {words} words of 32 bits do not hold {columns} codes of {self._bits} bits"
        )


def helpers() -> Any:
    """compressed-tensors' own packing; raises `MissingExtra`."""
    try:
        from compressed_tensors.compressors.pack_quantized import helpers as found
    except ImportError as error:
        raise MissingExtra("compressed-tensors", "export") from error
    return found
