"""OBR: zeros and a grid together, each error taken up by the weights that can still move."""

from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from torch import Tensor

from laconic.calibrate.layer_stats import LayerStats
from laconic.calibrate.statistics import SecondMoment
from laconic.errors import UsageError
from laconic.method import Paper
from laconic.numerics._checks import check_finite
from laconic.numerics.absorb import absorb_error
from laconic.numerics.obs import grid_sweep, ordered_factor
from laconic.quantize._swept import GridSweep, grid_of
from laconic.tensors import CompressedTensor, Grouped, patterns
from laconic.tensors.integer import Grid
from laconic.tensors.masked import MaskedCodes


@dataclass(frozen=True)
class OBR(GridSweep):
    """Zeros half of each row and rounds the rest, the errors of both taken up in closed form by what can move.

        H = E[x x^T];  of an error e in weights E, the others R take up H_RR^-1 H_RE e_E:
        first E = the zeros (those with the least |w| ||x||) and R = what is kept; then, on the grid of what
        came out, E = the kept weights of the first columns and R = those behind; these are swept as by gptq

    Args:
        bits: 2 to 8.
        group: columns that share a scale, `"row"` or `"tensor"`.
        symmetric: a grid around zero; otherwise between the extremes, with a zero point.
        range: how a group's range is found: `"minmax"` or `"mse"`.
        damp: added to the diagonal of H as a share of its mean, above 0; raised until H has a factor.
        sparsity: share of zeros, 0 to below 1; a pattern n:m has its own, 1 - n/m.
        pattern: `row`, as many zeros in each; or `n:m`, which keeps n of every m neighbours, m up to 16.
        order: which columns come first: those whose inputs have the most energy (`"activation"`), or as they
            are (`"natural"`, the paper's).
        alpha: share of the columns that come first, 0 to 1; 0 sweeps all. The paper's is 0.5, in natural order.
        tail: how the columns behind are rounded: swept as by `"gptq"`, or to the nearest (`"rtn"`).
        rescale: whether the grid is fitted to the weights after they took up the zeros; the paper's is
            fitted before.

    Example:
        >>> OBR(pattern="2:4").wants
        (SecondMoment(),)
    """

    group: int | Literal["row", "tensor"] = "row"
    sparsity: float = patterns.DEFAULT
    pattern: str = "row"
    order: Literal["natural", "activation"] = "activation"
    alpha: float = 0.0
    tail: Literal["gptq", "rtn"] = "gptq"
    rescale: bool = True

    paper = Paper(
        16,
        "Optimal brain restoration for joint quantization and sparsification",
        2025,
        "2509.11177",
    )
    taxonomy = ("quantization", "pruning", "post-training", "joint", "error feedback")

    def __post_init__(self) -> None:
        super().__post_init__()
        patterns.check(self.sparsity, self.pattern, shares=("row",))
        if not 0 <= self.alpha <= 1:
            raise UsageError(f"alpha must be between 0 and 1, found {self.alpha!r}")
        if self.order not in ("natural", "activation"):
            raise UsageError(f"order must be 'natural' or 'activation', found {self.order!r}")
        if self.tail not in ("gptq", "rtn"):
            raise UsageError(f"tail must be 'gptq' or 'rtn', found {self.tail!r}")

    def compress_weight(self, weight: Tensor, stats: LayerStats) -> CompressedTensor:
        """`weight` (out, in, ...) with zeros, the rest on its grid."""
        check_finite("the weight", weight)
        rows = weight.reshape(weight.shape[0], -1).float()  # (R, C)
        stats.note(patterns.ragged_note(rows.shape[1], self.pattern))
        moment = stats.mean(SecondMoment())
        kept, dense = stats.keep(), rows
        if kept is None:
            score = rows.abs() * moment.diagonal().clamp(min=0).sqrt().to(rows)
            kept = patterns.keep_greatest(score, self.sparsity, self.pattern)
            rows = rows + absorb_error(rows * ~kept, moment, kept, self.damp).to(rows)
            rows = rows * kept
        grid = self.quantizer().fit((rows if self.rescale else dense).reshape(weight.shape))
        codes = self._codes(rows, moment, grid, kept, stats)
        zero = None if self.symmetric else grid.zero
        whole = Grouped.from_codes(
            codes.reshape(weight.shape), grid.scale, zero,
            bits=self.bits, group=grid.group, dtype=weight.dtype,
        )  # fmt: skip
        mask = stats.mask or patterns.mask(kept.reshape(weight.shape), self.pattern)
        return MaskedCodes.of(whole, mask)

    def codes(self, rows: Tensor, moment: Tensor, grid: Grid, stats: LayerStats) -> Tensor:
        """Codes (R, C) of `rows` (R, C), all of which are kept: see `GridSweep`."""
        return self._codes(rows, moment, grid, torch.ones_like(rows, dtype=torch.bool), stats)

    def options(self) -> tuple[Self, ...]:
        """2 to 8 bits, per row, with the same zeros."""
        return tuple(replace(self, bits=bits) for bits in range(2, 9))

    def _codes(
        self, rows: Tensor, moment: Tensor, grid: Grid, keep: Tensor, stats: LayerStats
    ) -> Tensor:
        """Codes (R, C) of `rows`, which are zero outside of `keep`."""
        quantizer = self.quantizer()
        order, factor = ordered_factor(moment, self.order, self.damp)
        split = round(self.alpha * len(order))
        first = order.argsort() < split
        error = (rows - quantizer.decode(quantizer.encode(rows, grid), grid)) * (keep & first)
        moved = rows + absorb_error(error, moment, keep & ~first, self.damp).to(rows)
        codes = quantizer.encode(moved, grid)
        if self.tail == "gptq" and split < len(order):
            stats.note(factor.raised(self.damp))
            behind = order[split:]
            each = grid_of(behind, grid, quantizer)
            upper = factor.factor[split:, split:]
            swept = grid_sweep(moved[:, behind], upper, each, keep=keep[:, behind])
            assert swept.codes is not None
            codes[:, behind] = swept.codes
        return codes
