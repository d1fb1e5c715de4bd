"""Functions of one number as tables: an entry for each code, a table for each shift."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from laconic.numerics.integers.shifts import FARTHEST, unclipped_shift

OUT_BITS = 16


class Table(NamedTuple):
    """Values of a function at every code under every shift: `entries[shift][code] 2^-out[shift]`.

    Attributes:
        entries: (shifts, codes) int16.
        out: (shifts,) int16, of the entries.
        top: the largest code; the first entry is of its negative.
    """

    entries: Tensor
    out: Tensor
    top: int


def tabulate(function: Callable[[Tensor], Tensor], bits: int = 8) -> Table:
    """The tables of `function`, with entries of 16 bits that share a shift for each shift of the input.

    Args:
        function: of each value alone; called once on float64 (shifts, codes).
        bits: of the input's codes, 2 to 10.
    """
    top = 2 ** (bits - 1) - 1
    codes = torch.arange(-top, top + 1, dtype=torch.float64)
    shifts = torch.arange(-FARTHEST, FARTHEST + 1, dtype=torch.float64)
    values = function(codes * torch.exp2(-shifts)[:, None])
    values = torch.where(values.isfinite(), values, 0)
    out = unclipped_shift(values.abs().amax(1), 2 ** (OUT_BITS - 1) - 1)
    entries = (values * torch.exp2(out.double())[:, None]).round()
    return Table(entries.to(torch.int16), out.to(torch.int16), top)


def look_up(table: Table, codes: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """The function's values at `code 2^-shift`.

    Args:
        table: of `tabulate`.
        codes: any shape.
        shift: the same shape or broadcast to it.

    Returns:
        Entries of the shape of `codes`, int64, and their shifts, of the shape of `shift`.
    """
    number = shift.long() + FARTHEST
    width = table.entries.shape[1]
    flat = (number * width) + (codes.long() + table.top)
    return table.entries.reshape(-1)[flat].long(), table.out[number].long()
