"""What the sweeps of `obs` and `obs_exact` take and return."""

from typing import NamedTuple

import torch
from torch import Tensor

PRECISION = torch.float32  # of the sweep; losses are summed in float64


class UniformGrid(NamedTuple):
    """Values `(code - zero) * scale` with codes low..high, for each group of columns of each row.

    Attributes:
        scale: (R, G) or (1, G), not 0.
        zero: same shape, whole numbers.
        group: columns a group; the last may be shorter.
        low: least code.
        high: greatest code, at most 255.
    """

    scale: Tensor
    zero: Tensor
    group: int
    low: int
    high: int

    def project(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Codes (R, C) uint8 and values (R, C) float32 of the grid points nearest to `weight`."""
        column_group = torch.arange(weight.shape[1], device=weight.device) // self.group
        scale, zero = (t.to(PRECISION)[:, column_group] for t in (self.scale, self.zero))
        codes = (weight.to(PRECISION) / scale).round_().add_(zero).clamp_(self.low, self.high)
        return codes.to(torch.uint8), (codes - zero) * scale


class Sweep(NamedTuple):
    """What a sweep made of a weight.

    Attributes:
        values: (R, C) float32.
        loss: (R,) float64, (w - q) H (w - q)^T of each row.
        codes: (R, C) uint8 where there is a grid.
        keep: (R, C) bool, false where a zero was put, where there is a mask.
        grid: the grid, with the scales that a `refit` chose.
    """

    values: Tensor
    loss: Tensor
    codes: Tensor | None = None
    keep: Tensor | None = None
    grid: UniformGrid | None = None
