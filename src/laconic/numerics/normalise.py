"""Entries of a matrix made comparable across its columns and rows (NoWag, Liu et al., 2025)."""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite

PRECISION = torch.float64


class Normalised(NamedTuple):
    """A matrix W = values * rows * columns.

    Attributes:
        values: (R, C) float64; every row has the length 1.
        rows: (R, 1) float64, above 0.
        columns: (1, C) float64, above 0.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor


def by_columns_and_rows(weight: Tensor, run: int = 1) -> Normalised:
    """Divides runs of `run` columns by their length, then rows by theirs; what is all zero by 1.

    Args:
        weight: (R, C).
        run: columns that share a divisor, such as the places of a kernel; divides C.

    Raises:
        UsageError: no matrix, or runs that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> by_columns_and_rows(torch.tensor([[3.0, 0.0], [4.0, 0.0]])).columns
        tensor([[5., 1.]], dtype=torch.float64)
    """
    if weight.ndim != 2 or run < 1 or weight.shape[1] % run:
        raise UsageError(
            f"expected a matrix (R, C) in runs of {run!r} columns, found {tuple(weight.shape)}"
        )
    check_finite("the weight", weight)
    w = weight.detach().to(PRECISION)
    energy = w.square().sum(dim=0).reshape(-1, run).sum(dim=1).repeat_interleave(run)
    columns = _length(energy).unsqueeze(0)
    rows = _length((w / columns).square().sum(dim=1, keepdim=True))
    return Normalised(w / columns / rows, rows, columns)


def _length(energy: Tensor) -> Tensor:
    return torch.where(energy > 0, energy, 1).sqrt()
