import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba import njit

from laconic.coding import bitpack
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)


def random_codes(bits, count, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, count, np.uint16)


def reference(codes, bits):
    """The same in plain Python: one long integer."""
    whole = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    return whole.to_bytes((len(codes) * bits + 7) // 8, "little")


@njit
def read_all(packed, count, bits):  # pragma: no cover
    out = np.empty(count, np.int64)
    for i in range(count):
        out[i] = bitpack.read_code(packed, i, bits)
    return out


@PROPERTY
@given(st.integers(1, 16), st.integers(0, 300), st.integers(0, 2**32))
def test_round_trip(bits, count, seed):
    codes = random_codes(bits, count, seed)
    before = codes.copy()
    packed = bitpack.pack(codes, bits)
    assert packed.tobytes() == reference(codes, bits)
    assert packed.size == bitpack.packed_size(count, bits)
    back = bitpack.unpack(packed, bits, count)
    assert back.dtype == (np.uint8 if bits <= 8 else np.uint16)
    assert (back == codes).all() and (codes == before).all()


@pytest.mark.parametrize("bits", range(1, 17))
def test_every_count_up_to_forty_and_a_large_one(bits):
    for count in [*range(41), 100_003]:
        codes = random_codes(bits, count)
        packed = bitpack.pack(codes, bits)
        assert (bitpack.unpack(packed, bits, count) == codes).all()
        assert (read_all(packed, count, bits) == codes).all()


@pytest.mark.parametrize("dtype", ["bool", "u1", "i1", "u2", ">u2", "i4", "u8", "i8"])
def test_any_integer_dtype_shape_and_order(dtype):
    codes = random_codes(1, 60).astype(dtype).reshape(3, 20)
    for view in (codes, codes.T, codes[:, ::2], codes[::-1]):
        packed = bitpack.pack(view, 1)
        assert (bitpack.unpack(packed, 1, view.size) == view.reshape(-1)).all()


def test_read_only_and_unaligned_input():
    codes = np.frombuffer(b"x" + random_codes(9, 100).tobytes(), np.uint8)[1:].view(np.uint16)
    assert not codes.flags.aligned
    packed = bitpack.pack(codes, 9)
    shifted = np.frombuffer(b"x" + packed.tobytes(), np.uint8)[1:]
    assert (bitpack.unpack(shifted, 9, 100) == codes).all()


@pytest.mark.parametrize("bits", [-1, 0, 17, 64])
def test_impossible_widths(bits):
    with pytest.raises(UsageError, match=r"bits must be in 1\.\.16"):
        bitpack.pack(np.zeros(3, np.uint8), bits)
    with pytest.raises(UsageError, match=r"bits must be in 1\.\.16"):
        bitpack.unpack(np.zeros(3, np.uint8), bits, 1)


@pytest.mark.parametrize("codes", [[0, 4], [-1, 0], [2**40], [2**63 - 1]])
def test_codes_that_do_not_fit(codes):
    with pytest.raises(UsageError, match=r"codes must be in 0\.\.3 for 2 bits"):
        bitpack.pack(np.array(codes, np.int64), 2)


def test_codes_that_are_no_integers():
    for codes in (np.array([0.5, 1.0]), np.array([np.nan]), np.array(["1"])):
        with pytest.raises(UsageError, match="codes must be integers"):
            bitpack.pack(codes, 2)


@pytest.mark.parametrize("bits", [1, 3, 8, 12, 16])
def test_only_the_exact_size_is_unpacked(bits):
    packed = bitpack.pack(random_codes(bits, 33), bits)
    for size in range(packed.size):
        with pytest.raises(CorruptFile, match=f"found {size}"):
            bitpack.unpack(packed[:size], bits, 33)
    with pytest.raises(CorruptFile):
        bitpack.unpack(np.append(packed, np.uint8(0)), bits, 33)
    for count in (-1, 2**40, 2**62):  # refused before any memory is taken
        with pytest.raises(CorruptFile):
            bitpack.unpack(packed, bits, count)
