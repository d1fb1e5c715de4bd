import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laconic.coding.planes import LAYOUTS
from laconic.errors import CorruptFile
from laconic.store.objects import Base, base_of, decode, encode, kind_of


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


def updated(change, size=40_000):
    """(base, what an update made of it), bytes of bf16."""
    generator = np.random.default_rng(0)
    values = generator.normal(0, 0.02, size)
    return [
        ((x.astype(np.float32).view(np.uint32)) >> 16).astype("u2").view(np.uint8)
        for x in (values, values + generator.normal(0, change, size))
    ]


def changed_bits(size=40_000):
    """Words in which single bits are flipped: far from each other in order."""
    generator = np.random.default_rng(0)
    base = generator.integers(0, 1 << 16, size, dtype=np.uint16)
    return base.view(np.uint8), (base ^ np.uint16(1 << 12)).view(np.uint8)


@pytest.mark.parametrize(
    ("pair", "kind"),
    [
        (updated(1e-5), "difference"), (updated(0), "xor"), (updated(1.0), "block"),
        (changed_bits(), "xor"),
    ],
    ids=["near", "same", "far", "bits"],
)  # fmt: skip
def test_bases(pair, kind):
    base, data = pair
    blob = encode(data, "BF16", base=Base(bytes(32), base))
    assert kind_of(blob) == kind
    assert base_of(blob) == (None if kind == "block" else bytes(32))
    assert len(blob) <= len(encode(data, "BF16"))
    assert decode(blob, data.size, lambda digest: base).tobytes() == data.tobytes()


def test_a_base_that_is_not_there():
    base, data = updated(1e-5)
    blob = encode(data, "BF16", base=Base(bytes(32), base))
    with pytest.raises(CorruptFile, match="kind 3 do not hold"):
        decode(blob, data.size)
    with pytest.raises(CorruptFile):
        decode(blob, data.size, lambda digest: data)
    with pytest.raises(CorruptFile):
        decode(blob[:20], data.size, lambda digest: base)


@pytest.mark.parametrize("size", [39_990, 40_000, 40_010])
def test_bases_of_other_sizes(size):
    """An embedding that grew, or lost some rows."""
    base, data = updated(1e-5)
    data = np.resize(data, 2 * size)
    blob = encode(data, "BF16", base=Base(bytes(32), base))
    assert kind_of(blob) == "difference"
    assert decode(blob, data.size, lambda digest: base).tobytes() == data.tobytes()


def test_what_is_no_tensor_has_no_base():
    base, data = updated(1e-5)
    assert kind_of(encode(data, None, base=Base(bytes(32), base))) in ("block", "zstd")
