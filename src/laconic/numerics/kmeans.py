"""Weighted k-means, many problems at once, by Lloyd's iteration; on a line from the optimum.

Distances are computed coordinate by coordinate, in float32 or, for float64 points, in float64; the
means and the distortion are summed in float64, in the order of the points. So the result does not
depend on the number of threads, nor on which other problems stand in the batch.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape
from laconic.numerics._nearest import nearest_centroids
from laconic.numerics.kmeans_1d import kmeans_1d_exact
from laconic.numerics.kmeans_init import density_init, mahalanobis_init, plus_plus_init
from laconic.numerics.parallel import one_thread

PRECISION = torch.float64  # of means and distortion
EXACT_STEPS = 1 << 26  # points times centroids on a line up to which the optimum is sought


class KMeans(NamedTuple):
    """What `kmeans` found.

    Attributes:
        centroids: (B, K, D), float32 (float64 for float64 points).
        assignment: (B, N) int64, the nearest centroid of each point.
        distortion: (B,) float64, the weighted sum of squared distances.
    """

    centroids: Tensor
    assignment: Tensor
    distortion: Tensor


def kmeans(
    points: Tensor, count: int, *, weights: Tensor | None = None, init: Tensor | None = None,
    iterations: int = 25, generator: torch.Generator | None = None,
) -> KMeans:  # fmt: skip
    """Finds `count` centroids with a small weighted sum of squared distances (Lloyd, 1982).

    The distortion never rises. A centroid that owns no weight is put on the point that is farthest
    from its own. A problem is left alone once its distortion stops falling.

    Args:
        points: (B, N, D): B problems of N points each.
        count: K, centroids of each problem; 1 to N.
        weights: (B, N), one for each point, or (B, N, D), one for each coordinate of each point;
            at least 0. Points with weight 0 are assigned but move nothing.
        init: (B, K, D) centroids to start from. By default `plus_plus_init` if there is a
            generator. Else, where D is 1, the optimum itself (`kmeans_1d_exact`; `density_init`
            where that needs too much memory), and `mahalanobis_init` where it is more.
        iterations: at most so many updates; 0 assigns the points to `init`.
        generator: what `plus_plus_init` draws from.

    Returns:
        Centroids, assignment and distortion.

    Raises:
        UsageError: shapes that do not fit, a count outside of 1 to N, negative weights.
        BadWeights: points, weights or init hold NaN or infinity.

    Example:
        >>> points = torch.tensor([[[0.0], [1.0], [9.0], [11.0]]])
        >>> kmeans(points, 2).centroids.flatten().sort().values
        tensor([ 0.5000, 10.0000])
    """
    points, weights = _checked(points, weights)
    centroids = _start(points, count, weights, init, generator)
    found = _assigned(points, centroids, weights)
    active = torch.arange(points.shape[0], device=points.device)
    for _ in range(iterations):
        if not active.numel():
            break
        whole = active.numel() == points.shape[0]
        x = points if whole else points[active]
        w = weights if weights is None or whole else weights[active]
        state = _State(*(part[active] for part in found))
        fresh = _assigned(x, _means(x, w, state), w)
        better = fresh.distortion < state.distortion
        active = active[better]
        for whole_part, part in zip(found, fresh):
            whole_part[active] = part[better]
    return KMeans(found.centroids, found.assignment, found.distortion)


def nearest(
    points: Tensor, centroids: Tensor, *, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point, the first where several are, and how far it is.

    Args:
        points: (B, N, D).
        centroids: (B, K, D).
        weights: (B, N) or (B, N, D), as for `kmeans`.

    Returns:
        Indices (B, N) int64 and weighted squared distances (B, N).

    Raises:
        UsageError: shapes that do not fit, negative weights.
        BadWeights: NaN or infinity.
    """
    points, weights = _checked(points, weights)
    check_shape("centroids", centroids, (points.shape[0], "K", points.shape[2]))
    check_finite("centroids", centroids)
    found = _assigned(points, centroids.to(points.dtype), weights)
    return found.assignment, found.distance


def subsample(
    points: Tensor, weights: Tensor | None, limit: int, seed: int = 0
) -> tuple[Tensor, Tensor | None]:
    """At most `limit` of each problem's points (B, N, D), drawn at random; those without weight last.

    Args:
        points: (B, N, D).
        weights: (B, N, D), of each coordinate; or None.
        limit: above 0.
        seed: the same draws the same points on every machine.
    """
    if points.shape[1] <= limit:
        return points, weights
    generator = torch.Generator().manual_seed(seed)
    key = torch.rand(points.shape[1], generator=generator).to(points.device)
    key = key.expand(points.shape[:2])
    if weights is not None:
        key = key + (weights.amax(-1) == 0)
    chosen = key.argsort(dim=1)[:, :limit].unsqueeze(-1).expand(-1, -1, points.shape[2])
    return points.gather(1, chosen), None if weights is None else weights.gather(1, chosen)


class _State(NamedTuple):
    centroids: Tensor  # (B, K, D)
    assignment: Tensor  # (B, N)
    distance: Tensor  # (B, N), weighted
    distortion: Tensor  # (B,)


def _checked(points: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Points in the working dtype and weights as (B, N, 1 or D)."""
    batch, count, dim = points.shape if points.ndim == 3 else (-1, -1, -1)
    if batch < 0 or count < 1 or dim < 1:
        raise UsageError(f"points must have the shape (B, N, D), found {tuple(points.shape)}")
    check_finite("points", points)
    dtype = torch.promote_types(points.dtype, torch.float32)
    points = points.detach().to(dtype).contiguous()
    if weights is None:
        return points, None
    if weights.shape not in (points.shape, points.shape[:2]):
        raise UsageError(
            f"weights must have the shape {tuple(points.shape[:2])} or {tuple(points.shape)}, "
            f"found {tuple(weights.shape)}"
        )
    check_finite("weights", weights)
    if (weights < 0).any():
        raise UsageError("weights must not be negative")
    weights = weights if weights.ndim == 3 else weights.unsqueeze(-1)
    return points, weights.detach().to(points).contiguous()


def _start(
    points: Tensor, count: int, weights: Tensor | None, init: Tensor | None,
    generator: torch.Generator | None,
) -> Tensor:  # fmt: skip
    """(B, K, D) centroids to start from."""
    batch, total, dim = points.shape
    if not 1 <= count <= total:
        raise UsageError(
            f"count must be 1 to the number of points, {total}, found {count!r}; "
            "take fewer centroids, or let more points share them"
        )
    if init is not None:
        check_shape("init", init, (batch, count, dim))
        check_finite("init", init)
        return init.to(points, copy=True)
    if generator is not None:
        return plus_plus_init(points, count, generator, weights=weights)
    if dim > 1:
        return mahalanobis_init(points, count)
    if total * count > EXACT_STEPS:
        return density_init(points, count, weights=weights)
    line = None if weights is None else weights.squeeze(2)
    return kmeans_1d_exact(points.squeeze(2), count, weights=line)[0].unsqueeze(2).to(points)


def _assigned(points: Tensor, centroids: Tensor, weights: Tensor | None) -> _State:
    """Every point with its nearest centroid."""
    by_coordinate = weights if weights is not None and weights.shape[2] > 1 else None
    assignment, distance = nearest_centroids(points, centroids, by_coordinate)
    if weights is not None and weights.shape[2] == 1:
        distance *= weights.squeeze(-1)
    with one_thread():
        distortion = distance.sum(dim=1, dtype=PRECISION)
    return _State(centroids, assignment, distance, distortion)


def _means(points: Tensor, weights: Tensor | None, state: _State) -> Tensor:
    """(B, K, D) weighted means of the clusters; empty ones start anew."""
    batch, total, dim = points.shape
    count = state.centroids.shape[1]
    first = torch.arange(batch, device=points.device) * count
    key = (state.assignment + first.unsqueeze(1)).flatten()  # (B * N,)
    mass = points.new_ones(1, 1, 1) if weights is None else weights
    mass = mass.to(PRECISION).expand(batch, total, -1)  # (B, N, 1 or D)

    def by_cluster(values: Tensor) -> Tensor:
        sums = [cluster_sums(values[:, :, d].flatten(), key, batch * count) for d in range(dim)]
        return torch.stack(sums, dim=1).reshape(batch, count, dim)

    share = by_cluster(mass.expand(batch, total, dim))
    means = by_cluster(mass * points) / share
    means = torch.where(share > 0, means, state.centroids.to(PRECISION)).to(points.dtype)
    return _reseeded(means, share.sum(dim=-1) == 0, points, state.distance)


def cluster_sums(values: Tensor, key: Tensor, size: int) -> Tensor:
    """(size,) sums of float64 `values` by `key`, always in the same order."""
    if values.device.type == "cpu":
        return torch.bincount(key, weights=values, minlength=size)
    order = torch.argsort(key, stable=True)  # bincount adds in any order there
    lengths = torch.bincount(key, minlength=size)
    return torch.segment_reduce(values[order], "sum", lengths=lengths, unsafe=True)


def _reseeded(means: Tensor, empty: Tensor, points: Tensor, distance: Tensor) -> Tensor:
    """Puts the r-th `empty` centroid (B, K) of a problem on its r-th farthest point."""
    hollow = empty.any(dim=1).nonzero().squeeze(1)
    if hollow.numel():
        order = distance[hollow].argsort(dim=1, descending=True, stable=True)
        rank = empty[hollow].cumsum(dim=1) - 1  # (b, K)
        farthest = order.gather(1, rank.clamp(min=0))
        seeds = points[hollow.unsqueeze(1), farthest]  # (b, K, D)
        means[hollow] = torch.where(empty[hollow].unsqueeze(-1), seeds, means[hollow])
    return means
