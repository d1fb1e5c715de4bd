"""LayerNorm and RMSNorm on whole numbers: aligned codes, int64 sums, an inverse root by Newton."""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.integers.kernels import norm_rows
from laconic.numerics.integers.shifts import (
    NEWTON,
    bit_length,
    inverse_root,
    root_table,
    shift_right,
)

WIDTH = 17  # bits of aligned codes: n * sum of squares stays below 2^62
LONGEST = 1 << 13  # values a row for which it does
POINT = 12  # bits behind the point of a result


def align(codes: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The codes of a row at one shift: the finest of its blocks, or as near as 17 bits allow.

    Args:
        codes: (..., N), whole numbers of at most 16 bits.
        shift: the same shape or broadcast to it.

    Returns:
        Codes (..., N) int64 and the row's shift (..., 1).
    """
    codes, shift = codes.long(), shift.long().expand(codes.shape)
    used = torch.where(codes != 0, shift, 2**40)
    least = used.amin(-1, keepdim=True)
    finest = torch.where(codes != 0, shift, -(2**40)).amax(-1, keepdim=True)
    size = torch.where(codes != 0, shift_right(codes.abs(), (shift - least).clamp(0, 62)), 0)
    room = WIDTH - bit_length(size.amax(-1, keepdim=True) + 1)
    empty = least == 2**40
    common = torch.where(empty, 0, torch.minimum(finest, least + room))
    return torch.where(codes != 0, shift_right(codes, (shift - common).clamp(-62, 63)), 0), common


def integer_norm(
    codes: Tensor, shift: Tensor, eps: float, *, centre: bool = True
) -> Tensor:  # fmt: skip
    """`(x - mean) / sqrt(var + eps)`, or without the mean, in units of 2^-12.

        N = n sum x^2 - (sum x)^2 = n^2 var;   (n x - sum x) / sqrt(N + n^2 eps)

    Args:
        codes: (..., N) with N up to 8192, whole numbers of at most 16 bits.
        shift: of each code, broadcast to `codes`.
        eps: added to the variance.
        centre: whether the mean is subtracted (LayerNorm; otherwise RMSNorm).

    Returns:
        (..., N) int64.

    Raises:
        UsageError: rows are too long for int64 sums.
    """
    n = codes.shape[-1]
    if n > LONGEST:
        raise UsageError(f"rows of an integer norm have at most {LONGEST} values, found {n}")
    if codes.device.type == "cpu":
        return _by_kernel(codes, shift, eps, centre)
    return _by_torch(codes, shift, eps, centre)


def _by_kernel(codes: Tensor, shift: Tensor, eps: float, centre: bool) -> Tensor:
    rows = codes.reshape(-1, codes.shape[-1])
    each = shift.expand(codes.shape).reshape(rows.shape)
    out = torch.empty(rows.shape, dtype=torch.int64)
    norm_rows(
        rows.numpy(),
        each.numpy(),
        eps,
        centre,
        WIDTH,
        POINT,
        root_table().numpy(),
        NEWTON,
        out.numpy(),
    )
    return out.reshape(codes.shape)


def _by_torch(codes: Tensor, shift: Tensor, eps: float, centre: bool) -> Tensor:
    n = codes.shape[-1]
    x, common = align(codes, shift)
    total = x.sum(-1, keepdim=True) if centre else torch.zeros_like(common)
    spread = n * x.square().sum(-1, keepdim=True) - total.square()
    floor = (n * n * eps) * torch.exp2(2.0 * common.double())
    spread = (spread + floor.clamp(max=2.0**61).round().long()).clamp_(1, 2**62)
    root, at = inverse_root(spread)  # 16 bits
    return shift_right((n * x - total) * root, at - POINT)
