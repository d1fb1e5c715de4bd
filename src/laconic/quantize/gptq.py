"""GPTQ: round column by column, and let the columns behind make up for the error."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UsageError
from laconic.method import Paper
from laconic.numerics.obs import grid_sweep, ordered_factor
from laconic.quantize._swept import GridSweep, grid_of
from laconic.tensors import IntQuantizer
from laconic.tensors.integer import Grid


@dataclass(frozen=True)
class GPTQ(GridSweep):
    """Rounds to a uniform grid column by column, later columns making up for the error of earlier ones.

        H = E[x x^T], U^T U = H^-1;  for each column j:  q = grid(w_j),  w_k -= (w_j - q) / U_jj U_jk

    The grids are those of `rtn`, found on the weight before the sweep, so that groups stay where they
    are whatever the order of the columns.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        order: columns as they are, or by falling energy of their inputs (`"activation"`).

    Example:
        >>> GPTQ(bits=3, group="row").wants
        (SecondMoment(),)
    """

    order: Literal["natural", "activation"] = "activation"

    paper = Paper(None, "GPTQ: accurate post-training quantization", 2022, "2210.17323")
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.order not in ("natural", "activation"):
            raise UsageError(f"order must be 'natural' or 'activation', found {self.order!r}")

    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C): see `GridSweep`."""
        quantizer = self.quantizer()
        found, note = sweep(rows, moment, grid, quantizer, self.order, self.damp, stats.keep())
        stats.note(note)
        return found


def sweep(
    rows: Tensor, moment: Tensor, grid: Grid, quantizer: IntQuantizer, order: str, damp: float,
    keep: Tensor | None = None,
) -> tuple[Tensor, str]:  # fmt: skip
    """Codes (R, C) of `rows` (R, C) under the second moment (C, C), and what should be noted.

    Weights outside `keep` (R, C) stay zero, and the others make up for that too.
    """
    columns, factor = ordered_factor(moment, order, damp)
    each = grid_of(columns, grid, quantizer)
    kept = None if keep is None else keep[:, columns]
    codes = grid_sweep(rows[:, columns], factor.factor, each, keep=kept).codes
    assert codes is not None
    return codes[:, columns.argsort()], factor.raised(damp)
