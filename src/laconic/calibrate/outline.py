"""A model whose tensors are read when a module first computes: for what lies outside the blocks."""

from threading import Event, Lock
from typing import Any

import torch
from torch import Tensor, nn

from laconic.calibrate.live import fill, widened
from laconic.errors import DataError
from laconic.models.layout import Layer
from laconic.models.source import ModelSource, structure_of
from laconic.tensors import Dense
from laconic.tensors.modules import CompressedEmbedding, CompressedModule
from laconic.tensors.replacement import replace_module
from laconic.tensors.stored import Record

LARGEST = 8 << 30  # bytes of the blocks of a model in fp32 that may be in memory together
UNUSED_OUTPUTS = ("use_cache", "output_router_logits")  # settings that make a model do more


def may_be_whole(source: ModelSource) -> bool:
    """Whether all blocks of a model, in fp32, are small enough to be in memory together."""
    weights = sum(layer.shape.numel() for block in source.blocks for layer in block.layers)
    return 4 * weights <= LARGEST


def outline_of(source: ModelSource, device: str = "cpu") -> nn.Module:
    """A copy of the model that computes in fp32 and reads its tensors as it needs them.

    Layers outside the blocks become compressed modules with dense values, so that they can be watched.
    Blocks are left as they are in the skeleton; whoever runs the outline puts something in their place.
    What no call reaches is never read: a head costs nothing while only inputs of blocks are wanted.
    """
    model = structure_of(source.skeleton)
    for flag in UNUSED_OUTPUTS:
        if hasattr(getattr(model, "config", None), flag):
            setattr(model.config, flag, False)
    inside = tuple(f"{block.name}." for block in source.blocks)
    layers = {layer.module: layer for layer in source.extra_layers if layer.part is None}
    for path, layer in layers.items():
        empty = torch.empty(layer.shape, device="meta", dtype=torch.float32)
        module = replace_module(model, path, {layer.slot: Record(Dense(empty))})
        if isinstance(module, CompressedEmbedding):
            module.output_dtype = torch.float32
    for name, module in model.named_modules():
        if not f"{name}.".startswith(inside):
            _read_when_called(module, name, source, layers.get(name), device)
    return model


def _read_when_called(
    module: nn.Module, path: str, source: ModelSource, layer: Layer | None, device: str
) -> None:
    sizes, ties = source.sizes(), ties_of(source)
    own = [*module._parameters, *(k for k in module._buffers if k not in _unsaved(module))]
    names = {f"{path}.{key}" if path else key for key in own}
    present = {name: ties.get(name, name) for name in names if ties.get(name, name) in sizes}
    for key in _unsaved(module):
        buffer = module._buffers[key]
        if buffer is not None:
            module._buffers[key] = widened(buffer, device)
    if not present and layer is None:
        return

    lock, done = Lock(), Event()  # several threads may come at once

    def read(target: nn.Module, inputs: Any) -> None:
        with lock:
            if done.is_set():
                return
            tensors = source.read(present.values())
            fill(target, {name: tensors[owner] for name, owner in present.items()}, path, device)
            if layer is not None and isinstance(target, CompressedModule):
                weight = layer.take(source.read([layer.parameter])).to(device)
                target.records[layer.slot] = Record(Dense(weight))
            done.set()

    module.register_forward_pre_hook(read)


def ties_of(source: ModelSource) -> dict[str, str]:
    """Names of tied tensors, each with the name that its value is kept under."""
    return dict(getattr(source.skeleton, "all_tied_weights_keys", None) or {})


def _unsaved(module: nn.Module) -> set[str]:
    return set(module._non_persistent_buffers_set)


#: what models raise that cannot take what they are given
REFUSALS = (TypeError, IndexError, RuntimeError, ValueError)


def refused(error: BaseException) -> DataError:
    """What to tell of one of `REFUSALS`."""
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return DataError(f"the model cannot take this data: {reason}")


def call(model: nn.Module, inputs: dict[str, Tensor], device: str = "cpu") -> Any:
    """The model's answer to `inputs`; plain modules take them in order."""
    moved = {name: value.to(device) for name, value in inputs.items()}
    return model(**moved) if hasattr(model, "config") else model(*moved.values())
