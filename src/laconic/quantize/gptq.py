"""GPTQ: round column by column, and let the columns behind make up for the error."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics.obs import UniformGrid, grid_sweep, ordered_factor
from laconic.tensors import CompressedTensor, Grouped, IntQuantizer
from laconic.tensors.integer import Grid


@dataclass(frozen=True)
class GPTQ(LayerMethod):
    """Rounds to a uniform grid column by column, later columns making up for the error of earlier ones.

        H = E[x x^T], U^T U = H^-1;  for each column j:  q = grid(w_j),  w_k -= (w_j - q) / U_jj U_jk

    The grids are those of `rtn`, found on the weight before the sweep, so that groups stay where they
    are whatever the order of the columns.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        order: columns as they are, or by falling energy of their inputs (`"activation"`).
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.

    Example:
        >>> GPTQ(bits=3, group="row").wants
        (SecondMoment(),)
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "mse"
    order: Literal["natural", "activation"] = "activation"
    damp: float = 0.01

    paper = Paper(None, "GPTQ: accurate post-training quantization", 2022, "2210.17323")
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "error feedback")

    def __post_init__(self) -> None:
        self.quantizer()
        if self.order not in ("natural", "activation"):
            raise UsageError(f"order must be 'natural' or 'activation', found {self.order!r}")
        if not self.damp > 0:
            raise UsageError(f"damp must be above 0, found {self.damp!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def quantizer(self) -> IntQuantizer:
        """The grid as a quantizer; checks the settings."""
        return IntQuantizer(self.bits, self.group, self.symmetric, self.range)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) on its grid."""
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        quantizer = self.quantizer()
        grid = quantizer.fit(weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        codes, note = sweep(
            rows, stats.mean(SecondMoment()), grid, quantizer, self.order, self.damp, stats.keep()
        )
        if note:
            stats.note(note)
        zero = None if self.symmetric else grid.zero
        return Grouped.from_codes(
            codes.reshape(weight.shape), grid.scale, zero,
            bits=self.bits, group=grid.group, dtype=weight.dtype,
        )  # fmt: skip

    def options(self) -> tuple["GPTQ", ...]:
        """2 to 8 bits, each per row and in groups of 64."""
        groups: tuple[int | Literal["row"], ...] = ("row", 64)
        return tuple(replace(self, bits=b, group=g) for b in range(2, 9) for g in groups)


def sweep(
    rows: Tensor, moment: Tensor, grid: Grid, quantizer: IntQuantizer, order: str, damp: float,
    keep: Tensor | None = None,
) -> tuple[Tensor, str]:  # fmt: skip
    """Codes (R, C) of `rows` (R, C) under the second moment (C, C), and what should be noted.

    Weights outside `keep` (R, C) stay zero, and the others make up for that too.
    """
    columns, factor = ordered_factor(moment, order, damp)
    group = columns // grid.group if grid.scale.shape[1] > 1 else torch.zeros_like(columns)
    low, high = quantizer.code_range
    each = UniformGrid(grid.scale[:, group], grid.zero[:, group], 1, low, high)
    kept = None if keep is None else keep[:, columns]
    codes = grid_sweep(rows[:, columns], factor.factor, each, keep=kept).codes
    assert codes is not None
    note = "" if factor.damping <= damp else f"damping was raised to {factor.damping.item():.2g}"
    return codes[:, columns.argsort()], note
