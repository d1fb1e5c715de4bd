"""EoRA: two factors of low rank beside a compressed weight, that give back most of what its outputs lost."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment, Statistic
from laconic.errors import UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.parallel import one_thread
from laconic.numerics.svd import whitened_svd
from laconic.tensors import CompressedTensor, Dense, IntQuantizer, LowRank, Sum
from laconic.tensors.stored import Record

FACTOR_GROUP = 128  # columns of the second factor that share a scale


@dataclass(frozen=True)
class EoRA(LayerMethod):
    """Adds factors of low rank to what a method before it left, which give back most of the outputs.

        D = W - W',  H = E[x x^T] = L L^T;  U_r S_r V_r^T = top r of svd(D L);  W'' = W' + U_r S_r V_r^T L^-1

    No factors of rank r bring the outputs nearer to those of the dense weight. It stands behind any method
    in a recipe: `[gptq, eora]`, `[sparsegpt, eora]`.

    Args:
        rank: of every layer, at least 1; layers whose sides are smaller get their own.
        bits: of the factors: 16 leaves them as they are; 8 or 4 put the first on a grid for each row and,
            fitted to that, the second on grids of 128 columns.
        damp: added to the diagonal of H as a share of its mean, at least 0; raised until H has a factor.

    Example:
        >>> EoRA(rank=64).wants
        (SecondMoment(),)
    """

    rank: int = 32
    bits: Literal[16, 8, 4] = 16
    damp: float = 1e-4

    by_rows = False
    paper = Paper(15, "EoRA: training-free compensation for compressed LLMs", 2024, "2410.21271")
    needs = Needs.INPUTS
    taxonomy = ("factorization", "post-training", "low rank", "compensation")

    def __post_init__(self) -> None:
        if type(self.rank) is not int or self.rank < 1:
            raise UsageError(f"rank must be a whole number of at least 1, found {self.rank!r}")
        if self.bits not in (16, 8, 4):
            raise UsageError(f"bits must be 16, 8 or 4, found {self.bits!r}")
        if not self.damp >= 0:
            raise UsageError(f"damp must be at least 0, found {self.damp!r}")

    @property
    def wants(self) -> tuple[Statistic, ...]:
        return (SecondMoment(),)

    def revise(self, weight: Tensor, record: Record, stats: LayerStats) -> Record:
        """`record` and the factors of what it lacks of `weight`."""
        check_finite("the weight", weight)
        if isinstance(record.weight, Dense):
            raise UsageError(
                f"{stats.layer.name} is dense: eora makes up for what another method lost, and stands "
                "behind it in a recipe, such as [gptq, eora]"
            )
        whole = weight if record.transform is None else record.transform.fold(weight)
        lost = (whole.float() - record.weight.dense(torch.float32)).reshape(len(weight), -1)
        rank = min(self.rank, *lost.shape)
        if rank < self.rank:
            stats.note(f"rank {rank}: the weight is {lost.shape[0]} x {lost.shape[1]}")
        left, right = whitened_svd(lost, stats.mean(SecondMoment()), rank, damp=self.damp)
        factors = self._factors(lost, left, right, weight)
        return replace(record, weight=Sum((record.weight, factors)))

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """Refused: there is nothing that was lost."""
        raise UsageError(
            "eora makes up for what another method lost, and stands behind it in a recipe"
        )

    def options(self) -> tuple["EoRA", ...]:
        """Ranks 128 to 8, halving."""
        return tuple(replace(self, rank=rank) for rank in (128, 64, 32, 16, 8))

    def _factors(self, lost: Tensor, left: Tensor, right: Tensor, like: Tensor) -> LowRank:
        kernel = tuple(like.shape[2:])
        if self.bits == 16:
            a, b = (Dense(part.to(like.dtype).contiguous()) for part in (left, right))
            return LowRank(a, b, kernel)
        length = left.norm(dim=0).clamp(min=torch.finfo(left.dtype).tiny)  # sizes go to the second
        first = IntQuantizer(self.bits, "row", range="mse").quantize((left / length).to(like.dtype))
        with one_thread():
            again = torch.linalg.lstsq(first.dense(left.dtype), lost.to(left.dtype)).solution
        second = IntQuantizer(self.bits, FACTOR_GROUP, range="mse").quantize(again.to(like.dtype))
        return LowRank(first, second, kernel)
