"""Weights made of weights: `Sum` of several, `Transformed` into another basis."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.compressed import (
    CompressedTensor,
    InputTransform,
    State,
    nested,
    nested_row,
    register_kind,
)
from laconic.tensors.packing import PRECISION


@dataclass(frozen=True, eq=False)
class Sum(CompressedTensor):
    """The sum of weights of one shape, such as a coarse one and a correction of low rank.

    Attributes:
        parts: at least one; the dtype is that of the first.

    Example:
        >>> from laconic.tensors import Dense
        >>> Sum((Dense(torch.ones(1, 2)), Dense(torch.eye(2)[:1]))).dense()
        tensor([[2., 1.]])
    """

    parts: tuple[CompressedTensor, ...]

    kind = "sum"

    def __post_init__(self) -> None:
        if len({part.shape for part in self.parts}) != 1:
            shapes = [tuple(part.shape) for part in self.parts]
            raise UsageError(f"a sum needs parts of one shape, found {shapes}")

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.parts[0].shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.parts[0].dtype

    @property
    def format(self) -> str:
        return " + ".join(part.format for part in self.parts)

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return _total([part.dense(PRECISION) for part in self.parts]).to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias`, part by part."""
        first, *others = self.parts
        return _total([first.matmul(x, bias), *(part.matmul(x) for part in others)])

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return _total([part.rows(index, PRECISION) for part in self.parts]).to(dtype or self.dtype)

    def state(self) -> State:
        return State(self.kind, {}, parts={str(i): p.state() for i, p in enumerate(self.parts)})

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(nested_row(state, CompressedTensor))  # type: ignore[type-abstract]


@dataclass(frozen=True, eq=False)
class Transformed(CompressedTensor):
    """A weight W = V T whose other basis V is what is kept; it transforms its own input.

    Put the transform into the module's `Record` instead where all parts of a weight share it.

    Attributes:
        inner: V, `transform.fold` of the weight, compressed.
        transform: T.

    Example:
        >>> from laconic.tensors import ChannelScale, Dense
        >>> half = ChannelScale(torch.tensor([2.0, 2.0]))
        >>> Transformed(Dense(torch.ones(1, 2)), half).dense()
        tensor([[0.5000, 0.5000]])
    """

    inner: CompressedTensor
    transform: InputTransform

    kind = "transformed"

    def __post_init__(self) -> None:
        if len(self.inner.shape) < 2 or self.inner.shape[1] != self.transform.width:
            raise UsageError(
                f"a transform of {self.transform.width} channels does not fit a weight of shape "
                f"{tuple(self.inner.shape)}"
            )

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def format(self) -> str:
        return f"{self.inner.format} behind {self.transform.kind}"

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        return self.transform.unfold(self.inner.dense(PRECISION)).to(dtype or self.dtype)

    def matmul(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """`x @ W.T + bias` as `(T x) @ V.T + bias`."""
        return self.inner.matmul(self.transform(x), bias)

    def rows(self, index: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        rows = self.transform.unfold(self.inner.rows(index.reshape(-1), PRECISION))
        return rows.reshape(*index.shape, *self.shape[1:]).to(dtype or self.dtype)

    def state(self) -> State:
        parts = {"inner": self.inner.state(), "transform": self.transform.state()}
        return State(self.kind, {}, parts=parts)

    @classmethod
    def from_state(cls, state: State) -> Self:
        return cls(
            nested(state, "inner", CompressedTensor),  # type: ignore[type-abstract]
            nested(state, "transform", InputTransform),  # type: ignore[type-abstract]
        )


def _total(terms: list[Tensor]) -> Tensor:
    """The sum of `terms`, from the first to the last."""
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


register_kind(Sum)
register_kind(Transformed)
