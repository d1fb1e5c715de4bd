"""The column sweep of optimal brain surgeon: fix a column, let the later ones make up for its error.

GPTQ, SparseGPT, GPTVQ and OBR share it. With U upper and U^T U = H^-1 (see `cholesky.inverse_upper`)
column j of W becomes q, e = (w - q) / U_jj, and the columns behind it lose e U_j. Columns are taken
in blocks of 128: within a block at once, behind it by one matrix product a block.

The loss of a row is (w - q) H (w - q)^T, the squared error of its output: exactly the sum of its e^2.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_shape, check_square
from laconic.numerics._obs_run import (
    BLOCK,
    Quantize,
    Run,
    check_pattern,
    check_sweep,
    edges,
    own_grid,
)
from laconic.numerics.cholesky import Factor, inverse_upper
from laconic.numerics.obs_types import Sweep, UniformGrid
from laconic.numerics.parallel import one_thread

Enter = Callable[[Tensor, int], None]
Refit = Callable[[Tensor, int], tuple[Tensor, Tensor]]

__all__ = [
    "Sweep", "UniformGrid", "activation_order", "block_sweep", "grid_sweep", "ordered_factor", "sparse_sweep",
    "sweep_loss",
]  # fmt: skip


def activation_order(moment: Tensor) -> Tensor:
    """The columns (C,) by falling diagonal of the second moment (C, C): the heaviest first.

    Sweep `weight[:, order]` with the factor of `moment[order][:, order]` and the grid's scales of
    each column, and undo it with `order.argsort()`.

    Example:
        >>> activation_order(torch.diag(torch.tensor([1.0, 3.0, 2.0])))
        tensor([1, 2, 0])
    """
    check_square("the second moment", moment)
    return moment.diagonal().argsort(descending=True, stable=True)


def ordered_factor(moment: Tensor, order: str, damp: float) -> tuple[Tensor, Factor]:
    """The columns (C,) in the order of a sweep, and the factor that it takes, of the moment so ordered.

    Args:
        moment: (C, C), the second moment of the inputs.
        order: `activation`, as `activation_order` has it; columns as they are for any other.
        damp: as for `inverse_upper`.
    """
    columns = torch.arange(len(moment), device=moment.device)
    if order == "activation":
        columns = activation_order(moment)
    return columns, inverse_upper(moment[columns][:, columns], damp)


@one_thread()
def sweep_loss(difference: Tensor, upper: Tensor) -> Tensor:
    """(R,) float64: d H d^T for each row d of `difference` (R, C), from U with U^T U = H^-1."""
    check_sweep(difference, upper)
    e: Tensor = torch.linalg.solve_triangular(
        upper.to(torch.float64), difference.to(torch.float64), upper=True, left=False
    )
    return e.square().sum(dim=1)


def grid_sweep(
    weight: Tensor, upper: Tensor, grid: UniformGrid, *, keep: Tensor | None = None,
    refit: Refit | None = None,
) -> Sweep:  # fmt: skip
    """Rounds a weight to a uniform grid column by column (GPTQ, Frantar et al., 2022).

    Args:
        weight: (R, C).
        upper: (C, C), U with U^T U = H^-1.
        grid: where the values may lie; it stays as it is unless there is a `refit`.
        keep: (R, C) bool; weights outside become exactly 0, and their error is made up for too.
        refit: chooses scale and zero (R, 1) of a group from its columns (R, group) as the sweep has
            left them when it gets there, and the number of the first; none by default.

    Returns:
        Values, losses, codes, mask and grid. On a CPU a compiled kernel sweeps the rows in parallel.

    Raises:
        UsageError: shapes or grid that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> grid = UniformGrid(torch.ones(1, 1), torch.full((1, 1), 2.0), 2, 0, 3)
        >>> upper = torch.tensor([[1.0, -0.5], [0.0, 1.0]])
        >>> grid_sweep(torch.tensor([[0.4, 0.4]]), upper, grid).values
        tensor([[0., 1.]])
    """
    check_sweep(weight, upper)
    grid = own_grid(grid, weight)
    if keep is not None:
        check_shape("keep", keep, tuple(weight.shape))
        keep = keep.bool()
    run = Run(weight, upper, grid, keep)

    for first, last, begins in edges(weight.shape[1], BLOCK, grid.group if refit else None):
        if begins and refit is not None:
            columns = run.weight[:, first : first + grid.group].clone()
            scale, zero = refit(columns, first)
            fitted = UniformGrid(scale, zero, columns.shape[1], grid.low, grid.high)
            fitted = own_grid(fitted, columns)
            grid.scale[:, first // grid.group] = fitted.scale.squeeze(1)
            grid.zero[:, first // grid.group] = fitted.zero.squeeze(1)
        run.fix(first, last)
    return run.result()


def sparse_sweep(
    weight: Tensor, upper: Tensor, *, sparsity: float | None = None,
    pattern: tuple[int, int] | None = None, grid: UniformGrid | None = None,
) -> Sweep:  # fmt: skip
    """Puts zeros where they cost least as the sweep goes along (SparseGPT, Frantar, Alistarh, 2023).

    The weights with the least w^2 / U_jj^2 go: of each block of 128 columns over all rows, or of
    each run of m columns in each row.

    Args:
        weight: (R, C).
        upper: (C, C), U with U^T U = H^-1.
        sparsity: share of zeros, 0 to 1, met exactly over the whole weight.
        pattern: (n, m): n of every m neighbours in a row stay; m divides C. One of the two.
        grid: rounds what stays to this grid in the same sweep, which must hold zero.

    Returns:
        Values, losses, mask, and codes where there is a grid.

    Raises:
        UsageError: shapes that do not fit, both or none of sparsity and pattern, out of range.
        BadWeights: NaN or infinity.

    Example:
        >>> sparse_sweep(torch.tensor([[3.0, 1.0]]), torch.eye(2), pattern=(1, 2)).values
        tensor([[3., 0.]])
    """
    check_sweep(weight, upper)
    if (sparsity is None) == (pattern is None):
        raise UsageError("give either a sparsity or a pattern")
    if sparsity is not None and not 0 <= sparsity <= 1:
        raise UsageError(f"sparsity must be between 0 and 1, found {sparsity!r}")
    n, m = pattern or (1, 1)
    check_pattern(n, m, weight.shape[1])
    keep = torch.ones(weight.shape, dtype=torch.bool, device=weight.device)
    run = Run(weight, upper, None if grid is None else own_grid(grid, weight), keep)
    for first, last, _ in edges(weight.shape[1], BLOCK // m * m or m, None):
        if sparsity is not None:
            zeros = round(sparsity * last * len(weight)) - round(sparsity * first * len(weight))
            score = (run.weight[:, first:last] / run.upper.diagonal()[first:last]).square()
            least = score.flatten().argsort(stable=True)[:zeros]
            kept = torch.ones_like(score, dtype=torch.bool)
            kept.view(-1)[least] = False
            keep[:, first:last] = kept
        run.fix(first, last, n, m)
    return run.result()


def block_sweep(
    weight: Tensor, upper: Tensor, quantize: Quantize, *, dim: int = 1, exact: bool = True,
    band: int | None = None, enter: Enter | None = None,
) -> Sweep:  # fmt: skip
    """A sweep that fixes `dim` columns at a time to whatever `quantize` returns (GPTVQ, 2024).

    For columns B the step is f = (w - q) U_BB^-1, and the columns behind lose f U_B: the exact
    step of optimal brain surgeon. The value that costs least is the one with the least ||f||.

    Args:
        weight: (R, C).
        upper: (C, C), U with U^T U = H^-1.
        quantize: takes columns (R, dim) and the number of the first, returns values (R, dim). It
            is called on one thread, in order.
        dim: columns fixed together; divides C (and the band).
        exact: takes U_BB as it is; otherwise only its diagonal, as the code of the paper does.
        band: a multiple of `dim`, for `enter`.
        enter: called at the start of each `band` of columns with these (R, band or fewer), as the
            sweep has left them, and the number of the first: the moment to fit a codebook.

    Returns:
        Values and losses.

    Raises:
        UsageError: shapes, dim or band that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> upper = torch.tensor([[1.0, -0.5], [0.0, 1.0]])
        >>> block_sweep(torch.tensor([[0.4, 0.4]]), upper, lambda x, _: x.round()).values
        tensor([[0., 1.]])
    """
    check_sweep(weight, upper)
    columns = weight.shape[1]
    if dim < 1 or columns % dim or (band is not None and (band < 1 or band % dim)):
        raise UsageError(
            f"dim must divide the {columns} columns and the band ({band}), found {dim!r}"
        )
    run = Run(weight, upper)
    for first, last, begins in edges(columns, BLOCK // dim * dim or dim, band):
        if begins and enter is not None:
            enter(run.weight[:, first : first + (band or columns)].clone(), first)
        run.fix_with(quantize, first, last, dim, exact)
    found = run.result()
    return (
        found if exact else found._replace(loss=sweep_loss(weight.detach() - found.values, upper))
    )
