"""The header of a safetensors file: what tensors there are and where their bytes lie.

    length of the header u64 | header (JSON: name -> dtype, shape, data_offsets) | data

Offsets count from the first byte of data. Nothing is believed: every entry fits its dtype and shape,
and the file; no two overlap.
"""

import json
import math
import struct
from collections.abc import Callable
from typing import Any, NamedTuple

from laconic.errors import CorruptFile

PREFIX = 8  # bytes of the header's length
MAX_HEADER = 100 << 20  # as the safetensors library
MAX_DIMS = 64  # as torch

#: Bits an element, by the dtype names of the format.
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


class Placed(NamedTuple):
    """A tensor in a file.

    Attributes:
        dtype: its name in the format.
        shape: of the tensor.
        start: first byte in the file.
        size: bytes.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


def read_placed(fetch: Callable[[int, int], bytes], size: int, what: str) -> dict[str, Placed]:
    """The tensors of a safetensors file, in the order of its header.

    Args:
        fetch: gives the bytes at (offset, length); fewer at the end.
        size: bytes of the file.
        what: it is called, in messages.

    Raises:
        CorruptFile: no safetensors file, truncated, or entries that do not fit the file.

    Example:
        >>> header = b'{"a": {"dtype": "I8", "shape": [2], "data_offsets": [0, 2]}}'
        >>> file = struct.pack("<Q", len(header)) + header + b"ab"
        >>> read_placed(lambda at, n: file[at : at + n], len(file), "example")["a"]
        Placed(dtype='I8', shape=(2,), start=68, size=2)
    """
    head = fetch(0, PREFIX)
    length = struct.unpack("<Q", head)[0] if len(head) == PREFIX else 0
    if not 2 <= length <= min(MAX_HEADER, max(0, size - PREFIX)):
        raise CorruptFile(f"{what}: no safetensors file, or truncated in its header")
    try:
        header = json.loads(fetch(PREFIX, length))
        header.pop("__metadata__", None)
        placed = {name: _placed(info, PREFIX + length) for name, info in header.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptFile(f"{what}: the safetensors header cannot be read: {error!r}") from error
    end = PREFIX + length
    for name, entry in sorted(placed.items(), key=lambda item: (item[1].start, item[1].size)):
        if entry.start < end:
            raise CorruptFile(f"{what}: tensor {name} overlaps the one before it")
        end = entry.start + entry.size
        if end > size:
            raise CorruptFile(
                f"{what}: tensor {name} ends at byte {end}, the file has {size} (truncated; "
                "download or copy it again)"
            )
    return placed


def _placed(info: dict[str, Any], base: int) -> Placed:
    start, stop = info["data_offsets"]
    shape = tuple(info["shape"])
    dtype = str(info["dtype"])
    if any(type(number) is not int for number in (start, stop, *shape)):
        raise TypeError("offsets and shapes are whole numbers")
    if len(shape) > MAX_DIMS:
        raise ValueError(f"{len(shape)} dimensions are more than {MAX_DIMS}")
    if dtype not in BITS:
        raise ValueError(f"dtype {dtype!r} is not known")
    bits = math.prod(shape) * BITS[dtype]
    if start < 0 or min(shape, default=0) < 0 or 8 * (stop - start) != bits:
        raise ValueError(f"offsets {start}..{stop} do not fit {dtype} {list(shape)}")
    return Placed(dtype, shape, base + start, stop - start)
