import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import planes
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
DISTINCT = sorted(set(planes.LAYOUTS.values()), key=lambda layout: layout.code())


def through(raw, layout):
    elements = planes.words(raw, layout)
    parts = planes.split(elements, layout)
    out = np.empty_like(elements)
    planes.join(parts, layout, out)
    return parts, out.view(np.uint8)


@PROPERTY
@given(st.sampled_from(DISTINCT), st.binary(max_size=400))
def test_round_trip_of_any_bits(layout, data):
    raw = np.frombuffer(data[: len(data) // layout.itemsize * layout.itemsize], np.uint8)
    parts, back = through(raw, layout)
    assert parts.shape == (layout.itemsize, raw.size // layout.itemsize)
    assert (back == raw).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_every_value_of_sixteen_bits(dtype):
    raw = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    assert (through(raw, planes.layout_of(dtype))[1] == raw).all()


@pytest.mark.parametrize(
    ("dtype", "kind", "exponent"), [("F32", np.float32, 127), ("F64", np.float64, 1023 >> 3)]
)
def test_the_top_plane_of_a_float_is_its_exponent_without_the_sign(dtype, kind, exponent):
    values = np.array([1.0, -1.0, 1.04, -1.04], kind)
    parts, _ = through(values.view(np.uint8), planes.layout_of(dtype))
    assert parts[-1].tolist() == [exponent] * 4
    assert (parts[-2] >> 7).tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("dtype", ["U16", "I16", "U32", "I32", "U64", "I64"])
def test_the_planes_of_integers_are_their_bytes(dtype):
    layout = planes.layout_of(dtype)
    raw = np.arange(10 * layout.itemsize, dtype=np.uint8)
    parts, _ = through(raw, layout)
    assert (parts == raw.reshape(10, -1).T).all()


def test_unaligned_bytes_become_aligned_words():
    raw = np.arange(65, dtype=np.uint8)[1:]
    for layout in DISTINCT:
        found = planes.words(raw, layout)
        assert found.flags.aligned and (found.view(np.uint8) == raw).all()


def test_codes_name_layouts():
    known = {layout.code(): layout for layout in DISTINCT}
    assert len(known) == len(DISTINCT)
    for code in range(256):
        if code in known:
            assert planes.Layout.from_code(code) == known[code]
        else:
            with pytest.raises(CorruptFile, match=f"unknown byte-plane layout {code}"):
                planes.Layout.from_code(code)


def test_unknown_dtype():
    with pytest.raises(UsageError, match="no byte-plane layout for dtype 'float32'; known: BOOL"):
        planes.layout_of("float32")
