"""Fronts: which points no other beats, the knee, the hull, the volume; and a rival at our size.

All objectives are to be small: bytes, errors, log-perplexities. Points are rows.
"""

import numpy as np
from numba import njit

from laconic.errors import UsageError

PRECISION = np.float64
POINTS_AT_ONCE = 1 << 22  # comparisons of two points at a time: bounds the memory


def front(points: np.ndarray) -> np.ndarray:
    """Numbers of the points that no other beats, by rising first objective.

    A point beats another if it is at most as great in every objective and smaller in one. Of equal
    points the first stays.

    Args:
        points: (N, D), D >= 1; infinity is allowed, NaN is not.

    Raises:
        UsageError: NaN, or not a table.

    Example:
        >>> front(np.array([[3, 1], [1, 3], [2, 4], [2, 2], [2, 2]])).tolist()
        [1, 3, 0]
    """
    table = _checked(points)
    order = np.lexsort(table.T[::-1])  # stable: by the first objective, then the second, ...
    ranked = table[order]
    if table.shape[1] == 2:
        before = np.minimum.accumulate(np.append(np.inf, ranked[:, 1]))[:-1]
        new = ranked[:, 1] < before
        if len(new):
            new[0] = True  # also where all are infinite
        return np.asarray(order[new])
    kept: list[int] = []  # a point can only be beaten by one before it
    rows = max(1, POINTS_AT_ONCE // max(1, table.shape[1]))
    for i in range(len(ranked)):
        beaten = any(
            (ranked[kept[start : start + rows]] <= ranked[i]).all(axis=1).any()
            for start in range(0, len(kept), rows)
        )
        if not beaten:
            kept.append(i)
    return np.asarray(order[kept])


def knee(points: np.ndarray) -> int:
    """The number of the point with the least sum of objectives, each scaled to 0..1 over the front.

    On a front of two objectives it is the point farthest from the line through both ends.

    Args:
        points: (N, D), N >= 1, finite.

    Raises:
        UsageError: NaN or infinity, or no points.

    Example:
        >>> knee(np.array([[0, 10], [1, 2], [5, 1], [10, 0]]))
        1
    """
    table = _checked(points)
    if not len(table) or not np.isfinite(table).all():
        raise UsageError("a knee needs one finite point or more")
    best = front(table)
    low, high = table[best].min(axis=0), table[best].max(axis=0)
    scaled = (table[best] - low) / np.where(high > low, high - low, 1)
    return int(best[scaled.sum(axis=1).argmin()])


def hypervolume(points: np.ndarray, reference: np.ndarray) -> float:
    """The volume between the front of `points` and `reference`: the greater, the better the front.

    Exact, by slices along the last objective (Zitzler, 1999); time grows as N^(D-1).

    Args:
        points: (N, D); those that are not below the reference in every objective count nothing.
        reference: (D) a point that is worse than all that matter.

    Raises:
        UsageError: NaN, or a reference of another dimension.

    Example:
        >>> hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0]))
        3.0
    """
    table, corner = _checked(points), np.asarray(reference, PRECISION)
    if corner.shape != (table.shape[1],) or np.isnan(corner).any():
        raise UsageError(f"the reference must have {table.shape[1]} numbers, found {reference!r}")
    return _volume(table[(table < corner).all(axis=1)], corner)


def lower_hull(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Numbers of the points on the lower convex hull, by rising `x` (N), both ends included.

    Of points with equal x the lowest counts; points inside an edge are left out.

    Raises:
        UsageError: NaN, infinity or arrays of different lengths.

    Example:
        >>> lower_hull(np.array([0, 1, 2, 3]), np.array([9, 8, 2, 1])).tolist()
        [0, 2, 3]
    """
    points = _checked(np.stack([np.asarray(x), np.asarray(y)], axis=1))
    if not np.isfinite(points).all():
        raise UsageError("a hull needs finite points")
    order = np.lexsort((points[:, 1], points[:, 0]))
    first = np.append(True, np.diff(points[order, 0]) > 0)[: len(order)]
    order = order[first]
    return np.asarray(order[_chain(points[order, 0], points[order, 1])])


def lower_hulls(values: np.ndarray) -> np.ndarray:
    """Each row's lower convex hull over 0, 1, 2, ..., read at every column.

    The differences of a row of the result rise, so that taking the smallest of all rows first is
    optimal up to the hull's gaps: how ExactOBS spreads a sparsity over rows (OBC, Frantar et al.,
    2022, arXiv 2208.11580) when losses are not monotone.

    Args:
        values: (R, N), finite; for example the loss after 0..N-1 removals.

    Returns:
        (R, N) float64, at most `values`, equal to it at the hull's corners and at both ends.

    Raises:
        UsageError: not a table, NaN or infinity.

    Example:
        >>> lower_hulls(np.array([[0.0, 3.0, 2.0, 9.0]])).tolist()
        [[0.0, 1.0, 2.0, 9.0]]
    """
    table = np.ascontiguousarray(_checked(values))
    if not np.isfinite(table).all():
        raise UsageError("a hull needs finite values")
    out = np.empty_like(table)
    _hulls(table, out)
    return out


def at_size(sizes: np.ndarray, values: np.ndarray, size: float) -> float:
    """A rival's value at `size`: its logarithm is interpolated between the two nearest sizes.

    As docs/measure.md says of perplexities where points do not line up.

    Args:
        sizes: (N) of the rival's points, all different.
        values: (N) > 0, such as perplexities.
        size: between the smallest and the greatest of `sizes`.

    Raises:
        UsageError: a size outside (curves are not continued), equal sizes, or values <= 0.

    Example:
        >>> round(at_size(np.array([2.0, 4.0]), np.array([100.0, 25.0]), 3.0), 6)
        50.0
    """
    points = _checked(np.stack([np.asarray(sizes), np.asarray(values)], axis=1))
    x, y = points[np.argsort(points[:, 0])].T
    if not len(x) or not x[0] <= size <= x[-1]:
        span = f"{x[0]:g} to {x[-1]:g}" if len(x) else "nothing"
        raise UsageError(f"the curve was measured from {span}; it is not continued to {size:g}")
    if (np.diff(x) == 0).any() or not (y > 0).all():
        raise UsageError("a curve needs different sizes and values above 0")
    return float(np.exp(np.interp(size, x, np.log(y))))


def _checked(points: np.ndarray) -> np.ndarray:
    table = np.asarray(points, PRECISION)
    if table.ndim != 2 or not table.shape[1]:
        raise UsageError(f"points must be rows of a table, found the shape {table.shape}")
    if np.isnan(table).any():
        raise UsageError(f"point {int(np.isnan(table).any(axis=1).argmax())} is not a number")
    return table


def _volume(points: np.ndarray, corner: np.ndarray) -> float:
    if not len(points):
        return 0.0
    if len(corner) == 1:
        return float(corner[0] - points[:, 0].min())
    points = points[front(points)]
    if len(corner) == 2:  # first objective rising, second falling
        heights = np.append(corner[1], points[:-1, 1]) - points[:, 1]
        return float(((corner[0] - points[:, 0]) * heights).sum())
    points = points[np.argsort(points[:, -1], kind="stable")]
    depths = np.append(points[1:, -1], corner[-1]) - points[:, -1]
    slices = (d * _volume(points[: i + 1, :-1], corner[:-1]) for i, d in enumerate(depths) if d > 0)
    return float(sum(slices))


@njit(cache=True, nogil=True)
def _chain(x, y):  # type: ignore[no-untyped-def]
    """Numbers of the corners of the lower hull of points in order of rising x (Andrew, 1979)."""
    corners = np.empty(len(x), np.int64)
    count = 0
    for i in range(len(x)):
        while count >= 2:
            a, b = corners[count - 2], corners[count - 1]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break  # b is below the line from a to i
            count -= 1
        corners[count] = i
        count += 1
    return corners[:count]


@njit(cache=True, nogil=True)
def _hulls(values, out):  # type: ignore[no-untyped-def]
    x = np.arange(values.shape[1]).astype(np.float64)
    for row in range(values.shape[0]):
        y = values[row]
        corners = _chain(x, y)
        for c in range(len(corners)):
            out[row, corners[c]] = y[corners[c]]
        for c in range(len(corners) - 1):
            a, b = corners[c], corners[c + 1]
            slope = (y[b] - y[a]) / (b - a)
            for i in range(a + 1, b):
                out[row, i] = min(y[i], y[a] + slope * (i - a))
