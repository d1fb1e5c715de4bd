"""`Tunable`: a compressed weight whose scales or codebooks are trained while its codes stay."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from laconic.errors import UsageError, did_you_mean
from laconic.tensors import CompressedTensor
from laconic.tensors.coded import Coded
from laconic.tune.unsettled import Unsettled

PRECISION = torch.float32  # of what is trained; it is used as it would be stored


@dataclass(frozen=True, eq=False)
class Tunable(Unsettled):
    """A coded weight with parameters in the place of some of its tensors.

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

    kind: ClassVar[str] = "tunable weights"

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
    def free(self) -> Iterable[nn.Parameter]:
        return self.values.values()

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        value = self._with(dict(self.values))._dense_by_torch()
        return value.reshape(self.shape).to(dtype or self.dtype)

    def settled(self) -> Coded:
        return self._with({name: value.detach() for name, value in self.values.items()})

    def _with(self, values: dict[str, Any]) -> Coded:
        tensors = self.inner.tensors()
        rounded = {name: value.to(tensors[name].dtype) for name, value in values.items()}
        return self.inner.replace_tensors(tensors | rounded)
