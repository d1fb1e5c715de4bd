"""The rotation, or the permutation, that lays one set of vectors best over another."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_square
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64


@one_thread()
def orthogonal_procrustes(source: Tensor, target: Tensor) -> Tensor:
    """The orthogonal Q with the least ||source Q - target|| (Schoenemann, 1966).

    Args:
        source: (..., n, d).
        target: (..., n, d).

    Returns:
        (..., d, d) float64. Where fewer than d directions are seen, the others are mapped to each
        other in some orthogonal way; reflections are allowed.

    Raises:
        UsageError: shapes that differ.
        BadWeights: NaN or infinity.

    Example:
        >>> turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        >>> bool(torch.allclose(orthogonal_procrustes(torch.eye(2), turn), turn.double()))
        True
    """
    if source.ndim < 2 or source.shape != target.shape:
        raise UsageError(
            f"source and target must have the same shape (..., n, d), found {tuple(source.shape)} "
            f"and {tuple(target.shape)}"
        )
    check_finite("source", source)
    check_finite("target", target)
    return nearest_orthogonal(source.detach().to(PRECISION).mT @ target.detach().to(PRECISION))


@one_thread()
def nearest_orthogonal(matrix: Tensor) -> Tensor:
    """The orthogonal matrix nearest to a square one, U V^T of its singular vectors.

    Of sums of source^T target it is the answer of `orthogonal_procrustes`.

    Args:
        matrix: (..., d, d).

    Returns:
        (..., d, d) float64.

    Raises:
        UsageError: no square matrix.
        BadWeights: NaN or infinity.

    Example:
        >>> nearest_orthogonal(torch.diag(torch.tensor([3.0, -0.1]))).diagonal().round(decimals=4)
        tensor([ 1., -1.], dtype=torch.float64)
    """
    check_square("the matrix", matrix)
    check_finite("the matrix", matrix)
    u, _, vh = torch.linalg.svd(matrix.detach().to(PRECISION))
    product: Tensor = u @ vh
    return product


def best_permutation(similarity: Tensor) -> Tensor:
    """The column for each row that makes the total similarity largest (linear assignment).

    Git Re-Basin lays the units of one network over those of another with it.

    Args:
        similarity: (..., n, n).

    Returns:
        (..., n) int64: row i belongs with column result[i]; a permutation.

    Raises:
        UsageError: no square matrix.
        BadWeights: NaN or infinity.

    Example:
        >>> best_permutation(torch.tensor([[1.0, 5.0], [2.0, 5.0]]))
        tensor([1, 0])
    """
    check_square("the similarity", similarity)
    check_finite("the similarity", similarity)
    scores = similarity.detach().to("cpu", PRECISION).reshape(-1, *similarity.shape[-2:]).numpy()
    found = [linear_sum_assignment(score, maximize=True)[1] for score in scores]
    columns = torch.from_numpy(np.array(found, np.int64).reshape(similarity.shape[:-1]))
    return columns.to(similarity.device)
