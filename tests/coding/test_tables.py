import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numba.core.errors import TypingError

from laconic.coding import varint
from laconic.coding.tables import TOTAL, Tables, cross_bits, entropy_bits, histogram
from laconic.errors import CorruptFile, UsageError

PROPERTY = settings(max_examples=150, deadline=None, derandomize=True)


def counted(pairs):
    counts = np.zeros(256, np.int64)
    for symbol, count in pairs.items():
        counts[symbol] = count
    return counts


histograms = st.dictionaries(
    st.integers(0, 255), st.integers(1, 3) | st.integers(1, 2**40), min_size=1
).map(counted)


def reread(data, count):
    reader = varint.Reader(data, "test")
    tables = Tables.read(reader, count)
    reader.expect_end()
    return tables


@PROPERTY
@given(histograms)
def test_frequencies_are_positive_exactly_where_symbols_occur(counts):
    tables = Tables.from_counts(counts)
    row = tables.frequencies[0].astype(int)
    assert row.sum() == TOTAL and ((row > 0) == (counts > 0)).all()
    assert (tables.cumulative[0] == np.concatenate([[0], np.cumsum(row)])).all()


@PROPERTY
@given(histograms)
def test_no_swap_of_one_step_makes_a_table_much_better(counts):
    """Rounding and repair end near the optimum: better swaps save less than 0.1 %."""
    row = Tables.from_counts(counts).frequencies[0].astype(np.float64)
    present = np.flatnonzero(counts)
    gain = counts[present] * np.log2((row[present] + 1) / row[present])
    shrinks = present[row[present] > 1]
    loss = counts[shrinks] * np.log2(row[shrinks] / (row[shrinks] - 1))
    if present.size > 1 and shrinks.size:
        cost = float((counts[present] * np.log2(TOTAL / row[present])).sum())
        assert gain.max() - loss.min() <= 0.001 * cost


@PROPERTY
@given(st.lists(histograms, min_size=1, max_size=5))
def test_bytes_round_trip(rows):
    tables = Tables.from_counts(np.stack(rows))
    assert len(tables) == len(rows)
    back = reread(tables.to_bytes(), len(rows))
    assert (back.frequencies == tables.frequencies).all()


@PROPERTY
@given(histograms)
def test_bits_are_cross_entropies(counts):
    tables = Tables.from_counts(np.stack([counts, counts[::-1], np.ones(256, np.int64)]))
    found = tables.bits(counts)
    for k in range(3):
        expected = cross_bits(counts, tables.frequencies[k].astype(np.int64))
        assert found[k] == pytest.approx(expected, rel=1e-9, abs=1e-6)
        assert found[k] >= entropy_bits(counts) * (1 - 1e-9) - 1e-6
    assert found[2] == pytest.approx(8 * counts.sum())


def test_bits_of_an_excluded_symbol_are_infinite():
    tables = Tables.from_counts(counted({3: 1}))
    assert tables.bits(counted({3: 9}))[0] == 0
    assert tables.bits(counted({3: 9, 4: 1}))[0] == np.inf
    assert cross_bits(counted({4: 1}), counted({3: 1})) == np.inf


def test_entropy():
    assert entropy_bits(counted({0: 5})) == 0
    assert entropy_bits(np.zeros(256, np.int64)) == 0
    assert entropy_bits(counted({0: 4, 9: 4})) == pytest.approx(8)
    assert entropy_bits(np.ones(256, np.int64)) == pytest.approx(2048)


def test_nothing_seen_makes_one_certain_symbol():
    assert Tables.from_counts(np.zeros(256)).frequencies[0, 0] == TOTAL


def test_tables_of_impossible_shape_or_sum():
    for frequencies in (np.zeros(256), np.zeros((1, 255))):
        with pytest.raises(UsageError, match=r"tables must be \(K, 256\)"):
            Tables(frequencies)
    with pytest.raises(CorruptFile, match="each table must sum to 4096"):
        Tables(np.ones((2, 256)))
    for counts in (np.zeros((2, 100)), np.zeros((2, 2, 256)), -np.ones(256)):
        with pytest.raises(UsageError, match=r"histograms must be \(K, 256\)"):
            Tables.from_counts(counts)


def test_tables_compare_without_an_exception():
    tables = Tables.from_counts(np.ones(256))
    assert tables == tables and tables != Tables.from_counts(np.ones(256))


@pytest.mark.parametrize("pairs", [{0: 1}, {255: 1}, {7: 3, 9: 1}, dict.fromkeys(range(256), 1)])
def test_truncated_or_altered_bytes(pairs):
    data = Tables.from_counts(counted(pairs)).to_bytes()
    for length in range(len(data)):
        with pytest.raises(CorruptFile):
            reread(data[:length], 1)
    for position in range(len(data)):
        for mask in (0x01, 0x80, 0xFF):
            damaged = bytearray(data)
            damaged[position] ^= mask
            valid_or_corrupt(damaged, 1)


@PROPERTY
@given(st.binary(max_size=60), st.integers(0, 4))
def test_garbage(data, count):
    valid_or_corrupt(data, count)


def valid_or_corrupt(data, count):
    try:
        tables = Tables.read(varint.Reader(data, "test"), count)
    except CorruptFile:
        return
    assert (tables.frequencies.sum(axis=1, dtype=np.int64) == TOTAL).all()


@pytest.mark.parametrize(
    "values",
    [
        (0,),  # no symbol at all
        (257, 0),  # more symbols than there are
        (1, 256),  # a symbol beyond 255
        (2, 255, 0, 0),  # the second symbol beyond 255
        (2, 0, 4095, 0),  # nothing is left for the last symbol
        (3, 0, 4000, 0, 200, 0),  # more than 4096 in all
    ],
)
def test_impossible_tables(values):
    out = bytearray()
    for value in values:
        varint.put(out, value)
    with pytest.raises(CorruptFile):
        reread(out, 1)


@PROPERTY
@given(st.binary(max_size=200), st.integers(0, 8))
def test_histogram(data, offset):
    symbols = np.frombuffer(data, np.uint8)[offset:]
    assert (histogram(symbols) == np.bincount(symbols, minlength=256)).all()


def test_histogram_of_what_is_no_contiguous_bytes():
    for symbols in (np.zeros(16, np.uint16), np.zeros(32, np.uint8)[::-1]):
        with pytest.raises(TypingError, match="contiguous bytes expected"):
            histogram(symbols)
