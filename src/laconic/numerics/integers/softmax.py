"""Softmax on whole numbers: a table of powers of two, an integer sum, a reciprocal by Newton."""

import math
from functools import cache

import torch
from torch import Tensor

from laconic.numerics.integers.kernels import softmax_rows
from laconic.numerics.integers.shifts import NEWTON, bit_length, reciprocal, shift_right

FRACTION = 16  # bits behind the point of exponents
TABLE = 8  # bits of a fraction that the table is looked up with
UNIT = 15  # 2^f is kept as whole numbers of 2^-15
LOWEST = -(30 << FRACTION)  # 2^-30 is 0 at this precision; masked scores stand here and below

LOG2E = math.log2(math.e)


def exponents(scores: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
    """Scores as exponents of two with 16 bits behind the point: int64 `round(scale log2(e) s 2^16)`.

    Args:
        scores: any shape, products of codes.
        scale: what they are multiplied by.
        mask: added to the scaled scores, broadcast to them; -inf and the least value of its dtype
            make a weight 0.
    """
    fixed: Tensor = scores.double() * (scale * LOG2E * 2**FRACTION)
    if mask is not None:
        fixed = fixed + mask.double() * (LOG2E * 2.0**FRACTION)
    return fixed.clamp_(-(2.0**46), 2.0**46).round_().long()


def integer_softmax(x: Tensor, *, bits: int = 8, per_row: bool = True) -> tuple[Tensor, Tensor]:
    """Softmax over the last dimension of exponents of two.

    The row's maximum is subtracted; `2^-d` is a shift by the whole part and, for the fraction, one of 256
    table entries of 16 bits; the sum is an integer, its reciprocal found by Newton's iteration.

    Args:
        x: (..., N) int64 with 16 bits behind the point, as `exponents` gives them.
        bits: of a result, unsigned, 2 to 15.
        per_row: whether each row has its own shift, with which its largest weight takes all bits;
            otherwise the shift is `bits` for all, as in the paper, and a weight below 2^-9 vanishes.

    Returns:
        Codes (..., N) int64 of 0 .. 2^bits - 1, and shifts (..., 1): weights are `code 2^-shift`.

    Source: BCT (Dong et al., 2023); operators as in I-BERT (Kim et al., 2021) with a table.
    """
    if x.device.type == "cpu" and x.numel():
        return _by_kernel(x, bits, per_row)
    return _by_torch(x, bits, per_row)


def _by_kernel(x: Tensor, bits: int, per_row: bool) -> tuple[Tensor, Tensor]:
    rows = x.reshape(-1, x.shape[-1])
    codes, shifts = torch.empty_like(rows), rows.new_empty(len(rows))
    softmax_rows(
        rows.numpy(), bits, per_row, LOWEST, FRACTION, _power_table().numpy(), NEWTON,
        codes.numpy(), shifts.numpy(),
    )  # fmt: skip
    return codes.reshape(x.shape), shifts.reshape(*x.shape[:-1], 1)


def _by_torch(x: Tensor, bits: int, per_row: bool) -> tuple[Tensor, Tensor]:
    below = (x - x.amax(-1, keepdim=True)).clamp_(min=LOWEST)
    whole = below >> FRACTION
    fraction = (below >> (FRACTION - TABLE)) & (2**TABLE - 1)
    powers = shift_right(_power_table().to(x.device)[fraction], -whole)
    total = powers.sum(-1, keepdim=True)
    inverse, shift = reciprocal(total)  # 30 bits
    weights = powers * inverse  # below 2^46
    if per_row:
        most = weights.amax(-1, keepdim=True)
        out = bits - bit_length(most) + shift
    else:
        out = torch.full_like(shift, bits)
    return shift_right(weights, shift - out).clamp_(max=2**bits - 1), out


@cache
def _power_table() -> Tensor:
    """`2^f` in units of 2^-15, at the middle of each 256th."""
    f = (torch.arange(2**TABLE, dtype=torch.float64) + 0.5) / 2**TABLE
    return torch.exp2(f).mul_(2.0**UNIT).round_().to(torch.int64)
