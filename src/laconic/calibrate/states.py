"""Hidden states of many sequences between two blocks: in memory, or in a folder."""

import shutil
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import save_file
from torch import Tensor

from laconic.models.safetensors import read_header, read_tensor


class States:
    """One tensor for each sequence, by number.

    Args:
        folder: where they are kept; in memory if there is none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._kept: dict[int, Tensor] = {}

    @classmethod
    def new(cls, parent: Path | None, name: str) -> Self:
        """Empty ones, kept in `parent / name` where there is a parent; what was there is gone."""
        if parent is None:
            return cls()
        shutil.rmtree(parent / name, ignore_errors=True)
        (parent / name).mkdir(parents=True)
        return cls(parent / name)

    def put(self, number: int, tensor: Tensor) -> None:
        """Keeps a tensor."""
        if self.folder is None:
            self._kept[number] = tensor.detach()
        else:
            save_file({"hidden": tensor.detach().contiguous()}, self._file(number))

    def get(self, number: int) -> Tensor:
        """A tensor that was kept."""
        if self.folder is None:
            return self._kept[number]
        return read_tensor(read_header(self._file(number))["hidden"])

    def shape(self, number: int) -> torch.Size:
        """Of a tensor that was kept; its values are not read."""
        if self.folder is None:
            return self._kept[number].shape
        return torch.Size(read_header(self._file(number))["hidden"].shape)

    def drop(self) -> None:
        """Forgets them all."""
        self._kept.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}.safetensors"
