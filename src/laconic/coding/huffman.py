"""Length-limited Huffman codes with a multi-symbol decoding table: the fastest of the two engines.

Codes are canonical, at most 12 bits long (package-merge, Larmore and Hirschberg, 1990), and written
least significant bit first, so that a decoder's window is `bits & 4095`. One table entry decodes up
to seven symbols: 56 bits of symbols, 4 bits of count, 4 bits of length. A long input is cut in
quarters, each its own stream, which are decoded together: four independent chains of look-ups.

Stream: for one table and 2,048 symbols or more, the byte lengths of the first three quarters (u32,
little endian), then the four quarters; otherwise one stream.
"""

import numpy as np
from numba import njit

from laconic.coding.huffman_tables import (
    CODE,
    LENGTH,
    MISSING,
    PER_ENTRY,
    encode_table,
    multi_table,
    single_table,
)
from laconic.coding.memory import load_u64, store_u64
from laconic.coding.rans import SHORT, Index, split_index, work_space
from laconic.coding.tables import PRECISION, TOTAL, Tables
from laconic.errors import CorruptFile, UsageError

QUARTERS = 4
LONGEST = 1 << 33  # symbols a stream; the length of a quarter fits 32 bits
MASK = np.uint64(TOTAL - 1)
BYTE = np.uint64(255)


def encode(
    symbols: np.ndarray, table_index: Index, tables: Tables, out: np.ndarray | None = None
) -> np.ndarray:
    """Codes `symbols` (N,) uint8; arguments, result and errors are those of `rans.encode`.

    Example:
        >>> data = np.array([3, 3, 5, 3], np.uint8)
        >>> tables = Tables.from_counts(np.bincount(data, minlength=256)[None])
        >>> decode(encode(data, 0, tables), 4, 0, tables).tolist()
        [3, 3, 5, 3]
    """
    symbols = np.ascontiguousarray(symbols, dtype=np.uint8).reshape(-1)
    if symbols.size > LONGEST:
        raise UsageError(f"a stream holds at most {LONGEST} symbols, found {symbols.size}")
    first, index = split_index(table_index, symbols.size, tables)
    codes = encode_table(tables)
    out = work_space(out, room(symbols.size))
    if index.size:
        end = _encode_indexed(symbols, index, codes, out)
    elif symbols.size < SHORT:
        end = _encode_run(symbols, 0, symbols.size, codes[first], out, 0)
    else:
        end = _encode_quarters(symbols, codes[first], out)
    if end < 0:
        raise UsageError("a symbol occurs that its frequency table excludes")
    return out[:end]


def decode(
    stream: np.ndarray,
    count: int,
    table_index: Index,
    tables: Tables,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """The `count` symbols of a stream written by `encode`; as `rans.decode`.

    Raises:
        CorruptFile: the stream is truncated, too long or altered in a way that shows.
    """
    stream = np.ascontiguousarray(stream, dtype=np.uint8).reshape(-1)
    if count > 8 * stream.size:
        raise CorruptFile(f"Huffman stream of {stream.size} bytes cannot hold {count} symbols")
    first, index = split_index(table_index, count, tables)
    out = work_space(out, count)[:count]
    if index.size:
        whole = _decode_indexed(stream, index, single_table(tables), out)
    elif count < SHORT:
        single = single_table(tables)[first]
        whole = _decode_tail(stream, 0, stream.size, 0, out, 0, count, single)
    else:
        whole = _decode_quarters(
            stream, out, multi_table(tables)[first], single_table(tables)[first]
        )
    if not whole:
        raise CorruptFile("Huffman stream is damaged: its symbols do not end where its bytes do")
    return out


def room(count: int) -> int:
    """Bytes that `encode` may touch for `count` symbols."""
    return count * PRECISION // 8 + 64


@njit(cache=True, nogil=True, inline="always")
def _flush(accumulator, held, out, position):  # type: ignore[no-untyped-def]
    """Writes whole bytes; at most seven bits stay: (accumulator, held, position)."""
    store_u64(out, position, accumulator)
    whole = held & ~np.uint64(7)
    return accumulator >> whole, held & np.uint64(7), position + np.int64(held >> np.uint64(3))


@njit(cache=True, nogil=True)
def _encode_run(symbols, start, stop, codes, out, position):  # type: ignore[no-untyped-def]
    """Writes symbols start..stop from byte `position` on; returns the byte after, or -1."""
    accumulator = np.uint64(0)
    held = np.uint64(0)
    seen = np.uint64(0)
    whole = max(start, start + ((stop - start - 8) & ~3))  # eight bytes are loaded for four
    for i in range(start, whole, 4):  # joined as a tree, so that few operations wait for others
        four = load_u64(symbols, i)
        a, b = codes[four & BYTE], codes[(four >> np.uint64(8)) & BYTE]
        c, d = codes[(four >> np.uint64(16)) & BYTE], codes[(four >> np.uint64(24)) & BYTE]
        seen |= a | b | c | d
        first = a & CODE | (b & CODE) << (a >> LENGTH)
        second = c & CODE | (d & CODE) << (c >> LENGTH)
        half = (a >> LENGTH) + (b >> LENGTH)
        accumulator |= (first | second << half) << held  # at most 7 + 4 * 12 bits
        held += half + (c >> LENGTH) + (d >> LENGTH)
        accumulator, held, position = _flush(accumulator, held, out, position)
    for i in range(whole, stop):
        entry = codes[symbols[i]]
        seen |= entry
        accumulator |= (entry & CODE) << held
        accumulator, held, position = _flush(accumulator, held + (entry >> LENGTH), out, position)
    store_u64(out, position, accumulator)
    return -1 if seen & MISSING else position + np.int64(held > 0)


@njit(cache=True, nogil=True)
def _encode_quarters(symbols, codes, out):  # type: ignore[no-untyped-def]
    quarter = (symbols.size + QUARTERS - 1) // QUARTERS
    position = 4 * (QUARTERS - 1)
    for q in range(QUARTERS):
        start = position
        stop = min(symbols.size, (q + 1) * quarter)
        position = _encode_run(symbols, q * quarter, stop, codes, out, position)
        if position < 0:
            return -1
        if q < QUARTERS - 1:
            for byte in range(4):
                out[4 * q + byte] = (position - start) >> (8 * byte) & 255
    return position


@njit(cache=True, nogil=True)
def _encode_indexed(symbols, index, codes, out):  # type: ignore[no-untyped-def]
    accumulator = np.uint64(0)
    held = np.uint64(0)
    seen = np.uint64(0)
    position = 0
    for i in range(symbols.size):
        entry = codes[index[i], symbols[i]]
        seen |= entry
        accumulator |= (entry & CODE) << held
        accumulator, held, position = _flush(accumulator, held + (entry >> LENGTH), out, position)
    store_u64(out, position, accumulator)
    return -1 if seen & MISSING else position + np.int64(held > 0)


@njit(cache=True, nogil=True, inline="always")
def _window(stream, bit):  # type: ignore[no-untyped-def]
    """The 12 bits from `bit` on; zeros past the end."""
    window = np.uint64(0)
    byte = bit >> 3
    for i in range(3):
        if byte + i < stream.size:
            window |= np.uint64(stream[byte + i]) << np.uint64(8 * i)
    return (window >> np.uint64(bit & 7)) & MASK


@njit(cache=True, nogil=True)
def _decode_tail(stream, start, stop, bit, out, position, end, single):  # type: ignore[no-untyped-def]
    """Decodes one symbol at a time up to `end`; true when the stream ends there as well."""
    while position < end:
        entry = single[_window(stream, bit)]
        out[position] = entry & 255
        bit += entry >> 8
        position += 1
        if bit > 8 * stop:
            return False
    return (max(bit, 8 * start) + 7) >> 3 == stop


@njit(cache=True, nogil=True)
def _decode_indexed(stream, index, single, out):  # type: ignore[no-untyped-def]
    bit = 0
    for i in range(out.size):
        entry = single[index[i], _window(stream, bit)]
        out[i] = entry & 255
        bit += entry >> 8
        if bit > 8 * stream.size:
            return False
    return (bit + 7) >> 3 == stream.size


@njit(cache=True, nogil=True, inline="always")
def _burst(stream, bit, out, position, multi):  # type: ignore[no-untyped-def]
    """Four look-ups, at most 48 bits and 28 symbols: (new bit, new position)."""
    window = load_u64(stream, bit >> 3) >> np.uint64(bit & 7)
    for _ in range(4):
        entry = multi[window & MASK]
        store_u64(out, position, entry)
        length = entry >> np.uint64(60)
        position += np.int64((entry >> np.uint64(56)) & np.uint64(15))
        bit += np.int64(length)
        window >>= length
    return bit, position


@njit(cache=True, nogil=True)
def _decode_quarters(stream, out, multi, single):  # type: ignore[no-untyped-def]
    header = 4 * (QUARTERS - 1)
    if stream.size < header:
        return False
    start = np.empty(QUARTERS + 1, np.int64)
    start[0] = header
    for q in range(QUARTERS - 1):
        length = np.int64(0)
        for byte in range(4):
            length |= np.int64(stream[4 * q + byte]) << (8 * byte)
        start[q + 1] = start[q] + length
    start[QUARTERS] = stream.size
    if start[QUARTERS - 1] > stream.size:
        return False
    quarter = (out.size + QUARTERS - 1) // QUARTERS
    a, b, c, d = 8 * start[0], 8 * start[1], 8 * start[2], 8 * start[3]
    i, j, k, m = 0, quarter, 2 * quarter, 3 * quarter
    room = 4 * PER_ENTRY + 8  # symbols that a burst may write beyond a position
    last_load = 8 * (stream.size - 8)
    while (
        i + room <= quarter and j + room <= 2 * quarter and k + room <= 3 * quarter
        and m + room <= out.size and a <= last_load and b <= last_load and c <= last_load
        and d <= last_load
    ):  # fmt: skip
        a, i = _burst(stream, a, out, i, multi)
        b, j = _burst(stream, b, out, j, multi)
        c, k = _burst(stream, c, out, k, multi)
        d, m = _burst(stream, d, out, m, multi)
    return (
        _decode_tail(stream, start[0], start[1], a, out, i, quarter, single)
        and _decode_tail(stream, start[1], start[2], b, out, j, 2 * quarter, single)
        and _decode_tail(stream, start[2], start[3], c, out, k, 3 * quarter, single)
        and _decode_tail(stream, start[3], start[4], d, out, m, out.size, single)
    )
