"""Differences of words as tokens and raw bits, and back: loops for one width."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.coding.memory import load_u64, store_u64

DIRECT = 64  # differences, zigzag, that are tokens of their own
FIRST = 6  # length of the first that is not


class Kernels(NamedTuple):
    count: Callable[..., int]
    split: Callable[..., None]
    contexts: Callable[..., None]
    join: Callable[..., bool]


@cache
def kernels_of(itemsize: int, ordered: bool) -> Kernels:
    """Loops compiled for one width, of floats (`ordered`) or of whole numbers.

    Example:
        >>> counts = np.zeros((256, 256), np.int64)
        >>> now, before = np.array([3, 200], np.uint16), np.array([3, 100], np.uint16)
        >>> int(kernels_of(2, False).count(now, before, counts))  # bits that are in no token
        5
    """
    width, top = 8 * itemsize, 1 if itemsize == 8 else 2
    full = np.uint64((1 << width) - 1)
    half = np.uint64(1 << (width - 1))
    below, one = np.uint64((1 << (width - 1)) - 1), np.uint64(1)

    @njit(inline="always")
    def context(word):  # type: ignore[no-untyped-def]
        return (word << one & full) >> np.uint64(width - 8)

    @njit(inline="always")
    def flipped(word):  # type: ignore[no-untyped-def]
        """Floats to monotone integers."""
        if ordered and word & half:
            return word & below ^ full
        return word

    @njit(inline="always")
    def zigzag(current, before):  # type: ignore[no-untyped-def]
        d = flipped(current) - flipped(before) & full
        return (d << one & full) ^ full if d & half else d << one

    @njit(inline="always")
    def length(z):  # type: ignore[no-untyped-def]
        """The place of the leading bit."""
        e = 0
        for step in (32, 16, 8, 4, 2, 1):
            if z >> np.uint64(e + step):
                e += step
        return e

    @njit(inline="always")
    def token(z):  # type: ignore[no-untyped-def]
        """(token, how many bits are left)."""
        if z < DIRECT:
            return np.int64(z), 0
        e = length(z)
        lead = np.int64(z >> np.uint64(e - top)) & ((1 << top) - 1)
        return DIRECT + (e - FIRST << top) + lead, e - top

    @njit(cache=True, nogil=True)
    def count(current, before, counts):  # type: ignore[no-untyped-def]
        bits = 0
        for i in range(current.size):
            a, b = np.uint64(current[i]), np.uint64(before[i])
            t, left = token(zigzag(a, b))
            counts[context(b), t] += 1
            bits += left
        return bits

    @njit(cache=True, nogil=True)
    def split(current, before, groups, tokens, index, low):  # type: ignore[no-untyped-def]
        at = 0
        for i in range(current.size):
            a, b = np.uint64(current[i]), np.uint64(before[i])
            z = zigzag(a, b)
            tokens[i], left = token(z)
            index[i] = groups[context(b)]
            while left:  # at most 32 bits at a time, which fit eight bytes wherever they begin
                take = left if left < 32 else 32
                piece = z & (one << np.uint64(take)) - one
                old = load_u64(low, at >> 3)
                store_u64(low, at >> 3, old | piece << np.uint64(at & 7))
                z >>= np.uint64(take)
                at, left = at + take, left - take

    @njit(cache=True, nogil=True)
    def contexts(before, groups, index):  # type: ignore[no-untyped-def]
        for i in range(before.size):
            index[i] = groups[context(np.uint64(before[i]))]

    @njit(cache=True, nogil=True)
    def join(tokens, low, before, out):  # type: ignore[no-untyped-def]
        """False if bits are missing, left over, or of no number; `low` has eight bytes behind them."""
        at, end = np.int64(0), 8 * (low.size - 8)
        for i in range(before.size):
            z = np.uint64(tokens[i])
            if z >= DIRECT:
                q = np.int64(z) - DIRECT
                e = FIRST + (q >> top)
                left = e - top
                if e >= width or at + left > end:
                    return False
                z = one << np.uint64(e) | np.uint64(q & ((1 << top) - 1)) << np.uint64(left)
                done = np.int64(0)
                while done < left:
                    take = left - done if left - done < 32 else 32
                    piece = load_u64(low, at >> 3) >> np.uint64(at & 7)
                    piece &= (one << np.uint64(take)) - one
                    z |= piece << np.uint64(done)
                    at, done = at + take, done + take
            d = z >> one ^ full if z & one else z >> one
            word = flipped(np.uint64(before[i])) + d & full
            if ordered and word & half:
                word = half | (word ^ full)
            out[i] = word
        return end - at < 8

    return Kernels(count, split, contexts, join)
