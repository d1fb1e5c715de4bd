"""Some channels in the place of all: which to keep, and how they stand for the rest.

Computed in float64 on one thread.
"""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_at_least, check_finite, check_square
from laconic.numerics.cholesky import inverse, ridge_of, solve
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64


@one_thread()
def ridge_leverage(moment: Tensor, ridge: float = 0.01) -> Tensor:
    """How badly each channel is told from the others: the diagonal of H (H + lambda)^-1.

    MoDeGPT (Lin et al., 2024) keeps the channels with the highest scores.

    Args:
        moment: (..., n, n), H = E[x x^T].
        ridge: lambda as a share of the mean diagonal of H; above 0.

    Returns:
        (..., n) float64 in 0 to 1; 0 for channels that are always zero.

    Raises:
        UsageError: no square matrix, ridge not above 0.
        BadWeights: NaN, infinity, or H is not positive semi-definite.

    Example:
        >>> ridge_leverage(torch.diag(torch.tensor([3.0, 1.0, 0.0])), ridge=0.75)
        tensor([0.7500, 0.5000, 0.0000], dtype=torch.float64)
    """
    check_square("the second moment", moment)
    check_finite("the second moment", moment)
    if not ridge > 0:
        raise UsageError(f"ridge must be above 0, found {ridge!r}")
    h = moment.to(PRECISION)
    size = ridge_of(h, ridge)  # (..., 1, 1)
    damped = h + size * torch.eye(h.shape[-1], dtype=PRECISION, device=h.device)
    score = 1 - size.squeeze(-1) * inverse(damped, 0.0).diagonal(dim1=-2, dim2=-1)
    return score.clamp(0, 1).masked_fill(h.diagonal(dim1=-2, dim2=-1) == 0, 0)


@one_thread()
def nystrom_fold(moment: Tensor, keep: Tensor, ridge: float = 1e-6) -> Tensor:
    """M with x ~ M^T x_keep, by least squares: (H_kk + lambda)^-1 H_k (MoDeGPT, 2024, theorem 1).

    A layer that read x reads x_keep with the weight W M^T, and its output error is least.

    Args:
        moment: (..., n, n), H = E[x x^T].
        keep: (k,) indices of the channels that stay, distinct.
        ridge: lambda as a share of the mean diagonal of H_kk; at least 0, raised if needed.

    Returns:
        (..., k, n) float64; near the identity at the channels that stay.

    Raises:
        UsageError: no square matrix, indices out of range or repeated, negative ridge.
        BadWeights: NaN, infinity, or H is not positive semi-definite.

    Example:
        >>> moment = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
        >>> nystrom_fold(moment, torch.tensor([0]), ridge=0.0)
        tensor([[1., 2.]], dtype=torch.float64)
    """
    check_square("the second moment", moment)
    check_finite("the second moment", moment)
    check_at_least("ridge", ridge, 0.0)
    _check_kept(keep, moment.shape[-1])
    h = moment.to(PRECISION)
    rows = h[..., keep, :]  # (..., k, n)
    return solve(rows[..., keep], rows, ridge)


@one_thread()
def nystrom(moment: Tensor, keep: Tensor, ridge: float = 0.0) -> Tensor:
    """The approximation H_k^T (H_kk + lambda)^-1 H_k of H (..., n, n) by its columns `keep`.

    It is exact where the others are linear in these, and never above H.

    Args:
        moment: (..., n, n), positive semi-definite.
        keep: (k,) indices, distinct.
        ridge: as for `nystrom_fold`.

    Raises:
        UsageError, BadWeights: as `nystrom_fold`.
    """
    fold = nystrom_fold(moment, keep, ridge)
    return moment.to(PRECISION)[..., :, keep] @ fold


def _check_kept(keep: Tensor, width: int) -> None:
    """Raises `UsageError` unless `keep` (k,) holds distinct indices below `width`."""
    if (
        keep.ndim != 1
        or not keep.numel()
        or not 0 <= int(keep.min()) <= int(keep.max()) < width
        or len(torch.unique(keep)) != len(keep)
    ):
        raise UsageError(f"keep must be one or more distinct indices below {width}")
