"""AdaRound: whether each weight is rounded up or down is learned from what the layer puts out."""

from dataclasses import dataclass, replace
from typing import Literal, Self, get_args

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.adaround import Annealing, learned_rounding
from laconic.numerics.energies import row_errors
from laconic.tensors import CompressedTensor, Dense, IntQuantizer
from laconic.tensors.integer import Grid
from laconic.tensors.packing import spread
from laconic.tensors.percentile import percentile_grid

Range = Literal["minmax", "mse", "percentile"]


@dataclass(frozen=True)
class AdaRound(LayerMethod):
    """Rounds every weight up or down, whichever, learned for a row together, changes its outputs least.

        q = floor(w / s) + h(v),  v minimises (q - w) H (q - w)^T / nearest + 3 mean(1 - |2 h(v) - 1|^beta)

    with H = E[x x^T]; beta falls from 20 to 2, so that every h ends at 0 or 1. No row loses more on the
    calibration inputs than rounded to the nearest.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how ranges are found: `minmax` spans the extremes; `mse` shrinks them to the least squared
            error; `percentile` cuts rows at those that change the outputs least (rows only).
        steps: of the training; 0 rounds to the nearest.

    Example:
        >>> AdaRound(bits=3, group="row").wants
        (SecondMoment(),)
    """

    bits: int = 4
    group: int | Literal["row", "tensor"] = 64
    symmetric: bool = True
    range: Range = "mse"
    steps: int = 500

    paper = Paper(
        None, "Up or down? Adaptive rounding for post-training quantization", 2020, "2004.10568"
    )
    needs = Needs.INPUTS
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "learned rounding")

    def __post_init__(self) -> None:
        if self.range not in get_args(Range):
            raise UsageError(f"range must be one of {get_args(Range)}, found {self.range!r}")
        if self.range == "percentile" and self.group != "row":
            raise UsageError(
                f"range=percentile is of rows: group must be 'row', found {self.group!r}"
            )
        self.quantizer()
        Annealing(steps=self.steps)

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def quantizer(self) -> IntQuantizer:
        """The grid as a quantizer; checks the settings."""
        range_: Literal["minmax", "mse"] = "minmax" if self.range == "minmax" else "mse"
        return IntQuantizer(self.bits, self.group, self.symmetric, range_)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) on its grid; zeros of a mask stay."""
        check_finite("the weight", weight)
        if not weight.numel():
            return Dense(weight.clone())
        quantizer, moment = self.quantizer(), stats.mean(SecondMoment())
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        grid = self._grid(rows, moment)
        low, high = quantizer.code_range
        columns = rows.shape[1]
        codes = learned_rounding(
            rows, spread(grid.scale, columns, grid.group), spread(grid.zero, columns, grid.group),
            moment, low=low, high=high, annealing=Annealing(steps=self.steps), keep=stats.keep(),
        )  # fmt: skip
        return quantizer.pack(codes.reshape(weight.shape), grid, weight)

    def options(self) -> tuple[Self, ...]:
        """2 to 8 bits."""
        return tuple(replace(self, bits=bits) for bits in range(2, 9))

    def _grid(self, rows: Tensor, moment: Tensor) -> Grid:
        quantizer = self.quantizer()
        if self.range != "percentile":
            return quantizer.fit(rows)
        return percentile_grid(
            quantizer, rows, loss=lambda values: row_errors(values - rows, moment)
        )
