"""Arrays as numpy stores them."""

import math
from tokenize import TokenError
from typing import Any, BinaryIO

import numpy as np

from laconic.coding.safetensors import Placed
from laconic.errors import CorruptFile

KINDS = {"f": "F", "i": "I", "u": "U"}


def read_npy(file: BinaryIO, size: int) -> tuple[str, dict[str, Placed]]:
    """The kind of file, and where its array lies.

    Raises:
        CorruptFile: not what numpy writes, or objects that need a pickle.
    """
    return "npy", {"": read_array(file, 0, size)}


def read_array(file: BinaryIO, start: int, size: int) -> Placed:
    """The array of the `size` bytes at `start` that are as a `.npy` file is.

    Raises:
        CorruptFile: see `read_npy`.
    """
    file.seek(start)
    try:
        version = np.lib.format.read_magic(file)
        if version not in _HEADERS:
            raise ValueError(f"format {version}")
        shape, _, dtype = _HEADERS[version](file)
    except (ValueError, TypeError, EOFError, RecursionError, SyntaxError, TokenError) as error:
        raise CorruptFile(f"numpy array: the header cannot be read: {error}") from error
    offset = file.tell() - start
    placed = Placed(_name(dtype), shape, start + offset, size - offset)
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != placed.size:
        raise CorruptFile(f"numpy array: {placed.size} bytes do not fit {dtype} {list(shape)}")
    return placed


def _name(dtype: np.dtype[Any]) -> str:
    """As safetensors calls it; the order of bytes does not matter here."""
    name = f"{KINDS.get(dtype.kind, '')}{8 * dtype.itemsize}"
    if dtype == np.bool_:
        return "BOOL"
    if dtype == np.complex64:
        return "C64"
    if dtype.hasobject or dtype.itemsize > 8 or dtype.kind not in KINDS:
        raise CorruptFile(f"numpy array: {dtype} has no place among tensors")
    return name


_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
