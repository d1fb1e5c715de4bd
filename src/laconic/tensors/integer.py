"""`IntQuantizer`: uniform grids of 2 to 8 bits, ranges by extremes or by least squared error."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.golden import golden_section
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.grouped import Grouped
from laconic.tensors.packing import PRECISION, grouped, matrix, spread
from laconic.tensors.quantizer import Quantizer, register_quantizer

SMALLEST_CLIP = 0.2  # of the range, where the search for the least error ends
SMALLEST_SCALE = torch.finfo(torch.bfloat16).tiny
WEIGHTS_AT_ONCE = 1 << 22  # weights whose ranges are searched together: bounds the memory

Group = int | Literal["row", "tensor"]


class Grid(NamedTuple):
    """Where the values of each group lie: `(code - zero) * scale`.

    Attributes:
        scale: (R, G) float32 values that bfloat16 can hold, not 0; (1, 1) for a whole tensor.
        zero: same shape, whole numbers, float32.
        group: columns a group.
    """

    scale: Tensor
    zero: Tensor
    group: int


@dataclass(frozen=True)
class IntQuantizer(Quantizer[Grid]):
    """Rounds to a uniform grid per group of a row, per row, or per tensor.

    Both kinds of grids use all 2^bits codes. Symmetric ones have their zero at 2^(bits-1); the side with
    one value more is that of the greater extreme, so that scales are negative where that is the positive
    one. Asymmetric ones lie between the extremes (zero included), with a zero point.

    Args:
        bits: 2 to 8.
        group: columns that share a scale (the last group of a row may be shorter), `"row"` or
            `"tensor"`.
        symmetric: see above.
        range: `"minmax"` spans the extremes; `"mse"` shrinks them by the factor in [0.2, 1] that
            makes the squared error of the group least (golden section).

    Example:
        >>> IntQuantizer(bits=2, group="row").project(torch.tensor([[2.0, 0.9, -1.0]]))
        tensor([[ 2.,  1., -1.]])
    """

    bits: int = 4
    group: Group = 64
    symmetric: bool = True
    range: Literal["minmax", "mse"] = "minmax"

    kind = "int"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise UsageError(f"bits must be a whole number in 2..8, found {self.bits!r}")
        if self.group not in ("row", "tensor") and not (
            isinstance(self.group, int) and self.group >= 1
        ):
            raise UsageError(
                f"group must be a number >= 1, 'row' or 'tensor', found {self.group!r}"
            )
        if self.range not in ("minmax", "mse"):
            raise UsageError(f"range must be 'minmax' or 'mse', found {self.range!r}")

    def fit(self, x: Tensor) -> Grid:
        """The grid of each group of `x` (R, ...)."""
        rows = matrix(x)
        group = self._group_size(rows)
        if self.group == "tensor":
            whole = rows.reshape(1, -1) if rows.numel() else rows.new_zeros(1, 1)
            extremes = _extremes(whole, whole.shape[1])
            if self.range == "mse":
                return self._search(whole.unsqueeze(1), *extremes, group)
            return self.grid(*extremes, group)
        if self.range == "minmax":
            return self.grid(*_extremes(rows, group), group)
        step = max(1, WEIGHTS_AT_ONCE // max(1, rows.shape[1]))
        grids = [
            self._search(grouped(part, group), *_extremes(part, group), group)
            for part in torch.split(rows, step)
        ]
        return Grid(torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]), group)

    def encode(self, x: Tensor, params: Grid) -> Tensor:
        """Codes of `x`, same shape, uint8."""
        scale, zero = _spread(params, matrix(x))
        codes = (matrix(x) / scale).round_().add_(zero)
        return codes.clamp_(*self.code_range).to(torch.uint8).reshape(x.shape)

    def decode(self, codes: Tensor, params: Grid) -> Tensor:
        """The values of `codes`, same shape, float32."""
        scale, zero = _spread(params, matrix(codes))
        return ((matrix(codes) - zero) * scale).reshape(codes.shape)

    def pack(self, codes: Tensor, params: Grid, like: Tensor) -> CompressedTensor:
        """A `Grouped` tensor."""
        zero = None if self.symmetric else params.zero
        return Grouped.from_codes(
            codes, params.scale, zero, bits=self.bits, group=params.group, dtype=like.dtype
        )

    @property
    def code_range(self) -> tuple[int, int]:
        """Least and greatest code."""
        return 0, 2**self.bits - 1

    def _group_size(self, rows: Tensor) -> int:
        columns = max(1, rows.shape[1])
        return columns if isinstance(self.group, str) else min(self.group, columns)

    def grid(self, low: Tensor, high: Tensor, group: int) -> Grid:
        """The grid that spans [low, high] (R, G); scales rounded to bfloat16, never subnormal."""
        low, high = low.clamp(max=0), high.clamp(min=0)
        half = 2 ** (self.bits - 1)
        if self.symmetric:
            step = _storable(reaching(low, high, half, half - 1))
            scale = torch.where(high >= -low, -step, step)
            return Grid(scale, torch.full_like(scale, half), group)
        scale = _storable((high - low) / (2**self.bits - 1))
        return Grid(scale, (-low / scale).round().clamp(0, 2**self.bits - 1), group)

    def _search(self, values: Tensor, low: Tensor, high: Tensor, group: int) -> Grid:
        """The clipped grid with the least squared error over `values` (R, G, group).

        Errors are counted in steps of the unclipped grid: squares of the values themselves would
        vanish or overflow from 1e-19 and 1e19.
        """
        step = self.grid(low, high, group).scale
        steps = values / step.unsqueeze(-1)

        def loss(clip: Tensor) -> Tensor:
            grid = self.grid(low * clip, high * clip, group)
            scale, zero = (grid.scale / step).unsqueeze(-1), grid.zero.unsqueeze(-1)
            codes = (steps / scale).round_().add_(zero).clamp_(*self.code_range)
            return codes.sub_(zero).mul_(scale).sub_(steps).square_().sum(dim=-1)

        clip = golden_section(loss, SMALLEST_CLIP, 1.0, tuple(low.shape), device=low.device)
        return self.grid(low * clip, high * clip, group)


def reaching(low: Tensor, high: Tensor, most: float, least: float) -> Tensor:
    """Steps with which values from low (at most 0) to high (at least 0) lie on a grid around zero.

    Args:
        low: least values.
        high: greatest values, same shape.
        most: steps from zero to the grid's end on the side of the greater extreme.
        least: on the other side.
    """
    above, below = torch.maximum(high, -low), torch.minimum(high, -low)
    return torch.maximum(above / most, below / least)


def _storable(scale: Tensor) -> Tensor:
    return scale.to(torch.bfloat16).to(PRECISION).clamp(min=SMALLEST_SCALE)


def _extremes(rows: Tensor, group: int) -> tuple[Tensor, Tensor]:
    """(R, G) least and greatest value; zero counts as a value, since every grid holds it."""
    values = grouped(rows, group)
    if values.numel() == 0:
        return (values.new_zeros(values.shape[:2]),) * 2
    return values.amin(dim=-1).clamp(max=0), values.amax(dim=-1).clamp(min=0)


def _spread(grid: Grid, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and zero for every column of `rows` (R, C)."""
    columns = rows.shape[1]
    return spread(grid.scale, columns, grid.group), spread(grid.zero, columns, grid.group)


register_quantizer(IntQuantizer)
