import io
import json
import os
import threading
import tracemalloc

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import framing, varint
from laconic.coding.framing import Compact, IndexedReader, IndexedWriter, Section
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=100, deadline=None, derandomize=True)
FINGERPRINT = b"12345678"
numbers = st.integers(0, 300) | st.integers(0, varint.LARGEST)
json_values = st.none() | st.booleans() | st.integers() | st.text() | st.lists(st.integers())


# Compact frames


@PROPERTY
@given(
    codec=numbers,
    sections=st.lists(st.tuples(numbers, st.binary(max_size=300)), max_size=6),
    fingerprint=st.sampled_from([b"", FINGERPRINT]),
)
def test_compact_round_trip(codec, sections, fingerprint):
    frame = Compact(codec, tuple(Section(*section) for section in sections), fingerprint)
    data = frame.to_bytes()
    assert Compact.from_bytes(data) == frame
    assert Compact.from_bytes(memoryview(data)) == frame


@pytest.mark.parametrize("fingerprint", [b"", FINGERPRINT])
@pytest.mark.parametrize("size", [0, 100, 16_383, 2_000_000])
@pytest.mark.parametrize("count", range(4))
def test_the_header_takes_at_most_32_bytes(count, size, fingerprint):
    frame = Compact(127, tuple(Section(n, bytes(size)) for n in range(count)), fingerprint)
    assert len(frame.to_bytes()) - count * size <= 32


def test_payloads_may_be_memoryviews_of_any_items():
    values = np.arange(100, dtype=np.float64)
    frame = Compact(1, (Section(1, memoryview(values)), Section(2, b"end")))
    back = Compact.from_bytes(frame.to_bytes())
    assert [bytes(section.payload) for section in back.sections] == [values.tobytes(), b"end"]


def example(fingerprint=FINGERPRINT):
    return Compact(5, (Section(1, b"codes"), Section(2, b""), Section(300, b"tables")), fingerprint)


@pytest.mark.parametrize("frame", [Compact(0, ()), example(b""), example()])
def test_damage_to_a_compact_frame_shows_always(frame):
    data = frame.to_bytes()
    for size in range(len(data)):
        with pytest.raises(CorruptFile):
            Compact.from_bytes(data[:size])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        with pytest.raises(CorruptFile):
            Compact.from_bytes(damaged)
    for extra in (b"\0", b"LAC"):
        with pytest.raises(CorruptFile):
            Compact.from_bytes(data + extra)
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, damaged.size, 3)] = rng.integers(0, 256, 3)
        if damaged.tobytes() != data:
            with pytest.raises(CorruptFile):
                Compact.from_bytes(damaged.tobytes())


@PROPERTY
@given(st.binary(max_size=60))
def test_garbage_is_no_compact_frame(data):
    for start in (b"", b"LAC", b"LAC\1", b"LAC\x81"):
        with pytest.raises(CorruptFile):
            Compact.from_bytes(start + data)


def test_messages_about_compact_frames():
    data = bytearray(example().to_bytes())
    with pytest.raises(CorruptFile, match="not a laconic file: it starts with b'GIF'"):
        Compact.from_bytes(b"GIF89a")
    data[-1] ^= 1
    with pytest.raises(CorruptFile, match="the checksum does not match"):
        Compact.from_bytes(data)
    with pytest.raises(CorruptFile, match="truncated"):
        Compact.from_bytes(data[:-1])
    for flag in (0, 0x80):
        data[3] = 2 | flag
        with pytest.raises(
            CorruptFile, match="of format version 2, this laconic reads 1: pip install -U laconic"
        ):
            Compact.from_bytes(data)


def test_sizes_that_a_compact_frame_claims_take_no_memory():
    for length in (2**40, varint.LARGEST):
        head = bytearray(b"LAC\1\5\1\1")
        varint.put(head, length)
        with pytest.raises(CorruptFile, match="truncated"):
            Compact.from_bytes(head + bytes(20))
    head = bytearray(b"LAC\1\5")
    varint.put(head, 65_537)
    with pytest.raises(CorruptFile, match="found 65537 where at most 65536 is possible"):
        Compact.from_bytes(head + bytes(20))


def test_compact_frames_that_could_not_be_read_are_not_written():
    most = Compact(1, (Section(1, b""),) * 65_536)
    assert Compact.from_bytes(most.to_bytes()) == most
    for frame in (
        Compact(1, (Section(1, b""),) * 65_537),
        Compact(-1, ()),
        Compact(2**63, ()),
        Compact(1, (Section(-1, b""),)),
        Compact(1, (), b"1234567"),
    ):
        with pytest.raises(UsageError):
            frame.to_bytes()


# Indexed files


def written(sections, info=None, **metadata):
    stream = io.BytesIO()
    writer = IndexedWriter(stream)
    for name, payload in sections.items():
        writer.add(name, payload, **(info or {}))
    writer.close(**metadata)
    return stream.getvalue()


@pytest.fixture(params=["bytes", "memoryview", "path", "str"])
def opened(request, tmp_path):
    """Opens bytes in each way that a reader takes them."""

    def reader(data):
        if request.param == "bytes":
            return IndexedReader(data)
        if request.param == "memoryview":
            return IndexedReader(memoryview(data))
        path = tmp_path / "file.lac"
        path.write_bytes(data)
        return IndexedReader(path if request.param == "path" else str(path))

    return reader


@PROPERTY
@given(
    sections=st.dictionaries(st.text(max_size=20), st.binary(max_size=300), max_size=6),
    info=st.dictionaries(st.sampled_from(["dtype", "shape", "x"]), json_values),
    metadata=st.dictionaries(st.sampled_from(["model", "y"]), json_values),
)
def test_indexed_round_trip(sections, info, metadata):
    reader = IndexedReader(written(sections, info, **metadata))
    assert list(reader.names()) == list(sections)
    assert {name: reader.read(name) for name in sections} == sections
    assert all(reader.info(name) == info for name in sections)
    assert reader.metadata == metadata


def test_indexed_files_are_read_from_anywhere(opened):
    reader = opened(written({"a": b"first", "": b"", "b": b"last"}, {"dtype": "U8"}, step=3))
    assert list(reader.names()) == ["a", "", "b"]
    assert [reader.read(name) for name in reader.names()] == [b"first", b"", b"last"]
    assert reader.info("a") == {"dtype": "U8"} and reader.metadata == {"step": 3}
    with pytest.raises(UsageError, match="the file has no section 'c'"):
        reader.read("c")
    with pytest.raises(UsageError, match="the file has no section 'c'"):
        reader.info("c")


def test_an_empty_indexed_file(opened):
    assert list(opened(written({})).names()) == []


def test_payloads_of_sections_may_be_memoryviews_of_any_items():
    values = np.arange(100, dtype=np.float64)
    reader = IndexedReader(memoryview(written({"a": memoryview(values), "b": b"end"})))
    assert reader.read("a") == values.tobytes() and reader.read("b") == b"end"


def test_writing_through_a_pipe():
    incoming, outgoing = os.pipe()
    found = []
    thread = threading.Thread(target=lambda: found.append(os.fdopen(incoming, "rb").read()))
    thread.start()
    with os.fdopen(outgoing, "wb") as stream, IndexedWriter(stream) as writer:
        writer.add("a", bytes(100_000))
    thread.join()
    assert IndexedReader(found[0]).read("a") == bytes(100_000)


def test_a_name_is_written_once():
    with IndexedWriter(io.BytesIO()) as writer:
        writer.add("a", b"1")
        with pytest.raises(UsageError, match="section 'a' was written already"):
            writer.add("a", b"2")


def test_metadata_may_be_given_inside_a_with_block():
    stream = io.BytesIO()
    with IndexedWriter(stream) as writer:
        writer.add("a", b"1")
        writer.close(step=3)
    assert IndexedReader(stream.getvalue()).metadata == {"step": 3}
    with pytest.raises(UsageError, match="written already"):
        writer.close()
    with pytest.raises(UsageError, match="written already"):
        writer.add("b", b"2")


def test_an_interrupted_file_has_no_index():
    stream = io.BytesIO()
    with pytest.raises(KeyboardInterrupt), IndexedWriter(stream) as writer:
        writer.add("a", bytes(100))
        raise KeyboardInterrupt
    with pytest.raises(CorruptFile, match="footer is missing"):
        IndexedReader(stream.getvalue())


SECTIONS = {"weights": b"0123456789", "empty": b"", "bias": b"xyz"}


def check_damage(data):
    """Whatever can be read is right: metadata, names and payloads; the rest is `CorruptFile`."""
    try:
        reader = IndexedReader(data)
    except CorruptFile:
        return
    assert list(reader.names()) == list(SECTIONS) and reader.metadata == {"step": 3}
    for name in SECTIONS:
        try:
            assert reader.read(name) == SECTIONS[name]
        except CorruptFile:
            continue


def test_damage_to_an_indexed_file():
    data = written(SECTIONS, step=3)
    for size in range(len(data)):
        with pytest.raises(CorruptFile):
            IndexedReader(data[:size])
        with pytest.raises(CorruptFile):
            IndexedReader(data + data[:size] + b"x")
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit >> 3] ^= 1 << (bit & 7)
        check_damage(bytes(damaged))
    rng = np.random.default_rng(0)
    for _ in range(500):
        damaged = np.frombuffer(data, np.uint8).copy()
        damaged[rng.integers(0, damaged.size, 3)] = rng.integers(0, 256, 3)
        check_damage(damaged.tobytes())


def test_messages_about_indexed_files(opened):
    data = bytearray(written(SECTIONS))
    with pytest.raises(CorruptFile, match="not a laconic file"):
        opened(b"PK\3\4" + bytes(100))
    with pytest.raises(CorruptFile, match="are fewer than an empty one has"):
        opened(bytes(data[:20]))
    with pytest.raises(CorruptFile, match=r"footer is missing or damaged \(truncated\?\)"):
        opened(bytes(data[:-1]))
    future = bytes(data[:4] + b"\2" + data[5:])
    with pytest.raises(CorruptFile, match=r"of format version 2, .* pip install -U laconic"):
        opened(future)
    data[6] ^= 1
    reader = opened(bytes(data))
    assert reader.read("bias") == b"xyz"  # other sections are not touched
    with pytest.raises(CorruptFile, match="the checksum of section 'weights' does not match"):
        reader.read("weights")
    data[data.index(b"offset")] ^= 1
    with pytest.raises(CorruptFile, match="the checksum of the index does not match"):
        opened(bytes(data))


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = tmp_path / "file.lac"
    path.write_bytes(written({"a": bytes(1000)}))
    reader = IndexedReader(path)
    path.write_bytes(b"short")
    with pytest.raises(CorruptFile, match="1000 bytes expected at 5, found 0"):
        reader.read("a")


def forged(index, payload=b"0123456789"):
    """An indexed file with the given index, and a footer that is right."""
    index = index if isinstance(index, bytes) else json.dumps(index).encode()
    offset = framing.START + len(payload)
    checksum = xxhash.xxh3_64_intdigest(index)
    footer = framing._FOOTER.pack(offset, len(index), checksum, b"LACI")
    return b"LACI\1" + payload + index + footer


def entry(**changes):
    payload = b"0123456789"
    checksum = xxhash.xxh3_64_intdigest(payload)
    return {"offset": 5, "length": 10, "xxh3": checksum, "info": {}} | changes


def index_of(**changes):
    return {"sections": {"a": entry(**changes)}, "metadata": {}}


def without(key):
    return {"sections": {"a": {k: v for k, v in entry().items() if k != key}}, "metadata": {}}


def test_the_forger_of_indices_is_right(opened):
    assert opened(forged(index_of())).read("a") == b"0123456789"


WRONG = [
    None,
    True,
    1,
    -1,
    1.5,
    2**70,
    -(2**70),
    "5",
    [],
    [5],
    {},
    {"a": 1},
    float("nan"),
    "\ud800",
]


@pytest.mark.parametrize("field", ["offset", "length", "info"])
def test_entries_of_wrong_types_or_out_of_the_file(field, opened):
    for value in WRONG:
        if (field == "info" and isinstance(value, dict)) or (field, value) == ("length", 1):
            continue
        with pytest.raises(CorruptFile):
            opened(forged(index_of(**{field: value})))


@pytest.mark.parametrize(
    ("offset", "length"),
    [(0, 5), (4, 1), (5, 11), (6, 10), (15, 1), (16, 0), (2**62, 1), (5, 2**62), (2**63, 2**63)],
)
def test_entries_that_leave_the_payloads(offset, length, opened):
    with pytest.raises(CorruptFile, match="the index entry of section 'a' is impossible"):
        opened(forged(index_of(offset=offset, length=length)))


def test_wrong_checksums_in_the_index(opened):
    for value in WRONG:
        with pytest.raises(CorruptFile):
            opened(forged(index_of(xxh3=value))).read("a")


@pytest.mark.parametrize(
    "index",
    [
        *WRONG,
        {"sections": {}},
        {"metadata": {}},
        *({"sections": value, "metadata": {}} for value in WRONG if value != {}),
        *({"sections": {}, "metadata": value} for value in WRONG if not isinstance(value, dict)),
        *({"sections": {"a": value}, "metadata": {}} for value in WRONG),
        *(without(key) for key in entry()),
        index_of(more=1),
        b"",
        b"not json",
        b"\xff\xfe\xfd",
        b"9" * 5000,
        b"[" * 100_000,
        b'{"sections":' * 50_000,
        b'{"sections":{},"metadata":{},"metadata":{}}',
        b'{"sections":{"a":%s,"a":%s},"metadata":{}}' % ((json.dumps(entry()).encode(),) * 2),
    ],
    ids=lambda index: repr(index)[:40],
)
def test_indices_that_are_no_index(index):
    with pytest.raises(CorruptFile):
        IndexedReader(forged(index))


@pytest.mark.parametrize("offset", [0, 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("length", [0, 1, 2**63, 2**64 - 1])
def test_footers_that_lie(offset, length, opened):
    data = written(SECTIONS)
    footer = framing._FOOTER.pack(offset, length, 0, b"LACI")
    with pytest.raises(CorruptFile, match="the footer is missing or damaged"):
        opened(data[: -len(footer)] + footer)


def test_sections_are_read_alone(tmp_path):
    """The file may be far larger than memory: opening it and reading a section touch little."""
    path = tmp_path / "file.lac"
    with path.open("wb") as stream, IndexedWriter(stream) as writer:
        writer.add("large", bytes(50_000_000))
        writer.add("small", b"here")
    tracemalloc.start()
    assert IndexedReader(path).read("small") == b"here"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
