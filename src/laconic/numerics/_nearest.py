"""The nearest centroid of every point: many problems, parts of bounded size, a kernel for each."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.numerics.parallel import parallel_map

PAIRS_AT_ONCE = 1 << 22  # distances computed together: bounds the memory
LANES = 128  # points that are compared with one centroid after the other, in vectors


def nearest_centroids(
    points: Tensor, centroids: Tensor, weights: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Indices (B, N) int64 of the first nearest centroids, and weighted squared distances (B, N).

    Args:
        points: (B, N, D) float32 or float64, contiguous.
        centroids: (B, K, D), in the same dtype.
        weights: (B, N, D), of each coordinate of each point; or None.
    """
    batch, total, _ = points.shape
    assignment = torch.empty(batch, total, dtype=torch.int64, device=points.device)
    distance = torch.empty(batch, total, dtype=points.dtype, device=points.device)
    kernel = _nearest_numba if points.device.type == "cpu" else _nearest_torch
    by_dim = centroids.mT.contiguous()  # (B, D, K): a kernel reads one coordinate of all at a time

    def fill(part: tuple[slice, slice]) -> None:
        w = points[:0] if weights is None else weights[part]
        kernel(points[part], w, by_dim[part[0]], assignment[part], distance[part])

    parallel_map(fill, _parts(batch, total, centroids.shape[1]))
    return assignment, distance


def _parts(batch: int, total: int, count: int) -> list[tuple[slice, slice]]:
    """The batch in parts of PAIRS_AT_ONCE distances or fewer, each contiguous."""
    length = max(1, min(total, PAIRS_AT_ONCE // count))
    problems = max(1, PAIRS_AT_ONCE // (total * count)) if length == total else 1
    return [
        (slice(b, b + problems), slice(n, n + length))
        for b in range(0, batch, problems)
        for n in range(0, total, length)
    ]


def _nearest_torch(x: Tensor, w: Tensor, c: Tensor, out: Tensor, distance: Tensor) -> None:
    """`_nearest` on any device, with the same roundings."""
    total = torch.zeros(*x.shape[:2], c.shape[2], dtype=x.dtype, device=x.device)  # (b, n, K)
    for d in range(x.shape[2]):
        square = (x[:, :, d, None] - c[:, None, d]).square_()
        total += square if not w.numel() else square.mul_(w[:, :, d, None])
    distance[...], out[...] = total.min(dim=2)


def _nearest_numba(x: Tensor, w: Tensor, c: Tensor, out: Tensor, distance: Tensor) -> None:
    _nearest(x.numpy(), w.numpy(), c.numpy(), out.numpy(), distance.numpy())


@njit(cache=True, nogil=True)
def _nearest(x: Any, w: Any, c: Any, out: Any, distance: Any) -> None:
    """Fills `out` and `distance` (b, n) for points x (b, n, D) and centroids c (b, D, K)."""
    whole = x.shape[1] // LANES * LANES
    for b in range(x.shape[0]):
        _nearest_in_lanes(x[b, :whole], w, b, c[b], out[b], distance[b])
        total = np.empty(c.shape[2], x.dtype)
        for n in range(whole, x.shape[1]):
            total[:] = 0
            for d in range(x.shape[2]):
                weight = w[b, n, d] if w.size else x.dtype.type(1)
                for k in range(total.size):
                    step = x[b, n, d] - c[b, d, k]
                    total[k] += step * step * weight
            best = 0
            for k in range(1, total.size):
                if total[k] < total[best]:
                    best = k
            out[b, n], distance[b, n] = best, total[best]


@njit(cache=True, nogil=True)
def _nearest_in_lanes(x: Any, w: Any, b: int, c: Any, out: Any, distance: Any) -> None:
    """The same for points x (n, D), n a multiple of LANES: side by side, one centroid after the other."""
    count, dim = x.shape
    values, weights = np.empty((dim, LANES), x.dtype), np.ones((dim, LANES), x.dtype)
    total, least, at = np.empty(LANES, x.dtype), np.empty(LANES, x.dtype), np.empty(LANES, np.int32)
    for first in range(0, count, LANES):
        for j in range(LANES):
            least[j], at[j] = np.inf, 0
            for d in range(dim):
                values[d, j] = x[first + j, d]
                if w.size:
                    weights[d, j] = w[b, first + j, d]
        for k in range(c.shape[1]):
            total[:] = 0
            for d in range(dim):
                centroid = c[d, k]
                for j in range(LANES):
                    step = values[d, j] - centroid
                    total[j] += step * step * weights[d, j]
            for j in range(LANES):  # without branches, so that it is done in vectors
                nearer = total[j] < least[j]
                least[j] = total[j] if nearer else least[j]
                at[j] = k if nearer else at[j]
        for j in range(LANES):
            out[first + j], distance[first + j] = at[j], least[j]
