"""The best possible weighted k-means on a line, by dynamic programming over the sorted points."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite
from laconic.numerics.parallel import parallel_map

PRECISION = torch.float64


def kmeans_1d_exact(
    points: Tensor, count: int, *, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Centroids with the least weighted sum of squared distances that there is, in one dimension.

    Clusters of the optimum are runs of the sorted points, and their ends move one way only, so
    divide and conquer finds them in O(K N log N) steps (Wu, 1991). Memory is 4 K N bytes a thread.

    Args:
        points: (B, N): B problems of N numbers each.
        count: K, centroids of each problem; 1 to N.
        weights: (B, N), at least 0; 1 by default.

    Returns:
        Centroids (B, K) float64, ascending, and the assignment (B, N) int64.

    Raises:
        UsageError: shapes that do not fit, a count outside of 1 to N, negative weights.
        BadWeights: points or weights hold NaN or infinity.

    Example:
        >>> kmeans_1d_exact(torch.tensor([[0.0, 9.0, 1.0, 11.0]]), 2)
        (tensor([[ 0.5000, 10.0000]], dtype=torch.float64), tensor([[0, 1, 0, 1]]))
    """
    weights = torch.ones_like(points) if weights is None else weights
    if points.ndim != 2 or weights.shape != points.shape:
        raise UsageError(
            f"points and weights must have the same shape (B, N), found {tuple(points.shape)} "
            f"and {tuple(weights.shape)}"
        )
    if not 1 <= count <= points.shape[1]:
        raise UsageError(
            f"count must be 1 to the number of points, {points.shape[1]}, found {count!r}"
        )
    check_finite("points", points)
    check_finite("weights", weights)
    if (weights < 0).any():
        raise UsageError("weights must not be negative")
    x, order = points.to("cpu", PRECISION).sort(dim=1, stable=True)
    w = weights.to("cpu", PRECISION).gather(1, order)
    rows = parallel_map(
        lambda row: _optimum(row[0].numpy(), row[1].numpy(), count), list(zip(x, w))
    )
    centroids = torch.stack([torch.from_numpy(c) for c, _ in rows]) if rows else x[:, :count]
    labels = torch.stack([torch.from_numpy(a) for _, a in rows]) if rows else order
    assignment = torch.empty_like(order).scatter_(1, order, labels)
    return centroids.to(points.device), assignment.to(points.device)


@njit(cache=True, nogil=True)
def _optimum(x: Any, w: Any, count: int) -> Any:
    """(centroids (K,), labels (N,)) for sorted `x` (N,) with weights `w`."""
    total = x.size
    middle = (x * w).sum() / w.sum() if w.sum() > 0 else x.mean()
    sums = np.zeros((3, total + 1))  # running sums of w, w x and w x^2 around the middle
    for n in range(total):
        y = x[n] - middle
        sums[0, n + 1] = sums[0, n] + w[n]
        sums[1, n + 1] = sums[1, n] + w[n] * y
        sums[2, n + 1] = sums[2, n] + w[n] * y * y
    best = np.empty(total)
    for last in range(total):
        best[last] = _cost(sums, 0, last)
    starts = np.zeros((count, total), np.int32)  # where the last of k + 1 clusters begins
    fresh = np.empty(total)
    for k in range(1, count):
        _layer(sums, best, fresh, starts[k], k)
        best, fresh = fresh, best
    centroids, labels = np.empty(count), np.empty(total, np.int64)
    end = total
    for k in range(count - 1, -1, -1):
        start = starts[k, end - 1]
        mass = sums[0, end] - sums[0, start]
        moment = sums[1, end] - sums[1, start]
        centroids[k] = moment / mass + middle if mass > 0 else x[start:end].mean()
        labels[start:end] = k
        end = start
    return centroids, labels


@njit(cache=True, nogil=True, inline="always")
def _cost(sums: Any, first: int, last: int) -> Any:
    """Weighted squared distances of points first..last from their mean."""
    mass = sums[0, last + 1] - sums[0, first]
    moment = sums[1, last + 1] - sums[1, first]
    if mass <= 0:
        return 0.0
    return max(0.0, sums[2, last + 1] - sums[2, first] - moment * moment / mass)


@njit(cache=True, nogil=True)
def _layer(sums: Any, before: Any, best: Any, start: Any, k: int) -> None:
    """Least costs `best` of points 0..n in k + 1 clusters, from those in k, `before`."""
    total = best.size
    stack = np.empty((128, 4), np.int64)  # (low, high, earliest start, latest start) to be done
    stack[0] = k, total - 1, k, total - 1
    depth = 1
    while depth:
        depth -= 1
        low, high, early, late = stack[depth]
        if low > high:
            continue
        last = (low + high) // 2
        best[last], start[last] = np.inf, early
        for first in range(early, min(late, last) + 1):
            cost = before[first - 1] + _cost(sums, first, last)
            if cost < best[last]:
                best[last], start[last] = cost, first
        here = np.int64(start[last])
        stack[depth] = low, last - 1, early, here
        stack[depth + 1] = last + 1, high, here, late
        depth += 2
