"""Exact optimal brain surgeon, row by row: always the weight that costs least, in any order.

Each row has an inverse of its own. Fixing weight j eliminates j from it by one rank-1 step (Optimal
Brain Compression, Frantar, Singh, Alistarh, 2022), so a row of C weights takes C^3 / 3 operations:
fine for C up to about 1000, beyond that use the sweeps of `obs`.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics._obs_eliminate import (
    eliminate_blocks_numba,
    eliminate_blocks_torch,
    eliminate_numba,
    eliminate_torch,
)
from laconic.numerics._obs_run import check_pattern, own_grid
from laconic.numerics.obs_types import UniformGrid
from laconic.numerics.parallel import parallel_map

PRECISION = torch.float64
BYTES_AT_ONCE = 1 << 30  # of what rows keep that are eliminated together, not on a CPU
ROWS_AT_ONCE = 8  # rows that a worker takes at a time on a CPU


class ExactSweep(NamedTuple):
    """What an exact sweep made of a weight, and how it got there.

    Attributes:
        values: (R, C) float64.
        order: (R, S) int64, the columns of each row in the order in which they were fixed.
        loss: (R, S) float64, what each step added to (w - q) H (w - q)^T.
        codes: (R, C) uint8 where there is a grid.
    """

    values: Tensor
    order: Tensor
    loss: Tensor
    codes: Tensor | None = None


def exact_prune(
    weight: Tensor, inverse: Tensor, *, steps: int | None = None,
    pattern: tuple[int, int] | None = None,
) -> ExactSweep:  # fmt: skip
    """Sets the weights of each row to zero one by one, each time the one that costs least.

    One run to the end tells every sparsity: `kept_after` gives the mask after any number of steps,
    and `absorb_error` the best values under a mask.

    Args:
        weight: (R, C).
        inverse: (C, C), the inverse of the damped second moment, shared by all rows.
        steps: weights of each row that go; all by default.
        pattern: (n, m): n of every m neighbours in a row stay; m divides C. Instead of `steps`.

    Returns:
        Values, order and losses.

    Raises:
        UsageError: shapes, steps or pattern that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> exact_prune(torch.tensor([[3.0, 1.0, 2.0]]), torch.eye(3), steps=2).order
        tensor([[1, 2]])
    """
    columns = _check(weight, inverse)
    if pattern is not None:
        check_pattern(*pattern, columns)
        if steps is not None:
            raise UsageError("give either steps or a pattern")
        steps = columns // pattern[1] * (pattern[1] - pattern[0])
    steps = columns if steps is None else steps
    if not 0 <= steps <= columns:
        raise UsageError(f"steps must be 0 to the number of columns, {columns}, found {steps!r}")
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    return _run(weight, inverse, None, keep, steps, pattern or (0, 1))


def exact_prune_blocks(
    weight: Tensor, inverse: Tensor, size: int, steps: int | None = None
) -> ExactSweep:
    """Sets blocks of neighbours to zero one by one, each time the one that costs least in its row.

    A block B costs w_B (H^-1_BB)^-1 w_B (OBC, section 4).

    Args:
        weight: (R, C).
        inverse: (C, C), the inverse of the damped second moment, shared by all rows.
        size: columns of a block; divides C.
        steps: blocks of each row that go; all by default.

    Returns:
        Values; order (R, S), the numbers of blocks; losses (R, S).

    Raises:
        UsageError: shapes, size or steps that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> exact_prune_blocks(torch.tensor([[3.0, 0.0, 1.0, 1.0]]), torch.eye(4), 2, 1).order
        tensor([[1]])
    """
    columns = _check(weight, inverse)
    if size < 1 or columns % size:
        raise UsageError(f"blocks of {size!r} do not divide rows of {columns}")
    blocks = columns // size
    steps = blocks if steps is None else steps
    if not 0 <= steps <= blocks:
        raise UsageError(f"steps must be 0 to the number of blocks, {blocks}, found {steps!r}")
    values = weight.detach().to(PRECISION, copy=True)
    inverse = inverse.to(PRECISION).contiguous()
    order = torch.zeros(len(weight), steps, dtype=torch.int64, device=weight.device)
    loss = torch.zeros(len(weight), steps, dtype=PRECISION, device=weight.device)
    kernel = eliminate_blocks_numba if _on_cpu(weight) else eliminate_blocks_torch
    parallel_map(
        lambda part: kernel(values[part], inverse, size, order[part], loss[part]), _parts(weight)
    )
    return ExactSweep(values, order, loss)


def exact_quantize(
    weight: Tensor, inverse: Tensor, grid: UniformGrid, *, keep: Tensor | None = None
) -> ExactSweep:
    """Rounds the weights of each row one by one, each time the one that costs least (OBQ).

    A weight that was pushed out of its grid is taken at once, the farthest first, before it is
    pushed any farther.

    Args:
        weight: (R, C).
        inverse: (C, C), the inverse of the damped second moment, shared by all rows.
        grid: where the values may lie; it stays as it is.
        keep: (R, C) bool; weights outside are 0 from the start and stay so, and nothing makes up
            for them: use `absorb_error` before, on a mask.

    Returns:
        Values, order, losses and codes. Where `keep` leaves a row fewer weights than another, its
        order is filled up with -1 and its losses with 0.

    Raises:
        UsageError: shapes or grid that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> grid = UniformGrid(torch.ones(1, 1), torch.full((1, 1), 2.0), 2, 0, 3)
        >>> exact_quantize(torch.tensor([[0.4, 0.1]]), torch.eye(2), grid).order
        tensor([[1, 0]])
    """
    _check(weight, inverse)
    grid = own_grid(grid, weight)
    if keep is None:
        keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    check_shape("keep", keep, tuple(weight.shape))
    steps = int(keep.sum(dim=1).max()) if len(keep) else 0
    return _run(weight, inverse, grid, keep.bool(), steps, (0, 1))


def kept_after(order: Tensor, columns: int, steps: Tensor | int) -> Tensor:
    """The mask (R, columns) of weights that are left after `steps` of an `order` (R, S).

    Args:
        order: of an `exact_prune`.
        columns: C.
        steps: 0 to S, for all rows or (R,) for each.

    Raises:
        UsageError: steps out of range.

    Example:
        >>> kept_after(torch.tensor([[1, 2, 0]]), 3, 2)
        tensor([[ True, False, False]])
    """
    count = torch.as_tensor(steps, device=order.device).expand(len(order))
    if ((count < 0) | (count > order.shape[1])).any():
        raise UsageError(f"steps must be 0 to {order.shape[1]}, found {steps}")
    gone = torch.arange(order.shape[1], device=order.device) < count.unsqueeze(1)
    return torch.ones(len(order), columns, dtype=torch.bool, device=order.device).scatter(
        1, order, ~gone
    )


def _check(weight: Tensor, inverse: Tensor) -> int:
    if weight.ndim != 2 or not weight.shape[1]:
        raise UsageError(f"the weight must have the shape (R, C), found {tuple(weight.shape)}")
    check_square("the inverse", inverse, weight.shape[1])
    check_finite("the weight", weight)
    check_finite("the inverse", inverse)
    if not (inverse.diagonal() > 0).all():
        raise UsageError("the inverse needs a diagonal above 0; see cholesky.inverse")
    return weight.shape[1]


def _run(
    weight: Tensor, inverse: Tensor, grid: UniformGrid | None, keep: Tensor, steps: int,
    pattern: tuple[int, int],
) -> ExactSweep:  # fmt: skip
    """The sweep of both kinds, over as many rows at a time as memory allows."""
    rows, columns = weight.shape
    values = weight.detach().to(PRECISION).masked_fill(~keep, 0)
    inverse = inverse.to(PRECISION).contiguous()
    order = torch.full((rows, steps), -1, dtype=torch.int64, device=weight.device)
    loss = torch.zeros(rows, steps, dtype=PRECISION, device=weight.device)
    codes = torch.zeros(rows, columns, dtype=torch.uint8, device=weight.device)
    kernel = eliminate_numba if _on_cpu(weight) else eliminate_torch
    scale, zero, low, high = _by_column(grid, columns, values)

    def sweep(part: slice) -> None:
        kernel(
            values[part], inverse, scale[part], zero[part], low, high, keep[part], *pattern,
            order[part], loss[part], codes[part],
        )  # fmt: skip

    parallel_map(sweep, _parts(weight))
    return ExactSweep(values, order, loss, None if grid is None else codes)


def _on_cpu(weight: Tensor) -> bool:
    return weight.device.type == "cpu"


def _parts(weight: Tensor) -> list[slice]:
    """The rows, as many at a time as memory allows."""
    rows, columns = weight.shape
    most = max(1, BYTES_AT_ONCE // (8 * columns**2))
    at_once = ROWS_AT_ONCE if _on_cpu(weight) else most
    return [slice(r, r + at_once) for r in range(0, rows, at_once)]


def _by_column(
    grid: UniformGrid | None, columns: int, like: Tensor
) -> tuple[Tensor, Tensor, int, int]:
    """Scale and zero (R, C) float64 of every weight, least and greatest code; (0, C) for none."""
    if grid is None:
        return like[:0], like[:0], 0, 0
    group_of = torch.arange(columns, device=like.device) // grid.group
    scale, zero = (t.to(PRECISION)[:, group_of] for t in (grid.scale, grid.zero))
    return scale, zero, grid.low, grid.high
