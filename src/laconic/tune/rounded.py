"""`Rounded`: a weight on uniform grids whose codes are learned beside its scales.

SignRound (Cheng et al., 2023, arXiv 2309.05516), equations 2 and 3, from any codes instead of the nearest ones.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor, nn

from laconic.numerics._checks import check_shape
from laconic.tensors import Grouped
from laconic.tensors.packing import matrix_shape, spread
from laconic.tune.tunable import PRECISION, Tunable

HALF = 0.4999  # of a step: what rounds back to the code that was there
SHIFT = "shift"


@dataclass(frozen=True, eq=False)
class Rounded(Tunable):
    """A weight on uniform grids with parameters in the place of its scales, and one for each code.

        code = round(place + shift)

    `place` is where the dense weight lies on the grid, or the nearest point to it that is rounded to the
    code that was there: codes that error feedback has moved away from their weight move back easily. Shifts
    of up to half a step change a code by one at most. The gradient passes the rounding unchanged; it is 0
    where a code is held at an end of the grid.

    Attributes:
        inner: the weight.
        values: float32 parameters: `scale`, and `shift` (R, C), which starts at 0.
        place: (R, C) float32, in steps.

    Example:
        >>> from laconic.tensors import IntQuantizer
        >>> weight = torch.randn(4, 8)
        >>> value = Rounded.between(IntQuantizer(bits=2).quantize(weight), weight)
        >>> value.dense().sum().backward()
        >>> value.values["shift"].grad.shape
        torch.Size([4, 8])
    """

    inner: Grouped
    place: Tensor

    kind = "rounded"

    @classmethod
    def between(cls, value: Grouped, weight: Tensor) -> Self:
        """`value`, whose codes may come nearer to `weight`, the dense one of the same shape.

        Raises:
            UsageError: the shapes differ.
        """
        check_shape("the weight", weight, tuple(value.shape))
        rows, columns = matrix_shape(value.shape)
        codes = value.codes().reshape(rows, columns).to(PRECISION)
        scale = spread(value.scale.to(PRECISION), columns, value.group)
        off = weight.reshape(rows, columns).to(PRECISION) / scale + value.zeros() - codes
        free = {
            "scale": nn.Parameter(value.scale.to(PRECISION, copy=True)),
            SHIFT: nn.Parameter(torch.zeros_like(codes)),
        }
        return cls(value, free, codes + off.clamp(-HALF, HALF))

    def dense(self, dtype: torch.dtype | None = None) -> Tensor:
        scale = self.values["scale"].to(self.inner.scale.dtype)  # as it is stored
        value = self.inner.at(self._codes(), scale)
        return value.reshape(self.shape).to(dtype or self.dtype)

    def to(self, device: torch.device | str) -> Self:
        return replace(super().to(device), place=self.place.to(device))

    def settled(self) -> Grouped:
        with torch.no_grad():
            codes = self._codes().reshape(self.shape)
        scale = self.values["scale"].detach()
        inner = self.inner
        return Grouped.from_codes(
            codes, scale, inner.zero, bits=inner.bits, group=inner.group, dtype=inner.dtype
        )

    def _codes(self) -> Tensor:
        """(R, C) whole numbers, with the gradient of `place + shift`."""
        soft = (self.place + self.values[SHIFT]).clamp(0, 2**self.inner.bits - 1)
        return soft + (soft.round() - soft).detach()
