"""Least squares from sums alone, and conjugate gradients where no matrix is at hand."""

from collections.abc import Callable

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite, check_shape, check_square
from laconic.numerics.cholesky import solve
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64
CONSTANT = 1e-12  # of the second moment: a variance below is rounding


@one_thread()
def ridge_regression(moment: Tensor, cross: Tensor, ridge: float = 0.01) -> Tensor:
    """Q with the least E||y - Q^T x||^2 + lambda ||Q||^2, from second moments.

    Args:
        moment: (..., k, k), E[x x^T] (or any sum of x x^T).
        cross: (..., k, o), E[x y^T] (or the same sum).
        ridge: lambda as a share of the mean diagonal of the moment; at least 0, raised where the
            moment has no Cholesky factor.

    Returns:
        (..., k, o) float64; rows of inputs that are always zero are zero.

    Raises:
        UsageError: shapes that do not fit, negative ridge.
        BadWeights: NaN or infinity, or the moment is not positive semi-definite.

    Example:
        >>> x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[3.0], [6.0]])
        >>> ridge_regression(x.T @ x, x.T @ y, ridge=0.0).round(decimals=4)
        tensor([[3.]], dtype=torch.float64)
    """
    return solve(moment, cross, ridge)


@one_thread()
def affine_regression(
    moment: Tensor, cross: Tensor, mean_x: Tensor, mean_y: Tensor, ridge: float = 0.01
) -> tuple[Tensor, Tensor]:
    """Q and b with the least E||y - Q^T x - b||^2 + lambda ||Q||^2 (LIAR, Wang et al., 2024).

    Args:
        moment: (k, k), E[x x^T], means and not sums.
        cross: (k, o), E[x y^T].
        mean_x: (k,), E[x].
        mean_y: (o,), E[y].
        ridge: lambda as a share of the mean variance of x; at least 0, raised if needed.

    Returns:
        Q (k, o) and b (o,), float64. Inputs that never vary get a weight of 0.

    Raises:
        UsageError: shapes that do not fit, negative ridge.
        BadWeights: NaN or infinity, or a covariance that is not positive semi-definite.

    Example:
        >>> x = torch.tensor([[0.0], [2.0]])
        >>> q, b = affine_regression(x.T @ x / 2, x.T @ (x + 1) / 2, x.mean(0), (x + 1).mean(0), 0.0)
        >>> round(q.item(), 4), round(b.item(), 4)
        (1.0, 1.0)
    """
    check_square("the second moment", moment)
    check_shape("the cross moment", cross, (len(moment), "o"))
    check_shape("mean_x", mean_x, (len(moment),))
    check_shape("mean_y", mean_y, cross.shape[1:])
    check_finite("mean_x", mean_x)
    check_finite("mean_y", mean_y)
    mu, nu = mean_x.to(PRECISION), mean_y.to(PRECISION)
    h = moment.to(PRECISION)
    covariance = h - torch.outer(mu, mu)
    # what is left of a constant input is rounding: it must not be divided by
    still = covariance.diagonal() <= CONSTANT * h.diagonal()
    covariance = covariance.masked_fill(still | still.unsqueeze(1), 0)
    q = solve(covariance, cross.to(PRECISION) - torch.outer(mu, nu), ridge)
    return q, nu - mu @ q


@one_thread()
def conjugate_gradient(
    apply: Callable[[Tensor], Tensor], right: Tensor, start: Tensor | None = None, *,
    iterations: int = 25, tolerance: float = 0.0, batch_dims: int = 0,
) -> Tensor:  # fmt: skip
    """Minimises x A x / 2 - right x for a symmetric positive semi-definite A given as a function.

    Each step lowers the quadratic or leaves x as it is, and no step size is needed (Hestenes,
    Stiefel, 1952). GPTVQ refines its codebooks so.

    Args:
        apply: maps a tensor of the shape of `right` to A times it; linear.
        right: any shape.
        start: x to begin with; 0 by default.
        iterations: at most so many calls of `apply` (one more if there is a start).
        tolerance: stops when the norm of the residual is at most this share of that of `right`.
        batch_dims: leading dimensions that are problems of their own.

    Returns:
        x, in float32 or, for float64 tensors, float64; inner products are summed in float64.

    Raises:
        UsageError: shapes that do not fit, settings below 0.
        BadWeights: NaN or infinity in `right` or `start`.

    Example:
        >>> diagonal = torch.tensor([1.0, 10.0])
        >>> conjugate_gradient(lambda x: diagonal * x, torch.tensor([1.0, 10.0])).round(decimals=4)
        tensor([1., 1.])
    """
    check_at_least("iterations", iterations, 0)
    check_at_least("tolerance", tolerance, 0.0)
    if not 0 <= batch_dims <= right.ndim:
        raise UsageError(f"batch_dims must be 0 to {right.ndim}, found {batch_dims!r}")
    check_finite("right", right)
    right = right.detach().to(torch.promote_types(right.dtype, torch.float32))
    x, residual = torch.zeros_like(right), right.clone()
    if start is not None:
        check_shape("start", start, tuple(right.shape))
        check_finite("start", start)
        x = start.detach().to(right, copy=True)
        residual = right - apply(x)
    dims = tuple(range(batch_dims, right.ndim))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        product = a.to(PRECISION) * b.to(PRECISION)
        return product.sum(dim=dims, keepdim=True) if dims else product

    step = residual.clone()
    square, least = dot(residual, residual), tolerance**2 * dot(right, right)
    for _ in range(iterations):
        going = square > least
        if not going.any():
            break
        pushed = apply(step)
        curve = dot(step, pushed)
        going &= curve > 0
        size = torch.where(going, square / curve, 0)
        x = x + size.to(x) * step
        residual = residual - size.to(x) * pushed
        fresh = dot(residual, residual)
        turn = torch.where(going, fresh / square, 0)
        step = torch.where(going, residual + turn.to(x) * step, 0)
        square = torch.where(going, fresh, 0)
    return x
