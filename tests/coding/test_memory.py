import numpy as np
import pytest
from numba import njit
from numba.core.errors import TypingError

from laconic.coding.memory import load_u64, store_u64


@njit
def load(array, offset):  # pragma: no cover
    return load_u64(array, offset)


@njit
def store(array, offset, value):  # pragma: no cover
    store_u64(array, offset, value)


@pytest.mark.parametrize("offset", range(9))
def test_any_offset(offset):
    data = np.arange(1, 18, dtype=np.uint8)
    assert load(data, offset) == int.from_bytes(data[offset : offset + 8].tobytes(), "little")
    value = np.uint64(0xF1E2D3C4B5A69788)
    expected = data.copy()
    expected[offset : offset + 8] = np.frombuffer(value.tobytes(), np.uint8)
    store(data, offset, value)
    assert (data == expected).all()


def test_offsets_would_be_wrong_in_other_arrays():
    for array in (np.zeros(16, np.uint16), np.zeros(32, np.uint8)[::2]):
        with pytest.raises(TypingError, match="contiguous bytes expected"):
            load(array, 0)
    with pytest.raises(TypingError, match="contiguous bytes to write to expected"):
        store(np.frombuffer(bytes(16), np.uint8), 0, np.uint64(1))
