"""What both engines promise: they take the same arguments, and read each other's tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from laconic.coding import huffman, rans
from laconic.coding.rans import SHORT
from laconic.coding.tables import Tables, histogram
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)
ENGINES = {"rans": rans, "huffman": huffman}
COUNTS = [*range(20), 63, 64, 65, *range(SHORT - 9, SHORT + 10), 4 * SHORT + 3, 70_001]
KINDS = ("one", "two", "skewed", "bell", "uniform", "fibonacci")

engines = pytest.mark.parametrize("engine", ENGINES.values(), ids=ENGINES)


def draw(kind, count, seed=0):
    rng = np.random.default_rng([seed, count])
    if kind == "one":
        return np.full(count, 200, np.uint8)
    if kind == "two":
        return rng.choice(np.array([0, 255], np.uint8), count, p=[0.03, 0.97])
    if kind == "skewed":
        return np.minimum(rng.geometric(0.6, count), 255).astype(np.uint8)
    if kind == "bell":
        return np.clip(rng.normal(100, 20, count), 0, 255).astype(np.uint8)
    if kind == "uniform":
        return rng.integers(0, 256, count, np.uint8)
    return np.minimum(rng.geometric(0.382, count), 20).astype(np.uint8)  # long codes


def own_tables(symbols):
    return Tables.from_counts(histogram(symbols))


def indexed(kind, count, tables, seed=0):
    """Symbols, an index over `tables` tables, and tables from the counts of each index."""
    symbols = draw(kind, count, seed)
    index = np.random.default_rng(seed).integers(0, tables, count)
    rolled = (symbols + 31 * index).astype(np.uint8)
    counts = np.stack([np.bincount(rolled[index == k], minlength=256) for k in range(tables)])
    return rolled, index, Tables.from_counts(counts)


def fenced(size, margin=64):
    """A buffer of `size` bytes with canaries around it."""
    whole = np.full(size + 2 * margin, 0xA5, np.uint8)
    inner = whole[margin : margin + size]

    def untouched():
        return bool((whole[:margin] == 0xA5).all() and (whole[margin + size :] == 0xA5).all())

    return inner, untouched


def decode_or_corrupt(engine, stream, count, index, tables):
    """Without a checksum a wrong result of the right length is allowed; nothing else is."""
    out, untouched = fenced(count)
    try:
        assert engine.decode(stream, count, index, tables, out).size == count
        return out
    except CorruptFile:
        return None
    finally:
        assert untouched()


@engines
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_with_one_table(engine, kind):
    for count in COUNTS:
        symbols = draw(kind, count)
        before = symbols.copy()
        tables = own_tables(symbols)
        stream = engine.encode(symbols, 0, tables)
        assert stream.dtype == np.uint8 and (symbols == before).all()
        copy = stream.copy()
        assert (engine.decode(stream, count, 0, tables) == symbols).all()
        assert (stream == copy).all()


@engines
@pytest.mark.parametrize("tables", [1, 2, 7, 300])
def test_round_trip_with_an_index(engine, tables):
    for count in COUNTS[:: 1 if tables < 300 else 6]:
        symbols, index, made = indexed("skewed", count, tables)
        before = index.copy()
        stream = engine.encode(symbols, index, made)
        assert (engine.decode(stream, count, index, made) == symbols).all()
        assert (index == before).all()


@PROPERTY
@given(
    engine=st.sampled_from(list(ENGINES.values())),
    kind=st.sampled_from(KINDS),
    count=st.sampled_from([0, 1, SHORT - 1, SHORT, SHORT + 1]) | st.integers(0, 3 * SHORT),
    tables=st.integers(0, 5),
    seed=st.integers(0, 2**32),
)
def test_round_trip_of_anything(engine, kind, count, tables, seed):
    if tables:
        symbols, index, made = indexed(kind, count, tables, seed)
    else:
        symbols, index = draw(kind, count, seed), 0
        made = own_tables(symbols)
    stream = engine.encode(symbols, index, made)
    assert (engine.decode(stream, count, index, made) == symbols).all()


@PROPERTY
@given(data=st.binary(max_size=300), engine=st.sampled_from(list(ENGINES.values())))
def test_round_trip_of_any_bytes_under_any_sufficient_tables(data, engine):
    symbols = np.frombuffer(data, np.uint8)
    for counts in (histogram(symbols), histogram(symbols) + 1, histogram(symbols) ** 2 + 1):
        tables = Tables.from_counts(counts)
        stream = engine.encode(symbols, 0, tables)
        assert (engine.decode(stream, symbols.size, 0, tables) == symbols).all()


@engines
@pytest.mark.parametrize("kind", KINDS)
def test_never_much_larger_than_the_input(engine, kind):
    for count in COUNTS:
        symbols = draw(kind, count)
        assert engine.encode(symbols, 0, own_tables(symbols)).size <= 64 + 1.001 * count


@engines
def test_which_table_is_used(engine):
    symbols = draw("bell", 3000)
    tables = Tables.from_counts(np.stack([np.ones(256, int), histogram(symbols)]))
    streams = [engine.encode(symbols, k, tables) for k in range(2)]
    assert streams[1].size < 0.9 * streams[0].size
    for k, stream in enumerate(streams):
        assert (engine.decode(stream, 3000, np.int32(k), tables) == symbols).all()
    all_second = engine.encode(symbols, np.ones(3000, np.uint8), tables)
    assert abs(all_second.size - streams[1].size) <= 32


@engines
@pytest.mark.parametrize("count", [20, SHORT + 5])
def test_excluded_symbols_are_refused_wherever_they_are(engine, count):
    symbols = draw("two", count)
    tables = Tables.from_counts(np.bincount([0, 255], minlength=256))
    for position in [*range(20), *range(count - 12, count)]:
        altered = symbols.copy()
        altered[position] = 7
        for index in (0, np.zeros(count, int)):
            with pytest.raises(UsageError, match="its frequency table excludes"):
                engine.encode(altered, index, tables)


@engines
@pytest.mark.parametrize("index", [-1, 2, 65536, [0] * 9 + [2], [-1] * 10, [65536] * 10])
def test_indices_that_name_no_table(engine, index):
    tables = Tables.from_counts(np.ones((2, 256)))
    index = index if isinstance(index, int) else np.array(index)
    with pytest.raises(UsageError, match="there are 2 tables"):
        engine.encode(np.zeros(10, np.uint8), index, tables)
    with pytest.raises(UsageError, match="there are 2 tables"):
        engine.decode(np.zeros(40, np.uint8), 10, index, tables)


@engines
def test_an_index_of_another_length(engine):
    tables = Tables.from_counts(np.ones((2, 256)))
    with pytest.raises(UsageError, match="10 symbols need as many table indices, found 9"):
        engine.encode(np.zeros(10, np.uint8), np.zeros(9, int), tables)
    with pytest.raises(UsageError, match="10 symbols need as many table indices, found 11"):
        engine.decode(np.zeros(40, np.uint8), 10, np.zeros(11, int), tables)


@engines
def test_no_tables(engine):
    none = Tables(np.zeros((0, 256)))
    for index in (0, np.zeros(0, int)):
        with pytest.raises(UsageError, match="there are 0 tables"):
            engine.encode(np.zeros(0, np.uint8), index, none)


@engines
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outside_the_given_memory_is_written(engine, kind):
    for count in COUNTS:
        symbols = draw(kind, count)
        tables = own_tables(symbols)
        work, untouched = fenced(engine.room(count))
        stream = engine.encode(symbols, 0, tables, work)
        assert (stream.size == 0 or np.shares_memory(stream, work)) and untouched()
        assert (stream == engine.encode(symbols, 0, tables)).all()
        out, untouched = fenced(count)
        assert (engine.decode(stream, count, 0, tables, out) == symbols).all()
        assert (out == symbols).all() and untouched()


@engines
def test_a_longer_output_is_filled_from_its_start(engine):
    symbols = draw("bell", 3000)
    tables = own_tables(symbols)
    out = np.zeros(5000, np.uint8)
    assert engine.decode(engine.encode(symbols, 0, tables), 3000, 0, tables, out).size == 3000
    assert (out[:3000] == symbols).all() and not out[3000:].any()


@engines
def test_outputs_that_will_not_do(engine):
    symbols = draw("bell", 3000)
    tables = own_tables(symbols)
    stream = engine.encode(symbols, 0, tables)
    size = engine.room(3000)
    read_only = np.frombuffer(bytes(size), np.uint8)
    strided, wide = np.empty(2 * size, np.uint8)[::2], np.empty(size, np.uint16)
    for out in (np.empty(2999, np.uint8), read_only, strided, wide, np.empty((2, size), np.uint8)):
        with pytest.raises(UsageError, match="bytes or more"):
            engine.encode(symbols, 0, tables, out)
        with pytest.raises(UsageError, match="3000 contiguous, writable bytes or more"):
            engine.decode(stream, 3000, 0, tables, out)


@engines
def test_read_only_strided_and_unaligned_input(engine):
    for count in (100, 3000):
        symbols = draw("bell", count)
        tables = own_tables(symbols)
        stream = engine.encode(symbols, 0, tables)
        shifted = np.frombuffer(b"x" + symbols.tobytes(), np.uint8)[1:]
        assert (engine.encode(shifted, 0, tables) == stream).all()
        assert (engine.encode(symbols.repeat(2)[::2], 0, tables) == stream).all()
        shifted = np.frombuffer(b"x" + stream.tobytes(), np.uint8)[1:]
        assert (engine.decode(shifted, count, 0, tables) == symbols).all()
        work = np.empty(engine.room(count) + 1, np.uint8)[1:]
        assert (engine.encode(symbols, 0, tables, work) == stream).all()


@engines
@pytest.mark.parametrize("count", [40, SHORT + 2])
@pytest.mark.parametrize("tables", [0, 3])
def test_damaged_streams(engine, count, tables):
    """Every truncation, every byte changed, and random damage of several bytes."""
    if tables:
        symbols, index, made = indexed("skewed", count, tables)
    else:
        symbols, index = draw("skewed", count), 0
        made = own_tables(symbols)
    stream = engine.encode(symbols, index, made)
    for size in range(stream.size):
        found = decode_or_corrupt(engine, stream[:size], count, index, made)
        assert found is None or engine is huffman  # zeros past the end may be a code
    for position in range(stream.size):
        for mask in (0x01, 0x10, 0x80, 0xFF):
            damaged = stream.copy()
            damaged[position] ^= mask
            decode_or_corrupt(engine, damaged, count, index, made)
    rng = np.random.default_rng(1)
    for _ in range(200):
        damaged = stream.copy()
        damaged[rng.integers(0, stream.size, 4)] = rng.integers(0, 256, 4)
        decode_or_corrupt(engine, damaged, count, index, made)
    for extra in (1, 2, 4, 9):
        longer = np.concatenate([stream, np.zeros(extra, np.uint8)])
        assert decode_or_corrupt(engine, longer, count, index, made) is None


@engines
@pytest.mark.parametrize("kind", ["one", "skewed", "uniform"])
def test_garbage(engine, kind):
    tables = own_tables(draw(kind, 5000))
    rng = np.random.default_rng(2)
    for _ in range(400):
        stream = rng.integers(0, 256, rng.integers(0, 3000), np.uint8)
        count = int(rng.choice([0, 1, 5, SHORT - 1, SHORT, SHORT + 1, 5000]))
        decode_or_corrupt(engine, stream, count, 0, tables)
        decode_or_corrupt(engine, stream, count, np.zeros(count, int), tables)


@engines
def test_empty_streams(engine):
    tables = own_tables(draw("skewed", 100))
    for count in (1, 100, SHORT, 10**6):
        with pytest.raises(CorruptFile):
            engine.decode(np.zeros(0, np.uint8), count, 0, tables)
