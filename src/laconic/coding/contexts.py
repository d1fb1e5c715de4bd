"""The plane below a float's exponent, coded in the context of the exponent.

    byte of the plane: sign | bucket, the top three mantissa bits | four bits
    context: the byte of the plane above, exponent bits

A density that falls with the magnitude also falls within each octave, so that the top mantissa bits
lean towards zero, more so the larger the exponent. Sign and low bits are taken as uniform: a table
is eight frequencies, one a bucket, and most contexts share the uniform table. On bf16 weights this
saves another 0.6 % of the plane's bits, which no order-0 code can.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numba import njit

from laconic.coding import rans, varint
from laconic.coding.memory import load_u64
from laconic.coding.sharing import MOST
from laconic.coding.tables import PRECISION, SYMBOLS, TOTAL, Tables
from laconic.errors import CorruptFile

BUCKETS = 8
SHARE = TOTAL * BUCKETS // SYMBOLS  # what the frequencies of a context sum to
UNIFORM = SHARE // BUCKETS
CONTEXT_BITS = 72  # what a context takes in a file: its number and seven frequencies, rounded up


@dataclass(frozen=True, eq=False)
class ContextTables:
    """A frequency table for each context, piecewise constant over the buckets.

    Attributes:
        frequencies: (256, 8) uint8; row c is for context c, at least 1 each and 128 in all, the
            frequency out of 4096 of each of the 32 symbols in a bucket.

    Example:
        >>> joint = np.full((256, 8), 1000)
        >>> joint[120] = [4000, 2000, 1000, 1000, 1000, 1000, 500, 500]
        >>> sets = ContextTables.from_counts(joint)
        >>> sets.contexts.tolist(), sets.frequencies[120].tolist()
        ([120], [46, 23, 11, 12, 12, 12, 6, 6])
    """

    frequencies: np.ndarray

    @classmethod
    def from_counts(cls, joint: np.ndarray) -> "ContextTables":
        """Tables for the `joint_histogram` (256, 8); a context that does not pay is uniform."""
        frequencies = np.full((SYMBOLS, BUCKETS), UNIFORM, np.uint8)
        _fit(joint, frequencies)
        return cls(frequencies)

    @cached_property
    def contexts(self) -> np.ndarray:
        """(K,) the contexts that are not uniform, rising."""
        return np.flatnonzero((self.frequencies != UNIFORM).any(axis=1))

    @cached_property
    def lookup(self) -> np.ndarray:
        """(256,) uint16: from context to table number; 0 where it is uniform."""
        lookup = np.zeros(SYMBOLS, np.uint16)
        lookup[self.contexts] = np.arange(1, len(self.contexts) + 1)
        return lookup

    @cached_property
    def tables(self) -> Tables:
        """The K + 1 tables over byte symbols, the uniform one first."""
        rows = np.full((len(self.contexts) + 1, BUCKETS), UNIFORM, np.uint16)
        rows[1:] = self.frequencies[self.contexts]
        half = rows.repeat(SYMBOLS // BUCKETS // 2, axis=1)  # (K + 1, 128), without the sign
        return Tables(np.concatenate([half, half], axis=1))

    @cached_property
    def _cost(self) -> np.ndarray:
        """(256, 8) bits that a symbol takes."""
        cost: np.ndarray = PRECISION - np.log2(self.frequencies.astype(np.float64))
        return cost

    def bits(self, joint: np.ndarray) -> float:
        """The ideal length in bits of symbols with the `joint_histogram` (256, 8)."""
        return float((joint * self._cost).sum())

    def encode(
        self, symbols: np.ndarray, context: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Codes `symbols` (N,) uint8 in `context` (N,) uint8; for `out` see `rans.encode`."""
        return rans.encode(symbols, _look_up(self.lookup, context), self.tables, out)

    def decode(
        self, stream: np.ndarray, context: np.ndarray, out: np.ndarray | None = None
    ) -> np.ndarray:
        """The (N,) symbols of a stream of `encode`; for `out` and errors see `rans.decode`."""
        index = _look_up(self.lookup, context)
        return rans.decode(stream, context.size, index, self.tables, out)

    def to_bytes(self) -> bytes:
        """Compact form: the count of contexts, then for each a gap and seven frequencies."""
        out = bytearray()
        varint.put(out, len(self.contexts))
        last = -1
        for context in self.contexts.tolist():
            varint.put(out, context - last - 1)
            out += self.frequencies[context, :-1].tobytes()  # the last is what is left of 128
            last = context
        return bytes(out)

    @classmethod
    def read(cls, reader: varint.Reader) -> "ContextTables":
        """Reads what `to_bytes` wrote, of one context at least.

        Raises:
            CorruptFile: contexts or frequencies are out of range.
        """
        frequencies = np.full((SYMBOLS, BUCKETS), UNIFORM, np.uint8)
        context = -1
        count = reader.varint(SYMBOLS)
        for _ in range(count):
            context += 1 + reader.varint(SYMBOLS)
            stored = bytes(reader.take(BUCKETS - 1))
            left = SHARE - sum(stored)
            if context >= SYMBOLS or min(stored) < 1 or left < 1:
                raise CorruptFile(f"{reader.what}: a context table is damaged")
            frequencies[context] = [*stored, left]
        if count == 0:
            raise CorruptFile(f"{reader.what}: a set of context tables is empty")
        return cls(frequencies)


class Context(NamedTuple):
    """What a plane is coded in the context of: a set of tables and its number, the plane above."""

    number: int
    tables: ContextTables
    above: np.ndarray


class ContextBook:
    """Sets of context tables made batch by batch; the last set serves again where it is as good.

    Attributes:
        sets: the sets so far.

    Example:
        >>> book = ContextBook()
        >>> joint = np.outer(np.full(256, 10), [800, 700, 600, 500, 400, 300, 200, 100])
        >>> book.assign(joint), book.assign(joint + 1), book.assign(joint[:, ::-1])
        (0, 0, 1)
    """

    def __init__(self) -> None:
        self.sets: list[ContextTables] = []
        self._contexts = 0

    def assign(self, joint: np.ndarray) -> int:
        """The number of the set for symbols with the `joint_histogram` (256, 8)."""
        fresh = ContextTables.from_counts(joint)
        limit = fresh.bits(joint) + 8 * len(fresh.to_bytes())
        full = self._contexts + len(fresh.contexts) > MOST
        if not self.sets or not (full or self.sets[-1].bits(joint) <= limit):
            self.sets.append(fresh)
            self._contexts += len(fresh.contexts)
        return len(self.sets) - 1


@njit(cache=True, nogil=True)
def joint_histogram(symbols, context):  # type: ignore[no-untyped-def]
    """(256, 8) int64: how often each bucket of `symbols` (N,) occurs in each `context` (N,)."""
    tallies = np.zeros((4, SYMBOLS * BUCKETS), np.uint32)
    whole = symbols.size & ~7
    for i in range(0, whole, 8):
        eight, above = load_u64(symbols, i), load_u64(context, i)
        for j in range(8):
            bucket = (eight >> np.uint64(8 * j + 4)) & np.uint64(BUCKETS - 1)
            row = (above >> np.uint64(8 * j)) & np.uint64(SYMBOLS - 1)
            tallies[j & 3, row << np.uint64(3) | bucket] += np.uint32(1)
    for i in range(whole, symbols.size):
        tallies[0, context[i] * BUCKETS + (symbols[i] >> 4 & (BUCKETS - 1))] += np.uint32(1)
    out = np.zeros((SYMBOLS, BUCKETS), np.int64)
    for j in range(4):
        for c in range(SYMBOLS):
            for k in range(BUCKETS):
                out[c, k] += tallies[j, c * BUCKETS + k]
    return out


@njit(cache=True, nogil=True)
def _fit(joint, frequencies):  # type: ignore[no-untyped-def]
    """Frequencies close to least code length for each row of `joint` that pays for them."""
    for c in range(SYMBOLS):
        total = joint[c].sum()
        if 3 * total <= CONTEXT_BITS:
            continue
        f = np.empty(BUCKETS, np.int64)
        for k in range(BUCKETS):
            f[k] = max(1, int(joint[c, k] * (SHARE / total) + 0.5))
        while f.sum() != SHARE:
            step = 1 if f.sum() < SHARE else -1
            best, gain = -1, -np.inf
            for k in range(BUCKETS):
                if f[k] + step > 0 and joint[c, k] * np.log2((f[k] + step) / f[k]) > gain:
                    best, gain = k, joint[c, k] * np.log2((f[k] + step) / f[k])
            f[best] += step
        if (joint[c] * np.log2(f / UNIFORM)).sum() > CONTEXT_BITS:
            frequencies[c] = f


@njit(cache=True, nogil=True)
def _look_up(lookup, context):  # type: ignore[no-untyped-def]
    out = np.empty(context.size, np.uint16)
    for i in range(context.size):
        out[i] = lookup[context[i]]
    return out
