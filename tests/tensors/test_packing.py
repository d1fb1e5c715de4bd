import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from laconic.errors import CorruptFile, UsageError
from laconic.tensors.packing import (
    at_rest,
    check_packed,
    check_whole,
    from_rest,
    grouped,
    matrix_shape,
    pack,
    pack_by_torch,
    spread,
    unpack,
    unpack_by_torch,
)


@given(st.integers(1, 16), st.integers(0, 70), st.integers(0, 2**32 - 1))
def test_torch_packs_as_the_kernel_does(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (count,), generator=generator).to(torch.int32)
    packed = pack(codes, bits)
    assert torch.equal(pack_by_torch(codes, bits), packed)
    assert packed.numel() == -(-count * bits // 8)
    back, again = unpack(packed, bits, count), unpack_by_torch(packed, bits, count)
    assert back.dtype == again.dtype == (torch.uint8 if bits <= 8 else torch.int32)
    assert torch.equal(back, again) and torch.equal(back.int(), codes)


def test_other_devices_pack_without_the_kernel():
    codes = torch.zeros(9, dtype=torch.uint8, device="meta")
    assert pack(codes, 3).shape == (4,)
    assert unpack(pack(codes, 3), 3, 9).shape == (9,)


@pytest.mark.parametrize("unpacker", [unpack, unpack_by_torch])
def test_missing_bytes(unpacker):
    with pytest.raises(CorruptFile):
        unpacker(torch.zeros(3, dtype=torch.uint8), 4, 7)


def test_codes_that_do_not_fit():
    with pytest.raises(UsageError):
        pack(torch.tensor([4], dtype=torch.uint8), 2)
    for bits in (0, 17, 2.0, True):
        with pytest.raises(UsageError, match="bits must be"):
            pack(torch.zeros(1, dtype=torch.uint8), bits)


def test_whole_numbers():
    check_whole("n", 3, 3, 3)
    for value in (2, 4, 3.0, True, None):
        with pytest.raises(UsageError, match=r"n must be a whole number in 3\.\.3"):
            check_whole("n", value, 3, 3)
    with pytest.raises(UsageError, match="of at least 1"):
        check_whole("n", 0, 1)


def test_packed_arrays():
    check_packed(torch.zeros(4, dtype=torch.uint8), 8, 4)
    for packed in (torch.zeros(5, dtype=torch.uint8), torch.zeros(4, dtype=torch.int8)):
        with pytest.raises(UsageError, match="8 codes of 4 bits take 4 bytes"):
            check_packed(packed, 8, 4)


@pytest.mark.parametrize("bits", [3, 8, 9, 16])
def test_rest(bits):
    codes = torch.arange(6).reshape(2, 3)
    assert torch.equal(from_rest(at_rest(codes, bits), 6).long(), codes.flatten())
    with pytest.raises(CorruptFile, match="code 5 is not below 5"):
        from_rest(at_rest(codes, bits), 5)


def test_rest_is_unsigned():
    with pytest.raises(CorruptFile, match="found torch.int8"):
        from_rest(torch.zeros(3, dtype=torch.int8), 4)


def test_matrices():
    assert matrix_shape(torch.Size()) == (1, 1)
    assert matrix_shape(torch.Size((0, 4))) == (0, 0)
    assert matrix_shape(torch.Size((5,))) == (5, 1)
    assert matrix_shape(torch.Size((2, 3, 4))) == (2, 12)


def test_groups():
    rows = torch.arange(10.0).reshape(2, 5)
    assert grouped(rows, 2).tolist()[1] == [[5, 6], [7, 8], [9, 0]]
    values = torch.tensor([[1.0, 2.0, 3.0]])
    assert spread(values, 5, 2).tolist() == [[1, 1, 2, 2, 3]]
    assert spread(values[:, :1], 5, 2).tolist() == [[1]]
