"""`ShiftQuantizer`: rounds blocks of a matrix to integers times a power of two of their own."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from laconic.errors import UsageError
from laconic.numerics.integers.shifts import FARTHEST, unclipped_shift
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.packing import PRECISION, matrix, matrix_shape
from laconic.tensors.quantizer import Quantizer, register_quantizer
from laconic.tensors.shifted import Shifted, spread_blocks

AT_ONCE = 1 << 22  # values whose shifts are searched together: bounds the memory
LARGEST_MIDDLE = 65504.0  # that float16 holds


class Shifts(NamedTuple):
    """What the blocks of a matrix (R, C) share.

    Attributes:
        shift: (I, J) int8: values are `code 2^-shift + middle`.
        middle: (I, J) float32 values that float16 holds; None where all are 0.
        block: rows and columns of a block.
    """

    shift: Tensor
    middle: Tensor | None
    block: tuple[int, int]


@dataclass(frozen=True)
class ShiftQuantizer(Quantizer[Shifts]):
    """Rounds each block of rows x columns to `code 2^-e + z`, so that products need no multiplied scales.

    The shift e is the largest with which nothing is clipped, `floor(log2((2^(bits-1) - 1) / max|x|))`, or
    the one of the `search` shifts from there with the least squared error. The middle z is 0, or the
    block's mean where that loses less.

    Args:
        bits: 2 to 16; 16 for sums on their way, which nothing stores.
        rows: of a block, at least 1.
        columns: of a block, at least 1.
        search: shifts that are tried, 1 to 4; 1 never clips.
        middle: whether blocks may have a middle other than 0.

    Source: BCT (Dong et al., 2023, arXiv 2304.01483); the search is ours.

    Example:
        >>> ShiftQuantizer(bits=3, search=1).project(torch.tensor([[1.4, -0.6, 0.2]]))
        tensor([[ 1.5000, -0.5000,  0.0000]])
    """

    bits: int = 4
    rows: int = 64
    columns: int = 64
    search: int = 3
    middle: bool = False

    kind = "shift-block"

    def __post_init__(self) -> None:
        limits = {"bits": (2, 16), "rows": (1, None), "columns": (1, None), "search": (1, 4)}
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if type(value) is not int or value < low or (high is not None and value > high):
                raise UsageError(
                    f"{name} must be a whole number in {low}..{high or ''}, found {value!r}"
                )

    @property
    def top(self) -> int:
        """The largest code; the least is its negative."""
        return int(2 ** (self.bits - 1)) - 1

    def fit(self, x: Tensor) -> Shifts:
        """The shift (and middle) of each block of `x` (R, ...)."""
        rows = matrix(x)
        block = min(self.rows, max(1, rows.shape[0])), min(self.columns, max(1, rows.shape[1]))
        step = max(1, AT_ONCE // max(1, block[0] * rows.shape[1])) * block[0]
        parts = [self._fit(part, block) for part in torch.split(rows, step)]
        middles = [part.middle for part in parts if part.middle is not None]
        return Shifts(
            torch.cat([part.shift for part in parts]),
            torch.cat(middles) if middles else None,
            block,
        )

    def encode(self, x: Tensor, params: Shifts) -> Tensor:
        """Signed codes of `x`, same shape: int8 up to 8 bits, int16 above."""
        rows = matrix(x)
        scale, middle = _spread(params, x)
        steps = (rows if middle is None else rows - middle) / scale
        codes = steps.round_().clamp_(-self.top, self.top)
        return codes.to(torch.int8 if self.bits <= 8 else torch.int16).reshape(x.shape)

    def decode(self, codes: Tensor, params: Shifts) -> Tensor:
        """The values of `codes`, same shape, float32."""
        scale, middle = _spread(params, codes)
        values = matrix(codes) * scale
        return (values if middle is None else values + middle).reshape(codes.shape)

    def pack(self, codes: Tensor, params: Shifts, like: Tensor) -> CompressedTensor:
        """A `Shifted` tensor."""
        rows, columns = params.block
        return Shifted.from_codes(
            codes, params.shift, params.middle,
            bits=self.bits, rows=rows, columns=columns, dtype=like.dtype,
        )  # fmt: skip

    def project(self, x: Tensor) -> Tensor:
        """The nearest values, in the dtype of `x`; blocks that hold what is not finite become NaN."""
        finite = torch.isfinite(x)
        if bool(finite.all()):
            return super().project(x) if self.middle else self._project(x)
        clean = super().project(torch.where(finite, x, 0))
        rows = matrix(finite)
        block = min(self.rows, rows.shape[0]), min(self.columns, rows.shape[1])
        whole = _blocks(1 - rows, block).amax((1, 3)) == 0
        return torch.where(
            spread_blocks(whole, matrix_shape(x.shape), block).reshape(x.shape), clean, torch.nan
        )

    def _project(self, x: Tensor) -> Tensor:
        """The same as to codes and back, on blocks as they lie: inputs of layers are rounded so."""
        params, rows = self.fit(x), matrix(x)
        values = _blocks(rows, params.block)
        scale = torch.exp2(-params.shift.to(PRECISION))[:, None, :, None]
        rounded = (values / scale).round_().clamp_(-self.top, self.top).mul_(scale).add_(0.0)
        tall, r, wide, c = values.shape
        whole = rounded.reshape(tall * r, wide * c)
        return whole[: rows.shape[0], : rows.shape[1]].reshape(x.shape).to(x.dtype)

    def _fit(self, rows: Tensor, block: tuple[int, int]) -> Shifts:
        values = _blocks(rows, block)  # (I, r, J, c)
        if values.numel() == 0:
            empty = values.new_zeros(values.shape[0], values.shape[2])
            return Shifts(empty.to(torch.int8), empty if self.middle else None, block)
        shift, lost = self._search(values)
        if not self.middle:
            return Shifts(shift.to(torch.int8), None, block)
        inside = _blocks(torch.ones_like(rows), block)
        mean = values.sum((1, 3)) / inside.sum((1, 3))
        mean = torch.where(mean.abs() < LARGEST_MIDDLE, mean, 0).to(torch.float16).to(PRECISION)
        other, less = self._search((values - mean[:, None, :, None]) * inside)
        better = less < lost
        shift = torch.where(better, other, shift).to(torch.int8)
        return Shifts(shift, torch.where(better, mean, 0), block)

    def _search(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """The best shift (I, J) of blocks (I, r, J, c), and the squared error with it, float64."""
        first = unclipped_shift(values.abs().amax((1, 3)), self.top)
        first = first.clamp(-FARTHEST, FARTHEST - self.search + 1)
        if self.search == 1 and not self.middle:
            return first, torch.zeros_like(first)
        steps = values * torch.exp2(first.to(PRECISION))[:, None, :, None]
        best, least = torch.zeros_like(first), None
        for extra in range(self.search):  # errors in steps of the first: squares do not overflow
            codes = (steps * 2**extra).round_().clamp_(-self.top, self.top)
            lost = codes.mul_(2.0**-extra).sub_(steps).square_().sum((1, 3))
            if least is None:
                least = lost
                continue
            best = torch.where(lost < least, extra, best)
            least = torch.minimum(lost, least)
        assert least is not None
        return first + best, least.double() * torch.exp2(-2.0 * first.double())


def _blocks(rows: Tensor, block: tuple[int, int]) -> Tensor:
    """`rows` (R, C) as (I, r, J, c); ragged blocks are filled with zeros."""
    r, c = block
    padded = F.pad(rows, (0, -rows.shape[1] % c, 0, -rows.shape[0] % r))
    return padded.reshape(padded.shape[0] // r, r, padded.shape[1] // c, c)


def _spread(params: Shifts, like: Tensor) -> tuple[Tensor, Tensor | None]:
    """Scale and middle for every value of `like` as a matrix (R, C)."""
    shape = matrix_shape(like.shape)
    scale = spread_blocks(torch.exp2(-params.shift.to(PRECISION)), shape, params.block)
    if params.middle is None:
        return scale, None
    return scale, spread_blocks(params.middle, shape, params.block)


register_quantizer(ShiftQuantizer)
