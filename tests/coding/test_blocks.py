import tracemalloc

import numpy as np
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import blocks, contexts, planes, varint
from laconic.coding.blocks import CHUNKS, MAX_CHUNK, MIN_CHUNK, compress, decompress
from laconic.coding.directory import CONSTANT, CONTEXT, HUFFMAN, RANS, RAW, ZSTD, read_directory
from laconic.coding.planes import LAYOUTS, Layout
from laconic.coding.sharing import MOST
from laconic.coding.tables import entropy_bits, histogram
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
ENGINES = {"huffman": HUFFMAN, "rans": RANS}
NUMPY = {"F16": np.float16, "F32": np.float32, "F64": np.float64}
ITEMS = {"U8": 1, "BF16": 2, "F32": 4, "F64": 8}  # a dtype of each size

engines = pytest.mark.parametrize("engine", ENGINES)
dtypes = pytest.mark.parametrize("dtype", LAYOUTS)


def contents(blob):
    """The directory of a blob: its tables, and its entries chunk by chunk, plane by plane."""
    data = blob.tobytes()
    reader = varint.Reader(data[:-12], "test")
    layout = Layout.from_code(reader.take(1)[0])
    size, chunk = reader.varint(), reader.varint()
    reader.take(len(data) - 12 - reader.position - int.from_bytes(data[-4:], "little"))
    return read_directory(reader, layout, size - size % layout.itemsize, chunk)


def kinds(blob):
    return [entry.kind for entry in contents(blob).entries]


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
@pytest.mark.parametrize("chunk", [MIN_CHUNK, 4104, 1 << 16, 1 << 19, MAX_CHUNK])
def test_large_buffers_with_a_tail_in_several_chunks(dtype, engine, chunk):
    size = min(700_001, 300 * chunk) + 3
    for maker in (noise, skewed):
        check(maker(size), dtype, engine=engine, chunk=chunk)


@PROPERTY
@given(
    dtype=st.sampled_from(sorted(LAYOUTS)),
    engine=st.sampled_from(sorted(ENGINES)),
    chunk=st.sampled_from([MIN_CHUNK, 4104, 40_000, None]),
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
    second = {"huffman": RAW, "rans": CONTEXT}[engine]
    blob = check(weights(60_000), "BF16", engine=engine)
    assert kinds(blob) == [second, ENGINES[engine]]
    assert blob.size < 0.68 * 120_000
    blob = check(weights(30_000, "F32"), "F32", engine=engine)
    assert kinds(blob) == [RAW, RAW, second, ENGINES[engine]]


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
    entries, tables, _ = contents(blob)
    assert len(entries) == 128 and len(tables) <= 8
    assert {entry.table for entry in entries if entry.kind == HUFFMAN} == set(range(len(tables)))


def test_only_tables_in_use_are_stored():
    chunk = 1 << 14
    entries, tables, _ = contents(check(np.append(runs(chunk), skewed(chunk)), "U8", chunk=chunk))
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


def leaning(count, seed=0, exponents=(118, 126), lean=0.7):
    """bf16 words whose top mantissa bits lean to zero, the more so the larger the exponent."""
    rng = np.random.default_rng(seed)
    exponent = rng.integers(*exponents, count)
    top = rng.geometric(lean * (exponent - exponents[0] + 8) / 16) - 1 & 7
    rest = rng.integers(0, 32, count)
    return (rest >> 4 << 15 | exponent << 7 | top << 4 | rest & 15).astype("<u2").view(np.uint8)


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64"])
def test_contexts_beat_every_order_0_code(dtype):
    if dtype == "F64":
        data = np.random.default_rng(0).normal(0, 0.02, 1 << 18).view(np.uint8)
    else:
        data = weights(1 << 19, dtype)
    layout = planes.layout_of(dtype)
    parts = planes.split(planes.words(data, layout), layout)
    order_0 = sum(min(8.0 * part.size, float(entropy_bits(histogram(part)))) for part in parts)
    blob = check(data, dtype, engine="rans")
    assert set(kinds(blob)[layout.itemsize - 2 :: layout.itemsize]) == {CONTEXT}
    assert 8 * blob.size < {"BF16": 0.998, "F32": 0.999, "F64": 0.995}[dtype] * order_0


def test_ratio_on_gaussian_weights():
    data = weights(1 << 20)
    exponents = planes.split(data.view(np.uint16), planes.layout_of("BF16"))[1]
    order_0 = 16 / (8 + entropy_bits(histogram(exponents)) / exponents.size)
    assert data.size / compress(data, "BF16", engine="rans").size >= 1.004 * order_0


def test_batches_that_look_alike_share_their_contexts():
    size = blocks.BATCH * CHUNKS["rans"] // 2
    directory = contents(check(np.tile(leaning(size), 3), "BF16", engine="rans"))
    assert [len(directory.sets), len(directory.sets[0].contexts)] == [1, 8]
    other = leaning(size, exponents=(60, 68), lean=0.4)
    directory = contents(check(np.append(leaning(size), other), "BF16", engine="rans"))
    assert [entry.table for entry in directory.entries[::2]] == [0] * 16 + [1] * 16


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32", "F64"])
def test_what_gains_nothing_is_no_larger_for_contexts(dtype, monkeypatch):
    item = LAYOUTS[dtype].itemsize
    for data in (
        noise(1 << 18),
        weights(1 << 17)[: 1 << 18],
        skewed(1 << 18),
        weights(2000 * item),
    ):
        found = compress(data, dtype, engine="rans").size
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "CONTEXT_GAIN", 2.0)
            without = compress(data, dtype, engine="rans")
        assert CONTEXT not in kinds(without) and found <= without.size
    assert CONTEXT not in kinds(check(noise(1 << 18), dtype, engine="rans"))


@pytest.mark.parametrize("dtype", ["U16", "I32", "U64", "U8"])
def test_only_floats_have_contexts(dtype):
    assert CONTEXT not in kinds(check(leaning(50_000), dtype, engine="rans"))


@PROPERTY
@given(
    dtype=st.sampled_from(["BF16", "F16", "F32", "F64"]),
    chunk=st.sampled_from([MIN_CHUNK, 4104, 20_000, None]),
    parts=st.lists(
        st.tuples(st.integers(0, 30_000), st.integers(0, 99), st.floats(0.05, 0.99)), max_size=4
    ),
    cut=st.integers(0, 7),
)
def test_round_trip_with_contexts(dtype, chunk, parts, cut):
    pieces = [leaning(count, seed, lean=lean) for count, seed, lean in parts]
    data = np.concatenate([np.zeros(0, np.uint8), *pieces])
    blob = check(data[: max(0, data.size - cut)], dtype, engine="rans", chunk=chunk)
    assert decompress(blob, threads=2).size == max(0, data.size - cut)


@pytest.mark.parametrize("size", [*range(4080, 4110), 4096 * 16 + 1, 4096 * 33 - 1])
def test_sizes_around_the_first_context(size):
    data = leaning(size // 2 + 1)[:size]
    found = kinds(check(data, "BF16", engine="rans", chunk=MIN_CHUNK))
    assert (found[0] == CONTEXT) == (size >= 4096)


@pytest.mark.parametrize("dtype", ["BF16", "F64"])
def test_threads_do_not_change_the_contexts(dtype):
    data = np.concatenate([leaning(90_000), noise(30_000), leaning(60_000, 1, (60, 68))])
    one = compress(data, dtype, engine="rans", chunk=8192)
    assert one.tobytes() == compress(data, dtype, engine="rans", chunk=8192, threads=2).tobytes()
    assert decompress(one, threads=2).tobytes() == data.tobytes()


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
    for chunk in (-8, 0, 8, MIN_CHUNK - 8, MIN_CHUNK + 4, MAX_CHUNK + 8):
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
        parts = [np.zeros(MIN_CHUNK, np.uint8), runs(MIN_CHUNK), weights(55, seed=2), noise(3)]
        data = np.concatenate(parts)
        return data, compress(data, "BF16", engine=engine, chunk=MIN_CHUNK, worthwhile=1.0)
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
    assert decompress(forge(16, MIN_CHUNK, [(RAW, 0, 16)], text, restored=text)).tobytes() == text
    packed = zstandard.compress(text)
    blob = forge(16, MIN_CHUNK, [(ZSTD, 0, len(packed))], packed, restored=text)
    assert decompress(blob).tobytes() == text


ONE_TABLE = b"\x01\x01\x05"  # one table of one symbol, 5


@pytest.mark.parametrize(
    ("entries", "payload", "tables"),
    [
        ([(6, 0, 16)], bytes(16), b"\0"),  # no such kind
        ([(CONTEXT, 0, 16)], bytes(16), b"\0"),  # only floats have one
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
            decompress(forge(16, MIN_CHUNK, entries, payload, tables, restored=restored))


def test_more_tables_than_a_decoder_should_make():
    count = MOST + 1
    entries = [(RANS, number, 4) for number in range(count)]
    for tables in (count, count - 1):
        head = bytearray()
        varint.put(head, tables)
        size = MIN_CHUNK * count
        blob = forge(
            size, MIN_CHUNK, entries, b"\0\0\1\0" * count, bytes(head) + b"\1\5" * tables,
            restored=b"\5" * size,
        )  # fmt: skip
        with pytest.raises(CorruptFile, match=r"4097 where at most 4096|a table that is not there"):
            decompress(blob)


@pytest.fixture(scope="module")
def with_contexts():
    data = leaning(2100)
    blob = compress(data, "BF16", engine="rans")
    assert kinds(blob) == [CONTEXT, RANS]
    return data, blob


def test_damage_to_contexts(with_contexts):
    data, blob = with_contexts
    start = blob.size - 12 - int.from_bytes(blob[-4:].tobytes(), "little")
    rng = np.random.default_rng(0)
    payload = rng.integers(0, start, 100)
    for position in [*payload.tolist(), *range(start, blob.size)]:
        for mask in (0x01, 0x04, 0x80, 0xFF):
            damaged = blob.copy()
            damaged[position] ^= mask
            original_or_corrupt(damaged, data)
    for size in [*payload.tolist(), *range(start, blob.size)]:
        with pytest.raises(CorruptFile):
            decompress(blob[:size])


def context_blob(entries, payload, sets, code=0x82, size=32, tables=b"\0"):
    return forge(size, MIN_CHUNK, entries, payload, tables, tail=sets, code=code)


ONE_SET = b"\1\5" + bytes([16] * 6) + b"\17"
TOP = (CONSTANT, 0, 1)


@pytest.mark.parametrize(
    ("entries", "sets", "code"),
    [
        ([(CONTEXT, 0, 32), TOP], ONE_SET, 0x02),  # no layout of floats
        ([TOP, (CONTEXT, 0, 32)], ONE_SET, 0x82),  # the top plane has none above
        ([(CONTEXT, 0, 16), TOP, TOP, TOP], ONE_SET, 0x84),  # nor has the lowest of four
        ([(CONTEXT, 0, 9), TOP], ONE_SET, 0x82),  # five bits a symbol at least
        ([(CONTEXT, 0, 32), TOP], b"", 0x82),  # no set
        ([(CONTEXT, 1, 32), TOP], ONE_SET, 0x82),
        ([(CONTEXT, 2**62, 32), TOP], ONE_SET, 0x82),
        ([(CONTEXT, 0, 32), TOP], b"\0", 0x82),  # an empty set
        ([(CONTEXT, 0, 32), TOP], ONE_SET + b"\0", 0x82),
        ([(CONTEXT, 0, 32), TOP], ONE_SET, 0x82),  # the stream itself is no stream
        ([(RAW, 0, 16), TOP], ONE_SET, 0x82),  # a set that no piece uses
    ],
)
def test_context_pieces_that_lie(entries, sets, code):
    payload = bytes(sum(length for _, _, length in entries))
    with pytest.raises(CorruptFile, match=r"compressed block|rANS stream"):
        decompress(context_blob(entries, payload, sets, code))


def test_more_context_tables_than_a_decoder_should_make():
    one = b"\xff\1" + (b"\0" + bytes([17] * 7)) * 255
    count = 2 * MOST // 256 + 1
    entries = [entry for number in range(count) for entry in ((CONTEXT, number, 1280), TOP)]
    blob = context_blob(entries, bytes(1281 * count), one * count, size=MIN_CHUNK * count)
    tracemalloc.start()
    with pytest.raises(CorruptFile, match="more context tables than a decoder should make"):
        decompress(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_full_book_of_contexts_is_read_again(monkeypatch):
    monkeypatch.setattr(contexts, "MOST", 20)
    parts = [leaning(32_768, k, (20 * k, 20 * k + 8)) for k in range(1, 6)]
    blob = check(np.concatenate(parts), "BF16", engine="rans", chunk=MIN_CHUNK)
    assert len(contents(blob).sets) == 2


def test_a_wrong_checksum_and_a_wrong_tail():
    text = b"laconic is short"
    with pytest.raises(CorruptFile, match="checksum"):
        decompress(forge(16, MIN_CHUNK, [(RAW, 0, 16)], text))
    for tail in (b"", b"ab"):  # one byte is what is left of 17 where elements have two
        with pytest.raises(CorruptFile):
            decompress(forge(17, MIN_CHUNK, [(CONSTANT, 0, 1)] * 2, b"xx", tail=tail, code=2))


@pytest.mark.parametrize("chunk", [0, 8, MIN_CHUNK - 8, MIN_CHUNK + 4, MAX_CHUNK + 8, 2**40])
def test_impossible_chunks(chunk):
    with pytest.raises(CorruptFile):
        decompress(forge(16, chunk, [(RAW, 0, 16)], bytes(16), restored=bytes(16)))


@pytest.mark.parametrize("size", [2**40, 2**47, 2**48, 2**48 + 1, 2**62])
@pytest.mark.parametrize("code", [1, 2, 0x82, 8, 0x88])
def test_a_short_blob_cannot_claim_much_memory(size, code):
    blob = forge(size, MAX_CHUNK, [(CONSTANT, 0, 1)] * 3, b"xyz", code=code)
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        decompress(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(blob) < 40 and peak < 1 << 20


def test_memory_that_is_not_there(monkeypatch):
    pieces = 400  # constant pieces of 4 MiB each are possible, so the claim itself is not absurd
    size = pieces * MAX_CHUNK
    blob = forge(size, MAX_CHUNK, [(CONSTANT, 0, 1)] * pieces, bytes(pieces))
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
    blob = forge(16, MIN_CHUNK, [(ZSTD, 0, len(packed))], packed, restored=bytes(16))
    tracemalloc.start()
    with pytest.raises(CorruptFile):
        decompress(blob)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_layouts_are_all_tested():
    assert {LAYOUTS[dtype].itemsize for dtype in ITEMS} == set(planes._WORDS)
