"""ExactOBS: zero the weights of each row one by one, always the one that costs least (Optimal Brain Compression)."""

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from laconic.allocate.pareto import lower_hulls
from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.absorb import absorb_error
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.obs_exact import exact_prune, exact_prune_blocks, kept_after
from laconic.prune import sparsegpt
from laconic.prune._scored import Pruner
from laconic.tensors import CompressedTensor, patterns


@dataclass(frozen=True)
class ExactOBS(Pruner):
    """Zeros each row weight by weight, always the one that costs least; the others make up for it exactly.

        H = E[x x^T];  of each row's weights that are left, the j with the least w_j^2 / H^-1_jj goes;
        w -= H^-1_:j w_j / H^-1_jj;  j leaves H^-1

    The parent of `sparsegpt`, which goes through the columns of all rows in one order. With the pattern
    `layer` every row is taken to its end once; the lower convex hulls of their losses say how many
    zeros each row gets, and what is left of it takes its best values. A row of C weights takes C^3 / 3
    operations.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: `layer`; `row`, as many of each row; `n:m`, which keeps n of every m neighbours in a
            row, m up to 16; or `1xc`, blocks of c neighbours in a row, such as `1x4`, over the layer.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        widest: columns of a weight, kernels included, up to which it is pruned so; wider ones are
            swept as `sparsegpt` does.

    Example:
        >>> ExactOBS(pattern="2:4").wants
        (SecondMoment(),)
    """

    sparsity: float = patterns.DEFAULT
    pattern: str = "layer"
    damp: float = 0.01
    widest: int = 1024

    paper = Paper(12, "Optimal Brain Compression", 2022, "2208.11580")
    needs = Needs.INPUTS
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "error feedback")

    def __post_init__(self) -> None:
        patterns.check(self.sparsity, "layer" if self._block else self.pattern)
        if not self.damp > 0:
            raise UsageError(f"damp must be above 0, found {self.damp!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    @property
    def _block(self) -> int:
        """Columns of a block; 0 where single weights go."""
        found = re.fullmatch(r"1x([1-9]\d?)", self.pattern)
        return int(found[1]) if found else 0

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) with zeros, and what is left of it moved."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        moment = stats.mean(SecondMoment())
        if rows.shape[1] > self.widest:
            values, keep = self._swept(rows, moment, stats)
        else:
            values, keep = self._exact(rows, moment, stats)
        stats.note(patterns.ragged_note(rows.shape[1], self.pattern))
        return patterns.masked(values.reshape(weight.shape).to(weight.dtype), keep, self.pattern)

    def _swept(self, rows: Tensor, moment: Tensor, stats: LayerStats) -> tuple[Tensor, Tensor]:
        """Values and mask (R, C) by the sweep of `sparsegpt`."""
        wide = f"{rows.shape[1]} columns, more than {self.widest}"
        if self._block or self.pattern == "row":
            raise UsageError(
                f"{stats.layer.name} has {wide}: zeros by {self.pattern} take each row's own inverse; "
                "give a greater widest, or pattern=layer or n:m, which wider layers are swept for"
            )
        stats.note(f"{wide}: swept as sparsegpt does")
        values, keep, note = sparsegpt.sweep(rows, moment, self.sparsity, self.pattern, self.damp)
        stats.note(note)
        return values, keep

    def _exact(self, rows: Tensor, moment: Tensor, stats: LayerStats) -> tuple[Tensor, Tensor]:
        """Values and mask (R, C) by exact elimination."""
        factor = inverse_upper(moment, self.damp)
        stats.note(factor.raised(self.damp))
        inverse = factor.factor.mT @ factor.factor
        seen = rows.masked_fill(factor.dead, 0)  # costs nothing, so that it goes first
        run = patterns.run_of(self.pattern)
        if run is not None:
            wide, inverse, place = patterns.filled_up(seen, inverse, run[1])
            order = exact_prune(wide, inverse, pattern=run).order
            keep = kept_after(order, wide.shape[1], order.shape[1])[:, place]
        elif self._block:
            wide, inverse, place = patterns.filled_up(seen, inverse, self._block)
            found = exact_prune_blocks(wide, inverse, self._block)
            steps = shares(found.loss, round(self.sparsity * found.loss.numel()))
            blocks = kept_after(found.order, found.order.shape[1], steps)
            keep = blocks.repeat_interleave(self._block, dim=1)[:, place]
        else:
            each = round(self.sparsity * rows.shape[1])
            found = exact_prune(seen, inverse, steps=each if self.pattern == "row" else None)
            taken: Tensor | int = each
            if self.pattern == "layer":
                taken = shares(found.loss, round(self.sparsity * found.loss.numel()))
            keep = kept_after(found.order, rows.shape[1], taken)
        values = seen + absorb_error(seen * ~keep, moment, keep, self.damp)
        return torch.where(keep & factor.dead, rows, values.to(rows.dtype)) * keep, keep


def shares(loss: Tensor, steps: int) -> Tensor:
    """How many of each row's `steps` in all are taken, (R,), from what each adds to its loss (R, S).

    Losses of steps do not rise evenly; the steps of the lower convex hull of each row's sum do, and the
    smallest of all rows are taken (sheet of OBC: better than the losses as they are).
    """
    total = np.cumsum(loss.cpu().numpy(), axis=1)
    hulls = lower_hulls(np.pad(total, ((0, 0), (1, 0))))
    slopes = torch.from_numpy(np.diff(hulls, axis=1)).reshape(1, -1)
    gone = slopes.argsort(dim=1, stable=True)[:, :steps]
    rows = torch.div(gone[0], loss.shape[1], rounding_mode="floor")
    return torch.bincount(rows, minlength=len(loss)).to(loss.device)
