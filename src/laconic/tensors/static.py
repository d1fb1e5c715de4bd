"""`StaticIntQuantizer`: a uniform grid whose range was found before, for activations."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.integer import Grid, IntQuantizer
from laconic.tensors.packing import PRECISION
from laconic.tensors.quantizer import Quantizer, register_quantizer


@dataclass(frozen=True)
class StaticIntQuantizer(Quantizer[Grid]):
    """Rounds to one uniform grid over a fixed range, whatever the values are.

    As a module's activation quantizer it needs no pass over its input. What lies outside of the
    range is clipped; NaN and infinity become NaN.

    Args:
        bits: 2 to 8.
        low: lower end of the range; the grid always has a zero.
        high: upper end, above `low`.
        symmetric: a grid around zero that reaches both ends; otherwise with a zero point.

    Example:
        >>> StaticIntQuantizer(bits=2, low=0.0, high=3.0).project(torch.tensor([[0.6, 2.2, 9.0]]))
        tensor([[1., 2., 3.]])
    """

    bits: int = 8
    low: float = -1.0
    high: float = 1.0
    symmetric: bool = False

    kind = "static-int"

    def __post_init__(self) -> None:
        IntQuantizer(self.bits)
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise UsageError(f"low must be below high, found {self.low!r} and {self.high!r}")

    def fit(self, x: Tensor) -> Grid:
        """The grid of the range; of `x` only the shape and the device matter."""
        ends = torch.tensor([[[self.low]], [[self.high]]], dtype=PRECISION, device=x.device)
        columns = x.numel() // max(1, x.shape[0] if x.ndim else 1)
        return self._int.grid(ends[0], ends[1], max(1, columns))

    def encode(self, x: Tensor, params: Grid) -> Tensor:
        """Codes of `x`, same shape, uint8."""
        return self._int.encode(x, params)

    def decode(self, codes: Tensor, params: Grid) -> Tensor:
        """The values of `codes`, same shape, float32."""
        return self._int.decode(codes, params)

    def pack(self, codes: Tensor, params: Grid, like: Tensor) -> CompressedTensor:
        """A `Grouped` tensor."""
        return self._int.pack(codes, params, like)

    def project(self, x: Tensor) -> Tensor:
        """The nearest values of the grid, in the dtype of `x`; what is not finite becomes NaN."""
        return torch.where(x.isfinite(), super().project(x), torch.nan)

    @property
    def code_range(self) -> tuple[int, int]:
        """Least and greatest code."""
        return self._int.code_range

    @property
    def _int(self) -> IntQuantizer:
        return IntQuantizer(self.bits, "tensor", self.symmetric)


register_quantizer(StaticIntQuantizer)
