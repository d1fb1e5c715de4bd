"""OBQ: round the weights of each row one by one, always the one that costs least (Optimal Brain Compression)."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import UsageError
from laconic.method import Paper
from laconic.numerics.obs import UniformGrid, block_sweep, ordered_factor
from laconic.numerics.obs_exact import exact_quantize
from laconic.quantize._swept import GridSweep
from laconic.tensors.integer import Grid


@dataclass(frozen=True)
class OBQ(GridSweep):
    """Rounds each row weight by weight, always the one that costs least; the others make up for it exactly.

        H = E[x x^T];  of each row's weights that are left, the j with the least (w_j - q_j)^2 / H^-1_jj
        becomes q_j;  w -= H^-1_:j (w_j - q_j) / H^-1_jj;  j leaves H^-1

    The parent of `gptq`, which rounds the columns of all rows in one order. A weight that was pushed out
    of the grid is rounded at once, the farthest first. A row of C weights takes C^3 / 3 operations.
    Wider weights are taken a block of columns at a time, from the most active columns on: exactly within the
    block, and the columns behind make up for the whole block.

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        widest: columns of a weight, kernels included, up to which it is rounded as one block.
        block: columns of a block of a wider weight, at least 1; with 1 it is rounded as `gptq` does.

    Example:
        >>> OBQ(bits=3).wants
        (SecondMoment(),)
    """

    widest: int = 1024
    block: int = 256

    paper = Paper(12, "Optimal Brain Compression", 2022, "2208.11580")
    taxonomy = ("quantization", "post-training", "weight-only", "uniform", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.widest < 0 or self.block < 1:
            raise UsageError(
                f"widest must be at least 0 and block at least 1, found {self.widest!r} and {self.block!r}"
            )

    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C): see `GridSweep`."""
        count = rows.shape[1]
        if count > self.widest:
            stats.note(f"{count} columns, more than {self.widest}: in blocks of {self.block}")
        block = count if count <= self.widest else min(self.block, count)
        columns, factor = ordered_factor(moment, "activation", self.damp)
        stats.note(factor.raised(self.damp))
        keep, found = stats.keep(), torch.zeros_like(rows, dtype=torch.uint8)
        group = columns // grid.group if grid.scale.shape[1] > 1 else columns.new_zeros(count)

        def fix(left: Tensor, first: int) -> Tensor:
            here = slice(first, min(first + block, count))
            which = columns[here]
            own = upper[here, here]
            each = UniformGrid(
                grid.scale[:, group[here]],
                grid.zero[:, group[here]],
                1,
                *self.quantizer().code_range,
            )
            kept = None if keep is None else keep[:, which]
            fixed = exact_quantize(left[:, : len(which)], own.mT @ own, each, keep=kept)
            assert fixed.codes is not None
            found[:, which] = fixed.codes
            return F.pad(fixed.values, (0, left.shape[1] - len(which)))

        more = -count % block  # of columns that fill the last block and touch no other
        upper = torch.eye(count + more, dtype=torch.float64, device=rows.device)
        upper[:count, :count] = factor.factor
        block_sweep(F.pad(rows[:, columns], (0, more)), upper, fix, dim=block)
        return found
