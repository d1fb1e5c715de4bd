"""`ModelSource`: a model in memory, in a Hugging Face directory or from a factory, read bit by bit."""

import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from laconic.models.layout import Block, Layer, find_blocks, layers_of


class ModelSource(ABC):
    """Where a model's tensors come from.

    Attributes:
        name: what the user called it.
        skeleton: the model's modules; on the meta device where the weights stay on disk.
        folder: where its tokenizer and other files are, if it has a place on disk.
    """

    name: str
    skeleton: nn.Module
    folder: Path | None

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every tensor of the model's state, by name; tied ones once."""

    @abstractmethod
    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors `names`; nothing else is read or kept."""

    @abstractmethod
    def save_config(self, folder: Path, quantization: dict[str, Any]) -> None:
        """Writes everything but the weights into `folder`, so that `laconic.load` can open it."""

    def fingerprint(self) -> str | None:
        """Of the weights' files, to know whether they changed; None for a model in memory."""
        return None

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The blocks, in order of computation."""
        paths = find_blocks(self.skeleton)
        return tuple(Block(path, self._own(layers_of(self.skeleton, path))) for path in paths)

    @cached_property
    def extra_layers(self) -> tuple[Layer, ...]:
        """Layers outside of the blocks: embeddings, heads, stems. Untouched unless asked for."""
        inside = tuple(f"{block.name}." for block in self.blocks)
        layers: list[Layer] = []
        for name, child in self.skeleton.named_children():
            layers += layers_of(self.skeleton, name, embeddings=True) if child is not None else ()
        return self._own(la for la in layers if not f"{la.module}.".startswith(inside))

    def _own(self, layers: Iterable[Layer]) -> tuple[Layer, ...]:
        """Those of `layers` whose parameter is not tied to another's."""
        return tuple(layer for layer in layers if layer.parameter in self.sizes())

    @property
    def dense_bytes(self) -> int:
        """Bytes of the whole uncompressed model."""
        return sum(self.sizes().values())

    def tensors_below(self, path: str) -> list[str]:
        """Names of the tensors at and below module `path`."""
        return [name for name in self.sizes() if name.startswith(f"{path}.")]


def structure_of(module: nn.Module) -> nn.Module:
    """A copy of `module` that can be changed freely; it shares the tensors, which must not be."""
    memo = {id(tensor): tensor for tensor in [*module.parameters(), *module.buffers()]}
    return deepcopy(module, memo).eval()


def copy_side_files(source: Path, target: Path) -> None:
    """Copies what belongs to a model besides its weights: configuration, tokenizer, licence."""
    for path in sorted(source.iterdir()):
        small = path.is_file() and path.stat().st_size < 64 << 20
        if small and path.suffix in SIDE_SUFFIXES and not path.name.endswith(".index.json"):
            shutil.copyfile(path, target / path.name)


SIDE_SUFFIXES = {".json", ".txt", ".model", ".md", ".jinja", ".tiktoken", ".vocab", ".merges"}
