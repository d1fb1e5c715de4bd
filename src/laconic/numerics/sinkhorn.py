"""Entropic optimal transport: mass from many places to few, each to several that are near."""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64  # costs are divided by small numbers and put into exponents


class Transport(NamedTuple):
    """What `sinkhorn` found.

    Attributes:
        plan: (..., d, k) float64, at least 0; the sums of its columns are `target`.
        converged: (...) bool, whether the sums of its rows are within the tolerance of `source`.
        error: (...) float64, by how much these are off in total.
    """

    plan: Tensor
    converged: Tensor
    error: Tensor


@one_thread()
def sinkhorn(
    cost: Tensor, source: Tensor | None = None, target: Tensor | None = None, *,
    epsilon: float = 0.01, iterations: int = 1000, tolerance: float = 1e-6,
) -> Transport:  # fmt: skip
    """The plan P with the given marginals and the least <P, C> - eps entropy(P) (Cuturi, 2013).

    In the log domain, so that small eps does no harm: f = eps (log a - LSE_j((g_j - C_ij) / eps)),
    then g alike, until the sums of the rows are right.

    Args:
        cost: (..., d, k), C.
        source: (..., d), a: mass of the rows, at least 0; scaled to 1 in total, equal by default.
        target: (..., k), b: mass of the columns, alike.
        epsilon: eps as a share of the mean magnitude of C; above 0. Near 0 each row goes to its
            nearest column as far as that has room, and convergence is slow.
        iterations: at most so many.
        tolerance: on the total difference between the sums of the rows and `source`.

    Returns:
        Plan, whether it converged, and its error. Rows and columns without mass are zero. A problem
        that has converged is left alone while others of the batch go on.

    Raises:
        UsageError: shapes that do not fit, negative or no mass, settings out of range.
        BadWeights: NaN or infinity.

    Example:
        >>> plan = sinkhorn(torch.tensor([[0.0, 1.0], [1.0, 0.0]])).plan
        >>> plan.round(decimals=3)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]], dtype=torch.float64)
    """
    if not epsilon > 0:
        raise UsageError(f"epsilon must be above 0, found {epsilon!r}")
    check_at_least("iterations", iterations, 1)
    check_at_least("tolerance", tolerance, 0.0)
    if cost.ndim < 2 or not cost.shape[-1] or not cost.shape[-2]:
        raise UsageError(f"cost must have the shape (..., d, k), found {tuple(cost.shape)}")
    check_finite("cost", cost)
    c = cost.to(PRECISION)
    a = _marginal("source", source, c[..., 0])  # (..., d)
    b = _marginal("target", target, c[..., 0, :])  # (..., k)
    unit = epsilon * c.abs().mean(dim=(-2, -1), keepdim=True)
    c = c / unit.clamp(min=torch.finfo(PRECISION).tiny)
    log_a, log_b = a.log(), b.log()
    f = log_a - torch.logsumexp(-c, dim=-1)  # potentials, in units of eps
    g = log_b - torch.logsumexp(f.unsqueeze(-1) - c, dim=-2)
    for _ in range(iterations - 1):
        rows = torch.logsumexp(g.unsqueeze(-2) - c, dim=-1)  # (..., d)
        going = ((f + rows).exp() - a).abs().sum(dim=-1, keepdim=True) > tolerance
        if not going.any():
            break
        f = torch.where(going, log_a - rows, f)
        g = torch.where(going, log_b - torch.logsumexp(f.unsqueeze(-1) - c, dim=-2), g)
    plan = (f.unsqueeze(-1) + g.unsqueeze(-2) - c).exp()
    error = (plan.sum(dim=-1) - a).abs().sum(dim=-1)
    return Transport(plan, error <= tolerance, error)


def _marginal(name: str, mass: Tensor | None, like: Tensor) -> Tensor:
    """`mass`, or equal mass, as float64 of the shape of `like` with the sum 1."""
    mass = torch.ones_like(like) if mass is None else mass.to(like)
    if mass.shape[-1] != like.shape[-1] or mass.ndim > like.ndim:
        raise UsageError(f"{name} must fit {tuple(like.shape)}, found {tuple(mass.shape)}")
    check_finite(name, mass)
    total = mass.sum(dim=-1, keepdim=True)
    if (mass < 0).any() or not (total > 0).all():
        raise UsageError(f"{name} must hold mass of at least 0, and some above 0 in each problem")
    return (mass / total).expand(like.shape)
