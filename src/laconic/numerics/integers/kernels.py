"""The integer norm and softmax row by row on a CPU; the same whole numbers as their torch versions."""

import numpy as np
from numba import njit


@njit(cache=True, nogil=True)
def _right(x, by):  # type: ignore[no-untyped-def]
    if by > 62:
        return np.int64(0)
    if by <= 0:
        return x << -by
    return (x + (np.int64(1) << (by - 1))) >> by


@njit(cache=True, nogil=True)
def _length(x):  # type: ignore[no-untyped-def]
    bits = 0
    while x > 0:
        x >>= 1
        bits += 1
    return bits


@njit(cache=True, nogil=True)
def _inverse_root(x, table, steps, precision):  # type: ignore[no-untyped-def]
    even = ((_length(x) + 1) >> 1) << 1
    m = x >> (even - 30) if even > 30 else x << (30 - even)
    r = table[min(max(m >> 22, 0), 255)]
    for _ in range(steps):
        share = (m * ((r * r) >> 32)) >> 28
        r = (r * ((np.int64(3) << 30) - share)) >> 31
    return _right(r, 31 - precision), 45 + (even - 30) // 2 - (31 - precision)


@njit(cache=True, nogil=True)
def norm_rows(codes, shift, eps, centre, width, point, table, steps, out):  # type: ignore[no-untyped-def]
    """`integer_norm` of `codes` (R, N) with shifts (R, N), into `out` (R, N) int64."""
    rows, n = codes.shape
    x = np.empty(n, np.int64)
    for row in range(rows):
        least, finest = np.int64(1) << 40, -(np.int64(1) << 40)
        for i in range(n):
            if codes[row, i] != 0:
                least = min(least, np.int64(shift[row, i]))
                finest = max(finest, np.int64(shift[row, i]))
        size = np.int64(0)
        for i in range(n):
            code = np.int64(codes[row, i])
            if code != 0:
                size = max(size, _right(abs(code), np.int64(shift[row, i]) - least))
        common = 0 if least == np.int64(1) << 40 else min(finest, least + width - _length(size + 1))
        total, squares = np.int64(0), np.int64(0)
        for i in range(n):
            code = np.int64(codes[row, i])
            x[i] = _right(code, np.int64(shift[row, i]) - common) if code != 0 else 0
            total += x[i]
            squares += x[i] * x[i]
        total = total if centre else np.int64(0)
        floor = np.int64(np.rint(min((n * n * eps) * 2.0 ** (2.0 * common), 2.0**61)))
        spread = min(max(n * squares - total * total + floor, 1), 1 << 62)
        root, at = _inverse_root(spread, table, steps, 16)
        for i in range(n):
            out[row, i] = _right((n * x[i] - total) * root, at - point)


@njit(cache=True, nogil=True)
def _reciprocal(x, steps):  # type: ignore[no-untyped-def]
    length = _length(x)
    m = x >> (length - 31) if length > 31 else x << (31 - length)
    r = (np.int64(3) << 30) - m
    for _ in range(steps):
        r = (r * ((np.int64(1) << 32) - ((r * m) >> 30))) >> 31
    return _right(r, 1), length + 29


@njit(cache=True, nogil=True)
def softmax_rows(x, bits, per_row, lowest, point, table, steps, codes, shifts):  # type: ignore[no-untyped-def]
    """`integer_softmax` of `x` (R, N), into `codes` (R, N) and `shifts` (R,), all int64."""
    rows, n = x.shape
    power = np.empty(n, np.int64)
    for row in range(rows):
        top = x[row, 0]
        for i in range(1, n):
            top = max(top, x[row, i])
        total, most = np.int64(0), np.int64(0)
        for i in range(n):
            below = max(x[row, i] - top, lowest)
            power[i] = _right(table[(below >> (point - 8)) & 255], -(below >> point))
            total += power[i]
            most = max(most, power[i])
        inverse, shift = _reciprocal(total, steps)
        out = bits - _length(most * inverse) + shift if per_row else bits
        for i in range(n):
            codes[row, i] = min(_right(power[i] * inverse, shift - out), (1 << bits) - 1)
        shifts[row] = out
