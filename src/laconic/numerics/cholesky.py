"""Cholesky factors of second moments: damped until they exist, and the factor of the inverse.

Everything is computed in float64 on one thread, so the bits repeat. A column that never saw an
input (a zero on the diagonal) is *dead*: it counts as a 1 that is tied to nothing.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import BadWeights
from laconic.numerics._checks import check_at_least, check_finite, check_shape, check_square
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64
FIRST_DAMPING = 1e-8  # tried after none at all
LAST_DAMPING = 1.0


class Factor(NamedTuple):
    """A triangular factor, and what was done to get it.

    Attributes:
        factor: (..., C, C) float64.
        damping: (...) float64, the share of the mean diagonal that was added to the diagonal.
        dead: (..., C) bool, the columns whose diagonal was zero.
    """

    factor: Tensor
    damping: Tensor
    dead: Tensor

    def raised(self, damp: float) -> str:
        """What should be noted where more than `damp` was needed; empty where it was not."""
        most = float(self.damping.max())
        return f"damping was raised to {most:.2g}" if most > damp else ""


@one_thread()
def damped_cholesky(moment: Tensor, damp: float = 0.01) -> Factor:
    """The lower L with L L^T = moment + damping, where damping is raised until L exists.

    The damping is a share of the mean of the diagonal over live columns: `damp` at first, doubled
    as often as needed (OBC, 2022). The matrices of a batch are damped each on its own.

    Args:
        moment: (..., C, C), positive semi-definite; only its lower triangle is read.
        damp: at least 0.

    Returns:
        L, the damping and the dead columns.

    Raises:
        UsageError: no square matrix, negative damping.
        BadWeights: NaN, infinity, a negative diagonal, or a matrix that is not positive definite
            even with all of its mean diagonal added.

    Example:
        >>> damped_cholesky(torch.diag(torch.tensor([4.0, 0.0])), damp=0.0).factor
        tensor([[2., 0.],
                [0., 1.]], dtype=torch.float64)
    """
    h, mean, dead = _prepared(moment, damp)
    factor, damping = _raised(h, mean, dead, damp)
    return Factor(factor, damping, dead)


@one_thread()
def inverse_upper(moment: Tensor, damp: float = 0.01) -> Factor:
    """The upper U with U^T U = (moment + damping)^-1, which the sweeps of `obs` take.

    With the columns in reverse order, H = R R^T for an upper R, and U is R^-1: one factorisation
    and one triangular solve, and the inverse of H is never formed.

    Args:
        moment: (..., C, C), as for `damped_cholesky`.
        damp: at least 0.

    Returns:
        U with a positive diagonal, the damping and the dead columns.

    Raises:
        UsageError, BadWeights: as `damped_cholesky`.

    Example:
        >>> inverse_upper(torch.tensor([[4.0, 0.0], [0.0, 16.0]]), damp=0.0).factor
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    h, mean, dead = _prepared(moment, damp)
    lower, damping = _raised(h.flip(-2, -1), mean, dead.flip(-1), damp)
    identity = torch.eye(h.shape[-1], dtype=PRECISION, device=h.device).expand_as(h)
    inverse = torch.linalg.solve_triangular(lower, identity, upper=False)
    return Factor(inverse.flip(-2, -1).contiguous(), damping, dead)


@one_thread()
def solve(moment: Tensor, right: Tensor, damp: float = 0.01) -> Tensor:
    """X with (moment + damping) X = right, damped as `damped_cholesky` does.

    Rows of X at dead columns are zero: nothing was seen there.

    Args:
        moment: (..., C, C).
        right: (..., C, k).
        damp: at least 0.

    Returns:
        (..., C, k) float64.

    Raises:
        UsageError, BadWeights: as `damped_cholesky`; `right` does not fit, or is not finite.

    Example:
        >>> solve(torch.eye(2), torch.ones(2, 1), damp=0.0)
        tensor([[1.],
                [1.]], dtype=torch.float64)
    """
    found = damped_cholesky(moment, damp)
    if right.ndim < 2:
        check_shape("right", right, ("C", "k"))
    check_finite("right", right)
    check_shape("right", right, (*right.shape[:-2], moment.shape[-1], right.shape[-1]))
    return torch.cholesky_solve(
        right.to(PRECISION).masked_fill(found.dead.unsqueeze(-1), 0), found.factor
    )


@one_thread()
def inverse(moment: Tensor, damp: float = 0.01) -> Tensor:
    """(moment + damping)^-1, (..., C, C) float64 and symmetric, damped as `damped_cholesky` does.

    Args:
        moment: (..., C, C).
        damp: at least 0.

    Raises:
        UsageError, BadWeights: as `damped_cholesky`.

    Example:
        >>> inverse(torch.diag(torch.tensor([2.0, 4.0])), damp=0.0)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.2500]], dtype=torch.float64)
    """
    upper = inverse_upper(moment, damp).factor
    return upper.mT @ upper


def ridge_of(moment: Tensor, ridge: float) -> Tensor:
    """`ridge` times the mean of the diagonal of `moment` (..., C, C), as (..., 1, 1) float64."""
    diagonal = moment.diagonal(dim1=-2, dim2=-1).to(PRECISION)
    return ridge * diagonal.mean(dim=-1)[..., None, None]


def _prepared(moment: Tensor, damp: float) -> tuple[Tensor, Tensor, Tensor]:
    """Float64 lower triangle mirrored and with 1 at dead columns, mean live diagonal, dead mask."""
    check_square("the second moment", moment)
    check_finite("the second moment", moment)
    check_at_least("damp", damp, 0.0)
    diagonal = moment.diagonal(dim1=-2, dim2=-1).to(PRECISION)
    if (diagonal < 0).any():
        raise BadWeights(
            f"the second moment has {diagonal.min():.3g} on its diagonal; a sum of squares is not "
            "negative, so the statistics are damaged"
        )
    dead = diagonal == 0
    mean = diagonal.sum(dim=-1) / (~dead).sum(dim=-1).clamp(min=1)
    lower = moment.to(PRECISION).tril(-1)
    tied = dead.unsqueeze(-1) | dead.unsqueeze(-2)
    h = (lower + lower.mT).masked_fill_(tied, 0) + torch.diag_embed(diagonal + dead)
    return h, mean, dead


def _raised(h: Tensor, mean: Tensor, dead: Tensor, damp: float) -> tuple[Tensor, Tensor]:
    """Lower factors of h (..., C, C), and the damping (...) that each took."""
    shape = h.shape
    h, dead = h.reshape(-1, *shape[-2:]), dead.reshape(-1, shape[-1])
    mean = mean.reshape(-1, 1)
    factor = torch.empty_like(h)
    damping = torch.full((len(h),), damp, dtype=PRECISION, device=h.device)
    left = torch.arange(len(h), device=h.device)
    while left.numel():
        added = damping[left, None] * mean[left] * ~dead[left]
        found, failed = torch.linalg.cholesky_ex(h[left] + torch.diag_embed(added))
        factor[left[failed == 0]] = found[failed == 0]
        left = left[failed > 0]
        if (damping[left] >= LAST_DAMPING).any():
            raise BadWeights(_why(h[left[0]]))
        damping[left] = (2 * damping[left]).clamp(FIRST_DAMPING, LAST_DAMPING)
    return factor.reshape(shape), damping.reshape(shape[:-2])


def _why(h: Tensor) -> str:
    """What is wrong with a matrix that no damping mends."""
    values = torch.linalg.eigvalsh(h)
    return (
        f"the second moment ({h.shape[0]} x {h.shape[0]}) is not positive definite even with its "
        f"mean diagonal added: eigenvalues from {values[0]:.3g} to {values[-1]:.3g}; collect it "
        "in float64 as a sum of x x^T"
    )
