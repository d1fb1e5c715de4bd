"""Interleaved range asymmetric numeral systems (Duda, 2013): the smallest of the two engines.

State 32 bits in [2^16, 2^32), renormalised by 16-bit words, 12-bit frequencies. Symbol i belongs to
lane i mod L: eight lanes for long inputs (independent work for the processor), one for short ones.
Stream: the final state of each lane (u32 each), then words (u16) in decoding order, little endian.
"""

import numpy as np
from numba import njit

from laconic.coding.tables import PRECISION, TOTAL, Tables
from laconic.errors import CorruptFile, UsageError

LOW = 1 << 16
LANES = 8
SHORT = 2048  # symbols below which one lane is used: its state costs 4 bytes, eight cost 32
NO_INDEX = np.zeros(0, np.uint16)

Index = np.ndarray | int


def encode(
    symbols: np.ndarray, table_index: Index, tables: Tables, out: np.ndarray | None = None
) -> np.ndarray:
    """Codes `symbols` (N,) uint8, each under the table that `table_index` names.

    Args:
        symbols: (N,) uint8.
        table_index: one table for all, or (N,) one for each symbol.
        tables: the tables; every symbol must have a frequency above zero in its table.
        out: `room(N)` bytes or more to work in; the result is a part of it. New memory by default.

    Returns:
        The stream as (bytes,) uint8. Decoding needs the same tables and indices and N.

    Raises:
        UsageError: a symbol is excluded by its table, an index names no table, or `out` is too
            small or no writable bytes.

    Example:
        >>> data = np.array([3, 3, 5, 3], np.uint8)
        >>> tables = Tables.from_counts(np.bincount(data, minlength=256)[None])
        >>> decode(encode(data, 0, tables), 4, 0, tables).tolist()
        [3, 3, 5, 3]
    """
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8).reshape(-1)
    first, index = split_index(table_index, symbols.size, tables)
    states = np.full(_lanes(symbols.size), LOW, np.uint32)
    out = work_space(out, room(symbols.size))
    words = out[: out.size & ~1].view(np.uint16)
    start = _encode(symbols, first, index, tables.frequencies, tables.cumulative, states, words)
    if start < 0:
        raise UsageError("a symbol occurs that its frequency table excludes")
    head = 2 * start - states.nbytes
    out[head : 2 * start] = states.astype("<u4").view(np.uint8)
    return out[head : words.nbytes]


def decode(
    stream: np.ndarray,
    count: int,
    table_index: Index,
    tables: Tables,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The `count` symbols of a stream written by `encode` with the same index and tables.

    They are written to the start of `out` uint8 where that is given. There is no checksum: an
    altered stream may give other symbols. `count` is trusted: a certain symbol takes no bits.

    Raises:
        CorruptFile: the stream is truncated, too long or altered in a way that shows.
    """
    stream = np.ascontiguousarray(stream, dtype=np.uint8).reshape(-1)
    first, index = split_index(table_index, count, tables)
    lanes = _lanes(count)
    if stream.size < 4 * lanes or stream.size % 2:
        raise CorruptFile(f"rANS stream of {stream.size} bytes is shorter than its {lanes} states")
    states = stream[: 4 * lanes].view("<u4").astype(np.uint32)
    words = stream[4 * lanes :].view("<u2").astype(np.uint16, copy=False)
    out = work_space(out, count)[:count]
    if not _decode(out, first, index, _slots(tables), states, words):
        raise CorruptFile("rANS stream is damaged: its states or words do not end where they must")
    return out


def room(count: int) -> int:
    """Bytes that `encode` may touch for `count` symbols: a word each at the most, the states."""
    return 2 * count + 8 * LANES


def _lanes(count: int) -> int:
    return LANES if count >= SHORT else 1


def split_index(table_index: Index, count: int, tables: Tables) -> tuple[int, np.ndarray]:
    """(table for all, per-symbol indices or an empty array), checked against the tables."""
    if isinstance(table_index, int | np.integer):
        first, index = int(table_index), NO_INDEX
        bad = not 0 <= first < len(tables)
    else:
        first, given = 0, np.asarray(table_index).reshape(-1)
        if given.size != count:
            raise UsageError(f"{count} symbols need as many table indices, found {given.size}")
        low, high = (int(given.min()), int(given.max())) if given.size else (0, 0)
        bad = low < 0 or high >= min(len(tables), 1 << 16)
        index = np.ascontiguousarray(given, dtype=np.uint16)
    if bad:
        raise UsageError(f"a table index is out of range: there are {len(tables)} tables")
    return first, index


def work_space(out: np.ndarray | None, size: int) -> np.ndarray:
    """`out`, checked to be `size` writable bytes or more; new memory where it is None."""
    if out is None:
        return np.empty(size, np.uint8)
    if out.dtype != np.uint8 or out.ndim != 1 or not (out.flags.carray and out.size >= size):
        raise UsageError(f"out must be {size} contiguous, writable bytes or more")
    return out


def _slots(tables: Tables) -> np.ndarray:
    """(K, 4096) uint32 decode table: symbol | (frequency - 1) << 8 | offset in its range << 20."""
    if "rans" not in tables.derived:
        slots = np.empty((len(tables), TOTAL), np.uint32)
        for row, frequencies, cumulative in zip(slots, tables.frequencies, tables.cumulative):
            symbol = np.repeat(np.arange(256, dtype=np.uint32), frequencies)
            offset = np.arange(TOTAL, dtype=np.uint32) - cumulative[symbol]
            row[:] = symbol | (frequencies[symbol].astype(np.uint32) - 1) << 8 | offset << 20
        tables.derived["rans"] = slots
    return tables.derived["rans"]


@njit(cache=True, nogil=True, inline="always")
def _four(states, lane):  # type: ignore[no-untyped-def]
    """The states of four lanes, as registers."""
    a, b = np.int64(states[lane]), np.int64(states[lane + 1])
    return a, b, np.int64(states[lane + 2]), np.int64(states[lane + 3])


@njit(cache=True, nogil=True, inline="always")
def _push(x, frequency, cumulative, inverse, words, position):  # type: ignore[no-untyped-def]
    """Puts one symbol on state `x`: (new state, new position); no branches to mispredict."""
    words[position - 1] = x & 0xFFFF
    full = np.int64(x >= frequency << (32 - PRECISION))
    position -= full
    x >>= 16 * full
    quotient = np.int64(np.float64(x) * inverse)
    return (quotient << PRECISION) + (x - quotient * frequency) + cumulative, position


@njit(cache=True, nogil=True)
def _encode(symbols, first, index, frequencies, cumulative, states, words):  # type: ignore[no-untyped-def]
    """Fills `words` from the end, `states` with the final states; returns the first word, or -1."""
    tables = frequencies.shape[0]
    inverse = np.empty((tables, 256), np.float64)
    frequency = np.empty((tables, 256), np.int64)
    start = np.empty((tables, 256), np.int64)
    for k in range(tables):
        for s in range(256):
            f = np.int64(frequencies[k, s])
            frequency[k, s] = f
            start[k, s] = cumulative[k, s]
            # rounded up, so that floor(x * inverse) == x // f for all x < 2^32, f <= 2^12
            inverse[k, s] = (1.0 / f) * (1.0 + 2.0**-50) if f else 0.0
    indexed = index.size > 0
    lanes = states.size
    position = words.size
    i = symbols.size
    fast = 0 if indexed or lanes < 8 else symbols.size & ~7
    missing = False
    while i > fast:
        i -= 1
        k = index[i] if indexed else first
        s = symbols[i]
        missing |= frequency[k, s] == 0
        x = np.int64(states[i % lanes])
        x, position = _push(x, frequency[k, s], start[k, s], inverse[k, s], words, position)
        states[i % lanes] = x
    if fast:
        a, b, c, d = _four(states, 0)
        e, f, g, h = _four(states, 4)
        F, C, R = frequency[first], start[first], inverse[first]
        while i > 0:
            i -= 8
            s, t, u, v = symbols[i + 7], symbols[i + 6], symbols[i + 5], symbols[i + 4]
            h, position = _push(h, F[s], C[s], R[s], words, position)
            g, position = _push(g, F[t], C[t], R[t], words, position)
            f, position = _push(f, F[u], C[u], R[u], words, position)
            e, position = _push(e, F[v], C[v], R[v], words, position)
            missing |= (F[s] == 0) | (F[t] == 0) | (F[u] == 0) | (F[v] == 0)
            s, t, u, v = symbols[i + 3], symbols[i + 2], symbols[i + 1], symbols[i]
            d, position = _push(d, F[s], C[s], R[s], words, position)
            c, position = _push(c, F[t], C[t], R[t], words, position)
            b, position = _push(b, F[u], C[u], R[u], words, position)
            a, position = _push(a, F[v], C[v], R[v], words, position)
            missing |= (F[s] == 0) | (F[t] == 0) | (F[u] == 0) | (F[v] == 0)
        states[0], states[1], states[2], states[3] = a, b, c, d
        states[4], states[5], states[6], states[7] = e, f, g, h
    return -1 if missing else position


@njit(cache=True, nogil=True, inline="always")
def _pop(x, slots, words, position):  # type: ignore[no-untyped-def]
    """Takes one symbol off state `x`: (symbol, new state, new position); no branches, no check."""
    entry = np.int64(slots[x & (TOTAL - 1)])
    x = (((entry >> 8) & 0xFFF) + 1) * (x >> PRECISION) + (entry >> 20)
    empty = np.int64(x < LOW)
    x = x << (16 * empty) | np.int64(words[position]) * empty
    return np.uint8(entry & 0xFF), x, position + empty


@njit(cache=True, nogil=True)
def _decode(out, first, index, slots, states, words):  # type: ignore[no-untyped-def]
    """Fills `out`; true when all states and words end where an encoder starts."""
    indexed = index.size > 0
    lanes = states.size
    count = out.size
    position = 0
    i = 0
    if lanes == 8 and not indexed:  # the fast path: eight states in registers
        table = slots[first]
        a, b, c, d = _four(states, 0)
        e, f, g, h = _four(states, 4)
        while i + 8 <= count and position + 9 <= words.size:
            out[i], a, position = _pop(a, table, words, position)
            out[i + 1], b, position = _pop(b, table, words, position)
            out[i + 2], c, position = _pop(c, table, words, position)
            out[i + 3], d, position = _pop(d, table, words, position)
            out[i + 4], e, position = _pop(e, table, words, position)
            out[i + 5], f, position = _pop(f, table, words, position)
            out[i + 6], g, position = _pop(g, table, words, position)
            out[i + 7], h, position = _pop(h, table, words, position)
            i += 8
        states[0], states[1], states[2], states[3] = a, b, c, d
        states[4], states[5], states[6], states[7] = e, f, g, h
    padding = np.zeros(1, np.uint16)
    while i < count:
        x = np.int64(states[i % lanes])
        k = index[i] if indexed else first
        if position < words.size:
            out[i], x, position = _pop(x, slots[k], words, position)
        else:
            out[i], x, overrun = _pop(x, slots[k], padding, 0)
            if overrun:
                return False
        states[i % lanes] = x
        i += 1
    return position == words.size and bool((states == LOW).all())
