"""Magnitude pruning: the baseline that every pruning method must beat."""

from dataclasses import dataclass

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.method import Needs, Paper
from laconic.prune._scored import ScoredPruner
from laconic.tensors.patterns import DEFAULT


@dataclass(frozen=True)
class Magnitude(ScoredPruner):
    """Zeros the weights of least magnitude; needs no data.

    Args:
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: over what weights are compared: the whole `layer`, each `row` (output), or `n:m`,
            which keeps n of every m neighbours in a row, m up to 16.

    Example:
        >>> import torch
        >>> from laconic import compress
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> layer.weight.data = torch.tensor([[3.0, -1.0], [0.5, 2.0]])
        >>> compress(torch.nn.Sequential(layer), Magnitude(0.5)).model[0].weight.dense()
        tensor([[3., 0.],
                [0., 2.]])
    """

    sparsity: float = DEFAULT
    pattern: str = "layer"

    paper = Paper(None, "Learning both weights and connections", 2015, "1506.02626")
    needs = Needs.NOTHING
    taxonomy = ("pruning", "post-training", "unstructured", "semi-structured", "magnitude")

    def score(self, rows: Tensor, stats: LayerStats) -> Tensor:
        """|w|, (R, C)."""
        return rows.abs()
