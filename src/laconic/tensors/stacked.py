"""`Stacked`: matrices on top of one another, as the fused experts of a mixture are kept."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.compressed import CompressedTensor, State, nested_row, register_kind


@dataclass(frozen=True, eq=False)
class Stacked(CompressedTensor):
    """A weight (E, rows, in) of E slices, each made of one or more parts below one another.

    Attributes:
        parts: slice by slice: E * `per_slice` tensors (rows_i, in).
        per_slice: parts a slice; the gate and up projections of an expert make 2.

    Example:
        >>> from laconic.tensors import Dense
        >>> gate, up = Dense(torch.zeros(2, 3)), Dense(torch.ones(2, 3))
        >>> Stacked((gate, up, gate, up), per_slice=2).shape
        torch.Size([2, 4, 3])
    """

    parts: tuple[CompressedTensor, ...]
    per_slice: int = 1

    kind = "stacked"

    def __post_init__(self) -> None:
        if not self.parts or self.per_slice < 1 or len(self.parts) % self.per_slice:
            raise UsageError(f"{len(self.parts)} parts do not make slices of {self.per_slice}")
        if len({part.shape[1:] for part in self.parts}) > 1:
            raise UsageError("all parts must have the same columns")
        rows = [part.shape[0] for part in self.parts]
        if rows != rows[: self.per_slice] * (len(rows) // self.per_slice):
            raise UsageError(f"all slices must have the same rows, found parts of {rows}")

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        rows = sum(part.shape[0] for part in self.parts[: self.per_slice])
        return torch.Size((len(self.parts) // self.per_slice, rows, *self.parts[0].shape[1:]))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def format(self) -> str:
        return " + ".join(sorted({part.format for part in self.parts}))

    def slice(self, number: int, dtype: torch.dtype | None = None) -> Tensor:
        """Slice `number`, (rows, in), dense; the other slices are not touched."""
        first = number * self.per_slice
        if self.per_slice == 1:
            return self.parts[first].dense(dtype)
        return torch.cat([p.dense(dtype) for p in self.parts[first : first + self.per_slice]])

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return torch.stack([self.slice(e, dtype) for e in range(self.shape[0])])

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        raise UsageError("a stack multiplies slice by slice: use slice(number)")

    def state(self) -> State:
        parts = {str(i): part.state() for i, part in enumerate(self.parts)}
        return State(self.kind, {"per_slice": self.per_slice}, parts=parts)

    @classmethod
    def from_state(cls, state: State) -> Self:
        parts = nested_row(state, CompressedTensor)  # type: ignore[type-abstract]
        return cls(parts, state.meta["per_slice"])


register_kind(Stacked)
