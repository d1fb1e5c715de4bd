import tracemalloc

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import blocks, planes, varint
from laconic.coding.blocks import CONSTANT, HUFFMAN, RANS, RAW, ZSTD, compress, decompress
from laconic.coding.planes import LAYOUTS, Layout
from laconic.coding.sharing import MOST
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
ENGINES = {"huffman": HUFFMAN, "rans": RANS}
NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
ITEMS = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}  # a dtype of each size

engines = pytest.mark.parametrize("engine", ENGINES)
dtypes = pytest.mark.parametrize("dtype", LAYOUTS)


def contents(blob):
    """The tables of a blob, and the entries of its directory: chunk by chunk, plane by plane."""
    data = blob.tobytes()
    reader = varint.Reader(data[:-12], "test")
    layout = Layout.from_code(reader.take(1)[0])
    size, chunk = reader.varint(), reader.varint()
    reader.take(len(data) - 12 - reader.position - int.from_bytes(data[-4:], "little"))
    whole = size - size % layout.itemsize
    return blocks._read_directory(reader, layout, size, whole, chunk)


def kinds(blob):
    return [entry.kind for entry in contents(blob)[1]]


def weights(count, dtype="BF16", seed=0):
    """What a layer of a model looks like, as bytes."""
    values = np.random.default_rng(seed).normal(0, 0.02, count).astype(np.float32)
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return values.astype(NUMPY[dtype]).view(np.uint8)


def noise(size, seed=0):
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8)


def runs(size, seed=0):
    """Long runs of zeros with short bursts: what zstd is for."""
    out = np.zeros(size, np.uint8)
    for start in np.random.default_rng(seed).integers(0, max(1, size), 1 + size // 1500):
        out[start : start + 40] = np.arange(40)[: size - start]
    return out


def skewed(size, seed=0):
    rng = np.random.default_rng(seed)
    return np.minimum(rng.geometric(0.4, size), 255).astype(np.uint8)


MAKERS = {
    "zeros": lambda size, seed: np.zeros(size, np.uint8),
    "noise": noise,
    "runs": runs,
    "skewed": skewed,
    "weights": lambda size, seed: weights(size // 2 + 1, seed=seed)[:size],
}


def check(data, dtype, **settings):
    blob = compress(data, dtype, **settings)
    back = decompress(blob)
    assert back.dtype == np.uint8 and back.tobytes() == bytes(data)
    return blob


@engines
@dtypes
def test_every_length_up_to_seventy(dtype, engine):
    for size in range(71):
        for maker in (skewed, runs):
            check(maker(size).tobytes(), dtype, engine=engine)


@engines
@pytest.mark.parametrize("dtype", ITEMS)
@pytest.mark.parametrize("chunk", [8, 24, 4096, 1 << 16, blocks.CHUNK, blocks.MAX_CHUNK])
def test_large_buffers_with_a_tail_in_several_chunks(dtype, engine, chunk):
    size = min(700_001, 300 * chunk) + 3
    for maker in (noise, skewed):
        check(maker(size), dtype, engine=engine, chunk=chunk)


@PROPERTY
@given(
    dtype=st.sampled_from(sorted(LAYOUTS)),
    engine=st.sampled_from(sorted(ENGINES)),
    chunk=st.sampled_from([8, 16, 64, 4096, 40_000, blocks.CHUNK]),
    parts=st.lists(
        st.tuples(st.sampled_from(sorted(MAKERS)), st.integers(0, 9000), st.integers(0, 99)),
        max_size=6,
    ),
    worthwhile=st.sampled_from([0.5, 0.95, 1.0]),
)
def test_round_trip_of_anything(dtype, engine, chunk, parts, worthwhile):
    pieces = [MAKERS[name](size, seed) for name, size, seed in parts]
    data = np.concatenate([np.zeros(0, np.uint8), *pieces])
    before = data.copy()
    check(data, dtype, engine=engine, chunk=chunk, worthwhile=worthwhile)
    assert (data == before).all()


@PROPERTY
@given(data=st.binary(max_size=200), dtype=st.sampled_from(sorted(LAYOUTS)))
def test_round_trip_of_any_bytes(data, dtype):
    check(data, dtype)


@engines
@pytest.mark.parametrize("dtype", NUMPY)
def test_not_a_number_negative_zero_and_subnormals_survive(dtype, engine):
    """Bits are compared: floats would hide the payload of a NaN and the sign of a zero."""
    kind = np.dtype(NUMPY[dtype])
    words = np.dtype(f"u{kind.itemsize}")
    one = words.type(1)
    exponents = np.array(np.inf, kind).view(words)
    sign = one << words.type(8 * kind.itemsize - 1)
    special = np.array(
        [0, sign, one, sign | one, exponents, exponents | sign, exponents | one, ~(one - one)],
        words,
    )
    values = np.random.default_rng(0).normal(size=30_000).astype(kind).view(words)
    values[::7] = np.resize(special, values[::7].size)
    check(values.view(np.uint8), dtype, engine=engine)
    check(special.view(np.uint8), dtype, engine=engine)


@engines
def test_weights_are_coded_in_their_exponents_only(engine):
    blob = check(weights(100_000), "BF16", engine=engine)
    assert kinds(blob) == [RAW, ENGINES[engine]]
    assert blob.size < 0.68 * 200_000
    blob = check(weights(100_000, "F32"), "F32", engine=engine)
    assert kinds(blob) == [RAW, RAW, RAW, ENGINES[engine]]


@engines
@pytest.mark.parametrize(("dtype", "item"), ITEMS.items())
def test_kinds_of_pieces(dtype, item, engine):
    size = 1 << 16
    assert kinds(check(np.full(size, 7, np.uint8), dtype, engine=engine)) == [CONSTANT] * item
    assert kinds(check(noise(size), dtype, engine=engine)) == [RAW] * item
    assert kinds(check(runs(size), dtype, engine=engine)) == [ZSTD] * item
    if item == 1:
        assert kinds(check(skewed(size), dtype, engine=engine)) == [ENGINES[engine]]


@engines
def test_all_kinds_in_one_blob(engine):
    chunk = 1 << 14
    data = np.concatenate([noise(chunk), np.zeros(chunk, np.uint8), runs(chunk), skewed(chunk)])
    blob = check(data, "U8", engine=engine, chunk=chunk)
    assert kinds(blob) == [RAW, CONSTANT, ZSTD, ENGINES[engine]]


def test_chunks_that_look_alike_share_a_table():
    blob = check(weights(1 << 20), "BF16", chunk=1 << 15)
    tables, entries = contents(blob)
    assert len(entries) == 128 and len(tables) <= 8
    assert {entry.table for entry in entries if entry.kind == HUFFMAN} == set(range(len(tables)))


def test_only_tables_in_use_are_stored():
    chunk = 1 << 14
    tables, entries = contents(check(np.append(runs(chunk), skewed(chunk)), "U8", chunk=chunk))
    assert [entry.kind for entry in entries] == [ZSTD, HUFFMAN] and len(tables) == 1


@engines
@pytest.mark.parametrize("dtype", ["BF16", "F32"])
def test_threads_do_not_change_the_bytes(dtype, engine):
    data = np.concatenate([weights(90_000, seed=1), runs(50_000), noise(30_001)])
    one = compress(data, dtype, engine=engine, chunk=4096)
    two = compress(data, dtype, engine=engine, chunk=4096, threads=2)
    assert one.tobytes() == two.tobytes()
    assert decompress(one, threads=2).tobytes() == data.tobytes()
    damaged = one.copy()
    damaged[40] ^= 1
    with pytest.raises(CorruptFile):
        decompress(damaged, threads=2)


def test_any_bytes_like_input():
    data = weights(5000)
    expected = compress(data, "BF16").tobytes()
    plain = data.tobytes()
    read_only = np.frombuffer(plain, np.uint8)
    table = data.view(np.uint16).reshape(50, 100)
    same = [plain, bytearray(plain), memoryview(plain), memoryview(data.view(np.uint16)), read_only]
    same += [table, np.asfortranarray(table), table.repeat(2, axis=1)[:, ::2]]
    for given_data in same:
        assert compress(given_data, "BF16").tobytes() == expected
    for blob in (expected, bytearray(expected), memoryview(expected)):
        assert decompress(blob).tobytes() == plain


@pytest.mark.parametrize("dtype", ITEMS)
@pytest.mark.parametrize("offset", range(1, 8))
def test_unaligned_input_and_blob(dtype, offset):
    data = np.concatenate([noise(offset), weights(3001), runs(3000)])
    before = data.copy()
    blob = check(data[offset:], dtype, chunk=4096)
    assert (data == before).all()
    shifted = np.concatenate([np.zeros(offset, np.uint8), blob])
    assert (decompress(shifted[offset:]) == data[offset:]).all()
    assert (shifted[offset:] == blob).all()


@pytest.mark.parametrize("dtype", ITEMS)
@pytest.mark.parametrize("size", [0, 1, 7, 100, 3000, 70_000, 1_200_001])
def test_never_much_larger_than_the_input(dtype, size):
    for maker in MAKERS.values():
        for engine in ENGINES:
            assert compress(maker(size, 3), dtype, engine=engine).size <= 64 + 1.001 * size


def test_the_smaller_engine_is_smaller():
    data = skewed(300_000)
    assert compress(data, engine="rans").size < compress(data, engine="huffman").size


def test_impossible_settings():
    with pytest.raises(UsageError, match="unknown engine 'lz4'; known: huffman, rans"):
        compress(b"", engine="lz4")
    with pytest.raises(UsageError, match="no byte-plane layout for dtype 'Q4'"):
        compress(b"", "Q4")
    for chunk in (-8, 0, 4, 12, blocks.MAX_CHUNK + 8):
        with pytest.raises(UsageError, match="chunk must be a multiple of 8"):
            compress(b"", chunk=chunk)


def test_what_is_expected():
    blob = compress(b"12345")
    assert decompress(blob, expect=5).tobytes() == b"12345"
    for size in (0, 4, 6, 2**50):
        with pytest.raises(CorruptFile, match=f"{size} bytes expected, it claims 5"):
            decompress(blob, expect=size)


# Hostile input. The checksum is of the restored bytes, so damage to what does not carry them (the
# bits that pad a stream, the second code of a lone symbol, a frequency that changes no code, flags
# of a zstd frame, a chunk size or layout that cuts the same data to the same planes) is not an
# error: the result is then the original.


def small(name, engine):
    """A blob of a few hundred bytes, and what it holds."""
    if name == "mixed":
        data = np.concatenate([noise(24), np.zeros(24, np.uint8), weights(55, seed=2), noise(3)])
        return data, compress(data, "BF16", engine=engine, chunk=24, worthwhile=1.0)
    if name == "skewed":
        data = skewed(600)
        return data, compress(data, engine=engine)
    if name == "runs":
        data = runs(5001)
        return data, compress(data, "F32", engine=engine)
    data = np.full(99, 5, np.uint8)
    return data, compress(data, "F64", engine=engine)


hostile = pytest.mark.parametrize("name", ["mixed", "skewed", "runs", "constant"])


def original_or_corrupt(blob, data):
    try:
        assert (decompress(blob) == data).all()
    except CorruptFile:
        return False
    return True


@engines
@hostile
def test_truncated(name, engine):
    _, blob = small(name, engine)
    for size in range(blob.size):
        with pytest.raises(CorruptFile):
            decompress(blob[:size])
        with pytest.raises(CorruptFile):
            decompress(blob[blob.size - size :])
    for extra in (1, 4, 100):
        with pytest.raises(CorruptFile):
            decompress(np.append(blob, np.zeros(extra, np.uint8)))


@engines
@hostile
def test_every_bit_flipped(name, engine):
    data, blob = small(name, engine)
    survived = 0
    for bit in range(8 * blob.size):
        damaged = blob.copy()
        damaged[bit >> 3] ^= 1 << (bit & 7)
        survived += original_or_corrupt(damaged, data)
    assert survived < 0.1 * 8 * blob.size


@engines
@hostile
def test_random_damage(name, engine):
    data, blob = small(name, engine)
    rng = np.random.default_rng(0)
    for _ in range(400):
        damaged = blob.copy()
        where = rng.integers(0, blob.size, rng.integers(1, 5))
        damaged[where] = rng.integers(0, 256, where.size)
        original_or_corrupt(damaged, data)
        cut, paste = sorted(rng.integers(0, blob.size, 2))
        original_or_corrupt(np.delete(blob, slice(cut, paste + 1)), data)
        original_or_corrupt(np.insert(blob, cut, blob[cut:paste]), data)


@PROPERTY
@given(st.binary(max_size=80))
def test_garbage(data):
    with pytest.raises(CorruptFile):
        decompress(data)
    with pytest.raises(CorruptFile):
        decompress(b"\x02" + data)


def forge(size, chunk, entries, payload, tables=b"\x00", tail=b"", code=1, restored=None):
    """A blob that says what it is told to say, with a right checksum where one is possible."""
    head, end = bytearray([code]), bytearray(tables)
    varint.put(head, size)
    varint.put(head, chunk)
    for kind, table, length in entries:
        end.append(kind)
        varint.put(end, table)
        varint.put(end, length)
    end += tail
    checksum = 0 if restored is None else xxhash.xxh3_64_intdigest(restored)
    footer = checksum.to_bytes(8, "little") + len(end).to_bytes(4, "little")
    return bytes(head + payload + end + footer)


def test_the_forger_is_right():
    text = b"laconic is short"
    assert decompress(forge(16, 16, [(RAW, 0, 16)], text, restored=text)).tobytes() == text
    packed = zstandard.compress(text)
    blob = forge(16, 16, [(ZSTD, 0, len(packed))], packed, restored=text)
    assert decompress(blob).tobytes() == text


ONE_TABLE = b"\x01\x01\x05"  # one table of one symbol, 5


@pytest.mark.parametrize(
    ("entries", "payload", "tables"),
    [
        ([(5, 0, 16)], bytes(16), b"\0"),  # no such kind
        ([(255, 0, 16)], bytes(16), b"\0"),
        ([(RAW, 0, 15)], bytes(15), b"\0"),
        ([(RAW, 0, 17)], bytes(17), b"\0"),
        ([(RAW, 1, 16)], bytes(16), b"\0"),  # a table where none is used
        ([(CONSTANT, 0, 0)], b"", b"\0"),
        ([(CONSTANT, 0, 2)], b"11", b"\0"),
        ([(HUFFMAN, 0, 2)], b"\0\0", b"\0"),  # no table
        ([(RANS, 1, 4)], b"\0\0\1\0", ONE_TABLE),  # one table, and the second is named
        ([(RANS, 2**62, 4)], b"\0\0\1\0", ONE_TABLE),
        ([(HUFFMAN, 0, 1)], b"\0", ONE_TABLE),  # eight bits for sixteen symbols
        ([(RANS, 0, 3)], b"\0\0\1", ONE_TABLE),
        ([(ZSTD, 0, 3)], b"abc", b"\0"),
        ([(ZSTD, 0, 9)], b"not zstd.", b"\0"),
        ([(RAW, 0, 16)], bytes(15), b"\0"),  # the directory and the payload differ
        ([(RAW, 0, 2**63 - 1)], bytes(16), b"\0"),
        ([], b"", b"\0"),
        ([(RAW, 0, 16)], bytes(16), b"\2\1\5\1\5"),  # more tables than pieces
        ([(RAW, 0, 16)], bytes(16), b"\1\0"),  # an empty table
    ],
)
def test_directories_that_lie(entries, payload, tables):
    for restored in (bytes(16), b"\5" * 16):
        with pytest.raises(CorruptFile):
            decompress(forge(16, 16, entries, payload, tables, restored=restored))


def test_more_tables_than_a_decoder_should_make():
    count = MOST + 1
    entries = [(RANS, number, 4) for number in range(count)]
    for tables in (count, count - 1):
        head = bytearray()
        varint.put(head, tables)
        blob = forge(
            8 * count, 8, entries, b"\0\0\1\0" * count, bytes(head) + b"\1\5" * tables,
            restored=b"\5" * 8 * count,
        )  # fmt: skip
        with pytest.raises(CorruptFile, match=r"4097 where at most 4096|a table that is not there"):
            decompress(blob)


def test_a_wrong_checksum_and_a_wrong_tail():
    text = b"laconic is short"
    with pytest.raises(CorruptFile, match="checksum"):
        decompress(forge(16, 16, [(RAW, 0, 16)], text))
    for tail in (b"", b"ab"):  # one byte is what is left of 17 where elements have two
        with pytest.raises(CorruptFile):
            decompress(forge(17, 16, [(CONSTANT, 0, 1)] * 2, b"xx", tail=tail, code=2))


@pytest.mark.parametrize("chunk", [0, 1, 4, 12, blocks.MAX_CHUNK + 8, 2**40])
def test_impossible_chunks(chunk):
    with pytest.raises(CorruptFile):
        decompress(forge(16, chunk, [(RAW, 0, 16)], bytes(16), restored=bytes(16)))


@pytest.mark.parametrize("size", [2**40, 2**47, 2**48, 2**48 + 1, 2**62])
@pytest.mark.parametrize("code", [1, 2, 0x82, 8, 0x88])
def test_a_short_blob_cannot_claim_much_memory(size, code):
    blob = forge(size, blocks.MAX_CHUNK, [(CONSTANT, 0, 1)] * 3, b"xyz", code=code)
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        decompress(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(blob) < 40 and peak < 1 << 20


def test_memory_that_is_not_there(monkeypatch):
    pieces = 400  # constant pieces of 4 MiB each are possible, so the claim itself is not absurd
    size = pieces * blocks.MAX_CHUNK
    blob = forge(size, blocks.MAX_CHUNK, [(CONSTANT, 0, 1)] * pieces, bytes(pieces))
    real = np.empty

    def empty(shape, *args, **kwargs):
        if shape == size:
            raise MemoryError
        return real(shape, *args, **kwargs)

    monkeypatch.setattr(np, "empty", empty)
    with pytest.raises(CorruptFile, match=f"no memory for the {size} bytes it claims"):
        decompress(blob)


def zstd_frame_of(size):
    """A zstd frame whose header claims `size` bytes, of which there are none."""
    return b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little") + b"\x01\0\0"


def zstd_without_size(data):
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


@pytest.mark.parametrize(
    "packed",
    [
        zstd_frame_of(2**45),
        zstd_frame_of(2**64 - 3),
        zstd_frame_of(16),
        zstd_frame_of(0),
        zstandard.compress(bytes(15)),
        zstandard.compress(bytes(17)),
        zstandard.compress(bytes(2**20)),
        zstd_without_size(bytes(16)),
        zstandard.compress(bytes(16)) + b"more",
        zstandard.compress(bytes(16)) * 2,
        zstandard.compress(bytes(16))[:-1],
        b"\x50\x2a\x4d\x18\x04\0\0\0abcd",  # a skippable frame
    ],
)
def test_zstd_pieces_of_another_size(packed):
    """The decoder would take the memory that a frame claims, so the claim is looked at first."""
    blob = forge(16, 16, [(ZSTD, 0, len(packed))], packed, restored=bytes(16))
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        decompress(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_layouts_are_all_tested():
    assert {LAYOUTS[dtype].itemsize for dtype in ITEMS} == set(planes._WORDS)
