"""OBQ: round the weights of each row one by one, always the one that costs least (Optimal Brain Compression)."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UsageError
from laconic.method import Paper
from laconic.numerics.energies import row_errors
from laconic.numerics.obs import UniformGrid, block_sweep, grid_sweep, ordered_factor
from laconic.numerics.obs_exact import exact_quantize
from laconic.quantize._swept import GridSweep, grid_of
from laconic.tensors.integer import Grid

BLOCKS = (1, 16, 64, 256)  # columns that are rounded exactly before those behind are moved


@dataclass(frozen=True)
class OBQ(GridSweep):
    """Rounds each row weight by weight, always the one that costs least; the others make up for it exactly.

        H = E[x x^T];  of each row's weights that are left, the j with the least (w_j - q_j)^2 / H^-1_jj
        becomes q_j;  w -= H^-1_:j (w_j - q_j) / H^-1_jj;  j leaves H^-1

    The parent of `gptq`, which rounds the columns of all rows in one order. A weight that was pushed out
    of the grid is rounded at once, the farthest first. A row of C weights takes C^3 / 3 operations.

    What costs least comes first, and what costs most is left with nothing to make up for it: where a few
    inputs carry most of the energy, `gptq`, which takes these first, loses less. Between the two lie blocks of
    columns, the most active first, each rounded exactly before the columns behind make up for it. Rows do
    not depend on each other, so that by default each takes what loses least: one block, blocks of 256, 64
    or 16 columns, or single ones.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        order: `"best"` of all in each row; or `"greedy"`, the paper's, in one block.
        widest: columns of a weight, kernels included, up to which one block is tried; greedy takes wider
            ones in blocks of 256.

    Example:
        >>> OBQ(bits=3).wants
        (SecondMoment(),)
    """

    order: Literal["best", "greedy"] = "best"
    widest: int = 1024

    paper = Paper(12, "Optimal Brain Compression", 2022, "2208.11580")
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.widest < 0:
            raise UsageError(f"widest must be at least 0, found {self.widest!r}")
        if self.order not in ("best", "greedy"):
            raise UsageError(f"order must be 'best' or 'greedy', found {self.order!r}")

    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C): see `GridSweep`."""
        count, keep = rows.shape[1], stats.keep()
        columns, factor = ordered_factor(moment, "activation", self.damp)
        stats.note(factor.raised(self.damp))
        back = columns.argsort()
        each = grid_of(columns, grid, self.quantizer())
        ordered, kept = rows[:, columns], None if keep is None else keep[:, columns]
        best = torch.zeros_like(rows, dtype=torch.uint8)
        least = torch.full_like(rows[:, 0], torch.inf, dtype=torch.float64)
        for size in self._blocks(count):
            values, codes = _rounded(ordered, factor.factor, each, kept, size)
            loss = row_errors(rows.double() - values[:, back].double(), moment)
            better = loss < least
            least = torch.where(better, loss, least)
            best[better] = codes[better][:, back]
        if count > self.widest:
            stats.note(
                f"{count} columns, more than {self.widest}: in blocks of {BLOCKS[-1]} at most"
            )
        return best

    def _blocks(self, count: int) -> tuple[int, ...]:
        """Columns of the blocks that are tried on a weight of `count` columns."""
        whole = (count,) if count <= self.widest else ()
        if self.order == "greedy":
            return whole or BLOCKS[-1:]
        return tuple(size for size in BLOCKS if size < count) + whole


def _rounded(
    rows: Tensor, upper: Tensor, grid: UniformGrid, keep: Tensor | None, size: int
) -> tuple[Tensor, Tensor]:
    """Values and codes (R, C) of `rows` (R, C), exact within blocks of `size` columns."""
    count = rows.shape[1]
    if size == 1:
        swept = grid_sweep(rows, upper, grid, keep=keep)
        assert swept.codes is not None
        return swept.values, swept.codes
    codes = torch.zeros_like(rows, dtype=torch.uint8)
    more = -count % size  # columns that fill the last block and touch no other
    wide = torch.eye(count + more, dtype=torch.float64, device=rows.device)
    wide[:count, :count] = upper

    def fix(left: Tensor, first: int) -> Tensor:
        here = slice(first, min(first + size, count))
        own, width = wide[here, here], here.stop - first
        each = UniformGrid(grid.scale[:, here], grid.zero[:, here], 1, grid.low, grid.high)
        kept = None if keep is None else keep[:, here]
        fixed = exact_quantize(left[:, :width], own.mT @ own, each, keep=kept)
        assert fixed.codes is not None
        codes[:, here] = fixed.codes
        return F.pad(fixed.values, (0, more if first + size > count else 0))

    swept = block_sweep(F.pad(rows, (0, more)), wide, fix, dim=size)
    return swept.values[:, :count], codes
