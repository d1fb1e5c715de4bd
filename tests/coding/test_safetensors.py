"""Headers of safetensors files; `tests/models/test_safetensors.py` reads whole files with them."""

import json
import struct

import pytest

from laconic.coding.planes import LAYOUTS
from laconic.coding.safetensors import BITS, Placed, read_placed
from laconic.errors import CorruptFile


def placed(data=b"", **entries):
    header = json.dumps(entries).encode()
    file = struct.pack("<Q", len(header)) + header + data
    return read_placed(lambda at, size: file[at : at + size], len(file), "some"), 8 + len(header)


def entry(dtype, shape, start, stop):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_elements_smaller_than_bytes():
    found, start = placed(bytes(9), a=entry("F4", [3, 4], 0, 6), b=entry("F6_E3M2", [4], 6, 9))
    assert found == {
        "a": Placed("F4", (3, 4), start, 6),
        "b": Placed("F6_E3M2", (4,), start + 6, 3),
    }


@pytest.mark.parametrize(
    ("strange", "match"),
    [
        (entry("F4", [3], 0, 2), "do not fit"),
        (entry("F5", [8], 0, 5), "not known"),
        (entry("U8", [1] * 65, 0, 1), "65 dimensions"),
        (entry("U8", [10**300] * 50_000, 0, 1), "dimensions"),  # whose product takes minutes
        (entry("U8", [True], 0, 1), "whole numbers"),
        (entry("U8", [5], 0, 5), "truncated"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_what_cannot_be(strange, match):
    with pytest.raises(CorruptFile, match=match):
        placed(bytes(4), a=strange)


def test_every_dtype_has_byte_planes():
    assert set(BITS) == set(LAYOUTS)
    assert all(8 * LAYOUTS[dtype].itemsize <= max(8, bits) for dtype, bits in BITS.items())
