"""`GridSweep`, the base of the methods that round one weight after another to a uniform grid."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs
from laconic.numerics._checks import check_finite
from laconic.numerics.obs_types import UniformGrid
from laconic.tensors import CompressedTensor, IntQuantizer
from laconic.tensors.integer import Grid


@dataclass(frozen=True)
class GridSweep(LayerMethod):
    """A grid found on the weight before the sweep, so that it stays whatever the order of the columns.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "mse"
    damp: float = 0.01

    needs = Needs.INPUTS

    def __post_init__(self) -> None:
        self.quantizer()
        if not self.damp > 0:
            raise UsageError(f"damp must be above 0, found {self.damp!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def quantizer(self) -> IntQuantizer:
        """The grid as a quantizer; checks the settings."""
        return IntQuantizer(self.bits, self.group, self.symmetric, self.range)

    @abstractmethod
    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C) float32 under the second moment (C, C).

        Weights outside `stats.keep()` are zero and stay so.
        """

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) on its grid."""
        check_finite("the weight", weight)
        grid = self.quantizer().fit(weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        codes = self.codes(rows, stats.mean(SecondMoment()), grid, stats)
        return self.quantizer().pack(codes.reshape(weight.shape), grid, weight)

    def options(self) -> tuple[Self, ...]:
        """2 to 8 bits, each per row and in groups of 64."""
        groups: tuple[int | Literal["row"], ...] = ("row", 64)
        return tuple(replace(self, bits=b, group=g) for b in range(2, 9) for g in groups)


def grid_of(columns: Tensor, grid: Grid, quantizer: IntQuantizer) -> UniformGrid:
    """The grid of each of `columns` (N,) numbers, in their order, as the sweeps take it: scales (R, N)."""
    group = columns // grid.group if grid.scale.shape[1] > 1 else torch.zeros_like(columns)
    return UniformGrid(grid.scale[:, group], grid.zero[:, group], 1, *quantizer.code_range)
