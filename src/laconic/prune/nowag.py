"""NoWag-P: zeros by normalised magnitude times the energy of the input."""

from dataclasses import dataclass

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import InputNorm, Statistic
from laconic.method import Needs, Paper
from laconic.numerics.normalise import by_columns_and_rows
from laconic.prune._scored import ScoredPruner


@dataclass(frozen=True)
class NoWagPruner(ScoredPruner):
    """Zeros the weights whose magnitude, divided by the lengths of column and row, times the input's is least.

        W^_ij = W_ij / (||W_:j|| ||(W / ||W_:j||)_i:||);  score_ij = W^_ij^2 E[x_j^2]

    Kept weights stay as they are: the lengths cancel.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: `layer`, `row`, or `n:m`, which keeps n of every m neighbours in a row, m up to 16.

    Example:
        >>> NoWagPruner(pattern="2:4").wants
        (InputNorm(),)
    """

    paper = Paper(
        74, "NoWag: a unified framework for shape preserving compression", 2025, "2504.14569"
    )
    needs = Needs.INPUTS
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "activation-aware")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (InputNorm(),)

    def score(self, rows: Tensor, stats: LayerStats) -> Tensor:
        """Energies (R, C) of the normalised weights under those of their inputs."""
        values = by_columns_and_rows(rows).values
        return (values * stats.input_norm().to(values)).square().float()
