"""`Tunable`: a compressed weight whose scales or codebooks are trained while its codes stay."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from laconic.errors import UsageError, did_you_mean
from laconic.tensors import CompressedTensor
from laconic.tensors.coded import Coded
from laconic.tensors.compressed import State

PRECISION = torch.float32  # of what is trained; it is used as it would be stored


@dataclass(frozen=True, eq=False)
class Tunable(CompressedTensor):
    """A coded weight with parameters in the place of some of its tensors.

    Forward it has the value that `settled` will have, rounding to the stored dtype included; the
    gradient passes that rounding unchanged.

    Attributes:
        inner: the weight.
        values: float32 parameters by the name of the tensor that they replace.

    Example:
        >>> from laconic.tensors import IntQuantizer
        >>> value = Tunable.of(IntQuantizer(bits=2).quantize(torch.randn(4, 8)), ["scale"])
        >>> value.dense().sum().backward()
        >>> value.values["scale"].grad.shape
        torch.Size([4, 1])
    """

    inner: Coded
    values: dict[str, nn.Parameter]

    kind: ClassVar[str] = "tunable"

    @classmethod
    def of(cls, value: CompressedTensor, names: Iterable[str]) -> Self:
        """With the tensors `names` of `value` (`scale`, `codebooks`, `entries`, `alpha`) set free.

        Raises:
            UsageError: it keeps no codes, or has no tensor of real numbers of that name.
        """
        if not isinstance(value, Coded):
            raise UsageError(f"{value.format} keeps no codes; there is nothing to tune beside them")
        real = {name: t for name, t in value.tensors().items() if t.is_floating_point()}
        wanted = list(names)
        for name in wanted:
            if name not in real:
                raise UsageError(
                    f"{value.format} has no {name!r} to tune; {did_you_mean(name, real)}"
                )
        free = {n: nn.Parameter(real[n].detach().to(PRECISION, copy=True)) for n in wanted}
        return cls(value, free)

    @property
    def shape(self) -> torch.Size:  # type: ignore[override]
        return self.inner.shape

    @property
    def dtype(self) -> torch.dtype:  # type: ignore[override]
        return self.inner.dtype

    @property
    def format(self) -> str:
        return self.inner.format

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        value = self._with(dict(self.values))._dense_by_torch()
        return value.reshape(self.shape).to(dtype or self.dtype)

    def settled(self) -> Coded:
        """The weight with what was learned, as it is stored."""
        return self._with({name: value.detach() for name, value in self.values.items()})

    def tensors(self) -> dict[str, Tensor]:
        return self.inner.tensors()

    def to(self, device: torch.device | str) -> Self:
        for value in self.values.values():
            value.data = value.data.to(device)
        return replace(self, inner=self.inner.to(device))

    def state(self) -> State:
        return self.settled().state()

    @classmethod
    def from_state(cls, state: State) -> Self:
        raise UsageError("a tunable weight is stored as what it has settled to")

    def _with(self, values: dict[str, Any]) -> Coded:
        tensors = self.inner.tensors()
        rounded = {name: value.to(tensors[name].dtype) for name, value in values.items()}
        return self.inner.replace_tensors(tensors | rounded)
