"""Truncated SVD, of a weight or of what it puts out: the baseline of all factorizations."""

from dataclasses import dataclass, replace
from typing import Literal, Self

from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.factorize._factors import best_factors, low_rank, rank_for, saves
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.tensors import CompressedTensor, Dense

KEEPS = tuple(round(0.1 * tenths, 1) for tenths in range(9, 0, -1))


@dataclass(frozen=True)
class SVD(LayerMethod):
    """Replaces every weight by two factors of low rank that change its outputs least.

        H = E[x x^T];  U_r = top r eigenvectors of W H W^T;  W' = A B = U_r (U_r^T W)

    No matrix of rank r has a smaller mean ||(W - W') x||^2 on the calibration inputs (Wang et al.,
    2025, section 3). With `inputs="none"` all inputs count alike, H = I: the SVD of the weight, which
    needs no data. A layer whose factors would have no fewer parameters than it has stays dense, and
    the report says so.

    Args:
        rank: of every layer, at least 1; None to choose it by `keep`.
        keep: share of a layer's parameters that its factors have, above 0 and below 1; the rank is
            floor(keep * m n / (m + n)), at least 1. Not looked at where there is a `rank`.
        inputs: `activation` weighs by the second moment of the layer's inputs, `none` does not.
        ridge: share of the mean diagonal of H that is added to it, so that directions which were
            never seen count a little; at least 0.

    Example:
        >>> SVD(keep=0.25).wants, SVD(inputs="none").wants
        ((SecondMoment(),), ())
    """

    rank: int | None = None
    keep: float = 0.5
    inputs: Literal["activation", "none"] = "activation"
    ridge: float = 1e-4

    by_rows = False
    paper = Paper(None, "SVD-LLM V2: optimizing singular value truncation", 2025, "2503.12340")
    needs = Needs.INPUTS
    taxonomy = ("factorization", "post-training", "low rank", "activation-aware")

    def __post_init__(self) -> None:
        if self.rank is not None and (type(self.rank) is not int or self.rank < 1):
            raise UsageError(f"rank must be a whole number of at least 1, found {self.rank!r}")
        if not 0 < self.keep < 1:
            raise UsageError(
                f"keep is the share of parameters that stay, above 0 and below 1, found {self.keep!r}"
            )
        if self.inputs not in ("activation", "none"):
            raise UsageError(f"inputs must be 'activation' or 'none', found {self.inputs!r}")
        if not self.ridge >= 0:
            raise UsageError(f"ridge must be at least 0, found {self.ridge!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),) if self.inputs == "activation" else ()

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) as two factors, or dense where they would not be smaller."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1)  # (m, n)
        m, n = rows.shape
        rank = self.rank or rank_for(m, n, self.keep)
        if not saves(m, n, rank):
            stats.note(
                f"factors of rank {rank} have no fewer parameters than {m} x {n}: left dense"
            )
            return Dense(weight.clone())
        moment = stats.mean(SecondMoment()) if self.wants else None
        return low_rank(weight, *best_factors(rows, moment, rank, self.ridge))

    def options(self) -> tuple[Self, ...]:
        """0.9 to 0.1 of the parameters kept."""
        return tuple(replace(self, rank=None, keep=keep) for keep in KEEPS)

    def between(self, other: Self, share: float) -> Self | None:
        """At a share of parameters `share` of the way to the other's."""
        keep = round(self.keep + share * (other.keep - self.keep), 6)
        return replace(self, rank=None, keep=keep)
