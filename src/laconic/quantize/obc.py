"""OBQ: round the weights of each row one by one, always the one that costs least (Optimal Brain Compression)."""

from dataclasses import dataclass

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UsageError
from laconic.method import Paper
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.obs import UniformGrid
from laconic.numerics.obs_exact import exact_quantize
from laconic.quantize._swept import GridSweep
from laconic.quantize.gptq import sweep
from laconic.tensors.integer import Grid


@dataclass(frozen=True)
class OBQ(GridSweep):
    """Rounds each row weight by weight, always the one that costs least; the others make up for it exactly.

        H = E[x x^T];  of each row's weights that are left, the j with the least (w_j - q_j)^2 / H^-1_jj
        becomes q_j;  w -= H^-1_:j (w_j - q_j) / H^-1_jj;  j leaves H^-1

    The parent of `gptq`, which rounds the columns of all rows in one order. A weight that was pushed out
    of the grid is rounded at once, the farthest first. A row of C weights takes C^3 / 3 operations.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        widest: columns of a weight, kernels included, up to which it is rounded so; wider ones are
            swept as `gptq` does.

    Example:
        >>> OBQ(bits=3).wants
        (SecondMoment(),)
    """

    widest: int = 1024

    paper = Paper(12, "Optimal Brain Compression", 2022, "2208.11580")
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.widest < 0:
            raise UsageError(f"widest must be at least 0, found {self.widest!r}")

    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C): see `GridSweep`."""
        quantizer, keep = self.quantizer(), stats.keep()
        if rows.shape[1] > self.widest:
            stats.note(f"{rows.shape[1]} columns, more than {self.widest}: swept as gptq does")
            found, note = sweep(rows, moment, grid, quantizer, "activation", self.damp, keep)
            stats.note(note)
            return found
        factor = inverse_upper(moment, self.damp)
        stats.note(factor.raised(self.damp))
        inverse = factor.factor.mT @ factor.factor
        each = UniformGrid(grid.scale, grid.zero, grid.group, *quantizer.code_range)
        codes = exact_quantize(rows, inverse, each, keep=keep).codes
        assert codes is not None
        return codes
