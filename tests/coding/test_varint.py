import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import varint
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=200, deadline=None, derandomize=True)
EDGES = [0, 1, 127, 128, 16383, 16384, 2**32 - 1, 2**32, 2**63 - 2, 2**63 - 1]


def stored(*values):
    out = bytearray()
    for value in values:
        varint.put(out, value)
    return out


@PROPERTY
@given(st.lists(st.integers(0, varint.LARGEST) | st.sampled_from(EDGES)))
def test_round_trip(values):
    reader = varint.Reader(stored(*values), "test")
    assert [reader.varint() for _ in values] == values
    reader.expect_end()


@pytest.mark.parametrize("value", EDGES)
def test_takes_seven_bits_a_byte(value):
    assert len(stored(value)) == max(1, -(-value.bit_length() // 7))


@pytest.mark.parametrize("value", [-1, -(2**70), 2**63, 2**64])
def test_refuses_to_write_what_could_not_be_read(value):
    with pytest.raises(UsageError, match="2\\^63"):
        varint.put(bytearray(), value)


@pytest.mark.parametrize("value", EDGES)
def test_truncated(value):
    data = stored(value)
    for length in range(len(data)):
        with pytest.raises(CorruptFile, match=f"test: an integer runs past byte {length}"):
            varint.Reader(data[:length], "test").varint()


@PROPERTY
@given(st.binary(max_size=24))
def test_garbage_gives_a_number_in_range_or_corrupt_file(data):
    reader = varint.Reader(data, "test")
    try:
        assert 0 <= reader.varint() <= varint.LARGEST
    except CorruptFile:
        assert reader.position <= 10


@pytest.mark.parametrize("data", [b"\xff" * 9 + b"\x01", b"\xff" * 9 + b"\x7f", b"\x80" * 1000])
def test_integers_of_64_bits_or_more_are_refused(data):
    with pytest.raises(CorruptFile):
        varint.Reader(data, "test").varint()


def test_limit():
    assert varint.Reader(stored(300), "test").varint(300) == 300
    with pytest.raises(CorruptFile, match="found 300 where at most 299"):
        varint.Reader(stored(300), "test").varint(299)


def test_take_and_rest():
    reader = varint.Reader(b"abcdef", "test")
    assert bytes(reader.take(2)) == b"ab"
    assert bytes(reader.take(0)) == b""
    for impossible in (-1, 5, 2**62):
        with pytest.raises(CorruptFile, match="bytes expected at byte 2, 4 are left"):
            reader.take(impossible)
    with pytest.raises(CorruptFile, match="4 bytes too many"):
        reader.expect_end()
    assert bytes(reader.rest()) == b"cdef"
    reader.expect_end()
