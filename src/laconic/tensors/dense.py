"""`Dense`: a weight as it was; stored without loss as byte planes."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.tensors.compressed import CompressedTensor, State, checked_index, register_kind

WIDENED = 1 << 19  # weights that are in memory in another dtype at a time


@dataclass(frozen=True, eq=False)
class Dense(CompressedTensor):
    """An uncompressed weight; at rest about two thirds of its bf16 size (byte planes, lossless).

    Example:
        >>> Dense(torch.eye(2)).matmul(torch.ones(1, 2))
        tensor([[1., 1.]])
    """

    value: Tensor

    kind = "dense"

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.value.dtype

    @property
    def format(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.value.to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """As for every tensor; a large weight of another dtype is widened some rows at a time."""
        step = max(1, WIDENED // max(1, self.shape[-1]))
        if self.dtype == x.dtype or self.shape[0] <= step or self.value.ndim != 2:
            return super().matmul(x, bias)
        out = x.new_empty(*x.shape[:-1], self.shape[0])
        for first in range(0, self.shape[0], step):
            here = slice(first, first + step)
            some = None if bias is None else bias[here].to(x.dtype)
            out[..., here] = F.linear(x, self.value[here].to(x.dtype), some)
        return out

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return self.value[checked_index(index, self.shape[0])].to(dtype or self.dtype)

    def state(self) -> State:
        return State(self.kind, {}, {"value": self.value})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(state.arrays["value"])


register_kind(Dense)
