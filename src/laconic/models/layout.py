"""What a model is made of: blocks, and in each the layers whose weights a method may touch."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from laconic.errors import UnsupportedModel
from laconic.tensors.experts import CompressedExperts
from laconic.tensors.modules import CompressedEmbedding, is_conv1d
from laconic.tensors.replacement import twin_class

#: Where each architecture keeps its blocks; anything else is found by looking (see `find_blocks`).
BLOCK_LISTS = {
    "llama": "model.layers",
    "mistral": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "qwen3_moe": "model.layers",
    "gpt2": "transformer.h",
    "opt": "model.decoder.layers",
    "bert": "bert.encoder.layer",
    "vit": "vit.layers",
}


@dataclass(frozen=True)
class Part:
    """Which rows of which slice of a fused parameter (E, rows, in) a layer is.

    Attributes:
        position: among all parts of the parameter, slice by slice.
        per_slice: how many parts a slice has.
        slice: the expert.
        first: first row in the slice.
        last: last row + 1.
    """

    position: int
    per_slice: int
    slice: int
    first: int
    last: int


@dataclass(frozen=True)
class Layer:
    """One weight matrix (or convolution kernel) as methods see it: (out, in, ...).

    Attributes:
        name: unique in the model; the module's path, or one projection of one expert in it.
        module: path of the module that holds it.
        slot: the module's parameter.
        shape: of the weight, (out, in, ...).
        kind: `linear`, `conv`, `embedding` or `expert`.
        transposed: whether the parameter is kept as (in, out).
        part: which piece of a fused parameter it is; None where it is the whole parameter.
    """

    name: str
    module: str
    slot: str
    shape: torch.Size
    kind: str
    transposed: bool = False
    part: Part | None = None

    @property
    def parameter(self) -> str:
        """The parameter's name in the model."""
        return f"{self.module}.{self.slot}"

    def take(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """The weight, contiguous, out of the model's tensors by parameter name."""
        value = tensors[self.parameter]
        if self.part is not None:
            value = value[self.part.slice, self.part.first : self.part.last]
        return (value.T if self.transposed else value).contiguous()


@dataclass(frozen=True)
class Block:
    """A repeated unit of the model: its path and its layers, in order of computation."""

    name: str
    layers: tuple[Layer, ...]


def find_blocks(model: nn.Module) -> list[str]:
    """Paths of the blocks of `model`.

    Known architectures by table; otherwise the children of the outermost module lists that hold
    layers; otherwise every child that holds layers.

    Raises:
        UnsupportedModel: there is no layer at all.
    """
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    path = BLOCK_LISTS.get(str(model_type))
    if path is not None:
        try:
            return [f"{path}.{name}" for name, _ in model.get_submodule(path).named_children()]
        except AttributeError:
            pass  # another head on the same trunk keeps it elsewhere: look
    lists: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in lists)
        if isinstance(module, nn.ModuleList) and not inside and _holds_layers(module):
            lists.append(name)
    blocks = [
        f"{name}.{child}"
        for name in lists
        for child, _ in model.get_submodule(name).named_children()
    ]
    blocks = blocks or [name for name, child in model.named_children() if _holds_layers(child)]
    if not blocks:
        raise UnsupportedModel(
            f"{type(model).__name__} has no linear, convolution or expert layer to compress"
        )
    return blocks


def layers_of(model: nn.Module, path: str, *, embeddings: bool = False) -> tuple[Layer, ...]:
    """The layers at and below `path`, embeddings only if asked for."""
    found: list[Layer] = []
    for name, module in model.get_submodule(path).named_modules():
        twin = twin_class(module)
        if twin is not None and (embeddings or twin is not CompressedEmbedding):
            found += _layers(module, f"{path}.{name}" if name else path)
    return tuple(found)


def _holds_layers(module: nn.Module) -> bool:
    twins = (twin_class(child) for child in module.modules())
    return any(twin is not None and twin is not CompressedEmbedding for twin in twins)


def _layers(module: nn.Module, path: str) -> Iterator[Layer]:
    twin = twin_class(module)
    if twin is CompressedExperts:
        yield from _expert_layers(module, path)
        return
    weight = module.get_parameter("weight")
    transposed = is_conv1d(module)
    kind = "embedding" if twin is CompressedEmbedding else "conv" if weight.ndim > 2 else "linear"
    shape = torch.Size(reversed(weight.shape)) if transposed else weight.shape
    yield Layer(path, path, "weight", shape, kind, transposed)


def _expert_layers(module: nn.Module, path: str) -> Iterator[Layer]:
    """Gate, up and down of every expert, named as checkpoints name them."""
    experts, double, hidden = module.get_parameter("gate_up_proj").shape
    _, _, inner = module.get_parameter("down_proj").shape
    half = double // 2
    for expert in range(experts):
        for number, name in enumerate(("gate_proj", "up_proj")):
            part = Part(2 * expert + number, 2, expert, number * half, (number + 1) * half)
            shape = torch.Size((half, hidden))
            yield Layer(f"{path}.{expert}.{name}", path, "gate_up_proj", shape, "expert", part=part)
    for expert in range(experts):
        shape, part = torch.Size((hidden, inner)), Part(expert, 1, expert, 0, hidden)
        yield Layer(f"{path}.{expert}.down_proj", path, "down_proj", shape, "expert", part=part)
