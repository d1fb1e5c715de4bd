"""`Pruner`, the base of all pruners, and `ScoredPruner`, which keeps the weights with the greatest scores."""

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Self

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.method import LayerMethod
from laconic.numerics._checks import check_finite
from laconic.tensors import CompressedTensor, patterns


@dataclass(frozen=True)
class Pruner(LayerMethod):
    """Base of all pruners: a share of zeros in a pattern, and the strengths that follow from it.

    Args:
        sparsity: share of zeros, 0 to below 1.
        pattern: `row`, `layer`, or `n:m`.
    """

    sparsity: float = patterns.DEFAULT
    pattern: str = "layer"

    def options(self) -> tuple[Self, ...]:
        """Sparsities 0.1 to 0.9; of a pattern n:m every n below m."""
        found = patterns.strengths(self.pattern)
        return tuple(replace(self, sparsity=s, pattern=p) for s, p in found)

    def between(self, other: Self, share: float) -> Self | None:
        """At a sparsity `share` of the way to the other's; None of a pattern n:m."""
        sparsity = patterns.between(self.sparsity, other.sparsity, self.pattern, share)
        return None if sparsity is None else replace(self, sparsity=sparsity)


@dataclass(frozen=True)
class ScoredPruner(Pruner):
    """Base of the pruners that leave the weights they keep as they are."""

    def __post_init__(self) -> None:
        patterns.check(self.sparsity, self.pattern)

    @abstractmethod
    def score(self, rows: Tensor, stats: LayerStats) -> Tensor:
        """What each of the weights `rows` (R, C), float32, is worth: (R, C), finite."""

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) with zeros where the scores are least."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        keep = patterns.keep_greatest(self.score(rows, stats), self.sparsity, self.pattern)
        stats.note(patterns.ragged_note(rows.shape[1], self.pattern))
        return patterns.masked(weight, keep, self.pattern)
