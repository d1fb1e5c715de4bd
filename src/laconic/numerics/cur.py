"""CUR: a matrix by some of its own columns and rows, and a small link between them.

Computed in float64 on one thread. Indices come out in the order in which they were chosen.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import BadWeights, UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics.parallel import one_thread
from laconic.numerics.svd import truncated_svd

PRECISION = torch.float64
CUTOFF = 1e-6  # of the largest singular value: smaller ones are not inverted


class CUR(NamedTuple):
    """W ~ C U R, with C = W[:, columns] and R = W[rows].

    Attributes:
        rows: (r,) int64.
        columns: (r,) int64.
        link: (r, r) float64, U.
    """

    rows: Tensor
    columns: Tensor
    link: Tensor


def cur(weight: Tensor, rank: int, *, moment: Tensor | None = None) -> CUR:
    """Chooses rows and columns by Q-DEIM and links them best (CURing, Park, Moon, 2025).

    Args:
        weight: (m, n), W.
        rank: 1 to min(m, n).
        moment: E[x x^T] (n, n) or its diagonal (n,). If given, both the choice and the link serve
            the outputs: W D is approximated with D its square root; else W itself. Under a full
            D, which mixes columns, they are chosen by their part in the top left singular vectors,
            since the right ones tell nothing about them.

    Raises:
        UsageError: shapes that do not fit, rank out of range.
        BadWeights: NaN or infinity, or a negative diagonal.

    Example:
        >>> found = cur(torch.outer(torch.arange(3.0), torch.arange(4.0)), 1)
        >>> found.rows.item(), found.columns.item(), round(found.link.item(), 4)
        (2, 3, 0.1667)
    """
    root = _root(weight, moment)
    if not 1 <= rank <= min(weight.shape):
        raise UsageError(f"rank must be 1 to {min(weight.shape)}, found {rank!r}")
    w = weight.detach().to(PRECISION)
    with one_thread():
        left, _, right = truncated_svd(_times(w, root), rank)
        if root is not None and root.ndim == 2:  # V mixes the columns: look at W's own instead
            right = (left.mT @ w * root.norm(dim=0)).mT
    rows, columns = qdeim(left), qdeim(right)
    return CUR(rows, columns, _link(weight, rows, columns, root))


def cur_link(
    weight: Tensor, rows: Tensor, columns: Tensor, *, moment: Tensor | None = None
) -> Tensor:
    """The U with the least ||(W - C U R) D||, C^+ W D (R D)^+, for rows and columns as chosen.

    Args:
        weight: (m, n), W.
        rows: (r,) indices.
        columns: (c,) indices.
        moment: as for `cur`; D is 1 by default.

    Returns:
        (c, r) float64. Singular values of C and R D below 1e-6 of the largest are not inverted.

    Raises:
        UsageError, BadWeights: as `cur`; indices out of range.
    """
    root = _root(weight, moment)
    for name, index, size in (
        ("rows", rows, weight.shape[0]),
        ("columns", columns, weight.shape[1]),
    ):
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < size:
            raise UsageError(f"{name} must be indices below {size}")
    return _link(weight, rows, columns, root)


@one_thread()
def leverage_scores(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """How much each row (m,) and column (n,) takes part in the top `rank` singular vectors.

    Scores lie in 0 to 1 and add up to the rank (Mahoney, Drineas, 2009).

    Raises:
        UsageError, BadWeights: as `truncated_svd`.

    Example:
        >>> leverage_scores(torch.diag(torch.tensor([5.0, 1.0])), 1)[0].round(decimals=4)
        tensor([1., 0.], dtype=torch.float64)
    """
    left, _, right = truncated_svd(matrix, rank)
    return left.square().sum(dim=-1), right.square().sum(dim=-1)


@one_thread()
def deim(basis: Tensor) -> Tensor:
    """The rows at which vectors are best interpolated, one for each (Sorensen, Embree, 2016).

    Each vector's row is where it differs most from its interpolation by those before it.

    Args:
        basis: (m, r), r <= m, such as the top singular vectors.

    Returns:
        (r,) int64, distinct.

    Raises:
        UsageError: more columns than rows.
        BadWeights: NaN or infinity.

    Example:
        >>> deim(torch.tensor([[0.1, 1.0], [0.9, 9.0], [0.2, 0.0]]))
        tensor([1, 2])
    """
    left = _basis(basis)
    free = torch.ones(len(left), dtype=torch.bool, device=left.device)
    chosen = []
    for k in range(left.shape[1]):
        row = left[:, k].abs().masked_fill(~free, -1).argmax()
        chosen.append(row)
        free[row] = False
        pivot = left[row, k]
        if pivot != 0:  # Gaussian elimination: what is left of later vectors is zero at this row
            left[:, k + 1 :] -= torch.outer(left[:, k] / pivot, left[row, k + 1 :].clone())
    return torch.stack(chosen) if chosen else free.nonzero().squeeze(1)[:0]


@one_thread()
def qdeim(basis: Tensor) -> Tensor:
    """The rows that a QR factorisation with column pivoting of `basis`^T takes (Drmac, Gugercin, 2016).

    Unlike `deim` it does not depend on the order of the vectors; its error bound is smaller.

    Args:
        basis: (m, r), r <= m.

    Returns:
        (r,) int64, distinct.

    Raises:
        UsageError: more columns than rows.
        BadWeights: NaN or infinity.

    Example:
        >>> qdeim(torch.tensor([[0.1, 1.0], [0.9, 9.0], [0.2, 0.0]]))
        tensor([1, 2])
    """
    left = _basis(basis)
    free = torch.ones(len(left), dtype=torch.bool, device=left.device)
    chosen = []
    for _ in range(left.shape[1]):
        row = left.square().sum(dim=1).masked_fill(~free, -1).argmax()
        chosen.append(row)
        free[row] = False
        size = left[row].norm()
        if size > 0:
            direction = left[row] / size
            left -= torch.outer(left @ direction, direction)
    return torch.stack(chosen) if chosen else free.nonzero().squeeze(1)[:0]


def _basis(basis: Tensor) -> Tensor:
    """A float64 copy of a tall matrix."""
    if basis.ndim != 2 or basis.shape[1] > basis.shape[0]:
        raise UsageError(f"the basis must be (m, r) with r <= m, found {tuple(basis.shape)}")
    check_finite("the basis", basis)
    return basis.detach().to(PRECISION, copy=True)


@one_thread()
def _root(weight: Tensor, moment: Tensor | None) -> Tensor | None:
    """The square root of the moment, (n, n) or the diagonal (n,); arguments are checked."""
    check_shape("the weight", weight, ("m", "n"))
    check_finite("the weight", weight)
    if moment is None:
        return None
    check_finite("the second moment", moment)
    if moment.ndim == 1:
        check_shape("the second moment", moment, weight.shape[1:])
        if (moment < 0).any():
            raise BadWeights(f"the second moment has {moment.min():.3g} on its diagonal")
        return moment.to(PRECISION).sqrt()
    check_square("the second moment", moment, weight.shape[1])
    values, vectors = torch.linalg.eigh(moment.to(PRECISION))
    root: Tensor = vectors * values.clamp(min=0).sqrt() @ vectors.mT
    return root


def _times(rows: Tensor, root: Tensor | None) -> Tensor:
    """`rows` (..., n) times the square root."""
    if root is None:
        return rows
    return rows * root if root.ndim == 1 else rows @ root


@one_thread()
def _link(weight: Tensor, rows: Tensor, columns: Tensor, root: Tensor | None) -> Tensor:
    w = weight.detach().to(PRECISION)
    left = torch.linalg.pinv(w[:, columns], rtol=CUTOFF)
    right = torch.linalg.pinv(_times(w[rows], root), rtol=CUTOFF)
    link: Tensor = left @ _times(w, root) @ right
    return link
