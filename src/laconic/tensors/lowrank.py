"""`LowRank`: a weight as the product of a tall and a wide factor, each compressed in its own way."""

import math
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.compressed import CompressedTensor, State, nested, register_kind
from laconic.tensors.packing import PRECISION, check_whole


@dataclass(frozen=True, eq=False)
class LowRank(CompressedTensor):
    """The product `left @ right` of rank r, which may be 0.

    Attributes:
        left: (out, r); the dtype is its.
        right: (r, in), or (r, in * kernel) for a convolution.
        kernel: sizes of a convolution's kernel; none for a matrix.

    Example:
        >>> from laconic.tensors import Dense
        >>> LowRank(Dense(torch.ones(2, 1)), Dense(torch.tensor([[1.0, 2.0, 3.0]]))).dense()
        tensor([[1., 2., 3.],
                [1., 2., 3.]])
    """

    left: CompressedTensor
    right: CompressedTensor
    kernel: tuple[int, ...] = ()

    kind = "low rank"

    def __post_init__(self) -> None:
        left, right = self.left.shape, self.right.shape
        if len(left) != 2 or len(right) != 2 or left[1] != right[0]:
            raise UsageError(f"factors of {tuple(left)} and {tuple(right)} have no product")
        for size in self.kernel:
            check_whole("a kernel's size", size, 1)
        if right[1] % math.prod(self.kernel):
            raise UsageError(f"a kernel of {self.kernel} does not fit {right[1]} columns")

    @property
    def rank(self) -> int:
        """Columns of `left`, rows of `right`."""
        return self.right.shape[0]

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        channels = self.right.shape[1] // math.prod(self.kernel)
        return torch.Size((self.left.shape[0], channels, *self.kernel))

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.left.dtype

    @property
    def format(self) -> str:
        factors = dict.fromkeys((self.left.format, self.right.format))
        return f"rank {self.rank} {' x '.join(factors)}"

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        value = self.left.dense(PRECISION) @ self.right.dense(PRECISION)
        return value.reshape(self.shape).to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`, one factor after the other where that takes fewer multiplications."""
        vectors = x.shape[:-1].numel()
        rows, columns = self.left.shape[0], self.right.shape[1]
        if vectors * self.rank * (rows + columns) > (vectors + self.rank) * rows * columns:
            return super().matmul(x, bias)
        return self.left.matmul(self.right.matmul(x), bias)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        value = self.left.rows(index, PRECISION) @ self.right.dense(PRECISION)
        return value.reshape(*index.shape, *self.shape[1:]).to(dtype or self.dtype)

    def state(self) -> State:
        parts = {"left": self.left.state(), "right": self.right.state()}
        return State(self.kind, {"kernel": list(self.kernel)}, parts=parts)

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(
            nested(state, "left", CompressedTensor),  # type: ignore[type-abstract]
            nested(state, "right", CompressedTensor),  # type: ignore[type-abstract]
            tuple(state.meta["kernel"]),
        )


register_kind(LowRank)
