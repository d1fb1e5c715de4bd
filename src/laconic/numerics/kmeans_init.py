"""Where k-means starts: drawn by k-means++, by ranks or density on a line, by Mahalanobis distance."""

import torch
from torch import Tensor

from laconic.numerics._checks import check_at_least
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64
RIDGE = 1e-6  # of the mean variance, so that flat clouds have an inverse


@one_thread()
def plus_plus_init(
    points: Tensor, count: int, generator: torch.Generator, *, weights: Tensor | None = None
) -> Tensor:
    """Draws each centroid from the points, with odds as its error so far (Arthur, Vassilvitskii, 2007).

    Args:
        points: (B, N, D).
        count: K, at least 1.
        generator: draws K numbers for each problem, on its own device.
        weights: (B, N, 1) or (B, N, D), at least 0.

    Returns:
        (B, K, D), of the points.

    Example:
        >>> plus_plus_init(torch.tensor([[[3.0], [3.0]]]), 1, torch.Generator())
        tensor([[[3.]]])
    """
    check_at_least("count", count, 1)
    batch, total, _ = points.shape
    draws = torch.rand(
        count, batch, 1, generator=generator, device=generator.device, dtype=PRECISION
    ).to(points.device)
    problem = torch.arange(batch, device=points.device)
    weighted = torch.ones_like(points) if weights is None else weights.expand_as(points)
    error = weighted.sum(dim=2, dtype=PRECISION)  # of the first draw: the weights themselves
    least = torch.full_like(error, torch.inf)
    chosen = []
    for draw in draws:
        reach = error.cumsum(dim=1)  # (B, N)
        index = torch.searchsorted(reach, draw * reach[:, -1:], right=True).clamp(max=total - 1)
        chosen.append(points[problem, index.squeeze(1)])
        away = (points - chosen[-1].unsqueeze(1)).square_().mul_(weighted)
        error = least = torch.minimum(least, away.sum(dim=2, dtype=PRECISION))
    return torch.stack(chosen, dim=1)


def rank_init(points: Tensor, count: int) -> Tensor:
    """Points at the middle of `count` equal parts of the sorted order, in one dimension.

    Args:
        points: (B, N, 1).
        count: K, at least 1.

    Returns:
        (B, K, 1), ascending.

    Example:
        >>> rank_init(torch.arange(8.0).reshape(1, 8, 1), 2).flatten()
        tensor([2., 6.])
    """
    check_at_least("count", count, 1)
    total = points.shape[1]
    ranks = (2 * torch.arange(count, device=points.device) + 1) * total // (2 * count)
    return points.sort(dim=1).values[:, ranks]


@one_thread()
def density_init(points: Tensor, count: int, *, weights: Tensor | None = None) -> Tensor:
    """Points as dense as the cube root of the points, in one dimension (Panter, Dite, 1951).

    That is how the best centroids of a smooth density lie when there are many; ranks put too few
    into the tails. The density is taken from the gaps between neighbours.

    Args:
        points: (B, N, 1).
        count: K, at least 1.
        weights: (B, N, 1), at least 0.

    Returns:
        (B, K, 1), ascending.

    Example:
        >>> density_init(torch.arange(9.0).reshape(1, 9, 1), 2).flatten()
        tensor([2., 6.])
    """
    check_at_least("count", count, 1)
    x, order = points.squeeze(2).to(PRECISION).sort(dim=1, stable=True)  # (B, N)
    gap = x.diff(dim=1, prepend=x[:, :1])
    mass = torch.ones_like(x) if weights is None else weights.squeeze(2).to(x).gather(1, order)
    reach = (gap.square() * (mass + mass.roll(1, dims=1))).pow(1 / 3).cumsum(dim=1)
    parts = (torch.arange(count, device=x.device, dtype=PRECISION) + 0.5) / count
    index = torch.searchsorted(reach, parts * reach[:, -1:]).clamp(max=x.shape[1] - 1)
    return points.squeeze(2).gather(1, order.gather(1, index)).unsqueeze(2)


@one_thread()
def mahalanobis_init(points: Tensor, count: int) -> Tensor:
    """Points at equally spaced ranks of Mahalanobis distance, both ends included (GPTVQ, 2024, 3.2).

    No draw is needed, and clusters start in the middle of the cloud as well as at its rim.

    Args:
        points: (B, N, D).
        count: K, at least 1.

    Returns:
        (B, K, D), of the points, from the nearest to the mean outwards.

    Example:
        >>> mahalanobis_init(torch.tensor([[[0.0, 0.0], [1.0, 0.0], [-9.0, 0.0]]]), 2)
        tensor([[[ 0.,  0.],
                 [-9.,  0.]]])
    """
    check_at_least("count", count, 1)
    batch, total, dim = points.shape
    centred = points.to(PRECISION)
    centred = centred - centred.mean(dim=1, keepdim=True)
    sigma = centred.mT @ centred / total  # (B, D, D)
    ridge = RIDGE * sigma.diagonal(dim1=1, dim2=2).mean(dim=1) + torch.finfo(PRECISION).tiny
    factor = torch.linalg.cholesky(sigma + ridge[:, None, None] * torch.eye(dim).to(sigma))
    white = torch.linalg.solve_triangular(factor, centred.mT, upper=False)  # (B, D, N)
    order = white.square().sum(dim=1).argsort(dim=1, stable=True)  # (B, N)
    spaced = torch.linspace(0, total - 1, count, dtype=PRECISION).round().long()
    chosen = order[:, spaced.to(points.device)]
    return points[torch.arange(batch, device=points.device).unsqueeze(1), chosen]
