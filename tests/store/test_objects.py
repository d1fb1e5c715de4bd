import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.coding.planes import LAYOUTS
from laconic.errors import CorruptFile
from laconic.store.objects import decode, encode, kind_of


def raw(data):
    return np.frombuffer(data, np.uint8)


@given(st.binary(max_size=400), st.sampled_from([None, *sorted(LAYOUTS)]), st.integers(1, 30))
def test_round_trip(data, dtype, times):
    blob = encode(raw(data * times), dtype)
    assert len(blob) <= len(data) * times + 1
    assert decode(blob, len(data) * times).tobytes() == data * times


def test_each_kind_has_its_use():
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, 9000, dtype=np.uint8)
    floats = (generator.normal(size=9000) * 0.02).astype(np.float32).view(np.uint8)
    text = raw(b"the same again, " * 600)
    assert [kind_of(encode(data, None)) for data in (noise, text)] == ["raw", "zstd"]
    assert kind_of(encode(floats, "F32")) == "block"
    assert len(encode(floats, "F32", "rans")) < len(encode(floats, "F32")) < 0.9 * floats.size


@given(st.binary(max_size=60), st.integers(0, 80))
def test_noise_is_refused_or_raw(blob, size):
    try:
        found = decode(blob, size)
    except CorruptFile:
        return
    assert (blob[0], found.tobytes()) == (0, blob[1:])


@pytest.mark.parametrize("dtype", [None, "BF16"])
def test_altered_objects(dtype):
    data = np.repeat(np.arange(2000, dtype=np.uint16), 2).view(np.uint8)
    blob = encode(data, dtype)
    assert kind_of(blob) != "raw"
    for position in range(0, len(blob), 7):
        altered = bytearray(blob)
        altered[position] ^= 1 << position % 8
        try:
            assert decode(bytes(altered), data.size).tobytes() == data.tobytes()
        except CorruptFile:
            continue
    with pytest.raises(CorruptFile):
        decode(blob, data.size - 1)
    with pytest.raises(CorruptFile):
        decode(b"", 0)
