import numpy as np
import pytest

from laconic.coding import rans
from laconic.coding.rans import LANES, SHORT
from laconic.coding.tables import Tables, histogram
from laconic.errors import CorruptFile


def bell(count, width=20.0):
    rng = np.random.default_rng(0)
    return np.clip(rng.normal(100, width, count), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("width", [0.2, 1.0, 5.0, 20.0, 60.0])
@pytest.mark.parametrize("count", [10, 1000, SHORT - 1, SHORT, 10_000, 300_000])
def test_size_is_ideal(width, count):
    symbols = bell(count, width)
    counts = histogram(symbols)
    for tables in (Tables.from_counts(counts), Tables.from_counts(counts + 5)):
        ideal = tables.bits(counts)[0] / 8
        found = rans.encode(symbols, 0, tables).size
        assert ideal - 4 <= found <= 1.002 * ideal + 40


def test_size_is_ideal_with_an_index():
    symbols = bell(100_000)
    index = (np.arange(100_000) // 7) % 3
    shifted = (symbols + 50 * index).astype(np.uint8)
    counts = np.stack([np.bincount(shifted[index == k], minlength=256) for k in range(3)])
    tables = Tables.from_counts(counts)
    ideal = sum(tables.bits(counts[k])[k] for k in range(3)) / 8
    assert rans.encode(shifted, index, tables).size <= 1.002 * ideal + 40


@pytest.mark.parametrize("count", [1, SHORT - 1, SHORT, SHORT + 7, 50_000])
def test_an_index_of_one_table_changes_nothing(count):
    symbols = bell(count)
    tables = Tables.from_counts(np.stack([np.ones(256, int), histogram(symbols)]))
    stream = rans.encode(symbols, 1, tables)
    index = np.ones(count, np.uint16)
    assert (rans.encode(symbols, index, tables) == stream).all()
    assert (rans.decode(stream, count, index, tables) == symbols).all()


@pytest.mark.parametrize(("count", "size"), [(0, 4), (1, 4), (SHORT - 1, 4), (SHORT, 4 * LANES)])
def test_certain_symbols_take_only_the_states(count, size):
    symbols = np.full(count, 9, np.uint8)
    tables = Tables.from_counts(histogram(np.full(1, 9, np.uint8)))
    stream = rans.encode(symbols, 0, tables)
    assert stream.size == size
    assert (rans.decode(stream, count, 0, tables) == 9).all()


def test_rare_symbols_of_the_smallest_and_largest_frequency():
    counts = np.zeros(256, np.int64)
    counts[[1, 2]] = 4095, 1
    tables = Tables.from_counts(counts)
    for symbols in (np.full(5000, 2, np.uint8), np.tile([1, 2], 2500).astype(np.uint8)):
        stream = rans.encode(symbols, 0, tables)
        assert (rans.decode(stream, 5000, 0, tables) == symbols).all()


def test_division_by_multiplication_is_exact():
    """The encoder's reciprocals, at the edges of every quotient that a state can have."""
    frequency = np.arange(1, 4097, dtype=np.int64)[:, None]
    inverse = (1.0 / frequency) * (1.0 + 2.0**-50)
    below = np.random.default_rng(0).integers(0, 1 << 20, (4096, 500)) * frequency
    top = frequency << 20
    states = np.concatenate([below, below + frequency - 1, top - 1, top - frequency], axis=1)
    assert ((states * inverse).astype(np.int64) == states // frequency).all()


@pytest.mark.parametrize("count", [100, SHORT])
def test_damage_to_the_states_shows_or_gives_other_symbols(count):
    symbols = bell(count)
    tables = Tables.from_counts(histogram(symbols))
    stream = rans.encode(symbols, 0, tables)
    for value in (0, 0xFF):
        damaged = stream.copy()
        damaged[:4] = value
        with pytest.raises(CorruptFile, match="rANS stream is damaged"):
            rans.decode(damaged, count, 0, tables)


def test_sizes_that_no_encoder_writes():
    tables = Tables.from_counts(np.ones(256))
    for size, count in ((3, 1), (5, 1), (4 * LANES - 2, SHORT), (4 * LANES + 1, SHORT)):
        with pytest.raises(CorruptFile, match=f"rANS stream of {size} bytes"):
            rans.decode(np.zeros(size, np.uint8), count, 0, tables)
