"""`Patches`: how a matrix is cut into vectors of neighbouring columns, and these into groups."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.tensors.packing import check_whole, matrix_shape

DIMS = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Patches:
    """How a matrix is cut into vectors of `dim` columns, and these into groups with one codebook each.

    A ragged last vector is filled up; ragged last groups are smaller.

    Attributes:
        rows: R of the matrix.
        columns: C of the matrix.
        dim: columns a vector.
        rows_per_group: at least 1.
        columns_per_group: a multiple of `dim`.
    """

    rows: int
    columns: int
    dim: int
    rows_per_group: int
    columns_per_group: int

    def __post_init__(self) -> None:
        if self.dim not in DIMS:
            raise UsageError(f"dim must be one of {DIMS}, found {self.dim!r}")
        check_whole("rows_per_group", self.rows_per_group, 1)
        check_whole("columns_per_group", self.columns_per_group, 1)
        if self.columns_per_group % self.dim:
            raise UsageError(
                f"vectors of {self.dim} do not fill groups of {self.columns_per_group} columns"
            )

    @classmethod
    def of(cls, shape: torch.Size, dim: int, rows: int | None, columns: int | None) -> Self:
        """For a weight of `shape` in groups of `rows` and `columns`; None stands for all."""
        count, width = matrix_shape(shape)
        vectors = max(1, -(-width // dim))
        return cls(count, width, dim, rows or max(1, count), columns or vectors * dim)

    @property
    def vectors(self) -> int:
        """Vectors in a row."""
        return -(-self.columns // self.dim)

    @property
    def grid(self) -> tuple[int, int]:
        """Groups below and beside one another."""
        across = -(-self.vectors * self.dim // self.columns_per_group)
        return -(-self.rows // self.rows_per_group), across

    def groups(self, device: torch.device) -> Tensor:
        """The number of the group of each vector, (R, vectors)."""
        down = torch.arange(self.rows, device=device) // self.rows_per_group
        across = torch.arange(self.vectors, device=device) // (self.columns_per_group // self.dim)
        return down[:, None] * self.grid[1] + across

    def cut(self, matrix: Tensor) -> Tensor:
        """`matrix` (R, C) as the vectors of each group, (groups, N, dim), zeros where it is ragged."""
        down, across = self.grid
        right = across * self.columns_per_group - self.columns
        below = down * self.rows_per_group - self.rows
        padded = F.pad(matrix, (0, right, 0, below))
        tiles = padded.reshape(down, self.rows_per_group, across, self.columns_per_group)
        length = self.rows_per_group * self.columns_per_group // self.dim
        return tiles.transpose(1, 2).reshape(down * across, length, self.dim)

    def join(self, codes: Tensor) -> Tensor:
        """The codes (groups, N) of `cut` vectors as they stand in the matrix, (R, vectors)."""
        down, across = self.grid
        length = self.columns_per_group // self.dim
        tiles = codes.reshape(down, across, self.rows_per_group, length).transpose(1, 2)
        return tiles.reshape(-1, across * length)[: self.rows, : self.vectors]
