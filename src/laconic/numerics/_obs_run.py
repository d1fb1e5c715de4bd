"""A column sweep under way: what `obs` is made of."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from laconic.errors import UsageError
from laconic.numerics._checks import check_finite, check_shape, check_square
from laconic.numerics.obs_types import PRECISION, Sweep, UniformGrid
from laconic.numerics.parallel import one_thread, parallel_map

BLOCK = 128  # columns, at most, between two updates of all that is behind
ROWS_AT_ONCE = 128  # rows that a worker sweeps at a time; fixed, so that the bits repeat

Quantize = Callable[[Tensor, int], Tensor]


class Run:
    """A sweep under way: what is fixed so far, and the rest as it has been moved."""

    def __init__(
        self, weight: Tensor, upper: Tensor, grid: UniformGrid | None = None,
        keep: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.weight = weight.detach().to(PRECISION, copy=True).contiguous()
        self.upper = upper.to(PRECISION)
        self.grid, self.keep = grid, keep
        self.values = torch.empty_like(self.weight)
        self.codes = torch.zeros_like(self.weight, dtype=torch.uint8)
        self.loss = torch.zeros(len(weight), dtype=torch.float64, device=weight.device)

    def fix(self, first: int, last: int, n: int = 1, m: int = 1) -> None:
        """Fixes columns first..last by grid, mask and pattern, and moves those behind."""
        here = slice(first, last)
        none = self.weight.new_empty(0, 0)
        scale, zero = (none, none) if self.grid is None else self.grid[:2]
        low, high = (0, 0) if self.grid is None else self.grid[3:]
        group = self.weight.shape[1] if self.grid is None else self.grid.group
        group_of = torch.arange(first, last, device=self.weight.device) // group
        if self.grid is not None:  # the groups of these columns alone
            groups = slice(first // group, (last - 1) // group + 1)
            scale, zero = scale[:, groups], zero[:, groups]
            group_of -= groups.start
        keep = none.bool() if self.keep is None else self.keep
        upper = self.upper[here, here].contiguous()
        kernel = _fix_numba if self.weight.device.type == "cpu" else _fix_torch

        def fix_rows(rows: slice) -> None:
            part = self.weight[rows, here].T.contiguous()  # (b, r)
            mask = keep[rows, here].T.contiguous()
            values, errors = torch.empty_like(part), torch.empty_like(part)
            codes = torch.empty_like(part, dtype=torch.uint8)
            kernel(
                part, upper, scale[rows].T.contiguous(), zero[rows].T.contiguous(), group_of,
                low, high, mask, n, m, codes, values, errors,
            )  # fmt: skip
            self.values[rows, here], self.codes[rows, here] = values.T, codes.T
            keep[rows, here] = mask.T
            self._move(rows, errors.T, here)

        parallel_map(fix_rows, self._rows())

    def fix_with(self, quantize: Quantize, first: int, last: int, dim: int, exact: bool) -> None:
        """Fixes columns first..last, `dim` at a time, by `quantize`, and moves those behind."""
        here = slice(first, last)
        with one_thread():
            errors = self._fix_with(quantize, self.weight[:, here], first, dim, exact)
        parallel_map(lambda rows: self._move(rows, errors[rows], here), self._rows())

    def _fix_with(
        self, quantize: Quantize, part: Tensor, first: int, dim: int, exact: bool
    ) -> Tensor:
        """Errors f of the columns of `part`, the first of which has the number `first`."""
        errors = torch.empty_like(part)
        for i in range(0, part.shape[1], dim):
            j = i + dim
            at, behind = slice(first + i, first + j), slice(first + j, first + part.shape[1])
            w = part[:, i:j]
            q = quantize(w.clone(), first + i).to(w)
            check_shape("what quantize returns", q, tuple(w.shape))
            block = self.upper[at, at]
            if dim == 1 or not exact:
                f = (w - q) / block.diagonal()
            else:
                f = torch.linalg.solve_triangular(block, w - q, upper=True, left=False)
            pull = self.upper[at, behind]
            part[:, j:] -= f * pull if dim == 1 else f @ pull  # outer product by broadcasting
            errors[:, i:j], self.values[:, at] = f, q
        return errors

    def _move(self, rows: slice, errors: Tensor, here: slice) -> None:
        """Counts the errors (r, b) of columns `here`, and lets those behind make up for them."""
        self.loss[rows] += errors.double().square().sum(dim=1)
        behind = self.upper[here, here.stop :]
        self.weight[rows, here.stop :].addmm_(errors, behind, alpha=-1)

    def _rows(self) -> list[slice]:
        rows = len(self.weight)
        step = ROWS_AT_ONCE if self.weight.device.type == "cpu" else max(1, rows)
        return [slice(r, r + step) for r in range(0, max(1, rows), step)]

    def result(self) -> Sweep:
        codes = None if self.grid is None else self.codes
        return Sweep(self.values, self.loss, codes, self.keep, self.grid)


def check_pattern(n: int, m: int, columns: int) -> None:
    """Raises `UsageError` unless n of m is a pattern that fits `columns`."""
    if not 0 <= n <= m or m < 1 or columns % m:
        raise UsageError(
            f"a pattern keeps n of every m columns, 0 <= n <= m, and m divides the {columns} "
            f"columns; found ({n}, {m})"
        )


def check_sweep(weight: Tensor, upper: Tensor) -> None:
    if weight.ndim != 2 or not weight.shape[1]:
        raise UsageError(f"the weight must have the shape (R, C), found {tuple(weight.shape)}")
    check_square("the factor of the inverse", upper, weight.shape[1])
    check_finite("the weight", weight)
    check_finite("the factor of the inverse", upper)
    if not (upper.diagonal() > 0).all():
        raise UsageError("the factor of the inverse needs a diagonal above 0; see inverse_upper")


def own_grid(grid: UniformGrid, weight: Tensor) -> UniformGrid:
    """The grid in float32, with a row of scales for each row of the weight, not shared with it."""
    rows, columns = weight.shape
    groups = -(-columns // grid.group) if grid.group >= 1 else 0
    fits = grid.scale.shape == grid.zero.shape and grid.scale.shape in (
        (rows, groups),
        (1, groups),
    )
    if not fits or not 0 <= grid.low <= grid.high <= 255:
        raise UsageError(
            f"a grid for {rows} x {columns} weights in groups of {grid.group} needs scale and zero "
            f"({rows}, {groups}) and codes in 0..255; found {tuple(grid.scale.shape)}, "
            f"{tuple(grid.zero.shape)}, codes {grid.low}..{grid.high}"
        )
    if not (grid.scale.abs() > 0).all():  # nor NaN
        raise UsageError("the scales of a grid must be numbers other than 0")
    scale, zero = (
        t.to(weight.device, PRECISION).expand(rows, groups).clone() for t in (grid.scale, grid.zero)
    )
    return grid._replace(scale=scale, zero=zero)


def edges(columns: int, block: int, band: int | None) -> list[tuple[int, int, bool]]:
    """(first, last, whether a band begins): blocks of columns that no band cuts."""
    band = band or columns
    return [
        (first, min(first + block, start + band, columns), first == start)
        for start in range(0, columns, band)
        for first in range(start, min(start + band, columns), block)
    ]


def _fix_numba(*arguments: Any) -> None:
    _fix(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))


@njit(cache=True, nogil=True)
def _fix(w, u, scale, zero, group_of, low, high, keep, n, m, codes, values, errors):  # type: ignore[no-untyped-def]
    """Fixes the columns of a block one by one; u (b, b) is its part of U.

    All others are transposed, w (b, r) and scale (G, r): the rows are what the processor computes
    side by side.
    """
    columns, rows = w.shape
    least, most = np.float32(low), np.float32(high)
    for j in range(columns):
        if n < m and j % m == 0:
            _choose(w, u, keep, n, j, j + m)
        for r in range(rows):
            q = w[j, r]
            if scale.size:
                g = group_of[j]
                code = np.rint(q / scale[g, r]) + zero[g, r]
                code = min(max(code, least), most)
                if keep.size and not keep[j, r]:
                    code = zero[g, r]
                codes[j, r] = np.uint8(code)
                q = (code - zero[g, r]) * scale[g, r]
            elif keep.size and not keep[j, r]:
                q = np.float32(0)
            values[j, r] = q
            errors[j, r] = (w[j, r] - q) / u[j, j]
        for k in range(j + 1, columns):
            factor = u[j, k]
            for r in range(rows):
                w[k, r] -= errors[j, r] * factor


@njit(cache=True, nogil=True)
def _choose(w, u, keep, n, start, stop):  # type: ignore[no-untyped-def]
    """Keeps n of the columns start..stop in each row: all but those that cost least."""
    keep[start:stop] = True
    for r in range(w.shape[1]):
        for _ in range(stop - start - n):
            worst, least = start, np.float32(np.inf)
            for k in range(start, stop):
                score = (w[k, r] / u[k, k]) * (w[k, r] / u[k, k])
                if keep[k, r] and score < least:
                    worst, least = k, score
            keep[worst, r] = False


def _fix_torch(
    w: Tensor, u: Tensor, scale: Tensor, zero: Tensor, group_of: Tensor, low: int, high: int,
    keep: Tensor, n: int, m: int, codes: Tensor, values: Tensor, errors: Tensor,
) -> None:  # fmt: skip
    """`_fix` on any device, with the same roundings."""
    owner = group_of.tolist()  # once: an index on a GPU would be waited for
    for j in range(len(w)):
        if n < m and j % m == 0:
            score = (w[j : j + m] / u.diagonal()[j : j + m, None]).square()
            least = score.argsort(dim=0, stable=True)[: m - n]
            keep[j : j + m] = True
            keep[j : j + m].scatter_(0, least, False)
        q = w[j]
        if scale.numel():
            s, z = scale[owner[j]], zero[owner[j]]
            code = ((q / s).round() + z).clamp(low, high)
            code = torch.where(keep[j], code, z) if keep.numel() else code
            codes[j] = code.to(torch.uint8)
            q = (code - z) * s
        elif keep.numel():
            q = torch.where(keep[j], q, 0)
        e = (w[j] - q) / u[j, j]
        values[j], errors[j] = q, e
        w[j + 1 :] -= u[j, j + 1 :, None] * e
