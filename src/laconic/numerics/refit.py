"""Tables of vectors that a weight is looked up in, refitted to what the layer puts out.

With the codes fixed the error of the output is a quadratic in the tables: conjugate gradients find its
least value without a step size, and no step makes it worse. GPTVQ and AQLM share it.
"""

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics.kmeans import cluster_sums
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64
SETTLED = 1e-12  # of the first residual, squared: nothing is left to gain


@one_thread()
def refit_tables(
    tables: Tensor, index: Tensor, target: Tensor, moment: Tensor,
    *, scale: Tensor | None = None, iterations: int = 25,
) -> Tensor:  # fmt: skip
    """Tables with a smaller tr((W - Q) H (W - Q)^T), where Q is made of them by fixed codes.

    `Q[r, D * v + d] = scale[r, D * v + d] * sum_m tables[index[r, v, m], d]`; a last vector that is longer
    than the row is cut.

    Args:
        tables: (T, D) entries, of all codebooks one below the other, to start from.
        index: (R, V, M) whole numbers below T.
        target: (R, C), W.
        moment: (C, C), H, not damped.
        scale: (R, C), or None for 1.
        iterations: of conjugate gradients, at most.

    Returns:
        (T, D) float64. Entries that no code names stay as they are.

    Raises:
        UsageError: shapes that do not fit.
        BadWeights: NaN or infinity.

    Example:
        >>> codes = torch.tensor([[[0], [1], [0]]])
        >>> refit_tables(torch.zeros(2, 1), codes, torch.tensor([[1.0, 5.0, 3.0]]), torch.eye(3))
        tensor([[2.],
                [5.]], dtype=torch.float64)
    """
    if tables.ndim != 2 or index.ndim != 3 or target.ndim != 2:
        raise UsageError(
            f"tables must be (T, D), index (R, V, M) and target (R, C), found {tuple(tables.shape)}, "
            f"{tuple(index.shape)} and {tuple(target.shape)}"
        )
    (rows, columns), dim = target.shape, tables.shape[1]
    check_shape("index", index, (rows, -(-columns // dim), index.shape[2]))
    check_square("the second moment", moment, columns)
    for name, value in (("tables", tables), ("the target", target), ("the second moment", moment)):
        check_finite(name, value)
    h, each = moment.to(PRECISION), None if scale is None else scale.to(PRECISION)
    key = index.reshape(-1, index.shape[2]).long()

    def made_of(entries: Tensor) -> Tensor:
        """Q (R, C)."""
        values = entries[key].sum(dim=1).reshape(rows, -1)[:, :columns]
        return values if each is None else values * each

    def back(values: Tensor) -> Tensor:
        """The adjoint of `made_of`: (R, C) to (T, D)."""
        values = values if each is None else values * each
        vectors = torch.nn.functional.pad(values, (0, index.shape[1] * dim - columns))
        vectors = vectors.reshape(-1, 1, dim).expand(-1, index.shape[2], -1)
        flat = key.flatten()
        sums = [cluster_sums(vectors[:, :, d].flatten(), flat, len(tables)) for d in range(dim)]
        return torch.stack(sums, dim=1)

    x = tables.to(PRECISION, copy=True)
    residual = back((target.to(PRECISION) - made_of(x)) @ h)
    direction, left = residual, residual.square().sum()
    enough = SETTLED * left
    for _ in range(iterations):
        pulled = back(made_of(direction) @ h)
        curvature = (direction * pulled).sum()
        if left <= enough or curvature <= 0:
            break
        step = left / curvature
        x += step * direction
        residual = residual - step * pulled
        after = residual.square().sum()
        direction = residual + after / left * direction
        left = after
    return x
