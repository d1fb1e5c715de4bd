"""Code lengths and the encode and decode tables that `huffman` derives from frequency tables."""

import numpy as np
from numba import njit

from laconic.coding.tables import PRECISION, SYMBOLS, TOTAL, Tables

PER_ENTRY = 7  # symbols that one entry of the multi-symbol table can hold
LENGTH = np.uint64(16)  # where the length of a code starts in an encode entry
CODE = np.uint64(0x7FFF)
MISSING = np.uint64(0x8000)  # the entry of a symbol that has no code; of no length, so harmless


def code_lengths(frequencies: np.ndarray) -> np.ndarray:
    """(256,) optimal code lengths of at most 12 bits for `frequencies` (256,); 0 where never used.

    Example:
        >>> code_lengths(np.array([8, 4, 2, 2] + [0] * 252))[:5].tolist()
        [1, 2, 3, 3, 0]
    """
    lengths = np.zeros(SYMBOLS, np.int64)
    used = np.flatnonzero(frequencies)
    order = used[np.argsort(frequencies[used], kind="stable")]
    if order.size == 1:
        lengths[order] = 1
    elif order.size:
        _package_merge(frequencies[order].astype(np.int64), order, lengths)
    return lengths


def encode_table(tables: Tables) -> np.ndarray:
    """(K, 256) uint64 encode table: reversed code | length << 16; `MISSING` where never used."""
    if "huffman codes" not in tables.derived:
        codes = np.full((len(tables), SYMBOLS), MISSING, np.uint64)
        for row, frequencies in zip(codes, tables.frequencies):
            _assign_codes(code_lengths(frequencies), row)
        tables.derived["huffman codes"] = codes
    return tables.derived["huffman codes"]


def single_table(tables: Tables) -> np.ndarray:
    """(K, 4096) uint16 decode table of one symbol an entry: symbol | length << 8."""
    if "huffman single" not in tables.derived:
        single = np.zeros((len(tables), TOTAL), np.uint16)
        for row, codes in zip(single, encode_table(tables)):
            _fill_single(codes, row)
        tables.derived["huffman single"] = single
    return tables.derived["huffman single"]


def multi_table(tables: Tables) -> np.ndarray:
    """(K, 4096) uint64 decode table: up to seven symbols | count << 56 | length << 60."""
    if "huffman multi" not in tables.derived:
        multi = np.zeros((len(tables), TOTAL), np.uint64)
        for row, single in zip(multi, single_table(tables)):
            _fill_multi(single, row)
        tables.derived["huffman multi"] = multi
    return tables.derived["huffman multi"]


@njit(cache=True, nogil=True)
def _package_merge(weights, order, lengths):  # type: ignore[no-untyped-def]
    """Adds to `lengths[order]`; `weights` ascending. In every level the leaves taken are a prefix."""
    n = weights.size
    is_leaf = np.zeros((PRECISION, 2 * n), np.bool_)
    sizes = np.zeros(PRECISION, np.int64)
    level = weights.copy()
    is_leaf[0, :n] = True
    sizes[0] = n
    for depth in range(1, PRECISION):
        packages = level.size // 2
        merged = np.empty(n + packages, np.int64)
        leaf = package = 0
        for i in range(merged.size):
            weight = np.int64(0)
            if package < packages:
                weight = level[2 * package] + level[2 * package + 1]
            if package == packages or (leaf < n and weights[leaf] <= weight):
                merged[i] = weights[leaf]
                is_leaf[depth, i] = True
                leaf += 1
            else:
                merged[i] = weight
                package += 1
        sizes[depth] = merged.size
        level = merged
    take = 2 * n - 2
    for depth in range(PRECISION - 1, -1, -1):
        leaves = 0
        for i in range(min(take, sizes[depth])):
            leaves += is_leaf[depth, i]
        for i in range(leaves):
            lengths[order[i]] += 1
        take = 2 * (take - leaves)


@njit(cache=True, nogil=True)
def _assign_codes(lengths, codes):  # type: ignore[no-untyped-def]
    code = 0
    for length in range(1, PRECISION + 1):
        for symbol in range(lengths.size):
            if lengths[symbol] == length:
                reverse = 0
                for bit in range(length):
                    reverse |= ((code >> bit) & 1) << (length - 1 - bit)
                codes[symbol] = reverse | length << 16
                code += 1
        code <<= 1


@njit(cache=True, nogil=True)
def _fill_single(codes, single):  # type: ignore[no-untyped-def]
    used = 0
    for symbol in range(codes.size):
        length = np.int64(codes[symbol] >> LENGTH)
        if length:
            used += 1
            for window in range(np.int64(codes[symbol] & CODE), single.size, 1 << length):
                single[window] = symbol | length << 8
    if used == 1:  # a lone symbol has the code 0; the code 1 decodes to it as well
        for window in range(1, single.size, 2):
            single[window] = single[0]


@njit(cache=True, nogil=True)
def _fill_multi(single, multi):  # type: ignore[no-untyped-def]
    for window in range(multi.size):
        entry = np.uint64(0)
        count = bits = 0
        while count < PER_ENTRY:
            code = single[window >> bits]
            length = code >> 8
            if bits + length > PRECISION:
                break
            entry |= np.uint64(code & 255) << np.uint64(8 * count)
            bits += length
            count += 1
        multi[window] = entry | np.uint64(count) << np.uint64(56) | np.uint64(bits) << np.uint64(60)
