"""Ranges of grids cut at percentiles: a few outliers are clipped where that loses less."""

from collections.abc import Callable

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.tensors.integer import Grid, IntQuantizer
from laconic.tensors.packing import matrix

#: shares of a row's values below its upper end, of which one is taken (MLoRQ, arXiv 2507.09616)
SHARES = (0.97, 0.98, 0.99, 0.995, 0.9995, 0.9997, 0.9999, 0.99995, 0.99999, 1.0)

RowLoss = Callable[[Tensor], Tensor]  # of rounded rows (R, C): (R,), what each loses


def percentile_grid(quantizer: IntQuantizer, x: Tensor, *, loss: RowLoss | None = None) -> Grid:
    """The grid of each row between its percentiles 1 - p and p, with the p of `SHARES` that loses least.

    Args:
        quantizer: with a scale for each row.
        x: (R, ...) values.
        loss: of the rounded values (R, C), what each row loses; the squared error by default.

    Returns:
        Scales and zeros (R, 1).

    Raises:
        UsageError: the quantizer's group is no row.

    Example:
        >>> x = torch.tensor([[-1.0, 0.0, 1.0, 2.0]])
        >>> grid = percentile_grid(IntQuantizer(2, "row", False), x)
        >>> grid.scale, grid.zero
        (tensor([[1.]]), tensor([[1.]]))
    """
    if quantizer.group != "row":
        raise UsageError(f"percentiles are of rows: group must be 'row', found {quantizer.group!r}")
    rows = matrix(x)
    columns = max(1, rows.shape[1])
    if not rows.numel():
        return quantizer.fit(x)
    ordered = rows.sort(dim=1).values
    best: Grid | None = None
    least = rows.new_full((len(rows),), torch.inf)
    for share in reversed(SHARES):  # of equals the widest
        low, high = _quantile(ordered, 1 - share), _quantile(ordered, share)
        grid = quantizer.grid(low, high, columns)
        values = quantizer.decode(quantizer.encode(rows, grid), grid)
        lost = (values - rows).square().sum(dim=1) if loss is None else loss(values).to(rows)
        better = (lost < least).unsqueeze(1) if best is not None else torch.ones_like(low).bool()
        scale = grid.scale if best is None else torch.where(better, grid.scale, best.scale)
        zero = grid.zero if best is None else torch.where(better, grid.zero, best.zero)
        best, least = Grid(scale, zero, columns), torch.minimum(least, lost)
    assert best is not None
    return best


def _quantile(ordered: Tensor, share: float) -> Tensor:
    """(R, 1), between the neighbours of rows in rising order; `torch.quantile` takes 2^24 values at most."""
    place = share * (ordered.shape[1] - 1)
    below = min(int(place), ordered.shape[1] - 1)
    above = min(below + 1, ordered.shape[1] - 1)
    return torch.lerp(ordered[:, below], ordered[:, above], place - below).unsqueeze(1)
