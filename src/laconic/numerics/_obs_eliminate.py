"""The row-wise eliminations that `obs_exact` is made of, compiled and for any device."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

SMALLEST = 1e-300  # pivot: what is left of an inverse may round to less than 0
OUTSIDE = 0.5 + 1e-6  # steps from the nearest grid point: farther is outside of the grid


def eliminate_numba(*arguments: object) -> None:
    _eliminate(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))


@njit(cache=True, nogil=True, inline="always")
def _rounded(x, scale, zero, low, high):  # type: ignore[no-untyped-def]
    """The code nearest to `x`."""
    return min(max(np.rint(x / scale) + zero, np.float64(low)), np.float64(high))


@njit(cache=True, nogil=True)
def _drop(h, x, index, at, n):  # type: ignore[no-untyped-def]
    """Eliminates entry `at` of the n left, and puts the last in its place."""
    last = n - 1
    column = h[at, :n].copy()
    pivot = column[at]
    column[at] = column[last]
    for k in range(n):  # swap the entries `at` and `last`
        h[at, k] = h[last, k]
    for k in range(n):
        h[k, at] = h[k, last]
    index[at], x[at] = index[last], x[last]
    for p in range(last):
        factor = column[p] / pivot
        for k in range(last):
            h[p, k] -= factor * column[k]
    return column, pivot


@njit(cache=True, nogil=True)
def _eliminate(  # type: ignore[no-untyped-def]
    w, inverse, scale, zero, low, high, keep, least, run, order, loss, codes
):
    """Fixes weights of w (r, C) until `order` (r, S) is full, and writes the results into w."""
    columns = w.shape[1]
    grid = scale.shape[0] > 0
    h, x = np.empty((columns, columns)), np.empty(columns)
    index = np.empty(columns, np.int64)
    for r in range(w.shape[0]):
        h[:], x[:], index[:] = inverse, w[r], np.arange(columns)
        n = columns
        left = np.full(columns // run, run, np.int64)  # weights left in each run of the pattern
        for p in range(columns - 1, -1, -1):  # from the end: swaps do not reach what is to come
            if not keep[r, p]:
                codes[r, p] = np.uint8(zero[r, p]) if grid else 0
                _drop(h, x, index, p, n)
                n -= 1
        for s in range(min(order.shape[1], n)):
            at, best, farthest = -1, np.inf, 0.0
            for p in range(n):
                j = index[p]
                if left[j // run] == least:
                    continue
                error, steps_off = x[p], 0.0
                if grid:
                    code = _rounded(x[p], scale[r, j], zero[r, j], low, high)
                    error = x[p] - (code - zero[r, j]) * scale[r, j]
                    steps_off = abs(error) / scale[r, j]
                if steps_off > OUTSIDE:
                    if abs(error) > farthest:
                        at, best, farthest = p, error * error / h[p, p], abs(error)
                elif farthest == 0:
                    cost = error * error / h[p, p]
                    if cost < best or (cost == best and j < index[at]):
                        at, best = p, cost
            j = index[at]
            q = 0.0
            if grid:
                code = _rounded(x[at], scale[r, j], zero[r, j], low, high)
                q = (code - zero[r, j]) * scale[r, j]
                codes[r, j] = np.uint8(code)
            error = x[at] - q
            w[r, j], order[r, s], loss[r, s] = q, j, error * error / h[at, at]
            left[j // run] -= 1
            column, pivot = _drop(h, x, index, at, n)
            n -= 1
            for k in range(n):
                x[k] -= column[k] * (error / pivot)
        for p in range(n):
            w[r, index[p]] = x[p]


def eliminate_blocks_numba(*arguments: object) -> None:
    _eliminate_blocks(*(a.numpy() if isinstance(a, Tensor) else a for a in arguments))


@njit(cache=True, nogil=True)
def _block_cost(h, x, at):  # type: ignore[no-untyped-def]
    """x_B (h_BB)^-1 x_B for the entries `at`: what it costs to make them zero together."""
    size = at.size
    lower, y = np.empty((size, size)), np.empty(size)
    total = 0.0
    for i in range(size):
        for j in range(i + 1):
            value = h[at[i], at[j]]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            lower[i, j] = np.sqrt(max(value, SMALLEST)) if i == j else value / lower[j, j]
        y[i] = x[at[i]]
        for k in range(i):
            y[i] -= lower[i, k] * y[k]
        y[i] /= lower[i, i]
        total += y[i] * y[i]
    return total


@njit(cache=True, nogil=True)
def _eliminate_blocks(w, inverse, size, order, loss):  # type: ignore[no-untyped-def]
    """Zeros blocks of `size` columns of w (r, C) until `order` (r, S) is full of their numbers."""
    columns = w.shape[1]
    h, x = np.empty((columns, columns)), np.empty(columns)
    index, place = np.empty(columns, np.int64), np.empty(columns, np.int64)
    at = np.empty(size, np.int64)
    for r in range(w.shape[0]):
        h[:], x[:], index[:], place[:] = inverse, w[r], np.arange(columns), np.arange(columns)
        n = columns
        for s in range(order.shape[1]):
            chosen, best = -1, np.inf
            for block in range(columns // size):
                if place[block * size] >= 0:
                    at[:] = place[block * size : (block + 1) * size]
                    cost = _block_cost(h, x, at)
                    if cost < best or chosen < 0:
                        chosen, best = block, cost
            order[r, s], loss[r, s] = chosen, best
            for j in range(chosen * size, (chosen + 1) * size):
                p = place[j]
                value = x[p]
                place[index[n - 1]], place[j] = p, -1
                column, pivot = _drop(h, x, index, p, n)
                n -= 1
                for k in range(n):
                    x[k] -= column[k] * (value / pivot)
                w[r, j] = 0
        for p in range(n):
            w[r, index[p]] = x[p]


def eliminate_blocks_torch(
    w: Tensor, inverse: Tensor, size: int, order: Tensor, loss: Tensor
) -> None:
    """`_eliminate_blocks` on any device, all rows of `w` (r, C) together; equal up to rounding."""
    rows, columns = w.shape
    row = torch.arange(rows, device=w.device)
    h = inverse.repeat(rows, 1, 1)
    alive = torch.ones(rows, columns // size, dtype=torch.bool, device=w.device)
    within = torch.arange(size, device=w.device)
    for s in range(order.shape[1]):
        tiles = h.reshape(rows, columns // size, size, columns // size, size)
        own = tiles.diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)  # (r, blocks, size, size)
        own = torch.where(
            alive[..., None, None], own, torch.eye(size, dtype=w.dtype, device=w.device)
        )
        values = w.reshape(rows, -1, size, 1)
        cost = (values * torch.linalg.solve(own, values)).sum(dim=(2, 3))
        cost, chosen = cost.masked_fill(~alive, torch.inf).min(dim=1)
        order[:, s], loss[:, s] = chosen, cost
        at = chosen[:, None] * size + within  # (r, size)
        pulled = h.gather(1, at[:, :, None].expand(-1, -1, columns))  # (r, size, C)
        solved = torch.linalg.solve(own[row, chosen], pulled)
        w.sub_((values[row, chosen].mT @ solved).squeeze(1))
        h.baddbmm_(pulled.mT, solved, alpha=-1)
        alive[row, chosen] = False
        w.masked_fill_(~alive.repeat_interleave(size, dim=1), 0)


def eliminate_torch(
    w: Tensor, inverse: Tensor, scale: Tensor, zero: Tensor, low: int, high: int, keep: Tensor,
    least: int, run: int, order: Tensor, loss: Tensor, codes: Tensor,
) -> None:  # fmt: skip
    """`_eliminate` on any device, all rows of `w` (r, C) together; equal up to rounding.

    No row has an inverse of its own: it is the shared one less the products of the columns that were
    eliminated, which are kept, and of it only a column a step is formed.
    """
    rows, columns = w.shape
    row = torch.arange(rows, device=w.device)
    grid = scale.shape[0] > 0
    alive = torch.ones_like(keep)
    left = torch.full((rows, columns // run), run, device=w.device)
    absent = int((~keep).sum(dim=1).max()) if rows else 0
    taken = w.new_empty(rows, absent + order.shape[1], columns)
    diagonal = inverse.diagonal().repeat(rows, 1)

    def drop(step: int, at: Tensor, move: Tensor, active: Tensor) -> None:
        """Eliminates one weight of each active row, and lets the others take up `move`."""
        past = taken[:, :step]
        column = inverse[at] - (past[row, :, at].unsqueeze(1) @ past).squeeze(1)  # (r, C)
        pivot = column[row, at].where(active, 1.0)
        column *= alive & active.unsqueeze(1)
        w.sub_(column * (move / pivot).unsqueeze(1))
        column /= pivot.sqrt().unsqueeze(1)
        taken[:, step] = column
        diagonal.sub_(column.square())
        alive[row, at] &= ~active

    if grid:
        codes.copy_(torch.where(keep, 0, zero).to(torch.uint8))
    gone = keep.long().argsort(dim=1, stable=True)
    for s in range(absent):
        drop(s, gone[:, s], torch.zeros_like(w[:, 0]), ~keep[row, gone[:, s]])
    w.masked_fill_(~keep, 0)
    for s in range(order.shape[1]):
        q, code = torch.zeros_like(w), torch.zeros_like(w)
        if grid:
            code = ((w / scale).round() + zero).clamp(low, high)
            q = (code - zero) * scale
        error = w - q
        open_ = alive & (left != least).repeat_interleave(run, dim=1)
        cost = (error.square() / diagonal).masked_fill(~open_, torch.inf)
        at = cost.argmin(dim=1)
        if grid:
            outside = (error.abs() / scale > OUTSIDE) & open_
            far = error.abs().masked_fill(~outside, -1).argmax(dim=1)
            at = torch.where(outside.any(dim=1), far, at)
        active = open_.any(dim=1)
        target, move = q[row, at], error[row, at]
        fixed = torch.where(active, target, w[row, at])
        order[:, s] = torch.where(active, at, -1)
        loss[:, s] = torch.where(active, cost[row, at], 0)
        codes[row, at] = torch.where(active, code[row, at].to(torch.uint8), codes[row, at])
        left[row, at // run] -= active.long()
        drop(absent + s, at, move * active, active)
        w[row, at] = fixed
