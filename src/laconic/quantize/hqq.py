"""HQQ: half-quadratic quantization, zero points found from the weights alone."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.errors import BadWeights, UsageError
from laconic.method import LayerMethod, Needs, Paper
from laconic.tensors import CompressedTensor, Dense, Grouped, IntQuantizer, LowRank
from laconic.tensors.combined import Sum
from laconic.tensors.integer import WEIGHTS_AT_ONCE, Grid
from laconic.tensors.packing import check_whole, grouped, spread

NORM = 0.7  # p of the l_p norm that few large errors cost less under
BETA, KAPPA = 10.0, 1.01  # weight of the coupling, and its growth an iteration


@dataclass(frozen=True)
class HQQ(LayerMethod):
    """Rounds to grids between the extremes whose zero points lose least in the l_0.7 norm.

        e = shrink(w - w');  z = mean(q - (w - e) / s), over each group, in turn with q = round(w / s + z)

    Needs no data. Scales span the extremes of a group and stay; zero points z are real numbers. They
    are kept as an offset of each group (a sum of the integer grid and a matrix of low rank), at 16 bits
    a group in files; in memory the low rank takes 16 bits more for each group and column.

    Args:
        bits: 2 to 8.
        group: columns that share a scale and a zero point, or `"row"`.
        zero: `"real"`, or `"integer"`: rounded at the end, for formats that hold no others.
        iterations: at most, at least 1; a group stops when its mean error grows.

    Example:
        >>> from laconic.tensors.combined import Sum
        >>> weight = torch.tensor([[0.0, 0.5, 1.0, 1.5]])
        >>> HQQ(bits=2, group="row").compress_weight(weight).dense()
        tensor([[0.0000, 0.5000, 1.0000, 1.5000]])
    """

    bits: int = 4
    group: int | Literal["row"] = 64
    zero: Literal["real", "integer"] = "real"
    iterations: int = 20

    paper = Paper(None, "Half-quadratic quantization of large machine learning models", 2023)
    needs = Needs.NOTHING
    taxonomy = ("quantization", "post-training", "weight-only", "uniform")

    def __post_init__(self) -> None:
        if self.group not in ("row",) and not isinstance(self.group, int):
            raise UsageError(f"group must be a number >= 1 or 'row', found {self.group!r}")
        if self.zero not in ("real", "integer"):
            raise UsageError(f"zero must be 'real' or 'integer', found {self.zero!r}")
        check_whole("iterations", self.iterations, 1)
        self.quantizer()

    def quantizer(self) -> IntQuantizer:
        """The grid that the search starts from; checks the settings."""
        return IntQuantizer(self.bits, self.group, symmetric=False)

    def compress_weight(self, weight: Tensor, stats: LayerStats | None = None) -> CompressedTensor:
        """`weight` (out, in, ...) on its grid."""
        if not torch.isfinite(weight).all():
            raise BadWeights("the tensor holds NaN or infinity, which no grid represents")
        rows, quantizer = weight.reshape(weight.shape[0], -1).float(), self.quantizer()  # (R, C)
        parts = torch.split(rows, max(1, WEIGHTS_AT_ONCE // max(1, rows.shape[1])))
        grids = [quantizer.fit(part) for part in parts]
        zeros = [half_quadratic(p, g, self.bits, self.iterations) for p, g in zip(parts, grids)]
        grid = Grid(torch.cat([g.scale for g in grids]), torch.cat(zeros), grids[0].group)
        return (self._real if self.zero == "real" else self._integer)(weight, rows, grid)

    def _integer(self, weight: Tensor, rows: Tensor, grid: Grid) -> CompressedTensor:
        rounded = grid._replace(zero=grid.zero.round().clamp(0, 2**self.bits - 1))
        quantizer = self.quantizer()
        return quantizer.pack(
            quantizer.encode(rows, rounded).reshape(weight.shape), rounded, weight
        )

    def _real(self, weight: Tensor, rows: Tensor, grid: Grid) -> CompressedTensor:
        """A grid around zero, and the group's offset from it as a product of rank G."""
        middle = 2.0 ** (self.bits - 1)
        offset = ((middle - grid.zero) * grid.scale).bfloat16()  # (R, G)
        owner = torch.arange(rows.shape[1], device=rows.device) // grid.group
        member = owner == torch.arange(offset.shape[1], device=rows.device)[:, None]  # (G, C)
        scale = spread(grid.scale, rows.shape[1], grid.group)
        steps = (rows - spread(offset.float(), rows.shape[1], grid.group)) / scale
        codes = (steps.round() + middle).clamp(0, 2**self.bits - 1).reshape(weight.shape)
        whole = Grouped.from_codes(
            codes, grid.scale, None, bits=self.bits, group=grid.group, dtype=weight.dtype
        )
        factors = Dense(offset), Dense(member.bfloat16())
        return Sum((whole, LowRank(*factors, kernel=tuple(weight.shape[2:]))))

    def options(self) -> tuple["HQQ", ...]:
        """2 to 8 bits, each per row and in groups of 64."""
        groups: tuple[int | Literal["row"], ...] = ("row", 64)
        return tuple(replace(self, bits=b, group=g) for b in range(2, 9) for g in groups)


def half_quadratic(rows: Tensor, grid: Grid, bits: int, iterations: int) -> Tensor:
    """The zero point of each group of `rows` (R, C), (R, G) real numbers, from those of `grid`.

    Errors are counted in steps of the grid, so that equal weights in other units have equal zero
    points.
    """
    values = grouped(rows, grid.group) / grid.scale.unsqueeze(-1)  # (R, G, group) in steps
    used = grouped(torch.ones_like(rows[:1]), grid.group)  # (1, G, group) 0 behind a ragged end
    count = used.sum(dim=-1)
    zero, beta = grid.zero, BETA
    best, least = zero, torch.full_like(zero, torch.inf)
    for _ in range(iterations):
        codes = (values + zero.unsqueeze(-1)).round_().clamp_(0, 2**bits - 1)
        lost = (values - (codes - zero.unsqueeze(-1))) * used
        error = lost.abs().sum(dim=-1)
        better = error < least
        best, least = torch.where(better, zero, best), torch.where(better, error, least)
        sparse = shrink(lost, beta)
        zero = ((codes - values + sparse) * used).sum(dim=-1) / count
        beta *= KAPPA
    return best


def shrink(x: Tensor, beta: float) -> Tensor:
    """The generalised soft threshold of the l_p norm: `sign(x) max(0, |x| - |x|^(p-1) / beta)`."""
    size = x.abs()
    return x.sign() * (size - size.clamp(min=1e-8) ** (NORM - 1) / beta).clamp(min=0)
