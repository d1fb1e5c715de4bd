"""Parts of a model with their weights in memory, ready to compute and to be watched.

Everything computes in fp32, whatever the weights' dtype. Weights of small blocks are decoded to it once;
those of large ones keep their dtype and are widened as they are multiplied, so that a block costs no more
memory than it has on disk.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from threading import local
from typing import Any

import torch
from torch import Tensor, nn

from laconic.errors import BadWeights
from laconic.models.layout import Block, Layer
from laconic.models.source import ModelSource, structure_of
from laconic.tensors import CompressedTensor, Dense, Stacked
from laconic.tensors.decoded import decode_slots, decoded_bytes
from laconic.tensors.modules import NOTHING, CompressedModule, Observer, Sight
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record

Key = tuple[str, str, int]  # module, slot, position in a fused parameter (0 where there is one)
DECODED = (
    1 << 26
)  # bytes of decoded weights that a block may keep; larger ones take longer to multiply
Trace = list[tuple[str, Sight]]  # what each watched module multiplied, in order: (module, sight)


class LiveBlock:
    """One block of a source: dense at first, its layers compressed one by one.

    Args:
        source: the model.
        block: which block; or any set of layers outside the blocks, as one.
        device: where to compute.

    Attributes:
        block: its description.
        module: computes; layers are compressed modules.
        tensors: what was read, by the model's names.

    Raises:
        BadWeights: a weight holds NaN or infinity; the message names the tensor.
    """

    def __init__(self, source: ModelSource, block: Block, device: str = "cpu") -> None:
        self.block, self.device = block, device
        names = source.tensors_below(block.name)
        self.tensors = {n: t.to(device) for n, t in source.read(names).items()}
        self._weights: dict[str, Tensor] = {}
        self._values: dict[Key, CompressedTensor] = {}
        self._records: dict[tuple[str, str], Record] = {}
        for layer in block.layers:
            checked_weight(layer, self.tensors)
        holder = nn.Module()
        holder.block = structure_of(source.skeleton.get_submodule(block.name))
        rest = {name: self.tensors[name] for name in self.untouched}
        for name, module in holder.block.named_modules():
            fill(module, rest, f"{block.name}.{name}" if name else block.name, device)
        self._holder = holder
        for path, slots in self._dense_slots().items():
            replace_module(holder, self._inside(path), slots).to(device)
        self._keeps_decoded = decoded_bytes(self.module) <= DECODED
        self.decode()

    @property
    def module(self) -> nn.Module:
        module: nn.Module = self._holder.block  # type: ignore[assignment]
        return module

    @property
    def layers(self) -> tuple[Layer, ...]:
        """Its layers, in order of definition."""
        return self.block.layers

    def weight(self, layer: Layer) -> Tensor:
        """The dense weight (out, in, ...), as the model has it."""
        return layer.take(self.tensors)

    def record(self, layer: Layer) -> Record:
        """What the layer is now."""
        record = self._records[layer.module, layer.slot]
        value = self._values[_key(layer)]
        return Record(value, record.transform, record.activation)

    def install(self, layer: Layer, record: Record) -> None:
        """Makes the layer compute with `record` from now on.

        A part of a fused parameter keeps a transform of its own within its value.
        """
        if layer.part is not None and record.transform is not None:
            from laconic.tensors.combined import Transformed

            record = Record(Transformed(record.weight, record.transform), None, record.activation)
        self._values[_key(layer)] = record.weight
        self._records[layer.module, layer.slot] = self._assemble(
            layer.module, layer.slot, record.transform, record.activation
        )
        module = self.computing(layer.module)
        module.records[layer.slot] = self._records[layer.module, layer.slot]
        module.operands = {}

    def decode(self) -> None:
        """Has what was installed decoded once, and not with each multiplication; not in large blocks."""
        for path in self.slots() if self._keeps_decoded else ():
            if not self.computing(path).operands:
                decode_slots(self.computing(path))

    def slots(self) -> dict[str, dict[str, Record]]:
        """The records of its modules, by path and parameter."""
        slots: dict[str, dict[str, Record]] = {}
        for (path, slot), record in self._records.items():
            slots.setdefault(path, {})[slot] = record
        return slots

    @property
    def untouched(self) -> list[str]:
        """Names of the tensors that belong to no layer."""
        touched = {layer.parameter for layer in self.layers}
        return [name for name in self.tensors if name not in touched]

    @contextmanager
    def watched(
        self, layers: Iterable[Layer],
        *, on_sight: Observer | None = None, outputs: bool = True,
    ) -> Iterator["Watch"]:  # fmt: skip
        """What the modules of `layers` multiply inside is kept for whoever asks `Watch.trace`.

        `on_sight` is called with each before it is kept. Without `outputs` only inputs are kept.
        """
        paths = dict.fromkeys(layer.module for layer in layers)
        watch = Watch({path: self.computing(path) for path in paths}, on_sight, outputs)
        try:
            yield watch
        finally:
            watch.close()

    def computing(self, path: str) -> CompressedModule:
        """The module that computes with the layers of the model's module at `path`."""
        module = self._holder.get_submodule(self._inside(path))
        assert isinstance(module, CompressedModule)
        return module

    def _inside(self, path: str) -> str:
        return "block" + path.removeprefix(self.block.name)

    def _dense_slots(self) -> dict[str, dict[str, Record]]:
        for layer in self.layers:
            self._values[_key(layer)] = Dense(self.weight(layer))
        for layer in self.layers:
            if (layer.module, layer.slot) not in self._records:
                self._records[layer.module, layer.slot] = self._assemble(layer.module, layer.slot)
        return self.slots()

    def _assemble(
        self, path: str, slot: str, transform: Any = None, activation: Any = None
    ) -> Record:
        members = [la for la in self.layers if (la.module, la.slot) == (path, slot)]
        parts = tuple(self._values[_key(la)] for la in sorted(members, key=_position))
        part = members[0].part
        value = parts[0] if part is None else Stacked(parts, part.per_slice)
        return Record(value, transform, activation)


class Watch:
    """Listens to modules; each thread has its own trace."""

    def __init__(
        self, modules: Mapping[str, CompressedModule], on_sight: Observer | None, outputs: bool
    ) -> None:
        self._modules, self._on_sight, self._outputs = dict(modules), on_sight, outputs
        self._local = local()
        for path, module in self._modules.items():
            module.observer = lambda sight, path=path: self._see(path, sight)

    def _see(self, path: str, sight: Sight) -> None:
        trace: Trace | None = getattr(self._local, "trace", None)
        if trace is not None:
            if self._on_sight is not None:
                self._on_sight(sight)
            if not self._outputs:
                sight = replace(sight, raw=NOTHING, outputs=NOTHING)
            trace.append((path, sight))

    @contextmanager
    def trace(self) -> Iterator[Trace]:
        """The multiplications of this thread, in order, while inside."""
        trace: Trace = []
        self._local.trace = trace
        try:
            yield trace
        finally:
            self._local.trace = None

    def close(self) -> None:
        """Stops listening."""
        for module in self._modules.values():
            module.observer = None


def fill(module: nn.Module, tensors: Mapping[str, Tensor], path: str, device: str) -> None:
    """Sets the parameters and buffers that `module` itself holds, in fp32; its buffers move along.

    New tensors replace those of `module`, which may be shared with the model that it was copied from.

    Args:
        module: at `path`.
        tensors: by the model's names; what is not among them is left alone.
        path: of the module in the model.
        device: where they go.
    """
    for key, old in list(module._parameters.items()):
        new = tensors.get(f"{path}.{key}" if path else key)
        if old is not None and new is not None:
            module._parameters[key] = nn.Parameter(widened(new, device), requires_grad=False)
    for key, buffer in list(module._buffers.items()):
        if buffer is not None:
            value = tensors.get(f"{path}.{key}" if path else key, buffer)
            if value.device.type != "meta":
                module._buffers[key] = widened(value, device)


def widened(tensor: Tensor, device: str) -> Tensor:
    """On `device`, in fp32 where it has real values."""
    return tensor.to(device, torch.float32 if tensor.is_floating_point() else tensor.dtype)


def checked_weight(layer: Layer, tensors: Mapping[str, Tensor]) -> Tensor:
    """The layer's weight; raises `BadWeights` naming it if it is not finite."""
    weight = layer.take(tensors)
    if not torch.isfinite(weight).all():
        where = (~torch.isfinite(weight)).nonzero()[0].tolist()
        raise BadWeights(
            f"{layer.name}.weight holds {weight[tuple(where)].item()} at {where}: "
            "the checkpoint is damaged or diverged; nothing was written"
        )
    return weight


def _position(layer: Layer) -> int:
    return layer.part.position if layer.part is not None else 0


def _key(layer: Layer) -> Key:
    return layer.module, layer.slot, _position(layer)
