"""Modules that compute with compressed weights; `replacement` puts them in place of ordinary ones.

A compressed module has *slots* (`weight`, or the two projections of fused experts), each holding a
`Record`. In a state dict every slot is one uint8 blob under the name that the dense parameter had:
an unprepared loader stumbles over its shape instead of starting from random weights.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from laconic.errors import CorruptFile
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.stored import Record, decode_record, encode

Slot = Record | int  # a value, or the byte length of the blob that will bring it


class CompressedModule(nn.Module):
    """Base: keeps records, hands out values, reads and writes blobs.

    Args:
        slots: by parameter name a record, or the length of the blob that is to be loaded (as
            transformers does it, into a buffer on the meta device) before `materialise`.
    """

    slot_names: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.records: dict[str, Record] = {}
        self.shapes: dict[str, torch.Size] = {}  # that loaded values must have, where known
        for name in self.slot_names:
            slot = slots[name]
            if isinstance(slot, int):
                self.register_buffer(name, torch.empty(slot, dtype=torch.uint8))
            else:
                self.records[name] = slot

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """The compressed twin of an ordinary module; shares its bias."""
        raise NotImplementedError

    def materialise(self) -> None:
        """Turns loaded blobs into values; does nothing where there are none."""
        for name in self.slot_names:
            blob = self._buffers.pop(name, None)
            if blob is not None:
                self.records[name] = self._decode(name, blob)

    def _decode(self, name: str, blob: Tensor) -> Record:
        if blob.dtype != torch.uint8:
            raise CorruptFile(f"not a compressed tensor: {blob.dtype} values stand in its place")
        record = decode_record(blob.detach().cpu().numpy())
        expected = self.shapes.get(name, record.weight.shape)
        if record.weight.shape != expected:
            raise CorruptFile(f"{name} has shape {record.weight.shape}, {expected} is expected")
        return record

    def __getattr__(self, name: str) -> Any:
        """`module.weight` is the compressed tensor."""
        records = self.__dict__.get("records", {})
        return records[name].weight if name in records else super().__getattr__(name)

    @property
    def values(self) -> dict[str, CompressedTensor]:
        """The compressed tensors by slot."""
        return {name: record.weight for name, record in self.records.items()}

    @property
    def resident_bytes(self) -> int:
        """Bytes that values and transforms occupy; the bias is an ordinary parameter."""
        transforms = [r.transform for r in self.records.values() if r.transform is not None]
        parts = [*self.values.values(), *transforms]
        return sum(part.resident_bytes for part in parts)

    def prepare(self, x: Tensor, slot: str = "weight") -> Tensor:
        """The input after the slot's transform and activation quantizer."""
        record = self.records[slot]
        if record.transform is not None:
            x = record.transform(x)
        if record.activation is not None:
            x = record.activation.project(x.reshape(-1, x.shape[-1])).reshape(x.shape)
        return x

    def extra_repr(self) -> str:
        """What the module holds, for `print(model)`."""
        held = [f"{n}={v.format} {list(v.shape)}" for n, v in self.values.items()]
        return ", ".join(held) or "not loaded"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, record in self.records.items():  # follows to a device; keeps its own dtypes
            probe = torch.empty(0, dtype=torch.uint8, device=record.weight.device)
            device = fn(probe).device
            transform = None if record.transform is None else record.transform.to(device)
            self.records[name] = Record(record.weight.to(device), transform, record.activation)
        return self

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, record in self.records.items():
            blob = np.frombuffer(encode(record), np.uint8).copy()
            destination[prefix + name] = torch.from_numpy(blob)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, local_metadata: Any, strict: bool,
        missing_keys: list[str], unexpected_keys: list[str], error_msgs: list[str],
    ) -> None:  # fmt: skip
        blobs = {n: state_dict[prefix + n] for n in self.slot_names if prefix + n in state_dict}
        rest = {k: v for k, v in state_dict.items() if k not in {prefix + n for n in blobs}}
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        for name in self.slot_names:
            if name in blobs:
                if prefix + name in missing_keys:
                    missing_keys.remove(prefix + name)
                self._buffers.pop(name, None)
                self.records[name] = self._decode(name, blobs[name])
            elif prefix + name not in missing_keys:
                missing_keys.append(prefix + name)


class CompressedLinear(CompressedModule):
    """`nn.Linear` (and GPT-2's Conv1D, whose weight is kept as (out, in)) with a compressed weight.

    Attributes:
        in_features: columns of the weight.
        out_features: rows of the weight.
        bias: (out,) or None.
    """

    def __init__(
        self, slots: Mapping[str, Slot], bias: Tensor | None, in_features: int, out_features: int
    ) -> None:
        super().__init__(slots)
        self.bias = None if bias is None else _parameter(bias)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From `nn.Linear` (weight (out, in)) or `Conv1D` (weight (in, out))."""
        first, second = module.weight.shape
        out_features, in_features = (second, first) if is_conv1d(module) else (first, second)
        return cls(slots, module.bias, in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., in) to (..., out)."""
        y: Tensor = self.weight.matmul(self.prepare(x), self.bias)
        return y


class _CompressedConv(CompressedModule):
    """Convolutions: the geometry is the ordinary module's."""

    convolve: ClassVar[Callable[..., Tensor]]
    channels: ClassVar[int]  # their dimension in the input

    def __init__(
        self, slots: Mapping[str, Slot], bias: Tensor | None, geometry: dict[str, Any],
        pad: tuple[list[int], str] | None = None,
    ) -> None:  # fmt: skip
        super().__init__(slots)
        self.bias = None if bias is None else _parameter(bias)
        self.geometry = geometry
        self.pad = pad

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From a convolution; padding with other than zeros is a step of its own."""
        names = ("stride", "padding", "dilation", "groups")
        geometry = {name: getattr(module, name) for name in names}
        if module.padding_mode == "zeros":
            return cls(slots, module.bias, geometry)
        pad = (module._reversed_padding_repeated_twice, module.padding_mode)
        return cls(slots, module.bias, geometry | {"padding": 0}, pad)

    def prepare(self, x: Tensor, slot: str = "weight") -> Tensor:
        """As for other modules, with the channels where convolutions have them."""
        return super().prepare(x.movedim(self.channels, -1), slot).movedim(-1, self.channels)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (B, in, ...) to (B, out, ...)."""
        x = self.prepare(x)
        if self.pad is not None:
            x = F.pad(x, self.pad[0], mode=self.pad[1])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return type(self).convolve(x, self.weight.dense(x.dtype), bias, **self.geometry)


class CompressedConv1d(_CompressedConv):
    """`nn.Conv1d` with a compressed weight (out, in / groups, k)."""

    convolve = staticmethod(F.conv1d)
    channels = -2


class CompressedConv2d(_CompressedConv):
    """`nn.Conv2d` with a compressed weight (out, in / groups, k, k)."""

    convolve = staticmethod(F.conv2d)
    channels = -3


class CompressedEmbedding(CompressedModule):
    """`nn.Embedding` with a compressed table; only the rows asked for are decoded.

    Attributes:
        output_dtype: of the rows, as the table had it.
    """

    def __init__(self, slots: Mapping[str, Slot], output_dtype: torch.dtype) -> None:
        super().__init__(slots)
        self.output_dtype = output_dtype

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From an embedding without a norm limit."""
        return cls(slots, module.weight.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        self.output_dtype = fn(torch.empty(0, dtype=self.output_dtype)).dtype
        return super()._apply(fn, recurse)

    def forward(self, index: Tensor) -> Tensor:
        """Rows (*index.shape, dim)."""
        rows: Tensor = self.weight.rows(index, self.output_dtype)
        return rows


class TiedLinear(nn.Module):
    """A head that multiplies by a compressed embedding's table; the state is the embedding's."""

    def __init__(self, embedding: CompressedEmbedding, bias: Tensor | None = None) -> None:
        super().__init__()
        self.__dict__["embedding"] = embedding  # a plain reference: not a child, not in the state
        self.bias = None if bias is None else _parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., dim) to (..., rows)."""
        y: Tensor = self.__dict__["embedding"].weight.matmul(x, self.bias)
        return y


class TiedEmbedding(nn.Module):
    """An embedding that looks up in another, compressed one, which keeps the state."""

    def __init__(self, embedding: CompressedEmbedding) -> None:
        super().__init__()
        self.__dict__["embedding"] = embedding

    def forward(self, index: Tensor) -> Tensor:
        """Rows (*index.shape, dim)."""
        rows: Tensor = self.__dict__["embedding"](index)
        return rows


class CompressedExperts(CompressedModule):
    """Fused experts of a mixture: `gate_up_proj` (E, 2I, H) and `down_proj` (E, H, I) as stacks.

    Only the experts that a batch is routed to are decoded.
    """

    slot_names = ("gate_up_proj", "down_proj")

    def __init__(self, slots: Mapping[str, Slot], act_fn: Callable[[Tensor], Tensor]) -> None:
        super().__init__(slots)
        self.act_fn = act_fn

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From the fused experts of transformers 5."""
        return cls(slots, module.act_fn)

    def forward(self, x: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """`x` (N, H), each token's experts (N, k) and their weights (N, k), to (N, H)."""
        out = torch.zeros_like(x)
        for expert in torch.unique(top_k_index).tolist():
            token, slot = torch.where(top_k_index == expert)
            hidden = self.prepare(x[token], "gate_up_proj")
            gate_up = F.linear(hidden, self.gate_up_proj.slice(expert, x.dtype))
            gate, up = gate_up.chunk(2, dim=-1)
            hidden = self.prepare(self.act_fn(gate) * up, "down_proj")
            result = F.linear(hidden, self.down_proj.slice(expert, x.dtype))
            out.index_add_(0, token, (result * top_k_weights[token, slot, None]).to(out.dtype))
        return out


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear layer, which keeps its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def _parameter(value: Tensor) -> nn.Parameter:
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=value.is_floating_point())
