"""What factorizations share: ranks that save parameters, the best factors, and the tensor they make.

A weight (out, in, ...) is seen as the matrix (m, n) of its outputs.
"""

from torch import Tensor

from laconic.numerics.parallel import one_thread
from laconic.numerics.svd import activation_svd, truncated_svd
from laconic.tensors import Dense, LowRank


def rank_for(rows: int, columns: int, keep: float) -> int:
    """The greatest rank whose factors hold at most `keep` of the parameters (m, n) had; at least 1.

    Example:
        >>> rank_for(64, 64, 0.5)
        16
    """
    return max(1, int(keep * rows * columns / (rows + columns)))


def saves(rows: int, columns: int, rank: int) -> bool:
    """Whether factors of `rank` have fewer parameters than the matrix (m, n)."""
    return rank * (rows + columns) < rows * columns


def best_factors(
    rows: Tensor, moment: Tensor | None, rank: int, ridge: float = 1e-4
) -> tuple[Tensor, Tensor]:
    """A = U_r (m, r), orthonormal, and B = U_r^T W (r, n), float64: W' = A B.

    Args:
        rows: (m, n), W.
        moment: (n, n), H = E[x x^T], and U_r are the top eigenvectors of W H W^T; None where all
            inputs count alike, and U_r are the top left singular vectors of W.
        rank: r, 0 to min(m, n).
        ridge: see `laconic.numerics.svd.activation_svd`; not looked at without a moment.

    Example:
        >>> import torch
        >>> a, b = best_factors(torch.diag(torch.tensor([3.0, 1.0])), None, 1)
        >>> (a @ b).abs().round(decimals=4)
        tensor([[3., 0.],
                [0., 0.]], dtype=torch.float64)
    """
    if moment is not None:
        return activation_svd(rows, moment, ridge=ridge).factors(rank)
    left = truncated_svd(rows, rank).left
    with one_thread():
        return left, left.mT @ rows.to(left.dtype)


def low_rank(weight: Tensor, left: Tensor, right: Tensor) -> LowRank:
    """The factors A (m, r) and B (r, n) as a tensor of the shape and dtype of `weight`."""
    a, b = (Dense(part.to(weight.dtype).contiguous()) for part in (left, right))
    return LowRank(a, b, tuple(weight.shape[2:]))
