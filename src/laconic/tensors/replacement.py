"""Which compressed module can stand for an ordinary one, and putting it in its place."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from laconic.errors import CorruptFile, UnsupportedModel
from laconic.tensors.convolutions import CompressedConv1d, CompressedConv2d
from laconic.tensors.experts import CompressedExperts
from laconic.tensors.modules import (
    CompressedEmbedding,
    CompressedLinear,
    CompressedModule,
    Slot,
    is_conv1d,
)


def is_experts(module: nn.Module) -> bool:
    """Whether `module` holds fused experts in the layout of transformers 5."""
    shapes = [getattr(module, name, None) for name in CompressedExperts.slot_names]
    return all(isinstance(p, Tensor) and p.ndim == 3 for p in shapes) and hasattr(module, "act_fn")


def twin_class(module: nn.Module) -> type[CompressedModule] | None:
    """The compressed class that can replace `module`; None where there is none.

    Subclasses of the torch modules are left alone unless they compute the same (Conv1D): a learned
    position table with an offset is an `nn.Embedding` too. So are embeddings with `max_norm`, which
    changes their weight as it is used.
    """
    exact: dict[type, type[CompressedModule]] = {
        nn.Linear: CompressedLinear,
        nn.Conv1d: CompressedConv1d,
        nn.Conv2d: CompressedConv2d,
        nn.Embedding: CompressedEmbedding,
    }
    if is_conv1d(module):
        return CompressedLinear
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        return None
    return exact.get(type(module)) or (CompressedExperts if is_experts(module) else None)


def replace_module(model: nn.Module, path: str, slots: Mapping[str, Slot]) -> CompressedModule:
    """Puts the compressed twin of `model.<path>` in its place and returns it.

    Raises:
        UnsupportedModel: there is no such module, or no twin for it.
    """
    try:
        module = model.get_submodule(path)
    except AttributeError as error:
        raise UnsupportedModel(f"the model has no module {path!r}") from error
    twin = twin_class(module)
    if twin is None:
        raise UnsupportedModel(
            f"{path} is a {type(module).__name__}: nothing compressed replaces it"
        )
    compressed = twin.from_module(module, slots)
    compressed.train(module.training)
    for name in twin.slot_names:
        shape = module.get_parameter(name).shape
        compressed.shapes[name] = torch.Size(reversed(shape)) if is_conv1d(module) else shape
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, compressed)
    return compressed


def materialise(model: nn.Module) -> None:
    """Decodes every loaded blob in `model`; raises `CorruptFile` naming the module."""
    for path, module in model.named_modules():
        if isinstance(module, CompressedModule):
            try:
                module.materialise()
            except CorruptFile as error:
                raise CorruptFile(f"{path}: {error}") from error
