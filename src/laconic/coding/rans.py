"""Interleaved range asymmetric numeral systems (Duda, 2013): the smallest of the two engines.

State 32 bits in [2^16, 2^32), renormalised by 16-bit words, 12-bit frequencies. Symbol i belongs to
lane i mod L: eight lanes for long inputs (independent work for the processor), one for short ones.
Stream: the final state of each lane (u32 each), then words (u16) in decoding order, little endian.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload

from laconic.coding.tables import PRECISION, TOTAL, Tables
from laconic.errors import CorruptFile, UsageError

LOW = 1 << 16
LANES = 8
SHORT = 2048  # symbols below index one lane is used: its state costs 4 bytes, eight cost 32
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
    steps, inverse = _steps(tables)
    if index.size:
        start = _encode(symbols, index, steps.reshape(-1), inverse.reshape(-1), states, words)
    else:
        start = _encode(symbols, None, steps[first], inverse[first], states, words)
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
    slots = _slots(tables)
    if index.size:
        whole = _decode(out, index, slots.reshape(-1), states, words)
    else:
        whole = _decode(out, None, slots[first], states, words)
    if not whole:
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
    if "rans slots" not in tables.derived:
        slots = np.empty((len(tables), TOTAL), np.uint32)
        for row, frequencies, cumulative in zip(slots, tables.frequencies, tables.cumulative):
            symbol = np.repeat(np.arange(256, dtype=np.uint32), frequencies)
            offset = np.arange(TOTAL, dtype=np.uint32) - cumulative[symbol]
            row[:] = symbol | (frequencies[symbol].astype(np.uint32) - 1) << 8 | offset << 20
        tables.derived["rans slots"] = slots
    return tables.derived["rans slots"]


def _steps(tables: Tables) -> tuple[np.ndarray, np.ndarray]:
    """Encode tables (K, 256): uint32 frequency | cumulative << 16, and float64 reciprocals."""
    if "rans steps" not in tables.derived:
        frequencies = tables.frequencies.astype(np.float64)
        # rounded up, so that floor(x * inverse) == x // f for all x < 2^32, f <= 2^12
        inverse = 1.0 / np.maximum(frequencies, 1.0) * (1.0 + 2.0**-50)
        tables.derived["rans inverse"] = inverse
        steps = tables.frequencies | tables.cumulative[:, :-1].astype(np.uint32) << 16
        tables.derived["rans steps"] = steps
    return tables.derived["rans steps"], tables.derived["rans inverse"]


def _table(index: Any, i: Any) -> Any:
    """The table of symbol i: what `index` names, or the only one where it is None."""


@overload(_table, inline="always")
def _typed_table(index, i):  # type: ignore[no-untyped-def]
    if isinstance(index, types.Array):
        return lambda index, i: np.int64(index[i])
    return lambda index, i: 0


@njit(cache=True, nogil=True, inline="always")
def _four(states, lane):  # type: ignore[no-untyped-def]
    """The states of four lanes, as registers."""
    a, b = np.int64(states[lane]), np.int64(states[lane + 1])
    return a, b, np.int64(states[lane + 2]), np.int64(states[lane + 3])


@njit(cache=True, nogil=True, inline="always")
def _four_tables(index, i):  # type: ignore[no-untyped-def]
    """The tables of symbols i to i + 3."""
    return _table(index, i), _table(index, i + 1), _table(index, i + 2), _table(index, i + 3)


@njit(cache=True, nogil=True, inline="always")
def _push(x, row, symbol, steps, inverse, words, position):  # type: ignore[no-untyped-def]
    """Puts one symbol on state `x`: (state, position, whether it has no frequency); no branches."""
    entry = (row << 8) + symbol
    step = np.int64(steps[entry])
    frequency = step & 0xFFFF
    words[position - 1] = x & 0xFFFF
    full = np.int64(x >= frequency << (32 - PRECISION))
    position -= full
    x >>= 16 * full
    quotient = np.int64(np.float64(x) * inverse[entry])
    x = (quotient << PRECISION) + (x - quotient * frequency) + (step >> 16)
    return x, position, frequency == 0


@njit(cache=True, nogil=True)
def _encode(symbols, index, steps, inverse, states, words):  # type: ignore[no-untyped-def]
    """Fills `words` from the end, `states` with the final states; returns the first word, or -1."""
    lanes = states.size
    position = words.size
    i = symbols.size
    fast = 0 if lanes < 8 else symbols.size & ~7
    missing = False
    while i > fast:
        i -= 1
        x, k = np.int64(states[i % lanes]), _table(index, i)
        x, position, none1 = _push(x, k, symbols[i], steps, inverse, words, position)
        missing |= none1
        states[i % lanes] = x
    if fast:
        a, b, c, d = _four(states, 0)
        e, f, g, h = _four(states, 4)
        while i > 0:
            i -= 8
            s, t, u, v = symbols[i + 7], symbols[i + 6], symbols[i + 5], symbols[i + 4]
            q, n, m, k = _four_tables(index, i + 4)
            h, position, none1 = _push(h, k, s, steps, inverse, words, position)
            g, position, none2 = _push(g, m, t, steps, inverse, words, position)
            f, position, none3 = _push(f, n, u, steps, inverse, words, position)
            e, position, none4 = _push(e, q, v, steps, inverse, words, position)
            missing |= none1 | none2 | none3 | none4
            s, t, u, v = symbols[i + 3], symbols[i + 2], symbols[i + 1], symbols[i]
            q, n, m, k = _four_tables(index, i)
            d, position, none1 = _push(d, k, s, steps, inverse, words, position)
            c, position, none2 = _push(c, m, t, steps, inverse, words, position)
            b, position, none3 = _push(b, n, u, steps, inverse, words, position)
            a, position, none4 = _push(a, q, v, steps, inverse, words, position)
            missing |= none1 | none2 | none3 | none4
        states[0], states[1], states[2], states[3] = a, b, c, d
        states[4], states[5], states[6], states[7] = e, f, g, h
    return -1 if missing else position


@njit(cache=True, nogil=True, inline="always")
def _pop(x, row, slots, words, position):  # type: ignore[no-untyped-def]
    """Takes one symbol off state `x`: (symbol, new state, new position); no branches, no check."""
    entry = np.int64(slots[(row << PRECISION) + (x & (TOTAL - 1))])
    x = (((entry >> 8) & 0xFFF) + 1) * (x >> PRECISION) + (entry >> 20)
    empty = np.int64(x < LOW)
    x = x << (16 * empty) | np.int64(words[position]) * empty
    return np.uint8(entry & 0xFF), x, position + empty


@njit(cache=True, nogil=True)
def _decode(out, index, slots, states, words):  # type: ignore[no-untyped-def]
    """Fills `out`; true when all states and words end where an encoder starts."""
    lanes = states.size
    count = out.size
    position = 0
    i = 0
    if lanes == 8:  # the fast path: eight states in registers
        a, b, c, d = _four(states, 0)
        e, f, g, h = _four(states, 4)
        while i + 8 <= count and position + 9 <= words.size:
            k, m, n, q = _four_tables(index, i)
            out[i], a, position = _pop(a, k, slots, words, position)
            out[i + 1], b, position = _pop(b, m, slots, words, position)
            out[i + 2], c, position = _pop(c, n, slots, words, position)
            out[i + 3], d, position = _pop(d, q, slots, words, position)
            k, m, n, q = _four_tables(index, i + 4)
            out[i + 4], e, position = _pop(e, k, slots, words, position)
            out[i + 5], f, position = _pop(f, m, slots, words, position)
            out[i + 6], g, position = _pop(g, n, slots, words, position)
            out[i + 7], h, position = _pop(h, q, slots, words, position)
            i += 8
        states[0], states[1], states[2], states[3] = a, b, c, d
        states[4], states[5], states[6], states[7] = e, f, g, h
    padding = np.zeros(1, np.uint16)
    while i < count:
        x, k = np.int64(states[i % lanes]), _table(index, i)
        if position < words.size:
            out[i], x, position = _pop(x, k, slots, words, position)
        else:
            out[i], x, overrun = _pop(x, k, slots, padding, 0)
            if overrun:
                return False
        states[i % lanes] = x
        i += 1
    return position == words.size and bool((states == LOW).all())
