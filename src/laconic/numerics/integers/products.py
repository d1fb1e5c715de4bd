"""Products of matrices whose blocks have shifts: integer sums within blocks, shifts between them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics.integers.shifts import shift_right


class Blocked(NamedTuple):
    """A matrix (R, C) of codes whose blocks have shifts: `code 2^-shift`.

    Attributes:
        codes: (R, C), whole numbers.
        shift: (I, J), one for each block.
        block: rows and columns of a block.
    """

    codes: Tensor
    shift: Tensor
    block: tuple[int, int]


def exact_product(x: Blocked, w: Blocked) -> Tensor:
    """`X W^t` (R, O) without any rounding of codes, float64: what both other ways are held against.

    Raises:
        UsageError: the blocks do not cut the inputs alike.
    """
    total = torch.zeros(len(x.codes), len(w.codes), dtype=torch.float64, device=x.codes.device)
    for part, shift in _partial(x, w):
        total += part.double() * torch.exp2(-shift.double())
    return total


def integer_product(x: Blocked, w: Blocked) -> tuple[Tensor, Tensor]:
    """`X W^t` by int64 sums, aligned to the coarsest shift of each pair of blocks.

    Every partial sum is shifted right, with rounding, to the least shift over the blocks of inputs; the
    result is off by at most K 2^-shift / 2 for K such blocks.

    Returns:
        Sums (R, O), int64, and their shifts (R, O).
    """
    parts = list(_partial(x, w))
    least = torch.stack([shift for _, shift in parts]).amin(0)
    total = torch.zeros_like(least)
    for part, shift in parts:
        total += shift_right(part, shift - least)
    return total, least


def _partial(x: Blocked, w: Blocked) -> Iterator[tuple[Tensor, Tensor]]:
    """For each block of inputs the sums (R, O) int64 and their shifts (R, O)."""
    (rows, wide), (outs, other) = x.block, w.block
    columns = x.codes.shape[1]
    if columns != w.codes.shape[1] or min(wide, columns) != min(other, columns):
        raise UsageError(
            f"blocks of {wide} columns of {columns} do not meet blocks of {other} columns of "
            f"{w.codes.shape[1]}"
        )
    for number, start in enumerate(range(0, columns, wide)):
        part = slice(start, start + wide)
        sums = x.codes[:, part].long() @ w.codes[:, part].long().T
        ex = x.shift[:, number].long().repeat_interleave(rows)[: len(x.codes)]
        ew = w.shift[:, number].long().repeat_interleave(outs)[: len(w.codes)]
        yield sums, ex[:, None] + ew[None, :]
