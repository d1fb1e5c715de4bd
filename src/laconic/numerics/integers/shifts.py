"""Arithmetic shifts that round, roots and reciprocals by Newton's iteration, on int64 tensors."""

from functools import cache

import torch
from torch import Tensor

FARTHEST = 126  # largest shift either way: 2^126 and 2^-126 are normal in fp32
NEWTON = 4  # iterations


def shift_right(x: Tensor, by: Tensor | int) -> Tensor:
    """`round(x 2^-by)` of int64 `x`, halves up; a negative `by` shifts left.

    Args:
        x: any shape, int64.
        by: -62 to 62 and above, broadcast to `x`; from 63 on everything is 0.

    Example:
        >>> shift_right(torch.tensor([5, 6, -6, 1]), torch.tensor([1, 2, 2, -3])).tolist()
        [3, 2, -1, 8]
    """
    by = torch.as_tensor(by, dtype=torch.int64, device=x.device)
    right = by.clamp(0, 62)
    half = (torch.ones_like(right) << right) >> 1
    moved = torch.where(by > 62, 0, (x + half) >> right)
    return torch.where(by < 0, x << (-by).clamp(min=0), moved)


def unclipped_shift(most: Tensor, top: int) -> Tensor:
    """`floor(log2(top / most))`, int32: the largest shift with which `most` is at most `top`; 0 for 0."""
    exponent = torch.frexp(top / most.double()).exponent - 1
    return torch.where(most > 0, exponent, 0).to(torch.int32)


def bit_length(x: Tensor) -> Tensor:
    """Bits that positive int64 `x` takes; 0 for 0."""
    length = torch.zeros_like(x)
    left = x
    for step in (32, 16, 8, 4, 2, 1):
        high = left >> step
        more = high > 0
        length += more * step
        left = torch.where(more, high, left)
    return length + (left > 0)


def reciprocal(x: Tensor, precision: int = 30) -> tuple[Tensor, Tensor]:
    """1 / x of positive int64 `x` as `r 2^-shift`, by Newton's iteration on whole numbers.

    Args:
        x: any shape, 1 to 2^62.
        precision: bits of r, at most 30.

    Returns:
        r, between 2^(precision-1) and 2^precision, and the shift, both of the shape of `x`.
    """
    length = bit_length(x)
    m = torch.where(length > 31, x >> (length - 31).clamp(min=0), x << (31 - length).clamp(min=0))
    r = (3 << 30) - m  # of 2^61 / m, m in [2^30, 2^31): a straight line, 12 % off
    for _ in range(NEWTON):
        r = (r * ((1 << 32) - ((r * m) >> 30))) >> 31
    return shift_right(r, 31 - precision), length - 31 + 61 - (31 - precision)


def inverse_root(x: Tensor, precision: int = 16) -> tuple[Tensor, Tensor]:
    """1 / sqrt(x) of positive int64 `x` as `r 2^-shift`: a table of 256 entries, then Newton.

    Args:
        x: any shape, 1 to 2^62.
        precision: bits of r, at most 30.

    Returns:
        r, between 2^(precision-1) and 2^precision, and the shift, both of the shape of `x`.
    """
    even = (bit_length(x) + 1) >> 1 << 1
    m = torch.where(even > 30, x >> (even - 30).clamp(min=0), x << (30 - even).clamp(min=0))
    table = root_table().to(x.device)  # m in [2^28, 2^30)
    r = table[(m >> 22).clamp(0, 255)]  # of 2^45 / sqrt(m), in [2^30, 2^31]
    for _ in range(NEWTON):  # r (3 - m r^2 2^-90) / 2
        share = (m * (r * r >> 32)) >> 28
        r = (r * ((3 << 30) - share)) >> 31
    return shift_right(r, 31 - precision), 45 + (even - 30) // 2 - (31 - precision)


@cache
def root_table() -> Tensor:
    """`2^45 / sqrt(m)` at the middle of each of 256 runs of m below 2^30."""
    middle = (torch.arange(256, dtype=torch.float64) + 0.5) * 2.0**22
    return (2.0**45 / middle.sqrt()).clamp(max=2.0**31).round().to(torch.int64)
