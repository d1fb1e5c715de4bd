import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding.framing import Compact, Section
from laconic.errors import CorruptFile, LaconicError
from laconic.tensors import Bitmask, Dense, IntQuantizer, MaskedCodes, Stacked
from laconic.tensors.deadzone import DeadZone
from laconic.tensors.dtypes import BY_NAME
from laconic.tensors.stored import CODEC, HEADER, Record, decode, decode_record, encode
from laconic.tensors.transforms import ChannelScale
from tests.tensors.strategies import raw_tensors, same_bits

X = torch.linspace(-1, 1, 60).reshape(6, 10)
GROUPED = IntQuantizer(3, 4, symmetric=False).quantize(X)
VALUES = {
    "dense": Dense(X.bfloat16()),
    "grouped": GROUPED,
    "stacked": Stacked((GROUPED, Dense(X))),
    "record": Record(GROUPED, ChannelScale(torch.rand(10) + 0.5), IntQuantizer(8, "row")),
}


@given(raw_tensors(tuple(BY_NAME.values())))
@settings(max_examples=200)
def test_arrays_of_every_dtype_come_back_bit_for_bit(tensor):
    blob = encode(Dense(tensor))
    assert same_bits(decode(blob).dense(), tensor)
    assert encode(decode(blob)) == blob


def test_records_come_back_whole():
    record = VALUES["record"]
    back = decode_record(encode(record))
    assert same_bits(back.weight.dense(), GROUPED.dense())
    assert same_bits(back.transform.scale, record.transform.scale)
    assert back.activation == record.activation
    assert encode(back) == encode(record)
    assert len(encode(record)) > GROUPED.stored_bytes


def test_a_record_of_a_weight_alone_is_the_weight():
    assert encode(Record(GROUPED)) == encode(GROUPED)
    assert decode_record(encode(GROUPED)).transform is None


def test_any_buffer_will_do():
    blob = encode(GROUPED)
    for buffer in (
        bytearray(blob),
        memoryview(blob),
        torch.frombuffer(bytearray(blob), dtype=torch.uint8).numpy(),
    ):
        assert same_bits(decode(buffer).dense(), GROUPED.dense())


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_truncated_at_every_length(value):
    blob = encode(value)
    for length in range(len(blob)):
        with pytest.raises(CorruptFile):
            decode_record(blob[:length])
    with pytest.raises(CorruptFile):
        decode_record(blob + b"\0")


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_every_flipped_byte_is_noticed(value):
    blob = bytearray(encode(value))
    for position in range(len(blob)):
        blob[position] ^= 0x41
        with pytest.raises(CorruptFile):
            decode_record(blob)
        blob[position] ^= 0x41


def leaves(tree, path=()):
    """Paths of all values in a JSON tree, inner ones included."""
    yield path
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, child in items:
        yield from leaves(child, (*path, key))


hostile = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 20), st.floats(), st.text(max_size=4),
    st.sampled_from([2**31, 2**62, 2**63, 2**70, -(2**70), [], {}, [2**62, 0], [-1, -6], "U8", "F32"]),
)  # fmt: skip


@given(st.sampled_from(list(VALUES.values())), st.data())
@settings(max_examples=400)
def test_headers_of_an_attacker(value, data):
    """With a valid checksum around a false header, there is an error or a tensor, nothing else."""
    frame = Compact.from_bytes(encode(value))
    header = json.loads(frame.sections[0].payload)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from([path for path in leaves(header) if path]))
        target = header
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = data.draw(hostile)
    sections = (Section(HEADER, json.dumps(header).encode()), *frame.sections[1:])
    try:
        record = decode_record(Compact(CODEC, sections).to_bytes())
        record.weight.dense()
    except LaconicError:
        return
    assert record.weight.numel <= 200


COUNTED = (
    GROUPED,
    MaskedCodes.of(GROUPED, Bitmask.of(X > 0)),
    DeadZone.of(X, torch.tensor(0.1), torch.tensor(0.1)),
)


@pytest.mark.parametrize("value", COUNTED, ids=lambda value: value.kind)
def test_bits_beyond_all_bounds_are_no_endless_sum(value):
    """A power of two was taken before the number was looked at, which no timeout ends."""
    frame = Compact.from_bytes(encode(value))
    bits, endless = b'"bits":%d' % value.bits, b'"bits":%d' % 2**62
    header = bytes(frame.sections[0].payload).replace(bits, endless)
    assert endless in header
    with pytest.raises(CorruptFile, match="bits"):
        decode(Compact(CODEC, (Section(HEADER, header), *frame.sections[1:])).to_bytes())


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"3",
        b'{"weight":{}}',
        b'{"weight":null}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_headers_that_are_none(header):
    with pytest.raises(CorruptFile):
        decode_record(Compact(CODEC, (Section(HEADER, header),)).to_bytes())


def test_frames_of_others():
    with pytest.raises(CorruptFile, match="another codec"):
        decode_record(Compact(CODEC + 1, (Section(HEADER, b"{}"),)).to_bytes())
    with pytest.raises(CorruptFile):
        decode_record(Compact(CODEC, ()).to_bytes())


def test_a_transform_is_no_weight_and_a_weight_no_transform():
    frame = Compact.from_bytes(encode(VALUES["record"]))
    header = json.loads(frame.sections[0].payload)
    swapped = header | {"weight": header["transform"], "transform": header["weight"]}
    order = (*frame.sections[-1:], *frame.sections[1:-1])
    text = Section(HEADER, json.dumps(swapped).encode())
    with pytest.raises(CorruptFile, match="stands where"):
        decode_record(Compact(CODEC, (text, *order)).to_bytes())
