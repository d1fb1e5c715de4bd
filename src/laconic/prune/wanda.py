"""Wanda: a weight is worth its magnitude times the norm of the input that it multiplies."""

from dataclasses import dataclass

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import InputNorm, Statistic
from laconic.method import Needs, Paper
from laconic.prune._scored import ScoredPruner
from laconic.tensors.patterns import DEFAULT


@dataclass(frozen=True)
class Wanda(ScoredPruner):
    """Zeros the weights whose magnitude times the norm of their input is least in each row.

        score_ij = |w_ij| ||x_j||_2, compared within the row i (Sun et al., 2023, equation 1)

    The weights that stay are not changed, so there is nothing to invert and it takes no longer than a
    pass over the data.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: over what weights are compared: each `row` (output), the whole `layer`, or `n:m`,
            which keeps n of every m neighbours in a row, m up to 16.

    Example:
        >>> import torch
        >>> Wanda(0.5).wants
        (InputNorm(),)
        >>> weight, norm = torch.tensor([[3.0, -1.0]]), torch.tensor([1.0, 10.0])
        >>> scores(weight, norm)
        tensor([[ 3., 10.]])
    """

    sparsity: float = DEFAULT
    pattern: str = "row"

    paper = Paper(None, "A simple and effective pruning approach for LLMs", 2023, "2306.11695")
    needs = Needs.INPUTS
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "activation-aware")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (InputNorm(),)

    def score(self, rows: Tensor, stats: LayerStats) -> Tensor:
        """|w_ij| ||x_j||, (R, C)."""
        return scores(rows, stats.input_norm())


def scores(rows: Tensor, norm: Tensor) -> Tensor:
    """|w_ij| ||x_j|| of the weights `rows` (R, C) and the `norm` (C,) of their inputs."""
    return rows.abs() * norm.to(rows.dtype)
