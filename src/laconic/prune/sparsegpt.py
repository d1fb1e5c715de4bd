"""SparseGPT: zeros where they cost least, and the columns behind make up for each of them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.cholesky import inverse_upper
from laconic.numerics.obs import sparse_sweep
from laconic.prune._scored import Pruner
from laconic.tensors import CompressedTensor, patterns


@dataclass(frozen=True)
class SparseGPT(Pruner):
    """Zeros the weights that cost least column by column, later columns making up for each of them.

        H = E[x x^T], U^T U = H^-1;  cost_ij = w_ij^2 / U_jj^2, of the weights as moved so far;
        for each column j:  e = w_j / U_jj where it goes, 0 where it stays,  w_k -= e U_jk

    A layer's share of zeros is chosen within each block of 128 columns, over all rows, when the sweep
    gets there; n:m at each run of m columns (Frantar and Alistarh, 2023, algorithm 1). Columns whose
    input was always zero go first.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: `layer`, or `n:m`, which keeps n of every m neighbours in a row, m up to 16.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.

    Example:
        >>> SparseGPT(pattern="2:4").wants
        (SecondMoment(),)
    """

    sparsity: float = patterns.DEFAULT
    pattern: str = "layer"
    damp: float = 0.01

    paper = Paper(None, "SparseGPT: massive language models can be pruned", 2023, "2301.00774")
    needs = Needs.INPUTS
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "error feedback")

    def __post_init__(self) -> None:
        patterns.check(self.sparsity, self.pattern, shares=("layer",))
        if not self.damp > 0:
            raise UsageError(f"damp must be above 0, found {self.damp!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) with zeros, and what is left of it moved."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        values, keep, note = sweep(
            rows, stats.mean(SecondMoment()), self.sparsity, self.pattern, self.damp
        )
        stats.note(note)
        stats.note(patterns.ragged_note(rows.shape[1], self.pattern))
        return patterns.masked(values.reshape(weight.shape).to(weight.dtype), keep, self.pattern)


def sweep(
    rows: Tensor, moment: Tensor, sparsity: float, pattern: str, damp: float
) -> tuple[Tensor, Tensor, str]:
    """The pruned weights (R, C), which of them stay, and what should be noted.

    Args:
        rows: (R, C) float32.
        moment: (C, C), H.
        sparsity: share of zeros; not looked at where the pattern is n:m.
        pattern: `layer` or `n:m`.
        damp: see `SparseGPT`.
    """
    factor = inverse_upper(moment, damp)
    seen = rows.masked_fill(factor.dead, 0)  # costs nothing, so that it goes first
    run = patterns.run_of(pattern)
    columns = torch.arange(rows.shape[1], device=rows.device)
    upper = factor.factor
    if run is not None:
        seen, upper, columns = patterns.filled_up(seen, upper, run[1])
    found = sparse_sweep(seen, upper, sparsity=None if run else sparsity, pattern=run)
    assert found.keep is not None
    values, keep = found.values[:, columns], found.keep[:, columns]
    return torch.where(keep & factor.dead, rows, values), keep, factor.raised(damp)
