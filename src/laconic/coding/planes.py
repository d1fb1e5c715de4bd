"""Byte planes: byte g of every element together, a float's exponent in a byte of its own.

The sign bit of a float sits above its exponent, so that the exponent straddles two bytes. Moving the
sign below the top eight exponent bits (ZipNN, arXiv 2411.05239, section 3) puts what is compressible
into the top plane and leaves noise in the others. Bits are moved, never changed: NaN payloads,
negative zeros and subnormals survive.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from numba import njit

from laconic.errors import CorruptFile, UsageError


@dataclass(frozen=True)
class Layout:
    """How elements are cut into planes.

    Attributes:
        itemsize: bytes an element; the number of planes.
        rotate: whether the sign bit is moved below the exponent (floats of 16 bits or more).
    """

    itemsize: int
    rotate: bool

    def code(self) -> int:
        """One byte that names the layout in a file."""
        return self.itemsize | self.rotate << 7

    @classmethod
    def from_code(cls, code: int) -> "Layout":
        """The layout that `code` names; raises `CorruptFile` for any other byte."""
        layout = cls(code & 0x7F, bool(code >> 7))
        if layout.itemsize not in _WORDS or (layout.rotate and layout.itemsize == 1):
            raise CorruptFile(f"unknown byte-plane layout {code}")
        return layout


_WORDS: dict[int, np.dtype[Any]] = {
    1: np.dtype("u1"),
    2: np.dtype("<u2"),
    4: np.dtype("<u4"),
    8: np.dtype("<u8"),
}

#: Layouts by the dtype names of the safetensors format.
LAYOUTS = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F4", "F6_E2M3", "F6_E3M2"), Layout(1, False)),
    **dict.fromkeys(("F8_E4M3", "F8_E5M2", "F8_E8M0"), Layout(1, False)),
    **dict.fromkeys(("U16", "I16"), Layout(2, False)),
    **dict.fromkeys(("F16", "BF16"), Layout(2, True)),
    **dict.fromkeys(("U32", "I32"), Layout(4, False)),
    **dict.fromkeys(("F32", "C64"), Layout(4, True)),  # a complex number is two floats
    **dict.fromkeys(("U64", "I64"), Layout(8, False)),
    "F64": Layout(8, True),
}


def layout_of(dtype: str) -> Layout:
    """The layout for a dtype named as in safetensors (`BF16`, `F32`, `U8` ...)."""
    if dtype not in LAYOUTS:
        raise UsageError(f"no byte-plane layout for dtype {dtype!r}; known: {', '.join(LAYOUTS)}")
    return LAYOUTS[dtype]


def words(raw: np.ndarray, layout: Layout) -> np.ndarray:
    """`raw` (bytes,) uint8, whole elements, as aligned unsigned words; a view where it can be."""
    view: np.ndarray = raw.view(_WORDS[layout.itemsize])
    return view if view.flags.aligned else view.copy()


def split(elements: np.ndarray, layout: Layout) -> np.ndarray:
    """(itemsize, n) planes of the (n,) unsigned words `elements`; plane 0 is the lowest byte.

    Example:
        >>> split(np.array([0x0201, 0x0403], np.uint16), layout_of("U16")).tolist()
        [[1, 3], [2, 4]]
    """
    if layout.itemsize == 1:
        return elements.reshape(1, -1)
    out = np.empty((layout.itemsize, elements.size), np.uint8)
    _kernels(layout).split(elements, out)
    return out


def join(planes: np.ndarray, layout: Layout, out: np.ndarray) -> None:
    """Inverse of `split`, into the (n,) unsigned words `out`."""
    if layout.itemsize == 1:
        out[:] = planes[0]
    else:
        _kernels(layout).join(planes, out)


class _Kernels(NamedTuple):
    split: Callable[[np.ndarray, np.ndarray], None]
    join: Callable[[np.ndarray, np.ndarray], None]


@cache
def _kernels(layout: Layout) -> _Kernels:
    """Loops compiled for one layout: its widths are constants, so that they become SIMD code."""
    groups, rotate = layout.itemsize, layout.rotate
    width = 8 * groups
    low = (1 << (width - 9)) - 1 if groups > 1 else 0

    @njit(cache=True, nogil=True)
    def split(elements, out):  # type: ignore[no-untyped-def]
        for i in range(elements.size):
            word = np.uint64(elements[i])
            if rotate:  # sign, top eight exponent bits, rest -> exponent bits, sign, rest
                top = (word >> np.uint64(width - 9)) & np.uint64(0xFF)
                sign = word >> np.uint64(width - 1)
                word = word & np.uint64(low) | sign << np.uint64(width - 9)
                word |= top << np.uint64(width - 8)
            for g in range(groups):
                out[g, i] = np.uint8(word >> np.uint64(8 * g))

    @njit(cache=True, nogil=True)
    def join(planes, out):  # type: ignore[no-untyped-def]
        for i in range(out.size):
            word = np.uint64(0)
            for g in range(groups):
                word |= np.uint64(planes[g, i]) << np.uint64(8 * g)
            if rotate:
                top = word >> np.uint64(width - 8)
                sign = (word >> np.uint64(width - 9)) & np.uint64(1)
                word = word & np.uint64(low) | top << np.uint64(width - 9)
                word |= sign << np.uint64(width - 1)
            out[i] = word

    return _Kernels(split, join)
