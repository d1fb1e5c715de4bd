"""A buffer as the difference from another that is much like it, losslessly.

Floats of one width, read as integers, are in order but for their sign; made monotone, two that are near
each other differ by little, whatever their exponents. That difference is coded in the context of the base's
exponent: an update of one size is many steps of a small weight, and few of a large one.

    base, current -> monotone integers -> difference d -> token | raw bits
    token: rANS, the table chosen by the top bits of the base

A token is the zigzag of d, up to 64; above, its length and what follows the leading bit, and the bits
below are kept as they are. Contexts share a table where one of their own would cost more than it saves.

Layout: byte-plane layout, size, tables, tokens, raw bits, bytes of an incomplete element, xxh3-64 of the
original.

Source: after BitX (ZipLLM, Wang et al., 2025, arXiv 2505.06252), which codes the exclusive or of the two, without contexts.
"""

import numpy as np
import xxhash
from numba import njit

from laconic.coding import planes, rans, varint
from laconic.coding._delta_kernels import kernels_of
from laconic.coding.blocks import Buffer, as_bytes
from laconic.coding.planes import Layout
from laconic.coding.tables import SYMBOLS, Tables, entropy_bits
from laconic.errors import CorruptFile, UsageError

CONTEXTS = 256
SYMBOL_BITS = 20  # that a symbol takes in a table
CHECKSUM = 8
FLOATS = {1: ("F8_E4M3", "F8_E5M2")}  # of one byte; wider ones are those whose sign is moved


def estimate(data: Buffer, base: Buffer, dtype: str) -> float:
    """Bytes that `compress_delta` is going to need, about; at the cost of looking at all."""
    raw, other = as_bytes(data), as_bytes(base)
    layout, ordered = _order(dtype)
    counts = np.zeros((CONTEXTS, SYMBOLS), np.int64)
    kernels = kernels_of(layout.itemsize, ordered)
    extra = kernels.count(_words(raw, layout), _words(other, layout), counts)
    return (_share(counts)[1] + extra) / 8


def compress_delta(data: Buffer, base: Buffer, dtype: str) -> np.ndarray:
    """`data` as its difference from `base`, (bytes,) uint8.

    Args:
        data: any bytes-like object or contiguous array.
        base: as many bytes, of the same dtype.
        dtype: of both, named as in safetensors.

    Raises:
        UsageError: sizes that differ, an unknown dtype.

    Example:
        >>> base = np.linspace(1, 2, 10_000, dtype=np.float32)
        >>> blob = compress_delta(base + np.float32(1e-6), base, "F32")
        >>> len(blob) < 6000, decompress_delta(blob, base).tobytes() == (base + np.float32(1e-6)).tobytes()
        (True, True)
    """
    raw, other = as_bytes(data), as_bytes(base)
    if raw.size != other.size:
        raise UsageError(f"a base of {raw.size} bytes is needed, found {other.size}")
    layout, ordered = _order(dtype)
    current, before = _words(raw, layout), _words(other, layout)
    kernels = kernels_of(layout.itemsize, ordered)
    counts = np.zeros((CONTEXTS, SYMBOLS), np.int64)
    extra = kernels.count(current, before, counts)
    groups, _ = _share(counts)
    tables = Tables.from_counts(_joined(counts, groups))
    tokens, index = np.empty(current.size, np.uint8), np.empty(current.size, np.uint16)
    low = np.zeros(extra // 8 + 9, np.uint8)
    kernels.split(current, before, groups, tokens, index, low)
    coded = rans.encode(tokens, index, tables)
    head = bytearray([layout.code() | ordered << 6])
    varint.put(head, raw.size)
    _put_groups(head, groups)
    head += tables.to_bytes()
    varint.put(head, coded.size)
    checksum = xxhash.xxh3_64_intdigest(raw.data).to_bytes(CHECKSUM, "little")
    whole = current.size * layout.itemsize
    return np.concatenate(
        [
            np.frombuffer(head, np.uint8), coded, low[: -(-extra // 8)], raw[whole:],
            np.frombuffer(checksum, np.uint8),
        ]
    )  # fmt: skip


def decompress_delta(blob: Buffer, base: Buffer) -> np.ndarray:
    """The original bytes, (N,) uint8, of a result of `compress_delta` and its base.

    Raises:
        CorruptFile: truncated, altered, or the base is another.
    """
    data, other = as_bytes(blob).data, as_bytes(base)
    reader = varint.Reader(data[: max(0, len(data) - CHECKSUM)], "difference")
    code = reader.take(1)[0]
    layout, ordered = Layout.from_code(code & ~(1 << 6)), bool(code >> 6 & 1)
    size = reader.varint(2**48)
    if size != other.size:
        raise CorruptFile(f"difference: it is of {size} bytes, its base has {other.size}")
    groups, count = _read_groups(reader)
    tables = Tables.read(reader, count)
    coded = np.frombuffer(reader.take(reader.varint(len(data))), np.uint8)
    before = _words(other, layout)
    whole = before.size * layout.itemsize
    index = np.empty(before.size, np.uint16)
    kernels = kernels_of(layout.itemsize, ordered)
    kernels.contexts(before, groups, index)
    tokens = rans.decode(coded, before.size, index, tables)
    rest = np.frombuffer(reader.rest(), np.uint8)
    out = np.empty(size, np.uint8)
    if rest.size < size - whole:
        raise CorruptFile("difference: it is truncated")
    out[whole:] = rest[rest.size - (size - whole) :]
    low = np.zeros(rest.size - (size - whole) + 8, np.uint8)
    low[:-8] = rest[: low.size - 8]
    current = planes.words(out[:whole], layout)
    if not kernels.join(tokens, low, before, current):
        raise CorruptFile("difference: its bits do not end where they must")
    checksum = int.from_bytes(data[-CHECKSUM:], "little")
    if xxhash.xxh3_64_intdigest(out.data) != checksum:
        raise CorruptFile("difference: the restored bytes are not those that were coded")
    return out


def _order(dtype: str) -> tuple[Layout, bool]:
    """How elements are read, and whether they have to be made monotone."""
    layout = planes.layout_of(dtype)
    return layout, layout.rotate or dtype in FLOATS.get(layout.itemsize, ())


def _words(raw: np.ndarray, layout: Layout) -> np.ndarray:
    return planes.words(raw[: raw.size - raw.size % layout.itemsize], layout)


def _share(counts: np.ndarray) -> tuple[np.ndarray, float]:
    """The table number (256,) of each context, neighbours together, and the bits that all take.

    Exact: the cheapest way to cut the contexts that occur into runs with one table each.
    """
    used = np.flatnonzero(counts.any(axis=1))
    groups = np.zeros(CONTEXTS, np.uint8)
    if not used.size:
        return groups, 0.0
    sums = np.zeros((used.size + 1, SYMBOLS), np.int64)
    np.cumsum(counts[used], axis=0, out=sums[1:])
    best, start = _cut(sums)
    ends, stop = [], used.size
    while stop:
        ends.append(stop)
        stop = int(start[stop])
    for number, stop in enumerate(reversed(ends)):
        groups[used[int(start[stop])] : used[stop - 1] + 1] = number
        groups[used[stop - 1] + 1 :] = number
    return groups, float(best[used.size])


def _joined(counts: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(K, 256) counts of the tables."""
    out = np.zeros((int(groups.max()) + 1, SYMBOLS), np.int64)
    np.add.at(out, groups, counts)
    return out


def _put_groups(out: bytearray, groups: np.ndarray) -> None:
    """How many tables, then of each but the first how many contexts later it begins."""
    begins = np.flatnonzero(np.diff(groups)) + 1
    varint.put(out, begins.size + 1)
    last = 0
    for begin in begins.tolist():
        varint.put(out, begin - last)
        last = begin


def _read_groups(reader: varint.Reader) -> tuple[np.ndarray, int]:
    groups = np.zeros(CONTEXTS, np.uint8)
    count = reader.varint(CONTEXTS)
    begin = 0
    for number in range(1, count):
        begin += reader.varint(CONTEXTS)
        if not begin < CONTEXTS:
            raise CorruptFile(f"{reader.what}: a context is out of range")
        groups[begin:] = number
    if count == 0:
        raise CorruptFile(f"{reader.what}: there is no table")
    return groups, count


@njit(cache=True, nogil=True)
def _cut(sums):  # type: ignore[no-untyped-def]
    """Least bits (n + 1,) of the first contexts, and where the last run of each begins."""
    count = len(sums) - 1
    best, start = np.full(count + 1, np.inf), np.zeros(count + 1, np.int64)
    best[0] = 0
    for stop in range(1, count + 1):
        for first in range(stop):
            joint = sums[stop] - sums[first]
            bits = best[first] + entropy_bits(joint) + SYMBOL_BITS * (joint > 0).sum()
            if bits < best[stop]:
                best[stop], start[stop] = bits, first
    return best, start
