"""`BinaryQuantizer`: weights to sums of scaled signs, greedily, then scales and signs in turn."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.parallel import one_thread
from laconic.tensors.binary import Binary
from laconic.tensors.compressed import CompressedTensor
from laconic.tensors.integer import WEIGHTS_AT_ONCE
from laconic.tensors.packing import PRECISION, grouped, matrix
from laconic.tensors.quantizer import Quantizer, register_quantizer

Pair = tuple[Tensor, Tensor]  # scales (q, R, G) and offsets (R, G)
RIDGE = 1e-6  # of a group's size: planes that came out alike still have scales


class BinaryGrid(NamedTuple):
    """The levels of each group: the offset plus or minus each scale.

    Attributes:
        alpha: (q, R, G) bfloat16, at least 0, the greatest first.
        offset: (R, G) bfloat16, or None.
        group: columns a group.
    """

    alpha: Tensor
    offset: Tensor | None
    group: int


@dataclass(frozen=True)
class BinaryQuantizer(Quantizer[BinaryGrid]):
    """Approximates each group of a row by a sum of scaled sign vectors (binary coding).

    A greedy start takes the sign and the mean magnitude of what is left, plane after plane; then the
    scales are solved for by least squares and the signs picked anew, in turn (Xu et al., 2018,
    arXiv 1802.00150, algorithm 2). Because that ends near where it started, it is done from scales
    that halve from plane to plane as well (a uniform grid, better from 4 bits on), and each group
    keeps the best of the three.

    Args:
        bits: planes of signs, 1 to 8.
        group: columns that share the scales, a multiple of 8, or `"row"`.
        offset: whether each group has a constant as well.
        iterations: of the refinement, at least 0; it ends sooner where no sign changes.

    Example:
        >>> BinaryQuantizer(bits=2).project(torch.tensor([[3.0, -3.0, 1.0, -1.0]]))
        tensor([[ 3., -3.,  1., -1.]])
    """

    bits: int = 3
    group: int | Literal["row"] = "row"
    offset: bool = False
    iterations: int = 15

    kind = "binary"

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise UsageError(f"bits must be a whole number in 1..8, found {self.bits!r}")
        if self.group != "row" and not (
            isinstance(self.group, int) and self.group >= 8 and self.group % 8 == 0
        ):
            raise UsageError(f"group must be a multiple of 8 or 'row', found {self.group!r}")
        if not isinstance(self.iterations, int) or self.iterations < 0:
            raise UsageError(f"iterations must be a number >= 0, found {self.iterations!r}")

    def fit(self, x: Tensor) -> BinaryGrid:
        """The scales of each group of `x` (R, ...)."""
        rows = matrix(x)
        columns = max(1, rows.shape[1])
        group = columns if isinstance(self.group, str) else min(self.group, columns)
        step = max(1, WEIGHTS_AT_ONCE // (self.bits * columns))
        parts = [self._fit(part, group) for part in torch.split(rows, step)]
        alpha = torch.cat([part[0] for part in parts], dim=1)
        offset = torch.cat([part[1] for part in parts])
        return BinaryGrid(alpha, offset if self.offset else None, group)

    def encode(self, x: Tensor, params: BinaryGrid) -> Tensor:
        """Codes of `x`, same shape, uint8: bit i is the sign of plane i."""
        rows = matrix(x)
        values = grouped(rows, params.group)
        codes = _nearest(values, params.alpha.to(PRECISION), _wide(params.offset))
        return codes.flatten(1)[:, : rows.shape[1]].reshape(x.shape)

    def decode(self, codes: Tensor, params: BinaryGrid) -> Tensor:
        """The values of `codes`, same shape, float32."""
        return self._tensor(codes, params, PRECISION).dense()

    def pack(self, codes: Tensor, params: BinaryGrid, like: Tensor) -> CompressedTensor:
        """A `Binary` tensor."""
        return self._tensor(codes, params, like.dtype)

    def _tensor(self, codes: Tensor, params: BinaryGrid, dtype: torch.dtype) -> Binary:
        return Binary.from_codes(
            codes, params.alpha, params.offset, group=params.group, dtype=dtype
        )

    def _fit(self, rows: Tensor, group: int) -> Pair:
        """Scales (q, R, G) and offsets (R, G), bfloat16, the best of greedy and refined ones."""
        values = grouped(rows, group)
        real = grouped(torch.ones_like(rows[:1]), group)  # 0 behind the end of a ragged row
        if not values.numel():
            empty = values.new_zeros(values.shape[:2], dtype=torch.bfloat16)
            return empty.expand(self.bits, *empty.shape), empty
        magnitude = values.abs().amax(-1).clamp(min=torch.finfo(PRECISION).tiny)
        w = (values / magnitude.unsqueeze(-1)).nan_to_num(nan=0.0)
        greedy = _greedy(w, real, self.bits, self.offset)
        tried = [greedy]
        if self.iterations:
            for start in (greedy, _uniform(w, self.bits)):
                tried.append(_refined(w, real, *start, self.offset, self.iterations))
        best, least = _kept(greedy, magnitude), torch.full_like(magnitude, torch.inf)
        for pair in tried:
            kept = _kept(pair, magnitude)
            loss = _loss(w, real, kept, magnitude)
            better = loss < least
            best = torch.where(better, kept[0], best[0]), torch.where(better, kept[1], best[1])
            least = torch.where(better, loss, least)
        return best


def _greedy(w: Tensor, real: Tensor, bits: int, with_offset: bool) -> Pair:
    """Scales (q, R, G) and offsets (R, G) of `w` (R, G, n), one plane after the other."""
    count = real.sum(-1)
    offset = w.sum(-1) / count if with_offset else w.new_zeros(w.shape[:2])
    rest = (w - offset.unsqueeze(-1)) * real
    alpha = []
    for _ in range(bits):
        alpha.append(rest.abs().sum(-1) / count)
        rest = (rest - torch.where(rest < 0, -1.0, 1.0) * alpha[-1].unsqueeze(-1)) * real
    return torch.stack(alpha), offset


def _uniform(w: Tensor, bits: int) -> Pair:
    """Scales (q, R, G) and offsets (R, G) of a uniform grid from -1 to 1."""
    zero = w.new_zeros(w.shape[:2])
    halves = 2.0 ** torch.arange(bits - 1, -1, -1, device=w.device) / (2**bits - 1)
    return halves[:, None, None] + zero, zero


def _refined(
    w: Tensor, real: Tensor, alpha: Tensor, offset: Tensor, with_offset: bool, iterations: int
) -> Pair:
    """Scales and offsets after the signs and they were chosen in turn."""
    codes = _nearest(w, alpha, offset)
    for _ in range(iterations):
        alpha, offset = _solved(w, real, codes, alpha.shape[0], with_offset)
        before, codes = codes, _nearest(w, alpha, offset)
        if torch.equal(before, codes):
            break
    return alpha, offset


def _solved(w: Tensor, real: Tensor, codes: Tensor, bits: int, with_offset: bool) -> Pair:
    """The scales and offsets that are best for the signs in `codes` (R, G, n)."""
    planes = [2 * (codes >> i & 1).to(PRECISION) - 1 for i in range(bits)]
    if with_offset:
        planes.append(torch.ones_like(w))
    design = torch.stack(planes, dim=-2) * real.unsqueeze(-2)  # (R, G, k, n)
    with one_thread():
        gram = (design @ design.mT).double()
        gram += RIDGE * w.shape[-1] * torch.eye(len(planes), dtype=gram.dtype, device=w.device)
        target = (design @ w.unsqueeze(-1)).double()
        solution = torch.linalg.solve(gram, target).squeeze(-1).to(PRECISION)  # (R, G, k)
    alpha = solution[..., :bits].abs().sort(dim=-1, descending=True).values  # signs flip along
    offset = solution[..., -1] if with_offset else torch.zeros_like(solution[..., 0])
    return alpha.movedim(-1, 0), offset


def _levels(alpha: Tensor, offset: Tensor | None) -> Tensor:
    """The value of every code, (R, G, 2 ** q), summed as `Binary` does."""
    base = torch.zeros_like(alpha[0]) if offset is None else offset
    levels = base.unsqueeze(-1)
    for step in alpha.unsqueeze(-1):
        levels = torch.cat([levels - step, levels + step], dim=-1)
    return levels


def _nearest(values: Tensor, alpha: Tensor, offset: Tensor | None) -> Tensor:
    """The code of the nearest level for each of `values` (R, G, n), uint8."""
    levels, order = _levels(alpha, offset).sort(dim=-1, stable=True)
    low, high = levels[..., :-1], levels[..., 1:]
    middle = low + (high - low) / 2
    middle = torch.where(middle == high, low, middle)  # of neighbouring floats
    place = torch.searchsorted(middle.contiguous(), values.contiguous())
    return order.gather(-1, place).to(torch.uint8)


def _kept(pair: Pair, magnitude: Tensor) -> Pair:
    """Scales and offsets as they are stored."""
    return (pair[0] * magnitude).to(torch.bfloat16), (pair[1] * magnitude).to(torch.bfloat16)


def _loss(w: Tensor, real: Tensor, kept: Pair, magnitude: Tensor) -> Tensor:
    """The squared error of each group (R, G), in units of its magnitude."""
    alpha, offset = (part.to(PRECISION) / magnitude for part in kept)
    codes = _nearest(w, alpha, offset)
    values = _levels(alpha, offset).gather(-1, codes.long())
    return ((values - w).square() * real).sum(-1)


def _wide(offset: Tensor | None) -> Tensor | None:
    return None if offset is None else offset.to(PRECISION)


register_quantizer(BinaryQuantizer)
