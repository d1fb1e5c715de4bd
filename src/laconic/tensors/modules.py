"""Modules that compute with compressed weights; `replacement` puts them in place of ordinary ones.

A compressed module has *slots* (`weight`, or the two projections of fused experts), each holding a
`Record`. In a state dict every slot is one uint8 blob under the name that the dense parameter had:
an unprepared loader stumbles over its shape instead of starting from random weights.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from laconic.errors import CorruptFile
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.stored import Record, decode_record, encode

NOTHING = torch.empty(0)
Slot = Record | int  # a value, or the byte length of the blob that will bring it


@dataclass(frozen=True)
class Sight:
    """What an observer is shown of one multiplication.

    Attributes:
        slot: the module's parameter.
        positions: which parts of a fused parameter were multiplied; empty where there is one.
        raw: the module's input as it was given, (..., in).
        inputs: the same after the slot's input transform, before its activation quantizer.
        outputs: (..., out), with the bias.
    """

    slot: str
    positions: tuple[int, ...]
    raw: Tensor
    inputs: Tensor
    outputs: Tensor


Observer = Callable[[Sight], None]


class CompressedModule(nn.Module):
    """Base: keeps records, hands out values, reads and writes blobs.

    Args:
        slots: by parameter name a record, or the length of the blob that is to be loaded (as
            transformers does it, into a buffer on the meta device) before `materialise`.

    Attributes:
        observer: is shown every multiplication while it is set; calibration listens here.
        operands: by slot, what is multiplied by instead of the value: see `laconic.tensors.decoded`.
    """

    slot_names: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, slots: Mapping[str, Slot]) -> None:
        super().__init__()
        self.observer: Observer | None = None
        self.records: dict[str, Record] = {}
        self.operands: dict[str, CompressedTensor] = {}
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

    def operand(self, slot: str = "weight") -> CompressedTensor:
        """What is multiplied by."""
        return self.operands.get(slot) or self.records[slot].weight

    @property
    def resident_bytes(self) -> int:
        """Bytes that values and transforms occupy; the bias is an ordinary parameter."""
        return sum(record.resident_bytes for record in self.records.values())

    def transformed(self, x: Tensor, slot: str = "weight") -> Tensor:
        """The input (..., in) after the slot's transform."""
        transform = self.records[slot].transform
        return x if transform is None else transform(x)

    def quantized(self, x: Tensor, slot: str = "weight") -> Tensor:
        """The transformed input (..., in) after the slot's activation quantizer."""
        activation = self.records[slot].activation
        if activation is None:
            return x
        return activation.project(x.reshape(-1, x.shape[-1])).reshape(x.shape)

    def show(
        self, raw: Tensor, inputs: Tensor, outputs: Tensor,
        slot: str = "weight", positions: tuple[int, ...] = (),
    ) -> None:  # fmt: skip
        """Lets the observer see a multiplication, if there is one."""
        if self.observer is not None:
            self.observer(Sight(slot, positions, raw, inputs, outputs))

    def foresee(self, *args: Any, **kwargs: Any) -> Sight | None:
        """What `forward` would show, without outputs and without multiplying; None where it cannot tell."""
        return None

    def extra_repr(self) -> str:
        """What the module holds, for `print(model)`."""
        held = [f"{n}={v.format} {list(v.shape)}" for n, v in self.values.items()]
        return ", ".join(held) or "not loaded"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.operands = {}
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
        self.bias = None if bias is None else as_parameter(bias)
        self.in_features, self.out_features = in_features, out_features

    @classmethod
    def from_module(cls, module: Any, slots: Mapping[str, Slot]) -> Self:
        """From `nn.Linear` (weight (out, in)) or `Conv1D` (weight (in, out))."""
        first, second = module.weight.shape
        out_features, in_features = (second, first) if is_conv1d(module) else (first, second)
        return cls(slots, module.bias, in_features, out_features)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., in) to (..., out)."""
        inputs = self.transformed(x)
        y = self.operand().matmul(self.quantized(inputs), self.bias)
        self.show(x, inputs, y)
        return y

    def foresee(self, x: Tensor) -> Sight:
        """See `CompressedModule.foresee`."""
        return Sight("weight", (), NOTHING, self.transformed(x), NOTHING)


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
        self.bias = None if bias is None else as_parameter(bias)

    def forward(self, x: Tensor) -> Tensor:
        """`x` (..., dim) to (..., rows)."""
        y: Tensor = self.__dict__["embedding"].operand().matmul(x, self.bias)
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


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter, buffer or compressed value is; the CPU where it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    for module in model.modules():
        if isinstance(module, CompressedModule):
            for value in module.values.values():
                return value.device
    return torch.device("cpu")


def is_conv1d(module: nn.Module) -> bool:
    """Whether `module` is GPT-2's linear layer, which keeps its weight as (in, out)."""
    return type(module).__name__ == "Conv1D"


def as_parameter(value: Tensor) -> nn.Parameter:
    """`value` as a parameter; codes and other whole numbers have no gradients."""
    if isinstance(value, nn.Parameter):
        return value
    return nn.Parameter(value, requires_grad=value.is_floating_point())
