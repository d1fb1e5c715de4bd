"""`Unsettled`: a compressed weight part of which is trained."""

from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor, nn

from laconic.errors import UsageError
from laconic.tensors import CompressedTensor
from laconic.tensors.compressed import State


class Unsettled(CompressedTensor):
    """A compressed weight with parameters; it is stored as what it has settled to.

    Subclasses are frozen dataclasses. Forward they have the value that `settled` will have, rounding to
    the stored dtype included; the gradient passes that rounding unchanged.

    Attributes:
        inner: the weight as it was.
    """

    inner: CompressedTensor

    @property
    @abstractmethod
    def free(self) -> Iterable[nn.Parameter]:
        """What is trained."""

    @abstractmethod
    def settled(self) -> CompressedTensor:
        """The weight with what was learned, as it is stored."""

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def format(self) -> str:
        return self.inner.format

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()

    def to(self, device: torch.device | str) -> Self:
        for parameter in self.free:
            parameter.data = parameter.data.to(device)
        return replace(self, inner=self.inner.to(device))  # type: ignore[type-var]

    def state(self) -> State:
        return self.settled().state()

    @classmethod
    def from_state(cls, state: State) -> Self:
        raise UsageError(f"{cls.kind} are stored as what they have settled to")
