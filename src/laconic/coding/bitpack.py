"""Fixed-width unsigned codes of 1 to 16 bits, least significant bit first, no padding between."""

import numpy as np
from numba import njit

from laconic.coding.memory import load_u64
from laconic.errors import CorruptFile, UsageError

Bytes = np.ndarray  # one dimension, uint8


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def pack(codes: np.ndarray, bits: int) -> Bytes:
    """Packs unsigned integer `codes` (any shape) into `packed_size(codes.size, bits)` bytes.

    Raises:
        UsageError: `bits` is not in 1..16, or a code is no integer or does not fit.

    Example:
        >>> pack(np.array([1, 2, 3], np.uint8), 2).tolist()
        [57]
    """
    _check_bits(bits)
    flat = np.ascontiguousarray(codes).reshape(-1)
    if flat.dtype.kind not in "uib":
        raise UsageError(f"codes must be integers, found {flat.dtype}")
    if flat.size and (int(flat.max()) >> bits or int(flat.min()) < 0):
        raise UsageError(
            f"codes must be in 0..{2**bits - 1} for {bits} bits, found {flat.min()}..{flat.max()}"
        )
    out = np.zeros(packed_size(flat.size, bits), np.uint8)
    _pack(flat.astype(np.uint16, copy=False), bits, out)
    return out


def unpack(packed: Bytes, bits: int, count: int) -> np.ndarray:
    """The `count` codes in `packed`: uint8 up to 8 bits, uint16 above.

    Raises:
        CorruptFile: `packed` has not exactly `packed_size(count, bits)` bytes.

    Example:
        >>> unpack(np.array([57], np.uint8), 2, 3).tolist()
        [1, 2, 3]
    """
    _check_bits(bits)
    packed = np.ascontiguousarray(packed, dtype=np.uint8).reshape(-1)
    if count < 0 or packed.size != packed_size(count, bits):
        raise CorruptFile(
            f"{count} codes of {bits} bits take {packed_size(count, bits)} bytes, found {packed.size}"
        )
    out = np.empty(count, np.uint8 if bits <= 8 else np.uint16)
    unpack_run(packed, 0, bits, out)
    return out


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 16:
        raise UsageError(f"bits must be in 1..16, found {bits}")


@njit(cache=True, nogil=True)
def _pack(codes, bits, out):  # type: ignore[no-untyped-def]
    accumulator = np.uint64(0)
    held = 0
    position = 0
    for code in codes:
        accumulator |= np.uint64(code) << np.uint64(held)
        held += bits
        while held >= 8:
            out[position] = accumulator & np.uint64(255)
            position += 1
            accumulator >>= np.uint64(8)
            held -= 8
    if held:
        out[position] = accumulator & np.uint64(255)


@njit(cache=True, nogil=True, inline="always")
def read_code(packed, index, bits):  # type: ignore[no-untyped-def]
    """Code `index` of `packed`; the last eight bytes are read one at a time."""
    bit = index * bits
    byte = bit >> 3
    if byte + 8 <= packed.size:
        window = load_u64(packed, byte)
    else:
        window = np.uint64(0)
        for i in range(packed.size - byte):
            window |= np.uint64(packed[byte + i]) << np.uint64(8 * i)
    mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    return (window >> np.uint64(bit & 7)) & mask


@njit(cache=True, nogil=True)
def unpack_run(packed, first, bits, out):  # type: ignore[no-untyped-def]
    """Codes first .. first + out.size; eight at a time where they start on a byte."""
    i = 0
    while i < out.size and (first + i) & 7:
        out[i] = read_code(packed, first + i, bits)
        i += 1
    if bits <= 8:
        byte = ((first + i) * bits) >> 3
        mask = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
        while i + 8 <= out.size and byte + 8 <= packed.size:
            window = load_u64(packed, byte)
            for j in range(8):
                out[i + j] = (window >> np.uint64(j * bits)) & mask
            i += 8
            byte += bits
    while i < out.size:
        out[i] = read_code(packed, first + i, bits)
        i += 1
